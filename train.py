"""Trains SSD.

  python train.py --config configs/quickstart.py
  python train.py --config configs/ssd300.py --workdir runs/mine --config.train.batch_size=8
  python train.py --config configs/ssd300.py --summary
  python train.py --config configs/finetune_ssdlite.py --config.data.path=FOLDER --check

A run resumes from the last checkpoint in its workdir. On a signal such as SIGTERM, SIGINT or SIGHUP
(closed terminal) it saves its state and exits with status 75: the same command resumes. On several
machines, start it on each; see docs/scaling.md.
--config.PART.FIELD=VALUE changes a field of the config; ssd_jax/config.py lists all fields.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ssd_jax import cli, console, errors
from ssd_jax import config as config_lib
from ssd_jax.data import prepared

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder of the run; runs/NAME_OF_THE_CONFIG by default.")
flags.DEFINE_bool("change_config", False, "Resume in a workdir with another config.")
flags.DEFINE_string("profile", None, "START:STOP, the steps to trace into WORKDIR/profile.")
flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, if no launcher sets it.")
flags.DEFINE_integer("num_processes", None, "Number of processes.")
flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
flags.DEFINE_integer("coordinator_timeout", 300, "Seconds to wait for the other processes.")
flags.DEFINE_bool("summary", False, "Print the layers of the network for 20 classes and exit.")
flags.DEFINE_bool("check", False, "Read your whole dataset, report its faults and exit.")


def main(argv: Sequence[str]) -> None:
    """Trains, evaluates and prints the paths of the outputs."""
    cli.parse(argv)
    from ssd_jax import build, distributed
    from ssd_jax.evaluation import tables
    from ssd_jax.models import summary
    from ssd_jax.training import loop

    config = FLAGS.config
    if FLAGS.summary:
        model = build.model(config.model, num_classes=20)
        layers = summary.summarize(model, build.input_size(config.model))
        console.stdout.print(tables.layers(layers))
        return
    if FLAGS.check:
        sys.exit(0 if _data_are_good(config) else 1)
    profile = _steps(FLAGS.profile)
    cli.split_cpu(config.train.cpu_devices)
    cli.keep_compiled(config.data.cache_dir)
    distributed.initialize(
        FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, timeout=FLAGS.coordinator_timeout
    )
    console.stdout.quiet = not distributed.is_primary()
    workdir = Path(FLAGS.workdir or Path("runs") / cli.config_name(argv))
    result = loop.train(config, workdir, change_config=FLAGS.change_config, profile=profile)
    console.stdout.print(tables.evaluation(result))
    places = {
        "samples": workdir / "samples",
        "report": workdir / "report.html",
        "metrics": workdir / "metrics.csv",
        "checkpoints": workdir / "checkpoints",
    }
    cli.show_places({name: place for name, place in places.items() if place.exists()})


def _data_are_good(config: config_lib.Config) -> bool:
    """Prints the content of `config.data.path` and how well the config's default boxes fit it."""
    from ssd_jax import build
    from ssd_jax.data import check

    if config.data.dataset not in prepared.OWN or not config.data.path:
        raise errors.UserError(
            f"--check is for a dataset of your own: give config.data.path, and config.data.dataset "
            f"as {', '.join(prepared.OWN)}. An official archive: python -m ssd_jax.data.check FILE"
        )
    model = build.model(config.model, num_classes=20)
    boxes = build.priors(config.model, model)
    return check.check(
        config.data.path, config.data.dataset, boxes, max_megapixels=config.data.max_megapixels
    )


def _steps(text: str | None) -> range:
    """Parses --profile as a range."""
    if text is None:
        return range(0)
    start, _, stop = text.partition(":")
    if not (start.isdigit() and stop.isdigit() and int(start) < int(stop)):
        raise errors.UserError(f"--profile is {text!r}; it must be START:STOP, for example 10:15")
    return range(int(start), int(stop))


if __name__ == "__main__":
    cli.use_huge_pages()
    cli.run(main)
