"""What an already trained network gains and forgets as it learns from another, measured on its predictions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from kdschemes.config import Config
from kdschemes.config.load import build_config
from kdschemes.data import open_data
from kdschemes.errors import UserError
from kdschemes.report.analyses.trained_pair import found_folder
from kdschemes.report.groups import Member, config_of
from kdschemes.storage.predictions import Predictions, read_predictions
from kdschemes.storage.results import read_results

Classes = npt.NDArray[np.int64]

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A student's predictions on the test set after a transfer, against those before it; all in percent.

    `own` and `unseen` are the top-1 of images whose class the student had, or had not, images of before; NaN where
    there are none. `forgetting` is the mean over classes of max(0, top-1 before - top-1 after); `positive` is the
    fraction of all images that were classified wrongly and are correct now, `negative` that of the opposite.
    """

    top1: float
    own: float
    unseen: float
    forgetting: float
    positive: float
    negative: float


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A finished run of an already trained student, on the test set: before it, after it, and its teacher.

    `val` is the student's top-1 on the validation split after the last epoch, NaN without one; `teacher` is None where
    no frozen network taught it.
    """

    before: Change
    after: Change
    teacher: Change | None
    val: float


def change(labels: Classes, before: Classes, after: Classes, seen: Mask) -> Change:
    """Return the change from the predictions `before` to `after`; `seen` says for each class whether it was seen."""
    was, now = before == labels, after == labels
    present = np.unique(labels)
    lost = [max(0.0, float(was[labels == k].mean()) - float(now[labels == k].mean())) for k in present]
    known = seen[labels]
    return Change(
        top1=_percent(now),
        own=_percent(now[known]),
        unseen=_percent(now[~known]),
        forgetting=100.0 * sum(lost) / len(lost),
        positive=_percent(now & ~was),
        negative=_percent(was & ~now),
    )


def start_folder(member: Member) -> Path | None:
    """Return the folder of the run from whose weights a run's student or first peer started; None if there is none."""
    given = (member.config.get("model") or {}).get("checkpoint")
    first = given[0] if isinstance(given, list) else given
    return None if first is None else found_folder(Path(first), member.folder.parent)


def start_config(member: Member) -> Config | None:
    """Return the configuration of the run from which a run's student started; None if unknown."""
    folder = start_folder(member)
    tree = None if folder is None else config_of(folder)
    return None if tree is None else build_config(tree)


def seen_classes(config: Config) -> Mask:
    """Return for each class whether a run has training images of it.

    Raises:
        UserError: the data cannot be opened.
    """
    labels = open_data(config.data, seed=config.seed, device=torch.device("cpu"))
    counts = labels.train_labels[labels.train_labels >= 0].bincount(minlength=labels.num_classes)
    return np.asarray((counts > 0).numpy())


def transfer(member: Member, seen: Mask) -> Transfer:
    """Return what a finished run's student, or first peer, gained and forgot since the run from which it started.

    Raises:
        UserError: predictions are not stored, or are for other images.
    """
    assert member.results is not None
    folder = start_folder(member)
    if folder is None:
        raise UserError(f"{member.folder} did not start from another run")
    head, teacher = str(member.results["primary_head"]), str(member.results.get("teacher"))
    began, ended = _kept(folder), _kept(member.folder)
    labels, before = ended.labels["test"], _test(began, _primary_head(folder), folder)
    after = _test(ended, head, member.folder)
    if not np.array_equal(began.labels["test"], labels):
        raise UserError(f"{folder} and {member.folder} have different test images")
    val = ended.heads[head].get("val")
    return Transfer(
        before=change(labels, before, before, seen),
        after=change(labels, before, after, seen),
        teacher=change(labels, before, _test(ended, teacher, member.folder), seen) if teacher in ended.heads else None,
        val=float("nan") if val is None else _percent(val.classes == ended.labels["val"]),
    )


def _percent(right: Mask) -> float:
    return 100.0 * float(right.mean()) if len(right) else float("nan")


def _primary_head(folder: Path) -> str:
    try:
        return str((read_results(folder) or {})["primary_head"])
    except (OSError, ValueError, KeyError):
        raise UserError(f"{folder} has no results or damaged ones: delete its results.json and run again") from None


def _kept(folder: Path) -> Predictions:
    found = read_predictions(folder)
    if found is None or "test" not in found.labels:
        raise UserError(f"{folder} has no stored predictions for test images: delete its results.json and run again")
    return found


def _test(found: Predictions, head: str, folder: Path) -> Classes:
    predictions = found.heads.get(head, {}).get("test")
    if predictions is None:
        raise UserError(f"{folder} has no stored predictions of {head} for test images")
    return predictions.classes
