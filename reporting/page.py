"""One HTML file that needs nothing else: rows as JSON, figures drawn from them by the scripts in ``assets/``.

Hand-written instead of a plotting library's bundle: Plotly's alone is 4.6 MB, this is 50 kB, and every mark can open
the runs behind it.
"""

import html
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reporting.rows import (
    CONTROLS,
    MERGE_COLUMNS,
    MERGE_FURTHER,
    STUDY_METHOD,
    TRAIN_COLUMNS,
    Collected,
    Row,
    higher_is_better,
    primary_metrics,
)
from reporting.summaries import best_merge, own_metric
from reporting.tables import NOTE, Cell, Table

ASSETS = Path(__file__).with_name("assets")
SCRIPTS = ("base.js", "charts.js", "figures.js", "controls.js")
ROOM = {"curves": ("task", 400), "refinements": ("set", 400), "examples": ("task", 48)}  # keeps the page below 5 MB
ORIGIN_COLUMNS = ("run", "hash", "commit", "data_fingerprint", "backbone_fingerprint")  # of rows in CSV files
FIRST_STEPS = (
    ("Draw small stand-ins for the datasets and train on them, in minutes, without a GPU", "make demo"),
    ("Train one adapter", "python train.py task=galaxy lora.rank=16"),
    ("Train all tasks at the study's ranks", "python train.py -m experiment=table1"),
    ("Merge what was trained, two by two", "python merge.py -m sweep=pairs merge=cat lora.rank=16"),
    ("Make this page again", "python report.py"),
)


def build_page(found: Collected, tables: list[Table], looked_in: list[str], made: dict[str, Any]) -> str:
    """The whole page.

    Args:
        looked_in: folders that were read, for the page without rows.
        made: ``time``, ``commit`` and ``dirty`` of the report itself.
    """
    parts = {
        "css": _asset("page.css"),
        "made": _made(made, looked_in),
        "start": _start(looked_in) if found.empty else "",
        "tiles": _tiles(found),
        "study": f'<p class="caption">{html.escape(NOTE)}</p>' + "\n".join(_table(table) for table in tables),
        "left_out": _left_out([*found.left_out, *_cut(found)]),
        "data": _json(payload(found)),
        "script": "\n".join(_asset(name) for name in SCRIPTS),
    }
    page = _asset("page.html")
    pieces = page.split("[[")  # one pass: what is put in is never looked at again
    return pieces[0] + "".join(parts[name] + rest for name, rest in (piece.split("]]", 1) for piece in pieces[1:]))


def payload(found: Collected) -> dict[str, Any]:
    """What the scripts are given. Configs are stored as what differs from the commonest values (``config``)."""
    merge_columns = (*MERGE_COLUMNS, "tasks", "origin", *MERGE_FURTHER, *ORIGIN_COLUMNS)
    train_columns = (*TRAIN_COLUMNS, "origin", *ORIGIN_COLUMNS)
    base, origins = _short_configs(found.origins)
    return {
        "merges": _columns(found.merges, merge_columns),
        "trains": _columns(found.trains, train_columns),
        "origins": origins,
        "config": base,
        **{kind: _in_turn(getattr(found, kind), key, room) for kind, (key, room) in ROOM.items()},
        "primary": primary_metrics(found),
        "higher": {row["metric"]: higher_is_better(row["metric"]) for row in [*found.trains, *found.merges]},
        "studyMethod": STUDY_METHOD,
        "controls": CONTROLS,
    }


def _in_turn(items: list[dict[str, Any]], key: str, room: int) -> list[dict[str, Any]]:
    """``room`` of the items in their own order: the first of each value of ``key``, then the second of each."""
    earlier: Counter[str] = Counter()
    turns = []
    for place, item in enumerate(items):
        turns.append((earlier[item[key]], place))
        earlier[item[key]] += 1
    return [items[place] for place in sorted(place for _, place in sorted(turns)[:room])]


def _cut(found: Collected) -> list[tuple[str, str]]:
    """What the page has no room for, told as ``Collected.left_out`` tells it."""
    counts = [(kind, key, room, len(getattr(found, kind))) for kind, (key, room) in ROOM.items()]
    return [
        ("report.html", f"{number - room} of {number} {kind}: the page has room for {room}, each {key}'s in turn")
        for kind, key, room, number in counts
        if number > room
    ]


def _columns(rows: list[Row], wanted: Iterable[str]) -> dict[str, Any]:
    columns = [name for name in wanted if any(row.get(name) is not None for row in rows) or name in MERGE_COLUMNS]
    return {"columns": columns, "rows": [[_short(row.get(name)) for name in columns] for row in rows]}


def _short(value: Any) -> Any:
    return float(f"{value:.12g}") if isinstance(value, float) else value


def _short_configs(origins: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The commonest value of each key, and each origin with only what differs and what it lacks."""
    counts: dict[str, Counter[str]] = {}
    configs = [origin["config"] for origin in origins if origin.get("config")]
    for config in configs:
        for key, value in config.items():
            counts.setdefault(key, Counter())[json.dumps(value, sort_keys=True, default=str)] += 1
    base = {key: json.loads(counter.most_common(1)[0][0]) for key, counter in counts.items()}
    short = []
    for origin in origins:
        if not (config := origin.get("config")):
            short.append(origin)
            continue
        differs = {key: value for key, value in config.items() if value != base[key]}
        short.append({**origin, "config": differs, "without": [key for key in base if key not in config]})
    return base, short


def _tiles(found: Collected) -> str:
    if found.empty:
        return ""
    tiles = [
        (str(sum(row["primary"] for row in found.trains)), "adapters and heads trained"),
        (str(len({_merge_of(row) for row in found.merges})), "merges scored"),
        (str(len({row["task"] for row in [*found.trains, *found.merges]})), "tasks"),
    ]
    if best := best_merge(own_metric(found)):
        name, mean, merges, sets = best
        told = f"keeps most on average of {merges} merges measured on the same {sets} sets"
        tiles.append((name, f"{told}: {mean.mean:.3f} of {mean.number} rows"))
    boxes = "".join(
        f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(text)}</span></div>' for value, text in tiles
    )
    data: dict[str, set[str]] = {}
    for row in [*found.trains, *found.merges]:
        data.setdefault(row["backbone"], set()).add(row["data"])
    named = "; ".join(f"{backbone} on {', '.join(sorted(names))}" for backbone, names in sorted(data.items()))
    return f'<div class="tiles">{boxes}</div><p class="caption">{html.escape(named)}</p>'


def _merge_of(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("backbone", "set", "method", "realign", "rank", "seed", "lora"))


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.headings)
    lines = []
    for row in table.rows:
        cells = zip(table.headings, row, strict=True)
        lines.append("<tr>" + "".join(_cell(f"Table {table.name}, {row[0].text}", name, cell) for name, cell in cells))
    notes = "".join(f'<p class="caption">{html.escape(note)}</p>' for note in table.notes)
    title = html.escape(f"Table {table.name}. {table.title}")
    is_open = " open" if any(cell.rows for row in table.rows for cell in row) else ""
    return (
        f'<details class="table" id="table-{table.name}"{is_open}><summary>{title}</summary>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
        f"{notes}</details>"
    )


def _cell(title: str, heading: str, cell: Cell) -> str:
    text = html.escape(cell.text)
    if not cell.rows:
        kind = ' class="study"' if "study" in heading or "ours" in heading else ""
        return f"<td{kind}>{text}</td>"
    places = " ".join(map(str, cell.rows))
    label = html.escape(f"{title}: {cell.text}", quote=True)
    return (
        f'<td class="ours"><button type="button" data-kind="{cell.kind}" data-rows="{places}" data-title="{label}">'
        f"{text}</button></td>"
    )


def _left_out(left_out: list[tuple[str, str]]) -> str:
    if not left_out:
        return '<p class="caption">Nothing: everything that was found is on this page.</p>'
    lines = "".join(
        f"<tr><td><code>{html.escape(path)}</code></td><td>{html.escape(why)}</td></tr>" for path, why in left_out
    )
    head = "<thead><tr><th>file</th><th>why</th></tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{lines}</tbody></table></div>'


def _start(looked_in: list[str]) -> str:
    steps = "".join(f"<p>{html.escape(text)}:</p><pre>{html.escape(command)}</pre>" for text, command in FIRST_STEPS)
    folders = html.escape(", ".join(looked_in))
    text = f"<h2>Nothing was measured yet</h2><p>No finished run lies in {folders}. First:</p>{steps}"
    return f'<section class="start">{text}</section>'


def _made(made: dict[str, Any], looked_in: list[str]) -> str:
    commit = ""
    if made["commit"]:
        commit = f", commit {made['commit'][:10]}" + (" with changes" if made.get("dirty") else "")
    return html.escape(f"{made['time']}{commit}; from {', '.join(looked_in)}")


def _json(content: Any) -> str:
    """JSON that cannot end its script element."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=str)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
