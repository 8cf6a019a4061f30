"""Pairs of image and mask files: the source made of them, and the quick check of a whole dataset before training."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import tensorflow as tf
from absl import logging

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.files.archives import opened, split_member
from deeplab_keras.data.files.decoding import decode, decode_image, decode_label, encoded, read_file
from deeplab_keras.data.files.mask_values import MaskValues
from deeplab_keras.data.files.mistakes import likely_mistake
from deeplab_keras.data.files.reading import (
    DECODE_ERRORS,
    BrokenFileError,
    FileUserError,
    MissingFileError,
    label_size,
    open_picture,
    read_image,
    read_label,
    read_png_header,
    turn_of,
)
from deeplab_keras.data.info import Colour, DatasetInfo
from deeplab_keras.data.source import Source

__all__ = [
    "DECODE_ERRORS",
    "BrokenFileError",
    "FileSource",
    "Pairs",
    "in_threads",
    "open_pairs",
    "read_image",
    "read_label",
]

FULL_CHECK_LIMIT = 2000  # up to so many pairs are all decoded before training starts
CHECK_SAMPLE = 200  # and of more pairs so many
THREADS = 8

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """The image and mask files of a split, found but not yet looked at.

    A path may lead into an archive; `archives.read_bytes` reads both kinds.

    Attributes:
        info: classes.
        names: a name for each pair.
        images: paths of JPEG or PNG files.
        labels: paths of PNG files (or SBD's .mat).
        label_map: id in the mask files -> class id or ignore label; None: the masks hold these
            themselves.
        colours: colour in the mask files -> class id or ignore label, where the colour counts and
            not the id.
        expected: how the files should lie, for messages.
    """

    info: DatasetInfo
    names: tuple[str, ...]
    images: tuple[str, ...]
    labels: tuple[str, ...]
    label_map: Mapping[int, int] | None = None
    colours: Mapping[Colour, int] | None = None
    expected: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def load_ids(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 `[height, width, 3]` RGB and, uint8 `[height, width]`, what stands in the mask's file.

        Raises:
            UserError: a file is broken, or the sizes differ; names the file.
        """
        image_path, label_path = self.images[index], self.labels[index]
        ids = read_label(label_path, self.colours)
        image = read_image(image_path, (ids.shape[1], ids.shape[0]))
        require_equal(image_path, image.shape[1::-1], label_path, ids.shape[::-1])
        return image, ids

    def class_of_id(self) -> np.ndarray:
        """For each of the 256 ids that a mask can hold its class id or the ignore label, or -1: not allowed."""
        own = {label: label for label in (*range(self.info.num_classes), self.info.ignore_label)}
        label_map = own if self.label_map is None else self.label_map
        return np.array([label_map.get(label, -1) for label in range(256)], np.int32)

    def take(self: P, chosen: Iterable[int]) -> P:
        """Some of the pairs."""
        kept = list(chosen)
        names, images, labels = (
            tuple(files[i] for i in kept) for files in (self.names, self.images, self.labels)
        )
        return dataclasses.replace(self, names=names, images=images, labels=labels)


P = TypeVar("P", bound=Pairs)


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource(Pairs):
    """A source of pairs.

    Attributes:
        plain: for each pair, whether TensorFlow's decoders read image and mask rightly; Pillow
            reads the others.
        checked: every file was decoded before, so ids outside the classes need no watching for.
    """

    plain: tuple[tuple[bool, bool], ...] = ()
    checked: bool = False

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 `[height, width, 3]` RGB and label uint8 `[height, width]`.

        Raises:
            UserError: a file is broken, the sizes differ, or an id is outside the classes; names
                the file.
        """
        image, ids = self.load_ids(index)
        table = self.class_of_id()
        if (table[ids] < 0).any():
            require_known(self.labels[index], MaskValues.of(ids), table, self)
        return image, ids if self.label_map is None else table.astype(np.uint8)[ids]

    def values_in(self, index: int) -> MaskValues:
        """The values in a mask's file, after all that `load` looks at."""
        image, ids = self.load_ids(index)
        values = MaskValues.of(ids)
        require_known(self.labels[index], values, self.class_of_id(), self)
        require_photograph(self.images[index], image, ids)
        return values

    def tf_load(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`load` as a part of a tf.data graph, by TensorFlow's own decoders where they read the file rightly."""
        plain_images, plain_labels = (
            zip(*self.plain, strict=True) if self.plain else ((False,), (False,))
        )
        image_bytes, label_bytes = self.tf_readers(index)
        image = decode(index, plain_images, image_bytes, decode_image, self._image)
        label = decode(index, plain_labels, label_bytes, decode_label, self._ids)
        image, label = tf.ensure_shape(image, (None, None, 3)), tf.ensure_shape(label, (None, None))
        if self.checked and self.label_map is None:
            return image, label
        classes = tf.gather(self.class_of_id(), tf.cast(label, tf.int32))
        fine = tf.reduce_all(classes >= 0) & tf.reduce_all(tf.shape(image)[:2] == tf.shape(label))
        with tf.control_dependencies(
            [] if self.checked else [tf.debugging.Assert(fine, [self.tf_where(index)])]
        ):
            return image, tf.cast(classes, tf.uint8)

    def tf_readers(
        self, index: tf.Tensor
    ) -> tuple[Callable[[], tf.Tensor], Callable[[], tf.Tensor]]:
        """What gives the bytes of the image's file and of the mask's, as parts of a tf.data graph."""
        return functools.partial(read_file, index, self.images), functools.partial(
            read_file, index, self.labels
        )

    def tf_where(self, index: tf.Tensor) -> tf.Tensor:
        """The mask's path, as a part of a tf.data graph."""
        return tf.gather(encoded(self.labels), index)

    def _image(self, index: int) -> np.ndarray:
        return read_image(self.images[index], label_size(self.labels[index]))

    def _ids(self, index: int) -> np.ndarray:
        return read_label(self.labels[index], self.colours)


# --- The check ---


class SizeUserError(BrokenFileError):
    """A mask of another size than its image; --skip_broken_files leaves the pair out."""

    kind = "masks of another size than their image"


class IdsUserError(FileUserError):
    """A mask with values that are no classes."""

    kind = "masks with ids outside the classes"


def in_threads(
    function: Callable[[T], R], items: Iterable[T]
) -> Iterator[tuple[R | None, UserError | None]]:
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


def require_equal(
    image: str, image_size: tuple[int, ...], label: str, label_size: tuple[int, ...]
) -> None:
    """Raises UserError where an image and its mask differ in size (width, height)."""
    if image_size != label_size:
        raise SizeUserError(
            f"{label}: the mask is {label_size[0]}x{label_size[1]} (width x height) but its image "
            f"{image} is "
            f"{image_size[0]}x{image_size[1]}; both must have one size: mend the pair, or leave "
            "such pairs out with "
            "`skip_broken_files`"
        )


class SamePictureUserError(FileUserError):
    """An image that is its own mask."""

    kind = "masks among the images"


def require_photograph(path: str, image: np.ndarray, ids: np.ndarray) -> None:
    """Raises UserError where an image is its own mask: masks that lie among the images were taken for photographs."""
    if (
        ids.size
        and (ids[::4, ::4] == image[::4, ::4, 0]).all()
        and (ids[..., None] == image).all()
        and np.ptp(ids)
    ):
        raise SamePictureUserError(
            f"{path}: this image equals its own mask; move the masks out of the images' folder"
        )


def require_known(path: str, values: MaskValues, class_of_id: np.ndarray, pairs: Pairs) -> None:
    """Raises UserError where values of a mask are no classes."""
    strange = [str(label) for label in sorted(values.present) if class_of_id[label] < 0]
    if strange:
        info = pairs.info
        allowed = (
            f"0 to {np.argmin(np.append(class_of_id, -1) >= 0) - 1}"  # the first gap ends them
        )
        if pairs.label_map is None:
            allowed = (
                f"0 to {info.num_classes - 1} and {info.ignore_label} for pixels that do not count"
            )
        hint = likely_mistake(values, info, pairs.label_map)
        hint = (
            hint
            or "mend the mask, or name the classes that it has; scripts/check_dataset.py draws "
            "where these pixels are"
        )
        raise IdsUserError(
            f"{path}: the mask holds ids outside the classes: "
            f"{', '.join(strange[:8])}{', ...' if len(strange) > 8 else ''}; "
            f"allowed are {allowed}; {hint}"
        )


@dataclasses.dataclass(frozen=True)
class Look:
    """What the headers of a pair say: whether both are plain (see FileSource), and the image's EXIF turn."""

    plain: tuple[bool, bool]
    turn: str = ""


TURNED, NOT_TURNED = (
    "turned by its EXIF tag, as its mask is",
    "read as stored, without its EXIF turn, as its mask fits that",
)


def check_headers(image: str, label: str, in_colours: bool = False) -> Look:
    """Looks at the first bytes of an image and its mask.

    Raises:
        UserError: a file is missing or no picture, the mask is no map of ids, or the sizes differ.
    """
    with open_picture(image, header=True) as picture:
        size, turn, kind = picture.size, turn_of(picture), picture.format
        plain = picture.mode in ("RGB", "L") and kind in ("JPEG", "PNG")
    mask = label_size(label)
    if kind == "PNG" and size != mask and size[::-1] == mask:  # its EXIF data may be at the end
        with open_picture(image) as picture:
            turn = turn_of(picture, late=True)
    turned = turn >= 5 and size != mask and size[::-1] == mask
    require_equal(image, size[::-1] if turned else size, label, mask)
    plain_label = not label.endswith(".mat") and not in_colours and read_png_header(label).plain
    return Look(
        (plain and not turned, plain_label), TURNED if turned else NOT_TURNED if turn > 1 else ""
    )


def _say_turns(pairs: Pairs, looks: Mapping[int, Look]) -> None:
    for turn, count in Counter(look.turn for look in looks.values() if look.turn).items():
        first = next(pairs.images[i] for i, look in looks.items() if look.turn == turn)
        logging.warning("%s: %s%s", first, turn, and_more(count))


def _sift(config: DataConfig, check: Callable[[int], R], indices: Sequence[int]) -> dict[int, R]:
    """What the check returns for each index that passes it; files that fail are left out only if the config says so."""
    passed: dict[int, R] = {}
    errors: list[UserError] = []
    skipped = 0
    for index, (result, error) in zip(indices, in_threads(check, indices), strict=True):
        if error is None:
            passed[index] = result  # type: ignore[assignment]
        elif config.skip_broken_files and isinstance(error, BrokenFileError):
            logging.warning("left out: %s", error)
            skipped += 1
        else:
            errors.append(error)
    if errors:
        alike = sum(type(error) is type(errors[0]) for error in errors)
        raise type(errors[0])(f"{errors[0].text}{and_more(alike)}")
    if skipped:
        logging.warning(
            "%d of %d pairs of image and mask are left out, each named above", skipped, len(indices)
        )
    if not passed:
        raise UserError(
            f"`dataset_dir={config.dataset_dir}`: not one pair of image and mask can be read"
        )
    return passed


def _exists(path: str) -> bool:
    inside = split_member(path)
    return os.path.isfile(path) if inside is None else inside[1] in opened(inside[0])


def require_files(pairs: Pairs, index: int) -> None:
    """Raises FileUserError where a file of a pair is not there, or cannot be named in a graph or a report."""
    for path in (pairs.images[index], pairs.labels[index]):
        if not path.isprintable() and path.encode(errors="replace").decode() != path:
            raise FileUserError(f"{path!a}: the name is not UTF-8 text; rename the file")
        if not _exists(path):
            raise MissingFileError(
                f"{path}: there is no such file; {pairs.expected}; leave such pairs out with "
                "`skip_broken_files`"
            )


def open_pairs(
    config: DataConfig, pairs: Pairs, looks: Mapping[int, Look] | None = None
) -> FileSource:
    """A source of these files after the quick check: all headers, and the pixels of all files or (of many) of a sample.

    Args:
        config: where the dataset lies, and whether broken files are left out.
        pairs: the files.
        looks: what the headers say, by a pair's number, where that is known.

    Raises:
        UserError: a file is missing, broken or no mask, two sizes differ, or an id is outside the
            classes; names the first one.
    """

    def look(index: int) -> Look:
        require_files(pairs, index)
        return check_headers(pairs.images[index], pairs.labels[index], pairs.colours is not None)

    looks = _sift(config, look, range(len(pairs))) if looks is None else looks
    _say_turns(pairs, looks)
    kept = pairs.take(looks)
    complete = len(looks) <= FULL_CHECK_LIMIT or config.skip_broken_files
    fields = {field.name: getattr(kept, field.name) for field in dataclasses.fields(Pairs)}
    source = FileSource(
        **fields, plain=tuple(look.plain for look in looks.values()), checked=complete
    )
    sample = (
        range(len(source))
        if complete
        else np.linspace(0, len(source) - 1, CHECK_SAMPLE).astype(int).tolist()
    )
    values = MaskValues()
    good = _sift(config, lambda index: values.add(source.values_in(index)), sample)
    if len(good) < len(sample):
        source = dataclasses.replace(source.take(good), plain=tuple(source.plain[i] for i in good))
    if hint := likely_mistake(values, pairs.info, pairs.label_map) if pairs.colours is None else "":
        raise UserError(f"`dataset_dir={config.dataset_dir}`: the masks hold {hint}")
    return source


def nothing_labelled(config: DataConfig, split: str, info: DatasetInfo) -> str:
    """The message about a split whose masks are ignored as a whole."""
    return (
        f"`dataset_dir={config.dataset_dir}`: no mask of the split {split!r} has a labelled "
        f"pixel: all are {info.ignore_label}, "
        "which is ignored; label them, or give another `ignore_label`"
    )


def require_labelled(source: Source, config: DataConfig, split: str) -> None:
    """Refuses a split that trains or measures nothing, because its masks hold the ignore label alone.

    Reads pairs until one has a labelled pixel, which is mostly the first; no more than
    `FULL_CHECK_LIMIT`.

    Raises:
        UserError: none has.
    """
    count = min(len(source), FULL_CHECK_LIMIT)
    for index in np.linspace(0, len(source) - 1, count).astype(int).tolist():
        _, label = source.load(index)
        if (label != source.info.ignore_label).any():
            return
    raise UserError(nothing_labelled(config, split, source.info))
