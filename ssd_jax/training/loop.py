"""The training loop: from a config to a workdir with checkpoints, figures and samples."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from PIL import Image

from ssd_jax import (
    build,
    checkpoints,
    config_files,
    console,
    distributed,
    download,
    errors,
    files,
    load,
    losses,
    priors,
    visualize,
)
from ssd_jax import config as config_lib
from ssd_jax import detector as detector_lib
from ssd_jax.evaluation import outputs
from ssd_jax.evaluation import run as evaluation
from ssd_jax.training import (
    checkpoint,
    checks,
    guard,
    logs,
    progress,
    signals,
    summary,
    watchdog,
    workdir,
)
from ssd_jax.training import data as data_lib
from ssd_jax.training import host as host_lib
from ssd_jax.training import start as start_lib
from ssd_jax.training import step as step_lib


def train(
    config: config_lib.Config,
    folder: Path,
    *,
    change_config: bool = False,
    profile: range = range(0),
) -> evaluation.Evaluation:
    """Trains to `config.train.steps`, from the latest checkpoint in the workdir if it has one.

    Args:
      config: The config of the run.
      folder: The workdir for all outputs; it is created if missing.
      change_config: Resume in a workdir with a config that trains differently.
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
        distributed.check_same(checks.settings(config))
        source = functools.cache(functools.partial(load.read_pretrained, config))
        with distributed.together():
            logs.check_wandb(config.train.wandb)
            config = start_lib.settled(config, folder, source)
            mesh = step_lib.make_mesh()
            checks.check_batch(config.train, mesh.size)
            data = data_lib.open_splits(config.data)
            class_names = data.train.class_names
            paths = checks.paths(config.model, len(class_names))
            checks.check_patterns(config.train, paths)
            if not (folder / "config.json").exists():
                checks.check_frozen(config, paths, source)
            model = build.model(config.model, len(class_names))
        # Not before: a process may prepare data for hours.
        dog = stack.enter_context(watchdog.Watchdog(config.train.watchdog_minutes))
        distributed.check_same([*checks.settings(config), *data_lib.contents(data)])
        claimed = workdir.claim(folder, config, class_names, change_config=change_config)
        stack.enter_context(claimed)
        stack.enter_context(checkpoints.room_for(folder))
        run = start_lib.Run(config, folder, model, data, mesh)
        schedule = build.schedule(config)
        optimizer = build.optimizer(config.train, schedule)
        manager = stack.enter_context(
            checkpoint.open_manager(folder, keep=config.train.keep_checkpoints, clean=True)
        )
        start = start_lib.start(
            run, manager, _fresh_state(run, optimizer), source, change_config=change_config
        )
        dog.beat()
        first = int(start.state.step)
        checks.check_profile(profile, first, config.train.steps)
        summary.announce(run, start.state, start.origin)
        _save_augmented(run)
        stopping = host_lib.Stopping(stop, mesh)
        with _host(run, start, dog, stopping, schedule) as host:
            stop.defer()
            with host_lib.Profile(profile, folder / "profile") as trace:
                step = _make_step(run, optimizer)
                return _loop(run, start, step, manager, host, trace)


def _fresh_state(
    run: start_lib.Run, optimizer: optax.GradientTransformation
) -> step_lib.TrainState:
    """Initializes the state of a new run on all devices."""
    options = run.config.train
    state = step_lib.init_state(
        run.model,
        optimizer,
        build.input_size(run.config.model),
        run.config.seed,
        ema=options.ema_decay > 0,
        freeze=options.freeze,
    )
    return jax.device_put(state, step_lib.replicated(run.mesh))


def _make_step(run: start_lib.Run, optimizer: optax.GradientTransformation) -> step_lib.Step:
    """The train step of a run's config."""
    config, options = run.config, run.config.train
    priors_cxcywh = build.priors(config.model, run.model)
    loss: step_lib.Loss = functools.partial(
        losses.multibox_loss, neg_pos_ratio=options.neg_pos_ratio, loc_weight=options.loc_weight
    )
    if not options.boundary_boxes:
        used = np.flatnonzero(priors.inside(priors_cxcywh))
        priors_cxcywh, loss = priors_cxcywh[used], step_lib.loss_of_priors(loss, used)
    over = {"shard_map": step_lib.by_shard_map, "pmap": step_lib.by_pmap}[options.parallel]
    return step_lib.make_train_step(
        run.model,
        optimizer,
        prepare=functools.partial(
            step_lib.prepare,
            priors_cxcywh=priors_cxcywh,
            transform=build.augmentation(config),
            seed=config.seed,
            mean=build.mean(config.model),
            iou_threshold=options.iou_threshold,
        ),
        over_devices=functools.partial(over, mesh=run.mesh),
        loss=loss,
        accumulate=options.accumulate,
        ema_decay=options.ema_decay,
        freeze=options.freeze,
    )


@contextlib.contextmanager
def _host(
    run: start_lib.Run,
    start: start_lib.Start,
    dog: watchdog.Watchdog,
    stopping: host_lib.Stopping,
    schedule: optax.Schedule,
) -> Iterator[host_lib.Host]:
    """Resources that the host of a run keeps open."""
    options, first = run.config.train, int(start.state.step)
    names = functools.partial(data_lib.names, run.config, run.data.train, start.position, first)
    with (
        logs.MetricsLog(
            run.workdir,
            step=first,
            active=distributed.is_primary(),
            wandb=options.wandb,
            settings=_shown_settings(run.config),
        ) as log,
        progress.Progress(first, options.steps, options.batch_size) as display,
    ):
        keeper = guard.Guard(run.workdir, step=first, most=options.max_skipped, names_of=names)
        updates = step_lib.updates_done(start.state.opt_state)
        yield host_lib.Host(log, display, dog, keeper, stopping, options, schedule, updates)


def _loop(
    run: start_lib.Run,
    start: start_lib.Start,
    step: step_lib.Step,
    manager: ocp.CheckpointManager,
    host: host_lib.Host,
    trace: host_lib.Profile,
) -> evaluation.Evaluation:
    """Steps, evaluates and saves until the last step, or until the run is to stop."""
    options, state = run.config.train, start.state
    stream = data_lib.batches(run.config, run.data.train, start.position)
    batches = step_lib.prefetch(stream, run.mesh)
    first, result = int(state.step), None
    for number in range(first + 1, options.steps + 1):
        trace.at(number, host)
        state, metrics = step(state, host.stopping.tell(next(batches)))
        try:
            host.follow(number, metrics)
            stop = host.stopping.agreed()
            evaluating = number % options.eval_every == 0 or number == options.steps
            if evaluating or stop or number % options.checkpoint_every == 0:
                host.catch_up()
        except guard.SkippedError:
            raise guard.keep_for_post_mortem(run.workdir, state, host.guard) from None
        result = _evaluate(run, host, state) if evaluating and not stop else None
        stop = stop or (evaluating and result is None)
        if result or stop or number % options.checkpoint_every == 0:
            position = start.position + (number - first) * options.batch_size
            mean_ap = result.voc07.mean_ap if result else None
            with host.display.pause():
                checkpoint.save(manager, state, run=_facts(run, position), mean_ap=mean_ap)
        if result:
            _report(run, host, state, result)
        if stop:
            checkpoint.wait(manager)
            distributed.wait_for_all("stopped")
            raise errors.StoppedError(
                f"stopped after step {number}, state saved in {run.workdir}: the same command "
                f"resumes"
            )
    if result is None and (result := _evaluate(run, host, state)):
        _report(run, host, state, result)
    checkpoint.wait(manager)
    if result is None:
        raise errors.StoppedError(
            f"stopped while evaluating; the training in {run.workdir} is complete"
        )
    return result


def _facts(run: start_lib.Run, position: int) -> dict[str, Any]:
    """Facts that a checkpoint stores besides the state."""
    return {
        "config": config_files.to_dict(run.config),
        "class_names": list(run.data.train.class_names),
        "position": position,
        "images": len(run.data.train.source),
    }


def _evaluate(
    run: start_lib.Run, host: host_lib.Host, state: step_lib.TrainState
) -> evaluation.Evaluation | None:
    """Evaluates the parameters and logs the mAP; None if the run was stopped meanwhile."""

    def on_image(done: int) -> None:
        host.dog.beat()
        host.display.evaluating(done)

    def on_batch() -> None:
        if host.stopping.ask():
            raise errors.StoppedError

    with host.display.pause():
        try:
            result = evaluation.evaluate(
                _detector(run, state),
                run.data.eval,
                max_images=run.config.eval.max_images,
                on_image=on_image,
                on_batch=on_batch,
            )
        except errors.StoppedError:
            return None
        host.dog.beat()
        host.log.write(step=int(state.step), mean_ap=result.voc07.mean_ap)
    return result


def _report(
    run: start_lib.Run,
    host: host_lib.Host,
    state: step_lib.TrainState,
    result: evaluation.Evaluation,
) -> None:
    """Draws samples, writes the report and prints the mAP."""
    folder, split, step = run.workdir, run.data.eval, int(state.step)
    with host.display.pause():
        if distributed.is_primary():
            samples: list[np.ndarray] = []
            place = folder / "samples" / f"step_{step:06d}.png"
            with logs.best_effort(place):
                samples += evaluation.draw_samples(_detector(run, state), split)
                _save_image(visualize.grid(samples, columns=4), place)
            with logs.best_effort(folder / "report.html"), files.alone(folder):
                outputs.write(
                    folder,
                    result,
                    origin=f"step {step} of {folder}",
                    config=run.config,
                    split=split,
                    metrics=host.log.rows,
                    samples=samples,
                )
        console.stdout.print(
            f"step {step}: mAP (VOC07) {result.voc07.mean_ap:.4f} on {result.images} images"
        )
    host.dog.beat()


def _detector(run: start_lib.Run, state: step_lib.TrainState) -> detector_lib.Detector:
    """The detector of the parameters, or of their average."""
    params = state.ema if state.ema is not None and run.config.eval.ema else state.params
    return detector_lib.Detector(run.config, run.data.eval.class_names, jax.device_get(params))


def _save_augmented(run: start_lib.Run) -> None:
    """Draws augmentations of a training image."""
    if distributed.is_primary():
        place = run.workdir / "samples" / "augmented.png"
        with logs.best_effort(place):
            _save_image(data_lib.augmented(run.config, run.data.train), place)


def _save_image(image: np.ndarray, path: Path) -> None:
    files.make_folder(path.parent)
    with files.replacing(path) as file:
        Image.fromarray(image).save(file, "PNG")


def _shown_settings(config: config_lib.Config) -> dict[str, Any]:
    """Returns the config for display, without passwords of addresses."""
    data = dataclasses.replace(config.data, mirror=download.public(config.data.mirror))
    return config_files.to_dict(dataclasses.replace(config, data=data))
