"""The networks of a finished offline run, on test images: its student, before and after training, and its teacher."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from kdschemes.config.load import build_config
from kdschemes.data import open_data
from kdschemes.errors import UserError
from kdschemes.models import load_model
from kdschemes.report.analyses.soft_gradient import Logits
from kdschemes.report.groups import Member
from kdschemes.schemes.networks import student_network, teacher_network


def pair_logits(member: Member, images: int) -> tuple[Logits, ...]:
    """Return the logits of the student, of the student with its initial weights, and of the teacher.

    They are of the first `images` test images (all, if there are fewer), on the CPU in evaluation mode.

    Raises:
        UserError: the run does not have exactly one teacher, or its networks or images no longer exist.
    """
    assert member.results is not None
    config = build_config(member.config)
    checkpoints = member.results.get("teacher_checkpoint")
    paths = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints or ())
    if len(paths) != 1:
        raise UserError(f"{member.folder} names {len(paths)} teacher checkpoints: this needs a run with one")
    data = open_data(config.data, seed=config.seed, device=torch.device("cpu"))
    if not data.sizes["test"]:
        raise UserError(f"{member.folder} has no test images")
    data_spec = data.spec
    student = load_model(member.folder)
    student.accept(data_spec.input)
    before = student_network(config, data_spec, "student")
    path = found_folder(Path(paths[0]), member.folder.parent)
    frozen = dataclasses.replace(config.teacher, checkpoint=[str(path)], pretrained=False)
    teacher = teacher_network(dataclasses.replace(config, teacher=frozen), data_spec, 0)
    batch = next(iter(data.eval_batches("test", batch_size=images, rank=0, world=1))).images
    with torch.no_grad():
        return tuple(network.eval()(batch) for network in (student, before, teacher))


def found_folder(path: Path, runs: Path) -> Path:
    """Return where a checkpoint is: where it was, or next to the run if all runs were moved together."""
    return path if path.exists() or not (runs / path.name).exists() else runs / path.name
