"""The web page: errors of its build, and the page in a browser if one is installed."""

from __future__ import annotations

import functools
import html.parser
import http.server
import io
import json
import pathlib
import queue
import re
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator

import numpy as np
import pytest
from contracts import BROWSER, ROOT, SHARED, as_command_line, noise, raises_line, script
from PIL import Image
from test_export_at_head import bilinear, nearest

from deeplab_keras.cli.commands.build_web import WebOptions
from deeplab_keras.export.web import RUNTIME, _packed, build_page
from deeplab_keras.inference.resizing import letterbox_size

PAGE = ROOT / "demo" / "web"
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; "
    "worker-src 'self'; base-uri 'none'; form-action 'none'"
)
IMPORTED = re.compile(
    r"""(?:^\s*(?:import|export)\b[^'"();]*|\bimport\s*\(\s*)["']([^'"]+)["']""", re.MULTILINE
)
MEDIAPIPE = "@mediapipe/tasks-vision@1.1.0"
VOC = SHARED / "data/voc2012_sample/VOCdevkit/VOC2012/JPEGImages"


@pytest.fixture
def model_file(tmp_path) -> pathlib.Path:
    """A file with the packed text of an export, but without a network."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.json", json.dumps({"dataset": {"class_names": ["a"]}, "model": {}}))
    path = tmp_path / "model.tflite"
    path.write_bytes(b"TFL3" + buffer.getvalue())
    return path


@pytest.fixture
def modules(tmp_path) -> pathlib.Path:
    """A node_modules folder with the file names of the runtime."""
    for package, patterns in RUNTIME.items():
        for pattern in patterns:
            path = (
                tmp_path / "node_modules" / package.rpartition("@")[0] / pattern.replace("*", "js")
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"// {path.name}")
    core, wasm_utils = (
        tmp_path / "node_modules/@litertjs" / name / "dist/index.js"
        for name in ("core", "wasm-utils")
    )
    core.write_text('const one = 1;\nimport { createWasmLib } from "@litertjs/wasm-utils";\n')
    wasm_utils.write_text("const name = '@litertjs/core';\nexport { createWasmLib };\n")
    return tmp_path / "node_modules"


def test_the_page_is_complete(model_file, modules, tmp_path):
    folder = build_page(model_file, tmp_path / "page", PAGE, modules)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {path.name for path in PAGE.iterdir()} <= found
    worker = (folder / "offline.js").read_text()
    kept = json.loads(worker[worker.index('["./"') : worker.index("]", worker.index('["./"')) + 1])
    assert set(kept) == {
        "./",
        *(name for name in found if "compat" not in name and name != "offline.js"),
    }
    assert (folder / "model.tflite").read_bytes() == model_file.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    with raises_line("--output=.*page: exists; .*--overwrite"):
        build_page(model_file, folder, PAGE, modules)
    model_file.write_bytes(model_file.read_bytes().replace(b"TFL3", b"TFLX"))
    build_page(model_file, folder, PAGE, modules, overwrite=True)
    assert (folder / "offline.js").read_text() != worker


class Tags(html.parser.HTMLParser):
    """The tags of a page with their attributes, and the text within scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            self.inline.append(data)


def forbidden(text: str) -> list[str]:
    """Returns what the policy forbids: inline scripts and styles, handlers, other servers."""
    page = Tags(text)
    found = [data for data in page.inline if data.strip()]
    for tag, attributes in page.tags:
        found += [
            f"{tag} {name}" for name in attributes if name.startswith("on") or name == "style"
        ]
        addresses = [
            attributes.get(name) or "" for name in ("src", "href", "srcset", "action", "data")
        ]
        found += [
            f"{tag} {address}"
            for address in addresses
            if ":" in address or address.startswith("//")
        ]
    return found


def imports(folder: pathlib.Path) -> dict[str, list[str]]:
    """Returns the imports of the scripts in a folder, each with the scripts that have it."""
    found: dict[str, list[str]] = {}
    for path in folder.rglob("*.js"):
        for name in IMPORTED.findall(path.read_text()):
            found.setdefault(name, []).append(path.relative_to(folder).as_posix())
    return found


def check_imports(folder: pathlib.Path) -> None:
    """Checks that each import is a relative path of an existing file."""
    for name, scripts in imports(folder).items():
        assert name.startswith(("./", "../")), f"{scripts}: {name}"
        for path in scripts:
            assert (folder / path).parent.joinpath(name).resolve().is_file(), f"{path}: {name}"


def test_the_page_has_a_policy_and_keeps_it(model_file, modules, tmp_path):
    folder = build_page(model_file, tmp_path / "page", PAGE, modules)
    text = (folder / "index.html").read_text()
    tags = Tags(text).tags
    policies = [
        at
        for at, (_, attributes) in enumerate(tags)
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert [tags[at][1]["content"] for at in policies] == [POLICY]
    first = next(
        at for at, (tag, _) in enumerate(tags) if tag in ("link", "script", "style", "img")
    )
    assert policies[0] < first, "a policy holds for what comes after it"
    assert forbidden(text) == []
    for kind in (
        "<script>a()</script>",
        "<script type=importmap>{}</script>",
        "<style>a{}</style>",
        "<p style='color: red'>",
        "<img src=a.png onerror=a()>",
        "<img src=data:,>",
        "<script src=//a.org/a.js></script>",
    ):
        assert forbidden(text.replace("</body>", f"{kind}</body>")) != [], kind


def test_imports_are_paths_of_files_in_the_folder(model_file, modules, tmp_path):
    folder = build_page(model_file, tmp_path / "page", PAGE, modules)
    assert imports(folder) == {
        "./pixels.js": ["app.js", "segmenter.js"],
        "./segmenter.js": ["app.js"],
        "./litert/core/index.js": ["segmenter.js"],
        "../../litert/wasm-utils/index.js": ["litert/core/index.js"],
    }
    check_imports(folder)
    kept = (folder / "litert/wasm-utils/index.js").read_text()
    assert kept == "const name = '@litertjs/core';\nexport { createWasmLib };\n", (
        "what is no import stays as it is"
    )


def test_what_the_build_refuses(model_file, modules, tmp_path, monkeypatch):
    with raises_line("no such file; export one"):
        build_page(tmp_path / "none.tflite", tmp_path / "page", PAGE, modules)
    bare = tmp_path / "bare.tflite"
    bare.write_bytes(b"TFL3")
    none = (
        "damaged or not a .tflite file with its classes packed into it .*; give a .tflite file "
        "that export_model.py wrote"
    )
    with raises_line(f"bare.tflite: {none}"):
        build_page(bare, tmp_path / "page", PAGE, modules)
    for text in (
        "",
        "[]",
        "{}",
        '{"dataset": [], "model": {}}',
        '{"dataset": {"class_names": []}}',
        "{",
        "[" * 100_000,
        '{"dataset": {"class_names": []}, "model": {}, "outputs": 3}',
    ):
        with zipfile.ZipFile(bare, "w") as archive:
            archive.writestr("model.json", text)
        with raises_line(f"bare.tflite: {none}") as caught:
            build_page(bare, tmp_path / "page", PAGE, modules)
        assert "\n" not in as_command_line(caught.value)
    with raises_line(r"cannot be read \(Is a directory\)"):
        build_page(tmp_path, tmp_path / "page", PAGE, modules)
    with zipfile.ZipFile(tmp_path / "scores.tflite", "w") as archive:
        archive.writestr(
            "model.json",
            json.dumps({"dataset": {"class_names": ["a"]}, "model": {}, "outputs": ["logits"]}),
        )
    with raises_line(
        "scores.tflite: does not output labels, which the page shows; export it with "
        "--output=labels",
    ):
        build_page(tmp_path / "scores.tflite", tmp_path / "page", PAGE, modules)
    with raises_line("is not a page of this project"):
        build_page(model_file, modules, PAGE, modules, overwrite=True)
    with raises_line("has no index.html; give a folder that has, or omit --page"):
        build_page(model_file, tmp_path / "page", tmp_path, modules)
    with raises_line("no such file; give a node_modules folder with @litertjs/core"):
        build_page(model_file, tmp_path / "page", PAGE, tmp_path)
    monkeypatch.setenv("PATH", "")
    said: list[str] = []
    monkeypatch.setattr(
        "deeplab_keras.export.web.logger.info", lambda text, *values: said.append(text % values)
    )
    with raises_line("npm is not installed"):
        build_page(model_file, tmp_path / "page", PAGE)
    assert not (tmp_path / "page").exists()
    assert said == ["downloading @litertjs/core@2.5.3 from the npm registry"], (
        "a download takes its time"
    )


def test_outputs_of_the_heads_size_are_shown(modules, tmp_path):
    """The page enlarges them, also if the file has only logits."""
    path = tmp_path / "model.tflite"
    with zipfile.ZipFile(path, "w") as archive:
        about = {"dataset": {"class_names": ["a"]}, "model": {}}
        archive.writestr(
            "model.json", json.dumps(about | {"outputs": ["logits"], "output_at": "head"})
        )
    assert (build_page(path, tmp_path / "page", PAGE, modules) / "model.tflite").is_file()


@pytest.mark.skipif(not shutil.which("node"), reason="Node.js is not installed")
def test_the_page_enlarges_outputs_like_python(tmp_path):
    scores = noise(6, 9, 4, seed=1)
    labels = scores.argmax(-1)
    sizes = [(17, 25), (48, 72), (6, 9)]
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(PAGE / "pixels.js", tmp_path)
    (tmp_path / "run.js").write_text(
        "import {enlargeLabels, enlargeScores} from './pixels.js';\n"
        f"const scores = {scores.ravel().tolist()}, labels = {labels.ravel().tolist()};\n"
        f"const found = {json.dumps(sizes)}.flatMap((to) => [false, true].map((align) => [\n"
        "  [...enlargeScores(scores, [6, 9], to, align)],\n"
        "  [...enlargeLabels(labels, [6, 9], to, align)]]));\n"
        "console.log(JSON.stringify(found));\n"
    )
    done = subprocess.run(
        ["node", str(tmp_path / "run.js")], capture_output=True, text=True, check=True
    )
    found = iter(json.loads(done.stdout))
    for size in sizes:
        for align_corners in (False, True):
            by_scores, by_labels = (np.reshape(values, size) for values in next(found))
            expected = bilinear(scores, size, align_corners).argmax(-1)
            assert (by_scores == expected).mean() >= 0.995, (size, align_corners)
            np.testing.assert_array_equal(by_labels, nearest(labels, size, align_corners))


@pytest.mark.skipif(not shutil.which("node"), reason="Node.js is not installed")
def test_the_page_letterboxes_like_python(tmp_path):
    cases = [((120, 70), (65, 97)), ((320, 480), (257, 257)), ((9, 1000), (64, 64))]
    pixels = noise(3, 4, 3)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(PAGE / "pixels.js", tmp_path)
    (tmp_path / "run.js").write_text(
        "import {cropLabels, letterbox, letterboxSize} from './pixels.js';\n"
        f"const pixels = Float32Array.from({pixels.ravel().tolist()});\n"
        "console.log(JSON.stringify([\n"
        f"  {json.dumps(cases)}.map(([from, to]) => letterboxSize(from, to)),\n"
        "  [...letterbox(pixels, [3, 4], [5, 6], [1, 2, 3])],\n"
        "  [...cropLabels(Int32Array.from({length: 12}, (_, i) => i), [3, 4], [2, 3])]]));\n"
    )
    done = subprocess.run(
        ["node", str(tmp_path / "run.js")], capture_output=True, text=True, check=True
    )
    sizes, filled, cropped = json.loads(done.stdout)
    assert [tuple(size) for size in sizes] == [letterbox_size(*case) for case in cases]
    expected = np.broadcast_to(np.float32([1, 2, 3]), (5, 6, 3)).copy()
    expected[:3, :4] = pixels
    np.testing.assert_array_equal(np.reshape(np.float32(filled), (5, 6, 3)), expected)
    np.testing.assert_array_equal(cropped, np.arange(12).reshape(3, 4)[:2, :3].ravel())


# --- In a browser ---


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves the page and collects what it posts."""

    posted: queue.Queue[tuple[str, bytes]]

    def do_POST(self) -> None:
        self.posted.put((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test's output is its own."""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[tuple[pathlib.Path, str, queue.Queue]]:
    """The page with the official 0.5 model, served locally; skipped without the weights."""
    from deeplab_keras.export import export_model

    place = tmp_path_factory.mktemp("web")
    assert (
        script("convert_checkpoint.py")(
            "--source=official_deeplab",
            "--model=deeplabv3_mnv2_dm05_pascal_trainaug",
            "--output_stride=8",
            f"--output={place / 'checkpoint'}",
            f"--checkpoint={SHARED / 'weights/deeplabv3_mnv2_dm05_257/deeplabv3.tflite'}",
        )
        == 0
    )
    export_model(place / "checkpoint", place / "export", formats=["tflite"], input_size=(257, 257))
    folder = build_page(place / "export/model.tflite", place / "page", PAGE)
    shutil.copy(ROOT / "tests/web_check.js", folder)
    text = (folder / "index.html").read_text()
    (folder / "web_check.html").write_text(text.replace('src="app.js"', 'src="web_check.js"'))
    posted: queue.Queue = queue.Queue()
    handler = type("Handler", (Server,), {"posted": posted})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/", posted
    server.shutdown()


def browse(url: str, *flags: str) -> subprocess.Popen[str]:
    arguments = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        *flags,
        url,
    ]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wrong(log: str) -> list[str]:
    """Returns errors and policy violations from the browser's console."""
    pattern = re.compile(
        r"CONSOLE.*(Uncaught|Refused|Content Security Policy|Failed to (load|fetch))"
    )
    return [line for line in log.splitlines() if pattern.search(line)]


needs_npm = pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")


@pytest.mark.package("chromium")
@needs_npm
@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("photo", ["2007_000042.jpg", "2011_000003.jpg"])
def test_the_browser_predicts_the_same_labels_as_python(page, photo):
    from deeplab_keras.export.check import runner
    from deeplab_keras.export.images import resize

    folder, address, posted = page
    with Image.open(VOC / photo) as picture:
        image = np.asarray(picture.convert("RGB"))
    Image.fromarray(image).save(
        folder / "photo.png"
    )  # so that both get the pixels of the same decoder
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
def test_the_browser_enlarges_small_outputs_of_a_letterboxed_image(page):
    from deeplab_keras.export import export_model
    from deeplab_keras.export.images import Fit
    from deeplab_keras.inference import open_exported

    folder, address, posted = page
    path = folder.parent / "small.tflite"
    export_model(
        folder.parent / "checkpoint",
        path,
        formats=["tflite"],
        input_size=(257, 257),
        resize="letterbox",
        output="logits",
        output_at="head",
    )
    small = build_page(path, folder.parent / "small", PAGE)
    kept = {name: (folder / name).read_bytes() for name in ("model.tflite", "model.json")}
    with Image.open(VOC / "2007_000042.jpg") as picture:
        image = np.asarray(picture.convert("RGB"))
    Image.fromarray(image).save(folder / "photo.png")
    for name in kept:
        shutil.copy(small / name, folder)
    browser = browse(address + "web_check.html")
    try:
        way, body = posted.get(timeout=120)
    finally:
        browser.kill()
        for name, content in kept.items():
            (folder / name).write_bytes(content)
    assert way == "/labels", body.decode()
    height, width = letterbox_size(image.shape[:2], (257, 257))
    network = open_exported(path)
    fitted = Fit((257, 257), network.pad_value).image(image)
    scores = np.asarray(network(fitted[None]))[0, :height, :width]
    found = np.frombuffer(body, np.uint8).reshape(height, width)
    share = (found == scores.argmax(-1)).mean()
    print(f"{100 * share:.3f} % of the browser's labels are Python's")
    assert len(np.unique(found)) > 1 and share >= 0.995


@pytest.fixture(scope="module")
def beside_mediapipe(page) -> pathlib.Path:
    """A page with both outputs in the folder `both` of the server, and MediaPipe's runtime."""
    from deeplab_keras.export import export_model

    folder, _, _ = page
    path = folder.parent / "both.tflite"
    export_model(
        folder.parent / "checkpoint",
        path,
        formats=["tflite"],
        input_size=(257, 257),
        output="both",
    )
    both = build_page(path, folder / "both", PAGE)
    for name in ("web_check", "mediapipe_check"):
        shutil.copy(ROOT / f"tests/{name}.js", both)
    shutil.copy(folder / "web_check.html", both)
    (both / "mediapipe_check.html").write_text(
        '<!doctype html><meta charset="utf-8"><title>MediaPipe</title>\n'
        '<script type="module" src="mediapipe_check.js"></script>\n'
    )
    runtime = _packed(MEDIAPIPE, folder.parent)
    shutil.copytree(runtime / "wasm", both / "tasks/wasm")
    shutil.copy(runtime / "vision_bundle.mjs", both / "tasks")
    return both


def labels_of(check: str, size: tuple[int, int], page: tuple) -> np.ndarray:
    """Returns the labels that a check in the folder `both` posts for its photo.png."""
    _, address, posted = page
    # MediaPipe's postprocessing needs WebGL, which SwiftShader provides without a GPU.
    browser = browse(
        f"{address}both/{check}.html", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"
    )
    try:
        path, body = posted.get(timeout=240)
    finally:
        browser.kill()
    assert path == "/both/labels", body.decode()
    return np.frombuffer(body, np.uint8).reshape(size)


@pytest.mark.package("chromium")
@needs_npm
@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("photo", ["2007_000042.jpg", "2011_000003.jpg"])
def test_mediapipe_litert_and_python_agree_on_one_file(page, beside_mediapipe, photo):
    """On an image of the file's size. MediaPipe resizes others without half-pixel centers."""
    from deeplab_keras.export.images import resize
    from deeplab_keras.inference import Predictor

    predictor = Predictor(beside_mediapipe / "model.tflite")
    with Image.open(VOC / photo) as picture:
        image = np.asarray(picture.convert("RGB"))
    resized = resize(image, (257, 257))
    expected = predictor(resized)
    Image.fromarray(resized).save(beside_mediapipe / "photo.png")
    found = {
        check: (labels_of(check, (257, 257), page) == expected).mean()
        for check in ("web_check", "mediapipe_check")
    }
    Image.fromarray(image).save(beside_mediapipe / "photo.png")
    own = labels_of("mediapipe_check", image.shape[:2], page)
    found["mediapipe_check, own size"] = (own == predictor(image)).mean()
    for check, share in found.items():
        print(f"{photo}: {check}: {100 * share:.3f} % of the labels are Python's")
    assert len(np.unique(expected)) > 1
    assert min(found["web_check"], found["mediapipe_check"]) >= 0.999
    assert found["mediapipe_check, own size"] >= 0.96


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
    assert wrong(log) == []


@pytest.mark.package("chromium")
@needs_npm
@pytest.mark.slow
@pytest.mark.shared
def test_the_browser_enforces_the_policy(page):
    """Scripts injected into the page do not run."""
    folder, address, posted = page
    text = (folder / "index.html").read_text()
    (folder / "attack.js").write_text(
        "fetch('own', {method: 'POST'}); try { new Function('') } catch { fetch('eval', {method: "
        "'POST'}) }"
    )
    added = (
        "<script>fetch('inline', {method: 'POST'})</script><img src=none.png "
        "onerror=\"fetch('handler', {method: 'POST'})\">"
        "<p style='color: red'>a</p><img src='http://localhost:1/a.png'><script "
        "src=attack.js></script>"
    )
    (folder / "attack.html").write_text(text.replace("</body>", f"{added}</body>"))
    _, log = browse(
        f"{address}attack.html", "--virtual-time-budget=60000", "--dump-dom"
    ).communicate(timeout=180)
    refused = wrong(log)
    print("\n".join(refused))
    for directive in ("script-src", "style-src", "img-src"):
        assert any(directive in line for line in refused), directive
    assert sorted(posted.get_nowait()[0] for _ in range(posted.qsize())) == ["/eval", "/own"]


def test_the_default_page_is_in_the_repository(model_file, modules, tmp_path):
    options = WebOptions(model_file="a.tflite", output="web")
    assert options.page == "" and (PAGE / "index.html").is_file()
    folder = build_page(model_file, tmp_path / "page", runtime=modules)
    assert (folder / "index.html").read_bytes() == (PAGE / "index.html").read_bytes()
