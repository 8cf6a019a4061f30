"""A local file server that replaces the hosts of released weights."""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
from collections.abc import Iterator


class Server(http.server.ThreadingHTTPServer):
    """Serves one file under every name, or the files in `files`, with faults that a test sets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/models/"
        self.content, self.etag, self.status = b"", '"one"', 200
        self.files: dict[str, bytes] = {}  # by name; if empty, every name has `content`
        self.ranges, self.length = True, True  # whether it supports Range and sends the length
        self.partial: dict[str, str] = {}  # wrong headers of a 206 response
        # Number of bytes of the body after which each connection ends.
        self.cuts: list[int] = []
        self.asked: list[str | None] = []  # the Range headers received
        self.names: list[str] = []  # the names of the files requested


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        name = self.path.rpartition("/")[2]
        server.names.append(name)
        content = server.files.get(name) if server.files else server.content
        if server.status != 200 or content is None:
            self.send_error(404 if content is None else server.status)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        if asked and self.headers.get("If-Range") != server.etag:
            start = 0
        if start > len(content) or (start and start == len(content)):
            self.send_error(416)
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        headers = {"ETag": server.etag, "Content-Length": str(len(body)) if server.length else ""}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            headers |= server.partial
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def log_message(self, *arguments: object) -> None:
        """Keeps the tests' stderr clean."""


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Runs a server, and stops it."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
