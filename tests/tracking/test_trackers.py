"""Trackers: optional, imported when used, never fatal."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import REPOSITORY
from tests.tracking.cases import events, trackers, train


def test_a_tracker_that_fails_warns_once_and_training_continues(alone, tmp_path):
    tracker = trackers(tmp_path / "runs" / "r1", "wandb", "tensorboard")
    tracker._mirrors["wandb"]._run.finish()  # W&B refuses rows of a finished run
    with pytest.warns(RuntimeWarning, match=r"tracker wandb failed .*metrics\.jsonl continues"):
        tracker.log(train(1), 1)
    for step in (2, 3):
        tracker.log(train(step), step)  # a second warning would be an error
    tracker.finish()
    assert [e.step for e in events(tmp_path / "runs" / "r1").Scalars("train/lr")] == [1, 2, 3]


def test_no_tracker_imports_neither_package(tmp_path):
    code = (
        "import sys; from pathlib import Path; from kdschemes.config.load import build_config\n"
        "from kdschemes.tracking.trackers import Trackers\n"
        "t = Trackers(build_config({}), Path('.'), primary_head='a')\n"
        "t.log({'kind': 'train', 'step': 1}, 1); t.summary({}); t.finish()\n"
        "print(sorted({'wandb', 'tensorboard', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_a_missing_package_names_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['tensorboard'] = None; sys.modules['wandb'] = None\n"
        "from pathlib import Path; from kdschemes.config.load import build_config\n"
        "from kdschemes.tracking.trackers import Trackers\n"
        "for name in ('tensorboard', 'wandb'):\n"
        "    try:\n"
        "        Trackers(build_config({'tracker': [name]}), Path(sys.argv[1]), primary_head='a')\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.splitlines() == [
        'UserError tracker=tensorboard needs the package tensorboard: pip install "kdschemes[tensorboard]"',
        "UserError tracker=wandb needs the package wandb: pip install wandb",
    ]
