"""Without a clone: jobs submitted from an empty folder, by the scripts that come with the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.private_slurm import PrivateSlurm
from tests import REPOSITORY
from tests.slurm.jobs import SITE, Site
from tests.slurm.test_study_array import jobs

pytestmark = pytest.mark.slurm

STUDY = """\
question: Does it run?
base:
  scheme: supervised
  data.val_fraction: 0.9
  data.train_fraction: 1
  train: {epochs: 1, num_threads: 1}
  device: cpu
seeds: [0]
"""


@pytest.fixture
def installed(cluster: PrivateSlurm, tmp_path: Path) -> Site:
    """An installed package, and an empty folder."""
    package = tmp_path / "installed"
    build = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*build, "--target", str(package), str(REPOSITORY)], check=True, capture_output=True)
    site = Site(cluster, tmp_path / "empty")
    shutil.rmtree(site.clone)
    site.clone.mkdir()
    site.environment["PYTHONPATH"] = str(package)
    return site


def test_a_study_and_a_run_from_an_empty_folder(installed: Site) -> None:
    (installed.clone / "mine.yaml").write_text(STUDY)
    installed.shell("python -m kdschemes init")
    (installed.clone / "slurm" / "site.sh").write_text(SITE.format(programs=Path(sys.executable).parent))
    array, report = jobs(installed.shell("python -m kdschemes study submit mine.yaml").stdout)
    installed.completed(array, restarts=0)
    installed.completed(report, restarts=0)
    assert (installed.clone / "runs" / "studies" / "mine" / "report.html").is_file()
    folder = installed.run_folder()
    assert (folder / "results.json").is_file()
    assert os.fspath(REPOSITORY) not in "".join(path.read_text() for path in installed.clone.rglob("*.out"))
