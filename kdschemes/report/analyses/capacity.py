"""Does distillation increase capacity: the gain from a larger teacher against the gain from a larger student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from kdschemes.report.analyses import evidence
from kdschemes.report.charts.base import chart, percents
from kdschemes.report.document import Chart, Section, Table
from kdschemes.report.formatting import NOTHING, accuracy, by_seed, cost, mean_std, primary_head
from kdschemes.report.groups import Group
from kdschemes.report.statistics import BySeed, against_zero, difference, paired
from kdschemes.tracking.tables import count_text

TITLE = "Capacity: the size of the student against the size of its teacher"

Sizes = Mapping[str, float]
"""Number of parameters by network name."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A student, its teacher if it has one, and the assistants between them."""

    student: str
    teacher: str = ""
    assistants: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.teacher:
            return f"{self.student} alone"
        return " by ".join((f"{self.student} from {self.teacher}", *self.assistants))

    @property
    def alone(self) -> Pair:
        """The same student without a teacher."""
        return Pair(student=self.student)


def capacity(groups: Sequence[Group]) -> list[Section]:
    """Compare the gain from a larger teacher of a fixed student with that from a larger student of a fixed teacher."""
    found, left_out = evidence.by_point(groups, _pair)
    notes = [*evidence.missing(groups), *left_out]
    accuracies = {pair: values for pair, group in found.items() if (values := accuracy(group))}
    sizes = _sizes(found)
    chosen = axes(list(accuracies), sizes)
    if chosen is None:
        why = "this needs two teachers of the smallest student and two students of the largest teacher."
        return [Section(title=TITLE, text=evidence.paragraphs(notes, f"Nothing to compare yet: {why}"))]
    teachers, students = chosen
    from_teacher = difference(accuracies[teachers[-1]], accuracies[teachers[0]])
    from_student = difference(accuracies[students[-1]], accuracies[students[0]])
    claim = evidence.evaluated(
        "Distillation does not increase capacity (what a larger student gains, less what the smallest student gains "
        "from a larger teacher)",
        paired(from_student, from_teacher),
    )
    grown = (
        f"The teacher grows from {_sized(teachers[0].teacher, sizes)} to {_sized(teachers[-1].teacher, sizes)}, the "
        f"student stays {teachers[0].student}: {evidence.measured(against_zero(from_teacher))}. The student grows from "
        f"{_sized(students[0].student, sizes)} to {_sized(students[-1].student, sizes)}, the teacher stays "
        f"{students[0].teacher}: {evidence.measured(against_zero(from_student))}."
    )
    next_size = _next_size(students, accuracies, sizes)
    text = evidence.paragraphs(claim, grown, next_size, _chains(accuracies), notes, evidence.RULE)
    table = _table(found, accuracies, sizes)
    return [Section(title=TITLE, text=text, tables=[table], charts=[_chart(accuracies, sizes)])]


def axes(pairs: Sequence[Pair], sizes: Sizes) -> tuple[list[Pair], list[Pair]] | None:
    """Return the pairs of the smallest student by the size of its teachers, and those of the largest teacher.

    Chains of assistants are left out. None if either has fewer than two pairs.
    """
    direct = [pair for pair in pairs if pair.teacher and not pair.assistants]
    if not direct:
        return None
    smallest = min((pair.student for pair in direct), key=lambda name: sizes[name])
    largest = max((pair.teacher for pair in direct), key=lambda name: sizes[name])
    teachers = sorted((pair for pair in direct if pair.student == smallest), key=lambda pair: sizes[pair.teacher])
    students = sorted((pair for pair in direct if pair.teacher == largest), key=lambda pair: sizes[pair.student])
    return (teachers, students) if len(teachers) > 1 and len(students) > 1 else None


def _pair(group: Group) -> Pair | None:
    student, teacher = (evidence.setting(group, key) for key in ("model.name", "teacher.name"))
    if evidence.method(group) == evidence.CROSS_ENTROPY:
        return Pair(student=student)
    if evidence.method(group)[0] != "offline" or not isinstance(teacher, str):
        return None
    return Pair(student=student, teacher=teacher, assistants=tuple(evidence.setting(group, "scheme.assistants") or ()))


def _sizes(found: Mapping[Pair, Group]) -> Sizes:
    """Return the number of parameters of students and of their direct teachers; 0 where no run has recorded it."""
    sizes = {name: 0.0 for pair in found for name in (pair.student, pair.teacher, *pair.assistants)}
    for pair, group in found.items():
        for name, head in ((pair.student, primary_head(group)), (_direct(pair), "teacher")):
            if values := cost(group, head, "parameters"):
                sizes[name] = values[0]
    return sizes


def _direct(pair: Pair) -> str:
    return pair.assistants[-1] if pair.assistants else pair.teacher


def _next_size(students: Sequence[Pair], accuracies: Mapping[Pair, BySeed], sizes: Sizes) -> str:
    """Compare the smallest student taught by the largest teacher with the next larger student trained alone."""
    small, larger = students[0], students[1].alone
    if larger not in accuracies or sizes[larger.student] <= sizes[small.student]:
        return ""
    found = paired(accuracies[small], accuracies[larger])
    return f"{small} against the next size, {larger}: {evidence.measured(found)}."


def _chains(accuracies: Mapping[Pair, BySeed]) -> list[str]:
    """Compare each chain of assistants with direct distillation from its teacher."""
    chains = {pair: Pair(student=pair.student, teacher=pair.teacher) for pair in accuracies if pair.assistants}
    return [
        f"{chain} against {direct}: {evidence.measured(paired(accuracies[chain], accuracies[direct]))}."
        for chain, direct in chains.items()
        if direct in accuracies
    ]


def _table(found: Mapping[Pair, Group], accuracies: Mapping[Pair, BySeed], sizes: Sizes) -> Table:
    pairs = sorted(accuracies, key=lambda pair: (sizes[pair.student], sizes.get(pair.teacher, 0), pair.assistants))
    taught = [pair for pair in pairs if pair.teacher and pair.alone in accuracies]
    tests = [paired(accuracies[pair], accuracies[pair.alone]) for pair in taught]
    gains = {
        pair: (f"{test.mean_difference:+z.2f}", *cells)
        for pair, test, cells in zip(taught, tests, evidence.verdict_cells(tests), strict=True)
    }
    rows = [
        [
            str(pair),
            f"{sizes[pair.student]:,.0f}",
            f"{sizes[_direct(pair)]:,.0f}" if pair.teacher else NOTHING,
            mean_std(by_seed(found[pair], "teacher", "last", "top1").values(), 2),
            mean_std(accuracies[pair].values(), 2),
            *gains.get(pair, (NOTHING, NOTHING, NOTHING)),
        ]
        for pair in pairs
    ]
    columns = ("student", "its parameters", "teacher's parameters", "teacher's top-1 %", "test top-1 %")
    caption = (
        "Test top-1 after the last epoch, mean ± sample std over seeds. The teacher of a chain is its last "
        "assistant. Gains are over the same student alone."
    )
    return Table(columns=(*columns, "gain", "p (Holm)", "verdict"), rows=rows, caption=caption)


def _sized(name: str, sizes: Sizes) -> str:
    return f"{name} ({count_text(sizes[name])})"


def _chart(accuracies: Mapping[Pair, BySeed], sizes: Sizes) -> Chart:
    values: list[dict[str, Any]] = [
        {
            "parameters": sizes[pair.student],
            "top1": sum(of.values()) / len(of),
            "taught by": str(pair).partition(f"{pair.student} ")[2],
            "student": pair.student,
        }
        for pair, of in accuracies.items()
    ]
    axis = alt.Axis(format=".3~s", values=sorted({float(sizes[pair.student]) for pair in accuracies}))
    spec = (
        chart(values)
        .mark_line(point=True)
        .encode(
            x=alt.X("parameters:Q", scale=alt.Scale(type="log"), title="parameters of the student (log)", axis=axis),
            y=alt.Y("top1:Q", scale=percents(value["top1"] for value in values), title="test top-1 (%)"),
            color=alt.Color("taught by:N", title=None),
            tooltip=["student:N", "taught by:N", "top1:Q"],
        )
        .properties(width="container")
    )
    return Chart(name="capacity", spec=spec, caption="Means over seeds.")
