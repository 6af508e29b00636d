"""What the wheel holds, and what it declares."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import kdschemes
from tests import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def imported(file: Path) -> set[str]:
    """Return the top-level modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


def declared(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", item, maxsplit=1)[0].lower() for item in requirements}


def test_every_imported_library_is_declared() -> None:
    modules = set().union(*map(imported, (REPOSITORY / "kdschemes").rglob("*.py"))) - set(sys.stdlib_module_names)
    distributions = packages_distributions()
    extras = PROJECT["optional-dependencies"]
    known = declared([*PROJECT["dependencies"], *(item for extra in extras.values() for item in extra)])
    missing = {
        module: distributions.get(module)
        for module in modules - {"kdschemes"}
        if not {name.lower().replace("_", "-") for name in distributions.get(module, [])} & known
    }
    assert missing == {}


def files(folder: str, *patterns: str) -> set[str]:
    ignored = subprocess.run(
        ["git", "ls-files", "--others", "--ignored", "--exclude-standard", folder],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    found = {path for pattern in patterns for path in (REPOSITORY / folder).rglob(pattern) if path.is_file()}
    return {str(path.relative_to(REPOSITORY)) for path in found} - set(ignored)


@pytest.mark.slow
def test_the_wheel_holds_modules_recipes_studies_and_scripts(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        tmp_path,
        REPOSITORY,
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"kdschemes-{kdschemes.__version__}-")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    recipes = files("experiments", "*.yaml") | files("experiments/topologies", "*.py")
    shipped = {f"kdschemes/shipped/{name}" for name in recipes | files("slurm", "*")}
    assert names == shipped | files("kdschemes", "*.py", "*.md", "*.bib", "*.css", "*.js", "py.typed")
