"""What is said of the teachers before they teach: their accuracy, and whether they seem to be wrong."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from kdschemes.config.baselines import baseline_runs
from kdschemes.core.placement import frozen_nodes
from kdschemes.evaluation.teacher_check import doubt
from kdschemes.storage.naming import run_name
from kdschemes.storage.results import main_metric, read_results, reported, worse_teacher
from kdschemes.training.pack import Pack
from kdschemes.training.run import Run

ENOUGH = 512
"""Images on which a teacher is examined; with a smaller validation split, also as many training images."""


def report_teachers(pack: Pack) -> None:
    """Report each teacher's accuracy once, and warn of frozen networks that seem to be wrong.

    The accuracy is that on the validation split, without one on training images.
    """
    reported: set[int] = set()
    for run in list(pack.active):
        teacher, data = run.scheme.teacher, run.data
        frozen = {node.provides[0]: node for node in frozen_nodes(run.scheme)}
        if teacher is None:
            continue
        networks = {name: id(getattr(node := run.scheme.node_of(name), "network", node)) for name in (teacher, *frozen)}
        new = [name for name, network in networks.items() if network not in reported]
        reported.update(networks.values())
        if not new:
            continue
        found = []
        if data.sizes["val"]:
            found += pack.evaluate([run], "val", new, keep_predictions=True)
        if data.sizes["val"] < ENOUGH:
            found += pack.evaluate([run], "train", new, keep_predictions=True, at_most=ENOUGH)
        if teacher in new:
            metrics = found[0].metrics[teacher]
            top1, what = metrics[main_metric(metrics)], " mAP" if data.multi_label else ""
            seen = data.evaluated("val" if data.sizes["val"] else "train", ENOUGH)
            where = "the validation split" if data.sizes["val"] else f"{seen:,} training images"
            run.console.line(f"teacher on {where}: {top1:.2f} %{what} (it may have been trained on these images)")
            if data.sizes["val"] and (why := _worse_than_baseline(run, top1)):
                run.console.line(f"warning: the teacher {why}")
        if data.multi_label:
            continue
        if find_spec("scipy") is None:
            run.console.once("scipy is not installed: whether teachers seem to be wrong is not examined")
            continue
        labels = torch.cat([each.labels for each in found])
        for name in new:
            predicted = torch.cat([each.predictions[name][0] for each in found])
            if why := doubt(predicted, labels, data.classes):
                run.console.line(f"warning: {'the teacher' if name == teacher else name} {why}")


def _worse_than_baseline(run: Run, top1: float) -> str | None:
    """Return that a teacher is worse than its student alone, if that run is in the output folder."""
    folders = [Path(run.config.output_dir) / run_name(baseline) for baseline in baseline_runs(run.config)[:1]]
    found = [results for folder in folders if (results := read_results(folder)) is not None]
    return worse_teacher(top1, reported(found[0], "val"), run.data.sizes["val"], alone=True) if found else None
