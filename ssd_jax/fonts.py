"""Fonts of the machine that have the letters of a text, of any script."""

import functools
import io
import itertools
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SUFFIXES = (".otc", ".otf", ".ttc", ".ttf")
_MOST_FONTS = 2_000
_MOST_TRIED = 4
_MOST_LETTERS = 1 << 17  # in a table of 16 bits
_MOST_TABLE = 1 << 24  # bytes of a font's table of letters
_WITHOUT_GLYPHS = ("adobeblank", "lastresort")  # fonts that have a box for every letter
_STYLES = ("bold", "black", "heavy", "italic", "oblique", "light", "thin", "mono", "serif")
_UNICODE = {(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 6), (3, 1), (3, 10)}  # of tables of letters


def load(text: str, size: float) -> Font | None:
    """A font that has all letters of a text: Pillow's own, else the first of the machine's.

    Args:
      text: The text to write.
      size: In pixels.

    Returns:
      The font; None where no font has them all.
    """
    if _has_all(_letters_of_default(), text):
        return _default(size)
    for path in _with_letters(text):
        try:
            return _of_file(path, size)
        except (OSError, ValueError):  # a bitmap font of one size, or not a font
            continue
    return None


@functools.lru_cache(maxsize=1024)
def _with_letters(text: str) -> tuple[Path, ...]:
    """Some fonts of the machine that have all letters of a text."""
    having = (path for path in of_machine() if _has_all(_letters_of(path), text))
    return tuple(itertools.islice(having, _MOST_TRIED))


@functools.cache
def of_machine() -> tuple[Path, ...]:
    """The fonts in the machine's font folders, upright sans-serif ones first."""
    found = {
        Path(place, name)
        for folder in _folders()
        for place, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(_SUFFIXES) and not name.lower().startswith(_WITHOUT_GLYPHS)
    }
    return tuple(sorted(found, key=_preference)[:_MOST_FONTS])


def _folders() -> Iterator[Path]:
    """Font folders of the platform."""
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", "C:/Windows"), "Fonts")
        yield home / "AppData/Local/Microsoft/Windows/Fonts"
    elif sys.platform == "darwin":
        yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts")
    else:
        yield from (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"))
        yield from (home / ".local/share/fonts", home / ".fonts")


def _preference(path: Path) -> tuple[int, int, str]:
    name = path.stem.lower().replace("sansserif", "")
    return sum(style in name for style in _STYLES), "sans" not in name, str(path)


@functools.lru_cache(maxsize=8)
def _default(size: float) -> Font:
    return ImageFont.load_default(size=size)


@functools.lru_cache(maxsize=8)
def _of_file(path: Path, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@functools.cache
def _letters_of_default() -> np.ndarray:
    """As `_letters_of`, of Pillow's own font."""
    font = _default(10)
    data = getattr(font, "font_bytes", b"")
    return _letters(io.BytesIO(data)) if data else np.array([[0x20, 0x7E]])


@functools.cache
def _letters_of(path: Path) -> np.ndarray:
    """`[N, 2]` first and last code points of the letters that a font file has glyphs for."""
    try:
        with path.open("rb") as file:
            return _letters(file)
    except (OSError, ValueError, struct.error):
        return np.zeros((0, 2), np.int64)


def _has_all(ranges: np.ndarray, text: str) -> bool:
    """Whether `[N, 2]` ascending ranges hold all letters of a text."""
    codes = np.unique([ord(letter) for letter in text if not letter.isspace()])
    if not len(ranges):
        return False
    place = np.maximum(np.searchsorted(ranges[:, 0], codes, side="right") - 1, 0)
    return bool(np.all((ranges[place, 0] <= codes) & (codes <= ranges[place, 1])))


def _letters(file: BinaryIO) -> np.ndarray:
    """As `_letters_of`, of an open file, by its `cmap`; of a collection the first font's."""
    start = 0
    if file.read(4) == b"ttcf":
        file.seek(12)
        (start,) = struct.unpack(">I", file.read(4))
    table = _cmap(file, start)
    (count,) = struct.unpack(">H", table[2:4])
    entries = struct.iter_unpack(">HHI", table[4 : 4 + 8 * count])
    subtables = [table[place:] for *kind, place in entries if tuple(kind) in _UNICODE]
    for beginning, mapped in ((b"\0\x0c", _mapped_32_bit), (b"\0\4", _mapped_16_bit)):
        for subtable in subtables:
            if subtable.startswith(beginning):
                return mapped(subtable)
    raise ValueError("a font without a table of Unicode letters")


def _cmap(file: BinaryIO, start: int) -> bytes:
    """Reads the character table of the font at `start`."""
    file.seek(start + 4)
    (count,) = struct.unpack(">H", file.read(2))
    file.seek(start + 12)
    for tag, _, offset, length in struct.iter_unpack(">4sIII", file.read(16 * count)):
        if tag == b"cmap":
            file.seek(offset)
            return file.read(min(length, _MOST_TABLE))
    raise ValueError("a font without a table of letters")


def _mapped_32_bit(table: bytes) -> np.ndarray:
    """`[N, 2]` ranges of the code points that have a glyph, of a subtable of format 12."""
    groups = np.frombuffer(table[16 : 16 + 12 * int.from_bytes(table[12:16])], ">u4")
    first, last, glyph = groups.reshape(-1, 3).astype(np.int64).T
    return np.stack([first + (glyph == 0), last], axis=1)


def _mapped_16_bit(table: bytes) -> np.ndarray:
    """Like `_mapped_32_bit` for format 4: segments in which some letters have no glyph."""
    count = int.from_bytes(table[6:8]) // 2
    words = np.frombuffer(table[: len(table) // 2 * 2], ">u2").astype(np.int64)
    ends, starts, deltas, offsets = (words[7 + k * count + (k > 0) :][:count] for k in range(4))
    lengths = np.maximum(ends - starts + 1, 0)
    if lengths.sum() > _MOST_LETTERS:
        raise ValueError("a font with overlapping segments of letters")
    segment = np.repeat(np.arange(count), lengths)
    within = np.arange(len(segment)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    codes, offset = starts[segment] + within, offsets[segment]
    place = 8 + 3 * count + segment + offset // 2 + within
    listed = words[np.minimum(place, len(words) - 1)]
    glyphs = np.where(offset > 0, listed, codes)
    mapped = (offset == 0) | (listed > 0)
    return _as_ranges(np.unique(codes[mapped & ((glyphs + deltas[segment]) & 0xFFFF > 0)]))


def _as_ranges(codes: np.ndarray) -> np.ndarray:
    """`[N, 2]` runs of ascending numbers."""
    breaks = np.flatnonzero(np.diff(codes) > 1) + 1
    runs = np.split(codes, breaks) if len(codes) else []
    return np.array([(run[0], run[-1]) for run in runs], np.int64).reshape(-1, 2)
