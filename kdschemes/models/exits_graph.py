"""Early exit as one graph with conditions, which `torch.export` and ONNX can hold."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kdschemes.errors import UserError
from kdschemes.models.exits import ExitNetwork, confidence
from kdschemes.models.sequential import SequentialNetwork


class EarlyExitGraph(nn.Module):
    """The same outputs as `EarlyExit`, by `torch.cond` instead of Python's control flow.

    `EarlyExit` takes the samples that have left out of the batch, so the shapes of its deeper stages depend on the
    data, and it stops within a generator: neither can be exported or scripted. Here, a batch continues as a whole until
    all of its samples have left, which for a single image is the same computation.

    Raises:
        UserError: the network cannot be continued from a stage (timm's networks run from the images on).
    """

    def __init__(self, network: ExitNetwork, thresholds: Sequence[float]) -> None:
        super().__init__()
        plain = network.network
        if not isinstance(plain, SequentialNetwork):
            raise UserError(
                f"early exit of {plain.spec.name} cannot be exported as one graph: a timm network cannot be continued "
                "from a stage; export it without --exits, or as --format safetensors"
            )
        self.adapt_input, self.fc = plain.adapt_input, plain.fc
        blocks = [block for _, block in plain.blocks()]
        ends = [plain.part_names.index(stage) + 1 for stage in network.exit_stages.values()]
        self.segments = nn.ModuleList(nn.Sequential(*blocks[a:b]) for a, b in pairwise([0, *ends, len(blocks)]))
        self.exits = nn.ModuleList(network.exits[name] for name in network.exit_stages)
        self.thresholds = tuple(thresholds)
        assert len(self.thresholds) == len(self.exits), f"{len(thresholds)} thresholds: {network.exit_stages}"

    def forward(self, images: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n classes"], Int[Tensor, " n"]]:
        """Return the logits of each sample's exit, and its number: 0 for exit1, K for the network's own classifier."""
        return self._from(0, self.adapt_input(images))

    def _from(self, number: int, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.segments[number](x)
        if number == len(self.thresholds):
            logits = self.fc(x.mean((2, 3)) if x.ndim == 4 else x)
            return logits, torch.full_like(logits[:, 0], number, dtype=torch.long)
        logits = self.exits[number](x)[0]
        leaves = confidence(logits) >= self.thresholds[number]

        def stop(x: Tensor, logits: Tensor, leaves: Tensor) -> tuple[Tensor, Tensor]:
            return logits.clone(), torch.full_like(logits[:, 0], number, dtype=torch.long)

        def go_on(x: Tensor, logits: Tensor, leaves: Tensor) -> tuple[Tensor, Tensor]:
            deeper, taken = self._from(number + 1, x)
            here = torch.full_like(taken, number)
            return torch.where(leaves[:, None], logits, deeper), torch.where(leaves, here, taken)

        answer: tuple[Tensor, Tensor] = torch.cond(leaves.all(), stop, go_on, (x, logits, leaves))
        return answer
