"""The W&B workspace: valid by the package's own models, complete, saved through the real client to a recorder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kdschemes import cli
from kdschemes.tracking.dashboard import COLORS, build, checked
from tests.tracking.wandb_recorder import Recorder

with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of pydantic, in the package's own code
    from wandb_workspaces.workspaces import internal


@dataclass
class Named:
    """What the panels name: keys of rows, of summaries, of the configuration, and what runs are grouped by."""

    history: set[str] = field(default_factory=set)
    summary: set[str] = field(default_factory=set)
    config: set[str] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)


def found(view: dict[str, Any], kind: str = "") -> list[dict[str, Any]]:
    """Return the options of the panels of a kind."""
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    shown = [panel for section in sections for panel in section["panels"]]
    return [panel["config"] for panel in shown if kind in panel["viewType"]]


def config_key(text: str) -> str:
    """Return a key of the configuration as we write it; the app has `value` after the first part."""
    first, value, *rest = text.removeprefix("config:").split(".")
    assert value == "value"
    return ".".join((first, *rest))


def panels() -> Named:
    """Return all that the workspace names."""
    view, named = checked(build("p", entity="", group=None)), Named()
    for panel in found(view, "Line Plot"):
        named.history |= {panel["xAxis"], *panel["metrics"]}
    for panel in found(view, "Bar Chart"):
        named.summary |= set(panel["metrics"])
    for panel in found(view, "Scatter Plot"):
        named.summary |= {panel[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis")}
    for panel in found(view, "Parallel"):
        accessors = [column["accessor"] for column in panel["columns"]]
        named.summary |= {key.removeprefix("summary:") for key in accessors if key.startswith("summary:")}
        named.config |= {config_key(key) for key in accessors if key.startswith("config:")}
    named.summary |= {panel["targetKey"] for panel in found(view, "Importance")}
    runs = view["spec"]["section"]["runSets"][0]
    named.summary |= {sort["key"]["name"] for sort in runs["sort"]["keys"]}
    named.summary |= {c.removeprefix("summary:") for c in runs["runFeed"]["columnPinned"] if c.startswith("summary:")}
    groups = [panel["groupBy"] for panel in found(view) if "groupBy" in panel]
    groups += [group["name"] for group in runs["grouping"]]
    named.groups |= {config_key(key) for key in groups if key != "jobType"}
    return named


def test_out_writes_a_view_that_the_package_reads_back(
    alone: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "view.json"
    assert cli.main(["wandb", "dashboard", "--project", "p", "--group", "alpha_effect", "--out", str(out)]) == 0
    assert "not saved in W&B" in capsys.readouterr().out
    view = json.loads(out.read_text())
    assert (view["project"], view["name"]) == ("p", "kdschemes: alpha_effect")
    read = internal.WorkspaceViewspec.model_validate(view["spec"])
    assert json.loads(read.model_dump_json(by_alias=True, exclude_none=True)) == view["spec"]
    (runs,) = view["spec"]["section"]["runSets"]
    (only,) = [f for f in _leaves(runs["filters"]) if f.get("key", {}).get("name") == "group"]
    assert (only["op"], only["value"]) == ("=", "alpha_effect")
    assert [group["name"] for group in runs["grouping"]] == ["jobType", "scheme.value.method"]


def _leaves(tree: object) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _leaves(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _leaves(value)


def test_it_compares_schemes_in_every_way() -> None:
    view = checked(build("p", entity="", group=None))
    curves, bars = found(view, "Line Plot"), found(view, "Bar Chart")
    for panel in (*curves, *bars):
        assert (panel["groupAgg"], panel["groupArea"], panel["aggregate"]) == ("mean", "stddev", True)
        assert panel["limit"] >= 100  # the app shows 10 runs otherwise
    by = [{panel["groupBy"] for panel in kind} for kind in (curves, bars)]
    assert by == [{"jobType", "scheme.value.method"}] * 2
    assert {panel["xAxis"] for panel in curves} == {"val/epoch"}
    assert len(found(view, "Scatter Plot")) == 2
    named = panels()
    assert named.config == {"scheme.alpha", "losses.response.temperature", "optim.lr"}
    assert {"test/top1", "best/test/top1", "val/top1", "cost/parameters", "cost/macs"} <= named.summary
    assert set(COLORS) == {"supervised", "offline", "online", "self", "teacher"}


def test_it_is_saved_for_whoever_is_logged_in(alone: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Recorder() as recorder:
        for name, value in recorder.environment().items():
            alone.setenv(name, value)
        assert cli.main(["wandb", "dashboard", "--project", "p"]) == 0
        told = capsys.readouterr().out
        (view,) = recorder.views
    assert told.startswith(f"workspace of p: {recorder.url}/me/p")
    assert (view["entityName"], view["projectName"], view["displayName"]) == (
        "me",
        "p",
        "kdschemes: schemes and methods",
    )
    sent = json.loads(view["spec"])
    assert len(found({"spec": sent})) == len(found(checked(build("p", entity="me", group=None))))


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "not logged in to W&B"),
        (
            {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"},
            "no server responds at http://127.0.0.1:9",
        ),
        ({"WANDB_API_KEY": "short"}, "W&B does not accept the key"),
    ],
    ids=["no key", "no server", "bad key"],
)
def test_its_requirements_are_printed_in_a_line(
    alone: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environment: dict[str, str], words: str
) -> None:
    for name, value in environment.items():
        alone.setenv(name, value)
    assert cli.main(["wandb", "dashboard"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert words in told
    assert told.count("\n") == 1


def test_a_group_that_the_package_cannot_filter_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["wandb", "dashboard", "--group", "it's", "--out", str(tmp_path / "view.json")]) == 2
    assert "cannot filter by a name with '" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["wandb", "dashboard", "--out", str(tmp_path / "no" / "view.json")]) == 2
    assert "view.json" in capsys.readouterr().err
