"""Prepares and iterates a large folder of small pictures, and prints the memory that it took: run by test_memory.py."""

import json
import logging
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def megabytes(field: str) -> float:
    """A field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def main(root: Path, cache: Path) -> None:
    from datamodules.datamodule import ImageDataModule
    from datamodules.image_folder import ImageFolder

    told = {"imported": megabytes("VmRSS")}
    data = ImageDataModule(
        ImageFolder(root), "classification", image_size=32, cache_root=cache, batch_size=256, num_workers=0,
        augment={"hflip": True, "brightness": 0.1},
    )  # fmt: skip
    data.prepare_data()
    told["prepared"] = megabytes("VmHWM")
    data.setup()
    for _ in range(2):
        for batch in data.train_dataloader():
            data.on_after_batch_transfer(batch, 0)
    for batch in data.val_dataloader():
        data.on_after_batch_transfer(batch, 0)
    told["examples"] = len(data.table)
    told["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(told))


if __name__ == "__main__":
    logging.disable()
    main(Path(sys.argv[1]), Path(sys.argv[2]))
