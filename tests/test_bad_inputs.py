"""Bad inputs to every command: one line that names the mistake, exit code 2, nothing written, within seconds."""

from __future__ import annotations

import itertools
import os
import random
import re
import time
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest

from kdschemes import cli
from kdschemes.config.data import DATA
from kdschemes.config.load import load_config
from kdschemes.config.losses import KINDS
from kdschemes.config.models import MODELS
from kdschemes.config.naming import dump_yaml, in_line
from kdschemes.config.parse import to_yaml
from kdschemes.config.schemes import SCHEMES
from kdschemes.config.validate import all_keys
from kdschemes.errors import UserError
from kdschemes.storage.naming import run_name
from kdschemes.study.spec import read_study
from tests.config.test_parse import BOMB, MERGES

LONG, NAME, DEEP = "x" * 100_000, "n" * 300, "[" * 600 + "]" * 600
BAD_PATHS = ("~nosuchuser/x", NAME, "a/" * 3_000, LONG, "\x1b[31m", "", "/dev/null/x", "/proc/self/mem", "\udcff")
"""For arguments that are paths; none of them exists."""

WORDS = [
    # numbers
    *(
        f"seed={value}"
        for value in ("1:30", "1_0_", "2024-13-01", "-1", "1e400", "9" * 30, "9" * 5_000, "0x" + "f" * 5_000)
    ),
    *(
        f"seed={value}"
        for value in ("nan", "[0]", "{a: 1}", "true", "null", "''", DEEP, "{a: &a [*a]}", "[!!float abc]")
    ),
    *(
        f"optim.lr={value}"
        for value in ("1e300", "1e308", "1e31", "1e-40", "-.inf", "nan", "1:30", "0x", "1e", LONG, "true")
    ),
    *(
        f"{key}=1e300"
        for key in ("optim.weight_decay", "optim.warmup_epochs", "data.mixup", "losses.response.temperature")
    ),
    *(f"{key}={10**9}" for key in ("train.num_threads", "scheme.peers", "data.crop_padding", "train.batch_size")),
    *(f"{key}={10**9}" for key in ("train.epochs", "train.eval_batch_size", "data.cutout", "data.num_partitions")),
    *(
        "scheme.peers=[" + ",".join(["convnet"] * 1_000) + "]",
        "train.ema=1e-40",
        "data.exclude_classes=[99999999999999999999]",
    ),
    # names
    *(
        f"{key}={value}"
        for key in ("scheme", "method", "data", "model", "losses.response", "experiment")
        for value in ("[a]", "{a: b}", "{name: [a]}", "3", "", LONG, "\x1b[31m", "a\nb", DEEP)
    ),
    *(
        "tracker=[wandb,wandb]",
        "tracker=[[wandb]]",
        "tracker={a: b}",
        "tracker=3",
        "precision=[fp32]",
        "device=" + LONG,
    ),
    *(
        "losses=3",
        "losses=[a]",
        "losses.extra=[[a]]",
        "losses.extra={a: 1}",
        "losses.extra=[{name: [a]}]",
        "losses.extra=" + LONG,
    ),
    *(
        "losses.response.schedule=[a]",
        "losses.feature.stages={a: b}",
        "model.checkpoint=[a]",
        "model.checkpoint={a: b}",
    ),
    # keys
    *(
        ".".join(["a"] * 5_000) + "=1",
        LONG + "=1",
        "\x1b[31m=1",
        "=",
        "",
        "-",
        "--x",
        "~=1",
        "seed",
        LONG,
        "scheme.a.b=1",
    ),
    *(
        "train=3",
        "optim={1: 2}",
        "optim={[a]: 2}",
        "scheme={name: {a: b}}",
        "data={name: digits, name: {}}",
        "teacher=[]",
    ),
    # text and paths
    *('"\\0"', "'", "[", "{", '"\\ud800"', "\udcff"),
    *(
        'output_dir="\\0"',
        "output_dir='",
        "output_dir=[a]",
        "output_dir=3",
        "output_dir=",
        "group=3",
        "group=true",
        "group=[a]",
    ),
    *(
        f"{key}={path}"
        for key in ("output_dir", "data.root", "model.checkpoint")
        for path in ("~nosuchuser/x", NAME, LONG)
    ),
    *("experiment=.", "experiment=/dev/zero.yaml", "experiment=/etc", "experiment=folder.yaml", "experiment=folder.py"),
    *(
        "experiment=pipe.yaml",
        "experiment=pipe.py",
        f"experiment={NAME}.yaml",
        "experiment=~nosuchuser/a.yaml",
        "experiment=../../x",
    ),
]

TEXTS = [
    *(
        f"seed: {value}"
        for value in (DEEP, "2024-13-01", "!!float abc", "!!int abc", "!!bool abc", "9" * 5_000, "0x" + "f" * 5_000)
    ),
    *(
        "seed: !!timestamp 2024-13-01",
        "seed: !!binary a",
        "seed: !!python/name:os.system x",
        "seed: &a [*a]",
        BOMB,
        MERGES,
    ),
    *(
        "- " * 600,
        "[" * 100_000,
        "{a: " * 600,
        "a: *b",
        "{[a]: b}",
        "? [a]\n: b",
        "\0",
        "\x1b[31m",
        '"\\0": 1',
        'seed: "\\0"',
    ),
    *(
        "method: [a]",
        "method: {a: b}",
        "scheme: [a]",
        "scheme: {name: [a]}",
        "scheme: {name: {a: b}}",
        "scheme: {method: {}}",
    ),
    *(
        "data: {name: []}",
        "model: {name: {a: b}}",
        "losses: {response: {name: [a]}}",
        "losses: {response: [a]}",
        "losses: []",
    ),
    *(
        "losses: {extra: [[a]]}",
        "losses: {a: b}",
        "losses: {1: 2}",
        "teacher: {a: b}",
        "optim: {1: 2}",
        "1: 2",
        "null: 1",
    ),
    *(
        "a" * 100_000 + ": 1",
        "scheme: " + "a" * 100_000,
        ".".join("a" * 5_000) + ": 1",
        "a.b: {c.d: {e.f: 1}}",
        "rows: 3",
    ),
    *(
        "rows: {a: 1}",
        "{columns: {[a]: 1}, rows: {}}",
        "",
        "# nothing",
        "3",
        "text",
        "---\na: 1\n---\nb: 2",
        "%YAML 9.9\n---\na",
    ),
    *(
        "scheme: {name: topology}",
        "scheme: {name: topology, file: x.py, digest: 1}",
        "train: {epochs: 1e300}",
        "train: 3",
        "train: [1]",
        "data: 3",
        "data: {flip: [a]}",
    ),
]

PYTHON = [
    *(
        "RECIPE = {[1]: 2}",
        "RECIPE = {{1: 2}: 3}",
        "RECIPE = 3",
        "RECIPE = []",
        "RECIPE = {}",
        "RECIPE = {'seed': {1, 2}}",
    ),
    *(
        "RECIPE = {'seed': b'1'}",
        "RECIPE = {'seed': 1j}",
        f"RECIPE = {{'seed': {'9' * 5_000}}}",
        f"RECIPE = {{'seed': {DEEP}}}",
    ),
    *(
        "RECIPE = {'seed': 0x" + "f" * 5_000 + "}",
        "RECIPE = {'a': open('x')}",
        "RECIPE = {'a': '\\0'}",
        "\0",
        "(",
        "-" * 5_000 + "1",
    ),
    *(
        "RECIPE = {'seed': 1}\ndef topology(config, task): return None",
        "RECIPE = {'seed': 1}\ntopology = 3",
        "RECIPE = {'seed': 1}",
    ),
    *(
        "RECIPE = {'seed': 1}\nimport nosuchmodule",
        "RECIPE = {'seed': 1}\nraise SystemExit",
        f"x = {DEEP}",
        "RECIPE = {'seed': -1}",
    ),
]

STUDIES = [
    *(f"question: Q\n{text}" for text in TEXTS if text not in ("", "# nothing")),
    *("question: Q\ngrid: {seed: []}", "question: [Q]", "question: Q\nbase: 3", "question: Q\nbase: {experiment: [a]}"),
    "question: Q\ngrid: {optim.lr: [" + ",".join(map(str, range(1, 301))) + "], optim.gamma: [" + "1," * 300 + "]}",
    "question: Q\nseeds: [" + ",".join(map(str, range(5_000))) + "]",
    "question: Q\nseeds: [4294967296, -1]",
    "question: Q\nbase: {" + ",".join(f"k{n}: 1" for n in range(2_000)) + "}",
    "question: Q\nvariants: {a: {}, [b]: {}}",
    "question: Q\nvariants: {a: {seed: 1}}",
    "question: Q\nbudget: {hours: 1e400}",
    "question: Q\nbudget: {hours: [a]}",
    "question: Q\nanalyses: [[a]]",
    "question: Q\nanalyses: [{a: b}]",
    "question: Q\nbaseline: [a]",
    "question: Q\nprerequisites: {a: {}, b: 3}",
    "question: Q\nprerequisites: {'../a': {}}",
]

COMMANDS = [
    *(
        ["compare", "BAD", "BAD"],
        ["cite", "BAD"],
        ["export", "BAD", "out"],
        ["cache", "verify", "BAD"],
        ["cache", "list", "BAD"],
    ),
    *(["study", "run", "BAD"], ["study", "submit", "BAD"], ["study", "status", "BAD"], ["study", "report", "BAD"]),
    *(
        ["wandb", "sync", "BAD"],
        ["methods", "BAD"],
        ["stages", "BAD"],
        ["BAD"],
        ["study", "BAD"],
        ["train", "--help", "BAD"],
    ),
]

OPTIONS = [
    *(["stages", "convnet", "--channels", value] for value in ("0", "-1", "1" * 30, "9" * 5_000, "²", "1e3", LONG)),
    *(["stages", "convnet", "--image-size", value] for value in ("100000", "7", "x")),
    *(
        ["study", "run", "alpha_digits", "--dry-run", f"--{name}", value]
        for name in ("parallel", "memory")
        for value in ("0", "-1", "nan", "9" * 5_000, LONG, "1e400")
    ),
    *(
        ["cache", "verify", "x", f"--{name}", value]
        for name in ("samples", "seed")
        for value in ("x", "-1", "9" * 5_000)
    ),
    *(
        ["study", "run", "alpha_digits", word]
        for word in ("a", "seed=1", "--x", LONG, f"{LONG}=1", "\x1b=1", "optim.lr=1e300")
    ),
    *(
        ["study", "run", "alpha_digits", "--", LONG],
        ["study", "status", "alpha_digits", LONG],
        ["methods", "a", "--" + LONG],
    ),
]


def named(value: object) -> str:
    return ascii(value)[:40]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "place"
    (place / "folder.yaml").mkdir(parents=True)
    (place / "folder.py").mkdir()
    for name in ("pipe.yaml", "pipe.py"):
        os.mkfifo(place / name)
    monkeypatch.chdir(place)
    return place


def refused(words: list[str], capsys: pytest.CaptureFixture[str], place: Path, *, code: int = 2) -> str:
    before, start = sorted(place.rglob("*")), time.process_time()
    capsys.readouterr()
    assert cli.main(words) == code
    out, err = capsys.readouterr()
    assert out == "" or (words[0] == "train" and re.fullmatch("starting .*\n", out))  # found with torch, or before
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.removesuffix("\n").isprintable()
    assert len(err) < 2_100
    assert all("".join(same) == "" or len("".join(same)) <= 200 for letter, same in itertools.groupby(err))
    assert sorted(place.rglob("*")) == before
    assert time.process_time() - start < 10
    return err


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("word", WORDS, ids=named)
def test_of_train(word: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["train", word], capsys, place)


@pytest.mark.parametrize("text", [*TEXTS, *PYTHON], ids=named)
def test_in_a_recipe(text: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / f"mine.{'py' if text in PYTHON else 'yaml'}"
    path.write_text(text)
    refused(["train", f"experiment={path}"], capsys, place)


@pytest.mark.parametrize("text", STUDIES, ids=named)
def test_in_a_study(text: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "mine.yaml").write_text(text)
    refused(["study", "run", "mine.yaml"], capsys, place)


@pytest.mark.parametrize("text", TEXTS, ids=named)
def test_in_the_folder_of_a_run_or_study(text: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "run").mkdir()
    for name in ("config.yaml", "study.yaml", "results.json", "key.json", "rebuild.yaml"):
        (place / "run" / name).write_text(text)
    for words in (["cite", "run"], ["export", "run", "out"], ["compare", "run", "run"], ["cache", "verify", "run"]):
        refused(words, capsys, place)
    refused(["study", "status", "run"], capsys, place)
    refused(["study", "report", "run"], capsys, place)


@pytest.mark.parametrize("path", BAD_PATHS, ids=named)
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_of_a_command(words: list[str], path: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused([word.replace("BAD", path) for word in words], capsys, place)


@pytest.mark.parametrize("words", OPTIONS, ids=named)
def test_of_an_option(words: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(words, capsys, place)


GROUPS = ("scheme", "method", "data", "model", "teacher", "optim", "train", "losses", "experiment", *SCHEMES)
NAMES = [*(name for table in (*SCHEMES.values(), *KINDS.values()) for name in table), *SCHEMES, *DATA, *MODELS, *GROUPS]
ODD = [0, 1, -1, 2, 10**9, 2**63, 0.5, 1e300, 1e-40, float("inf"), float("nan"), True, False, None, "", "~", "a: b"]
KEYS = [*all_keys(), *GROUPS, *(f"losses.{kind}" for kind in KINDS)]


def odd(chance: random.Random, depth: int = 0) -> Any:
    """Return a random value: often a name that some key has, or a list or mapping of such."""
    kind = chance.choice(["name", "name", "odd", "list", "mapping"] if depth < 3 else ["name", "odd"])
    if kind == "list":
        return [odd(chance, depth + 1) for _ in range(chance.randint(0, 3))]
    if kind == "mapping":
        return {
            chance.choice([*NAMES, "name", "weight", 1]): odd(chance, depth + 1) for _ in range(chance.randint(0, 3))
        }
    return chance.choice(NAMES if kind == "name" else ODD)


def drawn(chance: random.Random, most: int) -> dict[str, Any]:
    """Return random keys, each with its default or a random value."""
    tree = {}
    for key in chance.sample(KEYS, chance.randint(1, most)):
        default = getattr(all_keys().get(key), "default", MISSING)
        tree[key] = odd(chance) if default is MISSING or chance.random() < 0.5 else default
    return tree


@pytest.mark.parametrize("seed", range(2))
def test_random_configurations_load_or_are_refused(seed: int, place: Path) -> None:
    """What loads has a name and comes back from its YAML; all else is a UserError, never another exception."""
    chance = random.Random(seed)
    loaded = 0
    for _ in range(150):
        tree = drawn(chance, 2)
        words = [f"{key}={in_line(value)}" for key, value in tree.items()]
        (place / "mine.yaml").write_text(to_yaml(drawn(chance, 2)))
        study = {"question": "Q", "base": tree, "variants": odd(chance), "grid": drawn(chance, 1)}
        (place / "study.yaml").write_text(to_yaml(study))
        for arguments in (words, ["experiment=mine.yaml"], ["experiment=mine.yaml", *words]):
            try:
                config = load_config(arguments, recipes=place)
                name = run_name(config)
            except UserError:
                continue
            loaded += 1
            assert len(name) < 255
            (place / "config.yaml").write_text(dump_yaml(config))
            assert run_name(load_config(["experiment=config.yaml"], recipes=place)) == name
        try:
            read_study(place / "study.yaml", [], recipes=place)
        except UserError:
            continue
    assert loaded > 10
