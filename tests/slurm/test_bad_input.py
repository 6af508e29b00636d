"""What goes wrong on a cluster fails in seconds, with one clear line in the job's log and in the study's status."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.slurm.conftest import REQUIRED
from tests.slurm.jobs import RUN, Site
from tests.slurm.test_study_array import jobs

pytestmark = pytest.mark.slurm

STUDY = """\
question: What is wrong?
base:
  scheme: supervised
  data.val_fraction: 0.9
  data.train_fraction: 1
  train: {epochs: 2, num_threads: 1}
  device: cpu
seeds: [0, 1]
"""
SECOND_NODE = """\
#!/bin/bash
# The folder $1 is empty on the second node.
if [ "$SLURM_NODEID" = 1 ]; then
    exec unshare --mount bash -c 'mount -t tmpfs none "$0" && exec "$@"' "$@"
fi
shift
exec "$@"
"""


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a small file system in memory on a folder."""
    if os.geteuid() != 0:
        reason = "mounting a file system needs root"
        if os.environ.get(REQUIRED):
            pytest.fail(reason)
        pytest.skip(reason)
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def reasons(site: Site, output: str = "runs") -> list[str]:
    """Return what `kdschemes study status` says of each failed run."""
    told = site.shell(f"kdschemes study status wrong --output {output}").stdout
    return [line.rpartition(" | ")[2].rstrip(" |") for line in told.splitlines() if "| failed" in line]


def errors(log: str) -> list[str]:
    """Return the lines of a log that are errors of ours."""
    return [line for line in log.splitlines() if line.startswith("error: ")]


def element_log(site: Site, array: str, number: int) -> str:
    """Return the log of an element of the study's array."""
    (log,) = (site.clone / "runs" / "studies" / "wrong" / "logs").glob(f"*-{array}_{number}.out")
    return log.read_text()


def test_an_unknown_key_on_two_nodes_is_reported_once(site: Site) -> None:
    job = site.submit(*RUN, "optim.rate=3", options="--nodes=2")
    facts = site.wait(job)
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "0")
    (line,) = errors(site.log(job))
    assert line.startswith("error: unknown key 'optim.rate'")
    assert not (site.clone / "runs").exists()


@pytest.mark.exhaustive
def test_an_unknown_key_and_a_folder_that_cannot_be_written_in_an_array(site: Site) -> None:
    (site.clone / "wrong.yaml").write_text(STUDY)
    refused = site.shell("kdschemes study submit wrong.yaml optim.rate=3", check=False)
    assert refused.returncode == 2
    assert len(errors(refused.stderr)) == len(refused.stderr.splitlines()) == 1
    assert "optim.rate" in refused.stderr
    assert site.cluster.run("squeue", "--noheader") == ""
    assert not (site.clone / "runs").exists()

    array, report = jobs(site.shell("kdschemes study submit wrong.yaml -- --hold").stdout)
    configs = site.clone / "runs" / "studies" / "wrong" / "submissions" / "1"
    with (configs / "0.yaml").open("a") as file:  # as if another version of the code ran there
        file.write("optim.rate: 3\n")
    (site.clone / "name.py").write_text(NAME)
    second = site.shell("python name.py").stdout.strip()
    with mounted(site.clone / "runs" / second, "size=1m,ro"):
        site.shell(f"scontrol release {array}")
        assert site.wait(report)["JobState"] == "COMPLETED", site.logs()
        unknown, unwritable = reasons(site)
        assert unknown.startswith("unknown key 'optim.rate'")
        assert unwritable == f"{site.clone / 'runs' / second} cannot be written: Read-only file system"
        assert [len(errors(element_log(site, array, number))) for number in range(2)] == [1, 1]


NAME = """\
from pathlib import Path
from kdschemes.config.load import load_config
from kdschemes.storage.naming import run_name
print(run_name(load_config(["experiment=runs/studies/wrong/submissions/1/1.yaml"], recipes=Path("experiments"))))
"""


@pytest.mark.exhaustive
def test_data_that_one_node_lacks(site: Site) -> None:
    images = site.clone / "images"
    for split, count in (("train", 10), ("test", 4)):
        for label in ("cat", "dog"):
            (images / split / label).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (16, 16), (10 * number, 0, 0)).save(images / split / label / f"{number}.png")
    (site.clone / "second_node.sh").write_text(SECOND_NODE)
    with (site.clone / "slurm" / "site.sh").open("a") as settings:
        settings.write(f'container=(bash "{site.clone}/second_node.sh" "{images}")\n')
    data = "  data: {name: image_folder, root: images, image_size: 16, num_workers: 0}\n  model: resnet20\n"
    text = (
        STUDY.replace("  data.val_fraction: 0.9\n", data)
        .replace("[0, 1]", "[0]")
        .replace("num_threads: 1", "batch_size: 8")
    )
    (site.clone / "wrong.yaml").write_text(text)
    array, report = jobs(site.shell("kdschemes study submit wrong.yaml -- --nodes=2").stdout)
    assert site.wait(report)["JobState"] in ("COMPLETED", "FAILED")
    (reason,) = reasons(site)
    assert errors(element_log(site, array, 0)) == [f"error: {reason}"]
    assert reason.startswith("process 1 on 127.0.0.2: images/train is not a folder: data.root ")


@pytest.mark.exhaustive
def test_a_full_disk(site: Site) -> None:
    (site.clone / "wrong.yaml").write_text(STUDY)
    with mounted(site.clone / "small", "size=2m"):
        array, report = jobs(site.shell("kdschemes study submit wrong.yaml output_dir=small").stdout)
        site.until(lambda: site.is_over(f"{array}_0") and site.is_over(f"{array}_1"), "the end of both")
        found = reasons(site, "small")
        assert len(found) == 2
        for reason in found:
            assert reason.endswith("cannot be written: No space left on device; free the disk and run again")
        assert site.job(f"{array}_0")["JobState"] == "FAILED"
        assert not list((site.clone / "small").rglob("*.partial"))
        site.wait(report)
