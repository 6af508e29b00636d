"""Which runs of a study go together in one process, in what order, and how memory and workers part them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from kdschemes.config.data import Digits
from kdschemes.config.load import load_config
from kdschemes.models import count_macs, create_model
from kdschemes.study.local.packs import (
    CLASSES,
    PASSES,
    Pack,
    epoch_work,
    make_packs,
    makespan,
    run_bytes,
)
from kdschemes.study.prerequisites import with_prerequisites
from kdschemes.study.spec import StudyRun, read_study

NO_LIMIT = 1e15
GRID = """
question: Q
base: {scheme: offline, teacher: resnet20, teacher.epochs: 2, model: convnet, train.epochs: 2}
grid: {scheme.alpha: [0, 0.2, 0.4, 0.6, 0.8]}
seeds: [0, 1]
"""
CHAIN = """
question: Q
base: {scheme: offline, model: resnet20, teacher: resnet56}
variants: {kd: {}, takd: {method: takd, "scheme.assistants": [resnet32]}, ce: {scheme: supervised}}
"""


def read(folder: Path, text: str) -> list[StudyRun]:
    (folder / "mine.yaml").write_text(text)
    return with_prerequisites(read_study(folder / "mine.yaml", [], recipes=folder))


def students(folder: Path, seed: int = 0) -> list[StudyRun]:
    return [run for run in read(folder, GRID) if not run.earlier and run.seed == seed]


def labels(packs: Sequence[Pack]) -> list[list[str]]:
    return [["teacher" if run.earlier else run.label for run in pack.runs] for pack in packs]


def alphas(pack: Pack) -> list[float]:
    return [run.grid["scheme.alpha"] for run in pack.runs]


def test_a_pack_is_a_seed_under_a_teacher_that_comes_first(tmp_path: Path) -> None:
    packs = make_packs(read(tmp_path, GRID), workers=1, limit=NO_LIMIT)
    seeds = [[f"alpha={alpha} seed={seed}" for alpha in (0, 0.2, 0.4, 0.6, 0.8)] for seed in (0, 1)]
    assert labels(packs) == [["teacher"], *seeds]
    assert packs[1].needs == packs[2].needs == {packs[0].runs[0].folder}


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("scheme.alpha: 0.1", "losses.feature: hint", True),
        ("model: resnet20", "optim.lr: 0.01", True),
        ("train.epochs: 3", "optim.clip_grad_norm: 1", True),
        ("losses.response: dkd", "losses.relation: rkd", True),
        ("train.batch_size: 32", "optim.lr: 0.01", False),
        ("data.train_fraction: 0.5", "optim.lr: 0.01", False),
        ("data.mixup: 0.2", "optim.lr: 0.01", False),
        ("teacher: resnet32", "optim.lr: 0.01", False),
        ("teacher.precision: bf16", "optim.lr: 0.01", False),
        ("scheme: supervised", "optim.lr: 0.01", False),
        ("precision: bf16", "optim.lr: 0.01", False),
    ],
)
def test_which_runs_go_together(one: str, other: str, together: bool, tmp_path: Path) -> None:
    base = "{scheme: offline, teacher: resnet20, teacher.checkpoint: hf_hub:a/there}"
    text = f"question: Q\nbase: {base}\nvariants: {{a: {{{one}}}, b: {{{other}}}}}"
    packs = make_packs(read(tmp_path, text), workers=1, limit=NO_LIMIT)
    assert (["a seed=0", "b seed=0"] in labels(packs)) is together
    assert sorted(label for pack in labels(packs) for label in pack if label != "teacher") == ["a seed=0", "b seed=0"]


def test_runs_with_a_gradient_scaler_or_an_offloaded_teacher_stay_alone(tmp_path: Path) -> None:
    for key in ("precision: fp16", "teacher.placement: offload"):
        packs = make_packs(read(tmp_path, GRID.replace("train.epochs: 2", key)), workers=1, limit=NO_LIMIT)
        assert {len(pack.runs) for pack in packs} == {1}


def test_memory_splits_a_pack_into_as_few_parts_as_fit_and_keeps_the_order(tmp_path: Path) -> None:
    runs = students(tmp_path)
    sizes = {
        count: [len(pack.runs) for pack in make_packs(runs, workers=1, limit=Pack(runs=tuple(runs[:count])).bytes)]
        for count in range(1, 6)
    }
    assert {count: sorted(of) for count, of in sizes.items()} == {
        1: [1, 1, 1, 1, 1],
        2: [1, 2, 2],
        3: [2, 3],
        4: [2, 3],
        5: [5],
    }
    assert [len(pack.runs) for pack in make_packs(runs, workers=1, limit=1.0)] == [1] * 5
    for pieces in (Pack(runs=tuple(runs)).split(parts) for parts in (1, 2, 3, 5)):
        assert [alpha for piece in pieces for alpha in alphas(piece)] == [0, 0.2, 0.4, 0.6, 0.8]


def test_memory_counts_the_teacher_once_and_each_run_by_itself(tmp_path: Path) -> None:
    runs = students(tmp_path)
    one, two, three = (Pack(runs=tuple(runs[:count])).bytes for count in (1, 2, 3))
    assert two - one == three - two == run_bytes(runs[0].config)
    big = [run for run in read(tmp_path, GRID.replace("teacher: resnet20", "teacher: resnet110")) if not run.earlier]
    parameters = {
        name: sum(p.numel() for p in create_model(name, num_classes=CLASSES, channels=3, image_size=32).parameters())
        for name in ("resnet20", "resnet110", "convnet")
    }
    assert Pack(runs=(big[0],)).bytes - one == 4 * (parameters["resnet110"] - parameters["resnet20"])
    sgd, adam, averaged = (
        run_bytes(load_config(["scheme=supervised", "model=convnet", *words], recipes=tmp_path))
        for words in ([], ["optim.name=adamw"], ["train.ema=0.9"])
    )
    assert adam - sgd == averaged - sgd == 4 * parameters["convnet"]


def test_what_peers_hold_and_methods_remember_is_counted(tmp_path: Path) -> None:
    def of(*words: str) -> float:
        return run_bytes(load_config(words, recipes=tmp_path))

    online = "scheme=online"
    alone, pair, three = (of(*words) for words in (["scheme=supervised"], [online], [online, "scheme.peers=3"]))
    assert pair == 2 * alone
    assert three == 3 * alone
    assert of("scheme=self", "method=pskd") - alone == 4 * Digits.train_samples * CLASSES
    assert of("scheme=self", "method=mean_teacher") - alone == of("scheme=supervised", "train.ema=0.9") - alone > 0
    crd = ["scheme=offline", "losses.relation=crd"]
    assert of(*crd, "losses.relation.dimension=64") - alone == 4 * Digits.train_samples * 2 * 64
    assert of(*crd) - alone == 4 * Digits.train_samples * 2 * 128
    mixed = load_config(["scheme=online", "scheme.peers=[vgg8,convnet]"], recipes=tmp_path).scheme
    assert mixed.trained_models("resnet20") == ["vgg8", "convnet"]


def test_workers_get_equal_shares(tmp_path: Path) -> None:
    runs = students(tmp_path)[:4]
    assert [len(pack.runs) for pack in make_packs(runs, workers=2, limit=NO_LIMIT)] == [2, 2]
    assert [len(pack.runs) for pack in make_packs(runs, workers=3, limit=NO_LIMIT)] == [2, 2]
    assert [len(pack.runs) for pack in make_packs(runs, workers=4, limit=NO_LIMIT)] == [1, 1, 1, 1]
    both = [run for run in read(tmp_path, GRID) if not run.earlier]
    assert [len(pack.runs) for pack in make_packs(both, workers=2, limit=NO_LIMIT)] == [5, 5]
    assert [alphas(pack) for pack in make_packs(both, workers=2, limit=NO_LIMIT)] == [[0, 0.2, 0.4, 0.6, 0.8]] * 2


def test_a_heavy_teacher_is_not_paid_twice_for_little(tmp_path: Path) -> None:
    """Two processes under ResNet-110 would each take more than half the time of one, but one worker would idle."""
    runs = read(tmp_path, GRID.replace("teacher: resnet20", "data.train_fraction: 1, teacher: resnet110"))
    small = [run for run in runs if not run.earlier and run.seed == 0][:2]
    whole, halves = Pack(runs=tuple(small)), Pack(runs=tuple(small)).split(2)
    assert 0.5 * whole.work < max(half.work for half in halves) < whole.work
    shared = sum(half.work for half in halves) - whole.work
    teacher = count_macs(create_model("resnet110", num_classes=100, channels=3, image_size=32), 3, 32)
    assert shared == pytest.approx(2 * Digits.train_samples * teacher)


def test_chains_are_in_order_and_those_that_others_wait_for_are_first(tmp_path: Path) -> None:
    packs = make_packs(read(tmp_path, CHAIN), workers=2, limit=NO_LIMIT)
    places = {run.folder: number for number, pack in enumerate(packs) for run in pack.runs}
    assert [pack.runs[0].config.model.name for pack in packs[:1]] == ["resnet56"]
    for number, pack in enumerate(packs):
        assert all(places[need] < number for need in pack.needs)
    second = [pack.runs[0] for pack in packs if len(pack.needs) == 1]
    assert second[0].config.model.name == "resnet32"


def test_the_work_of_an_epoch_is_that_of_its_networks_on_its_images(tmp_path: Path) -> None:
    config, half, taught = (
        load_config(words, recipes=tmp_path)
        for words in (
            ["scheme=supervised", "model=convnet", "data.train_fraction=1"],
            ["scheme=supervised", "model=convnet", "data.train_fraction=0.5"],
            ["scheme=offline", "model=convnet", "teacher=resnet20", "data.train_fraction=1"],
        )
    )
    macs = {
        name: count_macs(create_model(name, num_classes=CLASSES, channels=3, image_size=32), 3, 32)
        for name in ("convnet", "resnet20")
    }
    own = Digits.train_samples * PASSES * macs["convnet"]
    assert epoch_work(config, 1) == epoch_work(config, 9) == own
    assert epoch_work(half, 1) == own / 2
    assert epoch_work(taught, 4) == own + Digits.train_samples * macs["resnet20"] / 4


def test_estimates_make_no_weights_and_touch_no_generator(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    config = load_config(["model=resnet110"], recipes=tmp_path)
    assert run_bytes(config) > run_bytes(load_config([], recipes=tmp_path)) > 0
    epoch_work(config, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_makespan_gives_the_next_task_to_who_is_free_first() -> None:
    assert makespan([0.0, 0.0], [4.0, 3.0, 2.0, 1.0]) == 5
    assert makespan([10.0, 0.0], [4.0, 3.0]) == 10
    assert makespan([0.0], [1.0, 2.0, 3.0]) == 6
    assert makespan([2.0, 7.0], []) == 7
