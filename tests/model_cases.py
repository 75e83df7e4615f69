"""Adapters with random factors for the tiny backbone, and models merged from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from lightning_modules.adapter import save_bundle
from lightning_modules.backbone import create_backbone, fingerprint, split_qkv
from lightning_modules.lora import add_lora, lora_config
from lightning_modules.model import MLPHead, MultiTaskModel
from merging.bundle import save_merged
from merging.evaluate import Merged
from merging.features import deep_width
from merging.members import read_member
from merging.methods import Outcome, merge_members
from tests.conftest import SIZE, TINY, randomize_lora

CAT = {"_target_": "merging.linear.cat", "_partial_": True, "weights": None}
KINDS: dict[str, dict[str, Any]] = {
    "leaves": {"kind": "classification", "metric": "accuracy", "classes": ["oak", "elm", "ash"], "outputs": 3},
    "galaxy": {"kind": "classification", "metric": "accuracy", "classes": ["round", "flat"], "outputs": 2},
    "age": {"kind": "regression", "metric": "rmse", "outputs": 1, "target": "age_decades"},
    "points": {"kind": "keypoints", "metric": "nme", "outputs": 8, "eye_corners": [0, 1]},
    "stone": {"kind": "classification", "metric": "accuracy", "classes": ["a", "b", "c", "d"], "outputs": 4},
}


def weights_file(root: Path) -> Path:
    """The tiny backbone's weights below ``root``."""
    path = root / "tiny.safetensors"
    if not path.exists():
        torch.manual_seed(7)
        safetensors.torch.save_file(dict(create_backbone(TINY, SIZE).state_dict()), path)
    return path


def adapter(root: Path, name: str, *, fit: str = "crop", source: dict[str, Any] | None = None) -> Path:
    """An adapter bundle of one of ``KINDS`` with random factors, the same for the same name."""
    path = root / "adapters" / name / "r2-s0"
    if path.exists():
        return path
    weights = weights_file(root)
    seed = sorted(KINDS).index(name)
    vit = create_backbone(TINY, SIZE, weights)
    mark = fingerprint(vit)
    config = lora_config(3 if name == "stone" else 2, None, ["k", "v"])
    add_lora(split_qkv(vit), config, init_seed=seed)
    randomize_lora(vit, seed)
    torch.manual_seed(seed)
    told = KINDS[name]
    model = MultiTaskModel(vit, {name: MLPHead(vit.num_features, told["outputs"])}).eval()
    grams = {}
    for index in range(len(vit.blocks)):
        for place in ("attn.qkv", "attn.proj"):
            x = torch.randn(200, vit.num_features, dtype=torch.float64)
            grams[f"blocks.{index}.{place}"] = x.t() @ x / 200
    card = {
        "task": {"name": name, "kind": told["kind"], "metric": told["metric"], "classes": told.get("classes")},
        "metric": told["metric"],
        "data": {"name": f"drawn_{name}", "fingerprint": "d" * 64, "fit": fit},
        "backbone": {"name": TINY, "image_size": SIZE, "fingerprint": mark},
        "config": {
            "backbone": {"weights": str(weights)},
            "data": source or {"_target_": "datamodules.image_folder.ImageFolder"},
            "task": {"target": told.get("target"), "eye_corners": told.get("eye_corners")},
        },
        "metrics": {told["metric"]: 0.5},
        "seed": 0,
    }
    save_bundle(path, model, name, config, card, grams)
    return path


def merged(
    root: Path,
    names: Sequence[str],
    *,
    method: str = "cat",
    merge: dict[str, Any] | None = None,
    realign: str = "none",
    folder: str = "model",
    scores: Sequence[dict[str, Any]] = (),
    **options: Any,
) -> Path:
    """A merged bundle of adapters, as ``merge.py`` writes it; deep heads are random ones."""
    members = {name: read_member(adapter(root, name, **options)) for name in names}
    mark = next(iter(members.values())).bundle.card["backbone"]["fingerprint"]
    heads = {name: member.head for name, member in members.items()}
    if realign == "deep":
        torch.manual_seed(3)
        heads = {name: MLPHead(deep_width(64), member.task.outputs).eval() for name, member in members.items()}
    merge = merge or CAT
    delta = merge_members(merge, members).delta
    recipe = {"method": method, "merge": merge, "realign": realign, "images": 10}
    backbone = {"name": TINY, "image_size": SIZE, "fingerprint": mark, "mean": [0.5] * 3, "std": [0.5] * 3}
    path = root / "models" / folder
    frozen = create_backbone(TINY, SIZE, weights_file(root))
    save_merged(path, frozen, members, Merged(Outcome(delta), heads, realign, 0.0, 0), recipe, backbone, scores)
    return path


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
