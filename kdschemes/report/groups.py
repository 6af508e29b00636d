"""Groups of runs that differ only in their seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kdschemes.config.naming import NOT_HASHED, flatten, in_line, read_config
from kdschemes.config.soft_term import effective, is_response
from kdschemes.errors import UserError
from kdschemes.storage.results import main_metric, read_results
from kdschemes.study.record import Entry
from kdschemes.study.spec import label_of
from kdschemes.study.status import Row, Status, look

Protocol = dict[str, Any]
"""What must be equal in runs that are averaged together."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a group. `results` is None if it is not finished."""

    row: Row
    folder: Path
    results: Mapping[str, Any] | None

    @cached_property
    def config(self) -> dict[str, Any]:
        """Content of the run's `config.yaml`; {} if there is none that can be read."""
        return config_of(self.folder) or {}

    @cached_property
    def protocol(self) -> Protocol:
        """How a finished run was trained and evaluated."""
        assert self.results is not None
        data = self.config.get("data", {})
        return {
            "epochs": self.results.get("epochs_planned", self.results["epochs"]),
            "data": self.results["data"],
            **{f"{split} images": count for split, count in self.results["samples"].items()},
            "data.split_seed": data.get("split_seed"),
            "processes": self.results["processes"],
            "device": self.results["device"],
            "precision": self.results["precision"],
        }


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one point of a study. The finished ones share one protocol. `earlier`: they teach the others."""

    label: str
    members: tuple[Member, ...]
    earlier: bool = False

    @property
    def finished(self) -> list[Member]:
        """The members with results."""
        return [member for member in self.members if member.results is not None]

    @property
    def results(self) -> list[Mapping[str, Any]]:
        """The `results.json` of the finished members."""
        return [member.results for member in self.members if member.results is not None]

    @property
    def unfinished(self) -> list[Member]:
        """The members without results."""
        return [member for member in self.members if member.results is None]


def study_groups(found: Status) -> list[Group]:
    """Return the groups of a study: its points in their order, then the runs that teach them.

    Of the latter, those that the study file names are grouped by their names, the others by their configurations.
    Points that differ only in options of a loss that alpha = 0 switches off are one.
    """
    points: dict[str, list[Member]] = defaultdict(list)
    labels: dict[str, str] = {}
    unnamed = []
    for row in sorted(found.rows, key=lambda row: row.entry.earlier):
        member = _at_its_point(_member(row, found.study.output))
        entry = member.row.entry
        label = entry.label.rpartition(" seed=")[0]
        if entry.earlier and not label:
            unnamed.append(member)
        else:
            point = repr((entry.earlier and label, entry.variant, entry.grid))
            labels[point] = label or found.study.name
            points[point].append(member)
    groups = [
        part
        for point, members in points.items()
        for part in _by_protocol(labels[point], _one_per_seed(members), earlier=members[0].row.entry.earlier)
    ]
    return groups + _by_configuration(unnamed, earlier=True)


def run_groups(folders: Iterable[Path]) -> list[Group]:
    """Return the groups of runs, by their configurations without the seed.

    Groups of one scheme, method, data set and model are distinguished by the keys in which they differ.

    Raises:
        UserError: the same run is given twice.
    """
    return _by_configuration(map(member_of, folders), earlier=False)


def member_of(folder: Path) -> Member:
    """Return the run in a folder, whatever its state."""
    config = config_of(folder) or {}
    keys = flatten(config)
    epochs, seed = (value if type(value := keys.get(key)) is int else 0 for key in ("train.epochs", "seed"))
    entry = Entry(label=folder.name, folder=folder.name, epochs=epochs, seed=seed)
    return _member(look(folder, entry), folder.parent)


def shortened(groups: Sequence[Group]) -> tuple[list[Group], list[str]]:
    """Return groups of runs without the words that all their labels share, and these words.

    Their labels begin with the names of the runs' folders: scheme, method, data set and model, with dashes between.
    """
    heads = [group.label.partition(" ")[0] for group in groups]
    parts = [head.split("-") for head in heads]
    of_folders = all(
        group.members[0].folder.name.startswith(f"{head}-seed") for group, head in zip(groups, heads, strict=True)
    )
    if not of_folders or len({len(words) for words in parts}) != 1:
        return list(groups), []
    shared = [index for index, words in enumerate(zip(*parts, strict=True)) if len(set(words)) == 1]
    labels = [
        " ".join(filter(None, ("-".join(words[i] for i in range(len(words)) if i not in shared), rest)))
        for words, rest in zip(parts, (group.label.partition(" ")[2] for group in groups), strict=True)
    ]
    if not all(labels) or len(set(labels)) < len(labels):
        return list(groups), []
    common = [parts[0][index] for index in shared]
    return [replace(group, label=label) for group, label in zip(groups, labels, strict=True)], common


def _by_configuration(members: Iterable[Member], *, earlier: bool) -> list[Group]:
    groups: dict[str, dict[str, list[Member]]] = defaultdict(lambda: defaultdict(list))
    keys: dict[str, dict[str, Any]] = {}
    alone = []
    for member in members:
        folder, config = member.folder, member.config
        if not config:
            alone.append(Group(label=folder.name, members=(member,), earlier=earlier))
            continue
        keys_of = {key: value for key, value in flatten(config).items() if key not in (*NOT_HASHED, "seed")}
        keys_of = effective(keys_of, config.get("scheme") or {}) | _continued(member)
        key = repr(sorted(keys_of.items()))
        group = groups[folder.name.rpartition("-seed")[0] or folder.name][key]
        twin = next((other for other in group if other.row.entry.seed == member.row.entry.seed), None)
        if twin is not None and (twin.folder.name == folder.name or twin.config.get("losses") == config.get("losses")):
            raise UserError(f"{folder} is the same run as {twin.folder}: give only one of them")
        group.append(member)
        keys[key] = keys_of
    found = []
    for name, by_key in groups.items():
        all_keys = [keys[key] for key in by_key]
        parts = [(_told_apart(name, keys[key], all_keys), group) for key, group in by_key.items()]
        for label, group in sorted(parts, key=lambda part: part[0]):
            found += _by_protocol(label, _one_per_seed(group), earlier=earlier)
    return found + alone


def _continued(member: Member) -> dict[str, Any]:
    """Return what the run that a run continues from had otherwise, as the key `resume_from`; {} if there is none.

    That run is looked for where it was, then next to the member; its name without the seed stands for one not found.
    """
    parent = member.config.get("resume_from")
    if parent is None:
        return {}
    name = Path(parent).name
    places = (Path(parent), member.folder.parent / name)
    found = next((replace(member, folder=place) for place in places if config_of(place)), None)
    if found is None:
        return {"resume_from": name.rpartition("-seed")[0] or name}
    before, now = flatten(found.config), flatten(member.config)
    other = {key: value for key, value in before.items() if key not in (*NOT_HASHED, "seed", "resume_from")}
    other = {key: value for key, value in other.items() if now.get(key) != value}
    return {"resume_from": in_line(other | _continued(found))}


def _at_its_point(member: Member) -> Member:
    """Return a run of a study without the keys of its point that have no effect on it."""
    entry = member.row.entry
    if not any(map(is_response, entry.grid)):
        return member
    chosen = {key.removeprefix("scheme."): value for key, value in entry.grid.items() if key.startswith("scheme.")}
    grid = effective(entry.grid, chosen | (member.config.get("scheme") or {}))
    if len(grid) == len(entry.grid):
        return member
    entry = replace(entry, grid=grid, label=label_of(entry.variant, grid, entry.seed))
    return replace(member, row=replace(member.row, entry=entry))


def _one_per_seed(members: Sequence[Member]) -> list[Member]:
    """Return one run for each seed, a finished one where there is one: the others compute the same."""
    found: dict[int, Member] = {}
    for member in members:
        seed = member.row.entry.seed
        if seed not in found or (found[seed].results is None and member.results is not None):
            found[seed] = member
    return list(found.values())


def config_of(folder: Path) -> dict[str, Any] | None:
    """Return a run's `config.yaml` as plain data; None if there is none that can be read."""
    try:
        return read_config(folder)
    except UserError:
        return None


def _member(row: Row, output: Path) -> Member:
    folder = output / row.entry.folder
    try:
        results = read_results(folder)
        member = Member(row=row, folder=folder, results=results)
        if results is None or (member.protocol and _whole(results)):
            return member
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    row = replace(
        row, state="failed", done=0.0, reason="results.json is damaged or of another version: delete it and run again"
    )
    return Member(row=row, folder=folder, results=None)


def _whole(results: Mapping[str, Any]) -> bool:
    """Whether results contain what every report reads, in the expected form."""
    primary_head = results["heads"][results["primary_head"]]
    tests = [(primary_head[which] or {}).get("test") or {} for which in ("last", "best")]
    numbers = [test[key] for test in tests if test for key in (main_metric(test), "nll", "ece")]
    counts = [results["train_seconds"], results["samples"]["train"], results["epochs"]]
    return all(isinstance(float(value), float) for value in (*numbers, *counts)) and bool(results["versions"])


def _by_protocol(label: str, members: Sequence[Member], *, earlier: bool) -> list[Group]:
    """Return one group, or one for each protocol among its finished runs, named by what differs."""
    parts: dict[str, list[Member]] = defaultdict(list)
    protocols: dict[str, Protocol] = {}
    for member in members:
        if member.results is not None:
            protocols[repr(member.protocol)] = member.protocol
            parts[repr(member.protocol)].append(member)
    if len(parts) < 2:
        return [Group(label=label, members=tuple(members), earlier=earlier)]
    unfinished = [member for member in members if member.results is None]
    names = {key: _told_apart("", protocol, list(protocols.values())) for key, protocol in protocols.items()}
    groups = [(f"{label} ({names[key].strip()})", part) for key, part in parts.items()]
    groups += [(label, unfinished)] if unfinished else []
    return [Group(label=name, members=tuple(part), earlier=earlier) for name, part in groups]


def _told_apart(name: str, keys: Mapping[str, Any], all_keys: Sequence[Mapping[str, Any]]) -> str:
    """Return a name with the keys whose values differ."""
    names = dict.fromkeys(key for each in all_keys for key in each)
    differ = [key for key in names if any(each.get(key) != keys.get(key) for each in all_keys)]
    return " ".join([name, *(f"{key}={keys[key]}" for key in differ if key in keys)])
