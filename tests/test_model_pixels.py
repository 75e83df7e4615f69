"""Which mean and deviation a model normalises pictures by."""

from pathlib import Path

import pytest
import torch
from timm.models import PretrainedCfg

from merging.model import load
from tests.conftest import SIZE, TINY
from tests.model_cases import adapter, merged

MEAN, DEVIATION = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def test_pictures_are_normalised_by_the_models_mean_and_deviation(tmp_path: Path) -> None:
    model = load(merged(tmp_path, ["leaves"]))
    model.mean, model.std = MEAN, DEVIATION
    pixels = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normal = ((pixels / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).permute(0, 3, 1, 2)
    torch.testing.assert_close(model(pixels)["leaves"], model(normal)["leaves"], rtol=1e-4, atol=1e-4)


def test_an_adapters_are_those_that_its_backbone_was_pretrained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its card does not tell them."""
    path = adapter(tmp_path, "leaves")
    known = {TINY: PretrainedCfg(mean=MEAN, std=DEVIATION)}
    monkeypatch.setattr("merging.model.timm.get_pretrained_cfg", known.get)
    model = load(path)
    assert (model.mean, model.std) == (MEAN, DEVIATION)
