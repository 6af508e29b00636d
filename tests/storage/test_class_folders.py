"""Listing of class folders: every image once, under its own class; what cannot be right is refused in one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kdschemes.errors import UserError
from kdschemes.storage.class_folders import Listing, list_images


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        for k in range(3):
            touch(tmp_path / "train" / name / f"{k}.png")
        touch(tmp_path / "test" / name / "0.png")
    return tmp_path


def listed(root: Path) -> Listing:
    return list_images(root)


def names(root: Path, split: str = "train") -> list[list[str]]:
    return [[os.path.relpath(path, root / split) for path in paths] for paths in listed(root).images[split]]


def refused(root: Path) -> str:
    with pytest.raises(UserError) as error:
        listed(root)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_plain_folders(root: Path) -> None:
    assert names(root) == [["a/0.png", "a/1.png", "a/2.png"], ["b/0.png", "b/1.png", "b/2.png"]]
    assert names(root, "test") == [["a/0.png"], ["b/0.png"]]
    assert listed(root).notes == []


@pytest.mark.parametrize("targets", [[".."], [".", "."], ["../b"], ["../../test/a"], ["/"], ["../.."]])
def test_links_to_folders_are_not_followed_and_said(root: Path, targets: list[str]) -> None:
    before = names(root)
    for k, target in enumerate(targets):
        (root / "train" / "a" / f"loop{k}").symlink_to(target)
    assert names(root) == before
    more = " and 1 more" if len(targets) == 2 else ""
    note = f"links to a folder within a class are not followed: {root / 'train' / 'a' / 'loop0'}{more}"
    assert listed(root).notes == [note]


def test_links_to_images_elsewhere_are_followed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = tmp_path_factory.mktemp("store")
    for k in range(2):
        (root / "train" / "a" / f"9{k}.png").symlink_to(touch(store / f"{k}.bin"))
    (root / "train" / "c").mkdir()
    (root / "train" / "c" / "only.png").symlink_to(touch(store / "c.png"))
    (root / "test" / "c").symlink_to(touch(store / "c_test" / "0.png").parent)
    assert names(root)[0] == ["a/0.png", "a/1.png", "a/2.png", "a/90.png", "a/91.png"]
    assert names(root)[2] == ["c/only.png"]
    assert names(root, "test")[2] == ["c/0.png"]
    assert listed(root).notes == []


@pytest.mark.parametrize("target", ["0.png", "../b/0.png", "../../test/a/0.png", "9.png"])
def test_links_to_images_that_are_listed_are_not_followed_and_said(
    root: Path, tmp_path_factory: pytest.TempPathFactory, target: str
) -> None:
    (root / "train" / "a" / "9.png").symlink_to(touch(tmp_path_factory.mktemp("store") / "x.png"))
    before = names(root)
    link = root / "train" / "a" / "link.png"
    link.symlink_to(target)
    assert names(root) == before
    assert listed(root).notes == [f"links to an image that is listed already are not followed: {link}"]


@pytest.mark.parametrize(
    ("link", "target"), [("train/all", ".."), ("train/c", "a"), ("train/c", "b/deep"), ("train/c", "../test/a")]
)
def test_class_folders_that_overlap_are_refused(root: Path, link: str, target: str) -> None:
    touch(root / "train" / "b" / "deep" / "7.png")
    (root / link).symlink_to(target)
    touch(root / "test" / Path(link).name / "0.png")
    assert "contain the same images, through a link: remove the link" in refused(root)


def test_a_test_set_that_is_the_training_set_is_refused(root: Path) -> None:
    (root / "test").rename(root / "other")
    (root / "test").symlink_to("train")
    assert "test/a and" in (message := refused(root))
    assert "train/a contain the same images" in message


@pytest.mark.parametrize("place", ["a/x.png", "x", "x.png"])
@pytest.mark.parametrize("target", ["nowhere", "x.png"])
def test_broken_links_are_refused(root: Path, place: str, target: str) -> None:
    link = root / "train" / place
    link.symlink_to(target if place != "x" else "nowhere")
    assert f"{link} is a broken link" in refused(root)


@pytest.mark.parametrize("by_link", [False, True])
def test_a_pipe_does_not_hang(root: Path, tmp_path_factory: pytest.TempPathFactory, by_link: bool) -> None:
    pipe = (tmp_path_factory.mktemp("pipes") if by_link else root / "train" / "a") / "x.png"
    os.mkfifo(pipe)
    if by_link:
        (root / "train" / "a" / "x.png").symlink_to(pipe)
    assert f"{root / 'train' / 'a' / 'x.png'} is a broken link, a pipe or a device" in refused(root)


def test_a_pipe_that_is_no_image_is_ignored(root: Path) -> None:
    os.mkfifo(root / "train" / "a" / "control")
    (root / "train" / "a" / "README").symlink_to("nowhere")
    assert names(root)[0] == ["a/0.png", "a/1.png", "a/2.png"]


def test_a_class_that_has_only_a_link_to_a_folder_says_so(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = root / "train" / "c" / "images"
    link.parent.mkdir()
    link.symlink_to(touch(tmp_path_factory.mktemp("store") / "0.png").parent)
    touch(root / "test" / "c" / "0.png")
    assert "train/c has no images (.jpg" in (message := refused(root))
    assert f"; {link} is not followed" in message


@pytest.mark.skipif(os.getuid() == 0, reason="root reads every folder")
def test_an_unreadable_folder_is_named(root: Path) -> None:
    deep = touch(root / "train" / "a" / "deep" / "0.png").parent
    deep.chmod(0)
    try:
        assert f"cannot list the images in {deep}" in refused(root)
    finally:
        deep.chmod(0o700)


def test_a_class_that_has_only_links_to_listed_images_is_empty(root: Path) -> None:
    for split in ("train", "test"):
        (root / split / "c").mkdir()
        (root / split / "c" / "0.png").symlink_to("../a/0.png")
    assert "train/c has no images" in refused(root)


def test_hidden_files_and_folders_are_ignored(root: Path) -> None:
    before = names(root)
    touch(root / "train" / ".trash" / "0.png")
    for name in (".ipynb_checkpoints/0-checkpoint.png", "deep/.cache/1.png", "deep/._1.png", ".2.png"):
        touch(root / "train" / "a" / name)
    assert names(root) == before


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_class_alone_is_refused(root: Path, split: str) -> None:
    shutil.rmtree(root / split / "b")
    assert f"{root / split} has only one class folder, a, but a classifier needs two" in refused(root)
