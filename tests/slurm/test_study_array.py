"""A study as a job array: one run fails and is named, the others finish, and submitting again takes only that one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from kdschemes.models import create_model, save_weights
from tests import REPOSITORY
from tests.slurm.jobs import Site

pytestmark = pytest.mark.slurm

MISSING = "supervised-ce-digits-convnet_quarter-seed9-0123abcd"
"""A run that has not been trained; other weights must be there when a study is planned."""

STUDY = """\
question: Does it matter where a student starts from?
base:
  scheme: supervised
  model: convnet_quarter
  data.val_fraction: 0.9
  data.train_fraction: 1
  train: {epochs: 2, num_threads: 1}
  device: cpu
grid:
  model.checkpoint: [null, first, MISSING]
""".replace("MISSING", MISSING)
STARTS = ("first",)


def weights(place: Path) -> None:
    save_weights(create_model("convnet_quarter", num_classes=10, channels=1, image_size=8), place, metadata={})


def jobs(said: str) -> list[str]:
    """Return the numbers of the jobs that `kdschemes study submit` tells of: arrays, then the report."""
    return re.findall(r"^(?:array|job) (\d+): ", said, flags=re.MULTILINE)


def results(site: Site) -> dict[str, int]:
    """Return when each finished run wrote its results."""
    return {path.parent.name: path.stat().st_mtime_ns for path in site.clone.glob("runs/*/results.json")}


def test_a_study_of_three_runs_with_one_that_fails(site: Site) -> None:
    (site.clone / "starts.yaml").write_text(STUDY)
    for name in STARTS:
        weights(site.clone / name)
    dry = site.shell("kdschemes study submit starts.yaml --parallel 2 --dry-run").stdout
    assert "--array=0-2%2" in dry
    assert not (site.clone / "runs").exists()
    assert site.cluster.run("squeue", "--noheader") == ""

    _, report = jobs(site.shell("kdschemes study submit starts.yaml --parallel 2").stdout)
    waiting = site.shell("kdschemes study status starts").stdout
    assert re.search(r"3 runs: .*(queued|running)", waiting)
    refused = site.shell("kdschemes study submit starts.yaml").stdout
    assert refused.startswith("nothing to submit: ")
    assert site.wait(report)["JobState"] == "COMPLETED", site.logs()

    told = site.shell("kdschemes study status starts").stdout
    assert "3 runs: 2 finished, 1 failed" in told
    (row,) = (line for line in told.splitlines() if "| failed" in line)
    assert f"checkpoint={MISSING}" in row
    assert f"| no weights at {MISSING}: give a .safetensors or torch file, or a folder with " in row
    page = (site.clone / "runs" / "studies" / "starts" / "report.md").read_text()
    assert not re.search(r"\d ± \d", page)  # one seed: no deviation
    assert MISSING in page
    assert all(name in page for name in STARTS)
    before = results(site)
    assert len(before) == 2

    dry = site.shell("kdschemes study submit starts.yaml --dry-run").stdout
    assert "--array=0-0 " in dry
    weights(site.clone / MISSING)
    _, report = jobs(site.shell("kdschemes study submit starts.yaml").stdout)
    assert site.wait(report)["JobState"] == "COMPLETED", site.logs()
    assert "3 runs: 3 finished" in site.shell("kdschemes study status starts").stdout
    after = results(site)
    assert {name: after[name] for name in before} == before
    assert len(after) == 3
    assert site.shell("kdschemes study submit starts.yaml").stdout == "nothing to submit: 3 runs: 3 finished\n"
    fresh = (site.clone / "runs" / "studies" / "starts" / "report.md").read_text()
    assert "failed" in page
    assert "failed" not in fresh


@pytest.mark.exhaustive
def test_a_cancelled_study_resumes_where_it_was(site: Site) -> None:
    text = STUDY.replace("epochs: 2,", "epochs: 40, checkpoint_every_steps: 2,").replace("[null, ", "[null] #")
    (site.clone / "starts.yaml").write_text(text + "seeds: [0, 1]\n")
    array, report = jobs(site.shell("kdschemes study submit starts.yaml --parallel 1").stdout)
    site.until(lambda: list(site.clone.glob("runs/*/results.json")), "the first run's end")
    before = results(site)
    site.until(lambda: len(list(site.clone.glob("runs/*/checkpoint.pt"))) == 2, "the second run's checkpoint")
    site.shell(f"scancel {array} {report}")
    site.wait(f"{array}_1")
    told = site.shell("kdschemes study status starts").stdout
    assert "2 runs: 1 finished, 1 " in told
    array, report = jobs(site.shell("kdschemes study submit starts.yaml").stdout)
    assert site.wait(report)["JobState"] == "COMPLETED", site.logs()
    assert "2 runs: 2 finished" in site.shell("kdschemes study status starts").stdout
    after = results(site)
    assert {name: after[name] for name in before} == before
    (log,) = (site.clone / "runs" / "studies" / "starts" / "logs").glob(f"*-{array}_0.out")
    assert "resuming from step " in log.read_text()
    shutil.rmtree(site.clone / "runs")


@pytest.mark.exhaustive
def test_jobs_run_the_topology_that_the_command_line_allows(site: Site) -> None:
    shutil.copy(REPOSITORY / "experiments" / "topologies" / "online_self.py", site.clone / "ours.py")
    text = STUDY.partition("grid:")[0].replace("scheme: supervised", "model: convnet_quarter")
    variants = "variants: {ours: {experiment: ours.py}, plain: {scheme: supervised}}\n"
    (site.clone / "starts.yaml").write_text(text + variants)
    refused = site.shell("kdschemes study submit starts.yaml", check=False)
    assert refused.returncode == 2
    assert refused.stderr.endswith("allow it: kdschemes study submit starts.yaml --allow ours.py\n")
    _, report = jobs(site.shell("kdschemes study submit starts.yaml --allow ours.py").stdout)
    assert site.wait(report)["JobState"] == "COMPLETED", site.logs()
    assert "2 runs: 2 finished" in site.shell("kdschemes study status starts").stdout, site.logs()
