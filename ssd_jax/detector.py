"""A trained detector: pictures of any size in, detections in their pixels out."""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from PIL import Image

from ssd_jax import (
    augment,
    config_checks,
    config_files,
    detection,
    errors,
    files,
    priors,
    visualize,
)
from ssd_jax import config as config_lib
from ssd_jax.data import classes
from ssd_jax.data import images as image_files
from ssd_jax.detection import Detections
from ssd_jax.models import ssd
from ssd_jax.weights import hub, layouts, loading, transfer

Picture = str | Path | Image.Image | np.ndarray
Array = jax.Array | np.ndarray
Predict = Callable[[Any, Array, Array], Detections]
Say = Callable[[str], object]

# What a head of so many logits, background included, tells apart: class names and unused logits.
_KNOWN_CLASSES: dict[int, tuple[tuple[str, ...], tuple[int, ...]]] = {
    21: (classes.VOC, ()),
    81: (classes.COCO, ()),
    91: (classes.COCO, classes.COCO_UNUSED_IDS),
}

_SIDES = {("ssd", 6): 300, ("ssd", 7): 512, ("ssdlite", 6): 320}
"""Pixels of a detector's input, by its backbone's style and its number of source maps."""

_FOREIGN_CANVAS = 640
"""Pixels that pictures of others' detectors are not shrunk to fit before the one resampling that
these were published with: no side of COCO's is longer."""


class View(NamedTuple):
    """One look of a network at a picture.

    Attributes:
      image_size: (height, width) in pixels of the input that the picture is resized to.
      priors_cxcywh: `[P, 4]` the network's default boxes there.
      mirrored: The picture is mirrored left to right first.
    """

    image_size: tuple[int, int]
    priors_cxcywh: np.ndarray
    mirrored: bool = False


def build_model(config: config_lib.ModelConfig, num_classes: int) -> ssd.SSD:
    """The network that a config describes, for `num_classes` classes without background.

    Raises:
      UserError: If `config.source_maps`, `aspect_ratios` or `prior_scales` are not for its maps, or
        `gaps` not for its logits.
    """
    if config.gaps and config.gaps[-1] > num_classes + len(config.gaps):
        raise errors.UserError(
            f"config.model.gaps has {config.gaps[-1]}: {num_classes} classes and the unused have "
            f"only {num_classes + len(config.gaps)} logits"
        )
    model = ssd.SSD(
        num_classes=num_classes + 1,
        backbone=config.backbone,
        width=config.width,
        atrous=config.atrous,
        source_maps=config.source_maps,
        aspect_ratios=config.aspect_ratios,
        prior_scales=config.prior_scales,
        padding=config.padding or "torch",
        prior_sizes=config.prior_sizes,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        layout=ssd.layout_for(config.backbone, input_size(config)),
        gaps=config.gaps,
    )
    if config.source_maps or config.aspect_ratios or config.prior_scales:
        try:
            spec = ssd.prior_spec(model, input_size(config))
        except ValueError as error:
            raise errors.UserError(f"config.model.{error}") from None
        try:
            priors.check_number(spec)
        except ValueError as error:
            raise errors.UserError(f"config.model.source_maps, aspect_ratios: {error}") from None
    return model


def default_boxes(
    config: config_lib.ModelConfig, model: ssd.SSD, *, at: tuple[int, int] | None = None
) -> np.ndarray:
    """`[P, 4]` float32 priors (cxcywh) of the network that a config describes.

    Args:
      config: Of the network.
      model: The network.
      at: (height, width) of another input than the training's, see `ssd.default_boxes`.
    """
    return ssd.default_boxes(
        model,
        input_size(config),
        clip=config.clip_priors,
        clip_sizes=config.clip_prior_sizes,
        at=at,
    )


def views(config: config_lib.Config, model: ssd.SSD) -> list[View]:
    """The views of a picture that `config.eval.flip` and `sizes` ask for, plain ones first.

    Raises:
      UserError: If an input is too small for the network.
    """
    height, width = input_size(config.model)
    found = []
    for side in config.eval.sizes or (min(height, width),):
        scale = side / min(height, width)
        size = (round(height * scale), round(width * scale))
        try:
            found.append(View(size, default_boxes(config.model, model, at=size)))
        except ValueError as error:
            raise errors.UserError(f"config.eval.sizes has {side}: {error}") from None
    mirrored = [view._replace(mirrored=True) for view in found] if config.eval.flip else []
    return [*found, *mirrored]


def picture_mean(config: config_lib.ModelConfig) -> tuple[float, ...]:
    """RGB in 0..255 that the network of a config subtracts from pictures."""
    return config.mean or augment.MEAN


def make_predict(
    model: ssd.SSD,
    views: Sequence[View],
    *,
    mean: Sequence[float] = augment.MEAN,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    top_k: int = 400,
    max_detections: int = 200,
    mesh: Mesh | None = None,
    clip_before_nms: bool = False,
) -> Predict:
    """Builds the jit-compiled way from pictures to detections.

    Args:
      model: The network.
      views: Of each picture; what it sees in them is joined before the suppression.
      mean: RGB in 0..255 that it subtracts.
      score_threshold: See `detection.detect`.
      iou_threshold: Likewise.
      top_k: Likewise.
      max_detections: Likewise.
      clip_before_nms: Likewise.
      mesh: Devices, of one axis, that share the batch and have to divide it; None: one computes.

    Returns:
      `predict(params, images, extents)`: `[B, H, W, 3]` uint8 canvases and `[B, 2]` (height, width)
      of the pictures on them to `Detections` of `[B, D]` rows, boxes in [0, 1] of each picture.
    """
    detect = functools.partial(
        detection.detect,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        top_k=top_k,
        max_detections=max_detections,
        clip_before_nms=clip_before_nms,
    )

    def predict(params: Any, images: Array, extents: Array) -> Detections:
        looks = [_look(model, params, images, extents, view, mean=mean) for view in views]
        loc, conf, priors = zip(*looks, strict=True)
        return jax.vmap(detect, in_axes=(0, 0, None))(
            jnp.concatenate(loc, axis=1), jnp.concatenate(conf, axis=1), jnp.concatenate(priors)
        )

    if mesh is None or mesh.size == 1:
        return jax.jit(predict)
    rows = PartitionSpec(mesh.axis_names[0])
    return jax.jit(
        jax.shard_map(
            predict,
            mesh=mesh,
            in_specs=(PartitionSpec(), rows, rows),
            out_specs=rows,
            check_vma=False,
        )
    )


def _look(
    model: ssd.SSD,
    params: Any,
    images: Array,
    extents: Array,
    view: View,
    *,
    mean: Sequence[float],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Outputs of one view of `[B, H, W, 3]` canvases, and its priors, in the pictures' frame."""
    resized = jax.vmap(functools.partial(augment.resize, size=view.image_size))(images, extents)
    seen = resized[:, :, ::-1] if view.mirrored else resized
    loc, conf = ssd.predict(model, params, augment.normalize(seen, mean=mean))
    priors = jnp.asarray(view.priors_cxcywh)
    if view.mirrored:
        loc, priors = detection.unmirror(loc, priors)
    return loc, conf, priors


class _Placed(NamedTuple):
    """A picture as the network takes it.

    Attributes:
      canvas: `[canvas, canvas, 3]` uint8 with the picture, shrunk if it must be.
      extent: `[2]` float32 (height, width) of the picture there.
      picture_size: (height, width) that it had.
    """

    canvas: np.ndarray
    extent: np.ndarray
    picture_size: tuple[int, int]


class Detector:
    """A network with its parameters and class names; call it on pictures.

    Attributes:
      class_names: Names of the classes; label k is `class_names[k - 1]`.
      config: The config of the run that made it.
      loaded: What became of the arrays of somebody else's file that it was read from; None: it was
        read from none.
    """

    def __init__(
        self,
        config: config_lib.Config,
        class_names: Sequence[str],
        params: Any,
        *,
        predict: Predict | None = None,
        loaded: loading.Report | None = None,
    ):
        """Builds the network of a config.

        Args:
          config: Of the network and its post-processing.
          class_names: Of label 1, 2, ...
          params: Of the network.
          predict: Runs instead of that network, with `params`; see `make_predict`.
          loaded: See the attribute.
        """
        self.config = config
        self.loaded = loaded
        self.class_names = tuple(class_names)
        self.params = jax.device_put(params)
        self._predict = predict or _predict_of(config, len(self.class_names))
        self._devices = 1 if predict else jax.local_device_count()

    def __call__(
        self, images: Iterable[Picture], *, score_threshold: float = 0.5
    ) -> list[Detections]:
        """Detects objects in pictures, of which one at a time is held in its full size.

        Args:
          images: Paths, PIL pictures, or `[H, W, 3]` uint8 RGB arrays, of any size.
          score_threshold: Only detections that score more are given, in [0, 1].

        Returns:
          For each picture the detections, best first, as NumPy arrays of the used rows only; boxes
          are corners in pixels of that picture.

        Raises:
          UserError: If a file is missing or is no picture.
        """
        found = []
        placed = map(self._place, images)
        while batch := list(itertools.islice(placed, self.config.eval.batch_size)):
            found += self._detect(batch, score_threshold)
        return found

    def draw(self, image: Picture, found: Detections) -> Image.Image:
        """A picture with the boxes, names and scores of its detections.

        Args:
          image: As `__call__` takes it.
          found: Of this picture, as `__call__` gives it: corners in pixels.

        Returns:
          An RGB picture of the same size.

        Raises:
          UserError: If the file is missing or is no picture.
        """
        boxes, scores, labels = (np.asarray(values) for values in found)
        picture = read_picture(image, max_megapixels=self.config.data.max_megapixels)
        drawn = visualize.draw(picture, boxes, labels, scores, class_names=self.class_names)
        return Image.fromarray(drawn)

    def _place(self, picture: Picture) -> _Placed:
        image = read_picture(picture, max_megapixels=self.config.data.max_megapixels)
        return _Placed(*image_files.place(image, self.config.data.canvas), image.shape[:2])

    def _detect(self, placed: Sequence[_Placed], score_threshold: float) -> list[Detections]:
        rows = padded_rows(len(placed), most=self.config.eval.batch_size)
        filled = [*placed, *[placed[-1]] * (rows - len(placed))]
        canvases, extents, _ = zip(*filled, strict=True)
        raw = self._run(np.stack(canvases), np.stack(extents))
        return [
            in_pixels(row(raw, index), one.picture_size, score_threshold=score_threshold)
            for index, one in enumerate(placed)
        ]

    def predict_batches(
        self, batches: Iterator[Mapping[str, np.ndarray]]
    ) -> Iterator[tuple[int, Detections]]:
        """(index, detections in [0, 1], NumPy, all D rows) of each picture of `batches`."""
        for batch in batches:
            raw = self._run(batch["image"], batch["extent"])
            for place, index in enumerate(batch["index"]):
                if index >= 0:
                    yield int(index), row(raw, place)

    def _run(self, images: Array, extents: Array) -> Detections:
        """NumPy detections of a batch; the devices of this process share it if they divide it."""
        if self._devices == 1 or len(images) % self._devices:
            return jax.device_get(self._predict(self.params, images, extents))
        return jax.device_get(self._shared(images, extents))

    @functools.cached_property
    def _shared(self) -> Callable[[Array, Array], Detections]:
        """The network on all devices of this process."""
        mesh = Mesh(np.asarray(jax.local_devices()), ("data",), axis_types=(AxisType.Auto,))
        predict = _predict_of(self.config, len(self.class_names), mesh=mesh)
        params = jax.device_put(self.params, NamedSharding(mesh, PartitionSpec()))
        return functools.partial(predict, params)


def _predict_of(
    config: config_lib.Config, num_classes: int, *, mesh: Mesh | None = None
) -> Predict:
    """`make_predict` of a config's network, compiled once for configs that are alike."""
    model, options = (_hashable(dataclasses.astuple(part)) for part in (config.model, config.eval))
    return _compiled_predict(model, options, num_classes, mesh)


@functools.lru_cache(maxsize=8)
def _compiled_predict(
    model_fields: tuple, eval_fields: tuple, num_classes: int, mesh: Mesh | None
) -> Predict:
    config = config_lib.Config(
        model=config_lib.ModelConfig(*model_fields), eval=config_lib.EvalConfig(*eval_fields)
    )
    model = build_model(config.model, num_classes)
    return make_predict(
        model,
        views(config, model),
        mean=picture_mean(config.model),
        score_threshold=config.eval.score_threshold,
        iou_threshold=config.eval.iou_threshold,
        top_k=config.eval.top_k,
        max_detections=config.eval.max_detections,
        clip_before_nms=config.eval.clip_before_nms,
        mesh=mesh,
    )


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value


def padded_rows(count: int, *, most: int) -> int:
    """Rows of the batch that `count` pictures run in: a power of two, or `most`.

    Each number of rows is compiled once, so they are few.

    Args:
      count: In 1..most.
      most: The largest batch.
    """
    return min(1 << (count - 1).bit_length(), most)


def row(batch: Detections, index: int) -> Detections:
    """Detections of one picture of a batch."""
    return Detections(*(values[index] for values in batch))


def in_pixels(
    found: Detections, picture_size: tuple[int, int], *, score_threshold: float
) -> Detections:
    """Scales `[D]` detections from [0, 1] to pixels and keeps those over the threshold.

    Args:
      found: Of one picture, as NumPy arrays.
      picture_size: (height, width).
      score_threshold: In [0, 1].
    """
    height, width = picture_size
    used = found.scores > score_threshold
    scale = np.array([width, height, width, height], np.float32)
    return Detections(found.boxes[used] * scale, found.scores[used], found.labels[used])


def read_picture(
    picture: Picture, *, max_megapixels: float = image_files.MAX_MEGAPIXELS
) -> np.ndarray:
    """A path, PIL picture or array as `[H, W, 3]` uint8 RGB.

    Files and PIL pictures are turned as their Exif says and become RGB as `images.decode` has it.

    Args:
      picture: The path, PIL picture or array.
      max_megapixels: A larger file is refused, see `images.decode`; a PIL picture is its owner's.

    Raises:
      UserError: If the file is missing, no regular file or no picture.
      MachineError: If the machine is at fault, which has too little memory, say.
      ValueError: If an array is not `[H, W, 3]` uint8, or a PIL picture has floating-point pixels.
    """
    if isinstance(picture, Image.Image):
        return image_files.rgb(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(
                f"a picture must be a uint8 array (height, width, 3) of RGB; this one is "
                f"{picture.dtype} {picture.shape}"
            )
        return picture
    try:
        data = files.read(picture, at_most=image_files.most_bytes(max_megapixels))
    except errors.UserError:
        raise
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a null byte in the name
        if errors.is_of_machine(error):
            raise errors.of_machine(error, picture) from None
        raise errors.UserError(f"{picture}: {getattr(error, 'strerror', error)}") from None
    return image_files.decode(data, name=str(picture), max_megapixels=max_megapixels)


def load_detector(
    path: str | Path, *, flip: bool | None = None, sizes: Sequence[int] | None = None
) -> Detector:
    """Loads a trained detector.

    Args:
      path: A workdir of `train.py` (its best checkpoint is taken), one checkpoint,
        `WORKDIR/checkpoints/STEP`, a file of `export.py`, a file with the weights of somebody's
        SSD, or the name of published ones, `ssd300-coco` or `ssdlite320-coco`.
      flip: Also look at the mirrored picture; None: as the run's `config.eval.flip` says.
      sizes: Shorter sides of the inputs to look at, in pixels; None: as `config.eval.sizes` says.

    Returns:
      `detector(images, *, score_threshold=0.5)`, see `Detector`.

    Raises:
      UserError: If there is no checkpoint, its config is missing, the file is not of an SSD, or
        `flip` or `sizes` are not for it.
    """
    trained = find_run(path) if Path(path).is_dir() else find_file(path)
    config = copy.deepcopy(trained.config)
    config.eval.flip = config.eval.flip if flip is None else flip
    config.eval.sizes = config.eval.sizes if sizes is None else tuple(sizes)
    config_checks.validate(config)
    return trained.build(config)


class Trained(NamedTuple):
    """A trained network that has been found and not built yet.

    Attributes:
      place: What was found.
      folder: Where what is written about it belongs.
      config: That it comes with.
      build: Makes the detector of a config.
    """

    place: Path
    folder: Path
    config: config_lib.Config
    build: Callable[[config_lib.Config], Detector]


def find(
    *,
    workdir: str | None,
    checkpoint: str | None,
    weights: str | None,
    data: config_lib.DataConfig | None = None,
    say: Say = logging.info,
) -> Trained:
    """The network that one of the scripts' flags names.

    Args:
      workdir: Of a run.
      checkpoint: Of a run.
      weights: See `find_file`, like the next two.
      data: See there.
      say: See there.

    Raises:
      UserError: If none or several are given, or there is no such network.
    """
    given = [path for path in (workdir, checkpoint, weights) if path]
    if len(given) != 1:
        raise errors.UserError(
            "give one of --workdir DIR, --checkpoint DIR/checkpoints/STEP and --weights FILE"
        )
    return find_file(given[0], data=data, say=say) if weights else find_run(given[0])


def find_run(path: str | Path) -> Trained:
    """A run of `train.py` by its workdir or one of its checkpoints.

    Raises:
      UserError: If there is no checkpoint, or its config is missing.
    """
    from ssd_jax.training import checkpoint  # here, for it imports Orbax, which is slow

    folder = checkpoint.find(path)
    config, _ = config_files.load(_config_of(folder))
    return Trained(
        folder, _config_of(folder).parent, config, functools.partial(restore, folder=folder)
    )


def find_file(
    path_or_name: str | Path, *, data: config_lib.DataConfig | None = None, say: Say = logging.info
) -> Trained:
    """A file of `export.py`, or a detector in somebody else's file.

    Args:
      path_or_name: The file, or a name of `hub.NAMES`, which is downloaded at first use.
      data: Says from where such downloads come, and where they are kept; None: the defaults.
      say: Called with each line on what became of somebody else's weights, as they are loaded.

    Raises:
      UserError: See `find_exported` and `find_weights`.
    """
    from ssd_jax import export  # which imports this module

    if export.is_exported(path_or_name):
        return find_exported(path_or_name)
    return find_weights(path_or_name, data=data or config_lib.DataConfig(), say=say)


def find_exported(path: str | Path) -> Trained:
    """A file of `export.py`, whose config is part of it.

    Raises:
      UserError: If there is no such file, or it is none of `export.py`.
    """
    from ssd_jax import export  # which imports this module

    loaded = export.load(path)

    def build(config: config_lib.Config) -> Detector:
        if config == loaded.config:
            return loaded
        if loaded.params is None:
            raise errors.UserError(
                f"--config, flip and sizes change nothing in {path}: give the flag to export.py, "
                f"which writes it"
            )
        return Detector(config, loaded.class_names, loaded.params)

    return Trained(Path(path), _folder_for(path), copy.deepcopy(loaded.config), build)


def find_weights(path_or_name: str | Path, *, data: config_lib.DataConfig, say: Say) -> Trained:
    """A detector in somebody else's file; its classes are those that its number of logits tells.

    Args:
      path_or_name: See `find_file`, like the others.
      data: See there.
      say: See there.

    Raises:
      UserError: If the file can't be had or read, or is not of an SSD300, SSD512 or SSDLite.
    """
    path = hub.locate(path_or_name, cache_dir=data.cache_dir, mirror=data.mirror)
    weights = loading.read(path)
    config, class_names = _describe(weights)
    return Trained(
        weights.path,
        _folder_for(path_or_name),
        config,
        functools.partial(_with_weights, weights=weights, class_names=class_names, say=say),
    )


def _folder_for(path_or_name: str | Path) -> Path:
    """Where what is written about a file belongs."""
    return Path("runs") / Path(path_or_name).stem


class Source(NamedTuple):
    """What a training starts from.

    Attributes:
      weights: Of the network, or of its backbone.
      classes: Of a detector; None if it is a backbone, or if what its logits mean is not known.
      model: The fields that belong to the weights: the mean and, of a detector, its default boxes.
      assumed: What of `model` the file does not say and is taken to be so, in lines.
    """

    weights: loading.Weights
    classes: transfer.Classes | None
    model: config_lib.ModelConfig
    assumed: tuple[str, ...] = ()


def read_source(
    path_or_name: str | Path,
    *,
    backbone: str,
    cache_dir: str | Path,
    mirror: str = "",
    atrous: bool = True,
) -> Source:
    """Reads what a training is to start from.

    Args:
      path_or_name: A run's workdir or checkpoint, a safetensors file of `export.py`, a file with
        weights of others, or a name of `hub.NAMES`.
      backbone: Of the network that is to be trained.
      cache_dir: See `hub.locate`, like the next.
      mirror: See there.
      atrous: Of that network, see `vgg.VGG`.

    Raises:
      UserError: If it can't be had or read.
    """
    from ssd_jax import export  # which imports this module

    path = hub.locate(path_or_name, cache_dir=cache_dir, mirror=mirror)
    if path.is_dir() or export.is_exported(path):
        return _source_of(path, load_detector(path))
    weights = loading.read(path, backbone=backbone, atrous=atrous)
    if not loading.has_heads(weights):
        layout = weights.layout
        return Source(
            weights, None, config_lib.ModelConfig(mean=layout.mean, padding=layout.padding)
        )
    config, names = _describe(weights)
    known = loading.heads(weights)[0] in _KNOWN_CLASSES
    theirs = transfer.Classes(names, config.model.gaps) if known else None
    return Source(weights, theirs, config.model, tuple(_assumed(weights, config.model)))


def _source_of(path: Path, detector: Detector) -> Source:
    """A detector of our own."""
    if detector.params is None:
        raise errors.UserError(
            f"{path} cannot be trained further; give the run's workdir, or the safetensors file "
            f"beside it"
        )
    model = dataclasses.replace(detector.config.model, mean=picture_mean(detector.config.model))
    flat = flax.traverse_util.flatten_dict(jax.device_get(detector.params), sep="/")
    layout = layouts.OURS._replace(title="a detector of ours", mean=model.mean)
    weights = loading.Weights(path, layout, flat, {name: name for name in flat}, {})
    return Source(weights, transfer.Classes(detector.class_names, model.gaps), model)


def _describe(weights: loading.Weights) -> tuple[config_lib.Config, tuple[str, ...]]:
    """The config and the classes of a detector, from its heads and its layout."""
    logits, levels = loading.heads(weights)
    names = tuple(f"class {label}" for label in range(1, logits))
    names, gaps = _KNOWN_CLASSES.get(logits, (names, ()))
    layout = weights.layout
    config = config_lib.Config()
    config.model.backbone = loading.body_of(weights) or config.model.backbone
    config.model.image_size = _side(weights.path, config.model.backbone, levels)
    config.model.padding = layout.padding
    config.model.prior_sizes = layout.prior_sizes or ("coco" if names == classes.COCO else "voc")
    config.model.clip_priors = layout.clip_priors
    config.model.clip_prior_sizes = layout.clip_prior_sizes
    config.model.gaps = gaps
    config.model.mean = layout.mean
    config.data.canvas = _FOREIGN_CANVAS
    config.eval = dataclasses.replace(config.eval, **layout.detection)
    return config, names


def _side(path: Path, backbone: str, levels: int) -> int:
    """Pixels of the input of a detector with so many source maps."""
    style = ssd.BACKBONES[backbone].style
    if (style, levels) not in _SIDES:
        raise errors.UserError(
            f"{path} has {levels} source maps on {backbone}, where SSDLite has 6; give the weights "
            "of such a one"
        )
    return _SIDES[style, levels]


def _with_weights(
    config: config_lib.Config,
    *,
    weights: loading.Weights,
    class_names: Sequence[str],
    say: Say,
) -> Detector:
    model = build_model(config.model, len(class_names))
    weights = loading.with_mean(weights, picture_mean(config.model))
    params, report = loading.fit(ssd.abstract_params(model, input_size(config.model)), weights)
    if report.fresh:
        missing = ", ".join(report.fresh)
        raise errors.UserError(
            f"{weights.path} has no values for {missing}; give the whole detector's weights"
        )
    for line in _account(report, weights, config.model):
        say(line)
    return Detector(config, class_names, params, loaded=report)


def _account(
    report: loading.Report, weights: loading.Weights, config: config_lib.ModelConfig
) -> list[str]:
    """What came of the weights of a detector, and what its file does not say, in lines."""
    counts = f"{len(report.loaded)} arrays loaded, {len(report.fresh)} left fresh"
    some = ", ".join(list(report.ignored)[:3]) + ", ..." * (len(report.ignored) > 3)
    ignored = f"{len(report.ignored)} ignored" + (f" ({some})" if some else "")
    return [f"{report.title}: {counts}, {ignored}", *_assumed(weights, config)]


def _assumed(weights: loading.Weights, config: config_lib.ModelConfig) -> list[str]:
    """What the file of a detector does not say and is taken to be so, in lines.

    Args:
      weights: Of the detector.
      config: Of the network that they are for.
    """
    logits, _ = loading.heads(weights)
    told = logits in _KNOWN_CLASSES or weights.layout.prior_sizes or config.prior_scales
    if told or config.prior_sizes != "voc":
        return []
    return [
        f"its default boxes are taken to be VOC's, which {logits} logits do not tell; "
        f"--config.model.prior_sizes=coco takes COCO's"
    ]


def restore(config: config_lib.Config, folder: Path) -> Detector:
    """The detector of a config, with the parameters and classes of one checkpoint folder.

    Raises:
      UserError: If the config describes another network than the checkpoint's.
    """
    from ssd_jax.training import checkpoint

    trained, class_names = config_files.load(_config_of(folder))
    for field in (
        "backbone", "image_size", "image_width", "padding", "width", "atrous", "source_maps",
        "aspect_ratios", "prior_sizes", "prior_scales", "clip_priors", "clip_prior_sizes", "gaps",
        "mean",
    ):  # fmt: skip
        here, there = getattr(config.model, field), getattr(trained.model, field)
        if here != there:
            raise errors.UserError(
                f"config.model.{field} is {here}, but {folder} was trained with {there}"
            )
    model = build_model(config.model, len(class_names))
    like = ssd.abstract_params(model, input_size(config.model))
    params = checkpoint.restore_params(folder, like, ema=config.eval.ema)
    return Detector(config, class_names, params)


def _config_of(folder: Path) -> Path:
    """The `config.json` of the run that a checkpoint belongs to."""
    return folder.parent.parent / "config.json"


def input_size(config: config_lib.ModelConfig) -> tuple[int, int]:
    """(height, width) of the network's input in pixels."""
    return config.image_size, config.image_width or config.image_size
