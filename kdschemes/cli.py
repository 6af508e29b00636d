"""The command line: `kdschemes`, and what `run.py` calls."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from kdschemes.cards import cite
from kdschemes.cards import read as cards
from kdschemes.config import Config
from kdschemes.config.code import CodeRefused, allow_named, parse_code
from kdschemes.config.data import DATA
from kdschemes.config.paths import expand
from kdschemes.config.plugins import load_installed, load_plugins
from kdschemes.errors import ErrorOnMain, TrainingStopped, UserError, nearest, out_of_memory, shown, unknown
from kdschemes.printable import printable
from kdschemes.training.signals import StopSignal

HELP = {"-h", "--help"}

RENAMED = {
    "submit": "study submit",
    "status": "study status",
    "report": "study report",
    "sync": "wandb sync",
    "dashboard": "wandb dashboard",
}
"""Commands by their former words."""

LONGEST_ERROR = 2_000
"""Characters that an error has at most."""

Command = Callable[[argparse.Namespace], str | int]
"""A command: from its options to what it prints, or to an exit code."""


def main(arguments: Sequence[str] | None = None, *, recipes: Path | None = None) -> int:
    """Run one command; return the process's exit code. `recipes` is that of `train`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["train"] or (words and "=" in words[0] and not words[0].startswith("-")):
        return train(words[words[0] == "train" :], recipes=recipes)
    try:
        options = _options(words)
        command: Command = options.command
        result = command(options)
        if isinstance(result, int):
            return result
        print(printable(result, lines=True), flush=True)
    except BrokenPipeError:
        _discard_output()
    except CodeRefused as error:
        end = words.index("--") if "--" in words else len(words)
        _print_error(CodeRefused(error.refused, shlex.join(["kdschemes", *words[:end], *_flags(error), *words[end:]])))
        return 2
    except (UserError, MemoryError, RuntimeError) as error:
        _print_error(_told(error))
        return 2
    return 0


# --------------------------------------------------------------------------------------------------------------- train


def train(arguments: Sequence[str], *, recipes: Path | None = None) -> int:
    """Train one run, or print its help; return the process's exit code. Called by each process of a run.

    `recipes` is the folder of recipes (None: `kdschemes.study.locate.recipes`).
    """
    main_process = os.environ.get("RANK", "0") == "0"
    notes: list[str] = []
    try:
        if HELP & set(arguments):
            from kdschemes.config.help import help_text
            from kdschemes.config.load import load_typed_plugins

            named = [word for word in arguments if word.startswith("plugins=")]
            load_typed_plugins(named)
            if main_process:
                print(help_text([word for word in arguments if word not in (*HELP, *named)]), end="", flush=True)
            return 0

        from kdschemes.config.load import allow_typed, check_allowed, load_config

        if recipes is None:
            from kdschemes.study.locate import recipes as known

            recipes = known()
        given, arguments = arguments, _allow_flags(arguments)
        allow_typed(arguments, recipes=recipes)
        config = load_config(arguments, recipes=recipes, say=notes.append)
        check_allowed([config])
    except BrokenPipeError:
        _discard_output()
        return 0
    except CodeRefused as error:
        if main_process:
            words = ["kdschemes", "train", *_flags(error), *given]
            _print_error(CodeRefused(error.refused, shlex.join(words)))
        return 2
    except UserError as error:
        if main_process:
            _print_error(error)
        return 2
    with StopSignal() as stop:
        if main_process:
            _say_what_starts(config, notes)
        return _train(config, stop, main_process=main_process)


def _say_what_starts(config: Config, notes: Sequence[str]) -> None:
    """Say at once what is about to be trained: importing torch and opening the data take a while."""
    what = {"scheme": config.scheme.name, "method": config.scheme.method, "data": config.data.name}
    what |= {"model": config.model.name, "epochs": config.train.epochs, "seed": config.seed}
    with contextlib.suppress(OSError):  # nobody reads it any more
        for line in (*notes, "starting " + " ".join(f"{key}={value}" for key, value in what.items())):
            print(printable(line), flush=True)


def _allow_flags(arguments: Sequence[str]) -> list[str]:
    """Allow the code after each `--allow`, and return the other arguments."""
    others, words = [], iter(arguments)
    for word in words:
        if word == "--allow":
            allow_named([next(words, "")])
        elif word.startswith("--allow="):
            allow_named([word.removeprefix("--allow=")])
        else:
            others.append(word)
    return others


def _flags(error: CodeRefused) -> list[str]:
    return [word for _, name in error.refused for word in ("--allow", name)]


def _train(config: Config, stop: StopSignal, *, main_process: bool) -> int:
    """Train one run. Importing torch takes seconds: by then, signals are remembered."""
    try:
        from kdschemes.tracking.console import until_closed
        from kdschemes.tracking.tables import results_table
        from kdschemes.training.train import baselines_of
        from kdschemes.training.train import train as train_run

        finished = train_run(config, stop)
    except TrainingStopped as error:
        if main_process:
            _print_error(error)
        return 1
    except (UserError, MemoryError, RuntimeError) as error:
        told = _told(error)
        if not isinstance(told, ErrorOnMain):
            node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
            rank = os.environ.get("RANK")
            _print_error(told if main_process else UserError(f"process {rank} on {node}: {told}"))
        return 2
    except KeyboardInterrupt:
        return 130
    if main_process:
        with until_closed():
            print(printable(results_table(finished.results, *baselines_of(finished)), lines=True))
            print(printable(f"run folder: {finished.folder}"), flush=True)
    return 0


def _told(error: Exception) -> UserError:
    """Return the error that is a user's; another one that does not say that memory is too small is raised again."""
    told = error if isinstance(error, UserError) else out_of_memory(error)
    if told is None:
        raise error
    return told


def _print_error(error: Exception) -> None:
    """Print an error in one line, whatever line breaks, control characters and endless words it has."""
    text = re.sub(r"\S{401,}", lambda word: shown(word[0]), " ".join(str(error).splitlines()))
    print(f"error: {shown(text, LONGEST_ERROR)}", file=sys.stderr)


def _discard_output() -> None:
    """Discard what is still to be written to a pipe that nobody reads any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ------------------------------------------------------------------------------------------------------------- studies


def run_study(options: argparse.Namespace) -> str | int:
    """Run the unfinished runs of a study and return the exit code; or return what was submitted, or would be run."""
    if options.slurm:
        if options.memory is not None:
            raise UserError("--memory is for runs on this machine: with --slurm pass --mem to sbatch, after --")
        return submit_study(options)
    if options.sbatch:
        raise UserError(f"{shown(options.sbatch[0])} after -- is an option of sbatch: add --slurm")
    from kdschemes.study.local.run import study_here

    _allow_for_study(options)
    memory = options.memory * 1e9 if options.memory is not None else None
    return study_here(
        options.study,
        options.override,
        parallel=options.parallel,
        memory=memory,
        dry_run=options.dry_run,
        report=_report_at_end,
    )


def _report_at_end(folder: Path) -> bool:
    """Write the report of a study and print its main numbers; if it can't be written, print why and return False."""
    if missing := [name for name in ("altair", "vl_convert", "scipy") if find_spec(name) is None]:
        print(f"no report: {missing[0]} is not installed; kdschemes study report {folder} writes it where it is")
        return False
    from kdschemes.report import report as write_report

    print("writing the report", flush=True)
    try:
        written = write_report([str(folder)], output=None, out=None)
        print(printable(f"\n{written}\n", lines=True), flush=True)
    except UserError as error:
        print(printable(f"no report: {error}"), flush=True)
        return False
    return True


def submit_study(options: argparse.Namespace) -> str:
    """Submit the unfinished runs of a study to SLURM, or return what would be submitted."""
    from kdschemes.study.slurm.submit import submit

    _allow_for_study(options)
    parallel, dry_run = options.parallel, options.dry_run
    return submit(options.study, options.override, parallel=parallel, extra=options.sbatch, dry_run=dry_run)


def _allow_for_study(options: argparse.Namespace) -> None:
    """Allow the code that the command line names; the study's file and its earlier overrides allow none."""
    from kdschemes.config.load import allow_typed
    from kdschemes.study.locate import recipes

    allow_named(options.allow)
    allow_typed(options.override, recipes=recipes())


def study_status(options: argparse.Namespace) -> str:
    """Return the table of a study's runs."""
    from kdschemes.study.locate import find_study
    from kdschemes.study.status import status, table

    allow_named(options.allow)
    return table(status(find_study(options.study, options.output)))


def report(options: argparse.Namespace) -> str:
    """Write the report of a study, or of runs, and return its main numbers."""
    from kdschemes.report import report as write_report

    allow_named(options.allow)
    return write_report(options.of, output=options.output, out=options.out)


def init(options: argparse.Namespace) -> str:
    """Write the batch scripts and a site file into a folder."""
    from kdschemes.study.slurm.init import init as write_scripts

    return write_scripts(Path(options.folder))


# ------------------------------------------------------------------------------------------- runs, methods and networks


def methods(options: argparse.Namespace) -> str:
    """Return the tables of all methods and losses, for the terminal or as markdown, or the cards of one name."""
    allow_named(options.plugin)
    load_plugins(options.plugin, {})
    load_installed()
    if options.markdown:
        if options.name is not None:
            raise UserError("--markdown prints all methods and losses: leave the name out")
        return cards.markdown()
    if options.name is not None:
        return "\n\n".join(card.text for card in cards.cards_named(options.name))
    return cards.listing(shutil.get_terminal_size().columns if sys.stdout.isatty() else None)


def citations(options: argparse.Namespace) -> str:
    """Return the BibTeX of what a run used."""
    allow_named(options.allow)
    return cite.cite(Path(options.run))


def compare(options: argparse.Namespace) -> str:
    """Return two runs side by side."""
    from kdschemes.report.two_runs import compare as compare_runs

    return compare_runs(options.first, options.second)


def list_caches(options: argparse.Namespace) -> str:
    """Return the table of the teacher caches in a folder."""
    from kdschemes.teacher_cache.listing import listing

    return listing(Path(options.folder))


def verify_cache(options: argparse.Namespace) -> str:
    """Recompute a sample of a teacher cache and return how close it is."""
    from kdschemes.teacher_cache.verify import verify

    allow_named(options.allow)
    return verify(Path(options.folder), options.samples, options.override, options.seed)


def wandb_dashboard(options: argparse.Namespace) -> str:
    """Build the workspace that compares schemes; save it in W&B, or write it to a file."""
    from kdschemes.tracking.dashboard import dashboard

    out = Path(options.out) if options.out is not None else None
    return dashboard(options.project, entity=options.entity, group=options.group, out=out)


def wandb_sync(options: argparse.Namespace) -> str:
    """Upload the runs that W&B's client wrote offline."""
    from kdschemes.tracking.upload import sync

    return sync(Path(options.folder), dry_run=options.dry_run, say=lambda line: print(printable(line), flush=True))


def stages(options: argparse.Namespace) -> str:
    """Return a table of a model's stages: name, depth in percent of the MACs, shape of one sample's features."""
    if options.data not in DATA:
        raise unknown("data", options.data, DATA)
    from kdschemes import models

    data = DATA[options.data]
    if parse_code(options.model) is not None:
        allow_named([options.model])
    channels, side = options.channels or data.channels, options.image_size or data.image_size
    network = models.create_model(options.model, num_classes=data.num_classes, channels=channels, image_size=side)
    found = models.stages(network, channels, side)
    parameters, macs = models.count_parameters(network), models.count_macs(network, channels, side)
    head = f"{options.model} on {channels}x{side}x{side}, {data.num_classes} classes"
    return f"{head}: {parameters:,} parameters, {macs:,} MACs\n{models.describe_stages(found)}"


# -------------------------------------------------------------------------------------------------------------- deploy


def evaluate(options: argparse.Namespace) -> str:
    """Return the metrics of every head of a run, or of given weights, without training."""
    from kdschemes.deployment.evaluate import evaluate as evaluate_heads

    allow_named(options.allow)
    source, split = Path(options.source), options.split
    return evaluate_heads(source, options.override, split=split, best=options.best, as_json=options.json)


def predict(options: argparse.Namespace) -> int:
    """Print the classes of images; images that can't be read are reported after the others."""
    from kdschemes.deployment.predict import predict as predict_images

    allow_named(options.allow)
    images, top = [Path(image) for image in options.images], options.top
    found = predict_images(
        Path(options.source), images, head=options.head, best=options.best, top=top, as_json=options.json
    )
    print(printable(found.text, lines=True), flush=True)
    for fault in found.faults:
        _print_error(UserError(fault))
    return 2 if found.faults else 0


def export(options: argparse.Namespace) -> str:
    """Write a head of a run in a format for other programs, and check it."""
    from kdschemes.deployment.export import export as export_head
    from kdschemes.deployment.formats import Form

    allow_named(options.allow)
    form = Form(options.format, inside=options.preprocessing == "inside", int8=options.int8)
    return export_head(
        Path(options.run),
        Path(options.out) if options.out is not None else None,
        options.override,
        form=form,
        exits=options.exits,
        head=options.head,
        best=options.best,
        license_name=options.license,
        images=options.test_images,
    )


def bench(options: argparse.Namespace) -> str:
    """Measure the networks of runs side by side."""
    from kdschemes.deployment.bench import bench as measure

    allow_named(options.allow)
    output = Path(options.output) if options.output is not None else None
    return measure([Path(run) for run in options.runs], options.override, output=output, images=options.test_images)


def push(options: argparse.Namespace) -> str:
    """Upload a head of a run to the Hugging Face Hub."""
    from kdschemes.deployment.push import push as upload

    allow_named(options.allow)
    dry_run = Path(options.dry_run) if options.dry_run is not None else None
    return upload(
        Path(options.run),
        options.repository,
        head=options.head,
        best=options.best,
        license_name=options.license,
        private=options.private,
        dry_run=dry_run,
    )


# -------------------------------------------------------------------------------------------------------------- parser


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong command line in one line, and whose help lists its commands by group."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{shown(message)} (see {self.prog} --help)")

    def has_commands(self) -> None:
        """Prepare for `group` and `command`."""
        self.usage = f"{self.prog} COMMAND ...    (details: {self.prog} COMMAND --help)"
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        self.epilog = ""
        self.commands = self.add_subparsers(required=True, metavar="COMMAND", help=argparse.SUPPRESS, prog=self.prog)

    def group(self, title: str) -> None:
        """Begin a group of commands."""
        self.epilog = f"{self.epilog}\n{title}\n".lstrip("\n")

    def command(self, name: str, meaning: str, command: Command | None = None) -> Parser:
        """Add a command to the last group."""
        self.epilog = f"{self.epilog}  {name:<10} {meaning}\n"
        added: Parser = self.commands.add_parser(name, description=f"{meaning[:1].upper()}{meaning[1:]}.")
        added.set_defaults(command=command)
        return added

    def check(self, words: Sequence[str]) -> None:
        """Refuse a command that does not exist, or no longer: the message names the one to write.

        Raises:
            UserError: there is no such command.
        """
        if getattr(self, "commands", None) is None or not words or words[0].startswith("-"):
            return
        word, known = words[0], self.commands.choices
        if word in known:
            known[word].check(words[1:])
        elif self.prog == "kdschemes" and word in RENAMED:
            raise UserError(f"'kdschemes {word}' is now 'kdschemes {RENAMED[word]}'")
        elif self.prog == "kdschemes study" and not nearest(word, known):
            raise UserError(f"'kdschemes study {shown(word)}' is now 'kdschemes study run {shown(word)}'")
        else:
            raise unknown(f"command {self.prog}", word, known)


def _parser() -> Parser:
    parser = Parser(prog="kdschemes", description="Knowledge distillation: offline, online and self-distillation.")
    parser.has_commands()
    parser.group("train")
    parser.command("train", "one run, as run.py does: kdschemes train [KEY=VALUE ...] (kdschemes train --help)")
    _add_study(parser.command("study", "many runs and their report: run, submit, status, report"))
    start = parser.command("init", "a folder from which SLURM jobs are submitted: batch scripts, a site file", init)
    start.add_argument("folder", type=_path, metavar="FOLDER", nargs="?", default=".", help="gets slurm/ [.]")
    parser.group("look at runs")
    two = parser.command("compare", "two runs side by side: differing keys, results, cost, predictions", compare)
    two.add_argument("first", type=_path, metavar="RUN", help="folder of a run")
    two.add_argument("second", type=_path, metavar="RUN", help="folder of another run")
    credit = parser.command("cite", "the BibTeX of what a run used: method, losses, data, networks, options", citations)
    credit.add_argument("run", type=_path, metavar="RUN", help="folder of the run")
    _add_allow(credit, "the run")
    _add_wandb(parser.command("wandb", "Weights & Biases: sync (offline runs), dashboard"))
    _add_deployment(parser)
    parser.group("look at methods and networks")
    read = parser.command("methods", "all methods and losses, or the card of one: paper, equation, defaults", methods)
    read.add_argument("name", metavar="NAME", nargs="?", help="a method or a loss; SCHEME/METHOD or KIND/LOSS for one")
    read.add_argument("--plugin", metavar="FILE.py", action="append", default=[], help="also those that it adds")
    read.add_argument("--markdown", action="store_true", help="the page docs/losses.md")
    look = parser.command("stages", "the stages of a model: name, depth, shape of the features", stages)
    look.add_argument("model", metavar="MODEL", help="a network of kdschemes, or any timm model as timm/NAME")
    look.add_argument("--data", metavar="NAME", default="digits", help=f"images as in {', '.join(DATA)} [digits]")
    look.add_argument("--channels", type=_positive, metavar="C", help="another number of channels")
    look.add_argument("--image-size", type=_positive, metavar="S", help="another side in pixels")
    _add_cache(parser.command("cache", "stored predictions of frozen teachers: list, verify"))
    return parser


def _add_deployment(parser: Parser) -> None:
    parser.group("use what was trained")
    test = parser.command("evaluate", "all metrics of a run or of weights, on any data, without training", evaluate)
    test.add_argument(
        "source", type=_path, metavar="RUN_OR_WEIGHTS", help="folder of a run, or weights as for a teacher"
    )
    test.add_argument("--split", choices=["test", "val", "train"], default="test", help="images to evaluate on [test]")
    guess = parser.command("predict", "classes and probabilities of image files", predict)
    guess.add_argument("source", type=_path, metavar="RUN", help="folder of a run, or of exported safetensors")
    guess.add_argument("images", type=_path, metavar="IMAGE", nargs="+", help="files that Pillow reads")
    guess.add_argument("--top", type=_positive, metavar="K", default=1, help="classes per image [1]")
    out = parser.command("export", "a head of a run (a peer, say) as weights or a graph", export)
    out.add_argument("run", type=_path, metavar="RUN", help="folder of the run, finished or not")
    out.add_argument("out", type=_path, metavar="FOLDER", nargs="?", help="gets the files [RUN/export-FORMAT]")
    formats = ["safetensors", "timm", "torch.export", "onnx"]
    out.add_argument("--format", choices=formats, default="safetensors", help="weights, or a graph [%(default)s]")
    out.add_argument(
        "--preprocessing",
        choices=["beside", "inside"],
        default="beside",
        help="of a graph: beside: it takes images normalized as in config.json; inside: pixels as bytes [beside]",
    )
    out.add_argument("--exits", metavar="T1,T2", help="of a graph: early exit at confidences, or: low, middle, high")
    out.add_argument("--int8", action="store_true", help="of onnx: 8 bits, calibrated on training images")
    many = parser.command("bench", "networks side by side: size, latency, throughput, memory, accuracy", bench)
    many.add_argument("runs", type=_path, metavar="RUN", nargs="+", help="folders of finished runs, or of weights")
    many.add_argument("--output", type=_path, metavar="FOLDER", help="gets bench.json, bench.md and bench.png")
    send = parser.command("push", "a head of a run to the Hugging Face Hub, with a model card", push)
    send.add_argument("run", type=_path, metavar="RUN", help="folder of a finished run")
    send.add_argument("repository", metavar="OWNER/NAME", help="model repository, created if it is not there")
    send.add_argument("--private", action="store_true", help="of a new repository [public]")
    send.add_argument("--dry-run", type=_path, metavar="DIR", help="write what would be uploaded there; send nothing")
    for command in (test, out, many):
        where = "new places of data and teacher: data.root=, teacher.checkpoint="
        command.add_argument("override", metavar="KEY=VALUE", nargs="*", help=where)
    for command, what in ((out, "verify it on"), (many, "measure accuracy on")):
        meaning = f"{what} at most N evenly spaced test images [10000]"
        command.add_argument("--test-images", type=_images, metavar="N", default=10_000, help=meaning)
    for command in (guess, out, send):
        command.add_argument("--head", metavar="NAME", help="a head of the run's table [the first]")
    for command in (test, guess, out, send):
        command.add_argument("--best", action="store_true", help="weights of the best epoch [of the last checkpoint]")
    for command in (test, guess):
        command.add_argument("--json", action="store_true", help="print JSON [a table]")
    for command in (out, send):
        command.add_argument("--license", metavar="ID", default="unknown", help="of the weights [unknown]")
    for command in (test, guess, out, many, send):
        _add_allow(command, "the run")


def _add_allow(parser: Parser, what: str) -> None:
    parser.add_argument(
        "--allow",
        type=_path,
        metavar="CODE",
        action="append",
        default=[],
        help=f"Python that {what} names and may run: FILE.py, FILE.py:NAME or MODULE:NAME",
    )


def _add_study(parser: Parser) -> None:
    parser.has_commands()
    run = parser.command("run", "run the unfinished runs of a study on this machine, then report", run_study)
    submit = parser.command("submit", "submit the unfinished runs of a study to SLURM", submit_study)
    shared = "%(prog)s STUDY [KEY=VALUE ...] [--parallel P] [--allow CODE] [--dry-run]"
    run.usage = f"{shared} [--memory GB] [--slurm [-- OPTIONS]]"
    submit.usage = f"{shared} [-- OPTIONS OF SBATCH]"
    for command, parallel in ((run, "number of processes [one per GPU; 2 on CPU]"), (submit, "runs of an array [all]")):
        command.add_argument(
            "study", type=_path, metavar="STUDY", help="a study of experiments/studies, or the path of its file"
        )
        command.add_argument("override", metavar="KEY=VALUE", nargs="*", help="for all runs [as when it was started]")
        command.add_argument("--parallel", type=_positive, metavar="P", help=f"at the same time: {parallel}")
        _add_allow(command, "the study")
        command.add_argument("--dry-run", action="store_true", help="print what would be done, and write nothing")
    run.add_argument("--memory", type=_amount, metavar="GB", help="memory of all processes [80 %% of what is free]")
    run.add_argument("--slurm", action="store_true", help="the same as study submit; what follows -- goes to sbatch")
    status = parser.command("status", "the state of each run of a study, and why some failed", study_status)
    status.add_argument("study", type=_path, metavar="STUDY", help="name, file or folder of a study")
    show = parser.command("report", "tables, charts and verdicts of a study, or of runs", report)
    show.description = (
        "Write a report as one HTML file, as markdown, its numbers as CSV and JSON, and a PNG per chart; print the "
        "main numbers. That of a study is report.html, .md, .csv, .json and CHART.png in its folder; that of runs is "
        "report.html, ... and report_CHART.png in the current folder."
    )
    show.add_argument(
        "of", type=_path, metavar="STUDY_OR_RUN", nargs="+", help="a study's name or folder, or folders of runs"
    )
    for command in (status, show):
        _add_allow(command, "the study")
        command.add_argument(
            "--output", type=_path, metavar="FOLDER", help="folder that holds the runs' folders [runs]"
        )
    show.add_argument(
        "--out",
        type=_path,
        metavar="FILE",
        help="STEM.html or STEM.md: writes both, and the other files next to them",
    )


def _add_wandb(parser: Parser) -> None:
    parser.has_commands()
    send = parser.command("sync", "upload the runs that W&B's client wrote offline, once each, in order", wandb_sync)
    send.add_argument(
        "folder", type=_path, metavar="FOLDER", nargs="?", default="runs", help="holds the runs' folders [runs]"
    )
    send.add_argument("--dry-run", action="store_true", help="list what would be uploaded, and send nothing")
    board = parser.command(
        "dashboard", "a workspace that compares schemes: curves, bars, cost, alpha, T", wandb_dashboard
    )
    board.add_argument("--project", metavar="P", default=Config().project, help="project of the runs [%(default)s]")
    board.add_argument("--entity", metavar="E", help="user or team that owns it [yours]")
    board.add_argument("--group", metavar="STUDY", help="only the runs of this group [all of the project]")
    board.add_argument("--out", type=_path, metavar="FILE", help="write it to a JSON file instead of saving it in W&B")


def _add_cache(parser: Parser) -> None:
    parser.has_commands()
    listed = parser.command("list", "the caches in a folder, their sizes and teachers", list_caches)
    listed.add_argument(
        "folder", type=_path, metavar="FOLDER", nargs="?", default="runs/teacher_cache", help="[runs/teacher_cache]"
    )
    verify = parser.command("verify", "recompute a sample of a cache and compare", verify_cache)
    verify.add_argument("folder", type=_path, metavar="FOLDER", help="folder of one cache")
    keys = "new places of data and teacher: data.root=, ..."
    verify.add_argument("override", metavar="KEY=VALUE", nargs="*", help=keys)
    _add_allow(verify, "the cache")
    verify.add_argument("--samples", type=_positive, metavar="N", default=8, help="chunks of 256 images to compute [8]")
    verify.add_argument("--seed", type=_seed, metavar="S", default=0, help="chooses the chunks [0]")


def _options(words: list[str]) -> argparse.Namespace:
    """Read the command line. What follows `--` after a study is sbatch's; KEY=VALUE may stand between options."""
    parser, sbatch = _parser(), []
    parser.check(words)
    if words[:1] in (["export"], ["bench"], ["evaluate"]):
        keys = [word for word in words[1:] if _is_override(word)]
        options = parser.parse_args([word for word in words if word not in keys])
        options.override = keys
        return options
    takes_overrides = words[:2] in (["study", "submit"], ["study", "run"])
    if takes_overrides and "--" in words:
        end = words.index("--")
        words, sbatch = words[:end], words[end + 1 :]
    options, more = parser.parse_known_args(words)
    if more and (not takes_overrides or any(word.startswith("-") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if takes_overrides:
        options.override += more
        options.sbatch = sbatch
    return options


def _is_override(word: str) -> bool:
    """Return whether a word is KEY=VALUE, not an option or a path."""
    return re.match(r"[a-z_]+(\.[a-z_0-9]+)*=", word) is not None


def _path(text: str) -> str:
    try:
        return expand(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _amount(text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 < amount < math.inf:
        raise argparse.ArgumentTypeError(f"'{shown(text)}' is not a number above 0")
    return amount


def _positive(text: str) -> int:
    return _whole(text, 1, 4_096)


def _images(text: str) -> int:
    return _whole(text, 1, 1 << 32)


def _seed(text: str) -> int:
    return _whole(text, 0, 1 << 64)


def _whole(text: str, low: int, high: int) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 25 else -1
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f"'{shown(text)}' is not a whole number from {low} to {high}")
    return number


if __name__ == "__main__":
    sys.exit(main())
