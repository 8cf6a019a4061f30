"""The meaning of a dataset's labels: class names, colors and the ignore label."""

from __future__ import annotations

import dataclasses
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

from deeplab_keras.config import UserError

Color = tuple[int, int, int]

MAX_CLASSES = 256  # label maps are uint8
RARE = 0.05  # share of the labeled pixels below which a class is rare
NO_NAME = re.compile(r"class \d+")  # generated name of an unnamed class
# Generated names of classes have these words, spelled differently in earlier versions.
_SPELLINGS = {"colour": "color", "grey": "gray"}


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The classes of a dataset, saved with every checkpoint as dataset.json.

    Args:
        name: The name of the dataset.
        class_names: The names of class ids 0, 1, 2, ...; 2 to 256 names.
        palette: The RGB color of each class in visualizations, integers in 0..255.
        ignore_label: The id of pixels that are ignored in losses and metrics. Defaults to 255.

    Raises:
        UserError: An argument has a wrong type or value.

    Example:
        >>> info = dk.data.DatasetInfo("rooms", ("wall", "floor"), ((0, 0, 255), (255, 128, 0)))
        >>> info.num_classes, info.ignore_label
        (2, 255)
        >>> dk.data.DatasetInfo.from_dict(info.to_dict()) == info
        True
    """

    name: str
    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_label: int = 255

    def __post_init__(self) -> None:
        names, colors = self.class_names, self.palette
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise UserError(
                f"dataset {self.name!r}: class_names must be a list of strings. Received: "
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
                f"{'class' if self.class_names else 'classes'}; at least 2 are required: "
                "add the background as a separate class"
            )
        if len(self.class_names) > MAX_CLASSES:
            raise UserError(
                f"dataset {self.name!r} has {self.num_classes} classes; 2 to {MAX_CLASSES} are "
                "allowed"
            )
        if len(self.palette) != len(self.class_names):
            raise UserError(
                f"dataset {self.name!r} has {self.num_classes} classes but {len(self.palette)} "
                "colors; give one color per class"
            )
        if not all(0 <= value <= 255 for color in self.palette for value in color):
            raise UserError(
                f"dataset {self.name!r} has a color outside 0..255 in its palette; colors are RGB "
                "with values 0 to 255"
            )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def plain_names(self) -> list[str]:
        """The class names without differences in spelling, such as case and underscores."""
        names = []
        for name in self.class_names:
            words = name.strip("_ ").replace("_", " ").casefold().split(" ")
            names.append(" ".join(_SPELLINGS.get(word, word) for word in words))
        return names

    def renamed(self, other: DatasetInfo) -> list[int]:
        """Returns the ids of the classes with different names; unnamed classes match every name.

        Args:
            other: A `DatasetInfo` with the same number of classes.
        """
        pairs = enumerate(zip(self.plain_names, other.plain_names, strict=True))
        return [
            i
            for i, (a, b) in pairs
            if a != b and not NO_NAME.fullmatch(a) and not NO_NAME.fullmatch(b)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {
            "name": self.name,
            "class_names": list(self.class_names),
            "palette": [list(color) for color in self.palette],
            "ignore_label": self.ignore_label,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetInfo:
        """Returns the `DatasetInfo` with the values returned by `to_dict`."""
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


def pascal_palette(n: int) -> tuple[Color, ...]:
    """Returns the first `n` colors of PASCAL VOC's color map.

    Each group of three bits of the id sets one bit of red, green and blue, from the highest
    downwards.
    """
    colors = []
    for label in range(n):
        rgb, rest = [0, 0, 0], label
        for bit in range(7, -1, -1):
            for channel in range(3):
                rgb[channel] |= (rest >> channel & 1) << bit
            rest >>= 3
        colors.append((rgb[0], rgb[1], rgb[2]))
    return tuple(colors)


def info_for_classes(
    name: str,
    class_names: Sequence[str],
    palette: Sequence[Color] | None = None,
    ignore_label: int = 255,
) -> DatasetInfo:
    """Returns a `DatasetInfo` with PASCAL VOC's colors unless a palette is given."""
    return DatasetInfo(
        name, tuple(class_names), tuple(palette or pascal_palette(len(class_names))), ignore_label
    )


def require_ignored_apart(where: object, class_names: Sequence[str], ignore_label: int) -> None:
    """Refuses 256 classes if the id of the last one is the ignore label.

    Args:
        where: The file or option with the classes, for the message.
        class_names: The class names.
        ignore_label: The ignore label.

    Raises:
        UserError: The last class has the id of the ignore label.
    """
    if len(class_names) == MAX_CLASSES and ignore_label == MAX_CLASSES - 1:
        raise UserError(
            f"{where}: the last of {MAX_CLASSES} classes, {class_names[-1]!r}, would have the id "
            f"{ignore_label}, the ignore label, so its pixels would be ignored; give at most "
            f"{MAX_CLASSES - 1} classes, or another `ignore_label`"
        )
