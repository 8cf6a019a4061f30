"""Reads and writes PyTorch checkpoint files (.pth) with NumPy, without PyTorch."""

from __future__ import annotations

import math
import os
import pathlib
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

from deeplab_keras.checkpoints.values import check_values
from deeplab_keras.config import UserError
from deeplab_keras.convert.pth_file import open_checkpoint
from deeplab_keras.convert.pth_pickle import AGAIN, STORAGES, Name, Storage, Tensor, runs_code
from deeplab_keras.io.foreign import reading
from deeplab_keras.io.writing import replacing

# Keys of the weights in a training checkpoint: "model" in SSSegmentation
# (docs/reference/sssegmentation.md#checkpoints), "state_dict" in OpenMMLab. A file with neither is
# a state_dict.
WEIGHTS = ("model", "state_dict")
MORE_THAN_FILE = 64 << 20  # bytes that tensors may need beyond the size of the file


def read_pth(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the tensors of a PyTorch checkpoint, without the prefix of DistributedDataParallel.

    PyTorch is not needed. Nothing in the file is executed: an object of another class, such as an
    optimizer, is ignored, and a file that calls an unknown function is refused.

    Args:
        path: A .pth file: a training checkpoint or a bare state_dict.

    Returns:
        The arrays by name. Tensors that share memory in the file share it here. Half-precision
        tensors are converted to float32; other types are kept.

    Raises:
        UserError: If the file is missing, damaged, would run code when PyTorch loads it, or has no
            weights.
    """
    if not pathlib.Path(path).is_file():
        what = "a folder" if pathlib.Path(path).is_dir() else "no such file"
        raise UserError(f"{path}: {what}; give a PyTorch checkpoint (.pth)")
    with reading(path, "a PyTorch checkpoint", AGAIN), open(path, "rb") as file:
        checkpoint = open_checkpoint(file, path)
        tensors = _tensors(path, checkpoint.content)
        storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
        values = checkpoint.values(storages.values())
        flat = {key: _values(values.pop(key), storage) for key, storage in storages.items()}
        arrays = {name: _view(flat[value.storage.key], value) for name, value in tensors.items()}
    check_values(arrays, path, AGAIN)
    return arrays


def _tensors(path: str | os.PathLike[str], content: object) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint's weights, after a check of their names and sizes."""
    if isinstance(content, Name):
        raise UserError(runs_code(path, content))
    state: object = None
    if isinstance(content, dict):
        state = next((content[key] for key in WEIGHTS if key in content), content)
    if isinstance(state, Name):
        raise UserError(runs_code(path, state))
    if not isinstance(state, dict) or not any(
        isinstance(value, Tensor | Name) for value in state.values()
    ):
        raise UserError(
            f"{path}: has no weights but {_described(content)}; give a file with a state_dict, "
            f"alone or under the key {' or '.join(map(repr, WEIGHTS))}"
        )
    prefix = "module." if all(str(name).startswith("module.") for name in state) else ""
    tensors = {}
    for key, value in state.items():
        name = str(key).removeprefix(prefix)
        if isinstance(value, Tensor | Name) and (isinstance(key, Name) or not name.isprintable()):
            raise UserError(f"{path}: a tensor has no readable name; {AGAIN}")
        if isinstance(value, Name):
            raise UserError(
                f"{path}: {name} is not a plain tensor: {value.name}; give a file whose "
                "weights are plain tensors"
            )
        if isinstance(value, Tensor):
            tensors[name] = value
    _check_sizes(path, tensors)
    return tensors


def _described(content: object) -> str:
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    keys = [key.name if isinstance(key, Name) else repr(key)[:60] for key in list(content)[:5]]
    return f"a dict with the keys {', '.join(keys)}"


def _check_sizes(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Checks that tensors lie inside of their storages and are not larger.

    With stride 0, a tensor repeats its values and can need any amount of memory.
    """
    total = 0
    for name, tensor in tensors.items():
        taken, size = math.prod(tensor.shape), tensor.storage.window[1]
        steps = zip(tensor.shape, tensor.strides, strict=True)
        last = tensor.offset + sum((length - 1) * stride for length, stride in steps)
        if taken > tensor.storage.size:
            shape = "x".join(map(str, tensor.shape))
            raise UserError(f"{path}: {name} ({shape}) is larger than its stored values; {AGAIN}")
        if taken and last >= size:
            raise UserError(f"{path}: {name} has values outside of its storage; {AGAIN}")
        total += taken * np.dtype(STORAGES[tensor.storage.kind]).itemsize
    if total > os.path.getsize(path) + MORE_THAN_FILE:
        raise UserError(
            f"{path}: its tensors need {total >> 20} MiB, more than the file has; {AGAIN}"
        )


def _values(data: np.ndarray, storage: Storage) -> np.ndarray:
    """Returns a storage's values, from its bytes."""
    if storage.kind == "torch.BoolStorage":
        return data != 0
    values = data.view(STORAGES[storage.kind])
    if storage.kind == "torch.HalfStorage":
        return values.astype(np.float32)
    if storage.kind == "torch.BFloat16Storage":  # the upper half of a float32
        wide = values.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return values


def _view(values: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Returns a tensor as a view of its storage. NumPy checks that it lies inside."""
    start, size = tensor.storage.window
    if not math.prod(tensor.shape):
        return np.empty(tensor.shape, values.dtype)
    strides = tuple(stride * values.itemsize for stride in tensor.strides)
    window = values[start : start + size]
    return np.ndarray(tensor.shape, values.dtype, window, tensor.offset * values.itemsize, strides)


# === Writing ===


def write_pth(path: str | os.PathLike[str], weights: Mapping[str, np.ndarray]) -> None:
    """Writes a checkpoint that SSSegmentation's scripts load strictly: a dict with `model`.

    The file is what `torch.save` writes (docs/reference/pytorch.md#zip-format). PyTorch is not
    needed.

    Args:
        path: The file. It is written under a temporary name and renamed when it is complete.
        weights: The state_dict in its order. The counters of PyTorch's batch norms are added.

    Raises:
        UserError: If the file cannot be written.
    """
    state = {}
    for name, array in weights.items():
        state[name] = np.asarray(array, order="C")
        if name.endswith(".running_var"):
            counter = f"{name.removesuffix('running_var')}num_batches_tracked"
            state[counter] = np.zeros((), np.int64)
    with (
        replacing(path) as temporary,
        open(temporary, "wb") as file,
        zipfile.ZipFile(file, "w") as archive,
    ):
        records = {"data.pkl": _pickled(state), "byteorder": b"little"}
        records |= {f"data/{key}": array.tobytes() for key, array in enumerate(state.values())}
        for name, data in (records | {"version": b"3\n"}).items():
            info = zipfile.ZipInfo(f"archive/{name}")
            # torch.load can map a file into memory if its storages start at multiples of 64.
            padding = -(file.tell() + 30 + len(info.filename) + 4) % 64
            info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            archive.writestr(info, data)


def _pickled(state: Mapping[str, np.ndarray]) -> bytes:
    """Returns the pickle of `{"model": OrderedDict(state)}` (docs/reference/pytorch.md#pickle)."""
    kinds = {np.dtype(form): name for name, form in STORAGES.items() if "BFloat" not in name}
    empty = b"ccollections\nOrderedDict\n)R"
    parts = [b"\x80\x02}", _text("model"), empty, b"("]
    for key, (name, array) in enumerate(state.items()):
        module, kind = kinds[array.dtype].split(".")
        strides = [stride // array.itemsize for stride in array.strides]
        parts += [
            _text(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            _text("storage") + f"c{module}\n{kind}\n".encode() + _text(str(key)) + _text("cpu"),
            _integers(array.size) + b"tQ" + _integers(0),
            b"(" + _integers(*array.shape) + b"t(" + _integers(*strides) + b"t",
            b"\x89" + empty + b"tR",
        ]
    return b"".join([*parts, b"us."])


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integers(*numbers: int) -> bytes:
    return b"".join(b"J" + struct.pack("<i", number) for number in numbers)
