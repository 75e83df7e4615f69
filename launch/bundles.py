"""Adapter bundles by name: where training publishes them, which ones a merge takes, and what tells two apart."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from launch.checks import ROOT, known
from launch.errors import CommandError, nearest
from launch.labels import training_slug
from launch.merge_schema import MergeConfig

CARD = "card.json"
MEMBERS = "members"  # folder of a merged model with the bundle of each adapter
HUB = "hub:"  # a model of that beginning is fetched


def bundle_path(outputs: Path, task: str, rank: int, seed: int, features: str = "class_token") -> Path:
    """Where training publishes the adapter of a task, rank and seed."""
    return outputs / "adapters" / task / training_slug(rank, seed, features)


def require_model(model: str) -> None:
    """Cheap: looks for the folder and its card only; what they hold, and what lies on the Hub, is seen when read.

    Raises:
        CommandError: there is no such folder, or it is none of a model.
    """
    path = Path(model).expanduser()
    if model.startswith(HUB) or (path / CARD).is_file():
        return
    if path.is_dir():
        below = [str(card.parent) for depth in ("*", "*/*") for card in path.glob(f"{depth}/{CARD}")]
        fault = f"the folder has no {CARD} and is no model.{f' Below it: {known(below)}.' if below else ''}"
    else:
        siblings = [entry.name for entry in path.parent.glob("*") if entry.is_dir()]
        fault = f"there is no such folder (looked in {Path.cwd()}).{nearest(path.name, siblings)}"
    places = f"Merges lie in <outputs>/models, adapters in <outputs>/adapters; {HUB}user/name is on the Hub."
    raise CommandError(f"model={model}: {fault} {places}")


def require_bundles(outputs: Path, tasks: Sequence[str], rank: int, seed: int) -> list[Path]:
    """The bundles' folders in the order of ``tasks``; cheap, looks at names only.

    Raises:
        CommandError: some are missing; lists what exists and, unless a name is near, the command that trains each.
    """
    paths = {task: bundle_path(outputs, task, rank, seed) for task in tasks}
    missing = [task for task, path in paths.items() if not (path / CARD).is_file()]
    if not missing:
        return list(paths.values())
    cards = (outputs / "adapters").glob(f"[!.]*/[!.]*/{CARD}")  # a hidden one was being written when it was killed
    there = sorted(card.parent.relative_to(outputs / "adapters") for card in cards)
    listed = ", ".join(str(path) for path in there) if there else "none"
    names = {path.parts[0] for path in there}
    shipped = {file.stem for file in (ROOT / "conf" / "task").glob("*.yaml")}
    lines = []
    for task in missing:
        near = "" if task in names | shipped else nearest(task, names | shipped)
        place = "" if outputs == Path("outputs") else f" paths.outputs={outputs}"
        own = f"task={task}" if task in shipped else f"task=KIND name={task} data=..."
        command = f"python train.py {own} lora.rank={rank} seed={seed}{place}"
        way = f" Train it, with the settings of the others (experiment, backbone): {command}"
        if others := [re.fullmatch(r"r(\d+)(?:_deep)?-s(\d+)", path.name) for path in there if path.parts[0] == task]:
            ways = sorted({f"lora.rank={found[1]} seed={found[2]}" for found in others if found})
            way = f" Of this task there is {' | '.join(ways)}.{way}"
        lines.append(
            f"There is no adapter of task {task} with rank {rank} and seed {seed} in {outputs / 'adapters'}."
            f"{near or way}"
        )
    raise CommandError("\n".join([*lines, f"Adapters that exist: {listed}."]))


def title_of(model: str) -> str:
    """The name of what is made of a model: its folder's, before which an adapter's says the task."""
    path = Path(model).expanduser().absolute()
    return f"{path.parent.name}-{path.name}" if re.fullmatch(r"r\d+(_deep)?-s\d+", path.name) else path.name


def find_bundles(config: MergeConfig) -> dict[str, Path]:
    """The bundle of each task in any set of a merge, by task.

    Raises:
        CommandError: some are missing.
    """
    tasks = sorted({task for names in config.chosen_sets() for task in names})
    published = Path(config.paths.outputs) / "adapters"
    for name in config.adapters:  # a mapping may be shared by jobs of other sets, so that not every stranger is a fault
        if name not in tasks and not (published / name).is_dir() and (hint := nearest(name, tasks)):
            raise CommandError(f"adapters: {name} is in no set here.{hint}")
    given = {task: Path(config.adapters[task]).expanduser() for task in tasks if task in config.adapters}
    rest = [task for task in tasks if task not in given]
    paths = require_bundles(Path(config.paths.outputs), rest, config.lora.rank, config.seed)
    return given | dict(zip(rest, paths, strict=True))


def bundle_content(path: Path) -> str:
    """sha256 over a bundle's factors, Grams and head: the same wherever it lies, another once it is trained anew."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def merged_contents(config: MergeConfig) -> dict[str, str]:
    """``bundle_content`` of each bundle that a merge takes, by task.

    Raises:
        CommandError: some are missing.
    """
    return {task: bundle_content(path) for task, path in find_bundles(config).items()}
