"""Exports a trained detector: ONNX, StableHLO and safetensors.

  python export.py --workdir runs/quickstart
  python export.py --weights ssd300-coco IMAGE.jpg
  python export.py --workdir runs/quickstart --formats onnx --outputs raw --output FOLDER

Loads each file again and compares its detections with those of JAX on the given images, folders
and 'globs*'; by default on the evaluation split of the run, or of the dataset that
--config.data.path or --config.data.archives gives. The files contain the score threshold, NMS
options and number of detections of the run: --config.eval.score_threshold=0.3 changes them. See
docs/deployment.md for their use.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from ssd_jax import cli, console, errors, files

if TYPE_CHECKING:
    from ssd_jax import detector as detector_lib
    from ssd_jax.data import datasets

FLAGS = flags.FLAGS
_MOST_BYTES = 1 << 30  # of an image file
flags.DEFINE_string("workdir", None, "Workdir of the run; its best checkpoint is used.")
flags.DEFINE_string("checkpoint", None, "One checkpoint, WORKDIR/checkpoints/STEP.")
flags.DEFINE_string("weights", None, "A detector's weights: a file of any framework, or a name.")
flags.DEFINE_string("output", None, "Folder of the files; WORKDIR/export by default.")
flags.DEFINE_bool("overwrite", False, "Write into a folder that is not empty.")
flags.DEFINE_list("formats", ["onnx", "stablehlo", "safetensors"], "Formats to write.")
flags.register_validator(
    "formats",
    lambda names: names and set(names) <= {"onnx", "stablehlo", "safetensors"},
    message="give some of onnx,stablehlo,safetensors",
)
flags.DEFINE_enum("outputs", "detections", ["detections", "raw"], "Outputs of the network.")
flags.DEFINE_integer("images", 32, "Number of images to compare on.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Loads, exports, loads the files again and compares them."""
    FLAGS.set_gnu_getopt()  # flags may follow the images
    trained = functools.cache(cli.find_trained)
    names = cli.parse(argv, saved=lambda: trained().config)
    from ssd_jax import export
    from ssd_jax.media import files as media_files

    config = FLAGS.config
    cli.keep_compiled(config.data.cache_dir)
    images = images_of(names) if names else []
    detector = trained().build(config)
    output = Path(FLAGS.output or trained().folder / "export")
    if not FLAGS.output and output.is_symlink():  # in a workdir that may be of a third party
        output.unlink()
    media_files.make_folder(output, overwrite=FLAGS.overwrite)
    places = {name: output / f"detector.{name}" for name in FLAGS.formats}
    console.stdout.print(console.plain(f"exporting {trained().place}"))
    for path in places.values():
        export.write(detector, path, outputs=FLAGS.outputs)
    if images or not FLAGS.weights or config.data.path or config.data.archives:
        compare(detector, split_of(detector, images), places)
    else:
        console.stdout.print("not compared with JAX: give an image to compare on, IMAGE.jpg")
    cli.show_places(places | cli.write_loaded(detector, output))


def images_of(names: Sequence[str]) -> list[Path]:
    """Returns the image files given on the command line."""
    from ssd_jax.media import files as media_files

    inputs = media_files.find(names)
    for line in inputs.problems:
        console.warn(line)
    images = [path for path in inputs.paths if isinstance(path, Path)]
    for path in inputs.paths:
        if media_files.is_video(path):
            raise errors.UserError(f"{path}: a video; name images to compare on")
    return images


def split_of(detector: "detector_lib.Detector", images: Sequence[Path]) -> "datasets.Split":
    """Returns the images to compare on as a split, by default the evaluation split."""
    from ssd_jax import build
    from ssd_jax.data import datasets

    if not images:
        return build.split(detector.config.data, detector.config.data.eval_split)
    records = []
    for path in images[: FLAGS.images]:
        try:
            records.append({"image": files.read(path, at_most=_MOST_BYTES), "name": str(path)})
        except OSError as error:
            raise errors.UserError(f"{path}: {error.strerror}") from None
    source: Any = records  # in memory instead of files
    return datasets.Split(source, detector.class_names, 1, (), annotated=False)


def compare(
    detector: "detector_lib.Detector", split: "datasets.Split", places: Mapping[str, Path]
) -> None:
    """Prints the differences of each file's detections from the detector's."""
    from ssd_jax import export
    from ssd_jax.evaluation import parity, run, tables

    count = min(FLAGS.images, len(split.source))
    expected = dict(run.raw_detections(detector, split, count=count))
    differences = {
        name: parity.compare(expected, run.raw_detections(export.load(path), split, count=count))
        for name, path in places.items()
    }
    console.stdout.print(tables.differences(differences, images=count))


if __name__ == "__main__":
    cli.run(main)
