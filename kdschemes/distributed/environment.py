"""What Accelerate takes from the environment: honored if the run's own keys say the same, refused by name otherwise."""

from __future__ import annotations

import os

from kdschemes.config import Config
from kdschemes.errors import UserError

TRUE, FALSE = ("1", "true", "yes", "y", "t", "on"), ("0", "false", "no", "n", "f", "off")

WRAPPERS = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG", "SAGEMAKER")
"""What may wrap the networks in place of DDP."""

FLAGS = ("ACCELERATE_USE_CPU", "ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY")
"""What is honored, but not if it is neither true nor false."""


def uses_cpu() -> bool:
    """Return whether the launcher asked for the CPU, as `accelerate launch --cpu` does."""
    return os.environ.get("ACCELERATE_USE_CPU", "false").lower() in TRUE


def check_environment(config: Config) -> None:
    """Refuse settings for Accelerate that would change what a run computes, or that would have no effect.

    Accelerate's launcher always sets some of them, to values that change nothing.

    Raises:
        UserError: there is one; the message names it and the key to set instead.
    """
    for name, (honored, cure) in _settings(config).items():
        value = os.environ.get(name)
        if value is not None and value.lower() not in honored:
            source = "from the environment, accelerate launch or its configuration file"
            raise UserError(f"{name}={value} ({source}) is not honored: {cure.format(value=value.lower())}")
    for name in FLAGS:
        if os.environ.get(name, "false").lower() not in TRUE + FALSE:
            raise UserError(f"{name}={os.environ[name]} must be true or false")


def _settings(config: Config) -> dict[str, tuple[tuple[str, ...], str]]:
    """Return by variable the values that a run honors, and what to do with others."""
    no, steps, clip = ("", *FALSE), config.train.grad_accum_steps, config.optim.clip_grad_norm
    settings = {
        "GRADIENT_ACCUMULATION_STEPS": (("1", str(steps)), "set train.grad_accum_steps={value} instead"),
        "GRADIENT_CLIPPING": (("none", "auto", str(clip)), "set optim.clip_grad_norm={value} instead"),
        "MIXED_PRECISION": (
            ("no", config.precision),
            "set precision={value} (fp32, bf16 or fp16), or launch with --mixed_precision no",
        ),
        "DYNAMO_BACKEND": (no, "set train.compile=true, and launch with --dynamo_backend no"),
        "DOWNCAST_BF16": (no, "it is for TPUs; unset it"),
        "TORCH_DEVICE": (
            ("cpu",) if config.device == "cpu" else (),
            "unset it, and use device=cpu or cuda, and CUDA_VISIBLE_DEVICES to choose a GPU",
        ),
    }
    if config.device == "cuda":
        settings["USE_CPU"] = (no, "it contradicts device=cuda: use device=auto or cpu, or launch without --cpu")
    for name in WRAPPERS:
        cure = f"{name} has no effect here: launch with distributed_type: MULTI_GPU (slurm/accelerate/fsdp2.yaml)"
        settings[f"USE_{name}"] = (no, f"{cure} and shard the weights with train.fsdp=true")
    return {f"ACCELERATE_{name}": setting for name, setting in settings.items()}
