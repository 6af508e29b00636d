"""`kdschemes cache verify`: does the teacher still produce the stored outputs?"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kdschemes.config.load import load_config
from kdschemes.core.placement import place_frozen
from kdschemes.data import open_data
from kdschemes.distributed.launch import start_processes
from kdschemes.errors import UserError
from kdschemes.schemes import build_scheme
from kdschemes.teacher_cache.attach import attach_caches, caches_of
from kdschemes.teacher_cache.cache import CHUNK, TeacherCache, maker
from kdschemes.teacher_cache.files import SUFFIX, check_values, map_values, read_header
from kdschemes.teacher_cache.folder import REBUILD, read_key
from kdschemes.teacher_cache.key import Key, differences, folder_name

STEPS = {"fp32": 1.0, "fp16": 4.0, "bf16": 32.0}
"""Tolerance in float16 steps by precision, for outputs of another processor or torch version; a bf16 step is 8."""


def verify(folder: Path, samples: int, overrides: Sequence[str] = (), seed: int = 0) -> str:
    """Recompute `samples` random chunks of a cache and return a text on how well they match.

    With the processor and torch version that filled the cache and an unsharded teacher, all values must be bitwise
    equal; otherwise within `STEPS` float16 steps at the sample's largest value. All checksums are verified.
    `overrides` change keys of the run that created the cache, such as paths; `seed` selects the chunks.

    Raises:
        UserError: a file is damaged, values differ by more, or teacher or data are not those of the cache.
    """
    key = read_key(folder)
    if folder.resolve().name != folder_name(key):
        raise UserError(
            f"{folder} must be called {folder_name(key)}, by its key: the folder was renamed or the key edited"
        )
    files = {path: int(found[1]) - 1 for path in sorted(folder.iterdir()) if (found := _NAME.fullmatch(path.name))}
    if not files:
        raise UserError(f"{folder} contains no outputs yet: there is nothing to verify")
    for path in files:
        check_values(path)
    cache = _rebuilt(folder, key, overrides)
    places = [(epoch, number) for epoch in sorted(set(files.values())) for number in range(len(cache.chunks()))]
    chosen = sorted(random.Random(seed).sample(places, min(samples, len(places))))
    compared = [
        _compare(path, cache, epoch, number) for epoch, number in chosen for path in files if files[path] == epoch
    ]
    values, equal = sum(one.values for one in compared), sum(one.equal for one in compared)
    text = (
        f"{folder.name}: {len(files)} files, all checksums match\n"
        f"{len(chosen)} of {len(places)} chunks of up to {CHUNK} samples recomputed: {100 * equal / values:.4f} % "
        f"of {values:,} values are bitwise equal"
    )
    if all(one.same_maker for one in compared):
        return text
    worst = max(one.worst for one in compared)
    by = _by(False, key["arithmetic"]["split"])
    return f"{text}, the others at most {worst:.3g} float16 steps away (filled by {by})"


def _by(same: bool, split: bool) -> str:
    if split:
        return "a teacher sharded over processes"
    return f"{'this' if same else 'another'} processor and torch"


_NAME = re.compile(rf"epoch(\d+)\..*{re.escape(SUFFIX)}")


@dataclass(frozen=True)
class _Compared:
    """How well one chunk matches; `worst` is in float16 steps at the sample's largest value."""

    values: int
    equal: int
    worst: float
    same_maker: bool


def _compare(path: Path, cache: TeacherCache, epoch: int, number: int) -> _Compared:
    _, what, shape, facts = read_header(path)
    stored, here = map_values(path, what, shape, cache.facts(epoch), check=False), maker(cache.data.device)
    torch.set_num_threads(int(facts["threads"]))
    (batch,) = cache.data.seen_in(epoch, [cache.chunks()[number]])
    first, count = number * CHUNK, len(batch)
    ours = cache.computed(batch, [what])[what].cpu().numpy().reshape(count, -1)
    theirs = np.array(stored[first : first + count]).reshape(count, -1)
    largest = np.maximum(np.abs(ours), np.abs(theirs)).max(axis=1, keepdims=True)
    steps = np.abs(ours.astype(np.float32) - theirs.astype(np.float32)) / np.spacing(largest).astype(np.float32)
    equal, worst = int((ours.view(np.uint16) == theirs.view(np.uint16)).sum()), float(steps.max())
    arithmetic = cache.key["arithmetic"]
    same = not arithmetic["split"] and all(facts[name] == here[name] for name in ("torch", "processor"))
    allowed = 0.0 if same else max(STEPS[arithmetic["precision"]], STEPS[arithmetic["teacher_precision"]])
    if (same and equal < ours.size) or not worst <= allowed:
        raise UserError(
            f"{path} does not match the teacher: for samples {first} to {first + count - 1}, {ours.size - equal} of "
            f"{ours.size} values differ, by up to {worst:.3g} float16 steps ({allowed:g} allowed, as it was filled "
            f"by {_by(same, arithmetic['split'])}): delete the file, the next run rewrites it"
        )
    return _Compared(ours.size, equal, worst, same)


def _rebuilt(folder: Path, key: Key, overrides: Sequence[str]) -> TeacherCache:
    """Return the cache with its data opened and its network built, from the configuration in its folder."""
    config = load_config([f"experiment={folder / REBUILD}", *overrides], recipes=folder)
    config = dataclasses.replace(
        config,
        teacher=dataclasses.replace(config.teacher, placement="device"),
        train=dataclasses.replace(config.train, fsdp=False),
    )
    device, last = start_processes(config).device, config.train.channels_last
    data = open_data(config.data, seed=config.seed, device=device, channels_last=last)
    scheme = build_scheme(config, data.spec)
    attach_caches(config, scheme, data)
    other: list[str] = []
    for cache in caches_of(scheme):
        carried = {name: key["arithmetic"][name] for name in ("device", "split")}
        arithmetic = {"arithmetic": cache.key["arithmetic"] | carried}
        other.append(differences(key, cache.key | arithmetic))
        if not other[-1]:
            cache.key = key
            scheme.to(memory_format=torch.channels_last if last else torch.preserve_format)
            place_frozen(scheme, config.teacher, device)
            scheme.to(device)
            return cache
    raise UserError(
        f"teacher or data of {folder / REBUILD} no longer match the cache: {min(other, key=len)}; "
        "give their current location by data.root=, teacher.checkpoint="
    )
