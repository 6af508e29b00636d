"""Every loss of the tables by its name in every scheme, between networks of every kind: it teaches, or says why not."""

from __future__ import annotations

import pytest
import torch

from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.terms import Transfer
from kdschemes.core.types import DataSpec, Progress
from kdschemes.errors import UserError
from tests.schemes.cases import (
    DATA_SPEC,
    LOSSES,
    ONLINE,
    SELF,
    base,
    build,
    random_batch,
    same_state,
    state_of,
    trained,
)

MIDWAY = Progress(step=50, total_steps=100, steps_per_epoch=10)
COLOR = DataSpec(10, 3, 32, torch.arange(60) % 10)
CLASSIFIER = {"cat_kd", "simkd", "srrl"}
REFUSED = {
    "cnn to vit": {"cat_kd"},
    "vit to cnn": CLASSIFIER | {"ofd"},
    "online": {"simkd"},
    "online, shared trunk": CLASSIFIER | {"ofd"},
    "self": {"cat_kd", "simkd", "fsp", "reviewkd", "irg"},
}


def only(kind: str, name: str) -> list[str]:
    """Return the overrides that make a loss the only one of a scheme."""
    off = [f"losses.{other}=none" for other in ("response", "feature", "relation") if other != kind]
    return [*off, f"losses.{kind}={name}"]


def transfer_terms(scheme: Distillation) -> list[Transfer]:
    return [term for term in scheme.terms if isinstance(term, Transfer)]


def check_it_teaches(scheme: Distillation, data_spec: DataSpec, dtype: torch.dtype) -> None:
    batch = random_batch(data_spec, n=6, dtype=dtype)
    result = scheme.train()(batch, MIDWAY)
    assert result.total.isfinite()
    result.total.backward()
    missing = [name for name, p in scheme.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(p.grad.isfinite().all() for p in trained(scheme) if p.grad is not None)
    terms = transfer_terms(scheme)
    assert terms
    for term in terms:
        idle = [name for name, p in term.named_parameters() if p.grad is not None and not p.grad.any()]
        assert idle == [], f"{term.name} leaves projections without gradient"


@pytest.mark.parametrize(("kind", "name"), LOSSES)
def test_offline_between_different_networks(kind: str, name: str) -> None:
    scheme = build(*base("offline", "kd", "resnet20"), "teacher=resnet8x4", *only(kind, name))
    teacher = scheme.nodes["teacher"]
    assert isinstance(teacher, Frozen)
    before, student = state_of(teacher.network), state_of(scheme.nodes["student"])
    check_it_teaches(scheme, DATA_SPEC, torch.float64)
    taught = [p for p in scheme.nodes["student"].parameters() if p.grad is not None and p.grad.any()]
    assert taught
    optimizer = torch.optim.SGD(trained(scheme), lr=0.01, weight_decay=0.1)
    optimizer.step()
    scheme.after_step()
    assert same_state(state_of(teacher.network), before)
    assert not same_state(state_of(scheme.nodes["student"]), student)
    (term,) = transfer_terms(scheme)
    outputs = scheme.predict(random_batch(), {"student", "teacher"})
    assert not any(x.requires_grad for x in (outputs["teacher"].logits, *outputs["teacher"].features.values()))
    assert term(outputs, random_batch()).isfinite()


@pytest.mark.parametrize(("kind", "name"), LOSSES)
def test_the_loss_alone_reaches_the_student(kind: str, name: str) -> None:
    scheme = build(*base("offline", "kd", "resnet8x4"), *only(kind, name)).train()
    (term,) = transfer_terms(scheme)
    term.set_progress(MIDWAY)
    batch = random_batch()
    term(scheme.predict(batch, set(term.reads)), batch).backward()
    first = next(scheme.nodes["student"].parameters())
    assert first.grad is not None
    assert first.grad.any()


PAIRS = {
    "cnn to vit": base("offline", "kd", "timm/test_vit"),
    "vit to cnn": [*base("offline", "kd", "resnet20"), "teacher=timm/test_vit"],
}


@pytest.mark.parametrize(("kind", "name"), LOSSES)
@pytest.mark.parametrize("pair", ["vit to cnn", pytest.param("cnn to vit", marks=pytest.mark.exhaustive)])
def test_between_a_convolutional_network_and_a_transformer(pair: str, kind: str, name: str) -> None:
    overrides = [*PAIRS[pair], *only(kind, name)]
    if name in REFUSED[pair]:
        with pytest.raises(UserError, match=name) as error:
            build(*overrides, data_spec=COLOR)
        assert "\n" not in str(error.value)
        return
    check_it_teaches(build(*overrides, data_spec=COLOR), COLOR, torch.float64)


SCHEMES = {
    "online": ONLINE,
    "online, shared trunk": [*ONLINE, "scheme.topology=shared_trunk"],
    "self": SELF,
}


@pytest.mark.parametrize(("kind", "name"), LOSSES)
@pytest.mark.parametrize(
    "scheme", ["online", "self", pytest.param("online, shared trunk", marks=pytest.mark.exhaustive)]
)
def test_in_the_other_schemes(scheme: str, kind: str, name: str) -> None:
    overrides = [*SCHEMES[scheme], *only(kind, name)]
    if name in REFUSED[scheme]:
        with pytest.raises(UserError, match=name) as error:
            build(*overrides)
        assert "\n" not in str(error.value)
        return
    check_it_teaches(build(*overrides), DATA_SPEC, torch.float64)


def test_gathering_is_in_the_configuration() -> None:
    batch = random_batch()
    overrides = [*base("offline", "kd", "resnet8x4"), "losses.relation=sp"]
    totals = []
    for gather in ("true", "false"):
        scheme = build(*overrides, f"train.gather_batch={gather}").eval()
        term = next(term for term in transfer_terms(scheme) if term.name.startswith("sp/"))
        assert term.needs_global_batch == (gather == "true")
        totals.append(scheme(batch, MIDWAY).total.item())
    assert totals[0] == totals[1], "one process's own samples are all there are"
    with pytest.raises(UserError, match="crd/teacher->student has a memory bank"):
        build(*base("offline", "kd", "resnet8x4"), "losses.relation=crd", "train.gather_batch=false")


def test_losses_of_one_kind_and_of_all_kinds_together() -> None:
    more = ", ".join(name for _, name in LOSSES if name not in ("kd", "hint", "rkd", "simkd"))
    scheme = build(
        *base("offline", "kd", "resnet8x4"), "losses.feature=hint", "losses.relation=rkd", f"losses.extra=[{more}]"
    )
    assert {term.name for term in scheme.terms} == {"ce/student"} | {
        f"{name}/teacher->student" for _, name in LOSSES if name != "simkd"
    }
    check_it_teaches(scheme, DATA_SPEC, torch.float64)
