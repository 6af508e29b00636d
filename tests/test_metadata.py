"""The package's metadata, its citation and the workflows say the same."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import yaml

import kdschemes
from tests import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def read(path: str) -> Any:
    return yaml.safe_load((REPOSITORY / path).read_text())


def test_version_is_in_one_place_and_the_citation_has_it() -> None:
    assert PROJECT["dynamic"] == ["version"]
    citation = read("CITATION.cff")
    assert citation["version"] == kdschemes.__version__
    assert (citation["license"], citation["repository-code"]) == (PROJECT["license"], PROJECT["urls"]["Repository"])
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
    assert f"## {kdschemes.__version__} " in (REPOSITORY / "CHANGELOG.md").read_text()


def test_workflows_test_every_version_that_is_declared() -> None:
    jobs = read(".github/workflows/ci.yml")["jobs"]
    assert jobs.keys() == {"lint", "types", "tests", "wheel", "docs"}
    versions = jobs["tests"]["strategy"]["matrix"]["python-version"]
    declared = [re.search(r":: (3\.\d+)$", line) for line in PROJECT["classifiers"]]
    assert versions == [found[1] for found in declared if found]
    assert PROJECT["requires-python"] == f">={versions[0]}"


def test_workflows_install_extras_that_exist_and_check_as_ci_does() -> None:
    runs = [
        step["run"]
        for path in (".github/workflows/ci.yml", ".github/workflows/slow.yml")
        for job in read(path)["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    extras = {extra for run in runs for found in re.findall(r'"\.\[([\w,]+)\]"', run) for extra in found.split(",")}
    assert extras <= PROJECT["optional-dependencies"].keys()
    ours = (REPOSITORY / ".ci" / "run").read_text()
    for command in ("ruff check .", "ruff format --check .", "mypy", "lint-imports", "pytest"):
        assert command in runs
        assert command in ours
    (docs,) = [run for run in runs if "sphinx" in run]
    assert " ".join(docs.split()[:5]) in ours
    assert set(docs.split()[:-1]) - set(re.findall(r"\S+", ours)) == set()  # they write to different folders


def test_issue_forms_ask_for_what_is_needed() -> None:
    for form in (REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"):
        content = yaml.safe_load(form.read_text())
        assert {"name", "description", "body"} <= content.keys()
        ids = [field["id"] for field in content["body"]]
        assert len(ids) == len(set(ids)) > 2
