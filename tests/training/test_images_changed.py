"""An image folder that changed between two starts of a run is refused; one that was copied finds the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from kdschemes.config import Config
from kdschemes.config.load import load_config
from kdschemes.errors import UserError
from kdschemes.training.train import Finished, train
from tests import REPOSITORY
from tests.storage.test_naming import images

__all__ = ["images"]

SMALL = [
    "data.image_size=16",
    "data.num_workers=0",
    "data.val_fraction=0.25",
    "data.train_fraction=1",
    "train.epochs=1",
    "train.batch_size=4",
]


def config(root: Path, *words: str) -> Config:
    arguments = ["scheme=supervised", "data=image_folder", f"data.root={root}", *SMALL, *words]
    return load_config([*arguments, f"output_dir={root.parent / 'runs'}"], recipes=REPOSITORY / "experiments")


@pytest.fixture
def finished(images: Path) -> Finished:
    return train(config(images))


def test_changed_images_are_refused_with_what_differs(images: Path, finished: Finished) -> None:
    saved = torch.load(finished.folder / "checkpoint.pt", weights_only=True)
    assert saved["data"] == finished.results["data_digest"]
    assert json.loads((finished.folder / "images.json").read_text())["digest"] == saved["data"]
    assert not train(config(images)).ran

    def refused(words: str, *more: str) -> None:
        with pytest.raises(UserError) as error:
            train(config(images, *more))
        message = str(error.value)
        assert f"images has changed since {finished.folder} was trained on it ({words}): restore" in message
        assert "\n" not in message
        assert [path.name for path in finished.folder.parent.iterdir()] == [finished.folder.name]

    kept = (images / "train" / "cat" / "3.png").read_bytes()
    (images / "train" / "cat" / "3.png").unlink()
    refused("train/cat: 8 images then, 7 now")
    (images / "train" / "dog" / "9.png").write_bytes(kept)
    refused("train/cat: 8 images then, 7 now, and 1 more")
    (images / "train" / "dog" / "9.png").unlink()
    (images / "train" / "cat" / "4b.png").write_bytes(kept)
    refused("train/cat: other files")
    shutil.move(images / "train" / "cat" / "4b.png", images / "train" / "cat" / "3.png")
    assert not train(config(images)).ran


def test_copied_images_find_the_run_and_other_images_are_another(images: Path, finished: Finished) -> None:
    copy = Path(shutil.copytree(images, images.parent / "copy"))
    again = train(config(copy, "data.num_workers=1", "train.log_every_steps=3"))
    assert (again.ran, again.folder) == (False, finished.folder)
    (copy / "train" / "cat" / "3.png").unlink()
    other = train(config(copy))
    assert other.ran
    assert other.folder != finished.folder


def test_a_checkpoint_of_other_labels_is_refused(images: Path, finished: Finished) -> None:
    (finished.folder / "results.json").unlink()
    path = finished.folder / "checkpoint.pt"
    torch.save(torch.load(path, weights_only=True) | {"data": "0" * 64}, path)
    with pytest.raises(UserError, match=r"does not fit this run \(the images or labels have changed since\)"):
        train(config(images))
