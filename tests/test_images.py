import errno
import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import voc_tree
from PIL import Image, ImageOps

from ssd_jax import errors
from ssd_jax.data import images, jpeg, pillow

ORIENTATION = 0x0112
CASES = Path(__file__).parents[2] / "shared" / "cases"


def oriented(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    return voc_tree.encoded(voc_tree.pixels(), kind, exif=exif, **options)


def close(actual: np.ndarray, expected: np.ndarray, tolerance: int = 8) -> bool:
    difference = np.abs(actual.astype(int) - expected.astype(int))
    return actual.shape == expected.shape and difference.max() <= tolerance


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF"])
def test_a_image_of_every_common_kind_is_read(kind: str):
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = voc_tree.encoded(voc_tree.pixels(), kind, **options)
    image = images.decode(data, name="a")
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert close(image, voc_tree.pixels(), tolerance=30 if kind == "GIF" else 12)
    assert images.size(data, name="a") == (24, 32)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_gray_becomes_three_equal_channels(kind: str):
    gray = voc_tree.pixels()[:, :, 0]
    image = images.decode(voc_tree.encoded(gray, kind), name="a")
    assert close(image, np.repeat(gray[:, :, None], 3, axis=2))
    assert np.all(image == image[:, :, :1])


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(kind: str):
    # Pillow marks its CMYK JPEGs as Adobe does, that is with inverted inks.
    red = Image.new("RGB", (32, 24), (250, 10, 10)).convert("CMYK")
    data = voc_tree.encoded(red, kind)
    assert close(images.decode(data, name="a"), np.full((24, 32, 3), (250, 10, 10), np.uint8))
    assert images.size(data, name="a") == (24, 32)


def test_16_bit_gray_is_scaled_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    image = images.decode(voc_tree.encoded(values, "PNG"), name="a")
    assert image[0, :, 0].tolist() == [0, 1, 128, 255]


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *, kind: int, row: bytes) -> bytes:
    """A PNG of 16 bits a channel whose rows are all the same."""
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = zlib.compress((b"\0" + row) * height, 1)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_16_bit_color_is_scaled_not_clipped():
    row = struct.pack(">6H", 0, 32896, 65535, 65535, 257, 0)
    image = images.decode(png(2, 1, kind=2, row=row), name="a")
    assert image.tolist() == [[[0, 128, 255], [255, 1, 0]]]


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_take_little_memory_besides_the_result(kind: int, channels: int):
    side = 2000
    data = png(side, side, kind=kind, row=b"\x12\x34" * side * channels)
    tracemalloc.start()
    try:
        images.decode(data, name="a")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * side**2 + 24 * (1 << 20)  # the result, and a strip of a megapixel


def test_all_strips_of_a_large_image_are_right():
    values = np.random.default_rng(0).integers(0, 65536, (1100, 1900), dtype=np.uint16)
    image = images.decode(voc_tree.encoded(values, "TIFF"), name="a")
    np.testing.assert_array_equal(image[:, :, 1], np.round(values / 257).astype(np.uint8))
    rgba = np.random.default_rng(0).integers(0, 256, (1100, 1900, 4), dtype=np.uint8)
    opened = Image.fromarray(rgba)
    white = Image.alpha_composite(Image.new("RGBA", opened.size, "white"), opened).convert("RGB")
    np.testing.assert_array_equal(images.rgb(opened), np.asarray(white))


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
def test_a_truncated_image_is_named(kind: str, share: float):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = voc_tree.encoded(noise, kind)
    with pytest.raises(errors.UserError, match=r"^x/a\.jpg: .*; replace or remove it$"):
        images.decode(data[: int(len(data) * share)], name="x/a.jpg")


@pytest.mark.parametrize("data", [b"", b"<html></html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_named(data: bytes):
    for read in (images.decode, images.size):
        with pytest.raises(errors.UserError, match=r"^a\.png: [^\n]*$"):
            read(data, name="a.png")


def resized(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header says that it is of another size."""
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def test_images_up_to_179_megapixels_are_read():
    data = voc_tree.encoded(Image.new("L", (8, 8)), "JPEG")
    assert images.size(resized(data, 12000, 9000), name="a") == (9000, 12000)
    assert images.size(resized(data, 13377, 13377), name="a") == (13377, 13377)  # Pillow's limit
    line = (
        r"^a\.jpg: not a readable image \(13380 x 13380 pixels are more than 179 megapixels\); "
        r"replace or remove it, or raise config\.data\.max_megapixels$"
    )
    for read in (images.size, images.decode):
        with pytest.raises(errors.UserError, match=line):
            read(resized(data, 13380, 13380), name="a.jpg")
    assert images.size(resized(data, 30000, 30000), name="a", max_megapixels=900)[0] == 30000


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_the_bound_is_the_callers_and_not_that_of_pillow(monkeypatch, kind: str):
    data = voc_tree.encoded(voc_tree.pixels(), kind)
    with pytest.raises(errors.UserError, match="32 x 24 pixels are more than 0"):
        images.decode(data, name="a", max_megapixels=0.0007)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # where Pillow would warn, or refuse
    monkeypatch.setattr(pillow, "_LARGE", 20)
    assert images.decode(data, name="a").shape == (24, 32, 3)
    assert images.size(data, name="a") == (24, 32)
    assert Image.MAX_IMAGE_PIXELS == 20


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP"])
def test_a_header_that_claims_too_much_costs_nothing(kind: str):
    data = voc_tree.encoded(
        Image.new("RGB", (24, 24)), kind, **({"lossless": True} if kind == "WEBP" else {})
    )
    claims = {
        "JPEG": resized(data, 65000, 65000) if kind == "JPEG" else b"",
        "PNG": data[:8]
        + chunk(b"IHDR", struct.pack(">II", 2**31 - 1, 2**31 - 1) + data[24:29])
        + data[33:],
        "BMP": data[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + data[26:],
        "GIF": data[:6] + b"\xff" * 4 + data[10:],
        "PPM": data.replace(b"24 24", b"999999999 999999999"),
        "WEBP": data[:12] + b"VP8X\x0a\0\0\0\x10\0\0\0" + b"\xff" * 6 + data[12:],
    }
    tracemalloc.start()
    try:
        with pytest.raises(errors.UserError, match=r"^a: not a readable image \([^\n]*pixels"):
            images.decode(claims[kind], name="a")
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_tiles_that_are_larger_than_the_image_are_refused():
    data = voc_tree.encoded(Image.new("L", (100, 100)), "TIFF")
    with Image.open(io.BytesIO(data)) as opened:
        opened.tag_v2[322], opened.tag_v2[323] = 40000, 40000
        with pytest.raises(ValueError, match="tiles of 40000 x 40000 pixels"):
            pillow.check_tiles(opened)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_a_turned_tiff_is_that_of_its_pixels(orientation: int):
    data = oriented("TIFF", orientation)
    assert images.size(data, name="a") == images.decode(data, name="a").shape[:2]


def test_no_other_program_is_started(monkeypatch, tmp_path):
    program, mark = tmp_path / "gs", tmp_path / "mark"
    program.write_text(f"#!/bin/sh\necho started >> {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    data = voc_tree.encoded(Image.new("RGB", (8, 8)), "EPS")
    for read in (images.decode, images.size):
        with pytest.raises(errors.UserError, match=r"^a\.jpg: not a readable image \("):
            read(data, name="a.jpg")
    assert not mark.exists()
    with pytest.raises(OSError), Image.open(io.BytesIO(data)) as opened:  # noqa: PT011
        opened.load()
    assert mark.exists()  # which is what Pillow does by itself


@pytest.mark.parametrize("kind", ["DDS", "DIB", "EPS", "ICNS", "ICO", "PCX", "PDF", "SGI", "TGA"])
def test_formats_that_are_not_named_are_not_read(kind: str):
    image = Image.new("RGBA" if kind == "ICNS" else "RGB", (32, 32))
    with pytest.raises(errors.UserError, match="not JPEG, PNG, WebP, BMP, GIF, TIFF, PPM or AVIF"):
        images.decode(voc_tree.encoded(image, kind), name="a.png")


@pytest.mark.parametrize(
    "header", [b"P6 2 1 255\n", b"P6\n# a comment\n2 1\n#another\n255\n", b"P3\n2 1\n255\n"]
)
def test_ppm_is_read(header: bytes):
    plain = header.startswith(b"P3")
    pixels = b"1 2 3 4 5 6 " if plain else bytes(range(1, 7))
    assert images.decode(header + pixels, name="a").tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_of_a_phones_two_images_the_first_is_read():
    options = {"save_all": True, "append_images": [Image.new("RGB", (16, 16), "blue")]}
    data = voc_tree.encoded(Image.new("RGB", (32, 24), (250, 0, 0)), "MPO", **options)
    assert close(images.decode(data, name="a"), np.full((24, 32, 3), (250, 0, 0), np.uint8))


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (MemoryError(), "out of memory: free memory"),
        (ValueError("Insufficient memory (case 4)"), "out of memory: free memory"),
        (RuntimeError("Pixel allocation failed: Out of memory"), "out of memory: free memory"),
        (OSError(errno.EMFILE, "Too many open files"), "allow more open files"),
        (OSError(errno.EACCES, "Permission denied"), "give the permission"),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_trouble_of_the_machine_is_not_the_files(monkeypatch, kind: str, error, cure: str):
    data = voc_tree.encoded(voc_tree.pixels(), kind)

    def fails(*args, **options):
        raise error

    monkeypatch.setattr(simplejpeg, "decode_jpeg", fails)
    monkeypatch.setattr(Image.Image, "load", fails)
    with pytest.raises(errors.MachineError, match=f"^a: .*{cure}"):
        images.decode(data, name="a")


# --- JPEGs of which libjpeg warns ---


def photo(**options) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((208, 144), Image.Resampling.BICUBIC)
    return voc_tree.encoded(smooth, "JPEG", quality=90, **options)


def markers(data: bytes) -> list[tuple[int, int]]:
    """(place, kind) of each marker behind the start of an image, restarts among them."""
    found, place = [], 2
    while data[place + 1] != 0xD9:
        kind = data[place + 1]
        found.append((place, kind))
        if kind == 0xDA or 0xD0 <= kind <= 0xD7:
            place += 2
            while data[place] != 0xFF or data[place + 1] == 0:
                place += 1
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return [*found, (place, 0xD9)]


def with_junk(data: bytes, *kinds: int, junk: bytes = b"\x12" * 21) -> bytes:
    """A JPEG with bytes of nothing before each marker of some kinds."""
    for place, kind in reversed(markers(data)):
        if kind in kinds:
            data = data[:place] + junk + data[place:]
    return data


def with_scan_parameters(data: bytes, parameters: bytes) -> bytes:
    place = data.index(b"\xff\xda")
    end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return data[: end - 3] + parameters + data[end:]


def with_segment(data: bytes, kind: int, body: bytes) -> bytes:
    return data[:2] + bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2) + body + data[2:]


def with_jfif(data: bytes, major: int) -> bytes:
    return data[:11] + bytes([major]) + data[12:]


def adobe(transform: int) -> bytes:
    return b"Adobe\0\x64\0\0\0\0" + bytes([transform])


PLAIN, RESTARTS = photo(), photo(restart_marker_blocks=5)
PROGRESSIVE = photo(progressive=True)
WARNED = {
    "scan parameters": (PLAIN, with_scan_parameters(PLAIN, b"\0\0\0")),
    "other scan parameters": (PLAIN, with_scan_parameters(PLAIN, b"\1\x20\x11")),
    "before the end": (PLAIN, with_junk(PLAIN, 0xD9)),
    "stuffed bytes before the end": (PLAIN, with_junk(PLAIN, 0xD9, junk=b"\3\xff\0\4" * 9)),
    "before the tables": (PLAIN, with_junk(PLAIN, 0xDB, 0xC4)),
    "before the frame": (PLAIN, with_junk(PLAIN, 0xC0)),
    "before the scan": (PLAIN, with_junk(PLAIN, 0xDA, junk=b"\0")),
    "before one restart": (RESTARTS, with_junk(RESTARTS, 0xD3)),
    "before all restarts": (RESTARTS, with_junk(RESTARTS, *range(0xD0, 0xD8), 0xD9)),
    "a byte before restarts": (RESTARTS, with_junk(RESTARTS, *range(0xD0, 0xD8), junk=b"\7")),
    "before progressive scans": (PROGRESSIVE, with_junk(PROGRESSIVE, 0xC4, 0xDA, 0xD9)),
    "JFIF 2": (PLAIN, with_jfif(PLAIN, 2)),
    "JFIF 0": (PLAIN, with_jfif(PLAIN, 0)),
    "Adobe's transform": (PLAIN, with_segment(PLAIN[:2] + PLAIN[20:], 0xEE, adobe(7))),
    "a profile": (PLAIN, with_segment(PLAIN, 0xE2, b"ICC_PROFILE\0\5\2ab")),
    "several": (
        PLAIN,
        with_jfif(
            with_scan_parameters(with_junk(PLAIN, 0xC0, 0xC4, 0xD9), b"\0\0\0"), 3
        ),
    ),
}  # fmt: skip


def exif_6(data: bytes) -> bytes:
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    return with_segment(data, 0xE1, b"Exif\0\0" + turned.tobytes().removeprefix(b"Exif\0\0"))


@pytest.mark.parametrize("fault", WARNED)
def test_a_jpeg_whose_fault_costs_no_pixel_has_those_of_the_clean_one(fault: str):
    clean, data = WARNED[fault]
    cv2 = pytest.importorskip("cv2")
    with pytest.raises(ValueError, match=r"Corrupt|Invalid|Unknown|unknown"):
        simplejpeg.decode_jpeg(data)
    expected = simplejpeg.decode_jpeg(clean)
    np.testing.assert_array_equal(
        cv2.imdecode(np.frombuffer(data, np.uint8), 1)[..., ::-1], expected
    )
    remarks = []
    np.testing.assert_array_equal(images.decode(data, name="a", on_remark=remarks.append), expected)
    assert len(remarks) == 1
    assert remarks[0].startswith("the JPEG has a fault that costs no pixel (")
    assert images.size(data, name="a") == (144, 208)
    np.testing.assert_array_equal(
        images.decode(data, name="a", fit=(40, 40)), images.decode(clean, name="a", fit=(40, 40))
    )
    room = np.zeros((150, 208, 3), np.uint8)
    assert np.shares_memory(images.decode(data, name="a", into=room), room)
    np.testing.assert_array_equal(room[:144], expected)
    assert images.size(exif_6(data), name="a") == (208, 144)
    np.testing.assert_array_equal(images.decode(exif_6(data), name="a"), np.rot90(expected, -1))


def test_a_clean_jpeg_has_no_remark():
    remarks = []
    for data in (PLAIN, RESTARTS, PROGRESSIVE, PLAIN + b"behind the end"):
        images.decode(data, name="a", on_remark=remarks.append)
    assert not remarks


def cut(data: bytes, share: float, *, end: bytes = b"") -> bytes:
    begin = data.index(b"\xff\xda")
    return data[: begin + int((len(data) - begin) * share)].rstrip(b"\xff") + end


def without_restart(data: bytes, number: int) -> bytes:
    place = next(place for place, kind in markers(data) if kind == 0xD0 + number)
    return data[:place] + data[place + 2 :]


JUNK_AND_END = b"\x12" * 21 + b"\xff\xd9"
HARMED = {
    "cut": cut(PLAIN, 0.6),
    "cut, with an end": cut(PLAIN, 0.6, end=b"\xff\xd9"),
    "no end": PLAIN[:-2],
    "scan parameters, cut": cut(with_scan_parameters(PLAIN, b"\0\0\0"), 0.6),
    "scan parameters, no end": with_scan_parameters(PLAIN, b"\0\0\0")[:-2],
    "JFIF, cut": cut(with_jfif(PLAIN, 2), 0.6, end=b"\xff\xd9"),
    "before the frame, cut": cut(with_junk(PLAIN, 0xC0), 0.6, end=b"\xff\xd9"),
    "progressive, cut": cut(with_junk(PROGRESSIVE, 0xC4), 0.9, end=b"\xff\xd9"),
    "restarts, cut, bytes before the end": cut(RESTARTS, 0.5, end=JUNK_AND_END),
    "a restart is lost, bytes before another": with_junk(without_restart(RESTARTS, 5), 0xD1),
    "bytes before a restart, the end is cut": cut(
        with_junk(RESTARTS, 0xD0), 0.9, end=b"\xff\xd9"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", HARMED)
def test_a_jpeg_that_has_lost_pixels_is_refused_whatever_else_is_wrong(fault: str):
    assert simplejpeg.decode_jpeg_header(HARMED[fault], strict=False)[:2] == (144, 208)
    with pytest.raises(errors.UserError, match=r"^a: not a readable image"):
        images.decode(HARMED[fault], name="a")


@pytest.mark.skipif(not CASES.exists(), reason=f"no {CASES}")
def test_jpegs_of_phones_are_read_and_the_one_that_is_cut_off_is_named():
    folder = CASES / "jpeg_warnings"
    plain = images.decode((folder / "plain.jpg").read_bytes(), name="a")
    for name in ("16_bytes_before_eoi.jpg", "spectral_selection_0.jpg"):
        image = images.decode((folder / name).read_bytes(), name=name)
        np.testing.assert_array_equal(image, plain)
    with pytest.raises(errors.UserError, match=r"^b\.jpg: .*\(Premature end of JPEG file\)"):
        images.decode((folder / "no_eoi.jpg").read_bytes(), name="b.jpg")
    eps = (CASES / "hostile" / "encapsulated_postscript.jpg").read_bytes()
    with pytest.raises(errors.UserError, match="not a readable image"):
        images.decode(eps, name="a")


def test_cmyk_jpegs_are_repaired_too():
    clean = voc_tree.encoded(Image.new("RGB", (32, 24), (250, 10, 10)).convert("CMYK"), "JPEG")
    image = images.decode(with_junk(clean, 0xC4, 0xD9), name="a")
    np.testing.assert_array_equal(image, images.decode(clean, name="a"))
    with pytest.raises(errors.UserError, match="not a readable image"):
        images.decode(cut(with_junk(clean, 0xC4), 0.5, end=b"\xff\xd9"), name="a")


def test_a_small_file_of_many_scans_is_refused():
    data, (*_, last, end) = PROGRESSIVE, [place for place, _ in markers(PROGRESSIVE)]
    images.decode(data, name="a")
    many = data[:end] + data[last:end] * 40_000 + data[end:]
    with pytest.raises(errors.UserError, match=r"a JPEG of 400.. scans; of 29952 pixels at most"):
        images.decode(many, name="a")
    jpeg.check_scans(data, pixels=179_000_000)
    with pytest.raises(ValueError, match="at most 20 are read"):
        jpeg.check_scans(data[:end] + data[last:end] * 20 + data[end:], pixels=179_000_000)


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
def test_a_image_decoded_to_fit_is_the_whole_one_shrunk(orientation: int, fit: tuple[int, int]):
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
    image = images.decode(data, name="a", into=room)
    assert np.shares_memory(image, room)
    np.testing.assert_array_equal(room[:24], images.decode(data, name="a"))
    assert not room[24:].any()
    for other in (oriented("JPEG", 3), oriented("PNG", 1)):
        assert not np.shares_memory(images.decode(other, name="a", into=room), room)
    assert not np.shares_memory(images.decode(data, name="a", into=room[:23]), room)
