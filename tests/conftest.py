"""A tiny Vision Transformer and what hangs on it; nothing is fetched."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from lightning_modules.adapter import save_bundle
from lightning_modules.backbone import create_backbone, fingerprint, split_qkv
from lightning_modules.lora import add_lora, lora_config
from lightning_modules.model import MLPHead, MultiTaskModel

if TYPE_CHECKING:
    from tests.mirror import Mirror

TINY, SIZE = "test_vit", 32


@pytest.fixture
def vit() -> VisionTransformer:
    """timm's 6-block, 64-wide test model at 32 px with weights that are the same each time."""
    torch.manual_seed(7)
    return create_backbone(TINY, SIZE)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def randomize_lora(model: torch.nn.Module, seed: int = 0) -> None:
    """B is zero at the start; give it values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


class AppleTensor(torch.Tensor):
    """Like a tensor on an Apple GPU: it has no float64 until it is on the CPU."""

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs with the finished adapters of ``train_members``."""
    from tests.merge_runs import train_members  # which reads the sizes above

    return train_members(tmp_path_factory.mktemp("members"))


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator["Mirror"]:
    """A file server of this machine; broken downloads from it are tried again at once."""
    from datamodules import download
    from tests.mirror import serve

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with serve() as state:
        yield state


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distillation holds few pictures back and looks at them often, so that a few steps on the drawn ones suffice."""
    monkeypatch.setattr("merging.distill.HELD_OUT", 8)
    monkeypatch.setattr("merging.distill.CHECK_EVERY", 5)


@pytest.fixture
def bundle(tmp_path, vit):
    """Folder of a saved adapter for the task ``leaves`` with three classes, its model, the backbone's fingerprint."""
    mark = fingerprint(vit)
    config = lora_config(4, 8.0, ["k", "v"])
    add_lora(split_qkv(vit), config, init_seed=0)
    randomize_lora(vit)
    torch.manual_seed(0)
    model = MultiTaskModel(vit, {"leaves": MLPHead(vit.num_features, 3)}).eval()
    card = {
        "task": {"name": "leaves"},
        "data": {"name": "drawn", "fingerprint": "d" * 64},
        "backbone": {"name": TINY, "image_size": SIZE, "fingerprint": mark},
        "metrics": {"accuracy": 0.5},
        "seed": 0,
    }
    path = tmp_path / "adapters" / "leaves" / "r4-s0"
    save_bundle(path, model, "leaves", config, card)
    return path, model, mark
