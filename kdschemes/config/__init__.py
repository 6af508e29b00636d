"""The typed configuration of a run. Importing it does not import torch, so that a typo is reported immediately."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from kdschemes.config.data import Data, Digits
from kdschemes.config.losses import Losses
from kdschemes.config.paths import FilePath
from kdschemes.config.schemes.online import OnlineDML

TEACHER = "teacher"
"""The `job_type` of runs that are trained only because other runs need them."""


Name = Annotated[str, Field(max_length=128)]
"""What W&B takes as a name."""
Mean = Annotated[
    list[Annotated[float, Field(ge=0, le=1)]] | None,
    Field(
        description="mean of its images per channel, scaled to 0..1; null: as its checkpoint's config.json says, or "
        "timm for pretrained weights, else the data's"
    ),
]

Std = Annotated[
    list[Annotated[float, Field(ge=0.001, le=1)]] | None,
    Field(description="standard deviation of its images per channel, scaled to 0..1; null: as for mean"),
]

Kwargs = Annotated[
    dict[str, Any] | None,
    Field(description="arguments of timm's or your own networks: model.kwargs.drop_path_rate=0.1"),
]

Stages = Annotated[
    Annotated[list[str], Field(min_length=1)] | None,
    Field(description="your own network's stages, as names of submodules, shallow to deep; null: found by a probe"),
]

ImageSize = Annotated[
    int | None,
    Field(
        ge=1, le=4_096, description="side in pixels of its images, to which the data's are resized; null: as for mean"
    ),
]


@dataclass(frozen=True, kw_only=True)
class Model:
    """The trained network: the student, each peer, or the self-distilled network."""

    name: Annotated[
        str, Field(description="a kdschemes network, any timm model as timm/NAME, or your own as MODULE:NAME")
    ] = "convnet"
    kwargs: Kwargs = None
    stages: Stages = None
    checkpoint: Annotated[
        FilePath | Annotated[list[FilePath], Field(min_length=2)] | None,
        Field(description="initial weights: a file, run folder or hf_hub:OWNER/NAME; a list: one per online peer"),
    ] = None
    head: Annotated[
        Literal["checkpoint", "new"],
        Field(description="the classifier: that of model.checkpoint, or a new one if the data has other classes"),
    ] = "checkpoint"
    pretrained: Annotated[
        bool, Field(description="start from timm's pretrained weights (downloads them), or those of MODULE:NAME")
    ] = False
    dropout: Annotated[
        float, Field(ge=0, lt=1, description="mlp_WIDTH_WIDTH: probability of dropping a hidden unit in training")
    ] = 0.0
    input_dropout: Annotated[
        float, Field(ge=0, lt=1, description="mlp_WIDTH_WIDTH: probability of dropping a pixel in training")
    ] = 0.0
    mean: Mean = None
    std: Std = None
    image_size: ImageSize = None


@dataclass(frozen=True, kw_only=True)
class Optim:
    """Optimizer, learning rate and gradient clipping, the same for every network.

    `load_config` replaces the defaults by those for AdamW where a network normalizes by layer norm, as transformers do.
    """

    name: Annotated[
        str,
        Field(
            description="sgd, adamw, or timm/NAME, as timm/lamb; default: adamw if a network to train has layer norms "
            "(transformers), else sgd"
        ),
    ] = "sgd"
    kwargs: Annotated[
        dict[str, Any] | None,
        Field(description="further arguments of timm/NAME: optim.kwargs.betas=[0.9,0.99]"),
    ] = None
    lr: Annotated[
        float, Field(gt=0, description="peak learning rate; not scaled by the number of processes; adamw: 0.001")
    ] = 0.1
    momentum: Annotated[
        float, Field(ge=0, lt=1, description="momentum (sgd, and timm/NAME if it has one) or beta1 (adamw)")
    ] = 0.9
    momentum_start: Annotated[
        float | None,
        Field(ge=0, lt=1, description="momentum at first, raised linearly over momentum_epochs; null: momentum (sgd)"),
    ] = None
    momentum_epochs: Annotated[float, Field(gt=0, description="epochs from momentum_start to momentum")] = 500.0
    nesterov: Annotated[bool, Field(description="use Nesterov momentum (sgd)")] = True
    weight_decay: Annotated[float, Field(ge=0, description="weight decay; adamw: 0.05")] = 5e-4
    decay_vectors: Annotated[
        bool, Field(description="weight decay also of vectors: biases, scales of norms; adamw: false")
    ] = True
    layer_decay: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="factor on the learning rate from each layer to the one before it, 1 at the classifier: the "
            "layers of timm's networks as timm groups them, the stages of others; null: 1 for all",
        ),
    ] = None
    lr_schedule: Annotated[
        Literal["cosine", "step", "exponential", "constant"], Field(description="learning-rate schedule")
    ] = "cosine"
    milestones: Annotated[
        list[Annotated[float, Field(gt=0, lt=1)]],
        Field(description="step: fractions of training after which the learning rate is multiplied by gamma"),
    ] = field(default_factory=lambda: [0.625, 0.75, 0.875])
    gamma: Annotated[
        float, Field(gt=0, le=1, description="step: factor at each milestone; exponential: after each epoch")
    ] = 0.1
    warmup_epochs: Annotated[
        float,
        Field(ge=0, description="epochs of linear warm-up from 0; adamw: 5; the default is at most 1/10 of training"),
    ] = 1.0
    clip_grad_norm: Annotated[
        float | None,
        Field(
            gt=0,
            description="maximum gradient norm of each network separately, which also bounds losses of large weight; "
            "null: no clipping; adamw: 1",
        ),
    ] = 5.0
    max_norm: Annotated[
        float | None,
        Field(gt=0, description="maximum norm of each unit's incoming weights, enforced after a step; null: none"),
    ] = None


ADAMW = {"lr": 1e-3, "weight_decay": 0.05, "decay_vectors": False, "warmup_epochs": 5.0, "clip_grad_norm": 1.0}
"""The defaults of `Optim` for `name=adamw` and timm's that scale gradients; those of its fields are for sgd."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The frozen teacher(s) of scheme=offline."""

    name: Annotated[
        str | Annotated[list[str], Field(min_length=1, max_length=64)],
        Field(description="the teacher's model, or a list of models"),
    ] = "resnet18_cifar"
    kwargs: Kwargs = None
    stages: Stages = None
    checkpoint: Annotated[
        FilePath | list[FilePath] | None,
        Field(description="weights: a file, run folder or hf_hub:OWNER/NAME, or a list; null: trained first, once"),
    ] = None
    pretrained: Annotated[
        bool, Field(description="use timm's pretrained weights (downloads them), or those that MODULE:NAME returns")
    ] = False
    mean: Mean = None
    std: Std = None
    image_size: ImageSize = None
    weights: Annotated[
        list[Annotated[float, Field(ge=0)]] | None,
        Field(description="weight of each teacher in the average; null: equal weights"),
    ] = None
    precision: Annotated[
        Literal["fp32", "bf16"],
        Field(description="precision of the frozen weights; bf16 halves their memory, and the teacher computes in it"),
    ] = "fp32"
    placement: Annotated[
        Literal["device", "offload", "sharded"],
        Field(
            description="where the frozen weights are: on the device; on the CPU, copied layer by layer (offload); "
            "or sharded across processes (FSDP2)"
        ),
    ] = "device"
    cache: Annotated[
        Literal["none", "logits", "features"],
        Field(
            description="cache the frozen networks' outputs on the training views, in float16, for later runs with the "
            "same seed: the logits, or also the features that losses use"
        ),
    ] = "none"
    view: Annotated[
        Literal["student", "plain"],
        Field(description="training images: the student's views, or the images without augmentation"),
    ] = "student"
    cache_dir: Annotated[FilePath | None, Field(description="cache folder; null: teacher_cache in output_dir")] = None
    cache_limit_gb: Annotated[float, Field(gt=0, description="maximum size of cache_dir in GB (10^9 bytes)")] = 20.0
    epochs: Annotated[
        int,
        Field(ge=1, le=1_000_000, description="epochs of a teacher that is trained first, independent of train.epochs"),
    ] = 200
    batch_size: Annotated[
        int, Field(ge=2, le=1_000_000, description="samples per step of a teacher that is trained first")
    ] = 128
    optim: Annotated[Optim, Field(description="the keys of optim, for a teacher that is trained first")] = field(
        default_factory=Optim
    )
    seed: Annotated[int, Field(ge=0, description="seed of a teacher that is trained first, shared by all students")] = 0


@dataclass(frozen=True, kw_only=True)
class Train:
    """Length of training, batches, evaluation, checkpoints and execution."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000, description="passes over the training images")] = 200
    batch_size: Annotated[
        int,
        Field(
            ge=2,
            le=1_000_000,
            description="samples per optimizer step, over all processes and accumulated micro-batches",
        ),
    ] = 128
    grad_accum_steps: Annotated[int, Field(ge=1, le=1_000_000, description="micro-batches per optimizer step")] = 1
    drop_last: Annotated[bool, Field(description="skip the last batch of an epoch if it is smaller")] = False
    eval_batch_size: Annotated[int, Field(ge=1, le=1_000_000, description="evaluation batch size per process")] = 500
    eval_every_epochs: Annotated[int, Field(ge=1, description="epochs between evaluations on the validation split")] = 1
    checkpoint_every_epochs: Annotated[int, Field(ge=1, description="epochs between checkpoints")] = 1
    checkpoint_every_steps: Annotated[
        int | None, Field(ge=1, description="also checkpoint every this many optimizer steps; null: no")
    ] = None
    log_every_steps: Annotated[int, Field(ge=1, description="optimizer steps between lines in metrics.jsonl")] = 10
    ema: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="decay of an EMA of the student's weights, at step t at most 1 - 1 / (t + 1); null: no EMA",
        ),
    ] = None
    label_smoothing: Annotated[
        float,
        Field(ge=0, lt=1, description="label mass spread evenly over classes in the cross-entropy of any scheme"),
    ] = 0.0
    class_weights: Annotated[
        Literal["balanced"] | list[Annotated[float, Field(ge=0)]] | None,
        Field(
            description="weight of each class in the scheme's cross-entropy: a list, or balanced, the inverse of its "
            "share of the training images; null: all 1"
        ),
    ] = None
    patience: Annotated[
        int | None,
        Field(
            ge=1,
            description="stop after this many evaluations without a better validation top-1 (ties: NLL); null: never",
        ),
    ] = None
    fsdp: Annotated[
        bool, Field(description="shard trained weights, gradients and optimizer state across processes (FSDP2)")
    ] = False
    sync_bn: Annotated[bool, Field(description="synchronize batch-norm statistics across processes")] = True
    gather_batch: Annotated[
        bool, Field(description="losses between samples see the global batch, not each process's own part of it")
    ] = True
    channels_last: Annotated[bool, Field(description="channels_last memory format for images and convolutions")] = True
    compile: Annotated[bool, Field(description="torch.compile each network")] = False
    deterministic: Annotated[
        bool, Field(description="bitwise reproducible: the same command gives the same results")
    ] = True
    num_threads: Annotated[
        int | None,
        Field(ge=1, le=1_024, description="CPU threads per process; null: this machine's cores / its processes"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. Its hash, which excludes output folders and trackers, is part of the run folder's name."""

    scheme: Any = field(default_factory=OnlineDML)
    data: Data = field(default_factory=Digits)
    model: Model = field(default_factory=Model)
    teacher: Teacher = field(default_factory=Teacher)
    losses: Losses = field(default_factory=Losses)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    seed: Annotated[int, Field(ge=0, description="seed of the initial weights, the sample order and the views")] = 0
    precision: Annotated[
        Literal["fp32", "bf16", "fp16", "auto"],
        Field(description="precision of the networks (losses use float32); auto: fp32 or bf16, whichever is faster"),
    ] = "fp32"
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto: a GPU if there is one")] = "auto"
    tracker: Annotated[
        list[Literal["wandb", "tensorboard"]], Field(description="none, wandb, tensorboard, or a list of them")
    ] = field(default_factory=list)
    project: Annotated[Name, Field(description="W&B project")] = "kdschemes"
    group: Annotated[Name | None, Field(description="W&B group; null: scheme, method, data and model")] = None
    job_type: Annotated[Name | None, Field(description="W&B job type; null: the scheme")] = None
    resume_from: Annotated[
        FilePath | None,
        Field(
            description="folder of a finished run: continue from its last epoch as a new run, with more train.epochs"
        ),
    ] = None
    output_dir: Annotated[FilePath, Field(description="parent folder of all run folders")] = "runs"
    plugins: Annotated[
        list[str] | None, Field(description="Python that adds methods, losses, networks or data sets, as [FILE.py]")
    ] = None
    code: Annotated[
        dict[str, str],
        Field(description="digests of the Python files and modules named here; written by the run, not to be set"),
    ] = field(default_factory=dict)
