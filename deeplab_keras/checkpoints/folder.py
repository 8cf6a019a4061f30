"""The checkpoint folder: everything needed to use a model or to resume its training.

    config.json     the ModelConfig
    dataset.json    class names, palette and ignore label
    weights.npz     one array per variable, named `<layer>/<variable>`
    metrics.json    scores, if the model was evaluated
    state.npz       optimizer state and step, only in training checkpoints
    SHA256SUMS      hashes of these files except metrics.json, for `sha256sum -c SHA256SUMS`;
                    checkpoints of older versions have none

The workdir of a training run has such folders: `best`, and `checkpoints/step_00001234` for the last
few steps. Every function here that takes the path of a checkpoint also takes a workdir.

A folder is written under a temporary name and renamed when it is complete, so an incomplete
checkpoint is never found under its name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import keras
import numpy as np

from deeplab_keras.checkpoints.values import check_values
from deeplab_keras.config import ModelConfig, UserError, require_instance
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.io.foreign import reading
from deeplab_keras.models.segmentor import build_segmentor

CONFIG = "config.json"
DATASET = "dataset.json"
WEIGHTS = "weights.npz"
METRICS = "metrics.json"
STATE = "state.npz"
HASHES = "SHA256SUMS"
ANOTHER = "delete this checkpoint and use another"
BEST, STEPS = "best", "checkpoints"
Path = str | os.PathLike[str]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class LoadedCheckpoint:
    """A model with its weights, its config and its classes.

    Attributes:
        model: The segmentor, as built by `build_segmentor`.
        config: Its architecture.
        info: The classes it was trained on.
        path: The folder it was read from.
        metrics: Its scores; empty if the checkpoint has none.
    """

    model: keras.Model
    config: ModelConfig
    info: DatasetInfo
    path: pathlib.Path
    metrics: dict[str, Any]


def save_checkpoint(
    path: Path,
    model: keras.Model,
    config: ModelConfig,
    info: DatasetInfo,
    *,
    metrics: Mapping[str, Any] | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
    state: Mapping[str, np.ndarray] | None = None,
) -> pathlib.Path:
    """Writes a checkpoint folder.

    An existing checkpoint is replaced only when the new one is complete.

    Args:
        path: The folder.
        model: The segmentor whose weights are saved.
        config: Its architecture.
        info: Its classes, such as the `info` of a dataset.
        metrics: Scores, written to metrics.json. `None` for none.
        weights: Weights to save instead of the model's own, such as averaged weights, with the
            names of `named_weights`.
        state: Arrays needed to resume training. `None` for none.

    Returns:
        The folder.

    Raises:
        UserError: If the model, the config and the info have different numbers of classes, if
            weights or metrics are not finite, if the folder cannot be written, or if it has other
            files than a checkpoint's. Existing files are unchanged then.

    Example:
        >>> config = dk.get_config("lrasppnet_mobilenetv3sos8_voc").replace(num_classes=2)
        >>> model = dk.build_segmentor(config)
        >>> colors = ((240, 220, 130), (0, 60, 220))
        >>> info = dk.data.DatasetInfo("beach", ("sand", "sea"), colors)
        >>> folder = dk.save_checkpoint("runs/beach", model, config, info)
        >>> sorted(file.name for file in folder.iterdir())
        ['SHA256SUMS', 'config.json', 'dataset.json', 'weights.npz']
    """
    path = pathlib.Path(path)
    require_instance(config, ModelConfig, "config")
    require_instance(info, DatasetInfo, "info")
    outputs = getattr(model, "outputs", None)
    if outputs and outputs[0].shape[-1] != config.num_classes:
        raise UserError(
            f"`num_classes={config.num_classes}`: the model has {outputs[0].shape[-1]} classes; "
            "give the config that it was built from"
        )
    if info.num_classes != config.num_classes:
        raise UserError(
            f"`info` has {info.num_classes} classes, and the model {config.num_classes}; give the "
            "classes that it was trained on"
        )
    check_replaceable(path)
    weights = weights or named_weights(model)
    raw = {name: value for name, value in (state or {}).items() if name.startswith("raw/")}
    check_values(
        {**weights, **raw},
        path,
        "such weights are not saved: the training run has diverged; give a lower "
        "`base_learning_rate`, `warmup_steps` or `clip_gradient_norm`, and a new `train_logdir`",
    )
    try:
        scores = None if metrics is None else json.dumps(dict(metrics), indent=2, allow_nan=False)
    except ValueError as error:
        raise UserError(
            f"{path}: metrics that are NaN or infinite cannot be saved ({error}); omit them"
        ) from error
    with _new_folder(path) as folder:
        (folder / CONFIG).write_text(config.to_json())
        (folder / DATASET).write_text(json.dumps(info.to_dict(), indent=2) + "\n")
        if scores is not None:
            (folder / METRICS).write_text(scores + "\n")
        if state is not None:
            _save_arrays(folder / STATE, state)
        _save_arrays(folder / WEIGHTS, weights)
        written = [name for name in (CONFIG, DATASET, WEIGHTS, STATE) if (folder / name).exists()]
        (folder / HASHES).write_text(
            "".join(f"{sha256(folder / name)}  {name}\n" for name in written)
        )
    return path


def check_replaceable(path: Path) -> None:
    """Checks, before a long job, that writing a checkpoint here would not delete other files.

    Raises:
        UserError: If the path is a file, or a folder with other files than a checkpoint's.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        existing = {file.name for file in path.iterdir()}
        if WEIGHTS in existing or existing <= {CONFIG, DATASET, METRICS, STATE, HASHES}:
            return
        raise UserError(
            f"{path}: has other files than a checkpoint's ({min(existing)}); give a new folder"
        )
    if path.exists():
        raise UserError(f"{path}: is a file; give a new folder")


def load_checkpoint(
    path: Path, input_size: tuple[int, int] | None = None, *, batch_size: int | None = None
) -> LoadedCheckpoint:
    """Builds the model of a checkpoint or workdir and loads its weights.

    Args:
        path: A checkpoint folder or a workdir. Of a workdir, the best checkpoint is loaded, or the
            latest one if it has no best one.
        input_size: (height, width) of the images; `None` for any size.
        batch_size: Number of images in a batch; `None` for any.

    Raises:
        UserError: If there is no checkpoint, if one of its files is missing or damaged, or if the
            weights do not fit its config.
    """
    folder = find_checkpoint(path)
    # Everything is read before the network is built, so that damage is reported at once.
    config, info = read_config(folder), read_info(folder)
    scores = folder / METRICS
    metrics = _read_json(scores, "a checkpoint's scores") if scores.exists() else {}
    weights = read_weights(folder)
    with reading(folder / CONFIG, "a model's config", ANOTHER):
        model = build_segmentor(config, input_size, batch_size=batch_size)
    assign_weights(model, weights, source=str(folder))
    return LoadedCheckpoint(model, config, info, folder, metrics)


def find_checkpoint(path: Path) -> pathlib.Path:
    """Returns the checkpoint folder of a path: the path itself, or a workdir's best or last one.

    Raises:
        UserError: If there is no checkpoint.
    """
    path = pathlib.Path(path)
    try:
        for folder in (path, path / BEST, *reversed(step_folders(path))):
            restore_interrupted_swap(folder)
            if (folder / WEIGHTS).exists():
                return folder
    except OSError as error:  # such as a name that is too long
        raise UserError(
            f"{str(path)[:200]}: cannot be read ({error.strerror}); give a checkpoint folder or a "
            "`train_logdir`"
        ) from error
    if not path.exists():
        raise UserError(
            f"{path}: no such folder; give a checkpoint folder or the `train_logdir` of a "
            "training run"
        )
    if path.suffix in (".tflite", ".onnx") or (path / "saved_model.pb").exists():
        raise UserError(
            f"{path}: an exported model; give the checkpoint that it was exported from "
            "(`predict.py` also takes exported models)"
        )
    raise UserError(
        f"{path}: not a checkpoint ({WEIGHTS} is missing); give a checkpoint folder or a "
        "`train_logdir`"
    )


def step_folders(workdir: Path) -> list[pathlib.Path]:
    """Returns the training checkpoints of a workdir, oldest first."""
    return sorted((pathlib.Path(workdir) / STEPS).glob(f"step_{'[0-9]' * 8}"))


def read_config(folder: pathlib.Path) -> ModelConfig:
    """Reads the `ModelConfig` of a checkpoint folder."""
    return _read_described(folder / CONFIG, "a model's config", ModelConfig.from_saved)


def read_info(folder: pathlib.Path) -> DatasetInfo:
    """Reads the classes of a checkpoint folder."""
    return _read_described(folder / DATASET, "the classes of a checkpoint", DatasetInfo.from_dict)


def read_weights(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the weights of a checkpoint folder, by name.

    Raises:
        UserError: If the file is missing or damaged, weights are not finite, or a variance is
            negative.
    """
    weights = read_arrays(folder / WEIGHTS)
    check_values(weights, folder / WEIGHTS, ANOTHER)
    return weights


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an npz file. Pickled objects are refused.

    Raises:
        UserError: If the file is missing, truncated or damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; the checkpoint is incomplete; {ANOTHER}")
    check_hash(path)
    with (
        reading(path, "arrays of a checkpoint", ANOTHER),
        np.load(path, allow_pickle=False) as file,
    ):
        return {name: file[name] for name in file.files}


def check_hash(path: pathlib.Path) -> None:
    """Compares a file of a checkpoint with its hash, if the checkpoint has hashes.

    Raises:
        UserError: If the file has changed since it was written, or the hashes cannot be read.
    """
    hashes = path.with_name(HASHES)
    if not hashes.exists():  # written by an older version
        return
    with reading(hashes, "the hashes of a checkpoint", ANOTHER):
        expected = {
            name: digest
            for digest, name in (line.split() for line in hashes.read_text().splitlines())
        }
        found = sha256(path)
    if path.name not in expected:
        raise UserError(f"{hashes}: damaged (no line for {path.name}); {ANOTHER}")
    if found != expected[path.name]:
        raise UserError(
            f"{path}: damaged (its SHA-256 differs from {HASHES}); {ANOTHER}, or delete {HASHES} "
            "if you changed the file yourself"
        )


def sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- Weights by name ---


def weight_name(variable: keras.Variable) -> str:
    """Returns the name of a variable in the weights file, `<layer>/<variable>`."""
    return "/".join(variable.path.split("/")[-2:])


def model_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns the model's kernels, biases and batch norm variables by name.

    The state of random generators is not included.
    """
    return {weight_name(v): v for v in model.variables if "seed_generator" not in v.path}


def named_weights(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns the model's weights by name, as NumPy arrays."""
    return {
        name: keras.ops.convert_to_numpy(variable)
        for name, variable in model_variables(model).items()
    }


def assign_weights(model: keras.Model, weights: Mapping[str, np.ndarray], source: str) -> None:
    """Assigns every weight of the model by name.

    Args:
        model: The model.
        weights: Exactly the model's weights, by name.
        source: Where the weights are from, for error messages.

    Raises:
        UserError: If weights are missing, unexpected or of another shape. Nothing is assigned then.
    """
    variables = model_variables(model)
    missing = sorted(variables.keys() - weights.keys())
    unexpected = sorted(weights.keys() - variables.keys())
    shapes = [
        f"{name} {tuple(weights[name].shape)} for {tuple(variable.shape)}"
        for name, variable in variables.items()
        if name in weights and tuple(weights[name].shape) != tuple(variable.shape)
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"{source}: the weights do not fit the architecture of {model.name} "
            f"({'; '.join(problems)}); give a checkpoint of this architecture"
        )
    for name, variable in variables.items():
        variable.assign(weights[name])


# --- Files ---


def _read_json(path: pathlib.Path, what: str) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path}: no such file; the checkpoint is incomplete; {ANOTHER}")
    if path.name != METRICS:
        check_hash(path)
    with reading(path, what, ANOTHER):
        found = json.loads(path.read_text(), parse_float=_finite, parse_constant=_finite)
        if not isinstance(found, dict):
            raise TypeError(f"a JSON {type(found).__name__}")
        return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def _read_described(path: pathlib.Path, what: str, make: Callable[[dict[str, Any]], T]) -> T:
    """Reads a JSON object and converts it with `make`, whose errors get the name of the file."""
    values = _read_json(path, what)
    with reading(path, what, ANOTHER):
        try:
            return make(values)
        except UserError as error:
            raise UserError(f"{path}: {error.text}; {ANOTHER}") from error


def _save_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    values: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    with path.open("wb") as file:
        # Without `allow_pickle=False`, which NumPy 2.0 would store as an array of this name.
        np.savez(file, **values)
        file.flush()
        os.fsync(file.fileno())


def _old_folder(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.old")


@contextlib.contextmanager
def _new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Context that yields a temporary folder, which replaces `path` if the block succeeds.

    The temporary folder is next to `path`. It is deleted if the block fails.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        shutil.rmtree(_old_folder(path), ignore_errors=True)
        if path.exists():
            path.rename(_old_folder(path))
        temporary.rename(path)
        shutil.rmtree(_old_folder(path), ignore_errors=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"{path}: no space left on the device; free some space and run the same command "
                "again"
            ) from error
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); give another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def restore_interrupted_swap(path: pathlib.Path) -> None:
    """Restores the old folder if a run was killed between the two renames of a replacement."""
    if path.name and _old_folder(path).exists() and not path.exists():  # "/" and "." have no name
        _old_folder(path).rename(path)
