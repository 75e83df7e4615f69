"""Test pictures with the answers of a merged model beside those of the single adapters."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.datamodule import normalize
from lightning_modules.examples import save_examples, spread
from lightning_modules.pictures import Answers
from merging.evaluate import Merged
from merging.features import read_features
from merging.workbench import Workbench, outputs


def save_merged_examples(
    folder: Path, bench: Workbench, merged: Merged, split: str, **told: str
) -> list[dict[str, Any]]:
    """Writes the pictures that training shows of each member, so that the two can be laid side by side.

    Only the pictures that are shown pass the merged backbone.

    Args:
        told: stands with each example, such as ``method`` and ``set``.

    Raises:
        UserError: the folder cannot be written.
    """
    tested, said = {}, {}
    for task, head in merged.heads.items():
        member, data = bench.members[task], bench.data[task]
        rows = torch.cat([batch["index"] for batch in data.plain_dataloader(split)]).numpy()
        chosen = spread(rows)
        images = normalize(torch.from_numpy(data.pictures(rows[chosen])).to(bench.device), data.mean, data.std)
        with bench.weights.folded(merged.delta) as model:
            features = read_features(model, [images], deep=merged.deep, dtype=bench.dtype)
        single = outputs(member.head, bench.single(task, split)[torch.from_numpy(chosen)])
        shaped = {
            name: _array(member.task.shape(x)) for name, x in (("single", single), ("merged", outputs(head, features)))
        }
        targets = _array(data.targets(split)[torch.from_numpy(chosen)])
        tested[task] = (member.task, Answers(shaped["single"], targets, rows[chosen]), data.pictures)
        said[task] = shaped["merged"]
    return save_examples(folder, tested, said, **told)


def _array(values: torch.Tensor) -> np.ndarray:
    return np.asarray(values.cpu())
