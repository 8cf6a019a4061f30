"""What a dataset's labels mean: class names, colours, and the label that counts nowhere."""

from __future__ import annotations

import dataclasses
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

from deeplab_keras.config import UserError

Colour = tuple[int, int, int]

MAX_CLASSES = 256  # label maps are uint8
NO_NAME = re.compile(r"class \d+")  # of a class without a name


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The classes of a dataset; saved beside every checkpoint as dataset.json.

    Attributes:
        name: the dataset's name.
        class_names: the name of class id 0, 1, 2, ...
        palette: the RGB colour of each class, for pictures.
        ignore_label: id in the label maps that counts neither in the loss nor in a metric.
    """

    name: str
    class_names: tuple[str, ...]
    palette: tuple[Colour, ...]
    ignore_label: int = 255

    def __post_init__(self) -> None:
        names, colors = self.class_names, self.palette
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise UserError(
                f"dataset {self.name!r}: class_names must be a list of text. Received: "
                f"{str(names)[:80]}"
            )
        if not isinstance(colors, list | tuple) or not all(_is_color(color) for color in colors):
            raise UserError(
                f"dataset {self.name!r}: palette must be a list of [red, green, blue]. Received: "
                f"{str(colors)[:80]}"
            )
        ignored = self.ignore_label
        if not isinstance(ignored, numbers.Integral) or isinstance(ignored, bool):
            raise UserError(
                f"dataset {self.name!r}: ignore_label must be a whole number. Received: "
                f"{str(ignored)[:80]!r}"
            )
        object.__setattr__(self, "class_names", tuple(names))
        object.__setattr__(self, "palette", tuple((int(r), int(g), int(b)) for r, g, b in colors))
        if len(self.class_names) < 2:
            raise UserError(
                f"dataset {self.name!r} has {self.num_classes} "
                f"{'class' if self.class_names else 'classes'}; at least 2 are needed: "
                "name the background as a class of its own"
            )
        if len(self.class_names) > MAX_CLASSES:
            raise UserError(
                f"dataset {self.name!r} has {self.num_classes} classes; allowed are 2 to "
                f"{MAX_CLASSES}"
            )
        if len(self.palette) != len(self.class_names):
            raise UserError(
                f"dataset {self.name!r} has {self.num_classes} classes but {len(self.palette)} "
                "colours; give one each"
            )
        if not all(0 <= value <= 255 for colour in self.palette for value in colour):
            raise UserError(f"dataset {self.name!r} has a colour outside 0..255 in its palette")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def plain_names(self) -> list[str]:
        """The class names without differences of spelling: case, underscores and surrounding spaces."""
        return [name.strip("_ ").replace("_", " ").casefold() for name in self.class_names]

    def renamed(self, other: DatasetInfo) -> list[int]:
        """Ids of the classes that have one name here and another one in `other`; unnamed classes match every name.

        Args:
            other: as many classes.
        """
        pairs = enumerate(zip(self.plain_names, other.plain_names, strict=True))
        return [
            i
            for i, (a, b) in pairs
            if a != b and not NO_NAME.fullmatch(a) and not NO_NAME.fullmatch(b)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "class_names": list(self.class_names),
            "palette": [list(colour) for colour in self.palette],
            "ignore_label": self.ignore_label,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetInfo:
        """The inverse of `to_dict`."""
        return cls(
            name=values["name"],
            class_names=values["class_names"],
            palette=values["palette"],
            ignore_label=values.get("ignore_label", 255),
        )


def _is_color(color: Any) -> bool:
    return (
        hasattr(color, "__len__")
        and len(color) == 3
        and all(isinstance(value, numbers.Integral) for value in color)
    )


def pascal_palette(n: int) -> tuple[Colour, ...]:
    """The first `n` colours of PASCAL VOC's colour map.

    The bits of the id, three at a time, become the bits of red, green and blue from the highest
    downwards.
    """
    colours = []
    for label in range(n):
        rgb, rest = [0, 0, 0], label
        for bit in range(7, -1, -1):
            for channel in range(3):
                rgb[channel] |= (rest >> channel & 1) << bit
            rest >>= 3
        colours.append((rgb[0], rgb[1], rgb[2]))
    return tuple(colours)


def info_for_classes(
    name: str,
    class_names: Sequence[str],
    palette: Sequence[Colour] | None = None,
    ignore_label: int = 255,
) -> DatasetInfo:
    """A DatasetInfo from class names alone; PASCAL VOC's colours where none are given."""
    return DatasetInfo(
        name, tuple(class_names), tuple(palette or pascal_palette(len(class_names))), ignore_label
    )


def require_ignored_apart(where: object, class_names: Sequence[str], ignore_label: int) -> None:
    """Refuses 256 classes where the last one would have the id of the pixels to ignore.

    Raises:
        UserError: the ids of the classes leave none for the ignore label.
    """
    if len(class_names) == MAX_CLASSES and ignore_label == MAX_CLASSES - 1:
        raise UserError(
            f"{where}: the last of {MAX_CLASSES} classes, {class_names[-1]!r}, would have the id "
            f"{ignore_label}, which is the "
            f"ignore label, so its pixels would be ignored; give at most {MAX_CLASSES - 1} "
            "classes, or another `ignore_label`"
        )
