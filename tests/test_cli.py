from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdschemes import __main__, cli
from kdschemes.cards.read import loss_card, method_card
from kdschemes.config.data import Digits
from kdschemes.config.load import load_config
from kdschemes.config.losses import KINDS
from kdschemes.config.schemes import SCHEMES
from kdschemes.data import open_data

PACKAGE = Path(cli.__file__).parent
CARDS = PACKAGE / "cards" / "methods"
METHODS = {method: scheme for scheme, table in SCHEMES.items() for method in table}
LOSSES = {loss: kind for kind, table in KINDS.items() for loss in table if loss != "none"}


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("name", dict.fromkeys([*METHODS, *LOSSES]))
def test_methods_prints_the_cards_of_a_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    method = [method_card(METHODS[name], name).text + "\n"] if name in METHODS else []
    loss = [loss_card(LOSSES[name], name).text + "\n"] if name in LOSSES else []
    assert answer(capsys, "methods", name) == "\n".join(method + loss)
    if method:
        assert answer(capsys, "methods", f"{METHODS[name]}/{name}") == method[0]
    if loss:
        assert answer(capsys, "methods", f"{LOSSES[name]}/{name}") == loss[0]


def test_methods_lists_everything(capsys: pytest.CaptureFixture[str]) -> None:
    methods, losses = (table.splitlines() for table in answer(capsys, "methods").split("\n\n"))
    assert methods[0].split() == ["method", "paper", "scheme", "formula", "default"]
    assert losses[0].split() == ["loss", "paper", "kind", "formula", "weight"]
    for (head, *lines), expected in ((methods, METHODS), (losses, LOSSES)):
        starts = [head.index(word) for word in head.split()]
        rows = [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for line in lines]
        assert {row[0]: row[2] for row in rows} == expected
    by_name = {line.split()[0]: line for line in methods}
    assert by_name["byot"].split()[-6:] == ["alpha", "0.5,", "kd", "1,", "hint", "0.03"]
    assert "Hinton et al. 2015" in by_name["kd"]
    assert "KL(softmax(v_n / T) || softmax(z_n / T))" in by_name["kd"]
    (line,) = (line for line in losses if line.startswith("at "))
    assert "Zagoruyko & Komodakis 2017" in line
    assert line.endswith("  1000")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_methods_fits_the_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = answer(capsys, "methods").splitlines()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    fitted = answer(capsys, "methods").splitlines()
    assert max(map(len, fitted)) <= width
    assert [line.split()[:1] for line in fitted[: len(full)]] == [line.split()[:1] for line in full]
    assert ("formula" in fitted[0]) == (width == 120)


def test_at_80_columns_methods_shows_whole_names_and_weights(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    fitted = answer(capsys, "methods").splitlines()
    assert any(re.fullmatch(r"byot +Zhang et al\. 2019 +self +alpha 0\.5, kd 1, hint 0\.03", line) for line in fitted)
    assert sum("…" in line for line in fitted) < 5


def test_methods_reads_no_torch_and_may_be_cut_off() -> None:
    code = (
        "import sys; from kdschemes import cli; code = cli.main(['methods']); "
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'numpy')))"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=PACKAGE.parent)
    command = [sys.executable, "-m", "kdschemes.cli", "methods"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, cwd=PACKAGE.parent)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_page_of_losses_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = PACKAGE.parent / "docs" / "losses.md"
    text = answer(capsys, "methods", "--markdown")
    assert page.read_text() == text, "regenerate it: kdschemes methods --markdown > docs/losses.md"
    links = [line.split("](")[1].split(")")[0] for line in text.splitlines() if line.startswith("| [")]
    assert len(links) == len(METHODS) + len(LOSSES)
    assert [link for link in links if not (page.parent / link).is_file()] == []
    columns = {len(line.replace("\\|", "").split(" | ")) for line in text.splitlines() if line.startswith("| ")}
    assert columns == {6, 7}


def test_stages(capsys: pytest.CaptureFixture[str]) -> None:
    lines = answer(capsys, "stages", "resnet20", "--data", "cifar100").splitlines()
    assert lines[0] == "resnet20 on 3x32x32, 100 classes: 278,324 parameters, 40,818,944 MACs"
    assert [line.split() for line in lines[1:]] == [
        ["stage", "depth", "features"],
        ["layer1", "35.8", "%", "16x32x32"],
        ["layer2", "67.9", "%", "32x16x16"],
        ["layer3", "100.0", "%", "64x8x8"],
    ]


def test_stages_of_other_images(capsys: pytest.CaptureFixture[str]) -> None:
    head, _, first, *_ = answer(capsys, "stages", "convnet", "--channels", "3", "--image-size", "16").splitlines()
    assert head.startswith("convnet on 3x16x16, 10 classes: ")
    assert first.split()[-1].startswith("32x")


@pytest.mark.parametrize("former", [*cli.RENAMED, "study"])
def test_former_commands_name_the_new_ones(former: str, capsys: pytest.CaptureFixture[str]) -> None:
    new = f"{cli.RENAMED[former]}" if former != "study" else "study run alpha_digits"
    assert cli.main([former, "alpha_digits"]) == 2
    shown = f"{former} alpha_digits" if former == "study" else former
    assert capsys.readouterr().err == f"error: 'kdschemes {shown}' is now 'kdschemes {new}'\n"


def test_facts_of_digits_are_those_of_the_data() -> None:
    digits = open_data(load_config(["data.train_fraction=1"], recipes=CARDS).data, seed=0, device=torch.device("cpu"))
    facts = (Digits.channels, Digits.image_size, Digits.num_classes, Digits.train_samples)
    trained = digits.sizes["train"] + digits.sizes["val"]
    assert facts == (digits.channels, digits.image_size, digits.num_classes, trained)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["methods", "dlm"], ["unknown method or loss 'dlm'", "did you mean 'dml'?"]),
        (["methods", "offline/dml"], ["unknown method or loss 'offline/dml'", "did you mean 'online/dml'?"]),
        (["methods", "none"], ["unknown method or loss 'none'"]),
        (["methods", "kd", "--markdown"], ["--markdown prints all", "leave the name out"]),
        (["cite"], ["RUN", "kdschemes cite --help"]),
        (["stages", "resnt20"], ["unknown model 'resnt20'", "did you mean 'resnet20'?", "timm/NAME"]),
        (["stages", "convnet", "--data", "cifar"], ["unknown data 'cifar'", "cifar10", "image_folder"]),
        (
            ["stages", "convnet", "--image-size", "0"],
            ["--image-size", "'0' is not a whole number from 1 to 4096"],
        ),
        (["stages", "convnet", "--image-size", "4"], ["needs 8x8 or more, not 4x4"]),
        (["stages"], ["MODEL", "kdschemes stages --help"]),
        (["trian"], ["did you mean 'train'?", "study", "stages", "methods", "cite", "compare", "cache", "wandb"]),
        (["study", "repot"], ["did you mean 'report'?", "run", "submit", "status"]),
        (["methods", "kd", "dml"], ["unrecognized arguments: dml"]),
        (["study", "status"], ["STUDY", "kdschemes study status --help"]),
        (["study", "status", "alpha_digit"], ["unknown study 'alpha_digit'", "did you mean 'alpha_digits'?"]),
        (["study", "report"], ["STUDY_OR_RUN", "kdschemes study report --help"]),
        (["study", "submit", "alpha_digits", "epochs"], ["alpha_digits.yaml", "'epochs' is not KEY=VALUE"]),
        ([], ["COMMAND", "kdschemes --help"]),
    ],
)
def test_mistakes_are_reported_in_one_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [word for word in words if word not in err] == []


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["methods"], ["methods", "kd"], ["methods", "nothing"], ["cite", "."]),
        *(["study", "submit", "nothing"], ["study", "status", "nothing"], ["study", "status", "alpha_digits"]),
        *(["study", "report", "nothing"], ["train", "--help"], ["train", "scheme=onlin"]),
    ],
)
def test_torch_is_imported_only_when_needed(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom kdschemes.cli import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n    assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CARDS.parents[2], check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout or done.stderr.startswith("error: ")


RECIPES = {
    "import torch\ndef topology(config, task): return torch.empty(10**14)": "error: out of memory (",
    "def topology(config, task): raise MemoryError": "error: out of memory (MemoryError): use a smaller",
    "def topology(config, task): return None": "error: topology in recipe PATH returned a NoneType: return a",
    "raise SystemExit(3)": "error: topology PATH cannot be imported (SystemExit: 3, mine.py line 1)",
}


@pytest.mark.parametrize(("code", "words"), RECIPES.items())
def test_what_a_recipe_does_wrong_is_one_line(
    code: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "mine.py", tmp_path / "runs"
    path.write_text(code)
    assert cli.main(["train", f"experiment={path}", f"output_dir={output}"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("starting scheme=topology ")
    assert (out.count("\n"), err.count("\n"), output.exists()) == (1, 1, False)
    assert err.startswith(words.replace("PATH", str(path)))


def test_another_runtime_error_is_raised(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def topology(config, task): raise RuntimeError('a fault of the program')")
    with pytest.raises(RuntimeError, match="a fault of the program"):
        cli.main(["train", f"experiment={path}", f"output_dir={tmp_path}"])


def test_threads_that_the_machine_cannot_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = max(64, os.cpu_count() or 1) + 1
    assert cli.main(["train", f"train.num_threads={more}", f"output_dir={tmp_path}"]) == 2
    assert f"train.num_threads={more}, but this machine has {os.cpu_count()} cores" in capsys.readouterr().err


def test_an_argument_cannot_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["methods", "\x1b]0;x\x07\n\udcff"], ["train", "\x1b]0;x\x07\n\udcff=3"]):
        assert cli.main(command) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "\\x1b]0;x\\x07" in err
        assert "\\udcff" in err
        assert err.rstrip("\n").isprintable()


@pytest.mark.slow
def test_every_seed_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["train.epochs=1", "data.train_fraction=0.05", "train.batch_size=16", "train.num_threads=1"]
    seeds = [f"{key}={2**64}" for key in ("seed", "data.split_seed")]
    assert cli.main(["train", *few, *seeds, f"output_dir={tmp_path}"]) == 0
    assert len(list(tmp_path.glob(f"online-dml-digits-wrn_16_1-seed{2**64}-*/results.json"))) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "shown"), [(["train", "x"], "starting ...\r"), (["train", "x", "--help"], ""), (["methods", "x"], "")]
)
def test_a_terminal_shows_at_once_that_a_run_starts(
    words: list[str], shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert __main__.main(words) == 2
    assert capsys.readouterr().out == shown
    monkeypatch.undo()
    assert __main__.main(words) == 2
    assert capsys.readouterr().out == ""
