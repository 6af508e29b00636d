"""What goes wrong on a cluster fails in seconds, with one clear line in the job's log."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs import RUN, Site


def error(site: Site, job: str) -> str:
    """Wait for a job that must fail, and return the only line of its log that is an error of ours."""
    facts = site.wait(job)
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "0")
    (line,) = (line for line in site.log(job).splitlines() if line.startswith("error: "))
    assert "Traceback" not in site.log(job)
    return line


def test_an_unknown_key_on_two_nodes_is_told_once(site: Site) -> None:
    job = site.submit(*RUN, "optim.rate=3", options="--nodes=2")
    assert error(site, job).startswith("error: unknown key 'optim.rate'")
    assert not (site.clone / "runs").exists()


def test_data_that_one_node_lacks(site: Site) -> None:
    """The second node sees another folder under the name that the first one finds its images in."""
