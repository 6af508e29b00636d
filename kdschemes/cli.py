"""The command line: `kdschemes`, and what `run.py` calls."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from kdschemes.cards import cite
from kdschemes.cards import read as cards
from kdschemes.config import Config
from kdschemes.config.data import DATA
from kdschemes.errors import ErrorOnMain, TrainingStopped, UserError, nearest, unknown
from kdschemes.training.signals import StopSignal

HELP = {"-h", "--help"}

RENAMED = {
    "submit": "study submit",
    "status": "study status",
    "sync": "wandb sync",
    "dashboard": "wandb dashboard",
}
"""Commands by their former words."""


class Parser(argparse.ArgumentParser):
    """Tells a wrong command line in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help tells the usage)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the process's exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["train"]:
        return train(words[1:])
    try:
        options = _options(words)
        command: Callable[[argparse.Namespace], str | int] = options.command
        told = command(options)
        if isinstance(told, int):
            return told
        print(told, flush=True)
    except BrokenPipeError:
        _discard_output()
    except UserError as error:
        print_error(error)
        return 2
    return 0


def train(arguments: Sequence[str], *, recipes: Path | None = None, program: str = "kdschemes train") -> int:
    """Train a run, or answer `--help`; return the process's exit code. One process of several calls it, too.

    `recipes` holds the recipes; None: `experiments` of the clone.
    """
    from kdschemes.config.load import load_config

    main_process = os.environ.get("RANK", "0") == "0"
    try:
        if HELP & set(arguments):
            from kdschemes.config.help import help_page

            text = help_page(program, [word for word in arguments if word not in HELP])
            if main_process:
                print(text, end="", flush=True)
            return 0
        if recipes is None:
            from kdschemes.study.locate import recipes as recipes_of_clone

            recipes = recipes_of_clone()
        config = load_config(arguments, recipes=recipes)
    except BrokenPipeError:
        _discard_output()
        return 0
    except UserError as error:
        if main_process:
            print_error(error)
        return 2
    with StopSignal() as stop:
        return _train(config, stop, main_process=main_process)


def _train(config: Config, stop: StopSignal, *, main_process: bool) -> int:
    """Train one run; return the process's exit code. Importing torch takes seconds: signals are remembered by then."""
    from kdschemes.tracking.tables import results_table
    from kdschemes.training.train import train as train_run

    try:
        finished = train_run(config, stop)
    except TrainingStopped as error:
        if main_process:
            print_error(error)
        return 1
    except UserError as error:
        if not isinstance(error, ErrorOnMain):
            print_error(error if main_process else UserError(f"{_this_process()}: {error}"))
        return 2
    except KeyboardInterrupt:
        return 130
    if main_process:
        print(results_table(finished.results))
        print(f"run folder: {finished.folder}")
    return 0


def print_error(error: Exception) -> None:
    """Print an error as one line, whatever line breaks a value or a library's message holds."""
    print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)


def _this_process() -> str:
    """Return the number of this process and its node, as SLURM names it where it can."""
    return f"process {os.environ.get('RANK')} on {os.environ.get('SLURMD_NODENAME') or socket.gethostname()}"


def _discard_output() -> None:
    """Let nothing be written to a pipe that nobody reads, when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def methods(options: argparse.Namespace) -> str:
    """Return the tables of all methods and losses, the same as a page of markdown, or the cards of one name.

    Raises:
        UserError: there is no such method or loss.
    """
    if options.markdown:
        if options.name is not None:
            raise UserError("--markdown prints all methods and losses: leave the name out")
        return cards.markdown()
    if options.name is not None:
        return "\n\n".join(card.text for card in cards.cards_named(options.name))
    return cards.listing(shutil.get_terminal_size().columns if sys.stdout.isatty() else None)


def citations(options: argparse.Namespace) -> str:
    """Return the BibTeX of what a run used.

    Raises:
        UserError: that is not the folder of a run.
    """
    return cite.cite(Path(options.run).expanduser())


def submit(options: argparse.Namespace) -> str:
    """Submit the runs of a study that are not finished, or say what would be submitted.

    Raises:
        UserError: a mistake in the study, or SLURM refuses.
    """
    from kdschemes.study.slurm.submit import submit as submit_study

    return submit_study(
        options.study,
        options.override,
        parallel=options.parallel,
        extra=options.sbatch,
        dry_run=options.dry_run,
    )


def study(options: argparse.Namespace) -> str | int:
    """Run the runs of a study that are not finished and return the exit code; or what was submitted, or would be run.

    Raises:
        UserError: a mistake in the study, or another process runs it.
    """
    if options.slurm:
        if options.memory is not None:
            raise UserError("--memory is for runs here: with --slurm give --mem to sbatch, after --")
        return submit(options)
    if options.sbatch:
        raise UserError(f"{options.sbatch[0]} after -- goes to sbatch: give --slurm too")
    from kdschemes.report import report as write_report
    from kdschemes.study.local.run import study_here

    memory = options.memory * 1e9 if options.memory is not None else None
    return study_here(
        options.study,
        options.override,
        parallel=options.parallel,
        memory=memory,
        dry_run=options.dry_run,
        report=lambda folder: write_report([str(folder)], output=None, out=None),
    )


def status(options: argparse.Namespace) -> str:
    """Return the table of a study's runs.

    Raises:
        UserError: there is no such study.
    """
    from kdschemes.study.locate import find_study
    from kdschemes.study.status import status as look
    from kdschemes.study.status import table

    return table(look(find_study(options.study, options.output)))


def report(options: argparse.Namespace) -> str:
    """Write the report of a study, or of runs, and return it.

    Raises:
        UserError: there is no such study or run, or the report can't be written.
    """
    from kdschemes.report import report as write_report

    return write_report(options.of, output=options.output, out=options.out)


def compare(options: argparse.Namespace) -> str:
    """Return two runs side by side.

    Raises:
        UserError: one is no folder of a run, or both are the same.
    """
    from kdschemes.report.two_runs import compare as compare_runs

    return compare_runs(options.first, options.second)


def list_caches(options: argparse.Namespace) -> str:
    """Return the table of the teacher caches in a folder.

    Raises:
        UserError: there is no such folder, or a cache in it is damaged.
    """
    from kdschemes.teacher_cache.listing import listing

    return listing(Path(options.folder).expanduser())


def verify_cache(options: argparse.Namespace) -> str:
    """Compute a sample of a teacher cache anew and return how near it is.

    Raises:
        UserError: it is damaged, or not what its teacher says.
    """
    from kdschemes.teacher_cache.verify import verify

    return verify(Path(options.folder).expanduser(), options.samples, options.override, options.seed)


def dashboard(options: argparse.Namespace) -> str:
    """Build the workspace that compares schemes; save it in W&B, or write it to a file.

    Raises:
        UserError: a package is missing, not logged in, W&B refuses, or the file can't be written.
    """
    from kdschemes.tracking import dashboard

    out = Path(options.out).expanduser() if options.out is not None else None
    return dashboard.dashboard(options.project, entity=options.entity, group=options.group, out=out)


def sync(options: argparse.Namespace) -> str:
    """Upload the runs that W&B's client wrote offline.

    Raises:
        UserError: no such runs, not logged in, no server answers, or a folder could not be uploaded.
    """
    from kdschemes.tracking.upload import sync as upload

    return upload(Path(options.folder).expanduser(), dry_run=options.dry_run, say=lambda line: print(line, flush=True))


def stages(options: argparse.Namespace) -> str:
    """Return a table of a model's stages: name, depth in percent of the MACs, shape of one sample's features.

    Raises:
        UserError: an unknown model or data set, or a model that cannot read such images.
    """
    if options.data not in DATA:
        raise unknown("data", options.data, DATA)
    from kdschemes import models

    data = DATA[options.data]
    channels, image_size = options.channels or data.channels, options.image_size or data.image_size
    network = models.create_model(options.model, num_classes=data.num_classes, channels=channels, image_size=image_size)
    found = models.stages(network, channels, image_size)
    parameters = models.count_parameters(network)
    macs = models.count_macs(network, channels, image_size)
    head = f"{options.model} on {channels}x{image_size}x{image_size}, {data.num_classes} classes"
    return f"{head}: {parameters:,} parameters, {macs:,} MACs\n{models.describe_stages(found)}"


class Commands:
    """The commands of a parser, whose help lists them by group, a line each."""

    def __init__(self, parser: Parser) -> None:
        parser.usage = f"{parser.prog} COMMAND ...    ({parser.prog} COMMAND --help tells more)"
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = ""
        self.parser = parser
        self.commands = parser.add_subparsers(
            required=True, metavar="COMMAND", help=argparse.SUPPRESS, prog=parser.prog
        )

    def group(self, title: str) -> None:
        """Begin a group of commands."""
        self.parser.epilog = f"{self.parser.epilog}\n{title}\n".lstrip("\n")

    def add(self, name: str, meaning: str, command: Callable[[argparse.Namespace], str | int] | None = None) -> Parser:
        """Add a command to the last group."""
        self.parser.epilog = f"{self.parser.epilog}  {name:<10} {meaning}\n"
        added = self.commands.add_parser(name, description=f"{meaning[:1].upper()}{meaning[1:]}.")
        added.set_defaults(command=command)
        return added


def _parser() -> Parser:
    parser = Parser(prog="kdschemes", description="Knowledge distillation: offline, online and self-distillation.")
    commands = Commands(parser)
    commands.group("train")
    commands.add("train", "one run, as run.py does: kdschemes train [KEY=VALUE ...]; kdschemes train --help")
    _add_study(Commands(commands.add("study", "many runs and their report: run, submit, status, report")))
    commands.group("look at runs")
    show = commands.add("report", "a page of tables and charts of runs", report)
    show.description = (
        "Write a report as one HTML file, as markdown, and a PNG a chart; print its main numbers. Without --out it is "
        "report.html, report.md and report_CHART.png in the current folder. That of a study: kdschemes study report."
    )
    show.add_argument("of", metavar="RUN", nargs="+", help="folders of runs, or folders that hold such")
    show.add_argument("--out", metavar="FILE", help="STEM.html or STEM.md: writes both, and STEM_CHART.png beside them")
    show.set_defaults(output=None)
    two = commands.add("compare", "two runs side by side: keys that differ, results, cost, predictions", compare)
    two.add_argument("first", metavar="RUN", help="folder of a run")
    two.add_argument("second", metavar="RUN", help="folder of another one")
    credit = commands.add("cite", "the BibTeX of what a run used: method, losses, data, networks, options", citations)
    credit.add_argument("run", metavar="RUN", help="folder of the run")
    _add_wandb(Commands(commands.add("wandb", "Weights & Biases: sync (offline runs), dashboard")))
    commands.group("look at methods and networks")
    read = commands.add("methods", "all methods and losses, or the card of one: paper, equation, defaults", methods)
    read.add_argument("name", metavar="NAME", nargs="?", help="a method or a loss; SCHEME/METHOD or KIND/LOSS for one")
    read.add_argument("--markdown", action="store_true", help="the page docs/losses.md")
    look = commands.add("stages", "where the stages of a model are: depth, name, shape of the features", stages)
    look.add_argument("model", metavar="MODEL", help="a network of kdschemes, or any timm model as timm/NAME")
    look.add_argument("--data", metavar="NAME", default="digits", help=f"images as in {', '.join(DATA)} [digits]")
    look.add_argument("--channels", type=_positive, metavar="C", help="another number of channels")
    look.add_argument("--image-size", type=_positive, metavar="S", help="another side in pixels")
    _add_cache(Commands(commands.add("cache", "stored predictions of frozen teachers: list, verify")))
    return parser


def _add_study(commands: Commands) -> None:
    here = commands.add("run", "run what is left of a study on this machine, then report", study)
    here.usage = (
        "kdschemes study run STUDY [KEY=VALUE ...] [--parallel P] [--memory GB] [--dry-run] [--slurm [-- OPTIONS]]"
    )
    here.add_argument("study", metavar="STUDY", help="a study of experiments/studies, or the path of its file")
    here.add_argument("override", metavar="KEY=VALUE", nargs="*", help="for all runs; none: as begun before")
    here.add_argument("--parallel", type=_positive, metavar="P", help="processes at once [one a GPU; on CPU 2]")
    here.add_argument("--memory", type=_amount, metavar="GB", help="memory of all of them [80 %% of what is free]")
    here.add_argument("--dry-run", action="store_true", help="print what would be run, and write nothing")
    here.add_argument("--slurm", action="store_true", help="as kdschemes study submit; what follows -- is sbatch's")
    send = commands.add("submit", "submit the runs of a study to SLURM that are not finished", submit)
    send.usage = "kdschemes study submit STUDY [KEY=VALUE ...] [--parallel P] [--dry-run] [-- OPTIONS OF SBATCH]"
    send.add_argument("study", metavar="STUDY", help="a study of experiments/studies, or the path of its file")
    send.add_argument("override", metavar="KEY=VALUE", nargs="*", help="for all runs; none: as begun before")
    send.add_argument("--parallel", type=_positive, metavar="P", help="runs of an array at once [no limit]")
    send.add_argument("--dry-run", action="store_true", help="print what would be submitted, and write nothing")
    tell = commands.add("status", "how far the runs of a study are, and why some failed", status)
    tell.add_argument("study", metavar="STUDY", help="name, file or folder of a study")
    tell.add_argument("--output", metavar="FOLDER", help="folder that holds the runs' folders [runs]")
    show = commands.add(
        "report", "report.html, report.md and CHART.png in its folder: tables, charts, verdicts", report
    )
    show.add_argument("of", metavar="STUDY", nargs=1, help="name, file or folder of a study")
    show.add_argument("--output", metavar="FOLDER", help="folder that holds the runs' folders [runs]")
    show.add_argument("--out", metavar="FILE", help="STEM.html or STEM.md: writes both, and STEM_CHART.png beside them")


def _add_wandb(commands: Commands) -> None:
    send = commands.add("sync", "upload the runs that W&B's client wrote offline, once each, in order", sync)
    send.add_argument("folder", metavar="FOLDER", nargs="?", default="runs", help="holds the runs' folders [runs]")
    send.add_argument("--dry-run", action="store_true", help="list what would be uploaded, and send nothing")
    board = commands.add("dashboard", "a workspace comparing schemes: curves, bars, cost, alpha and T", dashboard)
    board.add_argument("--project", metavar="P", default=Config().project, help="project of the runs [%(default)s]")
    board.add_argument("--entity", metavar="E", help="user or team that owns it [who is logged in]")
    board.add_argument("--group", metavar="STUDY", help="only the runs of this group [all of the project]")
    board.add_argument("--out", metavar="FILE", help="write it there as JSON, and save nothing in W&B")


def _add_cache(commands: Commands) -> None:
    there = commands.add("list", "the caches in a folder and what they take", list_caches)
    there.add_argument("folder", metavar="FOLDER", nargs="?", default="runs/teacher_cache", help="[runs/teacher_cache]")
    again = commands.add("verify", "compute a sample of a cache anew and compare", verify_cache)
    again.add_argument("folder", metavar="FOLDER", help="folder of one cache")
    again.add_argument(
        "override", metavar="KEY=VALUE", nargs="*", help="where data and teacher are now: data.root=, ..."
    )
    again.add_argument("--samples", type=_positive, metavar="N", default=8, help="chunks of 256 images to compute [8]")
    again.add_argument("--seed", type=int, metavar="S", default=0, help="chooses the chunks [0]")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line. What follows `--` after a study is sbatch's; KEY=VALUE may stand between options."""
    words, sbatch = list(arguments), []
    parser = _parser()
    _check_words(parser, words)
    if words[:2] in (["study", "submit"], ["study", "run"]) and "--" in words:
        end = words.index("--")
        words, sbatch = words[:end], words[end + 1 :]
    options, more = parser.parse_known_args(words)
    if more and (options.command not in (submit, study) or any(word.startswith("-") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if options.command in (submit, study):
        options.override += more
        options.sbatch = sbatch
    return options


def _check_words(parser: argparse.ArgumentParser, words: Sequence[str], place: str = "kdschemes") -> None:
    """Refuse a command that does not exist, or no longer: the message names the one to write.

    Raises:
        UserError: there is no such command.
    """
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not actions or not words or words[0].startswith("-"):
        return
    commands, word = actions[0].choices, words[0]
    if word in commands:
        _check_words(commands[word], words[1:], f"{place} {word}")
    elif place == "kdschemes" and word in RENAMED:
        raise UserError(f"'kdschemes {word}' is now 'kdschemes {RENAMED[word]}'")
    elif place == "kdschemes study" and not nearest(word, commands):
        raise UserError(f"'kdschemes study NAME' is now 'kdschemes study run NAME': kdschemes study run {word}")
    else:
        raise unknown(f"command {place}", word, commands)


def _amount(text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 < amount < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return amount


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
