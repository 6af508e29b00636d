"""A moving average of the network teaches it (Tarvainen and Valpola 2017)."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.core.averages import Ema
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Network
from kdschemes.core.types import DataSpec
from kdschemes.schemes.distill import Edge, distill
from kdschemes.schemes.networks import student_network


def mean_teacher(config: Config, data_spec: DataSpec) -> Distillation:
    """Return CE + response(moving average -> student); the average is the primary head."""
    options = config.scheme
    network = student_network(config, data_spec, "student")
    seen = Network("student", network, "view1" if options.view == "independent" else None)
    return distill(
        {
            "student": Network("student", network),
            "average": Ema(seen, {"student": "average"}, options.decay, warm_up=options.warm_up),
        },
        supervised={"student": 1.0},
        edges=[Edge("average", "student")],
        losses=config.losses,
        heads=["average", "student"],
        data_spec=data_spec,
    )
