"""Builds a web page that segments photos and the camera's picture in the browser.

The page is a folder of static files: the .tflite file, its classes, and LiteRT.js, which is had
from the npm registry (Node.js is needed once, here). Nothing is uploaded: the network runs on the
visitor's device, once loaded also offline. The camera wants https or localhost.

    python scripts/build_web.py --model_file=runs/demo/export/model.tflite --output=runs/demo/web
    python -m http.server --directory runs/demo/web 8000
"""

from __future__ import annotations

import dataclasses
import pathlib

from deeplab_keras.cli import Command
from deeplab_keras.config import Config, option

PAGE = pathlib.Path(__file__).resolve().parent.parent / "demo" / "web"


@dataclasses.dataclass(frozen=True)
class Options(Config):
    """What goes into the page, and where to."""

    model_file: str = option(
        "", "a .tflite file that export_model.py wrote, with labels among its outputs"
    )
    output: str = option("", "folder for the page")
    page: str = option(str(PAGE), "folder of the page's own files")
    runtime: str = option("", "a node_modules folder with @litertjs/core; default: npm fetches it")
    overwrite: bool = option(False, "replaces an earlier page")

    def validate(self) -> None:
        """A file and a place are needed."""
        self._require_given("model_file", "a .tflite file")
        self._require_given("output", "a folder for the page")


def main(command: Command) -> None:
    """Builds and says how to look at it."""
    options = command.config(Options)

    from deeplab_keras.export.web import build_page

    folder = build_page(
        options.model_file, options.output, options.page, options.runtime or None, options.overwrite
    )
    print(f"written: {folder}; look at it by: python -m http.server --directory {folder} 8000")


SECTIONS = (Options,)
