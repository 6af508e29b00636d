"""A run's log, `metrics.jsonl`, and its mirrors in Weights & Biases and TensorBoard. On the main process only."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from kdschemes.config import Config
from kdschemes.config.naming import flatten, to_tree
from kdschemes.storage.atomic import atomic_write
from kdschemes.storage.naming import config_hash
from kdschemes.tracking.metrics_log import read_rows
from kdschemes.tracking.tensorboard import TensorBoard
from kdschemes.tracking.wandb_run import ID_FILE, WandbRun, asked_id

PREEMPTED = 143
"""Exit code of a process that ended on SIGTERM (128 + 15)."""


class _Mirror(Protocol):
    def log(self, scalars: dict[str, float], step: int) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def finish(self, exit_code: int, preempted: bool) -> None: ...


class Trackers:
    """Mirrors the rows of `metrics.jsonl` to the trackers of a configuration (`wandb`, `tensorboard`, or both).

    They hold the whole configuration, nested as in the run's `config.yaml` (W&B shows `scheme.alpha`), its hash and the
    run's folder. A tracker that fails during training does not stop it: the first failure of each causes a warning, and
    the next row is tried again. `metrics.jsonl` has every row.
    """

    def __init__(
        self, config: Config, folder: Path, *, primary_head: str, resume_step: int = 0, copy: bool = False
    ) -> None:
        """Start the trackers for the run in `folder`; `resume_step` optimizer steps are already done.

        Metrics of the head `primary_head` are also given without its name. `copy`: only W&B, which gets another run
        with everything in `metrics.jsonl`; the caller must store its id, `wandb_id`.

        Raises:
            UserError: a package is missing, or a tracker can't start.
        """
        self._primary_head = primary_head
        self._mirrors: dict[str, _Mirror] = {}
        self._failed: set[str] = set()
        self.wandb_id: str | None = None
        content = to_tree(config) | {"hash": config_hash(config), "folder": str(folder)}
        for name in ("wandb",) if copy else config.tracker:
            if name == "tensorboard":
                self._mirrors[name] = TensorBoard(folder, content, resume_step)
                continue
            run = WandbRun(config, folder, content, copy=copy)
            self._mirrors[name] = run
            self.wandb_id = run.id
            if run.is_new and (folder / "metrics.jsonl").exists():
                for row in read_rows(folder / "metrics.jsonl"):
                    run.log(self._scalars(row), row["step"])
            if not copy:
                run.remember()

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Mirror the numbers of a row; `step` counts optimizer steps.

        `lr` of a training row becomes `train/lr`, `HEAD/top1` of an evaluation `val/HEAD/top1`, and of the final one
        `final/best/test/HEAD/top1`: the row's `kind` (but for `eval`), `which` and `split` precede the name. The
        reported head's metrics of an evaluation are given once more without its name: `val/top1`.
        """
        scalars = self._scalars(row)
        self._each(lambda mirror: mirror.log(scalars, step))

    def _scalars(self, row: Mapping[str, Any]) -> dict[str, float]:
        kind = [] if row["kind"] == "eval" else [row["kind"]]
        prefix = "/".join(kind + [row[key] for key in ("which", "split") if key in row])
        found = {key: float(value) for key, value in row.items() if _is_number(value) and key != "step"}
        scalars = {f"{prefix}/{key}": value for key, value in found.items()}
        if row["kind"] == "eval" and self._primary_head is not None:
            head = f"{self._primary_head}/"
            mine = {key.removeprefix(head): value for key, value in found.items() if key.startswith(head)}
            scalars |= {f"{prefix}/{key}": value for key, value in mine.items() if "/" not in key}
        return scalars

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record the results of the run: nested names are joined with `/`, None is left out."""
        flat = {key: value for key, value in flatten(values, "/").items() if value is not None}
        self._each(lambda mirror: mirror.summary(flat))

    def finish(self, exit_code: int = 0, preempted: bool = False) -> None:
        """End the trackers. `preempted`: the run was stopped from outside and can resume; its exit code is 143."""
        self._each(lambda mirror: mirror.finish(PREEMPTED if preempted else exit_code, preempted))
        self._mirrors.clear()

    def _each(self, call: Callable[[_Mirror], None]) -> None:
        for name, mirror in self._mirrors.items():
            try:
                call(mirror)
            except Exception as error:
                if name not in self._failed:
                    self._failed.add(name)
                    text = f"tracker {name} failed ({type(error).__name__}: {error}); metrics.jsonl continues"
                    warnings.warn(text, RuntimeWarning, stacklevel=3)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def report_finished(config: Config, folder: Path, results: Mapping[str, Any]) -> None:
    """Send a run that was finished before to W&B, if W&B is a tracker and does not have it as requested.

    That is the case if the environment names W&B's run (a sweep agent does, and waits for the metric), if the run was
    trained without W&B, or if it was trained in a different group, such as that of another study. W&B then gets a
    separate run in this group, with all rows and the results, once.

    Raises:
        UserError: W&B can't start, the run's log can't be read, or its folder can't be written.
    """
    if "wandb" not in config.tracker:
        return
    mark = folder / ID_FILE
    if asked_id() is None and mark.exists() and config.group not in (None, results.get("group")):
        mark = folder / f"{ID_FILE}-{hashlib.sha256(str(config.group).encode()).hexdigest()[:8]}"
    if asked_id() is not None or not mark.exists():
        trackers = Trackers(config, folder, primary_head=results["primary_head"], copy=True)
        trackers.summary(summary_of(results, folder))
        trackers.finish()
        atomic_write(mark, str(trackers.wandb_id).encode())


def summary_of(results: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what `Trackers.summary` records of a `results.json`.

    - `val/top1`, `test/top1` (last epoch) and `best/val/top1`, `best/test/top1` (best epoch on the validation split):
      every metric of the reported head without its name, so that runs of all schemes have them;
    - `last/test/HEAD/top1`, `best/val/HEAD/nll`, ...: every metric of every head, `mean over peers` among them;
    - `cost/parameters`, `cost/macs`, `cost/latency_ms` of the reported head, `cost/HEAD/macs` of each;
    - everything else under its own name: `train_seconds`, `images_per_second`, `peak_memory_bytes`, `versions/torch`,
      `primary_head`, `study`, ..., and the run's `folder`. Values that a run did not measure are left out.
    """
    primary_head = results["primary_head"]
    heads = results["heads"] | ({"mean over peers": mean} if (mean := results.get("mean_over_peers")) else {})
    found: dict[str, Any] = {
        f"{which}/{split}/{head}": splits[split]
        for head, both in heads.items()
        for which, splits in both.items()
        if splits
        for split in ("val", "test")
    }
    for which, prefix in (("last", ""), ("best", "best/")):
        splits = heads[primary_head].get(which) or {}
        found |= {f"{prefix}{split}": splits.get(split) for split in ("val", "test")}
        found[f"{which}/epoch"] = splits.get("epoch")
    cost = results.get("cost", {})
    found["cost"] = cost | cost.get(primary_head, {})
    rest = {key: value for key, value in results.items() if key not in ("heads", "mean_over_peers", "cost")}
    return found | rest | {"folder": str(folder)}
