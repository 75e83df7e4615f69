"""One report from a checked config."""

import datetime
import logging
from pathlib import Path
from typing import Any

from launch.files import atomic_folder, atomic_write, require_ours, write_json
from launch.provenance import provenance
from launch.report_schema import ReportConfig
from reporting.load import collect
from reporting.rows import Collected
from reporting.tables import NOTE, Table, study_tables, to_markdown

log = logging.getLogger(__name__)
OURS = ("report.html", "tables.md", "figures", "left_out.json", "merges.*", "trains.*")


def report(config: ReportConfig) -> dict[str, Any]:
    """Writes ``<outputs>/reports/<name>/``; with ``watch`` shows a sweep, with ``wandb`` builds a report there, too.

    Raises:
        UserError: the folder cannot be written, or holds what no report writes.
    """
    if config.watch is not None:
        from reporting.watch import watch

        return watch(Path(config.paths.outputs), config.watch, config.refresh)
    if config.wandb:
        from reporting.online import require_online

        assert config.logger.wandb is not None  # checked with the config
        require_online(config.logger.wandb.mode)
    folder = Path(config.paths.outputs) / "reports" / config.name
    require_ours(folder, OURS)
    found = collect([Path(folder).expanduser() for folder in config.folders])
    write_report(found, folder, list(config.formats), config.folders)
    made: dict[str, Any] = {"report": str(folder), "train_rows": len(found.trains), "merge_rows": len(found.merges)}
    log.info(
        "%s: %d train rows, %d merge rows, %d left out", folder, len(found.trains), len(found.merges),
        len(found.left_out),
    )  # fmt: skip
    if config.wandb:
        from reporting.online import publish

        assert config.logger.wandb is not None
        made["urls"] = publish(found, folder, config.logger.wandb.project, config.logger.wandb.entity)
        for url in made["urls"]:
            log.info("W&B: %s", url)
    return made


def write_report(found: Collected, folder: Path, formats: list[str], looked_in: list[str]) -> None:
    """Makes the whole folder anew; an earlier report of the name stays until this one is whole.

    Raises:
        UserError: the folder cannot be written.
    """
    tables = study_tables(found)
    with atomic_folder(folder) as new:
        if "csv" in formats or "parquet" in formats:
            from reporting.frames import write_frames

            write_frames(found, new, [name for name in formats if name in ("csv", "parquet")])
        if "markdown" in formats:
            atomic_write(new / "tables.md", _markdown(tables, found))
        if pictures := [name for name in formats if name in ("png", "svg")]:
            from reporting.figures import write_figures

            write_figures(found, new / "figures", pictures)
        if "html" in formats:
            from reporting.page import build_page

            atomic_write(new / "report.html", build_page(found, tables, looked_in, made_with()))
        left_out = [{"path": path, "reason": reason} for path, reason in found.left_out]
        write_json(new / "left_out.json", left_out)


def made_with() -> dict[str, Any]:
    """When and with which commit the report itself was made."""
    git = provenance()["git"] or {}
    now = datetime.datetime.now().astimezone().isoformat(timespec="minutes")
    return {"time": now, "commit": git.get("commit"), "dirty": git.get("dirty")}


def _markdown(tables: list[Table], found: Collected) -> str:
    text = f"# The study's tables with ours beside\n\n{NOTE}\n\n{to_markdown(tables)}"
    if found.left_out:
        text += "\n## Left out\n\n" + "".join(f"* `{path}`: {reason}\n" for path, reason in found.left_out)
    return text
