"""Early exit: thresholds from validation, curves against explicit loops, inference that stops, what a run leaves."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdschemes.config.data import Digits
from kdschemes.core.distillation import Distillation
from kdschemes.data import DataModule, open_data
from kdschemes.errors import UserError
from kdschemes.evaluation.early_exit import (
    BUDGETS,
    RATIOS,
    _gather_columns,
    choose_thresholds,
    dynamic_macs,
    evaluate_early_exit,
    evaluate_rules,
    exit_taken,
    geometric_shares,
    summary,
)
from kdschemes.evaluation.export import export_exits, export_network
from kdschemes.evaluation.latency import latencies
from kdschemes.models import (
    EarlyExit,
    ExitNetwork,
    StagedNetwork,
    confidence,
    count_macs,
    create_model,
    load_exit_model,
    load_model,
    stages,
)
from kdschemes.models.cost import macs_of
from kdschemes.models.exits import stop_at
from kdschemes.tracking.plots import write_early_exit
from kdschemes.tracking.tables import results_table
from tests.processes import run
from tests.schemes.cases import SELF, base, build
from tests.training.test_loop import pair

CPU = torch.device("cpu")
NETWORKS = ["convnet", "resnet20", "timm/test_vit", "timm/test_efficientnet"]


def network(name: str, head: str = "linear", exits: Any = "all", size: int = 32) -> ExitNetwork:
    """A network with exits in float64 whose answers to random images differ."""
    torch.manual_seed(0)
    trunk = create_model(name, num_classes=7, channels=3, image_size=size)
    made = ExitNetwork(trunk, exits, head, num_classes=7, stages=stages(trunk, 3, size))
    return made.double().eval()


def pictures(n: int, size: int = 32) -> Tensor:
    scale = torch.linspace(0.2, 3.0, n, dtype=torch.float64)[:, None, None, None]
    return scale * torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def random_logits(exits: int, n: int, classes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(exits, n, 1, generator=generator, dtype=torch.float64) * 4
    return scale * torch.randn(exits, n, classes, generator=generator, dtype=torch.float64)


def loop_thresholds(confidences: list[list[float]], shares: list[float]) -> tuple[list[float], list[list[int]]]:
    """Return thresholds, and which samples leave at each exit, one sample after the other."""
    n, gone, thresholds, left = len(confidences[0]), set(), [], []
    for k in range(len(shares) - 1):
        until_here = math.floor(n * sum(shares[: k + 1]) + 0.5)
        order = sorted(set(range(n)) - gone, key=lambda i: -confidences[k][i])
        leaving: list[int] = []
        for i in order:
            tie = bool(leaving) and confidences[k][i] == confidences[k][leaving[-1]]
            if len(gone) + len(leaving) < until_here or tie:
                leaving.append(i)
        rest = [confidences[k][i] for i in order if i not in leaving]
        if not leaving:
            thresholds.append(math.inf)
        elif rest:
            thresholds.append((confidences[k][leaving[-1]] + max(rest)) / 2)
        else:
            thresholds.append(min(confidences[k][i] for i in leaving))
        gone |= set(leaving)
        left.append(sorted(leaving))
    return thresholds, [*left, sorted(set(range(n)) - gone)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("decimals", [16, 1])
@pytest.mark.parametrize(("exits", "n"), [(2, 17), (3, 101), (5, 47), (4, 3)])
def test_thresholds_are_those_of_an_explicit_loop(seed: int, decimals: int, exits: int, n: int) -> None:
    sure = confidence(random_logits(exits, n, 5, seed)).round(decimals=decimals)
    for ratio in (0.1, 0.5, 1.0, 3.0):
        shares = geometric_shares(ratio, exits)
        assert shares.tolist() == pytest.approx([ratio**k / sum(ratio**j for j in range(exits)) for k in range(exits)])
        found = choose_thresholds(sure, shares)
        thresholds, left = loop_thresholds(sure.tolist(), shares.tolist())
        taken = exit_taken(sure, found).tolist()
        assert [[i for i in range(n) if taken[i] == k] for k in range(exits)] == left
        everybody = [k for k, wanted in enumerate(found) if wanted == 0.0]
        for k, (ours, theirs) in enumerate(zip(found, thresholds, strict=True)):
            assert ours == pytest.approx(theirs, abs=1e-15) or k in everybody
        for k in everybody:
            assert not any(left[k + 1 :])


def test_more_budget_lets_no_more_samples_leave_early() -> None:
    sure = confidence(random_logits(4, 200, 10, seed=3))
    before = [201] * 3
    for ratio in RATIOS:
        taken = exit_taken(sure, choose_thresholds(sure, geometric_shares(ratio, 4)))
        until = [int((taken <= k).sum()) for k in range(3)]
        wanted = (200 * geometric_shares(ratio, 4).cumsum(0)).round().int().tolist()[:3]
        assert until == wanted
        assert all(now <= then for now, then in zip(until, before, strict=True))
        before = until
    assert sorted(BUDGETS.values()) == [ratio for ratio in RATIOS if ratio in BUDGETS.values()]


def test_equally_sure_samples_leave_together_and_later_exits_make_up_for_it() -> None:
    sure = torch.tensor([[0.9] * 5 + [0.2] * 5, [0.8, 0.7, 0.6, 0.5, 0.4] * 2, [0.3] * 10], dtype=torch.float64)
    thirds = geometric_shares(1.0, 3)
    found = choose_thresholds(sure, thirds)
    assert found == pytest.approx([0.55, 0.65])
    assert exit_taken(sure, found).tolist() == [0] * 5 + [1, 1, 2, 2, 2]
    same = torch.full((3, 10), 0.5, dtype=torch.float64)
    assert exit_taken(same, choose_thresholds(same, thirds)).tolist() == [0] * 10
    close = torch.tensor([[0.5, math.nextafter(0.5, 0.0)], [0.1, 0.1]], dtype=torch.float64)
    assert exit_taken(close, choose_thresholds(close, geometric_shares(1.0, 2))).tolist() == [0, 1]


def test_a_sample_without_probabilities_reaches_the_last_exit() -> None:
    logits = torch.zeros(3, 2, 4)
    logits[:, 0] = math.nan
    assert confidence(logits).tolist() == [[0.0, 0.25]] * 3
    assert exit_taken(confidence(logits), [0.2, 0.2]).tolist() == [2, 0]


def test_metrics_of_a_budget_are_those_of_an_explicit_loop() -> None:
    logits, macs = random_logits(3, 61, 6, seed=0), [10, 25, 70]
    labels = torch.arange(61) % 6
    settings = [[0.5, 0.6], [math.inf, 0.4], *(stop_at(number, 3) for number in range(3))]
    batches = [(logits[:, :40], labels[:40]), (logits[:, 40:40], labels[40:40]), (logits[:, 40:], labels[40:])]
    for thresholds, found in zip(settings, evaluate_rules(settings, batches, macs, CPU), strict=True):
        left, cost, right, nll = [0, 0, 0], 0, 0, 0.0
        bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
        for i in range(61):
            for k in range(3):
                z = logits[k, i].tolist()
                p = [math.exp(v) / sum(map(math.exp, z)) for v in z]
                if k == 2 or max(p) >= thresholds[k]:
                    break
            left[k] += 1
            cost += macs[k]
            hit = p.index(max(p)) == labels[i]
            right += hit
            nll -= math.log(p[int(labels[i])])
            bins[math.ceil(max(p) * 15) - 1].append((max(p), hit))
        gaps = [abs(sum(p for p, _ in one) - sum(hit for _, hit in one)) for one in bins]
        assert found["shares"] == pytest.approx([100 * count / 61 for count in left])
        assert sum(found["shares"]) == pytest.approx(100)
        assert found["macs"] == pytest.approx(cost / 61)
        assert (found["top1"], found["nll"]) == (pytest.approx(100 * right / 61), pytest.approx(nll / 61))
        assert found["ece"] == pytest.approx(100 * sum(gaps) / 61)


def halfway_thresholds(made: ExitNetwork, images: Tensor) -> tuple[list[float], Tensor]:
    """Return thresholds with which samples leave at every exit, and the logits of all exits."""
    with torch.no_grad():
        own, _, exits = made.forward_exits(images)
    logits = torch.stack([*(one for one, _ in exits.values()), own])
    return choose_thresholds(confidence(logits), geometric_shares(1.0, len(logits))), logits


@pytest.mark.parametrize("name", NETWORKS)
def test_early_exit_gives_the_offline_predictions_and_computes_only_what_is_needed(name: str) -> None:
    made, images = network(name), pictures(12)
    thresholds, logits = halfway_thresholds(made, images)
    taken = exit_taken(confidence(logits), thresholds)
    assert set(taken.tolist()) == set(range(len(logits)))
    rows: dict[str, list[int]] = {exit_name: [] for exit_name in made.exits}
    for exit_name, exit_ in made.exits.items():
        exit_.register_forward_hook(lambda _module, inputs, _output, name=exit_name: rows[name].append(len(inputs[0])))
    with torch.no_grad():
        answers, found = EarlyExit(made, thresholds)(images)
        assert torch.equal(found, taken)
        torch.testing.assert_close(answers, logits[taken, torch.arange(12)])
        assert list(rows.values()) == [[int((taken >= k).sum())] for k in range(len(rows))]
        costs = dynamic_macs(made, 3, 32)
        assert macs_of(EarlyExit(made, thresholds), images) == sum(costs[k] for k in taken.tolist())
        for k in range(len(logits)):  # all leave together
            answers, found = EarlyExit(made, stop_at(k, len(logits)))(images)
            assert found.tolist() == [k] * 12
            torch.testing.assert_close(answers, logits[k])
        if name != "timm/test_vit":  # timm's transformers read no empty batch
            answers, found = EarlyExit(made, thresholds)(images[:0])
            assert (answers.shape, found.shape) == ((0, 7), (0,))


@pytest.mark.parametrize("head", ["linear", "bottleneck"])
@pytest.mark.parametrize("name", NETWORKS)
def test_costs_of_stopping_hold_the_trunk_and_every_exit_that_was_passed(name: str, head: str) -> None:
    made, image = network(name, head), torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    expected, heads = [], 0
    for exit_name, stage in made.exit_stages.items():
        feature = made.network.forward_until(image, stage).detach()
        heads += macs_of(made.exits[exit_name], feature)
        expected.append(macs_of(lambda x, stage=stage: made.network.forward_until(x, stage), image) + heads)
    expected.append(count_macs(made.network, 3, 32) + heads)
    assert dynamic_macs(made, 3, 32) == expected == sorted(expected)


def test_one_exit() -> None:
    made, images = network("convnet", exits=["stage2"]), pictures(9)
    thresholds, logits = halfway_thresholds(made, images)
    answers, taken = EarlyExit(made, thresholds)(images)
    assert sorted(taken.tolist()) == [0] * 5 + [1] * 4
    torch.testing.assert_close(answers, logits[taken, torch.arange(9)])


def test_a_network_that_cannot_continue_from_a_stage_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made, images = network("convnet"), pictures(12)
    thresholds, _ = halfway_thresholds(made, images)
    answers, taken = EarlyExit(made, thresholds)(images)
    cost = macs_of(EarlyExit(made, thresholds), images)
    monkeypatch.setattr(type(made.network), "forward_by_stage", StagedNetwork.forward_by_stage)
    again, taken_again = EarlyExit(made, thresholds)(images)
    assert torch.equal(taken, taken_again)
    torch.testing.assert_close(again, answers)
    assert macs_of(EarlyExit(made, thresholds), images) > cost


class Wandering(nn.Module):
    """In the manner of timm's: calls without rows, an output that is no tensor, one module twice, a module in place."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.pair, self.mix, self.inplace = Table(), Pair(), nn.Linear(5, 5), nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5))
        self.pretrained_cfg = {"classifier": "head"}
        self.feature_info = [{"module": f"blocks.{k}", "reduction": 1, "num_chs": 5} for k in range(3)]
        self.head = nn.Linear(5, 4)

    def forward_intermediates(
        self, x: Tensor, indices: list[int], stop_early: bool = False, intermediates_only: bool = False
    ) -> Any:
        features = []
        x = self.inplace(self.mix(self.mix(x.mean((2, 3)).repeat(1, 5)) + self.table().sum(0)))
        for k, block in enumerate(self.blocks[: max(indices) + 1] if stop_early else self.blocks):
            first, second = self.pair(x)
            x = self.inplace(block(first) + second)
            if k in indices:
                features.append(x)
        return features if intermediates_only else (x, features)

    def forward_head(self, x: Tensor) -> Tensor:
        return self.head(x)


class Table(nn.Module):
    def forward(self) -> Tensor:
        return torch.linspace(0, 1, 40, dtype=torch.float64).reshape(8, 5)  # as many rows as there are images


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.tanh(), x.sin()


def test_a_timm_network_is_left_as_it_was_and_may_call_its_modules_in_any_way() -> None:
    from kdschemes.models.timm_network import TimmNetwork

    torch.manual_seed(0)
    wandering = Wandering()
    made = TimmNetwork("wandering", wandering, takes_size=False).double().eval()
    assert made.stage_names == ("blocks_0", "blocks_1", "blocks_2")
    images = torch.randn(8, 1, 4, 4, dtype=torch.float64)
    logits, features = made.forward_stages(images)
    running = made.forward_by_stage(images, ["blocks_0", "blocks_1"])
    keep, later = torch.tensor([1, 2, 5, 7]), torch.tensor([0, 3])
    torch.testing.assert_close(next(running), features["blocks_0"])
    torch.testing.assert_close(running.send(keep), features["blocks_1"][keep])
    torch.testing.assert_close(running.send(later), logits[keep][later])
    assert all("forward" not in module.__dict__ for module in made.modules())
    own = wandering.head.forward = lambda x: -x  # an instance's own forward comes back
    assert torch.equal(next(made.forward_by_stage(images, [])), -features["blocks_2"])
    assert wandering.head.forward is own


def test_latency_is_measured_in_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    images = [torch.zeros(1, 1, 2, 2)] * 8
    found = latencies(
        {name: lambda _, name=name: calls.append(name) for name in "ab"}, images, lambda: calls.append("check")
    )
    assert calls == ["check", "a", "b"] * 8
    assert [len(values) for values in found.values()] == [3, 3]
    assert all(value > 0 for values in found.values() for value in values)


def nothing() -> None:
    pass


@pytest.fixture
def _few_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdschemes.evaluation.latency.LATENCY_IMAGES", 2)


@pytest.fixture(scope="module")
def data() -> DataModule:
    return open_data(Digits(), seed=0, device=CPU)


@pytest.fixture(scope="module")
def scheme() -> Distillation:
    made = build(*base("self", "byot", "convnet"), dtype=torch.float32)
    for name, parameter in made.named_parameters():
        if name.endswith("fc.weight"):
            parameter.data *= 100  # untrained answers differ too little
    return made


def without_times(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: without_times(value) for key, value in found.items() if "latency" not in key}
    return [without_times(item) for item in found] if isinstance(found, list) else found


@pytest.mark.usefixtures("_few_latencies")
def test_thresholds_come_from_validation_alone(data: DataModule, scheme: Distillation) -> None:
    state = {name: value.clone() for name, value in scheme.train().state_dict().items()}
    found = evaluate_early_exit(scheme, data, 200, nothing)
    assert found is not None
    assert without_times(evaluate_early_exit(scheme, data, 200, nothing)) == without_times(found)
    assert all(module.training for module in scheme.modules())
    assert all(torch.equal(value, state[name]) for name, value in scheme.state_dict().items())
    labels = data.labels | {"test": 9 - data.labels["test"]}
    positions = data.positions | {"test": data.positions["test"][300:]}
    other = evaluate_early_exit(scheme, dataclasses.replace(data, positions=positions, labels=labels), 64, nothing)
    fewer = {**data.positions, "val": data.positions["val"][:100]}
    third = evaluate_early_exit(scheme, dataclasses.replace(data, positions=fewer), 64, nothing)
    assert other is not None
    assert third is not None
    thresholds, others, thirds = ([one["thresholds"] for one in f["curve"]] for f in (found, other, third))
    for one, two in zip(thresholds, others, strict=True):
        assert one == pytest.approx(two, abs=1e-5)
    assert found["curve"][12]["top1"] != other["curve"][12]["top1"]
    assert found["curve"][12]["shares"] != other["curve"][12]["shares"]
    assert thresholds[12] != pytest.approx(thirds[12], abs=1e-5)


@pytest.mark.usefixtures("_few_latencies")
def test_without_a_validation_split_there_is_no_budget_and_a_sentence(
    data: DataModule, scheme: Distillation, tmp_path: Path
) -> None:
    none = dataclasses.replace(data, positions=data.positions | {"val": data.positions["val"][:0]})
    found = evaluate_early_exit(scheme, none, 500, nothing)
    assert found is not None
    assert (found["curve"], found["budgets"]) == (None, None)
    assert found["note"].startswith("no budgeted curve: thresholds need a validation split")
    assert list(found["exits"]) == ["student/exit1", "student/exit2", "student/exit3", "student"]
    write_early_exit(found, tmp_path)
    assert json.loads((tmp_path / "early_exit.json").read_text()) == found
    assert (tmp_path / "early_exit.png").read_bytes().startswith(b"\x89PNG")
    heads = {"student": {"last": None, "best": None}}
    table = results_table({"run": "r", "primary_head": "student", "heads": heads, "early_exit": summary(found)})
    assert found["note"] in table
    assert "budget" not in table.replace(found["note"], "")


def test_a_run_whose_reported_head_has_no_exits_has_no_early_exit(data: DataModule, tmp_path: Path) -> None:
    plain = build(*base("supervised", "ce"), dtype=torch.float32)
    assert evaluate_early_exit(plain, data, 500, nothing) is None
    export_exits(plain, tmp_path)
    assert not list(tmp_path.iterdir())


def test_columns_of_one_process_are_its_own() -> None:
    columns = torch.rand(3, 5, dtype=torch.float64)
    assert torch.equal(_gather_columns(columns, 5), columns)
    assert _gather_columns(columns[:, :0], 0).shape == (3, 0)


@pytest.mark.parametrize("head", ["linear", "bottleneck"])
def test_exported_exits_give_the_same_bits(head: str, tmp_path: Path) -> None:
    scheme = build(*SELF, f"scheme.exit_head={head}", dtype=torch.float32)
    scheme.train().predict(batch := _batch(), scheme.heads)  # moves the statistics of batch norm
    export_network(scheme, tmp_path, {})
    export_exits(scheme, tmp_path)
    before = torch.get_rng_state()
    loaded = load_exit_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in loaded.modules())
    own = scheme.eval().predict(batch, scheme.heads)
    with torch.no_grad():
        logits, _, exits = loaded.forward_exits(batch.images)
        assert torch.equal(logits, own["student"].logits)
        assert torch.equal(logits, load_model(tmp_path)(batch.images))
        for name, (exit_logits, _) in exits.items():
            assert torch.equal(exit_logits, own[f"student/{name}"].logits)


def _batch() -> Any:
    from tests.schemes.cases import random_batch

    return random_batch(dtype=torch.float32)


def test_exits_that_are_absent_damaged_or_anothers_are_refused_in_one_line(tmp_path: Path) -> None:
    scheme = build(*SELF, dtype=torch.float32)
    with pytest.raises(UserError, match="no network at"):
        load_exit_model(tmp_path)
    export_network(scheme, tmp_path, {})
    with pytest.raises(UserError, match=r"no exits at .*exits\.json cannot be read") as absent:
        load_exit_model(tmp_path)
    assert "\n" not in str(absent.value)
    export_exits(scheme, tmp_path)
    good = {name: (tmp_path / name).read_bytes() for name in ("exits.json", "exits.safetensors")}
    for name, damaged, words in (
        ("exits.json", b"{", r"exits\.json cannot be read"),
        ("exits.json", b"[]", r"exits\.json cannot be read"),
        ("exits.json", b'{"stages": ["layer1", "layer2"], "head": "round"}', r"exits\.json cannot be read .*'round'"),
        ("exits.json", b'{"stages": ["layer1", "x"], "head": "linear"}', "unknown stage of resnet20 'x'"),
        ("exits.json", b'{"stages": ["layer1", "layer2"], "head": "linear"}', "does not fit the exits of resnet20"),
        ("exits.safetensors", good["exits.safetensors"][:-9], r"exits\.safetensors cannot be read"),
        ("exits.safetensors", b"", r"exits\.safetensors cannot be read"),
    ):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(UserError, match=words) as error:
            load_exit_model(tmp_path)
        assert "\n" not in str(error.value)
        (tmp_path / name).write_bytes(good[name])
    (tmp_path / "exits.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights at .*exits\.safetensors"):
        load_exit_model(tmp_path)


TINY = [
    "scheme=self",
    "model=convnet",
    "data.val_fraction=0.9",
    "data.train_fraction=1",
    "train.batch_size=32",
    "train.epochs=3",
    "train.num_threads=1",
    "device=cpu",
]


@pytest.mark.slow
def test_a_run_leaves_early_exit_and_two_processes_find_the_same(tmp_path: Path) -> None:
    ended = run(TINY, tmp_path / "one")
    assert (ended.code, ended.err) == (0, "")
    (folder,) = (tmp_path / "one" / "runs").iterdir()
    found = json.loads((folder / "early_exit.json").read_text())
    results = json.loads((folder / "results.json").read_text())
    assert results["early_exit"] == {key: value for key, value in found.items() if key != "curve"}
    assert (folder / "early_exit.png").read_bytes().startswith(b"\x89PNG")
    names = ["student/exit1", "student/exit2", "student/exit3", "student"]
    assert list(found["exits"]) == names
    for name, one in found["exits"].items():
        test = results["heads"][name]["last"]["test"]
        assert {key: one[key] for key in ("top1", "nll", "ece")} == pytest.approx(
            {k: test[k] for k in ("top1", "nll", "ece")}
        )
        assert one["latency_ms"] > 0
    assert found["static"]["macs"] == results["cost"]["student"]["macs"] < found["exits"]["student"]["macs"]
    assert found["exits"]["student/exit1"]["macs"] == results["cost"]["student/exit1"]["macs"]
    assert found["budgets"]["middle"]["latency_ms"] > 0
    for budget in found["curve"]:
        expected = sum(budget["shares"][name] / 100 * found["exits"][name]["macs"] for name in names)
        assert budget["macs"] == pytest.approx(expected)
        assert list(budget["thresholds"]) == names[:-1]
    table = ended.out.partition("Early exit on the test set")[2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == [*names, "without exits", "budget low", "budget middle", "budget high"]
    low = found["budgets"]["low"]
    assert rows[6][3:] == [f"{low['top1']:.2f}", " / ".join(f"{share:.1f}" for share in low["shares"].values())]

    network, middle = load_exit_model(folder), found["budgets"]["middle"]
    (batch,) = open_data(Digits(), seed=0, device=CPU).eval_batches("test", batch_size=1000, rank=0, world=1)
    with torch.no_grad():
        logits, taken = EarlyExit(network, [float(t) for t in middle["thresholds"].values()])(batch.images)
    top1 = 100 * (logits.argmax(1) == batch.labels).double().mean().item()
    assert top1 == pytest.approx(middle["top1"])
    assert [100 * (taken == k).double().mean().item() for k in range(4)] == pytest.approx(
        list(middle["shares"].values())
    )

    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (again,) = (tmp_path / "two" / "runs").iterdir()
    for name in ("results.json", "early_exit.json", "early_exit.png"):
        (again / name).unlink()
    assert [ended.code for ended in pair(TINY, tmp_path / "two")] == [0, 0]
    both = json.loads((again / "early_exit.json").read_text())
    for ours, theirs in zip(both["curve"], found["curve"], strict=True):
        for key in ("thresholds", "shares"):
            numbers = ({name: float(value) for name, value in one[key].items()} for one in (ours, theirs))
            first, second = numbers
            assert first == pytest.approx(second, rel=1e-5)
        for key in ("macs", "top1", "nll", "ece"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5)
    assert json.loads((again / "results.json").read_text())["processes"] == 2
