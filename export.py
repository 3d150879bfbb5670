"""Writes a trained detector for other programs: ONNX, StableHLO and safetensors.

  python export.py --workdir runs/quickstart
  python export.py --weights ssd300-coco --config.data.dataset=coco --config.data.path=FOLDER
  python export.py --workdir runs/quickstart --formats onnx --outputs raw --output FOLDER

Loads each file again and compares its detections with those of JAX in pictures of the run's
evaluation split. The files keep the run's score threshold, suppression and number of detections:
--config.eval.score_threshold=0.3 changes them. docs/deployment.md says how to use the files.
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
flags.DEFINE_string("output", None, "Folder of the files; WORKDIR/export by default.")
flags.DEFINE_list("formats", ["onnx", "stablehlo", "safetensors"], "Which files to write.")
flags.register_validator(
    "formats",
    lambda names: names and set(names) <= {"onnx", "stablehlo", "safetensors"},
    message="give some of onnx,stablehlo,safetensors",
)
flags.DEFINE_enum("outputs", "detections", ["detections", "raw"], "What the network gives.")
flags.DEFINE_integer("pictures", 32, "How many pictures to compare on.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Restores, writes, loads again, compares and prints."""
    trained = functools.cache(cli.find_trained)
    cli.parse(argv, saved=lambda: trained().config)
    from ssd_jax import export, media
    from ssd_jax.evaluation import run, tables

    config = FLAGS.config
    cli.keep_compiled(config.data.cache_dir)
    detector = trained().build(config)
    split = run.open_split(config.data, config.data.eval_split)
    output = Path(FLAGS.output or trained().folder / "export")
    media.make_folder(output)
    places = {name: output / f"detector.{name}" for name in FLAGS.formats}
    cli.stdout.print(f"exporting {trained().place}")
    for path in places.values():
        export.write(detector, path, outputs=FLAGS.outputs)
    count = min(FLAGS.pictures, len(split.source))
    expected = dict(run.raw_detections(detector, split, count=count))
    differences = {
        name: export.compare(expected, run.raw_detections(export.load(path), split, count=count))
        for name, path in places.items()
    }
    cli.stdout.print(tables.differences(differences, pictures=count))
    cli.show_places(places)


if __name__ == "__main__":
    cli.run(main)
