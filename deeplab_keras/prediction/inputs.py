"""What `--input` names: files, folders, patterns and cameras."""

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
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pcx", ".pgm",
    ".png", ".pnm", ".ppm", ".psd", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
CAMERA = re.compile(r"camera(?::(\d+))?")


@dataclasses.dataclass(frozen=True)
class Input:
    """One thing to predict.

    Attributes:
        path: the file; of a camera its number.
        name: of its results, with the folders that are kept: "north/photo".
        kind: "image", "video" or "camera".
    """

    path: str
    name: str
    kind: str = "image"


def find_inputs(given: str, output: str | os.PathLike[str] = "") -> list[Input]:
    """The images and videos that a path, a pattern or the word "camera" names, in the order of their paths.

    Folders are searched with all below them, links to folders included, but for hidden files and
    for `output` where it lies within. A name is the file's without its suffix, or with it where two
    differ in the suffix alone.

    Args:
        given: as the flag has it.
        output: folder of the results.

    Raises:
        UserError: nothing is there.
    """
    if camera := CAMERA.fullmatch(given):
        return [Input(camera[1] or "0", given.replace(":", "_"), "camera")]
    path = pathlib.Path(given).expanduser()
    if path.is_file():
        return [Input(str(path), path.stem, _kind(path) or "image")]
    if path.is_dir():
        root, files = path, _walk(path, pathlib.Path(output).resolve() if output else None)
    elif glob.has_magic(given):
        root = pathlib.Path(
            *path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))]
        )
        files = _matching(str(path))
    else:
        raise UserError(
            f"`input={given}`: there is no such file or folder; check the path, or give camera "
            "for the camera"
        )
    found = [file for file in files if _kind(file)]
    if not found:
        other = f", among {len(files)} other files" if files else ""
        raise UserError(
            f"`input={given}`: no image or video there{other}; known are "
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
    """The files of a folder and of those below it, those of a folder before its subfolders'.

    Links to folders are followed, but each folder is searched once, under its own path where it has
    one below `folder`, and a link to a folder around it is not followed.
    """
    found: list[pathlib.Path] = []
    waiting, seen = (
        collections.deque([folder]),
        {output} - {folder.resolve()},
    )  # results may go into the folder itself
    while waiting:
        for where, folders, files in os.walk(waiting.popleft()):
            here, real = pathlib.Path(where), pathlib.Path(where).resolve()
            if real in seen:
                folders[:] = []
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if name[0] != ".")
            found += [here / name for name in files if name[0] != "."]
            links = [here / name for name in folders if (here / name).is_symlink()]
            waiting += [link for link in links if link.resolve() not in (real, *real.parents)]
    return sorted(found, key=_files_first)


def _files_first(path: pathlib.Path) -> list[tuple[bool, str]]:
    return [(True, part) for part in path.parts[:-1]] + [(False, path.name)]


def _matching(pattern: str) -> list[pathlib.Path]:
    """The files that fit a pattern, each once: `**` follows links to folders, round and round where they form a cycle."""
    found: dict[tuple[str, str], pathlib.Path] = {}
    for path in sorted(
        map(pathlib.Path, glob.glob(pattern, recursive=True)),
        key=lambda path: (len(path.parts), path),
    ):
        if path.is_file():
            found.setdefault((os.path.realpath(path.parent), path.name), path)
    return sorted(found.values())
