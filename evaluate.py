r"""Evaluates a trained detector: average precision by class, VOC and COCO metrics.

  python evaluate.py --workdir runs/quickstart
  python evaluate.py --checkpoint runs/quickstart/checkpoints/500 --config.eval.max_images=64
  python evaluate.py --weights ssd300-coco --config.data.dataset=coco --config.data.path=FOLDER \
    --config.data.eval_split=val2017
  python evaluate.py --workdir runs/ssd300 --config.data.eval_split=2012/test
  python evaluate.py --results runs/ssd300/results --config configs/ssd300.py
  python evaluate.py --workdir runs/quickstart --config.eval.tta_flip \
    --config.eval.tta_sizes='(300, 400)'

The last uses test-time augmentation: four views of each image, merged before NMS.
The config is that of the run; --config.PART.FIELD=VALUE changes a field, --config FILE replaces it.
For VOC and COCO, the detections are also written in the format of the evaluation server; a split
without annotations has no other outputs. --results evaluates such files without a network.

Results are written to --output. By default they replace those in the workdir of the run; with
--weights and --results they go into a new folder, the first of runs/NAME, runs/NAME-2, ...
"""

import atexit
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from ssd_jax import cli, console, errors, files
from ssd_jax import config as config_lib

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Workdir of the run; its best checkpoint is used.")
flags.DEFINE_string("checkpoint", None, "One checkpoint, WORKDIR/checkpoints/STEP.")
flags.DEFINE_string("weights", None, "A detector's weights: a file of any framework, or a name.")
flags.DEFINE_string(
    "results", None, "Detections to evaluate: COCO's JSON, or a folder of VOC's files."
)
flags.DEFINE_string("output", None, "Folder of the results; by default the workdir, or runs/NAME.")
flags.DEFINE_bool("overwrite", False, "Write into an --output that is not empty.")


def main(argv: Sequence[str]) -> None:
    """Detects, or reads detections; evaluates them, prints and writes the results."""
    trained = functools.cache(cli.find_trained)
    cli.parse(argv, saved=lambda: config_lib.Config() if FLAGS.results else trained().config)
    from ssd_jax import build
    from ssd_jax.evaluation import outputs, results, run, tables
    from ssd_jax.training import logs

    config = FLAGS.config
    if FLAGS.results:
        if FLAGS.workdir or FLAGS.checkpoint or FLAGS.weights:
            raise errors.UserError("--results needs no --workdir, --checkpoint and --weights")
        place, home = Path(FLAGS.results), Path("runs") / Path(FLAGS.results).resolve().stem
    else:
        place, home = trained().place, trained().folder
        cli.keep_compiled(config.data.cache_dir)
        detector = trained().build(config)
    split = build.split(config.data, config.data.eval_split)
    key = results.key_of(split)
    console.stdout.print(
        console.plain(f"evaluating {place} on {config.data.dataset}, {config.data.eval_split}")
    )
    if FLAGS.results:
        found = results.read(place, key)
        folder = make_folder(home)
    else:
        run.check_classes(detector, split)
        folder = make_folder(home)
        total = min(config.eval.max_images or len(key.names), len(key.names))
        with cli.counter("images", total) as count:
            found = run.detect(detector, split, count=total, on_image=count)
    if split.annotated:
        truth = run.truth_of(split, max_images=config.eval.max_images)
        result = run.figures(found, truth, class_names=split.class_names)
        console.stdout.print(tables.evaluation(result))
    else:
        console.stdout.print(
            console.plain(
                f"{config.data.eval_split} has no annotations, so there are no metrics: upload the "
                "results to the evaluation server of the dataset"
            )
        )
    # The metrics are computed: failures of informative outputs do not lose them.
    samples: list[np.ndarray] = []
    places: dict[str, Path] = {}
    if not FLAGS.results:
        with logs.best_effort("the sheet of samples"):
            samples += run.draw_samples(detector, split)
    with files.alone(folder):
        if not FLAGS.results:
            places |= results.write(
                folder, found, key, dataset=config.data.dataset, split=config.data.eval_split
            )
            with logs.best_effort(folder / "weights.txt"):
                places |= cli.write_loaded(detector, folder)
        if split.annotated:
            places |= outputs.write(
                folder,
                result,
                origin=str(place),
                network=not FLAGS.results,
                config=config,
                split=split,
                metrics=logs.read(home / "metrics.jsonl") if of_run() else [],
                samples=samples,
            )
    cli.show_places(places)


def of_run() -> bool:
    """Whether a run of train.py is evaluated, not a file."""
    return not (FLAGS.results or FLAGS.weights)


def make_folder(home: Path) -> Path:
    """Creates the output folder and checks that it is writable, before anything slow.

    Raises:
      UserError: If it is not writable, or is an --output that is not empty.
    """
    from ssd_jax.media import files as media_files

    if FLAGS.output or of_run():
        folder = Path(FLAGS.output or home)
        media_files.make_folder(folder, overwrite=FLAGS.overwrite or not FLAGS.output)
    else:
        folder = media_files.new_folder(home)
        atexit.register(media_files.remove_empty, folder)  # if nothing was written
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise errors.UserError(
            f"--output {folder}: it cannot be written to: {error.strerror}"
        ) from None
    return folder


if __name__ == "__main__":
    cli.run(main)
