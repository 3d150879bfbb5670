"""ONNX: float32, with NMS inside, for ONNX Runtime and other runtimes."""

import contextlib
import dataclasses
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from ssd_jax import build, errors, version
from ssd_jax import detector as detector_lib
from ssd_jax.export import metadata, runtime
from ssd_jax.export import network as networks

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # of ONNX Runtime, the best first


def write(detector: detector_lib.Detector, file: BinaryIO, outputs: str) -> None:
    """Writes a detector, see `export.write`.

    It computes in float32, whatever the config's type: runtimes have no bfloat16 on a CPU.
    """
    metadata.require("onnx")
    from ssd_jax.export import onnx_graph, onnx_nms, onnx_trace

    config, settings = detector.config.model, detector.config.eval
    network = networks.raw_network(
        dataclasses.replace(config, dtype="float32"), len(detector.class_names)
    )
    start = jax.vmap(
        functools.partial(
            networks.candidates,
            score_threshold=settings.score_threshold,
            clip=settings.clip_before_nms,
        ),
        in_axes=(0, 0, None),
    )

    def unsuppressed(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        raw = network(params, images)
        return start(raw["loc"], raw["conf"], raw["priors_cxcywh"])

    graph = onnx_graph.Graph()
    images = graph.input("images", (None, *build.input_size(config), 3))
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
    model = graph.model(
        results, metadata=metadata.describe(detector, outputs), version=version.VERSION
    )
    file.write(model.SerializeToString())


def read(path: Path) -> detector_lib.Detector:
    """Reads the detector of an ONNX file of `export.write`.

    Raises:
      UserError: If it is none, or a package that it needs is missing.
    """
    onnxruntime, onnx = metadata.require("onnxruntime"), metadata.require("onnx")
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
        raise metadata.unreadable(error, path, "is no ONNX model that can be run") from None
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> networks.Arrays:
        return dict(zip(names, session.run(names, {"images": images}), strict=True))

    return runtime.detector(path, described, run, takes=takes)


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
