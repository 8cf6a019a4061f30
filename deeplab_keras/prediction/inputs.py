"""The inputs of a prediction: files, folders, patterns and cameras."""

from __future__ import annotations

import collections
import dataclasses
import glob
import os
import pathlib
import re
from collections import Counter

from deeplab_keras.config import UserError

IMAGES = (
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".mpo", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".qoi", ".sgi", ".tga", ".tif",
    ".tiff", ".webp",
)  # fmt: skip
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
CAMERA = re.compile(r"camera(?::(\d+))?")


@dataclasses.dataclass(frozen=True)
class Input:
    """An image, a video or a camera.

    Attributes:
        path: The path of the file, or the number of the camera.
        name: The name of the results, including subfolders, such as "north/photo".
        kind: "image", "video" or "camera".
    """

    path: str
    name: str
    kind: str = "image"


def find_inputs(given: str, output: str | os.PathLike[str] = "") -> list[Input]:
    """Finds the images and videos of a path, a pattern or the word "camera", sorted by path.

    Folders are searched recursively, including links to folders, but without hidden files and
    without `output`. The name of an input is that of the file without its suffix, or with it if two
    files differ only in the suffix.

    Args:
        given: The value of `input`.
        output: The folder of the results.

    Raises:
        UserError: There is no image or video.
    """
    if camera := CAMERA.fullmatch(given):
        return [Input(camera[1] or "0", given.replace(":", "_"), "camera")]
    path = pathlib.Path(given).expanduser()
    if path.is_file():
        return [Input(str(path), path.stem, _kind(path) or "image")]
    if path.is_dir():
        root, files = path, _walk(path, pathlib.Path(os.path.realpath(output)) if output else None)
    elif glob.has_magic(given):
        root = pathlib.Path(
            *path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))]
        )
        files = _matching(str(path))
    else:
        raise UserError(
            f"`input={given}`: no such file or folder; check the path, or give camera for the "
            "camera"
        )
    found = [file for file in files if _kind(file)]
    if not found:
        other = f", among {len(files)} other files" if files else ""
        raise UserError(
            f"`input={given}`: contains no image or video{other}; supported are "
            f"{' '.join(IMAGES + VIDEOS)}"
        )
    stems = Counter(file.with_suffix("") for file in found)
    inputs = []
    for file in found:
        plain = stems[file.with_suffix("")] == 1 and not _kind(pathlib.Path(file.stem))
        name = (file.with_suffix("") if plain else file).relative_to(root)
        inputs.append(Input(str(file), name.as_posix(), _kind(file)))
    return inputs


def _kind(path: pathlib.Path) -> str:
    suffix = path.suffix.lower()
    return "image" if suffix in IMAGES else "video" if suffix in VIDEOS else ""


def _walk(folder: pathlib.Path, output: pathlib.Path | None) -> list[pathlib.Path]:
    """Returns the files of a folder and its subfolders, the files of each folder first.

    Follows links to folders, but searches each folder once, under its own path if that is inside
    `folder`, and ignores links to a parent folder.
    """
    found: list[pathlib.Path] = []
    waiting = collections.deque([folder])
    # The results may go into the folder itself.
    seen = {output} - {pathlib.Path(os.path.realpath(folder))}
    while waiting:
        for where, folders, files in os.walk(waiting.popleft()):
            here, real = pathlib.Path(where), pathlib.Path(os.path.realpath(where))
            if real in seen:
                folders[:] = []
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if name[0] != ".")
            found += [here / name for name in files if name[0] != "."]
            links = [here / name for name in folders if (here / name).is_symlink()]
            above = (real, *real.parents)
            waiting += [link for link in links if pathlib.Path(os.path.realpath(link)) not in above]
    return sorted(found, key=_files_first)


def _files_first(path: pathlib.Path) -> list[tuple[bool, str]]:
    return [(True, part) for part in path.parts[:-1]] + [(False, path.name)]


def _matching(pattern: str) -> list[pathlib.Path]:
    """Returns the files that match a pattern, each once, even if links to folders form a cycle."""
    found: dict[tuple[str, str], pathlib.Path] = {}
    for path in sorted(
        map(pathlib.Path, glob.glob(pattern, recursive=True)),
        key=lambda path: (len(path.parts), path),
    ):
        if path.is_file():
            found.setdefault((os.path.realpath(path.parent), path.name), path)
    return sorted(found.values())
