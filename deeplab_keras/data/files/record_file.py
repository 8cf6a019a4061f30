"""Random access to the records of a TFRecord file and to the images stored in them.

An image in a record has a path like a file,
`records/train-00000-of-00004.tfrecord/OFFSET/NAME#KEY`, so all code that reads images and masks
from files also reads them from records (`archives.read_bytes`).
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from deeplab_keras.config import UserError
from deeplab_keras.io.foreign import reading

if TYPE_CHECKING:  # imported by functions, so that this module can be imported without TensorFlow
    import tensorflow as tf

# The feature names of the official DeepLab (its datasets/build_data.py).
IMAGE, IMAGE_FORMAT, NAME = "image/encoded", "image/format", "image/filename"
HEIGHT, WIDTH, CHANNELS = "image/height", "image/width", "image/channels"
LABEL, LABEL_FORMAT = "image/segmentation/class/encoded", "image/segmentation/class/format"

HEADER = 12  # bytes before a record: its length, and a checksum of the length
FOOTER = 4  # bytes after a record: its checksum
# The end of a record file's name. tensorflow-datasets uses the second form.
PATTERN = r"tfrecord(?:-\d+-of-\d+)?"
_MEMBER = re.compile(r"(\d+)/(.*)#([^#]+)", re.DOTALL)


def member_path(file: str, offset: int, name: str, key: str) -> str:
    """Returns the path of an image in a record file."""
    return f"{file}/{offset}/{name}#{key}"


def scan(path: str) -> Iterator[tuple[int, bytes]]:
    """Yields the offset and the content of each record of a file, and verifies the checksums.

    Raises:
        UserError: The file is damaged, truncated or not a record file.
    """
    import tensorflow as tf

    offset = 0
    try:
        # TensorFlow allocates memory for whatever length a header claims.
        count = _records_that_fit(path)
        records = tf.data.TFRecordDataset([path], buffer_size=1 << 20).take(count)
        for record in records.as_numpy_iterator():
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
            else "it is damaged or truncated there; build or download it again"
        )
        raise UserError(f"{path}: not a TFRecord file from byte {offset} on; {reason}") from error


def _records_that_fit(path: str) -> int:
    """Counts the records before the first one that would extend beyond the end of the file."""
    size, offset, count = os.path.getsize(path), 0, 0
    with open(path, "rb", buffering=0) as file:
        while offset + HEADER + FOOTER <= size:
            file.seek(offset)
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - offset - HEADER - FOOTER:
                break
            offset += HEADER + length + FOOTER
            count += 1
    return count


def read_record(
    path: tf.Tensor, offset: tf.Tensor | int = 0, buffer_size: tf.Tensor | int = 0
) -> tf.Tensor:
    """Reads one record inside a tf.data graph and verifies its checksums.

    Args:
        path: The path of the record file.
        offset: The byte at which the record begins.
        buffer_size: Number of bytes to read at once; 0: first the record's header, then the record.
    """
    import tensorflow as tf

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
    """Parses a record as a `tf.train.Example`.

    Raises:
        UserError: The record holds something else.
    """
    import tensorflow as tf

    try:
        return tf.train.Example.FromString(record)
    except Exception as error:  # DecodeError of one of protobuf's several implementations
        raise UserError(
            f"{path}: its records are not tf.train.Example protos; give the records of a dataset"
        ) from error


def feature(example: tf.train.Example, key: str) -> bytes | None:
    """Returns the bytes of a feature; None if the example has no bytes feature of that name."""
    if key not in example.features.feature:
        return None
    values = example.features.feature[key].bytes_list.value
    return values[0] if len(values) == 1 else None


class RecordFile:
    """A record file whose images are read by the last part of their path, `OFFSET/NAME#KEY`.

    Args:
        path: The path of the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self, member: str, limit: int = -1) -> bytes:
        """Reads the first `limit` bytes of an image, or all of them if `limit` is negative.

        Raises:
            OSError: The image does not exist.
        """
        match = _MEMBER.fullmatch(member)
        data = (
            feature(parse(self._record(int(match[1])), self.path), match[3])
            if match and member in self
            else None
        )
        if data is None:
            raise FileNotFoundError(2, "no such image in the records", f"{self.path}/{member}")
        return data if limit < 0 else data[:limit]

    def __contains__(self, member: str) -> bool:
        match = _MEMBER.fullmatch(member)
        return (
            match is not None and len(match[1]) < 20 and int(match[1]) < os.path.getsize(self.path)
        )

    def _record(self, offset: int) -> bytes:
        with open(self.path, "rb", buffering=0) as file:
            file.seek(offset)
            header = file.read(HEADER)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == HEADER else 0
            data = file.read(length) if length < os.path.getsize(self.path) else b""
        if len(data) != length or not data:
            raise OSError(5, "the record file is truncated or damaged", self.path)
        return data
