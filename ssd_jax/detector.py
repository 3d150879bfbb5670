"""A trained detector: pictures of any size in, detections in their pixels out."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ssd_jax import augment, detection, errors
from ssd_jax import config as config_lib
from ssd_jax.data import images as image_files
from ssd_jax.data import loader
from ssd_jax.detection import Detections
from ssd_jax.models import ssd, vgg
from ssd_jax.training import checkpoint

Picture = str | Path | Image.Image | np.ndarray
Array = jax.Array | np.ndarray
Predict = Callable[[Any, Array, Array], Detections]


def build_model(config: config_lib.ModelConfig, num_classes: int) -> ssd.SSD:
    """The network that a config describes, for `num_classes` classes without background."""
    return ssd.SSD(
        num_classes=num_classes + 1,
        backbone=config.backbone,
        width=config.width,
        prior_sizes=config.prior_sizes,
        dtype=jnp.dtype(config.dtype),
    )


def default_boxes(config: config_lib.ModelConfig, model: ssd.SSD) -> np.ndarray:
    """`[P, 4]` float32 priors (cxcywh) of the network that a config describes."""
    return ssd.default_boxes(model, input_size(config), clip=config.clip_priors)


def make_predict(
    model: ssd.SSD,
    priors_cxcywh: np.ndarray,
    *,
    image_size: tuple[int, int],
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    top_k: int = 400,
    max_detections: int = 200,
) -> Predict:
    """Builds the jit-compiled way from pictures to detections.

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
    )

    @jax.jit
    def predict(params: Any, images: Array, extents: Array) -> Detections:
        resized = jax.vmap(functools.partial(augment.resize, size=image_size))(images, extents)
        loc, conf = ssd.apply(model, params, vgg.normalise(resized))
        return jax.vmap(detect, in_axes=(0, 0, None))(loc, conf, jnp.asarray(priors_cxcywh))

    return predict


class Detector:
    """A network with its parameters and class names; call it on pictures.

    Attributes:
      class_names: Names of the classes; label k is `class_names[k - 1]`.
      config: The config of the run that made it.
    """

    def __init__(
        self,
        config: config_lib.Config,
        class_names: Sequence[str],
        params: Any,
        *,
        predict: Predict | None = None,
    ):
        """Builds the network of a config.

        Args:
          config: Of the network and its post-processing.
          class_names: Of label 1, 2, ...
          params: Of the network.
          predict: Runs instead of that network, with `params`; see `make_predict`.
        """
        self.config = config
        self.class_names = tuple(class_names)
        self.params = params
        self._predict = predict or _predict_of(config, len(self.class_names))

    def __call__(
        self, images: Sequence[Picture], *, score_threshold: float = 0.5
    ) -> list[Detections]:
        """Detects objects in pictures.

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
        size = self.config.eval.batch_size
        for start in range(0, len(images), size):
            batch = [read_picture(picture) for picture in images[start : start + size]]
            found += self._detect(batch, score_threshold)
        return found

    def _detect(self, pictures: list[np.ndarray], score_threshold: float) -> list[Detections]:
        placed = [loader.place(picture, self.config.data.canvas) for picture in pictures]
        rows = padded_rows(len(placed), most=self.config.eval.batch_size)
        placed += placed[-1:] * (rows - len(placed))
        canvases, extents = (np.stack(arrays) for arrays in zip(*placed, strict=True))
        raw = jax.device_get(self._predict(self.params, canvases, extents))
        return [
            in_pixels(row(raw, index), picture.shape[:2], score_threshold=score_threshold)
            for index, picture in enumerate(pictures)
        ]

    def predict_batches(
        self, batches: Iterator[Mapping[str, np.ndarray]]
    ) -> Iterator[tuple[int, Detections]]:
        """(index, detections in [0, 1], NumPy, all D rows) of each picture of `batches`."""
        for batch in batches:
            raw = jax.device_get(self._predict(self.params, batch["image"], batch["extent"]))
            for place, index in enumerate(batch["index"]):
                if index >= 0:
                    yield int(index), row(raw, place)


def _predict_of(config: config_lib.Config, num_classes: int) -> Predict:
    """`make_predict` of a config's network."""
    model = build_model(config.model, num_classes)
    return make_predict(
        model,
        default_boxes(config.model, model),
        image_size=input_size(config.model),
        score_threshold=config.eval.score_threshold,
        iou_threshold=config.eval.iou_threshold,
        top_k=config.eval.top_k,
        max_detections=config.eval.max_detections,
    )


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


def read_picture(picture: Picture) -> np.ndarray:
    """A path, PIL picture or array as `[H, W, 3]` uint8 RGB; a file is turned as its Exif says.

    Raises:
      UserError: If the file is missing or is no picture.
      ValueError: If an array is not `[H, W, 3]` uint8.
    """
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(
                f"a picture must be a uint8 array (height, width, 3) of RGB; this one is "
                f"{picture.dtype} {picture.shape}"
            )
        return picture
    try:
        data = Path(picture).read_bytes()
    except OSError as error:
        raise errors.UserError(f"{picture}: {error.strerror}") from None
    return image_files.decode(data, name=str(picture))


def load_detector(path: str | Path) -> Detector:
    """Loads a trained detector.

    Args:
      path: A workdir of `train.py` (its best checkpoint is taken), or one checkpoint,
        `WORKDIR/checkpoints/STEP`, or a file of `export.py`.

    Returns:
      `detector(images, *, score_threshold=0.5)`, see `Detector`.

    Raises:
      UserError: If there is no checkpoint, or its config is missing.
    """
    from ssd_jax import export  # which imports this module

    if export.is_exported(path):
        return export.load(path)
    folder = checkpoint.find(path)
    config, _ = config_lib.load(_config_of(folder))
    return restore(config, folder)


def restore(config: config_lib.Config, folder: Path) -> Detector:
    """The detector of a config, with the parameters and classes of one checkpoint folder.

    Raises:
      UserError: If the config describes another network than the checkpoint's.
    """
    trained, class_names = config_lib.load(_config_of(folder))
    for field in ("backbone", "image_size", "width", "prior_sizes", "clip_priors"):
        here, there = getattr(config.model, field), getattr(trained.model, field)
        if here != there:
            raise errors.UserError(
                f"config.model.{field} is {here}, but {folder} was trained with {there}"
            )
    model = build_model(config.model, len(class_names))
    image = jax.ShapeDtypeStruct((1, *input_size(config.model), 3), jnp.float32)
    like = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return Detector(config, class_names, checkpoint.restore_params(folder, like))


def _config_of(folder: Path) -> Path:
    """The `config.json` of the run that a checkpoint belongs to."""
    return folder.parent.parent / "config.json"


def input_size(config: config_lib.ModelConfig) -> tuple[int, int]:
    """(height, width) of the network's input in pixels."""
    return config.image_size, config.image_size
