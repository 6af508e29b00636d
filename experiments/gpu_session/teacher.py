"""Part (c): the ResNet-18 of the deck on CIFAR-100, trained by the product, saved in half precision in small pieces.

`python -m experiments.gpu_session.teacher FOLDER` joins the pieces in FOLDER into `model.safetensors` there.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

from experiments.bench import build, timed, train_one_epoch
from experiments.gpu_session.images import small_data
from experiments.gpu_session.record import REPOSITORY, Item, Outcome, Record, Task, run_part
from kdschemes.checksums import file_checksum
from kdschemes.config import Config
from kdschemes.config.load import load_config
from kdschemes.data import open_data
from kdschemes.models import load_model
from kdschemes.storage.atomic import atomic_write
from kdschemes.storage.naming import CONFIG, WEIGHTS, run_name
from kdschemes.training.train import train

FOLDER = "teacher"
"""Where the pieces are, in DIR."""

PIECE, INDEX, SUMS = "15MB", "model.safetensors.index.json", "SHA256SUMS"

WANTED = 78.0
"""Top-1 in percent on the test set that the teacher should have."""

MOST_EPOCHS, LEAST_EPOCHS = 300, 10
"""The published length (79.26 %), and a length below which a teacher is not worth its time."""

STARTING = 25.0
"""Seconds that a run takes besides its steps: opening the data, the final evaluation, the export."""

SAFETY = 0.9
"""Share of the remaining time that the steps should take."""


def items(task: Task) -> Mapping[str, Item]:
    """Return the steps of the part, in order."""
    return {"number of epochs": choose_epochs, "training": train_teacher, "weights in half precision": save_pieces}


def configuration(task: Task, epochs: int) -> Config:
    """Return the teacher's run: all 50,000 images, SGD .1/.9/5e-4 with Nesterov momentum, batches of 128, cosine."""
    keys = ["scheme=supervised", f"output_dir={task.out / 'runs'}", f"train.epochs={epochs}"]
    if task.rehearse:
        keys += ["model=resnet20", *small_data(task.out), "optim.lr=0.05", "data.val_fraction=0"]
    else:
        keys += ["model=resnet18_cifar", "experiment=cifar100/study", f"data.root={task.data}", "data.val_fraction=0"]
        keys += ["precision=bf16", f"train.checkpoint_every_epochs={max(1, epochs // 10)}", "train.log_every_steps=50"]
    return load_config(keys, recipes=REPOSITORY / "experiments")


def choose_epochs(task: Task) -> Outcome:
    """Choose as many epochs as fit into the part's time, by the measured time of a step."""
    size, steps = (8, 2) if task.rehearse else (128, 100)
    model, precision = ("resnet20", "fp32") if task.rehearse else ("resnet18_cifar", "bf16")
    with tempfile.TemporaryDirectory() as folder:
        run = build(precision, size, steps, Path(folder), ("scheme=supervised", f"model={model}"))
        train_one_epoch([run], 0)
        step = timed(lambda: train_one_epoch([run], 1)) / steps
    steps_per_epoch = -(-50_000 // 128)
    fitting = int(SAFETY * (task.seconds_left - STARTING) / (step * steps_per_epoch))
    epochs = 2 if task.rehearse else min(max(fitting, LEAST_EPOCHS), MOST_EPOCHS)
    return {"ok": True, "step_ms": 1000 * step, "epochs_that_fit": fitting, "epochs": epochs}


def train_teacher(task: Task) -> Outcome:
    """Train it, or resume from its last checkpoint; the clock's signal saves it and ends this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    results = train(configuration(task, epochs_of(task))).results
    top1 = results["heads"][results["primary_head"]]["last"]["test"]["top1"]
    found: Outcome = {"ok": task.rehearse or top1 >= WANTED, "test_top1": top1, "wanted": WANTED}
    kept = ("epochs", "train_seconds", "images_per_second", "peak_memory_bytes", "precision", "device")
    return found | {key: results[key] for key in kept}


def save_pieces(task: Task) -> Outcome:
    """Write the weights in float16, in files below 16 MiB with their index, description and sums; measure them."""
    run, folder, partial = run_folder(task), task.out / FOLDER, task.out / f"{FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    state = {name: x.half() if x.is_floating_point() else x for name, x in load_file(run / WEIGHTS).items()}
    save_torch_state_dict(state, partial, max_shard_size="100KB" if task.rehearse else PIECE)
    shutil.copy(run / CONFIG, partial / CONFIG)
    sums = {file.name: file_checksum(file) for file in sorted(partial.iterdir())}
    atomic_write(partial / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    join(folder)
    top1 = top1_of(folder, configuration(task, epochs_of(task)))
    sizes = {name: (folder / name).stat().st_size for name in sums}
    return {"ok": max(sizes.values()) < 2**24, "test_top1": top1, "sha256": sums, "bytes": sizes}


def join(folder: Path) -> Path:
    """Return `model.safetensors` in a folder of pieces, written if it is not there; the sums are checked.

    Raises:
        ValueError: a piece is missing or damaged.
    """
    whole = folder / WEIGHTS
    for line in (folder / SUMS).read_text().splitlines():
        digest, name = line.split()
        if not (folder / name).is_file() or file_checksum(folder / name) != digest:
            raise ValueError(f"{folder / name} is missing or damaged")
    if not whole.exists():
        pieces = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        partial = whole.with_suffix(".partial")
        save_file({name: x for piece in pieces for name, x in load_file(folder / piece).items()}, partial)
        partial.replace(whole)
    return whole


def top1_of(folder: Path, config: Config) -> float:
    """Return the top-1 accuracy in percent on the test set of a network in float32, its weights as in `folder`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_model(folder).to(device)
    data = open_data(config.data, seed=0, device=device)
    right = 0
    with torch.no_grad():
        for batch in data.eval_batches("test", batch_size=500, rank=0, world=1):
            right += int((network(batch.images).argmax(1) == batch.labels).sum())
    return 100 * right / data.sizes["test"]


def epochs_of(task: Task) -> int:
    """Return the number of epochs that was chosen."""
    return int(Record.read(task.out / "teacher.json").items["number of epochs"]["epochs"])


def run_folder(task: Task) -> Path:
    """Return the folder of the teacher's run."""
    config = configuration(task, epochs_of(task))
    return Path(config.output_dir) / run_name(config)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(join(Path(sys.argv[1])))
        sys.exit(0)
    sys.exit(run_part("teacher", items))
