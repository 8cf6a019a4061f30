"""Writes a split of any dataset as sharded TFRecords: in parallel, resumable, read back and compared before it counts as done.

A shard is written aside, read again from end to end and only then gets its name; what it holds is
noted in a hidden folder, so that a build that was stopped goes on with the shards that are missing.
The manifest and the index are written last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image

from deeplab_keras.config import UserError
from deeplab_keras.data.files.archives import read_bytes
from deeplab_keras.data.files.pairs import FileSource
from deeplab_keras.data.files.reading import PNG_SIGNATURE
from deeplab_keras.data.files.record_file import (
    CHANNELS,
    FOOTER,
    HEADER,
    HEIGHT,
    IMAGE,
    IMAGE_FORMAT,
    LABEL,
    LABEL_FORMAT,
    NAME,
    WIDTH,
    scan,
)
from deeplab_keras.data.records.cache import pair_state
from deeplab_keras.data.records.record_index import RecordIndex
from deeplab_keras.data.records.tfrecords import FORMAT, manifest_path, read_manifest
from deeplab_keras.data.source import Source
from deeplab_keras.io.foreign import reading
from deeplab_keras.io.progress import Progress
from deeplab_keras.io.writing import replacing, write_text
from deeplab_keras.version import __version__

SHARD_BYTES = 128 << 20
FEWEST_SHARDS = 4  # as the official tools make


@dataclasses.dataclass(frozen=True)
class Built:
    """What a build made: its folder, split, and how many pairs in how many files of how many bytes."""

    folder: Path
    split: str
    pairs: int
    shards: int
    size: int


def build_records(
    source: Source,
    split: str,
    folder: str | os.PathLike[str],
    *,
    num_shards: int = 0,
    threads: int = 0,
    overwrite: bool = False,
) -> Built:
    """Writes every pair of a source into record files `SPLIT-00000-of-00004.tfrecord`, with manifest and index.

    A JPEG or PNG that every decoder reads alike goes in as it is, anything else as a PNG of its
    pixels; masks are PNGs of class ids. Records that were built before of the same files are left
    as they are; of these, a file that is gone or was cut off since is written again.

    Args:
        source: the pairs; each is decoded and checked on the way.
        split: the files' first name.
        folder: where to; made if it is not there.
        num_shards: number of files; 0: as many as are about 128 MB each, but four at least.
        threads: how many files are written at once; 0: one a core.
        overwrite: builds anew over records of other files.

    Raises:
        UserError: a pair is broken, the folder cannot be written to, it holds other records of this
            split, or another process is building them.
    """
    build = _Build(source, split, Path(folder).expanduser(), num_shards)
    with build.alone() if not build.is_complete(overwrite) else contextlib.nullcontext():
        if not build.is_complete(
            overwrite
        ):  # asked again: another process may have built them in between
            build.prepare(overwrite)
            build.write_shards(threads or os.cpu_count() or 1)
            build.finish()
    return build.result()


def verify_records(folder: str | os.PathLike[str], split: str, files: list[Path]) -> int:
    """Reads record files from end to end and compares them with their manifest; gives the number of pairs.

    Raises:
        UserError: there is no manifest, or a file differs from it.
    """
    manifest = read_manifest(Path(folder), split, files)
    if manifest is None:
        raise UserError(
            f"{manifest_path(Path(folder), split)}: there is no manifest to compare the records "
            "with"
        )
    with reading(manifest_path(Path(folder), split), "a manifest", "build the records anew"):
        noted = {shard["file"]: (shard["sha256"], shard["pairs"]) for shard in manifest["shards"]}
    progress = Progress(len(files), f"verifying {split}", unit="files")
    for number, path in enumerate(files):
        pairs = sum(1 for _ in scan(str(path)))
        if (_sha256(path), pairs) != noted.get(path.name):
            raise UserError(f"{path}: differs from what its manifest says; build or copy it anew")
        progress.update(number + 1)
    return int(manifest["pairs"])


class _Stopped(Exception):
    """Another shard failed, or the build was interrupted."""


class _Build:
    """One split on its way into records."""

    def __init__(self, source: Source, split: str, folder: Path, num_shards: int) -> None:
        self.source, self.split, self.folder = source, split, folder
        sizes = [pair_state(source, index) for index in range(len(source))]
        automatic = max(math.ceil(sum(size for size, _ in sizes) / SHARD_BYTES), FEWEST_SHARDS)
        self.count = min(num_shards or automatic, len(source))
        parts = {
            "dataset": source.info.to_dict(),
            "names": source.names,
            "files": sizes,
            "shards": self.count,
        }
        self.signature = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        self.bounds = np.linspace(0, len(source), self.count + 1).astype(int).tolist()
        self.notes = folder / f".{split}.building"
        self.stop, self.lock, self.written = threading.Event(), threading.Lock(), 0

    def shard(self, number: int) -> Path:
        return self.folder / f"{self.split}-{number:05d}-of-{self.count:05d}.tfrecord"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes from building this split; the lock ends with the process, even if it is killed.

        Raises:
            UserError: another process is building the split, or the folder cannot be written to.
        """
        path = self.folder / f".{self.split}.lock"
        lock = filelock.FileLock(path, blocking=False, fallback_to_soft=False)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written to ({error.strerror}); give another `output_dir`"
            ) from error
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise UserError(
                f"{self.folder}: another process is building the split {self.split!r} there; wait "
                "until it is done, or stop it: "
                "the same command then goes on"
            ) from error
        except OSError as error:
            logging.info(
                "%s: cannot be locked (%s); do not build the split twice at once",
                self.folder,
                error.strerror,
            )
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows does not delete an open file
                path.unlink()
            lock.release()

    def is_complete(self, overwrite: bool) -> bool:
        """Whether the same records are there already, in their full length; raises UserError if others are."""
        made_of, shards = self._manifest()
        if made_of not in ("", self.signature) and not overwrite:
            raise UserError(
                f"{self.folder}: it holds records of the split {self.split!r} made of other "
                "files, or in another number "
                "of files; `overwrite` replaces them"
            )
        return made_of == self.signature and not overwrite and all(map(self._is_whole, shards))

    def _manifest(self) -> tuple[str, list[dict[str, Any]]]:
        """What the finished build in the folder was made of, and its shards; "" where there is none."""
        try:
            manifest = json.loads(manifest_path(self.folder, self.split).read_text())
            shards = [
                {**shard, "file": str(shard["file"]), "bytes": int(shard["bytes"])}
                for shard in manifest["shards"]
            ]
            return str(manifest["made_of"]), shards
        except Exception:  # none there, or damaged: the records are built again
            return "", []

    def _is_whole(self, shard: dict[str, Any]) -> bool:
        path = self.folder / shard["file"]
        return path.is_file() and path.stat().st_size == shard["bytes"]

    def _keep_whole_shards(self) -> None:
        """Notes the good files of a finished build, of which others are gone or were cut off, as done."""
        made_of, shards = self._manifest()
        if made_of != self.signature:
            return
        for number, shard in enumerate(shards):
            try:
                sizes = (
                    [len(record) for _, record in scan(str(self.folder / shard["file"]))]
                    if self._is_whole(shard)
                    else []
                )
            except UserError:
                continue  # damaged too: it is written again
            if sizes:
                write_text(self._note(number), json.dumps({**shard, "sizes": sizes}))
        write_text(self.notes / "plan", self.signature)

    def prepare(self, overwrite: bool) -> None:
        """Writes the plan; an unfinished build of the same files goes on, one of others is refused or removed."""
        if not overwrite:
            self._keep_whole_shards()
        plan = self.notes / "plan"
        unfinished = plan.read_text() if plan.is_file() else None
        strange = [
            path.name
            for path in self.folder.glob(f"{self.split}-[0-9]*-of-[0-9]*")
            if path.is_file()
        ]
        if unfinished == self.signature and not overwrite:
            return
        if (strange or unfinished) and not overwrite:
            what = (
                "an unfinished build of other files"
                if unfinished
                else f"other records ({strange[0]})"
            )
            raise UserError(
                f"{self.folder}: it holds {what} of the split {self.split!r}; `overwrite` "
                "replaces them"
            )
        others = [
            *self.notes.glob("*"),
            *(self.folder / name for name in strange),
            manifest_path(self.folder, self.split),
        ]
        for path in others:
            path.unlink(missing_ok=True)
        write_text(plan, self.signature)

    def write_shards(self, threads: int) -> None:
        """Writes the shards that are not there yet, several at once."""
        missing = [number for number in range(self.count) if not self._is_done(number)]
        if not missing:
            return
        left = sum(self.bounds[number + 1] - self.bounds[number] for number in missing)
        self.written = len(self.source) - left
        progress = Progress(len(self.source), f"writing {self.split}", start=self.written)
        with ThreadPoolExecutor(threads) as pool:
            jobs = [pool.submit(self._write_shard, number) for number in missing]
            try:
                while not self.stop.is_set() and not all(job.done() for job in jobs):
                    self.stop.wait(0.1)
                    progress.update(min(self.written, len(self.source) - 1))
            finally:
                self.stop.set()
        for error in filter(None, (job.exception() for job in jobs)):
            if not isinstance(error, _Stopped):
                raise error
        progress.update(len(self.source))

    def _note(self, number: int) -> Path:
        return self.notes / f"{number:05d}.json"

    def _is_done(self, number: int) -> bool:
        try:
            return (
                json.loads(self._note(number).read_text())["bytes"]
                == self.shard(number).stat().st_size
            )
        except Exception:  # not written yet, or damaged
            return False

    def _write_shard(self, number: int) -> None:
        try:
            self._write(number)
        except BaseException:
            # the others too; what they have not finished is written again next time
            self.stop.set()
            raise

    def _write(self, number: int) -> None:
        digests: list[str] = []
        sizes: list[int] = []
        path = self.shard(number)
        with replacing(path) as aside:
            try:
                with tf.io.TFRecordWriter(str(aside)) as writer:
                    for index in range(self.bounds[number], self.bounds[number + 1]):
                        if self.stop.is_set():
                            raise _Stopped
                        record = record_of(self.source, index)
                        writer.write(record)
                        digests.append(hashlib.sha256(record).hexdigest())
                        sizes.append(len(record))
                        with self.lock:
                            self.written += 1
            except tf.errors.OpError as error:
                raise OSError(errno.EIO, str(error.message).rpartition("; ")[2]) from error
            if [hashlib.sha256(record).hexdigest() for _, record in scan(str(aside))] != digests:
                raise OSError(
                    errno.EIO, "what was read back is not what was written; the disk may be failing"
                )
            checksum = _sha256(aside)
        note = {
            "file": path.name,
            "pairs": len(sizes),
            "bytes": path.stat().st_size,
            "sha256": checksum,
        }
        write_text(self._note(number), json.dumps({**note, "sizes": sizes}))

    def finish(self) -> None:
        """Writes index and manifest from the notes, which are not needed any more."""
        with reading(
            self.notes, "notes of a build", "remove this folder and build the records anew"
        ):
            notes = [json.loads(self._note(number).read_text()) for number in range(self.count)]
            sizes = [np.array(note.pop("sizes"), np.int64) for note in notes]
        RecordIndex(
            files=tuple(note["file"] for note in notes),
            file_bytes=tuple(note["bytes"] for note in notes),
            names=self.source.names,
            file_of=np.repeat(np.arange(self.count, dtype=np.int32), [len(part) for part in sizes]),
            offsets=np.concatenate(
                [np.cumsum(part + HEADER + FOOTER) - (part + HEADER + FOOTER) for part in sizes]
            ),
            sizes=np.concatenate(sizes),
            plain=np.ones((len(self.source), 2), bool),
        ).save(self.folder / f"{self.split}.index.npz")
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "made_by": f"deeplab_keras {__version__}",
            "made_of": self.signature,
            "split": self.split,
            "pairs": len(self.source),
            "dataset": self.source.info.to_dict(),
            "shards": notes,
        }
        write_text(manifest_path(self.folder, self.split), json.dumps(manifest, indent=1) + "\n")
        shutil.rmtree(self.notes, ignore_errors=True)
        for left in self.folder.glob(
            f".{self.split}-[0-9]*-of-[0-9]*.tfrecord.*.tmp"
        ):  # of a build that was killed
            left.unlink(missing_ok=True)

    def result(self) -> Built:
        size = sum(self.shard(number).stat().st_size for number in range(self.count))
        return Built(self.folder, self.split, len(self.source), self.count, size)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_of(source: Source, index: int) -> bytes:
    """One pair as a tf.train.Example with the official features, serialized.

    Raises:
        UserError: the pair is broken.
    """
    image, label = source.load(index)
    image_file = label_file = b""
    if isinstance(source, FileSource) and source.plain:
        image_file = read_bytes(source.images[index]) if source.plain[index][0] else b""
        label_file = (
            read_bytes(source.labels[index])
            if source.plain[index][1] and source.label_map is None
            else b""
        )
    image_file = image_file or _png(image)
    features: dict[str, bytes | int] = {
        IMAGE: image_file,
        IMAGE_FORMAT: b"png" if image_file.startswith(PNG_SIGNATURE) else b"jpeg",
        NAME: source.names[index].encode(),
        HEIGHT: image.shape[0],
        WIDTH: image.shape[1],
        CHANNELS: 3,
        LABEL: label_file or _png(label),
        LABEL_FORMAT: b"png",
    }
    example = tf.train.Example()
    for key, value in features.items():
        if isinstance(value, bytes):
            example.features.feature[key].bytes_list.value.append(value)
        else:
            example.features.feature[key].int64_list.value.append(value)
    return example.SerializeToString()


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
