"""Trained detectors as files for other programs: ONNX, StableHLO and safetensors.

An exported network takes `images`, `[batch, size, size, 3]` float32: RGB images in 0..255 that
are already resized to its input (bilinearly, without antialiasing, the aspect ratio not kept). It
subtracts the mean itself. It gives either

- `detections`: `boxes` `[batch, D, 4]`, corners in [0, 1] of the image, `scores` `[batch, D]` and
  `labels` `[batch, D]` int32 from 1, best first; unused rows are 0; or
- `raw`: `loc` `[batch, P, 4]` and `conf` `[batch, P, C]`, and the priors `priors_cxcywh` `[P, 4]`.

A safetensors file holds the parameters alone. The class names, the sizes, the mean and the config
travel in each file's metadata: text by name, see `metadata.describe`.

Files that are read may come from third parties. They only compute: their metadata are checked
as a config, no other file is opened for it, and a StableHLO program that calls code of the machine
is refused.
"""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ssd_jax import detector as detector_lib
from ssd_jax import errors, files
from ssd_jax.export import onnx, safetensors, stablehlo
from ssd_jax.weights import safetensors as safetensors_files

FORMATS = ("onnx", "stablehlo", "safetensors")  # each also the ending of its files
OUTPUTS = ("detections", "raw")


def write(detector: detector_lib.Detector, path: Path, *, outputs: str = "detections") -> None:
    """Writes a detector into a file; the ending determines the format.

    Args:
      detector: With the parameters.
      path: `*.onnx`, `*.stablehlo` or `*.safetensors`.
      outputs: One of `OUTPUTS`; of no meaning to safetensors.

    Raises:
      UserError: If the file cannot be written, a package that the format needs is missing, the
        detector is one that was exported without its parameters, or it uses test-time augmentation
        on an image, which safetensors alone can keep.
    """
    kind, options = _format(path), detector.config.eval
    if detector.params is None:
        raise errors.UserError(
            f"{path}: a detector of an ONNX or StableHLO file cannot be written again; give the "
            f"run's workdir, or the safetensors file beside it"
        )
    if kind != "safetensors" and (options.tta_flip or options.tta_sizes):
        raise errors.UserError(
            f"{path}: this format has no test-time augmentation; give "
            f"--config.eval.tta_flip=false --config.eval.tta_sizes='()', or write safetensors"
        )
    try:
        with files.replacing(path) as file:
            _WRITERS[kind](detector, file, outputs)
    except OSError as error:
        if errors.is_of_machine(error):
            raise errors.of_machine(error, path) from None
        raise errors.UserError(f"{path}: not written: {error.strerror or error}") from None


def load(path: str | Path) -> detector_lib.Detector:
    """Reads a file of `write` as a detector for images of any size.

    Raises:
      UserError: If the file is missing, it is not of the format of its ending, it was not
        written by `write`, or a package that the format needs is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise errors.UserError(f"{path}: file not found")
    return _READERS[_format(path)](path)


_WRITERS: dict[str, Callable[[detector_lib.Detector, BinaryIO, str], None]] = {
    "onnx": onnx.write,
    "stablehlo": stablehlo.write,
    "safetensors": safetensors.write,
}


_READERS: dict[str, Callable[[Path], detector_lib.Detector]] = {
    "onnx": onnx.read,
    "stablehlo": stablehlo.read,
    "safetensors": safetensors.read,
}


def is_exported(path: str | Path) -> bool:
    """Whether a path is of a file of `write`, by its ending and, of safetensors, its metadata."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return path.suffix[1:] in FORMATS
    try:
        return "ssd_jax" in safetensors_files.metadata(path)
    except safetensors.BROKEN:  # reported when it is read
        return False


def _format(path: Path) -> str:
    if path.suffix[1:] not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise errors.UserError(f"{path}: the ending of an exported file is one of {endings}")
    return path.suffix[1:]
