"""Soft labels made from the label and the network's own output, without a teacher."""

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
    """Return hard CE + a loss that reads no teacher, on the edge from the student to itself.

    Raises:
        UserError: a loss would compare the student with itself.
    """
    for kind, options in config.losses.chosen():
        if not isinstance(options, USKD | TFKDReg):
            raise UserError(
                f"losses.{kind}={options.name} would compare the student with itself, as method={config.scheme.method} "
                "has no teacher: use only losses.response=uskd or tfkd_reg"
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
