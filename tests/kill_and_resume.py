"""Kills runs at random moments and starts them again: they have to end as if nothing had happened.

  python tests/kill_and_resume.py [--trials 20] [--kills 50] [--preparations 50] [--seed 0]

A trial stops a run after a random step by one of SIGNALS or SIGKILL and resumes it; every leaf of
the state in the end has to be bitwise that of a run that was never stopped. Then one run is killed
by SIGKILL again and again while it saves a checkpoint after each step: each time it has to resume
from the last one that was committed, and to end like a run of as many steps that was never stopped.
First of all the preparation of a dataset is killed at random moments, again and again: whatever is
left behind, the next one has to end with every record as that of one that was never killed, and
nothing else may stay in the cache. (--trials 0 --kills 0 does that alone.)
"""

import argparse
import pickle
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import tiny_run

from ssd_jax.data import datasets, synthetic

STEPS = 8
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")  # at which a run saves
MANY = 20  # kills, of which some have to fall into a save


def finish(config_file, workdir, *arguments):
    """Trains to the end; gives the step that it went on from."""
    process = tiny_run.start_training(config_file, workdir, *arguments)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    return begun_at(stdout)


def begun_at(stdout):
    """The step whose checkpoint a run says it starts from; 0 where there is none."""
    found = re.search(r"start\s+checkpoint of step (\d+)", stdout)
    return int(found.group(1)) if found else 0


def trial(config_file, workdir, expected, chance):
    """Stops a run after a random step, resumes it, and compares the end."""
    step, sent = chance.randrange(1, STEPS), chance.choice([*SIGNALS, "SIGKILL"])
    process = tiny_run.start_training(config_file, workdir)
    tiny_run.wait_for_checkpoint(workdir, step, [process])
    process.send_signal(getattr(signal, sent))
    ((status, stderr),) = tiny_run.ends([process])
    assert status == (-signal.SIGKILL if sent == "SIGKILL" else 75), stderr
    saved = max(tiny_run.steps_saved(workdir))
    assert finish(config_file, workdir) == saved
    tiny_run.assert_same(tiny_run.arrays_of(workdir, STEPS), expected)
    return f"{sent} after step {step}, went on from {saved}"


def killed_again_and_again(config_file, workdir, kills, chance):
    """SIGKILL at random moments; gives how many of them fell into a save."""
    torn = 0
    for _ in range(kills):
        before = max(tiny_run.steps_saved(workdir), default=0)
        process = tiny_run.start_training(config_file, workdir, f"--config.train.steps={10**6}")
        tiny_run.wait_for_checkpoint(workdir, before + 1, [process])
        time.sleep(chance.uniform(0, 0.6))
        committed = max(tiny_run.steps_saved(workdir))
        process.kill()
        stdout, _ = process.communicate(timeout=60)
        torn += bool(list((workdir / "checkpoints").glob("*tmp*")))
        assert begun_at(stdout) == before, f"went on from {begun_at(stdout)}, not from {before}"
        assert max(tiny_run.steps_saved(workdir)) >= committed
    assert not (workdir / "damaged").exists()
    return torn


_PREPARE = """
import sys
from ssd_jax.data import datasets
print("begins", flush=True)
datasets.load("folder", "train", path=sys.argv[1], cache_dir=sys.argv[2])
"""


def preparation(folder, cache):
    """A process that prepares a dataset, once it has begun to."""
    process = tiny_run.start("-c", _PREPARE, folder / "images", cache)
    assert process.stdout.readline() == "begins\n", process.communicate()
    return process


def records(folder, cache):
    """What a prepared dataset holds, in bytes."""
    split = datasets.load("folder", "train", path=str(folder / "images"), cache_dir=cache)
    return [pickle.dumps(split.source[index]) for index in range(len(split.source))]


def killed_preparations(folder, kills, chance):
    """SIGKILL at random moments of preparing; gives what was found."""
    folder.mkdir()
    synthetic.write(folder / "images", train=300, test=1)
    whole = preparation(folder, folder / "whole")
    begun = time.monotonic()
    assert whole.wait() == 0
    whole.communicate()
    seconds = time.monotonic() - begun
    expected = records(folder, folder / "whole")
    cache, torn, ended = folder / "cache", 0, 0
    for _ in range(kills):
        process = preparation(folder, cache)
        time.sleep(chance.uniform(0, 1.1 * seconds))
        process.kill()
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), process.returncode
        torn += bool(list(cache.rglob("incomplete.*")))
        if list(cache.rglob("dataset_info.json")):  # it is there whole; anew then
            assert records(folder, cache) == expected
            ended += 1
            shutil.rmtree(cache)
    assert records(folder, cache) == expected
    assert not list(cache.rglob("*incomplete*"))
    names = {path.name for path in (folder / "whole").iterdir()}
    assert {path.name for path in cache.iterdir()} == names
    return f"{kills} preparations killed, {torn} of them while writing, {ended} after the end"


def run(folder, *, trials, kills, preparations=0, seed):
    """All of it; gives lines for the reader."""
    chance = random.Random(seed)
    if preparations:
        yield killed_preparations(folder / "preparations", preparations, chance)
    if not (trials or kills):
        return
    config_file = tiny_run.write_config(folder, steps=STEPS, devices=1)
    finish(config_file, folder / "whole")
    expected = tiny_run.arrays_of(folder / "whole", STEPS)
    assert any(name.startswith("['ema']") for name in expected)
    for number in range(trials):
        yield trial(config_file, folder / f"trial_{number}", expected, chance)
    if kills:
        torn = killed_again_and_again(config_file, folder / "killed", kills, chance)
        last = max(tiny_run.steps_saved(folder / "killed"))
        steps = f"--config.train.steps={last + 1}"
        assert finish(config_file, folder / "killed", steps) == last
        finish(config_file, folder / "never_killed", steps)
        ends = [tiny_run.arrays_of(folder / name, last + 1) for name in ("killed", "never_killed")]
        tiny_run.assert_same(*ends)
        assert torn or kills < MANY
        yield f"{kills} kills, {torn} of them in the middle of a save; step {last} loads, bitwise"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--preparations", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as folder:
        for line in run(Path(folder), **options):
            print(line, flush=True)


if __name__ == "__main__":
    main()
