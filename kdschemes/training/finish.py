"""What a run leaves at its end: the metrics of its last and its best epoch, its networks, `results.json`."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdschemes import __version__
from kdschemes.config.checks import split_keys
from kdschemes.distributed.fsdp import load_joined, whole
from kdschemes.evaluation.cost import head_latencies
from kdschemes.evaluation.early_exit import evaluate_early_exit, summary
from kdschemes.evaluation.evaluate import Evaluation
from kdschemes.evaluation.export import export_exits, export_network
from kdschemes.storage.checkpoint import load_state
from kdschemes.storage.predictions import HeadPredictions, Predictions, write_predictions
from kdschemes.storage.results import mean_over_peers, write_json
from kdschemes.tracking.metrics_log import eval_row
from kdschemes.tracking.trackers import summary_of

if TYPE_CHECKING:
    from kdschemes.training.run import Run


class RunEnd:
    """Judges the last and the best epoch of a run, then writes what it leaves; `results` is what it wrote last."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.results: dict[str, Any] = {}
        self._last_weights: dict[str, Tensor] = {}
        self._heads: dict[str, Any] = {}
        self._found: dict[str, dict[str, dict[str, float]]] = {}
        self._answers: Mapping[str, Evaluation] = {}

    def take_weights(self, which: str) -> None:
        """Take the weights of the last epoch, or those of the best one."""
        run = self.run
        if which == "last":
            self._last_weights = {name: value.clone() for name, value in run.scheme.state_dict().items()}
        elif self.needs_evaluation(which):
            assert run.state.best is not None
            load_joined(run.scheme, load_state(run.folder / run.state.best["file"]))

    def needs_evaluation(self, which: str) -> bool:
        """Return whether last or best are not evaluated yet: best may be the last, or there is none."""
        best = self.run.state.best
        return which == "last" or (best is not None and best["epoch"] < self.run.config.train.epochs)

    def record(self, which: str, found: Mapping[str, Evaluation]) -> None:
        """Write what the last or the best epoch gives on each split, and its networks."""
        run, state, config = self.run, self.run.state, self.run.config
        for head in self._judged:
            self._heads.setdefault(head, {})
        epoch = config.train.epochs if which == "last" else state.best["epoch"] if state.best else None
        if epoch is None:
            for head in self._judged:
                self._heads[head][which] = None
            return
        if found:
            self._found = {split: of.metrics for split, of in found.items()}
        if which == "last":
            self._answers = found
        for split, metrics in self._found.items():
            run.write({"which": which} | eval_row(split, epoch, state.step, metrics) | {"kind": "final"})
        for head in self._judged:
            self._heads[head][which] = {"epoch": epoch} | {
                split: self._found[split][head] if split in self._found else None for split in ("val", "test")
            }
        with whole(run.scheme):
            if run.main:
                place = run.folder if which == "last" else run.folder / "best"
                metadata = {"run": run.folder.name, "which": which, "epoch": epoch, "data": config.data.name}
                export_network(run.scheme, place, metadata | {"classes": run.data.classes})
                export_exits(run.scheme, place)

    @property
    def _judged(self) -> list[str]:
        """The heads, and the teacher."""
        scheme = self.run.scheme
        return [*scheme.heads, *([scheme.teacher] if scheme.teacher is not None else [])]

    def finish(self) -> None:
        """Write everything else that the run leaves, and close it."""
        run, state, config, heads = self.run, self.run.state, self.run.config, self._heads
        run.scheme.load_state_dict(self._last_weights)
        with whole(run.scheme), run.accelerator.autocast():
            early_exit = evaluate_early_exit(run.scheme, run.data, config.train.eval_batch_size)
            times = head_latencies(run.scheme, run.data) if run.main and not split_keys(config) else {}
        results: dict[str, Any] = {
            "run": run.folder.name,
            "scheme": config.scheme.name,
            "method": config.scheme.method,
            "data": config.data.name,
            "seed": config.seed,
            "epochs": config.train.epochs,
            "reported": run.scheme.heads[0],
            "teacher": run.scheme.teacher,
            "teacher_checkpoint": run.teacher_checkpoint,
            "heads": heads,
            "mean_over_peers": mean_over_peers(heads, run.scheme.peers),
            "cost": {head: cost | {"latency_ms": times.get(head)} for head, cost in run.costs.items()},
            "train_macs_per_image": run.training_macs,
            "samples": run.data.sizes,
            "group": config.group,
            "wall_seconds": run.wall(),
            "train_seconds": state.seconds,
            "images_per_second": state.images / state.seconds,
            "trained_together": run.together,
            "peak_memory_bytes": peak_memory(run.device),
            "processes": run.accelerator.num_processes,
            "device": run.device.type,
            "precision": config.precision,
            "versions": {"kdschemes": __version__, "torch": torch.__version__},
        }
        if early_exit is not None:
            results["early_exit"] = summary(early_exit)
        if run.main:
            assert run.log is not None
            run.log.sync()
            write_predictions(run.folder, _predictions(self._answers))
            from kdschemes.tracking.plots import (
                draw_curves,  # matplotlib takes a second, which no step need wait
                write_early_exit,
            )

            draw_curves(run.folder / "metrics.jsonl", run.folder / "curves.png", title=run.folder.name)
            if early_exit is not None:
                write_early_exit(early_exit, run.folder)
            if run.trackers is not None:
                run.trackers.summary(summary_of(results, run.folder))
            write_json(run.folder / "results.json", results)
        run.accelerator.wait_for_everyone()
        self.results = results
        run.close(None)


def _predictions(found: Mapping[str, Evaluation]) -> Predictions:
    heads: dict[str, dict[str, HeadPredictions]] = {}
    for split, evaluation in found.items():
        for head, (classes, confidence) in evaluation.answers.items():
            heads.setdefault(head, {})[split] = HeadPredictions(classes.numpy(), confidence.numpy())
    return Predictions({split: evaluation.labels.numpy() for split, evaluation in found.items()}, heads)


def peak_memory(device: torch.device) -> int:
    """Return the bytes that this process held at most: tensors on a GPU, all of its memory on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # Linux: getrusage would count what the launcher held before it started us
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
