"""The optimizers by name: kdschemes' own two, and those of `timm.optim`. Nothing here imports torch."""

from __future__ import annotations

from kdschemes.errors import UserError, nearest, shown

OWN = ("sgd", "adamw")

TIMM = "timm/"

SGD_LIKE = (
    *("momentum", "nesterov", "nesterovw", "sgd", "sgdp", "sgdw", "sgdc", "csgdp", "csgdw", "csgdc"),
    *("lars", "larc", "nlars", "nlarc"),
)
"""Those of timm's that take `optim.momentum`, and a learning rate like that of SGD."""

WITH_MOMENTUM = (
    *SGD_LIKE,
    *("adafactorbv", "adafactorbvc", "cadafactorbv", "cadafactorbvc", "madgrad", "madgradw"),
    *("muon", "nmuon", "adamuon", "nadamuon", "rmsprop", "rmsproptf", "rmsproptfw", "rmsproptfc", "crmsproptf"),
)
"""Those of timm's that take `optim.momentum`; the others have `betas`, or neither."""

TIMM_OPTIMIZERS = (
    *WITH_MOMENTUM,
    *("adabelief", "radabelief", "adadelta", "adafactor", "cadafactor", "adagrad", "adam", "adamax", "adamp", "cadamp"),
    *("adamw", "adamwlegacy", "adamc", "cadamw", "cadamc", "adan", "adanw", "cadan", "cadanw"),
    *("adopt", "adoptw", "adoptc", "cadopt", "cadoptw", "cadoptc", "lamb", "lambc", "lambw", "lambcw", "lambcd"),
    *("clamb", "clambw", "laprop", "lapropc", "claprop", "lion", "lionc", "clion", "clionc", "mars", "cmars"),
    *("nadam", "nadamlegacy", "nadamw", "nadamc", "cnadamw", "cnadamc", "novograd", "novogradw", "novogradc"),
    *("radam", "radamlegacy", "radamw"),
)
"""Those of timm's that train here as there and resume exactly.

Left out: Adahessian, which needs second derivatives; Kron, whose state has more than tensors; the `fused` and `bnb`
ones, which need other packages and a GPU; and Lookahead around another.
"""


def is_timm(name: str) -> bool:
    """Return whether an optimizer is one of timm's."""
    return name.startswith(TIMM)


def check_optimizer(name: object, key: str) -> None:
    """Reject a name that is none of the optimizers.

    Raises:
        UserError: it is none; the message has the nearest one.
    """
    names = [*OWN, *(TIMM + each for each in TIMM_OPTIMIZERS)]
    if name in names:
        return
    bare = str(name).lower().removeprefix(TIMM)
    hint = f"; did you mean '{TIMM}{bare}'?" if bare in TIMM_OPTIMIZERS else nearest(str(name), OWN)
    hint = hint or nearest(f"{TIMM}{bare}", names)
    raise UserError(
        f"{key}={shown(name)} is not allowed{hint} (must be sgd, adamw or an optimizer of timm, as timm/lamb)"
    )
