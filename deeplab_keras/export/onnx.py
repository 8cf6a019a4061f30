"""ONNX files, converted by tf2onnx and run by ONNX Runtime; requires the extra `onnx`."""

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
    """Raises UserError if a package of the extra is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"`formats='onnx'` needs the packages {', '.join(missing)}; "
            "install them with pip install onnxruntime tf2onnx, or omit onnx"
        )


def convert(frozen: Function, outputs: Sequence[str], files: Mapping[str, str]) -> bytes:
    """Converts to an ONNX file for one image of a fixed size.

    The inputs and outputs are those of a float32 TFLite file.

    Args:
        frozen: The graph of a segmentor for a batch of 1 and a fixed size, float32.
        outputs: The names of its outputs.
        files: Texts by name, stored as the model's metadata.

    Returns:
        The content of the file.

    Raises:
        UserError: ONNX lacks an operation of the graph.
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
    kinds = {node.op_type for node in model.graph.node if node.domain in ("", "ai.onnx")}
    missing = sorted(kind for kind in kinds if not onnx.defs.has(kind))
    if missing:  # tf2onnx only logs them
        raise UserError(
            f"`formats='onnx'`: ONNX has no operation {', '.join(missing)}; replace the layers "
            "with it, or give `formats='saved_model'`"
        )
    _round_resizes_up(model)
    onnx.helper.set_model_props(model, dict(files))
    return model.SerializeToString()


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Context without TensorFlow's warnings, because tf2onnx uses deprecated functions."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _round_resizes_up(model: object) -> None:
    """Increases the factors of all resizes by two units in the last place.

    For a resize from 13 to 97, tf2onnx writes the factor 97 / 13, and ONNX Runtime computes the
    floor of 13 times its float32: 96. The larger factor leads to the right size for every size
    below two million.
    """
    from onnx import numpy_helper

    used = {node.input[2] for node in model.graph.node if node.op_type == "Resize"}  # type: ignore[attr-defined]
    for tensor in model.graph.initializer:  # type: ignore[attr-defined]
        if tensor.name in used:
            factors = numpy_helper.to_array(tensor)
            factors = np.where(factors == 1, factors, factors * NUDGE)
            tensor.CopyFrom(numpy_helper.from_array(factors.astype(np.float32), tensor.name))
