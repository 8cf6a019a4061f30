"""Builds a web page that segments photos and the camera image in the browser.

The page is a folder of static files: the .tflite file, its classes, and LiteRT.js, which this
command downloads from the npm registry (requires Node.js). The network runs on the visitor's
device, also offline once the page is loaded; nothing is uploaded. Browsers allow the camera only
on https and localhost.

    python scripts/build_web.py --model_file=runs/demo/export/model.tflite --output=runs/demo/web
    python -m http.server --directory runs/demo/web 8000
"""

from __future__ import annotations

import dataclasses

from deeplab_keras.cli import Command, load_keras
from deeplab_keras.config import Config, option


@dataclasses.dataclass(frozen=True)
class WebOptions(Config):
    """What the page contains, and where to write it."""

    model_file: str = option(
        "", "a .tflite file of `export_model.py` that has labels among its outputs"
    )
    output: str = option("", "folder for the page")
    page: str = option("", "folder with the page's own files; default: those of this package")
    runtime: str = option(
        "", "a node_modules folder with @litertjs/core; default: downloads it with npm"
    )
    overwrite: bool = option(False, "replaces an existing page")

    def validate(self) -> None:
        """Requires a model file and an output folder."""
        self._require_given("model_file", "a .tflite file")
        self._require_given("output", "a folder for the page")


def main(command: Command) -> None:
    """Builds the page, and prints how to open it."""
    options = command.config(WebOptions)
    load_keras()

    from deeplab_keras.export.web import build_page

    folder = build_page(
        options.model_file,
        options.output,
        options.page or None,
        options.runtime or None,
        options.overwrite,
    )
    command.summary.wrote(folder)
    print(f"written: {folder}; to open it, run: python -m http.server --directory {folder} 8000")


SECTIONS = (WebOptions,)
