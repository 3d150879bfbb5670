"""Finds objects in pictures and videos.

  python detect.py --workdir runs/quickstart PICTURE.jpg FOLDER 'photos/*.png' FILM.mp4

Writes each with its boxes, and detections.json, into --output.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ssd_jax import cli, errors

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Workdir of the run; its best checkpoint is taken.")
flags.DEFINE_string("checkpoint", None, "One checkpoint, WORKDIR/checkpoints/STEP.")
flags.DEFINE_string("output", "detections", "Folder of the results.")
flags.DEFINE_float("score_threshold", 0.5, "Only detections that score more.", 0.0, 1.0)


def main(argv: Sequence[str]) -> None:
    """Restores, detects, draws and writes."""
    inputs = cli.parse(
        argv, saved=lambda: cli.run_of(FLAGS.workdir, FLAGS.checkpoint) / "config.json"
    )
    from ssd_jax import detector as detector_lib
    from ssd_jax import inputs as inputs_lib
    from ssd_jax.training import checkpoint

    if not inputs:
        raise errors.UserError("name a picture, a folder, a glob or a video: detect.py ... PICTURE")
    files = inputs_lib.find(inputs)
    detector = detector_lib.restore(
        FLAGS.config, checkpoint.find(FLAGS.checkpoint or FLAGS.workdir)
    )
    output = Path(FLAGS.output)
    results = {}
    for path, annotated in inputs_lib.places(files, output).items():
        handle = inputs_lib.detect_video if inputs_lib.is_video(path) else inputs_lib.detect_picture
        results[str(path)] = handle(detector, path, annotated, FLAGS.score_threshold)
        cli.stdout.print(f"{path}: {inputs_lib.in_words(results[str(path)])} -> {annotated}")
    (output / "detections.json").write_text(json.dumps(results, indent=2) + "\n")
    cli.show_places({"detections": output / "detections.json"})


if __name__ == "__main__":
    cli.run(main)
