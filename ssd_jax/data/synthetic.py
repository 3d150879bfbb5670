"""The built-in dataset: generated scenes, written as a PASCAL VOC folder.

Every random number of an image comes from (seed, split, image number): an image stays the same
however many images are written and however many processes write them.

Nothing here needs JAX.
"""

import errno
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ssd_jax import errors
from ssd_jax.data import synthetic_scenes, synthetic_shapes

SPLITS = ("train", "test")  # the position of a name is part of its images' random key
JPEG_QUALITY = 90

_MACHINE = 100  # exit status of a process that the machine stopped, less the system's number of it


def _element(tag: str, *children: ElementTree.Element, **texts: object) -> ElementTree.Element:
    """Returns an element that holds one element for each of `texts`, then `children`."""
    parent = ElementTree.Element(tag)
    for name, text in texts.items():
        ElementTree.SubElement(parent, name).text = str(text)
    parent.extend(children)
    return parent


def _annotation(folder: str, filename: str, drawn: synthetic_scenes.Scene) -> ElementTree.Element:
    """Returns the annotation of a scene in the schema of VOC2007, with VOC2012's `occluded`."""
    height, width, depth = drawn.image.shape
    root = _element("annotation", folder=folder, filename=filename)
    root.append(_element("source", database="ssd_jax synthetic"))
    root.append(_element("size", width=width, height=height, depth=depth))
    ElementTree.SubElement(root, "segmented").text = "0"
    for one in drawn.objects:
        flags = {flag: int(getattr(one, flag)) for flag in ("truncated", "occluded", "difficult")}
        corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), one.box, strict=True))
        box = _element("bndbox", **corners)
        root.append(_element("object", box, name=one.name, pose="Unspecified", **flags))
    ElementTree.indent(root, "\t")
    return root


def code() -> str:
    """Returns the source code that generates the images: if it changes, so do they."""
    modules = (synthetic_shapes, synthetic_scenes, sys.modules[__name__])
    return "".join(inspect.getsource(module) for module in modules)


def _name(split: str, number: int) -> str:
    return f"{split}_{number + 1:06d}"


def _write_share(
    folder: str, counts: Sequence[int], seed: int, first: int, step: int, parent: int
) -> None:
    """Writes the images first, first + step, ... of every split and their annotations.

    Ends this process where `parent`, for which it works, is gone, or the machine is in trouble,
    and exits with its error number.
    """
    for index, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
        for number in range(first, count, step):
            if os.getppid() != parent:
                sys.exit("whoever wanted these images is gone")
            drawn, name = (
                synthetic_scenes.scene(np.random.default_rng([seed, index, number])),
                _name(split, number),
            )
            try:
                _write_scene(Path(folder), name, drawn)
            except OSError as error:
                sys.exit(_MACHINE + (error.errno or errno.EIO))


def _write_scene(folder: Path, name: str, drawn: synthetic_scenes.Scene) -> None:
    image = folder / "JPEGImages" / f"{name}.jpg"
    Image.fromarray(drawn.image).save(image, quality=JPEG_QUALITY)
    root = _annotation(folder.name, image.name, drawn)
    ElementTree.ElementTree(root).write(folder / "Annotations" / f"{name}.xml")


def _write_share_in_a_process(*job: object) -> None:
    """Runs `_write_share(*job)` in a new interpreter.

    multiprocessing would import the caller's script, and JAX with it, in every worker, and would
    fail where that script has no `__main__` guard.

    Raises:
      OSError: If it can't write.
    """
    code = "import json, sys; from ssd_jax.data import synthetic; "
    code += "synthetic._write_share(*json.loads(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    command = [sys.executable, "-c", code, json.dumps((*job, os.getpid()))]
    status = subprocess.run(command, env=environment).returncode
    if status > _MACHINE:
        raise OSError(status - _MACHINE, os.strerror(status - _MACHINE), job[0])
    if status == -signal.SIGKILL:  # as the system does to end what takes its memory
        raise OSError(errno.ENOMEM, "a process that makes the images was killed", job[0])
    if status:
        raise subprocess.CalledProcessError(status, command)


def write(
    folder: str | os.PathLike[str],
    *,
    train: int = 2000,
    test: int = 200,
    seed: int = 0,
    processes: int | None = None,
) -> None:
    """Writes the dataset as a PASCAL VOC folder, which appears when it is complete.

    Args:
      folder: Made here, with JPEGImages, Annotations and ImageSets/Main; its parents too.
      train: Number of images of the split "train".
      test: Number of images of the split "test".
      seed: At least 0; another seed gives other images.
      processes: At least 1; None uses one per CPU. The images do not depend on it.

    Raises:
      UserError: If `folder` exists.
      OSError: If it can't be written.
    """
    folder, counts = Path(folder).absolute(), (train, test)
    if folder.exists():
        raise errors.UserError(f"{folder} exists: remove it or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        part = Path(temporary, folder.name)
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (part / name).mkdir(parents=True)
        for split, count in zip(SPLITS, counts, strict=True):
            names = "".join(f"{_name(split, number)}\n" for number in range(count))
            (part / "ImageSets/Main" / f"{split}.txt").write_text(names)
        step = processes or os.cpu_count() or 1
        jobs = [(str(part), counts, seed, first, step) for first in range(step)]
        with futures.ThreadPoolExecutor(step) as pool:  # each thread waits for one process
            list(pool.map(lambda job: _write_share_in_a_process(*job), jobs))
        part.rename(folder)
