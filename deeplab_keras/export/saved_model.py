"""SavedModel folders, which TensorFlow runs without this package and without Keras."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from deeplab_keras.config import UserError
from deeplab_keras.export.graph import OUTPUTS, Function, freeze
from deeplab_keras.inference.exported import EXTRAS


def save(
    model: keras.Model,
    path: pathlib.Path,
    outputs: Sequence[str],
    files: Mapping[str, str],
    label_type: str = "int32",
) -> None:
    """Writes a SavedModel for batches of uint8 images of any size.

    The signature "serving_default" returns `outputs`. The signatures "labels", "logits" and
    "probabilities" return the output of that name. All share one graph, with the input "image",
    uint8 `[batch, height, width, channels]` in 0..255, and outputs at the images' size.

    Args:
        model: A segmentor. If it has a fixed input size, so has the SavedModel.
        path: The folder to write.
        outputs: Names out of "labels", "logits" and "probabilities".
        files: Texts by name, written to the subfolder assets.extra.
        label_type: The dtype of labels, "int32" or "uint8".

    Raises:
        UserError: The folder cannot be written.
    """
    frozen = freeze(model, model.input_shape, tf.uint8, ["logits"])
    signatures = {name: _signature(frozen, [name], label_type) for name in OUTPUTS}
    signatures["serving_default"] = _signature(frozen, outputs, label_type)
    try:
        tf.saved_model.save(tf.Module(), str(path), signatures=signatures)
    except tf.errors.OpError as error:
        raise UserError(
            f"{path.parent}: cannot be written ({error.message}); give another `export_path`"
        ) from error
    (path / EXTRAS).mkdir()
    for name, text in files.items():
        (path / EXTRAS / name).write_text(text, encoding="utf-8")


def _signature(frozen: Function, outputs: Sequence[str], label_type: str) -> Function:
    (image,), (logits,) = frozen.inputs, frozen.outputs

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        scores = tf.ensure_shape(frozen(image)[0], logits.shape)
        return {name: OUTPUTS[name](scores, label_type) for name in outputs}

    return tf.function(serve, input_signature=[tf.TensorSpec(image.shape, tf.uint8, name="image")])
