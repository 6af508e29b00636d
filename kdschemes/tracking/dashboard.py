"""A W&B workspace that compares schemes and methods: curves, bars, accuracy against cost, hyperparameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdschemes.errors import UserError
from kdschemes.storage.atomic import atomic_write
from kdschemes.tracking.wandb_server import check_login

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

COLORS = {"supervised": "#7f7f7f", "offline": "#1f77b4", "online": "#ff7f0e", "self": "#2ca02c", "teacher": "#d62728"}
"""Colors of the schemes and of teacher runs, in the list of runs and in every panel."""

RUNS_IN_A_PANEL = 500
"""Runs drawn per panel; the app's default is 10."""

MEAN_AND_STD: dict[str, Any] = {
    "groupby_aggfunc": "mean",
    "groupby_rangefunc": "stddev",
    "max_runs_to_show": RUNS_IN_A_PANEL,
}
"""Options of a panel that groups runs."""

COSTS = {"parameters": "parameters", "macs": "MACs"}
"""Keys below `cost/` of a run's summary, and the titles of their axes."""

HYPERPARAMETERS = {"scheme.alpha": "alpha", "losses.response.temperature": "temperature", "optim.lr": "learning rate"}
"""Keys of the configuration on the parallel coordinates."""


def dashboard(project: str, *, entity: str | None = None, group: str | None = None, out: Path | None = None) -> str:
    """Build the workspace of a project's runs, or of one `group` of them, and return its location.

    It is saved as a new view of the project in W&B; with `out` it is written there as JSON instead (what would be sent
    as the view's `spec`, after its names), without a login.

    Raises:
        UserError: the package is missing, not logged in, W&B refuses it, the group can't be used as a filter, or the
            file can't be written.
    """
    try:
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError:
        raise UserError(
            'kdschemes wandb dashboard needs the package wandb-workspaces: pip install "kdschemes[dashboard]"'
        ) from None
    if out is not None:
        view = checked(build(project, entity=entity or "", group=group))
        atomic_write(out, (json.dumps(view, indent=2) + "\n").encode())
        return f"workspace of {project}: {out} (not saved in W&B; omit --out to save it)"
    check_login("kdschemes wandb dashboard")
    import wandb

    try:
        workspace = build(project, entity=entity or wandb.Api().default_entity or "", group=group)
        checked(workspace)
        workspace.save()
        return f"workspace of {project}: {workspace.url}"
    except (wandb.errors.Error, OSError) as error:
        raise UserError(f"W&B did not save the workspace: {' '.join(str(error).split())}") from None


def build(project: str, *, entity: str, group: str | None) -> Workspace:
    """Return the workspace. It relies on names that every run logs, see `kdschemes.tracking.trackers`.

    Raises:
        UserError: a group name that the package cannot filter by.
    """
    if group is not None and set(group) & {"'", "\\", "\n"}:
        raise UserError(f"--group {group!r}: wandb-workspaces cannot filter by a name with ', \\ or a line break")
    from wandb_workspaces import expr
    from wandb_workspaces import workspaces as ws
    from wandb_workspaces.reports import v2 as wr

    sections = {
        "Validation curves, mean and std": _curves(wr),
        "Test accuracy at the last epoch, mean and std": _bars(wr),
        "Accuracy against cost": _costs(wr),
        "Hyperparameters": _hyperparameters(wr),
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"kdschemes: {group if group is not None else 'schemes and methods'}",
        sections=[ws.Section(name=title, panels=panels, is_open=True) for title, panels in sections.items()],
        settings=ws.WorkspaceSettings(max_runs=RUNS_IN_A_PANEL),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("Group") == group) if group is not None else "",
            groupby=[expr.Metric("JobType"), expr.Config("scheme.method")],
            order=[expr.Ordering(expr.Summary("test/top1"), ascending=False)],
            group_colors=dict(COLORS),
            pinned_columns=["run:displayName", "summary:val/top1", "summary:test/top1", "summary:best/test/top1"],
        ),
    )


def checked(workspace: Workspace) -> dict[str, Any]:
    """Return the view to send, after the package's own models have read it back unchanged.

    Raises:
        ValueError: the package does not read back what it wrote.
    """
    from wandb_workspaces.workspaces import internal

    view = workspace._to_model()
    spec = view.spec.model_dump_json(by_alias=True, exclude_none=True)
    again = internal.WorkspaceViewspec.model_validate_json(spec).model_dump_json(by_alias=True, exclude_none=True)
    if again != spec:
        raise ValueError("wandb-workspaces reads the workspace back differently")
    return {"entity": view.entity, "project": view.project, "name": view.display_name, "spec": json.loads(spec)}


def _curves(wr: Any) -> list[Any]:
    """Return validation curves over epochs, averaged over the runs of a scheme, and of a method."""
    return [
        wr.LinePlot(
            title=f"{title} by {key}",
            x="val/epoch",
            y=[f"val/{metric}"],
            title_x="epoch",
            title_y=title,
            smoothing_type="none",
            groupby=by,
            **MEAN_AND_STD,
        )
        for metric, title in (("top1", "validation top-1 %"), ("nll", "validation NLL"))
        for key, by in (("scheme", wr.Metric("JobType")), ("method", wr.Config("scheme.method")))
    ]


def _bars(wr: Any) -> list[Any]:
    return [
        wr.BarPlot(
            title=f"{title} by {key}",
            metrics=[metric],
            title_x=title,
            max_bars_to_show=100,
            groupby=by,
            **MEAN_AND_STD,
        )
        for metric, title, key, by in (
            ("test/top1", "test top-1 %", "scheme", wr.Metric("JobType")),
            ("test/top1", "test top-1 %", "method", wr.Config("scheme.method")),
            ("best/test/top1", "test top-1 % of the best epoch on validation", "method", wr.Config("scheme.method")),
        )
    ]


def _costs(wr: Any) -> list[Any]:
    return [
        wr.ScatterPlot(
            title=f"test top-1 % against {title}",
            x=wr.SummaryMetric(f"cost/{key}"),
            y=wr.SummaryMetric("test/top1"),
            log_x=True,
        )
        for key, title in COSTS.items()
    ]


def _hyperparameters(wr: Any) -> list[Any]:
    """Return the hyperparameters against accuracy on the validation split, on which they should be chosen."""
    columns = [
        wr.ParallelCoordinatesPlotColumn(wr.Config(key), display_name=title, log=key == "optim.lr")
        for key, title in HYPERPARAMETERS.items()
    ]
    accuracy = wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric("val/top1"), display_name="validation top-1 %")
    return [
        wr.ParallelCoordinatesPlot(title="alpha, temperature, learning rate", columns=[*columns, accuracy]),
        wr.ParameterImportancePlot(with_respect_to="val/top1"),
    ]
