"""classes.txt: the names of the classes of a dataset of one's own, with their colours."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from deeplab_keras.config import UserError
from deeplab_keras.data.info import MAX_CLASSES, Colour, pascal_palette
from deeplab_keras.data.tree import Tree

CLASSES_FILES = ("classes.txt", "class_dict.csv")
IGNORE = "ignore"
_HEX = re.compile(r"(.*[^\s,])[\s,]+#([0-9a-fA-F]{6})")
_NUMBERS = re.compile(r"(.*[^\s,])[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\d+)")


@dataclasses.dataclass(frozen=True)
class Classes:
    """What a classes.txt says.

    Attributes:
        names: in the order of the ids.
        palette: a colour each; PASCAL VOC's where the file has none.
        ignored: colours of pixels that count nowhere: the lines `ignore #rrggbb`, where colours count.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    ignored: tuple[Colour, ...] = ()

    def colours(self, where: object, ignore_label: int) -> Mapping[Colour, int]:
        """The id of each colour.

        Raises:
            UserError: two classes have one colour.
        """
        found: dict[Colour, int] = dict.fromkeys(self.ignored, ignore_label)
        for label, colour in enumerate(self.palette):
            if colour in found:
                other = "pixels to ignore" if colour in self.ignored else repr(self.names[found[colour]])
                raise UserError(
                    f"{where}: {self.names[label]!r} and {other} both have the colour #{bytes(colour).hex()}; "
                    "give each its own, or its ids cannot be told"
                )
            found[colour] = label
        return found


def read_classes(root: Tree, name: str, *, with_ignored: bool = False) -> Classes:
    """Reads a file of classes: a line is `name`, `name #rrggbb`, `name r g b` or `name,r,g,b`.

    Args:
        root: where it lies.
        name: its path there.
        with_ignored: lines called `ignore` are no class but colours to ignore.

    Raises:
        UserError: there are no classes or too many, a name occurs twice, or the file is not text.
    """
    where = root.on_disk(name)
    try:
        lines = [line.strip() for line in root.read_text(name).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot be read as text ({error}); save it as text in UTF-8") from error
    if lines and re.fullmatch(r"name\s*,\s*r\s*,\s*g\s*,\s*b", lines[0], re.IGNORECASE):
        del lines[0]
    entries = [_entry(where, line) for line in lines]
    ignored = [colour for name, colour in entries if with_ignored and name.lower() == IGNORE and colour]
    entries = [(name, colour) for name, colour in entries if not (with_ignored and name.lower() == IGNORE)]
    if not 1 <= len(entries) <= MAX_CLASSES:
        raise UserError(f"{where}: it has {len(entries)} classes; give 1 to {MAX_CLASSES}, one name a line")
    names = tuple(name for name, _ in entries)
    for label, class_name in enumerate(names):
        if (first := names.index(class_name)) < label:
            raise UserError(f"{where}: ids {first} and {label} are both called {class_name!r}; give each its own name")
    default = pascal_palette(len(entries))
    palette = tuple(colour or default[label] for label, (_, colour) in enumerate(entries))
    return Classes(names, palette, tuple(ignored))


def _entry(where: object, line: str) -> tuple[str, Colour | None]:
    if match := _HEX.fullmatch(line):
        red, green, blue = bytes.fromhex(match[2])
    elif match := _NUMBERS.fullmatch(line):
        red, green, blue = int(match[2]), int(match[3]), int(match[4])
        if max(red, green, blue) > 255:
            raise UserError(f"{where}: line {line!r}: colours are 0 to 255")
    elif line.startswith("#"):  # taken for a class it would move the ids of all others by one
        raise UserError(f"{where}: line {line!r} has no name; a line is a class, comments are not known here: remove it")
    else:
        return line, None
    return match[1], (red, green, blue)
