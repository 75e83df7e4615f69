"""Takes a model to other programs:  python export.py model=outputs/models/NAME format=onnx

``format=onnx`` is one graph with an output for each task, ``torch_export`` the same as a torch.export program, ``timm``
a plain timm checkpoint and the heads. Each is compared with PyTorch on the same pictures before it is written;
card.json has the differences, sizes and speeds. ``format=hub`` uploads the model as it is, with a model card.
Exit codes: 0 done, 1 something failed, 2 the command was wrong.
"""

from pathlib import Path
from typing import Any

from launch import logs
from launch.app import main
from launch.bundles import CARD, require_model
from launch.export_schema import ExportConfig
from launch.files import require_replaceable
from launch.runs import Run


def job(config: ExportConfig, run: Run) -> dict[str, Any]:
    """Imports torch and the like only now: a fault in the command should not wait for them."""
    require_model(config.model)
    if config.format != "hub":
        require_replaceable(Path(config.folder).expanduser(), CARD, "format", (CARD, "model.*", "*.safetensors"))
    from merging.picture_list import check_images

    check_images(config.image_list)
    from merging.exporting import export

    logs.take_over("lightning", "huggingface_hub")
    return export(config)


if __name__ == "__main__":
    main("export", ExportConfig, job, keeps_run=False)
