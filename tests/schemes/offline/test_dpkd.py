"""Distillation by peers that are trained already: the most confident one teaches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from kdschemes.config.prerequisites import prerequisite_runs
from kdschemes.errors import UserError
from kdschemes.schemes.offline.dpkd import most_confident
from tests.losses import oracles
from tests.losses.oracles import Array
from tests.processes import run
from tests.schemes.cases import base, build, configure, network_of, random_batch, same_state, state_of
from tests.schemes.formulas import Formula, Seen
from tests.schemes.offline.cases import LABELS, TWO_TEACHERS, check_killed, hard_and_soft, logits, steps

DPKD = base("offline", "dpkd")
TWO_TEACHERS_HINT = [*DPKD, TWO_TEACHERS, "scheme.confidence=max_probability", "losses.feature=hint"]


def expected_most_confident(members: Sequence[Array], labels: Sequence[int], by: str) -> Array:
    """For each sample the logits of the first member with the largest probability of the label, or of any class."""
    rows = []
    for n, label in enumerate(labels):
        sure = [oracles.softmax(z[n])[label] if by == "supervised" else oracles.softmax(z[n]).max() for z in members]
        rows.append(members[sure.index(max(sure))][n])
    return np.stack(rows)


def expected_total(seen: Seen) -> float:
    """CE, and KD from the most confident of the start and the teachers."""
    scheme = seen.config.scheme
    several = isinstance(seen.config.teacher.name, list)
    members = [seen.logits(name) for name in ("start", *(("teacher0", "teacher1") if several else ("teacher",)))]
    target = expected_most_confident(members, seen.labels, scheme.confidence)
    weights = {"hard": 1.0 - scheme.alpha, "alpha": scheme.alpha}
    temperature = seen.config.losses.response.temperature
    return hard_and_soft(seen.logits("student"), target, seen.labels, **weights, temperature=temperature)


FORMULA: Formula = expected_total
EXACT = {
    "dpkd-other": [
        *[*DPKD, "scheme.confidence=max_probability", "scheme.alpha=0.3"],
        *["losses.response.temperature=3", TWO_TEACHERS],
    ],
}
VARIANTS = {"offline-dpkd-two-teachers-hint": TWO_TEACHERS_HINT}


def test_the_most_confident_member_is_chosen_and_among_equals_the_first() -> None:
    members = logits(5)
    for by in ("supervised", "max_probability"):
        chosen = most_confident(members, LABELS, by)
        expected = expected_most_confident(list(members.numpy()), LABELS.tolist(), by)
        assert torch.equal(members[chosen, torch.arange(5)], torch.from_numpy(expected))
        assert not most_confident(members[:1].repeat(3, 1, 1), LABELS, by).any()
        assert torch.equal(most_confident(members[:, :1], LABELS[:1], by), chosen[:1])
    sure_and_wrong = torch.tensor([[[2.0, 0.0]], [[0.0, 9.0]]])
    label = torch.tensor([0])
    assert most_confident(sure_and_wrong, label, "supervised").tolist() == [0]
    assert most_confident(sure_and_wrong, label, "max_probability").tolist() == [1]


@pytest.mark.parametrize("scale", [1e4, 1.0])
@pytest.mark.parametrize("by", ["supervised", "max_probability"])
def test_a_member_is_chosen_from_half_precision_and_huge_logits(
    by: Literal["supervised", "max_probability"], scale: float
) -> None:
    assert most_confident((scale * logits(1)).bfloat16(), LABELS, by).shape == (5,)


def test_confidence_is_of_probabilities_and_not_of_logits() -> None:
    members = torch.tensor([[[3.0, 0.0, 0.0]], [[90.0, 89.5, 89.0]]])
    assert most_confident(members, torch.tensor([0]), "max_probability").tolist() == [0]
    assert most_confident(members, torch.tensor([0]), "supervised").tolist() == [0]


def test_the_target_is_made_of_the_start_and_the_teacher() -> None:
    scheme, batch = build(*DPKD).train(), random_batch(n=40)
    out = {name: output.logits for name, output in scheme.predict(batch, ["target"]).items()}
    probability = {name: z.softmax(1).gather(1, batch.labels[:, None]) for name, z in out.items()}
    teacher = probability["teacher"] > probability["start"]
    assert teacher.any()
    assert not teacher.all()
    assert torch.equal(out["target"], torch.where(teacher, out["teacher"], out["start"]))


def test_the_start_is_the_initial_student_also_after_a_resume(weights: dict[str, str]) -> None:
    overrides = [*base("offline", "dpkd", "convnet"), f"model.checkpoint={weights['student']}"]
    scheme = build(*overrides).train()
    start = state_of(network_of(scheme, "start"))
    assert same_state(network_of(scheme, "student"), start)
    steps(scheme, range(3))
    saved = scheme.state_dict()
    assert not any("start" in name for name in saved)
    again = build(*overrides).train()
    again.load_state_dict(saved)
    assert same_state(network_of(again, "start"), start)
    assert same_state(network_of(again, "student"), network_of(scheme, "student"))
    assert not same_state(network_of(again, "student"), start)


def test_an_untrained_student_is_refused(weights: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dpkd .*model\.checkpoint="):
        prerequisite_runs(configure(*DPKD))
    ended = run([*DPKD, "train.num_threads=1"], tmp_path / "run")
    assert (ended.code, ended.err.count("\n"), list((tmp_path / "run").iterdir())) == (2, 1, [])
    peer = configure(*base("offline", "dpkd", "convnet"), f"model.checkpoint={weights['student']}")
    assert [run.model.name for run in prerequisite_runs(peer)] == ["resnet20"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_run_that_is_killed_resumes_exactly(weights: dict[str, str], tmp_path: Path) -> None:
    check_killed("dpkd", weights, tmp_path)
