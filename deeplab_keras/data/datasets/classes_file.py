"""Reads classes.txt, the file with the class names and colors of your own dataset."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Mapping, Sequence

from deeplab_keras.config import UserError
from deeplab_keras.data.files.tree import Tree
from deeplab_keras.data.info import MAX_CLASSES, Color, pascal_palette
from deeplab_keras.io.foreign import reading

CLASSES_FILES = ("classes.txt", "class_dict.csv", "labelmap.txt", "_classes.csv")
IGNORE = "ignore"
LONGEST_LINE = 1000  # the time of the patterns below grows with its square
FORMS = "a line is 'name', 'name #rrggbb' or 'name r g b'"
_HEX = re.compile(r"(.*[^\s,;:])[\s,;:]+#([0-9a-fA-F]{6})")
_NUMBERS = re.compile(r"(.*[^\s,;:])[\s,;:]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)")
_NUMBERS_FIRST = re.compile(r"(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;:]+([^\d\s,;:].*)")
_CVAT = re.compile(r"([^:]+):(?:(\d+),(\d+),(\d+))?:[^:]*:[^:]*")  # name:color_rgb:parts:actions
_A_FOURTH = re.compile(r"[,;:]\s*\d+$")  # a fourth number, before the three of a color
# Text that was probably meant as a color.
_COLOR = re.compile(r"\d+\s*[,;\s]\s*\d+\s*[,;\s]\s*\d+|[\s,;:]#|#[0-9a-fA-F]{3,8}\b|\brgba?\(")
_NUMBERED = re.compile(r"(\d+)\s*[:=.)\t]\s*(\S.*)|(\d+)\s+(\S.*)")
_HEADINGS = {
    "name": (
        "name",
        "names",
        "class",
        "classes",
        "class_name",
        "class name",
        "label",
        "labels",
        "label_name",
        "category",
    ),
    "id": (
        "id",
        "ids",
        "value",
        "pixel value",
        "pixel_value",
        "pixel",
        "index",
        "class_id",
        "class id",
        "label_id",
        "idx",
    ),
    "r": ("r", "red"),
    "g": ("g", "green"),
    "b": ("b", "blue"),
}
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_Entry = tuple[str, Color | None]


@dataclasses.dataclass(frozen=True)
class Classes:
    """The contents of a classes.txt.

    Attributes:
        names: The class names in the order of their ids.
        palette: The color of each class; PASCAL VOC's color if the file has none.
        ignored: The colors of pixels to ignore, from lines `ignore #rrggbb`; only for masks that
            encode ids as colors.
    """

    names: tuple[str, ...]
    palette: tuple[Color, ...]
    ignored: tuple[Color, ...] = ()

    def colors(self, where: object, ignore_label: int) -> Mapping[Color, int]:
        """Returns the id of each color.

        Raises:
            UserError: Two classes have the same color.
        """
        found: dict[Color, int] = dict.fromkeys(self.ignored, ignore_label)
        for label, color in enumerate(self.palette):
            if color in found:
                other = (
                    "pixels to ignore" if color in self.ignored else repr(self.names[found[color]])
                )
                raise UserError(
                    f"{where}: {self.names[label]!r} and {other} both have the color "
                    f"#{bytes(color).hex()}; give each a different color"
                )
            found[color] = label
        return found


def read_classes(root: Tree, name: str, *, with_ignored: bool = False) -> Classes:
    """Reads a file of classes.

    A line is `name`, `name #rrggbb`, `name r g b` or `name,r,g,b`. Tables with a header
    (`class,r,g,b`, `id,name,r,g,b`, Roboflow's `Pixel Value, Class`) and CVAT's labelmap.txt are
    supported too.

    Args:
        root: The dataset that contains the file.
        name: The path of the file in the dataset.
        with_ignored: Whether lines named `ignore` are colors to ignore instead of classes.

    Raises:
        UserError: The file has no classes or too many, a name occurs twice, a line is not
            understood, or the file is not text.
    """
    where = root.on_disk(name)
    try:
        lines = [line.strip() for line in root.read_text(name).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{where}: cannot be read as text ({error}); save it as text in UTF-8"
        ) from error
    if (longest := max(map(len, lines), default=0)) > LONGEST_LINE:
        raise UserError(f"{where}: a line has {longest} characters, too many for a class; {FORMS}")
    with reading(where, "a file of classes", FORMS):
        entries = (
            _labelmap(where, lines)
            or _table(where, lines)
            or _numbered(where, lines)
            or _plain(where, lines)
        )
    ignored = [
        color for name, color in entries if with_ignored and name.lower() == IGNORE and color
    ]
    entries = [
        (name, color) for name, color in entries if not (with_ignored and name.lower() == IGNORE)
    ]
    if not 1 <= len(entries) <= MAX_CLASSES:
        raise UserError(
            f"{where}: it has {len(entries)} classes; give 1 to {MAX_CLASSES}, one name per line"
        )
    names = tuple(name for name, _ in entries)
    if strange := [name for name in names if _UNPRINTABLE.search(name)]:
        raise UserError(
            f"{where}: the class name {strange[0][:80]!a} has unprintable characters; remove them"
        )
    for label, class_name in enumerate(names):
        if (first := names.index(class_name)) < label:
            raise UserError(
                f"{where}: ids {first} and {label} are both called {class_name!r}; give each a "
                "different name"
            )
    default = pascal_palette(len(entries))
    palette = tuple(color or default[label] for label, (_, color) in enumerate(entries))
    return Classes(names, palette, tuple(ignored))


def _labelmap(where: object, lines: Sequence[str]) -> list[_Entry]:
    """Parses CVAT's labelmap.txt, `name:r,g,b:parts:actions`; [] if the lines are not one."""
    matches = [_CVAT.fullmatch(line) for line in lines if not line.startswith("#")]
    if not matches or not all(matches):
        return []
    return [
        (match[1].strip(), _color(where, match[0], match.groups()[1:]) if match[2] else None)
        for match in matches
        if match
    ]


def _table(where: object, lines: Sequence[str]) -> list[_Entry]:
    """Parses a table with a header or with a column of ids; [] if the lines are not one."""
    if len(lines) < 2 or any(line.startswith("#") for line in lines):
        return []
    delimiter = max(",;\t", key=lines[0].count)
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    ]
    width = len(rows[0])
    if width < 2 or any(len(row) != width for row in rows):
        rows = [line.split() for line in lines]  # a header `name r g b` and lines of that form
        width = len(rows[0])
        if (
            width < 2
            or not set(map(_heading, rows[0])) >= {"r", "g", "b"}
            or any(len(row) != width for row in rows[1:])
        ):
            return []
    headings = _columns(rows)
    if headings is None:
        return []
    heading, columns = headings
    entries: dict[int, _Entry] = {}
    for number, row in enumerate(rows[heading:]):
        color = (
            _color(where, delimiter.join(row), [row[columns[part]] for part in "rgb"])
            if "r" in columns
            else None
        )
        label = int(row[columns["id"]]) if "id" in columns else number
        if label in entries:
            raise UserError(
                f"{where}: line {delimiter.join(row)!r}: the id {label} occurs twice; give each "
                "class a different id"
            )
        entries[label] = row[columns["name"]], color
    _require_all_ids(where, entries)
    return [entries[label] for label in sorted(entries)]


def _heading(cell: str) -> str:
    """Returns the kind of column that a header cell names; "" if it is unknown."""
    return next((kind for kind, words in _HEADINGS.items() if cell.lower() in words), "")


def _columns(rows: Sequence[Sequence[str]]) -> tuple[int, dict[str, int]] | None:
    """Returns the number of header lines and the column of each kind.

    Returns None if the lines are not a table or are not understood.
    """
    numeric = [
        i
        for i in range(len(rows[0]))
        if all(row[i].isdecimal() and row[i].isascii() for row in rows[1:])
    ]
    texts = [i for i in range(len(rows[0])) if i not in numeric]
    has_heading = bool(numeric) and not any(rows[0][i].isdecimal() for i in numeric)
    named = (
        {kind: i for i, cell in enumerate(rows[0]) if (kind := _heading(cell))}
        if has_heading
        else {}
    )
    name = texts[0] if len(texts) == 1 else named.get("name", -1)
    if name < 0:
        return None
    numbers = [i for i in numeric if i != name]
    if {"r", "g", "b"} <= named.keys():
        colors = [named[part] for part in "rgb"]
        ids = (
            [named["id"]] if "id" in named else [i for i in numbers if i < name and i not in colors]
        )
    else:
        before, after = [i for i in numbers if i < name], [i for i in numbers if i > name]
        ids, colors = (
            (before, after) if len(after) in (0, 3) and len(before) < 2 else (after, before)
        )
        if len(colors) not in (0, 3):
            return None
    if len(ids) > 1 or (not ids and not has_heading):  # without ids and header, not a table
        return None
    return int(has_heading), {"name": name} | dict(zip("rgb", colors, strict=False)) | dict(
        zip(["id"], ids, strict=False)
    )


def _numbered(where: object, lines: Sequence[str]) -> list[_Entry]:
    """Parses lines that begin with ids, such as `0: road` or `0 road`; [] if they do not."""
    matches = [_NUMBERED.fullmatch(line) for line in lines]
    if len(lines) < 2 or not all(matches) or any(_NUMBERS_FIRST.fullmatch(line) for line in lines):
        return []
    entries = {int(match[1] or match[3]): match[2] or match[4] for match in matches if match}
    if any(match and match[3] for match in matches) and set(entries) != {*range(len(lines))}:
        return []  # names may begin with a number: "10 cent", "20 cent"
    if len(entries) < len(lines):
        raise UserError(f"{where}: two lines have the same id; give each class a different id")
    _require_all_ids(where, entries)
    return [_entry(where, entries[label]) for label in sorted(entries)]


def _require_all_ids(where: object, entries: Mapping[int, object]) -> None:
    if set(entries) != {*range(len(entries))}:
        missing, first = (
            next(label for label in range(len(entries)) if label not in entries),
            min(entries),
        )
        shifted = max(entries) - first == len(entries) - 1
        masks = (
            f", or subtract {first} from the ids here and in the masks: run "
            f"`scripts/convert_masks.py` --from=index --id_offset=-{first}"
        )
        raise UserError(
            f"{where}: its ids are {first} to {max(entries)}, but {missing} is missing; "
            f"{len(entries)} classes must have the ids 0 to {len(entries) - 1}: add the missing "
            f"class{masks if shifted else ''}"
        )


def _plain(where: object, lines: Sequence[str]) -> list[_Entry]:
    """Parses a file with one class per line."""
    words = re.split(r"[\s,;]+", lines[0].lower()) if lines else []
    cells = re.split(r"\s*[,;\t]\s*", lines[0].lower()) if lines else []
    if (
        cells[:1]
        and cells[0] in _HEADINGS["name"]
        and cells[1:]
        and set(cells[1:]) <= {"color", "colour", "hex", "rgb"}
    ):
        lines = lines[1:]
    columns = [_heading(cell) for cell in cells]
    in_colors = [_heading(word) for word in words[-3:]] == ["r", "g", "b"]
    if len(lines) > 1 and (in_colors or (len(columns) > 1 and all(columns))):
        raise UserError(
            f"{where}: its first line {lines[0]!r} is a header, but the lines do not have its "
            f"columns; {FORMS}"
        )
    if len(lines) > 1 and lines[0].lower() in _HEADINGS["name"]:
        raise UserError(
            f"{where}: its first line {lines[0]!r} looks like a header; as class 0 it would shift "
            "all ids by one: remove it"
        )
    return [_entry(where, line) for line in lines]


def _entry(where: object, line: str) -> _Entry:
    if match := _HEX.fullmatch(line):
        red, green, blue = bytes.fromhex(match[2])
        return match[1], (red, green, blue)
    if (match := _NUMBERS.fullmatch(line)) and not _A_FOURTH.search(match[1]):
        return match[1], _color(where, line, match.groups()[1:])
    if match := _NUMBERS_FIRST.fullmatch(line):
        return match[4], _color(where, line, match.groups()[:3])
    if line.startswith("#"):  # as a class, it would shift all ids by one
        raise UserError(
            f"{where}: line {line!r} has no name; each line is a class, and comments are not "
            "supported: remove it"
        )
    if _COLOR.search(line):  # as a name, it would get one of PASCAL VOC's colors
        raise UserError(f"{where}: the color in line {line!r} is not understood; {FORMS}")
    return line, None


def _color(where: object, line: str, parts: Sequence[str | None]) -> Color:
    red, green, blue = (int(part or 0) for part in parts)
    if max(red, green, blue) > 255:
        raise UserError(f"{where}: line {line!r}: colors must be 0 to 255")
    return red, green, blue
