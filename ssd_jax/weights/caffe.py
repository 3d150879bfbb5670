"""Caffe's .caffemodel: the few fields of its protocol buffer that hold names and numbers.

Field numbers are those of caffe.proto: a NetParameter has layers (100, or 2 in files of before
2014), a layer has a name and blobs, a blob has a shape and packed float32.
"""

import math
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ssd_jax.weights import names

# name = 1 or a first layer, by field number and the wire type of what has a length.
BEGINNINGS = (b"\x0a", b"\x12", b"\xa2\x06")

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


class _Fields(NamedTuple):
    """Field numbers of a layer's message."""

    name: int
    blobs: int


_LAYERS = {100: _Fields(name=1, blobs=7), 2: _Fields(name=4, blobs=6)}  # by field of the net
_SHAPE, _DATA, _DOUBLE_DATA = 7, 5, 8
_OLD_SHAPE = (1, 2, 3, 4)  # num, channels, height, width, before there was a shape
_LONGEST_SHAPE = 400  # bytes
_MOST_FIELDS = 200_000  # of all messages; a network of 500 layers has some 20,000


def read(file: BinaryIO) -> dict[str, np.ndarray]:
    """Reads the blobs of each layer, `conv1_1/0` (weights) and `conv1_1/1` (bias).

    Raises:
      ValueError: If the file is not such a message, or the size of a blob differs from its shape.
    """
    paths, steps = names.Names(), names.Budget(_MOST_FIELDS, "it is no network of Caffe's: it")
    arrays: dict[str, np.ndarray] = {}
    for number, wire_type, value in _parse(memoryview(file.read()), steps):
        if number in _LAYERS and wire_type == _BYTES:
            name, blobs = _layer(value, _LAYERS[number], steps)
            for index, blob in enumerate(blobs):
                arrays[paths.join(name, str(index), "/")] = _blob(name, blob, steps)
    return arrays


def _layer(
    message: memoryview, fields: _Fields, steps: names.Budget
) -> tuple[str, list[memoryview]]:
    """The name of a layer, and the messages of its blobs."""
    name, blobs = "", []
    for number, wire_type, value in _parse(message, steps):
        if wire_type == _BYTES and number == fields.name:
            name = bytes(value).decode()
        elif wire_type == _BYTES and number == fields.blobs:
            blobs.append(value)
    return name, blobs


def _blob(layer: str, message: memoryview, steps: names.Budget) -> np.ndarray:
    values = np.empty(0, np.float32)
    shape: list[int] = []
    old_shape = dict.fromkeys(_OLD_SHAPE, 1)
    for number, wire_type, value in _parse(message, steps):
        if wire_type == _BYTES and number == _DATA:
            values = np.frombuffer(value, "<f4")
        elif wire_type == _BYTES and number == _DOUBLE_DATA:
            values = np.frombuffer(value, "<f8")
        elif wire_type == _BYTES and number == _SHAPE:
            shape = _dimensions(value, steps)
        elif wire_type == _VARINT and number in old_shape:
            old_shape[number] = value
    shape = shape or list(old_shape.values())
    if math.prod(shape) != values.size:
        raise ValueError(
            f"a blob of {layer!r:.100} claims shape {shape!s:.100} for {values.size} numbers"
        )
    return values.reshape(shape)


def _dimensions(message: memoryview, steps: names.Budget) -> list[int]:
    """The `dim` of a BlobShape, packed or one by one.

    Raises:
      ValueError: If they are more than an array has.
    """
    if len(message) > _LONGEST_SHAPE:
        raise ValueError(f"a shape takes {len(message):,} bytes, more than any that claims numbers")
    dimensions = []
    for _, wire_type, value in _parse(message, steps):
        if wire_type == _VARINT:
            dimensions.append(value)
        else:
            position = 0
            while position < len(value):
                dimension, position = _varint(value, position)
                dimensions.append(dimension)
    return dimensions


def _parse(message: memoryview, steps: names.Budget) -> Iterator[tuple[int, int, Any]]:
    """(field number, wire type, value) of each field of a message.

    Raises:
      ValueError: If it is not a message, or a field exceeds it.
    """
    position = 0
    while position < len(message):
        steps.spend()
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield number, wire_type, value
            continue
        if wire_type == _BYTES:
            length, position = _varint(message, position)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"field {number} has wire type {wire_type}, which Caffe never writes")
        if length > len(message) - position:
            raise ValueError(f"field {number} claims {length:,} bytes beyond the end")
        yield number, wire_type, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("it ends in the middle of a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
    raise ValueError("a number is longer than ten bytes")
