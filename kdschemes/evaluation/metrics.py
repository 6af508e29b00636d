"""Metrics of one head: accuracy or average precision, by class too, NLL, calibration, agreement with the teacher."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, one_hot

from kdschemes.distributed.collectives import gather_rows, rows_of_all, sum_over_processes

ECE_BINS = 15

TOTALS = 7 + 2 * ECE_BINS
"""Sums that do not depend on the number of classes."""


class HeadMetrics:
    """Sums over the samples of a dataset, from which the metrics of one head are computed.

    All sums are in the float64 vector `sums`, those by class last. Everything is computed in float64 and log space,
    regardless of the logits' dtype.

    Equal logits are ranked by class index, lowest first, as `argmax` does. A sample whose log-probabilities are NaN
    (NaN or +inf among its logits, or only -inf) counts as wrong and makes `nll`, `ece`, and `kl` NaN.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(TOTALS, dtype=torch.float64, device=device)

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 before the first batch."""
        return (len(self.sums) - TOTALS) // 3

    def _widen(self, num_classes: int) -> None:
        """Make room for the sums of so many classes, unless there are samples already."""
        if not self.num_classes:
            self.sums = torch.cat([self.sums, self.sums.new_zeros(3 * num_classes)])

    def sum_over_processes(self) -> None:
        """Add up the samples of all processes, of which some may have none."""
        self._widen(int(gather_rows(torch.tensor(self.num_classes, device=self.sums.device)).max()))
        sum_over_processes(self.sums)

    @torch.no_grad()
    def update(
        self,
        logits: Float[Tensor, "n c"],
        labels: Int[Tensor, " n"],
        teacher_logits: Float[Tensor, "n c"] | None = None,
    ) -> None:
        """Add a batch. Teacher logits must be given for all batches or for none."""
        self._widen(logits.shape[1])
        logits = logits.double()
        labels = labels.long()[:, None]
        log_p = logits.log_softmax(dim=1)
        valid = ~log_p.isnan().any(dim=1)
        nll = -log_p.gather(1, labels).squeeze(1)

        label_logit = logits.gather(1, labels)
        lower_class = torch.arange(logits.shape[1], device=logits.device) < labels
        rank = ((logits > label_logit) | ((logits == label_logit) & lower_class)).sum(dim=1)
        top1 = ((rank < 1) & valid).double()
        top5 = ((rank < 5) & valid).double()

        confidence = log_p.amax(dim=1).exp()
        bins = ((confidence.nan_to_num() * ECE_BINS).ceil().long() - 1).clamp(0, ECE_BINS - 1)
        in_bin = one_hot(bins, ECE_BINS).double()

        with_teacher = agreement = kl = torch.zeros_like(nll)
        if teacher_logits is not None:
            log_t = teacher_logits.double().log_softmax(dim=1)
            t = log_t.exp()
            kl = torch.where(t == 0, 0.0, t * (log_t - log_p)).sum(dim=1)
            valid = valid & ~log_t.isnan().any(dim=1)
            agreement = ((logits.argmax(dim=1) == teacher_logits.argmax(dim=1)) & valid).double()
            with_teacher = torch.ones_like(nll)

        totals = torch.stack([torch.ones_like(nll), top1, top5, nll, with_teacher, agreement, kl]).sum(dim=1)
        by_bin = [(in_bin * value[:, None]).sum(dim=0) for value in (top1, confidence)]
        of_class = one_hot(labels.squeeze(1), logits.shape[1]).double()
        as_class = one_hot(logits.argmax(dim=1), logits.shape[1]).double() * (~log_p.isnan().any(dim=1))[:, None]
        by_class = [of_class.sum(dim=0), as_class.sum(dim=0), (of_class * top1[:, None]).sum(dim=0)]
        self.sums = self.sums + torch.cat([totals, *by_bin, *by_class])

    def result(self) -> dict[str, float]:
        """Return the metrics of all samples so far.

        - `top1`, `top5`: percent of samples whose label is among the 1, or min(5, C), highest logits.
        - `nll`: mean of -log p(label), in nats.
        - `ece`: expected calibration error (Guo et al. 2017), in percent: the sum of n_bin / n * |accuracy - mean
          probability| over 15 equal-width bins of the highest probability, each open below and closed above.
        - `balanced_accuracy`: mean over the classes that have samples of the percent of their samples that are right.
        - `macro_f1`: mean over the classes that have samples or predictions of F1 = 2 right / (samples + predictions),
          in percent.
        - `agreement`: percent of samples whose predicted class is the same as the teacher's (only with a teacher).
        - `kl`: mean of KL(teacher || head) at temperature 1, in nats (only with a teacher).
        """
        n, top1, top5, nll, with_teacher, agreement, kl, *by_bin = self.sums[:TOTALS].tolist()
        assert n > 0, "no samples"
        assert with_teacher in (0, n), "teacher logits were given for only some of the batches"
        gaps = (abs(correct - sure) for correct, sure in zip(by_bin[:ECE_BINS], by_bin[ECE_BINS:], strict=True))
        metrics = {"top1": 100 * top1 / n, "top5": 100 * top5 / n, "nll": nll / n, "ece": 100 * sum(gaps) / n}
        samples, predicted, right = self.sums[TOTALS:].view(3, -1)
        both = samples + predicted
        metrics["balanced_accuracy"] = 100 * (right[samples > 0] / samples[samples > 0]).mean().item()
        metrics["macro_f1"] = 100 * (2 * right[both > 0] / both[both > 0]).mean().item()
        if with_teacher:
            metrics |= {"agreement": 100 * agreement / n, "kl": kl / n}
        return metrics


class MultiLabelMetrics:
    """The outputs and labels of a head for images with several labels, from which its metrics are computed.

    Average precision ranks all images, so they are kept: one float32 per image and class, and the same of the teacher.
    """

    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    @torch.no_grad()
    def update(
        self,
        logits: Float[Tensor, "n c"],
        labels: Int[Tensor, "n c"],
        teacher_logits: Float[Tensor, "n c"] | None = None,
    ) -> None:
        """Add a batch. Teacher logits must be given for all batches or for none."""
        parts = [logits, labels] if teacher_logits is None else [logits, labels, teacher_logits]
        self.batches.append(torch.stack([part.float() for part in parts], dim=1))

    def sum_over_processes(self) -> None:
        """Gather the samples of all processes."""
        self.batches = [rows_of_all(torch.cat(self.batches).flatten(1)).view(-1, *self.batches[0].shape[1:])]

    def result(self) -> dict[str, float]:
        """Return the metrics of all samples so far.

        - `map`: mean over the classes that have samples of the average precision, in percent: the mean over a class's
          samples of the share of its samples among the images ranked as high or higher by its logit.
        - `micro_f1`, `macro_f1`: F1 = 2 right / (labels + predictions) of decisions at probability 1/2, in percent: of
          all classes together, and the mean over the classes that have labels or predictions.
        - `nll`: mean of the binary cross-entropy, summed over classes, in nats.
        - `ece`: expected calibration error in percent, as for one label per image, over all pairs of image and class.
        - `agreement`: percent of decisions that are the teacher's; `kl`: mean of the sum over classes of KL(teacher ||
          head), in nats (only with a teacher).
        """
        logits, labels, *teacher = torch.cat(self.batches).double().unbind(1)
        assert len(logits) > 0, "no samples"
        broken = logits.isnan()
        decided = ((logits > 0) & ~broken).double()
        precisions = average_precision(logits.masked_fill(broken, float("-inf")), labels)
        right, of_class, as_class = ((decided * labels).sum(0), labels.sum(0), decided.sum(0))
        f1 = 2 * right / (of_class + as_class)
        probability = logits.sigmoid().nan_to_num()
        bins = ((probability * ECE_BINS).ceil().long() - 1).clamp(0, ECE_BINS - 1).flatten()
        gaps = torch.zeros(ECE_BINS, dtype=torch.float64, device=logits.device)
        gaps.index_add_(0, bins, (labels - probability).flatten())
        metrics = {
            "map": 100 * precisions.nanmean(),
            "micro_f1": 100 * 2 * right.sum() / (of_class.sum() + as_class.sum()).clamp(min=1),
            "macro_f1": 100 * f1.nanmean().nan_to_num(),
            "nll": binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1).mean(),
            "ece": 100 * gaps.abs().sum() / labels.numel() if not broken.any() else logits.new_tensor(float("nan")),
        }
        if teacher:
            metrics["agreement"] = 100 * (decided == (teacher[0] > 0).double()).double().mean()
            p = teacher[0].sigmoid()
            yes = p * (logsigmoid(teacher[0]) - logsigmoid(logits))
            no = (1 - p) * (logsigmoid(-teacher[0]) - logsigmoid(-logits))
            metrics["kl"] = (yes + no).sum(1).mean()
        return {name: float(value) for name, value in metrics.items()}


def average_precision(logits: Float[Tensor, "n c"], labels: Float[Tensor, "n c"]) -> Float[Tensor, " c"]:
    """Return the average precision of each class, NaN for classes without samples; equal logits have equal rank."""
    order = logits.argsort(dim=0, descending=True, stable=True)
    ranked, found = logits.gather(0, order), labels.gather(0, order).cumsum(0)
    place = torch.arange(1, len(logits) + 1, device=logits.device, dtype=torch.float64)[:, None].expand_as(ranked)
    last = torch.ones_like(ranked, dtype=torch.bool)
    last[:-1] = ranked[:-1] != ranked[1:]
    before = torch.where(last, found, 0.0).cummax(0).values.roll(1, 0)
    before[0] = 0.0
    gained = torch.where(last, found - before, 0.0)
    return (gained * found / place).sum(0) / found[-1]
