"""PyTorch checkpoints written by hand, without PyTorch: valid, hostile and impossible ones."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping

import numpy as np
from contracts import ROOT

GOLDEN = ROOT / "tests" / "golden" / "pytorch"
FORMATS = ("zip", "stream")
CANARY = "executed-by-pickle"
STREAM_START = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
    b"\x80\x02}(X\x10\0\0\0protocol_versionM\xe9\x03X\r\0\0\0little_endian\x88u."
)


def golden_state() -> dict[str, np.ndarray]:
    """The values of tests/golden/pytorch: of every type, in views and shared storages."""
    base = np.arange(24, dtype=np.float32).reshape(4, 6) / 7
    exact = np.array([0.5, -3, 0.0078125, 65280], np.float32)  # in every precision
    return {
        "conv.weight": base,
        "conv.transposed": base.T,
        "conv.part": base[1:3, ::2],
        "conv.shared": base,
        "bn.running_var": np.array([0.1, 1e-7, 3e38], np.float32),
        "bn.num_batches_tracked": np.array(41, np.int64),
        "half": exact[:3],
        "bfloat16": exact,
        "double": np.array([np.pi, -1e300]),
        "int32": np.array([-(2**31), 7], np.int32),
        "int16": np.array([-(2**15), 7], np.int16),
        "int8": np.array([-128, 7], np.int8),
        "uint8": np.array([255, 7], np.uint8),
        "bool": np.array([True, False, True]),
        "empty": np.zeros((0, 3), np.float32),
    }


def write_golden() -> None:
    """Writes tests/golden/pytorch with PyTorch: `python -c 'import pth_files; ...'`."""
    import argparse

    import torch

    base = torch.from_numpy(golden_state()["conv.weight"])
    state = {name: torch.from_numpy(value.copy()) for name, value in golden_state().items()}
    state |= {"conv.weight": torch.nn.Parameter(base), "conv.shared": base}
    state |= {"conv.transposed": base.t(), "conv.part": base[1:3, ::2]}
    state |= {"half": state["half"].half(), "bfloat16": state["bfloat16"].bfloat16()}
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "meta": {"args": argparse.Namespace(rate=0.1, sizes=[1, 2]), "miou": np.float64(0.7)},
        "optimizer": optimizer.state_dict(),
        "model": state,
    }
    GOLDEN.mkdir(exist_ok=True)
    for form in FORMATS:
        torch.save(content, GOLDEN / f"{form}.pth", _use_new_zipfile_serialization=form == "zip")


# === Pickles by hand ===


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    if abs(value) < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(dotted: str) -> bytes:
    module, _, attribute = dotted.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def call(function: str, *arguments: bytes) -> bytes:
    return name(function) + tuple_of(*arguments) + b"R"


def dict_of(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def storage(
    size: int, key: str = "0", kind: str = "torch.FloatStorage", view: bytes | None = b"N"
) -> bytes:
    more = [] if view is None else [view]
    pieces = (text("storage"), name(kind), text(key), text("cpu"), integer(size), *more)
    return tuple_of(*pieces) + b"Q"


def tensor(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int = 0,
    stored: bytes = b"",
    function: str = "torch._utils._rebuild_tensor_v2",
) -> bytes:
    return call(
        function,
        stored or storage(12),
        integer(offset),
        tuple_of(*map(integer, shape)),
        tuple_of(*map(integer, strides)),
        b"\x89",
        call("collections.OrderedDict"),
    )


def pickled(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def checkpoint(extra: bytes = b"N") -> bytes:
    """A valid pickle with a tensor of 3x4, and a value besides the weights."""
    return pickled(
        dict_of({"extra": extra, "model": dict_of({"a.weight": tensor((3, 4), (4, 1))})})
    )


VALUES = np.arange(12, dtype=np.float32)


def as_zip(
    pickle: bytes,
    storages: Mapping[str, bytes] | None = None,
    more: Mapping[str, bytes] | None = None,
) -> bytes:
    """A checkpoint in zip format with this pickle."""
    stream = io.BytesIO()
    records = {"data.pkl": pickle, "byteorder": b"little", "version": b"3\n"} | dict(more or {})
    records |= {f"data/{k}": v for k, v in (storages or {"0": VALUES.tobytes()}).items()}
    with zipfile.ZipFile(stream, "w") as archive:
        for member, data in records.items():
            archive.writestr(f"archive/{member}", data)
    return stream.getvalue()


def as_stream(
    pickle: bytes, storages: Mapping[str, bytes] | None = None, itemsize: int = 4
) -> bytes:
    """A checkpoint in the older format with this pickle."""
    storages = {"0": VALUES.tobytes()} if storages is None else storages
    keys = pickled(b"](" + b"".join(map(text, storages)) + b"e")
    sizes = [struct.pack("<q", len(data) // itemsize) + data for data in storages.values()]
    return STREAM_START + pickle + keys + b"".join(sizes)


def in_format(form: str, pickle: bytes, **settings: Mapping[str, bytes]) -> bytes:
    return (as_zip if form == "zip" else as_stream)(pickle, **settings)


# === Hostile values. Each would create the file CANARY, or take gigabytes or forever. ===

TOUCH = text(f"touch {CANARY}")
CODE = text(f"open({CANARY!r}, 'w')")
OPEN = (text(CANARY), text("w"))
SYSTEM = name("posix.system")
RUNS_CODE: dict[str, bytes] = {
    "os.system": call("os.system", TOUCH),
    "posix.system": call("posix.system", TOUCH),
    "eval": call("builtins.eval", CODE),
    "exec of Python 2": call("__builtin__.exec", CODE),
    "open": call("builtins.open", *OPEN),
    "io.open": call("io.open", *OPEN),
    "a dotted name": call("builtins.open.__call__", *OPEN),
    "Popen": call("subprocess.Popen", TOUCH, b"\x88"),
    "import": call("builtins.__import__", text("antigravity")),
    "runpy": call("runpy.run_path", text("evil.py")),
    "a file of NumPy": call("numpy.load", text("evil.npy"), b"N", b"\x88"),
    "torch.load": call("torch.load", text("evil.pth")),
    "a pickle in a pickle": call("pickle.loads", TOUCH),
    "bytes of a storage": call("torch.storage._load_from_bytes", TOUCH),
    "partial": call("functools.partial", SYSTEM, TOUCH) + b")R",
    "attrgetter": call("operator.attrgetter", text("system")),
    "reconstructor": call("copyreg._reconstructor", name("builtins.list"), b"N", b"N"),
    "getattr, then a call": call("builtins.getattr", name("posix.X"), text("system"))
    + tuple_of(TOUCH)
    + b"R",
    "a chain of getattr": call(
        "__builtin__.getattr", call("builtins.getattr", name("os.path"), text("os")), text("system")
    )
    + tuple_of(TOUCH)
    + b"R",
    "a call of a module's class": tuple_of(text("module"), SYSTEM, text("f"), text("source"))
    + b"Q"
    + tuple_of(TOUCH)
    + b"R",
    "a set of calls": call("builtins.set", b"](" + call("posix.system", TOUCH) + b"e"),
    "a call in a key": b"}" + call("posix.system", TOUCH) + b"Ns",
    "a call in attributes": name("argparse.Namespace")
    + b")\x81"
    + dict_of({"a": call("posix.system", TOUCH)})
    + b"b",
    "a call in a shape": call(
        "torch._utils._rebuild_tensor_v2", storage(12), integer(0), call("posix.system", TOUCH)
    ),
    "a call in a storage's id": tuple_of(text("storage"), call("posix.system", TOUCH)) + b"Q",
}
# Instructions that torch.save never writes, with arguments that work elsewhere.
UNKNOWN_INSTRUCTIONS: dict[str, bytes] = {
    "INST": b"(" + TOUCH + b"iposix\nsystem\n",
    "OBJ": b"(" + SYSTEM + TOUCH + b"o",
    "NEWOBJ_EX": name("subprocess.Popen") + tuple_of(TOUCH) + b"}\x92",
    "STACK_GLOBAL": text("posix") + text("system") + b"\x93" + tuple_of(TOUCH) + b"R",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x02",
    "EXT4": b"\x84\x01\x02\x03\x04",
    "PERSID": b"Pposix.system\n",
    "LONG4 of two gigabytes": b"\x8b\xff\xff\xff\x7f",
    "BINUNICODE8 of an exabyte": b"\x8d" + struct.pack("<Q", 1 << 60) + b"a",
    "BINBYTES of four gigabytes": b"B\xff\xff\xff\xffa",
    "BINBYTES8 of an exabyte": b"\x8e" + struct.pack("<Q", 1 << 60) + b"a",
    "BYTEARRAY8 of an exabyte": b"\x96" + struct.pack("<Q", 1 << 60) + b"a",
    "FRAME of an exabyte": b"\x95" + struct.pack("<Q", 1 << 60) + b"N",
    "a decimal of many digits": b"I" + b"9" * 100_000 + b"\n",
    "a long decimal": b"L" + b"9" * 100_000 + b"L\n",
    "a quoted string": b"S'" + b"a" * 1000 + b"'\n",
    "GET": b"g0\n",
    "EMPTY_SET": b"\x8f",
    "MEMOIZE": b"N\x94",
    "NEXT_BUFFER": b"\x97",
    "DUP": b"N2",
}
MALFORMED: dict[str, bytes] = {
    "a text of four gigabytes": b"X\xff\xff\xff\xffa",
    "a string of two gigabytes": b"T\xff\xff\xff\x7fa",
    "a name without end": b"c" + b"a" * 5000,
    "a name of another alphabet": "cpоsix\nsystem\n".encode(),
    "a name with a line": b"ca\rb\nc\n",
    "text that is not UTF-8": b"X\x02\0\0\0\xff\xff",
    "half of a surrogate pair": b"X\x03\0\0\0\xed\xa0\x80",
    "an empty stack": b"0" * 0 + b"R",
    "a call of a value": text("a") + b")R",
    "a call without arguments": SYSTEM + b"NR",
    "a missing mark": b"t",
    "items of a number": b"K\x01NNs",
    "values of a text": text("a") + b"Na",
    "half an item": b"}(Nu",
    "attributes of a number": b"K\x01}b",
    "an object of a text": text("a") + b")\x81",
    "a note that was never made": b"j\xff\xff\xff\xff",
    "an attribute of a value": call("builtins.getattr", b"N", text("system")),
    "an attribute of any length": call("builtins.getattr", name("os.a"), text("a" * 100_000)),
    "an attribute that is not a name": call("builtins.getattr", name("os.a"), text("a\nb")),
    "a dict of a tuple": call("collections.OrderedDict", tuple_of(b"N")),
    "a parameter of nothing": call("torch._utils._rebuild_parameter", b"N"),
    "a storage's id of another kind": tuple_of(text("other"), text("a")) + b"Q",
    "a storage's id as text": text("storage") + b"Q",
    "an id without arguments": b")Q",
    "a storage with a list as size": tuple_of(
        text("storage"), name("torch.FloatStorage"), text("9"), text("cpu"), b"]", b"N"
    )
    + b"Q",
    "a storage of two types": storage(12, "9") + storage(12, "9", "torch.IntStorage") + b"\x86",
    "a storage of two sizes": storage(12, "9") + storage(13, "9") + b"\x86",
    "a storage of a negative size": storage(-1, "9"),
    "a storage of any size": storage(1 << 200, "9"),
    "a view outside of its storage": storage(
        12, "9", view=tuple_of(text("v"), integer(8), integer(5))
    ),
    "pickle protocol 4": b"\x80\x04N",
}
# Value -> what its message has to say, in the place of the tensor a.weight.
BAD_TENSORS: dict[str, tuple[bytes, str]] = {
    "beyond the end": (tensor((3, 5), (4, 1)), "larger than its stored values"),
    "an offset": (tensor((3, 4), (4, 1), 1), "outside of its storage"),
    "a stride": (tensor((3, 4), (5, 1)), "outside of its storage"),
    "a huge stride": (tensor((2,), ((1 << 62) - 1,)), "outside of its storage"),
    "a huge offset": (tensor((1,), (1,), (1 << 62) - 1), "outside of its storage"),
    "repeated values": (tensor((40_000, 30_000), (0, 0)), "larger than its stored values"),
    "repeated values that overflow": (
        tensor((1 << 40,) * 3, (0, 0, 0)),
        "larger than its stored values",
    ),
    "a negative size": (tensor((-3, 4), (4, 1)), "impossible size"),
    "a negative stride": (tensor((3, 4), (-4, 1)), "impossible size"),
    "a negative offset": (tensor((3, 4), (4, 1), -1), "impossible size"),
    "an endless size": (tensor((1 << 300,), (0,)), "impossible size"),
    "many dimensions": (tensor((1,) * 40, (1,) * 40), "too many dimensions"),
    "more strides": (tensor((3,), (4, 1)), "without storage or shape"),
    "no storage": (tensor((3,), (1,), stored=text("a")), "without storage or shape"),
    "a storage that is missing": (
        tensor((3, 4), (4, 1), stored=storage(12, "../../other")),
        "has no 'archive/data/../../other'|truncated or damaged",
    ),
    "a storage of another size": (
        tensor((3, 4), (4, 1), stored=storage(13)),
        "another size than stated|truncated or damaged",
    ),
    "a storage of another type": (
        tensor((3, 4), (4, 1), stored=storage(12, kind="torch.DoubleStorage")),
        "another size than stated|truncated or damaged",
    ),
    "a quantized tensor": (
        tensor((3, 4), (4, 1), stored=storage(12, kind="torch.QInt8Storage")),
        "a.weight is not a plain tensor: torch.QInt8Storage",
    ),
    "a sparse tensor": (
        call("torch._utils._rebuild_sparse_tensor", b"N", b"N"),
        "a.weight is not a plain tensor: torch._utils._rebuild_sparse_tensor",
    ),
    "an object": (
        name("argparse.Namespace") + b")\x81",
        "not a plain tensor: argparse.Namespace",
    ),
}
# Values besides the weights that real checkpoints have, or that do no harm.
HARMLESS: dict[str, bytes] = {
    "arguments": name("argparse.Namespace") + b")\x81" + dict_of({"rate": b"N"}) + b"b",
    "a process that is not started": name("subprocess.Popen") + tuple_of(TOUCH) + b"\x81",
    "a function that is not called": SYSTEM,
    "a method that is not called": call("builtins.getattr", name("a.HistoryBuffer"), text("mean")),
    "a scalar of NumPy": call(
        "numpy.core.multiarray.scalar",
        call("numpy.dtype", text("f8"), b"\x89", b"\x88"),
        call("_codecs.encode", text("a"), text("latin1")),
    ),
    "a set": call("__builtin__.set", b"](K\x01e"),
    "a path": call("pathlib.PosixPath", text("/")),
    "a counter": call("collections.defaultdict", name("builtins.int")) + text("a") + b"K\x01s",
    "an unknown list": name("mine.List") + b")\x81Na(NNe",
    "keys of every type": b"}N\x88s\x88Ns]Ns)Ns" + struct.pack(">cd", b"G", 0.5) + b"Ns",
    "a dict with attributes": call("collections.OrderedDict") + dict_of({"_metadata": b"}"}) + b"b",
    "a dict of Python 2": call("collections.OrderedDict", b"](](U\x01aK\x01ee"),
    "a dict in itself": b"}q\0" + text("a") + b"h\0s",
    "a list in itself": b"]q\0h\0a",
    "many lists": b"]" * 30_000 + b"a" * 29_999,
    "many tuples": b")" + b"\x85" * 30_000,
    "many dicts": b"}N" * 20_000 + b"N" + b"s" * 20_000,
    "an instance of a quantized storage": storage(12, "9", "torch.QInt8Storage"),
    "an optimizer's damaged tensor": tensor((9, 9), (1, 1)),
}


# Bombs whose values a reader can ignore at little cost.
READABLE_BOMBS = {
    "a note with a huge number",
    "equal long keys",
    "keys with equal hashes",
    "lists in lists in lists",
    "wide characters",
}


def bombs() -> dict[str, bytes]:
    """Pickles that are small, but would take gigabytes or minutes."""
    many = b"](" + b"N" * 50_000 + b"eq\0"
    pairs = b"](" + b"](NNe" * 10_000 + b"eq\0"
    wide = b"(" + b"K\x01" * 50_000 + b"tq\0"
    equal = (2**61 - 1) << 200
    long_key = "k" * 500_000
    return {
        "lists": b"]" * 4_000_000,
        "dicts": b"}" * 4_000_000,
        "marks": b"(" * 4_000_000,
        "dicts with an item": b"}NNs" * 1_000_000,
        "tuples": b")" + b"\x85" * 4_000_000,
        "notes": b"N" + b"".join(b"r" + struct.pack("<I", n) for n in range(700_000)),
        "a note with a huge number": b"N" + b"r\xff\xff\xff\xff",
        "numbers": b"G" + b"\1" * 8 * 400_000,
        "names": b"".join(b"ca\nb%06d\n" % n for n in range(190_000)),
        "storages": b"".join(storage(1, str(n)) for n in range(25_000)),
        "dicts of the same pairs": pairs + (name("collections.OrderedDict") + b"h\0\x85R") * 60_000,
        "calls with wide arguments": wide + (name("collections.OrderedDict") + b"h\0R") * 60_000,
        "ids with wide tuples": wide + b"h\0Q" * 60_000,
        "tensors with wide shapes": wide
        + (name("torch._utils._rebuild_tensor_v2") + b"(NK\0h\0h\0tR") * 20_000,
        "keys with equal hashes": b"}("
        + b"".join(integer(equal * n + 7) + b"N" for n in range(60_000))
        + b"u",
        "equal long keys": text(long_key)
        + b"q\0"
        + text(long_key)
        + b"q\1"
        + b"}"
        + b"h\0Ns" * 60_000,
        "attributes of attributes": name("a.b")
        + b"q\0"
        + (name("builtins.getattr") + b"h\0" + text("a" * 250) + b"\x86Rq\0") * 8_000,
        "wide characters": text("a" * 3_900_000 + "\U0001f600"),
        "many wide characters": text("a" * 25_000_000 + "\U0001f600"),
        "nested lists repeated": many + b"](" + b"h\0" * 60_000 + b"e",
        "lists in lists in lists": b"]q\0" + b"](h\0h\0h\0h\0eq\0" * 20_000,
    }
