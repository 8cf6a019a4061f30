"""Finding the files of a published dataset, and saying what is missing together with the tree that is expected."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.files import and_more, dataset_root

Pairs = list[tuple[str, Path, Path]]  # name, image file, mask file
HELP = "docs/datasets.md says more"


def find_home(config: DataConfig, places: Sequence[str], tree: str, folders: Sequence[str]) -> Path:
    """The folder that holds `folders`: --dataset_dir itself or one of the `places` in it.

    Args:
        config: has the --dataset_dir.
        places: paths in --dataset_dir to look at, from the outermost, "." itself, inwards.
        tree: the tree that the dataset has in --dataset_dir, in short, for messages.
        folders: what the folder holds.

    Raises:
        UserError: --dataset_dir is no folder, or none of the places holds all of `folders`.
    """
    root = dataset_root(config)
    homes = [root / place for place in places]
    for home in homes:
        if all((home / folder).is_dir() for folder in folders):
            return home
    absent = next(folder for folder in folders if not any((home / folder).is_dir() for home in homes))
    raise UserError(
        f"--dataset_dir={config.dataset_dir}: there is no folder {absent} of the dataset {config.dataset}; "
        f"expected in it: {tree}; {HELP}"
    )


def read_list(path: Path, tree: str) -> list[str]:
    """The ids in a list file, one a line; of a line with paths (`/JPEGImages/ID.jpg /SegmentationClass/ID.png`) the id.

    Raises:
        UserError: there is no such list, or it is empty.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        others = ", ".join(sorted(other.stem for other in path.parent.glob("*.txt"))) or "none"
        raise UserError(
            f"{path}: there is no list of the split {path.stem!r}; lists there: {others}; expected: {tree}; {HELP}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of ids ({error}); expected: one id a line") from error
    ids = [Path(line.split()[0]).stem for line in lines if line.strip()]
    if not ids:
        raise UserError(f"{path}: the list is empty; expected: one id a line; {HELP}")
    return ids


def find_images(folder: Path, pattern: str, tree: str) -> list[Path]:
    """The images in a folder, sorted.

    Raises:
        UserError: there is none.
    """
    images = sorted(folder.glob(pattern))
    if not images:
        raise UserError(f"{folder}: there is no image in it; expected: {tree}; {HELP}")
    return images


def check_split(split: str, splits: Sequence[str], dataset: str) -> None:
    """Raises UserError for a split that the dataset does not have."""
    if split not in splits:
        raise UserError(
            f"--train_split or --eval_split={split}: the dataset {dataset} has the splits {', '.join(splits)}"
        )


def check_pairs(config: DataConfig, pairs: Pairs, tree: str) -> tuple[list[str], list[str], list[str]]:
    """Names, image paths and mask paths, as `open_pairs` takes them.

    Raises:
        UserError: a file is missing, and --skip_broken_files is not given.
    """
    if not config.skip_broken_files:
        missing = [path for path in itertools.chain(*(pair[1:] for pair in pairs)) if not path.is_file()]
        if missing:
            raise UserError(
                f"{missing[0]}: there is no such file{and_more(len(missing))}; expected: {tree}; "
                f"leave such pairs out with --skip_broken_files; {HELP}"
            )
    names, images, labels = zip(*pairs, strict=True)
    return list(names), [str(path) for path in images], [str(path) for path in labels]
