"""timm's optimizers by name, and what an optimizer does not accept, without torch."""

from __future__ import annotations

import pytest
import timm.optim

from kdschemes.config.optimizers import TIMM_OPTIMIZERS, WITH_MOMENTUM
from kdschemes.storage.naming import config_hash
from tests.config.cases import error, load


@pytest.mark.parametrize("name", TIMM_OPTIMIZERS)
def test_the_table_says_which_of_timms_have_a_momentum(name: str) -> None:
    info = timm.optim.get_optimizer_info(name)
    assert info.has_momentum == (name in WITH_MOMENTUM)
    assert not info.second_order


def test_what_is_left_out_needs_more_than_first_derivatives_and_tensors_on_any_device() -> None:
    left_out = set(timm.optim.list_optimizers()) - set(TIMM_OPTIMIZERS)
    assert all(name.startswith(("fused", "bnb", "kron")) or name == "adahessian" for name in left_out), left_out


def test_defaults_are_those_of_adamw_but_for_the_likes_of_sgd() -> None:
    lamb, sgd = load("optim=timm/lamb").optim, load("optim=timm/sgdw").optim
    assert (lamb.lr, lamb.weight_decay, lamb.decay_vectors, lamb.clip_grad_norm) == (0.001, 0.05, False, 1.0)
    assert (sgd.lr, sgd.weight_decay, sgd.decay_vectors, sgd.clip_grad_norm) == (0.1, 5e-4, True, 5.0)
    assert load("optim=timm/lion", "scheme=offline", "teacher.optim=timm/adopt").teacher.optim.lr == 0.001


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["optim=lamb"], "optim.name=lamb is not allowed; did you mean 'timm/lamb'?"),
        (["optim=timm/lam"], "did you mean 'timm/lamb'?"),
        (["optim=Adam"], "did you mean 'timm/adam'?"),
        (["optim=adamww"], "did you mean 'adamw'?"),
        (["optim=lambb"], "did you mean 'timm/lamb'?"),
        (["optim=[sgd]"], "is not allowed"),
        (["optim=timm/kron"], "must be sgd, adamw or an optimizer of timm"),
        (["optim=adamw", "optim.kwargs.eps=1e-6"], "write optim.name=timm/adamw"),
        (["optim=timm/lamb", "optim.kwargs.lr=0.1"], "write optim.lr"),
        (["optim=timm/lamb", "optim.kwargs.max_grad_norm=1"], "write optim.clip_grad_norm"),
        (["optim=timm/lamb", "optim.momentum=0.8"], "optim.kwargs.betas="),
        (["optim=timm/sgd", "optim.nesterov=false"], "optim.kwargs.nesterov=false"),
        (["optim=timm/sgd", "optim.momentum_start=0.5"], "set optim.name=sgd"),
        (["optim=timm/adopt", "train.fsdp=true"], "shards the optimizer's state"),
        (["scheme=offline", "teacher.optim=timm/lars", "teacher.optim.kwargs.momentum=0.8"], "teacher.optim.momentum"),
        (["optim.layer_decay=0"], "above 0"),
        (["optim.layer_decay=1.5"], "at most 1"),
    ],
)
def test_mistakes_are_told_with_a_cure(words: list[str], hint: str) -> None:
    assert hint in error(*words)


@pytest.mark.parametrize(
    ("group", "words"), [("optim", []), ("teacher.optim", ["scheme=offline"])], ids=["optim", "teacher.optim"]
)
def test_they_count_in_a_name_only_if_set(group: str, words: list[str]) -> None:
    base = config_hash(load(*words))
    assert config_hash(load(*words, f"{group}.layer_decay=null", f"{group}.kwargs=null")) == base
    others = {config_hash(load(*words, f"{group}.layer_decay={decay}")) for decay in (0.7, 0.8)}
    plain = config_hash(load(*words, f"{group}.name=timm/lamb"))
    others |= {plain, config_hash(load(*words, f"{group}.name=timm/lamb", f"{group}.kwargs.eps=1e-5"))}
    assert len(others | {base}) == 5
