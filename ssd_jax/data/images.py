"""Bytes of an image file -> RGB pixels, whatever the file holds.

Ordinary 8-bit JPEGs are decoded by simplejpeg, which is quick, releases the GIL and refuses
corrupt data that others decode silently; everything else goes through Pillow, CMYK JPEGs after
simplejpeg has found them whole. Exif's orientation is applied.

Of Pillow the readers in `_READERS` are called by themselves: others of its readers start programs,
which no file's content is to do, and `Image.open` warns of large images, whose bound is given here.
"""

import contextlib
import importlib
import io
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import simplejpeg
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
from ssd_jax.data import jpeg

MAX_MEGAPIXELS = 179.0  # twice where Pillow begins to suspect a decompression bomb
FORMATS = "JPEG, PNG, WebP, BMP, GIF, TIFF, PPM or AVIF"

_LONGEST_SIDE = 1_000_000  # pixels; each row costs time and memory, however short it is
_LARGE = 1 << 26  # pixels from which Pillow decodes one image at a time
_MOST_MEMORY = 16  # bytes a pixel that a reader of Pillow takes, WebP's
_BYTES_PER_PIXEL = 8  # of the largest file that is read: four channels of 16 bits
_START_OF_SCAN = b"\xff\xda"  # of a JPEG: the segments before it say what its pixels are
_STRIP = 1 << 20  # pixels that are converted at a time
_SWAPPED_SIDES = (5, 6, 7, 8)  # Exif orientations that exchange height and width
_OUT_OF_MEMORY = re.compile(r"insufficient memory|out of memory|memory allocation", re.IGNORECASE)
_GAP = rb"(\s|#[^\r\n]{0,200}[\r\n]){1,20}"  # in a PPM's header, which Pillow reads byte by byte
_Reader = type[ImageFile.ImageFile]


def _avif() -> list[tuple[bytes, _Reader]]:
    """AVIF's reader, which Pillow has from version 11.3 on."""
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
"""How a file begins, and what of Pillow reads it."""

_one_at_a_time = threading.Lock()


def decode(
    data: bytes,
    *,
    name: str,
    fit: tuple[int, int] | None = None,
    into: np.ndarray | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    on_remark: Callable[[str], object] = lambda remark: None,
) -> np.ndarray:
    """Decodes an image file of any common kind.

    Grey, palette and CMYK images become RGB, 16 bits a channel are scaled to 8, transparent
    pixels are laid on white, and of an animation the first frame is taken. A JPEG with a fault that
    costs no pixel, of which libjpeg only warns, is read; see `jpeg.mended`.

    Args:
      data: The whole file, of one of `FORMATS`.
      name: What an error calls the image.
      fit: Largest (height, width) to return. A larger image is scaled down, keeping its aspect
        ratio; JPEGs then decode fewer pixels. None: every pixel.
      into: `[rows, W, 3]` uint8, contiguous. An upright JPEG of that very width and no more rows
        is decoded there, and the result is a view of it: a copy is saved. Others ignore it.
      max_megapixels: A larger image is refused before it is decoded: `config.data.max_megapixels`.
      on_remark: Called with a line on a fault that costs no pixel.

    Returns:
      `[H, W, 3]` uint8 RGB, the way up that Exif says.

    Raises:
      UserError: The data is empty, truncated, corrupt, no image or too large.
      MachineError: There is too little memory; this says nothing of the data.
    """
    with _blaming(data, name):
        if stored := _plain_jpeg_size(data):
            _check_size(*stored, name, max_megapixels)
            jpeg.check_scans(data, pixels=stored[0] * stored[1])
            image = _decode_jpeg(data, stored, fit, into, on_remark)
        else:
            image = _decode_other(data, name, max_megapixels, on_remark)
        return image if fit is None else shrink(image, height=fit[0], width=fit[1])


def rgb(image: Image.Image) -> np.ndarray:
    """Pixels of a PIL image as `decode` gives those of a file: `[H, W, 3]` uint8, upright.

    Raises:
      ValueError: The pixels are floating-point numbers.
    """
    pixels = _rgb(image)  # first: of a TIFF this turns it upright
    return _upright(pixels, _orientation(image))


def size(data: bytes, *, name: str, max_megapixels: float = MAX_MEGAPIXELS) -> tuple[int, int]:
    """Height and width that `decode` would return, in pixels, from the file's header alone.

    Raises:
      UserError: The header is that of no image, or of one of more than `max_megapixels`.
      MachineError: There is too little memory.
    """
    with _blaming(data, name):
        if stored := _plain_jpeg_size(data):
            height, width = stored
            orientation = _jpeg_orientation(data)
            _check_size(height, width, name, max_megapixels)
        else:
            with _opened(data, name, max_megapixels) as opened:
                (height, width), orientation = _stored_size(opened), _orientation(opened)
        return (width, height) if orientation in _SWAPPED_SIDES else (height, width)


def most_bytes(max_megapixels: float = MAX_MEGAPIXELS) -> int:
    """Bytes of the largest file that an image of so many megapixels is looked for in."""
    return (1 << 26) + int(min(max_megapixels, 1e6) * 1e6) * _BYTES_PER_PIXEL


def shrink(image: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Scales a picture down, never up, to fit within `height` x `width`, keeping its aspect ratio.

    Args:
      image: `[H, W, 3]` uint8.
      height: Most rows of the result, in pixels.
      width: Most columns of the result, in pixels.

    Returns:
      `[h, w, 3]` uint8, each pixel the mean of those it covers; `image` itself where it fits.
    """
    rows, columns = _fitted_size(image.shape[0], image.shape[1], (height, width))
    if (rows, columns) == image.shape[:2]:
        return image
    resized = Image.fromarray(image).resize((columns, rows), Image.Resampling.BOX)
    return np.asarray(resized)


def put(picture: np.ndarray, canvas: np.ndarray) -> None:
    """Writes a picture into the upper left corner of a canvas and black around it.

    Args:
      picture: `[H, W, 3]` uint8, perhaps a view of the canvas, where it then lies already.
      canvas: `[height, width, 3]` uint8 with room for it.
    """
    height, width = picture.shape[:2]
    if not np.may_share_memory(picture, canvas):  # else it was decoded there
        canvas[:height, :width] = picture
    canvas[:height, width:] = 0
    canvas[height:] = 0


def place(picture: np.ndarray, canvas: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts a picture into the upper left corner of a square canvas, shrunk if it must be.

    Args:
      picture: `[H, W, 3]` uint8.
      canvas: The canvas's side in pixels.

    Returns:
      `[canvas, canvas, 3]` uint8, and `[2]` float32 (height, width) of the picture on it.
    """
    picture = shrink(picture, height=canvas, width=canvas)
    image = np.empty((canvas, canvas, 3), np.uint8)
    put(picture, image)
    return image, np.array(picture.shape[:2], np.float32)


def _fitted_size(height: int, width: int, fit: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, fit[0] / height, fit[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


@contextlib.contextmanager
def _blaming(data: bytes, name: str) -> Iterator[None]:
    """Turns whatever a decoder raises into a UserError that names the image."""
    if not data:
        raise errors.UserError(f"{name}: the file is empty; replace or remove it")
    try:
        yield
    except errors.UserError:
        raise
    except Exception as error:  # Pillow's readers raise a dozen kinds, Warnings and SyntaxError too
        if errors.is_of_machine(error):
            raise errors.of_machine(error, name) from error
        if _OUT_OF_MEMORY.search(str(error)):
            raise errors.of_machine(MemoryError(), name) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise errors.UserError(
            f"{name}: not a readable image ({reason}); replace or remove it"
        ) from error


def _check_size(height: int, width: int, name: str, max_megapixels: float) -> None:
    if max(height, width) > _LONGEST_SIDE:
        raise ValueError(f"{width} x {height} pixels; no side may have more than {_LONGEST_SIDE}")
    if width * height > max_megapixels * 1e6:
        raise errors.UserError(
            f"{name}: not a readable image ({width} x {height} pixels are more than "
            f"{max_megapixels:g} megapixels); replace or remove it, or raise "
            f"config.data.max_megapixels"
        )


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) as stored of a JPEG that simplejpeg takes; None: Pillow is to read it."""
    if not data.startswith(jpeg.MAGIC):
        return None
    height, width, colors, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    return (height, width) if colors in jpeg.PLAIN_COLORS else None


def _decode_jpeg(
    data: bytes,
    stored: tuple[int, int],
    fit: tuple[int, int] | None,
    into: np.ndarray | None,
    on_remark: Callable[[str], object],
) -> np.ndarray:
    height, width = stored
    orientation = _jpeg_orientation(data)
    if into is not None and orientation == 1 and width == into.shape[1] and height <= len(into):
        _strictly(data, on_remark, colorspace="RGB", buffer=into[:height])
        return into[:height]
    at_least = (0, 0)
    if fit is not None:
        rows, columns = _fitted_size(
            height, width, fit[::-1] if orientation in _SWAPPED_SIDES else fit
        )
        if 2 * rows <= height:  # libjpeg's scales between a half and one are slower than one
            at_least = (rows, columns)
    image = _strictly(
        data, on_remark, colorspace="RGB", min_height=at_least[0], min_width=at_least[1]
    )
    return _upright(image, orientation)


def _strictly(data: bytes, on_remark: Callable[[str], object], **options: Any) -> np.ndarray:
    """The pixels of a JPEG, all of which are as they were encoded.

    Args:
      data: The file.
      on_remark: Called with a line on a fault that costs none of them.
      **options: Of simplejpeg.
    """
    try:
        return simplejpeg.decode_jpeg(data, **options)
    except ValueError as error:
        warning = str(error)
        if not jpeg.is_harmless(warning):
            raise
    pixels = simplejpeg.decode_jpeg(jpeg.mended(data), **options)
    on_remark(f"the JPEG has a fault that costs no pixel ({warning})")
    return pixels


def _decode_other(
    data: bytes, name: str, max_megapixels: float, on_remark: Callable[[str], object]
) -> np.ndarray:
    """The upright pixels of a file that is no plain JPEG, by Pillow."""
    with _opened(data, name, max_megapixels) as opened:
        if data.startswith(jpeg.MAGIC):  # of which Pillow takes half-destroyed ones
            jpeg.check_scans(data, pixels=opened.height * opened.width)
            _strictly(data, on_remark, colorspace="CMYK")
        _check_tiles(opened)
        with _asking_for_memory(opened.height, opened.width):
            pixels = _rgb(opened)
        orientation = _orientation(opened)
    return _upright(pixels, orientation)


@contextlib.contextmanager
def _opened(data: bytes, name: str, max_megapixels: float) -> Iterator[Image.Image]:
    """The image of a file, whose pixels Pillow has not decoded yet; large ones one at a time."""
    with contextlib.ExitStack() as stack:
        try:
            opened = _open(data)
            large = opened.width * opened.height > _LARGE
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            large = True
        if large:
            stack.enter_context(_without_bound_of_pillow())
            _check_size(*_webp_size(data), name, max_megapixels)
            opened = _open(data)
        _check_size(opened.height, opened.width, name, max_megapixels)
        try:
            yield opened
        finally:
            opened.close()  # which also lets go of the pixels


def _open(data: bytes) -> ImageFile.ImageFile:
    for beginning, reader in _READERS:
        if re.match(beginning, data, re.DOTALL):
            with _asking_for_memory(*_webp_size(data)):
                return reader(io.BytesIO(data))
    raise ValueError(f"not {FORMATS}")


@contextlib.contextmanager
def _without_bound_of_pillow() -> Iterator[None]:
    """Pillow's bound, which is the whole process's, is replaced by the one given here."""
    with _one_at_a_time:
        bound, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = bound


def _check_tiles(image: Image.Image) -> None:
    """Refuses a TIFF whose tiles take much more memory than its pixels."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        sides = (ExifTags.Base.TileWidth, ExifTags.Base.TileLength)
        width, height = (image.tag_v2.get(side, 0) for side in sides)
        if width * height > max(_STRIP, 4 * image.width * image.height):
            raise ValueError(f"tiles of {width} x {height} pixels")


@contextlib.contextmanager
def _asking_for_memory(height: int, width: int) -> Iterator[None]:
    """Where a reader fails without a reason, asks for the memory that it needs.

    Raises:
      MemoryError: There is too little, which the readers of WebP and AVIF don't say.
    """
    try:
        yield
    except (OSError, RuntimeError):
        np.empty(height * width * _MOST_MEMORY, np.uint8)
        raise


def _webp_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a WebP, which takes memory as soon as it is opened; of others 0."""
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


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an opened image, before Exif turns it."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # its `size` has them turned already
        return image.tag_v2[ExifTags.Base.ImageLength], image.tag_v2[ExifTags.Base.ImageWidth]
    return image.height, image.width


def _jpeg_orientation(data: bytes) -> int:
    """Exif's orientation of a JPEG; one without Exif, the usual case, is not opened for it."""
    if not _may_have_exif(data):
        return 1
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as opened:
            return _orientation(opened)
    except (SyntaxError, OSError, ValueError):  # bytes between the segments, which libjpeg passes
        return _orientation_of(lambda: _exif_of(jpeg.exif(data)))


def _exif_of(segment: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(segment)
    return exif


def _may_have_exif(data: bytes) -> bool:
    """Walks a JPEG's segments up to its pixels."""
    place = 2
    while data.startswith(b"\xff", place):
        if data.startswith(_START_OF_SCAN, place):
            return False
        if data.startswith(b"Exif\0\0", place + 4):
            return True
        padding = data.startswith(b"\xff\xff", place)
        place += 1 if padding else 2 + int.from_bytes(data[place + 2 : place + 4])
    return True  # oddly built: Pillow is to say


def _orientation(image: Image.Image) -> int:
    """Exif's orientation, 1 to 8; 1 (upright) where there is none or Exif is unreadable."""
    return _orientation_of(image.getexif)


def _orientation_of(read_exif: Callable[[], Image.Exif]) -> int:
    try:
        return int(read_exif().get(ExifTags.Base.Orientation, 1))
    except Exception as error:  # broken Exif says nothing about the pixels
        if errors.is_of_machine(error):
            raise
        return 1


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns stored pixels the way up that Exif's `orientation` says."""
    match orientation:
        case 2:
            image = image[:, ::-1]
        case 3:
            image = image[::-1, ::-1]
        case 4:
            image = image[::-1]
        case 5:
            image = image.swapaxes(0, 1)
        case 6:
            image = np.rot90(image, -1)
        case 7:
            image = image[::-1, ::-1].swapaxes(0, 1)
        case 8:
            image = np.rot90(image)
    return np.ascontiguousarray(image)


def _rgb(image: Image.Image) -> np.ndarray:
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
    """Pixels as `[H, W, 3]` uint8, of grey ones `[H, W, 1]`."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.clip(np.asarray(image).astype(np.int32), 0, 65535)
        return ((grey + 128) // 257).astype(np.uint8)[:, :, None]  # 65535 = 257 * 255
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
