"""Evaluates a trained detector: average precision by class, VOC's and COCO's figures.

  python evaluate.py --workdir runs/quickstart
  python evaluate.py --checkpoint runs/quickstart/checkpoints/500 --config.eval.max_images=64

The config is that of the run; --config.PART.FIELD=VALUE changes a field, --config FILE replaces it.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ssd_jax import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Workdir of the run; its best checkpoint is taken.")
flags.DEFINE_string("checkpoint", None, "One checkpoint, WORKDIR/checkpoints/STEP.")
flags.DEFINE_string("output", None, "Folder of the results; the workdir by default.")


def main(argv: Sequence[str]) -> None:
    """Restores, detects, evaluates, prints and writes."""
    cli.parse(argv, saved=lambda: cli.run_of(FLAGS.workdir, FLAGS.checkpoint) / "config.json")
    from ssd_jax import detector as detector_lib
    from ssd_jax.evaluation import run, tables
    from ssd_jax.training import checkpoint, logs

    config = FLAGS.config
    cli.keep_compiled(config.data.cache_dir)
    workdir = cli.run_of(FLAGS.workdir, FLAGS.checkpoint)
    folder = checkpoint.find(FLAGS.checkpoint or FLAGS.workdir)
    detector = detector_lib.restore(config, folder)
    split = run.open_split(config.data, config.data.eval_split)
    run.check_classes(detector, split)
    cli.stdout.print(f"evaluating {folder} on {config.data.dataset}, {config.data.eval_split}")
    with cli.counter("pictures", config.eval.max_images or len(split.source)) as count:
        result = run.evaluate(detector, split, max_images=config.eval.max_images, on_picture=count)
    cli.stdout.print(tables.evaluation(result))
    places = run.write(
        Path(FLAGS.output or workdir),
        result,
        config=config,
        metrics=logs.read(workdir / "metrics.jsonl"),
        pictures=run.draw_samples(detector, split),
    )
    cli.show_places(places)


if __name__ == "__main__":
    cli.run(main)
