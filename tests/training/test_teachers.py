"""What is said of a teacher before it teaches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdschemes.config.load import load_config
from kdschemes.models import create_model, load_model, save_weights
from kdschemes.training.train import baselines_of, train
from tests import REPOSITORY

ALL = ["model=convnet", "data.val_fraction=0", "train.num_threads=1"]


@pytest.mark.slow
def test_a_wrong_teacher_is_warned_of_without_a_validation_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    supervised = [
        "scheme=supervised",
        "train.epochs=3",
        "train.batch_size=128",
        "data.train_fraction=1",
        f"output_dir={tmp_path}",
        *ALL,
    ]
    good = train(load_config(supervised, recipes=REPOSITORY)).folder
    network, names = load_model(good), [str(k) for k in range(10)]
    with torch.no_grad():
        for parameter in network.fc.parameters():
            parameter.copy_(parameter.roll(1, 0))
    save_weights(network, tmp_path / "mapped", metadata={"classes": [*names[-1:], *names[:-1]]})
    save_weights(network, tmp_path / "permuted")
    save_weights(create_model("convnet", num_classes=10, channels=1, image_size=8), tmp_path / "untrained")

    def said(teacher: Path) -> list[str]:
        capsys.readouterr()
        offline = ["scheme=offline", "teacher=convnet", f"teacher.checkpoint={teacher}", f"output_dir={tmp_path}"]
        options = ["data.train_fraction=0.2", "train.epochs=1"]
        train(load_config([*offline, *options, *ALL], recipes=REPOSITORY))
        return capsys.readouterr().out.splitlines()

    lines, mapped = said(good), said(tmp_path / "mapped")
    accuracy = lines[0].partition(": ")[2]
    assert lines[0].startswith("teacher on 250 training images: ")
    assert mapped[:2] == [
        f"{tmp_path / 'mapped'}: its classes are in another order than the data's, and mapped by their names",
        f"teacher on 250 training images: {accuracy}",
    ]
    assert not any(line.startswith("warning") for line in lines + mapped)
    assert said(tmp_path / "permuted")[1].startswith("warning: the teacher seems to have its classes in another order")
    assert said(tmp_path / "untrained")[1].startswith("warning: the teacher is at chance level (")


@pytest.mark.slow
def test_a_teacher_worse_than_its_student_alone_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["model=resnet20", "train.epochs=8", "train.num_threads=1", f"output_dir={tmp_path}"]
    alone = train(load_config(["scheme=supervised", *own], recipes=REPOSITORY))
    capsys.readouterr()
    taught = train(
        load_config(["scheme=offline", "teacher.epochs=1", "teacher.optim.lr=0.001", *own], recipes=REPOSITORY)
    )
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: the teacher is worse")
    ]
    top1 = [
        run.results["heads"][head]["last"]["val"]["top1"] for run, head in ((taught, "teacher"), (alone, "student"))
    ]
    assert top1[0] < top1[1]
    assert "is worse than its student trained without it: {:.2f} against {:.2f} % of 250 images".format(*top1) in line
    assert baselines_of(taught) == ([alone.results], [])
