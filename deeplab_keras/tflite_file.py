"""Whether a TFLite file is whole; the interpreters do not look and end the whole process where it is not."""

from __future__ import annotations

import os
import pathlib
import struct

from deeplab_keras.config import UserError


def check_tflite(path: str | os.PathLike[str]) -> None:
    """Reads every table of the file once, so that nothing of it lies beyond its end.

    Raises:
        UserError: it is truncated, or no TFLite file.
    """
    from tensorflow.lite.python.schema_py_generated import Model, ModelT  # takes TensorFlow's import

    content = pathlib.Path(path).read_bytes()
    try:
        whole = Model.ModelBufferHasIdentifier(content, 0)
        if whole:
            ModelT.InitFromPackedBuf(content, 0)
    except (struct.error, ValueError, TypeError, IndexError, OverflowError):
        whole = False
    if not whole:
        raise UserError(f"{path}: truncated, damaged or not a TFLite file; download, copy or export it again")
