"""A folder from which jobs are submitted: the batch scripts, and a site file to fill in."""

from __future__ import annotations

import shutil
from pathlib import Path

from kdschemes.errors import UserError
from kdschemes.study.locate import SITE, shipped

EXAMPLE = "slurm/site.example.sh"


def init(folder: Path) -> str:
    """Copy the batch scripts into `folder`/slurm, with `site.sh` to fill in; return what to do next.

    A folder appears with all files or not at all.

    Raises:
        UserError: there is a `slurm` already, or the folder cannot be written.
    """
    target = folder / "slurm"
    if target.exists():
        raise UserError(f"{target} already exists: remove it, or choose another folder")
    partial = folder / "slurm.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(shipped() / "slurm", partial)
        example = partial / Path(EXAMPLE).name
        (partial / Path(SITE).name).write_bytes(example.read_bytes())
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from None
    return (
        f"{target}: the batch scripts\n{folder / SITE}: fill in partition, account, time limit and environment\n"
        f"then, in {folder.absolute()}: kdschemes study submit STUDY, or sbatch slurm/train.sbatch KEY=VALUE ..."
    )
