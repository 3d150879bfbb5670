import io
import re
import struct
import zlib

import numpy as np
import pytest
import voc_tree
from PIL import Image, ImageOps

from ssd_jax import errors
from ssd_jax.data import images

ORIENTATION = 0x0112


def oriented(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    return voc_tree.encoded(voc_tree.pixels(), kind, exif=exif, **options)


def close(actual: np.ndarray, expected: np.ndarray, tolerance: int = 8) -> bool:
    difference = np.abs(actual.astype(int) - expected.astype(int))
    return actual.shape == expected.shape and difference.max() <= tolerance


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF"])
def test_a_picture_of_every_common_kind_is_read(kind: str):
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = voc_tree.encoded(voc_tree.pixels(), kind, **options)
    image = images.decode(data, name="a")
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert close(image, voc_tree.pixels(), tolerance=30 if kind == "GIF" else 12)
    assert images.size(data, name="a") == (24, 32)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_becomes_three_equal_channels(kind: str):
    grey = voc_tree.pixels()[:, :, 0]
    image = images.decode(voc_tree.encoded(grey, kind), name="a")
    assert close(image, np.repeat(grey[:, :, None], 3, axis=2))
    assert np.all(image == image[:, :, :1])


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(kind: str):
    # Pillow marks its CMYK JPEGs as Adobe does, that is with inverted inks.
    red = Image.new("RGB", (32, 24), (250, 10, 10)).convert("CMYK")
    data = voc_tree.encoded(red, kind)
    assert close(images.decode(data, name="a"), np.full((24, 32, 3), (250, 10, 10), np.uint8))
    assert images.size(data, name="a") == (24, 32)


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    image = images.decode(voc_tree.encoded(values, "PNG"), name="a")
    assert image[0, :, 0].tolist() == [0, 1, 128, 255]


def test_16_bit_colour_is_scaled_not_clipped():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">6H", 0, 32896, 65535, 65535, 257, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    image = images.decode(b"\x89PNG\r\n\x1a\n" + body, name="a")
    assert image.tolist() == [[[0, 128, 255], [255, 1, 0]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_white(mode: str):
    image = Image.new(mode, (2, 1), (0, 0, 0, 255) if mode == "RGBA" else (0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    decoded = images.decode(voc_tree.encoded(image, "PNG"), name="a")
    assert decoded.tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_a_palette_with_transparency_and_one_bit_are_read():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    data = voc_tree.encoded(palette, "PNG", transparency=1)
    assert images.decode(data, name="a").tolist() == [[[10, 20, 30], [255, 255, 255]]]
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    data = voc_tree.encoded(bits, "PNG")
    assert images.decode(data, name="a").tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "blue")]
    data = voc_tree.encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert images.decode(data, name="a")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(kind: str, orientation: int):
    data = oriented(kind, orientation)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    image = images.decode(data, name="a")
    assert close(image, expected)
    assert images.size(data, name="a") == image.shape[:2]
    assert image.shape[0] == (24 if orientation < 5 else 32)


def test_broken_exif_is_upright():
    data = oriented("JPEG", 6).replace(b"Exif\0\0MM", b"Exif\0\0??").replace(b"\0\0II", b"\0\0??")
    assert images.decode(data, name="a").shape == (24, 32, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_picture_is_named(kind: str, share: float):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = voc_tree.encoded(noise, kind)
    with pytest.raises(errors.UserError, match=r"^x/a\.jpg: .*; replace or remove it$"):
        images.decode(data[: int(len(data) * share)], name="x/a.jpg")


@pytest.mark.parametrize("data", [b"", b"<html></html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_named(data: bytes):
    for read in (images.decode, images.size):
        with pytest.raises(errors.UserError, match=r"^a\.png: [^\n]*$"):
            read(data, name="a.png")


def test_48_megapixels_are_read_and_absurd_sizes_refused():
    assert images.decode(voc_tree.encoded(Image.new("1", (8000, 6000)), "PNG"), name="a").shape == (
        6000,
        8000,
        3,
    )
    data = voc_tree.encoded(Image.new("1", (30000, 30000)), "PNG")
    for read in (images.decode, images.size):
        with pytest.raises(errors.UserError, match=re.escape("a.png: not a readable image")):
            read(data, name="a.png")


def test_shrink_keeps_the_aspect_ratio_and_never_enlarges():
    image = voc_tree.pixels(60, 200)
    assert images.shrink(image, height=50, width=100).shape == (30, 100, 3)
    assert images.shrink(image, height=20, width=1000).shape == (20, 67, 3)
    assert images.shrink(image, height=60, width=200) is image
    assert images.shrink(voc_tree.pixels(1, 500), height=10, width=10).shape == (1, 10, 3)


def test_shrink_takes_means():
    image = np.array([[[0] * 3, [100] * 3], [[200] * 3, [100] * 3]], np.uint8)
    assert images.shrink(image, height=1, width=1).tolist() == [[[100, 100, 100]]]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("fit", [(100, 100), (37, 53), (300, 200), (2000, 2000)])
def test_a_picture_decoded_to_fit_is_the_whole_one_shrunk(orientation: int, fit: tuple[int, int]):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = voc_tree.encoded(voc_tree.pixels(480, 640), "JPEG", exif=exif, quality=95)
    whole = images.shrink(images.decode(data, name="a"), height=fit[0], width=fit[1])
    assert close(images.decode(data, name="a", fit=fit), whole)


@pytest.mark.parametrize("before", [b"", b"\xff\xff\xff", b"\xff\xe2\x00\x06Exif"])
def test_exif_is_found_behind_fill_bytes_and_other_segments(before: bytes):
    plain = oriented("JPEG", 6)
    assert images.size(plain[:2] + before + plain[2:], name="a") == (32, 24)


def test_a_jpeg_as_wide_as_the_room_is_decoded_there_and_others_are_not():
    room = np.zeros((40, 32, 3), np.uint8)
    data = oriented("JPEG", 1)
    picture = images.decode(data, name="a", into=room)
    assert np.shares_memory(picture, room)
    np.testing.assert_array_equal(room[:24], images.decode(data, name="a"))
    assert not room[24:].any()
    for other in (oriented("JPEG", 3), oriented("PNG", 1)):
        assert not np.shares_memory(images.decode(other, name="a", into=room), room)
    assert not np.shares_memory(images.decode(data, name="a", into=room[:23]), room)
