"""Checks across the groups of a configuration."""

from __future__ import annotations

from typing import Any

from kdschemes.config import Config, Optim
from kdschemes.config.code import GIVEN, parse_code
from kdschemes.config.data import OwnData
from kdschemes.config.models import MODEL_NAMES, REGISTERED, find_model
from kdschemes.config.optimizers import TIMM, WITH_MOMENTUM, is_timm
from kdschemes.config.prerequisites import prerequisite_models
from kdschemes.config.unknown import no_such
from kdschemes.errors import UserError


def model_names(config: Config) -> list[str]:
    """Return the names of all networks of a run and of those that must finish before it."""
    names = [config.model.name]
    names += _as_list(config.teacher.name) if config.scheme.uses_teacher else []
    return [*names, *config.scheme.trained_models(config.model.name), *prerequisite_models(config.scheme)]


def _takes_kwargs(name: str) -> bool:
    return name.startswith(("timm/", GIVEN)) or name in REGISTERED or parse_code(name) is not None


def check_models(config: Config) -> None:
    """Reject unknown model names, and a new classifier of nothing."""
    for name in model_names(config):
        if find_model(name) is None and not _takes_kwargs(name):
            raise no_such("model", name, (*MODEL_NAMES, *REGISTERED))
    trained, teachers = config.scheme.trained_models(config.model.name), _as_list(config.teacher.name)
    for group, names in (("model", trained), ("teacher", teachers))[: 1 + config.scheme.uses_teacher]:
        options = getattr(config, group)
        if options.kwargs and not any(map(_takes_kwargs, names)):
            raise UserError(f"{group}.kwargs is for timm's and your own networks, not for {names[0]}: remove it")
        if options.stages and not any(_takes_kwargs(name) and not name.startswith("timm/") for name in names):
            raise UserError(f"{group}.stages is for your own networks, not for {names[0]}: remove it")
    if config.model.head == "new" and config.model.checkpoint is None:
        raise UserError("model.head=new replaces the classifier of model.checkpoint: give one, or remove model.head")


def check_optim(config: Config) -> None:
    """Reject what the optimizer has not, and a limit on weights that are sharded."""
    for key, optim in (("optim", config.optim), ("teacher.optim", config.teacher.optim)):
        _check_arguments(key, optim)
    if is_timm(config.optim.name) and config.train.fsdp:
        raise UserError(
            f"train.fsdp=true shards the optimizer's state: use optim.name=adamw or sgd, not {config.optim.name}"
        )
    if config.optim.momentum_start is not None and config.optim.name != "sgd":
        raise UserError("optim.momentum_start raises the momentum of SGD: set optim.name=sgd, or remove it")
    if config.optim.max_norm is not None and config.train.fsdp:
        raise UserError("optim.max_norm needs whole weights, but train.fsdp=true shards them: remove one of them")


def _check_arguments(key: str, optim: Optim) -> None:
    if optim.kwargs and not is_timm(optim.name):
        raise UserError(f"{key}.kwargs is for timm's optimizers: write {key}.name=timm/{optim.name}, or remove it")
    if not is_timm(optim.name):
        return
    for name in ("lr", "weight_decay", "momentum"):
        if name in (optim.kwargs or {}):
            raise UserError(f"{key}.kwargs.{name}: write {key}.{name}")
    if "max_grad_norm" in (optim.kwargs or {}):
        raise UserError(
            f"{key}.kwargs.max_grad_norm is over all networks: write {key}.clip_grad_norm, for each its own"
        )
    if optim.momentum != Optim.momentum and optim.name.removeprefix(TIMM) not in WITH_MOMENTUM:
        raise UserError(f"{optim.name} has no momentum: write its betas, as {key}.kwargs.betas=[0.9,0.99]")
    if not optim.nesterov:
        raise UserError(f"{key}.nesterov is for {key}.name=sgd: write {key}.kwargs.nesterov=false, or remove it")


def check_dropout(config: Config) -> None:
    """Reject dropout if no trained network has it."""
    names = config.scheme.trained_models(config.model.name)
    for key in ("dropout", "input_dropout"):
        if getattr(config.model, key) and not any((find_model(name) or ("",))[0] == "mlp" for name in names):
            raise UserError(f"model.{key} is for mlp_WIDTH_WIDTH, not for {names[0]}: remove it")


def check_inputs(config: Config) -> None:
    """Reject a mean or std that has not one number per channel of the data, and a hue that exceeds half a circle."""
    jitter = config.data.color_jitter
    if isinstance(jitter, list) and jitter[3:] > [0.5]:
        raise UserError(f"data.color_jitter={jitter}: the hue, its fourth number, is at most 0.5, half a circle")
    if isinstance(config.data, OwnData):  # whose channels are not known yet
        return
    channels = config.data.channels
    for group in ("data", "model", "teacher")[: 2 + config.scheme.uses_teacher]:
        for key in ("mean", "std"):
            values = getattr(getattr(config, group), key)
            if values is not None and len(values) != channels:
                raise UserError(
                    f"{group}.{key} has {len(values)} values, but the images of data={config.data.name} have "
                    f"{channels} channel{'s' * (channels > 1)}: give one per channel"
                )


def check_labels(config: Config) -> None:
    """Reject mixup and cutmix where a single label per sample is needed."""
    mixes = [key for key in ("mixup", "cutmix") if getattr(config.data, key)]
    readers = [options.name for _, options in config.losses.chosen() if options.reads_labels]
    readers += [config.scheme.method] * config.scheme.reads_labels
    for key in mixes if readers else ():
        raise UserError(
            f"{readers[0]} needs one label per sample, but data.{key}={getattr(config.data, key)} gives two: "
            f"set data.{key}=0 or choose another {'loss' if readers[0] != config.scheme.method else 'method'}"
        )


def check_unlabelled(config: Config) -> None:
    """Reject images without labels where there is no term for them, or labels are needed."""
    if config.data.unlabelled is None:
        return
    given = f"data.unlabelled={config.data.unlabelled}"
    method = f"scheme={config.scheme.name} method={config.scheme.method}"
    chosen = [options for _, options in config.losses.chosen()]
    if config.data.sampling == "balanced":
        raise UserError(f"{given} and data.sampling=balanced exclude each other: remove one of them")
    readers = [f"the loss {o.name}" for o in chosen if o.reads_labels or o.bank_size_per_sample]
    for reader in readers + [method] * config.scheme.reads_labels:
        raise UserError(f"{reader} needs the label of every image: remove {given}, or choose another")
    if config.scheme.name not in ("offline", "online") or not chosen:
        raise UserError(f"{given} has no term to learn from in {method}: use scheme=offline or online, with a loss")


def check_large(config: Config) -> None:
    """Reject what sharded or offloaded weights cannot be combined with."""
    placement = config.teacher.placement
    for key, chosen in (
        ("train.fsdp=true", config.train.fsdp),
        (f"teacher.placement={placement}", config.scheme.uses_teacher and placement != "device"),
    ):
        if chosen and config.train.compile:
            raise UserError(f"{key} and train.compile=true exclude each other: remove one of them")
    if config.train.fsdp and not config.train.sync_bn:
        raise UserError("train.fsdp=true needs train.sync_bn=true: batch-norm buffers are not broadcast")
    if config.train.fsdp and config.precision == "fp16":
        raise UserError("train.fsdp=true has no gradient scaler for precision=fp16: use precision=bf16 or fp32")


def check_view(config: Config) -> None:
    """Reject a teacher that sees plain images where its predictions would be wrong, or are stored by view."""
    if not config.scheme.uses_teacher or config.teacher.view == "student":
        return
    if config.scheme.trains_teacher:
        raise UserError(
            f"teacher.view=plain is for frozen teachers, and {config.scheme.method} trains its own: remove it"
        )
    for key in ("mixup", "cutmix"):
        if getattr(config.data, key):
            raise UserError(
                f"teacher.view=plain and data.{key}={getattr(config.data, key)} exclude each other: the teacher would "
                f"not see the mixed images; set data.{key}=0 or teacher.view=student"
            )
    if config.teacher.cache != "none":
        raise UserError(
            f"teacher.view=plain and teacher.cache={config.teacher.cache} exclude each other: predictions are stored "
            "by view; remove one of them"
        )


def check_cache(config: Config) -> None:
    if config.scheme.uses_teacher and config.teacher.cache != "none" and config.train.compile:
        raise UserError(
            f"teacher.cache={config.teacher.cache} and train.compile=true exclude each other: cached outputs must not "
            "depend on compilation"
        )


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def check_teachers(config: Config) -> None:
    """Reject per-teacher lists whose length is not the number of teachers."""
    if not config.scheme.uses_teacher:
        return
    count = len(_as_list(config.teacher.name))
    for key in ("weights", "checkpoint"):
        value = getattr(config.teacher, key)
        if value is not None and len(_as_list(value)) != count:
            raise UserError(
                f"teacher.{key} has {len(_as_list(value))} entries for {count} teachers: give one per teacher"
            )
    if config.teacher.weights is not None and sum(config.teacher.weights) <= 0:
        raise UserError("teacher.weights are all zero: at least one must be positive")


def split_keys(config: Config) -> list[str]:
    """Return the settings of a run that shard weights across processes."""
    sharded = config.scheme.uses_teacher and config.teacher.placement == "sharded"
    return ["train.fsdp=true"] * config.train.fsdp + ["teacher.placement=sharded"] * sharded
