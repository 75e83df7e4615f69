import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.crop import crop_region, crop_resize, to_crop
from datamodules.decode import BrokenImageError, read_image
from tests.picture_files import noise

GREY = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_modes_become_rgb(tmp_path: Path) -> None:
    wide = (GREY.astype(np.uint16) * 257).astype(np.uint16)
    grey_files = [
        save(tmp_path / "grey.png", Image.fromarray(GREY)),
        save(tmp_path / "wide.png", Image.fromarray(wide)),
        save(tmp_path / "wide.tif", Image.fromarray(wide)),
        save(tmp_path / "grey_alpha.png", Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (64, 48), 255)])),
        save(tmp_path / "palette.png", Image.fromarray(GREY).convert("P")),
    ]
    for file in grey_files:
        picture = read_image(file)
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, np.repeat(GREY[..., None], 3, 2), err_msg=file.name)


def test_sixteen_bits_are_rounded(tmp_path: Path) -> None:
    wide = np.array([[0, 128, 129, 65535], [257, 300, 40000, 65534]], np.uint16)
    picture = read_image(save(tmp_path / "w.png", Image.fromarray(wide)))
    np.testing.assert_array_equal(picture[..., 0], np.rint(wide / 257))


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:, 3:, 3] = 255
    picture = read_image(save(tmp_path / "a.png", Image.fromarray(pixels)))
    assert (picture[:, :3] == 255).all()
    assert (picture[:, 3:] == 0).all()
    palette = Image.new("P", (6, 4), 0)
    palette.putpalette([10, 20, 30, 200, 0, 0])
    assert (read_image(save(tmp_path / "p.png", palette, transparency=0)) == 255).all()


def test_cmyk_and_animation_and_orientation(tmp_path: Path) -> None:
    red = Image.new("RGB", (32, 16), (255, 0, 0))
    picture = read_image(save(tmp_path / "c.jpg", red.convert("CMYK"), quality=95))
    assert picture.shape == (16, 32, 3)
    assert picture[..., 0].min() > 240
    assert picture[..., 1:].max() < 20
    frames = [red, Image.new("RGB", (32, 16), (0, 255, 0))]
    picture = read_image(save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:]))
    assert tuple(picture[0, 0]) == (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    turned = read_image(save(tmp_path / "e.png", Image.fromarray(pixels), exif=exif))
    assert turned.shape == (32, 16, 3)
    assert turned[:16].min() == 255
    assert turned[16:].max() == 0


def test_large_jpeg_is_decoded_small(tmp_path: Path) -> None:
    smooth = np.zeros((400, 600, 3), np.uint8)
    smooth[..., 0] = np.linspace(0, 255, 600)
    file = save(tmp_path / "big.jpg", Image.fromarray(smooth), quality=95)
    small = read_image(file, side=48)
    assert small.shape == (100, 150, 3)
    whole = read_image(file)
    near = crop_resize(whole, crop_region(600, 400, None, "crop"), 48).astype(int)
    assert abs(crop_resize(small, crop_region(150, 100, None, "crop"), 48).astype(int) - near).max() <= 6
    assert read_image(file, side=150).shape == (400, 600, 3)


def huge_png(width: int, height: int) -> bytes:
    """A header that promises more pixels than there are; a decoder that trusts it needs gigabytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_broken_pictures_give_the_reason(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(0, 64, 64)).save(buffer, "JPEG")
    truncated_png = io.BytesIO()
    Image.fromarray(noise(0, 64, 64)).save(truncated_png, "PNG")
    contents = {
        "short.jpg": (buffer.getvalue()[:-500], "truncated"),
        "short.png": (truncated_png.getvalue()[:2000], "cannot be decoded"),
        "head.jpg": (buffer.getvalue()[:20], "not a picture|cannot be decoded"),
        "text.jpg": (b"<html>404</html>", "not a picture of a known format"),
        "empty.png": (b"", "not a picture"),
        "huge.png": (huge_png(20000, 20000), "20000 x 20000 pixels are more than the 100,000,000 allowed"),
    }
    for name, (content, reason) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BrokenImageError, match=reason):
            read_image(tmp_path / name)
    save(tmp_path / "line.png", Image.new("RGB", (1, 50)))
    with pytest.raises(BrokenImageError, match="only 1 x 50 pixels"):
        read_image(tmp_path / "line.png")
    with pytest.raises(BrokenImageError, match="missing"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(BrokenImageError, match="floating-point"):
        read_image(save(tmp_path / "f.tif", Image.fromarray(GREY.astype(np.float32))))


def test_postscript_never_reaches_its_interpreter(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(BrokenImageError, match="known format"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("fit", "region"), [("crop", (20, 0, 60, 40)), ("pad", (0, -20, 80, 60)), ("squash", (0, 0, 80, 40))]
)
def test_regions_of_a_whole_picture(fit, region) -> None:
    assert crop_region(80, 40, None, fit) == region


def test_box_beyond_the_picture_is_black_there() -> None:
    white = np.full((40, 80, 3), 255, np.uint8)
    image = crop_resize(white, crop_region(80, 40, (60, 0, 100, 40), "crop"), 20)
    assert image[:, :10].min() == 255
    assert image[:, 10:].max() == 0
    padded = crop_resize(white, crop_region(80, 40, None, "pad"), 40)
    assert padded[10:30].min() == 255
    assert padded[:10].max() == 0
    assert padded[30:].max() == 0


@pytest.mark.parametrize("box", [(10, 10, 10, 20), (5, 5, 1, 9), (90, 0, 99, 9), (0, 0, float("nan"), 9)])
def test_impossible_boxes_are_refused(box) -> None:
    with pytest.raises(BrokenImageError, match="crop box"):
        crop_region(80, 40, box, "squash")


@pytest.mark.parametrize("shape", [(2, 4000), (4000, 2), (3, 5), (500, 37)])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_any_shape_becomes_a_square(shape, fit) -> None:
    picture = np.full((*shape, 3), 255, np.uint8)
    image = crop_resize(picture, crop_region(shape[1], shape[0], None, fit), 16)
    assert image.shape == (16, 16, 3)
    assert image.max() == 255


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("box", [None, (10.5, 4.25, 90.0, 70.75), (-30.0, 10.0, 50.0, 130.0)])
def test_points_stay_on_what_they_mark(fit, box) -> None:
    """A blob drawn in the picture lies, in the crop, where the moved point says."""
    picture = np.zeros((90, 120, 3), np.uint8)
    y, x = np.mgrid[:90, :120] + 0.5
    point = np.array([[44.0, 38.5]])
    picture[...] = (255 * np.exp(-((x - point[0, 0]) ** 2 + (y - point[0, 1]) ** 2) / 18))[..., None]
    region = crop_region(120, 90, box, fit)
    image = crop_resize(picture, region, 64)[..., 0].astype(float)
    grid = (np.arange(64) + 0.5) / 64
    found = np.array([(image.sum(0) * grid).sum(), (image.sum(1) * grid).sum()]) / image.sum()
    np.testing.assert_allclose(found, to_crop(point, region)[0], atol=0.003)


def test_shrinking_is_bicubic_and_antialiased() -> None:
    picture = noise(0, 32, 32)
    wanted = np.asarray(Image.fromarray(picture).resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(crop_resize(picture, (0, 0, 32, 32), 16), wanted)
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(crop_resize(stripes, (0, 0, 64, 64), 8)[:, 1:-1].astype(int) - 127).max() <= 2
