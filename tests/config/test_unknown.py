"""A name given to the wrong key is shown its place, and what the message says to write works."""

from __future__ import annotations

import re

import pytest

from kdschemes.config.data import DATA
from kdschemes.config.help import help_text
from kdschemes.config.losses import KINDS
from kdschemes.config.models import MODELS
from kdschemes.config.schemes import SCHEMES
from kdschemes.errors import UserError
from tests.config.cases import error, load

LOSSES = {name: f"losses.{kind}={name}" for kind, table in KINDS.items() for name in table if name != "none"}
METHODS = {name: f"scheme={scheme} method={name}" for scheme, table in SCHEMES.items() for name in table}
NAMES = {name: f"data={name}" for name in DATA if name != "image_folder"} | {name: f"model={name}" for name in MODELS}
NAMES |= {name: f"scheme={name}" for name in SCHEMES}


def refused(key: str, name: str, cure: str) -> None:
    message = error(f"{key}={name}")
    assert message.startswith(f"{key}={name}: {name} is a ")
    assert cure in re.split(r", write |; or ", message)
    load(*cure.split())


@pytest.mark.parametrize(("name", "cure"), LOSSES.items())
def test_a_loss_given_as_something_else(name: str, cure: str) -> None:
    keys = ["scheme", "data", "model", *(f"losses.{kind}" for kind in KINDS if name not in KINDS[kind])]
    for key in keys if name in METHODS else ["method", *keys]:
        refused(key, name, cure)
    assert error(f"losses={name}").endswith(f", write {cure}")


@pytest.mark.parametrize(("name", "cure"), METHODS.items())
def test_a_method_given_as_something_else(name: str, cure: str) -> None:
    for key in ("scheme", "data", "model", *(f"losses.{kind}" for kind in KINDS if name not in KINDS[kind])):
        refused(key, name, cure)
    if not cure.startswith("scheme=online "):
        refused("method", name, cure)


@pytest.mark.parametrize(("name", "cure"), NAMES.items())
def test_another_name_given_as_something_else(name: str, cure: str) -> None:
    for key in {"scheme", "method", "data", "model", "losses.feature"} - {cure.partition("=")[0]}:
        refused(key, name, cure)


def test_letters_case_lists_and_help() -> None:
    assert error("method=DKD") == "method=DKD: dkd is a response loss, write losses.response=dkd"
    assert error("losses.extra=[byot]").endswith("write scheme=self method=byot")
    assert error("scheme.peers=[resnet20,dkd]").endswith("write losses.response=dkd")
    assert error("method=kd") == (
        "method=kd: kd is a method of scheme=offline, write scheme=offline method=kd; "
        "or a response loss, write losses.response=kd"
    )
    for word in ("method=crd", "scheme=crd", "losses.response=crd"):
        with pytest.raises(UserError, match=r"crd is a relation loss, write losses\.relation=crd"):
            help_text([word])
