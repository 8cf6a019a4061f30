"""The web page: a folder for any static server that runs a .tflite file in the browser."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import tempfile

from deeplab_keras.config import UserError
from deeplab_keras.inference.exported import packed_files
from deeplab_keras.io.foreign import reading
from deeplab_keras.io.resources import resource_folder

logger = logging.getLogger(__name__)

# npm package -> the files of it that the page needs. npm verifies the checksum of a download.
RUNTIME = {
    "@litertjs/core@2.5.3": (
        "dist/index.js",
        "wasm/litert_wasm_internal.*",
        "wasm/litert_wasm_compat_internal.*",
    ),
    "@litertjs/wasm-utils@2.5.3": ("dist/index.js",),
}
ON_DEMAND = "compat"  # cached for offline use only by browsers that load it
BARE_IMPORT = re.compile(
    r"""^((?:import|export)\b[^'"]*["'])@litertjs/([\w-]+)(?=["'])""", re.MULTILINE
)


def build_page(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    page: str | os.PathLike[str] | None = None,
    runtime: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> pathlib.Path:
    """Builds a page from its own files, the model, its classes, and LiteRT.js.

    Args:
        model: A .tflite file of `export_model` with labels as an output, or with any outputs of the
            head's size. Its classes are packed into it.
        output: The folder to write. It is written completely or not at all.
        page: The folder of the page's own files; `None` for the page of this package.
        runtime: A node_modules folder with LiteRT.js; `None` to download it with `npm pack`.
        overwrite: Whether to replace an existing page.

    Returns:
        `output`.

    Raises:
        UserError: The model or the page does not exist or is not valid, the folder exists, or npm
            is missing or fails.
    """
    model, output = pathlib.Path(model), pathlib.Path(output)
    page = pathlib.Path(page or resource_folder("demo/web"))
    if output.exists() and not overwrite:
        raise UserError(
            f"`output={output}`: exists; give another folder, or `overwrite` to replace the page "
            "in it"
        )
    if output.exists() and any(output.iterdir()) and not (output / "offline.js").is_file():
        raise UserError(
            f"`output={output}`: exists and is not a page of this project; give another folder"
        )
    if not (page / "index.html").is_file():
        raise UserError(f"`page={page}`: has no index.html; give a folder that has, or omit `page`")
    about = _about(model)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        folder = pathlib.Path(temporary) / "page"
        shutil.copytree(page, folder, ignore=shutil.ignore_patterns(".*", "README.md"))
        shutil.copyfile(model, folder / "model.tflite")
        (folder / "model.json").write_text(about, encoding="utf-8")
        _copy_runtime(folder / "litert", pathlib.Path(runtime) if runtime else None)
        _relative_imports(folder)
        _list_files(folder)
        if output.exists():
            shutil.rmtree(output)
        folder.rename(output)
    return output


def _about(model: pathlib.Path) -> str:
    if not model.exists():
        raise UserError(
            f"`model_file={model}`: no such file; export one with `export_model.py` "
            "--formats=tflite"
        )
    with reading(
        model,
        "a .tflite file with its classes packed into it",
        "give a .tflite file that `export_model.py` wrote",
    ):
        text = packed_files(model)["model.json"]
        about = json.loads(text)
        about["dataset"]["class_names"], about["model"]  # shown by the page
        # Files of earlier versions do not list their outputs.
        has_labels = "labels" in about.get("outputs", ["labels"])
        # The page enlarges small logits, and takes the class with the largest one.
        at_head = about.get("output_at") == "head"
    if not has_labels and not at_head:
        raise UserError(
            f"`model_file={model}`: does not output labels, which the page shows; export it with "
            "`output='labels'` or `output='both'`"
        )
    return text


def _copy_runtime(target: pathlib.Path, modules: pathlib.Path | None) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        for package, patterns in RUNTIME.items():
            name = package.rpartition("@")[0]
            home = modules / name if modules else _packed(package, pathlib.Path(temporary))
            short = name.rpartition("/")[2]
            for pattern in patterns:
                found = sorted(home.glob(pattern))
                if not found:
                    raise UserError(
                        f"{home / pattern}: no such file; give a node_modules folder with {package}"
                    )
                for file in found:
                    copy = (
                        target
                        / short
                        / file.relative_to(home / "dist" if "dist" in pattern else home)
                    )
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, copy)


def _packed(package: str, folder: pathlib.Path) -> pathlib.Path:
    """Downloads a package from the npm registry, and returns its unpacked folder."""
    logger.info("downloading %s from the npm registry", package)
    place = folder / package.replace("/", "-")
    place.mkdir()
    try:
        done = subprocess.run(
            ["npm", "pack", package, "--silent"],
            cwd=place,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    except FileNotFoundError:
        raise UserError(
            f"npm is not installed, and is needed to download {package}; install Node.js, or give "
            "`runtime='node_modules'` from another machine"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"npm pack {package}: timed out after five minutes; check the connection, or give "
            "`runtime`"
        ) from None
    archives = list(place.glob("*.tgz"))
    if done.returncode or not archives:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"npm pack {package}: {reason}; check the connection, or give `runtime='node_modules'`"
        )
    with tarfile.open(archives[0]) as archive:
        archive.extractall(place, filter="data")
    return place / "package"


def _relative_imports(folder: pathlib.Path) -> None:
    """Replaces package names in imports by paths.

    An import map would be an inline script, which the page's Content-Security-Policy forbids.
    """
    for script in sorted(folder.rglob("*.js")):
        up = "../" * (len(script.relative_to(folder).parts) - 1) or "./"
        text = script.read_text(encoding="utf-8")
        found = BARE_IMPORT.sub(rf"\g<1>{up}litert/\g<2>/index.js", text)
        if found != text:
            script.write_text(found, encoding="utf-8")


def _list_files(folder: pathlib.Path) -> None:
    """Writes the list of files and their checksum into the service worker.

    A changed checksum makes browsers reload the page.
    """
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name != "offline.js"
    )
    checksum = hashlib.sha256()
    for path in files:
        checksum.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    names = [path.relative_to(folder).as_posix() for path in files if ON_DEMAND not in path.name]
    worker = folder / "offline.js"
    text = worker.read_text(encoding="utf-8").replace("VERSION", checksum.hexdigest()[:12])
    worker.write_text(text.replace("['./']", json.dumps(["./", *names])), encoding="utf-8")
