"""Where merges are tried: one backbone, the members' heads and images, and what was computed of them once."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from datamodules.datamodule import ImageDataModule, normalize
from launch.bundles import CARD
from launch.errors import AdapterError, DataError
from launch.schema import Data
from launch.target import instantiate
from lightning_modules.backbone import hold_frozen_weights
from lightning_modules.lora import TARGET_MODULES, adaptable
from lightning_modules.model import MLPHead
from merging.delta import Delta
from merging.features import read_features
from merging.fold import FoldableWeights
from merging.members import Member

Key = tuple[str, str, int | None, bool, int]  # task, split, images, deep or mirrored, view
Kept = dict[Key, tuple[Tensor, float]]  # features and the seconds that they took


class Workbench:
    """Passes images of any member's task through the backbone with any delta folded in.

    The backbone is loaded once and its weights are swapped in place. Features of the single adapters and of the bare
    backbone are kept, those of merges until another one passes; ``clock`` still charges them to each merge. Labels are
    read by ``score`` and ``targets`` alone.

    Args:
        backbone: plain timm model, frozen, in evaluation mode.
        members: by task; their deltas may be None (rank 0).
        data: by task, set up.
        device: where the backbone computes.
        dtype: of autocast; None for float32.

    Attributes:
        scratch: folder where merges that take minutes keep curves and checkpoints; None for none.
        controls: scores of readouts on the bare backbone, by task, split, realignment and number of images.
    """

    scratch: Path | None = None

    def __init__(
        self,
        backbone: VisionTransformer,
        members: Mapping[str, Member],
        data: Mapping[str, ImageDataModule],
        device: torch.device,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.members, self.data, self.device, self.dtype = dict(members), dict(data), device, dtype
        self.width, self.depth = int(backbone.num_features), len(cast(nn.Sequential, backbone.blocks))
        modules = {module for member in members.values() for module in member.delta or {}}
        modules |= set(adaptable(self.depth, list(TARGET_MODULES)))  # what a merge may change beyond its members
        self.weights = FoldableWeights(backbone.to(device), sorted(modules))
        if dtype is not None:
            hold_frozen_weights(backbone, dtype)
        self.controls: dict[tuple[str, str, str, int], float] = {}
        self._single: Kept = {}
        self._bare: Kept = {}
        self._merged: tuple[Delta | None, Kept] = (None, {})
        self._used: set[tuple[int, Key]] = set()
        self._borrowed = 0.0

    @property
    def backbone(self) -> VisionTransformer:
        return self.weights.model

    def batches(
        self, task: str, split: str, count: int | None = None, *, mirrored: bool = False, view: int = 0
    ) -> Iterator[Tensor]:
        """Normalised images (B, 3, S, S) of a split, or ``count`` of them, always the same ones in the same order.

        Args:
            mirrored: left and right exchanged.
            view: augmented in which way, as the task's training augments; 0 for not. Of training images alone.
        """
        data = self.data[task]
        for batch in data.view_dataloader(view, count) if view else data.plain_dataloader(split, count):
            images = normalize(batch["image"].to(self.device), data.mean, data.std)
            yield images.flip(-1) if mirrored else images

    def features(
        self,
        delta: Delta | None,
        task: str,
        split: str,
        count: int | None = None,
        *,
        deep: bool,
        mirrored: bool = False,
        view: int = 0,
    ) -> Tensor:
        """Features (n, d) or deep features (n, 8 d) of the backbone with a delta (None: bare)."""
        with self.weights.folded(delta) as model:
            images = self.batches(task, split, count, mirrored=mirrored, view=view)
            return read_features(model, images, deep=deep, dtype=self.dtype)

    def merged(
        self, delta: Delta | None, task: str, split: str, count: int | None = None, *, deep: bool, view: int = 0
    ) -> Tensor:
        """As ``features``; what a merge was chosen by serves its realignment and its prediction too."""
        if self._merged[0] is not delta:
            self._merged = (delta, {})
        return self._keep(
            self._merged[1],
            (task, split, count, deep, view),
            lambda: self.features(delta, task, split, count, deep=deep, view=view),
        )

    def single(
        self, task: str, split: str, count: int | None = None, *, mirrored: bool = False, view: int = 0
    ) -> Tensor:
        """Class tokens (n, d) of the task's own adapter alone."""
        delta = self.members[task].delta
        return self._keep(
            self._single,
            (task, split, count, mirrored, view),
            lambda: self.features(delta, task, split, count, deep=False, mirrored=mirrored, view=view),
        )

    def bare(self, task: str, split: str, *, deep: bool) -> Tensor:
        """Features of the unmerged, unadapted backbone on all of a split."""
        return self._keep(self._bare, (task, split, None, deep, 0), lambda: self.features(None, task, split, deep=deep))

    def start_clock(self) -> None:
        """From here on ``clock`` counts for another merge."""
        self._used.clear()

    def clock(self) -> float:
        """Seconds whose differences are what work would have taken with nothing kept from earlier merges."""
        return time.perf_counter() + self._borrowed

    def _keep(self, kept: Kept, key: Key, read: Callable[[], Tensor]) -> Tensor:
        if key not in kept:
            begun = time.perf_counter()
            features = read()
            kept[key] = (features, time.perf_counter() - begun)
        elif (id(kept), key) not in self._used:
            self._borrowed += kept[key][1]
        self._used.add((id(kept), key))
        return kept[key][0]

    def targets(self, task: str, split: str, count: int | None = None) -> Tensor:
        """Labels of a split, in the order of ``features``."""
        return self.data[task].targets(split, count)

    def groups(self, task: str, split: str, count: int | None = None) -> Tensor:
        """(n,) which images of a split tell of each other, in the order of ``features``."""
        return self.data[task].groups(split, count)

    def score(self, task: str, split: str, answers: Tensor) -> dict[str, float]:
        """The task's metrics of a head's outputs (n, out) on all of a split."""
        described = self.members[task].task
        metrics = described.metrics()
        metrics.update(described.predict(answers), self.targets(task, split))
        return {name: float(value) for name, value in metrics.compute().items()}


@torch.no_grad()
def outputs(head: MLPHead, features: Tensor) -> Tensor:
    """(n, d) -> (n, out), float32."""
    return head(features.float())


def open_images(member: Member, cache_root: Path, mean: Any, std: Any, root: str | None = None) -> ImageDataModule:
    """The images that a member was trained and tested on, by its card.

    Args:
        cache_root: of pixels and hashes.
        mean, std: of the backbone.
        root: another folder of the same data than the card names.

    Raises:
        AdapterError: the card does not say which data.
        DataError: the data is another than the card tells of.
    """
    card, path = member.bundle.card, member.bundle.path / CARD
    try:
        config = card["config"]
        described = Data.model_validate(config["data"] | ({} if root is None else {"root": root}))
        if isinstance(described.classes, dict):  # JSON files are sorted by key, and the order numbers the classes
            described.classes = {name: described.classes[name] for name in card["task"]["classes"]}
        kind, target, fingerprint = config["task"]["kind"], config["task"]["target"], card["data"]["fingerprint"]
        size, seed = config["backbone"]["image_size"], config["seed"]
        ways = {key: config["task"].get(key) for key in ("augment", "flip_index")}
    except (KeyError, TypeError, ValidationError) as error:
        raise AdapterError(f"{path} does not tell which data it was trained on ({error!r}); train it again.") from error
    source = instantiate(described.source, described.arguments())
    data = ImageDataModule(
        source, kind, target=target, image_size=size, mean=mean, std=std, seed=seed, cache_root=cache_root,
        **ways, **described.model_dump(include=set(Data.model_fields) - {"source"}),
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    if data.fingerprint != fingerprint:
        raise DataError(
            f"{source.root} holds other data (fingerprint {data.fingerprint[:12]}) than adapter {member.bundle.path} "
            f"was trained and tested on ({fingerprint[:12]}), so its test set may hold pictures it has learned. "
            f"Give the same data as roots.{member.name}=DIR, or train the adapter again."
        )
    return data
