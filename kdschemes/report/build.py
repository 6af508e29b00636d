"""The content of a report before layout: the verdict, warnings and sections of groups of runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from kdschemes.errors import UserError, unknown
from kdschemes.report.charts.accuracy import accuracy_chart
from kdschemes.report.charts.agreement import agreement_section
from kdschemes.report.charts.calibration import calibration_section
from kdschemes.report.charts.classes import classes_section
from kdschemes.report.charts.cost import cost_charts
from kdschemes.report.charts.curves import curves
from kdschemes.report.charts.exits import exits
from kdschemes.report.charts.grid import grid
from kdschemes.report.charts.losses import losses
from kdschemes.report.colors import Hue, hue
from kdschemes.report.data import comparison_rows, run_rows
from kdschemes.report.document import Chart, Section, Table
from kdschemes.report.formatting import accuracy, mean_std
from kdschemes.report.groups import Group
from kdschemes.report.predictions import read_stored
from kdschemes.report.published import published_section
from kdschemes.report.selection import select, selection_section, verdict
from kdschemes.report.significance import Comparison, baselines, compare_groups, comparison_table, is_named, sentences
from kdschemes.report.tables import (
    code_table,
    cost_table,
    heads_table,
    missing_table,
    protocol,
    results_table,
    weak_teachers,
)
from kdschemes.study.published import Published

NOTHING_YET = "No run is finished yet: there are no results to show."

ALONE = 4
"""Maximum number of groups whose accuracies the summary lists if nothing is compared."""

Analysis = Callable[[Sequence[Group]], list[Section]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole report. `summary` holds sentences, the verdict first; `warnings` say why rows may not be comparable.

    `runs` and `comparisons` are the numbers for other programs (`report.data`).
    """

    title: str
    question: str
    summary: Sequence[str]
    warnings: Sequence[str]
    sections: Sequence[Section]
    runs: Sequence[dict[str, Any]] = ()
    comparisons: Sequence[dict[str, Any]] = ()


def build(
    title: str,
    question: str,
    groups: Sequence[Group],
    *,
    shared: Sequence[str] = (),
    notes: Sequence[str] = (),
    baseline: str | None = None,
    compare: Sequence[tuple[str, str]] = (),
    analyses: Sequence[str] = (),
    published: Sequence[Published] = (),
) -> Report:
    """Return the report of groups.

    `shared` are words left out of their labels, `baseline` is the label of one, `compare` holds planned pairs of them,
    `analyses` are names of `study.analyses`; an analysis that raises a UserError is replaced by its message.
    `published` are numbers of papers, shown first, beside ours. `notes` come at the end.

    Raises:
        UserError: there is no analysis of that name.
    """
    finished = [group for group in groups if group.finished]
    found = compare_groups(groups, baseline, compare)
    same, warnings = protocol(finished) if finished else ("", [])
    own = [group for group in groups if not group.earlier] or list(groups)
    base = next(iter(baselines(found)), None)
    selected = select(groups)
    colors = hue(own, base)
    beside = published_section(published, groups, baseline)
    sections = [beside] if beside else []
    sections += [_results(finished, found, colors, same, shared)] if finished else []
    sections += [selection_section(selected)] if selected else []
    sections += _charts(own, finished, colors, base, selected.best.label if selected else None)
    for name in analyses:
        sections += _analysis(name, groups)
    if finished and (others := heads_table(finished)):
        sections.append(Section(title="Other heads", tables=[others]))
    if missing := missing_table(groups):
        sections.append(Section(title="Not finished", tables=[missing]))
    if code := code_table(groups):
        sections.append(Section(title="Code and commands", tables=[code]))
    if notes:
        sections.append(Section(title="Notes", text="\n\n".join(notes)))
    made = Report(
        title=title,
        question=question,
        summary=[
            *(_verdict(finished, found, baseline) if finished else [NOTHING_YET]),
            *([verdict(selected)] if selected else []),
            *_progress(groups),
        ],
        warnings=[*warnings, *weak_teachers(finished)],
        sections=sections,
        runs=run_rows(groups),
        comparisons=comparison_rows(found),
    )
    several = finished and all(result.get("multi_label") for group in finished for result in group.results)
    return _of_average_precision(made) if several else made


def _of_average_precision(report: Report) -> Report:
    """Return a report of images with several labels, whose main metric is the mAP, and not top-1."""

    def named(text: str) -> str:
        return re.sub("(test|validation) top-1", r"\1 mAP", text, flags=re.IGNORECASE)

    def table(of: Table) -> Table:
        return replace(of, columns=list(map(named, of.columns)), caption=named(of.caption))

    def chart(of: Chart) -> Chart:
        text = json.dumps(of.spec.to_dict())
        spec = cast(Any, type(of.spec)).from_dict(json.loads(named(text)))
        return replace(of, spec=spec, caption=named(of.caption))

    sections = [
        replace(
            each,
            text=named(each.text),
            tables=list(map(table, each.tables)),
            items=list(map(named, each.items)),
            charts=list(map(chart, each.charts)),
        )
        for each in report.sections
    ]
    summary, warnings = (list(map(named, lines)) for lines in (report.summary, report.warnings))
    return replace(report, sections=sections, summary=summary, warnings=warnings)


def _results(
    finished: Sequence[Group], found: Sequence[Comparison], colors: Hue, same: str, shared: Sequence[str]
) -> Section:
    common = f" All names leave out {', '.join(shared)}, which all runs share." if shared else ""
    tables = [results_table(finished), *([comparison_table(found)] if found else [])]
    chart = accuracy_chart(finished, colors)
    return Section(title="Results", text=same + common, tables=tables, charts=[chart] if chart else [])


def _charts(
    own: Sequence[Group], finished: Sequence[Group], colors: Hue, base: str | None, best: str | None
) -> list[Section]:
    done = [group for group in own if group.finished]
    sections = [grid(own), curves(own, colors), losses(own, colors), exits(done, colors)]
    if finished:
        charts, words = cost_charts(finished, colors)
        stored = read_stored(done)
        sections += [
            Section(title="Cost", text=words, tables=[cost_table(finished)], charts=charts),
            classes_section(done, stored, base, best),
            calibration_section(done, stored, colors, base),
            agreement_section(done, stored),
        ]
    return [section for section in sections if section]


def _analysis(name: str, groups: Sequence[Group]) -> list[Section]:
    from kdschemes.report.analyses import ANALYSES

    if name not in ANALYSES:
        raise unknown("analysis", name, ANALYSES)
    try:
        return ANALYSES[name](groups)
    except UserError as error:
        return [Section(title=name.replace("_", " ").capitalize(), text=f"**This analysis failed**: {error}")]


def _verdict(finished: Sequence[Group], found: Sequence[Comparison], baseline: str | None) -> list[str]:
    if found:
        return sentences(found)
    if baseline is not None and not any(is_named(group, baseline) for group in finished):
        return [f"Nothing is compared: the baseline, **{baseline}**, has no finished run."]
    shown = [group for group in finished if accuracy(group) and (not group.earlier or len(finished) == 1)]
    return [
        f"**{group.label}**: {mean_std(accuracy(group).values(), 2)} % test top-1 after the last epoch."
        for group in shown[:ALONE]
    ] or ["No finished run was evaluated on a test set."]


def _progress(groups: Sequence[Group]) -> list[str]:
    runs = sum(len(group.members) for group in groups)
    missing = sum(len(group.unfinished) for group in groups)
    return [f"{missing} of {runs} runs {'is' if missing == 1 else 'are'} not finished."] if missing else []
