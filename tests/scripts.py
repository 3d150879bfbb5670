"""The scripts beside the package, started as a user starts them or, sooner, as forks.

A fork of `zygote.py` is a process like any other, which has imported JAX already. For each script
one test at least takes `fresh=True`, a process that Python starts.
"""

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent
_HARDLY_OPTIMIZED = "JAX_DISABLE_MOST_OPTIMIZATIONS"  # of the forks, which mostly compile
# What is read when Python or a library is loaded: a fork is too late for it.
_TOO_LATE = ("GLIBC_", "JAX_", "LD_", "MALLOC_", "OMP_", "OPENBLAS_", "PYTHON")


class Fork:
    """A process that `zygote.py` runs, with as much of `subprocess.Popen` as tests use."""

    def __init__(self, request: dict, requests: socket.socket):
        """Asks for it, and waits for its number."""
        told, answer = os.pipe()
        given, asked = os.pipe()
        out, stdout = os.pipe()
        err, stderr = os.pipe()
        stdin = os.open(os.devnull, os.O_RDONLY)
        handed = [stdin, stdout, stderr, answer, given]
        socket.send_fds(requests, [b"1"], handed)
        for handle in handed:
            os.close(handle)
        with open(asked, "w") as file:
            json.dump(request, file)
        self.args = request["command"]
        self.stdout, self.stderr = os.fdopen(out), os.fdopen(err)
        self.returncode: int | None = None
        self._told = os.fdopen(told)
        self.pid = int(self._told.readline())
        self._ended = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        self.returncode = int(self._told.readline())
        self._told.close()
        self._ended.set()

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit status, when it has ended."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it writes, when it has ended."""
        texts = {}
        streams = {"stdout": self.stdout, "stderr": self.stderr}

        def read(name: str) -> None:
            texts[name] = streams[name].read()

        readers = [threading.Thread(target=read, args=(name,), daemon=True) for name in streams]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader, stream in zip(readers, streams.values(), strict=True):
            reader.join()
            stream.close()
        return texts["stdout"], texts["stderr"]

    def send_signal(self, number: int) -> None:
        """Sends a signal, if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self.send_signal(signal.SIGKILL)


@functools.cache
def _zygote() -> tuple[socket.socket, dict[str, str]]:
    """The end of a socket that takes requests, and the environment that forks begin with."""
    ours, theirs = socket.socketpair()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), _HARDLY_OPTIMIZED: "true"}
    environment.pop("XLA_FLAGS", None)
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("zygote.py"), str(theirs.fileno())],
        env=environment,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # a fork that finds a terminal would not be as one without
    )
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours, environment


def _read_late(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_TOO_LATE) and name not in ("PYTHONPATH", _HARDLY_OPTIMIZED)
    }


def start(
    *command: object,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    start_new_session: bool = False,
    imports: str = "",
    fresh: bool = False,
) -> subprocess.Popen[str] | Fork:
    """Starts `python COMMAND...`, whose output is text in pipes.

    Args:
      command: A script, `-c` with code or `-m` with a module, and arguments.
      cwd: The folder that it runs in.
      env: Its environment; that of this process if None.
      start_new_session: Makes it the leader of a group of processes.
      imports: A module beside this file that the fork imports first.
      fresh: Has Python start it, and not fork.
    """
    words = list(map(str, command))
    environment = dict(os.environ if env is None else env)
    if not fresh:
        requests, before = _zygote()
        fresh = _read_late(environment) != _read_late(before)
    if fresh:
        assert not imports, f"a process of its own cannot import {imports}"
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=start_new_session,
        )
    request = {
        "command": words,
        "cwd": str(cwd),
        "env": environment,
        "new_session": start_new_session,
        "imports": imports,
    }
    return Fork(request, requests)


def run(
    script: object,
    *arguments: object,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    imports: str = "",
    fresh: bool = False,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """A script of the repository, or `-c` or `-m`, run to its end, see `start`."""
    first = script if str(script).startswith("-") else ROOT / str(script)
    process = start(first, *arguments, cwd=cwd, env=env, imports=imports, fresh=fresh)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess([first, *arguments], process.returncode, stdout, stderr)


def refused(done: subprocess.CompletedProcess[str], *named: object) -> bool:
    """Whether a run ended with one line on stderr that names what it has to."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert all(str(name) in done.stderr for name in named), done.stderr
    return True


def call(script: str, *arguments: object) -> None:
    """Runs a script's `main` in this process: what it raises is the caller's; no flag remains."""
    from absl import flags

    argv = [script, *map(str, arguments)]
    there = set(flags.FLAGS)
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with mock.patch.object(sys, "argv", argv):
            spec.loader.exec_module(module)
            module.main(argv)
    finally:
        for name in set(flags.FLAGS) - there:
            delattr(flags.FLAGS, name)
