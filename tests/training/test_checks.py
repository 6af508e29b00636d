"""What a run says of its own losses: which are large, and what may keep them finite."""

from __future__ import annotations

from kdschemes.training.checks import large_share, remedies
from tests.config.cases import load


def test_losses_that_leave_the_labels_little_are_named() -> None:
    weights = {
        "ce/student": 0.1,
        "kd/teacher->student": 0.9,
        "at/teacher->student": 1000.0,
        "sp/teacher->student": 10.0,
    }
    losses = dict(zip(weights, (2.0, 1.0, 0.1, 0.5), strict=True)) | {"total": 106.1}
    note = large_share(losses, weights, 5.0)
    assert note is not None
    assert "99 % of the weighted loss" in note
    assert "most of it at: gradients are clipped at 5;" in note
    assert "gradients are not clipped" in str(large_share(losses, weights, None))
    assert large_share(losses | {"at/teacher->student": 0.0001, "total": 6.2}, weights, 5.0) is None
    assert large_share({"ce/student": 0.0, "total": 0.0}, {"ce/student": 1.0}, 5.0) is None


def test_advice_is_not_what_the_run_does_already() -> None:
    assert remedies(load("optim.lr=0.1", "optim.clip_grad_norm=1")) == "optim.lr=0.01"
    advice = remedies(load("optim.lr=0.1", "optim.clip_grad_norm=null", "precision=bf16"))
    assert advice == "optim.lr=0.01 or optim.clip_grad_norm=1 or precision=fp32"
