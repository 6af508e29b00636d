"""Stored answers of frozen teachers: the same bits for whoever fills and reads, and never those of another teacher."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from kdschemes import cli
from kdschemes.config import Config
from kdschemes.config.code import ALLOWED
from kdschemes.config.data import DATA
from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.placement import place_frozen
from kdschemes.data import DataModule, open_data
from kdschemes.errors import UserError
from kdschemes.models import create_model, save_weights
from kdschemes.schemes import build_scheme
from kdschemes.teacher_cache import TeacherCache, announce, attach_caches, caches_of
from kdschemes.teacher_cache.attach import stages_read
from kdschemes.teacher_cache.files import Writer, map_values, read_header
from kdschemes.teacher_cache.folder import KEY, RESERVE
from kdschemes.teacher_cache.key import NOT_OF_VIEWS, folder_name
from kdschemes.training.checks import check_placement
from kdschemes.training.packing import share_teachers
from tests.distributed.worlds import launch
from tests.processes import SignalAtFile, Started, run
from tests.schemes.cases import LOSSES, base, build, configure, random_batch
from tests.schemes.test_losses import MIDWAY, only
from tests.training.test_loop import one_line

CPU = torch.device("cpu")
STUDENT = [
    "scheme=offline",
    "model=resnet20",
    "teacher.name=resnet20",
    "data.val_fraction=0.5",
    "data.train_fraction=1",
]
SHORT = ["train.epochs=2", "train.num_threads=1", "train.batch_size=64", "train.eval_every_epochs=2"]
CHUNKS = 3  # 626 training images


def nothing() -> None:
    pass


def alone(work: Callable[[], Any]) -> Any:
    return work()


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of two networks that nobody has trained."""
    folders = [tmp_path_factory.mktemp(f"teacher{seed}") for seed in range(2)]
    for seed, folder in enumerate(folders):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            save_weights(create_model("resnet20", num_classes=10, channels=1, image_size=8), folder)
    return folders


def words(teacher: Path, *more: str, cache: str = "logits") -> list[str]:
    return [*STUDENT, f"teacher.checkpoint={teacher}", f"teacher.cache={cache}", *SHORT, *more]


@dataclasses.dataclass
class Opened:
    """A scheme whose teachers have caches."""

    config: Config
    scheme: Distillation
    data: DataModule

    @property
    def caches(self) -> list[TeacherCache]:
        return caches_of(self.scheme)

    @property
    def cache(self) -> TeacherCache:
        (cache,) = self.caches
        return cache

    def fill(self, *epochs: int) -> TeacherCache:
        for epoch in epochs:
            for cache in self.caches:
                cache.open_epoch(epoch, nothing, alone)
        return self.caches[0]


def opened(root: Path, overrides: list[str]) -> Opened:
    config = configure(*overrides, f"teacher.cache_dir={root}")
    data = open_data(config.data, seed=config.seed, device=CPU, channels_last=config.train.channels_last)
    data_spec = data.spec
    scheme = build_scheme(config, data_spec)
    check_placement(config, scheme, data.sizes, 1)
    attach_caches(config, scheme, data)
    if config.train.channels_last:
        scheme.to(memory_format=torch.channels_last)
    place_frozen(scheme, config.teacher, CPU)
    return Opened(config, scheme, data)


def run_of(place: Path) -> Path:
    (folder,) = place.glob("runs/offline*")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("epoch*")}


@dataclasses.dataclass
class Whole:
    """A run that has filled its cache, in `place`."""

    place: Path
    words: list[str]

    @property
    def cache(self) -> Path:
        (folder,) = (self.place / "runs" / "teacher_cache").iterdir()
        return folder


@pytest.fixture(scope="module")
def whole(teachers: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    place = tmp_path_factory.mktemp("whole")
    chosen = words(teachers[0])
    ended = run(chosen, place)
    assert (ended.code, ended.err) == (0, "")
    assert (
        "teacher cache: 25.04 kB will be written to runs/teacher_cache "
        "(2 epochs x 626 images x 10 logits, fp16), which already has 0 bytes" in ended.out
    )
    return Whole(place, chosen)


def check_equal(place: Path, whole: Whole) -> None:
    ours, theirs = run_of(place), run_of(whole.place)
    assert ours.name == theirs.name
    for name in ("metrics.jsonl", "model.safetensors", "best/model.safetensors"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


@pytest.mark.slow
def test_who_reads_a_cache_gets_the_bits_of_who_filled_it(whole: Whole, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.cache.iterdir()}
    assert len(files(whole.cache)) == 2
    ended = run([*whole.words, f"teacher.cache_dir={whole.cache.parent}"], tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert "teacher cache: all 2 epochs are already in" in ended.out
    check_equal(tmp_path, whole)
    assert {path: path.stat().st_mtime_ns for path in whole.cache.iterdir()} == before


@pytest.mark.slow
def test_students_of_other_batches_and_losses_fill_the_same_bytes_at_once(whole: Whole, tmp_path: Path) -> None:
    others = (["train.batch_size=50", "train.drop_last=true"], ["scheme.alpha=0.5", "optim.lr=0.01", "model=resnet8x4"])
    started = [Started([*whole.words, *more], tmp_path / "both") for more in others]
    for one in started:
        ended = one.wait()
        assert (ended.code, ended.err) == (0, "")
    (folder,) = (tmp_path / "both" / "runs" / "teacher_cache").iterdir()
    assert folder.name == whole.cache.name
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.cache.iterdir()}
    assert files(folder) == files(whole.cache)


@pytest.mark.slow
def test_a_run_killed_while_it_fills_leaves_no_half_file_and_resumes_to_the_same_bits(
    whole: Whole, tmp_path: Path
) -> None:
    killed = run(whole.words, tmp_path, SignalAtFile(signal.SIGKILL, 2, events=("os.link",)))
    assert killed.code == -signal.SIGKILL
    (folder,) = (tmp_path / "runs" / "teacher_cache").iterdir()
    whole_files = [path.name for path in folder.glob("epoch*.safetensors")]
    assert whole_files == ["epoch0001.logits.safetensors"]
    (left,) = folder.glob("*.partial")
    os.utime(left, (0, 0))
    ended = run(whole.words, tmp_path)
    assert (ended.code, ended.err) == (0, "")
    check_equal(tmp_path, whole)
    assert files(folder) == files(whole.cache)


@pytest.mark.slow
def test_two_processes_fill_the_bytes_of_one_and_a_split_teacher_a_cache_of_its_own(
    whole: Whole, verified: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        [*whole.words, f"output_dir={tmp_path / name}", f"teacher.placement={name}"] for name in ("device", "sharded")
    ]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    assert launch(2, tmp_path, "tests.teacher_cache.worker") == [[0, 0], [0, 0]]
    (folder,) = (tmp_path / "device" / "teacher_cache").iterdir()
    assert folder.name == whole.cache.name
    assert files(folder) == files(whole.cache)
    (split,) = (tmp_path / "sharded" / "teacher_cache").iterdir()
    assert split.name != folder.name
    for name in files(whole.cache):
        ours, whole_s = (load_file(place / name)["logits"].astype(np.float32) for place in (split, folder))
        np.testing.assert_allclose(ours, whole_s, rtol=2e-3, atol=1e-3)
    assert verified("verify", split, "--samples", 2) == 0
    assert capsys.readouterr().out.endswith("float16 steps away (filled by a teacher sharded over processes)\n")


def test_too_little_space_is_reported_before_anything_is_written(whole: Whole, tmp_path: Path) -> None:
    ended = run([*whole.words, "teacher.cache_limit_gb=1e-5"], tmp_path)
    assert ended.code == 2
    assert (
        "needs 25.04 kB more in runs/teacher_cache, which already has 0 bytes, over teacher.cache_limit_gb=1e-05"
        in one_line(ended)
    )
    assert not (tmp_path / "runs" / "teacher_cache").exists()


def test_a_full_disk_is_reported_in_one_line(whole: Whole, tmp_path: Path) -> None:
    made = opened(tmp_path, whole.words)
    made.cache.limit = float("inf")
    with pytest.raises(UserError, match=r"the disk has .* free, of which 1.00 GB must stay free"):
        announce(made.caches, range(10**9))
    assert RESERVE == 10**9


def test_what_is_stored_is_the_networks_own_output_in_float16(teachers: list[Path], tmp_path: Path) -> None:
    made = opened(tmp_path, words(teachers[0], "losses.feature=hint", cache="features"))
    cache = made.fill(1)
    (teacher,) = (node for node in made.scheme.nodes.values() if isinstance(node, Frozen))
    assert set(cache.wanted) == {"logits", "features.layer2"}
    index = made.data.positions["train"][[600, 3, 77]]
    (batch,) = made.data.seen_in(1, [index])
    stored = teacher(batch, {})["teacher"]
    own = teacher.compute(batch)
    assert torch.equal(stored.logits, own.logits.half().float())
    assert not torch.equal(stored.logits, own.logits)
    assert torch.equal(stored.features["layer2"], own.features["layer2"].half().float())
    evaluated = dataclasses.replace(batch, epoch=None)
    assert torch.equal(teacher(evaluated, {})["teacher"].logits, own.logits)
    (file,) = (path for path in cache.folder.glob("*.features.layer2.safetensors"))
    assert load_file(file)["features.layer2"].shape == (626, *own.features["layer2"].shape[1:])


@pytest.mark.slow
def test_a_run_on_stored_features_equals_itself(teachers: list[Path], tmp_path: Path) -> None:
    chosen = words(teachers[0], "losses.feature=hint", "train.epochs=1", cache="features")
    texts = []
    for place, root in (("first", "runs/teacher_cache"), ("second", tmp_path / "first" / "runs" / "teacher_cache")):
        ended = run([*chosen, f"teacher.cache_dir={root}"], tmp_path / place)
        assert (ended.code, ended.err) == (0, "")
        texts.append((run_of(tmp_path / place) / "model.safetensors").read_bytes())
    assert texts[0] == texts[1]


OTHERS = {
    "teacher.weights": ["TEACHER1"],
    "teacher.input": ["teacher.mean=[0.5]"],
    "seed (0 there, 1 here)": ["seed=1"],
    "views.crop_padding (1 there, 0 here)": ["data.crop_padding=0"],
    "views.mixup (0.0 there, 0.2 here)": ["data.mixup=0.2"],
    "views.auto_augment (None there, randaugment here)": ["data.auto_augment=randaugment"],
    "data.positions": ["data.split_seed=1"],
    "data.samples (626 there, 316 here)": ["data.train_fraction=0.5"],
    "arithmetic.precision (fp32 there, bf16 here)": ["precision=bf16"],
    "arithmetic.teacher_precision": ["teacher.precision=bf16"],
    "arithmetic.channels_last": ["train.channels_last=false"],
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_cache_of_another_teacher_seed_or_view_is_refused(name: str, teachers: list[Path], tmp_path: Path) -> None:
    ours = opened(tmp_path, words(teachers[0])).fill(0)
    more = [f"teacher.checkpoint={teachers[1]}" if word == "TEACHER1" else word for word in OTHERS[name]]
    other = opened(tmp_path, words(teachers[0], *more))
    assert other.cache.folder != ours.folder
    ours.folder.rename(other.cache.folder)
    for step in (lambda: announce(other.caches, range(2)), lambda: other.fill(0)):
        with pytest.raises(UserError, match=r"does not match this run's teacher and views: .*delete it") as told:
            step()
        assert name in str(told.value)
    (other.cache.folder / KEY).write_text(json.dumps(other.cache.key))
    with pytest.raises(UserError, match=r"epoch0001.logits.safetensors is not this cache's file \(.*delete it"):
        other.fill(0)


def test_a_file_of_another_epoch_or_without_a_key_is_refused(teachers: list[Path], tmp_path: Path) -> None:
    cache = opened(tmp_path, words(teachers[0])).fill(0)
    (first,) = cache.folder.glob("epoch*")
    first.rename(cache.folder / "epoch0002.logits.safetensors")
    with pytest.raises(UserError, match=r"epoch0002.*not this cache's file \(epoch 1 instead of 2\)"):
        opened(tmp_path, words(teachers[0])).fill(1)
    (cache.folder / KEY).unlink()
    with pytest.raises(UserError, match=r"contains a teacher's outputs without key.json: delete the folder"):
        opened(tmp_path, words(teachers[0])).fill(0)
    (cache.folder / KEY).write_text("{")
    with pytest.raises(UserError, match=r"key.json is damaged: delete the folder"):
        opened(tmp_path, words(teachers[0])).fill(0)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, cut, empty])
def test_a_damaged_file_is_named_and_rewritten(
    damage: Callable[[Path], None], teachers: list[Path], tmp_path: Path
) -> None:
    cache = opened(tmp_path, words(teachers[0])).fill(0)
    (path,) = cache.folder.glob("epoch*")
    before = path.read_bytes()
    damage(path)
    with pytest.raises(UserError, match=r"epoch0001.logits.safetensors is damaged \(.*\): delete it"):
        opened(tmp_path, words(teachers[0])).fill(0)
    path.unlink()
    opened(tmp_path, words(teachers[0])).fill(0)
    assert path.read_bytes() == before


def test_what_ends_a_filling_leaves_nothing_of_it(teachers: list[Path], tmp_path: Path) -> None:
    made, asked = opened(tmp_path, words(teachers[0])), []

    def stop() -> None:
        asked.append(len(list(made.cache.folder.glob("*.partial"))))
        if len(asked) == CHUNKS:
            raise SystemExit(143)

    with pytest.raises(SystemExit):
        made.cache.open_epoch(0, stop, alone)
    assert asked == [1] * CHUNKS
    assert {path.name for path in made.cache.folder.iterdir()} == {KEY, "rebuild.yaml"}


def test_an_output_beyond_float16_is_refused(teachers: list[Path], tmp_path: Path) -> None:
    made = opened(tmp_path, words(teachers[0]))
    (teacher,) = (node for node in made.scheme.nodes.values() if isinstance(node, Frozen))
    with torch.no_grad():
        teacher.network.get_parameter("fc.weight").mul_(1e6)
    with pytest.raises(UserError, match=r"logits of the teacher resnet20 are not finite in float16 .*cache=none"):
        made.fill(0)
    assert not list(made.cache.folder.glob("epoch*"))


@pytest.fixture
def verified() -> Iterator[Callable[..., int]]:
    """The command line, with what it changes for the whole process put back."""
    threads = torch.get_num_threads()
    yield lambda *more: cli.main(["cache", *map(str, more)])
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def test_verify_recomputes_and_finds_one_changed_bit(
    teachers: list[Path], tmp_path: Path, verified: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    cache = opened(tmp_path, words(teachers[0], "losses.relation=rkd", cache="features")).fill(0, 2)
    assert verified("verify", cache.folder, "--samples", 4) == 0
    out = capsys.readouterr().out
    assert "4 files, all checksums match\n4 of 6 chunks" in out
    assert "100.0000 % of" in out
    path = cache.folder / "epoch0003.logits.safetensors"
    rewrite(path, {})
    assert verified("verify", cache.folder, "--samples", 99) == 2
    told = capsys.readouterr().err
    assert f"{path} does not match the teacher: for samples 512 to 625, 1 of 1140 values differ, by up to" in told
    flip(path)
    assert verified("verify", cache.folder) == 2
    assert "is damaged (checksum mismatch)" in capsys.readouterr().err


def test_verify_does_not_run_python_that_the_folder_names(
    teachers: list[Path],
    tmp_path: Path,
    verified: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(ALLOWED, "")
    cache = opened(tmp_path, words(teachers[0])).fill(0)
    evil, ran = tmp_path / "evil.py", tmp_path / "ran"
    evil.write_text(f"open({str(ran)!r}, 'w').close()")
    digest = hashlib.sha256(evil.read_bytes()).hexdigest()[:16]
    scheme = {"name": "topology", "method": "evil", "file": str(evil), "digest": digest, "teacher": True}
    (cache.folder / "rebuild.yaml").write_text(json.dumps({"scheme": scheme}))
    assert verified("verify", cache.folder) == 2
    command = f"kdschemes cache verify {cache.folder} --allow {evil}"
    assert capsys.readouterr().err.endswith(f"allow it: {command}\n")
    assert not ran.exists()
    assert verified(*command.split()[2:]) == 2
    assert "has no function topology" in capsys.readouterr().err


def rewrite(path: Path, other: dict[str, str], by: int = 1) -> None:
    """Change the last bits of one value and give the file the checksum that this makes."""
    _, what, shape, facts = read_header(path)
    values = np.array(map_values(path, what, shape, {}, check=True))
    values.view(np.uint16)[600, 3] ^= by
    path.unlink()
    writer = Writer(path, what, shape, {k: v for k, v in facts.items() if k != "sha256"} | other)
    writer.write(values)
    writer.finish()


def test_verify_allows_another_processor_one_step_and_no_more(
    teachers: list[Path], tmp_path: Path, verified: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    cache = opened(tmp_path, words(teachers[0])).fill(0)
    (path,) = cache.folder.glob("epoch*")
    rewrite(path, {"processor": "another"})
    assert verified("verify", cache.folder) == 0
    assert "99.9840 % of 6,260 values are bitwise equal, the others at most" in capsys.readouterr().out
    rewrite(path, {}, by=1 << 12)
    assert verified("verify", cache.folder) == 2
    assert "float16 steps (1 allowed, as it was filled by another processor and torch)" in capsys.readouterr().err


def test_verify_detects_another_teacher_and_a_renamed_folder(
    teachers: list[Path], tmp_path: Path, verified: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    cache = opened(tmp_path, words(teachers[0])).fill(0)
    assert verified("verify", cache.folder, f"teacher.checkpoint={teachers[1]}") == 2
    assert "no longer match the cache: teacher.weights (" in capsys.readouterr().err
    moved = cache.folder.rename(tmp_path / "moved")
    assert verified("verify", moved) == 2
    assert f"must be called {folder_name(cache.key)}, by its key" in capsys.readouterr().err
    assert verified("verify", tmp_path / "nowhere") == 2
    assert "nowhere is not a teacher cache: key.json cannot be read" in capsys.readouterr().err


def test_the_list_of_caches(
    teachers: list[Path], tmp_path: Path, verified: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert verified("list", tmp_path / "none") == 2
    assert "none is not a folder" in capsys.readouterr().err
    folders = [opened(tmp_path, words(teachers[0], *more)).fill(0, 1).folder for more in ([], ["seed=3"])]
    assert verified("list", tmp_path) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[1] for row in rows[2:4]] == sorted(folder.name for folder in folders)
    assert rows[2][3:16:2] == ["resnet20", "digits", "0", "fp32", "626", "2", "logits"]
    assert rows[4][:2] == ["2", "caches"]


def test_each_frozen_network_has_its_own_cache(teachers: list[Path], tmp_path: Path) -> None:
    two = ["teacher.name=[resnet20,resnet20]", f"teacher.checkpoint=[{teachers[0]},{teachers[1]}]"]
    for method, read in (("kd", []), ("camkd", ["features.layer3"])):
        more = [*STUDENT, *two, f"scheme.method={method}", f"teacher.cache={'features' if read else 'logits'}"]
        made = opened(tmp_path / method, more)
        assert len({cache.folder for cache in made.caches}) == 2
        assert all(list(cache.wanted) == ["logits", *read] for cache in made.caches)
        made.fill(0)
        (batch,) = made.data.seen_in(0, [made.data.positions["train"][:5]])
        for node in made.scheme.nodes.values():
            if isinstance(node, Frozen):
                (name,) = node.provides
                assert torch.equal(node(batch, {})[name].logits, node.compute(batch).logits.half().float())
    start = [*words(teachers[0]), "scheme.method=dpkd", f"model.checkpoint={teachers[1]}"]
    assert len(opened(tmp_path / "dpkd", start).caches) == 2


REFUSED = {
    "hint/teacher->student reads the teacher's features, which teacher.cache=logits": ["losses.feature=hint"],
    "srd/teacher->student reads the teacher's features": ["losses.response=srd"],
    "ofd/teacher->student reads the teacher's maps before their last ReLU": ["losses.feature=ofd"],
    "teacher.cache=logits applies to frozen teachers": ["scheme.method=partial_teacher"],
    "teacher.cache=logits and train.compile=true exclude each other": ["train.compile=true"],
}


@pytest.mark.parametrize("told", REFUSED)
def test_what_a_cache_cannot_give_is_refused(told: str, teachers: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        opened(tmp_path, words(teachers[0], *REFUSED[told]))
    assert str(error.value).startswith(told)


@pytest.mark.parametrize(("kind", "name"), [pair for pair in LOSSES if pair[1] not in ("ab", "ofd")])
def test_the_stages_that_are_stored_are_all_that_a_loss_reads(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = build(*base("offline", "kd", "resnet20"), "teacher=resnet8x4", *only(kind, name), dtype=torch.float32)
    teacher, batch = scheme.nodes["teacher"], random_batch(dtype=torch.float32)
    assert isinstance(teacher, Frozen)
    whole = scheme.eval()(batch, MIDWAY).total
    read = stages_read(scheme, "teacher")
    assert read is not None
    output = teacher.compute(batch)
    kept = {stage: feature for stage, feature in output.features.items() if stage in read}
    monkeypatch.setattr(teacher, "compute", lambda batch: dataclasses.replace(output, features=kept))
    again = scheme(dataclasses.replace(batch), MIDWAY).total
    assert torch.equal(again, whole) or name == "crd"


def test_every_option_of_the_data_counts_or_is_known_not_to() -> None:
    views = {"flip", "cutout", "mixup", "cutmix", "cutmix_probability", "crop_padding", "image_size", "min_scale"}
    views |= {"mean", "std", "auto_augment", "randaugment_ops", "randaugment_magnitude", "color_jitter"}
    views |= {"random_erasing"}
    there = {field.name for cls in DATA.values() for field in dataclasses.fields(cls)}
    assert there == views | set(NOT_OF_VIEWS)


def test_runs_share_predictions_only_from_the_same_cache(teachers: list[Path], tmp_path: Path) -> None:
    first = opened(tmp_path, words(teachers[0]))
    others = {
        "alike": words(teachers[0], "scheme.alpha=0.5"),
        "features": words(teachers[0], "losses.feature=hint", cache="features"),
        "none": words(teachers[0], cache="none"),
        "bf16": words(teachers[0], "teacher.precision=bf16"),
    }
    for name, overrides in others.items():
        other = opened(tmp_path, overrides)
        share_teachers(other.scheme, [first.scheme])
        assert (other.caches == first.caches) is (name in ("alike", "features")), name
    assert list(first.cache.wanted) == ["logits", "features.layer2"]
    first.fill(0)
    assert len(files(first.cache.folder)) == 2
