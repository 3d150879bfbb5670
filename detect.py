"""Finds objects in pictures and videos.

  python detect.py --weights ssd300-coco PICTURE.jpg
  python detect.py --checkpoint runs/quickstart/checkpoints/500 FOLDER --score_threshold 0.3
  python detect.py --workdir runs/quickstart PICTURE.jpg FOLDER 'photos/*.png' FILM.mp4
  python detect.py --onnx runs/quickstart/export/detector.onnx PICTURE.jpg
  python detect.py --workdir runs/quickstart --camera 0          until Ctrl-C

Writes each with its boxes, and detections.json with all boxes in pixels, into --output, by default
the first of detections, detections-2, ... that holds nothing yet. A film's copy has no sound. What
cannot be read is named at the end; the others are done all the same.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from ssd_jax import cli, console, errors

if TYPE_CHECKING:
    from ssd_jax import detector

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Workdir of the run; its best checkpoint is taken.")
flags.DEFINE_string("checkpoint", None, "One checkpoint, WORKDIR/checkpoints/STEP.")
flags.DEFINE_string("weights", None, "A detector's weights: a file of any framework, or a name.")
flags.DEFINE_string("onnx", None, "A file of export.py, run by ONNX Runtime.")
flags.DEFINE_string("output", None, "Folder of the results; a new one by default.")
flags.DEFINE_bool("overwrite", False, "Write into a folder that holds files already.")
flags.DEFINE_bool("crops", False, "Also write a picture of each object, OUTPUT/crops/CLASS/.")
flags.DEFINE_string(
    "coco", None, "COCO's JSON that has the pictures: also write coco_results.json."
)
flags.DEFINE_list("classes", [], "Only these, with commas between them: dog,cat.")
flags.DEFINE_string("camera", None, "A camera: number, device, or FFmpeg's FORMAT:NAME.")
flags.DEFINE_float("seconds", 0.0, "Of the camera; 0: until Ctrl-C.", 0.0)
flags.DEFINE_float(
    "score_threshold",
    0.5,
    "Only detections that score more; without effect below config.eval.score_threshold, for --onnx "
    "below that of its export.",
    0.0,
    1.0,
)


def find_trained() -> "detector.Trained":
    """The network that the flags name: an exported one, or what `cli.find_trained` finds."""
    from ssd_jax import detector

    if not FLAGS.onnx:
        return cli.find_trained()
    if FLAGS.workdir or FLAGS.checkpoint or FLAGS.weights:
        raise errors.UserError("give either --onnx FILE or --workdir, --checkpoint or --weights")
    return detector.find_exported(FLAGS.onnx)


def main(argv: Sequence[str]) -> None:
    """Restores, detects, draws and writes."""
    FLAGS.set_gnu_getopt()  # flags may follow the files
    trained = functools.cache(find_trained)
    names = cli.parse(argv, saved=lambda: trained().config)
    from ssd_jax import adapters, media

    cli.keep_compiled(FLAGS.config.data.cache_dir)
    output = Path(FLAGS.output or "detections")
    if not (FLAGS.output or FLAGS.overwrite):
        output = media.free_folder(output)
    files = media.find(names) if names or FLAGS.camera is None else []
    targets = media.places(files, output)
    ids = None
    if FLAGS.coco:
        if FLAGS.camera is not None:
            raise errors.UserError("give either --coco or --camera: what a camera sees has no ids")
        ids = adapters.read_coco_ids(Path(FLAGS.coco))
    detector = trained().build(FLAGS.config)
    if ids:
        media.check_coco(ids, files, FLAGS.classes or detector.class_names)
    media.make_folder(output, overwrite=FLAGS.overwrite)
    outcomes = []
    options = {
        "score_threshold": FLAGS.score_threshold,
        "classes": FLAGS.classes,
        "crops": output / "crops" if FLAGS.crops else None,
    }
    try:
        with media.Progress(len(targets) + (FLAGS.camera is not None)) as progress:
            options["on_frame"] = progress.frame
            for outcome in media.annotate(detector, targets, **options):
                outcomes.append(outcome)
                progress.done(outcome)
            if FLAGS.camera is not None:
                camera = int(FLAGS.camera) if FLAGS.camera.isdecimal() else FLAGS.camera
                place = media.camera_place(targets, output)
                outcomes.append(
                    media.annotate_camera(detector, camera, place, seconds=FLAGS.seconds, **options)
                )
                progress.done(outcomes[-1])
    finally:  # also of an interrupted run
        written = {"detections": output / "detections.json"}
        media.write_json(written["detections"], outcomes)
        if ids:
            written["COCO's results"] = output / "coco_results.json"
            media.write_coco(written["COCO's results"], outcomes, ids)
        written |= cli.write_loaded(detector, output)
    read = [outcome.found for outcome in outcomes if outcome.found is not None]
    if read and not any(map(media.found_labels, read)):
        what = FLAGS.classes or [f"object of the {len(detector.class_names)} classes"]
        console.stdout.print(
            f"No {' or '.join(what)} scores more than {FLAGS.score_threshold:g}: a lower "
            "--score_threshold shows more.",
            markup=False,
        )
    cli.show_places(written)
    problems = [outcome.problem for outcome in outcomes if outcome.problem]
    for problem in problems:
        console.error(problem)
    if problems:
        sys.exit(2)


if __name__ == "__main__":
    cli.run(main)
