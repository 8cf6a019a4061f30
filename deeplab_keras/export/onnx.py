"""ONNX files, by the extra `onnx`: tf2onnx converts, ONNX Runtime runs them."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from deeplab_keras.config import UserError
from deeplab_keras.export.graph import Function

PACKAGES = ("onnx", "tf2onnx", "onnxruntime")
OPSET = 18
NUDGE = np.float32(1 + 2**-22)


def require_packages() -> None:
    """Raises UserError where a package of the extra is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"`formats='onnx'` needs the packages {', '.join(missing)}; "
            "install them with pip install 'deeplab-keras[onnx]', or leave onnx out"
        )


def convert(frozen: Function, outputs: Sequence[str], files: Mapping[str, str]) -> bytes:
    """An ONNX file for one image of one size, inputs and outputs as in a float32 TFLite file.

    Args:
        frozen: the graph of a segmentor for a batch of 1 and one size, float32.
        outputs: the names of its outputs.
        files: name -> text, kept as the model's metadata.
    """
    import onnx
    import tf2onnx

    (image,) = frozen.inputs
    names = {image.name: "image"} | {
        tensor.name: name for tensor, name in zip(frozen.outputs, outputs, strict=True)
    }
    with _without_warnings():
        model, _ = tf2onnx.convert.from_graph_def(
            frozen.graph.as_graph_def(),
            input_names=[image.name],
            output_names=[tensor.name for tensor in frozen.outputs],
            tensors_to_rename=names,
            opset=OPSET,
        )
    _round_resizes_up(model)
    onnx.helper.set_model_props(model, dict(files))
    return model.SerializeToString()


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Within the block TensorFlow does not warn: tf2onnx calls what TensorFlow has declared outdated."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _round_resizes_up(model: object) -> None:
    """Makes the factors of all resizes a hair larger.

    tf2onnx writes 97 / 13 as the factor of a resize from 13 to 97, and ONNX Runtime takes the floor
    of 13 times its
    float32: 96. Two units in the last place more, and the floor is right for every size below two
        million.
    """
    from onnx import numpy_helper

    used = {node.input[2] for node in model.graph.node if node.op_type == "Resize"}  # type: ignore[attr-defined]
    for tensor in model.graph.initializer:  # type: ignore[attr-defined]
        if tensor.name in used:
            factors = numpy_helper.to_array(tensor)
            factors = np.where(factors == 1, factors, factors * NUDGE)
            tensor.CopyFrom(numpy_helper.from_array(factors.astype(np.float32), tensor.name))
