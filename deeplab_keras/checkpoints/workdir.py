"""The folder of one training run: who may use it, what it was started with, its training checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, TextIO

import filelock
import keras
import numpy as np
from absl import logging

from deeplab_keras.checkpoints import folder
from deeplab_keras.checkpoints.values import check_values
from deeplab_keras.config import Config, ModelConfig, UserError
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.io.writing import write_text

LOCK = ".lock"
STARTS_WITH = ("config.json", "flags.txt", "environment.json")
BEAT = 10.0  # seconds between two signs of life of a run
PATIENCE = 30.0  # seconds without one after which a run on another machine counts as gone

# What may differ when a run goes on: where and how fast it computes, what it shows, and how often
# it saves.
MAY_CHANGE = {
    "train.train_logdir",
    "train.strategy",
    "train.jit_compile",
    "train.summary_images",
    "train.save_interval_steps",
    "train.keep_checkpoints",
    "train.early_stopping",
    "train.worker_timeout",
    "train.summary_histograms",
    "train.profile_steps",
    "train.html_report",
    "train.recalibrate_batch_norm",
    "data.dataset_dir",
    "data.cache",
    "data.skip_broken_files",
}


class Workdir:
    """Locks the folder while it is open, so that two runs never write to one.

    On one machine the lock is the operating system's, and ends with the process, however that ends.
    Where machines share the folder such locks may not be shared, so the lock file also says who
    holds it, and is touched every few seconds: a run on another machine that no longer touches it
    is gone.

    A start that fails before there is anything to go on from leaves nothing here, and stands in
    nobody's way.

    Args:
        path: the folder; made where there is none.
        configs: "model", "data", "train", "eval" -> config; a run that stands there must have the
            same.
        flags_text: the flags as typed, kept in flags.txt.
        keep: number of training checkpoints that are kept.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        configs: Mapping[str, Config],
        flags_text: str = "",
        *,
        keep: int = 2,
    ) -> None:
        if not str(path):
            raise UserError(
                "`train_logdir` is required: the folder for checkpoints and logs, as "
                "`train_logdir=runs/first`"
            )
        self.path = pathlib.Path(path)
        self.configs = configs
        self.flags_text = flags_text
        self.keep = keep
        self._lock: TextIO | None = None
        self._ended = threading.Event()

    def __enter__(self) -> Workdir:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(
                f"`train_logdir={self.path}`: is a file; give a folder, which is made where there "
                "is none"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / LOCK).open("a+")
        except OSError as error:
            raise UserError(
                f"`train_logdir={self.path}`: cannot be used ({error.strerror}); give another "
                "folder"
            ) from error
        try:
            self._take_lock(self._lock)
            self._compare()
            self._describe()
        except OSError as error:  # the lock's: a full disk names no file
            self.__exit__()
            raise UserError(
                f"`train_logdir={self.path}`: cannot be written to ({error.strerror}); make room "
                "there, or give another folder"
            ) from error
        except BaseException:
            self.__exit__()
            raise
        self._ended.clear()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._lock is not None:
            if self._owns:
                with contextlib.suppress(
                    OSError
                ):  # of a disk that is full or has gone; the system frees the lock
                    self._lock.truncate(0)
            if exception and isinstance(exception[1], UserError) and not self._begun():
                self._remove_start()
            with contextlib.suppress(OSError):
                self._lock.close()
            self._lock = None

    _owns = False

    def _take_lock(self, lock: TextIO) -> None:
        held = not filelock.lock_descriptor(lock.fileno(), blocking=False)
        owner, host = _owner(lock)
        if not held and owner and host != socket.gethostname():
            logging.info(
                "%s was used by %s; waiting to see whether it still runs", self.path, owner
            )
            held = _lives(self.path / LOCK)
            if not held:
                logging.info(
                    "%s has given no sign of life for %g seconds: it is gone", owner, PATIENCE
                )
        if held:
            raise UserError(
                f"`train_logdir={self.path}`: in use by a running training "
                f"({owner or 'unknown'}); wait until it ends, or give "
                "another folder"
            )
        lock.truncate(0)
        lock.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}))
        lock.flush()
        self._owns = True

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                os.utime(self.path / LOCK)
            except OSError as error:
                logging.warning(
                    "%s: %s; a run on another machine may take this one for gone",
                    self.path / LOCK,
                    error.strerror,
                )

    def _begun(self) -> bool:
        """Whether there is anything to go on from, or that took time to make."""
        return bool(folder.step_folders(self.path)) or any(
            (self.path / name).exists() for name in (folder.BEST, "training.csv")
        )

    def _remove_start(self) -> None:
        with contextlib.suppress(OSError):
            for name in (*STARTS_WITH, LOCK):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()  # where nothing of another kind is in it

    def _compare(self) -> None:
        path = self.path / "config.json"
        if (self.path / folder.WEIGHTS).exists():
            raise UserError(
                f"`train_logdir={self.path}`: is a checkpoint, which a run would spoil; give "
                "another folder, and this one as "
                "`initial_checkpoint` to start from it"
            )
        if not path.exists():
            if folder.step_folders(self.path) or (self.path / folder.BEST).exists():
                raise UserError(
                    f"`train_logdir={self.path}`: holds checkpoints but no config.json; give "
                    "another folder"
                )
            return
        try:
            before = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}); give another `train_logdir`") from error
        if not isinstance(before, dict) or self.configs.keys().isdisjoint(before or self.configs):
            raise UserError(f"{path}: not the settings of a training; give another `train_logdir`")
        if not self._begun():
            return
        now = json.loads(
            json.dumps({name: config.to_dict() for name, config in self.configs.items()})
        )
        for part, fields in now.items():
            for field, value in fields.items():
                old = before.get(part, {}).get(field, value)
                if old != value and f"{part}.{field}" not in MAY_CHANGE:
                    raise UserError(
                        f"`train_logdir={self.path}`: holds a run with {part} setting "
                        f"{field}={old}, not {value}; give another "
                        "folder for a new run, or the same flags to go on with that one"
                    )

    def _describe(self) -> None:
        configs = {name: config.to_dict() for name, config in self.configs.items()}
        texts = (
            json.dumps(configs, indent=2) + "\n",
            self.flags_text,
            json.dumps(environment(), indent=2) + "\n",
        )
        for name, text in zip(STARTS_WITH, texts, strict=True):
            write_text(self.path / name, text)

    def check_space(self, model: keras.Model) -> None:
        """Raises UserError where the disk cannot hold the checkpoints to come."""
        weights = sum(int(np.prod(v.shape)) * 4 for v in model.variables)
        needed = weights * (2 * (self.keep + 1) + 1)
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise UserError(
                f"`train_logdir={self.path}`: {free >> 20} MiB are free, the checkpoints need "
                f"{max(needed >> 20, 1)} MiB; "
                "free some space or give a folder on another disk"
            )

    def save_step(
        self,
        step: int,
        model: keras.Model,
        config: ModelConfig,
        info: DatasetInfo,
        *,
        weights: Mapping[str, np.ndarray],
        state: Mapping[str, np.ndarray],
    ) -> None:
        """Writes the training checkpoint of a step and deletes all but this one and the few before it."""
        path = self.path / folder.STEPS / f"step_{step:08d}"
        folder.save_checkpoint(path, model, config, info, weights=weights, state=state)
        # Newer ones were damaged, or the run would have gone on from them; they must not count as
        # those that are kept.
        there = folder.step_folders(self.path)
        present = there.index(path)
        for old in (*there[: max(present + 1 - self.keep, 0)], *there[present + 1 :]):
            shutil.rmtree(old, ignore_errors=True)

    def newest_step(self) -> int | None:
        """The step of the newest training checkpoint, intact or not; None where there is none."""
        folders = folder.step_folders(self.path)
        return int(folders[-1].name.removeprefix("step_")) if folders else None

    def newest(self) -> TrainingCheckpoint | None:
        """The newest training checkpoint that is intact; None when there is none at all.

        Raises:
            UserError: there are some, and all of them are damaged.
        """
        folders = folder.step_folders(self.path)
        for path in reversed(folders):
            folder.restore_interrupted_swap(path)
            try:
                return _read_training_checkpoint(path)
            except UserError as error:
                logging.warning("%s; this checkpoint is passed over for the one before", error)
        if folders:
            raise UserError(
                f"`train_logdir={self.path}`: every one of its {len(folders)} checkpoints is "
                "damaged; give another folder, or "
                f"delete {self.path / folder.STEPS} to begin anew"
            )
        return None

    def log_row(self, row: Mapping[str, Any]) -> None:
        """Adds a line to training.csv; lines from that step on, of a run that was killed, make room."""
        path = self.path / "training.csv"
        before = path.read_text(errors="replace").splitlines()[1:] if path.exists() else []
        kept = [line for line in before if _step_of(line, len(row)) is not None]
        if len(kept) < len(before):
            logging.warning("%s: %d lines are damaged and left out", path, len(before) - len(kept))
        kept = [line for line in kept if (_step_of(line, len(row)) or 0) < row["step"]]
        values = ",".join(
            f"{value:.6g}" if isinstance(value, float) else str(value) for value in row.values()
        )
        write_text(path, "\n".join([",".join(row), *kept, values]) + "\n")


@dataclasses.dataclass(frozen=True)
class TrainingCheckpoint:
    """What a training run resumes from.

    Attributes:
        path: the folder.
        weights: the weights to use, averaged ones where there are some.
        state: everything else, by name; at least `step` and `best_miou`.
        info: the classes.
    """

    path: pathlib.Path
    weights: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    info: DatasetInfo


def _read_training_checkpoint(path: pathlib.Path) -> TrainingCheckpoint:
    """Reads all that there is before anything is used of it, so that damage is found while another one can be taken.

    Raises:
        UserError: something of it is missing or damaged.
    """
    weights, state, info = (
        folder.read_weights(path),
        folder.read_arrays(path / folder.STATE),
        folder.read_info(path),
    )
    folder.read_config(path)
    missing = [name for name in ("step", "best_miou") if name not in state]
    if missing:
        raise UserError(f"{path / folder.STATE}: damaged (no {missing[0]}); {folder.ANOTHER}")
    raw = {name: value for name, value in state.items() if name.startswith("raw/")}
    check_values(raw, path / folder.STATE, folder.ANOTHER)
    return TrainingCheckpoint(path, weights, state, info)


def _step_of(line: str, columns: int) -> int | None:
    """The step of a line of training.csv; None: the line is damaged."""
    cells = line.split(",")
    return int(cells[0]) if len(cells) == columns and cells[0].isdecimal() else None


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
        "started": _now(),
    }


def _owner(lock: TextIO) -> tuple[str, str]:
    """Reads who holds the lock: a description and the name of the machine. Both are empty if unknown."""
    try:
        lock.seek(0)
        held = json.load(lock)
        return f"process {held['pid']} on {held['host']} since {held['since']}", str(held["host"])
    except (OSError, ValueError, KeyError, TypeError):  # Windows lets only the holder read the file
        return "", ""


def _lives(lock: pathlib.Path) -> bool:
    """Whether the lock file is touched while we look on; other machines' clocks do not matter."""
    before, until = lock.stat().st_mtime_ns, time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(BEAT / 10)
        with lock.open():  # a network file system looks afresh only when a file is opened
            if lock.stat().st_mtime_ns != before:
                return True
    return False


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
