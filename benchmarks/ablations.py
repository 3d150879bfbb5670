r"""Trains the paper's ablations and writes a table of them beside the paper's figures.

  python benchmarks/ablations.py --workdir runs/ablations
  python benchmarks/ablations.py --workdir runs/maps --configs maps_5,maps_4 --config.seed=1
  python benchmarks/ablations.py --workdir runs/tiny --base configs/quickstart.py \
    --configs no_augmentation,no_ratio_3,full

Each of configs/ablations.py changes --base, by default the paper's recipe;
--config.PART.FIELD=VALUE changes it for all. Each is trained in a folder of its name, and resumes
where it stopped; the table, WORKDIR/table.md, is written after each. A file of your own with a
`change(cfg)` is given by its path.
"""

import copy
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from ssd_jax import build, cli, config_checks, console, errors
from ssd_jax import config as config_lib

ROOT = Path(__file__).parent.parent
FILE = ROOT / "configs" / "ablations.py"


class Published(NamedTuple):
    """A row of the paper: mAP on VOC2007 test and the number of default boxes it gives."""

    mean_ap: float
    boxes: int | None = None


# Liu et al. 2016, tables 2 and 3; both have the whole SSD300, `full`.
PAPER = {
    "no_augmentation": Published(65.5),
    "no_ratio_2_and_3": Published(71.6),
    "no_ratio_3": Published(73.7),
    "no_atrous": Published(74.2),
    "full": Published(74.3, 8732),
    "maps_5": Published(74.6, 8764),
    "maps_4": Published(73.8, 8942),
    "maps_3": Published(70.7, 9864),
    "maps_2": Published(64.2, 9025),
    "maps_1": Published(62.4, 8664),
    "maps_6_inside": Published(63.4, 8732),
    "maps_5_inside": Published(63.1, 8764),
    "maps_4_inside": Published(68.4, 8942),
    "maps_3_inside": Published(69.2, 9864),
    "maps_2_inside": Published(64.4, 9025),
    "maps_1_inside": Published(64.0, 8664),
}

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder of the runs and of the table.")
flags.DEFINE_string("base", str(FILE), "Config that the ablations change.")
flags.DEFINE_list("configs", list(PAPER), "Names in configs/ablations.py, or files, in order.")


class Run(NamedTuple):
    """A trained ablation: its number of default boxes and its mAP (VOC07), in [0, 1]."""

    boxes: int
    mean_ap: float


def get(path: Path, name: str) -> Any:
    """Loads a config file by name.

    Raises:
      UserError: If there is no such file, or no such name in it.
    """
    if not path.is_file():
        raise errors.UserError(f"{path}: file not found; give a config with {name}")
    found = runpy.run_path(str(path))
    if name not in found:
        raise errors.UserError(f"{path} has no {name}, as it should")
    return found[name]


def changed(base: config_lib.Config, names: Sequence[str]) -> dict[str, config_lib.Config]:
    """The config of each ablation by name; nothing else than the ablation differs.

    Raises:
      UserError: If there is no such ablation, or a config is not valid.
    """
    known = get(FILE, "CHANGES")
    configs = {}
    for name in names:
        if name not in known and not name.endswith(".py"):
            raise errors.UserError(
                f"--configs has {name!r}; give some of {', '.join(known)}, or a FILE.py"
            )
        change = known[name] if name in known else get(Path(name), "change")
        found = change(known["full"](copy.deepcopy(base)))
        config_checks.validate(found)
        configs[Path(name).stem] = found
    return configs


def table(runs: Mapping[str, Run]) -> str:
    """Markdown: each ablation beside the paper."""
    lines = ["| config | boxes | paper's | mAP, % | paper's |", "|---|---|---|---|---|"]
    for name, run in runs.items():
        theirs = PAPER.get(name)
        boxes = theirs.boxes or "" if theirs else ""
        figure = theirs.mean_ap if theirs else ""
        lines.append(f"| {name} | {run.boxes} | {boxes} | {100 * run.mean_ap:.1f} | {figure} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    """Trains and evaluates what is missing, and writes the table after each."""
    sys.path.insert(0, str(ROOT))  # configs import each other
    cli.parse(argv, saved=lambda: get(Path(FLAGS.base), "get_config")())
    if not FLAGS.workdir:
        raise errors.UserError("--workdir is missing: for example --workdir runs/ablations")
    base, workdir = FLAGS.config, Path(FLAGS.workdir)
    configs = changed(base, FLAGS.configs)
    cli.split_cpu(base.train.cpu_devices)
    cli.keep_compiled(base.data.cache_dir)
    from ssd_jax.training import loop

    runs: dict[str, Run] = {}
    for name, config in configs.items():
        model = build.model(config.model, num_classes=1)
        boxes = len(build.priors(config.model, model))
        console.stdout.print(f"\n[bold]{name}[/bold]: {boxes} default boxes")
        runs[name] = Run(boxes, loop.train(config, workdir / name).voc07.mean_ap)
        (workdir / "table.md").write_text(table(runs), encoding="utf-8")
    console.stdout.print(
        f"\n{base.train.steps} steps on {base.data.dataset}; the paper's: VOC2007 test"
    )
    console.stdout.print(table(runs))
    cli.show_places({"table": workdir / "table.md"})


if __name__ == "__main__":
    cli.run(main)
