"""A private SLURM of two nodes for the session, and a clone of the repository for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.private_slurm import PrivateSlurm, missing, private_slurm
from tests.slurm.jobs import Site

REQUIRED = "KDSCHEMES_REQUIRE_SLURM"
"""Environment variable: where it is set, a SLURM that cannot be had is a failure, not a reason to skip."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSlurm]:
    """Two nodes of this machine, by SLURM's own daemons."""
    if missing():
        reason = f"no SLURM here: {', '.join(missing())} not found (Debian: the package slurm-wlm)"
        if os.environ.get(REQUIRED):
            pytest.fail(reason)
        pytest.skip(reason)
    with private_slurm(tmp_path_factory.mktemp("slurm") / "cluster", cpus=8, kill_wait=20) as up:
        yield up


@pytest.fixture
def site(cluster: PrivateSlurm, tmp_path: Path) -> Site:
    """A clone of the repository with its `slurm/site.sh` filled in, from which jobs are submitted."""
    return Site(cluster, tmp_path / "clone")
