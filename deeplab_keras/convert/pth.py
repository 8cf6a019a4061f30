"""PyTorch's checkpoint files, read and written; the one place that imports torch.

A file is read with `weights_only=True`: what is in it can be tensors and plain values, and no code
of it is run.
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

# Keys under which a training checkpoint stores its weights: "model" in SSSegmentation
# (docs/reference/sssegmentation.md#checkpoints), "state_dict" in OpenMMLab. A file with neither
# is a state_dict.
WEIGHTS = ("model", "state_dict")
AGAIN = "download it again, or give another file"


def read_pth(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch checkpoint by name, without the prefix that DistributedDataParallel puts before them.

    Args:
        path: a .pth file: a training checkpoint or a bare state_dict.

    Returns:
        The arrays; half-precision ones as float32, all others in their own type.

    Raises:
        UserError: torch is not installed, there is no such file, it is damaged, would run code when
            loaded, or holds no weights.
    """
    torch = import_torch()
    if not pathlib.Path(path).is_file():
        what = "a folder" if pathlib.Path(path).is_dir() else "no such file"
        raise UserError(f"{path}: {what}; give a PyTorch checkpoint (.pth)")
    with reading(path, "a PyTorch checkpoint", AGAIN):
        _check_archive(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd pickles, which then are refused anyway
                content = torch.load(path, map_location="cpu", weights_only=True)
        except (MemoryError, OSError):
            raise
        except Exception as error:  # the reasons that torch gives are pages long
            raise UserError(f"{path}: {_reason(error)}") from error
        tensors = _tensors(path, content, torch)
    check_values(tensors, path, AGAIN)
    return tensors


def _tensors(path: str | os.PathLike[str], content: Any, torch: Any) -> dict[str, np.ndarray]:
    """The tensors of a loaded checkpoint."""
    state = (
        next((content[key] for key in WEIGHTS if key in content), content)
        if isinstance(content, dict)
        else None
    )
    if not isinstance(state, dict) or not any(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        found = (
            f"the keys {', '.join(map(repr, list(content)[:5]))}"
            if isinstance(content, dict)
            else "another thing"
        )
        raise UserError(
            f"{path}: holds no weights but {found}; needed is a state_dict, alone or under "
            f"{WEIGHTS}"
        )
    tensors = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
    _check_sizes(path, tensors)
    prefix = "module." if all(str(name).startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): _array(value, torch) for name, value in tensors.items()}


def _check_archive(path: str | os.PathLike[str]) -> None:
    """Compares every member of a zip file with its checksum, which torch does not."""
    if not zipfile.is_zipfile(path):
        return  # a file from before torch 1.6 has no checksums
    with zipfile.ZipFile(path) as archive:
        packed = [
            member.filename
            for member in archive.infolist()
            if member.compress_type != zipfile.ZIP_STORED
        ]
        if packed:
            raise UserError(
                f"{path}: {packed[0]} is compressed, as torch.save never writes it; {AGAIN}"
            )
        damaged = archive.testzip()
    if damaged:
        raise UserError(f"{path}: {damaged} does not have its checksum; {AGAIN}")


def _check_sizes(path: str | os.PathLike[str], tensors: Mapping[str, Any]) -> None:
    """Refuses tensors that repeat their stored values (stride 0) and would take any amount of memory."""
    total = 0
    for name, tensor in tensors.items():
        taken = tensor.numel() * tensor.element_size()
        if str(tensor.layout) != "torch.strided" or taken > tensor.untyped_storage().nbytes():
            shape = "x".join(map(str, tensor.shape))
            raise UserError(
                f"{path}: {name} ({shape}) is larger than the values that are stored for it; "
                f"{AGAIN}"
            )
        total += taken
    if total > 2 * os.path.getsize(path) + (1 << 20):
        raise UserError(
            f"{path}: its tensors take {total >> 20} MiB, more than the file has; {AGAIN}"
        )


def write_pth(path: str | os.PathLike[str], weights: Mapping[str, np.ndarray]) -> None:
    """Writes weights as a checkpoint of SSSegmentation: a dict with `model`, which its scripts load strictly.

    Args:
        path: the file; it appears under this name only when it is complete.
        weights: the state_dict in its order; the counter that PyTorch's batch norm has besides is
            added.

    Raises:
        UserError: torch is not installed, or the file cannot be written.
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
    """PyTorch, or a UserError that says how to install it."""
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
    """What is wrong with a file that torch cannot load, in a few words."""
    text = " ".join(str(error).split())
    code = re.search(r"GLOBAL ([\w.]+)", text) or re.search(
        r"Trying to load unsupported GLOBAL ([\w.]+)", text
    )
    if code:
        return (
            f"refused, because loading it would run code of its own ({code[1]}); take a file "
            "that holds only weights"
        )
    if (
        "Unsupported operand 149" in text
    ):  # with which every pickle of protocol 4 begins, and no file of torch
        return (
            "a Python pickle that torch.save did not write; refused, because such a file can "
            "run code when it is loaded"
        )
    if "invalid load key" in text or "Weights only load failed" in text:
        return "not a PyTorch checkpoint; needed is a file that torch.save wrote"
    return f"truncated or damaged; {AGAIN}"
