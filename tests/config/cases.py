"""What the tests of the configuration share."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdschemes.config import Config, schemes
from kdschemes.config.load import load_config
from kdschemes.errors import UserError
from tests import REPOSITORY

RECIPES = REPOSITORY / "experiments"


METHODS = [(scheme, method) for scheme, methods in schemes.SCHEMES.items() for method in methods]


def load(*arguments: str, recipes: Path = RECIPES) -> Config:
    return load_config(arguments, recipes=recipes)


def error(*arguments: str, recipes: Path = RECIPES) -> str:
    with pytest.raises(UserError) as caught:
        load(*arguments, recipes=recipes)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def recipe(folder: Path, text: str) -> Path:
    (folder / "mine.yaml").write_text(text)
    return folder
