"""The web page: what its build refuses, and the page itself in a real browser where there is one."""

from __future__ import annotations

import functools
import http.server
import io
import json
import pathlib
import queue
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator

import numpy as np
import pytest
from contracts import BROWSER, ROOT, SHARED, noise, script
from PIL import Image

from deeplab_keras.config import UserError
from deeplab_keras.export.web import RUNTIME, build_page

PAGE = ROOT / "demo" / "web"
VOC = SHARED / "data/voc2012_sample/VOCdevkit/VOC2012/JPEGImages"


@pytest.fixture
def model_file(tmp_path) -> pathlib.Path:
    """A file with the packed text of an export; its network is none."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.json", json.dumps({"dataset": {"class_names": ["a"]}, "model": {}}))
    path = tmp_path / "model.tflite"
    path.write_bytes(b"TFL3" + buffer.getvalue())
    return path


@pytest.fixture
def modules(tmp_path) -> pathlib.Path:
    """A node_modules folder with files of the runtime's names."""
    for package, patterns in RUNTIME.items():
        for pattern in patterns:
            path = tmp_path / "node_modules" / package.rpartition("@")[0] / pattern.replace("*", "js")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"// {path.name}")
    return tmp_path / "node_modules"


def test_the_page_is_whole(model_file, modules, tmp_path):
    folder = build_page(model_file, tmp_path / "page", PAGE, modules)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {path.name for path in PAGE.iterdir()} <= found
    worker = (folder / "offline.js").read_text()
    kept = json.loads(worker[worker.index('["./"') : worker.index("]", worker.index('["./"')) + 1])
    assert set(kept) == {"./", *(name for name in found if "compat" not in name and name != "offline.js")}
    assert (folder / "model.tflite").read_bytes() == model_file.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    imports = json.loads(folder.joinpath("index.html").read_text().split("importmap")[1].split(">")[1].split("<")[0])
    assert all((folder / target).is_file() for target in imports["imports"].values())

    with pytest.raises(UserError, match="--output=.*page: exists; .*--overwrite"):
        build_page(model_file, folder, PAGE, modules)
    model_file.write_bytes(model_file.read_bytes().replace(b"TFL3", b"TFLX"))
    build_page(model_file, folder, PAGE, modules, overwrite=True)
    assert (folder / "offline.js").read_text() != worker


def test_what_the_build_refuses(model_file, modules, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no such file; export one"):
        build_page(tmp_path / "none.tflite", tmp_path / "page", PAGE, modules)
    bare = tmp_path / "bare.tflite"
    bare.write_bytes(b"TFL3")
    with pytest.raises(UserError, match="bare.tflite: its classes are not packed into it"):
        build_page(bare, tmp_path / "page", PAGE, modules)
    with zipfile.ZipFile(tmp_path / "scores.tflite", "w") as archive:
        archive.writestr("model.json", json.dumps({"dataset": {}, "model": {}, "outputs": ["logits"]}))
    with pytest.raises(UserError, match="scores.tflite: gives no labels, which the page shows; export it with --output=labels"):
        build_page(tmp_path / "scores.tflite", tmp_path / "page", PAGE, modules)
    with pytest.raises(UserError, match="is no page of this project"):
        build_page(model_file, modules, PAGE, modules, overwrite=True)
    with pytest.raises(UserError, match="no page here"):
        build_page(model_file, tmp_path / "page", tmp_path, modules)
    with pytest.raises(UserError, match="not there; give a node_modules folder with @litertjs/core"):
        build_page(model_file, tmp_path / "page", PAGE, tmp_path)
    monkeypatch.setenv("PATH", "")
    said: list[str] = []
    monkeypatch.setattr("absl.logging.info", lambda text, *values: said.append(text % values))
    with pytest.raises(UserError, match="npm is not installed"):
        build_page(model_file, tmp_path / "page", PAGE)
    assert not (tmp_path / "page").exists()
    assert said == ["fetching @litertjs/core@2.5.3 from the npm registry"], "a download takes its time"


# --- In a browser ---


class Server(http.server.SimpleHTTPRequestHandler):
    """Gives out the page and takes what it posts."""

    posted: queue.Queue[tuple[str, bytes]]

    def do_POST(self) -> None:
        self.posted.put((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test's output is its own."""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[tuple[pathlib.Path, str, queue.Queue]]:
    """The page with the official 0.5 model, if its weights are there, served on this machine."""
    from deeplab_keras.export import export_model

    place = tmp_path_factory.mktemp("web")
    assert script("convert_checkpoint.py")(
        "--source=official_deeplab", "--model=deeplabv3_mnv2_dm05_pascal_trainaug", f"--output={place / 'checkpoint'}",
        f"--checkpoint={SHARED / 'weights/deeplabv3_mnv2_dm05_257/deeplabv3.tflite'}",
    ) == 0  # fmt: skip
    export_model(place / "checkpoint", place / "export", formats=["tflite"], input_size=(257, 257))
    folder = build_page(place / "export/model.tflite", place / "page", PAGE)
    shutil.copy(ROOT / "tests/web_check.html", folder)
    posted: queue.Queue = queue.Queue()
    handler = type("Handler", (Server,), {"posted": posted})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/", posted
    server.shutdown()


def browse(url: str, *flags: str) -> subprocess.Popen[str]:
    arguments = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *flags, url]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


needs_npm = pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")


@pytest.mark.package("chromium")
@needs_npm
@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("photo", ["2007_000042.jpg", "2011_000003.jpg"])
def test_the_browser_s_labels_are_python_s(page, photo):
    from deeplab_keras.export.check import runner
    from deeplab_keras.export.images import resize

    folder, address, posted = page
    with Image.open(VOC / photo) as picture:
        image = np.asarray(picture.convert("RGB"))
    Image.fromarray(image).save(folder / "photo.png")  # so that both sides see the same decoder's pixels
    browser = browse(address + "web_check.html")
    try:
        path, body = posted.get(timeout=120)
    finally:
        browser.kill()
    assert path == "/labels", body.decode()
    found = np.frombuffer(body, np.uint8).reshape(257, 257)
    labels, _ = runner("tflite", folder / "model.tflite", threads=2)(resize(image, (257, 257)))
    share = (found == labels).mean()
    print(f"{photo}: {100 * share:.3f} % of the browser's labels are Python's")
    assert len(np.unique(labels)) > 1 and share >= 0.995


@pytest.mark.package("chromium")
@needs_npm
@pytest.mark.slow
@pytest.mark.shared
def test_the_page_shows_the_photo_without_an_error(page, tmp_path):
    folder, address, _ = page
    Image.fromarray(noise(120, 200, 3).astype(np.uint8)).save(folder / "photo.png")
    shot = tmp_path / "page.png"
    flags = ("--window-size=900,900", "--virtual-time-budget=60000", f"--screenshot={shot}")
    _, log = browse(f"{address}?image=photo.png", *flags).communicate(timeout=180)
    assert shot.is_file()
    wrong = [line for line in log.splitlines() if "ERROR:CONSOLE" in line or "Uncaught" in line]
    assert wrong == []
