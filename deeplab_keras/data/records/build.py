"""Writes a split of any dataset as sharded TFRecords, in parallel.

A shard is written to a temporary file, read back, compared, and only then renamed. Its contents are
noted in a hidden folder, so that an interrupted build resumes with the missing shards. The index
and the manifest are written last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import logging
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

logger = logging.getLogger(__name__)

SHARD_BYTES = 128 << 20
FEWEST_SHARDS = 4  # as the official tools write


@dataclasses.dataclass(frozen=True)
class Built:
    """The result of a build.

    Attributes:
        folder: The folder of the records.
        split: The split.
        pairs: The number of pairs.
        shards: The number of files.
        size: The number of bytes in all files.
    """

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
    """Writes a source to files `SPLIT-00000-of-00004.tfrecord`, with a manifest and an index.

    JPEG and PNG files that all decoders read alike are stored unmodified; other images are stored
    as PNGs of their pixels. Masks are stored as PNGs of class ids. Existing records of the same
    files are kept; those that were deleted or truncated are written again.

    Args:
        source: The pairs. Each is decoded and checked.
        split: The first part of the file names.
        folder: The output folder; created if it does not exist.
        num_shards: The number of files; 0: files of about 128 MB, but at least four.
        threads: The number of files to write at once; 0: the number of CPU cores.
        overwrite: Whether to replace records of other files.

    Raises:
        UserError: A pair is broken, the folder cannot be written to or holds other records of this
            split, or another process is building them.
    """
    build = _Build(source, split, Path(folder).expanduser(), num_shards)
    with build.locked() if not build.is_complete(overwrite) else contextlib.nullcontext():
        # Checked again, as another process may have built them in between.
        if not build.is_complete(overwrite):
            build.prepare(overwrite)
            build.write_shards(threads or os.cpu_count() or 1)
            build.finish()
    return build.result()


def verify_records(folder: str | os.PathLike[str], split: str, files: list[Path]) -> int:
    """Reads record files completely and compares them with their manifest.

    Returns:
        The number of pairs.

    Raises:
        UserError: The manifest is missing, or a file differs from it.
    """
    manifest = read_manifest(Path(folder), split, files)
    if manifest is None:
        raise UserError(
            f"{manifest_path(Path(folder), split)}: this manifest does not exist, so the records "
            "cannot be verified; build them with `scripts/build_tfrecords.py`"
        )
    with reading(manifest_path(Path(folder), split), "a manifest", "build the records again"):
        noted = {shard["file"]: (shard["sha256"], shard["pairs"]) for shard in manifest["shards"]}
    progress = Progress(len(files), f"verifying {split}", unit="files")
    for number, path in enumerate(files):
        pairs = sum(1 for _ in scan(str(path)))
        if (_sha256(path), pairs) != noted.get(path.name):
            raise UserError(f"{path}: differs from its manifest; build or copy it again")
        progress.update(number + 1)
    return int(manifest["pairs"])


class _Stopped(Exception):
    """Another shard failed, or the build was interrupted."""


class _Build:
    """The build of the records of one split."""

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
    def locked(self) -> Iterator[None]:
        """Context that keeps other processes from building this split.

        The lock ends with the process, even if the process is killed.

        Raises:
            UserError: Another process is building the split, or the folder cannot be written to.
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
                "for it, or stop it and run this command again to resume"
            ) from error
        except OSError as error:
            logger.info(
                "%s: cannot be locked (%s); do not build the split in two processes at once",
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
        """Whether the same records already exist in full length.

        Raises:
            UserError: The folder holds other records of this split, and `overwrite` is False.
        """
        made_of, shards = self._manifest()
        if made_of not in ("", self.signature) and not overwrite:
            raise UserError(
                f"{self.folder}: it holds records of the split {self.split!r} built from other "
                "files or with another number of shards; `overwrite` replaces them"
            )
        return made_of == self.signature and not overwrite and all(map(self._is_whole, shards))

    def _manifest(self) -> tuple[str, list[dict[str, Any]]]:
        """Returns the signature and the shards of the finished build in the folder, or ""."""
        try:
            manifest = json.loads(manifest_path(self.folder, self.split).read_text())
            shards = [
                {**shard, "file": str(shard["file"]), "bytes": int(shard["bytes"])}
                for shard in manifest["shards"]
            ]
            return str(manifest["made_of"]), shards
        except Exception:  # missing or damaged: the records are built again
            return "", []

    def _is_whole(self, shard: dict[str, Any]) -> bool:
        path = self.folder / shard["file"]
        return path.is_file() and path.stat().st_size == shard["bytes"]

    def _keep_whole_shards(self) -> None:
        """Notes the intact shards of a finished build with missing or truncated shards as done."""
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
                continue  # damaged: it is written again
            if sizes:
                write_text(self._note(number), json.dumps({**shard, "sizes": sizes}))
        write_text(self.notes / "plan", self.signature)

    def prepare(self, overwrite: bool) -> None:
        """Writes the plan of the build.

        An unfinished build of the same files is resumed. One of other files is removed, or refused
        without `overwrite`.
        """
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
                "an unfinished build from other files"
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
        """Writes the missing shards, several at once."""
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
        except Exception:  # missing or damaged
            return False

    def _write_shard(self, number: int) -> None:
        try:
            self._write(number)
        except BaseException:
            self.stop.set()  # the other threads; unfinished shards are written again next time
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
                    errno.EIO, "the data read back differs from the data written; check the disk"
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
        """Writes the index and the manifest from the notes, and removes the notes."""
        with reading(
            self.notes, "notes of a build", "remove this folder and build the records again"
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
        # Temporary files of builds that were killed.
        for left in self.folder.glob(f".{self.split}-[0-9]*-of-[0-9]*.tfrecord.*.tmp"):
            left.unlink(missing_ok=True)

    def result(self) -> Built:
        size = sum(self.shard(number).stat().st_size for number in range(self.count))
        return Built(self.folder, self.split, len(self.source), self.count, size)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_of(source: Source, index: int) -> bytes:
    """Returns a pair as a serialized `tf.train.Example` with the official features.

    Raises:
        UserError: The pair is broken.
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
