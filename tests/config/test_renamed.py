"""Every word that was renamed is answered in one line with its new name, and the new name exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdschemes.config.load import load_config
from kdschemes.config.renamed import RENAMED_KEYS, RENAMED_METHODS, RENAMED_STUDY_KEYS, RENAMED_VALUES
from kdschemes.config.schemes import SCHEMES
from kdschemes.config.validate import all_keys
from kdschemes.errors import UserError
from kdschemes.study.spec import read_study
from kdschemes.study.spec_keys import KEYS

LOSSES = {"losses.response": "kd", "losses.feature": "hint", "losses.relation": "rkd"}


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as error:
        load_config(arguments, recipes=Path())
    return str(error.value)


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_an_old_key_is_answered_with_the_new_one(old: str, new: str) -> None:
    group, _, leaf = old.rpartition(".")
    named = [f"{group}={LOSSES[group]}"] if group in LOSSES else []
    assert refusal("scheme=offline", *named, f"{old}=1") == f"{old} is now {new}"
    assert new in all_keys()
    assert old not in all_keys() or group in ("scheme", *LOSSES)
    if group in LOSSES:
        written = f"losses.extra=[{{name: {LOSSES[group]}, {leaf}: 1}}]"
        answer = refusal("scheme=offline", "losses.response=none", written)
        assert answer == f"losses.extra.{leaf} is now losses.extra.{new.rpartition('.')[2]}"


@pytest.mark.parametrize(("old", "new"), RENAMED_METHODS.items())
def test_an_old_method_is_answered_with_the_new_one(old: str, new: str) -> None:
    assert refusal(f"method={old}") == f"method={old} is now method={new}"
    assert any(new in methods for methods in SCHEMES.values())


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("scheme.views", ["scheme=online"]),
        ("scheme.view", ["scheme=self", "method=mean_teacher"]),
        ("scheme.topology", ["scheme=online"]),
        ("losses.relation.variant", ["scheme=offline", "losses.relation=cc"]),
    ],
)
def test_an_old_value_is_answered_with_the_new_one(key: str, arguments: list[str]) -> None:
    ((old, new),) = RENAMED_VALUES[key].items()
    assert refusal(*arguments, f"{key}={old}") == f"{key}={old} is now {key}={new}"
    load_config([*arguments, f"{key}={new}"], recipes=Path())


def test_a_recipe_with_an_old_key_is_refused_with_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("optim: {clip: 5}\n")
    with pytest.raises(UserError, match=r"optim\.clip is now optim\.clip_grad_norm"):
        load_config(["experiment=old"], recipes=tmp_path)


def test_an_old_reference_of_a_study_is_answered_with_the_new_one(tmp_path: Path) -> None:
    text = """
        question: Does it help?
        base: {scheme: offline, teacher.checkpoint: first.kd}
        prerequisites: {kd: {scheme: supervised}}
    """
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"teacher\.checkpoint=first\.kd is now prerequisites\.kd"):
        read_study(tmp_path / "mine.yaml", [], recipes=tmp_path)


def test_the_keys_of_studies_exist() -> None:
    assert set(RENAMED_STUDY_KEYS.values()) <= set(KEYS)
