"""The folder of one training run: its lock, its settings and its training checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import logging
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

from deeplab_keras.checkpoints import folder
from deeplab_keras.checkpoints.values import check_values
from deeplab_keras.config import Config, ModelConfig, UserError
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.io.writing import write_text

logger = logging.getLogger(__name__)

LOCK = ".lock"
STARTS_WITH = ("config.json", "flags.txt", "environment.json")
HEARTBEAT = 10.0  # seconds between two heartbeats of a run
PATIENCE = 30.0  # seconds without a heartbeat before a run on another machine counts as dead

# Settings that may change when a run is resumed: where and how fast it computes, what it displays,
# and how often it saves.
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
    """The folder of a training run, locked while it is open so that no other run writes to it.

    On one machine, the lock is the operating system's, which ends with the process in any case.
    Machines that share the folder may not share such locks. Therefore the lock file also says who
    holds it, and is touched every few seconds as a heartbeat. A run on another machine counts as
    dead when its heartbeat stops.

    A run that fails before it has anything to resume from removes its files, so that the next run
    can use the folder.

    Args:
        path: The folder; created if it does not exist.
        configs: The configs of the run: "model", "data", "train", "eval" -> config. If the folder
            already has a run, its configs must be the same, except for `MAY_CHANGE`.
        teacher: The path and hashes of the run's teacher, written to config.json. If the folder
            already has a run, its hashes must be the same.
        flags_text: The flags of the command line, written to flags.txt.
        keep: Number of training checkpoints to keep.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        configs: Mapping[str, Config],
        flags_text: str = "",
        *,
        teacher: Mapping[str, Any] | None = None,
        keep: int = 2,
    ) -> None:
        if not str(path):
            raise UserError(
                "`train_logdir` is required: the folder for checkpoints and logs, such as "
                "`train_logdir=runs/first`"
            )
        self.path = pathlib.Path(path)
        self.configs = configs
        self.flags_text = flags_text
        self.teacher = teacher
        self.keep = keep
        self._lock: TextIO | None = None
        self._owns = False
        self._ended = threading.Event()

    def __enter__(self) -> Workdir:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(
                f"`train_logdir={self.path}`: is a file; give a folder, which is created if "
                "necessary"
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
        except OSError as error:  # of the lock file: the error of a full disk has no file name
            self.__exit__()
            raise UserError(
                f"`train_logdir={self.path}`: cannot be written ({error.strerror}); free some "
                "space, or give another folder"
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
                # On a full or disconnected disk, the operating system still frees the lock.
                with contextlib.suppress(OSError):
                    self._lock.truncate(0)
            if exception and isinstance(exception[1], UserError) and not self._begun():
                self._remove_start()
            with contextlib.suppress(OSError):
                self._lock.close()
            self._lock = None

    def _take_lock(self, lock: TextIO) -> None:
        held = not filelock.lock_descriptor(lock.fileno(), blocking=False)
        owner, host = _owner(lock)
        if not held and owner and host != socket.gethostname():
            logger.info(
                "%s was used by %s; waiting to see whether it is still running", self.path, owner
            )
            held = _has_heartbeat(self.path / LOCK)
            if not held:
                logger.info(
                    "no heartbeat from %s for %g seconds; taking over the folder", owner, PATIENCE
                )
        if held:
            raise UserError(
                f"`train_logdir={self.path}`: in use by another training run "
                f"({owner or 'unknown process'}); wait until it ends, or give another folder"
            )
        lock.truncate(0)
        lock.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}))
        lock.flush()
        self._owns = True

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            try:
                os.utime(self.path / LOCK)
            except OSError as error:
                logger.warning(
                    "%s: %s; a run on another machine may assume that this one is dead",
                    self.path / LOCK,
                    error.strerror,
                )

    def _begun(self) -> bool:
        """Whether the run has checkpoints or results."""
        return bool(folder.step_folders(self.path)) or any(
            (self.path / name).exists() for name in (folder.BEST, "training.csv")
        )

    def _remove_start(self) -> None:
        with contextlib.suppress(OSError):
            for name in (*STARTS_WITH, LOCK):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()  # fails if the folder has other files

    def _compare(self) -> None:
        path = self.path / "config.json"
        if (self.path / folder.WEIGHTS).exists():
            raise UserError(
                f"`train_logdir={self.path}`: is a checkpoint, which a run would overwrite; give "
                "another folder, and this one as `tf_initial_checkpoint` to start from it"
            )
        if not path.exists():
            if folder.step_folders(self.path) or (self.path / folder.BEST).exists():
                raise UserError(
                    f"`train_logdir={self.path}`: has checkpoints but no config.json; give another "
                    "folder"
                )
            return
        try:
            before = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: damaged ({error}); give another `train_logdir`") from error
        if not isinstance(before, dict) or self.configs.keys().isdisjoint(before or self.configs):
            raise UserError(
                f"{path}: not the settings of a training run; give another `train_logdir`"
            )
        if not self._begun():
            return
        now = json.loads(
            json.dumps({name: config.to_dict() for name, config in self.configs.items()})
        )
        for part, fields in now.items():
            written = before.get(part)
            written = written if isinstance(written, dict) else {}
            for field, value in fields.items():
                old = written.get(field, value)
                option = type(self.configs[part]).options().get(field)
                if option is not None and isinstance(old, str):
                    old = option.metadata["aliases"].get(old, old)
                if old != value and f"{part}.{field}" not in MAY_CHANGE:
                    raise UserError(
                        f"`train_logdir={self.path}`: has a run with {field}={old}, but this one "
                        f"has {field}={value}; give another folder for a new run, or the same "
                        "settings to resume the existing one"
                    )
        teacher = before.get("teacher")
        if (
            self.teacher
            and isinstance(teacher, dict)
            and teacher.get("sha256") != self.teacher["sha256"]
        ):
            raise UserError(
                f"`train_logdir={self.path}`: has a run whose teacher had other weights than "
                f"{self.teacher['checkpoint']} has now; give another folder for a new run, or "
                "restore the teacher to resume the existing one"
            )

    def _describe(self) -> None:
        configs = {name: config.to_dict() for name, config in self.configs.items()}
        if self.teacher:
            configs["teacher"] = dict(self.teacher)
        texts = (
            json.dumps(configs, indent=2) + "\n",
            self.flags_text,
            json.dumps(environment(), indent=2) + "\n",
        )
        for name, text in zip(STARTS_WITH, texts, strict=True):
            write_text(self.path / name, text)

    def check_space(self, model: keras.Model) -> None:
        """Raises UserError if the disk does not have enough space for the run's checkpoints."""
        weights = sum(int(np.prod(v.shape)) * 4 for v in model.variables)
        needed = weights * (2 * (self.keep + 1) + 1)
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise UserError(
                f"`train_logdir={self.path}`: {free >> 20} MiB are free, but the checkpoints need "
                f"{max(needed >> 20, 1)} MiB; free some space or give a folder on another disk"
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
        """Writes the training checkpoint of a step and deletes older ones beyond `keep`."""
        path = self.path / folder.STEPS / f"step_{step:08d}"
        folder.save_checkpoint(path, model, config, info, weights=weights, state=state)
        # Newer checkpoints are damaged, or the run would have resumed from them. They must not
        # count as kept ones.
        folders = folder.step_folders(self.path)
        present = folders.index(path)
        for old in (*folders[: max(present + 1 - self.keep, 0)], *folders[present + 1 :]):
            shutil.rmtree(old, ignore_errors=True)

    def newest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, intact or not; `None` if there is none."""
        folders = folder.step_folders(self.path)
        return int(folders[-1].name.removeprefix("step_")) if folders else None

    def newest(self) -> TrainingCheckpoint | None:
        """Reads the newest intact training checkpoint; returns `None` if there are no checkpoints.

        Raises:
            UserError: If there are checkpoints and all of them are damaged.
        """
        folders = folder.step_folders(self.path)
        for path in reversed(folders):
            folder.restore_interrupted_swap(path)
            try:
                return _read_training_checkpoint(path)
            except UserError as error:
                logger.warning("%s; trying the previous checkpoint", error)
        if folders:
            raise UserError(
                f"`train_logdir={self.path}`: all {len(folders)} checkpoints are damaged; give "
                f"another folder, or delete {self.path / folder.STEPS} to start over"
            )
        return None

    def log_row(self, row: Mapping[str, Any]) -> None:
        """Appends a line to training.csv, after removing lines of the same and later steps.

        Such lines are from a run that was killed and resumed from an earlier step.
        """
        path = self.path / "training.csv"
        before = path.read_text(errors="replace").splitlines()[1:] if path.exists() else []
        kept = [line for line in before if _step_of(line, len(row)) is not None]
        if len(kept) < len(before):
            logger.warning("%s: removed %d damaged lines", path, len(before) - len(kept))
        kept = [line for line in kept if (_step_of(line, len(row)) or 0) < row["step"]]
        values = ",".join(
            f"{value:.6g}" if isinstance(value, float) else str(value) for value in row.values()
        )
        write_text(path, "\n".join([",".join(row), *kept, values]) + "\n")


@dataclasses.dataclass(frozen=True)
class TrainingCheckpoint:
    """The contents of a checkpoint from which a training run resumes.

    Attributes:
        path: The folder.
        weights: The weights for evaluation; averaged weights if the run averages them.
        state: Everything else, by name; at least `step` and `best_miou`.
        info: The classes.
    """

    path: pathlib.Path
    weights: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    info: DatasetInfo


def _read_training_checkpoint(path: pathlib.Path) -> TrainingCheckpoint:
    """Reads a training checkpoint completely.

    So damage is found before anything is used, while another checkpoint can still be chosen.

    Raises:
        UserError: If a part is missing or damaged.
    """
    weights = folder.read_weights(path)
    state = folder.read_arrays(path / folder.STATE)
    info = folder.read_info(path)
    folder.read_config(path)
    missing = [name for name in ("step", "best_miou") if name not in state]
    if missing:
        raise UserError(f"{path / folder.STATE}: damaged (no {missing[0]}); {folder.ANOTHER}")
    raw = {name: value for name, value in state.items() if name.startswith("raw/")}
    check_values(raw, path / folder.STATE, folder.ANOTHER)
    return TrainingCheckpoint(path, weights, state, info)


def _step_of(line: str, columns: int) -> int | None:
    """Returns the step of a line of training.csv, or `None` if the line is damaged."""
    cells = line.split(",")
    return int(cells[0]) if len(cells) == columns and cells[0].isdecimal() else None


def environment() -> dict[str, Any]:
    """Returns versions, machine, command and time of a run."""
    names = ("deeplab_keras", "tensorflow", "tensorflow-cpu", "keras", "jax", "numpy")
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
    """Returns a description of the lock's owner and the name of its machine, empty if unknown."""
    try:
        lock.seek(0)
        held = json.load(lock)
        return f"process {held['pid']} on {held['host']} since {held['since']}", str(held["host"])
    except (OSError, ValueError, KeyError, TypeError):  # on Windows, only the owner can read it
        return "", ""


def _has_heartbeat(lock: pathlib.Path) -> bool:
    """Whether the lock file is touched within `PATIENCE` seconds.

    Modification times are only compared with each other, because clocks of other machines differ.
    """
    before, until = lock.stat().st_mtime_ns, time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(HEARTBEAT / 10)
        with lock.open():  # network file systems refresh attributes when a file is opened
            if lock.stat().st_mtime_ns != before:
                return True
    return False


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
