"""Finds objects in pictures and videos.

  python detect.py --workdir runs/quickstart PICTURE.jpg FOLDER 'photos/*.png' FILM.mp4
  python detect.py --checkpoint runs/quickstart/checkpoints/500 FOLDER --score_threshold 0.3
  python detect.py --weights ssd300-coco PICTURE.jpg
  python detect.py --onnx runs/quickstart/export/detector.onnx PICTURE.jpg

Writes each with its boxes, and detections.json with all boxes in pixels, into --output. What cannot
be read is named at the end; the others are done all the same.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from ssd_jax import cli, errors

if TYPE_CHECKING:
    from ssd_jax import detector

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Workdir of the run; its best checkpoint is taken.")
flags.DEFINE_string("checkpoint", None, "One checkpoint, WORKDIR/checkpoints/STEP.")
flags.DEFINE_string("weights", None, "A detector's weights: a file of any framework, or a name.")
flags.DEFINE_string("onnx", None, "A file of export.py, run by ONNX Runtime.")
flags.DEFINE_string("output", "detections", "Folder of the results.")
flags.DEFINE_float("score_threshold", 0.5, "Only detections that score more.", 0.0, 1.0)


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
    from ssd_jax import media

    cli.keep_compiled(FLAGS.config.data.cache_dir)
    output = Path(FLAGS.output)
    targets = media.places(media.find(names), output)
    detector = trained().build(FLAGS.config)
    media.make_folder(output)
    outcomes = []
    try:
        with media.Progress(len(targets)) as progress:
            for outcome in media.annotate(
                detector,
                targets,
                score_threshold=FLAGS.score_threshold,
                on_frame=progress.frame,
            ):
                outcomes.append(outcome)
                progress.done(outcome)
    finally:  # also of an interrupted run
        media.write_json(output / "detections.json", outcomes)
    cli.show_places({"detections": output / "detections.json"})
    problems = [outcome.problem for outcome in outcomes if outcome.problem]
    for problem in problems:
        sys.stderr.write(f"error: {' '.join(problem.split())}\n")
    if problems:
        sys.exit(2)


if __name__ == "__main__":
    cli.run(main)
