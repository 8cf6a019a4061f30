"""Finds the files of a published dataset, and reports missing ones with the expected layout."""

from __future__ import annotations

from collections.abc import Sequence

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.files.lists import warn_left_out
from deeplab_keras.data.files.tree import Tree, dataset_tree, with_archives

HELP = "see docs/datasets.md"


def expected(tree: str) -> str:
    """Returns the part of a message that describes the expected layout."""
    return f"expected: {tree}; {HELP}"


def find_home(
    config: DataConfig,
    places: Sequence[str],
    tree: str,
    folders: Sequence[str],
    archives: Sequence[str] = (),
) -> Tree:
    """Finds the place in --dataset_dir that contains all of `folders`.

    Args:
        config: The config with `dataset_dir`.
        places: Paths in `dataset_dir` to search, in order; "." is `dataset_dir` itself.
        tree: The expected layout of `dataset_dir`, in short, for messages.
        folders: The folders to look for.
        archives: Patterns for the names of the dataset's archives, which are searched if the folder
            itself does not contain all of `folders`.

    Raises:
        UserError: `dataset_dir` is neither a folder nor an archive, or none of the places contains
            all of `folders`.
    """
    root = dataset_tree(config)
    for whole in (root, with_archives(root, archives)):
        for place in places:
            if all(whole.at(place).is_dir(folder) for folder in folders):
                return whole.at(place)
    absent = next(
        folder for folder in folders if not any(whole.at(place).is_dir(folder) for place in places)
    )
    others = [archive.path for archive in whole.archives if archive.path != whole.path]
    looked = f", nor in {', '.join(others)}" if others else ""
    raise UserError(
        f"`dataset_dir={config.dataset_dir}`: the folder {absent} of the dataset {config.dataset} "
        f"is not in it{looked}; {expected(tree)}"
    )


def read_list(home: Tree, path: str, tree: str) -> list[str]:
    """Returns the ids in a list file with one id per line.

    Of a line with paths, such as `/JPEGImages/ID.jpg /SegmentationClass/ID.png`, returns the id.

    Raises:
        UserError: The list does not exist or is empty.
    """
    folder, _, name = path.rpartition("/")
    where = home.on_disk(path)
    try:
        lines = home.read_text(path).split("\n")
    except FileNotFoundError:
        others = (
            ", ".join(other.removesuffix(".txt") for other in home.files(folder, (".txt",)))
            or "none"
        )
        raise UserError(
            f"{where}: the split {name.removesuffix('.txt')!r} has no list; available lists: "
            f"{others}; {expected(tree)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{where}: cannot be read as a list of ids ({error}); expected: UTF-8, one id per line"
        ) from error
    ids = [line.split()[0].rpartition("/")[2] for line in lines if line.strip()]
    if not ids:
        raise UserError(f"{where}: the list is empty; expected: one id per line; {HELP}")
    return [name.rpartition(".")[0] or name for name in ids]


def find_images(
    home: Tree, folder: str, ending: str, tree: str, *, deep: bool = False, masks: str = ""
) -> list[str]:
    """Returns the images in a folder whose names have the given ending, as sorted relative paths.

    Args:
        home: The dataset.
        folder: The folder of the images.
        ending: The end of the images' names.
        tree: The expected layout, for messages.
        deep: Whether to search subfolders too.
        masks: The end of the masks' names, if the masks are in the same folder.

    Raises:
        UserError: There are no such images.
    """
    images = home.files(folder, (ending.lower(),), deep=deep)
    if not images:
        raise UserError(f"{home.on_disk(folder)}: it has no images; {expected(tree)}")
    endings = (ending.lower(), masks.lower()) if masks else (ending.lower(),)
    warn_left_out(home, folder, endings, deep=deep)
    return images


def check_split(split: str, splits: Sequence[str], dataset: str) -> None:
    """Raises `UserError` for a split that the dataset does not have."""
    if split not in splits:
        raise UserError(
            f"`train_split` or `eval_split={split}`: the dataset {dataset} has the splits "
            f"{', '.join(splits)}"
        )
