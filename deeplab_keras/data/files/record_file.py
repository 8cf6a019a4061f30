"""A TFRecord file as something that single records, and the pictures in them, are read out of by their place.

A picture in a record has a path like any other,
`records/train-00000-of-00004.tfrecord/OFFSET/NAME#KEY`, so that all that reads images and masks
from files reads them from records too (`archives.read_bytes`).
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from deeplab_keras.config import UserError
from deeplab_keras.io.foreign import reading

# The features' names of the official DeepLab (its datasets/build_data.py).
IMAGE, IMAGE_FORMAT, NAME = "image/encoded", "image/format", "image/filename"
HEIGHT, WIDTH, CHANNELS = "image/height", "image/width", "image/channels"
LABEL, LABEL_FORMAT = "image/segmentation/class/encoded", "image/segmentation/class/format"

HEADER, FOOTER = (
    12,
    4,
)  # bytes around a record: its length with a checksum of that, and its own checksum
# the end of a record file's name; in the second form tensorflow-datasets has it
PATTERN = r"tfrecord(?:-\d+-of-\d+)?"
_MEMBER = re.compile(r"(\d+)/(.*)#([^#]+)", re.DOTALL)


def member_path(file: str, offset: int, name: str, key: str) -> str:
    """The path of one picture in a record file."""
    return f"{file}/{offset}/{name}#{key}"


def scan(path: str) -> Iterator[tuple[int, bytes]]:
    """Offset and content of each record of a file, their checksums verified.

    Raises:
        UserError: the file is damaged, cut off or no record file.
    """
    offset = 0
    try:
        count = _records_that_fit(
            path
        )  # TensorFlow takes memory for whatever length a header claims
        for record in (
            tf.data.TFRecordDataset([path], buffer_size=1 << 20).take(count).as_numpy_iterator()
        ):
            yield offset, record
            offset += HEADER + len(record) + FOOTER
        if offset < os.path.getsize(path):
            raise EOFError
    except Exception as error:
        with reading(path, "a TFRecord file"), open(path, "rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        reason = (
            "it is compressed; unpack it with gunzip"
            if compressed
            else "damaged or cut off there; make or fetch it anew"
        )
        raise UserError(f"{path}: not a TFRecord file from byte {offset} on; {reason}") from error


def _records_that_fit(path: str) -> int:
    """The number of records up to the first one whose header gives a length beyond the end of the file."""
    size, offset, count = os.path.getsize(path), 0, 0
    with open(path, "rb", buffering=0) as file:
        while offset + HEADER + FOOTER <= size:
            (length,) = struct.unpack("<Q", os.pread(file.fileno(), 8, offset))
            if length > size - offset - HEADER - FOOTER:
                break
            offset += HEADER + length + FOOTER
            count += 1
    return count


def read_record(
    path: tf.Tensor, offset: tf.Tensor | int = 0, buffer_size: tf.Tensor | int = 0
) -> tf.Tensor:
    """The bytes of one record as a part of a tf.data graph, its checksums verified.

    Args:
        path: of the file.
        offset: where the record begins.
        buffer_size: bytes that are read at once; 0: the record's header, then the record.
    """
    records = tf.raw_ops.TFRecordDatasetV2(
        filenames=[path],
        compression_type="",
        buffer_size=tf.cast(buffer_size, tf.int64),
        byte_offsets=[tf.cast(offset, tf.int64)],
    )
    kind: dict[str, Any] = {"output_types": [tf.string], "output_shapes": [[]]}
    first = tf.raw_ops.TakeDataset(input_dataset=records, count=1, **kind)
    return tf.raw_ops.DatasetToSingleElement(dataset=first, **kind)[0]


def parse(record: bytes, path: str) -> tf.train.Example:
    """A record as the tf.train.Example that it holds.

    Raises:
        UserError: it holds something else.
    """
    try:
        return tf.train.Example.FromString(record)
    except Exception as error:  # DecodeError of one of protobuf's several implementations
        raise UserError(
            f"{path}: its records are no tf.train.Example; these are not the records of a dataset"
        ) from error


def feature(example: tf.train.Example, key: str) -> bytes | None:
    """The bytes of a feature, or None where there are none of that name."""
    if key not in example.features.feature:
        return None
    values = example.features.feature[key].bytes_list.value
    return values[0] if len(values) == 1 else None


class RecordFile:
    """One record file, to read pictures out of by their paths' last parts, `OFFSET/NAME#KEY`.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self, member: str, limit: int = -1) -> bytes:
        """A picture's first `limit` bytes, or all of them.

        Raises:
            OSError: there is no such picture.
        """
        match = _MEMBER.fullmatch(member)
        data = (
            feature(parse(self._record(int(match[1])), self.path), match[3])
            if match and member in self
            else None
        )
        if data is None:
            raise FileNotFoundError(2, "no such picture in the records", f"{self.path}/{member}")
        return data if limit < 0 else data[:limit]

    def __contains__(self, member: str) -> bool:
        match = _MEMBER.fullmatch(member)
        return (
            match is not None and len(match[1]) < 20 and int(match[1]) < os.path.getsize(self.path)
        )

    def _record(self, offset: int) -> bytes:
        with open(self.path, "rb", buffering=0) as file:
            header = os.pread(file.fileno(), HEADER, offset)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == HEADER else 0
            data = (
                os.pread(file.fileno(), length, offset + HEADER)
                if length < os.path.getsize(self.path)
                else b""
            )
        if len(data) != length or not data:
            raise OSError(5, "the record file ends before it, or is damaged", self.path)
        return data
