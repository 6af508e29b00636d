"""Types and shapes in signatures are enforced in every test; data next to the repository is used in place."""

from __future__ import annotations

import os

from tests import REPOSITORY

os.environ.setdefault("WANDB_MODE", "offline")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one test process a core

import subprocess
import sys
from pathlib import Path

import pytest
from beartype import BeartypeConf
from beartype.claw import beartype_package
from filelock import FileLock
from jaxtyping import install_import_hook

CHECKED_BY_JAXTYPING = [
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    for path in (REPOSITORY / "kdschemes").rglob("*.py")
    if any(word in path.read_text() for word in ("jaxtyping", "functools import wraps", "TYPE_CHECKING"))
]
"""Modules with shapes in signatures, of their own or of what they wrap, or names that only type checkers import.

jaxtyping makes a call ten times as slow as beartype.
"""

beartype_package("kdschemes", conf=BeartypeConf(claw_is_pep526=False, violation_type=TypeError))
install_import_hook(CHECKED_BY_JAXTYPING, "beartype.beartype")

SHARED = REPOSITORY.parent / "shared"
LONGEST = (
    *("slurm/test_interrupted", "study/local/test_real_studies", "slurm/test_study_array", "training/test_loop"),
    *("distributed/test_fsdp", "slurm/test_lost_node", "slurm/test_several_nodes", "training/test_pack"),
    *("distributed/test_collectives", "teacher_cache/test_cache", "slurm/test_accelerate_files"),
    *("schemes/test_schemes", "training/test_loop_methods", "test_run", "data/test_loader", "test_readme"),
)
"""Files that take longest. They begin first, so that no worker is left alone with one at the end."""


def pytest_xdist_auto_num_workers() -> int:
    """Return one more than there are cores: much of the time a worker waits for processes that it has started."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    """Keep `torch.manual_seed` from writing down its stack for devices that are not here, a millisecond a call."""
    import torch

    for device in (torch.cuda, torch.xpu, torch.mtia):
        if not device.is_available():
            device.manual_seed_all = lambda seed: None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {REPOSITORY / "tests" / f"{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of CIFAR-100 and trained weights next to the repository."""
    if not SHARED.is_dir():
        pytest.skip("CIFAR-100 and trained weights are not here: no folder 'shared' next to the repository")
    return SHARED


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test processes of this session share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def cifar100_root(shared: Path, common: Path) -> Path:
    """A folder that torchvision reads as CIFAR-100: $KDSCHEMES_CIFAR100, or unpacked once from `shared` (20 s)."""
    if "KDSCHEMES_CIFAR100" in os.environ:
        return Path(os.environ["KDSCHEMES_CIFAR100"])
    root = common / "cifar100"
    with FileLock(f"{root}.lock"):
        if not root.is_dir():
            unpacked = root.with_name("cifar100.partial")
            subprocess.run(
                [sys.executable, str(shared / "data" / "unpack"), str(unpacked)], check=True, capture_output=True
            )
            unpacked.rename(root)
    return root
