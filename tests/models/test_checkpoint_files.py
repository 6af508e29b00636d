"""Checkpoints as people have them: each is written as its program writes it, and loads or is refused in one line."""

from __future__ import annotations

import argparse
import itertools
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdschemes.errors import UserError
from kdschemes.models import create_model, load_weights
from kdschemes.models.base import StagedNetwork
from kdschemes.models.checkpoint_files import unwrapped

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "student.")


def build(name: str = "convnet", classes: int = 10, channels: int = 3, seed: int = 1) -> StagedNetwork:
    torch.manual_seed(seed)
    return create_model(name, num_classes=classes, channels=channels, image_size=32)


@pytest.fixture(scope="module")
def trained() -> StagedNetwork:
    return build(seed=0)


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def loaded(file: Path, name: str = "convnet") -> StagedNetwork:
    network = build(name)
    load_weights(network, file, num_classes=10)
    return network


def check_same(network: StagedNetwork, state: Mapping[str, Tensor], *, also: tuple[str, ...] = ()) -> None:
    ours = network.plain_state()
    assert ours.keys() == {*state, *also}
    assert all(torch.equal(ours[name], tensor) for name, tensor in state.items())


def refusal(content: object, file: Path) -> str:
    """Save the content (bytes as they are), and return the one line by which it is refused."""
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    network = build()
    before = {name: tensor.clone() for name, tensor in network.plain_state().items()}
    with pytest.raises(UserError) as caught:
        load_weights(network, file, num_classes=10)
    check_same(network, before)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert message.isprintable()
    return message.removeprefix(str(file))


@pytest.mark.parametrize("average", [False, True])
def test_timms_checkpoint_saver(average: bool, tmp_path: Path) -> None:
    from timm.utils import CheckpointSaver, ModelEmaV3

    network = build("timm/test_vit", seed=0)
    plain = network.network
    assert isinstance(plain, nn.Module)
    ema = ModelEmaV3(plain) if average else None
    if ema is not None:
        for parameter in ema.parameters():
            parameter.data.zero_()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    sum(parameter.sum() for parameter in plain.parameters()).backward()
    optimizer.step()
    arguments = argparse.Namespace(model="test_vit", opt_betas=None, lr=0.1, decay_epochs=[30, 60], data_dir="/data")
    saver = CheckpointSaver(plain, optimizer, args=arguments, model_ema=ema, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(3, metric=71.5)
    for file in ("last.pth.tar", "checkpoint-3.pth.tar", "model_best.pth.tar"):
        again = build("timm/test_vit")
        load_weights(again, tmp_path / file, num_classes=10)
        check_same(again, plain.state_dict())
        note = f"{tmp_path / file}: read from 'state_dict', not from 'state_dict_ema'"
        assert again.notes == ((note,) if average else ())


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "model_state_dict", "model_ema", "student"])
def test_a_state_dict_under_a_key(key: str, trained: StagedNetwork, tmp_path: Path) -> None:
    """The rest is what training loops save beside it."""
    optimizer = torch.optim.AdamW(trained.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    rest = {"epoch": 3, "best_acc": np.float64(71.5), "optimizer": optimizer.state_dict(), "args": {"save": tmp_path}}
    rest |= {"scheduler": scheduler.state_dict(), "rng": torch.get_rng_state(), "history": np.zeros(3)}
    torch.save(rest | {key: trained.state_dict()}, tmp_path / "checkpoint.pth")
    network = loaded(tmp_path / "checkpoint.pth")
    check_same(network, trained.state_dict())
    assert network.notes == ()


@pytest.mark.parametrize("prefixes", [*((prefix,) for prefix in PREFIXES), ("module.", "student."), PREFIXES])
def test_wrappers_prefixes(prefixes: tuple[str, ...], trained: StagedNetwork, tmp_path: Path) -> None:
    torch.save({"state_dict": under("".join(prefixes), trained.state_dict())}, tmp_path / "weights.pt")
    network = loaded(tmp_path / "weights.pt")
    check_same(network, trained.state_dict())
    assert network.notes == ()


def test_wrappers_prefixes_in_any_order(trained: StagedNetwork) -> None:
    state = trained.state_dict()
    for prefixes in itertools.permutations(PREFIXES):
        plain, notes = unwrapped(under("".join(prefixes), state), state)
        assert plain.keys() == state.keys()
        assert notes == []


def test_a_compiled_part_of_a_network(trained: StagedNetwork, tmp_path: Path) -> None:
    state = {name.replace("stage2.", "stage2._orig_mod."): tensor for name, tensor in trained.state_dict().items()}
    assert state.keys() != trained.state_dict().keys()
    torch.save(state, tmp_path / "weights.pt")
    check_same(loaded(tmp_path / "weights.pt"), trained.state_dict())


def test_a_network_whose_own_names_begin_like_a_wrapper(tmp_path: Path) -> None:
    class Wrapped(StagedNetwork):
        """A convnet that calls itself `model`."""

        def __init__(self, network: StagedNetwork) -> None:
            super().__init__()
            self.model, self.spec, self.classifiers = network, network.spec, ("model.fc",)

        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError

        forward_stages = forward_until = forward

    source, network = Wrapped(build(seed=0)), Wrapped(build())
    torch.save(under("module.", source.state_dict()), tmp_path / "weights.pt")
    load_weights(network, tmp_path / "weights.pt", num_classes=10)
    check_same(network, source.state_dict())


def test_torchvisions_reference_training(trained: StagedNetwork, tmp_path: Path) -> None:
    """Its average is an `AveragedModel`, with `module.` before its names and `n_averaged`."""
    average = torch.optim.swa_utils.AveragedModel(trained)
    for parameter in average.parameters():
        parameter.data.mul_(0.5)
    content = {"model": trained.state_dict(), "model_ema": average.state_dict(), "epoch": 3}
    assert "n_averaged" in content["model_ema"]
    torch.save(content, tmp_path / "both.pth")
    torch.save({"model_ema": content["model_ema"]}, tmp_path / "average.pth")
    both = loaded(tmp_path / "both.pth")
    check_same(both, trained.state_dict())
    assert both.notes == (f"{tmp_path / 'both.pth'}: read from 'model', not from 'model_ema'",)
    check_same(loaded(tmp_path / "average.pth"), average.module.state_dict())


def test_lightning(trained: StagedNetwork, tmp_path: Path) -> None:
    """The state of the whole module: the network under `model.`, a loss with weights beside it."""
    state = under("model.", trained.state_dict()) | {"criterion.weight": torch.ones(10)}
    content = {"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.4", "loops": {}, "callbacks": {}}
    torch.save(content, tmp_path / "epoch=3.ckpt")
    network = loaded(tmp_path / "epoch=3.ckpt")
    check_same(network, trained.state_dict())
    count = len(trained.state_dict())
    assert network.notes == (f"{tmp_path / 'epoch=3.ckpt'}: {count} tensors are read from 'model.', not the other 1",)


@pytest.mark.parametrize("prefix", ["net.", "model.net.", "model.encoder.module."])
def test_another_prefix_is_named_with_the_cure(prefix: str, trained: StagedNetwork, tmp_path: Path) -> None:
    """A Lightning module may call its network as it likes, and hold others."""
    file = tmp_path / "epoch=3.ckpt"
    state = under(prefix, trained.state_dict()) | {"loss.weight": torch.ones(10)}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.4.0"}, file)
    with pytest.raises(UserError) as error:
        loaded(file)
    said = str(error.value)
    assert f"its {len(trained.state_dict())} names are there with the prefix '{prefix}'" in said
    cured = eval(said.rpartition(", as ")[2], {"state": state})  # what the message says to do
    torch.save(cured, tmp_path / "cured.pt")
    check_same(loaded(tmp_path / "cured.pt"), trained.state_dict())


def test_all_prefixes_that_fit_are_named(trained: StagedNetwork, tmp_path: Path) -> None:
    torch.save(under("big.", trained.state_dict()) | under("small.", trained.state_dict()), tmp_path / "two.pt")
    with pytest.raises(UserError, match=r"with the prefix 'big\.' or 'small\.'"):
        loaded(tmp_path / "two.pt")


def test_mdistillers_student_beside_its_teacher(trained: StagedNetwork, tmp_path: Path) -> None:
    teacher = build(seed=5).state_dict()
    state = under("module.teacher.", teacher) | under("module.student.", trained.state_dict())
    torch.save({"epoch": 3, "model": state, "best_acc": 70.1}, tmp_path / "latest")
    network = loaded(tmp_path / "latest")
    check_same(network, trained.state_dict())
    assert "from 'student.', not the other" in network.notes[0]


def test_without_num_batches_tracked(trained: StagedNetwork, tmp_path: Path) -> None:
    """As saved before torch 0.4.1, and by programs in other languages."""
    state = {name: tensor for name, tensor in trained.state_dict().items() if "num_batches_tracked" not in name}
    torch.save(state, tmp_path / "weights.pt")
    counts = tuple(name for name in trained.state_dict() if "num_batches_tracked" in name)
    assert counts
    check_same(loaded(tmp_path / "weights.pt"), state, also=counts)


def test_with_a_profilers_counters(tmp_path: Path) -> None:
    """As thop leaves them in each module."""
    network = build(seed=0)
    state = dict(network.state_dict())
    for module in network.modules():
        module.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
        module.register_buffer("total_params", torch.zeros(1, dtype=torch.float64))
    torch.save(nn.DataParallel(network).state_dict(), tmp_path / "weights.pt")
    network = loaded(tmp_path / "weights.pt")
    check_same(network, state)
    assert network.notes == ()


def test_half_precision(trained: StagedNetwork, tmp_path: Path) -> None:
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in trained.state_dict().items()
    }
    torch.save(half, tmp_path / "weights.pt")
    network = loaded(tmp_path / "weights.pt")
    check_same(network, {name: tensor.to(trained.state_dict()[name].dtype) for name, tensor in half.items()})


class Code:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def touched(path: Path) -> Code:
    return Code(eval, f"open({str(path)!r}, 'w')")


def test_code_beside_the_weights_is_not_executed(trained: StagedNetwork, tmp_path: Path) -> None:
    content = {"state_dict": trained.state_dict(), "logger": touched(tmp_path / "executed")}
    for legacy in (False, True):
        torch.save(content, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=not legacy)
        check_same(loaded(tmp_path / "checkpoint.pth"), trained.state_dict())
    assert not (tmp_path / "executed").exists()


def test_what_is_no_state_dict_is_named_with_the_cure(trained: StagedNetwork, tmp_path: Path) -> None:
    cure = "load it where you trust it, and save the network's state_dict() alone with torch.save"
    file, state = tmp_path / "file.pt", trained.state_dict()
    no = " is not a dictionary of tensors, "
    for content, what in (
        (trained, "but a pickled kdschemes.models.sequential.SequentialNetwork"),
        ({"epoch": 3, "params": state, "\x1b[31m": 1}, "but a dict of epoch, params, "),
        ({"model": trained, "epoch": 3}, "but a dict of model, epoch"),
        ([torch.zeros(1)], "but a list"),
        ({}, "but a dict"),
        (state | {"fc.weight": touched(tmp_path / "executed")}, "'fc.weight' is a pickled builtins.eval"),
        (state | {"fc.weight": state["fc.weight"].numpy()}, "'fc.weight' is a pickled numpy._core.multiarray._reconst"),
        (state | {"fc.weight": torch.zeros(2, 2).to_sparse()}, "'fc.weight' is sparse, quantized or without values"),
        (state | {"fc.weight": torch.zeros(2, device="meta")}, "'fc.weight' is sparse, quantized or without values"),
        (state | {"epoch": 3}, "'epoch' is a int"),
    ):
        message = refusal(content, file)
        assert message.startswith(no + what), message
        assert message.endswith(cure)
    assert not (tmp_path / "executed").exists()


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_files_that_cannot_be_read(trained: StagedNetwork, tmp_path: Path) -> None:
    import os

    file = tmp_path / "file.pt"
    cannot = " cannot be read as tensors only ("
    torch.jit.script(nn.Linear(2, 2)).save(str(file))
    assert "load it where it comes from and save it again with torch.save" in refusal(file.read_bytes(), file)
    for content, reason in (
        (b"", "pickle exhausted"),
        (b"not tensors", "at position 0, opcode b'n' unknown"),
        (b"S" + b"x" * 10_000 + b"\n", "no string quotes around b'xxx"),
        (pickle.dumps({"fc.weight": 1}), "pickle exhausted"),
        ({"fc.weight": Code(os.mkdir, "executed")}, "Trying to load unsupported GLOBAL posix.mkdir whose module posix"),
    ):
        message = refusal(content, file)
        assert message.startswith(cannot + reason), message
        assert len(message) < 400
        assert message.endswith("save the network's state_dict() alone with torch.save")
    torch.save(trained.state_dict(), file)
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 4
    assert "does not match its checksum" in refusal(bytes(whole), file)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
@pytest.mark.parametrize("name", ["stage2.conv1.weight", "stage3.bn2.running_var"])
def test_weights_that_are_not_finite(name: str, value: float, trained: StagedNetwork, tmp_path: Path) -> None:
    """1e300 is finite in the file and infinite in the network, which computes in float32."""
    state = {own: tensor.clone().double() for own, tensor in trained.state_dict().items()}
    state[name].view(-1)[3] = value
    state["fc.bias"][0] = value
    message = refusal(state, tmp_path / "weights.pt")
    assert message == f" cannot be used: {name} is not finite (NaN or infinity); give other weights"


@pytest.mark.parametrize("file_classes", [10, 100])
@pytest.mark.parametrize("name", ["convnet", "vgg8", "timm/test_vit"])
def test_a_new_head(name: str, file_classes: int, tmp_path: Path) -> None:
    source, network = build(name, classes=file_classes, seed=0), build(name)
    (head,) = network.classifiers
    before = {own: tensor.clone() for own, tensor in network.plain_state().items()}
    torch.save(source.plain_state(), tmp_path / "weights.pt")
    load_weights(network, tmp_path / "weights.pt", num_classes=10, new_head=True)
    assert network.notes == (f"{tmp_path / 'weights.pt'}: new classifier for 10 classes",)
    from_file = source.plain_state()
    for own, tensor in network.plain_state().items():
        assert torch.equal(tensor, before[own] if own.startswith(f"{head}.") else from_file[own])


def test_a_new_head_on_a_backbone_without_one(trained: StagedNetwork, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in trained.state_dict().items() if not name.startswith("fc.")}
    content = under("backbone.", state) | {"head.fc.weight": torch.zeros(1000, 256), "head.fc.bias": torch.zeros(1000)}
    torch.save({"state_dict": content}, tmp_path / "weights.pth")
    network = build()
    load_weights(network, tmp_path / "weights.pth", num_classes=10, new_head=True)
    check_same(network, state, also=("fc.weight", "fc.bias"))
    with pytest.raises(UserError, match=r"does not fit convnet: missing fc.weight, missing fc.bias"):
        load_weights(network, tmp_path / "weights.pth", num_classes=10)


@pytest.mark.parametrize("name", ["convnet", "resnet20", "timm/test_vit", "timm/test_convnext"])
@torch.no_grad()
def test_a_stem_for_gray_or_rgb(name: str, tmp_path: Path) -> None:
    """A gray image has the logits of the RGB image with three such channels, in both directions."""
    gray = torch.randn(2, 1, 32, 32)
    for file_channels, channels in ((3, 1), (1, 3)):
        source, network = build(name, channels=file_channels, seed=0), build(name, channels=channels)
        torch.save(source.plain_state(), tmp_path / "weights.pt")
        load_weights(network, tmp_path / "weights.pt", num_classes=10)
        given, seen = (gray.expand(-1, count, -1, -1) for count in (file_channels, channels))
        torch.testing.assert_close(network.eval()(seen), source.eval()(given))
        (note,) = network.notes
        assert ("summed over RGB" if channels == 1 else "divided among RGB") in note
    other = build(name, channels=4)
    with pytest.raises(UserError, match=r"is .*, 1, .* instead of .*, 4, "):
        load_weights(other, tmp_path / "weights.pt", num_classes=10)
