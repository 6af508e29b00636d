"""The packages that the machine need not have: those of `pyproject.toml` that training imports, in one folder.

torch, torchvision, timm, accelerate and what these bring (numpy, Pillow, PyYAML, safetensors, huggingface-hub,
filelock, psutil) are expected there, and einops. All of these are pure Python but pydantic-core, which is compiled for
one version of Python on Linux x86-64 with glibc 2.17 or later. matplotlib, scipy, altair, vl-convert, scikit-learn and
wandb are left out: without them there are no plots, reports, digits and mirrors, and teachers are not examined. So are
markdown-it-py and pygments, with which rich prints Markdown and code.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from experiments.gpu_session.record import REPOSITORY
from kdschemes.errors import UserError

CARRIED = REPOSITORY / "carried"
"""Where the session looks for them; git ignores it."""

PACKAGES = (
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions"),
    *("jaxtyping", "wadler-lindig", "rich"),
)

PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64")


def carry(folder: Path, python: str) -> str:
    """Install the packages, in this environment's versions, for Python `python` into `folder`; return a line.

    Raises:
        UserError: pip could not.
    """
    packages = [f"{name}=={version(name)}" for name in PACKAGES]
    target = ["--target", str(folder), "--upgrade", "--no-deps", "--no-compile", "--only-binary=:all:"]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    wanted = ["--python-version", python, "--implementation", "cp", *platforms]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *target, *wanted, *packages]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"pip could not install {', '.join(packages)} for Python {python}: see above")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{folder}: {len(packages)} packages for Python {python}, {size / 2**20:.1f} MiB"
