"""Downloads from a local server: complete, resumed, changed, refused."""

from __future__ import annotations

import errno
import hashlib
import http.server
import pathlib
import pickle
import socket
import threading
import time

import numpy as np
import pytest
from contracts import as_command_line, holding, noise, raises_line
from file_server import Handler

from deeplab_keras.checkpoints import download
from deeplab_keras.checkpoints.download import NotDownloaded, cache_folder, fetch, record
from deeplab_keras.config import UserError

CONTENT = noise(700_000, seed=3).astype(np.uint8).tobytes()
CHECKSUM = f"sha384:{hashlib.sha384(CONTENT).hexdigest()}"


@pytest.fixture
def server(server):
    server.content = CONTENT
    return server


def remaining(folder) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".file.bin.lock"}


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv(download.VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "deeplab_keras"
    monkeypatch.setenv(download.VARIABLE, "~/elsewhere")
    assert cache_folder() == tmp_path / "elsewhere"


@pytest.mark.parametrize("length", [True, False])
def test_a_file_is_downloaded_once(server, tmp_path, capfd, length):
    server.length = length
    path = fetch(server.url + "file.bin", tmp_path / "new", CHECKSUM)
    assert path == tmp_path / "new" / "file.bin" and path.read_bytes() == CONTENT
    assert remaining(path.parent) == {"file.bin"}
    assert ("downloading file.bin, MB 1/1" in capfd.readouterr().err) == length
    assert fetch(server.url + "file.bin", tmp_path / "new", CHECKSUM) == path
    assert server.asked == [None]


def test_a_broken_connection_is_resumed(server, tmp_path):
    server.cuts = [100_000, 200_000]
    assert fetch(server.url + "file.bin", tmp_path, CHECKSUM).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=300000-"]


def test_the_next_call_resumes_the_download(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.cuts = [100_000]
    with raises_line("ended after 0.1 of 0.7 MB.*same command .* resume.*put it into") as caught:
        fetch(server.url + "file.bin", tmp_path)
    assert "\n" not in as_command_line(caught.value)
    assert (
        not (tmp_path / "file.bin").exists()
        and (tmp_path / "file.bin.part").stat().st_size == 100_000
    )
    assert fetch(server.url + "file.bin", tmp_path, CHECKSUM).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"] and remaining(tmp_path) == {"file.bin"}


WRONG_PARTS = {
    "another place": {"Content-Range": "bytes 90000-699999/700000"},
    "another length": {"Content-Range": "bytes 100000-799999/800000"},
    "no range": {"Content-Range": ""},
    "no bytes": {"Content-Range": "bytes */700000"},
    "another file": {"ETag": '"two"'},
    "too few bytes": {"Content-Range": "bytes 100000-199999/700000"},
}


@pytest.mark.parametrize("name", WRONG_PARTS)
def test_a_wrong_part_is_not_appended(server, tmp_path, monkeypatch, name):
    """If a 206 response is not the rest of the file, the download starts over."""
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.cuts = [100_000]
    with pytest.raises(UserError):
        fetch(server.url + "file.bin", tmp_path)
    server.partial = WRONG_PARTS[name]
    assert fetch(server.url + "file.bin", tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", None]


def test_a_too_large_file_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 500_000)
    for server.length in (True, False):
        with raises_line("no released model is this large, so check the address") as caught:
            fetch(server.url + "file.bin", tmp_path)
        assert "\n" not in as_command_line(caught.value) and remaining(tmp_path) == set()


def test_a_stalled_download_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "STALLED", 0.5)
    monkeypatch.setattr(download, "ATTEMPTS", 1)

    class Slow(Handler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.05)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as slow:
        threading.Thread(target=slow.serve_forever, daemon=True).start()
        begin = time.monotonic()
        with raises_line("fewer than 1000 bytes per second for 0.5 seconds"):
            fetch(f"http://127.0.0.1:{slow.server_port}/file.bin", tmp_path)
        assert time.monotonic() - begin < 4
        slow.shutdown()


@pytest.mark.parametrize("change", ["content", "ranges"])
def test_a_changed_file_or_a_server_without_ranges_starts_over(
    server, tmp_path, monkeypatch, change
):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.cuts = [100_000]
    with pytest.raises(UserError):
        fetch(server.url + "file.bin", tmp_path)
    if change == "ranges":
        server.ranges = False
    else:
        server.content, server.etag = CONTENT[::-1], '"two"'
    assert fetch(server.url + "file.bin", tmp_path).read_bytes() == server.content
    assert server.asked == [None, "bytes=100000-"]


@pytest.mark.parametrize("etag", ['W/"weak"', ""])
def test_without_a_strong_validator_the_download_starts_over(server, tmp_path, monkeypatch, etag):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.etag, server.cuts = etag, [100_000]
    with pytest.raises(UserError):
        fetch(server.url + "file.bin", tmp_path)
    assert fetch(server.url + "file.bin", tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, None]


def test_partial_files_of_unknown_origin_start_over(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"what?" * 1000)
    (tmp_path / "file.bin.part.json").write_text('{"url": "http://elsewhere')
    assert fetch(server.url + "file.bin", tmp_path).read_bytes() == CONTENT
    assert server.asked == [None] and remaining(tmp_path) == {"file.bin"}


@pytest.mark.parametrize("surplus", [b"", b"and more"])
def test_a_part_that_is_complete_or_too_long(server, tmp_path, monkeypatch, surplus):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.cuts = [100_000]
    with pytest.raises(UserError):
        fetch(server.url + "file.bin", tmp_path)
    (tmp_path / "file.bin.part").write_bytes(CONTENT + surplus)
    assert fetch(server.url + "file.bin", tmp_path, CHECKSUM).read_bytes() == CONTENT
    assert len(server.asked) == (3 if surplus else 1)


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    server.content = CONTENT[:-1] + b"!"
    with raises_line("corrupt or not the expected file; it was deleted .sha384 "):
        fetch(server.url + "file.bin", tmp_path, CHECKSUM)
    assert remaining(tmp_path) == set()


def test_a_cached_file_that_changed_is_refused(server, tmp_path):
    path = fetch(server.url + "file.bin", tmp_path)
    record(path)
    assert (
        tmp_path / "file.bin.sha256"
    ).read_text() == f"{hashlib.sha256(CONTENT).hexdigest()}  file.bin\n"
    path.write_bytes(CONTENT[:-1])
    record(path)  # does not replace the recorded checksum
    with raises_line(f"{path}: damaged or changed; delete it to download it again .sha256"):
        fetch(server.url + "file.bin", tmp_path)


@pytest.mark.parametrize(
    "damage",
    [b"", b"\n", hashlib.sha256(CONTENT).hexdigest()[:8].encode() + b"  file.bin\n", b"\xff" * 64],
)
def test_a_damaged_record_of_a_checksum_is_refused(server, tmp_path, damage):
    """The first eight digits of the right one, for example."""
    path = fetch(server.url + "file.bin", tmp_path)
    (tmp_path / "file.bin.sha256").write_bytes(damage)
    with raises_line(
        f"^{path}.sha256: does not start with a SHA-256 of 64 digits; delete it and file.bin to "
        "download the file again$"
    ):
        fetch(server.url + "file.bin", tmp_path)
    assert path.read_bytes() == CONTENT


def test_only_the_digits_in_a_file_name_are_enough(server, tmp_path):
    """As in `NAME-d234d4ea.pth`; and the complete checksum, once recorded, is compared too."""
    digits = hashlib.sha256(CONTENT).hexdigest()[:8]
    with raises_line("corrupt or not the expected file; it was deleted"):
        fetch(server.url + "file.bin", tmp_path, f"sha256:{digits}")
    path = fetch(f"{server.url}file-{digits}.pth", tmp_path, f"sha256:{digits}")
    record(path)
    assert fetch(f"{server.url}file-{digits}.pth", tmp_path, f"sha256:{digits}") == path
    recorded = tmp_path / f"{path.name}.sha256"
    recorded.write_text(digits + "0" * 56)  # as if the digits of both files were the same
    with raises_line(f"{path}: damaged or changed"):
        fetch(f"{server.url}file-{digits}.pth", tmp_path, f"sha256:{digits}")


@pytest.mark.parametrize(
    "status, reason", [(404, "404 Not Found"), (503, "503 Service Unavailable")]
)
def test_an_error_of_the_server_is_reported(server, tmp_path, status, reason):
    server.status = status
    with raises_line(
        f"the server returned {reason}.; download it manually.* put it into {tmp_path}",
    ) as caught:
        fetch(server.url + "file.bin", tmp_path)
    error = pickle.loads(pickle.dumps(caught.value))  # as it comes back from a worker process
    assert isinstance(error, NotDownloaded) and str(error) == str(caught.value)
    assert (error.reason, error.absent) == (f"the server returned {reason}", status == 404)
    assert len(server.asked) == 1 and remaining(tmp_path) == set()


def test_offline(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file.bin"
        with pytest.raises(UserError) as caught:
            fetch(url, tmp_path)
    message = as_command_line(caught.value)
    assert (
        url in message and "Connection refused" in message and f"put it into {tmp_path}" in message
    )
    assert "\n" not in message


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    with raises_line("cannot be written .*DEEPLAB_KERAS_CACHE"):
        fetch(server.url + "file.bin", tmp_path / "file" / "folder")


def test_a_folder_in_place_of_the_file_is_refused(server, tmp_path):
    (tmp_path / "file.bin").mkdir()
    with raises_line("file.bin: a folder; remove it, the file from http.*file.bin belongs there"):
        fetch(server.url + "file.bin", tmp_path)


def test_concurrent_calls_download_once(server, tmp_path):
    done = []
    threads = [
        threading.Thread(
            target=lambda: done.append(fetch(server.url + "file.bin", tmp_path, CHECKSUM))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4 and server.asked == [None]


def test_a_download_waits_for_another_process_until_that_ends(server, tmp_path):
    done = []
    with holding(tmp_path / ".file.bin.lock") as other:
        thread = threading.Thread(
            target=lambda: done.append(fetch(server.url + "file.bin", tmp_path, CHECKSUM))
        )
        thread.start()
        thread.join(0.3)
        assert thread.is_alive() and server.asked == []
        other.kill()
        thread.join(10)
    assert done == [tmp_path / "file.bin"] and server.asked == [None]


@pytest.mark.parametrize(
    "note",
    [
        "[]",
        "null",
        "[" * 100_000,
        '{"url": "URL", "validator": "v"}',
        '{"url": "URL", "validator": "a\\nb", "total": 9}',
        '{"url": "URL", "validator": ["v"], "total": 5}',
    ],
)
def test_a_damaged_note_starts_the_download_over(server, tmp_path, note):
    url = server.url + "file.bin"
    (tmp_path / "file.bin.part").write_bytes(b"12345")
    (tmp_path / "file.bin.part.json").write_text(note.replace("URL", url))
    assert fetch(url, tmp_path).read_bytes() == CONTENT


def test_a_link_in_the_cache_is_not_written_through(server, tmp_path):
    outside, cache = tmp_path / "outside", tmp_path / "cache"
    cache.mkdir()
    outside.write_text("keep")
    (cache / "file.bin.part").symlink_to(outside)
    path = fetch(server.url + "file.bin", cache)
    assert outside.read_text() == "keep"
    assert path.read_bytes() == CONTENT and not path.is_symlink()


def test_a_checksum_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "file.bin").write_bytes(CONTENT)

    def full(self, text, **options):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with raises_line("file.bin.sha256: cannot be written .No space left"):
        record(tmp_path / "file.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]
