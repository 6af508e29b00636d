"""Names of runs: everything that can change a result counts, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from kdschemes.config.naming import NOT_HASHED, dump_yaml, flatten, to_tree
from kdschemes.errors import UserError
from kdschemes.storage.naming import config_hash, run_name
from tests.config.cases import load

SAME = [
    *["output_dir=elsewhere", "tracker=wandb", "project=p", "group=g", "train.fsdp=true", "device=cpu"],
    *["train.num_threads=1", "train.eval_batch_size=10", "train.log_every_steps=1", "train.checkpoint_every_epochs=3"],
    *["train.checkpoint_every_steps=2", "train.channels_last=false", "train.compile=true", "train.deterministic=false"],
]
OTHER = ["seed=1", "train.epochs=16", "optim.lr=0.2", "data.mixup=0.1", "losses.response.temperature=2"]
OTHER += ["train.eval_every_epochs=2", "train.sync_bn=false", "train.gather_batch=false", "precision=bf16"]


@pytest.mark.parametrize("word", SAME)
def test_bookkeeping_and_rounding_do_not_count(word: str) -> None:
    assert config_hash(load(word)) == config_hash(load())


@pytest.mark.parametrize("word", OTHER)
def test_what_changes_results_counts(word: str) -> None:
    assert re.fullmatch("[0-9a-f]{8}", config_hash(load(word)))
    assert config_hash(load(word)) == config_hash(load(word)) != config_hash(load())


VIEWS = {
    "data.auto_augment=none": "data.auto_augment=randaugment",
    "data.randaugment_ops=2": "data.randaugment_ops=1",
    "data.randaugment_magnitude=9": "data.randaugment_magnitude=10",
    "data.color_jitter=0": "data.color_jitter=0.4",
    "data.random_erasing=0": "data.random_erasing=0.25",
    "data.mean=null": "data.mean=[0.5]",
    "data.std=null": "data.std=[0.25]",
}


@pytest.mark.parametrize("unset", VIEWS)
def test_newer_keys_of_views_count_only_if_they_are_set(unset: str) -> None:
    assert config_hash(load(unset)) == config_hash(load()) != config_hash(load(VIEWS[unset]))


def test_every_key_left_out_exists() -> None:
    trees = (load("scheme=offline"), load("data=image_folder", "data.root=x"))
    assert set(NOT_HASHED) - {"scheme.file", "code"} <= {key for config in trees for key in flatten(to_tree(config))}


def test_numbers_count_by_their_value_and_defaults_are_those_given() -> None:
    assert config_hash(load("optim.lr=1")) == config_hash(load("optim.lr=1.0")) == config_hash(load("optim.lr=1e0"))
    assert config_hash(load("train.epochs=100", "optim.lr=0.1")) == config_hash(load())
    offline = config_hash(load("scheme=offline"))
    assert config_hash(load("scheme=offline", "teacher.placement=sharded")) == offline
    assert config_hash(load("scheme=offline", "teacher.precision=bf16")) != offline


def test_how_images_look_counts_only_if_it_is_said() -> None:
    base, offline = config_hash(load()), config_hash(load("scheme=offline"))
    assert config_hash(load("model.mean=null", "model.std=null", "model.image_size=null")) == base
    for word in ("model.mean=[0.5]", "model.std=[0.5]", "model.image_size=16"):
        assert config_hash(load(word)) != base
    assert config_hash(load("scheme=offline", "teacher.image_size=16")) != offline


@pytest.mark.parametrize(
    "word",
    ["teacher.epochs=3", "teacher.batch_size=32", "teacher.optim.lr=0.3", "teacher.optim.name=adamw", "teacher.seed=3"],
)
def test_how_a_teacher_is_trained_counts_unless_its_weights_are_given(word: str) -> None:
    assert config_hash(load("scheme=offline", word)) != config_hash(load("scheme=offline"))
    for given in ("teacher.checkpoint=hf_hub:a/x", "teacher.pretrained=true"):
        offline = ["scheme=offline", "teacher=timm/resnet18", given]
        assert config_hash(load(*offline, word)) == config_hash(load(*offline))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for split, number in (("train", 8), ("test", 4)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for count in range(number):
                pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=generator).numpy()
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{count}.png")
    return tmp_path / "images"


def name_of(root: str | Path, *words: str) -> str:
    return run_name(load("scheme=supervised", "data=image_folder", f"data.root={root}", *words))


def test_images_count_by_their_content_wherever_they_are(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(images.parent)
    name = name_of(images)
    assert re.fullmatch("supervised-ce-image_folder_[0-9a-f]{8}-convnet-seed0-[0-9a-f]{8}", name)
    shutil.copytree(images, images.parent / "scratch" / "elsewhere")
    for root in ("images", "./images", "images/", "scratch/elsewhere"):
        assert name_of(root, "data.num_workers=0", "data.classes=2") == name
    monkeypatch.setenv("HOME", str(images.parent))
    assert name_of("~/images") == name


@pytest.mark.parametrize("change", ["removed", "added", "renamed", "relabelled", "larger", "test"])
def test_changed_images_are_another_run(change: str, images: Path) -> None:
    before, cat = name_of(images), images / "train" / "cat" / "0.png"
    if change == "removed":
        cat.unlink()
    elif change == "added":
        shutil.copy(cat, cat.with_name("new.png"))
    elif change == "renamed":
        cat.rename(cat.with_name("new.png"))
    elif change == "relabelled":
        cat.rename(images / "train" / "dog" / "new.png")
    elif change == "larger":
        cat.unlink()
        Image.new("RGB", (50, 50)).save(cat)
    else:
        (images / "test" / "dog" / "0.png").unlink()
    after = name_of(images)
    assert after != before
    assert after.rpartition("-")[2] == before.rpartition("-")[2]


def test_missing_images_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder") as error:
        name_of(tmp_path / "none")
    assert "\n" not in str(error.value)


def test_weights_count_by_their_content_and_runs_by_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def of(*given: str) -> str:
        value = given[0] if len(given) == 1 else f"[{', '.join(given)}]"
        return config_hash(load("scheme=offline", f"teacher.checkpoint={value}"))

    Path("a.pt").write_bytes(b"weights")
    (tmp_path / "sub").mkdir()
    shutil.copy("a.pt", "sub/other.pt")
    one = of("a.pt")
    assert one == of("./a.pt") == of(str(tmp_path / "a.pt")) == of("sub/../a.pt") == of("sub/other.pt")
    Path("a.pt").write_bytes(b"WEIGHTS")
    os.utime("a.pt", ns=(1, 1))
    assert of("a.pt") != one
    assert of("sub/other.pt") == one
    run = "supervised-ce-digits-resnet18_cifar-seed0-0123abcd"
    assert of(f"runs/{run}") == of(f"{tmp_path}/elsewhere/{run}") == of(f"runs/{run}/model.safetensors")
    assert of(f"runs/{run}") != of(f"runs/{run}/best") != of("runs/supervised-ce-digits-resnet18_cifar-seed0-0123abce")
    assert of("hf_hub:a/b") != of("hf_hub:a/c")


def test_the_description_beside_weights_counts(tmp_path: Path) -> None:
    def of(given: Path) -> str:
        return config_hash(load("scheme=offline", f"teacher.checkpoint={given}"))

    for name, classes in (("a", '["x", "y"]'), ("b", '["x", "y"]'), ("c", '["y", "x"]')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "config.json").write_text(f'{{"label_names": {classes}}}')
    assert of(tmp_path / "a") == of(tmp_path / "b") == of(tmp_path / "b" / "model.safetensors") != of(tmp_path / "c")
    (tmp_path / "c" / "config.json").unlink()
    assert of(tmp_path / "a") != of(tmp_path / "c")


def test_weights_that_are_not_there_are_said_before_anything_starts(tmp_path: Path) -> None:
    for given, file in ((tmp_path / "a.pt", tmp_path / "a.pt"), (tmp_path, tmp_path / "model.safetensors")):
        with pytest.raises(UserError, match=re.escape(f"no weights at {file}: give a .safetensors or torch file")):
            run_name(load("scheme=offline", f"teacher.checkpoint={given}"))


def test_the_run_to_continue_counts_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(dump_yaml(load()))
    found = [config_hash(load(f"resume_from={tmp_path / name}")) for name in ("one", "two")]
    assert found[0] != found[1]
    monkeypatch.chdir(tmp_path / "one")
    assert [config_hash(load(f"resume_from={folder}")) for folder in (".", "../two/")] == found
