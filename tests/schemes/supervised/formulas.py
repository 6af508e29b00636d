"""The totals of the baselines, and other values of their options to try."""

from __future__ import annotations

from kdschemes.config.schemes import supervised as options
from tests.losses import oracles
from tests.schemes.formulas import Formula, Seen
from tests.schemes.variants import base


def smoothed(seen: Seen) -> float:
    scheme = seen.config.scheme
    return oracles.supervised(
        [seen.logits("student")], seen.labels, smoothing=scheme.label_smoothing, over=scheme.label_smoothing_over
    )


def deep_supervision(seen: Seen) -> float:
    logits = [seen.logits(name) for name in ("student", "student/exit1", "student/exit2")]
    scheme = seen.config.scheme
    return oracles.supervised(logits, seen.labels, smoothing=scheme.label_smoothing, over=scheme.label_smoothing_over)


FORMULAS: dict[type, Formula] = {
    options.Supervised: smoothed,
    options.LabelSmoothing: smoothed,
    options.DeepSupervision: deep_supervision,
}
EXACT = {
    "ce-smoothed": [*base("supervised", "ce"), "scheme.label_smoothing=0.3"],
    "deep-smoothed": [*base("supervised", "deep_supervision"), "scheme.label_smoothing=0.2"],
    "smoothed-over-others": [*base("supervised", "label_smoothing"), "scheme.label_smoothing_over=others"],
    "deep-smoothed-over-others": [
        *base("supervised", "deep_supervision"),
        "scheme.label_smoothing=0.2",
        "scheme.label_smoothing_over=others",
    ],
}
