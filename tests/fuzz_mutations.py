"""Seeded damage to files, as by bad disks, interrupted downloads and attackers."""

from __future__ import annotations

import random
import struct

EDGE = 600  # bytes at either end of a file, where the headers and tables of contents are
SIZES = (
    0,
    1,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
    0x7FFFFFFFFFFFFFFF,
    0x1000000000000000,
)
# Complete files that are not damaged copies of the valid file.
STRANGERS: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"\0",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "a web page": b"<!DOCTYPE html><html><body>Sign in to the network</body></html>",
    "nested lists": b"[" * 200_000,
    "nested objects": b'{"a":' * 200_000,
    "a huge number": b'{"a": 1' + b"0" * 10_000 + b"}",
    "NaN as JSON": b'{"shapes": NaN, "num_classes": NaN, "image": -Infinity}',
    "null": b"null",
    "a list": b"[1, 2, 3]",
    "a pickle that runs a command": b"cposix\nsystem\n(S'touch executed-by-pickle'\ntR.",
    "an empty zip": b"PK\x05\x06" + bytes(18),
    "a zip's first bytes": b"PK\x03\x04" + b"\xff" * 200,
    "UTF-16": "\ufeffname,r,g,b\nwall,0,0,0\n".encode("utf-16"),
    "NUL bytes in text": b"wall\0\nfloor\0\nlamp\0\n",
    "control characters": b"wall\x1b[2J\nfloor\x07\nlamp\r\n",
    "a line of a megabyte": b"a" * 1_000_000,
    "many lines": b"a,b\n" * 100_000,
}


def _place(numbers: random.Random, size: int) -> int:
    """Draws a position in the file; half of them are near one of its ends."""
    if size > 2 * EDGE and numbers.random() < 0.5:
        return numbers.choice((numbers.randrange(EDGE), size - 1 - numbers.randrange(EDGE)))
    return numbers.randrange(max(size, 1))


def _flip(data: bytearray, numbers: random.Random) -> None:
    data[_place(numbers, len(data))] ^= 1 << numbers.randrange(8)


def _noise(data: bytearray, numbers: random.Random) -> None:
    for _ in range(8):
        data[_place(numbers, len(data))] = numbers.randrange(256)


def _truncate(data: bytearray, numbers: random.Random) -> None:
    del data[_place(numbers, len(data)) :]


def _swap(data: bytearray, numbers: random.Random) -> None:
    length = numbers.choice((1, 2, 4, 8, 16, 64))
    first, second = _place(numbers, len(data)), _place(numbers, len(data))
    a, b = bytes(data[first : first + length]), bytes(data[second : second + length])
    if len(a) == len(b):
        data[first : first + length], data[second : second + length] = b, a


def _zero(data: bytearray, numbers: random.Random) -> None:
    start = _place(numbers, len(data))
    end = min(len(data), start + numbers.choice((4, 32, 512)))
    data[start:end] = bytes(end - start)


def _insert(data: bytearray, numbers: random.Random) -> None:
    start = _place(numbers, len(data))
    data[start:start] = numbers.randbytes(numbers.choice((1, 4, 100)))


def _delete(data: bytearray, numbers: random.Random) -> None:
    start = _place(numbers, len(data))
    del data[start : start + numbers.choice((1, 4, 100))]


def _size(data: bytearray, numbers: random.Random) -> None:
    """Writes an extreme number at a place where a length, offset or dimension may be stored."""
    value, kind = numbers.choice(SIZES), numbers.choice("<H >H <I >I <Q >Q".split())
    packed = struct.pack(kind, value & (256 ** struct.calcsize(kind) - 1))
    start = _place(numbers, len(data))
    data[start : start + len(packed)] = packed


def _digit(data: bytearray, numbers: random.Random) -> None:
    """Changes a digit of a text."""
    digits = [index for index, byte in enumerate(data[:20_000]) if 48 <= byte <= 57]
    if digits:
        data[numbers.choice(digits)] = numbers.choice(b"0123456789-e.")
    else:
        _flip(data, numbers)


MUTATIONS = (
    _flip,
    _flip,
    _flip,
    _noise,
    _truncate,
    _swap,
    _zero,
    _insert,
    _delete,
    _size,
    _size,
    _digit,
)


def mutated(data: bytes, name: str, number: int) -> tuple[str, bytes]:
    """Returns a damaged copy of a file, the same one in every run. The first ones are `STRANGERS`.

    Args:
        data: A valid file.
        name: Part of the seed.
        number: The number of the copy: 0, 1, 2, ...

    Returns:
        The kind of damage, and the damaged file.
    """
    if number < len(STRANGERS):
        return list(STRANGERS.items())[number]
    numbers = random.Random(f"{name}/{number}")
    mutation, copy = numbers.choice(MUTATIONS), bytearray(data)
    if not copy:
        return "empty", b""
    mutation(copy, numbers)
    return mutation.__name__.strip("_"), bytes(copy)
