"""TFLite metadata: what a file says of its input and its outputs to Android's and MediaPipe's tools.

Tables are written as `{number of a field: value}`, with the numbers of `metadata_schema.fbs` 1.5.0
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
# Numbers of the schema: kinds of content and of process units, colours, types of files.
IMAGE_CONTENT, NORMALIZATION = 2, 1
RGB, GREY = 1, 2
DESCRIPTION_FILE, AXIS_LABELS, VALUE_LABELS = 1, 2, 3
SOFTMAX = 2  # of MediaPipe's activations
ALIGNMENT = 16  # of what stands in a buffer

Table = Mapping[int, Any]


@dataclasses.dataclass(frozen=True)
class _Scalar:
    """A number that stands in its table, of one of the flatbuffers package's types."""

    flags: Any
    value: int


def describe(model: bytes, name: str, description: str, version: str) -> bytes:
    """A TFLite file with the entry that tools look for; its operators, tensors and buffers stay byte for byte.

    It says that the input is an RGB image in 0..255 that needs no normalisation, and which file
    names the classes: those that are the values of "labels", and those that are the last axis of
    "logits". Equal arguments give equal bytes. A licence is not
    named: it is the owner's of the weights to give.

    Args:
        model: a file with the input "image" and outputs out of "labels" and "logits", without such
            an entry.
        name: of the network.
        description: a sentence for people.
        version: of what made it.
    """
    outputs = _output_names(model)
    graph: dict[int, Any] = {
        2: [_image()],
        3: [_labels() if output == "labels" else _logits() for output in outputs],
    }
    if "logits" in outputs:
        activation = _finished(
            {0: _Scalar(Int8Flags, SOFTMAX)}, b"V001"
        )  # by which MediaPipe makes confidences of them
        graph[9] = [{0: "SEGMENTER_METADATA", 1: activation}]
    about = {
        0: name,
        1: description,
        2: version,
        3: [graph],
        4: "deeplab_keras",
        6: [
            _file(
                ABOUT, "Classes with their colours, architecture and input size", DESCRIPTION_FILE
            )
        ],
        7: "1.5.0" if 9 in graph else "1.0.0",  # the schema's version that the fields need
    }
    return _with_entry(model, _finished(about, IDENTIFIER))


# === What is said ===


def _image() -> Table:
    return {
        0: "image",
        1: "RGB image, values 0 to 255; normalisation is inside the model",
        3: {0: _Scalar(Uint8Flags, IMAGE_CONTENT), 1: {0: _Scalar(Int8Flags, RGB)}},
        4: [
            {0: _Scalar(Uint8Flags, NORMALIZATION), 1: {0: (0.0,), 1: (1.0,)}}
        ],  # mean, standard deviation
        5: {0: (255.0,), 1: (0.0,)},  # largest, least
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
    """One grey picture over the axes 1 and 2, as the schema wants a map of pixels."""
    spatial = {0: _Scalar(Int32Flags, 1), 1: _Scalar(Int32Flags, 2)}
    return {0: _Scalar(Uint8Flags, IMAGE_CONTENT), 1: {0: _Scalar(Int8Flags, GREY)}, 2: spatial}


def _file(name: str, description: str, kind: int) -> Table:
    return {0: name, 1: description, 2: _Scalar(Int8Flags, kind)}


def _output_names(model: bytes) -> list[str]:
    """The outputs by the names that the signature gives them, in the graph's own order."""
    root = schema.Model.GetRootAs(model)
    signature, graph = root.SignatureDefs(0), root.Subgraphs(0)
    names = {}
    for index in range(signature.OutputsLength()):
        output = signature.Outputs(index)
        names[output.TensorIndex()] = output.Name().decode()
    return [names[graph.Outputs(index)] for index in range(graph.OutputsLength())]


# === How it is written ===


def _finished(table: Table, identifier: bytes) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(_put(builder, table), identifier)
    return bytes(builder.Output())


def _put(builder: flatbuffers.Builder, value: Any) -> int:
    """Writes a string, bytes, a tuple of floats, a list of tables or a table; gives its offset."""
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
    for part in reversed(value):  # flatbuffers are written from their end
        prepend(part)
    return builder.EndVector()


class _AlignedBuffer(schema.BufferT):
    """A buffer that is written where the schema wants it (`force_align: 16`); the generated classes forget that."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        if self.data is not None:
            builder.Prep(ALIGNMENT, len(self.data))
        return super().Pack(builder)


def _with_entry(model: bytes, metadata: bytes) -> bytes:
    """The file with one more buffer, and one more entry of metadata that names it."""
    tables = schema.ModelT.InitFromPackedBuf(model, 0)
    tables.metadata = [
        *(tables.metadata or []),
        schema.MetadataT(name=ENTRY, buffer=len(tables.buffers)),
    ]
    tables.buffers = [*tables.buffers, schema.BufferT(data=np.frombuffer(metadata, np.uint8))]
    tables.buffers = [
        _AlignedBuffer(buffer.data, buffer.offset, buffer.size) for buffer in tables.buffers
    ]
    builder = flatbuffers.Builder(len(model))
    builder.Finish(tables.Pack(builder), b"TFL3")
    return bytes(builder.Output())
