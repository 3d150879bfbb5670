"""The training loop: from a config to a workdir with checkpoints, figures and samples."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from PIL import Image

from ssd_jax import cli, errors, visualize
from ssd_jax import config as config_lib
from ssd_jax import detector as detector_lib
from ssd_jax.data import datasets, images, loader
from ssd_jax.evaluation import run as evaluation
from ssd_jax.models import ssd
from ssd_jax.training import checkpoint, logs, optimizer, progress
from ssd_jax.training import step as step_lib
from ssd_jax.weights import hub, loading


@dataclasses.dataclass(frozen=True)
class Data:
    """The splits of a run."""

    train: datasets.Split
    eval: datasets.Split


def open_data(config: config_lib.DataConfig) -> Data:
    """Opens both splits of a config.

    Raises:
      UserError: If a dataset or split does not exist, is broken, or the classes differ.
    """
    data = Data(
        train=evaluation.open_split(config, config.train_split, training=True),
        eval=evaluation.open_split(config, config.eval_split),
    )
    if data.train.class_names != data.eval.class_names:
        raise errors.UserError(
            f"config.data.train_split has the classes {', '.join(data.train.class_names)}, "
            f"eval_split has {', '.join(data.eval.class_names)}"
        )
    return data


def train(config: config_lib.Config, workdir: Path) -> evaluation.Evaluation:
    """Trains, or goes on from the workdir's latest checkpoint, to `config.train.steps`.

    Args:
      config: Of the run.
      workdir: Where everything is written; made if it is not there.

    Returns:
      The evaluation of the parameters at the end.

    Raises:
      UserError: If the config does not fit the machine, the data or the workdir, or the loss is not
        finite.
    """
    weights = functools.cache(functools.partial(_read_pretrained, config))
    config = _settled(config, workdir, weights)
    options, side = config.train, (config.model.image_size, config.model.image_size)
    mesh = step_lib.make_mesh()
    _check_batch(options.batch_size, mesh.size)
    data = open_data(config.data)
    _claim(workdir, config, data.train.class_names)
    model = detector_lib.build_model(config.model, len(data.train.class_names))
    rate = _schedule(config)
    opt = _optimizer(options, rate)
    step = step_lib.make_train_step(
        model,
        opt,
        detector_lib.default_boxes(config.model, model),
        mesh=mesh,
        image_size=side,
        seed=config.seed,
        policy=config.data.augment,
        channel_shuffle=config.data.channel_shuffle,
        interpolations=config.data.interpolations,
        iou_threshold=options.iou_threshold,
        neg_pos_ratio=options.neg_pos_ratio,
        loc_weight=options.loc_weight,
        mean=detector_lib.picture_mean(config.model),
        parallel=options.parallel,
    )
    state = step_lib.init_state(model, opt, side, config.seed)
    state = jax.device_put(state, step_lib.replicated(mesh))
    with checkpoint.open_manager(workdir) as manager:
        state, origin = _restore_or_start(manager, state, config.model, weights)
        first = int(state.step)
        _announce(config, data, model, state, mesh, origin)
        batches = step_lib.prefetch(_batches(config, data.train, first), mesh)
        _save_picture(_augmented(config, data.train), workdir / "samples" / "augmented.png")
        log = logs.MetricsLog(workdir, step=first)
        evaluate = functools.partial(_evaluate, config, data.eval, workdir, log)
        result = None
        with progress.Progress(first, options.steps, options.batch_size) as display:
            for number in range(first + 1, options.steps + 1):
                state, metrics = step(state, next(batches))
                if number % options.log_every == 0 or number == options.steps:
                    _log(log, display, number, metrics, float(rate(number - 1)))
                due = number % options.eval_every == 0 or number == options.steps
                result = evaluate(state, display) if due else None
                if result or number % options.checkpoint_every == 0:
                    mean_ap = result.voc07.mean_ap if result else None
                    with display.pause():
                        checkpoint.save(manager, state, mean_ap=mean_ap)
            result = result or evaluate(state, display)
        manager.wait_until_finished()
    log.close()
    return result


def _batches(config: config_lib.Config, split: datasets.Split, step: int) -> Iterator[loader.Batch]:
    """The training stream from a step on."""
    return loader.training_batches(
        split.source,
        batch_size=config.train.batch_size,
        canvas=config.data.canvas,
        max_objects=split.max_objects,
        seed=config.seed,
        start=step * config.train.batch_size,
        difficult=config.data.difficult,
        process=jax.process_index(),
        processes=jax.process_count(),
        threads=config.data.threads,
        workers=config.data.workers,
    )


def _log(
    log: logs.MetricsLog,
    display: progress.Progress,
    number: int,
    metrics: step_lib.Metrics,
    rate: float,
) -> None:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not math.isfinite(values["loss"]):
        raise errors.UserError(
            f"the loss is {values['loss']} at step {number}: lower config.train.learning_rate or "
            f"set config.train.warmup_steps; the same command then goes on from the last checkpoint"
        )
    speed = display.update(number, loss=values["loss"])
    log.write(step=number, **values, learning_rate=rate, images_per_second=speed)


def _evaluate(
    config: config_lib.Config,
    split: datasets.Split,
    workdir: Path,
    log: logs.MetricsLog,
    state: step_lib.TrainState,
    display: progress.Progress,
) -> evaluation.Evaluation:
    """Evaluates the parameters, logs the mAP, draws samples and writes the report."""
    step = int(state.step)
    detector = detector_lib.Detector(config, split.class_names, jax.device_get(state.params))
    with display.pause():
        result = evaluation.evaluate(
            detector,
            split,
            max_images=config.eval.max_images,
            on_picture=display.evaluating,
        )
        pictures = evaluation.draw_samples(detector, split)
        sheet = visualize.grid(pictures, columns=4)
        _save_picture(sheet, workdir / "samples" / f"step_{step:06d}.png")
        log.write(step=step, mean_ap=result.voc07.mean_ap)
        evaluation.write(workdir, result, config=config, metrics=log.rows, pictures=pictures)
        cli.stdout.print(
            f"step {step}: mAP (VOC07) {result.voc07.mean_ap:.4f} on {result.images} pictures"
        )
    return result


def _augmented(config: config_lib.Config, split: datasets.Split) -> np.ndarray:
    """A sheet of what training sees of the first picture that has objects."""
    records = (split.source[index] for index in range(len(split.source)))
    record = next((item for item in records if len(item["labels"])), split.source[0])
    canvas = config.data.canvas
    picture = images.decode(record["image"], name=record["name"], fit=(canvas, canvas))
    return visualize.augmentations(
        jax.random.key(config.seed),
        picture,
        record["boxes"],
        record["labels"],
        class_names=split.class_names,
        size=config.model.image_size,
        policy=config.data.augment,
        channel_shuffle=config.data.channel_shuffle,
        interpolations=config.data.interpolations,
    )


def _save_picture(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def _read_pretrained(config: config_lib.Config) -> loading.Weights:
    return loading.read(hub.locate(config.model.pretrained, cache_dir=config.data.cache_dir))


def _settled(
    config: config_lib.Config, workdir: Path, weights: Callable[[], loading.Weights]
) -> config_lib.Config:
    """The config with the mean of the weights that it starts from, where it gives none.

    A run that goes on has it in its `config.json` and needs the weights no more.
    """
    if config.model.mean or not config.model.pretrained:
        return config
    saved = workdir / "config.json"
    mean = config_lib.load(saved)[0].model.mean if saved.exists() else weights().layout.mean
    return dataclasses.replace(config, model=dataclasses.replace(config.model, mean=mean))


def _restore_or_start(
    manager: ocp.CheckpointManager,
    state: step_lib.TrainState,
    config: config_lib.ModelConfig,
    weights: Callable[[], loading.Weights],
) -> tuple[step_lib.TrainState, str]:
    """The state to begin with, and where it comes from in words."""
    if manager.latest_step() is not None:
        return checkpoint.restore(manager, state), f"checkpoint of step {manager.latest_step()}"
    if not config.pretrained:
        return state, "fresh parameters"
    shifted = loading.with_mean(weights(), detector_lib.picture_mean(config))
    params, report = loading.fit(state.params, shifted)
    origin = "\n           ".join([report.title, *report.lines()])
    return dataclasses.replace(state, params=params), origin


def _claim(workdir: Path, config: config_lib.Config, class_names: tuple[str, ...]) -> None:
    """Makes the workdir and writes the config there, unless it is another network's.

    Raises:
      UserError: If the workdir can't be written, or is that of another model or other classes.
    """
    path = workdir / "config.json"
    if path.exists():
        earlier, earlier_names = config_lib.load(path)
        if (earlier.model, earlier_names) != (config.model, class_names):
            raise errors.UserError(
                f"{workdir} is the workdir of another model or of other classes (its config.json "
                f"says which): give another --workdir"
            )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        config_lib.save(path, config, class_names)
    except OSError as error:
        raise errors.UserError(f"--workdir {workdir}: {error.strerror}") from None


def _announce(
    config: config_lib.Config,
    data: Data,
    model: ssd.SSD,
    state: step_lib.TrainState,
    mesh: jax.sharding.Mesh,
    origin: str,
) -> None:
    """Says what the run is about, before the first step compiles."""
    side = config.model.image_size
    kind = mesh.devices.flat[0].device_kind
    names = data.train.class_names
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    boxes = len(detector_lib.default_boxes(config.model, model))
    train_size, eval_size = len(data.train.source), len(data.eval.source)
    for name, value in {
        "devices": f"{mesh.size} x {kind}, {config.train.parallel}",
        "data": f"{config.data.dataset}: {config.data.train_split} ({train_size} pictures), "
        f"evaluated on {config.data.eval_split} ({eval_size})",
        "classes": f"{len(names)}: {', '.join(names)}",
        "model": f"{config.model.backbone} SSD, {side} x {side}, width {config.model.width:g}, "
        f"{parameters:,} parameters, {boxes} default boxes, {config.model.dtype}",
        "training": f"steps {int(state.step)} to {config.train.steps}, batch "
        f"{config.train.batch_size} ({config.train.batch_size // mesh.size} a device), "
        f"{config.train.optimizer}, rate {config.train.learning_rate:g} ({config.train.schedule}, "
        f"warm-up {_warmup_steps(config)} steps)",
        "start": origin,
    }.items():
        cli.stdout.print(f"[bold]{name:>9}[/bold]  {value}")


def _schedule(config: config_lib.Config) -> Any:
    options = config.train
    return optimizer.make_schedule(
        learning_rate=options.learning_rate,
        steps=options.steps,
        schedule=options.schedule,
        drops=options.drops,
        drop_factor=options.drop_factor,
        warmup_steps=_warmup_steps(config),
    )


def _warmup_steps(config: config_lib.Config) -> int:
    """The paper needs no warm-up, for it never starts from nothing."""
    fresh = 0 if config.model.pretrained else config.train.fresh_warmup_steps
    return max(config.train.warmup_steps, fresh)


def _optimizer(config: config_lib.TrainConfig, rate: Any) -> Any:
    return optimizer.make_optimizer(
        rate,
        optimizer=config.optimizer,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        bias_rate=config.bias_rate,
    )


def _check_batch(batch_size: int, devices: int) -> None:
    if batch_size % devices:
        raise errors.UserError(
            f"config.train.batch_size ({batch_size}) must be divisible by the {devices} devices; "
            f"{batch_size // devices * devices or devices} is"
        )
