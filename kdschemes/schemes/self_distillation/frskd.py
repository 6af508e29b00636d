"""Self: a self-teacher refines the network's maps, learns from the labels and teaches the network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from kdschemes.config import Config
from kdschemes.config.schemes.self_distillation import SelfFRSKD
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Network, Node
from kdschemes.core.types import Batch, Output, Outputs, Task
from kdschemes.errors import UserError
from kdschemes.models.recombined import as_map
from kdschemes.schemes.distill import Edge, distill, probe
from kdschemes.schemes.networks import student_network
from kdschemes.schemes.self_distillation.attention import stage_maps
from kdschemes.schemes.self_distillation.bifpn import BiFPN
from kdschemes.seeding import seeded


class SelfTeacher(Node):
    """Refined maps of the stages of another output, and a linear classifier of the deepest one's average.

    Args:
        name: of its output, whose features have the names of the stages.
        source: the output whose maps it reads.
        maps: (C, H, W) of the stages, shallow to deep.
        num_classes: of the classifier.
        options: width and depth of the pyramid, and whether the maps are constants.
    """

    def __init__(
        self, name: str, source: str, maps: Mapping[str, tuple[int, int, int]], num_classes: int, options: SelfFRSKD
    ) -> None:
        super().__init__([name], reads=[source])
        channels = [shape[0] for shape in maps.values()]
        self.stages = tuple(maps)
        self.detach = options.detach
        self.pyramid = BiFPN(channels, width=options.width, depth=options.depth)
        self.fc = nn.Linear(options.width * channels[-1], num_classes)

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        features = outputs[self.reads[0]].features
        maps = [as_map(features[stage].detach() if self.detach else features[stage]) for stage in self.stages]
        refined = self.pyramid(maps)
        logits = self.fc(refined[-1].mean((2, 3)))
        return {self.provides[0]: Output(logits, dict(zip(self.stages, refined, strict=True)))}


def frskd(config: Config, task: Task) -> Distillation:
    """Return CE of the network and of the self-teacher, whose answer and refined maps teach the network.

    The self-teacher learns from its CE alone, which trains the network through the maps too, unless `detach`. Tokens
    count as the square map that they fill.

    Raises:
        UserError: a network whose stages give no maps, or that has only one stage.
    """
    options = config.scheme
    assert isinstance(options, SelfFRSKD)
    student = Network("student", student_network(config, task, "student"))
    maps = stage_maps("frskd", probe([student], task)["student"])
    if len(maps) < 2:
        raise UserError(f"frskd needs two or more stages, {config.model.name} has {len(maps)}: choose another model")
    with seeded(config.seed, "init", "self_teacher"):
        teacher = SelfTeacher("self_teacher", "student", maps, task.num_classes, options)
    return distill(
        {"student": student, "self_teacher": teacher},
        supervised={"student": 1.0, "self_teacher": 1.0},
        edges=[Edge("self_teacher", "student")],
        losses=config.losses,
        heads=["student", "self_teacher"],
        task=task,
    )
