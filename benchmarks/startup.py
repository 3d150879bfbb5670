"""Start-up cost: imports, the first train step and the first detection.

  pip install -e . torch torchvision
  python benchmarks/startup.py [--runs 5]

Every number is of new processes, which take turns; the tables show medians of the seconds.
`import ssd_jax` is to take at most 1.5. Without torchvision its row has a dash.

The second table counts from the start of a process. Training is `loop.train` with
configs/quickstart.py, whose `before` is the data, initialization and the sheet of augmented images;
detection is SSD300 with initialized parameters, which are its `before`. The cache is that of XLA's
compilations in a folder of its own, and is warm in the process after the one that found it empty.
JAX keeps there what took a second to compile, as it does for train.py;
JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 in the environment makes it keep all.
"""

import argparse
import collections
import importlib.util
import itertools
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.py"
IMPORTS = (
    "import ssd_jax",
    "from ssd_jax import load_detector",
    "from ssd_jax.training import loop",
    "import jax",
    "import torchvision",
)
PARTS = ("imports", "before", "tracing and lowering", "compilation", "first execution")


class DoneError(Exception):
    """Ends the loop after its first step, with the moments of `first_call`."""


def first_call(function: Any, *arguments: object) -> list[float]:
    """The moments before a function is traced, and when it was traced, compiled and run."""
    import jax

    moments = [time.time()]
    lowered = function.lower(*arguments)
    moments.append(time.time())
    run = lowered.compile()
    moments.append(time.time())
    jax.block_until_ready(run(*arguments))
    return [*moments, time.time()]


def training() -> list[float]:
    """The moments of the quickstart's first step."""
    from ssd_jax import cli, console
    from ssd_jax.training import loop
    from ssd_jax.training import step as step_lib

    imported = time.time()
    config = runpy.run_path(str(QUICKSTART))["get_config"]()
    console.stdout.quiet = True
    cli.split_cpu(config.train.cpu_devices)
    make = step_lib.make_train_step

    def only_one(*arguments, **options):
        def step(state, batch):
            raise DoneError(first_call(make(*arguments, **options), state, batch))

        return step

    with (
        tempfile.TemporaryDirectory() as workdir,
        mock.patch.object(step_lib, "make_train_step", only_one),
    ):
        try:
            loop.train(config, Path(workdir))
        except DoneError as done:
            return [imported, *done.args[0]]
    raise AssertionError("the loop took no step")


def detection() -> list[float]:
    """The moments of SSD300's first detection."""
    import jax
    import numpy as np

    from ssd_jax import build, detector
    from ssd_jax import config as config_lib
    from ssd_jax.data import classes
    from ssd_jax.models import ssd

    imported = time.time()
    config = config_lib.Config()
    model = build.model(config.model, len(classes.VOC))
    params = ssd.init(jax.random.key(0), model, build.input_size(config.model))
    predict = detector.make_predict(model, build.views(config, model))
    canvases = np.zeros((1, config.data.canvas, config.data.canvas, 3), np.uint8)
    valid_sizes = np.array([[375, 500]], np.float32)
    return [imported, *first_call(predict, jax.block_until_ready(params), canvases, valid_sizes)]


FIRSTS = {"train step": training, "detection": detection}


def python(*arguments: str, **environment: str) -> str:
    """Output of a new process."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def prepare() -> None:
    """Makes the quickstart's data where they are not yet there."""
    where = f"runpy.run_path({str(QUICKSTART)!r})['get_config']().data"
    python("-c", f"import runpy; from ssd_jax.training import data; data.open_splits({where})")


def import_time(statement: str) -> float:
    """Seconds, without the start of Python."""
    clock = "time.perf_counter()"
    return float(python("-c", f"import time; t = {clock}; {statement}; print({clock} - t)"))


def parts_of(first: str, cache: str) -> list[float]:
    """Seconds of each of PARTS."""
    began = time.time()
    moments = json.loads(python(__file__, "--process", first, JAX_COMPILATION_CACHE_DIR=cache))
    return [after - before for before, after in itertools.pairwise([began, *moments])]


def show_imports(runs: int) -> None:
    there = [name for name in IMPORTS if importlib.util.find_spec(name.split()[1])]
    times = collections.defaultdict(list)
    for _ in range(runs):
        for statement in there:
            times[statement].append(import_time(statement))
    print("| import | s |\n|---|---|")
    for statement in IMPORTS:
        taken = f"{statistics.median(times[statement]):.3f}" if times[statement] else "-"
        print(f"| `{statement}` | {taken} |", flush=True)


def show_firsts(runs: int) -> None:
    times = collections.defaultdict(list)
    for _ in range(runs):
        for first in FIRSTS:
            with tempfile.TemporaryDirectory() as cache:
                for state in ("empty", "warm"):
                    times[first, state].append(parts_of(first, cache))
    print(f"\n| first | cache | {' | '.join(PARTS)} | all |\n|{'---|' * (len(PARTS) + 3)}")
    for (first, state), rows in times.items():
        columns = [*zip(*rows, strict=True), [sum(row) for row in rows]]
        taken = " | ".join(f"{statistics.median(column):.2f}" for column in columns)
        print(f"| {first} | {state} | {taken} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--process", choices=FIRSTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        print(json.dumps(FIRSTS[options.process]()))
        return
    prepare()
    show_imports(options.runs)
    show_firsts(options.runs)


if __name__ == "__main__":
    main()
