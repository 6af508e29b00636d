"""Options of a custom topology, written in Python. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from kdschemes.config.code import Code
from kdschemes.config.paths import FilePath
from kdschemes.config.schemes.base import Method


@dataclass(frozen=True, kw_only=True)
class Topology(Method):
    """A Python recipe, chosen with `experiment=NAME_OR_PATH`, whose function `topology` builds the scheme."""

    name: Literal["topology"] = "topology"
    method: Annotated[str, Field(description="name of the recipe: its file name")] = ""
    file: Annotated[FilePath, Field(description="the recipe's file; set by experiment=")] = ""
    digest: Annotated[str, Field(description="prefix of the file's SHA-256: a changed file is another run")] = ""
    teacher: Annotated[bool, Field(description="whether the recipe uses frozen teachers (group teacher)")] = False

    @property
    def code(self) -> Code:
        """The recipe's file."""
        return Code(self.file, None, True)

    @property
    def uses_teacher(self) -> bool:  # type: ignore[override]
        """Whether the recipe asks for teachers."""
        return self.teacher
