"""Trained detectors as files for other programs: ONNX, StableHLO and safetensors.

An exported network takes `images`, `[batch, size, size, 3]` float32: RGB pictures in 0..255 that
are already resized to its input (bilinearly, without antialiasing, the aspect ratio not kept). It
subtracts the mean itself. It gives either

- `detections`: `boxes` `[batch, D, 4]`, corners in [0, 1] of the picture, `scores` `[batch, D]` and
  `labels` `[batch, D]` int32 from 1, best first; unused rows are 0; or
- `raw`: `loc` `[batch, P, 4]` and `conf` `[batch, P, C]`, and the priors `priors_cxcywh` `[P, 4]`.

A safetensors file holds the parameters alone. The class names, the sizes, the mean and the config
travel in each file's metadata: text by name, see `metadata`.
"""

import contextlib
import dataclasses
import functools
import importlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

import ssd_jax
from ssd_jax import augment, boxes, detection, errors
from ssd_jax import config as config_lib
from ssd_jax import detector as detector_lib
from ssd_jax.detection import Detections
from ssd_jax.models import ssd
from ssd_jax.weights import safetensors

FORMATS = ("onnx", "stablehlo", "safetensors")  # each also the ending of its files
OUTPUTS = ("detections", "raw")
PLATFORMS = ("cpu", "cuda", "tpu")  # that a StableHLO file runs on
_VARIANCES = (0.1, 0.2)  # of detection.detect
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # of ONNX Runtime, the best first
_METADATA_FILE = "metadata.json"  # in a StableHLO file
_NEAR = 1e-4  # detections whose scores differ by less may change places
_SAME = 0.01  # two detections that lie further apart, in box or score, are not the same

_PICTURES = (
    "images: float32 [batch, height, width, 3], RGB in 0..255, resized to image_size bilinearly, "
    "the aspect ratio not kept; the mean is subtracted inside"
)
_TAKES = {
    "detections": _PICTURES,
    "raw": _PICTURES,
    "parameters": "of the network of config, which takes RGB in 0..255 minus mean",
}
_GIVES = {
    "detections": "boxes [batch, D, 4], corners (xmin, ymin, xmax, ymax) in [0, 1]; scores "
    "[batch, D]; labels [batch, D] int32, k is class_names[k - 1]; best first, unused rows are 0",
    "raw": "loc [batch, P, 4], offsets to priors_cxcywh [P, 4]; conf [batch, P, C], logits of the "
    "background and the classes",
    "parameters": "arrays by layer/kernel (height, width, in, out), layer/bias and layer/scale",
}

# What broken headers and metadata make the standard library and the readers raise.
_BROKEN = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError)

Arrays = Mapping[str, Any]  # a network's outputs by name
Network = Callable[[Any, jax.Array], dict[str, jax.Array]]


def write(detector: detector_lib.Detector, path: Path, *, outputs: str = "detections") -> None:
    """Writes a detector into a file, whose ending says in which format.

    Args:
      detector: With the parameters.
      path: `*.onnx`, `*.stablehlo` or `*.safetensors`.
      outputs: One of `OUTPUTS`; of no meaning to safetensors.

    Raises:
      UserError: If the file cannot be written, a package that the format needs is missing, the
        detector is one that was exported without its parameters, or it looks at several views of a
        picture, which safetensors alone can keep.
    """
    kind, options = _format(path), detector.config.eval
    if detector.params is None:
        raise errors.UserError(
            f"{path}: a detector of an ONNX or StableHLO file cannot be written again; give the "
            f"run's workdir, or the safetensors file beside it"
        )
    if kind != "safetensors" and (options.flip or options.sizes):
        raise errors.UserError(
            f"{path}: a network of this format looks at a picture once; give "
            f"--config.eval.flip=false --config.eval.sizes='()', or write safetensors"
        )
    try:
        _WRITERS[kind](detector, path, outputs)
    except OSError as error:
        raise errors.UserError(f"{path}: not written: {error.strerror or error}") from None


def load(path: str | Path) -> detector_lib.Detector:
    """Reads what `write` wrote, as a detector for pictures of any size.

    Raises:
      UserError: If there is no such file, it is not of the format that its ending says, it was not
        written by `write`, or a package that the format needs is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise errors.UserError(f"{path}: there is no such file")
    return _READERS[_format(path)](path)


def metadata(detector: detector_lib.Detector, content: str) -> dict[str, str]:
    """What a file tells its consumer; all but `ssd_jax`, `content` and the two texts is JSON.

    Args:
      detector: Which is written.
      content: One of `OUTPUTS`, or "parameters".
    """
    config = detector.config
    size = detector_lib.input_size(config.model)
    kept = {
        "model": dataclasses.asdict(dataclasses.replace(config.model, pretrained="")),
        "data": {"dataset": config.data.dataset, "canvas": config.data.canvas},
        "eval": dataclasses.asdict(dataclasses.replace(config.eval, max_images=0)),
    }
    return {
        "ssd_jax": ssd_jax.__version__,
        "content": content,
        "input": _TAKES[content],
        "output": _GIVES[content],
        "class_names": json.dumps(detector.class_names),
        "image_size": json.dumps(size),
        "mean": json.dumps(detector_lib.picture_mean(config.model)),
        "variances": json.dumps(_VARIANCES),
        "config": json.dumps(kept),
    }


# --- The networks that are written ---


def raw_network(config: config_lib.ModelConfig, num_classes: int) -> Network:
    """`network(params, images)` that gives the outputs called `raw`, see the module."""
    model = detector_lib.build_model(config, num_classes)
    priors_cxcywh = detector_lib.default_boxes(config, model)

    def network(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        images = augment.normalize(images, mean=detector_lib.picture_mean(config))
        loc, conf = ssd.apply(model, params, images)
        return {"loc": loc, "conf": conf, "priors_cxcywh": jnp.asarray(priors_cxcywh)}

    return network


def detections_of(outputs: Arrays, config: config_lib.EvalConfig) -> Detections:
    """Detections of a batch from the outputs called `raw`."""
    detect = functools.partial(
        detection.detect,
        variances=_VARIANCES,
        score_threshold=config.score_threshold,
        iou_threshold=config.iou_threshold,
        top_k=config.top_k,
        max_detections=config.max_detections,
        clip_before_nms=config.clip_before_nms,
    )
    batched = jax.vmap(detect, in_axes=(0, 0, None))
    return batched(outputs["loc"], outputs["conf"], jnp.asarray(outputs["priors_cxcywh"]))


def candidates(
    loc: jax.Array,
    conf: jax.Array,
    priors_cxcywh: jax.Array,
    *,
    score_threshold: float,
    clip: bool,
) -> tuple[jax.Array, jax.Array]:
    """What the suppression starts from, of one picture: `[P, 4]` boxes, `[C - 1, P]` scores.

    Scores that do not exceed the threshold are 0. Boxes are corners.
    """
    decoded = boxes.decode(loc, priors_cxcywh, variances=_VARIANCES)
    decoded = jnp.clip(decoded, 0, 1) if clip else decoded
    scores = jax.nn.softmax(conf)
    return decoded, jnp.where(scores > score_threshold, scores, 0)[:, 1:].T


# --- ONNX ---


def _write_onnx(detector: detector_lib.Detector, path: Path, outputs: str) -> None:
    """Computes in float32, whatever the config's type: runtimes have no bfloat16 on a CPU."""
    _require("onnx")
    from ssd_jax import onnx_graph

    config, settings = detector.config.model, detector.config.eval
    network = raw_network(dataclasses.replace(config, dtype="float32"), len(detector.class_names))
    start = jax.vmap(
        functools.partial(
            candidates,
            score_threshold=settings.score_threshold,
            clip=settings.clip_before_nms,
        ),
        in_axes=(0, 0, None),
    )

    def unsuppressed(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        raw = network(params, images)
        return start(raw["loc"], raw["conf"], raw["priors_cxcywh"])

    graph = onnx_graph.Graph()
    images = graph.input("images", (None, *detector_lib.input_size(config), 3))
    params = jax.device_get(detector.params)
    if outputs == "raw":
        results = onnx_graph.trace(graph, network, params, images)
    else:
        results = onnx_graph.suppress(
            graph,
            *onnx_graph.trace(graph, unsuppressed, params, images),
            iou_threshold=settings.iou_threshold,
            top_k=settings.top_k,
            max_detections=settings.max_detections,
        )
    model = graph.model(results, metadata=metadata(detector, outputs), version=ssd_jax.__version__)
    path.write_bytes(model.SerializeToString())


def _read_onnx(path: Path) -> detector_lib.Detector:
    onnxruntime = _require("onnxruntime")
    providers = [name for name in _PROVIDERS if name in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(path, providers=providers)
    except Exception as error:  # ONNX Runtime has a class for each status, with nothing in common
        raise errors.UserError(f"{path} is no ONNX model that can be run: {error}") from None
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> Arrays:
        return dict(zip(names, session.run(names, {"images": images}), strict=True))

    return _detector(path, session.get_modelmeta().custom_metadata_map, run)


# --- StableHLO ---


def _write_stablehlo(detector: detector_lib.Detector, path: Path, outputs: str) -> None:
    """A `jax.export` artifact with a ZIP archive behind it, which holds the metadata.

    `jax.export.deserialize` reads a file from its front and `zipfile` from its end.
    """
    _require("flatbuffers")
    config = detector.config
    network = raw_network(config.model, len(detector.class_names))

    def run(images: jax.Array) -> dict[str, jax.Array]:
        raw = network(detector.params, images)
        return raw if outputs == "raw" else detections_of(raw, config.eval)._asdict()

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *detector_lib.input_size(config.model), 3), np.float32)
    with _no_locations():
        exported = jax.export.export(jax.jit(run), platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())
    with zipfile.ZipFile(path, "a") as archive:
        text = json.dumps(metadata(detector, outputs), indent=2)
        archive.writestr(zipfile.ZipInfo(_METADATA_FILE), text)  # of a fixed date


@contextlib.contextmanager
def _no_locations() -> Iterator[None]:
    """Keeps the places of the source code, with this machine's paths, out of what JAX lowers."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _read_stablehlo(path: Path) -> detector_lib.Detector:
    _require("flatbuffers")
    try:
        with zipfile.ZipFile(path) as archive:
            described = json.loads(archive.read(_METADATA_FILE))
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # flatbuffers, zipfile and jax.export raise a dozen kinds
        raise errors.UserError(
            f"{path} is damaged, or was not written by export.py: {_reason(error)}"
        ) from None
    return _detector(path, described, jax.jit(exported.call))


# --- safetensors ---


def _write_safetensors(detector: detector_lib.Detector, path: Path, outputs: str) -> None:
    """The parameters by their path in the network, whatever `outputs` says."""
    library = _require("safetensors.numpy")
    params = flax.traverse_util.flatten_dict(jax.device_get(detector.params), sep="/")
    arrays = {name: np.ascontiguousarray(array) for name, array in params.items()}
    path.write_bytes(library.save(arrays, metadata=metadata(detector, "parameters")))


def _read_safetensors(path: Path) -> detector_lib.Detector:
    try:
        described, arrays = safetensors.metadata(path), safetensors.read(path)
    except _BROKEN as error:
        raise errors.UserError(f"{path} is no safetensors file: {_reason(error)}") from None
    config, class_names = _described(path, described)
    _check_parameters(path, arrays, config.model, len(class_names))
    params = flax.traverse_util.unflatten_dict(arrays, sep="/")
    return detector_lib.Detector(config, class_names, jax.device_put(params))


def _check_parameters(
    path: Path, arrays: Arrays, config: config_lib.ModelConfig, num_classes: int
) -> None:
    """Makes sure that a file holds the parameters of the network that its metadata describe."""
    model = detector_lib.build_model(config, num_classes)
    like = ssd.abstract_params(model, detector_lib.input_size(config))
    wanted = {
        name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(like, sep="/").items()
    }
    found = {name: array.shape for name, array in arrays.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise errors.UserError(
                f"{path} has {found.get(name, 'nothing')} as {name}, and the network of its "
                f"metadata {wanted.get(name, 'nothing')}; write it anew with export.py"
            )


# --- What the readers share ---

_WRITERS: dict[str, Callable[[detector_lib.Detector, Path, str], None]] = {
    "onnx": _write_onnx,
    "stablehlo": _write_stablehlo,
    "safetensors": _write_safetensors,
}
_READERS: dict[str, Callable[[Path], detector_lib.Detector]] = {
    "onnx": _read_onnx,
    "stablehlo": _read_stablehlo,
    "safetensors": _read_safetensors,
}


def is_exported(path: str | Path) -> bool:
    """Whether a path is of a file of `write`, by its ending and, of safetensors, its metadata."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return path.suffix[1:] in FORMATS
    try:
        return "ssd_jax" in safetensors.metadata(path)
    except _BROKEN:  # whoever reads it says what is wrong
        return False


def _format(path: Path) -> str:
    if path.suffix[1:] not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise errors.UserError(f"{path}: the ending of an exported file is one of {endings}")
    return path.suffix[1:]


def _require(module: str) -> Any:
    """Imports a package that only exports need.

    Raises:
      UserError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise errors.UserError(
            f"{module.partition('.')[0]} is not installed ({error}): pip install -e '.[export]'"
        ) from None


def _described(path: Path, described: Mapping[str, str]) -> tuple[config_lib.Config, list[str]]:
    """The config and the class names in a file's metadata."""
    try:
        config = config_lib.from_mapping(json.loads(described["config"]))
        config_lib.validate(config)
        return config, list(map(str, json.loads(described["class_names"])))
    except _BROKEN as error:
        raise errors.UserError(
            f"{path} was not written by export.py: its metadata lack what ssd_jax needs "
            f"({_reason(error)})"
        ) from None


def _reason(error: Exception) -> str:
    """An exception's text on one line, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _detector(
    path: Path, described: Mapping[str, str], run: Callable[[np.ndarray], Arrays]
) -> detector_lib.Detector:
    """A detector whose network is `run`, which takes resized pictures."""
    config, class_names = _described(path, described)
    size = detector_lib.input_size(config.model)
    resize = jax.jit(jax.vmap(functools.partial(augment.resize, size=size)))
    finish = jax.jit(functools.partial(detections_of, config=config.eval))

    def predict(params: Any, images: Any, extents: Any) -> Detections:
        outputs = run(np.asarray(resize(images, extents)))
        return finish(outputs) if "loc" in outputs else Detections(**outputs)

    return detector_lib.Detector(config, class_names, params=None, predict=predict)


# --- Comparison ---


class Difference(NamedTuple):
    """How far the detections of two detectors in the same pictures lie apart.

    Attributes:
      boxes: Largest difference of a coordinate, in the picture's width or height.
      scores: Largest difference of a score.
      alone: Detections of either that the other does not have.
      detections: How many were compared.
    """

    boxes: float = 0.0
    scores: float = 0.0
    alone: int = 0
    detections: int = 0

    def __add__(self, other: Any) -> "Difference":
        """The difference in the pictures of both."""
        return Difference(
            max(self.boxes, other.boxes),
            max(self.scores, other.scores),
            self.alone + other.alone,
            self.detections + other.detections,
        )


def difference(ours: Detections, theirs: Detections) -> Difference:
    """Compares `[D]` detections in one picture, boxes in [0, 1], as NumPy arrays.

    Each is compared with the nearest of the other's that has its label: equal scores may have
    changed places. Where all D rows are used, the last ones may have been cut off in either.
    """
    near = _partners(ours, theirs)
    alone = near.alone + _partners(theirs, ours).alone
    return near._replace(alone=alone)


def _partners(ours: Detections, theirs: Detections) -> Difference:
    boxes = np.abs(ours.boxes[:, None] - theirs.boxes[None]).max(axis=-1)
    scores = np.abs(ours.scores[:, None] - theirs.scores[None])
    apart = np.where(ours.labels[:, None] == theirs.labels, np.maximum(boxes, scores), np.inf)
    rows, nearest = np.arange(len(apart)), apart.argmin(axis=1)
    last = min(ours.scores[-1], theirs.scores[-1]) + _NEAR  # of scores; _NEAR if some are unused
    used = ours.scores > (last if last > _NEAR else 0)
    found = used & (apart[rows, nearest] < _SAME)
    pairs = rows[found], nearest[found]
    return Difference(
        float(boxes[pairs].max(initial=0)),
        float(scores[pairs].max(initial=0)),
        int(np.sum(used & ~found)),
        int(np.sum(used)),
    )


def compare(ours: Mapping[int, Detections], theirs: Iterable[tuple[int, Detections]]) -> Difference:
    """Compares detections, by the picture's index, as `Detector.predict_batches` gives them."""
    return sum((difference(ours[index], found) for index, found in theirs), Difference())
