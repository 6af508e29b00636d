"""The page on SLURM, line by line, as a new user types it."""

from __future__ import annotations

import re

import pytest

from tests import REPOSITORY
from tests.slurm.jobs import Site
from tests.slurm.test_study_array import jobs

pytestmark = pytest.mark.slurm


def test_the_commands_of_the_readme(site: Site) -> None:
    page = (REPOSITORY / "docs" / "slurm.md").read_text()
    setup, lines = re.findall(r"^```sh\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert setup.startswith("cp slurm/site.example.sh slurm/site.sh ")
    read, run, two_nodes, dry, submit, status, report = lines.splitlines()
    numbers = [site.shell(f"{read}\n{line}").stdout.split()[-1] for line in (run, two_nodes)]
    would = site.shell(dry).stdout
    assert "--array=0-14 " in would
    assert "alpha=0.9 seed=2: " in would
    sent = site.shell(f"{read}\n{submit}").stdout
    arrays = jobs(sent)
    assert len(arrays) == 3  # the teacher, the students, the report
    told = site.shell(status).stdout
    assert "15 runs: " in told
    assert "1 prerequisite: " in told
    assert "How much should a student listen to its teacher?" in site.shell(report).stdout
    site.shell(f"scancel {' '.join(arrays)}")
    for number in numbers:
        site.completed(number, restarts=0)
    assert "2 x 1 processes" in site.log(numbers[1])
