"""Offline and self: a frozen teacher teaches a student, whose deepest exit teaches its shallower ones.

The deepest exit: 0.1 CE and 0.9 KD from the teacher, T = 4. Each other exit: half CE, half KD from the deepest, T = 3,
and a hint to the deepest map.

    python run.py experiment=topologies/offline_self
"""

from kdschemes.config import Config
from kdschemes.config.losses import Losses
from kdschemes.config.losses.feature import Hint
from kdschemes.config.losses.response import KD
from kdschemes.config.schemes import ExitOptions
from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.nodes import Ensemble, NetworkWithExits
from kdschemes.core.types import DataSpec
from kdschemes.schemes.distill import Edge, distill
from kdschemes.schemes.networks import network_with_exits, teacher_network

RECIPE = {"scheme.teacher": True, "losses.response": "kd"}
EXITS = ExitOptions(name="topology", method="offline_self")
WITHIN = Losses(response=KD(temperature=3.0), feature=Hint(weight=0.03))


def topology(config: Config, data_spec: DataSpec) -> Distillation:
    """Return a student with exits under one teacher."""
    student = NetworkWithExits("student", network_with_exits(config, data_spec, "student", EXITS))
    deepest, *exits = student.provides
    return distill(
        {
            "teacher": Frozen("teacher", teacher_network(config, data_spec, 0)),
            "student": student,
            "ensemble": Ensemble("ensemble", student.provides),
        },
        supervised={deepest: 0.1} | dict.fromkeys(exits, 0.5),
        edges=[Edge("teacher", deepest, response=0.9)]
        + [Edge(deepest, name, response=0.5, losses=WITHIN) for name in exits],
        losses=config.losses,
        heads=[*student.provides, "ensemble"],
        data_spec=data_spec,
        teacher="teacher",
    )
