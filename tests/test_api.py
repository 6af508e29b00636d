"""The public names, and training from Python: in a thread, twice in a process, with objects."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kdschemes
from kdschemes.errors import UserError

SHORT = {"epochs": 1, "batch_size": 16, "num_threads": 1}


def test_importing_it_imports_no_torch_and_is_quick() -> None:
    program = (
        "import time; began = time.perf_counter(); import kdschemes, sys\n"
        "assert 'torch' not in sys.modules and 'pydantic' not in sys.modules\n"
        "assert 'train' in dir(kdschemes)\nprint(time.perf_counter() - began, time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[1]) < 0.3


def test_every_public_name_is_there() -> None:
    for name in kdschemes.__all__:
        assert getattr(kdschemes, name) is not None
    for name in kdschemes.losses.__all__:
        assert callable(getattr(kdschemes.losses, name))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        kdschemes.trian  # noqa: B018


def net(num_classes: int, channels: int) -> nn.Module:
    layers = nn.Conv2d(channels, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4, num_classes))


def arrays(count: int = 48, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        name: (generator.integers(0, 255, (count, 8, 8), dtype=np.uint8), np.arange(count) % 3)
        for name in ("train", "test")
    }


def train(tmp_path: Path, *words: str, **options: Any) -> kdschemes.Results:
    return kdschemes.train(*words, output_dir=str(tmp_path), train=SHORT, **options)


def test_a_module_is_copied_and_its_run_is_found_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = net(3, 1)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    options: dict[str, Any] = {"student": student, "data": arrays(), "optim": {"lr": 1e-9, "weight_decay": 0.0}}
    first = train(tmp_path, "scheme=supervised", **options)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    loaded = first.load_model().plain_state()
    for name, value in before.items():
        torch.testing.assert_close(loaded[name], value, rtol=0, atol=1e-5)
    again = train(tmp_path, "scheme=supervised", **(options | {"data": arrays()}))
    assert again.folder == first.folder
    assert again.results["wall_seconds"] == first.results["wall_seconds"]
    assert "student (reported)" in repr(first)
    assert first.metrics["last"]["top1"] == first.results["heads"]["student"]["last"]["test"]["top1"]  # type: ignore[index]
    with torch.no_grad():
        student[0].weight[0] += 1.0  # type: ignore[operator, index]
    assert train(tmp_path, "scheme=supervised", **options).folder != first.folder
    assert train(tmp_path, "scheme=supervised", **(options | {"data": arrays(seed=1)})).folder != first.folder


def test_it_trains_in_a_thread_with_a_teacher_in_another_precision_than_before(tmp_path: Path) -> None:
    done: list[kdschemes.Results] = []
    for precision in ("bf16", "fp32"):
        options = {"student": net, "teacher": net(3, 1), "data": arrays(), "precision": precision}
        thread = threading.Thread(target=lambda o=options: done.append(train(tmp_path, scheme="offline", **o)))
        thread.start()
        thread.join()
    assert [one.results["precision"] for one in done] == ["bf16", "fp32"]
    assert sum(path.is_dir() for path in tmp_path.iterdir()) == 2  # no teacher was trained


def test_several_peers_need_a_function(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="student is one network, and method=dml trains several: pass its class"):
        train(tmp_path, scheme="online", student=net(3, 1), data=arrays())
    assert not list(tmp_path.iterdir())


def test_mistakes_are_the_command_lines(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown key 'trian'"):
        train(tmp_path, trian={"epochs": 3})
    with pytest.raises(UserError, match="unknown scheme 'offlin'"):
        train(tmp_path, scheme="offlin")
    with pytest.raises(UserError, match="there is no test in a dict"):
        train(tmp_path, data={"train": arrays()["train"]})
    with pytest.raises(UserError, match=r"teacher=\{'name': .*networks are student= and teacher="):
        train(tmp_path, scheme="offline", teacher={"name": net(3, 1)})
    with pytest.raises(UserError, match="unknown model 'lenet6'"):
        train(tmp_path, scheme="offline", teacher=("lenet5", "lenet6"))


def test_short_keys_stand_for_long_ones_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"train\.epochs=-3 is not allowed"):
        kdschemes.train("lr=0.2", output_dir=tmp_path, epochs=-3)
    with pytest.raises(UserError, match="unknown model 'lenet6'"):
        kdschemes.train("model=lenet6", output_dir=tmp_path, epochs=3)
    assert capsys.readouterr().out == ""


class Normalized(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(images)
        return logits


def test_sgd_is_doubted_for_networks_of_layer_norms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, said in (({}, True), ({"optim": "adamw"}, False)):
        train(tmp_path, "scheme=supervised", student=Normalized, data=arrays(), **more)
        assert ("your network has layer norms" in capsys.readouterr().out) == said


def test_paths_and_numbers_of_numpy_are_values(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.epochs=-3 is not allowed"):
        kdschemes.train(output_dir=tmp_path, seed=np.int64(1), train={"epochs": np.int64(-3)}, optim={"lr": (0.1,)[0]})


def test_without_validation_there_is_no_best_network(tmp_path: Path) -> None:
    heads = {"student": {"last": {"epoch": 1, "val": None, "test": {"top1": 50.0}}, "best": None}}
    done = kdschemes.Results(tmp_path, {"primary_head": "student", "heads": heads})
    assert done.metrics == {"last": {"top1": 50.0}, "best": None}
    with pytest.raises(UserError, match="has no best epoch: it has not been validated"):
        done.load_model(best=True)


def test_a_function_that_makes_data_draws_the_same_in_every_session(tmp_path: Path) -> None:
    drawn: list[float] = []

    def made() -> dict[str, Any]:
        drawn.append(np.random.rand())
        return {}

    for _ in range(2):
        with pytest.raises(UserError, match="there is no train in a dict"):
            train(tmp_path, data=made)
    assert drawn[0] == drawn[1]
