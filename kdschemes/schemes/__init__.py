"""The schemes: who teaches whom. Importing this imports every builder."""

from __future__ import annotations

import torch

from kdschemes.cards.read import register_card
from kdschemes.config import Config, Train
from kdschemes.config.losses import KINDS
from kdschemes.config.plugins import register
from kdschemes.config.schemes import SCHEMES, Method
from kdschemes.core.cross_entropy import balanced_weights
from kdschemes.core.distillation import Distillation
from kdschemes.core.terms import Supervise, Transfer
from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError, unknown
from kdschemes.schemes.base import Builder, Builders
from kdschemes.schemes.custom import TOPOLOGY
from kdschemes.schemes.networks import with_average
from kdschemes.schemes.offline import OFFLINE
from kdschemes.schemes.online import ONLINE
from kdschemes.schemes.self_distillation import SELF
from kdschemes.schemes.supervised import SUPERVISED
from kdschemes.seeding import seeded
from kdschemes.storage.naming import short_name

__all__ = ["BUILDERS", "Builder", "Builders", "build_scheme", "register_method"]

BUILDERS: Builders = {**SUPERVISED, **OFFLINE, **ONLINE, **SELF, **TOPOLOGY}
"""The builder of the scheme for each options class; names are in `kdschemes.config.schemes.SCHEMES`."""


def register_method(options: type[Method], builder: Builder, card: str | None = None) -> None:
    """Make a method available as `scheme=NAME method=METHOD`, after the fields `name` and `method` of its options.

    `builder` is called with the configuration and the `DataSpec`, and returns a `Distillation`; `card` is a card's
    text, for `kdschemes methods` and `kdschemes cite`.

    Raises:
        UserError: another method has the name, or there is no such scheme.
    """
    if options.name not in SCHEMES:
        raise unknown("scheme", options.name, SCHEMES)
    register(SCHEMES[options.name], options.method, options, f"scheme={options.name} method")
    BUILDERS[options] = builder
    register_card(options.name, options.method, options, card)


def build_scheme(config: Config, data_spec: DataSpec) -> Distillation:
    """Build the scheme that a configuration names, with initial weights that depend only on its seeds.

    Raises:
        UserError: a model, a checkpoint, or a loss does not fit.
    """
    if data_spec.multi_label:
        _check_multi_label(config)
    with seeded(config.seed, "init", "projections"):
        scheme = BUILDERS[type(config.scheme)](config, data_spec)
    _set_cross_entropy(scheme, config.train, data_spec)
    if not config.train.gather_batch:
        for term in scheme.terms:
            if isinstance(term, Transfer):
                term.disable_gather()
    return with_average(scheme, config.train.ema) if config.train.ema is not None else scheme


def _check_multi_label(config: Config) -> None:
    """Refuse what needs exactly one label per image.

    Raises:
        UserError: the method, a loss or an option does.
    """
    images = f"the images of data={short_name(config.data.name)} have several labels each"
    method, scheme = config.scheme.method, config.scheme.name
    if not config.scheme.multi_label:
        suited = [f"{name}/{one}" for name, of in SCHEMES.items() for one, made in of.items() if made.multi_label]
        raise UserError(f"{images}, and method={method} of scheme={scheme} needs one: choose {', '.join(suited)}")
    for kind, options in config.losses.chosen() if config.scheme.uses_losses else ():
        if not options.multi_label:
            suited = sorted(name for name, made in KINDS[kind].items() if getattr(made, "multi_label", name == "none"))
            raise UserError(f"{images}, and losses.{kind}={options.name} needs one: choose {', '.join(suited)}")
    smoothed = getattr(config.scheme, "label_smoothing", 0.0)
    asked = {"train.label_smoothing": config.train.label_smoothing, "train.class_weights": config.train.class_weights}
    asked |= {"scheme.label_smoothing": smoothed, "data.sampling": config.data.sampling == "balanced"}
    for key, value in asked.items():
        if value:
            raise UserError(f"{images}, and {key} needs one: remove it")


def _set_cross_entropy(scheme: Distillation, train: Train, data_spec: DataSpec) -> None:
    """Smooth the labels of all cross-entropy terms, and weight their classes, as `train` says.

    Raises:
        UserError: there is no such term, it smooths labels already, or weights do not fit the classes.
    """
    asked = {key: value for key in ("label_smoothing", "class_weights") if (value := getattr(train, key))}
    if not asked:
        return
    terms = [term for term in scheme.terms if isinstance(term, Supervise)]
    if not terms:
        raise UserError(f"train.{next(iter(asked))} has no effect: this method has no cross-entropy term of its own")
    weights = None
    if train.class_weights == "balanced":
        labels = data_spec.labels_of_all().cpu()
        weights = balanced_weights(labels[labels >= 0], data_spec.num_classes)
    elif isinstance(train.class_weights, list):
        weights = torch.tensor(train.class_weights)
        if len(weights) != data_spec.num_classes or not weights.any():
            raise UserError(
                f"train.class_weights has {len(weights)} values for {data_spec.num_classes} classes: give one per "
                "class, not all 0"
            )
    for term in terms:
        if train.label_smoothing and term.label_smoothing:
            raise UserError("train.label_smoothing and scheme.label_smoothing both smooth the labels: set one of them")
        term.label_smoothing = train.label_smoothing or term.label_smoothing
        term.class_weights = weights
