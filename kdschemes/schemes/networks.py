"""The networks of a scheme, with initial weights that depend only on the run's seed and the network's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from kdschemes.config import Config, Model, Teacher
from kdschemes.config.naming import in_line
from kdschemes.config.schemes import ExitOptions
from kdschemes.core.averages import Ema
from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.nodes import LossHead, Network, NetworkWithExits
from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError
from kdschemes.models import (
    AdaptInput,
    CustomNetwork,
    ExitNetwork,
    InputSpec,
    StagedNetwork,
    create_model,
    crop_fraction,
    described_input,
    load_weights,
    pretrained_input,
    stages,
)
from kdschemes.models.class_order import order_outputs
from kdschemes.seeding import seeded

DROPOUT = ("dropout", "input_dropout")
"""The options of a trained network that are probabilities of dropout."""


def student_network(
    config: Config, data_spec: DataSpec, role: str, model: str | None = None, seed: int | None = None
) -> StagedNetwork:
    """Return a network to train, initialized from a seed or from `model.checkpoint`.

    Without `seed`, the initial weights depend on the run's seed and the role. The network adapts the images to those
    that its initial weights were trained on, or that the options of `model` ask for.

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
        network = _create(model or config.model.name, config.model, checkpoint, data_spec, config.code)
    if checkpoint is not None and data_spec.initial_weights:
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

    It adapts the images to those that it was trained on, or that the options of `teacher` ask for.

    Raises:
        UserError: the checkpoint does not fit, or is for other classes than the data.
    """
    names = config.teacher.name if isinstance(config.teacher.name, list) else [config.teacher.name]
    checkpoints = config.teacher.checkpoint
    path = checkpoints[number] if isinstance(checkpoints, list) else checkpoints
    with seeded(config.teacher.seed, "init", "teacher", number):
        spec = replace(data_spec, initial_weights=True)
        network = _create(names[number], config.teacher, path, spec, config.code)
    if path is not None:
        load_weights(network, path, num_classes=data_spec.num_classes)
        if data_spec.classes and order_outputs(network, path, data_spec.classes):
            network.notes += (f"{path}: its classes are in another order than the data's, and mapped by their names",)
    return network


def adapted_inputs(scheme: Distillation) -> list[str]:
    """Return a line for the networks that see other images than the data's, together where these are the same."""
    found: dict[str, list[str]] = {}
    for name, node in scheme.nodes.items():
        modules = node.network.modules() if isinstance(node, Frozen) else node.modules()
        group = "teacher" if isinstance(node, Frozen) or name == "teacher" else "model"
        for adapt in [module for module in modules if isinstance(module, AdaptInput)][:1]:
            differ = [
                key for key in ("mean", "std", "image_size") if getattr(adapt.own, key) != getattr(adapt.given, key)
            ]
            pairs = [(key, getattr(adapt.own, key), getattr(adapt.given, key)) for key in differ]
            how = ", ".join(f"{group}.{key}={_compact(own)} (data: {_compact(given)})" for key, own, given in pairs)
            found.setdefault(how, []).append(name)
    return [f"{', '.join(names)}: images are adapted to {how}" for how, names in found.items()]


def sgd_for_layer_norms(config: Config, scheme: Distillation) -> list[str]:
    """Return a line if SGD trains a network of the user's own that normalizes by layer norm, as transformers do."""
    if config.optim.name != "sgd":
        return []
    trained = {id(p) for p in scheme.parameters() if p.requires_grad}
    for module in scheme.modules():
        if isinstance(module, CustomNetwork) and any(
            isinstance(part, nn.LayerNorm) and any(id(p) in trained for p in part.parameters())
            for part in module.modules()
        ):
            return ["your network has layer norms, which AdamW with a small learning rate suits: optim.name=adamw"]
    return []


def unknown_inputs(config: Config, data_spec: DataSpec) -> list[str]:
    """Return a line for each checkpoint of a timm model that does not say how its images were normalized.

    Only where timm normalizes images for that model in another way than the data's were.
    """
    lines, channels = [], data_spec.channels
    for group, names, paths in (
        ("model", config.scheme.trained_models(config.model.name), config.model.checkpoint),
        ("teacher", _as_list(config.teacher.name), config.teacher.checkpoint if config.scheme.uses_teacher else None),
    ):
        options = getattr(config, group)
        if paths is None or options.pretrained or options.mean is not None:
            continue
        for name, path in zip(names, _as_list(paths), strict=False):
            timm = pretrained_input(name, channels)
            if described_input(path, channels).mean is None and timm.mean not in (None, data_spec.mean):
                lines.append(
                    f"{path} does not say how its images were normalized: taken as the data's, by mean "
                    f"{in_line(data_spec.mean)}; as timm does for {name}: {group}.mean={_compact(timm.mean)} "
                    f"{group}.std={_compact(timm.std)}"
                )
    return lines


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


def _create(
    name: str, options: Model | Teacher, checkpoint: str | None, data_spec: DataSpec, code: Mapping[str, str]
) -> StagedNetwork:
    """Return a new network that adapts the data's images to its own: those of the first that says what they look like.

    These are the options, the checkpoint, timm (for pretrained weights), a network of kdschemes that was passed in
    Python, the data. `code` are the digests of the user's own networks.
    """
    channels = data_spec.channels
    own = InputSpec(options.image_size, _as_tuple(options.mean), _as_tuple(options.std))
    if checkpoint is not None:
        own = own.otherwise(described_input(checkpoint, channels))
    if options.pretrained:
        own = own.otherwise(pretrained_input(name, channels))
    for key in ("mean", "std"):
        if (values := getattr(own, key)) is not None and len(values) != channels:
            raise UserError(f"{key} of {name} has {len(values)} values, but the images have {channels} channels")
    network = create_model(
        name,
        num_classes=data_spec.num_classes,
        channels=channels,
        image_size=own.image_size or data_spec.image_size,
        pretrained=options.pretrained and data_spec.initial_weights,
        dropout={key: getattr(options, key) for key in DROPOUT} if isinstance(options, Model) else None,
        kwargs=options.kwargs,
        stages=options.stages,
        digest=code.get(name, ""),
    )
    own = own.otherwise(network.spec.input).otherwise(data_spec.input)
    side = own.image_size or data_spec.image_size
    crop = crop_fraction(data_spec.kept, side)
    network.spec = replace(network.spec, image_size=side, mean=own.mean, std=own.std, crop_pct=crop)
    network.accept(data_spec.input)
    return network


def _compact(value: object) -> str:
    return in_line(value).replace(" ", "")


def _as_list(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def _as_tuple(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)
