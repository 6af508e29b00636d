"""Can a student learn a class that none of its images show, from its teacher's outputs on other images?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import numpy.typing as npt
import torch

from kdschemes.config.load import build_config
from kdschemes.data import DataModule, open_data
from kdschemes.errors import UserError
from kdschemes.models import StagedNetwork, load_model
from kdschemes.report.analyses import evidence
from kdschemes.report.charts.base import chart, percents
from kdschemes.report.document import Chart, Section, Table
from kdschemes.report.formatting import NOTHING, mean_std
from kdschemes.report.groups import Group, Member
from kdschemes.report.statistics import BySeed, paired

TITLE = "A class that the student never sees"

BATCH = 500
"""Batch size of the forward passes."""

CURVE_POINTS = 61
"""Offsets at which the chart shows the accuracy."""

Logits = npt.NDArray[np.float64]

Classes = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class LabeledLogits:
    """A network's logits on the images of a split, and the labels."""

    logits: Logits
    labels: Classes


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """A student on the test set, as trained and with the offset chosen on the validation split.

    Accuracy and the fraction of the omitted classes' images that are recognized are in percent. `omitted_errors` are
    the errors on those images.
    """

    offset: float
    errors: tuple[int, int]
    omitted_errors: tuple[int, int]
    top1: tuple[float, float]
    recognized: tuple[float, float]
    test: LabeledLogits


@dataclass(frozen=True, kw_only=True)
class Point:
    """What a student learned from: whether a teacher and labels were used, and the classes that it never saw."""

    label: str
    taught: bool
    labels: bool
    omitted: tuple[int, ...]


def missing_class(groups: Sequence[Group]) -> list[Section]:
    """Return the accuracy of students on classes left out of their images, before and after a correction.

    One number is added to the logits of the omitted classes. It is chosen on the validation split of each run and
    applied once to the test set. Students of all classes are corrected for the same classes, as a control.
    """
    found, left_out = evidence.by_point(groups, _point)
    notes = [*evidence.missing(groups), *left_out]
    omitted = sorted({label for point in found for label in point.omitted})
    measured: dict[Point, dict[int, Corrected]] = {}
    for point, group in found.items() if omitted else ():
        for member in group.finished:
            try:
                measured.setdefault(point, {})[member.row.entry.seed] = measure(member, omitted)
            except UserError as error:
                notes.append(f"Left out: {member.row.entry.label}. {error}")
    soft = next((point for point in measured if point.omitted and point.taught and not point.labels), None)
    hard = next((point for point in measured if point.omitted and not point.taught), None)
    if soft is None or hard is None:
        why = "this needs a student on soft targets and one on labels, both with a class omitted."
        return [Section(title=TITLE, text=evidence.paragraphs(notes, f"Nothing to compare yet: {why}"))]
    learned = evidence.evaluated(
        "Soft targets teach a class that no image shows (its test images recognized after the correction, "
        f"{soft.label}, against {hard.label})",
        paired(_by_seed(measured[soft], "recognized", 1), _by_seed(measured[hard], "recognized", 1)),
    )
    restored = evidence.evaluated(
        f"One number restores accuracy (test top-1 of {soft.label}, after against before the correction)",
        paired(_by_seed(measured[soft], "top1", 1), _by_seed(measured[soft], "top1", 0)),
    )
    reading = (
        "One number is added to the logits of the omitted classes: the one with the best accuracy on the validation "
        "split of the run (the middle of the range of equally good ones, or 0 if it is one of them). The test set is "
        "not used for this choice. "
    )
    text = evidence.paragraphs(learned, restored, _images(omitted, measured[soft]), notes, reading + evidence.RULE)
    return [Section(title=TITLE, text=text, tables=[_table(measured)], charts=[_chart(measured, omitted)])]


def measure(member: Member, omitted: Sequence[int]) -> Corrected:
    """Return what the correction of the classes `omitted` does to a finished run's network, in the run's precision.

    Raises:
        UserError: its weights or its images no longer exist, or it has no validation split.
    """
    config = build_config(member.config)
    data = open_data(config.data, seed=config.seed, device=torch.device("cpu"))
    for split in ("val", "test"):
        if not data.sizes[split]:
            raise UserError(f"{member.folder} has no images of {split}: the correction is chosen on val, shown on test")
    network = load_model(member.folder)
    network.accept(data.spec.input)
    with torch.autocast("cpu", torch.bfloat16, enabled=(member.results or {}).get("precision") == "bf16"):
        offset = best_offset(labeled_logits(network, data, "val"), omitted)
        test = labeled_logits(network, data, "test")
    before, after = (hits(test, omitted, value) for value in (0.0, offset))
    seen = np.isin(test.labels, omitted)
    return Corrected(
        offset=offset,
        errors=(int((~before).sum()), int((~after).sum())),
        omitted_errors=(int((~before & seen).sum()), int((~after & seen).sum())),
        top1=(100.0 * float(before.mean()), 100.0 * float(after.mean())),
        recognized=(100.0 * float(before[seen].mean()), 100.0 * float(after[seen].mean())),
        test=test,
    )


@torch.no_grad()
def labeled_logits(network: StagedNetwork, data: DataModule, split: str) -> LabeledLogits:
    """Return a network's logits of a split in float64, and the labels."""
    logits, labels = [], []
    for batch in data.eval_batches(split, batch_size=BATCH, rank=0, world=1):
        logits.append(network(batch.images).double())
        labels.append(batch.labels)
    return LabeledLogits(logits=torch.cat(logits).numpy(), labels=torch.cat(labels).numpy())


def shifted(logits: Logits, omitted: Sequence[int], offset: float) -> Logits:
    """Return logits with `offset` added to those of the classes `omitted`."""
    moved = logits.copy()
    moved[:, list(omitted)] += offset
    return moved


def hits(found: LabeledLogits, omitted: Sequence[int], offset: float) -> npt.NDArray[np.bool_]:
    """Return which predictions are right once `offset` is added to the logits of the classes `omitted`."""
    right: npt.NDArray[np.bool_] = shifted(found.logits, omitted, offset).argmax(1) == found.labels
    return right


def best_offset(found: LabeledLogits, omitted: Sequence[int]) -> float:
    """Return the offset b of the omitted classes' logits with the best accuracy on these logits.

    The prediction for a sample changes to the omitted classes when b exceeds d = (largest other logit) - (largest
    omitted logit). Accuracy is constant between the d of samples that are right on one side, so that the middle of each
    range, 1 beyond the outermost d, and 0 are all that need be tried; of equally good ones that nearest 0 is taken.
    """
    absent = np.zeros(found.logits.shape[1], dtype=bool)
    absent[list(omitted)] = True
    inside, outside = (np.where(mask, found.logits, -np.inf) for mask in (absent, ~absent))
    crossing = outside.max(1) - inside.max(1)
    loses = outside.argmax(1) == found.labels
    gains = inside.argmax(1) == found.labels
    ends = np.unique(crossing[loses | gains])
    if not len(ends):
        return 0.0
    tried = np.concatenate([[0.0, ends[0] - 1.0], (ends[1:] + ends[:-1]) / 2, [ends[-1] + 1.0]])
    won = np.searchsorted(np.sort(crossing[gains]), tried, side="left")
    kept = int(loses.sum()) - np.searchsorted(np.sort(crossing[loses]), tried, side="right")
    right = won + kept
    best = tried[right == right.max()]
    return float(best[np.abs(best).argmin()])


def _point(group: Group) -> Point | None:
    if evidence.method(group) not in (evidence.CROSS_ENTROPY, ("offline", "kd")):
        return None
    alpha = float(evidence.setting(group, "scheme.alpha") or 0.0)
    taught = evidence.method(group) != evidence.CROSS_ENTROPY and alpha > 0
    omitted = tuple(evidence.setting(group, "data.exclude_classes") or ())
    return Point(label=group.label, taught=taught, labels=not taught or alpha < 1, omitted=omitted)


def _by_seed(found: Mapping[int, Corrected], key: str, which: int) -> BySeed:
    """Return `top1` or `recognized` as trained (0) or with the offset (1), by seed."""
    return {seed: getattr(one, key)[which] for seed, one in found.items()}


def _images(omitted: Sequence[int], found: Mapping[int, Corrected]) -> str:
    test = next(iter(found.values())).test
    named = f"class {omitted[0]}" if len(omitted) == 1 else f"classes {', '.join(map(str, omitted))}"
    return (
        f"Left out of the students' images: {named}, {int(np.isin(test.labels, omitted).sum())} of the "
        f"{len(test.labels)} test images."
    )


def _table(measured: Mapping[Point, Mapping[int, Corrected]]) -> Table:
    tested = [point for point in measured if point.omitted]
    tests = [paired(_by_seed(measured[point], "top1", 1), _by_seed(measured[point], "top1", 0)) for point in tested]
    words = dict(zip(tested, evidence.verdict_cells(tests), strict=True))
    rows = [
        [
            point.label,
            *(mean_std([float(one.errors[which]) for one in of.values()], 1) for which in (0, 1)),
            *(mean_std(_by_seed(of, "top1", which).values(), 2) for which in (0, 1)),
            *(mean_std(_by_seed(of, "recognized", which).values(), 1) for which in (0, 1)),
            mean_std([one.offset for one in of.values()], 2),
            *words.get(point, (NOTHING, NOTHING)),
        ]
        for point, of in measured.items()
    ]
    columns = ("student", "errors", "corrected", "test top-1 %", "corrected %", "omitted class recognized %")
    caption = (
        "On the test set after the last epoch, mean ± sample std over seeds. Recognized: the fraction of the "
        "omitted class's images predicted as this class. The test compares top-1 after and before the correction. "
        "Students of all classes serve as a control."
    )
    more_columns = ("recognized, corrected %", "added to the logit", "p (Holm)", "verdict")
    return Table(columns=(*columns, *more_columns), rows=rows, caption=caption)


def _chart(measured: Mapping[Point, Mapping[int, Corrected]], omitted: Sequence[int]) -> Chart:
    chosen = [one.offset for of in measured.values() for one in of.values()]
    low, high = min(0.0, *chosen), max(0.0, *chosen)
    margin = 0.1 * (high - low) + 0.5
    lines: list[dict[str, Any]] = []
    dots: list[dict[str, Any]] = []
    for point, of in measured.items():
        for value in np.linspace(low - margin, high + margin, CURVE_POINTS):
            top1 = [_accuracy(one.test, omitted, float(value)) for one in of.values()]
            lines.append({"offset": float(value), "top1": sum(top1) / len(top1), "student": point.label})
        dots += [{"offset": one.offset, "top1": one.top1[1], "student": point.label} for one in of.values()]
    x = alt.X("offset:Q", title="added to the logit of the omitted class")
    y = alt.Y("top1:Q", scale=percents(row["top1"] for row in (*lines, *dots)), title="test top-1 (%)")
    color = alt.Color("student:N", title=None, sort=[point.label for point in measured])
    spec = alt.layer(
        chart(lines).mark_line().encode(x=x, y=y, color=color),
        chart(dots).mark_point(filled=True, size=60).encode(x=x, y=y, color=color, tooltip=["student:N", "top1:Q"]),
    )
    caption = "Lines: mean over seeds for every number. Dots: chosen on validation, one per seed."
    return Chart(name="missing_class", spec=spec.properties(width="container"), caption=caption)


def _accuracy(found: LabeledLogits, omitted: Sequence[int], offset: float) -> float:
    return 100.0 * float(hits(found, omitted, offset).mean())
