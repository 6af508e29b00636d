"""The command `kdschemes`: studies on a cluster, and a look at networks, methods, losses and what runs gave."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from kdschemes import cards, cite
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
        command: Callable[[argparse.Namespace], str] = options.command
        print(command(options), flush=True)
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
    from kdschemes.study.submit import submit as submit_study

    return submit_study(
        options.study,
        options.override,
        parallel=options.parallel,
        extra=options.sbatch,
        dry_run=options.dry_run,
    )


def status(options: argparse.Namespace) -> str:
    """Return the table of a study's runs.

    Raises:
        UserError: there is no such study.
    """
    from kdschemes.study.places import find_study
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
    description = "Studies on a cluster; a look at networks, methods and runs. Training is run.py's: run.py --help."
    parser = Parser(prog="kdschemes", description=description)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    send = commands.add_parser("submit", help="submit the runs of a study to SLURM that are not finished")
    send.usage = "kdschemes submit STUDY [KEY=VALUE ...] [--parallel P] [--dry-run] [-- OPTIONS OF SBATCH]"
    send.add_argument("study", metavar="STUDY", help="a study of experiments/studies, or the path of its file")
    send.add_argument("override", metavar="KEY=VALUE", nargs="*", help="for all runs; none: as submitted before")
    send.add_argument("--parallel", type=_positive, metavar="P", help="runs of an array at once [no limit]")
    send.add_argument("--dry-run", action="store_true", help="print what would be submitted, and write nothing")
    send.set_defaults(command=submit)
    tell = commands.add_parser("status", help="how far the runs of a study are, and why some failed")
    tell.add_argument("study", metavar="STUDY", help="name, file or folder of a study")
    tell.add_argument("--output", metavar="FOLDER", help="folder that holds the runs' folders [runs]")
    tell.set_defaults(command=status)
    show = commands.add_parser("report", help="mean and deviation over seeds, curves, what is missing")
    show.add_argument("of", metavar="STUDY_OR_RUN", nargs="+", help="a study's name or folder, or folders of runs")
    show.add_argument("--output", metavar="FOLDER", help="folder that holds the runs' folders [runs]")
    show.add_argument("--out", metavar="FILE", help="where to write it [a study: report.md in its folder]")
    show.set_defaults(command=report)
    look = commands.add_parser("stages", help="where the stages of a model are: depth, name, shape of the features")
    look.add_argument("model", metavar="MODEL", help="a network of kdschemes, or any timm model as timm/NAME")
    look.add_argument("--data", metavar="NAME", default="digits", help=f"images as in {', '.join(SHAPES)} [digits]")
    look.add_argument("--channels", type=_positive, metavar="C", help="another number of channels")
    look.add_argument("--image-size", type=_positive, metavar="S", help="another side in pixels")
    look.set_defaults(command=stages)
    read = commands.add_parser("methods", help="all methods and losses, or the card of one: paper, equation, defaults")
    read.add_argument("name", metavar="NAME", nargs="?", help="a method or a loss; SCHEME/METHOD or KIND/LOSS for one")
    read.add_argument("--markdown", action="store_true", help="the page docs/losses.md")
    read.set_defaults(command=methods)
    credit = commands.add_parser("cite", help="the BibTeX of what a run used: method, losses, data, networks, options")
    credit.add_argument("run", metavar="RUN", help="folder of the run")
    credit.set_defaults(command=citations)
    return parser


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line. What follows `--` after `submit` is sbatch's; its KEY=VALUE may stand between options."""
    words, sbatch = list(arguments), []
    if words[:1] == ["submit"] and "--" in words:
        end = words.index("--")
        words, sbatch = words[:end], words[end + 1 :]
    parser = _parser()
    options, more = parser.parse_known_args(words)
    if more and (options.command is not submit or any(word.startswith("-") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if options.command is submit:
        options.override += more
        options.sbatch = sbatch
    return options


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
