"""Self-distillation of one plain network: its second look, its past, its average, its own labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.config.data import Digits
from kdschemes.core.averages import Ema, PredictionBank
from kdschemes.core.cross_entropy import cross_entropy
from kdschemes.core.distillation import Distillation
from kdschemes.core.terms import Transfer
from kdschemes.core.types import Batch, DataSpec, Output, Outputs, Progress
from kdschemes.data import open_data
from kdschemes.errors import UserError
from kdschemes.schemes import build_scheme
from kdschemes.schemes.self_distillation.ddgsd import mean_gap
from kdschemes.schemes.self_distillation.dlb import LastStep
from kdschemes.schemes.self_distillation.pskd import growing
from kdschemes.schemes.self_distillation.zipf import dense_votes, zipf_labels, zipf_loss
from tests.losses import oracles
from tests.schemes.cases import (
    DATA_SPEC,
    START,
    VARIANTS,
    base,
    batch_for,
    build,
    configure,
    in_double,
    network_of,
    random_batch,
)
from tests.schemes.formulas import array
from tests.schemes.self_distillation import oracles as oracles_self

CPU = torch.device("cpu")
METHODS = ("ddgsd", "cskd", "pskd", "dlb", "mean_teacher", "zipf", "uskd", "tfkd_reg")
SMALL = Digits(val_fraction=0.9)  # 126 training images


def outputs_of(scheme: Distillation, batch: Batch) -> Outputs:
    return scheme.predict(batch, {name for node in scheme.nodes.values() for name in node.provides})


def passes(scheme: Distillation) -> int:
    return int(network_of(scheme, "student").bn1.num_batches_tracked)


def run(
    *overrides: str, epochs: int, batch_size: int = 50, grad_accum_steps: int = 1
) -> Iterator[tuple[Distillation, Batch, Progress]]:
    """Train on a few digits and yield what the caller does a forward pass with, before each step."""
    data = open_data(SMALL, seed=0, device=CPU)
    data_spec = dataclasses.replace(DATA_SPEC, train_labels=data.train_labels)
    scheme = build_scheme(configure(*overrides), data_spec).double().train()
    optimizer = torch.optim.SGD([p for p in scheme.parameters() if p.requires_grad], lr=0.05)
    count, step = data.steps_per_epoch(batch_size=batch_size, drop_last=False), 0
    for epoch in range(epochs):
        steps = data.train_steps(
            epoch,
            batch_size=batch_size,
            grad_accum_steps=grad_accum_steps,
            rank=0,
            world=1,
            drop_last=False,
            aux_batches=scheme.aux_batches,
        )
        for micro_batches in steps:
            progress = Progress(step, count * epochs, count)
            for batch in map(in_double, micro_batches):
                yield scheme, batch, progress
                scheme(batch, progress).total.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheme.after_step()
            step += 1


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_runs_the_plain_network_alone(method: str) -> None:
    scheme = build(*base("self", method)).eval()
    reported = scheme.heads[0]
    assert reported == ("average" if method == "mean_teacher" else "student")
    produced = scheme.predict(random_batch(), [reported])
    assert set(produced) == {reported}
    assert torch.equal(produced[reported].logits, network_of(scheme, reported).eval()(random_batch().images))


@pytest.mark.parametrize(
    ("method", "forwards"), [("ddgsd", 1), ("cskd", 2), ("dlb", 2), ("pskd", 1), ("mean_teacher", 1)]
)
def test_a_step_sees_what_it_should_in_training_mode(method: str, forwards: int) -> None:
    scheme = build(*base("self", method)).train()
    scheme(batch_for(scheme), START)
    assert passes(scheme) == forwards


def test_two_views_share_one_pass_and_its_statistics() -> None:
    scheme = build(*base("self", "ddgsd")).train()
    batch = batch_for(scheme)
    out = outputs_of(scheme, batch)
    images = torch.cat([batch.images, batch.aux_batches["view1"].images])
    logits, features = network_of(build(*base("self", "ddgsd")).train(), "student").forward_stages(images)
    assert torch.equal(torch.cat([out["student"].logits, out["student/view1"].logits]), logits)
    assert torch.equal(out["student/view1"].features["layer2"], features["layer2"][6:])


@pytest.mark.parametrize("form", ["channels", "scalar"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_distance_of_mean_features(form: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 3, generator=generator).to(dtype).requires_grad_() for _ in range(2))
    value = mean_gap(a, b, form=form)  # type: ignore[arg-type]
    pair = array(a), array(b)
    scalar = oracles_self.ddgsd_scalar_gap(pair)
    channels = sum(float(x) ** 2 for x in pair[0].mean(0) - pair[1].mean(0))
    assert value.item() == pytest.approx(scalar if form == "scalar" else channels, rel=1e-5)
    value.backward()
    assert a.grad is not None
    assert b.grad is not None
    assert torch.equal(a.grad, -b.grad)
    assert bool(a.grad.any())


def test_both_views_learn_from_the_distance_and_each_from_the_other() -> None:
    scheme = build(*base("self", "ddgsd")).train()
    batch = batch_for(scheme)
    out = outputs_of(scheme, batch)
    terms = {term.name: term for term in scheme.terms}
    for name, reached in {
        "kd/student->student/view1": (False, True),
        "kd/student/view1->student": (True, False),
        "gap/student-student/view1": (True, True),
    }.items():
        inputs = [list(out[view].features.values())[-1] for view in ("student", "student/view1")]
        inputs = inputs if name.startswith("gap") else [out[view].logits for view in ("student", "student/view1")]
        gradients = torch.autograd.grad(terms[name](out, batch), inputs, retain_graph=True, allow_unused=True)
        assert tuple(g is not None and bool(g.any()) for g in gradients) == reached


def test_no_gradient_comes_from_the_same_class_sample() -> None:
    scheme = build(*base("self", "cskd")).train()
    out = outputs_of(scheme, batch_for(scheme))
    assert out["student"].logits.requires_grad
    assert not out["student/classmate"].logits.requires_grad


def test_the_past_is_what_was_answered_an_epoch_before() -> None:
    answered: dict[int, Tensor] = {}
    overrides = [*base("self", "pskd"), "scheme.alpha=0.6"]
    for scheme, batch, progress in run(*overrides, epochs=3):
        epoch = progress.step // progress.steps_per_epoch
        memory = scheme.nodes["past"]
        assert isinstance(memory, PredictionBank)
        past = memory.logits[batch.index]
        weights = scheme.eval()(batch, progress).weights
        scheme.train()
        assert weights == pytest.approx(
            {"ce/student": 1 - 0.2 * (epoch + 1), "soft_ce/past->student": 0.2 * (epoch + 1)}
        )
        if epoch == 0:
            one_hot = torch.nn.functional.one_hot(batch.labels, 10).double()
            torch.testing.assert_close(past.softmax(1), one_hot, rtol=0, atol=1e-40)
        else:
            assert torch.equal(past, torch.stack([answered[int(i)] for i in batch.index]))
        state = {name: tensor.clone() for name, tensor in scheme.state_dict().items()}
        answered |= dict(zip(batch.index.tolist(), outputs_of(scheme, batch)["student"].logits.detach(), strict=True))
        memory._new.clear()
        scheme.load_state_dict(state)


def test_the_first_epoch_of_the_past_learns_from_labels_alone() -> None:
    scheme = build(*base("self", "pskd"))
    batch = random_batch()
    value = scheme(batch, START)
    expected = cross_entropy(value.outputs["student"].logits, batch.labels)
    assert value.total.item() == pytest.approx(expected.item(), rel=1e-14)


def test_a_memory_learns_after_the_step_only_and_not_in_evaluation() -> None:
    node = PredictionBank("past", "student", DATA_SPEC)
    batch = random_batch(n=3, dtype=torch.float32)
    output = Output(torch.randn(3, 10, generator=torch.Generator().manual_seed(0)))
    assert node.size == 60 * (10 * 4 + 1)
    node.eval()(batch, {"student": output})
    node.after_step()
    assert not node.known.any()
    recalled = node.train()(batch, {"student": output})["past"]
    assert recalled.known is not None
    assert not recalled.known.any()
    node.after_step()
    assert node.known.tolist() == [True] * 3 + [False] * 57
    recalled = node(dataclasses.replace(batch, index=torch.tensor([2, 5, 0])), {"student": output})["past"]
    assert torch.equal(recalled.logits[[0, 2]], output.logits[[2, 0]])
    assert recalled.known is not None
    assert recalled.known.tolist() == [True, False, True]


def test_the_weight_of_the_past_grows_by_epochs() -> None:
    weight = growing(0.8)
    found = [weight(Progress(step, 60, 6)) for step in (0, 5, 6, 29, 30, 59)]
    assert found == pytest.approx([0.08, 0.08, 0.16, 0.4, 0.48, 0.8])


@pytest.mark.parametrize("grad_accum_steps", [1, 3])
def test_the_step_before_teaches_its_samples_seen_again(grad_accum_steps: int) -> None:
    """Batches of 50, 50 and 26 samples, over two borders of epochs, where some samples come twice in a row."""
    steps: list[dict[int, Tensor]] = [{}]
    overlaps = 0
    for scheme, batch, progress in run(*base("self", "dlb"), epochs=3, grad_accum_steps=grad_accum_steps):
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


def test_the_first_step_without_a_batch_before_is_cross_entropy_and_waits_for_nobody() -> None:
    overrides = [*base("self", "dlb"), "losses.response=ctkd"]
    scheme, batch, progress = next(run(*overrides, epochs=1))
    result = scheme(batch, progress)
    assert result.losses["ctkd/past->student/previous"] == 0
    expected = cross_entropy(result.outputs["student"].logits, batch.labels)
    assert result.total.item() == pytest.approx(expected.item(), rel=1e-14)
    result.total.backward()
    assert passes(scheme) == 1
    assert all(p.grad is not None for p in scheme.parameters() if p.requires_grad)
    assert all(bool(value.isfinite().all()) for value in scheme.state_dict().values())


def test_an_edge_to_a_companion_reads_its_labels_and_samples() -> None:
    scheme = build(*base("self", "dlb"), "losses.response=dkd")
    batch = batch_for(scheme)
    out = outputs_of(scheme, batch)
    (edge,) = (term for term in scheme.terms if isinstance(term, Transfer))
    previous = batch.aux_batches["previous"]
    assert edge.batches(batch) == (previous,)
    assert not torch.equal(previous.labels, batch.labels)
    direct = edge.loss(out["student/previous"], out["past"], previous, lambda x: x)
    assert edge(out, batch).item() == direct.item()


def test_a_source_that_knows_nothing_of_a_sample_does_not_teach_it() -> None:
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


@pytest.mark.parametrize("view", ["independent", "shared"])
def test_the_average_answers_its_view_without_gradient_and_follows(view: str) -> None:
    scheme = build(*base("self", "mean_teacher"), f"scheme.view={view}").train()
    node = scheme.nodes["average"]
    assert isinstance(node, Ema)
    assert scheme.heads == ("average", "student")
    batch = batch_for(scheme)
    out = outputs_of(scheme, batch)
    seen = batch.aux_batches["view1"] if view == "independent" else batch
    assert scheme.aux_batches == (("view1",) if view == "independent" else ())
    average = network_of(scheme, "average")
    assert torch.equal(out["average"].logits, average(seen.images))
    assert not out["average"].logits.requires_grad
    before, weight = average.fc.weight.clone(), network_of(scheme, "student").fc.weight
    with torch.no_grad():
        weight += 1.0
    scheme.after_step()
    torch.testing.assert_close(average.fc.weight, 0.5 * before + 0.5 * weight)


def test_votes_and_ranks_by_hand() -> None:
    features = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]])
    votes = dense_votes(features, torch.eye(3), None, upsample=1)
    assert votes.tolist() == [[1, 2, 1]]
    enlarged = dense_votes(features, torch.eye(3), torch.zeros(3), upsample=3)
    assert enlarged.sum() == 36
    scores = torch.tensor([[5.0, 5.0, 1.0, 0.0, 0.0]])
    soft = zipf_labels(scores, torch.tensor([1]), power=1.0)
    torch.testing.assert_close(soft, torch.tensor([[1.0, 0.0, 1 / 3, 1 / 4, 1 / 4]]) / (1 + 1 / 3 + 1 / 2))
    assert torch.equal(zipf_labels(scores, torch.tensor([3]), power=0.0), torch.tensor([[0.25, 0.25, 0.25, 0.0, 0.25]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_zipf_is_the_divergence_among_the_other_classes(dtype: torch.dtype, scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    z = (scale * torch.randn(6, 8, generator=generator)).to(dtype).requires_grad_()
    scores = torch.randint(0, 4, (6, 8), generator=generator).to(dtype)
    labels = torch.arange(6)
    value = zipf_loss(z, zipf_labels(scores, labels, power=1.0), labels)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    expected = oracles_self.zipf(array(z), array(scores), labels.tolist(), power=1.0)
    assert value.item() == pytest.approx(expected, rel=1e-10 if dtype == torch.float64 else 1e-4)
    value.backward()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())
    assert not z.grad[range(6), labels].any()
    if scale == 1.0 and dtype == torch.float64:
        soft = zipf_labels(scores, labels, power=1.0)
        other = z.detach().scatter(1, labels[:, None], -torch.inf).softmax(1)
        torch.testing.assert_close(z.grad, (other - soft) / 6, rtol=1e-10, atol=1e-14)


def test_zipf_of_two_classes_teaches_nothing_and_of_one_is_refused() -> None:
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([0, 1, 1, 0])
    value = zipf_loss(z, zipf_labels(z.detach(), labels, power=1.0), labels)
    assert value == 0
    with pytest.raises(UserError, match="method=zipf ranks the classes"):
        build(*base("self", "zipf"), data_spec=DataSpec(1, 1, 8))


def test_zipf_gives_the_classifier_no_gradient_through_the_votes() -> None:
    scheme = build(*base("self", "zipf"))
    out = outputs_of(scheme, random_batch())
    term = scheme.terms[1]
    value = term(out, random_batch())
    (logits,) = torch.autograd.grad(value, [out["student"].logits], retain_graph=True)
    fc = network_of(scheme, "student").fc
    (bias,) = torch.autograd.grad(value, [fc.bias])
    torch.testing.assert_close(bias, logits.sum(0))
    assert term.classifier is scheme.nodes["student"].network.fc
    assert not any(name.startswith("terms") for name in scheme.state_dict())


@pytest.mark.parametrize(("method", "hard", "weight"), [("uskd", 1.0, 1.0), ("tfkd_reg", 0.9, 0.1)])
def test_own_labels_stand_beside_the_published_share_of_cross_entropy(method: str, hard: float, weight: float) -> None:
    scheme = build(*base("self", method))
    weights = scheme(random_batch(), START).weights
    assert weights == pytest.approx({"ce/student": hard, f"{method}/student->student": weight})
    assert configure(*base("self", method)).scheme.ce_weight == hard
    assert configure(*base("self", method), "scheme.ce_weight=0.3").scheme.ce_weight == 0.3
    again = build(*base("self", method), "scheme.ce_weight=null")
    assert again(random_batch(), START).weights["ce/student"] == hard


@pytest.mark.parametrize("loss", ["losses.response=kd", "losses.feature=at", "losses.relation=rkd"])
def test_a_loss_that_compares_with_a_teacher_is_refused_where_there_is_none(loss: str) -> None:
    with pytest.raises(UserError, match=f"{loss} would compare the student with itself") as caught:
        build(*base("self", "uskd"), loss)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["pskd", "dlb"])
def test_a_past_without_features_refuses_losses_of_features(method: str) -> None:
    with pytest.raises(UserError, match="the teacher has no features"):
        build(*base("self", method), "losses.feature=at")


def test_without_a_response_the_past_leaves_cross_entropy_alone() -> None:
    weights = build(*base("self", "pskd"), "losses.response=none")(random_batch(), START).weights
    assert weights == {"ce/student": 1.0}


@pytest.mark.parametrize("method", ["ddgsd", "dlb"])
def test_mixed_labels_count_in_every_view(method: str) -> None:
    scheme = build(*base("self", method))

    def mixed(batch: Batch) -> Batch:
        return dataclasses.replace(
            batch,
            partner_labels=(batch.labels + 1) % 10,
            mix=torch.full((len(batch),), 0.25, dtype=torch.float64),
            aux_batches={name: mixed(aux_batch) for name, aux_batch in batch.aux_batches.items()},
        )

    batch = mixed(batch_for(scheme))
    out = outputs_of(scheme, batch)
    for term in scheme.terms:
        if term.name.startswith("ce/"):
            labels = torch.cat([b.labels for b in term.batches(batch)])
            target = 0.25 * np.eye(10)[labels] + 0.75 * np.eye(10)[(labels + 1) % 10]
            rows = torch.cat([out[name].logits for name in term.reads])
            assert term(out, batch).item() == pytest.approx(oracles.cross_entropy(array(rows), target), rel=1e-10)


@pytest.mark.parametrize("name", ["self-ddgsd", "self-cskd", "self-pskd", "self-dlb", "self-mean_teacher", "self-zipf"])
def test_one_sample_is_enough(name: str) -> None:
    scheme = build(*VARIANTS[name])
    result = scheme(batch_for(scheme, n=1), START)
    assert result.total.isfinite()
    result.total.backward()
