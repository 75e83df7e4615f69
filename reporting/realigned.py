"""Tables of merges and readouts in Markdown: all of them, what users choose from, and targets missed."""

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from reporting.rows import STUDY_METHOD, Collected, Row
from reporting.tables import NONE

REALIGNS = ("none", "linear", "deep", "head")  # the columns raw, linear, deep and head
_TIMED = ("deep", "head", "linear", "none")  # whose seconds are told: the first that was measured
_COLUMNS = "raw | linear | deep | head |"
SUMMARY, TARGETS = "| set | rank | `", "| tasks | rank | merge | target |"  # how the lines of headings start
HEAD = f"| set | rank | merge | seeds | images | seconds | {_COLUMNS}"


def merges_of(found: Collected, tasks: Iterable[str]) -> list[Row]:
    """Merges of these tasks alone."""
    known = set(tasks)
    return [row for row in found.merges if set(row["set"].split("+")) <= known]


def kinds_of_sets(
    stands_for: Mapping[str, str], sizes: Iterable[int]
) -> dict[str, tuple[int, Callable[[Iterable[str]], bool]]]:
    """What tables keep apart: the size of a set, and whether a set of that size belongs. No set is of two kinds.

    Triples with both of the study's dissimilar domains are the ones that it merges; the others are harder.

    Args:
        stands_for: the study's task to ours.
        sizes: of sets; those above the number of tasks have kinds of their own.
    """
    both = {stands_for["firerisk"], stands_for["galaxy"]}
    tasks = set(stands_for.values())
    beyond = sorted(size for size in set(sizes) if size > len(tasks))
    return {
        "pairs": (2, lambda names: True),
        f"triples with {' + '.join(sorted(both))}": (3, lambda names: both <= set(names)),
        "other triples": (3, lambda names: not both <= set(names)),
        "all six in one": (6, lambda names: True),
        **{f"all {size} in one": (size, tasks.issubset) for size in beyond},
        "one task": (1, lambda names: True),
    }


def realigned_markdown(found: Collected, stands_for: Mapping[str, str]) -> str:
    """Every merge, raw and after each readout, over the same sets: mean and lowest retention, and who lost.

    Args:
        stands_for: the study's task to ours.
    """
    told = [
        "# What merging keeps, with and without realigned heads",
        "Mean / lowest retention over all members of all sets of the named kind and all seeds. In brackets, of the "
        "members whose 95 % interval is known, how many lost something that the test set can show. Where not all sets "
        "were measured, the number of members stands behind the method; cells may hold fewer, and count them. `frozen` "
        "is the control: the same readout on the bare backbone. Images (unlabeled, per task) are those of the deep "
        "readout (behind a comma those of `head`, if others), and seeds with more of them or with `head` have "
        "their own line; seconds are the median of what a set took with the deep readout, of one core of a machine "
        "that did other work, too.",
    ]
    for backbone in sorted({row["backbone"] for row in found.merges}):
        lines = [HEAD, "|---|---|---|---|---|---|---|---|---|---|"]
        differences = [f"| set | rank | merge | {_COLUMNS}", "|---|---|---|---|---|---|---|"]
        for start, some, there in _by_kind(found, stands_for, backbone):
            lines += _realigned_lines(start, some, there)
            differences += _difference_lines(start, some)
        if len(lines) == 2:
            continue
        told += [
            f"## `{backbone}`", "\n".join(lines), f"### Against `{STUDY_METHOD}`",
            f"Mean difference of retention to `{STUDY_METHOD}` with the same readout, over the members that both were "
            "measured on, and its 95 % interval: sets drawn anew with all their seeds, since seeds share their test "
            "images (tasks, where there is one set).",
            "\n".join(differences),
        ]  # fmt: skip
    return "\n\n".join(told) + "\n"


def summary_markdown(found: Collected, stands_for: Mapping[str, str], ways: Sequence[tuple[str, str]]) -> str:
    """A line for each kind of set and rank, a column for each way to merge: what users choose from.

    Mean and lowest retention, and who lost, over all members and seeds that a way was measured on; merges as their yaml
    ships them or, where that was measured on more members, with other settings. Of adapters trained by default.

    Args:
        stands_for: the study's task to ours.
        ways: merge and realignment; a line is left out where none but one of them was measured.
    """
    names = [f"`{merge}` {_short(realign)}" for merge, realign in ways]
    lines = [f"| set | rank | {' | '.join(names)} |", "|---" * (len(ways) + 2) + "|"]
    for backbone in sorted({row["backbone"] for row in found.merges}):
        for start, some, _ in _by_kind(found, stands_for, backbone):
            plain = [row for row in some if not row.get("lora")]
            cells = [_kept(_most_measured(plain, merge, realign)) for merge, realign in ways]
            if len(cells) - cells.count(NONE) > 1:
                lines.append(f"{start} | {' | '.join(cells)} |")
    return "\n".join(lines)


def targets_markdown(
    found: Collected,
    stands_for: Mapping[str, str],
    ways: Sequence[tuple[str, str]],
    targets: Mapping[str, Mapping[int, float]],
) -> str:
    """How many members of all sets of a size miss a target, and how many the test set shows to miss it.

    Members are those whose 95 % interval is known, of adapters trained by default, all seeds.

    Args:
        stands_for: the study's task to ours.
        ways: merge and realignment.
        targets: the retention that each member should keep, by merge ("": of all others) and size of the set.
    """
    lines = [f"{TARGETS} members | below it | interval below it | of which |", "|---" * 8 + "|"]
    for backbone in sorted({row["backbone"] for row in found.merges}):
        by_size: dict[tuple[int, int], list[Row]] = {}
        for _, some, _ in _by_kind(found, stands_for, backbone):
            for row in some:
                if not row.get("lora") and row.get("retention_high") is not None:
                    by_size.setdefault((row["tasks"], row["rank"]), []).append(row)
        for (size, rank), rows in sorted(by_size.items()):
            for merge, realign in sorted(ways):
                own = _most_measured(rows, merge, realign)
                target = targets.get(merge, targets[""]).get(size)
                if own and target is not None:
                    missed = sorted(row["task"] for row in own if row["retention_high"] < target)
                    named = ", ".join(f"{task} {missed.count(task)}" for task in dict.fromkeys(missed))
                    lines.append(
                        f"| {size} | {rank} | `{merge}` {_short(realign)} | {target} | {len(own)} | "
                        f"{sum(row['retention'] < target for row in own)} | {len(missed)} | {named or NONE} |"
                    )
    return "\n".join(lines)


def with_table(page: str, start: str, table: str) -> str:
    """A page with the table whose headings begin with ``start`` made anew."""
    before, _, rest = page.partition(start)
    _, blank, after = rest.partition("\n\n")
    return before + table + blank + after


def _by_kind(found: Collected, stands_for: Mapping[str, str], backbone: str) -> Iterator[tuple[str, list[Row], int]]:
    """For each kind of set and rank the start of its lines, its rows, and how many members all such sets have."""
    tasks = set(stands_for.values())
    larger = {row["task"] for row in found.merges if tasks < set(row["set"].split("+"))}
    rows = [
        row
        for row in merges_of(found, tasks | larger)
        if row["retention"] is not None and (row["tasks"] > len(tasks) or tasks.issuperset(row["set"].split("+")))
    ]
    for kind, (size, belongs) in kinds_of_sets(stands_for, {row["tasks"] for row in rows}).items():
        drawn_from = sorted(tasks) if size <= len(tasks) else sorted(tasks | larger)
        there = sum(belongs(names) for names in itertools.combinations(drawn_from, size)) * size
        own = [
            row
            for row in rows
            if (row["backbone"], row["tasks"]) == (backbone, size) and belongs(row["set"].split("+"))
        ]
        for rank in sorted({row["rank"] for row in own}):
            yield f"| {kind} | {rank}", [row for row in own if row["rank"] == rank], there


def _short(realign: str) -> str:
    return "raw" if realign == "none" else realign


def _most_measured(rows: Iterable[Row], merge: str, realign: str) -> list[Row]:
    """Of one merge's settings those that most members were measured with; of several, the shortest named."""
    by_settings: dict[str, list[Row]] = {}
    for row in rows:
        if row["realign"] == realign and row["method"].partition("(")[0] == merge:
            by_settings.setdefault(row["method"], []).append(row)
    return max((by_settings[name] for name in sorted(by_settings, key=len)), key=len, default=[])


def with_lines(page: str, table: str, methods: Iterable[str]) -> str:
    """A page with its table of merges made anew of the lines of ``table`` that tell of these methods, however set.

    Merges of adapters that were trained otherwise than by default stay out.

    Args:
        page: Markdown that holds a table headed as ``realigned_markdown``'s of one backbone.
    """
    lines = table[table.index(HEAD) :].partition("\n\n")[0].splitlines()
    named = [f" `{name}{end}" for name in methods for end in ("` |", "` (", "(")]
    kept = lines[:2] + [line for line in lines[2:] if any(name in line for name in named) and "` of " not in line]
    before, _, rest = page.partition(HEAD)
    _, blank, after = rest.partition("\n\n")
    return before + "\n".join(kept) + blank + after


def _realigned_lines(start: str, rows: Sequence[Row], there: int) -> list[str]:
    """A line for each method and number of images, the best first; those with a readout above the others."""
    lines = []
    for method in {_name(row) for row in rows}:
        for (images, for_heads), own in _by_images([row for row in rows if _name(row) == method]).items():
            cells, best, counts = [], (False, 0.0), set()
            for realign in REALIGNS:
                some = [row for row in own if row["realign"] == realign]
                cells.append(_kept(some))
                if some:
                    best = (realign != "none", statistics.fmean(row["retention"] for row in some))
                    counts.add(len(some))
            timed = [row for row in own if row["realign"] == _timed(own)]
            seconds = [row["seconds"] for row in timed if row["seconds"] is not None]
            seeds = sorted({row["seed"] for row in own})
            told = f"{images}, {for_heads}" if for_heads not in (0, images) else images
            some_only = "" if max(counts) == there * len(seeds) else f" ({max(counts)} of {there * len(seeds)})"
            text = (
                f"{start} | {method}{some_only} | {' '.join(map(str, seeds))} | {told or NONE} | "
                f"{f'{statistics.median(seconds):.3g}' if seconds else NONE} | {' | '.join(cells)} |"
            )
            lines.append((not best[0], -best[1], text))
    return [text for *_, text in sorted(lines)]


def _by_images(rows: Sequence[Row]) -> dict[tuple[int, int], list[Row]]:
    """One method's rows by the images that readouts and whole heads had (0: no whole head).

    So all columns of a line are of the same seeds. Those without any readout go where there were most images.
    """
    most: dict[int, tuple[int, int]] = {}
    for seed in {row["seed"] for row in rows}:
        own = [row for row in rows if row["seed"] == seed]
        if (timed := _timed(own)) != "none":
            images = [
                max((r["images"] or 0 for r in own if r["realign"] == kind), default=0) for kind in (timed, "head")
            ]
            most[seed] = (images[0], images[1])
    top = max(most.values()) if most else (max(row["images"] or 0 for row in rows), 0)
    found: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        found.setdefault(most.get(row["seed"], top), []).append(row)
    return found


def _timed(rows: Sequence[Row]) -> str:
    return next(realign for realign in _TIMED if any(row["realign"] == realign for row in rows))


def _name(row: Row) -> str:
    """The merge and, where they were trained otherwise than by default, its adapters."""
    return f"`{row['method']}`" + (f" of {row['lora']}" if row.get("lora") else "")


def _difference_lines(start: str, rows: Sequence[Row]) -> list[str]:
    """A line for each method but ``cat``, the best first; those with a readout above the others."""

    def by_member(method: str, realign: str) -> dict[tuple[str, int, str], float]:
        some = [row for row in rows if (_name(row), row["realign"]) == (method, realign)]
        return {(row["set"], row["seed"], row["task"]): row["retention"] for row in some}

    sums = {realign: by_member(f"`{STUDY_METHOD}`", realign) for realign in REALIGNS}
    lines = []
    for method in {_name(row) for row in rows} - {f"`{STUDY_METHOD}`"}:
        cells, best = [], (False, 0.0)
        for realign in REALIGNS:
            own = by_member(method, realign)
            both = sorted(own.keys() & sums[realign].keys())
            values = [own[key] - sums[realign][key] for key in both]
            cells.append(_difference([(name, task) for name, _, task in both], values))
            if both:
                best = (realign != "none", statistics.fmean(values))
        if set(cells) != {NONE}:
            lines.append((not best[0], -best[1], f"{start} | {method} | {' | '.join(cells)} |"))
    return [text for *_, text in sorted(lines)]


def _difference(members: Sequence[tuple[str, str]], values: Sequence[float], rounds: int = 2000) -> str:
    """Mean and the 95 % interval of a bootstrap that draws whole sets, or tasks where all are of one set.

    Args:
        members: set and task of each value; seeds repeat them.
    """
    if not values:
        return NONE
    units = [name for name, _ in members]
    if len(set(units)) == 1:
        units = [task for _, task in members]
    place = {unit: index for index, unit in enumerate(dict.fromkeys(units))}
    rows = np.array([place[unit] for unit in units])
    sums, counts = np.bincount(rows, values), np.bincount(rows)
    drawn = np.random.default_rng(0).integers(len(place), size=(rounds, len(place)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return f"{statistics.fmean(values):+.3f} ({low:+.3f} to {high:+.3f})"


def _kept(rows: Sequence[Row]) -> str:
    if not rows:
        return NONE
    kept = [row["retention"] for row in rows]
    known = [row for row in rows if row.get("retention_high") is not None]
    lost = f" ({sum(row['retention_high'] < 1 for row in known)} of {len(known)})" if known else ""
    return f"{statistics.fmean(kept):.3f} / {min(kept):.2f}{lost}"
