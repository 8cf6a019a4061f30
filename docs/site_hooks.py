"""Hooks of mkdocs: the README is the front page, and links to files outside docs/ become text."""

from __future__ import annotations

import pathlib
import re
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Adds the README as the front page."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    text = text.replace('src="docs/', 'src="')
    text = re.sub(r"\[([^\]]+)\]\((?!https?:|#)(?![\w./]*\.(?:md|png))[^)]*\)", r"\1", text)
    text = text.replace("](CONTRIBUTING.md)", "]()").replace("](CHANGELOG.md)", "]()")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces links to files of the repository, which are not part of the site, by their text."""
    return re.sub(r"\[([^\]]+)\]\((?:\.\./(?!\w+\.md)[^)]*|)\)", r"\1", markdown)
