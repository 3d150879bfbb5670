"""The data of a training: both splits of a config, the stream of batches, and samples."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssd_jax import augment, build, errors, visualize
from ssd_jax import config as config_lib
from ssd_jax.data import datasets, images, loader


@dataclasses.dataclass(frozen=True)
class Data:
    """The splits of a run."""

    train: datasets.Split
    eval: datasets.Split


def open_splits(config: config_lib.DataConfig) -> Data:
    """Opens both splits of a config.

    Raises:
      UserError: If a dataset or split does not exist, is broken, or the classes differ.
    """
    data = Data(
        train=build.split(config, config.train_split, training=True),
        eval=build.split(config, config.eval_split),
    )
    for field, split in (("train_split", data.train), ("eval_split", data.eval)):
        if not split.annotated:
            raise errors.UserError(
                f"config.data.{field}={getattr(config, field)!r} has no annotations; evaluate.py "
                "detects in such a split, but training needs one with them"
            )
    loader.check_objects(
        data.train.source,
        difficult=config.difficult,
        split=f"config.data.train_split={config.train_split!r}",
    )
    if data.train.class_names != data.eval.class_names:
        raise errors.UserError(
            f"config.data.train_split has the classes {', '.join(data.train.class_names)}, "
            f"eval_split has {', '.join(data.eval.class_names)}"
        )
    return data


def names(
    config: config_lib.Config, split: datasets.Split, position: int, first: int, number: int
) -> list[str]:
    """Names of the images in the batch of a step.

    Args:
      config: The config of the run.
      split: The training split.
      position: Position in the data stream, in images, where the process started.
      first: The step that it started after.
      number: The step.
    """
    size = config.train.batch_size
    begin = position + (number - 1 - first) * size
    return loader.names(split.source, positions=range(begin, begin + size), seed=config.seed)


def batches(
    config: config_lib.Config, split: datasets.Split, position: int
) -> Iterator[loader.Batch]:
    """Returns the training stream from a position on."""
    return loader.training_batches(
        split.source,
        batch_size=config.train.batch_size,
        max_objects=split.max_objects,
        seed=config.seed,
        decoding=build.decoding(config.data),
        start=position,
        difficult=config.data.difficult,
        shard=loader.Shard(jax.process_index(), jax.process_count()),
    )


def augmented(config: config_lib.Config, split: datasets.Split) -> np.ndarray:
    """Draws a sheet of augmentations of the first image with objects."""
    kept = functools.partial(loader.trained_on, difficult=config.data.difficult)
    records = (split.source[index] for index in range(len(split.source)))
    record = next((item for item in records if kept(item).any()), split.source[0])
    canvas = config.data.canvas
    image = build.image(config.data, record, fit=(canvas, canvas))
    return visualize.augmentations(
        jax.random.key(config.seed),
        image,
        record["boxes"][kept(record)],
        record["labels"][kept(record)],
        class_names=split.class_names,
        **build.augmentation(config).keywords,
    )


def first_images(config: config_lib.Config, split: datasets.Split, *, count: int = 2) -> Any:
    """Returns the first images of a split as network inputs `[B, H, W, 3]`."""
    records = [split.source[index] for index in range(min(count, len(split.source)))]
    placed = [
        images.place(build.image(config.data, record), config.data.canvas) for record in records
    ]
    side = build.input_size(config.model)
    resized = [augment.resize(canvas, valid_size, size=side) for canvas, valid_size in placed]
    return augment.normalize(jnp.stack(resized), mean=build.mean(config.model))


def contents(data: Data) -> list[str]:
    """Lines about the data that must be equal on all processes."""
    sizes = f"{len(data.train.source)} and {len(data.eval.source)} images"
    return [sizes, f"classes {', '.join(data.train.class_names)}"]
