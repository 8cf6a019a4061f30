"""Synthetic datasets in the layout of the real ones: images of noise, masks of blocks."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
from contracts import label_blocks, noise
from PIL import Image

from deeplab_keras.data.info import pascal_palette

# The 35 ids of Cityscapes' own table (cityscapesScripts, labels.py) -> train id; 255 is ignored.
CITYSCAPES_IDS = dict.fromkeys(range(34), 255) | {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12,
    26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip

Masks = dict[str, np.ndarray]  # name of a pair in the source -> ids in its mask file


def _image(path: pathlib.Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(*size, 3, seed=seed).astype(np.uint8)).save(path, quality=95)


def _mask(path: pathlib.Path, ids: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(ids.astype(np.uint8), mode="P" if palette else "L")
    if palette:
        picture.putpalette([value for color in pascal_palette(256) for value in color])
    picture.save(path)


def voc2012(root: pathlib.Path, size: tuple[int, int] = (24, 32)) -> Masks:
    """Two training and two validation images with palette masks, and a gray mask for trainaug."""
    home, masks = root / "VOCdevkit" / "VOC2012", {}
    lists = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033", "2007_000042"]}
    lists["trainval"] = sorted(lists["train"] + lists["val"])
    lists["trainaug"] = ["2007_000032", "2007_000039", "2008_000002"]
    for seed, name in enumerate(sorted({*lists["trainval"], *lists["trainaug"]})):
        masks[name] = label_blocks(1, *size, classes=21, seed=seed)[0]
        _image(home / "JPEGImages" / f"{name}.jpg", size, seed)
        if name in lists["trainval"]:
            _mask(home / "SegmentationClass" / f"{name}.png", masks[name], palette=True)
        else:
            _mask(home / "SegmentationClassAug" / f"{name}.png", masks[name])
    for name, ids in lists.items():
        path = home / "ImageSets" / "Segmentation" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in ids))
    return masks


def ade20k(root: pathlib.Path, size: tuple[int, int] = (24, 32)) -> Masks:
    """Two training images and one validation image, with ids 0 to 150 in the files."""
    home, masks = root / "ADEChallengeData2016", {}
    names = (
        ("training", "ADE_train_00000001"),
        ("training", "ADE_train_00000002"),
        ("validation", "ADE_val_00000001"),
    )
    for seed, (folder, name) in enumerate(names):
        masks[name] = label_blocks(1, *size, classes=151, seed=seed, ignore_label=0)[0]
        _image(home / "images" / folder / f"{name}.jpg", size, seed)
        _mask(home / "annotations" / folder / f"{name}.png", masks[name])
    return masks


def cityscapes(root: pathlib.Path, size: tuple[int, int] = (24, 48)) -> Masks:
    """Two training images in two cities, one validation image, labelIds masks, and a coarse set."""
    places = (
        ("gtFine", "train", "aachen/aachen_000000_000019"),
        ("gtFine", "train", "bochum/bochum_000000_000313"),
        ("gtFine", "val", "frankfurt/frankfurt_000000_000294"),
        ("gtCoarse", "train", "aachen/aachen_000000_000019"),
        ("gtCoarse", "train_extra", "nuernberg/nuernberg_000000_000003"),
    )
    masks = {}
    for seed, (annotation, folder, name) in enumerate(places):
        ids = label_blocks(1, *size, classes=34, seed=seed, ignore_label=None)[0]
        _image(root / "leftImg8bit" / folder / f"{name}_leftImg8bit.png", size, seed)
        _mask(root / annotation / folder / f"{name}_{annotation}_labelIds.png", ids)
        masks.setdefault(name, ids)
    return masks


TREES: dict[str, Callable[..., Masks]] = {
    "voc2012": voc2012,
    "pascal_voc_seg": voc2012,
    "ade20k": ade20k,
    "ade20k_151": ade20k,
    "cityscapes": cityscapes,
}


def camvid(root: pathlib.Path, size: tuple[int, int] = (24, 32)) -> Masks:
    """The SegNet tutorial's layout: one image per split, with ids 0 to 11 in the files."""
    masks = {}
    for seed, (split, name) in enumerate(
        (("train", "0001TP_006690"), ("val", "0016E5_07959"), ("test", "Seq05VD_f00000"))
    ):
        masks[name] = label_blocks(1, *size, classes=11, seed=seed, ignore_label=11)[0]
        _image(root / split / f"{name}.png", size, seed)
        _mask(root / f"{split}annot" / f"{name}.png", masks[name])
    return masks
