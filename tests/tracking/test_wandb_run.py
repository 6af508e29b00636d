"""What W&B gets of real runs: packed ones, finished ones, those of a sweep; and whether the dashboard's names exist."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
import yaml

from kdschemes.config.load import load_config
from kdschemes.config.naming import to_tree
from kdschemes.storage.naming import run_name
from kdschemes.storage.results import read_results
from kdschemes.study.prerequisites import with_prerequisites
from kdschemes.study.slurm.arrays import PlannedArray
from kdschemes.study.slurm.submit import _write_configs
from kdschemes.study.spec import read_study
from kdschemes.tracking.dashboard import COLORS
from kdschemes.training.train import Finished, train, train_together
from tests import REPOSITORY
from tests.tracking.cases import items, records, wandb_files
from tests.tracking.test_dashboard import panels

pytestmark = pytest.mark.slow

SMALL = [
    "data.val_fraction=0.8",
    "data.train_fraction=1",
    "train.epochs=1",
    "train.num_threads=1",
    "train.log_every_steps=1",
]
PACK = [
    ["scheme=offline", "teacher=resnet20", "teacher.epochs=1", "group=study", *SMALL],
    ["scheme=online", "group=study", *SMALL],
    ["scheme=self", "losses.feature=none", *SMALL],
]


class Given:
    """What one offline file of W&B's client holds."""

    def __init__(self, file: Path) -> None:
        found = records(file)
        self.run = next(record.run for record in found if record.WhichOneof("record_type") == "run")
        self.config = items(self.run.config.update)
        self.summary, self.rows = {}, []
        for record in found:
            if record.WhichOneof("record_type") == "summary":
                self.summary |= items(record.summary.update)
            if record.WhichOneof("record_type") == "history":
                self.rows.append(items(record.history.item))
        (self.exit_code,) = [r.exit.exit_code for r in found if r.WhichOneof("record_type") == "exit"]


def config(*words: str, output: Path, tracker: str = "wandb"):
    return load_config([*words, f"tracker={tracker}", f"output_dir={output}"], recipes=REPOSITORY / "experiments")


@pytest.fixture(scope="module")
def offline() -> Iterator[pytest.MonkeyPatch]:
    """W&B's client offline, whatever the environment says."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        wandb.teardown()
        yield patch
        wandb.teardown()


@pytest.fixture(scope="module")
def output(offline: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs that one process has trained side by side, and of the teacher of one of them."""
    output = tmp_path_factory.mktemp("runs")
    outcomes = train_together([config(*words, output=output) for words in PACK])
    assert all(isinstance(outcome, Finished) for outcome in outcomes)
    assert [outcome.results["pack_size"] for outcome in outcomes] == [3, 3, 3]
    return output


@pytest.fixture(scope="module")
def given(output: Path) -> dict[str, Given]:
    """What W&B has of each, by the name of the run's folder."""
    return {given.run.display_name: given for given in map(Given, wandb_files(output))}


def test_each_run_of_a_process_is_one_of_its_own(output: Path, given: dict[str, Given]) -> None:
    names = [run_name(config(*words, output=output)) for words in PACK]
    assert len(wandb_files(output)) == len(given) == 4
    assert set(names) < set(given)
    (teacher,) = set(given) - set(names)
    assert teacher.startswith("supervised-ce-digits-resnet20")
    kinds = [given[name].run.job_type for name in [*names, teacher]]
    assert kinds == ["offline", "online", "self", "teacher"]
    assert {*kinds, "supervised"} == set(COLORS)
    groups = [given[name].run.run_group for name in [*names, teacher]]
    assert groups == ["study", "study", "self-byot-digits-wrn_16_1", "study"]
    for name, found in given.items():
        assert found.run.run_id == (output / name / "wandb_run_id").read_text()
        assert found.exit_code == 0


def test_config_and_summary_are_complete(output: Path, given: dict[str, Given]) -> None:
    for words in PACK:
        asked = config(*words, output=output)
        found, name = given[run_name(asked)], run_name(asked)
        results = read_results(output / name)
        assert results is not None
        own = {key: value for key, value in found.config.items() if key != "_wandb"}
        assert own == to_tree(asked) | {"hash": name[-8:], "folder": str(output / name)}
        assert yaml.safe_load((output / name / "config.yaml").read_text()) == to_tree(asked)
        head = results["primary_head"]
        for split in ("val", "test"):
            for metric, value in results["heads"][head]["last"][split].items():
                assert found.summary[f"{split}/{metric}"] == value
                assert found.summary[f"best/{split}/{metric}"] == results["heads"][head]["best"][split][metric]
        for other, both in results["heads"].items():
            assert found.summary[f"last/test/{other}/nll"] == both["last"]["test"]["nll"]
        assert found.summary["cost/parameters"] == results["cost"][head]["parameters"]
        assert found.summary["cost/macs"] == results["cost"][head]["macs"]
        assert found.summary["cost/latency_ms"] == results["cost"][head]["latency_ms"] > 0
        assert found.summary["samples/train"] == results["samples"]["train"]
        assert found.summary["train_macs_per_image"] == results["train_macs_per_image"]
        left_out = {"heads", "mean_over_peers", "cost"} | {key for key, value in results.items() if value is None}
        assert {key.partition("/")[0] for key in found.summary} >= set(results) - left_out


def test_rows_are_those_of_metrics_jsonl(output: Path, given: dict[str, Given]) -> None:
    for name, found in given.items():
        rows = [json.loads(line) for line in (output / name / "metrics.jsonl").read_text().splitlines()]
        losses = {row["step"]: row["loss/total"] for row in rows if row["kind"] == "train"}
        assert {row["global_step"]: row["train/loss/total"] for row in found.rows} == losses
        (last,) = [row for row in rows if row["kind"] == "eval"]
        head = found.summary["primary_head"]
        assert found.rows[-1]["val/top1"] == found.rows[-1][f"val/{head}/top1"] == last[f"{head}/top1"]


def test_the_dashboard_names_only_what_runs_have(given: dict[str, Given]) -> None:
    named = panels()
    for found in given.values():
        logged = {key for row in found.rows for key in row}
        assert named.history <= logged
        assert named.summary <= set(found.summary)
        assert all(_has(found.config, key) for key in named.groups)
    for found in given.values():
        if found.run.job_type == "offline":
            assert all(_has(found.config, key) for key in named.config)


def _has(tree: object, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def test_a_finished_run_is_given_once_to_each_group(offline: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ["scheme=supervised", *SMALL]
    first = train(config(*words, output=tmp_path, tracker="none"))
    assert wandb_files(tmp_path) == []
    for group, count in ((None, 1), (None, 1), ("a/b", 2), ("a/b", 2), (None, 2)):
        asked = config(*words, *([f"group={group}"] if group is not None else []), output=tmp_path)
        assert not train(asked).ran
        assert len(wandb_files(tmp_path)) == count
    found = [Given(file) for file in wandb_files(tmp_path)]
    assert sorted(given.run.run_group for given in found) == ["a/b", "supervised-ce-digits-wrn_16_1"]
    kept = {file.read_text() for file in first.folder.glob("wandb_run_id*")}
    assert kept == {given.run.run_id for given in found}
    for given in found:
        assert given.summary["test/top1"] == first.results["heads"]["student"]["last"]["test"]["top1"]
        assert [row["global_step"] for row in given.rows] == list(range(1, given.rows[-1]["global_step"] + 1))


def test_an_agent_that_asks_for_a_finished_run_is_given_it(offline: pytest.MonkeyPatch, output: Path) -> None:
    before = len(wandb_files(output))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_RUN_ID", "point1")
        assert not train(config(*PACK[0], output=output)).ran
    (file,) = wandb_files(output)[before:]
    found = Given(file)
    assert (found.run.run_id, found.run.job_type, found.exit_code) == ("point1", "offline", 0)
    assert found.summary["val/top1"] == found.rows[-1]["val/top1"]


def test_a_study_on_slurm_is_a_group_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "question: q\nbase: {scheme: offline, tracker: wandb, teacher.epochs: 1}\n"
        "grid: {scheme.alpha: [0.1]}\nseeds: [0]\n"
    )
    runs = with_prerequisites(read_study(file, [f"output_dir={tmp_path}"], recipes=REPOSITORY))
    array = PlannedArray(name="mine", runs=tuple(runs), after=(), after_elements=())
    (tmp_path / "mine").mkdir()
    written = _write_configs(array, tmp_path / "mine")
    configs = [load_config([f"experiment={written / f'{number}.yaml'}"], recipes=REPOSITORY) for number in (0, 1)]
    assert [(config.group, config.job_type) for config in configs] == [("mine", "teacher"), ("mine", None)]
    assert [run_name(config) for config in configs] == [run.folder for run in runs]


def test_a_point_of_the_shipped_sweep_is_a_run_of_the_study() -> None:
    sweep = yaml.safe_load((REPOSITORY / "experiments/sweeps/alpha_temperature.yaml").read_text())
    fixed = [word for word in sweep["command"] if "=" in word]
    study = read_study(
        REPOSITORY / "experiments/studies/alpha_temperature.yaml", [], recipes=REPOSITORY / "experiments"
    )
    trained = {run.folder: run.grid for run in study.runs if run.seed == 0}
    points = {
        run_name(
            load_config(
                [*fixed, f"scheme.alpha={a}", f"losses.response.temperature={t}"], recipes=REPOSITORY / "experiments"
            )
        )
        for a in sweep["parameters"]["scheme.alpha"]["values"]
        for t in sweep["parameters"]["losses.response.temperature"]["values"]
    }
    assert points == set(trained)
    assert sweep["metric"]["name"] in panels().summary
