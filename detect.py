"""Finds objects in pictures and videos.

  python detect.py --workdir runs/quickstart PICTURE.jpg FOLDER 'photos/*.png' FILM.mp4
  python detect.py --checkpoint runs/quickstart/checkpoints/500 FOLDER --score_threshold 0.3
  python detect.py --onnx runs/quickstart/export/detector.onnx PICTURE.jpg

Writes each with its boxes, and detections.json with all boxes in pixels, into --output. What cannot
be read is named at the end; the others are done all the same.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from ssd_jax import cli, errors
from ssd_jax import config as config_lib

if TYPE_CHECKING:
    from ssd_jax import detector

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Workdir of the run; its best checkpoint is taken.")
flags.DEFINE_string("checkpoint", None, "One checkpoint, WORKDIR/checkpoints/STEP.")
flags.DEFINE_string("onnx", None, "A file of export.py, run by ONNX Runtime.")
flags.DEFINE_string("output", "detections", "Folder of the results.")
flags.DEFINE_float("score_threshold", 0.5, "Only detections that score more.", 0.0, 1.0)


def saved_config() -> Path | config_lib.Config:
    """Where the run's config is; an exported file has its own, which no flag changes."""
    if not FLAGS.onnx:
        return cli.run_of(FLAGS.workdir, FLAGS.checkpoint) / "config.json"
    if FLAGS.workdir or FLAGS.checkpoint:
        raise errors.UserError("give either --onnx FILE or a run's --workdir or --checkpoint")
    return config_lib.Config()


def load_detector() -> "detector.Detector":
    """The detector that the flags name."""
    from ssd_jax import detector
    from ssd_jax.training import checkpoint

    if not FLAGS.onnx:
        folder = checkpoint.find(FLAGS.checkpoint or FLAGS.workdir)
        return detector.restore(FLAGS.config, folder)
    if FLAGS.config != config_lib.Config():
        raise errors.UserError(
            f"--config changes nothing in {FLAGS.onnx}: give the flag to export.py, which writes it"
        )
    return detector.load_detector(FLAGS.onnx)


def main(argv: Sequence[str]) -> None:
    """Restores, detects, draws and writes."""
    FLAGS.set_gnu_getopt()  # flags may follow the files
    names = cli.parse(argv, saved=saved_config)
    from ssd_jax import media

    output = Path(FLAGS.output)
    targets = media.places(media.find(names), output)
    detector = load_detector()
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
