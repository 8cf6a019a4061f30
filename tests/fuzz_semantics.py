"""Well-formed files with correct checksums and impossible contents. Each must be refused."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pth_files
import tensorflow as tf

Rewrite = Callable[[bytes], bytes]


# === Arrays in .npz ===


def _arrays(change: Callable[[dict[str, np.ndarray]], object]) -> Rewrite:
    def rewrite(data: bytes) -> bytes:
        with np.load(io.BytesIO(data)) as stored:
            arrays = {name: np.array(stored[name]) for name in stored.files}
        change(arrays)
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        return stream.getvalue()

    return rewrite


def _set(ending: str, value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        name = next(
            name for name in arrays if name.endswith(ending) and arrays[name].dtype.kind == "f"
        )
        arrays[name].reshape(-1)[0] = value

    return change


def _objects(arrays: dict[str, np.ndarray]) -> None:
    arrays[next(iter(arrays))] = np.array([{"a": 1}, print], dtype=object)


def _claims(shape: tuple[int, ...]) -> Rewrite:
    """Writes an array whose header claims a shape that its data does not have."""

    def rewrite(data: bytes) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(stream, "w") as copy:
            for number, name in enumerate(source.namelist()):
                content = source.read(name)
                if number == 0:
                    header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
                    header += b" " * (-(len(header) + 11) % 64) + b"\n"
                    content = (
                        b"\x93NUMPY\x01\x00"
                        + struct.pack("<H", len(header))
                        + header
                        + content[-16:]
                    )
                copy.writestr(name, content)
        return stream.getvalue()

    return rewrite


ARRAYS: dict[str, Rewrite] = {
    "pickled objects": _arrays(_objects),
    "no arrays": _arrays(dict.clear),
    "a terabyte by its header": _claims((1 << 38,)),
    "more dimensions than NumPy has": _claims((1,) * 100),
    "a negative dimension": _claims((-1, 4)),
}
WEIGHTS: dict[str, Rewrite] = ARRAYS | {
    "NaN": _arrays(_set("kernel", np.nan)),
    "infinity": _arrays(_set("kernel", np.inf)),
    "a negative variance": _arrays(_set("moving_variance", -0.5)),
    "a NaN variance": _arrays(_set("moving_variance", np.nan)),
    "an array less": _arrays(lambda arrays: arrays.pop(next(iter(arrays)))),
    "an array more": _arrays(lambda arrays: arrays.update(extra=np.zeros(3, np.float32))),
    "another shape": _arrays(
        lambda arrays: arrays.update({next(iter(arrays)): np.zeros((2, 2), np.float32)})
    ),
    "text for numbers": _arrays(
        lambda arrays: arrays.update({next(iter(arrays)): np.array(["a", "b"])})
    ),
}


# === JSON ===


def _fields(**changes: Any) -> Rewrite:
    return lambda data: json.dumps(json.loads(data) | changes).encode()


def _without(name: str) -> Rewrite:
    return lambda data: json.dumps(
        {key: value for key, value in json.loads(data).items() if key != name}
    ).encode()


MODEL: dict[str, Rewrite] = {
    "text for a number": _fields(num_classes="three"),
    "no classes": _fields(num_classes=0),
    "a fraction of a class": _fields(num_classes=2.5),
    "ten billion classes": _fields(num_classes=10**10),
    "a negative width": _fields(depth_multiplier=-1.0),
    "a width that is not a number": lambda data: data.replace(
        b'"depth_multiplier": 0.35', b'"depth_multiplier": NaN'
    ),
    "an unknown backbone": _fields(backbone="mobilenet_v9"),
    "a list for a name": _fields(head=["deeplab_v3"]),
    "an unknown field": _fields(surprise=1),
    "null for a number": _fields(output_stride=None),
    "an object for a number": _fields(output_stride={"a": 1}),
}
CLASSES: dict[str, Rewrite] = {
    "names that are a number": _fields(class_names=3),
    "names that are numbers": _fields(class_names=[1, 2, 3]),
    "a name less": _fields(class_names=["wall", "floor"]),
    "no names": _without("class_names"),
    "a palette of text": _fields(palette="red"),
    "a palette of negative numbers": _fields(palette=[[-1, 0, 0]] * 3),
    "an ignore label that is text": _fields(ignore_label="none"),
}


def _shape(**changes: Any) -> Rewrite:
    def rewrite(data: bytes) -> bytes:
        content = json.loads(data)
        content["shapes"][0] |= changes
        return json.dumps(content).encode()

    return rewrite


LABELME: dict[str, Rewrite] = {
    "points that are text": _shape(points=["a", "b", "c"]),
    "points without coordinates": _shape(points=[[], [], []]),
    "a point at infinity": _shape(points=[[1, 1], [1e400, 2], [3, 3]]),
    "a point that is not a number": _shape(points=[[1, 1], [float("nan"), 2], [3, 3]]),
    "a label that is a list": _shape(label=["floor"]),
    "a label of no class": _shape(label="ceiling"),
    "an unknown kind of shape": _shape(shape_type="spiral"),
    "shapes that are text": _fields(shapes="all"),
    "an image of a terapixel": _fields(imageHeight=1 << 20, imageWidth=1 << 20),
    "an image of negative size": _fields(imageHeight=-32),
    "an image of text": _fields(imageHeight="32px"),
}


# === Lists ===


def _line(text: str) -> Rewrite:
    return lambda data: data + text.encode() + b"\n"


NAMES: dict[str, Rewrite] = {
    "a name that leads out of the folder": _line("../../../../../../etc/hostname"),
    "an absolute name": _line("/etc/hostname"),
    "a name that is missing": _line("2008_000009"),
    "a name of a megabyte": _line("a" * (1 << 20)),
    "a name with a zero byte": _line("2008\0_000001"),
}
LIST: dict[str, Rewrite] = {
    "a mask that leads out of the folder": _line("../../../../../../etc/hostname"),
    "a mask with an absolute path": _line("/etc/hostname"),
    "a mask more": _line("labels/train/pic_0.png"),
    "a mask less": lambda data: data[: data.index(b"\n") + 1],
    "a mask that is missing": lambda data: data.replace(b"pic_1", b"pic_9"),
    "a mask of a megabyte": lambda data: data.replace(b"pic_1", b"a" * (1 << 20)),
    "a mask with a zero byte": lambda data: data.replace(b"pic_1", b"pic\0_1"),
}


# === PNG ===


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 8
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        place += 12 + size


def _png(change: Callable[[bytes, bytes], bytes]) -> Rewrite:
    """Changes the contents of chunks and recomputes their checksums."""

    def rewrite(data: bytes) -> bytes:
        parts = [(kind, change(kind, content)) for kind, content in _chunks(data)]
        return data[:8] + b"".join(
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
            for kind, content in parts
        )

    return rewrite


def _header(start: int, packed: bytes) -> Rewrite:
    def change(kind: bytes, content: bytes) -> bytes:
        return (
            content[:start] + packed + content[start + len(packed) :]
            if kind == b"IHDR"
            else content
        )

    return _png(change)


PNG: dict[str, Rewrite] = {
    "a width of 2^31": _header(0, struct.pack(">I", 1 << 31)),
    "ten gigapixels": _header(0, struct.pack(">II", 100_000, 100_000)),
    "no height": _header(4, struct.pack(">I", 0)),
    "a bit depth of three": _header(8, b"\x03"),
    "an unknown color type": _header(9, b"\x05"),
    "less data than pixels": _png(
        lambda kind, content: zlib.compress(b"\0" * 10) if kind == b"IDAT" else content
    ),
    "data that is not compressed": _png(
        lambda kind, content: b"plain" if kind == b"IDAT" else content
    ),
}


# === Archives and graphs ===


def _zip_bomb(data: bytes) -> bytes:
    """Replaces every mask by a member of 2 GiB of zeros, which takes two megabytes in the file."""
    del data
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in ("images/train/pic_0.jpg", "labels/train/pic_0.png"):
            with archive.open(name, "w", force_zip64=True) as member:
                for _ in range(128):
                    member.write(bytes(8 << 20))
    return stream.getvalue()


def _climbing_tar(data: bytes) -> bytes:
    del data
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo("../../escaped.index")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"mine"))
    return stream.getvalue()


def _sparse_tar(data: bytes) -> bytes:
    """Returns a gzip whose only member claims to have a petabyte."""
    del data
    member = tarfile.TarInfo("model.ckpt-1.index")
    member.size = 1 << 50
    return gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


ZIP: dict[str, Rewrite] = {"a zip bomb": _zip_bomb}
RELEASE: dict[str, Rewrite] = {
    "a path out of the folder": _climbing_tar,
    "a member of a petabyte": _sparse_tar,
}


def _graph(change: Callable[[Any], object]) -> Rewrite:
    def rewrite(data: bytes) -> bytes:
        graph = tf.compat.v1.GraphDef.FromString(data)
        change(graph)
        return graph.SerializeToString()

    return rewrite


def _node(graph: Any, op: str) -> Any:
    return next(node for node in graph.node if node.op == op)


def _cycle(graph: Any) -> None:
    """Replaces the kernel's constant by two nodes that read each other."""
    kernel = _node(graph, "Conv2D").input[1]
    node = next(node for node in graph.node if node.name == kernel)
    node.op = "Identity"
    node.attr.clear()
    node.input.append("loop")
    graph.node.add(name="loop", op="Identity", input=[node.name])


def _loop_after(graph: Any) -> None:
    """Makes the node after the convolution read itself."""
    convolution = _node(graph, "Conv2D")
    convolution_reader = next(node for node in graph.node if convolution.name in node.input)
    convolution_reader.op = "Identity"
    convolution_reader.attr.clear()
    del convolution_reader.input[:]
    convolution_reader.input.append(convolution.name)
    graph.node.add(name="again", op="Identity", input=[convolution_reader.name])
    convolution.input[0] = "again"


def _nan_kernel(graph: Any) -> None:
    node = next(node for node in graph.node if node.op == "Const" and node.name.endswith("weights"))
    value = tf.make_ndarray(node.attr["value"].tensor).copy()
    value.reshape(-1)[0] = np.nan
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))


def _huge_constant(graph: Any) -> None:
    tensor = (
        next(node for node in graph.node if node.op == "Const" and node.name.endswith("weights"))
        .attr["value"]
        .tensor
    )
    tensor.tensor_content = b""
    del tensor.float_val[:]
    tensor.float_val.append(1.0)  # one value stands for all of them
    for dimension in tensor.tensor_shape.dim:
        dimension.size = 4096


GRAPH: dict[str, Rewrite] = {
    "a kernel that reads itself": _graph(_cycle),
    "a convolution that reads itself": _graph(_loop_after),
    "NaN in a kernel": _graph(_nan_kernel),
    "a petabyte out of one value": _graph(_huge_constant),
    "no nodes": lambda data: tf.compat.v1.GraphDef().SerializeToString(),
}


# === Indexes ===


def _index(**changes: Any) -> Rewrite:
    def change(arrays: dict[str, np.ndarray]) -> None:
        for name, value in changes.items():
            arrays[name] = np.full_like(arrays[name], value)

    return _arrays(change)


# A damaged index is rebuilt from the records, so these read the same as the good one.
INDEX: dict[str, Rewrite] = {
    "sizes of 2^60": _index(sizes=1 << 60),
    "negative sizes": _index(sizes=-1),
    "offsets beyond the file": _index(offsets=1 << 40),
    "negative offsets": _index(offsets=-8),
    "a file that there is not": _index(file_of=7),
    "every record the first one": _index(offsets=0),
}


# === PyTorch checkpoints ===


def pickles(form: str) -> dict[str, Rewrite]:
    """Returns checkpoints with hostile pickles, in one of the two formats of PyTorch."""
    hostile = pth_files.RUNS_CODE | pth_files.UNKNOWN_INSTRUCTIONS | pth_files.MALFORMED
    hostile |= {
        name: value
        for name, value in pth_files.bombs().items()
        if name not in pth_files.READABLE_BOMBS
    }
    files = {name: pth_files.checkpoint(value) for name, value in hostile.items()}
    files |= {
        f"a tensor with {name}": pth_files.pickled(pth_files.dict_of({"a.weight": value}))
        for name, (value, _) in pth_files.BAD_TENSORS.items()
    }
    return {
        name: lambda data, pickle=pickle: pth_files.in_format(form, pickle)  # type: ignore[misc]
        for name, pickle in files.items()
    }
