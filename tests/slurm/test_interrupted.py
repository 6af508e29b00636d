"""An interrupted job resumes by itself, and its run ends like an undisturbed one, byte for byte."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.images import write_images
from tests.slurm.jobs import RUN, Site, check_equal, is_pending, processes_of, undisturbed

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nothing disturbed."""
    return undisturbed(tmp_path_factory.mktemp("whole") / "run", RUN)


def test_a_job_near_its_time_limit_saves_requeues_itself_and_finishes(site: Site, whole: Path) -> None:
    """The limit is moved once the run trains, and back for the second start: SLURM's signal comes within 30 s.

    The run stands still until then, so that it need not be long.
    """
    job = site.submit(*RUN, options="--time=10 --signal=B:USR2@60")
    site.is_training()
    (training,) = processes_of(site)
    training.suspend()
    site.shell(f"scontrol update JobId={job} TimeLimit=1")
    site.until(lambda: is_pending(training, signal.SIGUSR2), "SLURM's signal")
    training.resume()
    site.until(lambda: site.job(job)["Restarts"] == "1", "the job's return to the queue")
    site.shell(f"scontrol update JobId={job} TimeLimit=10")
    site.completed(job, restarts=1)
    log = site.log(job)
    assert log.count("stopped by SIGUSR2 after step ") == 1
    assert log.count(f"job {job} stopped before its end: into the queue again") == 1
    assert log.count("resuming from step ") == 1
    assert f"job {job}, start 2, 1 x 1 processes" in log
    check_equal(site.run_folder(), whole)
    assert not list(site.clone.glob(".kdschemes-*"))


def test_a_job_too_short_for_its_first_step_is_not_requeued_for_ever(site: Site) -> None:
    job = site.submit(*RUN)
    site.until(lambda: "start 1" in site.log(job), "the job's start")
    site.shell(f"scancel --batch --signal=USR2 {job}")  # what SLURM sends ahead of a time limit
    facts = site.wait(job)
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "0")
    said = (
        f"error: job {job} came near its time limit before its first step and would do so again: give it more (--time)"
    )
    assert said in site.log(job).splitlines()


@pytest.mark.exhaustive
def test_a_preempted_job_resumes(site: Site, tmp_path: Path) -> None:
    """SLURM signals all processes of the job, its loading workers too."""
    write_images(tmp_path / "images", 80)
    workers = ["data=image_folder", f"data.root={tmp_path / 'images'}", "data.image_size=8", "data.num_workers=2"]
    arguments = [*RUN, *workers, "data.val_fraction=0.1", "data.train_fraction=1", "train.epochs=20"]
    job = site.submit(*arguments)
    site.is_training()
    node = site.job(job)["BatchHost"]
    script = site.clone / "urgent.sh"
    script.write_text("#!/bin/bash\nsleep 1\n")
    urgent = f"sbatch --parsable --partition=high --nodelist={node} --exclusive urgent.sh"
    other = site.shell(urgent).stdout.strip()
    assert site.wait(other)["JobState"] == "COMPLETED"
    site.completed(job, restarts=1)
    assert "stopped by SIGTERM after step " in site.log(job)
    check_equal(site.run_folder(), undisturbed(tmp_path / "whole", arguments))


@pytest.mark.exhaustive
def test_a_requeued_job_resumes(site: Site, whole: Path) -> None:
    job = site.submit(*RUN)
    site.is_training()
    site.shell(f"scontrol requeue {job}")
    site.completed(job, restarts=1)
    assert "stopped by SIGTERM after step " in site.log(job)
    check_equal(site.run_folder(), whole)


@pytest.mark.exhaustive
def test_a_job_that_gets_sigterm_requeues_itself(site: Site, whole: Path) -> None:
    job = site.submit(*RUN)
    site.is_training()
    site.shell(f"scancel --signal=TERM {job}")
    site.completed(job, restarts=1)
    log = site.log(job)
    assert "stopped by SIGTERM after step " in log
    assert f"job {job} stopped before its end: into the queue again" in log
    check_equal(site.run_folder(), whole)


@pytest.mark.exhaustive
def test_a_cancelled_job_stays_cancelled_and_the_same_command_resumes(site: Site, whole: Path) -> None:
    job = site.submit(*RUN)
    site.is_training()
    site.shell(f"scancel {job}")
    facts = site.wait(job)
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0")
    again = site.submit(*RUN)
    site.completed(again, restarts=0)
    assert "resuming from step " in site.log(again)
    check_equal(site.run_folder(), whole)
    finished = site.submit(*RUN)
    site.completed(finished, restarts=0)
    assert "this run is already finished" in site.log(finished)
