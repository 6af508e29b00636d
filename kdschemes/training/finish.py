"""The end of a run: metrics of the last and the best epoch, exported networks, predictions, plots, results.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdschemes import __version__
from kdschemes.config.checks import split_keys
from kdschemes.distributed.fsdp import load_full_state, unsharded
from kdschemes.evaluation.cost import head_latencies, peak_memory
from kdschemes.evaluation.early_exit import evaluate_early_exit, summary
from kdschemes.evaluation.evaluate import Evaluation, predictions_of
from kdschemes.evaluation.export import export_exits, export_network
from kdschemes.storage.checkpoint import PREVIOUS, load_state
from kdschemes.storage.predictions import write_predictions
from kdschemes.storage.results import mean_over_peers, write_results
from kdschemes.tracking.metrics_log import eval_row
from kdschemes.tracking.plots import can_draw, draw_curves, write_early_exit
from kdschemes.tracking.trackers import summary_of
from kdschemes.training.pack import Pack
from kdschemes.training.run import Run
from kdschemes.training.run_folder import remove_leftovers


@dataclass
class Final:
    """The results of one run's final evaluations so far: metrics by head, epoch, and split."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    last: Mapping[str, Evaluation] = field(default_factory=dict)


def finish(pack: Pack, runs: Sequence[Run]) -> None:
    """Evaluate the last and the best epoch of runs that are at their end on each split, then write their results."""
    final = {run: Final() for run in runs}
    for which in ("last", "best"):
        current = pack.still_active(runs)
        for run in current:
            with pack.isolate(run):
                _load_weights(run, final[run], which)
        evaluated = [run for run in pack.still_active(current) if _is_evaluated(run, which)]
        found: dict[Run, dict[str, Evaluation]] = {run: {} for run in current}
        for split in (split for split in ("val", "test") if pack.first.data.sizes[split]):
            evaluations = pack.evaluate(evaluated, split, keep_predictions=which == "last")
            for run, evaluation in zip(evaluated, evaluations, strict=True):
                found[run][split] = evaluation
        for run in pack.still_active(current):
            with pack.isolate(run):
                _record(run, final[run], which, found[run])
    for run in pack.still_active(runs):
        with pack.isolate(run):
            _write_results(run, final[run], pack.check_stop)
            pack.active.remove(run)


def _is_evaluated(run: Run, which: str) -> bool:
    """Return whether `which` needs its own evaluation: there may be no best epoch, or it may be the last one."""
    best = run.state.best
    return which == "last" or (best is not None and best["epoch"] < run.epochs_trained)


def _load_weights(run: Run, final: Final, which: str) -> None:
    if which == "last":
        final.weights = {name: value.clone() for name, value in run.scheme.state_dict().items()}
    elif _is_evaluated(run, which):
        assert run.state.best is not None
        load_full_state(run.scheme, load_state(run.folder / run.state.best["file"]))


def _record(run: Run, final: Final, which: str, found: Mapping[str, Evaluation]) -> None:
    """Record the metrics of the last or the best epoch on each split, and export its networks."""
    state, config, scheme = run.state, run.config, run.scheme
    heads = [*scheme.heads, *([scheme.teacher] if scheme.teacher is not None else [])]
    epoch = run.epochs_trained if which == "last" else state.best["epoch"] if state.best else None
    for head in heads:
        final.heads.setdefault(head, {})[which] = None
    if epoch is None:
        return
    if found:
        final.metrics = {split: evaluation.metrics for split, evaluation in found.items()}
    if which == "last":
        final.last = found
    for split, metrics in final.metrics.items():
        run.write({"which": which} | eval_row(split, epoch, state.step, metrics) | {"kind": "final"})
    for head in heads:
        by_split = {split: final.metrics[split][head] if split in final.metrics else None for split in ("val", "test")}
        final.heads[head][which] = {"epoch": epoch} | by_split
    with unsharded(scheme):
        if run.main:
            folder = run.folder if which == "last" else run.folder / "best"
            metadata = {"run": run.folder.name, "which": which, "epoch": epoch, "data": config.data.name}
            export_network(scheme, folder, metadata | {"classes": run.data.classes})
            export_exits(scheme, folder)


def _write_results(run: Run, final: Final, check: Callable[[], None]) -> None:
    """Write the run's remaining files, `results.json` last, and close it; `check` is called before each batch."""
    state, config, scheme = run.state, run.config, run.scheme
    scheme.load_state_dict(final.weights)
    run.console.doing("measuring latency")
    with unsharded(scheme), run.accelerator.autocast():
        early_exit = evaluate_early_exit(scheme, run.data, config.train.eval_batch_size, check)
        latencies = head_latencies(scheme, run.data, check) if not split_keys(config) else {}
    run.results = {
        "run": run.folder.name,
        "scheme": config.scheme.name,
        "method": config.scheme.method,
        "data": config.data.name,
        "data_digest": run.data.digest,
        "image_size": run.data.spec.image_size,
        **({"multi_label": True} if run.data.multi_label else {}),
        "seed": config.seed,
        "epochs": run.epochs_trained,
        "primary_head": scheme.heads[0],
        "teacher": scheme.teacher,
        "teacher_checkpoint": run.teacher_checkpoint,
        "heads": final.heads,
        "mean_over_peers": mean_over_peers(final.heads, scheme.peers),
        "cost": {head: cost | {"latency_ms": latencies.get(head)} for head, cost in run.costs.items()},
        "train_macs_per_image": run.training_macs,
        "samples": run.data.sizes,
        "group": config.group,
        "wall_seconds": run.wall(),
        "train_seconds": state.seconds,
        "images_per_second": state.images / state.seconds,
        "pack_size": run.pack_size,
        "peak_memory_bytes": peak_memory(run.device),
        "processes": run.accelerator.num_processes,
        "device": run.device.type,
        "precision": config.precision,
        "versions": {"kdschemes": __version__, "torch": torch.__version__},
        "code": run.code,
    }
    if early_exit is not None:
        run.results["early_exit"] = summary(early_exit)
    if run.stopped_early:
        run.results["epochs_planned"] = config.train.epochs
    if config.resume_from is not None:
        run.results["resumed_from"] = Path(config.resume_from).name
    if run.log is not None:
        run.log.sync()
        if not run.data.multi_label:
            write_predictions(run.folder, predictions_of(final.last))
        if can_draw():
            draw_curves(run.folder / "metrics.jsonl", run.folder / "curves.png", title=run.folder.name)
        else:
            run.console.once("matplotlib is not installed: there are no plots")
        if early_exit is not None:
            write_early_exit(early_exit, run.folder)
        run.log.trackers.summary(summary_of(run.results, run.folder))
        remove_leftovers(run.folder, [state.best["file"]] if state.best else [])
        (run.folder / PREVIOUS).unlink(missing_ok=True)
        write_results(run.folder, run.results)
    run.accelerator.wait_for_everyone()
    run.close(None)
