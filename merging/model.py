"""A merged model, or a single adapter, in use.

    model = load("outputs/models/age_class+galaxy-gram-none-r16-s0")
    model(images)                                 # {"age_class": (B, 9), "galaxy": (B, 10)} from one backbone pass
    model.add("outputs/adapters/emotion/r16-s0")  # merged anew from the stored adapters, nothing is trained
    model.remove("galaxy")
    model.save("outputs/models/faces")

A model depends on its recipe and on the set of its tasks alone: the order in which they came leaves no trace, and
removing what was added gives the same bytes of every file.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from datamodules.datamodule import normalize
from launch.bundles import CARD, MEMBERS, bundle_content
from launch.errors import AdapterError
from launch.files import atomic_folder, require_replaceable
from lightning_modules.adapter import CONFIG, README
from lightning_modules.backbone import create_backbone, fingerprint
from lightning_modules.model import MLPHead, MultiTaskModel
from lightning_modules.tasks import Task
from merging.bundle import BASE, changed_files, read_parts, read_tensors, save_merged
from merging.evaluate import Merged
from merging.features import TokenReader, class_token
from merging.fold import folded_state
from merging.frozen_backbone import backbone_of, require_whole
from merging.members import Member, read_member
from merging.methods import Outcome, merge_members, needs_images
from merging.views import FITS, View, check_name, read_card, require_own_columns


class AnsweringModel(MultiTaskModel):
    """A plain timm backbone with a head per task, frozen, in evaluation mode.

    Attributes:
        tasks: how each task sees pictures and what it answers, by name.
        card: of the bundle.
        members: folder of each task's adapter.
        contents: ``bundle_content`` of each as it was merged.
        image_size: side of the images in pixels.
        mean, std: of the normalisation.
    """

    backbone: VisionTransformer

    def __init__(
        self,
        backbone: VisionTransformer,
        heads: Mapping[str, MLPHead],
        tasks: Mapping[str, View],
        card: Mapping[str, Any],
        members: Mapping[str, Path],
        contents: Mapping[str, str],
        base: Mapping[str, Tensor],
    ) -> None:
        super().__init__(backbone, heads)
        self.tasks, self.card, self.members, self.contents = dict(tasks), dict(card), dict(members), dict(contents)
        self._base = dict(base)
        self._folder: Path | None = None  # that holds the very same model
        self.image_size = int(card["backbone"]["image_size"])
        self.mean, self.std = tuple(card["backbone"]["mean"]), tuple(card["backbone"]["std"])
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.backbone.parameters()).device

    def forward(self, images: Tensor, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """(B, out) of each task asked for (None: all), from one pass.

        Classes come as logits, points as x0, y0, x1, ... in crop coordinates (0 and 1 are the crop's edges), numbers as
        they were learned (``View.factor``).

        Args:
            images: uint8 (B, S, S, 3) as ``datamodules.crop.crop_resize`` makes them, or normalised (B, 3, S, S).
        """
        names = list(self.heads if tasks is None else tasks)
        return self.read(self.features(images, names), names)

    def features(self, images: Tensor, tasks: Iterable[str]) -> Tensor:
        """What the heads of these tasks read: class tokens (B, d), or deep features (B, 8 d) where one needs them."""
        images = normalize(images, self.mean, self.std)
        if not any(self._is_deep(name) for name in tasks):
            token: Tensor = self.backbone(images)
            return token
        with TokenReader(self.backbone) as reader:
            self.backbone.forward_features(images)
            return reader.take()

    def read(self, features: Tensor, tasks: Iterable[str]) -> dict[str, Tensor]:
        """The heads' answers to ``features``, (B, out) by task."""
        token = class_token(features, int(self.backbone.num_features))
        return {name: self.heads[name](features if self._is_deep(name) else token) for name in tasks}

    def _is_deep(self, task: str) -> bool:
        head: Any = self.heads[task]
        return bool(head.hidden.in_features != self.backbone.num_features)

    def add(self, path: str | Path) -> None:
        """Merges the adapter of one more task in.

        Raises:
            AdapterError: no bundle there, one of another backbone, its task is in the model already or would share a
                column of answers with one, or the merge needs images; the model stays as it was.
        """
        folder = Path(path).expanduser()
        name = check_name(str((read_card(folder).get("task") or {}).get("name")), folder / CARD)
        if name in self.members:
            raise AdapterError(f"{folder} is of task {name}, which the model has already; remove it first.")
        self._rebuild(self.members | {name: folder})

    def remove(self, task: str) -> None:
        """Takes one task out, as if it had never been merged in.

        Raises:
            AdapterError: no such task, it is the last one, or the merge needs images; the model stays as it was.
        """
        if task not in self.tasks:
            raise AdapterError(f"The model has no task {task!r}; it has {', '.join(self.tasks)}.")
        if len(self.tasks) == 1:
            raise AdapterError(f"{task} is the model's only task; without it there is no model.")
        self._rebuild({name: path for name, path in self.members.items() if name != task})

    def save(self, path: str | Path) -> None:
        """Writes the bundle whole, members included, or leaves what was at ``path``.

        It is the bundle that was loaded, or what adding and removing made of it; weights that were changed by other
        means are not in it.

        Raises:
            AdapterError: the loaded bundle, or an adapter that was merged in, is another by now, or gone.
            UserError: cannot be written, or there is a folder of something else.
        """
        folder = Path(path).expanduser()
        require_replaceable(folder, CARD, "backbone", (CARD, CONFIG, README, MEMBERS, "*.safetensors"))
        if self._folder is not None:
            if not (self._folder / CARD).is_file():
                raise AdapterError(f"{self._folder}, which the model was loaded from, is gone; it cannot be copied.")
            with atomic_folder(folder) as temporary:
                shutil.copytree(self._folder, temporary, dirs_exist_ok=True)
                self._require_same(temporary)
            return
        members, delta, heads = self._merge(self.members)
        card = self.card
        merged = Merged(Outcome(delta), heads, card["recipe"]["realign"], 0.0, 0)
        save_merged(
            folder, self._frozen(), members, merged, card["recipe"], card["backbone"], card["rows"], card["provenance"],
            card["scored"],
        )  # fmt: skip
        self.members = {name: folder / MEMBERS / name for name in members}
        self._folder = folder

    def _require_same(self, copy: Path) -> None:
        """Refuses a copy of the folder that the model was loaded from if it is of another model by now."""
        if "recipe" in self.card:
            same = not changed_files(copy, self.card["files"])
        else:
            same = {bundle_content(copy)} == set(self.contents.values())
        if not same:
            raise AdapterError(f"{self._folder} holds another model than was loaded from it; load it again.")

    def _merge(self, paths: Mapping[str, Path]) -> tuple[dict[str, Member], Any, dict[str, MLPHead]]:
        self._require_rebuildable(paths)
        mark = self.card["backbone"]["fingerprint"]
        members = {name: read_member(path, mark) for name, path in sorted(paths.items())}
        for name, member in members.items():
            if self.contents.get(name, member.bundle.content) != member.bundle.content:
                raise AdapterError(
                    f"{member.bundle.path} is another adapter than the one of task {name} that was merged. Merge anew, "
                    "or load the model again."
                )
        require_own_columns({name: member.view for name, member in members.items()})
        delta = merge_members(self.card["recipe"]["merge"], members).delta
        return members, delta, {name: member.head for name, member in members.items()}

    def _rebuild(self, paths: Mapping[str, Path]) -> None:
        members, delta, heads = self._merge(paths)
        frozen = self._frozen()
        for member in members.values():
            require_whole(member.bundle, frozen)
        state, base = folded_state(frozen, delta)
        device = self.device
        self.backbone.load_state_dict(state)
        self._base, self._folder = base, None
        self.members = {name: paths[name] for name in members}
        self.contents = {name: member.bundle.content for name, member in members.items()}
        self.heads = torch.nn.ModuleDict(heads).to(device)
        self.tasks = {name: member.view for name, member in members.items()}

    def _frozen(self) -> VisionTransformer:
        """The backbone before anything was folded into it, float32, on the CPU.

        Raises:
            AdapterError: it is not the one that the adapters were trained on.
        """
        made = self.card["backbone"]
        state = {name: value.detach().cpu() for name, value in self.backbone.state_dict().items()} | self._base
        frozen = create_backbone(made["name"], self.image_size)
        frozen.load_state_dict(state)
        if fingerprint(frozen) != made["fingerprint"]:
            raise AdapterError(
                f"The model's frozen weights ({BASE}) are not those of its card (fingerprint "
                f"{made['fingerprint'][:12]}), or the model was cast from float32; load it again or merge it anew."
            )
        return frozen

    def _require_rebuildable(self, paths: Mapping[str, Path]) -> None:
        recipe = self.card.get("recipe")
        given = "".join(f" +adapters.{name}={path}" for name, path in sorted(paths.items()))
        if recipe is None:
            raise AdapterError(
                "This model is a single adapter: it says nothing of how to merge. Merge: "
                f"python merge.py tasks=[{','.join(sorted(paths))}] merge=gram{given}"
            )
        realign, method = recipe["realign"], recipe["method"]
        reasons = []
        if realign != "none":
            reasons.append(f"its heads were fitted to images of each task (realign={realign})")
        if needs_images(recipe["merge"]):
            reasons.append(f"its merge ({method}) looks at images of each task")
        if reasons:
            raise AdapterError(
                f"This model cannot be merged anew from its adapters alone: {' and '.join(reasons)}. With the images: "
                f"python merge.py tasks=[{','.join(sorted(paths))}] merge={method} realign={realign}{given}"
            )


def load(path: str | Path, weights: str | None = None, cache: Path = Path("outputs/cache")) -> AnsweringModel:
    """A merged model, or the adapter of one task on its backbone, whichever lies there.

    Args:
        path: folder of a bundle.
        weights: of a single adapter's backbone: ``hub``, ``package`` or a file; None: as it was trained. A merged
            model brings its own.
        cache: folder for weights that come from a package.

    Raises:
        AdapterError: missing, damaged, foreign, or made for another backbone.
        WeightsError: a single adapter's backbone cannot be had.
    """
    folder = Path(path).expanduser()
    is_adapter = folder.is_dir() and "task" in read_card(folder)
    model = _load_adapter(folder, weights, cache) if is_adapter else _load_merged(folder)
    model._folder = folder
    return model


def _load_merged(folder: Path) -> AnsweringModel:
    card, state, heads = read_parts(folder)
    members, tasks = {}, {}
    for name, told in card["tasks"].items():
        own = folder / MEMBERS / check_name(name, folder / CARD)
        members[name] = own
        tasks[name] = _view(name, told, folder)
    try:
        backbone = create_backbone(card["backbone"]["name"], int(card["backbone"]["image_size"]))
        backbone.load_state_dict(state)
        contents = {name: told["content"] for name, told in card["tasks"].items()}
        return AnsweringModel(backbone, heads, tasks, card, members, contents, read_tensors(folder / BASE))
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"{folder / CARD} does not tell the backbone ({error!r}); merge it anew.") from error
    except RuntimeError as error:
        raise AdapterError(f"{folder}: its weights do not fit the backbone of its card ({error}).") from error


def _view(name: str, told: Mapping[str, Any], folder: Path) -> View:
    try:
        classes, corners = told["classes"], told["eye_corners"]
        task = Task(
            name=name,
            kind=told["kind"],
            metric=told["metric"],
            outputs=told["outputs"],
            classes=None if classes is None else tuple(classes),
            eye_corners=None if corners is None else tuple(corners),
        )
        return View(task, FITS[told["fit"]], told["face_scale"], told["factor"], told["unit"])
    except (KeyError, TypeError) as error:
        raise AdapterError(f"{folder / CARD} does not tell task {name} ({error!r}); merge it anew.") from error


def _load_adapter(folder: Path, weights: str | None, cache: Path) -> AnsweringModel:
    member = read_member(folder, with_grams=False)
    made = member.bundle.card["backbone"]
    frozen, _, _ = backbone_of(member.bundle, weights, cache)
    require_whole(member.bundle, frozen)
    state, base = folded_state(frozen, member.delta)
    frozen.load_state_dict(state)
    pretrained = timm.get_pretrained_cfg(made["name"]) or PretrainedCfg()
    card = {"backbone": dict(made) | {"mean": pretrained.mean, "std": pretrained.std}, "task": member.name}
    name = check_name(member.name, folder / CARD)
    contents = {name: member.bundle.content}
    return AnsweringModel(frozen, {name: member.head}, {name: member.view}, card, {name: folder}, contents, base)
