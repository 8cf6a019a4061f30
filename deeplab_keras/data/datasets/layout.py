"""Finding the files of a published dataset, and saying what is missing together with the tree that is expected."""

from __future__ import annotations

from collections.abc import Sequence

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.files.lists import warn_left_out
from deeplab_keras.data.files.tree import Tree, dataset_tree, with_archives

HELP = "docs/datasets.md says more"


def expected(tree: str) -> str:
    """The part of a message that says how the files should lie."""
    return f"expected: {tree}; {HELP}"


def find_home(
    config: DataConfig,
    places: Sequence[str],
    tree: str,
    folders: Sequence[str],
    archives: Sequence[str] = (),
) -> Tree:
    """The part of --dataset_dir that holds `folders`: itself or one of the `places` in it.

    Args:
        config: has the --dataset_dir.
        places: paths in --dataset_dir to look at, from the outermost, "." itself, inwards.
        tree: the tree that the dataset has in --dataset_dir, in short, for messages.
        folders: what the folder holds.
        archives: patterns of the archives that the dataset is had as; they are looked into where
            the folder itself has not got all.

    Raises:
        UserError: --dataset_dir is neither folder nor archive, or none of the places holds all of
            `folders`.
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
        f"`dataset_dir={config.dataset_dir}`: there is no folder {absent} of the dataset "
        f"{config.dataset} in it{looked}; "
        f"{expected(tree)}"
    )


def read_list(home: Tree, path: str, tree: str) -> list[str]:
    """The ids in a list file, one a line; of a line with paths (`/JPEGImages/ID.jpg /SegmentationClass/ID.png`) the id.

    Raises:
        UserError: there is no such list, or it is empty.
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
            f"{where}: there is no list of the split {name.removesuffix('.txt')!r}; lists there: "
            f"{others}; {expected(tree)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{where}: cannot be read as a list of ids ({error}); expected: UTF-8, one id a line"
        ) from error
    ids = [line.split()[0].rpartition("/")[2] for line in lines if line.strip()]
    if not ids:
        raise UserError(f"{where}: the list is empty; expected: one id a line; {HELP}")
    return [name.rpartition(".")[0] or name for name in ids]


def find_images(
    home: Tree, folder: str, ending: str, tree: str, *, deep: bool = False
) -> list[str]:
    """The images in a folder whose names end so, sorted, as paths in the folder.

    Raises:
        UserError: there is none.
    """
    images = home.files(folder, (ending.lower(),), deep=deep)
    if not images:
        raise UserError(f"{home.on_disk(folder)}: there is no image in it; {expected(tree)}")
    warn_left_out(home, folder, (ending.lower(),), deep=deep)
    return images


def check_split(split: str, splits: Sequence[str], dataset: str) -> None:
    """Raises UserError for a split that the dataset does not have."""
    if split not in splits:
        raise UserError(
            f"`train_split` or `eval_split={split}`: the dataset {dataset} has the splits "
            f"{', '.join(splits)}"
        )
