"""Signals to a run, its watchdog, and the terminal that goes away: all without a run."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time

import pytest
import tiny_run

from ssd_jax import errors
from ssd_jax.data import loader
from ssd_jax.training import signals, watchdog


@pytest.mark.parametrize("number", signals.HANDLED)
def test_every_signal_that_asks_to_end_is_noted_and_its_handler_put_back(number, capfd):
    before = signal.signal(number, signal.default_int_handler)
    try:
        with signals.Stop() as stop:
            stop.defer()
            os.kill(os.getpid(), number)
            assert stop.name == number.name
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert f"{number.name}: the run saves and ends after this step" in capfd.readouterr().err


def test_a_closed_terminal_before_the_first_step_ends_the_run_that_restarts():
    with pytest.raises(errors.StoppedError, match="SIGHUP before the first step"), signals.Stop():
        os.kill(os.getpid(), signal.SIGHUP)


def test_under_nohup_a_closed_terminal_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.Stop() as stop:
            stop.defer()
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert stop.name == ""
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_is_noted_where_standard_error_is_gone(monkeypatch):
    monkeypatch.setattr(signals, "_STDERR", 10**6)  # no such file: to write there is an OSError
    with signals.Stop() as stop:
        stop.defer()
        os.kill(os.getpid(), signal.SIGHUP)
    assert stop.name == "SIGHUP"


HUP, XCPU, TERM, INT = signal.SIGHUP, signal.SIGXCPU, signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    ("came", "status"),
    [
        ((HUP, HUP, HUP), None),  # the system to the terminal's processes, and the shell that ends
        ((XCPU, XCPU, XCPU), None),  # each second, from the soft limit on
        ((signal.SIGUSR1, TERM), None),  # SLURM: a notice, then the time is up
        ((TERM, HUP), None),  # systemd with SendSIGHUP
        ((TERM, TERM), 128 + TERM),
        ((HUP, TERM, INT), 128 + INT),
    ],
)
def test_only_a_second_sigterm_or_sigint_ends_at_once(came, status, monkeypatch, capfd):
    def leave(number):
        left.append(number)
        raise SystemExit

    left = []
    monkeypatch.setattr(os, "_exit", leave)
    reading, writing = os.pipe()
    os.write(writing, bytes(came))
    os.close(writing)
    try:
        signals._count(reading)
    except SystemExit:
        assert "stopped at once" in capfd.readouterr().err
    assert left == ([] if status is None else [status])


def test_workers_never_get_a_signal_at_which_the_run_saves():
    assert set(loader.HELD_BACK) == set(signals.HANDLED)
    with loader._signals_held_back():
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert set(signals.HANDLED) <= masked


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="the masks of others are in /proc")
def test_the_process_that_forgets_shared_memory_gets_none_either():
    """It stands in the same group, and without it the names of memory are unknown."""
    code = (
        "from multiprocessing import resource_tracker\n"
        "from ssd_jax.data import loader\n"
        "with loader._signals_held_back():\n"
        "    print(open(f'/proc/{resource_tracker._resource_tracker._pid}/status').read())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny_run.ROOT, capture_output=True, text=True, check=True
    )
    fields = [line.split() for line in done.stdout.splitlines() if line]
    held = [int(field[1], 16) for field in fields if field[0] in ("SigBlk:", "SigIgn:")]
    assert [sent for sent in signals.HANDLED if not (held[0] | held[1]) >> (sent - 1) & 1] == []


class Waits:
    """Stands for an event that is never set: each wait ends at once, after a call of `each`."""

    def __init__(self, each=lambda number: None):
        self.asked, self._each = [], each

    def wait(self, seconds):
        self.asked.append(seconds)
        self._each(len(self.asked))
        return False

    def set(self):
        pass


class EndedError(Exception):
    pass


def watch(monkeypatch, each=lambda number: None, minutes=10):
    """Runs a watchdog on such waits until it ends the process; gives the waits that it took."""

    def end(status):
        assert status == errors.TRY_AGAIN
        raise EndedError

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback", lambda: None)
    dog = watchdog.Watchdog(minutes)
    dog._over = Waits(lambda number: each(dog, number))
    with pytest.raises(EndedError):
        dog._watch()
    return dog._over.asked


def test_the_watchdog_ends_what_makes_no_step_after_its_minutes(monkeypatch, capsys):
    asked = watch(monkeypatch, lambda dog, number: None)
    assert sum(asked) == pytest.approx(600, rel=0.05)
    assert "no step in 10 minutes (config.train.watchdog_minutes)" in capsys.readouterr().err


def test_a_beat_restarts_the_watchdogs_minutes(monkeypatch):
    asked = watch(monkeypatch, lambda dog, number: dog.beat() if number == 25 else None)
    assert sum(asked[25:]) == pytest.approx(600, rel=0.05)


def test_while_a_run_is_suspended_the_watchdogs_time_stands_still(monkeypatch):
    """Whatever a clock says: a wait that took an hour counts as long as it was asked to be."""
    hours = iter(range(10**6))
    for name in ("monotonic", "time", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: 3600.0 * next(hours))
    asked = watch(monkeypatch, lambda dog, number: time.monotonic())
    assert sum(asked) == pytest.approx(600, rel=0.05)


@pytest.mark.slow
def test_a_run_that_was_suspended_for_longer_than_the_watchdog_waits_continues():
    process = tiny_run.start(
        "-c",
        "import time\n"
        "from ssd_jax.training import watchdog\n"
        "with watchdog.Watchdog(minutes=2 / 60) as dog:\n"
        "    for _ in range(20):\n"
        "        print('step', flush=True)\n"
        "        time.sleep(0.2)\n"
        "        dog.beat()\n",
    )
    assert process.stdout.readline() == "step\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    process.send_signal(signal.SIGCONT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout.count("step"), stderr) == (0, 19, "")


# What a training does at its end, on a terminal of its own that was closed before.
_HUNG_UP = """
import fcntl, os, signal, sys, termios, time
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from absl import logging
from ssd_jax import cli, console, errors
from ssd_jax.training import progress, signals

def main(argv):
    with signals.Stop() as stop, progress.Progress(0, 9, 1) as bar:
        stop.defer()
        console.stdout.print("ready")
        while not stop.name:
            time.sleep(0.01)
        for step in range(1, 4):
            bar.update(step, loss=1.0)
            console.stdout.print("step")
            logging.warning("a warning")
            time.sleep(0.15)  # the bar draws itself ten times a second
        open(sys.argv[1], "w").write(stop.name)
        raise errors.StoppedError("saved")

cli.run(main)
"""


def test_a_run_whose_terminal_is_closed_saves_and_asks_to_be_started_again(tmp_path):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _HUNG_UP, str(tmp_path / "saved")],
        cwd=tiny_run.ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while b"ready" not in shown:
        shown += os.read(ours, 1000)
    reader = threading.Thread(target=os.close, args=(ours,))
    reader.start()
    assert process.wait(timeout=60) == errors.TRY_AGAIN
    reader.join()
    assert (tmp_path / "saved").read_text() == "SIGHUP"
