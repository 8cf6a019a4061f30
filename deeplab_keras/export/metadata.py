"""TFLite metadata: the description of inputs and outputs for Android's and MediaPipe's tools.

Tables are written as `{field number: value}`, with the field numbers of `metadata_schema.fbs` 1.5.0
(tensorflow/tflite-support) and of MediaPipe's `image_segmenter_metadata_schema.fbs`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flatbuffers
import numpy as np
from flatbuffers.number_types import Int8Flags, Int32Flags, Uint8Flags
from tensorflow.lite.python import schema_py_generated as schema

from deeplab_keras.inference.exported import ABOUT, LABELS

ENTRY, IDENTIFIER = "TFLITE_METADATA", b"M001"
# Constants of the schema: content types, process units, color spaces, file types.
IMAGE_CONTENT, NORMALIZATION = 2, 1
RGB, GRAY = 1, 2
DESCRIPTION_FILE, AXIS_LABELS, VALUE_LABELS = 1, 2, 3
SOFTMAX = 2  # an activation of MediaPipe's schema
ALIGNMENT = 16  # bytes, of the content of a buffer

Table = Mapping[int, Any]


@dataclasses.dataclass(frozen=True)
class _Scalar:
    """A scalar stored inline in its table, with its flatbuffers type."""

    flags: Any
    value: int


def describe(model: bytes, name: str, description: str, version: str) -> bytes:
    """Adds TFLite metadata to a file; its operators, tensors and buffers do not change.

    The metadata says that the input is an RGB image in 0..255 that needs no normalization, and
    which packed file has the class names, for the values of "labels" and for the last axis of
    "logits". Equal arguments result in equal bytes. It names no license, which is up to the owner
    of the weights.

    Args:
        model: A TFLite file with the input "image", outputs "labels", "logits" or both, and no
            metadata.
        name: The network's name.
        description: A sentence that describes the network.
        version: The version of this package.
    """
    outputs = _output_names(model)
    graph: dict[int, Any] = {
        2: [_image()],
        3: [_labels() if output == "labels" else _logits() for output in outputs],
    }
    if "logits" in outputs:
        # MediaPipe applies this activation to get confidences.
        activation = _finished({0: _Scalar(Int8Flags, SOFTMAX)}, b"V001")
        graph[9] = [{0: "SEGMENTER_METADATA", 1: activation}]
    about = {
        0: name,
        1: description,
        2: version,
        3: [graph],
        4: "deeplab_keras",
        6: [
            _file(ABOUT, "Classes with their colors, architecture and input size", DESCRIPTION_FILE)
        ],
        7: "1.5.0" if 9 in graph else "1.0.0",  # the first schema version with these fields
    }
    return _with_entry(model, _finished(about, IDENTIFIER))


# === Content ===


def _image() -> Table:
    return {
        0: "image",
        1: "RGB image, values 0 to 255; normalization is part of the model",
        3: {0: _Scalar(Uint8Flags, IMAGE_CONTENT), 1: {0: _Scalar(Int8Flags, RGB)}},
        4: [
            {0: _Scalar(Uint8Flags, NORMALIZATION), 1: {0: (0.0,), 1: (1.0,)}}
        ],  # mean, standard deviation
        5: {0: (255.0,), 1: (0.0,)},  # maximum, minimum
    }


def _labels() -> Table:
    return {
        0: "labels",
        1: "Class of each pixel, an index into the lines of labels.txt",
        3: _map_content(),
        6: [_file(LABELS, "Names of the classes", VALUE_LABELS)],
    }


def _logits() -> Table:
    return {
        0: "logits",
        1: "Scores of the classes for each pixel, before softmax",
        3: _map_content(),
        6: [_file(LABELS, "Names of the classes", AXIS_LABELS)],
    }


def _map_content() -> Table:
    """A gray image over the axes 1 and 2, the schema's way to describe a map of pixels."""
    spatial = {0: _Scalar(Int32Flags, 1), 1: _Scalar(Int32Flags, 2)}
    return {0: _Scalar(Uint8Flags, IMAGE_CONTENT), 1: {0: _Scalar(Int8Flags, GRAY)}, 2: spatial}


def _file(name: str, description: str, kind: int) -> Table:
    return {0: name, 1: description, 2: _Scalar(Int8Flags, kind)}


def _output_names(model: bytes) -> list[str]:
    """Returns the names that the signature gives to the outputs, in the order of the graph."""
    root = schema.Model.GetRootAs(model)
    signature, graph = root.SignatureDefs(0), root.Subgraphs(0)
    names = {}
    for index in range(signature.OutputsLength()):
        output = signature.Outputs(index)
        names[output.TensorIndex()] = output.Name().decode()
    return [names[graph.Outputs(index)] for index in range(graph.OutputsLength())]


# === Serialization ===


def _finished(table: Table, identifier: bytes) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(_put(builder, table), identifier)
    return bytes(builder.Output())


def _put(builder: flatbuffers.Builder, value: Any) -> int:
    """Writes text, bytes, a tuple of floats, a table or a list of tables; returns its offset."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, Mapping):
        offsets = {
            number: _put(builder, part)
            for number, part in value.items()
            if not isinstance(part, _Scalar)
        }
        builder.StartObject(max(value) + 1)
        for number, part in value.items():
            if isinstance(part, _Scalar):
                builder.PrependSlot(part.flags, number, part.value, 0)
            else:
                builder.PrependUOffsetTRelativeSlot(number, offsets[number], 0)
        return builder.EndObject()
    if isinstance(value, list):
        value = [_put(builder, part) for part in value]
        width, alignment, prepend = 4, 4, builder.PrependUOffsetTRelative
    elif isinstance(value, bytes):
        width, alignment, prepend = 1, ALIGNMENT, builder.PrependByte
    else:
        width, alignment, prepend = 4, 4, builder.PrependFloat32
    builder.StartVector(width, len(value), alignment)
    for part in reversed(value):  # flatbuffers are written from the end
        prepend(part)
    return builder.EndVector()


class _AlignedBuffer(schema.BufferT):
    """A buffer with the schema's `force_align: 16`, which the generated class ignores."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        if self.data is not None:
            builder.Prep(ALIGNMENT, len(self.data))
        return super().Pack(builder)


def _aligned(buffer: schema.BufferT) -> _AlignedBuffer:
    result = _AlignedBuffer()
    result.data, result.offset, result.size = buffer.data, buffer.offset, buffer.size
    return result


def _with_entry(model: bytes, metadata: bytes) -> bytes:
    """Adds a buffer and a metadata entry that refers to it."""
    tables = schema.ModelT.InitFromPackedBuf(model, 0)
    entry, content = schema.MetadataT(), schema.BufferT()  # TensorFlow 2.20 takes no arguments
    entry.name, entry.buffer = ENTRY, len(tables.buffers)
    content.data = np.frombuffer(metadata, np.uint8)
    tables.metadata = [*(tables.metadata or []), entry]
    tables.buffers = [_aligned(buffer) for buffer in [*tables.buffers, content]]
    builder = flatbuffers.Builder(len(model))
    builder.Finish(tables.Pack(builder), b"TFL3")
    return bytes(builder.Output())
