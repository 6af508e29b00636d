"""Lists the images in one folder per class: every image once, whatever links there are. Nothing here imports torch."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from kdschemes.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")


@dataclass(frozen=True)
class Listing:
    """The sorted names of the classes; by split and class the sorted paths of the images; notes for the user."""

    root: Path
    folders: Mapping[str, Path]
    classes: list[str]
    images: dict[str, list[list[str]]]
    notes: list[str]

    @functools.cached_property
    def digests(self) -> dict[str, list[str]]:
        """By split and class, the number of images and the digest of their names (below the class folder) and sizes.

        Raises:
            UserError: an image has gone.
        """
        return {
            split: [_digest(folder / name, paths) for name, paths in zip(self.classes, self.images[split], strict=True)]
            for split, folder in self.folders.items()
        }

    @functools.cached_property
    def digest(self) -> str:
        """The digest of all names, sizes and labels, wherever the folder is."""
        return hashlib.sha256(repr((self.classes, self.digests)).encode()).hexdigest()


@dataclass(frozen=True)
class _Found:
    """What a class folder contains: images, links to images with the file's identity, and links to folders."""

    files: list[str] = field(default_factory=list)
    links: dict[str, tuple[int, int]] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)


def list_root(root: str | None) -> Listing:
    """List the images below `data.root`; the list is kept until a folder changes.

    Raises:
        UserError: see `list_images`; or there is no `root`.
    """
    if root is None:
        raise UserError("data.root is missing: set it to the folder with train/ and test/ (or val/)")
    path = Path(root)
    return _list_root(path, _changed(path))


@functools.lru_cache(maxsize=4)
def _list_root(root: Path, changed: tuple[int, ...]) -> Listing:
    return list_images(root)


def list_unlabelled(folder: str) -> tuple[list[str], str]:
    """Return the sorted paths of the images below a folder, at any depth, and the digest of their names and sizes.

    Raises:
        UserError: it is no folder, or has no images.
    """
    if not os.path.isdir(folder):
        raise UserError(f"data.unlabelled={folder} is not a folder: give one with images, at any depth")
    found = _search(Path(folder))
    paths = sorted([*found.files, *(found.links.keys() - _repeated([found]))])
    if not paths:
        raise UserError(f"data.unlabelled={folder} has no images ({', '.join(EXTENSIONS)}): add some, or remove it")
    return paths, _digest(Path(folder), paths)


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of the splits: train, test, and val if it is there and not the test set."""
    train, test, val = (root / name for name in ("train", "test", "val"))
    if not os.path.isdir(test):
        return {"train": train, "test": val}
    if not os.path.isdir(val) or os.path.samefile(test, val):
        return {"train": train, "test": test}
    return {"train": train, "test": test, "val": val}


def _changed(root: Path) -> tuple[int, ...]:
    """Return when the folders of the splits and of their classes last got or lost an entry."""
    splits = [folder for split in ("train", "val", "test") if (folder := root / split).is_dir()]
    classes = [entry for folder in splits for entry in _entries(folder) if os.path.isdir(entry.path)]
    return tuple(os.stat(each).st_mtime_ns for each in (*splits, *classes))


def list_images(root: Path) -> Listing:
    """List the images in `root/train`, `root/val` and `root/test`, which have the same class folders.

    Without `test`, `val` is the test set.

    Hidden files and folders are ignored, as are files without an image extension. A class folder and an image may be
    links. Links to other folders are not followed, nor is a link to an image that is listed already.

    Raises:
        UserError: a folder is missing, unreadable or without class folders, a class has no images, class folders differ
            or overlap, or an image is no regular file.
    """
    folders = _split_folders(root)
    names = {split: _class_names(folder) for split, folder in folders.items()}
    found = {split: [_search(folder / name) for name in names[split]] for split, folder in folders.items()}
    first, *others = folders
    for split in others:
        if odd := sorted(set(names[first]) ^ set(names[split])):
            raise UserError(
                f"{folders[first]} has {len(names[first])} classes and {folders[split]} {len(names[split])}; only in "
                f"one of them: {', '.join(odd[:3])}{', ...' if len(odd) > 3 else ''}: both need the same class folders"
            )
    _check_apart([folder / name for split, folder in folders.items() for name in names[split]])
    repeated = _repeated([each for split in found.values() for each in split])
    images = {
        split: [sorted([*each.files, *(each.links.keys() - repeated)]) for each in of_split]
        for split, of_split in found.items()
    }
    for split, folder in folders.items():
        for name, paths, each in zip(names[split], images[split], found[split], strict=True):
            if not paths:
                linked = f"; {min(each.folders)} is not followed" if each.folders else ""
                raise UserError(
                    f"{folder / name} has no images ({', '.join(EXTENSIONS)}){linked}: add images, or remove the folder"
                )
    to_folders = {link for split in found.values() for each in split for link in each.folders}
    notes = [*_note("to a folder within a class", to_folders), *_note("to an image that is listed already", repeated)]
    return Listing(root, folders, names[first], images, notes)


def _digest(folder: Path, paths: Sequence[str]) -> str:
    """Return the number of images of a class, and the digest of their names and sizes."""
    digest = hashlib.sha256()
    try:
        for path in paths:
            digest.update(
                f"{os.path.relpath(path, folder)}\0{os.stat(path).st_size}\0".encode(errors="surrogateescape")
            )
    except OSError as error:
        raise UserError(f"cannot read the image {error.filename} ({error.strerror}): restore or remove it") from None
    return f"{len(paths)} {digest.hexdigest()[:16]}"


def _class_names(folder: Path) -> list[str]:
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is not a folder: data.root needs train/ and test/ (or val/), one folder per class")
    visible = [entry for entry in _entries(folder) if not entry.name.startswith(".")]
    if broken := [entry.path for entry in visible if not os.path.exists(entry.path)]:
        raise UserError(f"{broken[0]} is a broken link: restore or remove it")
    classes = sorted(entry.name for entry in visible if os.path.isdir(entry.path))
    loose = _entries(folder / "images") if classes == ["images"] else [] if classes else visible
    if any(entry.name.lower().endswith(EXTENSIONS) for entry in loose):
        where, tested = "all images in images/" if classes else "images, but no class folders", folder.parent / "val"
        if folder.name == "test" and os.path.isdir(tested):
            raise UserError(
                f"{folder} has {where}, like ImageNet's and Tiny-ImageNet's test sets, whose labels are not public: "
                f"move {folder} away (or link train and val alone into another data.root), and {tested} is the test set"
            )
        raise UserError(
            f"{folder} has {where}: move each into {folder}/<class>/ (Tiny-ImageNet's val_annotations.txt and "
            "ImageNet's LOC_val_solution.csv list the classes of val; images without labels cannot be used)"
        )
    if not classes:
        raise UserError(f"{folder} has no class folders: put the images of each class into {folder}/<class>/")
    if len(classes) == 1:
        raise UserError(
            f"{folder} has only one class folder, {classes[0]}, but a classifier needs two: add one, or move the class "
            f"folders up if they are in {folder / classes[0]}"
        )
    return classes


def _search(folder: Path) -> _Found:
    """Return what a class folder contains, at any depth."""
    found, pending = _Found(), [os.fspath(folder)]
    while pending:
        for entry in _entries(pending.pop()):
            if entry.name.startswith("."):
                continue
            image, link = entry.name.lower().endswith(EXTENSIONS), entry.is_symlink()
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself
                is_folder = is_file = False
            if is_folder:
                (found.folders if link else pending).append(entry.path)
            elif image and not is_file:
                raise UserError(f"{entry.path} is a broken link, a pipe or a device: restore or remove it")
            elif image and link:
                found.links[entry.path] = _identity(entry.stat())
            elif image:
                found.files.append(entry.path)
    return found


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"cannot list the images in {folder} ({error.strerror}): make the folder readable") from None


def _check_apart(folders: Iterable[Path]) -> None:
    """Check that no class folder is, through a link, the same as another or within it."""
    real = sorted((os.path.join(os.path.realpath(folder), ""), folder) for folder in folders)
    for (outer, one), (inner, other) in itertools.pairwise(real):
        if inner.startswith(outer):
            raise UserError(f"{one} and {other} contain the same images, through a link: remove the link")


def _repeated(classes: Sequence[_Found]) -> set[str]:
    """Return the links to images that are listed already, as a file or by an earlier link."""
    links = [link for found in classes for link in sorted(found.links.items())]
    if not links:
        return set()
    try:
        seen = {_identity(os.stat(path)) for found in classes for path in found.files}
    except OSError as error:
        raise UserError(f"cannot read the image {error.filename} ({error.strerror}): restore or remove it") from None
    repeated = set()
    for link, identity in links:
        if identity in seen:
            repeated.add(link)
        seen.add(identity)
    return repeated


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _note(where: str, links: Set[str]) -> Iterator[str]:
    if links:
        more = f" and {len(links) - 1:,} more" if len(links) > 1 else ""
        yield f"links {where} are not followed: {min(links)}{more}"
