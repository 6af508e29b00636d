"""What trackers are told of a run: its configuration at the start, its results at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdschemes.config import Config
from kdschemes.config.naming import config_hash, to_tree
from kdschemes.files import write_whole
from kdschemes.track import Trackers, flatten
from kdschemes.track_wandb import ID_FILE, asked_id


def open_trackers(config: Config, folder: Path, *, reported: str, resume_step: int = 0) -> Trackers:
    """Start the trackers that a configuration asks for. See `Trackers` for the other arguments.

    They hold the whole configuration, nested as in the run's `config.yaml` (W&B shows `scheme.alpha`), its hash and the
    run's folder. The kind of a run (W&B's job type) is its scheme, or `teacher` where another one needs it first.

    Raises:
        UserError: a package is missing, or a tracker can't start.
    """
    return _open(config.tracker, config, folder, reported=reported, resume_step=resume_step)


def report_finished(config: Config, folder: Path, results: Mapping[str, Any]) -> None:
    """Give a run that was finished before to W&B, where W&B is among the trackers and does not have it as asked for.

    So it is where the environment names W&B's run (the agent of a sweep does, and waits for the metric), where the run
    was trained without W&B, and where it was trained in another group than this one: a study finds what another study
    trained. W&B then gets a run of its own in this group, with all rows and the results, once.

    Raises:
        UserError: W&B can't start, the run's log can't be read, or its folder can't be written.
    """
    if "wandb" not in config.tracker:
        return
    mark = folder / ID_FILE
    if asked_id() is None and mark.exists() and config.group not in (None, results.get("group")):
        mark = folder / f"{ID_FILE}-{hashlib.sha256(str(config.group).encode()).hexdigest()[:8]}"
    if asked_id() is not None or not mark.exists():
        trackers = _open(["wandb"], config, folder, reported=results["reported"], copy=True)
        trackers.summary(summary_of(results, folder))
        trackers.finish()
        write_whole(mark, str(trackers.wandb_id).encode())


def _open(
    names: Sequence[str], config: Config, folder: Path, *, reported: str, resume_step: int = 0, copy: bool = False
) -> Trackers:
    scheme, model = config.scheme, config.model.name
    return Trackers(
        names,
        run_name=folder.name,
        folder=folder,
        project=config.project,
        group=config.group or "-".join((scheme.name, scheme.method, config.data.name, model)),
        job_type=config.job_type or scheme.name,
        tags=[scheme.name, scheme.method, config.data.name, model],
        config=to_tree(config) | {"hash": config_hash(config), "folder": str(folder)},
        resume_step=resume_step,
        reported=reported,
        copy=copy,
    )


def summary_of(results: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what a tracker's summary holds of a `results.json`: one flat mapping, names joined with `/`.

    - `val/top1`, `test/top1` (last epoch) and `best/val/top1`, `best/test/top1` (best epoch on the validation split):
      every metric of the reported head, whatever its name, so that runs of all schemes have them;
    - `last/test/HEAD/top1`, `best/val/HEAD/nll`, ...: every metric of every head, `mean over peers` among them;
    - `cost/parameters`, `cost/macs`, `cost/latency_ms` of the reported head, `cost/HEAD/macs` of each;
    - everything else under its own name: `train_seconds`, `images_per_second`, `peak_memory_bytes`, `versions/torch`,
      `reported`, `study`, ..., and the run's `folder`. What a run did not measure is left out.
    """
    reported = results["reported"]
    heads = results["heads"] | ({"mean over peers": mean} if (mean := results.get("mean_over_peers")) else {})
    found: dict[str, Any] = {
        f"{which}/{split}/{head}": splits[split]
        for head, both in heads.items()
        for which, splits in both.items()
        if splits
        for split in ("val", "test")
    }
    for which, prefix in (("last", ""), ("best", "best/")):
        splits = heads[reported].get(which) or {}
        found |= {f"{prefix}{split}": splits.get(split) for split in ("val", "test")}
        found[f"{which}/epoch"] = splits.get("epoch")
    cost = results.get("cost", {})
    found["cost"] = cost | cost.get(reported, {})
    rest = {key: value for key, value in results.items() if key not in ("heads", "mean_over_peers", "cost")}
    return flatten(found | rest | {"folder": str(folder)})
