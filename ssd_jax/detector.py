"""A trained detector: images of any size in, detections in their pixels out."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from PIL import Image

from ssd_jax import augment, build, detection, errors, files, tta, visualize
from ssd_jax import config as config_lib
from ssd_jax.data import images as image_files
from ssd_jax.detection import Detections
from ssd_jax.models import ssd
from ssd_jax.weights import loading

ImageInput = str | Path | Image.Image | np.ndarray
Array = jax.Array | np.ndarray
Predict = Callable[[Any, Array, Array], Detections]


def make_predict(
    model: ssd.SSD,
    views: Sequence[tta.View],
    *,
    mean: Sequence[float] = augment.MEAN,
    post_process: Callable[..., Detections] = detection.detect,
    mesh: Mesh | None = None,
) -> Predict:
    """Builds the jit-compiled function from images to detections.

    Args:
      model: The network.
      views: Views of each image; their candidates are joined before NMS.
      mean: RGB in 0..255 that is subtracted.
      post_process: From `[P, 4]` offsets, `[P, C]` logits and `[P, 4]` priors (cxcywh) of one image
        to its detections, as `detection.detect` does it.
      mesh: Mesh of one axis over the devices, whose number divides the batch; None: one device.

    Returns:
      `predict(params, images, valid_sizes)`: `[B, H, W, 3]` uint8 canvases and `[B, 2]` (height,
      width) of the images on them to `Detections` of `[B, D]` rows, boxes in [0, 1] of each image.
    """

    def predict(params: Any, images: Array, valid_sizes: Array) -> Detections:
        seen = [tta.predict(model, params, images, valid_sizes, view, mean=mean) for view in views]
        loc, conf, priors_cxcywh = zip(*seen, strict=True)
        return jax.vmap(post_process, in_axes=(0, 0, None))(
            jnp.concatenate(loc, axis=1),
            jnp.concatenate(conf, axis=1),
            jnp.concatenate(priors_cxcywh),
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


class _Placed(NamedTuple):
    """An image prepared for the network.

    Attributes:
      canvas: `[canvas, canvas, 3]` uint8 with the image, shrunk if it must be.
      valid_size: `[2]` float32 (height, width) of the image there.
      image_size: Original (height, width).
    """

    canvas: np.ndarray
    valid_size: np.ndarray
    image_size: tuple[int, int]


class Detector:
    """A network with its parameters and class names; call it on images.

    Attributes:
      class_names: Names of the classes; label k is `class_names[k - 1]`.
      config: The config of the run that made it.
      loaded: Report on the arrays of the third-party checkpoint it was loaded from; None for
        others.
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
          config: Config of the network and its post-processing.
          class_names: Names of label 1, 2, ...
          params: Parameters of the network.
          predict: Runs instead of the network, on `params`; see `make_predict`.
          loaded: See the attribute.
        """
        self.config = config
        self.loaded = loaded
        self.class_names = tuple(class_names)
        self.params = jax.device_put(params)
        self._predict = predict or _predict_of(config, len(self.class_names))
        self._devices = 1 if predict else jax.local_device_count()

    def __call__(
        self, images: Iterable[ImageInput], *, score_threshold: float = 0.5
    ) -> list[Detections]:
        """Detects objects in images; only one at a time is held at full size.

        Args:
          images: Paths, PIL images, or `[H, W, 3]` uint8 RGB arrays, of any size.
          score_threshold: Only detections that score more are given, in [0, 1].

        Returns:
          For each image the detections, best first, as NumPy arrays of the used rows only; boxes
          are corners in pixels of that image.

        Raises:
          UserError: If a file is missing or is no image.
        """
        found = []
        placed = map(self._place, images)
        while batch := list(itertools.islice(placed, self.config.eval.batch_size)):
            found += self._detect(batch, score_threshold)
        return found

    def draw(self, image: ImageInput, found: Detections) -> Image.Image:
        """An image with the boxes, names and scores of its detections.

        Args:
          image: An image for `__call__`.
          found: Detections of this image from `__call__`.

        Returns:
          An RGB image of the same size.

        Raises:
          UserError: If the file is missing or is no image.
        """
        boxes, scores, labels = (np.asarray(values) for values in found)
        pixels = read_image(image, max_megapixels=self.config.data.max_megapixels)
        return visualize.draw_image(pixels, boxes, labels, scores, class_names=self.class_names)

    def _place(self, image: ImageInput) -> _Placed:
        pixels = read_image(image, max_megapixels=self.config.data.max_megapixels)
        return _Placed(*image_files.place(pixels, self.config.data.canvas), pixels.shape[:2])

    def _detect(self, placed: Sequence[_Placed], score_threshold: float) -> list[Detections]:
        rows = padded_rows(len(placed), most=self.config.eval.batch_size)
        filled = [*placed, *[placed[-1]] * (rows - len(placed))]
        canvases, valid_sizes, _ = zip(*filled, strict=True)
        raw = self._run(np.stack(canvases), np.stack(valid_sizes))
        return [
            in_pixels(row(raw, index), one.image_size, score_threshold=score_threshold)
            for index, one in enumerate(placed)
        ]

    def predict_batches(
        self, batches: Iterator[Mapping[str, np.ndarray]]
    ) -> Iterator[tuple[int, Detections]]:
        """(index, detections in [0, 1], NumPy, all D rows) of each image of `batches`."""
        for batch in batches:
            raw = self._run(batch["image"], batch["valid_size"])
            for place, index in enumerate(batch["index"]):
                if index >= 0:
                    yield int(index), row(raw, place)

    def _run(self, images: Array, valid_sizes: Array) -> Detections:
        """NumPy detections of a batch; the devices of this process share it if they divide it."""
        if self._devices == 1 or len(images) % self._devices:
            return jax.device_get(self._predict(self.params, images, valid_sizes))
        return jax.device_get(self._shared(images, valid_sizes))

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
    model = build.model(config.model, num_classes)
    return make_predict(
        model,
        build.views(config, model),
        mean=build.mean(config.model),
        post_process=build.post_processing(config.eval),
        mesh=mesh,
    )


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value


def padded_rows(count: int, *, most: int) -> int:
    """Rows of the batch that `count` images run in: a power of two, or `most`.

    Each number of rows is compiled once, so they are few.

    Args:
      count: In 1..most.
      most: The largest batch.
    """
    return min(1 << (count - 1).bit_length(), most)


def row(batch: Detections, index: int) -> Detections:
    """Returns the detections of one image of a batch."""
    return Detections(*(values[index] for values in batch))


def in_pixels(
    found: Detections, image_size: tuple[int, int], *, score_threshold: float
) -> Detections:
    """Scales `[D]` detections from [0, 1] to pixels and keeps those over the threshold.

    Args:
      found: Detections of one image as NumPy arrays.
      image_size: (height, width).
      score_threshold: In [0, 1].
    """
    height, width = image_size
    used = found.scores > score_threshold
    scale = np.array([width, height, width, height], np.float32)
    return Detections(found.boxes[used] * scale, found.scores[used], found.labels[used])


def read_image(
    image: ImageInput, *, max_megapixels: float = image_files.MAX_MEGAPIXELS
) -> np.ndarray:
    """A path, PIL image or array as `[H, W, 3]` uint8 RGB.

    Files and PIL images are oriented by their Exif and converted to RGB as in `images.decode`.

    Args:
      image: The path, PIL image or array.
      max_megapixels: A larger file is refused, see `images.decode`; a PIL image is its owner's.

    Raises:
      UserError: If the file is missing, no regular file or no image.
      MachineError: If the machine is at fault, for example out of memory.
      ValueError: If an array is not `[H, W, 3]` uint8, or a PIL image has floating-point pixels.
    """
    if isinstance(image, Image.Image):
        return image_files.rgb(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"an image must be a uint8 array (height, width, 3) of RGB; this one is "
                f"{image.dtype} {image.shape}"
            )
        return image
    try:
        data = files.read(image, at_most=image_files.most_bytes(max_megapixels))
    except errors.UserError:
        raise
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a null byte in the name
        if errors.is_of_machine(error):
            raise errors.of_machine(error, image) from None
        raise errors.UserError(f"{image}: {getattr(error, 'strerror', error)}") from None
    return image_files.decode(data, name=str(image), max_megapixels=max_megapixels)
