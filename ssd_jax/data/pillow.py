"""Reads images with Pillow within limits, whatever the file contains, and converts them to RGB.

Only the readers in `_READERS` are used, directly: other readers of Pillow start programs, and
`Image.open` warns of large images, which have their own limit here.
"""

import contextlib
import importlib
import io
import re
import threading
from collections.abc import Callable, Iterator

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ssd_jax import errors

FORMATS = "JPEG, PNG, WebP, BMP, GIF, TIFF, PPM or AVIF"

_LONGEST_SIDE = 1_000_000  # pixels; each row costs time and memory, however short it is
_LARGE = 1 << 26  # pixels from which Pillow decodes one image at a time
_MOST_MEMORY = 16  # bytes a pixel that a reader of Pillow takes, WebP's
_STRIP = 1 << 20  # pixels that are converted at a time
_GAP = rb"(\s|#[^\r\n]{0,200}[\r\n]){1,20}"  # in a PPM's header, which Pillow reads byte by byte
_Reader = type[ImageFile.ImageFile]


def _avif() -> list[tuple[bytes, _Reader]]:
    """Returns Pillow's AVIF reader, available from version 11.3."""
    try:
        plugin = importlib.import_module("PIL.AvifImagePlugin")
    except ImportError:
        return []
    return [(rb"....ftyp(avif|avis|mif1|msf1)", plugin.AvifImageFile)]


_READERS: list[tuple[bytes, _Reader]] = [
    (rb"\xff\xd8", JpegImagePlugin.JpegImageFile),
    (rb"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (rb"RIFF....WEBP", WebPImagePlugin.WebPImageFile),
    (rb"BM", BmpImagePlugin.BmpImageFile),
    (rb"GIF8[79]a", GifImagePlugin.GifImageFile),
    (rb"II[*+]\0|MM\0[*+]", TiffImagePlugin.TiffImageFile),
    (rb"P([14](G\d+){2}|[2356](G\d+){3})\s".replace(b"G", _GAP), PpmImagePlugin.PpmImageFile),
    *_avif(),
]
"""First bytes of each format and the reader of Pillow for it."""

_one_at_a_time = threading.Lock()


def check_size(height: int, width: int, name: str, max_megapixels: float) -> None:
    """Rejects images that are too large to decode.

    Raises:
      ValueError: If a side is longer than any image's.
      UserError: If it has more than `max_megapixels`.
    """
    if max(height, width) > _LONGEST_SIDE:
        raise ValueError(f"{width} x {height} pixels; no side may have more than {_LONGEST_SIDE}")
    if width * height > max_megapixels * 1e6:
        raise errors.UserError(
            f"{name}: not a readable image ({width} x {height} pixels are more than "
            f"{max_megapixels:g} megapixels); replace or remove it, or raise "
            f"config.data.max_megapixels"
        )


@contextlib.contextmanager
def opened(data: bytes, name: str, max_megapixels: float) -> Iterator[Image.Image]:
    """Opens an image without decoding its pixels; large images are opened one at a time."""
    with contextlib.ExitStack() as stack:
        try:
            image = _open(data)
            large = image.width * image.height > _LARGE
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            large = True
        if large:
            stack.enter_context(_without_bound_of_pillow())
            check_size(*_webp_size(data), name, max_megapixels)
            image = _open(data)
        check_size(image.height, image.width, name, max_megapixels)
        try:
            yield image
        finally:
            image.close()  # which also lets go of the pixels


def _open(data: bytes) -> ImageFile.ImageFile:
    for beginning, reader in _READERS:
        if re.match(beginning, data, re.DOTALL):
            with asking_for_memory(*_webp_size(data)):
                return reader(io.BytesIO(data))
    raise ValueError(f"not {FORMATS}")


@contextlib.contextmanager
def _without_bound_of_pillow() -> Iterator[None]:
    """Disables Pillow's global size limit in favor of the one given here."""
    with _one_at_a_time:
        bound, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = bound


def check_tiles(image: Image.Image) -> None:
    """Rejects a TIFF with tiles that take much more memory than its pixels."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        sides = (ExifTags.Base.TileWidth, ExifTags.Base.TileLength)
        width, height = (image.tag_v2.get(side, 0) for side in sides)
        if width * height > max(_STRIP, 4 * image.width * image.height):
            raise ValueError(f"tiles of {width} x {height} pixels")


@contextlib.contextmanager
def asking_for_memory(height: int, width: int) -> Iterator[None]:
    """Allocates the needed memory if a reader fails without a reason, to detect its lack.

    Raises:
      MemoryError: If there is too little; the readers of WebP and AVIF do not report it.
    """
    try:
        yield
    except (OSError, RuntimeError):
        np.empty(height * width * _MOST_MEMORY, np.uint8)
        raise


def _webp_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a WebP, which allocates memory when it is opened; 0 for other formats."""
    if not data.startswith(b"RIFF") or data[8:12] != b"WEBP":
        return 0, 0
    match data[12:16]:
        case b"VP8X":
            width, height = (int.from_bytes(data[k : k + 3], "little") + 1 for k in (24, 27))
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case _:
            width, height = (int.from_bytes(data[k : k + 2], "little") & 0x3FFF for k in (26, 28))
    return height, width


def stored_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an opened image, before Exif turns it."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # its `size` has them turned already
        return image.tag_v2[ExifTags.Base.ImageLength], image.tag_v2[ExifTags.Base.ImageWidth]
    return image.height, image.width


def orientation(image: Image.Image) -> int:
    """Returns Exif's orientation, 1 to 8; 1 (upright) if it is missing or unreadable."""
    return orientation_of(image.getexif)


def orientation_of(read_exif: Callable[[], Image.Exif]) -> int:
    """Returns the orientation from a function that reads Exif and may fail."""
    try:
        return int(read_exif().get(ExifTags.Base.Orientation, 1))
    except Exception as error:  # broken Exif does not affect the pixels
        if errors.is_of_machine(error):
            raise
        return 1


def rgb(image: Image.Image) -> np.ndarray:
    """Stored pixels of an opened image as `[H, W, 3]` uint8; those of a TIFF are upright already.

    Strip by strip, so that it takes little memory besides Pillow's pixels and the result.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits a channel")
    image.load()
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    columns = min(_STRIP, max(1, image.width))
    rows = max(1, _STRIP // columns)
    for top in range(0, image.height, rows):
        for left in range(0, image.width, columns):
            room = pixels[top : top + rows, left : left + columns]
            box = (left, top, left + room.shape[1], top + room.shape[0])
            room[:] = _part_as_rgb(image if room.shape == pixels.shape else image.crop(box))
    return pixels


def _part_as_rgb(image: Image.Image) -> np.ndarray:
    """Pixels as `[H, W, 3]` uint8, of gray ones `[H, W, 1]`."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        gray = np.clip(np.asarray(image).astype(np.int32), 0, 65535)
        return ((gray + 128) // 257).astype(np.uint8)[:, :, None]  # 65535 = 257 * 255
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
