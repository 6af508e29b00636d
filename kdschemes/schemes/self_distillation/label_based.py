"""Self: soft labels made of the label and of the network's own output; nobody else teaches."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.config.losses.response import USKD, TFKDReg
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Network
from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError
from kdschemes.schemes.distill import Edge, distill
from kdschemes.schemes.networks import student_network


def own_labels(config: Config, data_spec: DataSpec) -> Distillation:
    """Return hard CE + a loss that looks at no teacher, on the edge from the student to itself.

    Raises:
        UserError: a loss that would compare the student with itself.
    """
    for kind, options in config.losses.chosen():
        if not isinstance(options, USKD | TFKDReg):
            raise UserError(
                f"losses.{kind}={options.name} would compare the student with itself, method={config.scheme.method} "
                "has no teacher: leave losses.response=uskd or tfkd_reg, and none of the other kinds"
            )
    published = next((options.ce_weight for _, options in config.losses.chosen()), 1.0)
    return distill(
        {"student": Network("student", student_network(config, data_spec, "student"))},
        supervised={"student": published if config.scheme.ce_weight is None else config.scheme.ce_weight},
        edges=[Edge("student", "student")],
        losses=config.losses,
        heads=["student"],
        data_spec=data_spec,
    )
