"""A new method touches its options and builder with their table lines, a card and a test file; all else finds it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdschemes import cli
from tests import REPOSITORY

OPTIONS = '''@dataclass(frozen=True, kw_only=True)
class SelfEcho(Method):
    """The network is taught by a constant copy of its own output (Nobody 2030)."""

    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd", "temperature": 5.0}}

    name: Literal["self"] = "self"
    method: Literal["echo"] = "echo"
    echoes: Annotated[int, Field(ge=1, description="how often the output echoes")] = 2


'''
BUILDER = '''"""Echo: the network is taught by its own output."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Network
from kdschemes.core.types import DataSpec
from kdschemes.schemes.distill import Edge, distill
from kdschemes.schemes.networks import student_network


def echo(config: Config, data_spec: DataSpec) -> Distillation:
    """Return CE + echoes * response(student -> student)."""
    return distill(
        {"student": Network("student", student_network(config, data_spec, "student"))},
        supervised={"student": 1.0},
        edges=[Edge("student", "student", response=config.scheme.echoes)],
        losses=config.losses,
        heads=["student"],
        data_spec=data_spec,
    )
'''
CARD = """---
name: echo
scheme: self
papers: [hinton2015distilling]
equation: |
  L = CE(z, y) + e KL(p || p)
---
# Echo

The network is taught by a constant copy of its own output.

## Paper

None.

## Equation

p is the softmax of z, a constant where it teaches.
"""
TESTS = '''"""Echo."""

from tests.losses import oracles
from tests.schemes.cases import base


def expected_total(seen):
    student = seen.logits("student")
    hard = oracles.cross_entropy(student, oracles.one_hot(seen.labels, 10))
    return hard + seen.config.scheme.echoes * oracles.kd(student, student, temperature=5.0)


FORMULA = expected_total
EXACT = {"echo-once": [*base("self", "echo"), "scheme.echoes=1"]}
'''
BUILD = """
import sys
from kdschemes.config.load import load_config
from kdschemes.config.naming import dump_yaml
from kdschemes.core.types import DataSpec
from kdschemes.schemes import build_scheme
from tests.schemes import self_distillation
from tests.schemes.cases import DEFAULTS

self_distillation.__path__.append(sys.argv[1])
from tests.schemes.table import EXACT, FORMULAS, VARIANTS

assert DEFAULTS["self-echo"] == ["scheme=self", "method=echo", "model=resnet20"]
config = load_config(["scheme=self", "method=echo"], recipes=None)
scheme = build_scheme(config, DataSpec(10, 1, 8))
assert {"self-echo", "echo-once"} <= EXACT.keys() and "self-echo" in VARIANTS
assert FORMULAS["self-echo"].__module__ == "tests.schemes.self_distillation.test_echo"
assert [term.name for term in scheme.terms] == ["ce/student", "kd/student->student"]
print(dump_yaml(config), end="")
"""


def add(file: Path, before: str, text: str) -> None:
    """Put a text before the only place where another one is."""
    old = file.read_text()
    assert old.count(before) == 1, f"{before!r} in {file}"
    file.write_text(old.replace(before, text + before))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one more method."""
    folder = tmp_path_factory.mktemp("with_echo")
    package = folder / "kdschemes"
    shutil.copytree(Path(cli.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    options = package / "config" / "schemes" / "self_distillation.py"
    add(options, "SELF = by_method(\n", OPTIONS)
    add(options, "    SelfTfKD,\n", "    SelfEcho,\n")
    schemes = package / "schemes" / "self_distillation"
    (schemes / "echo.py").write_text(BUILDER)
    add(
        schemes / "__init__.py", "\nSELF: Builders = {\n", "from kdschemes.schemes.self_distillation.echo import echo\n"
    )
    add(schemes / "__init__.py", "    options.SelfBYOT: byot,\n", "    options.SelfEcho: echo,\n")
    (package / "cards" / "methods" / "echo.md").write_text(CARD)
    (folder / "tests_of_echo").mkdir()
    (folder / "tests_of_echo" / "test_echo.py").write_text(TESTS)
    return folder


def python(folder: Path, *arguments: str) -> str:
    """Run Python with the copy of the package and the tables of the tests."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(folder), str(REPOSITORY)))}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_new_method_is_in_help_and_in_the_lists_of_methods(package: Path) -> None:
    shown = python(package, "-c", "from kdschemes.config.help import help_text; print(help_text(['all']))")
    assert "scheme=self method=echo: The network is taught by a constant copy" in shown
    assert "scheme.echoes=2" in shown
    for arguments in (["methods"], ["methods", "--markdown"], ["methods", "self/echo"]):
        page = python(package, "-m", "kdschemes.cli", *arguments)
        assert "echo" in page.lower()
        assert "L = CE(z, y) + e KL(p || p)" in page.replace("\\|", "|")


@pytest.mark.slow
def test_a_new_method_is_built_tested_and_cited(package: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(python(package, "-c", BUILD, str(package / "tests_of_echo")))
    cited = python(package, "-m", "kdschemes.cli", "cite", str(tmp_path))
    assert "% method self/echo\n" in cited
    assert "\n@misc{hinton2015distilling," in cited
