"""Trains one adapter and head:  python train.py task=galaxy lora.rank=64

``--cfg job`` shows all that can be set, ``-m`` runs a sweep. What comes out lies in ``outputs/runs`` and
``outputs/adapters``. Exit codes: 0 done, 1 something failed, 2 the command was wrong.
"""

from pathlib import Path
from typing import Any

from launch import logs
from launch.app import main
from launch.files import sha256_file
from launch.publishing import publish_again
from launch.runs import Run
from launch.schema import JointConfig, TrainConfig
from launch.target import instantiate


def job(config: TrainConfig | JointConfig, run: Run) -> dict[str, Any]:
    """Looks for the data before torch is imported, which takes longer than everything up to here."""
    singles = config.singles()
    sources = {name: instantiate(one.data.source, one.data.arguments()) for name, one in singles.items()}
    for source in sources.values():
        source.check()
    from lightning_modules.joint import train_joint
    from lightning_modules.training import train

    logs.take_over("lightning", "huggingface_hub")
    if isinstance(config, JointConfig):
        return train_joint(config, run, sources)
    return train(config, run, sources[config.name])


def weights_content(config: TrainConfig | JointConfig) -> dict[str, str]:
    """What the frozen weights' file holds, if they are one's own: another file at its path makes another run."""
    weights = config.backbone.weights
    if weights in ("hub", "package") or not (file := Path(weights).expanduser()).is_file():
        return {}
    return {"backbone.weights": sha256_file(file)}


if __name__ == "__main__":
    main("train", TrainConfig, job, inputs=weights_content, skipped=publish_again)
