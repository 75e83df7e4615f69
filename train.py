"""Trains one adapter and head:  python train.py task=galaxy lora.rank=64

``--cfg job`` shows all that can be set, ``-m`` runs a sweep. What comes out lies in ``outputs/runs`` and
``outputs/adapters``. Exit codes: 0 done, 1 something failed, 2 the command was wrong.
"""

from typing import Any

from launch import logs
from launch.app import main
from launch.runs import Run
from launch.schema import TrainConfig
from launch.target import instantiate


def job(config: TrainConfig, run: Run) -> dict[str, Any]:
    """Looks for the data before torch is imported, which takes longer than everything up to here."""
    source = instantiate(config.data.source, config.data.arguments())
    source.check()
    from lightning_modules.training import train

    logs.take_over("lightning", "huggingface_hub")
    return train(config, run, source)


if __name__ == "__main__":
    main("train", TrainConfig, job)
