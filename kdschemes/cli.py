"""The command `kdschemes`: look at networks and methods without training anything."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import NoReturn

from kdschemes.config.data import DATA, ImageFolder
from kdschemes.config.schemes import SCHEMES
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
        options = _parser().parse_args(arguments)
        command: Callable[[argparse.Namespace], str] = options.command
        print(command(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def card(options: argparse.Namespace) -> str:
    """Return the card of a method: paper, equation, defaults, deviations, cost.

    Raises:
        UserError: there is no such method.
    """
    methods = [method for table in SCHEMES.values() for method in table]
    if options.method not in methods:
        raise unknown("method", options.method, methods)
    return (files("kdschemes") / "schemes" / "cards" / f"{options.method}.md").read_text().rstrip()


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
    parser = Parser(prog="kdschemes", description="Look at networks and methods. Training is run.py's: run.py --help.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    look = commands.add_parser("stages", help="where the stages of a model are: depth, name, shape of the features")
    look.add_argument("model", metavar="MODEL", help="a network of kdschemes, or any timm model as timm/NAME")
    look.add_argument("--data", metavar="NAME", default="digits", help=f"images as in {', '.join(SHAPES)} [digits]")
    look.add_argument("--channels", type=_positive, metavar="C", help="another number of channels")
    look.add_argument("--image-size", type=_positive, metavar="S", help="another side in pixels")
    look.set_defaults(command=stages)
    read = commands.add_parser("card", help="paper, equation, defaults and deviations of a method")
    read.add_argument("method", metavar="METHOD", help=", ".join(m for table in SCHEMES.values() for m in table))
    read.set_defaults(command=card)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
