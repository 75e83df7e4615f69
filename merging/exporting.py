"""Models for other programs, each compared with PyTorch before it is written."""

import contextlib
import importlib.util
import itertools
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.torch
import torch
from torch import Tensor, nn

from datamodules.datamodule import normalize
from launch.errors import DataError, UserError
from launch.export_schema import ExportConfig
from launch.files import atomic_folder, write_json
from launch.provenance import provenance
from lightning_modules.backbone import create_backbone, set_fused_attention
from lightning_modules.model import MLPHead
from merging.answers import look, sights
from merging.export_scores import score_both
from merging.features import TokenReader
from merging.hub import push, resolve
from merging.model import AnsweringModel, load
from merging.picture_list import check_images, list_pictures
from merging.predict import output_drift

log = logging.getLogger(__name__)
OPSET = 18
ONNX, PT2, CHECKPOINT, HEADS, CARD = "model.onnx", "model.pt2", "backbone.safetensors", "heads.safetensors", "card.json"
_BATCH, _ROUNDS = 16, 5
Answers = dict[str, np.ndarray]


class ExportError(UserError):
    """An exported model that does not answer as the original does."""


class Named(nn.Module):
    """(B, 3, S, S) -> outputs in the order of the tasks, as exporters want them."""

    def __init__(self, model: AnsweringModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(images).values())


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes ``config.folder`` whole, or leaves what was there.

    Returns:
        The address on the Hub, or the card: ``files`` with sizes, ``difference``, ``drift`` and ``agreement`` by task,
        ``images_per_second`` of both; of int8 also ``scores`` and ``not_scored`` (see ``score_both``).

    Raises:
        ExportError: an answer differs by more than ``tolerance``.
        HubError: the Hub does not take it.
        UserError: onnxruntime is not installed.
    """
    if config.hub is not None:
        address = push(resolve(config.model), config.hub, private=config.private)
        log.info("Uploaded: %s", address)
        return {"output": address}
    if config.format == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        raise UserError("format=onnx needs onnxruntime to compare the model in: pip install -e '.[export]'")
    check_images(config.image_list)
    model = load(resolve(config.model), config.backbone.weights, Path(config.paths.outputs) / "cache")
    images = test_images(model, config)
    wanted = {name: value.numpy() for name, value in _answers(model, images).items()}
    folder = Path(config.folder).expanduser()
    with atomic_folder(folder) as temporary:
        if config.format == "onnx":
            run = write_onnx(model, temporary / ONNX, int8=config.int8)
        elif config.format == "torch_export":
            run = write_program(model, temporary / PT2)
        else:
            run = write_timm(model, temporary)
        found = _in_batches(run, images)
        card = _card(model, config) | compare(model, wanted, found)
        worst = max(card["difference"].values())
        if not config.int8 and not worst <= config.tolerance:
            raise ExportError(
                f"{folder} is not written: its answers differ from PyTorch's by {worst:.2g}, more than "
                f"tolerance={config.tolerance:g} (on {len(images)} pictures; by task: {card['difference']})."
            )
        part = images[:_BATCH]
        card |= {
            "files": {path.name: path.stat().st_size for path in sorted(temporary.iterdir())},
            "checked_on": {"images": len(images), "source": "drawn noise" if config.images is None else "pictures"},
            "images_per_second": {
                "pytorch": round(_speed(lambda: _answers(model, part), len(part)), 1),
                config.format: round(_speed(lambda: run(part.numpy()), len(part)), 1),
            },
        }
        if config.int8 and config.score_images is not None:
            card |= score_both(model, run, config.score_images, config.roots, Path(config.paths.outputs) / "cache")
        write_json(temporary / CARD, card)
    speeds = ", ".join(f"{name} {value:g} images/s" for name, value in card["images_per_second"].items())
    log.info("%s: largest difference %.2g on %d pictures; %s", folder, worst, len(images), speeds)
    _tell_scores(card)
    return {"output": str(folder), **card}


def _tell_scores(card: Mapping[str, Any]) -> None:
    for task, told in card.get("scores", {}).items():
        log.info(
            "%s, %s on %d test pictures: %.4f before, %.4f in int8",
            task,
            told["metric"],
            told["images"],
            told["pytorch"],
            told["export"],
        )
    for task, reason in card.get("not_scored", {}).items():
        log.warning("%s: what int8 costs in score is not known (%s)", task, reason)


def test_images(model: AnsweringModel, config: ExportConfig) -> Tensor:
    """Normalised images (N, 3, S, S): pictures cropped as the first task sees them, or seeded noise.

    Raises:
        DataError: not one picture can be read.
    """
    if not config.image_list:
        noise = np.random.default_rng(0).integers(
            0, 256, (min(config.count, 32), model.image_size, model.image_size, 3)
        )
        return normalize(torch.from_numpy(noise.astype(np.uint8)), model.mean, model.std)
    sight = next(iter(sights(model.tasks, faces=False)))
    paths = itertools.islice(list_pictures(config.image_list), config.count)
    crops = [
        seen.crops[sight]
        for path in paths
        for seen in look(path, str(path), [sight], model.image_size)
        if sight in seen.crops
    ]
    if not crops:
        raise DataError(f"images={','.join(config.image_list)}: not one of these pictures can be read.")
    return normalize(torch.from_numpy(np.stack(crops)), model.mean, model.std)


def write_onnx(model: AnsweringModel, path: Path, *, int8: bool) -> Callable[[np.ndarray], Answers]:
    """Writes one graph: ``images`` float32 (batch, 3, S, S), normalised, to an output for each task.

    The metadata hold what a program needs beside it, as JSON: ``image_size``, ``mean``, ``std`` and ``tasks``.

    Args:
        int8: matrix products with weights as 8-bit integers, activations quantised as they come.

    Returns:
        The model as onnxruntime runs it from the file.
    """
    names = list(model.tasks)
    example = torch.zeros(2, 3, model.image_size, model.image_size)
    plain = path.with_name("plain.onnx") if int8 else path
    set_fused_attention(model, False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(  # the exporter of dynamo would need another package
                Named(model).eval(), (example,), str(plain), dynamo=False, opset_version=OPSET, input_names=["images"],
                output_names=names, dynamic_axes={name: {0: "batch"} for name in ["images", *names]},
            )  # fmt: skip
    finally:
        set_fused_attention(model, True)
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with _quiet_root():
            quantize_dynamic(
                str(plain), str(path), weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"]
            )
        plain.unlink()
    graph = onnx.load(str(path))
    told = {"image_size": model.image_size, "mean": model.mean, "std": model.std, "tasks": task_table(model)}
    onnx.helper.set_model_props(graph, {key: json.dumps(value) for key, value in told.items()})
    graph.producer_name, graph.doc_string = "lora-alloy", ""
    onnx.checker.check_model(graph)
    onnx.save(graph, str(path))
    return onnx_runner(path)


@contextlib.contextmanager
def _quiet_root() -> Iterator[None]:
    """Takes what is logged by the root logger itself: onnxruntime tells it of each product that it leaves in float."""

    def refuse(_: logging.LogRecord) -> bool:
        return False

    root = logging.getLogger()
    root.addFilter(refuse)
    try:
        yield
    finally:
        root.removeFilter(refuse)


def onnx_runner(path: Path) -> Callable[[np.ndarray], Answers]:
    """An ONNX model on the CPU: normalised images (B, 3, S, S) to outputs by task."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


def write_program(model: AnsweringModel, path: Path) -> Callable[[np.ndarray], Answers]:
    """Writes a torch.export program with a dynamic batch; loaded with ``torch.export.load(FILE).module()``."""
    example = torch.zeros(2, 3, model.image_size, model.image_size)
    batch = torch.export.Dim("batch", min=1, max=4096)
    with torch.no_grad():
        program = torch.export.export(
            Named(model).eval(), (example,), dynamic_shapes={"images": {0: batch}}, strict=False
        )
    torch.export.save(program, path)
    loaded, names = torch.export.load(path).module(), list(model.tasks)

    def run(images: np.ndarray) -> Answers:
        with torch.no_grad():
            return {name: value.numpy() for name, value in zip(names, loaded(torch.from_numpy(images)), strict=True)}

    return run


def write_timm(model: AnsweringModel, folder: Path) -> Callable[[np.ndarray], Answers]:
    """Writes a plain timm checkpoint and the heads.

    ``timm.create_model(NAME, img_size=S, num_classes=0, checkpoint_path=FILE)`` reads the first.
    ``heads.safetensors`` has ``<task>.hidden`` and ``<task>.output``: Linear, ReLU, Linear on the class token (d), or
    on deep features (8 d, ``merging.features``) where the model was realigned deep.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in sorted(model.backbone.state_dict().items())}
    heads = {name: value.detach().cpu().contiguous() for name, value in sorted(model.heads.state_dict().items())}
    safetensors.torch.save_file(state, folder / CHECKPOINT, metadata={"format": "pt"})
    safetensors.torch.save_file(heads, folder / HEADS, metadata={"format": "pt"})
    loaded = create_backbone(model.card["backbone"]["name"], model.image_size, folder / CHECKPOINT)
    own = _read_heads(safetensors.torch.load_file(folder / HEADS), list(model.tasks))

    @torch.no_grad()
    def run(images: np.ndarray) -> Answers:
        with TokenReader(loaded) as reader:
            token = loaded(torch.from_numpy(images))
            deep = reader.take()
        inputs = {token.shape[1]: token, deep.shape[1]: deep}
        return {name: head(inputs[head.hidden.in_features]).numpy() for name, head in own.items()}

    return run


def _read_heads(state: Mapping[str, Tensor], names: list[str]) -> dict[str, MLPHead]:
    heads = {}
    for name in names:
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        heads[name] = MLPHead.from_state_dict(own)
    return heads


def compare(model: AnsweringModel, wanted: Answers, found: Answers) -> dict[str, Any]:
    """By task: largest difference, relative to the largest output where that is above 1; drift; for classes agreement.

    ``drift`` is ``output_drift``, None of a single picture; ``agreement`` the fraction of pictures with the same class.
    """
    difference, drift, agreement = {}, {}, {}
    for name, value in wanted.items():
        scale = max(1.0, float(np.abs(value).max()))
        difference[name] = float(np.abs(value - found[name]).max()) / scale
        task = model.tasks[name].task
        tensors = torch.from_numpy(value), torch.from_numpy(found[name])
        drift[name] = output_drift(task, *tensors) if len(value) > 1 else None
        if task.kind == "classification":
            agreement[name] = float((value.argmax(1) == found[name].argmax(1)).mean())
    return {"difference": difference, "drift": drift, "agreement": agreement}


def task_table(model: AnsweringModel) -> dict[str, Any]:
    """What a program must know of each output: kind, classes, fit, factor and unit."""
    return {
        name: {
            "kind": view.task.kind, "classes": None if view.task.classes is None else list(view.task.classes),
            "fit": view.fit, "face_scale": view.face_scale, "factor": view.factor, "unit": view.unit,
        }
        for name, view in model.tasks.items()
    }  # fmt: skip


def _card(model: AnsweringModel, config: ExportConfig) -> dict[str, Any]:
    return {
        "model": Path(config.model).name,
        "format": config.format,
        "int8": config.int8,
        "backbone": model.card["backbone"],
        "recipe": model.card.get("recipe"),
        "tasks": task_table(model),
        "provenance": provenance(),
    }


@torch.no_grad()
def _answers(model: AnsweringModel, images: Tensor) -> dict[str, Tensor]:
    parts = [model(part) for part in images.split(_BATCH)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _in_batches(run: Callable[[np.ndarray], Answers], images: Tensor) -> Answers:
    parts = [run(part.numpy()) for part in _uneven(images)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _uneven(images: Tensor) -> Iterator[Tensor]:
    """First a batch of one, so that a graph which has learned its example's batch size is found out."""
    yield images[:1]
    if len(images) > 1:
        yield from images[1:].split(_BATCH)


def _speed(work: Callable[[], object], images: int) -> float:
    work()
    seconds = []
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return images / statistics.median(seconds)
