"""The networks of a finished offline run, on test images: its student, before and after training, and its teacher."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from kdschemes.config import Config
from kdschemes.config.load import build_config
from kdschemes.core.types import DataSpec
from kdschemes.data import open_data
from kdschemes.errors import UserError
from kdschemes.models import StagedNetwork, load_model
from kdschemes.report.groups import Member
from kdschemes.schemes.networks import student_network, teacher_network


@dataclass(frozen=True, kw_only=True)
class PairLogits:
    """Logits of the same images; `before` are the student's with its initial weights."""

    student: Float[Tensor, "n classes"]
    before: Float[Tensor, "n classes"]
    teacher: Float[Tensor, "n classes"]


def pair_logits(member: Member, images: int) -> PairLogits:
    """Return the logits of the first `images` test images (all, if there are fewer), on the CPU in evaluation mode.

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
    data_spec = DataSpec(data.num_classes, data.channels, data.image_size)
    student = load_model(member.folder)
    before = student_network(config, data_spec, "student")
    teacher = _teacher(config, data_spec, found_folder(Path(paths[0]), member.folder.parent))
    batch = next(iter(data.eval_batches("test", batch_size=images, rank=0, world=1))).images
    with torch.no_grad():
        predictions = [network.eval()(batch) for network in (student, before, teacher)]
    return PairLogits(student=predictions[0], before=predictions[1], teacher=predictions[2])


def _teacher(config: Config, data_spec: DataSpec, path: Path) -> StagedNetwork:
    teacher = dataclasses.replace(config.teacher, checkpoint=[str(path)], pretrained=False)
    return teacher_network(dataclasses.replace(config, teacher=teacher), data_spec, 0)


def found_folder(path: Path, runs: Path) -> Path:
    """Return where a checkpoint is: where it was, or next to the run if all runs were moved together."""
    return path if path.exists() or not (runs / path.name).exists() else runs / path.name
