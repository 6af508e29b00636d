"""The command `kdschemes`: studies here or on a cluster, a look at networks, methods, losses and what runs gave."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from kdschemes.cards import cite
from kdschemes.cards import read as cards
from kdschemes.config import Config
from kdschemes.config.data import DATA, ImageFolder
from kdschemes.errors import UserError, unknown

SHAPES: dict[str, tuple[int, int, int]] = {
    "digits": (1, 8, 10),
    "fashion_mnist": (1, 28, 10),
    "cifar10": (3, 32, 10),
    "cifar100": (3, 32, 100),
    "image_folder": (3, ImageFolder().image_size, 1000),
}
"""Channels, side in pixels and classes of each data set; those of `image_folder` as in ImageNet."""


class Parser(argparse.ArgumentParser):
    """Tells a wrong command line in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help tells the usage)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the process's exit code."""
    try:
        options = _options(sys.argv[1:] if arguments is None else arguments)
        command: Callable[[argparse.Namespace], str | int] = options.command
        told = command(options)
        if isinstance(told, int):
            return told
        print(told, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


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
    from kdschemes.study.local.run import study_here

    memory = options.memory * 1e9 if options.memory is not None else None
    return study_here(
        options.study,
        options.override,
        parallel=options.parallel,
        memory=memory,
        dry_run=options.dry_run,
        report=report_study,
    )


def report_study(folder: Path) -> bool:
    """Write the report of a study and print its main numbers; return False, and say why, if that can't be done."""
    from kdschemes.report import report as write_report

    print("writing the report", flush=True)
    try:
        print(f"\n{write_report([str(folder)], output=None, out=None)}\n", flush=True)
    except UserError as error:
        print(f"no report: {error}", flush=True)
        return False
    return True


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
    if options.data not in SHAPES:
        raise unknown("data", options.data, DATA)
    from kdschemes import models

    channels, image_size, classes = SHAPES[options.data]
    channels, image_size = options.channels or channels, options.image_size or image_size
    network = models.create_model(options.model, num_classes=classes, channels=channels, image_size=image_size)
    found = models.stages(network, channels, image_size)
    parameters = models.count_parameters(network)
    macs = models.count_macs(network, channels, image_size)
    head = f"{options.model} on {channels}x{image_size}x{image_size}, {classes} classes"
    return f"{head}: {parameters:,} parameters, {macs:,} MACs\n{models.describe_stages(found)}"


def _parser() -> Parser:
    description = "Studies; a look at networks, methods and what runs gave. Training a run is run.py's: run.py --help."
    parser = Parser(prog="kdschemes", description=description)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    send = commands.add_parser("submit", help="submit the runs of a study to SLURM that are not finished")
    send.usage = "kdschemes submit STUDY [KEY=VALUE ...] [--parallel P] [--dry-run] [-- OPTIONS OF SBATCH]"
    send.add_argument("study", metavar="STUDY", help="a study of experiments/studies, or the path of its file")
    send.add_argument("override", metavar="KEY=VALUE", nargs="*", help="for all runs; none: as begun before")
    send.add_argument("--parallel", type=_positive, metavar="P", help="runs of an array at once [no limit]")
    send.add_argument("--dry-run", action="store_true", help="print what would be submitted, and write nothing")
    send.set_defaults(command=submit)
    here = commands.add_parser("study", help="run what is left of a study on this machine, then report")
    here.usage = "kdschemes study STUDY [KEY=VALUE ...] [--parallel P] [--memory GB] [--dry-run] [--slurm [-- OPTIONS]]"
    here.add_argument("study", metavar="STUDY", help="a study of experiments/studies, or the path of its file")
    here.add_argument("override", metavar="KEY=VALUE", nargs="*", help="for all runs; none: as begun before")
    here.add_argument("--parallel", type=_positive, metavar="P", help="processes at once [one a GPU; on CPU 2]")
    here.add_argument("--memory", type=_amount, metavar="GB", help="memory of all of them [80 %% of what is free]")
    here.add_argument("--dry-run", action="store_true", help="print what would be run, and write nothing")
    here.add_argument("--slurm", action="store_true", help="as `kdschemes submit`; what follows -- goes to sbatch")
    here.set_defaults(command=study)
    tell = commands.add_parser("status", help="how far the runs of a study are, and why some failed")
    tell.add_argument("study", metavar="STUDY", help="name, file or folder of a study")
    tell.add_argument("--output", metavar="FOLDER", help="folder that holds the runs' folders [runs]")
    tell.set_defaults(command=status)
    show = commands.add_parser("report", help="a page of tables and charts of a study, or of runs")
    show.description = (
        "Write a report as one HTML file, as markdown, and a PNG a chart; print its main numbers. A study's is "
        "report.html, report.md and CHART.png in its folder; that of runs is report.html, report.md and "
        "report_CHART.png in the current folder."
    )
    show.add_argument("of", metavar="STUDY_OR_RUN", nargs="+", help="a study's name or folder, or folders of runs")
    show.add_argument("--output", metavar="FOLDER", help="folder that holds the runs' folders [runs]")
    show.add_argument("--out", metavar="FILE", help="STEM.html or STEM.md: writes both, and STEM_CHART.png beside them")
    show.set_defaults(command=report)
    beside = commands.add_parser("compare", help="two runs side by side: keys that differ, results, cost, answers")
    beside.add_argument("first", metavar="RUN", help="folder of a run")
    beside.add_argument("second", metavar="RUN", help="folder of another one")
    beside.set_defaults(command=compare)
    board = commands.add_parser("dashboard", help="a W&B workspace comparing schemes: curves, bars, cost, alpha and T")
    board.add_argument("--project", metavar="P", default=Config().project, help="project of the runs [%(default)s]")
    board.add_argument("--entity", metavar="E", help="user or team that owns it [who is logged in]")
    board.add_argument("--group", metavar="STUDY", help="only the runs of this group [all of the project]")
    board.add_argument("--out", metavar="FILE", help="write it there as JSON, and save nothing in W&B")
    board.set_defaults(command=dashboard)
    send_runs = commands.add_parser("sync", help="upload the runs that W&B's client wrote offline, once each, in order")
    send_runs.add_argument("folder", metavar="FOLDER", nargs="?", default="runs", help="holds the runs' folders [runs]")
    send_runs.add_argument("--dry-run", action="store_true", help="list what would be uploaded, and send nothing")
    send_runs.set_defaults(command=sync)
    look = commands.add_parser("stages", help="where the stages of a model are: depth, name, shape of the features")
    look.add_argument("model", metavar="MODEL", help="a network of kdschemes, or any timm model as timm/NAME")
    look.add_argument("--data", metavar="NAME", default="digits", help=f"images as in {', '.join(SHAPES)} [digits]")
    look.add_argument("--channels", type=_positive, metavar="C", help="another number of channels")
    look.add_argument("--image-size", type=_positive, metavar="S", help="another side in pixels")
    look.set_defaults(command=stages)
    cache = commands.add_parser(
        "cache", help="stored answers of frozen teachers: what there is, and whether it is right"
    )
    caches = cache.add_subparsers(required=True, metavar="COMMAND")
    there = caches.add_parser("list", help="the caches in a folder and what they take")
    there.add_argument("folder", metavar="FOLDER", nargs="?", default="runs/teacher_cache", help="[runs/teacher_cache]")
    there.set_defaults(command=list_caches)
    again = caches.add_parser("verify", help="compute a sample of a cache anew and compare")
    again.add_argument("folder", metavar="FOLDER", help="folder of one cache")
    again.add_argument(
        "override", metavar="KEY=VALUE", nargs="*", help="where data and teacher are now: data.root=, ..."
    )
    again.add_argument("--samples", type=_positive, metavar="N", default=8, help="chunks of 256 images to compute [8]")
    again.add_argument("--seed", type=int, metavar="S", default=0, help="chooses the chunks [0]")
    again.set_defaults(command=verify_cache)
    read = commands.add_parser("methods", help="all methods and losses, or the card of one: paper, equation, defaults")
    read.add_argument("name", metavar="NAME", nargs="?", help="a method or a loss; SCHEME/METHOD or KIND/LOSS for one")
    read.add_argument("--markdown", action="store_true", help="the page docs/losses.md")
    read.set_defaults(command=methods)
    credit = commands.add_parser("cite", help="the BibTeX of what a run used: method, losses, data, networks, options")
    credit.add_argument("run", metavar="RUN", help="folder of the run")
    credit.set_defaults(command=citations)
    return parser


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line. What follows `--` after a study is sbatch's; KEY=VALUE may stand between options."""
    words, sbatch = list(arguments), []
    if words[:1] in (["submit"], ["study"]) and "--" in words:
        end = words.index("--")
        words, sbatch = words[:end], words[end + 1 :]
    parser = _parser()
    options, more = parser.parse_known_args(words)
    if more and (options.command not in (submit, study) or any(word.startswith("-") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if options.command in (submit, study):
        options.override += more
        options.sbatch = sbatch
    return options


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
