r"""Evaluates a trained detector: average precision by class, VOC's and COCO's figures.

  python evaluate.py --workdir runs/quickstart
  python evaluate.py --checkpoint runs/quickstart/checkpoints/500 --config.eval.max_images=64
  python evaluate.py --weights ssd300-coco --config.data.dataset=coco --config.data.path=FOLDER \
    --config.data.eval_split=val2017

The config is that of the run; --config.PART.FIELD=VALUE changes a field, --config FILE replaces it.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ssd_jax import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Workdir of the run; its best checkpoint is taken.")
flags.DEFINE_string("checkpoint", None, "One checkpoint, WORKDIR/checkpoints/STEP.")
flags.DEFINE_string("weights", None, "A detector's weights: a file of any framework, or a name.")
flags.DEFINE_string("output", None, "Folder of the results; by default the workdir, or runs/NAME.")


def main(argv: Sequence[str]) -> None:
    """Restores, detects, evaluates, prints and writes."""
    trained = functools.cache(cli.find_trained)
    cli.parse(argv, saved=lambda: trained().config)
    from ssd_jax.evaluation import run, tables
    from ssd_jax.training import logs

    config = FLAGS.config
    cli.keep_compiled(config.data.cache_dir)
    detector = trained().build(config)
    split = run.open_split(config.data, config.data.eval_split)
    run.check_classes(detector, split)
    cli.stdout.print(
        f"evaluating {trained().place} on {config.data.dataset}, {config.data.eval_split}"
    )
    with cli.counter("pictures", config.eval.max_images or len(split.source)) as count:
        result = run.evaluate(detector, split, max_images=config.eval.max_images, on_picture=count)
    cli.stdout.print(tables.evaluation(result))
    places = run.write(
        Path(FLAGS.output or trained().folder),
        result,
        config=config,
        metrics=logs.read(trained().folder / "metrics.jsonl"),
        pictures=run.draw_samples(detector, split),
    )
    cli.show_places(places)


if __name__ == "__main__":
    cli.run(main)
