"""Writes files of weights as other frameworks do, without them."""

import io
import json
import struct
import zipfile

import h5py
import numpy as np

STORAGES = {"f4": "FloatStorage", "f2": "HalfStorage", "f8": "DoubleStorage", "i8": "LongStorage"}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class TorchPickle:
    """The pickle of containers with arrays, as torch.save writes it, with protocol 2."""

    def __init__(self, content, *, legacy=False):
        self.storages = {}  # contiguous arrays by key
        self._legacy = legacy
        self.data = b"\x80\x02" + self._put(content) + b"."

    def _put(self, value):
        match value:
            case np.ndarray():
                return self._tensor(value)
            case dict():
                items = b"".join(self._put(key) + self._put(item) for key, item in value.items())
                return glob("collections", "OrderedDict") + b")R(" + items + b"u"
            case list():
                return b"](" + b"".join(map(self._put, value)) + b"e"
            case tuple():
                return b"(" + b"".join(map(self._put, value)) + b"t"
            case str():
                return text(value)
            case None | True | False:
                return {None: b"N", True: b"\x88", False: b"\x89"}[value]
            case int():
                data = value.to_bytes(max(1, value.bit_length() // 8 + 1), "little", signed=True)
                return b"\x8a" + bytes([len(data)]) + data
            case float():
                return b"G" + struct.pack(">d", value)
        raise TypeError(type(value))

    def _tensor(self, array):
        key = str(len(self.storages))
        self.storages[key] = np.array(array, order="C")
        return rebuild(
            STORAGES[array.dtype.str[1:]],
            key,
            array.size,
            shape=array.shape,
            strides=tuple(step // array.itemsize for step in self.storages[key].strides),
            put=self._put,
            legacy=self._legacy,
        )


def glob(module, name):
    return f"c{module}\n{name}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def rebuild(storage, key, size, *, shape, strides, put, legacy=False, offset=0):
    """A tensor of a storage; the pickle may claim whatever it is told."""
    part = b"N" if legacy else b""
    place = b"(" + text("storage") + glob("torch", storage) + text(key) + text("cpu") + put(size)
    arguments = place + part + b"tQ" + b"".join(map(put, (offset, shape, strides, False)))
    hooks = glob("collections", "OrderedDict") + b")R"
    return glob("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + hooks + b"tR"


def torch_zip(path, content):
    pickle = TorchPickle(content)
    torch_zip_of(path, pickle.data, pickle.storages)


def torch_zip_of(path, data, storages=None):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for key, array in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")


def torch_legacy(path, content):
    pickle = TorchPickle(content, legacy=True)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    with open(path, "wb") as file:
        for part in (LEGACY_MAGIC, 1001, system):
            file.write(TorchPickle(part).data)
        file.write(pickle.data)
        file.write(TorchPickle(list(pickle.storages)).data)
        for array in pickle.storages.values():
            file.write(struct.pack("<q", array.size))
            file.write(array.tobytes())


def safetensors(path, arrays):
    header, data = {"__metadata__": {"format": "pt"}}, io.BytesIO()
    for name, array in arrays.items():
        begin = data.tell()
        data.write(array.tobytes())
        kind = {"f4": "F32", "f2": "F16", "f8": "F64", "i8": "I64"}[array.dtype.str[1:]]
        offsets = [begin, data.tell()]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
    encoded = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded + data.getvalue())


def hdf5(path, arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def caffe(path, layers, *, old=False):
    """`layers`: blobs by the layer's name; `old`: in the form of before 2014."""
    with open(path, "wb") as file:
        file.write(field(1, b"net"))
        for name, blobs in layers.items():
            message = field(4 if old else 1, name.encode())
            message += b"".join(field(6 if old else 7, blob(b, old=old)) for b in blobs)
            file.write(field(2 if old else 100, message))


def blob(array, *, old=False):
    if old:
        sizes = (1,) * (4 - array.ndim) + array.shape
        shape = b"".join(bytes([n << 3]) + varint(size) for n, size in enumerate(sizes, start=1))
    else:
        shape = field(7, field(1, b"".join(map(varint, array.shape))))
    return shape + field(5, array.astype("<f4").tobytes())


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value):
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])
