"""The workdir of a run: locked by one process, with one config, set of classes and dataset."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from ssd_jax import checkpoints, config_checks, config_files, console, distributed, errors, files
from ssd_jax import config as config_lib
from ssd_jax.data import datasets

_UNSEEN = 60  # seconds that NFS may cache that a file is missing


@contextlib.contextmanager
def claim(
    workdir: Path, config: config_lib.Config, class_names: tuple[str, ...], *, change_config: bool
) -> Iterator[None]:
    """Creates and locks the workdir and writes the config into it.

    Raises:
      UserError: If the workdir can't be written, is in use, or is that of another model, other
        classes or, unless it is to be changed, another config. Nothing is written then.
    """
    path = workdir / "config.json"
    with distributed.together():
        if path.exists():
            _check_same_run(workdir, config, class_names, change_config=change_config)
    with contextlib.ExitStack() as stack:
        with distributed.together():
            if distributed.is_primary():
                try:
                    workdir.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(_locked(workdir))
                    config_files.save(path, config, class_names)
                except OSError as error:
                    raise errors.UserError(f"--workdir {workdir}: {error.strerror}") from None
        with distributed.together():
            _check_seen(path)
        yield


def _check_seen(path: Path) -> None:
    """Checks that this process sees the workdir of process 0, by a file written there."""
    end = time.monotonic() + _UNSEEN
    while not path.exists():
        if time.monotonic() > end:
            raise errors.UserError(
                f"--workdir {path.parent}: {socket.gethostname()} does not see the {path.name} "
                f"that process 0 wrote there; give a folder that all machines see"
            )
        time.sleep(0.2)


def _check_same_run(
    workdir: Path, config: config_lib.Config, class_names: tuple[str, ...], *, change_config: bool
) -> None:
    """Compares the config of a workdir with the one to resume with, and prints the changes."""
    earlier, earlier_names = config_files.load(workdir / "config.json")
    found = config_lib.differences(earlier, config)
    if earlier_names != class_names:
        found["classes"] = (
            f"{', '.join(earlier_names)} in the run, {', '.join(class_names)} in the data"
        )
    another = [n for n in found if n.startswith("model.") and n not in config_lib.CHANGEABLE]
    fits = not another and "classes" not in found
    if found and not (fits and change_config):
        lines = "; ".join(f"{name} {values}" for name, values in found.items())
        way = ", or --change-config to resume this one" if fits else ""
        raise errors.UserError(
            f"{workdir} is the workdir of another config: {lines}. Give another --workdir{way}"
        )
    for name, values in found.items():
        console.stdout.print(console.plain(f"  changed  {name} {values}"))


def position(workdir: Path, run: Mapping[str, Any]) -> int:
    """Position in the data at which a checkpoint, possibly of a third party, resumes."""
    found = run.get("position")
    if type(found) is not int or not 0 <= found < 2**62:
        raise errors.UserError(
            f"{workdir / checkpoints.FOLDER}: its position in the data is "
            f"{config_checks.shown(found)}, no number of images: give another --workdir"
        )
    return found


def check_same_images(
    workdir: Path, run: Mapping[str, Any], split: datasets.Split, *, change_config: bool
) -> None:
    """Compares the number of images of a checkpoint with the current one."""
    here = len(split.source)
    there = run.get("images", run.get("pictures", here))  # version 0.1 said "pictures" or nothing
    if there == here:
        return
    found = f"data.train_split has {here} images, and had {config_checks.shown(there)}"
    if not change_config:
        raise errors.UserError(
            f"the data of {workdir} have changed: {found}. Give another --workdir, or "
            f"--change-config to resume this one"
        )
    console.stdout.print(console.plain(f"  changed  {found}"))


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Holds the workdir; the system lets go of it when the process ends, however it ends."""
    with files.appending(workdir / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise errors.UserError(
                f"{workdir} is in use by {file.read(200) or 'another process'}: wait until it "
                f"ends, or give another --workdir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            logging.warning("%s: file system without locks: no other run may use it", workdir)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
