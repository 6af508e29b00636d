"""A node that SLURM takes for lost while its task still runs: the requeued job and the orphan never both write."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.slurm.jobs import RUN, Site, check_equal, processes_of, undisturbed

pytestmark = pytest.mark.slurm


def test_an_orphan_writes_nothing_once_its_job_runs_elsewhere(site: Site, tmp_path: Path) -> None:
    """The orphan is paused in the middle of its training, as a node without network seems to be, and then continues."""
    # srun dies with its connection to a lost node: each task writes what it says into a file (%t), by itself.
    with (site.clone / "slurm" / "site.sh").open("a") as settings:
        settings.write("srun_options=(--output=start-${SLURM_RESTART_COUNT:-0}-%t.out)\n")
    job = site.submit(*RUN)
    site.is_training()
    site.until(lambda: list(site.clone.glob("runs/*/checkpoint.pt")), "a checkpoint")
    node = site.job(job)["BatchHost"]
    (orphan,) = processes_of(site)
    daemon = site.cluster.daemons[node]
    try:
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.wait()
        os.kill(orphan.pid, signal.SIGSTOP)
        first, second = (site.clone / f"start-{number}-0.out" for number in range(2))
        site.until(lambda: second.exists() and "taking over" in second.read_text(), "the restart on the other node")
        assert orphan.is_running()
        os.kill(orphan.pid, signal.SIGCONT)
        site.completed(job, restarts=1)
        site.until(lambda: not orphan.is_running(), "the orphan's end")
    finally:
        site.cluster.start_node(node)
    word = f"from process {orphan.pid} on {node}, job {job}: SLURM started job {job} again"
    assert word in second.read_text()
    assert "run folder: " in second.read_text()
    said = first.read_text()
    (lost,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert "was taken over by process " in lost
    assert lost.endswith("this process stops and writes nothing more there")
    assert "run folder: " not in said
    check_equal(site.run_folder(), undisturbed(tmp_path / "whole", RUN))
    site.until(lambda: node in site.cluster.idle_nodes(), "the node's return")
