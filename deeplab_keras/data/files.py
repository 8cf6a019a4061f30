"""Pairs of image and mask files: reading them rightly, and the quick check of a whole dataset before training.

Palette masks are read as the ids they hold, never as the colours they show.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image, UnidentifiedImageError

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.info import DatasetInfo

FULL_CHECK_LIMIT = 2000  # up to so many pairs are all decoded before training starts
CHECK_SAMPLE = 200  # and of more pairs so many
THREADS = 8
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

T = TypeVar("T")
R = TypeVar("R")


class BrokenFileError(UserError):
    """A file that cannot be decoded; --skip_broken_files leaves it out."""


def _broken(path: str, error: Exception | str) -> BrokenFileError:
    reason = "not a picture" if isinstance(error, UnidentifiedImageError) else error
    return BrokenFileError(f"{path}: cannot be decoded ({reason}); replace it, or leave such files out with --skip_broken_files")


def read_image(path: str) -> np.ndarray:
    """An image file as uint8 `[height, width, 3]` RGB.

    Raises:
        BrokenFileError: the file cannot be decoded.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith("I"):  # 16-bit grey, whose high byte counts
                grey = (np.asarray(picture) >> 8).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=-1)
            return np.asarray(picture.convert("RGB"))
    except DECODE_ERRORS as error:
        raise _broken(path, error) from error


@dataclasses.dataclass(frozen=True)
class PngHeader:
    """What a PNG file's first bytes say."""

    width: int
    height: int
    bit_depth: int
    colour_type: int

    GREY, PALETTE = 0, 3

    @property
    def plain(self) -> bool:
        """One byte a pixel that is the id itself, so that any decoder reads it rightly."""
        return self.colour_type == self.GREY and self.bit_depth == 8


def read_png_header(path: str) -> PngHeader:
    """Reads the header of a mask.

    Raises:
        BrokenFileError: the file is no PNG.
        UserError: it is a colour picture, not a map of ids.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(26)
    except OSError as error:
        raise _broken(path, str(error.strerror)) from error
    if len(start) < 26 or start[:8] != b"\x89PNG\r\n\x1a\n":
        raise _broken(path, "not a PNG file")
    header = PngHeader(*struct.unpack(">IIBB", start[16:26]))
    if header.colour_type not in (PngHeader.GREY, PngHeader.PALETTE):
        raise UserError(
            f"{path}: the mask is a colour picture; a mask has one channel (grey or palette) with each pixel's class id"
        )
    return header


def read_label(path: str) -> np.ndarray:
    """A mask as uint8 `[height, width]` of the ids that it holds, whatever colours or greys they are shown with.

    Raises:
        BrokenFileError: the file cannot be decoded.
        UserError: it is no map of ids.
    """
    header = read_png_header(path)
    try:
        with Image.open(path) as picture:
            ids = np.asarray(picture)
    except DECODE_ERRORS as error:
        raise _broken(path, error) from error
    if header.colour_type == PngHeader.GREY and header.bit_depth in (2, 4):
        ids = ids // (255 // (2**header.bit_depth - 1))  # Pillow spreads the few greys over 0..255
    if ids.max(initial=0) > 255:
        raise UserError(f"{path}: the mask holds the id {ids.max()}; ids are 0 to 255")
    return ids.astype(np.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource:
    """Pairs of an image file and a mask file.

    Attributes:
        info: classes.
        names: a name for each pair.
        images: paths of JPEG or PNG files.
        labels: paths of PNG files.
        plain: for each pair, whether TensorFlow's decoders read image and mask rightly; Pillow reads the others.
        checked: every file was decoded before, so ids outside the classes need no watching for.
        label_map: id in the mask files -> class id or ignore label; None: the masks hold these themselves.
    """

    info: DatasetInfo
    names: tuple[str, ...]
    images: tuple[str, ...]
    labels: tuple[str, ...]
    plain: tuple[tuple[bool, bool], ...] = ()
    checked: bool = False
    label_map: Mapping[int, int] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 `[height, width, 3]` RGB and label uint8 `[height, width]`.

        Raises:
            UserError: a file is broken, the sizes differ, or an id is outside the classes; names the file.
        """
        image_path, label_path = self.images[index], self.labels[index]
        image, label = read_image(image_path), read_label(label_path)
        _require_equal(image_path, image.shape[1::-1], label_path, label.shape[::-1])
        table = self._class_of_id()
        _require_known(label_path, label, table, self.info if self.label_map is None else None)
        return image, label if self.label_map is None else table.astype(np.uint8)[label]

    def _class_of_id(self) -> np.ndarray:
        """For each of the 256 ids that a mask can hold its class id or the ignore label, or -1: not allowed."""
        own = {label: label for label in (*range(self.info.num_classes), self.info.ignore_label)}
        label_map = own if self.label_map is None else self.label_map
        return np.array([label_map.get(label, -1) for label in range(256)], np.int32)

    def tf_load(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`load` as a part of a tf.data graph, by TensorFlow's own decoders where they read the file rightly."""
        plain_images, plain_labels = zip(*self.plain, strict=True) if self.plain else ((False,), (False,))
        image_path, label_path = tf.gather(self.images, index), tf.gather(self.labels, index)
        image = _decode(image_path, index, plain_images, _decode_image, read_image)
        label = _decode(label_path, index, plain_labels, _decode_label, read_label)
        image, label = tf.ensure_shape(image, (None, None, 3)), tf.ensure_shape(label, (None, None))
        if self.checked and self.label_map is None:
            return image, label
        classes = tf.gather(self._class_of_id(), tf.cast(label, tf.int32))
        fine = tf.reduce_all(classes >= 0) & tf.reduce_all(tf.shape(image)[:2] == tf.shape(label))
        with tf.control_dependencies([] if self.checked else [tf.debugging.Assert(fine, [label_path])]):
            return image, tf.cast(classes, tf.uint8)


def _decode_image(path: tf.Tensor) -> tf.Tensor:
    # This op reads PNG too. The accurate DCT gives the pixels that Pillow and OpenCV give.
    return tf.io.decode_jpeg(tf.io.read_file(path), channels=3, dct_method="INTEGER_ACCURATE")


def _decode_label(path: tf.Tensor) -> tf.Tensor:
    return tf.io.decode_png(tf.io.read_file(path), channels=1)[..., 0]


def _decode(
    path: tf.Tensor,
    index: tf.Tensor,
    plain: Sequence[bool],
    fast: Callable[[tf.Tensor], tf.Tensor],
    read: Callable[[str], np.ndarray],
) -> tf.Tensor:
    def by_pillow() -> tf.Tensor:
        # Inside a graph the name comes as bytes, outside as an array.
        return tf.numpy_function(lambda name: read(os.fsdecode(np.asarray(name).item())), [path], tf.uint8)

    if all(plain):
        return fast(path)
    return tf.cond(tf.gather(list(plain), index), lambda: fast(path), by_pillow) if any(plain) else by_pillow()


# --- The check ---


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[R | None, UserError | None]]:
    """For each item in order what the function returns, or the UserError that it raises."""

    def attempt(item: T) -> tuple[R | None, UserError | None]:
        try:
            return function(item), None
        except UserError as error:
            return None, error

    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(attempt, items)


def and_more(count: int) -> str:
    """How many files beside the first have the same trouble."""
    return f" (and {count - 1} more like it)" if count > 1 else ""


def _require_equal(image: str, image_size: tuple[int, ...], label: str, label_size: tuple[int, ...]) -> None:
    if image_size != label_size:
        raise UserError(
            f"{label}: the mask is {label_size[0]}x{label_size[1]} (width x height) but its image {image} is "
            f"{image_size[0]}x{image_size[1]}; both must have one size"
        )


def _require_known(path: str, label: np.ndarray, class_of_id: np.ndarray, info: DatasetInfo | None) -> None:
    present = np.bincount(label.ravel(), minlength=256) > 0
    strange = np.flatnonzero(present & (class_of_id < 0)).astype(str).tolist()
    if strange:
        allowed = f"0 to {np.argmin(np.append(class_of_id, -1) >= 0) - 1}"  # the first gap ends them
        if info is not None:
            allowed = f"0 to {info.num_classes - 1} and {info.ignore_label} for pixels that do not count"
        raise UserError(
            f"{path}: the mask holds ids outside the classes: {', '.join(strange[:8])}{', ...' * (len(strange) > 8)}; "
            f"allowed are {allowed}"
        )


def check_headers(image: str, label: str) -> tuple[bool, bool]:
    """Whether image and mask are plain (see FileSource); reads a few bytes of each.

    Raises:
        UserError: a file is no picture, the mask is no map of ids, or the sizes differ.
    """
    try:
        with Image.open(image) as picture:
            size, plain = picture.size, picture.mode in ("RGB", "L") and picture.format in ("JPEG", "PNG")
    except DECODE_ERRORS as error:
        raise _broken(image, error) from error
    header = read_png_header(label)
    _require_equal(image, size, label, (header.width, header.height))
    return plain, header.plain


def _sift(config: DataConfig, check: Callable[[int], R], indices: Sequence[int]) -> dict[int, R]:
    """What the check returns for each index that passes it; files that fail are left out only if the config says so."""
    passed: dict[int, R] = {}
    errors, skipped = [], 0
    for index, (result, error) in zip(indices, in_threads(check, indices), strict=True):
        if error is None:
            passed[index] = result  # type: ignore[assignment]
        elif config.skip_broken_files and isinstance(error, BrokenFileError):
            logging.warning("left out: %s", error)
            skipped += 1
        else:
            errors.append(error)
    if errors:
        raise type(errors[0])(f"{errors[0]}{and_more(len(errors))}")
    if skipped:
        logging.warning("%d of %d pairs of image and mask are left out because a file is broken", skipped, len(indices))
    if not passed:
        raise UserError(f"--dataset_dir={config.dataset_dir}: not one pair of image and mask can be read")
    return passed


def open_pairs(
    config: DataConfig,
    info: DatasetInfo,
    names: Sequence[str],
    images: Sequence[str],
    labels: Sequence[str],
    label_map: Mapping[int, int] | None = None,
) -> FileSource:
    """A source of these files after the quick check: all headers, and the pixels of all files or (of many) of a sample.

    Raises:
        UserError: a file is broken or no mask, two sizes differ, or an id is outside the classes; names the first one.
    """

    def source_of(plain: dict[int, tuple[bool, bool]], checked: bool) -> FileSource:
        chosen_names, chosen_images, chosen_labels = (tuple(values[i] for i in plain) for values in (names, images, labels))
        return FileSource(info, chosen_names, chosen_images, chosen_labels, tuple(plain.values()), checked, label_map)

    plain = _sift(config, lambda index: check_headers(images[index], labels[index]), range(len(names)))
    complete = len(plain) <= FULL_CHECK_LIMIT or config.skip_broken_files
    source = source_of(plain, complete)
    sample = range(len(source)) if complete else np.linspace(0, len(source) - 1, CHECK_SAMPLE).astype(int).tolist()
    good = _sift(config, lambda index: source.load(index) is None, sample)
    if len(good) < len(sample):
        source = source_of({i: flags for k, (i, flags) in enumerate(plain.items()) if k in good}, complete)
    return source


def dataset_root(config: DataConfig) -> Path:
    """The dataset's folder.

    Raises:
        UserError: --dataset_dir is not given or no folder.
    """
    if not config.dataset_dir:
        raise UserError(f"--dataset={config.dataset} needs --dataset_dir=FOLDER, the folder that holds the dataset")
    root = Path(config.dataset_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"--dataset_dir={config.dataset_dir}: there is no such folder")
    return root
