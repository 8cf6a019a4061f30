"""Your own dataset as downloaded: names of folders, file formats, images next to masks."""

from __future__ import annotations

import logging
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from contracts import raises_line
from data_files import mask, photograph, truncate
from PIL import Image, TiffImagePlugin

from deeplab_keras.config import DataConfig
from deeplab_keras.data.check import check_dataset
from deeplab_keras.data.files.pairs import check_headers
from deeplab_keras.data.files.reading import read_image, read_label
from deeplab_keras.data.records.build import build_records
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.visualization import dataset_report

IDS = (0, 1, 2)
SIZE = (20, 30)


def opened(root, split="train", **changes):
    return open_dataset(DataConfig(dataset="folder", dataset_dir=str(root), **changes), split)


def write(root: pathlib.Path, image: str, label: str, seed: int = 0, **options: object) -> None:
    """Writes an image and its mask; the suffixes choose the formats, which lose nothing."""
    pictures = {image: photograph(*SIZE, seed), label: mask(*SIZE, seed, ids=IDS)}
    for path, pixels in pictures.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        lossless = {"lossless": True} if path.lower().endswith(".webp") else {}
        Image.fromarray(pixels).save(root / path, **lossless, **options)


def write_splits(root: pathlib.Path, image: str, label: str) -> pathlib.Path:
    """Writes two training pairs and a validation pair to paths such as `images/{split}/{name}`."""
    for seed, (split, name) in enumerate((("train", "a"), ("train", "b"), ("val", "c"))):
        write(
            root, image.format(split=split, name=name), label.format(split=split, name=name), seed
        )
    return root


def require_pairs(source, seeds=(0, 1)) -> None:
    """Asserts that a source has these pairs, in and outside of a tf.data graph."""
    assert len(source) == len(seeds)
    for index, seed in enumerate(seeds):
        expected = mask(*SIZE, seed, ids=IDS)
        np.testing.assert_array_equal(source.load(index)[1], expected)
        np.testing.assert_array_equal(source.tf_load(tf.constant(index))[1], expected)


# --- Names of folders ---

FOLDERS = {
    "letter case": ("Images/{split}/{name}.jpg", "Masks/{split}/{name}.png"),
    "capitals": ("IMAGES/{split}/{name}.jpg", "LABELS/{split}/{name}.png"),
    "short names": ("img/{split}/{name}.jpg", "mask/{split}/{name}.png"),
    "plural": ("Imgs/{split}/{name}.jpg", "Label/{split}/{name}.png"),
    "VOC": ("JPEGImages/{split}/{name}.jpg", "SegmentationClass/{split}/{name}.png"),
    "ground truth": ("image/{split}/{name}.jpg", "Ground_Truth/{split}/{name}.png"),
    "splits outside": ("{split}/Images/{name}.jpg", "{split}/Masks/{name}.png"),
    "splits in the names": ("{split}_images/{name}.jpg", "{split}_masks/{name}.png"),
    "masks next to the split": ("{split}/{name}.jpg", "{split}_labels/{name}.png"),
    "masks next to the split, with endings": (
        "{split}/{name}.jpg",
        "{split}_masks/{name}_mask.gif",
    ),
    "one folder around": ("mine/images/{split}/{name}.jpg", "mine/labels/{split}/{name}.png"),
    "side by side": ("{split}/{name}.jpg", "{split}/{name}_mask.png"),
    "side by side, by suffix": ("{split}/{name}.jpg", "{split}/{name}.png"),
    "side by side, in capitals": ("{split}/{name}.JPG", "{split}/{name}_MASK.PNG"),
    "side by side in images": ("images/{split}/{name}.jpg", "images/{split}/{name}_mask.png"),
    "names in another letter case": ("images/{split}/{name}X.jpg", "labels/{split}/{name}x.png"),
    "words at the beginning": ("images/{split}/image_{name}.jpg", "masks/{split}/gt_{name}.png"),
    "a word before the name": ("images/{split}/{name}.jpg", "masks/{split}/mask-{name}.png"),
    "deep": ("{split}/x/y/{name}.jpg", "{split}/x/y/{name}_gt.png"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_names_of_folders(name, tmp_path):
    root = write_splits(tmp_path / "set", *FOLDERS[name])
    require_pairs(opened(root))
    require_pairs(opened(root, "val"), (2,))
    assert not check_dataset(DataConfig(dataset="folder", dataset_dir=str(root)), ["train"]).wrong
    archive = shutil.make_archive(str(tmp_path / "set"), "zip", root)
    require_pairs(opened(archive))


def test_the_folder_that_has_masks_is_used(tmp_path):
    """As in PASCAL VOC, whose folder Annotations has XML files."""
    root = write_splits(
        tmp_path, "JPEGImages/{split}/{name}.jpg", "SegmentationClass/{split}/{name}.png"
    )
    (root / "Annotations/train").mkdir(parents=True)
    (root / "Annotations/train/a.xml").write_text("<annotation/>")
    require_pairs(opened(root))


def test_two_folders_that_differ_in_letter_case(tmp_path):
    root = write_splits(tmp_path, "Images/{split}/{name}.jpg", "labels/{split}/{name}.png")
    (root / "IMAGES").mkdir()
    with raises_line("its folders (Images|IMAGES) and .* differ only in letter case; rename"):
        opened(root)
    (root / "IMAGES").rmdir()
    (root / "images").mkdir()  # the exact name comes first, as before
    with raises_line("images: it has no split 'train'"):
        opened(root)


@pytest.mark.parametrize("layout", ["letter case", "splits outside", "side by side"])
def test_other_names_of_the_validation_split(layout, tmp_path, caplog):
    root = write_splits(tmp_path, *FOLDERS[layout])
    for path in sorted(root.rglob("val")):
        path.rename(path.with_name("Valid"))
    with caplog.at_level(logging.INFO, logger="deeplab_keras"):
        require_pairs(opened(root, "val"), (2,))
    assert "it has no split 'val'; using 'valid'" in caplog.text
    require_pairs(opened(root, "validation"), (2,))
    require_pairs(opened(root, "Valid"), (2,))
    for path in sorted(root.rglob("Valid")):
        shutil.copytree(path, path.with_name("validation"))
    require_pairs(opened(root, "valid"), (2,))
    with raises_line("it has no split 'val' but valid and validation; give one of them as"):
        opened(root, "val")


def test_a_layout_that_is_not_understood_is_described(tmp_path):
    write(tmp_path, "rgb/a.jpg", "truth/a.png")
    (tmp_path / "readme.md").write_text("hello")
    with raises_line(
        "it has no folder 'images' with the split 'train' but the folders rgb, truth and 1 .md "
        "files; --dataset_dir must contain images/train and labels/train, train/images and "
    ):
        opened(tmp_path)


ANNOTATED = {
    "YOLO": (
        "train/images/a.jpg",
        "train/labels/a.txt",
        "labels: it has no masks, only 1 .txt files",
    ),
    "COCO": (
        "images/train/a.jpg",
        "annotations/train.json",
        "annotations: it has no split 'train'",
    ),
    "labelme": (
        "images/train/a.jpg",
        "labels/train/a.json",
        "train: it has no masks, only 1 .json",
    ),
    "Roboflow": (
        "train/a.jpg",
        "train/_annotations.coco.json",
        "which of its 1 pictures are masks",
    ),
    "CVAT": (
        "images/train/a.jpg",
        "annotations.xml",
        "it has no folder of masks; create one named",
    ),
}


@pytest.mark.parametrize("name", ANNOTATED)
def test_annotations_instead_of_masks(name, tmp_path):
    image, annotations, says = ANNOTATED[name]
    write(tmp_path, image, "mask.png")
    (tmp_path / "mask.png").unlink()
    (tmp_path / annotations).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / annotations).write_text("{}")
    with raises_line(f"{says}.*; scripts/convert_masks.py converts annotations to masks, such as"):
        opened(tmp_path)


def test_an_empty_folder_of_masks(tmp_path):
    write(tmp_path, "images/train/a.jpg", "labels/train/a.png")
    (tmp_path / "labels/train/a.png").unlink()
    with raises_line("labels/train: it has no masks; each image needs a mask of the same name"):
        opened(tmp_path)


# --- Images next to masks ---


def test_pictures_that_cannot_be_told_apart(tmp_path):
    for name in ("a", "b"):
        write(tmp_path, f"train/{name}.png", f"train/{name}x.png")
    with raises_line(
        "train: which of its 4 pictures are masks cannot be told from their names, such as a.png; "
        "name each mask like its image with _mask at the end"
    ):
        opened(tmp_path)


def test_an_image_with_two_masks(tmp_path):
    write(tmp_path, "train/a.jpg", "train/a_mask.png")
    write(tmp_path, "train/a.jpg", "train/a_gt.png")
    with raises_line(r"a\.jpg: it has two masks, a_mask.png and a_gt.png; remove one"):
        opened(tmp_path)
    (tmp_path / "train/a_gt.png").rename(tmp_path / "train/a.png")
    with raises_line(r"a\.png: a\.jpg has the same name; remove one of the two"):
        opened(tmp_path)


def test_two_images_and_one_mask_side_by_side(tmp_path):
    write(tmp_path, "train/a.jpg", "train/a_mask.png")
    write(tmp_path, "train/a.webp", "train/b_mask.png")
    with raises_line("has the same name; remove one of the two"):
        opened(tmp_path)


def test_images_without_masks_and_masks_without_images(tmp_path, caplog):
    for seed, name in enumerate("abc"):
        write(tmp_path, f"train/{name}.jpg", f"train/{name}_mask.png", seed)
    (tmp_path / "train/c.jpg").unlink()
    require_pairs(opened(tmp_path))
    assert "1 masks have no image and are not used" in caplog.text
    (tmp_path / "train/b_mask.png").unlink()
    with raises_line(
        "train/b_mask.png: this file does not exist; each image in .*train needs a mask next to it"
    ):
        opened(tmp_path)


def test_roboflows_classes_are_in_the_split(tmp_path):
    root = write_splits(tmp_path, "{split}/{name}.rf.1f.jpg", "{split}/{name}.rf.1f_mask.png")
    for split in ("train", "val"):
        (root / split / "_classes.csv").write_text(
            "Pixel Value, Class\n0, background\n1, wall\n2, door\n"
        )
    assert opened(root).info.class_names == ("background", "wall", "door")
    assert opened(root, "val").info.class_names == ("background", "wall", "door")


# --- File formats ---

SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".TIFF", ".webp")


def test_formats_of_images_and_masks_in_one_folder(tmp_path):
    """Every format of an image with every format of a mask, also in an archive and as records."""
    root, count = tmp_path / "set", 0
    for image in (*SUFFIXES, ".jpg"):
        for label in SUFFIXES:
            write(root, f"images/train/{count:02}{image}", f"labels/train/{count:02}{label}", count)
            count += 1
    (root / "classes.txt").write_text("a\nb\nc\n")
    archive = shutil.make_archive(str(tmp_path / "set"), "zip", root)
    build_records(opened(root), "train", tmp_path / "records")
    records = open_dataset(
        DataConfig(dataset="tfrecord", dataset_dir=str(tmp_path / "records")), "train"
    )
    sources = {"folder": opened(root), "archive": opened(archive), "records": records}
    for index, path in enumerate(sorted((root / "images/train").iterdir())):
        with Image.open(path) as picture:
            image = np.asarray(picture.convert("RGB"))
        assert path.suffix in (".jpg", ".gif") or (image == photograph(*SIZE, index)).all()
        for name, source in sources.items():
            for found in (source.load(index), source.tf_load(tf.constant(index))):
                np.testing.assert_array_equal(found[0], image, err_msg=f"{name}: {path}")
                np.testing.assert_array_equal(found[1], mask(*SIZE, index, ids=IDS))
    plain = sources["folder"].plain
    for index, (path, label) in enumerate(
        zip(sources["folder"].images, sources["folder"].labels, strict=True)
    ):
        assert plain[index] == (path.endswith((".png", ".jpg")), label.endswith(".png"))


def palette_of(ids: np.ndarray) -> Image.Image:
    picture = Image.fromarray(ids, "P")
    picture.putpalette([value for i in range(256) for value in (i * 7 % 256, 255 - i, i * 3 % 256)])
    return picture


MODES = {
    "palette": palette_of,
    "gray": Image.fromarray,
    "bits": lambda ids: Image.fromarray(ids > 0),
    "RGB": lambda ids: Image.fromarray(ids).convert("RGB"),
    "RGBA": lambda ids: Image.fromarray(ids).convert("RGBA"),
    "gray of 16 bits": lambda ids: Image.fromarray(ids.astype(np.uint16)),
    "gray of 32 bits": lambda ids: Image.fromarray(ids.astype(np.int32)),
}
SAVED_AS = {
    ".gif": ("palette",),
    ".bmp": ("palette", "gray", "bits", "RGB", "RGBA"),
    ".tif": tuple(MODES),
    ".webp": ("RGB", "RGBA"),
}


@pytest.mark.parametrize("suffix", SAVED_AS)
def test_masks_are_read_as_ids_in_every_mode(suffix, tmp_path):
    ids = mask(*SIZE)
    for mode in SAVED_AS[suffix]:
        for packed in ("raw", "tiff_lzw", "packbits") if suffix == ".tif" else ("",):
            options = {"compression": packed} if packed else {}
            options |= {"lossless": True, "exact": True} if suffix == ".webp" else {}
            options |= {"optimize": False} if suffix == ".gif" else {}
            path = tmp_path / f"{mode} {packed}{suffix}"
            MODES[mode](ids).save(path, **options)
            expected = ids > 0 if mode == "bits" else ids
            np.testing.assert_array_equal(read_label(str(path)), expected, err_msg=path.name)


def frames(path: pathlib.Path, pixels: np.ndarray) -> None:
    pictures = [Image.fromarray(pixels), Image.fromarray(np.flipud(pixels).copy())]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **options)


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".webp"])
def test_several_frames_are_refused(suffix, tmp_path):
    """Also if they begin after the part of the file that the header check reads at first."""
    says = "it holds several frames or pages; save each as its own file"
    write(tmp_path, "images/train/a.jpg", "labels/train/a.png")
    big = np.random.default_rng(0).integers(0, 255, (400, 400)).astype(np.uint8)
    for pixels in (mask(*SIZE), big):
        for folder in ("images", "labels"):
            shutil.rmtree(tmp_path / folder)
        write(tmp_path, "images/train/a.jpg", "labels/train/a.png")
        frames(tmp_path / f"images/train/b{suffix}", pixels)
        Image.fromarray(pixels % 3).save(tmp_path / "labels/train/b.png")
        with raises_line(f"images/train/b{suffix}: cannot be decoded .{says}"):
            opened(tmp_path)
        with raises_line(says):  # in large datasets, the check of the headers alone must see it
            check_headers(str(tmp_path / f"images/train/b{suffix}"), "")
        (tmp_path / f"images/train/b{suffix}").unlink()
        (tmp_path / "labels/train/b.png").unlink()
        Image.fromarray(pixels).convert("RGB").save(tmp_path / "images/train/b.png")
        frames(tmp_path / f"labels/train/b{suffix}", pixels % 3)
        with raises_line(f"labels/train/b{suffix}: cannot be decoded .{says}"):
            opened(tmp_path)


LOSSY = {
    "JPEG": ("b.jpg", {"format": "JPEG"}, "not a PNG file but JPEG; JPEG changes ids"),
    "JPEG named PNG": ("b.png", {"format": "JPEG"}, "not a PNG file but JPEG; JPEG changes ids"),
    "WebP": ("b.webp", {"quality": 90}, "a lossy WebP file; lossy WebP changes ids"),
    "WebP with EXIF": (
        "b.webp",
        {"quality": 90, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"},
        "a lossy WebP file; lossy WebP changes ids",
    ),
    "TIFF": ("b.tif", {"compression": "jpeg"}, "a TIFF file with JPEG compression, which changes"),
}


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_masks_are_refused_with_the_command(name, tmp_path):
    for seed, other in enumerate("acd"):
        write(tmp_path, f"images/train/{other}.jpg", f"labels/train/{other}.png", seed)
    write(tmp_path, "images/train/b.jpg", "labels/train/b.png")
    (tmp_path / "labels/train/b.png").unlink()
    file, options, says = LOSSY[name]
    Image.fromarray(mask(*SIZE, ids=IDS)).save(tmp_path / "labels/train" / file, **options)
    with raises_line(f"labels/train/{file}: .*{says}.*scripts/convert_masks.py --from=binary"):
        opened(tmp_path)


def test_a_lossless_webp_with_other_chunks_is_read(tmp_path):
    ids = mask(*SIZE, ids=IDS)
    exif = Image.Exif()
    exif[0x010F] = "camera"
    Image.fromarray(ids).save(tmp_path / "a.webp", lossless=True, exif=exif, icc_profile=b"x" * 99)
    np.testing.assert_array_equal(read_label(str(tmp_path / "a.webp")), ids)


UNCLEAR = {
    "colors": (lambda ids: Image.fromarray(photograph(*SIZE)), {}, "the mask is a color image"),
    "CMYK": (lambda ids: Image.fromarray(ids).convert("CMYK"), {}, "the mask is a color image"),
    "floats": (lambda ids: Image.fromarray(ids.astype(np.float32)), {}, "the mask holds floats"),
    "negative": (lambda ids: Image.fromarray(ids.astype(np.int32) - 1), {}, "holds the id -1"),
    "above 255": (lambda ids: Image.fromarray(ids.astype(np.uint16) + 300), {}, "the id 302"),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_tiff_masks_without_ids(name, tmp_path):
    make, options, says = UNCLEAR[name]
    make(mask(*SIZE, ids=IDS)).save(tmp_path / "a.tif", **options)
    with raises_line(says):
        read_label(str(tmp_path / "a.tif"))


def test_inverted_gray_levels_are_not_ids(tmp_path):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[262] = 0  # WhiteIsZero
    Image.fromarray(mask(*SIZE, ids=IDS)).save(tmp_path / "a.tif", tiffinfo=info)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    place = data.index(b"\x06\x01\x03\x00\x01\x00\x00\x00")  # the tag, in case Pillow replaced it
    data[place + 8] = 0
    (tmp_path / "a.tif").write_bytes(data)
    with raises_line("its gray levels are inverted"):
        read_label(str(tmp_path / "a.tif"))


def test_damaged_files_of_other_formats(tmp_path):
    for suffix in SUFFIXES:
        for seed, name in enumerate("abc"):
            write(tmp_path, f"images/train/{name}{suffix}", f"labels/train/{name}{suffix}", seed)
        for folder in ("images", "labels"):
            path = tmp_path / folder / f"train/b{suffix}"
            data = path.read_bytes()
            truncate(path)
            with raises_line(rf"{folder}/train/b\{suffix}: cannot be decoded"):
                opened(tmp_path)
            path.write_bytes(data)
        for folder in ("images", "labels"):
            shutil.rmtree(tmp_path / folder)


def test_a_dark_tiff_of_16_bits_is_refused(tmp_path):
    Image.fromarray(np.full(SIZE, 900, np.uint16)).save(tmp_path / "a.tif")
    with raises_line("it has 16 bits per channel but only values up to 900"):
        read_image(str(tmp_path / "a.tif"))
    Image.fromarray(np.full(SIZE, 256 * 77 + 3, np.uint16)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.tif")), np.full((*SIZE, 3), 77))


@pytest.mark.parametrize("suffix", [".tif", ".webp"])
def test_orientation_in_other_formats(suffix, tmp_path):
    """A rotated image whose mask was drawn on the upright one."""
    write(tmp_path, "images/train/a.jpg", "labels/train/a.png")
    (tmp_path / "images/train/a.jpg").unlink()
    upright = photograph(*SIZE)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    options = {"lossless": True} if suffix == ".webp" else {}
    stored.save(tmp_path / f"images/train/a{suffix}", exif=exif, **options)
    source = opened(tmp_path)
    np.testing.assert_array_equal(source.load(0)[0], upright)
    np.testing.assert_array_equal(source.tf_load(tf.constant(0))[0], upright)


# --- Lists ---


def test_masks_of_lists_may_have_endings_and_other_formats(tmp_path):
    for seed, (image, label) in enumerate(
        (("a.jpg", "a_mask.png"), ("b.tif", "b_gt.gif"), ("c.webp", "C.bmp"))
    ):
        write(tmp_path, f"Images/{image}", f"Masks/{label}", seed)
    for text in ("a\nb\nc\n", "a.jpg\nb.tif\nc.webp\n", "Images/a.jpg\nImages/b.tif\nc\n"):
        (tmp_path / "train.txt").write_text(text)
        require_pairs(opened(tmp_path), (0, 1, 2))
    (tmp_path / "train.txt").unlink()
    (tmp_path / "train.csv").write_text("id,image\n1,a.jpg\n2,b\n")
    require_pairs(opened(tmp_path))
    (tmp_path / "train.csv").write_text(
        "Images/a.jpg,Masks/a_mask.png\nImages/b.tif,Masks/b_gt.gif\n"
    )
    require_pairs(opened(tmp_path))


def test_lists_of_pascal_voc(tmp_path):
    for seed, name in enumerate("ab"):
        write(tmp_path, f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png", seed)
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("b\na\n")
    require_pairs(opened(tmp_path), (1, 0))


@pytest.mark.parametrize(
    "line",
    [
        "../secret",
        "..\\secret",
        "a/../../../secret",
        "../../outside/x.jpg,../../outside/x.png",
        "images/a.jpg\t../../outside/x.png",
    ],
)
def test_names_in_lists_stay_in_the_dataset(line, tmp_path):
    root = tmp_path / "set"
    write(root, "images/a.jpg", "labels/a.png")
    write(tmp_path, "secret.jpg", "secret.png")
    name = "train.csv" if "," in line else "train.txt"
    (root / name).write_text(f"images/a.jpg{',' if ',' in line else chr(9)}labels/a.png\n{line}\n")
    with raises_line(f"{name}: line 2 leads out of the dataset: .*; move the file into the"):
        opened(root)


# --- When most pairs are broken ---


def missing(root: pathlib.Path) -> None:
    for path in list((root / "labels/train").iterdir()):
        path.rename(path.with_stem(f"truth_{path.stem}"))


def of_another_size(root: pathlib.Path) -> None:
    for path in (root / "labels/train").iterdir():
        Image.fromarray(mask(9, 9, ids=IDS)).save(path)


def unreadable(root: pathlib.Path) -> None:
    for path in (root / "images/train").iterdir():
        path.write_text("<html>404</html>")


def lossy(root: pathlib.Path) -> None:
    for path in (root / "labels/train").iterdir():
        Image.fromarray(mask(*SIZE, ids=IDS)).save(path, format="JPEG")


MOST = {
    lossy: "run scripts/convert_masks.py --from=binary.; 4 of 4 pairs are affected .and 3 more",
    missing: "4 of 4 pairs lack a file or are broken, so the names or folders differ from this "
    "layout: .*labels/train has 4 masks, such as truth_a.png, truth_b.png",
    of_another_size: "4 of 4 pairs are affected: export the masks at the size of their images",
    unreadable: "4 of 4 pairs cannot be read: replace the files, for example by a new download",
}


@pytest.mark.parametrize("spoil", MOST)
def test_skipping_is_not_advised_if_most_pairs_are_broken(spoil, tmp_path):
    for seed, name in enumerate("abcd"):
        write(tmp_path, f"images/train/{name}.jpg", f"labels/train/{name}.png", seed)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    spoil(tmp_path)
    with raises_line(MOST[spoil]) as error:
        opened(tmp_path)
    assert "skip_broken_files" not in error.value.text
    config = DataConfig(dataset="folder", dataset_dir=str(tmp_path))
    problems = check_dataset(config, ["train"]).problems
    assert len(problems) == 4 and not any("skip_broken" in problem.message for problem in problems)


def test_skipping_is_advised_if_few_pairs_are_broken(tmp_path):
    for seed, name in enumerate("abcd"):
        write(tmp_path, f"images/train/{name}.jpg", f"labels/train/{name}.png", seed)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    (tmp_path / "labels/train/b.png").unlink()
    with raises_line("b.png: this file does not exist; .*; skip such pairs with --skip_broken"):
        opened(tmp_path)
    config = DataConfig(dataset="folder", dataset_dir=str(tmp_path))
    assert "skip_broken_files" in check_dataset(config, ["train"]).problems[0].message


# --- Hostile names ---


def test_names_of_files_are_escaped_in_the_report(tmp_path):
    name = "<img src=x onerror=alert(1)>"
    write(tmp_path, f"images/train/{name}.jpg", f"labels/train/{name}.png")
    write(tmp_path, "images/train/b.jpg", "labels/train/b.png", 1)
    truncate(tmp_path / f"images/train/{name}.jpg")
    (tmp_path / "classes.txt").write_text("<script>alert(1)</script>\nb\nc\n")
    result = check_dataset(DataConfig(dataset="folder", dataset_dir=str(tmp_path)), ["train"])
    page = dataset_report.page(result)
    assert result.wrong and "&lt;img src=x" in page and "&lt;script&gt;" in page
    assert "<img src=x" not in page and "<script" not in page
