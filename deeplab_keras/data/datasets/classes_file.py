"""classes.txt: the names of the classes of a dataset of one's own, with their colours."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Mapping, Sequence

from deeplab_keras.config import UserError
from deeplab_keras.data.files.tree import Tree
from deeplab_keras.data.info import MAX_CLASSES, Colour, pascal_palette
from deeplab_keras.io.foreign import reading

CLASSES_FILES = ("classes.txt", "class_dict.csv")
IGNORE = "ignore"
FORMS = "a line is 'name', 'name #rrggbb' or 'name r g b'"
_HEX = re.compile(r"(.*[^\s,;:])[\s,;:]+#([0-9a-fA-F]{6})")
_NUMBERS = re.compile(r"(.*[^\s,;:])[\s,;:]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)")
_NUMBERS_FIRST = re.compile(r"(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;:]+([^\d\s,;:].*)")
_CVAT = re.compile(r"([^:]+):(?:(\d+),(\d+),(\d+))?:[^:]*:[^:]*")  # name:color_rgb:parts:actions
_A_FOURTH = re.compile(r"[,;:]\s*\d+$")  # number in front of three
_COLOUR = re.compile(
    r"\d+\s*[,;\s]\s*\d+\s*[,;\s]\s*\d+|#[0-9a-fA-F]{3,8}\b|\brgba?\("
)  # what may have been meant for one
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
_Entry = tuple[str, Colour | None]


@dataclasses.dataclass(frozen=True)
class Classes:
    """What a classes.txt says.

    Attributes:
        names: in the order of the ids.
        palette: a colour each; PASCAL VOC's where the file has none.
        ignored: colours of pixels that count nowhere: the lines `ignore #rrggbb`, where colours
            count.
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
                other = (
                    "pixels to ignore"
                    if colour in self.ignored
                    else repr(self.names[found[colour]])
                )
                raise UserError(
                    f"{where}: {self.names[label]!r} and {other} both have the colour "
                    f"#{bytes(colour).hex()}; "
                    "give each its own, or its ids cannot be told"
                )
            found[colour] = label
        return found


def read_classes(root: Tree, name: str, *, with_ignored: bool = False) -> Classes:
    """Reads a file of classes.

    A line is `name`, `name #rrggbb`, `name r g b` or `name,r,g,b`. Tables with a heading
    (`class,r,g,b`, `id,name,r,g,b`, Roboflow's `Pixel Value, Class`) and CVAT's labelmap.txt are
    read too.

    Args:
        root: where it lies.
        name: its path there.
        with_ignored: lines called `ignore` are no class but colours to ignore.

    Raises:
        UserError: there are no classes or too many, a name occurs twice, a line is not understood,
            or the file is not text.
    """
    where = root.on_disk(name)
    try:
        lines = [line.strip() for line in root.read_text(name).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{where}: cannot be read as text ({error}); save it as text in UTF-8"
        ) from error
    with reading(where, "a file of classes", FORMS):
        entries = (
            _labelmap(where, lines)
            or _table(where, lines)
            or _numbered(where, lines)
            or _plain(where, lines)
        )
    ignored = [
        colour for name, colour in entries if with_ignored and name.lower() == IGNORE and colour
    ]
    entries = [
        (name, colour) for name, colour in entries if not (with_ignored and name.lower() == IGNORE)
    ]
    if not 1 <= len(entries) <= MAX_CLASSES:
        raise UserError(
            f"{where}: it has {len(entries)} classes; give 1 to {MAX_CLASSES}, one name a line"
        )
    names = tuple(name for name, _ in entries)
    for label, class_name in enumerate(names):
        if (first := names.index(class_name)) < label:
            raise UserError(
                f"{where}: ids {first} and {label} are both called {class_name!r}; give each its "
                "own name"
            )
    default = pascal_palette(len(entries))
    palette = tuple(colour or default[label] for label, (_, colour) in enumerate(entries))
    return Classes(names, palette, tuple(ignored))


def _labelmap(where: object, lines: Sequence[str]) -> list[_Entry]:
    """The classes of CVAT's labelmap.txt, `name:r,g,b:parts:actions` with a comment above; [] for another file."""
    matches = [_CVAT.fullmatch(line) for line in lines if not line.startswith("#")]
    if not matches or not all(matches):
        return []
    return [
        (match[1].strip(), _colour(where, match[0], match.groups()[1:]) if match[2] else None)
        for match in matches
        if match
    ]


def _table(where: object, lines: Sequence[str]) -> list[_Entry]:
    """The classes of a table with a heading, or with a column of ids; [] for another file."""
    if len(lines) < 2 or any(line.startswith("#") for line in lines):
        return []
    delimiter = max(",;\t", key=lines[0].count)
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    ]
    width = len(rows[0])
    if width < 2 or any(len(row) != width for row in rows):
        rows = [line.split() for line in lines]  # `name r g b` above lines of that form
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
        colour = (
            _colour(where, delimiter.join(row), [row[columns[part]] for part in "rgb"])
            if "r" in columns
            else None
        )
        label = int(row[columns["id"]]) if "id" in columns else number
        if label in entries:
            raise UserError(
                f"{where}: line {delimiter.join(row)!r}: the id {label} occurs twice; give each "
                "class its own"
            )
        entries[label] = row[columns["name"]], colour
    _require_all_ids(where, entries)
    return [entries[label] for label in sorted(entries)]


def _heading(cell: str) -> str:
    """What a cell of a heading names, or ""."""
    return next((kind for kind, words in _HEADINGS.items() if cell.lower() in words), "")


def _columns(rows: Sequence[Sequence[str]]) -> tuple[int, dict[str, int]] | None:
    """The number of heading lines and the column of each kind; None where the table needs none or is not understood."""
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
        colours = [named[part] for part in "rgb"]
        ids = (
            [named["id"]]
            if "id" in named
            else [i for i in numbers if i < name and i not in colours]
        )
    else:
        before, after = [i for i in numbers if i < name], [i for i in numbers if i > name]
        ids, colours = (
            (before, after) if len(after) in (0, 3) and len(before) < 2 else (after, before)
        )
        if len(colours) not in (0, 3):
            return None
    if len(ids) > 1 or (
        not ids and not has_heading
    ):  # without either the lines stand for themselves
        return None
    return int(has_heading), {"name": name} | dict(zip("rgb", colours, strict=False)) | dict(
        zip(["id"], ids, strict=False)
    )


def _numbered(where: object, lines: Sequence[str]) -> list[_Entry]:
    """The classes of lines that begin with their ids, as `0: road` or `0 road`; [] for another file."""
    matches = [_NUMBERED.fullmatch(line) for line in lines]
    if len(lines) < 2 or not all(matches) or any(_NUMBERS_FIRST.fullmatch(line) for line in lines):
        return []
    entries = {int(match[1] or match[3]): match[2] or match[4] for match in matches if match}
    if any(match and match[3] for match in matches) and set(entries) != {*range(len(lines))}:
        return []  # names may begin with a number: "10 cent", "20 cent"
    if len(entries) < len(lines):
        raise UserError(f"{where}: two lines have the same id; give each class its own")
    _require_all_ids(where, entries)
    return [_entry(where, entries[label]) for label in sorted(entries)]


def _require_all_ids(where: object, entries: Mapping[int, object]) -> None:
    if set(entries) != {*range(len(entries))}:
        missing = next(label for label in range(len(entries)) if label not in entries)
        raise UserError(
            f"{where}: its ids are {min(entries)} to {max(entries)} and {missing} is missing; "
            f"{len(entries)} classes need the "
            f"ids 0 to {len(entries) - 1}: add the missing class, or change the ids here and in "
            "the masks: "
            "scripts/convert_masks.py --from=index --id_offset=..."
        )


def _plain(where: object, lines: Sequence[str]) -> list[_Entry]:
    """The classes of a file with a line for each."""
    words = re.split(r"[\s,;]+", lines[0].lower()) if lines else []
    cells = re.split(r"\s*[,;\t]\s*", lines[0].lower()) if lines else []
    if (
        cells[:1]
        and cells[0] in _HEADINGS["name"]
        and cells[1:]
        and set(cells[1:]) <= {"color", "colour", "hex", "rgb"}
    ):
        lines = lines[1:]
    if lines and len(lines) > 1 and ([_heading(word) for word in words[-3:]] == ["r", "g", "b"]):
        raise UserError(
            f"{where}: its first line {lines[0]!r} is a heading, but the lines do not have its "
            f"columns; {FORMS}"
        )
    if len(lines) > 1 and lines[0].lower() in _HEADINGS["name"]:
        raise UserError(
            f"{where}: its first line {lines[0]!r} looks like a heading; as class 0 it would move "
            "all ids by one: remove it"
        )
    return [_entry(where, line) for line in lines]


def _entry(where: object, line: str) -> _Entry:
    if match := _HEX.fullmatch(line):
        red, green, blue = bytes.fromhex(match[2])
        return match[1], (red, green, blue)
    if (match := _NUMBERS.fullmatch(line)) and not _A_FOURTH.search(match[1]):
        return match[1], _colour(where, line, match.groups()[1:])
    if match := _NUMBERS_FIRST.fullmatch(line):
        return match[4], _colour(where, line, match.groups()[:3])
    if line.startswith("#"):  # taken for a class it would move the ids of all others by one
        raise UserError(
            f"{where}: line {line!r} has no name; a line is a class, comments are not known here: "
            "remove it"
        )
    if _COLOUR.search(line):  # taken for a name it would get a color of PASCAL VOC's
        raise UserError(f"{where}: the color in line {line!r} is not understood; {FORMS}")
    return line, None


def _colour(where: object, line: str, parts: Sequence[str | None]) -> Colour:
    red, green, blue = (int(part or 0) for part in parts)
    if max(red, green, blue) > 255:
        raise UserError(f"{where}: line {line!r}: colours are 0 to 255")
    return red, green, blue
