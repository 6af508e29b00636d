"""Recipes of the public CIFAR-100 tables, one file a method and pair: `python -m experiments.repdistiller` writes them.

The protocol is RepDistiller's (Tian et al. 2020) but where a method's authors publish another; weights, stages and
accuracies are those of the source that each recipe names.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent / "repdistiller"
EPOCHS = 240
STEPS = [0.625, 0.75, 0.875]
SMALL_RATE = ("shufflenet_v2",)
"""Students that start from a fifth of the learning rate."""

Options = dict[str, Any]
Stages = str | list[str]


@dataclass(frozen=True)
class Pair:
    """A teacher, a student, their published accuracies, and the stages that the public code compares.

    `maps` are all pairs of maps, `middle` the hint's, `last` the deepest pair of maps; embeddings are always those of
    the last stages.
    """

    teacher: str
    student: str
    teacher_accuracy: float
    student_accuracy: float
    maps: Stages = "all"
    middle: Stages = "middle"
    last: Stages = "last"

    @property
    def name(self) -> str:
        """Return `TEACHER_STUDENT`."""
        return f"{self.teacher}_{self.student}"


def _same(*numbers: int) -> list[str]:
    return [f"layer{number}:layer{number}" for number in numbers]


PAIRS = (
    Pair("resnet56", "resnet20", 72.34, 69.06),
    Pair("resnet110", "resnet32", 74.31, 71.14),
    Pair("resnet32x4", "resnet8x4", 79.42, 72.50),
    Pair("wrn_40_2", "wrn_16_2", 75.61, 73.26),
    Pair("wrn_40_2", "wrn_40_1", 75.61, 71.98),
    Pair("vgg13", "vgg8", 74.64, 70.36, maps=_same(2, 3, 4, 5)),
    Pair("resnet32x4", "shufflenet_v2", 79.42, 71.82, maps=_same(1, 2, 3), middle=_same(2), last=_same(3)),
)


@dataclass(frozen=True)
class Method:
    """A method: its paper, its losses, and its published accuracy by pair (None: none), in the order of `PAIRS`.

    `stages` names the attribute of `Pair` that gives the loss its stages, `own` the options of single pairs, `notes`
    what differs from the public training, for the pairs whose name holds the key.
    """

    title: str
    paper: str
    losses: Options
    accuracy: tuple[float | None, ...]
    source: str = "RepDistiller's table; last epoch"
    scheme: Options = field(default_factory=dict)
    stages: str | None = None
    own: Mapping[str, Options] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    optim: Options = field(default_factory=lambda: {"lr": 0.05, "nesterov": False})
    batch_size: int = 64


NO_RESPONSE: Options = {"response": {"name": "none"}}
LAST_SUM = {
    "wrn": "the last stage's map is compared after its batch norm and ReLU; RepDistiller compares the sum before them."
}
BEFORE = "published as 30 epochs of this loss alone, then cross-entropy alone; here it fades out over 30 epochs."


def _feature(name: str, weight: float, **options: Any) -> Options:
    return {**NO_RESPONSE, "feature": {"name": name, "weight": weight, **options}}


def _relation(name: str, weight: float, **options: Any) -> Options:
    return {**NO_RESPONSE, "relation": {"name": name, "weight": weight, **options}}


METHODS: dict[str, Method] = {
    "kd": Method(
        "Knowledge distillation",
        "Hinton et al. 2015",
        {"response": {"name": "kd", "temperature": 4.0}},
        (70.66, 73.08, 73.33, 74.92, 73.54, 72.98, 74.45),
        scheme={"alpha": 0.9},
    ),
    "hint": Method(
        "FitNet",
        "Romero et al. 2015",
        _feature("hint", 100.0),
        (69.21, 71.06, 73.50, 73.58, 72.24, 71.02, 73.54),
        stages="middle",
    ),
    "at": Method(
        "Attention transfer",
        "Zagoruyko & Komodakis 2017",
        _feature("at", 1000.0),
        (70.55, 72.31, 73.44, 74.08, 72.77, 71.43, 72.73),
        stages="maps",
        notes=LAST_SUM,
    ),
    "sp": Method(
        "Similarity-preserving distillation",
        "Tung & Mori 2019",
        _relation("sp", 3000.0),
        (69.67, 72.69, 72.94, 73.83, 72.43, 72.68, 74.56),
        stages="last",
        notes=LAST_SUM,
    ),
    "cc": Method(
        "Correlation congruence",
        "Peng et al. 2019",
        _relation("cc", 0.02, stages="last"),
        (69.63, 71.48, 72.97, 73.56, 72.21, 70.71, 71.29),
    ),
    "vid": Method(
        "Variational information distillation",
        "Ahn et al. 2019",
        _feature("vid", 1.0),
        (70.38, 72.61, 73.09, 74.11, 73.30, 71.23, 73.40),
        stages="maps",
        notes=LAST_SUM,
    ),
    "rkd": Method(
        "Relational knowledge distillation",
        "Park et al. 2019",
        _relation("rkd", 1.0, distance=25.0, angle=50.0, stages="last"),
        (69.61, 71.82, 71.90, 73.35, 72.22, 71.48, 73.21),
    ),
    "pkt": Method(
        "Probabilistic knowledge transfer",
        "Passalis & Tefas 2018",
        _relation("pkt", 30000.0, stages="last"),
        (70.34, 72.61, 73.64, 74.54, 73.45, 72.88, 74.69),
    ),
    "ab": Method(
        "Activation boundaries",
        "Heo et al. 2019",
        _feature("ab", 1.0, schedule="cosine", ramp_epochs=30.0),
        (69.47, 70.98, 73.17, 72.50, 72.38, 70.94, 74.31),
        stages="maps",
        notes={
            "": BEFORE,
            "wrn": "stages 1 and 2 end in no ReLU and are compared without the next block's batch norm.",
            "shufflenet": "the student's maps are those after the ReLU.",
        },
    ),
    "ft": Method(
        "Factor transfer",
        "Kim et al. 2018",
        _feature("ft", 200.0),
        (69.84, 72.37, 72.86, 73.25, 71.59, 70.58, 72.50),
        stages="last",
        notes={"": "the paraphraser is trained alongside; published after 30 epochs of its own."} | LAST_SUM,
    ),
    "fsp": Method(
        "Flow of solution procedure",
        "Yim et al. 2017",
        _relation("fsp", 50.0, schedule="cosine", ramp_epochs=30.0, stages="all"),
        (69.95, 71.89, 72.62, 72.91, None, 70.23, None),
        notes={
            "": BEFORE,
            "resnet": "without the flow from the stem to the first stage.",
            "wrn": "without the flow from the stem, and with the last stage's map after its batch norm and ReLU.",
        },
    ),
    "nst": Method(
        "Neuron selectivity transfer",
        "Huang & Wang 2017",
        _feature("nst", 50.0),
        (69.60, 71.96, 73.30, 73.68, 72.24, 71.53, 74.68),
        stages="maps",
        notes=LAST_SUM,
    ),
    "crd": Method(
        "Contrastive representation distillation",
        "Tian et al. 2020",
        _relation("crd", 0.8, stages="last"),
        (71.16, 73.48, 75.51, 75.48, 74.14, 73.94, 75.65),
    ),
    "reviewkd": Method(
        "Knowledge review",
        "Chen et al. 2021",
        _feature("reviewkd", 5.0),
        (71.89, 73.89, 75.63, 76.12, 75.09, 74.85, 77.78),
        source="the paper's table; the authors' code keeps the best epoch",
        stages="maps",
        own={
            "resnet56_resnet20": {"weight": 0.6},
            "resnet110_resnet32": {"weight": 1.0},
            "resnet32x4_shufflenet_v2": {"weight": 8.0},
        },
        notes={
            "": "batch, learning rate and Nesterov's momentum are the authors', not RepDistiller's.",
            "wrn": "stages 1 and 2 end in no ReLU and are compared without the next block's batch norm.",
            "vgg": "the weight is that of mdistiller's maintainers; the authors published none for VGG.",
            "shufflenet": "the pooled level is that of the student's layer3; the authors pool its head.",
        },
        optim={"lr": 0.1, "nesterov": True},
        batch_size=128,
    ),
    "dkd": Method(
        "Decoupled knowledge distillation",
        "Zhao et al. 2022",
        {"response": {"name": "dkd", "alpha": 1.0, "beta": 8.0, "temperature": 4.0}},
        (71.97, 74.11, 76.32, 76.24, 74.81, 74.68, 77.07),
        source="the paper's table; mdistiller keeps the best epoch",
        own={
            "resnet56_resnet20": {"beta": 2.0},
            "resnet110_resnet32": {"beta": 2.0},
            "wrn_40_2_wrn_16_2": {"beta": 6.0},
            "wrn_40_2_wrn_40_1": {"beta": 6.0},
            "vgg13_vgg8": {"beta": 6.0},
        },
    ),
    "dist": Method(
        "Distillation from a stronger teacher (DIST)",
        "Huang et al. 2022",
        {"response": {"name": "dist"}},
        (71.75, 73.69, 76.31, 75.51, 74.73, 73.89, 77.35),
        source="the table of Zheng & Yang 2024; which epoch is not said",
    ),
    "wttm": Method(
        "Weighted transformed teacher matching",
        "Zheng & Yang 2024",
        {"response": {"name": "wttm", "weight": 2.25, "temperature": 10.0}},
        (71.92, 74.13, 76.06, 76.37, 74.58, 74.44, 76.55),
        source="the paper's table; which epoch is not said",
        own={
            "resnet56_resnet20": {"weight": 1.5, "temperature": 1 / 0.3},
            "resnet110_resnet32": {"weight": 1.5},
            "resnet32x4_resnet8x4": {"weight": 3.0},
            "wrn_40_2_wrn_16_2": {"weight": 4.0},
            "wrn_40_2_wrn_40_1": {"weight": 3.0},
        },
        notes={
            "": "weight and temperature are of the paper's table 8 as the loss's card (kdschemes methods wttm) has it.",
            "shufflenet": "this pair's are not known to us: those of VGG-13 to VGG-8 stand in.",
        },
    ),
    "kd_standardised": Method(
        "Distillation of standardised logits",
        "Sun et al. 2024",
        {"response": {"name": "kd", "standardise": True, "temperature": 2.0, "weight": 9.0}},
        (71.43, 74.17, 76.62, 76.11, 74.37, 74.36, 75.56),
        source="the authors' table; mdistiller keeps the best epoch",
        scheme={"alpha": 1.0, "hard": 0.1},
        own={"vgg13_vgg8": {"temperature": 3.0}},
    ),
}


def recipes() -> dict[Path, str]:
    """Return the text of every recipe by its path."""
    return {
        FOLDER / f"{name}_{pair.name}.yaml": _text(name, method, pair, accuracy)
        for name, method in METHODS.items()
        for pair, accuracy in zip(PAIRS, method.accuracy, strict=True)
        if accuracy is not None
    }


def main() -> None:
    """Write every recipe, and remove the files of those that are no more."""
    FOLDER.mkdir(exist_ok=True)
    texts = recipes()
    for path in set(FOLDER.glob("*.yaml")) - texts.keys():
        path.unlink()
    for path, text in texts.items():
        path.write_text(text)
    print(f"{len(texts)} recipes in {FOLDER}")


def _text(name: str, method: Method, pair: Pair, accuracy: float) -> str:
    lines = [f"# {line}" for line in _header(name, method, pair, accuracy)]
    for group, options in _groups(method, pair).items():
        dumped = yaml.safe_dump(options, default_flow_style=True, sort_keys=False, width=10_000)
        lines.append(f"{group}: {dumped.strip()}")
    return "\n".join(lines) + "\n"


def _header(name: str, method: Method, pair: Pair, accuracy: float) -> Iterator[str]:
    yield f"{method.title} on CIFAR-100: teacher {pair.teacher}, student {pair.student} ({method.paper})."
    experiment = f"experiment=repdistiller/{name}_{pair.name}"
    yield f"Command:  accelerate launch run.py {experiment} teacher.checkpoint=PATH data.root=PATH"
    yield "Baseline: the same with scheme=supervised (no teacher.checkpoint)."
    yield from _wrapped(
        f"Published: teacher {pair.teacher_accuracy:.2f}, student alone {pair.student_accuracy:.2f}, "
        f"this method {accuracy:.2f} ({method.source}; test top-1, trained on all 50,000 images)."
    )
    for part, note in method.notes.items():
        if part in pair.name:
            yield from _wrapped(f"Note: {note}")
    yield f"Cost: {EPOCHS} epochs. Not run at full length by us yet."


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 118, subsequent_indent="  ")


def _groups(method: Method, pair: Pair) -> dict[str, Options]:
    losses = {kind: dict(options) for kind, options in method.losses.items()}
    loss = next(options for options in losses.values() if options["name"] != "none")
    if method.stages:
        loss["stages"] = getattr(pair, method.stages)
    loss |= method.own.get(pair.name, {})
    rate = method.optim["lr"] / (5 if pair.student in SMALL_RATE else 1)
    return {
        "scheme": {"name": "offline", "method": "kd", **method.scheme},
        "model": {"name": pair.student},
        "teacher": {"name": pair.teacher},
        "losses": losses,
        "data": {"name": "cifar100", "val_fraction": 0.0},
        "optim": {
            "name": "sgd",
            "lr": rate,
            "momentum": 0.9,
            "nesterov": method.optim["nesterov"],
            "weight_decay": 0.0005,
            "schedule": "step",
            "milestones": STEPS,
            "gamma": 0.1,
        },
        "train": {"epochs": EPOCHS, "batch_size": method.batch_size},
    }


if __name__ == "__main__":
    main()
