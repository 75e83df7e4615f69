"""Collects the rows of run folders and CSV files, and says of everything else why it was left out."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from launch.errors import CommandError, nearest
from launch.labels import lora_settings
from launch.publishing import shortened
from launch.runs import CONFIG, SCHEMA_VERSION
from reporting.curves import read_curves, refinement_curves
from reporting.examples import no_number, read_examples
from reporting.rows import (
    FROZEN,
    MERGE_DEMANDED,
    TRAIN_DEMANDED,
    Collected,
    Row,
    RowError,
    backbone_name,
    control_rows,
    fill_retention,
    head_only_rows,
    joint_rows,
    merge_row,
    merge_rows,
    train_rows,
)


def collect(folders: list[Path]) -> Collected:
    """Reads every ``runs/*/result.json`` of the folders, then every ``*.csv``; a row is taken once.

    Raises:
        CommandError: a folder does not exist.
    """
    found = Collected()
    seen: set[tuple[Any, ...]] = set()
    read: set[Path] = set()
    for folder in folders:
        if folder.is_file():
            raise CommandError(f"folders: {folder} is a file; name its folder, {folder.parent}.")
        if not folder.is_dir():
            siblings = [str(path) for path in folder.parent.glob("*") if path.is_dir()]
            raise CommandError(
                f"folders: there is no folder {folder} (looked in {Path.cwd()}).{nearest(str(folder), siblings)}"
            )
        runs = [folder] if (folder / "result.json").exists() else sorted((folder / "runs").glob("*"))
        for run in runs:
            if run.is_dir() and not run.name.startswith(".") and run.resolve() not in read:
                read.add(run.resolve())
                _add_run(found, run, seen)
    for folder in folders:  # after all runs, which know more of their rows than a table does
        for file in sorted(folder.glob("*.csv")):
            _add_csv(found, file, seen)
    found.merges = list(fill_retention(found.merges, found.trains))
    found.merges += list(control_rows(found.merges))
    _keep_one_each(found)
    return found


def _keep_one_each(found: Collected) -> None:
    """Of one merge of the same adapters the rows with the most images: others are trials, and no further seeds.

    Rows that were made of others, and a table or another merge's rows hold already, are taken once, too: of a control
    the first, since beside another merge the same readout may have had other images.
    """
    merges = [(row, _key("merge", row | {"images": None}), row["images"] or 0) for row in found.merges]
    most: dict[tuple[Any, ...], int] = {}
    for _, key, images in merges:
        most[key] = max(most.get(key, 0), images)
    kept, seen, fewer = [], set(), Counter[str]()
    for row, key, images in merges:
        told = key if row["method"] == FROZEN else (*key, f"{row['score']:.6g}")
        if images < most[key]:
            fewer[found.origins[row["origin"]]["file"]] += 1
        elif told not in seen:
            seen.add(told)
            kept.append(row)
    found.merges = kept
    for file, count in fewer.items():
        found.left_out.append(
            (file, f"{count} rows: the same merges of the same adapters were measured on more images")
        )


def _add_run(found: Collected, run: Path, seen: set[tuple[Any, ...]]) -> None:
    file = run / "result.json"
    try:
        result = json.loads(file.read_text(encoding="utf-8"), parse_constant=no_number)
    except FileNotFoundError:
        found.left_out.append((str(run), _not_done(run)))
        return
    except (OSError, ValueError) as error:
        found.left_out.append((str(file), f"damaged or half-written, no JSON: {_one_line(error)}"))
        return
    if reason := _foreign(result) or _cut_short(run):
        found.left_out.append((str(file), reason))
        return
    origin = _origin(run, result)
    try:
        kind, rows = _rows_of_result(result)
    except (RowError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else _one_line(error)
        found.left_out.append((str(file), f"a {result['what']} result of an unknown layout: {reason}"))
        return
    number = len(found.origins)
    found.origins.append(origin)
    _take(found, rows, kind, number, str(file), seen)
    if kind == "train":
        found.curves += read_curves(run, result, number)
    else:
        found.refinements += refinement_curves(result, number)
    found.examples += [_placed(item, rows) for item in read_examples(run, number, found.left_out)]


def _placed(example: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
    """An example with what its task's first row of the same run says of it, so that filters reach it."""
    row = next((row for row in rows if row["task"] == example["task"]), {})
    names = ("data", "backbone", "set", "method", "realign", "rank", "seed")
    return {**example, **{name: row.get(name) for name in names if example.get(name) is None}}


def _rows_of_result(result: dict[str, Any]) -> tuple[str, list[Row]]:
    """``merge`` or ``train``, which says what the rows are, and the rows."""
    if result["what"] == "merge":
        return "merge", [row for item in result["rows"] for row in merge_rows(item)]
    if "tasks" in result:
        return "merge", list(joint_rows(result))
    if result.get("features") == "deep":
        return "merge", list(head_only_rows(result))
    row = {
        "data": result["data"]["name"], "backbone": backbone_name(result["backbone"]), "task": result["task"]["name"],
        "rank": result["lora"]["rank"], "lora": lora_settings(result["lora"]), "seed": result["seed"],
        "metric": result["metric"], "score": result["score"],
        "epochs": result.get("epochs"), "seconds": (result.get("seconds") or {}).get("fit"),
    }  # fmt: skip
    return "train", list(train_rows(result["metrics"] | row))


def _foreign(result: Any) -> str | None:
    """Why a parsed ``result.json`` holds nothing for a report; None when it does."""
    if not isinstance(result, dict) or "what" not in result:
        return "foreign: not a result of ours (it has no `what`)"
    version = result.get("schema_version")
    if version is not None and not isinstance(version, int):
        return f"foreign: schema_version is {version!r}, no number"
    if version is None or version < SCHEMA_VERSION:
        return (
            f"old schema {version}, this version reads {SCHEMA_VERSION}: run its command again with resume=restart "
            "(it is in status.json beside it)"
        )
    if version > SCHEMA_VERSION:
        return f"schema {version} is of a newer version of this project, which reads {SCHEMA_VERSION}: update"
    if result["what"] not in ("train", "merge"):
        return f"a {result['what']} run holds no scores"
    if result.get("split", "test") != "test":
        return f"scored on the {result['split']} split; a report holds test scores"
    rows = result.get("rows")
    if isinstance(rows, list) and rows and all(isinstance(row, dict) and "score" not in row for row in rows):
        return "advice: predictions without measured scores"
    return None


def _cut_short(run: Path) -> str | None:
    """What of the data a training left out; it is none of the seeds that a mean is of."""
    try:
        config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        cut = shortened(config.get("trainer") or {})
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return None
    return f"cut short by {', '.join(cut)}" if cut else None


def _not_done(run: Path) -> str:
    """Why a run folder has no result."""
    try:
        status = json.loads((run / "status.json").read_text(encoding="utf-8"))
        state, command = status["state"], " ".join(status["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return "foreign or half-written: neither result.json nor a readable status.json"
    error = f" ({str(status.get('error')).splitlines()[0]})" if status.get("error") else ""
    if state == "running":
        return f"not done: running since {status.get('started')}, or killed; again: {command}"
    return f"not done: {state}{error}; again: {command}"


def _add_csv(found: Collected, file: Path, seen: set[tuple[Any, ...]]) -> None:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            columns, lines = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        found.left_out.append((str(file), f"cannot be read as CSV: {_one_line(error)}"))
        return
    kind = "merge" if {"set", "method"} <= set(columns) else "train"
    demanded = MERGE_DEMANDED if kind == "merge" else TRAIN_DEMANDED
    if absent := [name for name in demanded if name not in columns]:
        found.left_out.append((str(file), f"foreign: a CSV without the columns {', '.join(absent)}"))
        return
    number = len(found.origins)
    found.origins.append({"file": str(file), "kind": "csv"})
    rows: list[Row] = []
    bad: list[str] = []
    for place, line in enumerate(lines, start=2):
        try:
            given = {name: value for name, value in line.items() if name}
            rows += [merge_row(given)] if kind == "merge" else train_rows(given)
        except RowError as error:
            bad.append(f"line {place}: {error}")
    if bad:
        more = f" (and {len(bad) - 3} more)" if len(bad) > 3 else ""
        found.left_out.append((str(file), f"{len(bad)} of {len(lines)} lines: {'; '.join(bad[:3])}{more}"))
    _take(found, rows, kind, number, str(file), seen)


def _take(found: Collected, rows: list[Row], kind: str, origin: int, file: str, seen: set[tuple[Any, ...]]) -> None:
    """Adds rows, except those that an earlier source holds with the same score (to what a CSV keeps of it)."""
    target = found.merges if kind == "merge" else found.trains
    mine: set[tuple[Any, ...]] = set()
    again = 0
    for row in rows:
        key = (*_key(kind, row), f"{row['score']:.6g}")
        if key in seen:
            again += 1
            continue
        mine.add(key)
        target.append({**row, "origin": origin})
    seen |= mine
    if again:
        found.left_out.append((file, f"{again} of {len(rows)} rows are in an earlier source with the same score"))


def _key(kind: str, row: Row) -> tuple[Any, ...]:
    names = ["data", "backbone", "task", "rank", "lora", "seed", "metric"]
    if kind == "merge":
        names += ["set", "method", "realign", "images"]
    return (kind, *(row.get(name) for name in names))


def _origin(run: Path, result: dict[str, Any]) -> dict[str, Any]:
    git = result.get("git") or {}
    commits = result.get("commits") or [git.get("commit")]  # several where other code had begun the run
    origin = {
        "file": str(run / "result.json"), "kind": result["what"], "run": result.get("run"), "hash": result.get("hash"),
        "seed": result.get("seed"), "commit": ", ".join(filter(None, commits)) or None, "dirty": git.get("dirty"),
        "started": result.get("started"), "ended": result.get("ended"), "versions": result.get("versions"),
        "python": result.get("python"), "platform": result.get("platform"),
        "data_fingerprint": _inside(result.get("data"), "fingerprint"),
        "backbone_fingerprint": _inside(result.get("backbone"), "fingerprint"),
    }  # fmt: skip
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        config = None
    origin["config"] = dict(_flat(config)) if isinstance(config, dict) else None
    return {name: value for name, value in origin.items() if value is not None}


def _inside(section: Any, key: str) -> Any:
    return section.get(key) if isinstance(section, dict) else None


def _flat(node: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys of a nested mapping; what is no JSON (infinity, a date) as text."""
    items: list[tuple[str, Any]] = []
    for key, value in node.items():
        if isinstance(value, dict) and value:
            items += _flat(value, f"{prefix}{key}.")
        else:
            items.append((f"{prefix}{key}", _as_json(value)))
    return items


def _as_json(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value


def _one_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
