"""Signals that tell a script to stop."""

import os
import signal

import pytest

from ssd_jax import stopping


@pytest.fixture(autouse=True)
def usual():
    """None is ignored, whatever started the tests."""
    handlers = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    before = {number: signal.signal(number, each) for number, each in handlers.items()}
    yield
    for number, each in before.items():
        signal.signal(number, each)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_is_noted_and_the_next_ones_change_nothing(number):
    before = signal.getsignal(number)
    with stopping.Stop() as stop:
        assert not stop()
        for each in (number, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), each)
        assert stop()
        assert stop.signal == number
    assert signal.getsignal(number) == before


def test_what_is_ignored_stays_ignored():
    """As SIGHUP under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stopping.Stop() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop()


def test_a_second_ctrl_c_interrupts_unless_it_is_the_first_passed_on(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stopping, "_clock", lambda: now[0])
    with stopping.Stop():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        now[0] = 1.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
