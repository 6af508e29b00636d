"""What the README and the pages of docs say is true: commands, keys, links, examples; a reason for every library."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

from kdschemes import cli
from kdschemes.config.data import DATA
from kdschemes.config.load import allow_typed, load_config
from kdschemes.config.losses import KINDS
from kdschemes.config.naming import to_tree
from kdschemes.config.schemes import SCHEMES
from kdschemes.config.validate import all_keys
from kdschemes.core.types import DataSpec
from kdschemes.data import open_data
from kdschemes.schemes import build_scheme
from kdschemes.training.train import train
from links import COPIES
from tests import REPOSITORY
from tests.processes import run
from tests.schemes.cases import DATA_SPEC, RECIPES, START

README = (REPOSITORY / "README.md").read_text()
GENERATED = ("methods", "losses", "options.md", "api.md", *(f"{page}.md" for page in COPIES))
"""What the docs site writes into docs."""

PAGES = ["README.md", "CONTRIBUTING.md", "slurm/README.md"]
PAGES += sorted(
    str(page.relative_to(REPOSITORY))
    for page in REPOSITORY.glob("docs/**/*.md")
    if page.relative_to(REPOSITORY / "docs").parts[0] not in GENERATED
)


def blocks(language: str, page: str = "README.md") -> list[str]:
    text = (REPOSITORY / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(*program: str) -> list[list[str]]:
    """Return the arguments of each command of the pages that runs `program`, each once.

    Those of docs/custom.md need the files of that page; `tests/test_custom_page.py` runs them.
    """
    lines = [
        line
        for page in PAGES
        if page != "docs/custom.md"
        for block in blocks("sh", page)
        for line in block.splitlines()
    ]
    found = []
    for words in (shlex.split(part, comments=True) for line in lines for part in line.split("&&")):
        at = next((k for k in range(len(words)) if tuple(words[k : k + len(program)]) == program), None)
        if at is not None and (arguments := words[at + len(program) :]) not in found:
            found.append(arguments)
    return found


RUNS = [
    list(words)
    for words in dict.fromkeys(
        tuple(arguments)
        for program in (("run.py",), ("kdschemes", "train"), ("-m", "kdschemes"))
        for arguments in commands(*program)
    )
    if "KEY=VALUE" not in words and "--help" not in words
]


def test_install_and_quick_start_come_first() -> None:
    install, tests, start = blocks("sh")[:3]
    assert install == "pip install -e .\n"
    assert 'pip install -e ".[test]" && pytest' in tests
    schemes = [words for line in start.splitlines() for words in re.findall(r"^accelerate launch run.py (\S+)", line)]
    assert schemes == ["scheme=online", "scheme=offline", "scheme=self"]
    assert len(RUNS) > 10


def test_examples_of_the_readme_are_those_of_the_pages() -> None:
    """The pages' examples are run below."""
    pages = [block for page in PAGES if page.startswith("docs") for block in blocks("python", page)]
    assert [block for block in blocks("python") if block not in pages] == []


@pytest.mark.parametrize("arguments", RUNS, ids=" ".join)
def test_commands_parse_and_build(arguments: list[str]) -> None:
    allow_typed(arguments, recipes=REPOSITORY / "experiments")
    config = load_config(arguments, recipes=REPOSITORY / "experiments")
    if "PATH" not in (config.model.checkpoint, config.teacher.checkpoint):
        data_spec = {
            "digits": DataSpec(10, 1, 8, torch.arange(20) % 10),
            "cifar100": DataSpec(100, 3, 32),
            "image_folder": DataSpec(200, 3, 64),
        }
        scheme = build_scheme(config, data_spec[config.data.name])
        assert scheme.parameter_groups()


def answers_anywhere(command: list[str]) -> bool:
    """Whether a command needs neither a run nor a cluster (those are run in tests/slurm)."""
    return command[0] in ("methods", "stages") or ("--dry-run" in command and command[0] not in ("wandb", "push"))


@pytest.mark.parametrize("arguments", list(filter(answers_anywhere, commands("kdschemes"))), ids=" ".join)
def test_cli_commands_answer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES)
def test_keys_exist(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    known = {*all_keys(), "method", "experiment", "scheme", "data", "model", "teacher"}
    known |= {"losses.response", "losses.feature", "losses.relation"}
    groups = "scheme|data|model|teacher|optim|train|losses"
    spoken = set(re.findall(rf"`((?:{groups})\.[a-z_.]+)(?:=[^`]*)?`", text)) | set(re.findall(r"`([a-z_]+)=`", text))
    spoken = {word for word in spoken if not word.endswith((".py", ".json", ".safetensors", ".sbatch", ".onnx"))}
    assert spoken <= known, f"{page} speaks of {sorted(spoken - known)}"
    assert spoken or page != "README.md"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = (REPOSITORY / page).parent
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (REPOSITORY / page).read_text())
    assert [link for link in links if not (folder / link).exists()] == []


def test_shipped_studies_are_listed() -> None:
    page = (REPOSITORY / "docs" / "studies.md").read_text()
    for file in REPOSITORY.glob("experiments/studies/*.yaml"):
        question = " ".join(yaml.safe_load(file.read_text())["question"].split())
        assert f"[{file.stem}](../experiments/studies/{file.name}) | {question} |" in page


def table(page: str, head: str) -> str:
    """Return the table of a page whose head begins with these words."""
    text = (REPOSITORY / page).read_text()
    (found,) = re.findall(rf"^{re.escape(head)}.*?(?=\n\n)", text, flags=re.MULTILINE | re.DOTALL)
    return str(found)


SCHEME_TABLE = table("docs/concepts.md", "| `scheme=` |")


def test_tables_name_what_can_be_chosen() -> None:
    for scheme, methods in SCHEMES.items():
        (row,) = [row for row in SCHEME_TABLE.splitlines() if row.startswith(f"| `{scheme}`")]
        assert re.findall(r"`(\w+)`", row) == [scheme, next(iter(methods))]
    assert {*DATA} <= set(re.findall(r"`(\w+)`", table("docs/data.md", "| `data=` |")))
    assert re.findall(r"losses\.(\w+)=NAME", table("docs/combining_losses.md", "| kind |")) == [*KINDS]


def test_default_losses_of_the_table() -> None:
    rows = {row.split("`")[1]: row for row in SCHEME_TABLE.splitlines()[2:]}
    for scheme in ("offline", "online", "self"):
        tree = to_tree(load_config([f"scheme={scheme}"], recipes=REPOSITORY))
        response, alpha = tree["losses"]["response"], tree["scheme"].get("alpha")
        assert f"KL at T = {response['temperature']:g}" in rows[scheme]
        if alpha is not None:
            assert f"{1 - alpha:g} cross-entropy, {alpha:g} KL" in rows[scheme]
        if tree["losses"]["feature"]["name"] != "none":
            assert f"{tree['losses']['feature']['weight']:g} feature hint" in rows[scheme]


def test_split_of_the_digits() -> None:
    sizes = [
        open_data(load_config(words, recipes=REPOSITORY).data, seed=0, device=torch.device("cpu")).sizes
        for words in ([], ["data.train_fraction=1"])
    ]
    page = (REPOSITORY / "docs" / "data.md").read_text()
    said = re.search(r"(\d+) to train \(.data.train_fraction=1.: ([\d,]+)\), (\d+) to validate, (\d+) to test", page)
    assert said is not None
    few, every, *held_out = (int(number.replace(",", "")) for number in said.groups())
    assert [few, every] == [split["train"] for split in sizes]
    assert held_out == [sizes[0]["val"], sizes[0]["test"]]


ALONE = ["train.num_threads=1", "tracker=none"]
"""What is added to a line: a thread, and no tracker. Its length is its own, 200 steps by default."""

LEAST = {"data.cutmix=1": 70.0, "method=ban": 70.0, "losses.feature=hint": 70.0, "train.ema=0.999": 80.0}
"""Percent of the test images that a line must get right, where that is not 85: by a word of it."""


def trains_here(arguments: list[str]) -> bool:
    """Whether a line trains on digits, and needs nothing that is not here."""
    return not any("PATH" in word or word.startswith("data=") or word == "experiment=mine.py" for word in arguments)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the lines train; they share their teacher."""
    return tmp_path_factory.mktemp("readme")


ALWAYS = ("scheme.exit_head=linear",)
"""Words of the lines that CI trains; the others before a release."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(
            words, marks=() if any(word in words for word in ALWAYS) else pytest.mark.exhaustive, id=" ".join(words)
        )
        for words in filter(trains_here, RUNS)
    ],
)
def test_every_line_trains_to_an_accuracy_near_its_own(arguments: list[str], runs: Path) -> None:
    """By the defaults, no method and no loss is far from cross-entropy, which reaches 92 % of the test images here."""
    results = train(load_config([*arguments, *ALONE, f"output_dir={runs}"], recipes=RECIPES)).results
    reached = results["heads"][results["primary_head"]]["last"]["test"]["top1"]
    assert reached > next((least for word, least in LEAST.items() if word in arguments), 85.0)


DRIVER = """
import json, math, sys
from pathlib import Path
import torch
from kdschemes.config.load import load_config
from kdschemes.core.loss import Endpoint
from kdschemes.core.types import Batch, Output, DataSpec
from kdschemes.losses.build import build_loss
from kdschemes.training.train import train

z, v = [[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], [[0.0, 1.0, -1.0], [2.0, 2.0, -4.0]]
loss = build_loss(ReverseKL(), student=Endpoint(), teacher=Endpoint(), data_spec=DataSpec(3, 1, 8))
batch = Batch(torch.zeros(2, 1, 1, 1), torch.zeros(2, dtype=torch.long), torch.arange(2))
value = loss(Output(torch.tensor(z)), Output(torch.tensor(v)), batch, lambda x: x)
run = train(load_config(sys.argv[1:], recipes=Path()))
print(json.dumps({"value": float(value), "folder": str(run.folder), "heads": list(run.results["heads"])}))
"""


@pytest.mark.slow
def test_examples_run(tmp_path: Path) -> None:
    (load,) = blocks("python", "docs/run_folder.md")
    extensions = [block for block in blocks("python", "docs/custom.md") if "\nregister_" in block]
    assert len(extensions) == 2
    script = tmp_path / "example.py"
    script.write_text("\n".join(extensions) + DRIVER)
    options = [
        "scheme=online",
        "method=ring",
        "losses.response=reverse_kl",
        "train.epochs=12",
        "train.log_every_steps=1",
        "train.eval_every_epochs=12",
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(script), *options, f"output_dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])

    def softmax(logits: list[float]) -> list[float]:
        total = sum(torch.tensor(logits).exp().tolist())
        return [x / total for x in torch.tensor(logits).exp().tolist()]

    z, v = [[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], [[0.0, 1.0, -1.0], [2.0, 2.0, -4.0]]
    expected = 0.0
    for ours, theirs in zip(z, v, strict=True):
        for q, p in zip(softmax(ours), softmax(theirs), strict=True):
            expected += q * (torch.tensor(q).log() - torch.tensor(p).log()).item() / 2
    assert found["value"] == pytest.approx(expected, rel=1e-5)

    assert found["heads"] == ["peer0", "peer1", "peer2"]
    rows = [json.loads(line) for line in (Path(found["folder"]) / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "train"]
    transfers = {key for key in steps[0] if "->" in key and key.startswith("loss/")}
    assert transfers == {f"loss/reverse_kl/peer{k}->peer{(k + 1) % 3}" for k in range(3)}
    for peer in found["heads"]:
        assert steps[-1][f"loss/ce/{peer}"] < 0.8 * steps[0][f"loss/ce/{peer}"]

    names: dict[str, object] = {"images": torch.zeros(2, 1, 8, 8)}
    assert '"runs/NAME"' in load
    exec(load.replace("runs/NAME", found["folder"]), names)
    assert names["logits"].shape == (2, 10)  # type: ignore[attr-defined]
    assert list(names["features"]) == list(names["network"].stage_names)  # type: ignore[call-overload, attr-defined]


@pytest.mark.slow
def test_early_exit_example_runs(tmp_path: Path) -> None:
    small = [
        "data.val_fraction=0.9",
        "data.train_fraction=1",
        "train.epochs=1",
        "train.num_threads=1",
        "scheme.exit_head=linear",
    ]
    ended = run(["scheme=self", "losses.feature=none", *small], tmp_path / "run")
    assert (ended.code, ended.err) == (0, "")
    (folder,) = (tmp_path / "run" / "runs").iterdir()
    names: dict[str, object] = {"images": torch.zeros(2, 1, 8, 8)}
    (example,) = blocks("python", "docs/early_exit.md")
    exec(example.replace("runs/NAME", str(folder)), names)
    assert names["logits"].shape == (2, 10)  # type: ignore[attr-defined]
    assert names["taken"].shape == (2,)  # type: ignore[attr-defined]


def test_topology_example_is_the_shipped_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(blocks("python", "docs/topologies.md")[0])
    allow_typed([f"experiment={file}", "experiment=topologies/offline_online"], recipes=RECIPES)
    mine, shipped = (
        build_scheme(load_config([f"experiment={name}", "teacher.name=resnet20"], recipes=RECIPES), DATA_SPEC)
        for name in (file, "topologies/offline_online")
    )
    assert [(term.name, term.weight(START)) for term in mine.terms] == [
        (term.name, term.weight(START)) for term in shipped.terms
    ]
    assert (mine.heads, mine.peers) == (shipped.heads, shipped.peers)


def test_every_library_has_its_reason() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    wanted = [*project["project"]["dependencies"], *(item for extra in extras for item in extra)]
    names = {re.split(r"[\[<>=!~ ]", item, maxsplit=1)[0].lower() for item in wanted} - {"kdschemes"}
    table = (REPOSITORY / "docs" / "decisions" / "libraries.md").read_text().lower()
    assert [name for name in sorted(names) if name not in table] == []
