"""The TensorBoard tracker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdschemes.errors import UserError
from kdschemes.storage.results import plain
from kdschemes.tracking.metrics_log import cannot_write


class TensorBoard:
    """Event files in the run's folder, under `tensorboard`."""

    def __init__(self, folder: Path, config: Mapping[str, Any], resume_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                'tracker=tensorboard needs the package tensorboard: pip install "kdschemes[tensorboard]"'
            ) from None
        try:
            self._writer: Any = SummaryWriter(folder / "tensorboard", purge_step=resume_step + 1 if resume_step else 0)
        except OSError as error:
            raise cannot_write(folder / "tensorboard", error) from None
        if not resume_step:
            self._writer.add_text("config", f"```\n{json.dumps(plain(config), indent=2)}\n```")

    def log(self, scalars: dict[str, float], step: int) -> None:
        for key, value in scalars.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def summary(self, values: Mapping[str, Any]) -> None:
        self._writer.add_text("results", f"```\n{json.dumps(plain(values), indent=2)}\n```")

    def finish(self, exit_code: int, preempted: bool) -> None:
        self._writer.close()
