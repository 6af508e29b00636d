"""DLB: the predictions of the step before teach the same samples, seen again in this step."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from kdschemes.core.cross_entropy import cross_entropy
from kdschemes.core.schedules import constant
from kdschemes.core.terms import Transfer
from kdschemes.core.types import Batch, Output
from kdschemes.errors import UserError
from kdschemes.losses.response.kd import kd
from kdschemes.schemes.self_distillation.dlb import LastStep, SuperviseBoth
from tests.losses import oracles
from tests.losses.oracles import Array
from tests.schemes.cases import START, base, batch_for, build
from tests.schemes.formulas import Case, Formula, Inputs, Reference, Seen, array
from tests.schemes.self_distillation.cases import forward_passes, outputs_of, training_steps

DLB = base("self", "dlb")


def dlb_total(
    now: Array, again: Array, then: Array, labels: list[int], labels_again: list[int], *, temperature: float
) -> float:
    """CE over the samples of both batches, and KD from the predictions of then to those seen again."""
    rows = [(z, y) for z, y in zip([*now, *again], [*labels, *labels_again], strict=True)]
    hard = -math.fsum(oracles.log_softmax(z)[y] for z, y in rows) / len(rows)
    return hard + (oracles.kd(again, then, temperature=temperature) if len(again) else 0.0)


def expected_total(seen: Seen) -> float:
    before = [int(label) for label in seen.batch.aux_batches["previous"].labels]
    names = ("student", "student/previous", "past")
    return dlb_total(
        *(seen.logits(name) for name in names),
        seen.labels,
        before,
        temperature=seen.config.losses.response.temperature,
    )


def recorded(x: Inputs, p: Case) -> Tensor:
    """z0 are the logits of the batch seen again, z1 those of the new one."""
    before, now = (Batch(torch.zeros(len(y), 1, 1, 1), y, y) for y in (x["y0"], x["y"]))
    batch = Batch(now.images, now.labels, now.index, aux_batches={"previous": before})
    hard = SuperviseBoth("now", "again", "previous", constant(1.0))
    outputs = {"now": Output(x["z1"]), "again": Output(x["z0"])}
    return hard(outputs, batch) + p["alpha"] * kd(x["z0"], x["t"], temperature=p["T"])


FORMULA: Formula = expected_total
EXACT = {"dlb-other": [*DLB, "losses.response.temperature=1.5"]}
VARIANTS = {"self-dlb-dist": [*DLB, "losses.response=dist"]}
REFERENCES: dict[str, Reference] = {"DLB": recorded}


def test_labels_of_both_batches_are_smoothed_and_their_classes_weighted() -> None:
    before, now = (Batch(torch.zeros(n, 1, 1, 1), torch.arange(n) % 3, torch.arange(n)) for n in (2, 4))
    batch = Batch(now.images, now.labels, now.index, aux_batches={"previous": before})
    term = SuperviseBoth("now", "again", "previous", constant(1.0))
    term.label_smoothing, term.class_weights = 0.1, torch.tensor([1.0, 2.0, 3.0])
    z, again = torch.randn(4, 3), torch.randn(2, 3)
    expected = cross_entropy(
        torch.cat([z, again]),
        torch.tensor([0, 1, 2, 0, 0, 1]),
        label_smoothing=0.1,
        class_weights=torch.tensor([1.0, 2.0, 3.0]),
    )
    assert term({"now": Output(z), "again": Output(again)}, batch) == expected


def test_a_step_takes_two_forward_passes() -> None:
    scheme = build(*DLB).train()
    scheme(batch_for(scheme), START)
    assert forward_passes(scheme) == 2


@pytest.mark.parametrize("grad_accum_steps", [1, 3])
def test_the_step_before_teaches_its_samples_when_they_are_seen_again(grad_accum_steps: int) -> None:
    """Batches of 50, 50 and 26 samples, over two borders of epochs, where some samples come twice in a row."""
    steps: list[dict[int, Tensor]] = [{}]
    overlaps = 0
    for scheme, batch, progress in training_steps(*base("self", "dlb"), epochs=3, grad_accum_steps=grad_accum_steps):
        if progress.step == len(steps):
            steps.append({})
        state = {name: tensor.clone() for name, tensor in scheme.state_dict().items()}
        out = outputs_of(scheme, batch)
        node = scheme.nodes["past"]
        assert isinstance(node, LastStep)
        node._new.pop()
        scheme.load_state_dict(state)
        previous = batch.aux_batches["previous"].index.tolist()
        assert len(out["student/previous"].logits) == len(out["past"].logits) == len(previous)
        assert out["past"].known is not None
        assert out["past"].known.all()
        if progress.step:
            expected = [steps[progress.step - 1][position] for position in previous]
            assert torch.equal(out["past"].logits, torch.stack(expected))
        steps[-1] |= dict(zip(batch.index.tolist(), out["student"].logits.detach(), strict=True))
        overlaps += len(set(previous) & set(batch.index.tolist()))
    assert len(steps) == 9
    assert overlaps


def test_the_first_step_is_cross_entropy_and_every_parameter_has_a_gradient() -> None:
    overrides = [*base("self", "dlb"), "losses.response=ctkd"]
    scheme, batch, progress = next(training_steps(*overrides, epochs=1))
    result = scheme(batch, progress)
    assert result.losses["ctkd/past->student/previous"] == 0
    expected = cross_entropy(result.outputs["student"].logits, batch.labels)
    assert result.total.item() == pytest.approx(expected.item(), rel=1e-14)
    result.total.backward()
    assert forward_passes(scheme) == 1
    assert all(p.grad is not None for p in scheme.parameters() if p.requires_grad)
    assert all(bool(value.isfinite().all()) for value in scheme.state_dict().values())


def test_an_edge_to_an_auxiliary_batch_reads_its_labels_and_samples() -> None:
    scheme = build(*base("self", "dlb"), "losses.response=dkd")
    batch = batch_for(scheme)
    out = outputs_of(scheme, batch)
    (edge,) = (term for term in scheme.terms if isinstance(term, Transfer))
    previous = batch.aux_batches["previous"]
    assert edge.batches(batch) == (previous,)
    assert not torch.equal(previous.labels, batch.labels)
    direct = edge.loss(out["student/previous"], out["past"], previous, lambda x: x)
    assert edge(out, batch).item() == direct.item()


def test_a_source_does_not_teach_samples_that_it_has_not_seen() -> None:
    scheme = build(*base("self", "dlb"))
    batch = batch_for(scheme)
    out = outputs_of(scheme, batch)
    (edge,) = (term for term in scheme.terms if isinstance(term, Transfer))
    known = torch.tensor([True, False, True, True, False, True])
    out["past"] = dataclasses.replace(out["past"], known=known)
    student, past = (array(out[name].logits)[known.numpy()] for name in ("student/previous", "past"))
    assert edge(out, batch).item() == pytest.approx(oracles.kd(student, past, temperature=3.0) * 4 / 6, rel=1e-10)
    (gradient,) = torch.autograd.grad(edge(out, batch), out["student/previous"].logits)
    assert gradient.abs().sum(1).gt(1e-12).tolist() == known.tolist()


def test_losses_of_features_are_refused() -> None:
    with pytest.raises(UserError, match="no features"):
        build(*DLB, "losses.feature=at")
