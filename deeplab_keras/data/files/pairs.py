"""Pairs of image and mask files as a source, and the quick check of a dataset before training."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.files.archives import opened, split_member
from deeplab_keras.data.files.decoding import decode, decode_image, decode_label, encoded, read_file
from deeplab_keras.data.files.mask_values import MaskValues
from deeplab_keras.data.files.mistakes import likely_mistake
from deeplab_keras.data.files.reading import (
    DECODE_ERRORS,
    BrokenFileError,
    FileUserError,
    LossyFileError,
    MissingFileError,
    label_size,
    open_picture,
    plain_label,
    read_image,
    read_label,
    turn_of,
)
from deeplab_keras.data.info import Color, DatasetInfo
from deeplab_keras.data.source import Source

if TYPE_CHECKING:  # imported by functions, so that this module can be imported without TensorFlow
    import tensorflow as tf

logger = logging.getLogger(__name__)

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

FULL_CHECK_LIMIT = 2000  # up to this many pairs, all are decoded before training starts
CHECK_SAMPLE = 200  # number of pairs that are decoded in larger datasets
PART = 1024  # items that threads are given at once
THREADS = 8

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """The image and mask files of a split, not checked yet.

    A path may lead into an archive; `archives.read_bytes` reads both kinds.

    Attributes:
        info: The classes.
        names: The name of each pair.
        images: The paths of the images.
        labels: The paths of the masks, which are image files or SBD's .mat files.
        label_map: Id in the mask files -> class id or ignore label; `None`: The masks already hold
            class ids.
        colors: Color in the mask files -> class id or ignore label, for masks that encode ids as
            colors; `None`: The masks hold ids.
        expected: The expected layout, for messages.
        available: The masks that there are, for messages.
    """

    info: DatasetInfo
    names: tuple[str, ...]
    images: tuple[str, ...]
    labels: tuple[str, ...]
    label_map: Mapping[int, int] | None = None
    colors: Mapping[Color, int] | None = None
    expected: str = ""
    available: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def load_ids(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads a pair, without mapping the ids to classes.

        Returns:
            The image, uint8 `[height, width, 3]` RGB, and the ids in the mask file, uint8
            `[height, width]`.

        Raises:
            UserError: A file is broken, or the sizes differ.
        """
        image_path, label_path = self.images[index], self.labels[index]
        ids = read_label(label_path, self.colors)
        image = read_image(image_path, (ids.shape[1], ids.shape[0]))
        require_equal(image_path, image.shape[1::-1], label_path, ids.shape[::-1])
        return image, ids

    def class_of_id(self) -> np.ndarray:
        """Maps each of the 256 possible ids of a mask, int32 `[256]`.

        The result is the class id, the ignore label, or -1 for an id that is not allowed.
        """
        own = {label: label for label in (*range(self.info.num_classes), self.info.ignore_label)}
        label_map = own if self.label_map is None else self.label_map
        return np.array([label_map.get(label, -1) for label in range(256)], np.int32)

    def take(self: P, chosen: Iterable[int]) -> P:
        """Returns the chosen pairs."""
        kept = list(chosen)
        names, images, labels = (
            tuple(files[i] for i in kept) for files in (self.names, self.images, self.labels)
        )
        return dataclasses.replace(self, names=names, images=images, labels=labels)


P = TypeVar("P", bound=Pairs)


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource(Pairs):
    """Image and mask files as a source.

    Attributes:
        plain: For each pair, whether TensorFlow's decoders read the image and the mask correctly;
            Pillow reads the others.
        checked: Whether all files were decoded before, so ids need no check while reading.
    """

    plain: tuple[tuple[bool, bool], ...] = ()
    checked: bool = False

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns image uint8 `[height, width, 3]` RGB and label uint8 `[height, width]`.

        Raises:
            UserError: A file is broken, the sizes differ, or an id is not one of the classes.
        """
        image, ids = self.load_ids(index)
        table = self.class_of_id()
        if (table[ids] < 0).any():
            require_known(self.labels[index], MaskValues.of(ids), table, self)
        return image, ids if self.label_map is None else table.astype(np.uint8)[ids]

    def values_in(self, index: int) -> MaskValues:
        """Returns the statistics of a mask file, after the checks of `load`."""
        image, ids = self.load_ids(index)
        values = MaskValues.of(ids)
        require_known(self.labels[index], values, self.class_of_id(), self)
        require_photograph(self.images[index], image, ids)
        return values

    def tf_load(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Does the same as `load` inside a tf.data graph; plain files are read by TensorFlow."""
        import tensorflow as tf

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
        """Returns functions that read the image file and the mask file inside a tf.data graph."""
        return functools.partial(read_file, index, self.images), functools.partial(
            read_file, index, self.labels
        )

    def tf_where(self, index: tf.Tensor) -> tf.Tensor:
        """Returns the path of the mask, inside a tf.data graph."""
        import tensorflow as tf

        return tf.gather(encoded(self.labels), index)

    def _image(self, index: int) -> np.ndarray:
        return read_image(self.images[index], label_size(self.labels[index]))

    def _ids(self, index: int) -> np.ndarray:
        return read_label(self.labels[index], self.colors)


# --- The check ---


class SizeUserError(BrokenFileError):
    """A mask whose size differs from its image's; --skip_broken_files skips the pair."""

    kind = "masks of another size than their image"


FIX_IDS = (
    "fix the mask, or add the missing classes; `scripts/check_dataset.py` shows where these pixels "
    "are"
)


class IdsUserError(FileUserError):
    """A mask with ids that are not classes; `values` are the statistics of the mask."""

    kind = "masks with ids outside the classes"
    values: MaskValues | None = None


def in_threads(
    function: Callable[[T], R], items: Iterable[T]
) -> Iterator[tuple[R | None, UserError | None]]:
    """Yields, for each item in order, what the function returns, or the `UserError` it raises."""

    def attempt(item: T) -> tuple[R | None, UserError | None]:
        try:
            return function(item), None
        except UserError as error:
            if error.__cause__:  # frames take memory, which adds up if all files are missing
                error.__cause__.__traceback__ = None
            return None, error.with_traceback(None)

    waiting = iter(items)
    with ThreadPoolExecutor(THREADS) as pool:
        # In parts: the pool keeps an object for each item that it is given.
        while part := list(itertools.islice(waiting, PART)):
            yield from pool.map(attempt, part)


def and_more(count: int) -> str:
    """Returns the part of a message that counts the other files with the same problem."""
    return f" (and {count - 1} more like it)" if count > 1 else ""


def require_equal(
    image: str, image_size: tuple[int, ...], label: str, label_size: tuple[int, ...]
) -> None:
    """Raises `UserError` if an image and its mask differ in size (width, height)."""
    if image_size != label_size:
        raise SizeUserError(
            f"{label}: the mask is {label_size[0]}x{label_size[1]} (width x height) but its image "
            f"{image} is {image_size[0]}x{image_size[1]}; both must have the same size",
            hint="fix the pair, or skip such pairs with `skip_broken_files`",
        )


def advised(errors: Sequence[UserError], total: int, available: str) -> list[UserError]:
    """Returns the errors without the advice to skip files if most pairs are broken.

    Skipping most of a dataset hides that the layout, or a download, is wrong.

    Args:
        errors: The errors of the pairs that failed, one each.
        total: The number of all pairs.
        available: The masks that there are; see `Pairs`.
    """
    broken = sum(isinstance(error, BrokenFileError) for error in errors)
    if 2 * broken <= total:
        return list(errors)
    share = f"{broken} of {total} pairs"
    hints: dict[type[UserError], str] = {
        MissingFileError: f"{share} lack a file or are broken, so the names or folders differ from "
        f"this layout{f': {available}' if available else ''}",
        LossyFileError: f"{share} are affected",
        SizeUserError: f"{share} are affected: export the masks at the size of their images",
    }
    other = f"{share} cannot be read: replace the files, for example by a new download"
    return [
        type(error)(error.message, hint=hints.get(type(error), other))
        if isinstance(error, BrokenFileError)
        else error
        for error in errors
    ]


def explained(
    errors: Sequence[UserError], info: DatasetInfo, label_map: Mapping[int, int] | None
) -> list[UserError]:
    """Returns the errors, those about ids with the likely mistake in all of these masks.

    A single mask may have too few values to recognize the mistake.
    """
    values = MaskValues()
    for error in errors:
        if isinstance(error, IdsUserError) and error.values is not None:
            values.add(error.values)
    found = likely_mistake(values, info, label_map) if values.present else ""
    return [
        IdsUserError(error.message, hint=found)
        if found and isinstance(error, IdsUserError)
        else error
        for error in errors
    ]


class SamePictureUserError(FileUserError):
    """An image that is its own mask."""

    kind = "masks among the images"


def require_photograph(path: str, image: np.ndarray, ids: np.ndarray) -> None:
    """Raises `UserError` if an image shows its mask, as when masks are among the images.

    The image may have the ids as gray levels, or stretched to the range from black to white.
    """
    highest = int(ids.max(initial=0))
    for factor in dict.fromkeys((1, 255 // max(highest, 1))):
        if (
            ids.size
            and (ids[::4, ::4] * factor == image[::4, ::4, 0]).all()
            and (ids[..., None] * factor == image).all()
            and np.ptp(ids)
        ):
            raise SamePictureUserError(
                f"{path}: this image equals its own mask; move the masks out of the images' folder"
            )


def require_known(path: str, values: MaskValues, class_of_id: np.ndarray, pairs: Pairs) -> None:
    """Raises `UserError` if a mask has ids that are not classes."""
    strange = [str(label) for label in sorted(values.present) if class_of_id[label] < 0]
    if strange:
        info = pairs.info
        if pairs.label_map is None:
            allowed = f"0 to {info.num_classes - 1}, and {info.ignore_label} for pixels to ignore"
        else:
            first_gap = np.argmin(np.append(class_of_id, -1) >= 0)
            allowed = f"0 to {first_gap - 1}"
        error = IdsUserError(
            f"{path}: the mask holds ids outside the classes: "
            f"{', '.join(strange[:8])}{', ...' if len(strange) > 8 else ''}; "
            f"allowed: {allowed}",
            hint=likely_mistake(values, info, pairs.label_map) or FIX_IDS,
        )
        error.values = values
        raise error


@dataclasses.dataclass(frozen=True)
class Look:
    """The result of checking the headers of a pair.

    Attributes:
        plain: Whether the image and the mask are plain (see `FileSource`).
        turn: What is done about the EXIF orientation of the image; "" if it has none.
    """

    plain: tuple[bool, bool]
    turn: str = ""


TURNED = "rotated by its EXIF orientation, to match its mask"
NOT_TURNED = "read as stored, without its EXIF orientation, to match its mask"


def check_headers(image: str, label: str, in_colors: bool = False) -> Look:
    """Checks the headers of an image and its mask.

    Args:
        image: The path of the image.
        label: The path of the mask.
        in_colors: Whether the mask encodes ids as colors.

    Raises:
        UserError: A file is missing or not an image, the mask is not a label map, or the sizes
            differ.
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
    return Look(
        (plain and not turned, not in_colors and plain_label(label)),
        TURNED if turned else NOT_TURNED if turn > 1 else "",
    )


def _say_turns(pairs: Pairs, looks: Mapping[int, Look]) -> None:
    for turn, count in Counter(look.turn for look in looks.values() if look.turn).items():
        first = next(pairs.images[i] for i, look in looks.items() if look.turn == turn)
        logger.warning("%s: %s%s", first, turn, and_more(count))


def _sift(
    config: DataConfig, check: Callable[[int], R], indices: Sequence[int], pairs: Pairs
) -> dict[int, R]:
    """Returns the result of the check for each index that passes it.

    Broken files are skipped if the config says so; any other failure is raised.
    """
    passed: dict[int, R] = {}
    errors: list[UserError] = []
    skipped = 0
    for index, (result, error) in zip(indices, in_threads(check, indices), strict=True):
        if error is None:
            passed[index] = result  # type: ignore[assignment]
        elif config.skip_broken_files and isinstance(error, BrokenFileError):
            logger.warning("skipped: %s", error)
            skipped += 1
        else:
            errors.append(error)
    if errors:
        errors = advised(errors, len(indices), pairs.available)
        first = explained(errors, pairs.info, pairs.label_map)[0]
        alike = sum(type(error) is type(first) for error in errors)
        raise type(first)(f"{first.text}{and_more(alike)}")
    if skipped:
        logger.warning(
            "%d of %d pairs of image and mask are skipped; see above", skipped, len(indices)
        )
    if not passed:
        raise UserError(
            f"`dataset_dir={config.dataset_dir}`: no pair of image and mask can be read"
        )
    return passed


def exists(path: str) -> bool:
    """Whether a file exists, which may be in an archive or a record file."""
    inside = split_member(path)
    return os.path.isfile(path) if inside is None else inside[1] in opened(inside[0])


def require_files(pairs: Pairs, index: int) -> None:
    """Raises `FileUserError` if a file of a pair does not exist or its name is not valid UTF-8."""
    for path in (pairs.images[index], pairs.labels[index]):
        if not path.isprintable() and path.encode(errors="replace").decode() != path:
            raise FileUserError(f"{path!a}: the name is not valid UTF-8; rename the file")
        if not exists(path):
            raise MissingFileError(
                f"{path}: this file does not exist; {pairs.expected}",
                hint="skip such pairs with `skip_broken_files`",
            )


def open_pairs(
    config: DataConfig, pairs: Pairs, looks: Mapping[int, Look] | None = None
) -> FileSource:
    """Returns a source of the files after the quick check.

    The check reads all headers and the pixels of all files, or of a sample if there are more than
    `FULL_CHECK_LIMIT` pairs.

    Args:
        config: The folder of the dataset, and whether broken files are skipped.
        pairs: The files.
        looks: The result of checking the headers by the index of the pair, if already known.

    Raises:
        UserError: A file is missing, broken or not a mask, sizes differ, or an id is not one of the
            classes. The message names the first such file.
    """

    def look(index: int) -> Look:
        require_files(pairs, index)
        return check_headers(pairs.images[index], pairs.labels[index], pairs.colors is not None)

    looks = _sift(config, look, range(len(pairs)), pairs) if looks is None else looks
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
    good = _sift(config, lambda index: values.add(source.values_in(index)), sample, pairs)
    if len(good) < len(sample):
        source = dataclasses.replace(source.take(good), plain=tuple(source.plain[i] for i in good))
    if hint := likely_mistake(values, pairs.info, pairs.label_map) if pairs.colors is None else "":
        raise UserError(f"`dataset_dir={config.dataset_dir}`: the masks hold {hint}")
    return source


def nothing_labeled(config: DataConfig, split: str, info: DatasetInfo) -> str:
    """Returns the message about a split in which all pixels are ignored."""
    return (
        f"`dataset_dir={config.dataset_dir}`: no mask of the split {split!r} has a labeled "
        f"pixel: all are {info.ignore_label}, the ignore label; label them, or give another "
        "`ignore_label`"
    )


def require_labeled(source: Source, config: DataConfig, split: str) -> None:
    """Refuses a split whose masks hold only the ignore label.

    Reads pairs until one has a labeled pixel, usually the first, but at most `FULL_CHECK_LIMIT`.

    Raises:
        UserError: No mask has a labeled pixel.
    """
    count = min(len(source), FULL_CHECK_LIMIT)
    for index in np.linspace(0, len(source) - 1, count).astype(int).tolist():
        _, label = source.load(index)
        if (label != source.info.ignore_label).any():
            return
    raise UserError(nothing_labeled(config, split, source.info))
