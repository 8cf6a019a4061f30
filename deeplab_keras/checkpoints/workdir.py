"""The folder of one training run: who may use it, what it was started with, its training checkpoints."""

from __future__ import annotations

import datetime
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import sys
from collections.abc import Mapping
from typing import Any, TextIO

import keras
import numpy as np
from absl import logging

from deeplab_keras.checkpoints import folder
from deeplab_keras.config import Config, ModelConfig, UserError
from deeplab_keras.data.info import DatasetInfo

KEPT = 2

# What may differ when a run goes on: where and how fast it computes, what it shows, and how often it saves.
MAY_CHANGE = {
    "train.train_logdir", "train.strategy", "train.jit_compile", "train.summary_images", "train.save_interval_steps",
    "data.dataset_dir", "data.cache", "data.skip_broken_files",
}


class Workdir:
    """Locks the folder while it is open, so that two runs never write to one.

    Args:
        path: the folder; made where there is none.
        configs: "model", "data", "train", "eval" -> config; a run that stands there must have the same.
        flags_text: the flags as typed, kept in flags.txt.
    """

    def __init__(self, path: str | os.PathLike[str], configs: Mapping[str, Config], flags_text: str = "") -> None:
        if not str(path):
            raise UserError("--train_logdir is needed: the folder for checkpoints and logs, as --train_logdir=runs/first")
        self.path = pathlib.Path(path)
        self.configs = configs
        self.flags_text = flags_text
        self._lock: TextIO | None = None

    def __enter__(self) -> Workdir:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise UserError(f"--train_logdir={self.path}: cannot be used ({error.strerror}); give another folder") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise UserError(
                f"--train_logdir={self.path}: in use by a running training (process {owner}); wait, or give another folder"
            ) from error
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        try:
            self._compare()
            self._describe()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _compare(self) -> None:
        path = self.path / "config.json"
        if not path.exists():
            if folder.step_folders(self.path) or (self.path / folder.BEST).exists():
                raise UserError(f"--train_logdir={self.path}: holds checkpoints but no config.json; give another folder")
            return
        try:
            before = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}); give another --train_logdir") from error
        now = json.loads(json.dumps({name: config.to_dict() for name, config in self.configs.items()}))
        for part, fields in now.items():
            for field, value in fields.items():
                old = before.get(part, {}).get(field, value)
                if old != value and f"{part}.{field}" not in MAY_CHANGE:
                    raise UserError(
                        f"--train_logdir={self.path}: holds a run with {part} setting {field}={old}, not {value}; give another "
                        "folder for a new run, or the same flags to go on with that one"
                    )

    def _describe(self) -> None:
        configs = {name: config.to_dict() for name, config in self.configs.items()}
        _write(self.path / "config.json", json.dumps(configs, indent=2) + "\n")
        _write(self.path / "flags.txt", self.flags_text)
        _write(self.path / "environment.json", json.dumps(environment(), indent=2) + "\n")

    def check_space(self, model: keras.Model) -> None:
        """Raises UserError where the disk cannot hold the checkpoints to come."""
        weights = sum(int(np.prod(v.shape)) * 4 for v in model.variables)
        needed = weights * (2 * (KEPT + 1) + 1)
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise UserError(
                f"--train_logdir={self.path}: {free >> 20} MiB are free, the checkpoints need {max(needed >> 20, 1)} MiB; "
                "free some space or give a folder on another disk"
            )

    def save_step(
        self, step: int, model: keras.Model, config: ModelConfig, info: DatasetInfo, *,
        weights: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray],
    ) -> None:
        """Writes the training checkpoint of a step and deletes all but the newest few."""
        path = self.path / folder.STEPS / f"step_{step:08d}"
        folder.save_checkpoint(path, model, config, info, weights=weights, state=state)
        for old in folder.step_folders(self.path)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None:
        """Weights and state of the newest training checkpoint that is intact; None when there is none."""
        for path in reversed(folder.step_folders(self.path)):
            try:
                return folder.read_weights(path), folder.read_arrays(path / folder.STATE)
            except UserError as error:
                logging.warning("%s; trying the one before", error)
        return None

    def log_row(self, row: Mapping[str, Any]) -> None:
        """Adds a line to training.csv; lines from that step on, of a run that was killed, make room."""
        path = self.path / "training.csv"
        header = ",".join(row)
        lines = path.read_text().splitlines() if path.exists() else [header]
        kept = [line for line in lines[1:] if int(line.split(",")[0]) < row["step"]]
        values = ",".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in row.values())
        _write(path, "\n".join([lines[0], *kept, values]) + "\n")


def environment() -> dict[str, Any]:
    """What a run was made with: versions, machine, command, time."""
    names = ("deeplab_keras", "tensorflow", "tensorflow-cpu", "keras", "numpy")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "processors": os.cpu_count(),
        "command": sys.argv,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _write(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
