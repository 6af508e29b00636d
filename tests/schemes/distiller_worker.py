"""One process of a custom loop: its share of a batch through DDP. Gradients go to `FOLDER/RANK.pt`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import kdschemes

IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.randint(0, 10, (12,), generator=torch.Generator().manual_seed(1))


def net(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, width, 3, padding=1)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)),
    )


def gradients(rank: int, world: int) -> dict[str, Tensor]:
    """Return the student's gradients after a step on this process's share of the batch."""
    options = ["scheme=offline", "losses.feature=hint", "losses.relation=rkd"]
    student = net(4)
    networks = {"student": student, "teacher": net(6)}
    scheme = kdschemes.distill(*options, **networks, images=IMAGES, num_classes=10, total_steps=1).double()
    wrapped = scheme if world == 1 else DistributedDataParallel(scheme)
    rows = torch.arange(12).tensor_split(world)[rank]
    wrapped(IMAGES[rows], LABELS[rows]).backward()
    return {name: parameter.grad for name, parameter in student.named_parameters() if parameter.grad is not None}


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    own = torch.distributed.get_rank()
    torch.save(gradients(own, 2), Path(sys.argv[1]) / f"{own}.pt")
    torch.distributed.destroy_process_group()
