"""Export a head of a run from its checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from kdschemes.cards.cite import read_run
from kdschemes.config.prerequisites import prerequisite_runs, with_teachers
from kdschemes.data import open_data
from kdschemes.distributed.fsdp import load_full_state
from kdschemes.errors import UserError, first_line, unknown
from kdschemes.evaluation.export import export_exits, export_network
from kdschemes.schemes import build_scheme
from kdschemes.storage.checkpoint import CHECKPOINT, load_state, read_checkpoint
from kdschemes.storage.naming import run_name


def export(run: Path, out: Path, *, head: str | None, best: bool) -> str:
    """Write a head of a run (default: the primary one) as a plain network into the folder `out`; return a line.

    The weights are those of the last checkpoint, or with `best` of the best epoch so far. The data and the teachers are
    read as in training.

    Raises:
        UserError: no such run, checkpoint or head; the head is no single network; `out` cannot be written.
    """
    config = read_run(run)
    if not (run / CHECKPOINT).is_file():
        raise UserError(f"{run} has no {CHECKPOINT}: nothing has been trained yet")
    state = read_checkpoint(run / CHECKPOINT)
    if best and state["best"] is None:
        raise UserError(f"{run} has no best epoch: it has not been validated")
    if earlier := prerequisite_runs(config):
        config = with_teachers(config, [str(run.parent / run_name(other)) for other in earlier])
    data = open_data(config.data, seed=config.seed, device=torch.device("cpu"))
    scheme = build_scheme(config, replace(data.spec, initial_weights=False))
    try:
        weights, what = state["scheme"], f"after step {state['step']}"
        if best and state["best"] is not None:
            weights, what = load_state(run / state["best"]["file"]), f"of epoch {state['best']['epoch']}"
        load_full_state(scheme, weights)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{run / CHECKPOINT} does not fit this run ({first_line(error)[:120]})") from None
    head = head or scheme.heads[0]
    if head not in scheme.heads:
        raise unknown("head", head, scheme.heads)
    metadata = {"run": run.name, "which": "best" if best else "last", "data": config.data.name, "classes": data.classes}
    export_network(scheme, out, metadata, head=head)
    export_exits(scheme, out, head=head)
    return f"{head} of {run} {what}: {out}"
