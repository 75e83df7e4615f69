"""What ``merge.py`` may be told: which adapters, which sets of them, how they are merged and judged."""

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from launch import checks
from launch.errors import nearest
from launch.labels import digest, merge_settings, shipped_merges
from launch.schema import Check, Device, Logger, Name, Paths, Strict, Text
from launch.signature import Argument, function_arguments, requirements

GIVEN = ("deltas", "grams", "bench")  # arguments that a merge gets from us
Realign = Literal["none", "linear", "deep", "head"]
Tasks = Annotated[list[Name], Field(min_length=1)]


def method_file(target: str, root: Path = checks.ROOT) -> tuple[Path | None, str]:
    """The module file and function name of ``merging.module.function``; None for another package's."""
    module, _, name = target.rpartition(".")
    parts = module.split(".")
    if len(parts) != 2 or parts[0] != "merging" or not all(part.isidentifier() for part in [*parts, name]):
        return None, name
    return root.joinpath(*parts).with_suffix(".py"), name


def _method(merge: dict[str, Any]) -> Iterator[str]:
    target = merge.get("_target_")
    file, name = method_file(str(target))
    signature = function_arguments(file, name) if file is not None and file.is_file() else None
    if file is None or signature is None or "deltas" not in signature:
        yield f"merge._target_={target}: no such merge of ours. Choose one with merge=cat, gram, ..."
        return
    own = {key: value for key, value in signature.items() if key not in GIVEN}
    required = {key: (holds, told) for key, holds, told in requirements(file, name)}
    for key, value in merge.items():
        if key in ("_target_", "_partial_"):
            continue
        if key not in own:
            hint = nearest(key, own) or f" Known: {checks.known(own)}."
            yield f"merge.{key}={checks.show(value)}: unknown argument of {name}.{hint}"
        elif key == "weights":
            yield from _weights(value)
        elif not _allows(own[key], value):
            yield f"merge.{key}={checks.show(value)}: must be {own[key].wanted() or 'something else'}."
        elif key in required and not required[key][0](value):
            yield f"merge.{key}={checks.show(value)}: must be {required[key][1]}."


def _weights(weights: Any) -> Iterator[str]:
    told = f"merge.weights={checks.show(weights)}: must be null or a mapping {{adapter: number}}"
    if weights is None:
        return
    if not isinstance(weights, dict):
        yield f"{told}."
        return
    for name, weight in weights.items():
        parts = weight.values() if isinstance(weight, dict) else [weight]
        if not all(isinstance(part, int | float) and math.isfinite(part) for part in parts):
            yield f"{told}, or {{adapter: {{begin or end of a module path: number}}}}; that of {name} is neither."


def _names(merge: Any, branch: Any, sets: Any, tasks: Any, sizes: Any, of: Any) -> Iterator[str]:
    """Of tasks that are in no set, and so would change nothing."""
    known = sorted({name for names in [of if sizes else tasks or [], *(sets or [])] for name in names})
    weights = merge.get("weights") if isinstance(merge, dict) else None
    for key, names in (("merge.weights", weights if isinstance(weights, dict) else {}), ("branch", branch or [])):
        for name in sorted(set(names) - set(known)) if known else ():
            hint = nearest(name, known) or f" Known: {checks.known(known)}."
            yield f"{key}={checks.show(weights if key != 'branch' else branch)}: {name} is in no set.{hint}"


def _realigned(merge: Any, realign: Any, advise: Any) -> Iterator[str]:
    """Of merges that choose by what heads of another kind would keep than those that are scored."""
    after = merge.get("after") if isinstance(merge, dict) else None
    if advise is True or after is None or after == realign or (isinstance(realign, list) and after in realign):
        return
    other = realign if isinstance(realign, str) else "none"
    unable = other == "head" and "rungs" not in merge  # search looks at drifts after plain readouts alone
    yield (
        f"realign={checks.show(realign)}: the merge is chosen by what is left after realign={after}. Give "
        f"realign={after}{'' if unable else f', or merge.after={checks.show(other)}'}."
    )


def _judged(merge: Any, images: Any, advise: Any) -> Iterator[str]:
    """Of a ladder that judges heads fitted to another number of images than those that are scored."""
    if advise is True or not isinstance(merge, dict) or "rungs" not in merge or merge.get("after") == "none":
        return
    if merge.get("images") != images:
        yield (
            f"images={images}: the ladder foretells heads that are fitted to merge.images={merge.get('images')}. Give "
            f"merge.images={images}, too."
        )


def _branched_choice(merge: Any, branch_at: Any, advise: Any) -> Iterator[str]:
    """Of merges that are chosen by what one shared pass keeps, and would then be branched."""
    if branch_at is not None and advise is not True and isinstance(merge, dict) and "keep" in merge:
        yield (
            f"branch_at={branch_at}: the ladder foretells a merge of one pass. Branch the rung that it takes "
            f"(column choice), or see advise=true branch_at={branch_at}."
        )


def _merges(merge: Any) -> Iterator[str]:
    """Of merges that try others by name."""
    for key in ("rungs", "candidates"):
        given = merge.get(key) if isinstance(merge, dict) else None
        for rung in given if isinstance(given, list) else ():
            yield from _no_merge(f"merge.{key}", given, rung if isinstance(rung, dict) else [rung])


def _allows(argument: Argument, value: object) -> bool:
    # an annotation of aliases only (Normalise, ...) says nothing here; the merge itself checks the value
    return not argument.kinds or argument.kinds == {"null"} or argument.allows(value)


def _candidates(candidates: list[str]) -> Iterator[str]:
    yield from _no_merge("candidates", candidates, candidates)


def _no_merge(key: str, given: Any, names: Iterable[Any]) -> Iterator[str]:
    for name in names:
        if name not in (merges := shipped_merges()):
            hint = nearest(str(name), merges) or f" Known: {checks.known(merges)}."
            yield f"{key}={checks.show(given)}: there is no merge {name}.{hint}"


def _advice(advise: Any, advice_images: Any, realign: Any, branch_at: Any) -> Iterator[str]:
    if advise is not True or advice_images is not None:
        return
    if realign not in ("none", ["none"]):
        yield (
            f"realign={checks.show(realign)}: without images (advice_images=null) nothing is known of realigned heads. "
            "Take realign=none, or give advice_images=64 or more."
        )
    if branch_at is not None:
        yield f"branch_at={branch_at}: without images (advice_images=null) nothing is known of branches."


def _branching(branch_at: Any, branch: Any, save: Any) -> Iterator[str]:
    if branch_at is None and branch is not None:
        yield f"branch={checks.show(branch)}: branch_at is missing: how many blocks do all tasks share?"
    if branch_at is not None and save is True:
        yield f"save=true: a merge that branches (branch_at={branch_at}) is scored, not written."


def _named(name: Any, save: Any, realign: Any, sets: Any, sizes: Any) -> Iterator[str]:
    several_sets = sizes is not None or len(sets or []) > 1
    if name is None or save is False or (several_sets and save == "auto"):
        return
    if several_sets or (isinstance(realign, list) and len(set(realign)) > 1):
        yield f"name={name}: it names one model, and several would be written; leave it out."


def _sets(sets: Any, tasks: Any, sizes: Any, of: Any) -> Iterator[str]:
    given = sum(value is not None for value in (sets, tasks, sizes))
    if given == 0:
        yield "tasks is missing: give tasks=[a,b] for one set, sets=[[a,b],[c,d]] for several, or sweep=pairs."
    elif given > 1:
        key = "tasks" if tasks is not None else "sets"
        yield (
            f"{key}={checks.show(tasks if tasks is not None else sets)}: tasks, sets and sweep say the same in three "
            "ways; give one of them. All pairs of some tasks: sweep=pairs sweep.of=[a,b,c]."
        )
    for key, names in [("tasks", tasks), ("sweep.of", of), *(("sets", names) for names in sets or [])]:
        twice = sorted({name for name in names or [] if names.count(name) > 1})
        if twice:
            yield f"{key}={checks.show(names)}: named twice: {', '.join(twice)}."


def _sizes(sizes: Any, of: Any, including: Any) -> Iterator[str]:
    if sizes is None or of is None or including is None:
        return
    if outside := sorted(set(including) - set(of)):
        yield (
            f"sweep.including={checks.show(including)}: {', '.join(outside)} is not in sweep.of={checks.show(of)}, so "
            "no set holds it."
        )
    elif not any(len(set(including)) <= size <= len(set(of)) for size in sizes):
        told = f" with {checks.show(including)} in each" if including else ""
        yield f"sweep.sizes={checks.show(sizes)}: of {len(set(of))} tasks there is no such set{told}."


class MergeSweep(Strict):
    """Which sets are merged one after the other."""

    name: Name | None = Field(description="a name of a-z, 0-9 and _, or null (made from the command)")
    fail_fast: bool = Field(description="true or false")
    sizes: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = Field(
        description="a list of set sizes, e.g. [2,3], or null (no sweep)"
    )
    of: Tasks = Field(description="a list of tasks [a,b,...]")
    including: list[Name] = Field(description="a list of tasks that each set holds, or []")


class MergedBackbone(Strict):
    """Where the frozen weights are."""

    weights: Text | None = Field(description="hub, package, the path of a .safetensors file, or null (as trained)")


class Rank(Strict):
    """Which adapters."""

    rank: int = Field(ge=1, description="a whole number, 1 or more (of rank 0 there is nothing to merge)")


class MergeConfig(Strict):
    """Config of ``merge.py``."""

    name: Annotated[Text, Field(pattern=r"^[A-Za-z0-9_+.-]+$")] | None = Field(
        description="a name of letters, digits and _ + . -, or null (made from the set and the method)"
    )
    method: Name | None = Field(description="a name for the result rows, or null (that of the merge)")
    merge: dict[str, Any] = Field(description="merge=cat, gram, ...")
    tasks: Tasks | None = Field(description="a list of tasks [a,b], or null")
    sets: Annotated[list[Tasks], Field(min_length=1)] | None = Field(description="a list of lists [[a,b],[c]], or null")
    sweep: MergeSweep
    realign: Realign | Annotated[list[Realign], Field(min_length=1)] = Field(
        description="none, linear, deep, head or a list of them"
    )
    branch_at: Annotated[int, Field(ge=0)] | None = Field(description="a number of blocks, or null (one pass)")
    branch: Tasks | None = Field(description="a list of tasks [a,b], or null (all of the set)")
    lora: Rank
    backbone: MergedBackbone
    seed: int = Field(ge=0, lt=2**32, description="a whole number from 0 to 4294967295")
    advise: bool = Field(description="true or false")
    candidates: Annotated[list[Name], Field(min_length=1)] = Field(description="a list of merges [cat,gram,...]")
    advice_images: Annotated[int, Field(ge=2)] | None = Field(
        description="a whole number of images, 2 or more, or null (nothing is predicted)"
    )
    split: Literal["val", "test"] = Field(description="val or test")
    images: int = Field(ge=2, description="a whole number of images, 2 or more")
    save: Literal["auto"] | bool = Field(description="auto (a single set), true or false")
    adapters: dict[Name, Text] = Field(description="a mapping {task: folder of a bundle}")
    roots: dict[Name, Text] = Field(description="a mapping {task: folder of its data}")
    precision: Literal["auto", "32-true", "bf16-mixed"] = Field(description="auto, 32-true or bf16-mixed")
    device: Device
    logger: Logger = Field(default_factory=Logger, description="logger=wandb, csv or tensorboard")
    resume: Literal["auto", "restart"] = Field(description="auto (skip what is done) or restart (do it anew)")
    paths: Paths

    # keys that name what one job writes: the jobs of a sweep must not share it
    places: ClassVar[tuple[str, ...]] = ("name",)
    checks: ClassVar[tuple[Check, ...]] = (
        (("merge",), _method),
        (("backbone.weights",), checks.weights),
        (("candidates",), _candidates),
        (("advise", "advice_images", "realign", "branch_at"), _advice),
        (("branch_at", "branch", "save"), _branching),
        (("name", "save", "realign", "sets", "sweep.sizes"), _named),
        (("sets", "tasks", "sweep.sizes", "sweep.of"), _sets),
        (("sweep.sizes", "sweep.of", "sweep.including"), _sizes),
        (("merge", "branch", "sets", "tasks", "sweep.sizes", "sweep.of"), _names),
        (("merge", "realign", "advise"), _realigned),
        (("merge", "images", "advise"), _judged),
        (("merge", "branch_at", "advise"), _branched_choice),
        (("merge",), _merges),
    )

    def chosen_sets(self) -> list[tuple[str, ...]]:
        """The sets to merge, tasks sorted by name, each set once."""
        if self.sweep.sizes is not None:
            found = [
                names
                for size in self.sweep.sizes
                for names in itertools.combinations(sorted(self.sweep.of), size)
                if set(self.sweep.including) <= set(names)
            ]
        else:
            found = [tuple(sorted(names)) for names in self.sets or [self.tasks or []]]
        return list(dict.fromkeys(found))

    @property
    def realigns(self) -> list[Realign]:
        """As a list, each once, plainest first."""
        wanted = self.realign if isinstance(self.realign, list) else [self.realign]
        return [realign for realign in get_args(Realign) if realign in wanted]

    @property
    def method_name(self) -> str:
        """The merge's name: the one that was given, else the yaml's, which is the function's."""
        return self.method or str(self.merge["_target_"]).rpartition(".")[2]

    @property
    def method_label(self) -> str:
        """What result rows call the merge: its name, unless one was given the settings, and where it branches."""
        settings = "" if self.method else merge_settings(self.merge)
        return self.method_name + (f"({settings})" if settings else "") + self._branched

    @property
    def method_slug(self) -> str:
        """The label as a part of a folder's name: its settings are told by their hash."""
        settings = "" if self.method else merge_settings(self.merge)
        return self.method_name + (f"_{digest(settings)}" if settings else "")

    @property
    def _branched(self) -> str:
        tasks = "" if self.branch is None else f"_{'+'.join(sorted(self.branch))}"
        return "" if self.branch_at is None else f"_branched_at_{self.branch_at}{tasks}"

    @property
    def title(self) -> str:
        """The readable part of the run's name."""
        sets = self.chosen_sets()
        what = "+".join(sets[0]) if len(sets) == 1 else f"{len(sets)}_sets"
        method = "advice" if self.advise else self.method_name + self._branched
        return f"{what}-{method}-r{self.lora.rank}-s{self.seed}"
