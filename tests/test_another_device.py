"""Training, merging and answering with the model on another device than the data: no result may tell which."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from merging.predicting import predict
from tests.another_device import another_device
from tests.merge_runs import command, merge_here
from tests.model_cases import merged
from tests.picture_files import noise, write_picture
from tests.runs import leaves, train_here
from tests.test_predict import config


def test_what_mixes_devices_is_told() -> None:
    with another_device() as there:
        away = torch.ones(3, 2).to(there)
        assert away.device == there
        assert ((away @ away.T).sum() * torch.tensor(2.0)).item() == 36
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            away + torch.ones(3, 2)
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            torch.ones(3)[torch.zeros(1, dtype=torch.long, device=there)]
        with pytest.raises(TypeError, match="can't convert"):
            away.numpy()
        assert away.cpu().numpy().sum() == 6


METHODS = [
    "merge=cat realign=[none,linear,deep]", "merge=tsv realign=head", "merge=gram_seq", "merge=regress",
    "merge=distill merge.steps=10", "merge=cat branch_at=3 realign=deep",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")  # said of this device's type, not of its data
@pytest.mark.parametrize("method", METHODS)
def test_merges(method: str, outputs: Path, tmp_path: Path, few_pictures: None) -> None:
    def numbers(place: str) -> list[list[float]]:
        (tmp_path / place).mkdir()
        (tmp_path / place / "adapters").symlink_to(outputs / "adapters")
        shared = command(tmp_path / place, "tasks=[dots,leaves]", "advice_images=null")
        found, _ = merge_here([*shared, *method.split()])
        return [[row[key] for key in ("score", "single")] for row in found["rows"]]

    here = numbers("here")
    with another_device():
        there = numbers("there")
    assert len(here) >= 2
    np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-3)


def test_training(tmp_path: Path) -> None:
    """Steps, evaluation, Grams, robustness, pictures and the bundle."""
    arguments = leaves(tmp_path, "gram_images=16", "trainer.precision=32-true")
    here, _ = train_here(arguments)
    with another_device():
        there, _ = train_here([*arguments, f"paths.outputs={tmp_path / 'there'}"])
    for part in ("metrics", "validation", "robustness"):
        assert there[part] == pytest.approx(here[part], rel=1e-3, abs=1e-5)
    files = sorted(Path(here["bundle"]).glob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        one, other = load_file(file), load_file(Path(there["bundle"]) / file.name)
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            torch.testing.assert_close(other[key], tensor, rtol=1e-2, atol=1e-4)


def test_answers(tmp_path: Path) -> None:
    model = merged(tmp_path, ["age", "leaves", "points"])
    for number in range(3):
        write_picture(tmp_path / "in" / f"{number}.png", noise(number, 50, 70))
    here = predict(config(tmp_path, model, tmp_path / "in"))
    told = Path(here["output"]).read_text()
    with another_device():
        there = predict(config(tmp_path, model, tmp_path / "in", f"output={tmp_path / 'there.csv'}"))
    assert Path(there["output"]).read_text() == told
