"""The command of a run gives its configuration again, in few words."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from kdschemes.config.command import ELSEWHERE, command_of
from kdschemes.config.load import load_config
from kdschemes.config.naming import flatten, to_tree
from tests import REPOSITORY

RECIPES = REPOSITORY / "experiments"


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ([], "scheme=online"),
        (["scheme=online", "method=kdcl", "output_dir=/x", "group=g"], "scheme=online method=kdcl"),
        (["optim.name=adamw", "scheme=supervised"], "scheme=supervised optim=adamw"),
        (
            ["scheme=offline", "losses.response=dkd", "losses.feature=hint", "losses.response.beta=4", "seed=3"],
            "scheme=offline losses.response=dkd losses.feature=hint losses.response.beta=4.0 seed=3",
        ),
        (["data=cifar100", "data.root=/a b", "model=resnet20"], "scheme=online data=cifar100 'data.root=/a b' "),
    ],
)
def test_a_command_names_what_differs_from_the_defaults(words: list[str], command: str) -> None:
    assert command_of(load_config(words, recipes=RECIPES), Path("runs/x")).startswith(f"kdschemes train {command}")


@pytest.mark.parametrize(
    "words",
    [
        [
            "experiment=digits/study",
            "scheme=offline",
            "teacher=resnet20",
            "scheme.alpha=0",
            "data.exclude_classes=[1, 2]",
        ],
        ["scheme=self", "method=byot"],
        ["scheme=offline", "teacher.optim.name=adamw"],
        ["experiment=repdistiller/kd_resnet32x4_shufflenet_v2", "data.root=d"],
    ],
)
def test_a_command_gives_the_configuration(words: list[str]) -> None:
    config = load_config(words, recipes=RECIPES)
    again = load_config(shlex.split(command_of(config, Path("runs/x")))[2:], recipes=RECIPES)
    one, other = (
        {key: value for key, value in flatten(to_tree(of)).items() if key not in ELSEWHERE} for of in (config, again)
    )
    assert one == other


def test_a_topology_from_a_file_is_named_by_its_configuration() -> None:
    config = load_config(["experiment=topologies/offline_self"], recipes=RECIPES)
    assert command_of(config, Path("runs/x")) == "kdschemes train experiment=runs/x/config.yaml"
