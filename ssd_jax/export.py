"""Trained detectors as files for other programs: ONNX, StableHLO and safetensors.

An exported network takes `images`, `[batch, size, size, 3]` float32: RGB pictures in 0..255 that
are already resized to its input (bilinearly, without antialiasing, the aspect ratio not kept). It
subtracts the mean itself. It gives either

- `detections`: `boxes` `[batch, D, 4]`, corners in [0, 1] of the picture, `scores` `[batch, D]` and
  `labels` `[batch, D]` int32 from 1, best first; unused rows are 0; or
- `raw`: `loc` `[batch, P, 4]` and `conf` `[batch, P, C]`, and the priors `priors_cxcywh` `[P, 4]`.

A safetensors file holds the parameters alone. The class names, the sizes, the mean and the config
travel in each file's metadata: text by name, see `metadata`.

A file that is read may be somebody else's. It computes and nothing more: its metadata are checked
as a config, no other file is opened for it, and a StableHLO program that calls code of the machine
is refused.
"""

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import flax.traverse_util
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

import ssd_jax
from ssd_jax import augment, boxes, config_checks, config_files, detection, errors, files, stablehlo
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
# What a StableHLO program may call: nothing that XLA looks up among the machine's code.
_CALLS = ("shape_assertion", "stablehlo.dynamic_reduce_window", "stablehlo.dynamic_top_k")

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
        with files.replacing(path) as file:
            _WRITERS[kind](detector, file, outputs)
    except OSError as error:
        if errors.is_of_machine(error):
            raise errors.of_machine(error, path) from None
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


def _write_onnx(detector: detector_lib.Detector, file: BinaryIO, outputs: str) -> None:
    """Computes in float32, whatever the config's type: runtimes have no bfloat16 on a CPU."""
    _require("onnx")
    from ssd_jax import onnx_graph, onnx_nms, onnx_trace

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
        results = onnx_trace.trace(graph, network, params, images)
    else:
        results = onnx_nms.suppress(
            graph,
            *onnx_trace.trace(graph, unsuppressed, params, images),
            iou_threshold=settings.iou_threshold,
            top_k=settings.top_k,
            max_detections=settings.max_detections,
        )
    model = graph.model(results, metadata=metadata(detector, outputs), version=ssd_jax.__version__)
    file.write(model.SerializeToString())


def _read_onnx(path: Path) -> detector_lib.Detector:
    onnxruntime, onnx = _require("onnxruntime"), _require("onnx")
    providers = [name for name in _PROVIDERS if name in onnxruntime.get_available_providers()]
    try:
        content = path.read_bytes()
        if _names_other_files(onnx.load_model_from_string(content), onnx.TensorProto):
            raise errors.UserError(f"{path}: its values are to be in other files; give one file")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # fatal: what it writes by itself passes no filter of ours
        with contextlib.redirect_stdout(io.StringIO()):
            session = onnxruntime.InferenceSession(
                content, options, providers=providers, read_config_from_model=0
            )
        described = session.get_modelmeta().custom_metadata_map
        takes = [(value.name, *value.shape[1:]) for value in session.get_inputs()]
    except Exception as error:  # ONNX Runtime has a class for each status, with nothing in common
        raise _unreadable(error, path, "is no ONNX model that can be run") from None
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> Arrays:
        return dict(zip(names, session.run(names, {"images": images}), strict=True))

    return _detector(path, described, run, takes=takes)


def _names_other_files(message: Any, tensor: Any) -> bool:
    """Whether a tensor anywhere in a message of ONNX keeps its values in another file."""
    if isinstance(message, tensor):
        return message.data_location == tensor.EXTERNAL or bool(message.external_data)
    return any(
        _names_other_files(each, tensor)
        for field, value in message.ListFields()
        if field.message_type is not None
        for each in (value if isinstance(value, Sequence) else [value])
    )


# --- StableHLO ---


def _write_stablehlo(detector: detector_lib.Detector, file: BinaryIO, outputs: str) -> None:
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
    file.write(exported.serialize())
    with zipfile.ZipFile(file, "w") as archive:  # which begins where the file ends so far
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
        content = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(_METADATA_FILE) as part:
            described = config_files.parse(part.read(config_files.MOST_BYTES + 1), where=path)
        exported = jax.export.deserialize(bytearray(content))
        takes = [("images", *aval.shape[1:]) for aval in exported.in_avals]
        _check_computes(exported)
    except Exception as error:  # flatbuffers, zipfile and jax.export raise a dozen kinds
        raise _unreadable(error, path, "is damaged, or was not written by export.py") from None
    return _detector(path, described, jax.jit(exported.call), takes=takes)


def _check_computes(exported: jax.export.Exported) -> None:
    """Makes sure that a program only computes.

    XLA runs what a custom call names with the arguments that the file gives, as the addresses of
    Python's functions. `jax.export` checks what it writes, not what it reads.

    Raises:
      ValueError: If it calls code of the machine, or waits for somebody else.
    """
    found = stablehlo.calls(exported.mlir_module_serialized)
    if others := sorted(found.difference(_CALLS)):
        raise ValueError(
            f"its program calls {config_checks.shown(others[0])}, which no export does"
        )
    if exported.nr_devices != 1 or exported.ordered_effects or exported.unordered_effects:
        raise ValueError("its program is for several devices, or has effects")


# --- safetensors ---


def _write_safetensors(detector: detector_lib.Detector, file: BinaryIO, outputs: str) -> None:
    """The parameters by their path in the network, whatever `outputs` says."""
    library = _require("safetensors.numpy")
    params = flax.traverse_util.flatten_dict(jax.device_get(detector.params), sep="/")
    arrays = {name: np.ascontiguousarray(array) for name, array in params.items()}
    file.write(library.save(arrays, metadata=metadata(detector, "parameters")))


def _read_safetensors(path: Path) -> detector_lib.Detector:
    try:
        described, arrays = safetensors.metadata(path), safetensors.read(path)
    except _BROKEN as error:
        raise _unreadable(error, path, "is no safetensors file") from None
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
            there = config_checks.shown(found[name]) if name in found else "nothing"
            raise errors.UserError(
                f"{path} has {there} as {name[:80]}, and the network of its metadata "
                f"{wanted.get(name, 'nothing')}; write it anew with export.py"
            )
        if not jnp.issubdtype(arrays[name].dtype, jnp.floating):
            raise errors.UserError(f"{path} has {arrays[name].dtype} as {name}, no float numbers")


# --- What the readers share ---

_WRITERS: dict[str, Callable[[detector_lib.Detector, BinaryIO, str], None]] = {
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


def _described(path: Path, described: Any) -> tuple[config_lib.Config, tuple[str, ...]]:
    """The config and the class names in a file's metadata."""
    if not isinstance(described, dict) or not {"config", "class_names"} <= described.keys():
        raise errors.UserError(
            f"{path} was not written by export.py: its metadata lack what ssd_jax needs"
        )
    told = {
        name: config_files.parse(_text(path, described[name]), where=f"{path}: {name}")
        for name in ("config", "class_names", "image_size", "mean", "variances")
        if name in described
    }
    config = config_files.from_mapping(told["config"], where=path)
    network = {
        "image_size": list(detector_lib.input_size(config.model)),
        "mean": list(detector_lib.picture_mean(config.model)),
        "variances": list(_VARIANCES),
    }
    for name, value in network.items():
        if told.get(name, value) != value:
            raise errors.UserError(
                f"{path}: its metadata have {config_checks.shown(told[name])} as {name}, and a "
                f"config with {value}; write it anew with export.py"
            )
    return config, config_checks.check_class_names(told["class_names"], where=path)


def _text(path: Path, value: Any) -> str:
    if not isinstance(value, str):
        raise errors.UserError(f"{path}: its metadata have {config_checks.shown(value)} for a text")
    return value


def _unreadable(error: Exception, path: Path, what: str) -> errors.UserError:
    """What to raise where a file can't be read: on the machine, or on the file."""
    if isinstance(error, errors.UserError):
        return error
    if errors.is_of_machine(error):
        return errors.of_machine(error, path)
    return errors.UserError(f"{path} {what}: {_reason(error)}")


def _reason(error: Exception) -> str:
    """The beginning of an exception's text on one line, or its kind where it has none."""
    return " ".join(str(error)[:300].split()) or type(error).__name__


def _detector(
    path: Path,
    described: Any,
    run: Callable[[np.ndarray], Arrays],
    *,
    takes: Sequence[tuple[Any, ...]],
) -> detector_lib.Detector:
    """A detector whose network is `run`, which takes resized pictures.

    Args:
      path: Of its file.
      described: The file's metadata.
      run: The network.
      takes: Of each of its inputs the name, and the sizes behind the batch.
    """
    config, class_names = _described(path, described)
    size = detector_lib.input_size(config.model)
    if list(takes) != [("images", *size, 3)]:
        raise errors.UserError(
            f"{path}: its network takes {config_checks.shown(takes)}, and its config has images of "
            f"{size}; write it anew with export.py"
        )
    resize = jax.jit(jax.vmap(functools.partial(augment.resize, size=size)))
    finish = jax.jit(functools.partial(detections_of, config=config.eval))

    def predict(params: Any, images: Any, extents: Any) -> Detections:
        resized = np.asarray(resize(images, extents))
        outputs: dict[str, Any] = {}
        try:
            outputs = {name: np.asarray(values) for name, values in run(resized).items()}
        except Exception as error:  # of the runtimes, which have a dozen kinds
            raise _unreadable(error, path, "does not run") from None
        if not _are_outputs(outputs, config, len(class_names), rows=len(resized)):
            shapes = {name: values.shape for name, values in outputs.items()}
            raise errors.UserError(
                f"{path}: its network gives {config_checks.shown(shapes)}, which is not what its "
                f"metadata say; write it anew with export.py"
            )
        found = finish(outputs) if "loc" in outputs else Detections(**outputs)
        return _clean(path, jax.device_get(found), len(class_names))

    return detector_lib.Detector(config, class_names, params=None, predict=predict)


def _are_outputs(
    outputs: Arrays, config: config_lib.Config, num_classes: int, *, rows: int
) -> bool:
    """Whether a network gives, for a batch of `rows`, what a file of a config does."""
    most = config.eval.max_detections
    wanted = {"boxes": (rows, most, 4), "scores": (rows, most), "labels": (rows, most)}
    if "priors_cxcywh" in outputs:
        places = len(outputs["priors_cxcywh"]) if outputs["priors_cxcywh"].ndim else 0
        wanted = {
            "loc": (rows, places, 4),
            "conf": (rows, places, num_classes + 1),
            "priors_cxcywh": (places, 4),
        }
    kinds = {name: "i" if name == "labels" else "f" for name in wanted}
    return wanted == {name: values.shape for name, values in outputs.items()} and kinds == {
        name: values.dtype.kind for name, values in outputs.items()
    }


def _clean(path: Path, found: Any, num_classes: int) -> Detections:
    """Detections of a network of somebody else's, which are checked before they are indices."""
    used = found.scores > 0
    labels = found.labels[used]
    finite = np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()
    if not finite or labels.min(initial=1) < 1 or labels.max(initial=1) > num_classes:
        raise errors.UserError(
            f"{path}: its network gives numbers that are not finite, or labels that no class has"
        )
    return found._replace(boxes=np.clip(found.boxes, 0, 1))
