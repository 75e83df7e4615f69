"""The report in Weights & Biases: a run that holds its tables and figures, a workspace and a report built by code.

The panels are those of the page, examples aside, which each run has itself. W&B draws curves and scatter plots from
the runs; it has no heatmap, so those are pictures.
"""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

from launch.account import logged_in, wandb_mode
from launch.errors import UserError
from reporting.frames import frame
from reporting.rows import MERGE_COLUMNS, MERGE_FURTHER, TRAIN_COLUMNS, Collected, Row, method_label, primary_metrics
from reporting.summaries import best_merge, is_control, means, own_metric

NEEDED = "pip install -e '.[wandb]'"
FIGURES = {
    "Retention": ("methods", "pairs"),
    "More tasks, other ranks": ("tasks", "ranks"),
    "Cost": ("cost",),
    "Refinement": ("refinement",),
    "Advisor": ("advisor",),
}


def require_online(mode: str) -> None:
    """Checks everything that can be checked without the server.

    Raises:
        UserError: W&B is set to offline, nobody is logged in, or wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2  # noqa: F401
    except ImportError as error:
        raise UserError(f"wandb=true: the package wandb-workspaces is not installed; {NEEDED}.") from error
    chosen = wandb_mode(mode)
    if chosen == "online" and logged_in():
        return
    why = "nobody is logged in" if not logged_in() else f"the mode is {chosen} (WANDB_MODE or logger.wandb.mode)"
    raise UserError(
        f"wandb=true: workspaces and reports live on the W&B server, and {why}. Log in with `wandb login` and upload "
        "offline runs with `wandb sync outputs/runs/*/wandb/offline-run-*`; without an account `python report.py` "
        "makes the same page on disk."
    )


def publish(found: Collected, folder: Path, project: str, entity: str | None) -> list[str]:
    """Logs the report's tables and figures, then builds workspace and report; returns their addresses.

    Raises:
        UserError: the server refused; says what it said.
    """
    import wandb

    try:
        run = wandb.init(
            project=project, entity=entity, name=f"report-{folder.name}", job_type="report", dir=str(folder)
        )
        entity, exit_code = run.entity, 1
        try:
            log_report(found, folder, run)
            exit_code = 0
        finally:
            run.finish(exit_code=exit_code)
        space = build_workspace(found, project, entity)
        space.save()
        page = build_report(found, project, entity)
        page.save()
    except (wandb.errors.Error, ValueError) as error:
        raise UserError(
            f"W&B refused: {error}. May you write to project {project}? The page on disk is whole: {folder}"
        ) from error
    return [space.url, page.url]


def log_report(found: Collected, folder: Path, run: Any) -> None:
    """Rows as tables, figures as pictures, means as summary, into an open W&B run (an offline one, too)."""
    import wandb

    further = tuple(name for name in MERGE_FURTHER if any(row.get(name) is not None for row in found.merges))
    logged: dict[str, Any] = {}
    for name, rows, columns in (
        ("merges", found.merges, (*MERGE_COLUMNS, *further)),
        ("trains", found.trains, TRAIN_COLUMNS),
    ):
        if rows:
            table = frame(rows, columns, found.origins).astype(object)
            logged[name] = wandb.Table(dataframe=table.where(table.notna(), None))
    for file in sorted((folder / "figures").glob("*.png")):
        logged[f"figures/{file.stem}"] = wandb.Image(str(file))
    if (folder / "report.html").exists():
        logged["page"] = wandb.Html(str(folder / "report.html"))
    if logged:
        run.log(logged)
    kept = own_metric(found)
    summary = {f"retention/{name}": mean.mean for name, mean in means(kept, method_label).items()}
    if summary:
        if best := best_merge(kept):
            summary["retention/best"] = best[1].mean
        elif merged := means((row for row in kept if not is_control(row)), method_label):  # none measured alike
            summary["retention/best"] = max(mean.mean for mean in merged.values())
    run.summary.update(summary | alone_means(found))


def alone_means(found: Collected) -> dict[str, float]:
    """Mean test score over seeds of adapters that were trained alike, in each task's own metric.

    Plain ones are ``alone/<task>/r<rank>``. Behind it, in brackets, stands what else tells them apart: data and
    backbone where the task was trained on several, and ``lora`` where it is not the default one:
    ``alone/galaxy/r16 (galaxy10, max_norm=0.1)``. Of trainings of one seed, which differ in something else, no mean is
    told.
    """
    primary = primary_metrics(found)
    alone = [row for row in found.trains if row["metric"] == primary[row["task"]]]
    kinds: dict[tuple[str, str], set[str]] = {}
    for row, name in itertools.product(alone, ("data", "backbone")):
        kinds.setdefault((row["task"], name), set()).add(row[name])

    def key(row: Row) -> str:
        told = [row[name] for name in ("data", "backbone") if len(kinds[row["task"], name]) > 1]
        told += [row["lora"]] if row["lora"] else []
        return f"alone/{row['task']}/r{row['rank']}" + (f" ({', '.join(told)})" if told else "")

    seeds = Counter((key(row), row["seed"]) for row in alone)
    settings = {name for (name, _), count in seeds.items() if count > 1}
    return {name: mean.mean for name, mean in means(alone, key, "score").items() if name not in settings}


def sections(found: Collected) -> dict[str, list[Any]]:
    """The panels by heading, the same in workspace and report; headings without rows are left out."""
    import wandb_workspaces.reports.v2 as wr

    place: dict[str, list[Any]] = {}
    if kept := own_metric(found):
        measured = {
            "Refinement": bool(found.refinements),
            "Advisor": any(row.get("predicted") is not None for row in kept),
        }
        for heading, names in FIGURES.items():
            if not measured.get(heading, True):
                continue
            place[heading] = [wr.MediaBrowser(title=name, media_keys=[f"figures/{name}"]) for name in names]
        place["Retention"].insert(
            0, wr.ScalarChart(title="best mean retention", metric=wr.SummaryMetric("retention/best"))
        )
    if found.trains:
        tasks = sorted({(row["task"], row["metric"]) for row in found.trains if row["primary"]})
        place["Training"] = [
            wr.LinePlot(title=f"{task}, {metric}", x="epoch", y=[f"val/{task}/{metric}"]) for task, metric in tasks
        ]
        place["Rank of the adapters alone"] = [
            wr.ScatterPlot(
                title=f"{task}, {metric}", x=wr.Config("lora.rank"), y=wr.SummaryMetric(f"test/{task}/{metric}")
            )
            for task, metric in tasks
        ]
    tables = [name for name, rows in (("merges", found.merges), ("trains", found.trains)) if rows]
    if tables:
        place["Every number"] = [wr.WeavePanelSummaryTable(table_name=name) for name in tables]
    return place


def build_workspace(found: Collected, project: str, entity: str) -> Any:
    """An unsaved workspace with a section per heading."""
    import wandb_workspaces.workspaces as ws

    parts = [ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections(found).items()]
    return ws.Workspace(entity=entity, project=project, name="lora-alloy results", sections=parts)


def build_report(found: Collected, project: str, entity: str) -> Any:
    """An unsaved report: the same panels under headings, and how the numbers are to be read."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [
        wr.TableOfContents(),
        wr.P("Retention 1.00: as good merged as alone. Scores on the test sets, means over seeds."),
    ]
    for heading, panels in sections(found).items():
        kind = "train" if heading in ("Training", "Rank of the adapters alone") else "report"
        runs = wr.Runset(entity=entity, project=project, name=kind, filters=f"JobType = '{kind}'")
        blocks += [wr.H2(heading), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(project=project, entity=entity, title="lora-alloy: results", blocks=blocks, width="fluid")
