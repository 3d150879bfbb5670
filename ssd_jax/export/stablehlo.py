"""StableHLO: a program of `jax.export`, which runs on CPU, GPU and TPU."""

import contextlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import jax
import jax.export
import numpy as np

from ssd_jax import build, config_checks, config_files
from ssd_jax import detector as detector_lib
from ssd_jax.export import metadata, runtime, stablehlo_calls
from ssd_jax.export import network as networks

PLATFORMS = ("cpu", "cuda", "tpu")  # that a StableHLO file runs on
_METADATA_FILE = "metadata.json"  # in a StableHLO file
# Custom calls that a StableHLO program may make: none that XLA resolves to code of the machine.
_CALLS = ("shape_assertion", "stablehlo.dynamic_reduce_window", "stablehlo.dynamic_top_k")


def write(detector: detector_lib.Detector, file: BinaryIO, outputs: str) -> None:
    """Writes a `jax.export` artifact followed by a ZIP archive with the metadata.

    `jax.export.deserialize` reads a file from its front and `zipfile` from its end.
    """
    metadata.require("flatbuffers")
    config = detector.config
    network = networks.raw_network(config.model, len(detector.class_names))

    def run(images: jax.Array) -> dict[str, jax.Array]:
        raw = network(detector.params, images)
        return raw if outputs == "raw" else networks.detections_of(raw, config.eval)._asdict()

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *build.input_size(config.model), 3), np.float32)
    with _no_locations():
        exported = jax.export.export(jax.jit(run), platforms=PLATFORMS)(images)
    file.write(exported.serialize())
    with zipfile.ZipFile(file, "w") as archive:  # appended to the file
        text = json.dumps(metadata.describe(detector, outputs), indent=2)
        archive.writestr(zipfile.ZipInfo(_METADATA_FILE), text)  # of a fixed date


@contextlib.contextmanager
def _no_locations() -> Iterator[None]:
    """Removes source locations, with paths of this machine, from lowered programs."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def read(path: Path) -> detector_lib.Detector:
    """Reads the detector of a StableHLO file of `export.write`.

    Raises:
      UserError: If it is none, or a package that it needs is missing.
    """
    metadata.require("flatbuffers")
    try:
        content = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(_METADATA_FILE) as part:
            described = config_files.parse(part.read(config_files.MOST_BYTES + 1), where=path)
        exported = jax.export.deserialize(bytearray(content))
        takes = [("images", *aval.shape[1:]) for aval in exported.in_avals]
        _check_computes(exported)
    except Exception as error:  # flatbuffers, zipfile and jax.export raise a dozen kinds
        raise metadata.unreadable(
            error, path, "is damaged, or was not written by export.py"
        ) from None
    return runtime.detector(path, described, jax.jit(exported.call), takes=takes)


def _check_computes(exported: jax.export.Exported) -> None:
    """Checks that a program only computes.

    XLA runs what a custom call names with the arguments that the file gives, as the addresses of
    Python's functions. `jax.export` checks what it writes, not what it reads.

    Raises:
      ValueError: If it calls code of the machine, or communicates with other processes.
    """
    found = stablehlo_calls.find(exported.mlir_module_serialized)
    if others := sorted(found.difference(_CALLS)):
        raise ValueError(
            f"its program calls {config_checks.shown(others[0])}, which no export does"
        )
    if exported.nr_devices != 1 or exported.ordered_effects or exported.unordered_effects:
        raise ValueError("its program is for several devices, or has effects")
