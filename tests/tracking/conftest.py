from __future__ import annotations

import os

import pytest
import wandb


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A user who is not logged in to W&B, with a home of their own; any use of the network but loopback fails."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")  # set here, so that it is undone
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    yield monkeypatch
    wandb.teardown()
