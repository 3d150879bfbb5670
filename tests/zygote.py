"""Runs Python commands in forks of a process that has imported what takes long.

A script of this repository spends three seconds of a processor on imports (JAX, Orbax, tfds, ...)
before it does anything of its own. A fork has them already. Nothing of ssd_jax is imported before
the fork, and JAX has no devices yet, so that a fork does what a process of its own would do: it has
its own arguments, environment, folder and streams, and ends as a Python process does.

`scripts.py` starts this file and asks it for forks, with the end of a socket as its argument.
"""

import importlib
import json
import os
import runpy
import socket
import sys
import types
import warnings
from pathlib import Path

HEAVY = (
    "absl.flags",
    "array_record.python.array_record_module",
    "av",
    "faster_coco_eval",
    "flax.linen",
    "grain",
    "jax",
    "jax.export",
    "ml_collections.config_flags",
    "optax",
    "orbax.checkpoint",
    "PIL.Image",
    "rich.progress",
    "rich.table",
    "simplejpeg",
    "tensorboardX",
    "tensorflow_datasets",
)

_STREAMS: dict[str, dict] = {
    "stdin": {"mode": "r"},
    "stdout": {"mode": "w"},
    "stderr": {"mode": "w", "errors": "backslashreplace", "buffering": 1},
}


def main(handle: str) -> None:
    """Imports, and waits for what is asked for; returns in a fork alone, when its command ends."""
    for name in HEAVY:
        importlib.import_module(name)
    importlib.import_module("compiled").share()
    execute(**serve(socket.socket(fileno=int(handle))))


def serve(requests: socket.socket) -> dict:
    """Forks for each request; gives the request in the fork that is to run it.

    With a request come five descriptors: standard input, output and error, the pipe that is told
    the number of the fork and then its exit status, and the pipe that the request is read from.
    """
    while True:
        _, handles, _, _ = socket.recv_fds(requests, 1, 5)
        if not handles:  # whoever asked has ended
            os._exit(0)
        if _fork() == 0:
            requests.close()
            return _watched(*handles)
        for handle in handles:
            os.close(handle)
        _bury()


def _watched(stdin: int, stdout: int, stderr: int, answer: int, given: int) -> dict:
    """Forks once more; the first says what becomes of the second, which gets the request."""
    with open(given) as file:
        request = json.load(file)
    if (child := _fork()) == 0:
        if request.pop("new_session"):
            os.setsid()
        os.close(answer)
        _take(stdin, stdout, stderr)
        return request
    for stream in (stdin, stdout, stderr):
        os.close(stream)
    os.write(answer, f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    os.write(answer, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _take(*streams: int) -> None:
    """Makes these the standard streams, as Python opens them in a process without a terminal."""
    for number, (name, handle) in enumerate(zip(_STREAMS, streams, strict=True)):
        os.dup2(handle, number)
        os.close(handle)
        stream = os.fdopen(number, closefd=False, **_STREAMS[name])
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _fork() -> int:
    with warnings.catch_warnings():  # threads of imported libraries, which have nothing to do
        warnings.simplefilter("ignore")
        return os.fork()


def _bury() -> None:
    """Collects the forks that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def execute(command: list[str], cwd: str, env: dict[str, str], imports: str) -> None:
    """What `python COMMAND...` does: a script, `-c CODE` or `-m MODULE`, with its arguments."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    path = list(filter(None, env.get("PYTHONPATH", "").split(os.pathsep)))
    if imports:  # this file's folder still comes first
        importlib.import_module(imports)
    kind, *rest = command
    if kind == "-m":
        sys.argv, sys.path[:1] = rest, [cwd, *path]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    if kind == "-c":
        code, name, sys.argv, folder = rest[0], "<string>", ["-c", *rest[1:]], ""
    else:
        name, sys.argv, folder = kind, command, str(Path(kind).resolve().parent)
        code = Path(kind).read_text()
    sys.path[:1] = [folder, *path]
    module = types.ModuleType("__main__")
    if kind != "-c":
        module.__file__ = name
    sys.modules["__main__"] = module
    exec(compile(code, name, "exec"), module.__dict__)


if __name__ == "__main__":
    main(sys.argv[1])
