"""PyTorch's .pth in its zip form and in the older one, without PyTorch and without risk.

A pickle is a program. Here it is no program: a small machine follows the instructions that build
containers and tensors, stops at any other, and has nothing that it could call.
"""

import io
import math
import os
import pickletools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from ssd_jax.weights import names, zips

PICKLE = "/data.pkl"  # ends the name of the entry in the zip form

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older form
_MOST_STEPS = 200_000  # instructions; a VGG-16 SSD with its optimizer takes some 20,000
_DEEPEST = 32  # containers in containers
_SHARED = 8  # times that the tensors may claim the file's bytes
_LARGEST_PICKLE = 2**26  # bytes of the instructions, which contain no numbers
_TYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class _Storage(NamedTuple):
    """Numbers that a pickle refers to: key, type, count and offset."""

    key: str
    dtype: np.dtype
    size: int
    offset: int = 0


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    """Reads the tensors of a file that torch 1.6 or later wrote.

    Raises:
      ValueError: If the file asks for anything but containers and tensors, or claims more than it
        holds.
      zipfile.BadZipFile: If the archive is damaged.
    """
    size = os.fstat(file.fileno()).st_size
    with zips.opened(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if zips.claimed(archive) > size:
            raise ValueError("its entries claim more bytes than the file has")
        pickle = next(name for name in entries if name.endswith(PICKLE))
        root = pickle.removesuffix(PICKLE)
        order = f"{root}/byteorder"
        if order in entries and zips.read(archive, order) != b"little":
            raise ValueError("its numbers are not little-endian")
        if entries[pickle].file_size > _LARGEST_PICKLE:
            raise ValueError(f"{pickle} is too long")
        content = _Machine(_zip_storage).run(io.BytesIO(zips.read(archive, pickle)))
        tensors = dict(_tensors(content))
        keys = {tensor.storage.key for tensor in tensors.values()}
        data = {key: zips.read(archive, f"{root}/data/{key}") for key in keys}
    return _arrays(tensors, data, size)


def read_legacy(file: BinaryIO) -> dict[str, np.ndarray]:
    """Reads the tensors of a file that torch wrote before 1.6: pickles, then the storages.

    Raises:
      ValueError: If the file asks for anything but containers and tensors, or claims more than it
        holds.
    """
    stream = io.BytesIO(file.read())
    sizes: dict[str, int] = {}  # bytes of a number, by storage

    def storage(values: tuple) -> _Storage:
        found = _legacy_storage(values)
        sizes[found.key] = found.dtype.itemsize
        return found

    if _Machine(storage).run(stream) != _MAGIC:
        raise ValueError("it is a pickle, but not one of torch.save")
    _version, _machine, content, keys = (_Machine(storage).run(stream) for _ in range(4))
    data = dict(_legacy_data(stream, keys, sizes))
    return _arrays(dict(_tensors(content)), data, len(stream.getbuffer()))


def _legacy_data(
    stream: io.BytesIO, keys: Any, sizes: dict[str, int]
) -> Iterator[tuple[str, memoryview]]:
    """The storages' bytes by key: each is its number of values, then the values."""
    view, position = stream.getbuffer(), stream.tell()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its list of storages is no list of words")
    for key in keys:
        count = int.from_bytes(view[position : position + 8], "little")
        position += 8
        end = position + count * sizes[key]
        if end > len(view):
            raise ValueError(
                f"storage {names.shown(key)} claims {count:,} numbers beyond the file's end"
            )
        yield key, view[position:end]
        position = end


def _tensors(content: Any) -> Iterator[tuple[str, _Tensor]]:
    """All tensors in nested containers, by their path; each container is entered once."""
    paths = names.Names()
    entered: set[int] = set()
    pending: list[tuple[str, str | int, Any, int]] = [("", "", content, 0)]
    while pending:
        container, key, item, depth = pending.pop()
        if not isinstance(item, _Tensor | dict | list | tuple) or id(item) in entered:
            continue
        name = paths.join(container, str(key), ".")
        if isinstance(item, _Tensor):
            yield name, item
            continue
        if depth > _DEEPEST:
            raise ValueError(f"its containers are nested deeper than {_DEEPEST}")
        entered.add(id(item))
        inner = item.items() if isinstance(item, dict) else enumerate(item)
        pending += [(name, key, value, depth + 1) for key, value in reversed(list(inner))]


def _arrays(tensors: dict[str, _Tensor], data: dict[str, Any], size: int) -> dict[str, np.ndarray]:
    """Tensors as views of their storages' bytes.

    Raises:
      ValueError: If they claim more than the bytes of the file several times over: two names may
        share a tensor, as those of a model that is stored twice.
    """
    arrays = {name: _array(name, tensor, data) for name, tensor in tensors.items()}
    if (claimed := sum(array.nbytes for array in arrays.values())) > _SHARED * size:
        raise ValueError(f"its tensors claim {claimed:,} bytes, the file has {size:,}")
    return arrays


def _array(name: str, tensor: _Tensor, data: dict[str, Any]) -> np.ndarray:
    """A tensor as a view of its storage's bytes."""
    storage = tensor.storage
    values = np.frombuffer(data[storage.key], storage.dtype)[storage.offset :]
    if values.size < storage.size:
        raise ValueError(
            f"{name:.100} has {values.size:,} numbers where it claims {storage.size:,}"
        )
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((count - 1) * stride for count, stride in steps)
    if math.prod(tensor.shape) > values.size or (0 not in tensor.shape and last >= values.size):
        raise ValueError(
            f"{name:.100} claims shape {tensor.shape!s:.100} of {values.size:,} numbers"
        )
    strides = [stride * storage.dtype.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(
        values[tensor.offset :], tensor.shape, strides, writeable=False
    )


def _zip_storage(values: tuple) -> _Storage:
    """A storage from its persistent id: ("storage", type, key, device, number of values)."""
    _, dtype, key, _, size = values
    return _storage(key, dtype, size)


def _legacy_storage(values: tuple) -> _Storage:
    """Like `_zip_storage`, with a part: None, or (key, offset, size)."""
    _, dtype, key, _, size, part = values
    if part is None:
        return _storage(key, dtype, size)
    return _storage(key, dtype, part[2], part[1])


def _storage(key: str, dtype: np.dtype, size: int, offset: int = 0) -> _Storage:
    if not isinstance(dtype, np.dtype) or not _counts((size, offset)) or not isinstance(key, str):
        raise ValueError(f"a storage is described by {names.shown(key)}, {names.shown(dtype)}")
    return _Storage(key, dtype, size, offset)


def _counts(values: Any) -> bool:
    """Whether these are integers from 0 on, small enough for a position in a file."""
    return isinstance(values, tuple) and all(
        isinstance(value, int) and 0 <= value < 2**60 for value in values
    )


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any
) -> _Tensor:
    if (
        not isinstance(storage, _Storage)
        or not all(map(_counts, ((offset,), shape, strides)))
        or not len(shape) == len(strides) <= 32
    ):
        raise ValueError("a tensor is not described by a storage, an offset, a shape and strides")
    return _Tensor(storage, offset, shape, strides)


def _ordered_dict(pairs: Any = ()) -> dict:
    """Builds a dictionary; Python 2 pickles its content as a list of pairs."""
    if isinstance(pairs, dict):
        return pairs
    if not isinstance(pairs, list | tuple):
        raise ValueError("a dictionary is not made from a list")
    _check_keys(key for key, _ in pairs)
    return dict(pairs)


def _check_keys(keys: Iterable[Any]) -> None:
    """Rejects other keys, and long ones, whose hashing or comparison could be unbounded.

    Raises:
      ValueError: If these are not all short texts or small integers.
    """
    for key in keys:
        if isinstance(key, str) and len(key) > names.LONGEST:
            raise ValueError(f"it claims a name of {len(key):,} characters")
        if not isinstance(key, str | int) or not (isinstance(key, str) or -(2**63) <= key < 2**63):
            raise ValueError("the keys of a dictionary are no words")


# Everything that a file may name and its replacement here, which only holds values.
_KNOWN: dict[str, Any] = {
    "collections OrderedDict": _ordered_dict,
    "collections Counter": _ordered_dict,
    "torch Size": lambda shape: shape,
    "torch._utils _rebuild_tensor": _rebuild_tensor,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    **{f"torch {name}": dtype for name, dtype in _TYPES.items()},
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """Executes the instructions of one pickle."""

    def __init__(self, storage: Callable[[tuple], _Storage]):
        self._storage = storage
        self._stack: list[Any] = []
        self._marks: list[int] = []  # heights of the stack
        self._memo: dict[int, Any] = {}
        self._steps = names.Budget(_MOST_STEPS, "its pickle")

    def run(self, stream: BinaryIO) -> Any:
        """Returns the object of a pickle; the stream is then after it.

        Raises:
          ValueError: If an instruction is not one of those that build containers and tensors, or
            they are too many.
        """
        begin = stream.tell()
        for opcode, argument, position in pickletools.genops(stream):
            self._steps.spend()
            if (position or 0) - begin > _LARGEST_PICKLE:
                raise ValueError("its pickle is too long")
            if opcode.name == "STOP":
                return self._stack.pop()
            self._follow(opcode.name, argument)
        raise ValueError("its pickle has no end")

    def _follow(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            self._stack.append(argument)
        elif name in _SHORT_TUPLES:
            self._stack.append(tuple(self._take(_SHORT_TUPLES[name])))
        elif (instruction := getattr(self, f"_do_{name.lower()}", None)) is not None:
            instruction(argument)
        else:
            raise ValueError(f"its pickle has the instruction {name}, which tensors do not need")

    def _take(self, count: int) -> list[Any]:
        """The uppermost values, removed."""
        if count > len(self._stack):
            raise ValueError("its pickle takes what it has not put")
        values = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return values

    def _take_marked(self) -> list[Any]:
        return self._take(len(self._stack) - self._marks.pop())

    def _do_proto(self, _: Any) -> None:
        pass

    _do_frame = _do_proto

    def _do_mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _do_pop(self, _: Any) -> None:
        self._take(1)

    def _do_empty_dict(self, _: Any) -> None:
        self._stack.append({})

    def _do_empty_list(self, _: Any) -> None:
        self._stack.append([])

    def _do_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._take_marked()))

    def _do_append(self, _: Any) -> None:
        self._extend(self._take(1))

    def _do_appends(self, _: Any) -> None:
        self._extend(self._take_marked())

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise ValueError("its pickle appends to something other than a list")
        self._stack[-1].extend(values)

    def _do_setitem(self, _: Any) -> None:
        self._update(self._take(2))

    def _do_setitems(self, _: Any) -> None:
        self._update(self._take_marked())

    def _update(self, values: list[Any]) -> None:
        keys = values[::2]
        if not isinstance(self._stack[-1], dict) or len(values) % 2:
            raise ValueError("its pickle sets an item of something other than a dictionary")
        _check_keys(keys)
        self._stack[-1].update(zip(keys, values[1::2], strict=True))

    def _do_binput(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    _do_long_binput = _do_binput

    def _do_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _do_binget(self, place: int) -> None:
        self._stack.append(self._memo[place])

    _do_long_binget = _do_binget

    def _do_global(self, name: str) -> None:
        if name not in _KNOWN:
            asked = f"{name:.100}".replace(" ", ".")
            raise ValueError(
                f"it asks for {asked}, which is neither a tensor nor a container, "
                "and might do anything"
            )
        self._stack.append(_KNOWN[name])

    def _do_stack_global(self, _: Any) -> None:
        parts = self._take(2)
        if not all(isinstance(part, str) for part in parts):
            raise ValueError("its pickle refers to a global by something other than a name")
        self._do_global(" ".join(parts))

    def _do_reduce(self, _: Any) -> None:
        function, arguments = self._take(2)
        if not any(function is known for known in _KNOWN.values()) or not callable(function):
            raise ValueError("its pickle calls what cannot be called")
        if not isinstance(arguments, tuple):
            raise ValueError("its pickle calls something with what are no arguments")
        self._steps.spend(sum(len(value) for value in arguments if isinstance(value, list | tuple)))
        self._stack.append(function(*arguments))

    def _do_build(self, _: Any) -> None:
        self._take(1)  # attributes, such as the version of a state dict

    def _do_binpersid(self, _: Any) -> None:
        (values,) = self._take(1)
        if not isinstance(values, tuple) or values[:1] != ("storage",):
            raise ValueError("its pickle refers to something other than a storage")
        self._stack.append(self._storage(values))
