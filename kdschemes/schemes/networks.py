"""The networks of a scheme, with initial weights that depend only on the run's seed and the network's name."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.config.schemes import ExitOptions
from kdschemes.core.averages import Ema
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import LossHead, Network, NetworkWithExits
from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError
from kdschemes.models import ExitNetwork, StagedNetwork, create_model, load_weights, stages
from kdschemes.models.class_order import order_outputs
from kdschemes.seeding import seeded


def student_network(
    config: Config, data_spec: DataSpec, role: str, model: str | None = None, seed: int | None = None
) -> StagedNetwork:
    """Return a network to train, initialized from a seed or from `model.checkpoint`.

    Without `seed`, the initial weights depend on the run's seed and the role.

    Raises:
        UserError: the checkpoint does not fit, or there are several.
    """
    checkpoint = config.model.checkpoint
    if isinstance(checkpoint, list):
        raise UserError(
            f"model.checkpoint has {len(checkpoint)} entries, but only peers with scheme.topology=independent start "
            "from one each: give a single checkpoint"
        )
    with seeded(config.seed, "init", role) if seed is None else seeded(seed, "init"):
        network = _create(model or config.model.name, data_spec, config.model.pretrained)
    if checkpoint is not None:
        new_head = config.model.head == "new"
        load_weights(network, checkpoint, num_classes=data_spec.num_classes, new_head=new_head)
    return network


def network_with_exits(
    config: Config, data_spec: DataSpec, role: str, options: ExitOptions | None = None
) -> ExitNetwork:
    """Return a network to train, with the exits that `options` specify (None: the scheme's options)."""
    if options is None:
        assert isinstance(config.scheme, ExitOptions)
        options = config.scheme
    network = student_network(config, data_spec, role)
    with seeded(config.seed, "exits", role):
        return ExitNetwork(
            network,
            options.exits,
            options.exit_head,
            num_classes=data_spec.num_classes,
            stages=stages(network, data_spec.channels, data_spec.image_size),
        )


def teacher_network(config: Config, data_spec: DataSpec, number: int) -> StagedNetwork:
    """Return teacher `number`, with the weights of its checkpoint, if any, and its outputs in the order of the data's.

    Raises:
        UserError: the checkpoint does not fit, or is for other classes than the data.
    """
    names = config.teacher.name if isinstance(config.teacher.name, list) else [config.teacher.name]
    with seeded(config.teacher.seed, "init", "teacher", number):
        network = _create(names[number], data_spec, config.teacher.pretrained)
    checkpoints = config.teacher.checkpoint
    if checkpoints is not None:
        path = checkpoints[number] if isinstance(checkpoints, list) else checkpoints
        load_weights(network, path, num_classes=data_spec.num_classes)
        if data_spec.classes and order_outputs(network, path, data_spec.classes):
            network.notes += (f"{path}: its classes are in another order than the data's, and mapped by their names",)
    return network


def with_average(scheme: Distillation, decay: float) -> Distillation:
    """Add a moving average of the primary head's network, evaluated as the last head, `NAME/ema`.

    Its decay warms up: without, the initial weights would dominate a run of fewer than 1 / (1 - `decay`) steps.
    """
    nodes_of_heads = {head: scheme.node_of(head) for head in scheme.heads}
    head = next((head for head, node in nodes_of_heads.items() if not isinstance(node, LossHead)), scheme.heads[0])
    source = nodes_of_heads[head]
    if not isinstance(source, Network | NetworkWithExits):
        raise UserError("train.ema needs a separate network: choose scheme.topology=independent or train.ema=null")
    name = f"{head}/ema"
    network = source.network.network if isinstance(source, NetworkWithExits) else source.network
    return scheme.with_nodes({name: Ema(Network(head, network), {head: name}, decay, warm_up=True)}, [name])


def _create(name: str, data_spec: DataSpec, pretrained: bool) -> StagedNetwork:
    return create_model(
        name,
        num_classes=data_spec.num_classes,
        channels=data_spec.channels,
        image_size=data_spec.image_size,
        pretrained=pretrained,
    )
