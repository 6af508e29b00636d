"""The folder of a run: one writer, one configuration, a marker if it was interrupted."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from kdschemes import checksums
from kdschemes.config import Config
from kdschemes.config.data import ImageFolder
from kdschemes.config.naming import HASHED_IF_SET, NOT_HASHED, dump_yaml, flatten, read_config, to_tree
from kdschemes.config.parse import read_json
from kdschemes.errors import UserError
from kdschemes.printable import printable
from kdschemes.storage.atomic import atomic_write, guarded
from kdschemes.storage.class_folders import list_root
from kdschemes.storage.lease import Lease
from kdschemes.storage.naming import by_content
from kdschemes.training.signals import StopSignal

INTERRUPTED = "interrupted"

GIVEN_WEIGHTS = ("model.checkpoint", "teacher.checkpoint", "resume_from", "data.unlabelled")

IMAGES = "images.json"
"""Describes the image folder that a run is trained on: its root, its classes, and their digests."""


class RunFolder:
    """The folder of one run. Entering the context creates the folder and acquires its lease.

    With `wait`, wait for another holder until `stop` has received a signal.

    Raises:
        UserError: another process holds the folder, or it cannot be written.
        SystemExit: a stop signal was received while waiting.
    """

    def __init__(self, path: Path, stop: StopSignal, *, wait: bool = False) -> None:
        self.path = path
        self._wait = wait
        self._stop = stop
        self._lease = Lease(path)
        self._entered = contextlib.ExitStack()

    @property
    def lost(self) -> bool:
        return self._lease.lost

    def verify(self) -> None:
        """Raise `FolderLost` unless this process still holds the folder."""
        self._lease.verify()

    def __enter__(self) -> RunFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            taken = self._lease.acquire(
                wait=self._wait,
                say=lambda text: print(printable(text), flush=True),
                asked=lambda: self._stop.reason is not None,
            )
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror or error}") from None
        if not taken:
            print(printable(f"stopped before it started; the same command resumes: {self.path}"), flush=True)
            self._stop.notify_job("waiting" if self._lease.waited else "starting")
            raise SystemExit(self._stop.exit_code)
        self._entered.callback(self._lease.release)
        self._entered.enter_context(guarded(self.path, self._lease.verify))
        for leftover in self.path.rglob("*.partial"):
            leftover.unlink(missing_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._entered.close()


def claim_folder(folder: Path, config: Config) -> None:
    """Write `config.yaml` into the folder of a new run.

    Raises:
        UserError: the folder belongs to another configuration.
    """
    check_same_config(folder, to_tree(config), NOT_HASHED)
    if not (folder / "config.yaml").exists():
        if isinstance(config.data, ImageFolder):
            atomic_write(folder / IMAGES, checksums.json_with_checksum(_described(config.data)))
        atomic_write(folder / "config.yaml", dump_yaml(config).encode())


def check_images_unchanged(folder: Path, config: Config) -> None:
    """Check that no run of the same configuration was trained on what the image folder contained before.

    Raises:
        UserError: there is one; the message names what differs.
    """
    if not isinstance(config.data, ImageFolder) or (folder / "config.yaml").exists():
        return
    now = _described(config.data)
    digest = f"{config.data.name}_{now['digest'][:8]}"
    for path in sorted(folder.parent.glob(f"{folder.name.replace(digest, f'{config.data.name}_????????')}/{IMAGES}")):
        try:
            then = read_json(path)
            if then["root"] != now["root"]:
                continue
            found = _difference(then, now)
        except (OSError, ValueError, TypeError, KeyError):
            continue
        raise UserError(
            f"{config.data.root} has changed since {path.parent} was trained on it ({found}): restore the images, or "
            "choose another output_dir to train on the changed ones"
        )


def _described(options: ImageFolder) -> dict[str, Any]:
    listing = list_root(options.root)
    by_class = {split: dict(zip(listing.classes, of, strict=True)) for split, of in listing.digests.items()}
    return {"root": str(Path(str(options.root)).resolve()), "digest": listing.digest, "classes": by_class}


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words in what two descriptions of an image folder differ first."""
    before, after = flatten(then["classes"], "/"), flatten(now["classes"], "/")
    different = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    name = different[0]
    more = f", and {len(different) - 1} more" if len(different) > 1 else ""
    if name not in before or name not in after:
        return f"{name} is {'new' if name in after else 'gone'}{more}"
    counts = [str(of[name]).partition(" ")[0] for of in (before, after)]
    changed = "other files" if counts[0] == counts[1] else f"{counts[0]} images then, {counts[1]} now"
    return f"{name}: {changed}{more}"


def remove_leftovers(folder: Path, best: Collection[str]) -> None:
    """Remove the marker of an interruption, and the weights of best epochs but those in `best`."""
    (folder / INTERRUPTED).unlink(missing_ok=True)
    for leftover in folder.glob("best-epoch*.pt"):
        if leftover.name not in best:
            leftover.unlink()


def check_same_config(folder: Path, tree: Mapping[str, Any], ignored: tuple[str, ...]) -> None:
    """Check that a folder does not belong to another configuration.

    Paths of given weights may differ: the folder's name stands for the weights themselves.

    Raises:
        UserError: it does; the message names the first keys that differ.
    """
    if not (folder / "config.yaml").exists():
        return
    ours, theirs = flatten(by_content(tree)), flatten(by_content(read_config(folder)))
    unset = {key: value for key, value in HASHED_IF_SET.items() if key in ours}  # newer than that run, perhaps
    theirs = unset | theirs
    different = [
        key
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and not {key, key.partition(".")[0]} & {*ignored, *GIVEN_WEIGHTS}
    ]
    if different:
        shown = ", ".join(f"{key} ({theirs.get(key)} there, {ours.get(key)} here)" for key in different[:3])
        raise UserError(f"{folder} contains a run with another configuration: {shown}; choose another output_dir")
