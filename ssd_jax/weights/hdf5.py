"""Reads HDF5 files in h5py's default format, as written by Keras.

The HDF5 library hangs on some damaged files and crashes on others. Weights need
little of the format: groups with symbol tables, and arrays stored in one piece.

Source: The HDF Group, "HDF5 File Format Specification", versions 0 and 1 of the superblock.
"""

import math
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from ssd_jax.weights import names

MAGIC = b"\x89HDF\r\n\x1a\n"

_DATASPACE, _LINK_INFO, _DATATYPE, _EXTERNAL, _LAYOUT = 1, 2, 3, 7, 8  # types of messages
_CONTINUATION, _SYMBOL_TABLE = 16, 17
_COMPACT, _CONTIGUOUS = 0, 1  # classes of a layout
_SYMBOL_SIZE, _SOFT_LINK = 40, 2
_CHILD_SIZE = 16  # of a B-tree's node
_DEEPEST, _LONGEST_NAME = 32, 1000
_MOST_STEPS = 200_000  # messages, links and nodes; a network of 1,000 arrays has some 10,000
_EXPONENT_BITS = {2: 5, 4: 8, 8: 11}  # of IEEE's floats, by their bytes

_NEWER = "it is in a newer form of HDF5 than h5py writes by default; save it by the default"
_Messages = dict[int, bytes]


def read(file: BinaryIO) -> dict[str, np.ndarray]:
    """Reads all arrays of numbers by their path, `block1_conv1/block1_conv1/kernel:0`.

    Symbolic links and links to other files are not followed; texts are skipped.

    Raises:
      ValueError: If the file is damaged, claims more than it holds, or is in a form that h5py does
        not write by default: compressed, or of `libver="latest"`.
      struct.error: If it is cut off.
    """
    return _File(file.read()).arrays()


class _File:
    """The bytes of a file; in an intact file no two objects share bytes.

    Attributes:
      data: The whole file.
    """

    def __init__(self, data: bytes):
        self.data = data
        self._claimed = 0
        self._steps = names.Budget(_MOST_STEPS, "its structure")

    def arrays(self) -> dict[str, np.ndarray]:
        """See `read`."""
        version, sizes = self.data[8], self.data[13:15]
        if version > 1 or sizes != b"\x08\x08":
            raise ValueError(_NEWER)
        (root,) = struct.unpack_from("<Q", self.data, 64 + 4 * version)
        paths, arrays, seen = names.Names(), {}, set()
        pending = [("", root, 0)]
        while pending:
            path, address, depth = pending.pop()
            if address in seen:
                continue
            seen.add(address)
            if depth > _DEEPEST:
                raise ValueError(f"its groups are nested deeper than {_DEEPEST}")
            messages = self._messages(address)
            if _SYMBOL_TABLE in messages:
                inner = [
                    (paths.join(path, name, "/"), place, depth + 1)
                    for name, place in self._links(messages)
                ]
                pending += reversed(inner)
            elif (array := self._array(path, messages)) is not None:
                arrays[path] = array
        return arrays

    def _claim(self, size: int) -> None:
        """Counts the claimed bytes of an object before they are read.

        Raises:
          ValueError: If all objects together are larger than the file: they overlap or exceed it.
        """
        self._steps.spend()
        self._claimed += size
        if self._claimed > len(self.data):
            raise ValueError(f"its parts claim more than the {len(self.data):,} bytes it has")

    def _messages(self, address: int) -> _Messages:
        """Returns the messages of an object's header by type; a header may have continuations."""
        version, _, count, _, length = struct.unpack_from("<BBHII", self.data, address)
        if version != 1:
            raise ValueError(_NEWER)
        messages: _Messages = {}
        blocks = [(address + 16, length)]
        for begin, size in blocks:
            position = begin
            while position + 8 <= min(begin + size, len(self.data)) and count > 0:
                kind, length, flags = struct.unpack_from("<HHB", self.data, position)
                self._claim(8 + length)
                content = self.data[position + 8 : position + 8 + length]
                if flags & 2 and kind in (_DATASPACE, _DATATYPE, _LAYOUT):
                    raise ValueError(
                        "it shares descriptions between arrays, which is not read here"
                    )
                if kind == _CONTINUATION:
                    blocks.append(struct.unpack("<QQ", content))
                messages.setdefault(kind, content)
                position += 8 + length
                count -= 1
        if _LINK_INFO in messages:
            raise ValueError(_NEWER)
        return messages

    def _links(self, messages: _Messages) -> Iterator[tuple[str, int]]:
        """Yields (name, address) of the entries of a group in alphabetical order."""
        tree, heap = struct.unpack_from("<QQ", messages[_SYMBOL_TABLE])
        magic, texts = struct.unpack_from("<4s20xQ", self.data, heap)
        if magic != b"HEAP":
            raise ValueError("the names of a group are not at their address")
        for node in self._leaves(tree):
            (count,) = struct.unpack_from("<6xH", self.data, node)
            self._claim(count * _SYMBOL_SIZE)
            for index in range(count):
                entry = node + 8 + index * _SYMBOL_SIZE
                name, address, cache = struct.unpack_from("<QQI", self.data, entry)
                self._steps.spend()
                if cache != _SOFT_LINK:
                    yield self._text(texts + name), address

    def _leaves(self, tree: int) -> Iterator[int]:
        """Addresses of the nodes of a group's symbols, from its B-tree."""
        seen, pending = set(), [tree]
        while pending:
            node = pending.pop()
            if node in seen:
                raise ValueError("the tree of a group runs in circles")
            seen.add(node)
            if self.data[node : node + 4] == b"SNOD":
                yield node
                continue
            magic, kind, count = struct.unpack_from("<4sBxH", self.data, node)
            if magic != b"TREE" or kind != 0:
                raise ValueError("the tree of a group is not at its address")
            self._claim(count * _CHILD_SIZE)
            children = struct.unpack_from(f"<{2 * count}Q", self.data, node + 24)[1::2]
            pending += reversed(children)

    def _text(self, begin: int) -> str:
        end = self.data.find(b"\0", begin, begin + _LONGEST_NAME)
        if end < 0:
            raise ValueError("a name has no end")
        return self.data[begin:end].decode()

    def _array(self, name: str, messages: _Messages) -> np.ndarray | None:
        """Reads the numbers of a dataset; None for texts and other objects."""
        if not {_DATASPACE, _DATATYPE, _LAYOUT} <= messages.keys():
            return None
        shape, dtype = _shape(messages[_DATASPACE]), _dtype(messages[_DATATYPE])
        if shape is None or dtype is None:
            return None
        if _EXTERNAL in messages:
            raise ValueError(f"{name} lies in another file")
        version, kind = messages[_LAYOUT][:2]
        size = math.prod(shape) * dtype.itemsize
        if version not in (3, 4) or kind not in (_COMPACT, _CONTIGUOUS):
            raise ValueError(f"{name} is compressed or in pieces; save it by h5py's default")
        if kind == _COMPACT:
            stored = messages[_LAYOUT][4:]
        else:
            address, length = struct.unpack_from("<QQ", messages[_LAYOUT], 2)
            stored = self.data[address : address + min(length, size)]
            self._claim(len(stored))
        if len(stored) < size:
            raise ValueError(f"{name} claims {size:,} bytes and has {len(stored):,}")
        return np.frombuffer(stored, dtype, math.prod(shape)).reshape(shape)


def _shape(message: bytes) -> tuple[int, ...] | None:
    version, rank, _, kind = message[:4]
    if version == 2 and kind == 2:
        return None  # holds nothing
    return struct.unpack_from(f"<{rank}Q", message, 8 if version == 1 else 4)


def _dtype(message: bytes) -> np.dtype | None:
    """Returns the type of integers and IEEE floats; None for others."""
    kind, flags, size = message[0] & 15, message[1], struct.unpack_from("<I", message, 4)[0]
    order = ">" if flags & 1 else "<"
    if kind == 0 and size in (1, 2, 4, 8):
        return np.dtype(f"{order}{'i' if flags & 8 else 'u'}{size}")
    if kind == 1 and size in _EXPONENT_BITS and message[13] == _EXPONENT_BITS[size]:
        return np.dtype(f"{order}f{size}")
    return None
