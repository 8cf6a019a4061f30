"""Reads the pickles in PyTorch checkpoints without importing or calling anything they name.

A pickle is a program for a stack machine. This one has the instructions that `torch.save` uses
(docs/reference/pytorch.md#pickle) and knows a few names: dicts, tensors and storages. Every other
class or function stays a `Name`, so a checkpoint's optimizer or arguments do no harm, and a call of
an unknown function is refused.
"""

from __future__ import annotations

import dataclasses
import os
import re
import struct
from collections.abc import Callable
from typing import BinaryIO, cast

from deeplab_keras.config import UserError

AGAIN = "download it again, or give another file"
# Limits on all pickles of a file, far above those of any checkpoint. An instruction takes at most
# about 200 bytes of memory, and a byte of text at most four.
MAX_BYTES = 4 << 20
MAX_INSTRUCTIONS = 200_000
MAX_NAME = 300
MAX_ARGUMENTS = 8
MAX_DIMENSIONS = 32
LARGEST = 1 << 62  # sizes and offsets; NumPy computes with 64 bits

# Type of a storage -> its values. bfloat16 is read as integers, because NumPy does not have it.
STORAGES = {
    "torch.FloatStorage": "<f4",
    "torch.DoubleStorage": "<f8",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": "<u2",
    "torch.ByteStorage": "|u1",
    "torch.CharStorage": "|i1",
    "torch.ShortStorage": "<i2",
    "torch.IntStorage": "<i4",
    "torch.LongStorage": "<i8",
    "torch.BoolStorage": "|b1",
    "torch.ComplexFloatStorage": "<c8",
    "torch.ComplexDoubleStorage": "<c16",
}
# Calls that only make values: those in the optimizers and settings of real checkpoints. Their
# result stays a `Name`.
VALUES = re.compile(
    r"""(__builtin__|builtins)\.(set|frozenset|bytearray|complex|slice|x?range)
    | _codecs\.encode
    | collections\.(Counter|defaultdict|deque)
    | datetime\.(date|datetime|time|timedelta|timezone)
    | pathlib\.(Pure)?(Posix|Windows)?Path
    | numpy\.(dtype|ndarray|_?core\.multiarray\.(scalar|_reconstruct))
    | torch\.(device|Size|Generator|serialization\._get_layout)
    | torch\._utils\._rebuild_\w+
    | torch\._tensor\._rebuild_from_type_v2""",
    re.VERBOSE,
)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Name:
    """A class or function by its name, or an object of it, about which nothing else is known."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A block of values in the file.

    Attributes:
        key: Its name in the file.
        kind: The type of its values, a key of `STORAGES`.
        size: The number of values.
        window: The part that tensors see, as start and size; normally all of it.
    """

    key: str
    kind: str
    size: int
    window: tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A view of a storage, in values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Unpickler:
    """Reads one pickle after another from a file.

    Args:
        file: The file, at the start of a pickle.
        path: Its path, for messages.

    Attributes:
        storages: The storages of all pickles, by key.
    """

    def __init__(self, file: BinaryIO, path: str | os.PathLike[str]) -> None:
        self.storages: dict[str, Storage] = {}
        self._file, self._path = file, path
        self._bytes, self._instructions = MAX_BYTES, MAX_INSTRUCTIONS
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}

    def load(self) -> object:
        """Returns the next pickle's object: plain values, `Tensor`, `Storage` and `Name`.

        Raises:
            UserError: If the pickle is truncated or too long, has an instruction that `torch.save`
                does not write, or calls an unknown function.
            LookupError, TypeError, ValueError: If it is damaged in another way.
        """
        self._stack, self._marks, self._memo = [], [], {}
        while (code := self.take(1)) != b".":
            self.spend(1)
            if code not in _INSTRUCTIONS:
                raise UserError(
                    f"{self._path}: damaged or not written by torch.save (unknown pickle "
                    f"instruction 0x{code.hex()}); {AGAIN}"
                )
            _INSTRUCTIONS[code](self)
        return self._stack.pop()

    def take(self, size: int) -> bytes:
        """Reads the next bytes.

        Raises:
            UserError: If the file has fewer, or the pickle is too long.
        """
        self._bytes -= size
        if self._bytes < 0:
            raise UserError(
                f"{self._path}: its pickle is longer than {MAX_BYTES >> 20} MiB; {AGAIN}"
            )
        data = self._file.read(size)
        if len(data) < size:
            raise UserError(f"{self._path}: truncated or damaged; {AGAIN}")
        return data

    def spend(self, instructions: int) -> None:
        """Counts instructions.

        Raises:
            UserError: If the pickle has too many.
        """
        self._instructions -= instructions
        if self._instructions < 0:
            raise UserError(
                f"{self._path}: its pickle has more than {MAX_INSTRUCTIONS} instructions; {AGAIN}"
            )

    # === Instructions ===

    def protocol(self) -> None:
        """PROTO: the version of pickle. `torch.save` uses 2."""
        version = self.take(1)[0]
        if version != 2:
            raise UserError(
                f"{self._path}: written with pickle protocol {version}, which torch.load refuses "
                "too by default; save it again with torch.save's default protocol, 2"
            )

    def push(self, value: object) -> None:
        """Puts a value on the stack."""
        self._stack.append(value)

    def mark(self) -> None:
        """MARK: the start of a list of arguments."""
        self._marks.append(len(self._stack))

    def to_mark(self) -> list[object]:
        """Takes the values above the last mark from the stack."""
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def tuple_of(self, size: int) -> None:
        """TUPLE1 to TUPLE3: a tuple of the last values."""
        values = tuple(self._stack[-size:])
        if len(values) < size:
            raise ValueError("a tuple of missing values")
        self._stack[-size:] = [values]

    def global_name(self) -> None:
        """GLOBAL: a class or function by its module and name."""
        lines = []
        for _ in range(2):
            line = self._file.readline(MAX_NAME)
            self._bytes -= len(line)
            if not line.endswith(b"\n"):
                raise UserError(f"{self._path}: truncated or damaged; {AGAIN}")
            lines.append(line[:-1].decode("ascii"))
        self._stack.append(_name(".".join(lines)))

    def text(self, width: int, encoding: str, errors: str) -> None:
        """BINUNICODE and the strings of Python 2."""
        size = int.from_bytes(self.take(width), "little")
        self._stack.append(self.take(size).decode(encoding, errors))

    def unpacked(self, form: str) -> None:
        """Numbers of a fixed size."""
        self._stack.extend(struct.unpack(form, self.take(struct.calcsize(form))))

    def long_integer(self) -> None:
        """LONG1: an integer of up to 255 bytes."""
        self._stack.append(int.from_bytes(self.take(self.take(1)[0]), "little", signed=True))

    def put(self, width: int) -> None:
        """BINPUT: notes the last value under a number."""
        self._memo[int.from_bytes(self.take(width), "little")] = self._stack[-1]

    def get(self, width: int) -> None:
        """BINGET: repeats a noted value."""
        self._stack.append(self._memo[int.from_bytes(self.take(width), "little")])

    def append(self, values: list[object]) -> None:
        """APPEND, APPENDS: adds values to a list."""
        target = self._stack[-1]
        if type(target) is list:
            target.extend(values)
        elif not isinstance(target, Name):  # the values of an unknown object are not kept
            raise TypeError(f"values are appended to a {type(target).__name__}")

    def set_items(self, values: list[object]) -> None:
        """SETITEM, SETITEMS: adds pairs of key and value to a dict."""
        target = self._stack[-1]
        if type(target) is dict:
            for key, value in zip(values[::2], values[1::2], strict=True):
                target[_key(key)] = value
        elif not isinstance(target, Name):
            raise TypeError(f"items are added to a {type(target).__name__}")

    def build(self) -> None:
        """BUILD: attributes, which are not kept."""
        self._stack.pop()
        if not isinstance(self._stack[-1], dict | Name):
            raise TypeError(f"attributes of a {type(self._stack[-1]).__name__}")

    def new_object(self) -> None:
        """NEWOBJ: an object of a class. It stays a name."""
        self._stack.pop()
        if not isinstance(self._stack[-1], Name):
            raise TypeError(f"an object of a {type(self._stack[-1]).__name__}")

    def call(self) -> None:
        """REDUCE: the result of a function."""
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Name) or type(arguments) is not tuple:
            raise TypeError(f"a call of a {type(function).__name__}")
        if function.name in _CALLS and len(arguments) <= MAX_ARGUMENTS:
            # A list can be an argument many times, and each call reads all of it.
            self.spend(sum(len(value) for value in arguments if type(value) is list))
            self._stack.append(_CALLS[function.name](*arguments))
        elif VALUES.fullmatch(function.name):
            self._stack.append(function)
        else:
            raise UserError(runs_code(self._path, function))

    def persistent(self) -> None:
        """BINPERSID: a storage, whose values are outside of the pickle."""
        match self._stack.pop():
            case ("storage", Name() as kind, str() as key, str(), size):
                self._add_storage(key, kind, size, (0, size))
            case ("storage", Name() as kind, str() as key, str(), size, None):
                self._add_storage(key, kind, size, (0, size))
            case ("storage", Name() as kind, str() as key, str(), size, (str(), start, length)):
                self._add_storage(key, kind, size, (start, length))
            case ("module", Name() as kind, _, _):  # a class with its source code
                self._stack.append(kind)
            case _:
                raise ValueError("an unknown persistent id")

    def _add_storage(
        self, key: str, kind: Name, size: object, window: tuple[object, object]
    ) -> None:
        if kind.name not in STORAGES:
            self._stack.append(kind)
            return
        total, start, length = _sizes((size, *window))
        if start + length > total:
            raise ValueError("a part outside of its storage")
        found = Storage(key, kind.name, total, (start, length))
        known = self.storages.setdefault(key, found)
        if (known.kind, known.size) != (found.kind, found.size):
            raise ValueError("a storage with two types or sizes")
        self._stack.append(found)


def runs_code(path: str | os.PathLike[str], name: Name) -> str:
    """Returns the message about a file with a call or an object where only tensors are allowed."""
    return (
        f"{path}: refused, because loading it would run code in the file ({name.name}); give a "
        "file that only has weights"
    )


def _name(dotted: str) -> Name:
    if len(dotted) > MAX_NAME or not re.fullmatch(r"\w+(\.\w+)*", dotted, re.ASCII):
        raise ValueError("not the name of a class or function")
    return Name(dotted)


def _key(key: object) -> object:
    """Returns a key that a dict finds quickly. Keys of other kinds are not kept."""
    if key is None or isinstance(key, bool | float):
        return key
    if isinstance(key, str) and len(key) <= MAX_NAME:
        return key
    if isinstance(key, int) and abs(key) < LARGEST:  # longer ones can have equal hashes
        return key
    return Name(type(key).__name__)


def _sizes(numbers: tuple[object, ...]) -> tuple[int, ...]:
    """Returns sizes or offsets, after a check of their types and limits."""
    if type(numbers) is not tuple or len(numbers) > MAX_DIMENSIONS:
        raise ValueError("a shape with too many dimensions")
    if not all(type(number) is int and 0 <= number < LARGEST for number in numbers):
        raise ValueError("an impossible size")
    return cast(tuple[int, ...], numbers)


def _tensor(
    storage: object,
    offset: object,
    shape: tuple[object, ...],
    strides: tuple[object, ...],
    *_: object,
) -> Tensor | Name:
    if isinstance(storage, Name):
        return storage
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise ValueError("a tensor without storage or shape")
    (start,) = _sizes((offset,))
    return Tensor(storage, start, _sizes(shape), _sizes(strides))


def _parameter(tensor: object, *_: object) -> Tensor | Name:
    if not isinstance(tensor, Tensor | Name):
        raise TypeError("a parameter without a tensor")
    return tensor


def _ordered_dict(pairs: object = None, *_: object) -> dict[object, object]:
    """Returns a dict, as OrderedDict does. Python 2 writes its items as a list of pairs."""
    result: dict[object, object] = {}
    if pairs is not None:
        if type(pairs) is not list:
            raise TypeError(f"a dict of a {type(pairs).__name__}")
        for key, value in pairs:
            result[_key(key)] = value
    return result


def _attribute(owner: object, attribute: object) -> Name:
    if not isinstance(owner, Name) or not isinstance(attribute, str) or len(attribute) > MAX_NAME:
        raise TypeError("an attribute of a value")
    return _name(f"{owner.name}.{attribute}")


_CALLS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _tensor,  # before PyTorch 0.4
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "__builtin__.getattr": _attribute,
    "builtins.getattr": _attribute,
}
_INSTRUCTIONS: dict[bytes, Callable[[Unpickler], object]] = {
    b"\x80": Unpickler.protocol,
    b"N": lambda machine: machine.push(None),
    b"\x88": lambda machine: machine.push(True),
    b"\x89": lambda machine: machine.push(False),
    b"K": lambda machine: machine.unpacked("<B"),
    b"M": lambda machine: machine.unpacked("<H"),
    b"J": lambda machine: machine.unpacked("<i"),
    b"G": lambda machine: machine.unpacked(">d"),
    b"\x8a": Unpickler.long_integer,
    b"X": lambda machine: machine.text(4, "utf-8", "strict"),
    b"T": lambda machine: machine.text(4, "utf-8", "replace"),
    b"U": lambda machine: machine.text(1, "utf-8", "replace"),
    b"]": lambda machine: machine.push([]),
    b"}": lambda machine: machine.push({}),
    b")": lambda machine: machine.push(()),
    b"(": Unpickler.mark,
    b"t": lambda machine: machine.push(tuple(machine.to_mark())),
    b"\x85": lambda machine: machine.tuple_of(1),
    b"\x86": lambda machine: machine.tuple_of(2),
    b"\x87": lambda machine: machine.tuple_of(3),
    b"q": lambda machine: machine.put(1),
    b"r": lambda machine: machine.put(4),
    b"h": lambda machine: machine.get(1),
    b"j": lambda machine: machine.get(4),
    b"a": lambda machine: machine.append([machine._stack.pop()]),
    b"e": lambda machine: machine.append(machine.to_mark()),
    b"s": lambda machine: machine.set_items([machine._stack.pop(-2), machine._stack.pop()]),
    b"u": lambda machine: machine.set_items(machine.to_mark()),
    b"c": Unpickler.global_name,
    b"\x81": Unpickler.new_object,
    b"b": Unpickler.build,
    b"R": Unpickler.call,
    b"Q": Unpickler.persistent,
}
