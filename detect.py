"""Detects objects in images and videos.

  python detect.py --weights ssd300-coco IMAGE.jpg
  python detect.py --checkpoint runs/quickstart/checkpoints/500 FOLDER --score_threshold 0.3
  python detect.py --workdir runs/quickstart IMAGE.jpg FOLDER 'photos/*.png' VIDEO.mp4
  python detect.py --weights runs/quickstart/export/detector.onnx IMAGE.jpg
  python detect.py --workdir runs/quickstart --camera 0          until Ctrl-C
  python detect.py --workdir runs/quickstart https://HOST/VIDEO.mp4 -- --name.jpg

Writes annotated copies, and detections.json with all boxes in pixels, into --output, by default a
new folder, the first of detections, detections-2, ... Copies of videos have no sound. Unreadable
inputs are listed at the end and the exit status is 2; all others are processed.

Ctrl-C, SIGTERM and SIGHUP end it after the current batch: the video so far and detections.json are
written, and the exit status is 130, 143 or 129. A camera ends by Ctrl-C with status 0.
"""

import functools
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from ssd_jax import cli, console, errors, stopping

if TYPE_CHECKING:
    from ssd_jax import adapters
    from ssd_jax import detector as detector_lib
    from ssd_jax.media import files, outputs

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Workdir of the run; its best checkpoint is used.")
flags.DEFINE_string("checkpoint", None, "One checkpoint, WORKDIR/checkpoints/STEP.")
flags.DEFINE_string("weights", None, "A detector's weights: a file of any framework, or a name.")
flags.DEFINE_string("output", None, "Folder of the results; a new one by default.")
flags.DEFINE_bool("overwrite", False, "Write into a folder that is not empty.")
flags.DEFINE_bool("crops", False, "Also write an image of each object, OUTPUT/crops/CLASS/.")
flags.DEFINE_string(
    "coco", None, "COCO's JSON with the ids of the images: also write coco_results.json."
)
flags.DEFINE_list("classes", [], "Only these classes, separated by commas: dog,cat.")
flags.DEFINE_string(
    "camera", None, "A camera: number, device, rtsp://HOST/1, or FFmpeg's FORMAT:NAME."
)
flags.DEFINE_float("seconds", 0.0, "Duration for a camera; 0: until Ctrl-C.", 0.0)
flags.DEFINE_float(
    "score_threshold",
    0.5,
    "Minimum score of detections; no effect below config.eval.score_threshold, or that of an "
    "exported file.",
    0.0,
    1.0,
)


def main(argv: Sequence[str]) -> None:
    """Restores, detects, draws and writes."""
    FLAGS.set_gnu_getopt()  # flags may follow the files
    trained = functools.cache(cli.find_trained)
    names = cli.parse(argv, saved=lambda: trained().config)
    from ssd_jax import adapters
    from ssd_jax.media import annotate, files, outputs

    cli.keep_compiled(FLAGS.config.data.cache_dir)
    inputs = files.find(names) if names or FLAGS.camera is None else files.Inputs([], [])
    ids = None
    if FLAGS.coco:
        if FLAGS.camera is not None:
            raise errors.UserError("give either --coco or --camera: camera frames have no ids")
        ids = adapters.read_coco_ids(Path(FLAGS.coco))
    detector = trained().build(FLAGS.config)
    annotate.check_classes(detector, FLAGS.classes)
    if ids:
        outputs.check_coco(ids, inputs.paths, FLAGS.classes or detector.class_names)
    folder = files.output_folder(
        FLAGS.output, default=Path("detections"), overwrite=FLAGS.overwrite
    )
    outcomes: list[outputs.Outcome] = []
    trouble = None
    with stopping.Stop() as stop, folder as output:
        try:
            for outcome in found(detector, inputs.paths, output, stop):
                outcomes.append(outcome)
        except errors.MachineError as error:
            trouble = error
        finally:  # also after a failure
            places, problems = write(detector, outcomes, output, ids)
    say(detector, outcomes, places)
    lines = [*inputs.problems, *(outcome.problem for outcome in outcomes), *problems, trouble]
    for line in filter(None, lines):
        console.error(line)
    if stop.signal and not is_camera_ended(outcomes, stop.signal):
        console.warn(
            f"{stop.signal.name}: {len(outcomes)} of {len(inputs.paths)} inputs were started"
        )
        sys.exit(128 + stop.signal)
    if any(lines):
        sys.exit(2)


def found(
    detector: "detector_lib.Detector",
    paths: "Sequence[files.Input]",
    output: Path,
    stop: stopping.Stop,
) -> "Iterator[outputs.Outcome]":
    """Detects in the inputs, then in the camera; writes their copies."""
    from ssd_jax.media import annotate, files, outputs

    targets = files.places(paths, output)
    with outputs.Progress(len(targets) + (FLAGS.camera is not None)) as progress:
        options: Any = {
            "score_threshold": FLAGS.score_threshold,
            "classes": FLAGS.classes,
            "crops": output / "crops" if FLAGS.crops else None,
            "on_frame": progress.frame,
            "stopped": stop,
        }
        for outcome in annotate.annotate_inputs(detector, targets, **options):
            yield outcome
            progress.done(outcome)
        if FLAGS.camera is not None and not stop():
            camera = int(FLAGS.camera) if FLAGS.camera.isdecimal() else FLAGS.camera
            place = files.camera_place(targets, output)
            seen = annotate.annotate_camera(
                detector, camera, place, seconds=FLAGS.seconds, **options
            )
            if seen:
                yield seen
                progress.done(seen)


def write(
    detector: "detector_lib.Detector",
    outcomes: "Sequence[outputs.Outcome]",
    output: Path,
    ids: "adapters.CocoIds | None",
) -> tuple[dict[str, Path], list[str]]:
    """Writes everything but the copies; returns the paths, and a line per failure."""
    from ssd_jax.media import outputs

    if not outcomes:
        return {}, []
    places, problems = {}, []
    writers: dict[str, tuple[str, Callable[[Path], None]]] = {
        "detections": ("detections.json", lambda place: outputs.write_json(place, outcomes))
    }
    if ids:
        writers["COCO's results"] = (
            "coco_results.json", lambda place: outputs.write_coco(place, outcomes, ids)
        )  # fmt: skip
    for name, (file, writer) in writers.items():
        try:
            writer(output / file)
            places[name] = output / file
        except errors.UserError as error:
            problems.append(str(error))
    try:
        places |= cli.write_loaded(detector, output)
    except OSError as error:
        problems.append(f"{output / 'weights.txt'}: not written: {error.strerror}")
    return places, problems


def say(
    detector: "detector_lib.Detector",
    outcomes: "Sequence[outputs.Outcome]",
    places: Mapping[str, Path],
) -> None:
    """Prints the paths of the outputs, and advice if nothing was found."""
    from ssd_jax.media import outputs

    read = [outcome.found for outcome in outcomes if outcome.found is not None]
    if read and not any(map(outputs.found_labels, read)):
        what = FLAGS.classes or [f"object of the {len(detector.class_names)} classes"]
        console.stdout.print(
            f"No {' or '.join(what)} scores more than {FLAGS.score_threshold:g}: a lower "
            "--score_threshold shows more.",
            markup=False,
        )
    cli.show_places(places)


def is_camera_ended(outcomes: "Sequence[outputs.Outcome]", number: signal.Signals) -> bool:
    """Whether Ctrl-C ended a camera, which is its normal end."""
    return number == signal.SIGINT and bool(outcomes) and isinstance(outcomes[-1].path, str)


if __name__ == "__main__":
    cli.run(main)
