"""The corpus of bad input: each kind of mistake in a dataset, and its one-line message."""

from __future__ import annotations

import io
import os
import pathlib
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from data_files import CLASSES, mask, photograph, truncate, write_dataset, write_mat, write_png
from dataset_trees import TREES
from PIL import Image

from deeplab_keras.cli.fields import flag_writer
from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.info import pascal_palette
from deeplab_keras.data.registry import open_dataset

Maker = Callable[[pathlib.Path], dict | None]
CASES: dict[str, tuple[Maker, str]] = {}

IMAGES, LABELS = "images/train", "labels/train"
PALETTE = bytes(value for color in pascal_palette(256) for value in color)
VOC = "VOCdevkit/VOC2012"
SKIP = "replace it, or skip such files with --skip_broken_files"
SKIP_PAIRS = "skip such pairs with --skip_broken_files"
CHECK = (
    "fix the mask, or add the missing classes; scripts/check_dataset.py shows where these "
    "pixels are"
)
COUNT = "{n} for pixels to ignore"


def case(name: str, message: str) -> Callable[[Maker], Maker]:
    """Adds a case: a function that breaks the dataset `root`, and the message with `{root}`."""

    def enter(make: Maker) -> Maker:
        CASES[name] = make, message
        return make

    return enter


def simple(name: str, message: str, make: Callable[[pathlib.Path], object]) -> None:
    """Does the same as `case` for functions that return no settings."""
    CASES[name] = (lambda root: (make(root), None)[1]), message


def save(path: pathlib.Path, pixels: np.ndarray, **options: object) -> None:
    Image.fromarray(pixels).save(path, **options)


def set_ids(
    root: pathlib.Path, ids: tuple[int, ...], classes: int = 3, only: str | None = None
) -> None:
    """Writes masks that contain all of the ids, and a classes.txt with the number of classes."""
    for path in (root / LABELS).iterdir():
        if only in (None, path.name):
            height, width = np.asarray(Image.open(path)).shape
            pixels = mask(height, width, ids=ids)
            pixels[0, : len(ids)] = ids
            save(path, pixels)
    (root / "classes.txt").write_text("\n".join(f"c{i}" for i in range(classes)))


def outside(name: str, ids: str, allowed: str, hint: str = CHECK, more: int = 0) -> str:
    alike = f" (and {more} more like it)" if more else ""
    return (
        f"{{root}}/labels/train/{name}: the mask holds ids outside the classes: {ids}; "
        f"allowed: {allowed}, and 255 for pixels to ignore; {hint}{alike}"
    )


# --- Folders and lists ---

simple(
    "no images folder",
    "{root}: it has no folder 'images' with the split 'train' but the folders labels, pictures and "
    "1 .txt files; --dataset_dir must contain images/train and labels/train, train/images and "
    "train/labels, or a list train.csv or train.txt; see docs/your_own_dataset.md",
    lambda root: (root / "images").rename(root / "pictures"),
)
simple(
    "no labels folder",
    "{root}: it has no folder of masks; create one named labels or masks or annotations",
    lambda root: (root / "labels").rename(root / "truth"),
)
simple(
    "no such split",
    "{root}/images: it has no split 'train'; splits for --train_split and --eval_split: training",
    lambda root: (root / IMAGES).rename(root / "images/training"),
)


SUPPORTED = ".jpg, .jpeg, .png, .bmp, .gif, .tif, .tiff, .webp"


@case("empty split", f"{{root}}/images/train: it has no images; supported: {SUPPORTED}")
def _(root):
    for path in (root / IMAGES).iterdir():
        path.unlink()


@case(
    "pictures of another kind",
    f"{{root}}/images/train: it has no images; supported: {SUPPORTED}; convert the 3 files of other "
    "formats, such as pic_0.heic",
)
def _(root):
    for path in (root / IMAGES).iterdir():
        path.rename(path.with_suffix(".heic"))


@case(
    "masks of another format",
    "{root}/labels/train: it has no masks; masks must be .png, .bmp, .gif, .tif, .tiff, .webp: "
    "export the 3 files of other formats, such as pic_0.jpg, again as PNG, because JPEG blends the "
    "ids at every edge; for black-and-white masks, run scripts/convert_masks.py --from=binary",
)
def _(root):
    for path in (root / LABELS).iterdir():
        path.rename(path.with_suffix(".jpg"))


simple(
    "image without mask",
    "{root}/labels/train/pic_1.png: this file does not exist; each image in "
    "{root}/images/train needs a mask of the same name; " + SKIP_PAIRS,
    lambda root: (root / LABELS / "pic_1.png").unlink(),
)


@case(
    "two images without mask",
    "{root}/labels/train/pic_1.png: this file does not exist; each image in {root}/images/train "
    "needs a mask of the same name; 2 of 3 pairs lack a file or are broken, so the names or "
    "folders differ from this layout: {root}/labels/train has 2 masks, such as pic_0.png, "
    "picture_2.png (and 1 more like it)",
)
def _(root):
    (root / LABELS / "pic_1.png").unlink()
    (root / LABELS / "pic_2.png").rename(root / LABELS / "picture_2.png")


simple(
    "two images of one name",
    "{root}/images/train/pic_0.png: pic_0.jpg has the same name; remove one of the two",
    lambda root: save(root / IMAGES / "pic_0.png", photograph(20, 30)),
)
simple(
    "a folder instead of a mask",
    f"{{root}}/labels/train/pic_0.png: this file does not exist; each image in "
    f"{{root}}/images/train needs a mask of the same name; {SKIP_PAIRS}",
    lambda root: ((root / LABELS / "pic_0.png").unlink(), (root / LABELS / "pic_0.png").mkdir()),
)
simple(
    "a broken link",
    f"{{root}}/labels/train/pic_0.png: this file does not exist; each image in "
    f"{{root}}/images/train needs a mask of the same name; {SKIP_PAIRS}",
    lambda root: (
        (root / LABELS / "pic_0.png").unlink(),
        (root / LABELS / "pic_0.png").symlink_to("gone.png"),
    ),
)
simple(
    "a file name that is not text",
    "'{root}/images/train/pic\\udce9.jpg': the name is not valid UTF-8; rename the file",
    lambda root: [
        os.rename(
            root / folder / f"pic_0{suffix}",
            os.fsencode(root / folder) + b"/pic\xe9" + suffix.encode(),
        )
        for folder, suffix in ((IMAGES, ".jpg"), (LABELS, ".png"))
    ],
)


def listed(name: str, message: str, **files: str) -> None:
    """Adds a case with list files instead of split folders."""

    def make(root: pathlib.Path) -> dict:
        for file, text in files.items():
            (root / file.replace("__", ".")).write_text(text)
        return {"train_split": ",".join(file.replace("__", ".") for file in files)}

    CASES[name] = make, message


listed(
    "a list names a missing file",
    (
        f"{{root}}/images/train/pic_9.jpg: this file does not exist; {{root}}/my.csv names it; "
        f"{SKIP_PAIRS}"
    ),
    my__csv="image,mask\nimages/train/pic_0.jpg,labels/train/pic_0.png\nimages/train/pic_9.jpg,labels/train/pic_1.png\n",
)
listed(
    "an empty list",
    "{root}/my.txt: the list is empty; each line must name an image and its mask",
    my__txt="\n \n",
)
listed(
    "a CSV with only a header",
    "{root}/my.csv: the list is empty; each line must name an image and its mask",
    my__csv="image,mask\n",
)
listed(
    "a CSV of other columns",
    "{root}/my.csv: its columns are id, split; name the columns of the paths image and mask",
    my__csv="id,split\n1,train\n",
)
listed(
    "a CSV with a short row",
    "{root}/my.csv: line 3 does not name an image and a mask",
    my__csv="image,mask\na.jpg,a.png\nb.jpg\n",
)
listed(
    "a list that names an image twice",
    "{root}/my.csv: lines 1 and 3 name the same image, {root}/images/train/pic_0.jpg; remove one",
    my__csv="images/train/pic_0.jpg,a.png\nb.jpg,b.png\nimages/train/pic_0.jpg,c.png\n",
)
listed(
    "two lists of different length",
    ("{root}/a.txt has 2 lines and {root}/b.txt 1; both need one line per pair, in the same order"),
    a__txt="a.jpg\nb.jpg\n",
    b__txt="a.png\n",
)
listed(
    "three lists",
    "--train_split or --eval_split=a.txt,b.txt,c.txt: give one list of pairs, or two lists: "
    "images,masks",
    a__txt="a.jpg\n",
    b__txt="a.png\n",
    c__txt="x\n",
)


@case(
    "no such list",
    (
        "{root}/mine.csv: this list does not exist; give a path relative to --dataset_dir or to "
        "the current directory"
    ),
)
def _(root):
    return {"train_split": "mine.csv"}


@case(
    "a list that is not text",
    "{root}/mine.txt: cannot be read as a list of files ('utf-8' codec can't decode byte 0xff in "
    "position 0: invalid start byte); save it as text in UTF-8",
)
def _(root):
    (root / "mine.txt").write_bytes(b"\xff\xd8\xff\xe0")
    return {"train_split": "mine.txt"}


# --- Images ---

simple(
    "an image that is a web page",
    "{root}/images/train/pic_1.jpg: cannot be decoded (not an image); " + SKIP,
    lambda root: (root / IMAGES / "pic_1.jpg").write_text("<html>404</html>"),
)
simple(
    "an empty image file",
    "{root}/images/train/pic_1.jpg: cannot be decoded (not an image); " + SKIP,
    lambda root: (root / IMAGES / "pic_1.jpg").write_bytes(b""),
)
simple(
    "a truncated image",
    "{root}/images/train/pic_1.jpg: cannot be decoded ({any}); " + SKIP,
    lambda root: truncate(root / IMAGES / "pic_1.jpg"),
)


def turn(path: pathlib.Path, pixels: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(path, pixels, exif=exif)


simple(
    "an image whose EXIF orientation does not match its mask",
    "{root}/labels/train/pic_0.png: the mask is 30x20 (width x height) but its image "
    "{root}/images/train/pic_0.jpg is 40x30; both must have the same size; fix the pair, or "
    + SKIP_PAIRS,
    lambda root: turn(root / IMAGES / "pic_0.jpg", photograph(30, 40), 6),
)

# --- Masks as files ---

simple(
    "a mask one pixel wider",
    "{root}/labels/train/pic_0.png: the mask is 31x20 (width x height) but its image "
    "{root}/images/train/pic_0.jpg is 30x20; both must have the same size; fix the pair, or "
    + SKIP_PAIRS,
    lambda root: save(root / LABELS / "pic_0.png", mask(20, 31)),
)
simple(
    "a rotated mask",
    "{root}/labels/train/pic_0.png: the mask is 20x30 (width x height) but its image "
    "{root}/images/train/pic_0.jpg is 30x20; both must have the same size; fix the pair, or "
    + SKIP_PAIRS,
    lambda root: save(root / LABELS / "pic_0.png", mask(30, 20)),
)
simple(
    "a truncated mask",
    "{root}/labels/train/pic_1.png: cannot be decoded (image file is truncated); " + SKIP,
    lambda root: truncate(root / LABELS / "pic_1.png"),
)
simple(
    "an empty mask file",
    "{root}/labels/train/pic_1.png: cannot be decoded (not an image); " + SKIP,
    lambda root: (root / LABELS / "pic_1.png").write_bytes(b""),
)
simple(
    "a mask that is a JPEG",
    "{root}/labels/train/pic_0.png: cannot be decoded (not a PNG file but JPEG; JPEG changes "
    "ids, so export the mask again as PNG; if the masks are black and white, run "
    "scripts/convert_masks.py --from=binary); " + SKIP,
    lambda root: save(root / LABELS / "pic_0.png", mask(20, 30), format="JPEG"),
)
simple(
    "a mask that is a PPM",
    "{root}/labels/train/pic_0.png: cannot be decoded (not a PNG, GIF, BMP, TIFF or lossless WebP "
    "file but PPM); " + SKIP,
    lambda root: save(root / LABELS / "pic_0.png", mask(20, 30), format="PPM"),
)


@case(
    "a mask with flipped bits",
    "{root}/labels/train/pic_0.png: cannot be decoded (broken data stream when reading image "
    "file); " + SKIP,
)
def _(root):
    path = root / LABELS / "pic_0.png"
    data = bytearray(path.read_bytes())
    data[60] ^= 0x40
    path.write_bytes(data)


@case(
    "a mask of no width",
    "{root}/labels/train/pic_0.png: the mask is 0x20 (width x height) but its image "
    "{root}/images/train/pic_0.jpg is 30x20; both must have the same size; fix the pair, or "
    + SKIP_PAIRS,
)
def _(root):
    path = root / LABELS / "pic_0.png"
    data = path.read_bytes()
    path.write_bytes(data[:16] + struct.pack(">I", 0) + data[20:])


# --- Masks as ids ---

NO_IDS = (
    "{root}/labels/train/pic_0.png: the mask is a color image; a mask must have one channel "
    "(gray or palette) with the class id of each pixel: --mask_format=color reads the colors "
    "listed in classes.txt, scripts/convert_masks.py --from=rgb converts colors to ids"
)
simple(
    "a mask in colors", NO_IDS, lambda root: save(root / LABELS / "pic_0.png", photograph(20, 30))
)
simple(
    "a mask in colors with alpha",
    NO_IDS,
    lambda root: (
        Image.fromarray(photograph(20, 30)).convert("RGBA").save(root / LABELS / "pic_0.png")
    ),
)
simple(
    "a mask of 16 bits",
    "{root}/labels/train/pic_0.png: the mask holds the id 300; ids must be 0 to 255",
    lambda root: write_png(root / LABELS / "pic_0.png", np.full((20, 30), 300), 16),
)
simple(
    "ids that are not classes",
    outside("pic_2.png", "5, 17", "0 to 2"),
    lambda root: set_ids(root, (0, 5, 17), only="pic_2.png"),
)
simple(
    "palette indices that are not classes",
    outside("pic_0.png", "200", "0 to 2"),
    lambda root: write_png(root / LABELS / "pic_0.png", mask(20, 30, ids=(0, 200)), 8, PALETTE),
)
simple(
    "luminances of VOC's colors",
    outside(
        "pic_0.png",
        "38, 75, 147",
        "0 to 5",
        "these values are the luminances of PASCAL "
        "VOC's colors: palette or RGB masks were saved as gray; run scripts/convert_masks.py "
        "--from=palette (or --from=rgb) on the "
        "original masks",
        2,
    ),
    lambda root: set_ids(root, (0, 38, 75, 147), 6),
)


@case(
    "luminances of your own colors",
    outside(
        "pic_0.png",
        "76, 150",
        "0 to 2",
        "these values are the luminances of the colors "
        "of photos: palette or RGB masks were saved as gray; run scripts/convert_masks.py "
        "--from=palette (or --from=rgb) on the "
        "original masks",
        2,
    ),
)
def _(root):
    set_ids(root, (0, 76, 150))
    (root / "classes.txt").write_text("a #000000\nb #ff0000\nc #00ff00\n")


simple(
    "ids from 1",
    outside(
        "pic_0.png",
        "3",
        "0 to 2",
        "1 to 3 instead of 0 to 2: the ids are shifted by one; run scripts/convert_masks.py "
        "--from=index --id_offset=-1",
        2,
    ),
    lambda root: set_ids(root, (1, 2, 3)),
)
simple(
    "0 for unlabeled",
    outside(
        "pic_0.png",
        "3",
        "0 to 2",
        "0 to 3 are 4 values for 3 classes: if 0 is 'unlabeled', run scripts/convert_masks.py "
        "--from=index --id_offset=-1, otherwise add the missing class",
        2,
    ),
    lambda root: set_ids(root, (0, 1, 2, 3)),
)
BINARY = (
    "only 0 and 255: these are black-and-white masks of two classes; run "
    "scripts/convert_masks.py --from=binary"
)
simple(
    "black and white",
    "--dataset_dir={root}: the masks hold " + BINARY,
    lambda root: set_ids(root, (0, 255), 2),
)


@case(
    "luminances without classes.txt",
    "{root}: the masks hold 0, 38, 75, 147, 220; these values are the luminances of PASCAL "
    "VOC's colors: palette or RGB masks were saved as gray; run scripts/convert_masks.py "
    "--from=palette (or --from=rgb) on the original masks; if they are ids, list the classes "
    "in classes.txt",
)
def _(root):
    set_ids(root, (0, 38, 75, 147, 220))
    (root / "classes.txt").unlink()


@case(
    "gray levels without classes.txt",
    "{root}: the masks hold 0, 51, 102, 153, 204, ...; evenly spaced gray levels up to 255, "
    "one per class; run scripts/convert_masks.py --from=gray; if they are ids, list the "
    "classes in classes.txt",
)
def _(root):
    set_ids(root, (0, 51, 102, 153, 204, 255))
    (root / "classes.txt").unlink()


@case(
    "black and white without classes.txt",
    "{root}: the masks hold no id besides 0 and the ignore label 255; " + BINARY,
)
def _(root):
    set_ids(root, (0, 255))
    (root / "classes.txt").unlink()


@case(
    "one class",
    "{root}: the masks hold no id besides 0 and the ignore label 255; number the classes 0, 1, "
    "2, ..., or give another --ignore_label",
)
def _(root):
    set_ids(root, (0,))
    (root / "classes.txt").unlink()


simple(
    "black and another gray",
    outside(
        "pic_0.png",
        "128",
        "0 to 1",
        "only 0 and 128: these are masks of two classes; run scripts/convert_masks.py "
        "--from=binary",
        2,
    ),
    lambda root: set_ids(root, (0, 128), 2),
)
simple(
    "gray levels for classes",
    outside(
        "pic_0.png",
        "85, 170",
        "0 to 3",
        "evenly spaced gray levels up to 255, one per class; run scripts/convert_masks.py "
        "--from=gray",
        2,
    ),
    lambda root: set_ids(root, (0, 85, 170, 255), 4),
)
simple(
    "Cityscapes' ids",
    outside(
        "pic_0.png",
        "23, 26",
        "0 to 18",
        "these look like Cityscapes' labelIds; run "
        "scripts/convert_masks.py --from=cityscapes, or train with --dataset=cityscapes",
        2,
    ),
    lambda root: set_ids(root, (7, 11, 23, 26), 19),
)
simple(
    "ids blended by a smooth resize",
    outside(
        "pic_0.png",
        "3, 4, 5, 6, 7, 8, 9, 10, ...",
        "0 to 2",
        "this many values usually come from JPEG or smooth resizing: export the masks again",
        2,
    ),
    lambda root: set_ids(root, tuple(range(30))),
)

# --- Masks as colors ---


def colored(root: pathlib.Path, colors: np.ndarray, **options: object) -> dict:
    (root / "classes.txt").write_text("wall #000000\nfloor 128 0 0\nlamp,0,128,0\nignore #ffffff\n")
    for path in (root / LABELS).iterdir():
        height, width = np.asarray(Image.open(path)).shape
        save(path, colors[mask(height, width, ids=tuple(range(len(colors))))], **options)
    return {"mask_format": "color"}


KNOWN = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [255, 255, 255]], np.uint8)


@case(
    "a color without a class",
    "{root}/labels/train/pic_0.png: 28.00% of the pixels have a color without a class: "
    "#0102fe; add each to classes.txt, as a class or as a line 'ignore #rrggbb' (and 2 more "
    "like it)",
)
def _(root):
    return colored(root, np.concatenate([KNOWN[1:], [[1, 2, 254]]]).astype(np.uint8))


@case(
    "colors blended by JPEG",
    "{root}/labels/train/pic_0.png: 100.00% of the pixels have a color without a class: {any} "
    "more; this many colors usually come from JPEG or smooth resizing: export the masks again",
)
def _(root):
    settings = colored(root, KNOWN)
    Image.open(root / LABELS / "pic_0.png").save(root / "x.jpg", quality=75)
    Image.open(root / "x.jpg").save(root / LABELS / "pic_0.png")
    return settings


@case(
    "two classes of one color",
    "{root}/classes.txt: 'floor' and 'wall' both have the color #000000; give each a different "
    "color",
)
def _(root):
    (root / "classes.txt").write_text("wall #000000\nfloor #000000\n")
    return {"mask_format": "color"}


@case(
    "too many colors without classes.txt",
    "{root}: the masks have 256 colors or more, and without classes.txt each is a class; "
    "create classes.txt with one line 'name #rrggbb' per class",
)
def _(root):
    (root / "classes.txt").unlink()
    save(root / LABELS / "pic_0.png", photograph(20, 30))
    return {"mask_format": "color"}


# --- Classes ---

simple(
    "no class",
    "{root}/classes.txt: it has 0 classes; give 1 to 256, one name per line",
    lambda root: (root / "classes.txt").write_text("\n"),
)
simple(
    "a class twice",
    "{root}/classes.txt: ids 0 and 2 are both called 'wall'; give each a different name",
    lambda root: (root / "classes.txt").write_text("wall\nlamp\nwall\n"),
)
simple(
    "a color above 255",
    "{root}/classes.txt: line 'lamp 1 2 256': colors must be 0 to 255",
    lambda root: (root / "classes.txt").write_text("wall\nlamp 1 2 256\nfloor\n"),
)
simple(
    "classes that are no text",
    "{root}/classes.txt: cannot be read as text ('utf-8' codec can't decode byte 0xdf in position "
    "4: "
    "invalid continuation byte); save it as text in UTF-8",
    lambda root: (root / "classes.txt").write_bytes("Straße\n".encode("latin-1")),
)
simple(
    "classes with a comment",
    "{root}/classes.txt: line '# of the flat' has no name; each line is a class, and comments "
    "are not supported: remove it",
    lambda root: (root / "classes.txt").write_text("# of the flat\nwall\nfloor\nlamp\n"),
)

# --- Archives and --dataset_dir ---


@case(
    "no folder given",
    "--dataset=folder requires --dataset_dir=FOLDER, the folder of the dataset",
)
def _(root):
    return {"dataset_dir": ""}


@case("no such folder", "--dataset_dir={root}/nowhere: this folder does not exist")
def _(root):
    return {"dataset_dir": str(root / "nowhere")}


@case(
    "a file instead of the folder",
    "--dataset_dir={root}/classes.txt: this is neither a folder nor a .zip or .tar archive",
)
def _(root):
    return {"dataset_dir": str(root / "classes.txt")}


def packed(root: pathlib.Path, kind: str, **extra: bytes) -> pathlib.Path:
    """Adds a case with the dataset as photos.zip or photos.tar, with further members."""
    path = root / f"photos.{kind}"
    members = {
        str(file.relative_to(root)): file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file()
    } | extra
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as tar:
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def archived(
    name: str,
    kind: str,
    message: str,
    spoil: Callable[[bytes], bytes] = lambda data: data,
    **extra: bytes,
) -> None:
    def make(root: pathlib.Path) -> dict:
        path = packed(root, kind, **extra)
        path.write_bytes(spoil(path.read_bytes()))
        return {"dataset_dir": str(path)}

    CASES[name] = make, message


LEADS_OUT = (
    "leads out of the archive, so the archive is not read; download it from the dataset's own page"
)
archived(
    "a .zip whose member leads out",
    "zip",
    "{root}/photos.zip: the path of its member '../../evil.png' " + LEADS_OUT,
    **{"../../evil.png": b"x"},
)
archived(
    "a .tar whose member leads out",
    "tar",
    "{root}/photos.tar: the path of its member '/etc/evil' " + LEADS_OUT,
    **{"/etc/evil": b"x"},
)
archived(
    "a .tar from Windows whose member leads out",
    "tar",
    "{root}/photos.tar: the path of its member 'C:\\\\evil' " + LEADS_OUT,
    **{"C:\\evil": b"x"},
)
archived(
    "a truncated .zip",
    "zip",
    "{root}/photos.zip: cannot be read as an archive (File is not a zip file); download it "
    "again: it may be truncated",
    lambda data: data[: len(data) // 2],
)
archived(
    "a truncated .tar",
    "tar",
    "{root}/photos.tar: cannot be read as an archive (its end is missing); download it again: "
    "it may be truncated",
    lambda data: data[:3000],
)
archived(
    "a file that is not a .tar",
    "tar",
    "{root}/photos.tar: cannot be read as an archive (invalid header); download it again: it "
    "may be truncated",
    lambda data: b"<html>" * 200,
)
archived(
    "a compressed .tar",
    "tar.gz",
    "{root}/photos.tar.gz: files in a compressed tar cannot be read in place; extract it with: "
    "tar xf {root}/photos.tar.gz -C {root}",
)
archived(
    "a damaged member",
    "zip",
    "{root}/photos.zip/labels/train/pic_0.png: cannot be decoded (damaged in the archive: Bad "
    "CRC-32 "
    "for file 'labels/train/pic_0.png'); " + SKIP,
    lambda data: data.replace(b"\x89PNG", b"\x89PnG", 1),
)
archived(
    "an encrypted .zip",
    "zip",
    (
        "{root}/photos.zip: it is encrypted; extract it with its password and give the folder "
        "instead"
    ),
    lambda data: b"PK\x01\x02".join(
        part if i == 0 else part[:4] + b"\x01" + part[5:]
        for i, part in enumerate(data.split(b"PK\x01\x02"))
    ),
)
archived(
    "a member of impossible size",
    "tar",
    "{root}/photos.tar: its member 'bomb.png' has 8589934591 bytes, too many for an image, so "
    "the archive is not read; download it from the dataset's own page",
    lambda data: header("bomb.png", 2**33 - 1) + data,
)


def header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf()


# --- The published datasets ---


def published(
    name: str, dataset: str, split: str, message: str, spoil: Callable[[pathlib.Path], object]
) -> None:
    def make(root: pathlib.Path) -> dict:
        TREES[dataset](root)
        spoil(root)
        return {"dataset": dataset, "train_split": split}

    CASES[name] = make, message


TREE = (
    "expected: VOCdevkit/VOC2012/JPEGImages/ID.jpg, .../SegmentationClass{aug}/ID.png, "
    ".../ImageSets/Segmentation/{split}.txt; see docs/datasets.md"
)
published(
    "a missing VOC list",
    "voc2012",
    "trainaug",
    f"{{root}}/{VOC}/ImageSets/Segmentation/trainaug.txt: the split 'trainaug' has no list; "
    f"available lists: train, trainval, val; "
    + TREE.format(aug="Aug", split="trainaug").replace(
        "trainaug.txt", "trainaug.txt, or SBD's benchmark_RELEASE/dataset/cls/ID.mat, .../train.txt"
    ),
    lambda root: (
        shutil.rmtree(root / VOC / "SegmentationClassAug"),
        (root / VOC / "ImageSets/Segmentation/trainaug.txt").unlink(),
    ),
)
published(
    "a compressed SBD archive",
    "voc2012",
    "trainaug",
    "{root}/benchmark.tgz: files in a compressed tar cannot be read in place; extract it with: "
    "tar xf {root}/benchmark.tgz -C {root}",
    lambda root: (
        shutil.rmtree(root / VOC / "SegmentationClassAug"),
        (root / "benchmark.tgz").write_bytes(b"\x1f\x8b"),
        (root / VOC / "ImageSets/Segmentation/trainaug.txt").unlink(),
    ),
)
published(
    "a VOC list that is empty",
    "voc2012",
    "val",
    f"{{root}}/{VOC}/ImageSets/Segmentation/val.txt: the list is empty; expected: one id per "
    f"line; see docs/datasets.md",
    lambda root: (root / VOC / "ImageSets/Segmentation/val.txt").write_text("\n"),
)
published(
    "a VOC list that names a missing image",
    "voc2012",
    "val",
    f"{{root}}/{VOC}/JPEGImages/2099_000001.jpg: this file does not exist; "
    f"{TREE.format(aug='', split='val')}; {SKIP_PAIRS}",
    lambda root: (root / VOC / "ImageSets/Segmentation/val.txt").write_text(
        "2007_000033\n2099_000001\n"
    ),
)
published(
    "no VOC folder",
    "voc2012",
    "val",
    "--dataset_dir={root}: the folder JPEGImages of the dataset voc2012 is not in it; "
    + TREE.format(aug="", split="val"),
    lambda root: (root / "VOCdevkit").rename(root / "images/x"),
)


def with_sbd(root: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    """Takes the mask of the image that only trainaug has from SBD."""
    (root / VOC / "SegmentationClassAug/2008_000002.png").unlink()
    write_mat(root / "benchmark_RELEASE/dataset/cls/2008_000002.mat", np.zeros((24, 32)))
    write(root / "benchmark_RELEASE/dataset/cls/2008_000002.mat")


MAT = "{root}/benchmark_RELEASE/dataset/cls/2008_000002.mat: cannot be decoded "
published(
    "a truncated SBD mask",
    "voc2012",
    "trainaug",
    f"{MAT}(it is truncated); {SKIP}",
    lambda r: with_sbd(r, truncate),
)
published(
    "an SBD mask that is not a .mat file",
    "voc2012",
    "trainaug",
    f"{MAT}(not a MATLAB 5 file); {SKIP}",
    lambda root: with_sbd(root, lambda path: path.write_text("404")),
)
published(
    "an SBD file of another folder",
    "voc2012",
    "trainaug",
    f"{MAT}(it has no GTcls.Segmentation; it must be a file of SBD's folder cls); {SKIP}",
    lambda r: with_sbd(r, lambda path: write_mat(path, np.zeros((24, 32)), "GTinst")),
)
published(
    "a split that ADE20k does not have",
    "ade20k",
    "validation",
    "--train_split or --eval_split=validation: the dataset ade20k has "
    "the splits train, val, trainval",
    lambda root: None,
)
published(
    "Cityscapes in colors",
    "cityscapes",
    "val",
    "{root}/gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png: the mask holds "
    "ids outside the classes: 70, 90, 118, 210; allowed: 0 to 33; these values are the "
    "luminances of the colors of cityscapes: palette or RGB masks were saved as gray; run "
    "scripts/convert_masks.py --from=palette (or --from=rgb) on the original masks",
    lambda root: save(
        next((root / "gtFine/val").rglob("*.png")), mask(24, 48, ids=(70, 90, 118, 210))
    ),
)


# --- The test ---


@pytest.mark.parametrize("name", CASES)
def test_broken_input_gets_its_message(name, tmp_path):
    root = write_dataset(tmp_path / "photos")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    make, message = CASES[name]
    settings = make(root) or {}
    config = DataConfig(**({"dataset": "folder", "dataset_dir": str(root)} | settings))
    with pytest.raises(UserError) as error:
        open_dataset(config, config.train_split)
    said = error.value.render(flag_writer())  # as the command line shows it
    wanted = message.replace("{root}", str(root))
    if "{any}" in wanted:  # depends on NumPy's noise or the version of a library
        before, after = wanted.split("{any}")
        said = (
            f"{before}{{any}}{after}" if said.startswith(before) and said.endswith(after) else said
        )
    assert said == wanted
    assert "\n" not in said


def test_the_corpus_is_large():
    assert len(CASES) >= 60
