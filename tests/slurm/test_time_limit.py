"""A job that comes near its time limit saves, puts itself into the queue again, and finishes."""

from __future__ import annotations

from pathlib import Path

from jobs import RUN, Site, check_equal, undisturbed

LONG = [*RUN, "train.epochs=270", "train.eval_every=90", "train.checkpoint_every=270"]
"""A run that does not fit into the 25 to 30 s that the job leaves it, start and all, before SLURM's signal."""


def test_a_job_near_its_time_limit_saves_requeues_itself_and_finishes(site: Site, tmp_path: Path) -> None:
    job = site.submit(*LONG, options="--time=1 --signal=B:USR2@32")
    site.is_training()
    facts = site.wait(job)
    log, restarts = site.log(job), int(facts["Restarts"])
    assert facts["JobState"] == "COMPLETED", log
    assert 1 <= restarts <= 4
    assert log.count("stopped by SIGUSR2 after step ") == restarts
    assert log.count(f"job {job} stopped before its end: into the queue again") == restarts
    assert log.count("going on from step ") == restarts
    assert f"job {job}, start {restarts + 1}, 1 x 1 processes" in log
    check_equal(site.run_folder(), undisturbed(tmp_path / "whole", LONG))
    assert not list(site.clone.glob(".kdschemes-*"))


def test_a_job_too_short_for_its_first_step_is_not_requeued_for_ever(site: Site) -> None:
    job = site.submit(*RUN, options="--time=1 --signal=B:USR2@58")
    facts = site.wait(job)
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "0")
    said = (
        f"error: job {job} came near its time limit before its first step and would do so again: give it more (--time)"
    )
    assert said in site.log(job).splitlines()
