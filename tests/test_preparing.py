"""What ``prepare.py`` tells and caches is what training then finds, whatever the config asks for."""

from pathlib import Path

from datamodules.image_folder import ImageFolder
from datamodules.preparing import prepare
from launch.app import CONF
from launch.compose import Composer
from launch.config import first_config
from launch.prepare_schema import PrepareConfig
from launch.runs import describe_run
from launch.schema import TrainConfig
from lightning_modules.building import build_datamodule
from tests.picture_files import noise, write_classes, write_picture

SETTINGS = (
    "data.size=30", "data.split_seed=3", "data.val_fraction=0.2", "data.test_fraction=0.1", "data.fit=pad",
    "data.classes={x:[ash,oak],y:[elm]}", "data.max_pixels=1000", "data.max_broken=0.2",
)  # fmt: skip


def test_what_is_prepared_is_what_is_trained_on(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "leaves", {"ash": 20, "oak": 20, "elm": 5, "fir": 5})
    for number in range(2):
        write_picture(root / "elm" / f"large {number}.png", noise(90 + number, 40, 30))
    own = ["task=classification", "data=image_folder", f"data.root={root}", f"paths.outputs={tmp_path}", "logger=csv"]
    composer = Composer("prepare", CONF)
    plain = first_config(composer, composer.parse([*own, *SETTINGS, "image_size=16"], multirun=False))
    told = prepare(PrepareConfig.model_validate(plain), describe_run("prepare", "leaves", plain, kept=False))
    composer = Composer("train", CONF)
    more = ["name=leaves", "backbone=vit_tiny", "backbone.image_size=16"]
    plain = first_config(composer, composer.parse([*own, *SETTINGS, *more], multirun=False))
    data = build_datamodule(TrainConfig.model_validate(plain), ImageFolder(root))
    data.prepare_data()
    data.setup()
    assert [path.name[:7] for path in (tmp_path / "cache").iterdir() if path.is_dir()].count("leaves-") == 1
    assert data.dropped == {"class not in data.classes": 5, "downsampled to data.size": 17, "broken picture": 2}
    assert {name: sum(counts.values()) for name, counts in data.counts.items()} == {"train": 19, "val": 6, "test": 3}
    assert told["score"] == 28
    assert told["data"]["leaves"]["classification"] == {
        "fingerprint": data.fingerprint, "read": 52, "dropped": data.dropped, "counts": data.counts,
        "notes": data.notes,
    }  # fmt: skip
