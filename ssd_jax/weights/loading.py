"""From a file of weights to parameters of our network, and what became of each array."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from ssd_jax import errors
from ssd_jax.weights import layouts, reader

_FIRST = "vgg16/conv1_1"
_FC_KERNELS = ("vgg16/fc6/kernel", "vgg16/fc7/kernel")
_FC_BIASES = ("vgg16/fc6/bias", "vgg16/fc7/bias")
_UNREDUCED = 4096  # outputs of fc6 and fc7 in a VGG-16 that classifies


class Weights(NamedTuple):
    """The weights of a file, as our layers have them.

    Attributes:
      path: The file.
      layout: Whose names and conventions it follows.
      arrays: float32, by the path of our parameter, `vgg16/conv1_1/kernel`. conv1_1 takes RGB in
        0..255 minus `layout.mean`.
      names: What the file calls each of them.
      ignored: Shapes of the file's other arrays, by its names.
    """

    path: Path
    layout: layouts.Layout
    arrays: dict[str, np.ndarray]
    names: dict[str, str]
    ignored: dict[str, tuple[int, ...]]


class Report(NamedTuple):
    """What became of the arrays of a file, and of the parameters of a network: shapes by name.

    Attributes:
      title: Whose weights, of which file.
      loaded: Parameters that have the file's values.
      fresh: Parameters that the file has no values for.
      ignored: Arrays of the file that the network has no place for.
    """

    title: str
    loaded: dict[str, tuple[int, ...]]
    fresh: dict[str, tuple[int, ...]]
    ignored: dict[str, tuple[int, ...]]

    def lines(self) -> list[str]:
        """One line for each of the three."""
        parts = {"loaded": self.loaded, "left fresh": self.fresh, "ignored": self.ignored}
        return [f"{len(shapes)} {word}: {_listed(shapes)}" for word, shapes in parts.items()]


def read(path: str | Path) -> Weights:
    """Reads a file of weights and brings them into our layout.

    Kernels are turned to (rows, columns, in, out), fc6 and fc7 of a classifier are decimated, and
    conv1_1 is made to take RGB that is not scaled.

    Args:
      path: The file, in any form that `reader.read` knows.

    Raises:
      UserError: If it can't be read, or lacks a convolution of VGG-16.
    """
    path = Path(path)
    arrays = reader.read(path)
    layout, named = layouts.recognise(arrays)
    entries = layout.entries or {name: _our_path(name) for name in arrays}
    taken = {ours: named[theirs] for theirs, ours in entries.items() if theirs in named}
    if layout.entries:
        _check_body(path, layout, taken)
    converted = {ours: _convert(path, ours, arrays[name], layout) for ours, name in taken.items()}
    if (kernel := f"{_FIRST}/kernel") in converted:
        converted[kernel] = _unscaled(converted[kernel], layout)
    return Weights(
        path=path,
        layout=layout,
        arrays=converted,
        names=taken,
        ignored={n: a.shape for n, a in arrays.items() if n not in taken.values()},
    )


def with_mean(weights: Weights, mean: tuple[float, ...]) -> Weights:
    """Weights for pictures from which another mean is subtracted.

    K (x - m') is K (x - m) + K (m - m'), of which the second term goes into the bias of conv1_1.
    That is exact but for the outermost pixels: there the network's zeros stand for its own mean
    instead of that of the weights. Where the means are equal nothing changes.

    Args:
      weights: As read.
      mean: m, RGB in 0..255 that the network subtracts; m' is `weights.layout.mean`.
    """
    shift = np.subtract(mean, weights.layout.mean)
    kernel, bias = (weights.arrays.get(f"{_FIRST}/{kind}") for kind in ("kernel", "bias"))
    if kernel is None or bias is None or not shift.any():
        return weights
    moved = bias + np.einsum("hwio,i->o", kernel.astype(np.float64), shift)
    return weights._replace(
        arrays={**weights.arrays, f"{_FIRST}/bias": moved.astype(np.float32)},
        layout=weights.layout._replace(mean=tuple(map(float, mean))),
    )


def fit(params: Any, weights: Weights) -> tuple[Any, Report]:
    """Replaces the parameters that weights are there for.

    A conf head for another number of classes is left as it is, and said to be so.

    Args:
      params: Parameters of the network, or their `jax.ShapeDtypeStruct`s.
      weights: As read.

    Returns:
      The parameters, with the file's values where it has them, and what became of what.

    Raises:
      UserError: If an array's shape does not fit its layer, or no array belongs to the network.
    """
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    loaded = {}
    for path, array in weights.arrays.items():
        if path not in flat or _other_classes(path, array, weights.arrays, flat):
            continue
        _check_shape(weights, path, flat[path].shape)
        flat[path] = _placed(array, flat[path])
        loaded[path] = array.shape
    if not loaded:
        some = ", ".join(list(weights.ignored | weights.arrays)[:3])
        raise errors.UserError(
            f"{weights.path}: none of its arrays ({some}, ...) is one of the network"
        )
    unplaced = {weights.names[p]: a.shape for p, a in weights.arrays.items() if p not in loaded}
    report = Report(
        title=f"{weights.layout.title} of {weights.path}",
        loaded=loaded,
        fresh={path: leaf.shape for path, leaf in flat.items() if path not in loaded},
        ignored={**unplaced, **weights.ignored},
    )
    return flax.traverse_util.unflatten_dict(flat, sep="/"), report


def heads(weights: Weights) -> tuple[int, int]:
    """Logits for each prior, background included, and number of source maps of a detector.

    Raises:
      UserError: If the weights are not those of an SSD300 or SSD512.
    """
    conf = weights.arrays.get("conf0/bias")
    loc = weights.arrays.get("loc0/bias")
    levels = sum(f"loc{level}/bias" in weights.arrays for level in range(8))
    if conf is None or loc is None or levels not in (6, 7) or conf.size % (loc.size // 4 or 1):
        raise errors.UserError(
            f"{weights.path} ({weights.layout.title}) has not the heads of an SSD300 or SSD512, so "
            "it detects nothing; train.py starts from it with --config.model.pretrained"
        )
    return conf.size // (loc.size // 4), levels


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"


def _our_path(name: str) -> str:
    """A layer of the body may be named without its module, `conv1_1/kernel`."""
    layer = name.partition("/")[0]
    return f"vgg16/{name}" if layer in (*layouts.BODY, "conv4_3_norm", "fc6", "fc7") else name


def _check_body(path: Path, layout: layouts.Layout, taken: Mapping[str, str]) -> None:
    """Another network of the same family, such as a VGG-19, would be loaded in part."""
    theirs = {ours: name for name, ours in layout.entries.items()}
    for layer in layouts.BODY:
        for kind in ("kernel", "bias"):
            if f"vgg16/{layer}/{kind}" not in taken:
                raise errors.UserError(
                    f"{path} looks like {layout.title} and has no "
                    f"{theirs[f'vgg16/{layer}/{kind}']}, which is its {layer}; give the weights of "
                    "a VGG-16"
                )


def _convert(path: Path, ours: str, array: np.ndarray, layout: layouts.Layout) -> np.ndarray:
    """One array in our layout, float32."""
    if ours.endswith("/kernel"):
        if ours in _FC_KERNELS:
            array = _reduced_kernel(path, ours, array, layout.channels_first)
        if layout.channels_first and array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
    elif layout.channels_first:
        array = array.reshape(-1)  # a bias of Caffe may be (1, 1, 1, out)
    if ours in _FC_BIASES and array.shape == (_UNREDUCED,):
        array = array[::4]
    return np.ascontiguousarray(array, np.float32)


def _reduced_kernel(path: Path, ours: str, array: np.ndarray, channels_first: bool) -> np.ndarray:
    """fc6 or fc7 of a classifier as the convolution of SSD; what is one comes back as it is.

    Every fourth output and, of fc6's 7 x 7 positions, every third row and column are kept; fc7
    keeps the inputs that are fc6's outputs. Source: Liu et al. 2016, section 3, after DeepLab.
    """
    if channels_first and array.ndim == 4 and array.shape[:2] == (1, 1):
        array = array[0, 0]  # Caffe before 2014
    if array.ndim != 2:
        return array
    inputs = 512 * 7 * 7 if ours == _FC_KERNELS[0] else _UNREDUCED
    shape = (_UNREDUCED, inputs) if channels_first else (inputs, _UNREDUCED)
    if array.shape != shape:
        raise errors.UserError(
            f"{path}: {ours} has shape {array.shape}, that of a VGG-16 has {shape}; give the "
            "weights of a VGG-16"
        )
    if ours == _FC_KERNELS[1]:
        array = array[::4, ::4]
        return array[:, :, None, None] if channels_first else array[None, None]
    if channels_first:
        return array.reshape(_UNREDUCED, 512, 7, 7)[::4, :, ::3, ::3]
    return array.reshape(7, 7, 512, _UNREDUCED)[::3, ::3, :, ::4]


def _unscaled(kernel: np.ndarray, layout: layouts.Layout) -> np.ndarray:
    """conv1_1 `[3, 3, 3, out]` for RGB in 0..255 minus the layout's mean."""
    if kernel.shape[2:3] != (3,):
        return kernel  # its shape will be refused by name
    rgb = kernel[:, :, ::-1] if layout.bgr else kernel
    scaled = rgb / np.asarray(layout.std)[:, None]
    return np.ascontiguousarray(scaled, np.float32)


def _other_classes(
    path: str, array: np.ndarray, arrays: Mapping[str, np.ndarray], flat: Mapping[str, Any]
) -> bool:
    """Whether a conf head differs from the network's in the number of classes alone."""
    layer = path.partition("/")[0]
    if not layer.startswith("conf"):
        return False
    boxes = arrays.get(f"loc{layer.removeprefix('conf')}/bias")
    mine, wanted = array.shape, flat[path].shape
    per_cell = boxes.size // 4 if boxes is not None else 0
    return (
        mine != wanted
        and mine[:-1] == wanted[:-1]
        and per_cell > 0
        and mine[-1] % per_cell == 0
        and wanted[-1] % per_cell == 0
    )


def _check_shape(weights: Weights, path: str, wanted: tuple[int, ...]) -> None:
    shape = weights.arrays[path].shape
    if shape != wanted:
        raise errors.UserError(
            f"{weights.path}: {weights.names[path]} has shape {shape} (as {path}), the network's "
            f"is {wanted}; config.model.width, backbone and image_size have to be those of the file"
        )


def _placed(array: np.ndarray, like: Any) -> jax.Array:
    """A parameter where the one that it replaces lies."""
    return jax.device_put(jnp.asarray(array, like.dtype), getattr(like, "sharding", None))
