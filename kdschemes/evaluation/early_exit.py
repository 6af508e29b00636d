"""Early exit: accuracy over MACs.

Both curves follow Huang et al. 2018, "Multi-Scale Dense Networks for Resource Efficient Image Classification":
*anytime* stops every sample at the same exit, *budgeted* stops each at the first confident exit. Here, the final
classifier of a network with K exits counts as exit K + 1, which takes all remaining samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import mean, median
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import NetworkWithExits
from kdschemes.data import DataModule
from kdschemes.data.batches import checked
from kdschemes.distributed.collectives import (
    broadcast_from_main,
    gather_rows,
    rank,
    share,
    sum_over_processes,
    world_size,
)
from kdschemes.evaluation.evaluate import evaluation_mode
from kdschemes.evaluation.latency import LATENCY_IMAGES, latencies, single_images
from kdschemes.evaluation.metrics import HeadMetrics
from kdschemes.models import EarlyExit, ExitNetwork, confidence, count_macs
from kdschemes.models.cost import macs_of, probing
from kdschemes.models.exits import stop_at

RATIOS = tuple(2.0 ** (k / 3) for k in range(-12, 13))
"""The budgets of the curve, as ratios of the sample counts at successive exits."""

BUDGETS = {"low": 0.5, "middle": 1.0, "high": 2.0}
"""The ratios of the budgets that have a name."""


def geometric_shares(ratio: float, exits: int) -> Float64[Tensor, " exits"]:
    """Return the target share of samples at each exit, `ratio^k / sum_j ratio^j` for k = 1 to `exits`."""
    powers = ratio ** torch.arange(1, exits + 1, dtype=torch.float64)
    return powers / powers.sum()


def choose_thresholds(confidences: Float64[Tensor, "exits n"], shares: Float64[Tensor, " exits"]) -> list[float]:
    """Return the threshold of each exit but the last such that these samples leave in the target shares.

    Exit k takes the most confident of the remaining samples until `round(n * (shares_1 + .. + shares_k))` have left in
    total. Its threshold is halfway between the lowest confidence that leaves and the next lower one. Samples of equal
    confidence leave together, and later exits take that many fewer. A threshold is infinite if no sample shall leave,
    and 0 if all shall.
    """
    n = confidences.shape[1]
    wanted = (n * shares.cumsum(0) + 0.5).floor().long().tolist()
    here = torch.ones(n, dtype=torch.bool, device=confidences.device)
    thresholds: list[float] = []
    for sure, until_here in zip(confidences[:-1], wanted[:-1], strict=True):
        ranked = sure[here].sort(descending=True).values.tolist()
        thresholds.append(_cut(ranked, until_here - (n - len(ranked))))
        here = here & (sure < thresholds[-1])
    return thresholds


def _cut(ranked: Sequence[float], leaving: int) -> float:
    """Return the threshold that the first `leaving` of these sorted confidences reach, including ties."""
    if leaving <= 0:
        return math.inf
    if leaving >= len(ranked):
        return 0.0
    last = ranked[leaving - 1]
    below = next((value for value in ranked[leaving:] if value < last), last)
    halfway = (last + below) / 2
    return halfway if halfway > below else last


def exit_taken(confidences: Float64[Tensor, "exits n"], thresholds: Sequence[float]) -> Int[Tensor, " n"]:
    """Return for each sample the 0-based index of the first exit whose confidence reaches its threshold."""
    reached = confidences.new_tensor([*thresholds, 0.0])[:, None]
    return (confidences >= reached).int().argmax(0)


class DynamicMetrics:
    """Sums over samples, each classified at the exit that it takes with the given thresholds."""

    def __init__(self, thresholds: Sequence[float], device: torch.device) -> None:
        self.thresholds = list(thresholds)
        self.head = HeadMetrics(device)
        self.left = torch.zeros(len(thresholds) + 1, dtype=torch.float64, device=device)

    def update(
        self,
        logits: Float[Tensor, "exits n c"],
        confidences: Float64[Tensor, "exits n"],
        labels: Int[Tensor, " n"],
    ) -> None:
        """Add a batch."""
        taken = exit_taken(confidences, self.thresholds)
        self.head.update(logits[taken, torch.arange(len(taken), device=taken.device)], labels)
        self.left += taken.bincount(minlength=len(self.left))

    def result(self, macs: Sequence[int]) -> dict[str, Any]:
        """Return the metrics of all samples so far; `macs` are the MACs of each exit.

        - `macs`: mean over samples of the MACs of the exit taken.
        - `top1`, `nll`, `ece`: as in `HeadMetrics` (percent, nats, percent).
        - `shares`: percent of samples that left at each exit.
        """
        found = self.head.result()
        expected = float((self.left * self.left.new_tensor(macs)).sum() / self.left.sum())
        shares = (100 * self.left / self.left.sum()).tolist()
        return {"macs": expected, "top1": found["top1"], "nll": found["nll"], "ece": found["ece"], "shares": shares}


@torch.no_grad()
def evaluate_rules(
    settings: Sequence[Sequence[float]],
    batches: Iterable[tuple[Float[Tensor, "exits _ c"], Int[Tensor, " _"]]],
    macs: Sequence[int],
    device: torch.device,
) -> list[dict[str, Any]]:
    """Return `DynamicMetrics.result` for each list of thresholds in `settings`, over the batches of all processes."""
    metrics = [DynamicMetrics(thresholds, device) for thresholds in settings]
    for logits, labels in batches:
        confidences = confidence(logits)
        for one in metrics:
            one.update(logits, confidences, labels)
    for one in metrics:
        one.head.sum_over_processes()
        sum_over_processes(one.left)
    return [one.result(macs) for one in metrics]


def dynamic_macs(network: ExitNetwork, channels: int, image_size: int) -> list[int]:
    """Return the MACs of one image that leaves at each exit, including the earlier exits.

    Raises:
        UserError: the network cannot process such images.
    """
    with probing(network, channels, image_size, batch=1) as image:
        exits = len(network.exit_stages) + 1
        return [macs_of(EarlyExit(network, stop_at(number, exits)), image) for number in range(exits)]


@torch.no_grad()
def evaluate_early_exit(
    scheme: Distillation, data: DataModule, batch_size: int, check: Callable[[], None]
) -> dict[str, Any] | None:
    """Return the early-exit results on the test set; None if the primary head is not from a network with exits.

    For images with several labels, whose confidence is not defined, there are none either.

    Thresholds are chosen on the validation split. Each process evaluates its share of the images, each image once; the
    result is the same on every process. The main process measures the latency. `check` is called on all processes
    before each batch and before each image of the latency.

    - `exits`: by head, shallow to deep, if all samples exit there: `macs`, `top1`, `nll`, `ece`, `latency_ms`.
    - `static`: the network without exits: `macs`, `top1`, `latency_ms`. Latencies are medians at batch size 1.
    - `curve`: by budget, lowest first: `ratio`, `thresholds` by exit, `macs`, `top1`, `nll`, `ece`, `shares` by head;
      None without a validation split. `budgets` are three of them by name; the middle one also has `latency_ms`.
    - `latency`: how it was measured. `note`: why there is no curve, if there is none.
    """
    node = scheme.node_of(scheme.heads[0])
    if not isinstance(node, NetworkWithExits) or not data.sizes["test"] or data.multi_label:
        return None
    names = (*node.provides[1:], node.provides[0])

    def exit_logits(split: str) -> Iterator[tuple[Tensor, Tensor]]:
        batches = data.eval_batches(split, batch_size=batch_size, rank=rank(), world=world_size())
        for batch in checked(batches, data.sizes[split], batch_size, check):
            outputs = scheme.predict(batch, names)
            yield torch.stack([outputs[name].logits for name in names]), batch.labels

    with evaluation_mode(scheme):
        budgets: list[list[float]] = []
        if data.sizes["val"]:
            local = [confidence(logits) for logits, _ in exit_logits("val")]
            none = torch.zeros(len(names), 0, dtype=torch.float64, device=data.device)
            sure = _gather_columns(torch.cat([none, *local], 1), data.sizes["val"])
            budgets = [choose_thresholds(sure, geometric_shares(ratio, len(names)).to(sure.device)) for ratio in RATIOS]
        macs = dynamic_macs(node.network, data.channels, data.image_size)
        anytime = [stop_at(number, len(names)) for number in range(len(names))]
        found = evaluate_rules([*anytime, *budgets], exit_logits("test"), macs, data.device)
        middle = budgets[RATIOS.index(BUDGETS["middle"])] if budgets else None
        times = broadcast_from_main(_measure(node.network, data, names, middle, check))
    exits = {
        name: {"macs": cost} | {key: one[key] for key in ("top1", "nll", "ece")} | {"latency_ms": times[name]}
        for name, cost, one in zip(names, macs, found, strict=False)
    }
    own = count_macs(node.network.network, data.channels, data.image_size)
    static = {"macs": own, "top1": exits[names[-1]]["top1"], "latency_ms": times["static"]}
    result: dict[str, Any] = {"exits": exits, "static": static, "budgets": None, "curve": None}
    result["latency"] = {"images": LATENCY_IMAGES, "threads": torch.get_num_threads(), "device": data.device.type}
    if not budgets:
        why = "no budgeted curve: thresholds need a validation split, and data.val_fraction=0"
        return result | {"note": why}
    result["curve"] = [
        {"ratio": ratio, "thresholds": dict(zip(names, thresholds, strict=False))}
        | one
        | {"shares": dict(zip(names, one["shares"], strict=True))}
        for ratio, thresholds, one in zip(RATIOS, budgets, found[len(names) :], strict=True)
    ]
    result["budgets"] = {name: result["curve"][RATIOS.index(ratio)] for name, ratio in BUDGETS.items()}
    measured = {"latency_ms": times["middle"], "mean_latency_ms": times["middle, mean"]}
    result["budgets"]["middle"] = result["budgets"]["middle"] | measured
    return result


def _gather_columns(local: Float64[Tensor, "exits n"], total: int) -> Float64[Tensor, "exits total"]:
    """Return the columns of all processes in rank order; each holds its `share` of `total`, possibly none."""
    world = world_size()
    sizes = [end - start for start, end in (share(total, world, part) for part in range(world))]
    padded = torch.nn.functional.pad(local, (0, max(sizes) - local.shape[1]))
    return torch.cat([part[:, :size] for part, size in zip(gather_rows(padded), sizes, strict=True)], 1)


def _measure(
    network: ExitNetwork,
    data: DataModule,
    names: Sequence[str],
    middle: Sequence[float] | None,
    check: Callable[[], None],
) -> dict[str, float]:
    """Return the median latency of every exit, of the network without exits, and (also mean) of the middle budget.

    Only the main process measures; the others return nothing.
    """
    predictors: dict[str, Callable[[Tensor], object]] = {
        name: EarlyExit(network, stop_at(number, len(names))).eval() for number, name in enumerate(names)
    }
    predictors["static"] = network
    if middle is not None:
        predictors["middle"] = EarlyExit(network, middle).eval()
    measured = latencies(predictors if rank() == 0 else {}, single_images(data), check)
    means = {"middle, mean": mean(measured["middle"])} if "middle" in measured else {}
    return {name: median(values) for name, values in measured.items()} | means


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "curve"}
