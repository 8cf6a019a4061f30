"""Downloads of released weights: cached, resumed after an interruption, checked.

    path = fetch("https://download.tensorflow.org/models/NAME.tar.gz", cache_folder() / "downloads")

A download is written to FILE.part and renamed when it is complete. FILE.part.json has what the
server said about the file.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import pathlib
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, BinaryIO

import filelock

from deeplab_keras.config import UserError
from deeplab_keras.io.progress import Progress
from deeplab_keras.io.writing import write_text
from deeplab_keras.version import __version__

VARIABLE = "DEEPLAB_KERAS_CACHE"
CHUNK = 1 << 16
TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 5  # connections that delivered some data before they failed
PAUSE = 1.0  # seconds before the next attempt
LARGEST = 4_000_000_000  # bytes per download; releases have up to 0.5 GB
# A download with fewer than SLOWEST bytes per second for STALLED seconds makes no progress.
SLOWEST, STALLED = 1000, 60
ABSENT = (http.HTTPStatus.FORBIDDEN, http.HTTPStatus.NOT_FOUND, http.HTTPStatus.GONE)
NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)


class TooLarge(Exception):
    """A download larger than `LARGEST`."""


def cache_folder() -> pathlib.Path:
    """Returns the folder of downloads and converted models.

    $DEEPLAB_KERAS_CACHE, or ~/.cache/deeplab_keras if that is not set.
    """
    return pathlib.Path(os.environ.get(VARIABLE) or "~/.cache/deeplab_keras").expanduser()


class NotDownloaded(UserError):
    """No file could be downloaded from an address.

    Args:
        message: The message, one line.
        reason: Why, without the address and the advice.
        absent: Whether the server answered that it has no such file.
    """

    def __init__(self, message: str, reason: str, absent: bool) -> None:
        super().__init__(message)
        self.reason, self.absent = reason, absent


def fetch(urls: str | Sequence[str], folder: pathlib.Path, checksum: str = "") -> pathlib.Path:
    """Returns the path of a file in the cache, after downloading it if necessary.

    Args:
        urls: An http or https address, or several addresses of equivalent files. The next one is
            tried if a server does not have the file.
        folder: The folder of the file, which has the last part of its address as its name. A file
            that is already there under any of the names is used.
        checksum: The expected checksum, as "sha256:..." or "sha384:..."; empty if it is unknown. It
            may be shortened to the digits that are in the file's name. A file that is already in
            the folder is also compared with the checksum that `record` wrote, if there is one.

    Raises:
        UserError: If the file cannot be downloaded, or if its checksum differs. The message says
            what to download manually and where to put it.
    """
    urls = (urls,) if isinstance(urls, str) else tuple(urls)
    present = [url for url in urls if (folder / _file_name(url)).exists()]
    reasons = []
    for url in present[:1] or urls:
        try:
            return _fetch(url, folder, checksum)
        except NotDownloaded as error:
            if len(urls) == 1:
                raise
            reasons.append(error.reason)
            if not error.absent:
                break
    raise UserError(
        f"{' or '.join(urls)}: cannot be downloaded ({'; '.join(dict.fromkeys(reasons))}); "
        f"download one of them manually, if necessary on another machine, and put it into {folder}"
    )


def _file_name(url: str) -> str:
    return url.rpartition("/")[2]


def _fetch(url: str, folder: pathlib.Path, checksum: str) -> pathlib.Path:
    path = folder / _file_name(url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            if path.is_dir():
                raise UserError(f"{path}: a folder; remove it, the file from {url} belongs there")
            if not path.exists():
                part = _download(url, path)
                _check(
                    part,
                    checksum,
                    f"{url}: the download is corrupt or not the expected file; it was deleted",
                )
                part.replace(path)
                _note_of(part).unlink(missing_ok=True)
            else:
                for expected in (checksum, _recorded(path)):
                    _check(
                        path,
                        expected,
                        f"{path}: damaged or changed; delete it to download it again",
                    )
    except OSError as error:
        advice = (
            "free some space there"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else f"set ${VARIABLE} to another folder"
        )
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); {advice}"
        ) from error
    return path


def record(path: pathlib.Path) -> None:
    """Writes a file's checksum next to it, unless there is one already.

    `fetch` compares the file with it later. It has the format of `sha256sum`.
    """
    target = _checksum_file(path)
    if not target.exists():
        write_text(target, f"{_digest(path, 'sha256')}  {path.name}\n")


# === One download ===


def _download(url: str, path: pathlib.Path) -> pathlib.Path:
    """Completes FILE.part, with several connections if necessary."""
    part = path.with_name(f"{path.name}.part")
    if part.is_symlink():  # the file that it leads to is not ours
        part.unlink()
    absent = False
    for attempt in range(ATTEMPTS):
        before = _size(part)
        try:
            total = _receive(url, part)
            if total is not None and _size(part) < total:
                raise ConnectionError(
                    f"the connection ended after {_size(part) / 1e6:.1f} of {total / 1e6:.1f} MB"
                )
            return part
        except TooLarge as error:
            part.unlink(missing_ok=True)
            _note_of(part).unlink(missing_ok=True)
            raise UserError(
                f"{url}: {error}; no released model is this large, so check the address"
            ) from error
        except NETWORK_ERRORS as error:
            reason = _reason(error)
            absent = isinstance(error, urllib.error.HTTPError) and error.code in ABSENT
        if _size(part) <= before or attempt == ATTEMPTS - 1:
            break
        time.sleep(PAUSE)
    resume = "run the same command again to resume, or " if _size(part) else ""
    raise NotDownloaded(
        f"{url}: cannot be downloaded ({reason}); {resume}download it manually, if necessary on "
        f"another machine, and put it into {path.parent}",
        reason,
        absent,
    )


def _receive(url: str, part: pathlib.Path) -> int | None:
    """Appends the data of one connection to FILE.part.

    Returns:
        The size of the complete file, or `None` if the server does not report it.
    """
    note = _read_note(part, url)
    start = _size(part) if note else 0
    if note and note["total"] == start:  # complete, but the process ended before renaming it
        return start
    headers = {"User-Agent": f"deeplab_keras/{__version__}"}
    if note and start:  # with If-Range, the server sends a file that has changed completely
        headers |= {"Range": f"bytes={start}-", "If-Range": note["validator"]}
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        part.unlink()
        return _receive(url, part)
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if validator.startswith("W/"):  # a weak validator does not guarantee identical bytes
            validator = ""
        if resumed and not _continues(response, start, note, validator):
            if not start:
                raise http.client.HTTPException(
                    "the server sent a part of the file that was not requested"
                )
            part.unlink()  # start over, without a range
            return _receive(url, part)
        length = _content_length(response)
        start = start if resumed else 0
        total = None if length is None else start + length
        if total is not None and total > LARGEST:
            raise TooLarge(f"{total / 1e9:.1f} GB, more than {LARGEST / 1e9:.0f} GB")
        if not resumed:
            _note_of(part).write_text(
                json.dumps({"url": url, "validator": validator, "total": total})
            )
        with part.open("r+b" if resumed else "wb") as file:
            file.seek(start)
            _copy(response, file, start, total, part.name.removesuffix(".part"))
    return total


def _copy(
    response: http.client.HTTPResponse, file: BinaryIO, start: int, total: int | None, name: str
) -> None:
    """Copies the body of a response and shows the progress in MB."""
    bar, done = None, start
    if total:
        megabytes = max(1, round(total / 1e6))
        bar = Progress(megabytes, f"downloading {name}, MB", start=round(start / 1e6), unit="MB")
    since, before = time.monotonic(), done
    while chunk := _read(response):
        file.write(chunk)
        done += len(chunk)
        if done > LARGEST:
            raise TooLarge(f"more than {LARGEST / 1e9:.0f} GB")
        if done - before >= SLOWEST * STALLED:
            since, before = time.monotonic(), done
        elif time.monotonic() - since > STALLED:
            raise TimeoutError(f"fewer than {SLOWEST} bytes per second for {STALLED} seconds")
        if bar and total:
            bar.update(min(bar.total * done // total, bar.total))


def _continues(
    response: http.client.HTTPResponse, start: int, note: dict[str, Any] | None, validator: str
) -> bool:
    """Whether a partial response is the rest of the file in FILE.part."""
    match = re.fullmatch(
        r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip()
    )
    if match is None or note is None or int(match[1]) != start:
        return False
    length, total = _content_length(response), note["total"]
    whole = match[3] == "*" or (
        int(match[2]) + 1 == int(match[3]) and total in (None, int(match[3]))
    )
    fits = length is None or length == int(match[2]) + 1 - start
    return whole and fits and validator in ("", note["validator"])


def _content_length(response: http.client.HTTPResponse) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK)  # the data available now; `read` would wait for all of it
    except OSError as error:  # distinguishes it from errors of the disk
        raise ConnectionError(error.strerror or str(error) or "the connection broke") from error


def _read_note(part: pathlib.Path, url: str) -> dict[str, Any] | None:
    """Returns what the server said about FILE.part, or `None` if it cannot be resumed."""
    try:
        note = json.loads(_note_of(part).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(note, dict) or note.get("url") != url or "total" not in note:
        return None
    validator = note.get("validator")
    usable = isinstance(validator, str) and validator.isascii() and validator.isprintable()
    return note if usable and validator and part.exists() else None


def _note_of(part: pathlib.Path) -> pathlib.Path:
    return part.with_name(f"{part.name}.json")


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server returned {error.code} {error.reason}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return (
            str(reason)
            if "bytes per second" in str(reason)
            else f"no response for {TIMEOUT} seconds"
        )
    return str(getattr(reason, "strerror", None) or reason or type(reason).__name__)


def _lock(path: pathlib.Path) -> filelock.BaseFileLock:
    """Returns the lock that makes other processes wait for the one that downloads the file."""
    return filelock.FileLock(path.with_name(f".{path.name}.lock"), fallback_to_soft=False)


# === Checksums ===


def _check(path: pathlib.Path, checksum: str, message: str) -> None:
    algorithm, _, expected = checksum.partition(":")
    if not expected:
        return
    found, expected = _digest(path, algorithm), expected.lower()
    # Authors shorten checksums in file names only.
    if found != expected and not (expected in path.name and found.startswith(expected)):
        if path.name.endswith(".part"):
            path.unlink()
            _note_of(path).unlink(missing_ok=True)
        raise UserError(f"{message} ({algorithm} {found[:16]}..., expected {expected[:16]}...)")


def _digest(path: pathlib.Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _checksum_file(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: pathlib.Path) -> str:
    """Returns the checksum that `record` wrote, or "" if it wrote none."""
    file = _checksum_file(path)
    if not file.exists():
        return ""
    digits = file.read_bytes()[:64].decode("latin-1")
    if not re.fullmatch("[0-9a-fA-F]{64}", digits):
        raise UserError(
            f"{file}: does not start with a SHA-256 of 64 digits; delete it and {path.name} to "
            "download the file again"
        )
    return f"sha256:{digits}"
