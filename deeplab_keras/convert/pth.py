"""Reads and writes PyTorch checkpoint files. No other module imports torch.

Files are read with `weights_only=True`: they can only have tensors and plain values, and no code in
them is run.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from deeplab_keras.checkpoints.values import check_values
from deeplab_keras.config import UserError
from deeplab_keras.io.foreign import reading

# Keys of the weights in a training checkpoint: "model" in SSSegmentation
# (docs/reference/sssegmentation.md#checkpoints), "state_dict" in OpenMMLab. A file with neither is
# a state_dict.
WEIGHTS = ("model", "state_dict")
AGAIN = "download it again, or give another file"
ZIP_START = b"PK\x03\x04"


def read_pth(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the tensors of a PyTorch checkpoint, without the prefix of DistributedDataParallel.

    Args:
        path: A .pth file: a training checkpoint or a bare state_dict.

    Returns:
        The arrays by name. Half-precision tensors are converted to float32; other types are kept.

    Raises:
        UserError: If torch is not installed, or the file is missing, damaged, would run code when
            loaded, or has no weights.
    """
    torch = import_torch()
    if not pathlib.Path(path).is_file():
        what = "a folder" if pathlib.Path(path).is_dir() else "no such file"
        raise UserError(f"{path}: {what}; give a PyTorch checkpoint (.pth)")
    with reading(path, "a PyTorch checkpoint", AGAIN):
        _check_archive(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about unusual pickles, which are refused anyway
                content = torch.load(path, map_location="cpu", weights_only=True)
        except (MemoryError, OSError):
            raise
        except Exception as error:  # messages of torch are pages long
            raise UserError(f"{path}: {_reason(error)}") from error
        tensors = _tensors(path, content, torch)
    check_values(tensors, path, AGAIN)
    return tensors


def _tensors(path: str | os.PathLike[str], content: Any, torch: Any) -> dict[str, np.ndarray]:
    """Returns the tensors of a loaded checkpoint."""
    state = None
    if isinstance(content, dict):
        state = next((content[key] for key in WEIGHTS if key in content), content)
    if not isinstance(state, dict) or not any(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        found = (
            f"a dict with the keys {', '.join(map(repr, list(content)[:5]))}"
            if isinstance(content, dict)
            else f"a {type(content).__name__}"
        )
        raise UserError(
            f"{path}: has no weights but {found}; give a file with a state_dict, alone or under "
            f"the key {' or '.join(map(repr, WEIGHTS))}"
        )
    tensors = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
    _check_sizes(path, tensors)
    prefix = "module." if all(str(name).startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): _array(value, torch) for name, value in tensors.items()}


def _check_archive(path: str | os.PathLike[str]) -> None:
    """Compares every member of a zip file with its checksum, which torch does not do."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            if file.read(4) == ZIP_START:  # torch reports "Invalid argument" for some of these
                raise UserError(f"{path}: truncated or damaged; {AGAIN}")
        return  # files written before torch 1.6 are not zip files and have no checksums
    with zipfile.ZipFile(path) as archive:
        packed = [
            member.filename
            for member in archive.infolist()
            if member.compress_type != zipfile.ZIP_STORED
        ]
        if packed:
            raise UserError(
                f"{path}: {packed[0]} is compressed, which torch.save never does; {AGAIN}"
            )
        damaged = archive.testzip()
    if damaged:
        raise UserError(f"{path}: {damaged} does not match its checksum; {AGAIN}")


def _check_sizes(path: str | os.PathLike[str], tensors: Mapping[str, Any]) -> None:
    """Checks that tensors are not larger than their stored values.

    With stride 0, a tensor repeats its values and can need any amount of memory.
    """
    total = 0
    for name, tensor in tensors.items():
        taken = tensor.numel() * tensor.element_size()
        if str(tensor.layout) != "torch.strided" or taken > tensor.untyped_storage().nbytes():
            shape = "x".join(map(str, tensor.shape))
            raise UserError(f"{path}: {name} ({shape}) is larger than its stored values; {AGAIN}")
        total += taken
    if total > 2 * os.path.getsize(path) + (1 << 20):
        raise UserError(
            f"{path}: its tensors need {total >> 20} MiB, more than the file has; {AGAIN}"
        )


def write_pth(path: str | os.PathLike[str], weights: Mapping[str, np.ndarray]) -> None:
    """Writes a checkpoint that SSSegmentation's scripts load strictly: a dict with `model`.

    Args:
        path: The file. It is written under a temporary name and renamed when it is complete.
        weights: The state_dict in its order. The counters of PyTorch's batch norms are added.

    Raises:
        UserError: If torch is not installed, or the file cannot be written.
    """
    torch, file = import_torch(), pathlib.Path(path)
    state = OrderedDict()
    for name, array in weights.items():
        state[name] = torch.from_numpy(np.array(array))
        if name.endswith(".running_var"):
            state[f"{name.removesuffix('running_var')}num_batches_tracked"] = torch.tensor(
                0, dtype=torch.int64
            )
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": state}, temporary)
        temporary.replace(file)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be written ({error}); give another file") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def import_torch() -> Any:
    """Returns the module torch, or raises a UserError that says how to install it."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            ".pth files need PyTorch, which is not installed: pip install 'deeplab-keras[convert]' "
            "(in a checkout: pip install -e '.[convert]')"
        ) from error
    return torch


def _array(value: Any, torch: Any) -> np.ndarray:
    value = value.detach()
    return (
        (value.float() if value.dtype in (torch.float16, torch.bfloat16) else value)
        .contiguous()
        .numpy()
    )


def _reason(error: Exception) -> str:
    """Returns in a few words why torch cannot load a file."""
    text = " ".join(str(error).split())
    code = re.search(r"GLOBAL ([\w.]+)", text) or re.search(
        r"Trying to load unsupported GLOBAL ([\w.]+)", text
    )
    if code:
        return (
            f"refused, because loading it would run code in the file ({code[1]}); give a file "
            "that only has weights"
        )
    if "Unsupported operand 149" in text:  # the start of pickle protocol 4, which torch never uses
        return (
            "refused, because it is a Python pickle not written by torch.save, which can run code "
            "when it is loaded; give a file written by torch.save"
        )
    if "invalid load key" in text or "Weights only load failed" in text:
        return "not a PyTorch checkpoint; give a file written by torch.save"
    return f"truncated or damaged; {AGAIN}"
