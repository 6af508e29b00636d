"""The BibTeX of what a run used. Nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kdschemes.cards.read import Entry, loss_card, method_card, papers
from kdschemes.config import Config
from kdschemes.config.code import CodeRefused
from kdschemes.config.load import build_config
from kdschemes.config.naming import read_config
from kdschemes.config.prerequisites import prerequisite_models
from kdschemes.config.schemes import SCHEMES
from kdschemes.errors import UserError
from kdschemes.printable import printable

NETWORK_PAPERS: dict[str, str] = {
    r"resnet\d+([x_.]|$)": "he2016deep",
    r"wrn_?\d|wide_resnet\d": "zagoruyko2016wide",
    r"vgg\d": "simonyan2015very",
    r"mobilenet_?v2": "sandler2018mobilenetv2",
    r"shufflenet_?v1": "zhang2018shufflenet",
    r"shufflenet_?v2": "ma2018shufflenet",
    r"lenet5": "lecun1998gradient",
    r"plain\d": "mirzadeh2020takd",
}
"""Key of `papers.bib` by a pattern for the start of a network's name, without `timm/`."""

VIEW_PAPERS: dict[str, str] = {
    "mixup": "zhang2018mixup",
    "cutmix": "yun2019cutmix",
    "cutout": "devries2017improved",
    "auto_augment=randaugment": "cubuk2020randaugment",
    "auto_augment=trivialaugment": "muller2021trivialaugment",
    "random_erasing": "zhong2020random",
}
"""Key of `papers.bib` by an option of the data, or by one of its values."""


def cite(folder: Path) -> str:
    """Return the BibTeX of everything a run used, each entry once in order of first use, with comments naming the uses.

    Raises:
        UserError: no such folder, or its `config.yaml` is missing or unreadable.
    """
    uses: dict[str, tuple[Entry, list[str]]] = {}
    for what, entry in used(read_run(folder)):
        uses.setdefault(entry.key, (entry, []))[1].append(f"% {printable(what)}\n")
    return "\n\n".join("".join(dict.fromkeys(comments)) + entry.text for entry, comments in uses.values())


def read_run(folder: Path) -> Config:
    path = folder / "config.yaml"
    if not folder.is_dir():
        raise UserError(f"folder {folder} not found: give a run folder")
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.yaml")
    tree = read_config(folder)
    try:
        return build_config(tree)
    except CodeRefused:
        raise
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from None


def used(config: Config) -> Iterator[tuple[str, Entry]]:
    """Yield everything that a run uses and that has a paper, with the paper's entry."""
    scheme = config.scheme
    if scheme.name in SCHEMES:
        for entry in method_card(scheme.name, scheme.method).entries:
            yield f"method {scheme.name}/{scheme.method}", entry
    for kind, options in config.losses.chosen():
        for entry in loss_card(kind, options.name).entries:
            yield f"loss {options.name} ({kind})", entry
        if getattr(options, "standardize", False):
            yield f"standardize=true of the loss {options.name}", papers()["sun2024logit"]
    for option, card in scheme.shared_cards().items():
        for entry in method_card(*card).entries:
            yield option, entry
    for key in config.data.papers:
        yield f"data {config.data.name}", papers()[key]
    for role, name in _networks(config):
        for key in network_keys(name):
            note = "" if key != "wightman2019timm" or len(network_keys(name)) > 1 else "; also cite the network's paper"
            yield f"{role} {name}{note}", papers()[key]
    for option, key in VIEW_PAPERS.items():
        name, _, chosen = option.partition("=")
        value = getattr(config.data, name)
        if value and chosen in ("", value):
            yield f"{name}={value}", papers()[key]


def network_keys(name: str) -> list[str]:
    """Return the `papers.bib` keys of a network, including timm's if it comes from there."""
    own = name.removeprefix("timm/")
    keys = [key for pattern, key in NETWORK_PAPERS.items() if re.match(pattern, own)]
    return keys + ["wightman2019timm"] * name.startswith("timm/")


def _networks(config: Config) -> Iterator[tuple[str, str]]:
    for name in dict.fromkeys(config.scheme.trained_models(config.model.name)):
        yield "model", name
    if config.scheme.uses_teacher:
        teachers = config.teacher.name
        for name in teachers if isinstance(teachers, list) else [teachers]:
            yield "teacher", name
    for name in prerequisite_models(config.scheme):
        yield "assistant", name
