"""Trains SSD.

  python train.py --config configs/quickstart.py
  python train.py --config configs/ssd300.py --workdir runs/mine --config.train.batch_size=8
  python train.py --config configs/ssd300.py --summary

A run goes on from the last checkpoint in its workdir. --config.PART.FIELD=VALUE changes a field of
the config; ssd_jax/config.py lists them all.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ssd_jax import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Where the run is kept; runs/NAME_OF_THE_CONFIG by default.")
flags.DEFINE_bool("summary", False, "Print the network's layers, for 20 classes, and stop.")


def main(argv: Sequence[str]) -> None:
    """Trains, evaluates and says where everything lies."""
    cli.parse(argv)
    from ssd_jax import detector
    from ssd_jax.evaluation import tables
    from ssd_jax.models import summary
    from ssd_jax.training import loop

    config = FLAGS.config
    if FLAGS.summary:
        model = detector.build_model(config.model, num_classes=20)
        layers = summary.summarize(model, detector.input_size(config.model))
        cli.stdout.print(tables.layers(layers))
        return
    cli.split_cpu(config.train.cpu_devices)
    workdir = Path(FLAGS.workdir or Path("runs") / cli.config_name(argv))
    result = loop.train(config, workdir)
    cli.stdout.print(tables.evaluation(result))
    cli.show_places(
        {
            "samples": workdir / "samples",
            "report": workdir / "report.html",
            "metrics": workdir / "metrics.csv",
            "checkpoints": workdir / "checkpoints",
        }
    )


if __name__ == "__main__":
    cli.run(main)
