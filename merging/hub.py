"""Bundles to and from the Hugging Face Hub: ``model=hub:user/name`` reads, ``format=hub hub=user/name`` writes."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from launch.bundles import CARD, HUB
from launch.errors import AdapterError, UserError
from launch.files import write_json
from lightning_modules.adapter import README
from merging.bundle import is_scored
from merging.paired import retention_text
from merging.views import read_card

FILES = ("*.safetensors", "*.json", "*.md")  # a bundle has no others, and no code is ever fetched


class HubError(UserError):
    """The Hub cannot be reached, or does not give or take what was asked for."""


def resolve(path: str, api: HfApi | None = None) -> Path:
    """The folder of a bundle: ``hub:user/name`` is fetched into the Hub's own cache, anything else is a path.

    Raises:
        HubError: there is no such repository, or no network and no copy of it.
    """
    if not path.startswith(HUB):
        return Path(path).expanduser()
    name = path.removeprefix(HUB)
    try:
        return Path((api or HfApi()).snapshot_download(name, allow_patterns=list(FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise HubError(_text("fetch", name, error)) from error


def push(folder: Path, name: str, *, private: bool, api: HfApi | None = None) -> str:
    """Uploads a bundle in one commit, its README with a model card in its place, and gives the address.

    Of the paths in its cards, which tell where data and outputs lie on this machine, only the last part is uploaded.

    Raises:
        AdapterError: there is no bundle.
        HubError: not logged in, no right to write there, or no network.
    """
    card = without_folders(read_card(folder))
    members = {path: without_folders(read_card(folder / path)) for path in _members(folder)}
    api = api or HfApi()
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch) / "bundle"
        shutil.copytree(folder, staged)
        for place, told in {Path(): card, **members}.items():
            write_json(staged / place / CARD, told)
        (staged / README).write_text(model_card(card), "utf-8")
        try:
            api.create_repo(name, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=name, folder_path=staged, allow_patterns=list(FILES), commit_message="Upload with lora-alloy"
            )
        except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
            raise HubError(_text("write", name, error)) from error
    return str(done.commit_url)


def without_folders(told: Any) -> Any:
    """A card with every absolute path in it cut to its last part, those of other systems and of homes (~) too."""
    if isinstance(told, Mapping):
        return {key: without_folders(value) for key, value in told.items()}
    if isinstance(told, list):
        return [without_folders(value) for value in told]
    if not isinstance(told, str):
        return told
    for path in (PurePosixPath(told), PureWindowsPath(told)):
        if path.is_absolute() or told.startswith("~/"):
            return path.name
    return told


def _members(folder: Path) -> list[Path]:
    return sorted(path.parent.relative_to(folder) for path in folder.glob(f"members/*/{CARD}"))


def _text(verb: str, name: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    way = "log in with `hf auth login`" if verb == "write" else "check the name, log in with `hf auth login` if private"
    return f"Cannot {verb} {name} on the Hugging Face Hub: {reason} To mend it: {way}, or connect this machine."


def model_card(card: Mapping[str, Any]) -> str:
    """README of the Hub: recipe, retention, data with their licences, intended use, how to load.

    Args:
        card: of a merged model or of a single adapter.

    Raises:
        AdapterError: the card names no backbone, tasks or data.
    """
    try:
        backbone, single = card["backbone"], "tasks" not in card
        tasks = [card["task"]["name"]] if single else sorted(card["tasks"])
        data = sorted({str(told["data"]["name"]) for told in ([card] if single else card["tasks"].values())})
        scored = single or is_scored(card)
    except (KeyError, TypeError) as error:
        raise AdapterError(f"The bundle's {CARD} does not tell its backbone, tasks or data ({error!r}).") from error
    tags = ["lora-alloy", "lora", "vision-transformer"] + ([] if single else ["model-merging", "multi-task"])
    lines = [
        "---", "library_name: timm", "license: other", "pipeline_tag: image-classification", "tags:",
        *(f"- {tag}" for tag in tags), "---", "", f"# {' + '.join(tasks)}", "",
    ]  # fmt: skip
    where = f"`{backbone['name']}` at {backbone['image_size']} px"
    if single:
        lines += [f"A LoRA adapter and head for {where}, in peft's format.", ""]
        lines += ["| test metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in sorted(card.get("metrics", {}).items())]
    else:
        recipe = card["recipe"]
        what = f"One {where} that answers {len(tasks)} tasks, merged from LoRA adapters:"
        lines += [f"{what} one pass for all that see a picture alike.", ""]
        lines += ["## Recipe", "", f"Method `{recipe['method']}`, heads realigned: `{recipe['realign']}`.", ""]
        lines += [f"- `{key}`: `{value}`" for key, value in sorted(recipe["merge"].items())]
        lines += ["", "## Retention", ""]
        lines += ["| task | metric | merged | adapter alone | retention |", "|---|---|---|---|---|"]
        for row in card["rows"] if scored else []:
            numbers = f"{row['score']:.4f} | {row['single']:.4f} | {retention_text(row['retention'])}"
            lines.append(f"| {row['task']} | {row['metric']} | {numbers} |")
        lines += [] if scored else ["", "This set of tasks was not scored."]
    lines += [
        "", "## Data and licences", "", "Trained on " + ", ".join(f"`{name}`" for name in data) + ". Each dataset and "
        "the backbone's weights have licences of their own, several for research only; they bind users of this model.",
        "", "## Intended use", "", "Research on multi-task models, and demonstrations. Answers are guesses with the "
        "errors above, on pictures like those of the training data. Do not decide about people by them.", "",
        "## Use", "", "```python", "from merging.model import load", "",
        "model = load(FOLDER)  # of this repository's files", "answers = model(images)", "```", "",
    ]  # fmt: skip
    return "\n".join(lines)
