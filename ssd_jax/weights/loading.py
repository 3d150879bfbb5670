"""Loads weight files into parameters of our network, with a report on each array."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from ssd_jax import errors
from ssd_jax.weights import layouts, reader, recognition

_FC6_KERNEL, _FC7_KERNEL = "fc6/kernel", "fc7/kernel"  # in a VGG, like the next
_FC_BIASES = ("fc6/bias", "fc7/bias")
_NORM = ("mean", "variance", "scale", "bias")  # parts of a BatchNorm
_STATISTICS = ("/mean", "/variance")  # of BatchNorm, in a file
_UNREDUCED = 4096  # outputs of fc6 and fc7 in a VGG-16 that classifies


class Weights(NamedTuple):
    """The weights of a file, as our layers have them.

    Attributes:
      path: The file.
      layout: Names and conventions of the file.
      arrays: float32, by the path of our parameter, `vgg16/conv1_1/kernel`. The first convolution
        takes RGB in 0..255 minus `layout.conventions.mean`.
      names: Name of each array in the file.
      ignored: Shapes of the file's other arrays, by its names.
    """

    path: Path
    layout: layouts.Layout
    arrays: dict[str, np.ndarray]
    names: dict[str, str]
    ignored: dict[str, tuple[int, ...]]


class Report(NamedTuple):
    """Report on the arrays of a file and the parameters of a network: shapes by name.

    Attributes:
      title: Kind of weights and name of the file.
      loaded: Parameters that have the file's values.
      fresh: Parameters that the file has no values for.
      ignored: Arrays of the file that the network has no place for.
    """

    title: str
    loaded: dict[str, tuple[int, ...]]
    fresh: dict[str, tuple[int, ...]]
    ignored: dict[str, tuple[int, ...]]

    def lines(self) -> list[str]:
        """One line for each of the three: how many, and the modules that they belong to."""
        return [
            f"{len(shapes)} {word}: {', '.join(_modules(shapes)) or 'none'}"
            for word, shapes in self._parts().items()
        ]

    def whole(self) -> str:
        """Every array of the three by name and shape, one a line."""
        parts = [
            "\n".join([f"{len(shapes)} {word}", *(f"  {n} {s}" for n, s in shapes.items())])
            for word, shapes in self._parts().items()
        ]
        return "\n\n".join([self.title, *parts]) + "\n"

    def _parts(self) -> dict[str, dict[str, tuple[int, ...]]]:
        return {"loaded": self.loaded, "freshly initialized": self.fresh, "ignored": self.ignored}


def read(path: str | Path, *, backbone: str = "", atrous: bool = True) -> Weights:
    """Reads a file of weights and brings them into our layout.

    Kernels are turned to (rows, columns, in, out), fc6 and fc7 of a classifier are decimated, and
    the first convolution is converted to take unscaled RGB. BatchNorm becomes a scale and a
    bias; where the file has it in its kernels and biases already, the scales are 1.

    Args:
      path: The file, in any form that `reader.read` knows.
      backbone: Required backbone, see `config.ModelConfig`; empty: any.
      atrous: False: fc6 and fc7 of a classifier are kept whole, see `vgg.VGG`.

    Raises:
      UserError: If it cannot be read, lacks a convolution of its backbone or part of a BatchNorm,
        has one too many, holds something else than numbers, or is for another backbone.
    """
    path = Path(path)
    arrays = reader.read(path)
    layout, named = recognition.recognize(path, arrays)
    entries = layout.entries or {name: _our_path(name) for name in arrays}
    taken = recognition.by_entry(
        path, ((ours, named[theirs]) for theirs, ours in entries.items() if theirs in named)
    )
    if layout.entries:
        _check_backbone(path, layout, named)
    used = set(taken.values())
    for name in taken.values():
        _check_type(path, name, arrays[name])
    converted = {
        ours: _convert(path, ours, arrays[name], layout, atrous) for ours, name in taken.items()
    }
    _check_norms(path, converted, {ours: name for name, ours in entries.items()} | taken)
    weights = Weights(
        path=path,
        layout=layout,
        arrays=_folded(converted, layout.epsilon),
        names={ours: name for ours, name in taken.items() if not ours.endswith(_STATISTICS)},
        ignored={
            name: array.shape
            for name, array in arrays.items()
            if name not in used and not recognition.is_counter(name)
        },
    )
    if backbone and backbone_of(weights) not in ("", backbone):
        raise errors.UserError(
            f"{path} ({layout.title}) is for config.model.backbone {backbone_of(weights)}, and the "
            f"network's is {backbone}; give weights of a {layouts.BACKBONES[backbone].title}"
        )
    return _with_scales(_unscaled(weights))


def backbone_of(weights: Weights) -> str:
    """Returns the backbone whose first convolution is in the weights, or an empty string."""
    found = (
        name for name, backbone in layouts.BACKBONES.items() if _kernel(backbone) in weights.arrays
    )
    return next(found, "")


def _kernel(backbone: layouts.BackboneLayers) -> str:
    """Returns the path of the first kernel, which takes the image."""
    return f"{backbone.layers[0]}/kernel"


def with_mean(weights: Weights, mean: tuple[float, ...]) -> Weights:
    """Converts weights to another mean of the images.

    K (x - m') is K (x - m) + K (m - m'), and the second term is added to the first bias.
    This is exact except at the border: there the zero padding represents the mean of the network
    instead of that of the weights. Where the means are equal nothing changes.

    Args:
      weights: Weights from `read`.
      mean: m, RGB in 0..255 that the network subtracts; m' is that of `weights.layout`.

    Raises:
      UserError: If the first convolution is none of three colors, or its bias or scale has not a
        number for each of its outputs.
    """
    shift = np.subtract(mean, weights.layout.conventions.mean)
    backbone = layouts.BACKBONES.get(backbone_of(weights))
    if backbone is None or f"{backbone.layers[0]}/bias" not in weights.arrays or not shift.any():
        return weights
    kernel, bias, scale = (f"{backbone.layers[0]}/{kind}" for kind in ("kernel", "bias", "scale"))
    arrays = weights.arrays
    if not _takes_colors(arrays[kernel]):
        raise errors.UserError(
            f"{weights.path}: {weights.names[kernel]} has shape {arrays[kernel].shape} (as "
            f"{kernel}), a convolution of three colors has (rows, columns, 3, outputs); give the "
            f"weights of a {backbone.title}"
        )
    for path in (bias, scale):
        if path in arrays:
            _check_shape(weights, path, arrays[kernel].shape[3:])
    moved = np.einsum("hwio,i->o", arrays[kernel].astype(np.float64), shift)
    moved = arrays[bias] + arrays.get(scale, 1.0) * moved
    conventions = weights.layout.conventions._replace(mean=tuple(map(float, mean)))
    return weights._replace(
        arrays={**arrays, bias: moved.astype(np.float32)},
        layout=weights.layout._replace(conventions=conventions),
    )


def fit(params: Any, weights: Weights) -> tuple[Any, Report]:
    """Replaces the parameters that have weights.

    A conf head for another number of classes keeps its parameters, which is reported.

    Args:
      params: Parameters of the network, or their `jax.ShapeDtypeStruct`s.
      weights: Weights from `read`.

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
            f"{_nobodys(weights)}"
        )
    unplaced = {weights.names[p]: a.shape for p, a in weights.arrays.items() if p not in loaded}
    report = Report(
        title=f"{weights.layout.title} of {weights.path}",
        loaded=loaded,
        fresh={path: leaf.shape for path, leaf in flat.items() if path not in loaded},
        ignored={**unplaced, **weights.ignored},
    )
    return flax.traverse_util.unflatten_dict(flat, sep="/"), report


def has_heads(weights: Weights) -> bool:
    """Whether the weights are those of a detector, not of a backbone alone."""
    conf, loc = (weights.arrays.get(f"{kind}0/bias") for kind in ("conf", "loc"))
    if conf is None or loc is None or _levels(weights) not in (6, 7):
        return False
    return loc.size >= 4 and conf.size % (loc.size // 4) == 0


def heads(weights: Weights) -> tuple[int, int]:
    """Logits for each prior, background included, and number of source maps of a detector.

    Raises:
      UserError: If the weights are not those of an SSD300, SSD512 or SSDLite.
    """
    if not has_heads(weights):
        raise errors.UserError(
            f"{weights.path} ({weights.layout.title}) has not the heads of an SSD300, SSD512 or "
            "SSDLite, so it detects nothing"
            + (_nobodys(weights) or "; train.py starts from it with --config.model.pretrained")
        )
    boxes = weights.arrays["loc0/bias"].size // 4
    return weights.arrays["conf0/bias"].size // boxes, _levels(weights)


def _nobodys(weights: Weights) -> str:
    """Message for a file with unknown names: the layout that is most similar."""
    if weights.layout is not layouts.OURS or backbone_of(weights):
        return ""
    return f"; {recognition.nearest([*weights.names.values(), *weights.ignored])}"


def _levels(weights: Weights) -> int:
    return sum(f"loc{level}/bias" in weights.arrays for level in range(8))


def _modules(names: Iterable[str]) -> list[str]:
    """First part of names: up to the first / of ours, the first dot of PyTorch's."""
    return list(dict.fromkeys(re.split("[/.]", name)[0] for name in names))


def _our_path(name: str) -> str:
    """Completes the path of a backbone layer named without its module, `conv1_1/kernel`."""
    layer = name.partition("/")[0]
    return f"vgg16/{name}" if layer in (*layouts.BODY, "conv4_3_norm", "fc6", "fc7") else name


def _check_backbone(path: Path, layout: layouts.Layout, named: Mapping[str, str]) -> None:
    """Rejects another network of the same family, such as a ResNet-152."""
    title = layouts.BACKBONES[layout.backbone].title
    mark = named[layout.mark]
    prefix = mark.removesuffix(layout.mark) if mark.endswith(layout.mark) else ""
    for name in recognition.missing(layout, named):
        layer = layout.entries[name].partition("/")[2].rpartition("/")[0]
        raise errors.UserError(
            f"{path} looks like {layout.title} and has no {prefix}{name}, which is its {layer}; "
            f"give the weights of a {title}"
        )
    for name in recognition.strange(layout, named):
        raise errors.UserError(
            f"{path} looks like {layout.title}, but a {title} has no {prefix}{name}; "
            f"give the weights of a {title}"
        )


def _check_type(path: Path, name: str, array: np.ndarray) -> None:
    if not recognition.is_number(array):
        raise errors.UserError(
            f"{path}: {name} is of type {array.dtype}; give a file that has it in numbers, such as "
            "float32, or not at all"
        )


def _check_norms(path: Path, arrays: Mapping[str, np.ndarray], names: Mapping[str, str]) -> None:
    """Checks that every BatchNorm has its four arrays, of one shape."""
    for layer in dict.fromkeys(p.rpartition("/")[0] for p in arrays if p.endswith(_STATISTICS)):
        parts = [f"{layer}/{kind}" for kind in _NORM]
        for part in parts:
            if part not in arrays:
                raise errors.UserError(
                    f"{path} has no {names.get(part, part)}, which the BatchNorm of {layer} needs; "
                    "give a file that has all of it"
                )
        shapes = {names[part]: arrays[part].shape for part in parts}
        if len(set(shapes.values())) > 1:
            raise errors.UserError(
                f"{path}: the parts of one BatchNorm have different shapes, "
                f"{', '.join(f'{name} {shape}' for name, shape in shapes.items())}; give a file "
                "where they are equal"
            )


def _folded(arrays: Mapping[str, np.ndarray], epsilon: float) -> dict[str, np.ndarray]:
    """Folds BatchNorm with its running mean and variance into scales and biases.

    (x - mean) / sqrt(variance + epsilon) * scale + bias, multiplied out.
    """
    folded = {path: array for path, array in arrays.items() if not path.endswith(_STATISTICS)}
    for path in arrays:
        layer, _, kind = path.rpartition("/")
        if kind != "variance":
            continue
        mean, variance, scale, bias = (
            arrays[f"{layer}/{kind}"].astype(np.float64) for kind in _NORM
        )
        scale = scale / np.sqrt(variance + epsilon)
        folded[f"{layer}/scale"] = scale.astype(np.float32)
        folded[f"{layer}/bias"] = (bias - mean * scale).astype(np.float32)
    return folded


def _convert(
    path: Path, ours: str, array: np.ndarray, layout: layouts.Layout, atrous: bool
) -> np.ndarray:
    """One array in our layout, float32."""
    layer = ours.partition("/")[2]
    if ours.endswith("/kernel"):
        if layer in (_FC6_KERNEL, _FC7_KERNEL):
            array = _reduced_kernel(path, ours, array, layout.channels_first, atrous)
        if layout.channels_first and array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
    elif layout.channels_first:
        array = array.reshape(-1)  # a bias of Caffe may be (1, 1, 1, out)
    if atrous and layer in _FC_BIASES and array.shape == (_UNREDUCED,):
        array = array[::4]
    return np.ascontiguousarray(array, np.float32)


def _reduced_kernel(
    path: Path, ours: str, array: np.ndarray, channels_first: bool, atrous: bool
) -> np.ndarray:
    """Converts fc6 or fc7 of a classifier to the convolution of SSD; convolutions are unchanged.

    Every fourth output and, of fc6's 7 x 7 positions, every third row and column are kept; fc7
    keeps the inputs that are fc6's outputs. Without atrous convolution all are kept.

    Source: Liu et al. 2016, section 3, after DeepLab.
    """
    if channels_first and array.ndim == 4 and array.shape[:2] == (1, 1):
        array = array[0, 0]  # Caffe before 2014
    if array.ndim != 2:
        return array
    inputs = 512 * 7 * 7 if ours.endswith(_FC6_KERNEL) else _UNREDUCED
    shape = (_UNREDUCED, inputs) if channels_first else (inputs, _UNREDUCED)
    if array.shape != shape:
        raise errors.UserError(
            f"{path}: {ours} has shape {array.shape}, that of a VGG has {shape}; give the "
            "weights of a VGG"
        )
    few, apart = (4, 3) if atrous else (1, 1)
    if ours.endswith(_FC7_KERNEL):
        array = array[::few, ::few]
        return array[:, :, None, None] if channels_first else array[None, None]
    if channels_first:
        return array.reshape(_UNREDUCED, 512, 7, 7)[::few, :, ::apart, ::apart]
    return array.reshape(7, 7, 512, _UNREDUCED)[::apart, ::apart, :, ::few]


def _unscaled(weights: Weights) -> Weights:
    """The first convolution `[3, 3, 3, out]` for RGB in 0..255 minus the layout's mean."""
    backbone = layouts.BACKBONES.get(backbone_of(weights))
    if backbone is None or not _takes_colors(weights.arrays[_kernel(backbone)]):
        return weights  # its shape will be refused by name
    kernel = weights.arrays[_kernel(backbone)]
    rgb = kernel[:, :, ::-1] if weights.layout.bgr else kernel
    scaled = rgb / np.asarray(weights.layout.std)[:, None]
    scaled = np.ascontiguousarray(scaled, np.float32)
    return weights._replace(arrays={**weights.arrays, _kernel(backbone): scaled})


def _takes_colors(kernel: np.ndarray) -> bool:
    """Whether a kernel is `[rows, columns, 3, outputs]`."""
    return kernel.ndim == 4 and kernel.shape[2] == 3


def _with_scales(weights: Weights) -> Weights:
    """Adds a scale of 1 for each layer of the backbone without one in the file."""
    backbone = layouts.BACKBONES.get(backbone_of(weights))
    scales, names = {}, {}
    for layer in backbone.affine if backbone else ():
        bias, scale = f"{layer}/bias", f"{layer}/scale"
        if bias in weights.arrays and scale not in weights.arrays:
            scales[scale] = np.ones_like(weights.arrays[bias])
            names[scale] = weights.names[bias]
    return weights._replace(arrays=weights.arrays | scales, names=weights.names | names)


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
            f"is {wanted}; config.model.width, backbone, image_size, atrous, source_maps and "
            f"aspect_ratios have to be those of the file"
        )


def _placed(array: np.ndarray, like: Any) -> jax.Array:
    """Puts a parameter on the device of the one that it replaces."""
    return jax.device_put(jnp.asarray(array, like.dtype), getattr(like, "sharding", None))
