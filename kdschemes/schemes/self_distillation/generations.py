"""A network taught by earlier generations of itself, trained in prerequisite runs."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Ensemble, Network, Node
from kdschemes.core.types import DataSpec
from kdschemes.models import StagedNetwork, load_weights
from kdschemes.schemes.distill import Edge, distill
from kdschemes.schemes.networks import student_network
from kdschemes.schemes.offline.teachers import soft_and_hard


def taught_by_generations(
    config: Config, data_spec: DataSpec, nodes: dict[str, Node], heads: list[str], generation: int
) -> Distillation:
    """Return (1 - alpha) CE + alpha response(teacher -> student), with the student of this generation.

    Ensembles among the nodes run after the student; `heads` are evaluated.
    """
    alpha, hard = soft_and_hard(config)
    student = Network("student", student_network(config, data_spec, _role(generation)))
    ensemble = {name: node for name, node in nodes.items() if isinstance(node, Ensemble)}
    before = {name: node for name, node in nodes.items() if name not in ensemble}
    return distill(
        {**before, "student": student, **ensemble},
        supervised={"student": hard},
        edges=[Edge("teacher", "student", response=alpha)],
        losses=config.losses,
        heads=heads,
        data_spec=data_spec,
        teacher="teacher",
    )


def generation_network(config: Config, data_spec: DataSpec, place: int, generation: int) -> StagedNetwork:
    """Return a generation's network, with its run's weights if the run is known, else with its initial weights."""
    network = student_network(config, data_spec, _role(generation))
    folders = config.teacher.checkpoint
    if isinstance(folders, list):
        load_weights(network, folders[place], num_classes=data_spec.num_classes)
    return network


def _role(generation: int) -> str:
    """Return the seed role of a generation's initial weights; generation 0 is the student of the supervised run."""
    return f"generation{generation}" if generation else "student"
