"""The training loop: from a config to a workdir with checkpoints, figures and samples."""

import collections
import contextlib
import dataclasses
import errno
import fcntl
import functools
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from PIL import Image

from ssd_jax import (
    augment,
    config_checks,
    config_files,
    console,
    distributed,
    download,
    errors,
    files,
    visualize,
)
from ssd_jax import config as config_lib
from ssd_jax import detector as detector_lib
from ssd_jax.data import datasets, images, loader
from ssd_jax.evaluation import outputs
from ssd_jax.evaluation import run as evaluation
from ssd_jax.models import calibration, ssd
from ssd_jax.training import checkpoint, guard, logs, optimizer, progress, signals, watchdog
from ssd_jax.training import step as step_lib
from ssd_jax.weights import loading, transfer

_UNSEEN = 60  # seconds that NFS may keep in mind that a file was not there


@dataclasses.dataclass(frozen=True)
class Data:
    """The splits of a run."""

    train: datasets.Split
    eval: datasets.Split


class Start(NamedTuple):
    """Where a process begins or goes on.

    Attributes:
      state: Of the training.
      position: In the data stream, in pictures.
      origin: Where the state comes from, in words.
    """

    state: step_lib.TrainState
    position: int
    origin: str


def open_data(config: config_lib.DataConfig) -> Data:
    """Opens both splits of a config.

    Raises:
      UserError: If a dataset or split does not exist, is broken, or the classes differ.
    """
    data = Data(
        train=evaluation.open_split(config, config.train_split, training=True),
        eval=evaluation.open_split(config, config.eval_split),
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


def train(
    config: config_lib.Config,
    workdir: Path,
    *,
    change_config: bool = False,
    profile: range = range(0),
) -> evaluation.Evaluation:
    """Trains, or goes on from the workdir's latest checkpoint, to `config.train.steps`.

    Args:
      config: Of the run.
      workdir: Where everything is written; made if it is not there.
      change_config: Go on in a workdir whose config differs in what is learnt.
      profile: Steps that are traced into `WORKDIR/profile`.

    Returns:
      The evaluation of the parameters at the end.

    Raises:
      UserError: If the config does not fit the machine, the data or the workdir, the disk is full,
        or too many steps in a row were not finite.
      StoppedError: If a signal ended the run; its state is saved.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(signals.Stop())
        distributed.check_same(_settings(config))
        source = functools.cache(functools.partial(_read_source, config))
        with distributed.together():
            logs.check_wandb(config.train.wandb)
            config = _settled(config, workdir, source)
            mesh = step_lib.make_mesh()
            _check_batch(config.train, mesh.size)
            data = open_data(config.data)
            paths = _paths(config.model, len(data.train.class_names))
            _check_patterns(config.train, paths)
            if not (workdir / "config.json").exists():
                _check_frozen(config, paths, source)
        # Not before: a process may prepare data for hours.
        dog = stack.enter_context(watchdog.Watchdog(config.train.watchdog_minutes))
        distributed.check_same([*_settings(config), *_contents(data)])
        stack.enter_context(
            _claim(workdir, config, data.train.class_names, change_config=change_config)
        )
        stack.enter_context(checkpoint.room_for(workdir))
        return _train(config, workdir, data, mesh, source, profile, stop, dog, change_config)


def _train(
    config: config_lib.Config,
    workdir: Path,
    data: Data,
    mesh: jax.sharding.Mesh,
    source: Callable[[], detector_lib.Source],
    profile: range,
    stop: signals.Stop,
    dog: watchdog.Watchdog,
    change_config: bool,
) -> evaluation.Evaluation:
    options, side = config.train, detector_lib.input_size(config.model)
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
        boundary_boxes=options.boundary_boxes,
        accumulate=options.accumulate,
        ema_decay=options.ema_decay,
        freeze=options.freeze,
        mean=detector_lib.picture_mean(config.model),
        parallel=options.parallel,
    )
    state = step_lib.init_state(
        model, opt, side, config.seed, ema=options.ema_decay > 0, freeze=options.freeze
    )
    state = jax.device_put(state, step_lib.replicated(mesh))
    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(
            checkpoint.open_manager(workdir, keep=options.keep_checkpoints, clean=True)
        )
        state, position, origin = _start(
            manager, state, config, model, source, data, workdir, change_config
        )
        dog.beat()
        first = int(state.step)
        _check_profile(profile, first, options.steps)
        _announce(config, data, model, state, mesh, origin)
        batches = step_lib.prefetch(_batches(config, data.train, position), mesh)
        if distributed.is_primary():
            sheet = workdir / "samples" / "augmented.png"
            with logs.best_effort(sheet):
                _save_picture(_augmented(config, data.train), sheet)
        host = _Host(
            stack.enter_context(
                logs.MetricsLog(
                    workdir,
                    step=first,
                    active=distributed.is_primary(),
                    wandb=options.wandb,
                    settings=_shown_settings(config),
                )
            ),
            stack.enter_context(progress.Progress(first, options.steps, options.batch_size)),
            dog,
            guard.Guard(
                workdir,
                step=first,
                most=options.max_skipped,
                names_of=functools.partial(_names, config, data.train, position, first),
            ),
            options,
            rate,
            step_lib.updates_done(state.opt_state),
        )
        stop.defer()
        trace = stack.enter_context(_Profile(profile, workdir / "profile"))
        evaluate = functools.partial(_evaluate, config, data.eval, host, stop)
        report = functools.partial(_report, config, data.eval, workdir, host)
        result = None
        for number in range(first + 1, options.steps + 1):
            trace.at(number, host)
            state, metrics = step(state, _with_stop(next(batches), stop, mesh))
            try:
                host.follow(number, metrics)
                ending = bool(stop.name) if jax.process_count() == 1 else host.stop
                due = number % options.eval_every == 0 or number == options.steps
                if due or ending or number % options.checkpoint_every == 0:
                    host.catch_up()
            except guard.SkippedError:
                raise guard.keep_for_post_mortem(workdir, state, host.guard) from None
            result = evaluate(state) if due and not ending else None
            ending = ending or (due and result is None)
            if result or ending or number % options.checkpoint_every == 0:
                run = _run(config, data, position + (number - first) * options.batch_size)
                mean_ap = result.voc07.mean_ap if result else None
                with host.display.pause():
                    checkpoint.save(manager, state, run=run, mean_ap=mean_ap)
            if result:
                report(state, result)
                dog.beat()
            if ending:
                checkpoint.wait(manager)
                distributed.wait_for_all("stopped")
                raise errors.StoppedError(
                    f"stopped after step {number}, whose state is saved in {workdir}: the same "
                    f"command goes on from there"
                )
        if result is None and (result := evaluate(state)):
            report(state, result)
        checkpoint.wait(manager)
    if result is None:
        raise errors.StoppedError(
            f"stopped while evaluating; the training in {workdir} is complete"
        )
    return result


class _Host:
    """What the host does with the figures of a step, one step behind the devices.

    Attributes:
      log: Of the run's figures.
      display: The live line.
      dog: Told of every step.
      guard: Of skipped steps.
      stop: Whether a process of the run has been told to stop.
    """

    def __init__(
        self,
        log: logs.MetricsLog,
        display: progress.Progress,
        dog: watchdog.Watchdog,
        keeper: guard.Guard,
        options: config_lib.TrainConfig,
        rate: Any,
        updates: Any,
    ):
        self.log, self.display, self.dog, self.guard = log, display, dog, keeper
        self.stop = False
        self._options, self._rate = options, rate
        self._updates = int(updates)  # that the schedule has counted: no skipped step is one
        self._pending: collections.deque[tuple[int, step_lib.Metrics]] = collections.deque()

    def follow(self, number: int, metrics: step_lib.Metrics) -> None:
        """Takes note of a step that was just started, and of the figures of the one before."""
        self._pending.append((number, metrics))
        while len(self._pending) > 1:
            self._take(*self._pending.popleft())

    def catch_up(self) -> None:
        """Waits for the last step that was started."""
        while self._pending:
            self._take(*self._pending.popleft())

    def _take(self, number: int, metrics: step_lib.Metrics) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.dog.beat()
        self.stop |= values.pop("stop", 0.0) > 0
        self.guard.check(number, values)
        if number % self._options.log_every == 0 or number == self._options.steps:
            speed = self.display.update(number, loss=values["loss"])
            rate = float(self._rate(self._updates))
            self.log.write(step=number, **values, learning_rate=rate, images_per_second=speed)
        self._updates += not values["skipped"]


class _Profile:
    """Traces some steps, for TensorBoard or Perfetto."""

    def __init__(self, steps: range, folder: Path):
        self._steps, self._folder, self._on = steps, folder, False

    def __enter__(self) -> "_Profile":
        return self

    def at(self, number: int, host: _Host) -> None:
        """Called before a step starts."""
        if number == self._steps.stop:
            host.catch_up()
            self.__exit__()
        if number in self._steps and not self._on:
            with logs.best_effort(self._folder):
                for place in ("", "plugins", "plugins/profile"):  # which JAX writes through
                    files.make_folder(self._folder / place)
                jax.profiler.start_trace(str(self._folder))
                self._on = True

    def __exit__(self, *error: object) -> None:
        if self._on:
            self._on = False
            with logs.best_effort(self._folder):
                jax.profiler.stop_trace()


def _with_stop(
    batch: step_lib.Batch, stop: signals.Stop, mesh: jax.sharding.Mesh
) -> step_lib.Batch:
    """Tells the other processes, through the step, that this one has been told to stop."""
    if jax.process_count() == 1:
        return batch
    told = np.full(len(mesh.local_devices), bool(stop.name), np.float32)
    return {**batch, **step_lib.shard_batch({"stop": told}, mesh)}


def _run(config: config_lib.Config, data: Data, position: int) -> dict[str, Any]:
    """What a checkpoint keeps beside the state."""
    return {
        "config": config_files.to_dict(config),
        "class_names": list(data.train.class_names),
        "position": position,
        "pictures": len(data.train.source),
    }


def _names(
    config: config_lib.Config, split: datasets.Split, position: int, first: int, number: int
) -> list[str]:
    """Names of the pictures in the batch of a step."""
    size = config.train.batch_size
    begin = position + (number - 1 - first) * size
    return loader.names(split.source, positions=range(begin, begin + size), seed=config.seed)


def _batches(
    config: config_lib.Config, split: datasets.Split, position: int
) -> Iterator[loader.Batch]:
    """The training stream from a position on."""
    return loader.training_batches(
        split.source,
        batch_size=config.train.batch_size,
        canvas=config.data.canvas,
        max_objects=split.max_objects,
        seed=config.seed,
        start=position,
        difficult=config.data.difficult,
        process=jax.process_index(),
        processes=jax.process_count(),
        threads=config.data.threads,
        workers=config.data.workers,
        max_megapixels=config.data.max_megapixels,
    )


def _evaluate(
    config: config_lib.Config,
    split: datasets.Split,
    host: _Host,
    stop: signals.Stop,
    state: step_lib.TrainState,
) -> evaluation.Evaluation | None:
    """Evaluates the parameters and logs the mAP; None if a signal came to a process meanwhile."""

    def on_picture(done: int) -> None:
        host.dog.beat()
        host.display.evaluating(done)

    def on_batch() -> None:
        if distributed.any_true(bool(stop.name)):
            raise errors.StoppedError

    with host.display.pause():
        try:
            result = evaluation.evaluate(
                _detector(config, split, state),
                split,
                max_images=config.eval.max_images,
                on_picture=on_picture,
                on_batch=on_batch,
            )
        except errors.StoppedError:
            return None
        host.dog.beat()
        host.log.write(step=int(state.step), mean_ap=result.voc07.mean_ap)
    return result


def _report(
    config: config_lib.Config,
    split: datasets.Split,
    workdir: Path,
    host: _Host,
    state: step_lib.TrainState,
    result: evaluation.Evaluation,
) -> None:
    """Draws samples, writes the report and says the mAP."""
    step = int(state.step)
    with host.display.pause():
        if distributed.is_primary():
            samples: list[np.ndarray] = []
            place = workdir / "samples" / f"step_{step:06d}.png"
            with logs.best_effort(place):
                samples += evaluation.draw_samples(_detector(config, split, state), split)
                _save_picture(visualize.grid(samples, columns=4), place)
            with logs.best_effort(workdir / "report.html"), files.alone(workdir):
                outputs.write(
                    workdir,
                    result,
                    origin=f"step {step} of {workdir}",
                    config=config,
                    split=split,
                    metrics=host.log.rows,
                    samples=samples,
                )
        console.stdout.print(
            f"step {step}: mAP (VOC07) {result.voc07.mean_ap:.4f} on {result.images} pictures"
        )


def _detector(
    config: config_lib.Config, split: datasets.Split, state: step_lib.TrainState
) -> detector_lib.Detector:
    """Of the parameters, or of their average."""
    params = state.ema if state.ema is not None and config.eval.ema else state.params
    return detector_lib.Detector(config, split.class_names, jax.device_get(params))


def _augmented(config: config_lib.Config, split: datasets.Split) -> np.ndarray:
    """A sheet of what training sees of the first picture that has objects."""
    kept = functools.partial(loader.trained_on, difficult=config.data.difficult)
    records = (split.source[index] for index in range(len(split.source)))
    record = next((item for item in records if kept(item).any()), split.source[0])
    canvas = config.data.canvas
    picture = evaluation.image_of(record, config.data, fit=(canvas, canvas))
    return visualize.augmentations(
        jax.random.key(config.seed),
        picture,
        record["boxes"][kept(record)],
        record["labels"][kept(record)],
        class_names=split.class_names,
        size=detector_lib.input_size(config.model),
        policy=config.data.augment,
        channel_shuffle=config.data.channel_shuffle,
        interpolations=config.data.interpolations,
        mean=detector_lib.picture_mean(config.model),
    )


def _save_picture(image: np.ndarray, path: Path) -> None:
    files.make_folder(path.parent)
    with files.replacing(path) as file:
        Image.fromarray(image).save(file, "PNG")


def _read_source(config: config_lib.Config) -> detector_lib.Source:
    model = config.model
    return detector_lib.read_source(
        model.pretrained,
        backbone=model.backbone,
        cache_dir=config.data.cache_dir,
        mirror=config.data.mirror,
        atrous=model.atrous,
    )


# Fields of the model that come with the weights where a config leaves them as they are.
_SETTLED = ("mean", "padding", "prior_sizes", "clip_priors", "clip_prior_sizes")


def _settled(
    config: config_lib.Config, workdir: Path, source: Callable[[], detector_lib.Source]
) -> config_lib.Config:
    """The config with what belongs to the weights that it starts from.

    Where it gives them itself they stay. A run that goes on has them in its `config.json` and needs
    the weights no more.
    """
    if not config.model.pretrained:
        return config
    saved = workdir / "config.json"
    there = config_files.load(saved)[0].model if saved.exists() else source().model
    default = config_lib.ModelConfig()
    settled = {
        field: getattr(there, field)
        for field in _SETTLED
        if getattr(config.model, field) == getattr(default, field)
    }
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **settled))


def _start(
    manager: ocp.CheckpointManager,
    state: step_lib.TrainState,
    config: config_lib.Config,
    model: ssd.SSD,
    source: Callable[[], detector_lib.Source],
    data: Data,
    workdir: Path,
    change_config: bool,
) -> Start:
    """The state to begin with or to go on from; `weights.txt` says what came of a file's arrays."""
    if (restored := checkpoint.restore(manager, state)) is not None:
        state, run = restored
        _check_same_pictures(workdir, run, data.train, change_config=change_config)
        return Start(state, _position(workdir, run), f"checkpoint of step {int(state.step)}")
    if not config.model.pretrained:
        return Start(state, 0, "fresh parameters")
    weights, theirs, model_of_weights, assumed = source()
    weights = loading.with_mean(weights, detector_lib.picture_mean(config.model))
    lines = list(assumed) if config.model.prior_sizes == model_of_weights.prior_sizes else []
    if theirs is not None:
        ours = transfer.Classes(data.train.class_names, config.model.gaps)
        weights, kept = transfer.with_classes(
            weights, state.params, theirs=theirs, ours=ours, share=config.model.shared_classes
        )
        lines += [f"{len(kept)} of {len(ours.names)} classes kept: {', '.join(kept) or 'none'}"]
    loaded, report = loading.fit(jax.device_get(state.params), weights)
    if any(path.startswith(f"{config.model.backbone}/") for path in report.fresh):
        loaded, factors = calibration.calibrate(
            model, loaded, _first_pictures(config, data.train), fresh=report.fresh
        )
        lines += [f"{path} scaled by {factor:.2g}" for path, factor in factors.items()]
    params = jax.device_put(loaded, jax.tree.map(lambda x: x.sharding, state.params))
    average = None if state.ema is None else jax.tree.map(jnp.copy, params)
    if distributed.is_primary():
        with logs.best_effort(workdir / "weights.txt"):
            files.write(workdir / "weights.txt", report.whole())
    lines += [*report.lines(), f"each by name and shape in {workdir / 'weights.txt'}"]
    origin = "\n           ".join([report.title, *lines])
    return Start(dataclasses.replace(state, params=params, ema=average), 0, origin)


def _first_pictures(config: config_lib.Config, split: datasets.Split, *, count: int = 2) -> Any:
    """`[B, H, W, 3]` of the first pictures of a split, as the network takes them."""
    records = [split.source[index] for index in range(min(count, len(split.source)))]
    placed = [
        images.place(evaluation.image_of(record, config.data), config.data.canvas)
        for record in records
    ]
    side = detector_lib.input_size(config.model)
    resized = [augment.resize(canvas, extent, size=side) for canvas, extent in placed]
    return augment.normalize(jnp.stack(resized), mean=detector_lib.picture_mean(config.model))


def _paths(config: config_lib.ModelConfig, num_classes: int) -> list[str]:
    """Of the parameters of a config's network."""
    model = detector_lib.build_model(config, num_classes)
    params = ssd.abstract_params(model, detector_lib.input_size(config))
    return list(flax.traverse_util.flatten_dict(params, sep="/"))


def _check_patterns(options: config_lib.TrainConfig, paths: list[str]) -> None:
    """A pattern that matches nothing is a mistake, which would be found out late."""
    patterns = {
        "freeze": options.freeze,
        "rates": tuple(config_checks.rate_multipliers(options.rates)),
    }
    for field, given in patterns.items():
        for pattern in given:
            if not optimizer.matching(paths, pattern):
                raise errors.UserError(
                    f"config.train.{field}: {pattern!r} matches no parameter; they are "
                    f"{', '.join(paths[:3])}, ... (--summary lists the layers)"
                )
    if all(any(optimizer.matching([path], p) for p in options.freeze) for path in paths):
        raise errors.UserError("config.train.freeze leaves nothing to learn")


def _check_frozen(
    config: config_lib.Config, paths: list[str], source: Callable[[], detector_lib.Source]
) -> None:
    """What is frozen has to come from somewhere."""
    frozen = [
        path for pattern in config.train.freeze for path in optimizer.matching(paths, pattern)
    ]
    if not frozen:
        return
    if not config.model.pretrained:
        raise errors.UserError(
            f"config.train.freeze would keep {frozen[0]} at random values: give the weights to "
            f"start from by config.model.pretrained, or config.train.freeze='()'"
        )
    weights = source().weights
    if missing := [path for path in frozen if path not in weights.arrays]:
        raise errors.UserError(
            f"config.train.freeze would keep {missing[0]} at random values: {weights.path} has "
            f"none for it"
        )


def _settings(config: config_lib.Config) -> list[str]:
    """What all processes have to have alike of the config, in lines."""
    data = dataclasses.replace(config.data, path="", archives="", cache_dir="", mirror="")
    own = dataclasses.replace(config, data=data)
    flat = jax.tree_util.tree_leaves_with_path(dataclasses.asdict(own))
    return [f"config{jax.tree_util.keystr(path)} = {value!r}" for path, value in flat]


def _shown_settings(config: config_lib.Config) -> dict[str, Any]:
    """The config as others may see it: without the password of an address."""
    data = dataclasses.replace(config.data, mirror=download.public(config.data.mirror))
    return config_files.to_dict(dataclasses.replace(config, data=data))


def _contents(data: Data) -> list[str]:
    """Likewise of the data."""
    sizes = f"{len(data.train.source)} and {len(data.eval.source)} pictures"
    return [sizes, f"classes {', '.join(data.train.class_names)}"]


@contextlib.contextmanager
def _claim(
    workdir: Path, config: config_lib.Config, class_names: tuple[str, ...], *, change_config: bool
) -> Iterator[None]:
    """Makes the workdir, keeps other processes out of it and writes the config there.

    Raises:
      UserError: If the workdir can't be written, is in use, or is that of another model, other
        classes or, unless it is to be changed, another config. Nothing is written then.
    """
    path = workdir / "config.json"
    with distributed.together():
        if path.exists():
            _check_same_run(workdir, config, class_names, change_config=change_config)
    with contextlib.ExitStack() as stack:
        with distributed.together():
            if distributed.is_primary():
                try:
                    workdir.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(_locked(workdir))
                    config_files.save(path, config, class_names)
                except OSError as error:
                    raise errors.UserError(f"--workdir {workdir}: {error.strerror}") from None
        with distributed.together():
            _check_seen(path)
        yield


def _check_seen(path: Path) -> None:
    """Makes sure that this process has the workdir of process 0, which wrote a file there."""
    end = time.monotonic() + _UNSEEN
    while not path.exists():
        if time.monotonic() > end:
            raise errors.UserError(
                f"--workdir {path.parent}: {socket.gethostname()} does not see the {path.name} "
                f"that process 0 wrote there; give a folder that all machines see"
            )
        time.sleep(0.2)


def _check_same_run(
    workdir: Path, config: config_lib.Config, class_names: tuple[str, ...], *, change_config: bool
) -> None:
    """Compares a workdir's config with the one to go on with, and says what changes."""
    earlier, earlier_names = config_files.load(workdir / "config.json")
    found = config_lib.differences(earlier, config)
    if earlier_names != class_names:
        found["classes"] = f"{', '.join(earlier_names)} there, {', '.join(class_names)} here"
    another = [n for n in found if n.startswith("model.") and n not in config_lib.CHANGEABLE]
    fits = not another and "classes" not in found
    if found and not (fits and change_config):
        lines = "; ".join(f"{name} {values}" for name, values in found.items())
        way = ", or --change-config to go on in this one" if fits else ""
        raise errors.UserError(
            f"{workdir} is the workdir of another config: {lines}. Give another --workdir{way}"
        )
    for name, values in found.items():
        console.stdout.print(console.plain(f"  changed  {name} {values}"))


def _position(workdir: Path, run: Mapping[str, Any]) -> int:
    """Where in the data a checkpoint, which may be somebody else's, goes on."""
    position = run.get("position")
    if type(position) is not int or not 0 <= position < 2**62:
        raise errors.UserError(
            f"{workdir / checkpoint.FOLDER}: its position in the data is "
            f"{config_checks.shown(position)}, no number of images: give another --workdir"
        )
    return position


def _check_same_pictures(
    workdir: Path, run: Mapping[str, Any], split: datasets.Split, *, change_config: bool
) -> None:
    """Compares the size of the data in which a checkpoint has a position with that of today's."""
    here = len(split.source)
    there = run.get("pictures", here)  # an older checkpoint does not say
    if there == here:
        return
    found = f"data.train_split has {here} pictures, and had {config_checks.shown(there)}"
    if not change_config:
        raise errors.UserError(
            f"the data of {workdir} have changed: {found}. Give another --workdir, or "
            f"--change-config to go on in this one"
        )
    console.stdout.print(console.plain(f"  changed  {found}"))


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Holds the workdir; the system lets go of it when the process ends, however it ends."""
    with files.appending(workdir / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise errors.UserError(
                f"{workdir} is in use by {file.read(200) or 'another process'}: wait until it "
                f"ends, or give another --workdir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            logging.warning("%s: no other run may use it; the system cannot tell", workdir)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _announce(
    config: config_lib.Config,
    data: Data,
    model: ssd.SSD,
    state: step_lib.TrainState,
    mesh: jax.sharding.Mesh,
    origin: str,
) -> None:
    """Says what the run is about, before the first step compiles."""
    height, width = detector_lib.input_size(config.model)
    kind = mesh.devices.flat[0].device_kind
    names = data.train.class_names
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    boxes = len(detector_lib.default_boxes(config.model, model))
    train_size, eval_size = len(data.train.source), len(data.eval.source)
    for name, value in {
        "devices": f"{mesh.size} x {kind}{_processes(mesh)}, {config.train.parallel}",
        "data": f"{config.data.dataset}: {config.data.train_split} ({train_size} pictures), "
        f"evaluated on {config.data.eval_split} ({eval_size})",
        "classes": f"{len(names)}: {', '.join(names)}",
        "model": f"{config.model.backbone} SSD, {height} x {width}, width {config.model.width:g}, "
        f"{parameters:,} parameters, {boxes} default boxes, {config.model.dtype}",
        "batch": _layout(config.train, mesh),
        "training": f"steps {int(state.step)} to {config.train.steps}, {config.train.optimizer}, "
        f"rate {_base_rate(config.train):g} ({config.train.schedule}, "
        f"warm-up {_warmup_steps(config)} steps)",
        "start": origin,
    }.items():
        console.stdout.print(f"[bold]{name:>9}[/bold] ", console.plain(value))


def _processes(mesh: jax.sharding.Mesh) -> str:
    if jax.process_count() == 1:
        return ""
    return f" in {jax.process_count()} processes of {len(mesh.local_devices)}"


def _layout(options: config_lib.TrainConfig, mesh: jax.sharding.Mesh) -> str:
    """How a batch lies over processes and devices."""
    size, parts = options.batch_size, []
    if jax.process_count() > 1:
        parts.append(f"{size // jax.process_count()} a process")
    parts.append(f"{size // mesh.size} a device")
    if options.accumulate > 1:
        parts.append(f"{size // mesh.size // options.accumulate} at a time")
    return f"{size}: {', '.join(parts)}"


def _base_rate(options: config_lib.TrainConfig) -> float:
    """The rate for this batch size.

    Source: Goyal et al. 2017, "Accurate, large minibatch SGD", section 2.1, linear scaling.
    """
    meant_for = options.scale_rate_from or options.batch_size
    return options.learning_rate * options.batch_size / meant_for


def _schedule(config: config_lib.Config) -> Any:
    options = config.train
    return optimizer.make_schedule(
        learning_rate=_base_rate(options),
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
        clip_norm=config.clip_norm,
        rates=config_checks.rate_multipliers(config.rates),
    )


def _check_profile(profile: range, first: int, last: int) -> None:
    """A trace of steps that a run does not do would be looked for in vain."""
    if profile and not (profile.start <= last and profile.stop > first + 1):
        remaining = f"steps {first + 1} to {last} are" if first < last else "no step is"
        raise errors.UserError(
            f"--profile {profile.start}:{profile.stop} traces nothing: {remaining} still to do"
        )


def _check_batch(options: config_lib.TrainConfig, devices: int) -> None:
    size, processes = options.batch_size, jax.process_count()
    if size % devices:
        where = f"{devices} devices" + (f" of {processes} processes" if processes > 1 else "")
        raise errors.UserError(
            f"config.train.batch_size ({size}) must be divisible by the {where}; "
            f"{size // devices * devices or devices} is"
        )
    if size // devices % options.accumulate:
        raise errors.UserError(
            f"config.train.accumulate ({options.accumulate}) must divide the {size // devices} "
            f"pictures of a device"
        )
