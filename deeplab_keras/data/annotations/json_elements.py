"""Reads large JSON files piece by piece, so that a file takes little more memory than its text."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from typing import Any

from deeplab_keras.data.annotations.exports import read_text
from deeplab_keras.io.foreign import reading

LARGEST_FILE = 1 << 30  # bytes; its text alone takes up to twice as much memory
LARGEST_ELEMENT = 1 << 26  # characters; as Python objects, they take up to 30 times as many bytes
MOST_ELEMENTS = 1 << 22  # as Python objects, even empty ones take hundreds of bytes
SPACE = " \t\r\n"
_decoder = json.JSONDecoder()


def read_elements(path: str, what: str) -> Iterator[tuple[str, Any]]:
    """Yields the contents of a JSON file as pairs of a key and a value.

    The elements of an array in the outermost object are yielded one by one, each with the key of
    the array. If the outermost value is an array, its elements have the key "".

    Args:
        path: The path of the file, which may be in an archive.
        what: What the file should be, for the message, such as "a COCO file".

    Raises:
        UserError: The file is too large, cannot be read, or is not JSON.
    """
    with reading(path, what, "export it again"):
        for number, element in enumerate(_outermost(read_text(path, LARGEST_FILE))):
            if number == MOST_ELEMENTS:
                raise ValueError(f"more than {MOST_ELEMENTS} elements")
            yield element


def _outermost(text: str) -> Iterator[tuple[str, Any]]:
    place = _skip(text, 0)
    if text[place : place + 1] == "[":
        place = yield from _array(text, place, "")
    elif text[place : place + 1] == "{":
        place = _skip(text, place + 1)
        while text[place : place + 1] != "}":
            key, place = _value(text, place)
            if not isinstance(key, str):
                raise ValueError(f"a key that is not a string at character {place}")
            place = _skip(text, _expect(text, _skip(text, place), ":"))
            if text[place : place + 1] == "[":
                place = yield from _array(text, place, key)
            else:
                value, place = _value(text, place)
                yield key, value
            place = _separator(text, place, "}")
        place += 1
    else:
        raise ValueError("it begins with neither { nor [")
    if _skip(text, place) < len(text):
        raise ValueError(f"more text after its end at character {place}")


def _array(text: str, place: int, key: str) -> Generator[tuple[str, Any], None, int]:
    """Yields the elements of an array with their key, and returns the place after it."""
    place = _skip(text, place + 1)
    while text[place : place + 1] != "]":
        value, place = _value(text, place)
        yield key, value
        place = _separator(text, place, "]")
    return place + 1


def _separator(text: str, place: int, closing: str) -> int:
    """Returns the place of the next element, or of the closing bracket."""
    place = _skip(text, place)
    if text[place : place + 1] == closing:
        return place
    place = _skip(text, _expect(text, place, ","))
    if text[place : place + 1] == closing:
        raise ValueError(f"a comma before {closing!r} at character {place}")
    return place


def _expect(text: str, place: int, character: str) -> int:
    if text[place : place + 1] != character:
        found = text[place : place + 1] or "its end"
        raise ValueError(f"{character!r} expected at character {place}, found {found!r}")
    return place + 1


def _skip(text: str, place: int) -> int:
    while text[place : place + 1] in SPACE and place < len(text):
        place += 1
    return place


def _value(text: str, place: int) -> tuple[Any, int]:
    """Decodes the value at a place, looking at as few characters as necessary."""
    length = 1 << 14
    while True:
        part = text[place : place + length]
        try:
            value, end = _decoder.raw_decode(part)
            if end < len(part) or place + end == len(text):  # a number could continue
                return value, place + end
        except json.JSONDecodeError as error:
            if len(part) < length:
                raise ValueError(f"{error.msg} at character {place + error.pos}") from error
        if length >= LARGEST_ELEMENT:
            raise ValueError(f"an element has more than {LARGEST_ELEMENT >> 20} MiB")
        length *= 4
