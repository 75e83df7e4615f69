"""A stand-in for train.py whose job does what its name says: ``python launch_job.py name=slow ...``."""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.app import main
from launch.runs import Run
from launch.schema import TrainConfig


def job(config: TrainConfig, run: Run) -> dict:
    """Fails, waits, dies or fills the disk, and says whether it went on from something."""
    resumed = (run.path / "working").exists()
    (run.path / "working").write_text("")
    if config.name == "kill" and not resumed:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.name == "slow":
        for _ in range(600):
            if Path("go").exists():
                break
            time.sleep(0.1)
    if config.name == "disk":
        (run.path / "last.ckpt").write_bytes(bytes(1_000_000))
    if config.lora.rank == 3 and not Path("fixed").exists():
        raise ValueError("three is bad")
    return {"metric": "accuracy", "score": config.lora.rank / 10, "resumed": resumed, "torch": "torch" in sys.modules}


if __name__ == "__main__":
    main("train", TrainConfig, job)
