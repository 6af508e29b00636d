"""The runs that a method must beat: the same network, data, epochs and seed without it. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from kdschemes.config import Config
from kdschemes.config.code import parse_code
from kdschemes.config.naming import in_line
from kdschemes.config.plugins import needed
from kdschemes.config.schemes import Method
from kdschemes.config.schemes.base import ExitOptions
from kdschemes.config.schemes.supervised import DeepSupervision, Supervised


def baseline_runs(config: Config) -> list[Config]:
    """Return the runs to compare a run with: cross-entropy and, if its network has exits, deep supervision.

    Of peers with different networks, it is the first peer's. Cross-entropy has none, nor have peers that start from
    different weights.
    """
    if config.scheme == Supervised() or isinstance(config.model.checkpoint, list):
        return []
    schemes: list[Method] = [Supervised()]
    if isinstance(config.scheme, ExitOptions):
        schemes.append(DeepSupervision(exits=config.scheme.exits, exit_head=config.scheme.exit_head))
    model = dataclasses.replace(config.model, name=config.scheme.trained_models(config.model.name)[0])
    losses, plugins = type(config.losses)(), needed(config.plugins, model.name, config.data.name)
    alone = dataclasses.replace(
        config, losses=losses, model=model, plugins=plugins, resume_from=None, data=config.data.labelled()
    )
    return [dataclasses.replace(alone, scheme=scheme) for scheme in schemes if scheme != config.scheme]


def command(baseline: Config, config: Config, folder: Path) -> str:
    """Return the command that trains a baseline of the run with this configuration in `folder`."""
    scheme = baseline.scheme
    words = [f"experiment={folder / 'config.yaml'}", "scheme=supervised", f"method={scheme.method}"]
    words.append(f"model={baseline.model.name}")
    words += [f"data={config.data.name}"] * (parse_code(config.data.name) is not None)
    words += ["data.unlabelled=null"] * (config.data.unlabelled is not None)
    if config.plugins:
        words.append(f"plugins={in_line(baseline.plugins)}")
    if isinstance(scheme, ExitOptions):
        exits = scheme.exits if isinstance(scheme.exits, str) else f"[{','.join(scheme.exits)}]"
        words += [f"scheme.exits={exits}", f"scheme.exit_head={scheme.exit_head}"]
    return shlex.join(["kdschemes", "train", *words])
