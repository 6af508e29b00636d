"""The typed configuration of a run. Importing it does not import torch, so that a typo is answered at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from kdschemes.config.data import Data, Digits
from kdschemes.config.losses import Losses
from kdschemes.config.schemes.online import OnlineDML

TEACHER = "teacher"
"""The `job_type` of runs that were not asked for themselves: others need them."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network that is trained: the student, each peer, or the one that teaches itself."""

    name: Annotated[str, Field(description="a network of kdschemes, or any timm model as timm/NAME")] = "convnet"
    checkpoint: Annotated[
        str | Annotated[list[str], Field(min_length=2)] | None,
        Field(description="weights to start from: file, run's folder or hf_hub:OWNER/NAME; a list: one an online peer"),
    ] = None
    pretrained: Annotated[bool, Field(description="start from timm's published weights (downloads)")] = False


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The frozen network or networks of scheme=offline."""

    name: Annotated[
        str | Annotated[list[str], Field(min_length=1)], Field(description="model of the teacher, or a list of them")
    ] = "resnet18_cifar"
    checkpoint: Annotated[
        str | list[str] | None,
        Field(
            description="weights: file, run's folder or hf_hub:OWNER/NAME, or a list; null: it is trained first, once"
        ),
    ] = None
    pretrained: Annotated[bool, Field(description="take timm's published weights (downloads)")] = False
    weights: Annotated[
        list[Annotated[float, Field(ge=0)]] | None,
        Field(description="weight of each teacher in their mean; null: equal weights"),
    ] = None
    precision: Annotated[
        Literal["fp32", "bf16"],
        Field(description="of the frozen weights; bf16: half the memory, and the teacher computes in it, too"),
    ] = "fp32"
    placement: Annotated[
        Literal["device", "offload", "sharded"],
        Field(
            description="the frozen weights: on the device; on the CPU and brought layer by layer; "
            "or sharded over the processes (FSDP2)"
        ),
    ] = "device"
    cache: Annotated[
        Literal["none", "logits", "features"],
        Field(
            description="store the frozen networks' answers to the training views, in float16, for later runs of the "
            "seed: logits, or also the features that losses read"
        ),
    ] = "none"
    cache_dir: Annotated[
        str | None, Field(description="folder of the stored answers; null: teacher_cache in output_dir")
    ] = None
    cache_limit_gb: Annotated[
        float, Field(gt=0, description="GB (10^9 bytes) that all stored answers in cache_dir may take")
    ] = 20.0
    epochs: Annotated[
        int | None, Field(ge=1, description="epochs of a teacher that is trained first; null: as the student")
    ] = None
    seed: Annotated[int, Field(ge=0, description="seed of a teacher that is trained first, shared by all students")] = 0


@dataclass(frozen=True, kw_only=True)
class Optim:
    """Optimizer, learning rate and clipping, the same for every network."""

    name: Annotated[Literal["sgd", "adamw"], Field(description="sgd (with Nesterov momentum) or adamw")] = "sgd"
    lr: Annotated[float, Field(gt=0, description="peak learning rate; never rescaled with the number of processes")] = (
        0.1
    )
    momentum: Annotated[float, Field(ge=0, lt=1, description="momentum of sgd; first beta of adamw")] = 0.9
    nesterov: Annotated[bool, Field(description="Nesterov's form of momentum (sgd)")] = True
    weight_decay: Annotated[float, Field(ge=0, description="weight decay, on every trained parameter")] = 5e-4
    lr_schedule: Annotated[Literal["cosine", "step", "constant"], Field(description="learning rate over training")] = (
        "cosine"
    )
    milestones: Annotated[
        list[Annotated[float, Field(gt=0, lt=1)]],
        Field(description="step: shares of the training after which the rate is multiplied by gamma"),
    ] = field(default_factory=lambda: [0.625, 0.75, 0.875])
    gamma: Annotated[float, Field(gt=0, le=1, description="step: factor at each milestone")] = 0.1
    warmup_epochs: Annotated[float, Field(ge=0, description="epochs of linear warm-up from 0")] = 0.0
    clip_grad_norm: Annotated[
        float | None, Field(gt=0, description="largest gradient norm, of each network by itself; null: no clipping")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Train:
    """Length of the training and what happens on the way."""

    epochs: Annotated[int, Field(ge=1, description="passes over the training images")] = 15
    batch_size: Annotated[
        int, Field(ge=2, description="samples of one optimizer step, over all processes and accumulated micro-batches")
    ] = 128
    grad_accum_steps: Annotated[int, Field(ge=1, description="micro-batches that one optimizer step is split into")] = 1
    drop_last: Annotated[bool, Field(description="leave out the last batch of an epoch if it is smaller")] = False
    eval_batch_size: Annotated[int, Field(ge=1, description="samples a process evaluates at once")] = 500
    eval_every_epochs: Annotated[int, Field(ge=1, description="epochs between evaluations on the validation split")] = 1
    checkpoint_every_epochs: Annotated[int, Field(ge=1, description="epochs between checkpoints")] = 1
    checkpoint_every_steps: Annotated[
        int | None, Field(ge=1, description="also a checkpoint every so many optimizer steps")
    ] = None
    log_every_steps: Annotated[int, Field(ge=1, description="optimizer steps between lines of metrics.jsonl")] = 10
    ema: Annotated[
        float | None, Field(gt=0, lt=1, description="decay of a moving average of the student's weights; null: none")
    ] = None
    fsdp: Annotated[
        bool, Field(description="split trained weights, gradients and optimizer state over the processes (FSDP2)")
    ] = False
    sync_bn: Annotated[bool, Field(description="batch norm over all processes, as one process would compute it")] = True
    gather_batch: Annotated[
        bool, Field(description="losses between samples see the batch of all processes, not each process's own")
    ] = True
    channels_last: Annotated[bool, Field(description="memory format of images and convolutions")] = True
    compile: Annotated[bool, Field(description="torch.compile each network")] = False
    deterministic: Annotated[bool, Field(description="the same command gives the same bits")] = True
    num_threads: Annotated[
        int | None, Field(ge=1, description="CPU threads a process; null: the cores shared among the processes here")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. Its hash, without where it is written and who watches, names the run's folder."""

    scheme: Any = field(default_factory=OnlineDML)
    data: Data = field(default_factory=Digits)
    model: Model = field(default_factory=Model)
    teacher: Teacher = field(default_factory=Teacher)
    losses: Losses = field(default_factory=Losses)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    seed: Annotated[int, Field(ge=0, description="seed of initial weights, order and views")] = 0
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], Field(description="arithmetic of the networks; losses are always float32")
    ] = "fp32"
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto: a GPU where there is one")] = "auto"
    tracker: Annotated[
        list[Literal["wandb", "tensorboard"]], Field(description="none, wandb, tensorboard, or a list of them")
    ] = field(default_factory=list)
    project: Annotated[str, Field(description="project of the runs in W&B")] = "kdschemes"
    group: Annotated[str | None, Field(description="group of the run in W&B; null: scheme, method, data and model")] = (
        None
    )
    job_type: Annotated[str | None, Field(description="kind of the run in W&B; null: its scheme")] = None
    output_dir: Annotated[str, Field(description="folder that holds the runs' folders")] = "runs"
