"""The caches of a run's frozen networks: what is stored, where, and how much space it takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from kdschemes.config import Config
from kdschemes.config.naming import to_tree
from kdschemes.config.parse import to_yaml
from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.nodes import Node
from kdschemes.core.terms import Term, Transfer
from kdschemes.data import DataModule
from kdschemes.distributed.collectives import on_main_process
from kdschemes.errors import UserError
from kdschemes.models import stages
from kdschemes.storage.naming import HUB
from kdschemes.teacher_cache.cache import FEATURES, LOGITS, TeacherCache
from kdschemes.teacher_cache.folder import check_space, in_words
from kdschemes.teacher_cache.key import cache_key, images_digest

FOLDER = "teacher_cache"
"""Name of the folder of all caches, next to the runs' folders."""


def cache_root(config: Config) -> Path:
    folder = config.teacher.cache_dir
    return Path(folder) if folder is not None else Path(config.output_dir) / FOLDER


def check_cache(config: Config, scheme: Distillation) -> None:
    """Check that a cache stores everything that a scheme reads from its teachers.

    Raises:
        UserError: it does not; the message names the term or node.
    """
    cache = config.teacher.cache
    if not config.scheme.uses_teacher or cache == "none":
        return
    for node in _frozen(scheme):
        (name,) = node.provides
        for term in scheme.terms:
            if isinstance(term, Transfer) and term.source == name and term.loss.reads_preactivations:
                raise UserError(
                    f"{term.name} reads the teacher's maps before their last ReLU, which are never cached: "
                    "set teacher.cache=none or choose another loss"
                )
        readers = [reader for reader, read in _readers(scheme, name) if cache == "logits" and read != []]
        if readers:
            raise UserError(
                f"{readers[0]} reads the teacher's features, which teacher.cache=logits does not store: "
                "set teacher.cache=features or none"
            )


def attach_caches(
    config: Config, scheme: Distillation, data: DataModule, watch: Callable[[str], None] = lambda line: None
) -> None:
    """Attach caches to the frozen networks of a scheme, if configured; call it before the weights are placed.

    `config` names all checkpoints. The caches must be opened at the start of each epoch. All processes must call this;
    the main process reads all training images, and calls `watch` with lines on its progress.

    Raises:
        UserError: an image cannot be read.
    """
    teacher = config.teacher
    if not config.scheme.uses_teacher or teacher.cache == "none" or not _frozen(scheme):
        return
    images = on_main_process(lambda: images_digest(data, watch))
    for node in _frozen(scheme):
        spec = node.network.spec
        wanted: dict[str, tuple[int, ...]] = {LOGITS: (spec.num_classes,)}
        if teacher.cache == "features":
            read = stages_read(scheme, node.provides[0])
            shapes = {s.name: s.shape for s in stages(node.network, spec.channels, spec.image_size)}
            wanted |= {f"{FEATURES}{s}": shape for s, shape in shapes.items() if read is None or s in read}
        node.cache = TeacherCache(
            cache_root(config),
            cache_key(node.network, data, config, images),
            data,
            node.compute,
            precision=config.precision,
            wanted=wanted,
            limit=teacher.cache_limit_gb * 1e9,
            rebuild=_rebuilding(config),
        )


def caches_of(scheme: Distillation) -> list[TeacherCache]:
    return list(dict.fromkeys(node.cache for node in _frozen(scheme) if isinstance(node.cache, TeacherCache)))


def announce(caches: Sequence[TeacherCache], epochs: range) -> str | None:
    """Return a line about what the caches will write for these epochs; None if already announced.

    Raises:
        UserError: it exceeds the limit or the disk, or a folder belongs to another cache; nothing is written.
    """
    new = [cache for cache in caches if not cache.announced]
    if not new or not epochs:
        return None
    parts: list[str] = []
    needed = 0
    for cache in new:
        cache.check_folder()
        for what, count in cache.absent(epochs).items():
            needed += count * cache.size(what)
            if count:
                each = " x ".join(map(str, cache.wanted[what]))
                parts.append(f"{count} epochs x {cache.samples:,} images x {each} {what}")
        cache.announced = True
    there = check_space(new[0].root, needed, new[0].limit)
    if not needed:
        return f"teacher cache: all {len(epochs)} epochs are already in {new[0].root} ({in_words(there)})"
    return (
        f"teacher cache: {in_words(needed)} will be written to {new[0].root} ({' + '.join(parts)}, fp16), "
        f"which already has {in_words(there)}"
    )


def stages_read(scheme: Distillation, output: str) -> set[str] | None:
    """Return the stages of an output whose features terms and nodes read; None if unknown."""
    found: set[str] = set()
    for _, read in _readers(scheme, output):
        if read is None:
            return None
        found.update(read)
    return found


def _readers(scheme: Distillation, output: str) -> Iterable[tuple[str, list[str] | None]]:
    """Yield the name of every term and node with the stages of an output that it reads (None: unknown)."""
    terms: Iterable[Term] = scheme.terms  # type: ignore[assignment]
    nodes: Iterable[tuple[str, Node]] = scheme.nodes.items()  # type: ignore[assignment]
    yield from ((term.name, term.stages_read(output)) for term in terms)
    yield from ((name, node.stages_read(output)) for name, node in nodes)


def _rebuilding(config: Config) -> str:
    """Return the text of a `rebuild.yaml` that builds the same networks from any working directory."""
    tree = to_tree(config)
    for group, key in (("teacher", "checkpoint"), ("model", "checkpoint"), ("data", "root")):
        value = tree[group].get(key)
        if value is not None:
            tree[group][key] = [_absolute(path) for path in value] if isinstance(value, list) else _absolute(value)
    return to_yaml(tree)


def _absolute(path: str) -> str:
    return path if path.startswith(HUB) else os.path.abspath(path)


def _frozen(scheme: Distillation) -> list[Frozen]:
    return [node for node in scheme.nodes.values() if isinstance(node, Frozen)]
