"""Our checkpoint: a folder that holds everything needed to use a model or to go on training it.

    config.json     the ModelConfig
    dataset.json    class names, palette and ignore label
    weights.npz     one array a variable, named `<layer>/<variable>`
    metrics.json    what it scored, if it was evaluated
    state.npz       optimizer and step, in training checkpoints only
    SHA256SUMS      hashes of these files but metrics.json, as `sha256sum -c SHA256SUMS` checks
                    them; checkpoints of older versions have none

A workdir of the trainer holds such folders: `best`, and `checkpoints/step_00001234` for the last
few. Every function here that takes a path to a checkpoint takes a workdir too.

A folder is written under a temporary name and renamed when it is complete, so that no half-written
one is ever found.
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
from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.io.foreign import reading
from deeplab_keras.models.segmentor import build_segmentor

CONFIG, DATASET, WEIGHTS, METRICS, STATE = (
    "config.json",
    "dataset.json",
    "weights.npz",
    "metrics.json",
    "state.npz",
)
HASHES = "SHA256SUMS"
ANOTHER = "delete this checkpoint and use another"
BEST, STEPS = "best", "checkpoints"
Path = str | os.PathLike[str]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class LoadedCheckpoint:
    """A model with its weights, and what it was made from.

    Attributes:
        model: the segmentor, as `build_segmentor` makes it.
        config: its architecture.
        info: the classes it was trained on.
        path: the folder it was read from.
        metrics: what it scored, or an empty dict.
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
    """Writes a checkpoint folder; one that stands there is replaced only when the new one is complete.

    Args:
        path: the folder.
        model: the segmentor whose weights are saved.
        config: its architecture.
        info: its classes.
        metrics: goes to metrics.json.
        weights: saved instead of the model's own (averaged weights); names as `named_weights` gives
            them.
        state: arrays needed to go on training.

    Raises:
        UserError: weights or metrics that are no numbers, no space left, the folder cannot be
            written, or what stands there is no checkpoint; what stood there before is left as it
            was.
    """
    path = pathlib.Path(path)
    check_replaceable(path)
    weights = weights or named_weights(model)
    raw = {name: value for name, value in (state or {}).items() if name.startswith("raw/")}
    check_values(
        {**weights, **raw},
        path,
        "such weights are not saved: the training has diverged; give a lower `base_learning_rate`, "
        "`warmup_steps` or `clip_gradient_norm`, and a new `train_logdir`",
    )
    try:
        scores = None if metrics is None else json.dumps(dict(metrics), indent=2, allow_nan=False)
    except ValueError as error:
        raise UserError(
            f"{path}: metrics that are NaN or infinite are not saved ({error}); leave them out"
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
            "".join(f"{_hash(folder / name)}  {name}\n" for name in written)
        )
    return path


def check_replaceable(path: Path) -> None:
    """Looks whether a checkpoint may take this place, before the work of making it.

    Raises:
        UserError: something else stands there, which would be lost.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        there = {file.name for file in path.iterdir()}
        if WEIGHTS in there or there <= {CONFIG, DATASET, METRICS, STATE, HASHES}:
            return
        raise UserError(
            f"{path}: holds other things than a checkpoint ({min(there)}); give a new folder"
        )
    if path.exists():
        raise UserError(f"{path}: is a file; give a new folder")


def load_checkpoint(
    path: Path, input_size: tuple[int, int] | None = None, *, batch_size: int | None = None
) -> LoadedCheckpoint:
    """Builds the model of a checkpoint or workdir and loads its weights.

    Args:
        path: a checkpoint folder, or a workdir: its best checkpoint, or else its last.
        input_size: (height, width) that the model takes; None: any.
        batch_size: number of images that the model takes; None: any.

    Raises:
        UserError: no checkpoint there, a file of it is missing or broken, or the weights do not fit
            its config.
    """
    folder = find_checkpoint(path)
    config, info = read_config(folder), read_info(folder)
    with reading(folder / CONFIG, "a model's config", ANOTHER):
        model = build_segmentor(config, input_size, batch_size=batch_size)
    assign_weights(model, read_weights(folder), source=str(folder))
    metrics = folder / METRICS
    return LoadedCheckpoint(
        model,
        config,
        info,
        folder,
        _read_json(metrics, "a checkpoint's scores") if metrics.exists() else {},
    )


def find_checkpoint(path: Path) -> pathlib.Path:
    """The checkpoint folder at `path`: itself, or the best, else the last, of a workdir."""
    path = pathlib.Path(path)
    for folder in (path, path / BEST, *reversed(step_folders(path))):
        restore_interrupted_swap(folder)
        if (folder / WEIGHTS).exists():
            return folder
    if not path.exists():
        raise UserError(
            f"{path}: no such folder; give a checkpoint folder or the `train_logdir` of a training"
        )
    if path.suffix in (".tflite", ".onnx") or (path / "saved_model.pb").exists():
        raise UserError(
            f"{path}: an exported model, which predict.py runs; give the checkpoint that it was "
            "made from here"
        )
    raise UserError(
        f"{path}: no checkpoint here ({WEIGHTS} is missing); give a checkpoint folder or a "
        "`train_logdir`"
    )


def step_folders(workdir: Path) -> list[pathlib.Path]:
    """The training checkpoints of a workdir, oldest first."""
    return sorted((pathlib.Path(workdir) / STEPS).glob(f"step_{'[0-9]' * 8}"))


def read_config(folder: pathlib.Path) -> ModelConfig:
    """The ModelConfig of a checkpoint folder."""
    return _read_described(folder / CONFIG, "a model's config", ModelConfig.from_saved)


def read_info(folder: pathlib.Path) -> DatasetInfo:
    """The classes of a checkpoint folder."""
    return _read_described(folder / DATASET, "the classes of a checkpoint", DatasetInfo.from_dict)


def read_weights(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The weights of a checkpoint folder, by name.

    Raises:
        UserError: the file is missing or damaged, or weights are not finite or variances negative.
    """
    weights = read_arrays(folder / WEIGHTS)
    check_values(weights, folder / WEIGHTS, ANOTHER)
    return weights


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of an npz file; nothing pickled is executed.

    Raises:
        UserError: the file is missing, truncated or damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; the checkpoint is incomplete")
    check_hash(path)
    with (
        reading(path, "arrays of a checkpoint", ANOTHER),
        np.load(path, allow_pickle=False) as file,
    ):
        return {name: file[name] for name in file.files}


def check_hash(path: pathlib.Path) -> None:
    """Compares a file of a checkpoint with the hash that was written with it, where there is one.

    Raises:
        UserError: the file has changed since, or the hashes cannot be read.
    """
    hashes = path.with_name(HASHES)
    if not hashes.exists():  # of an older version
        return
    with reading(hashes, "the hashes of a checkpoint", ANOTHER):
        expected = {
            name: digest
            for digest, name in (line.split() for line in hashes.read_text().splitlines())
        }
        found = _hash(path)
    if path.name not in expected:
        raise UserError(f"{hashes}: damaged (it has no line for {path.name}); {ANOTHER}")
    if found != expected[path.name]:
        raise UserError(
            f"{path}: damaged: its SHA-256 is not that of {HASHES}; {ANOTHER}, or delete {HASHES} "
            "if you changed the file"
        )


def _hash(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- Weights by name ---


def weight_name(variable: keras.Variable) -> str:
    """`<layer>/<variable>`, the name of a variable in the weights file."""
    return "/".join(variable.path.split("/")[-2:])


def model_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """The variables that make up the model, by name: kernels, biases, batch norm; not the state of random generators."""
    return {weight_name(v): v for v in model.variables if "seed_generator" not in v.path}


def named_weights(model: keras.Model) -> dict[str, np.ndarray]:
    """The model's weights by name, as NumPy arrays."""
    return {
        name: keras.ops.convert_to_numpy(variable)
        for name, variable in model_variables(model).items()
    }


def assign_weights(model: keras.Model, weights: Mapping[str, np.ndarray], source: str) -> None:
    """Assigns every weight of the model by name; strict.

    Raises:
        UserError: weights are missing, left over or of another shape; nothing is assigned then.
    """
    variables = model_variables(model)
    missing, extra = (
        sorted(variables.keys() - weights.keys()),
        sorted(weights.keys() - variables.keys()),
    )
    shapes = [
        f"{name} {tuple(weights[name].shape)} for {tuple(variable.shape)}"
        for name, variable in variables.items()
        if name in weights and tuple(weights[name].shape) != tuple(variable.shape)
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (
            ("missing", missing),
            ("left over", extra),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"{source}: the weights are of another architecture than {model.name}: "
            f"{'; '.join(problems)}"
        )
    for name, variable in variables.items():
        variable.assign(weights[name])


# --- Files ---


def _read_json(path: pathlib.Path, what: str) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path}: no such file; the checkpoint is incomplete")
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
    """What `make` makes of a JSON object; its own errors do not know the file and get its name."""
    values = _read_json(path, what)
    with reading(path, what, ANOTHER):
        try:
            return make(values)
        except UserError as error:
            raise UserError(f"{path}: {error.text}; {ANOTHER}") from error


def _save_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(
            file, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()}
        )
        file.flush()
        os.fsync(file.fileno())


def _aside(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.old")


@contextlib.contextmanager
def _new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder beside `path` that takes its place when the block ends well, and vanishes when it does not."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        shutil.rmtree(_aside(path), ignore_errors=True)
        if path.exists():
            path.rename(_aside(path))
        temporary.rename(path)
        shutil.rmtree(_aside(path), ignore_errors=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"{path}: no space left on the device; free some and give the same command again"
            ) from error
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); give another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def restore_interrupted_swap(path: pathlib.Path) -> None:
    """Puts the old folder back where a run was killed between the two renames of a replacement."""
    if _aside(path).exists() and not path.exists():
        _aside(path).rename(path)
