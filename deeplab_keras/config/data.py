"""The configuration of datasets and of the augmentation of their images."""

from __future__ import annotations

import dataclasses
import re

from deeplab_keras.config.base import Config, option

# Number of consecutive images that CutMix and Mosaic mix with each other.
MIXED = 4
LARGEST_SCENE = 1 << 24  # pixels; drawing more takes gigabytes
_FOLD = re.compile(r"([0-9]{1,4})/([0-9]{1,4})")


@dataclasses.dataclass(frozen=True)
class DataConfig(Config):
    """Which images to read, and how to augment them.

    Example:
        >>> data = dk.DataConfig(dataset="synthetic", train_crop_size=(64, 64), train_batch_size=8)
        >>> dk.open_dataset(data, "val").info.num_classes
        10
    """

    dataset: str = option(
        "synthetic",
        "name of the dataset; 'folder' for your own folder, 'tfrecord' for TFRecord files, "
        "'tfds:NAME' for a dataset of tensorflow-datasets",
    )
    dataset_dir: str | None = option(
        None, "folder of the dataset, or its .zip or .tar file; not used by 'synthetic'"
    )
    train_split: str = option(
        "train",
        "split to train on; for 'folder' also a list: FILE.csv, or IMAGES.txt,LABELS.txt",
    )
    eval_split: str = option("val", "split to evaluate on")
    val_fraction: float = option(
        0.0,
        "'folder': without a validation split, fraction of the training images to validate on, "
        "chosen by a hash of their names; 0: none",
    )
    fold: str = option(
        "",
        "'folder': cross-validation without a validation split: 2/5 validates on the second of "
        "five parts of the training images and trains on the others",
    )
    split_by: str = option(
        "name",
        "what `val_fraction` and `fold` keep together: name: the versions of an image; prefix: "
        "images with the same name before the last number, such as the frames of a video",
        choices=("name", "prefix"),
    )
    split_seed: int = option(0, "random seed of the parts by `val_fraction` or `fold`")
    ignore_label: int = option(255, "'folder': label of pixels to ignore")
    mask_format: str = option(
        "index",
        "'folder': contents of the masks: index: class ids, in a gray or palette PNG; color: the "
        "colors or gray levels listed in classes.txt",
        choices=("index", "color"),
        aliases={"colour": "color"},
    )
    train_crop_size: tuple[int, ...] = option(
        (512, 512), "size of the training crop, as height,width"
    )
    train_batch_size: int = option(16, "images per training step, over all devices")
    min_resize_value: int | None = option(
        None, "first resizes images so that their short side has this length; 0: no resize"
    )
    max_resize_value: int | None = option(
        None, "maximum length of the long side in the resize by `min_resize_value`"
    )
    resize_factor: int | None = option(
        None,
        "with `preprocessing='official'`: rounds the sides up to a multiple of this plus one "
        "after that resize",
    )
    preprocessing: str = option(
        "default",
        "default: half-pixel resizing of images and labels; sssegmentation: labels by OpenCV's "
        "nearest neighbor, which are shifted by up to half a pixel; official: aligned corners and "
        "truncated sizes, as in the official DeepLab",
        choices=("default", "sssegmentation", "official"),
    )
    min_scale_factor: float = option(0.5, "random scaling: smallest factor")
    max_scale_factor: float = option(2.0, "random scaling: largest factor")
    scale_factor_step_size: float = option(
        0.0, "random scaling: step between the factors; 0: continuous"
    )
    crop_max_category_share: float = option(
        0.75,
        "draws a new crop, up to ten times, if a class covers more than this fraction; 1: never",
    )
    rare_class_crops: float = option(
        0.0,
        "fraction of crops centered on a random pixel of a class that is not the most frequent one "
        "of its image, each such class equally often; for classes with few pixels; 0: none",
    )
    random_flip: bool = option(True, "random horizontal flip with probability 1/2")
    photometric_distortion: bool = option(True, "random brightness, contrast, saturation and hue")
    rotation: float = option(
        0.0, "random rotation: maximum angle in degrees, in both directions; 0: none"
    )
    blur: float = option(
        0.0,
        "random Gaussian blur with probability 1/2: maximum standard deviation in pixels; 0: none",
    )
    cutout: float = option(
        0.0,
        "random cutout with probability 1/2: maximum side as a fraction of the crop's; 0: none",
    )
    rand_augment: int = option(0, "RandAugment: number of color operations per image; 0: none")
    rand_augment_magnitude: float = option(0.5, "RandAugment: magnitude of the operations, 0 to 1")
    cut_mix: float = option(
        0.0,
        "CutMix: probability of replacing a rectangle of a crop by another image's; 0: none",
    )
    mosaic: float = option(0.0, "Mosaic: probability of composing a crop from four images; 0: none")
    padding_position: str = option(
        "center",
        "position of an image that is smaller than the crop",
        choices=("center", "top_left"),
    )
    train_samples: int = option(512, "'synthetic': number of training scenes")
    eval_samples: int = option(64, "'synthetic': number of validation scenes")
    synthetic_size: tuple[int, ...] = option(
        (160, 160), "'synthetic': size of a scene, as height,width"
    )
    skip_broken_files: bool = option(
        False,
        "reports and skips files that cannot be read and masks of the wrong size, instead of "
        "stopping",
    )
    cache: bool = option(False, "keeps decoded images in memory")
    cache_dir: str | None = option(
        None,
        "keeps decoded images in a folder: about 4 bytes per pixel, written before the first step",
    )
    data_service: str | None = option(
        None,
        "address of a tf.data service that prepares the batches, as grpc://HOST:PORT; see "
        "`scripts/data_service.py`",
    )
    seed: int = option(
        0, "random seed of the order, the augmentation, the initial weights and dropout"
    )

    def validate(self) -> None:
        for field in ("train_crop_size", "synthetic_size"):
            value = getattr(self, field)
            self._require(
                len(value) == 2 and all(v >= 1 for v in value),
                field,
                "must be two whole numbers of at least 1, the height and the width",
            )
        self._require(self.train_batch_size >= 1, "train_batch_size", "must be at least 1")
        height, width = self.train_crop_size
        self._require(
            self.train_batch_size * height * width * 3 < 2**31,
            "train_batch_size",
            f"must be smaller with a crop size of {height}x{width}: a batch must have fewer than "
            "2^31 values",
        )
        self._require(0 <= self.seed < 2**32, "seed", "must be between 0 and 4294967295")
        self._validate_parts()
        self._require(
            0 < self.min_scale_factor <= self.max_scale_factor,
            "min_scale_factor",
            f"must be above 0 and at most `max_scale_factor={self.max_scale_factor}`",
        )
        self._require(
            self.scale_factor_step_size >= 0, "scale_factor_step_size", "must be at least 0"
        )
        self._require(
            0 < self.crop_max_category_share <= 1,
            "crop_max_category_share",
            "must be above 0 and at most 1",
        )
        self._require(0 <= self.ignore_label <= 255, "ignore_label", "must be between 0 and 255")
        address = (self.data_service or "grpc://host:1").partition("://")
        self._require(
            address[0] == "grpc"
            and address[2].rpartition(":")[2].isdigit()
            and bool(address[2].rpartition(":")[0]),
            "data_service",
            "must be grpc://HOST:PORT, the address of the dispatcher",
        )
        self._require(0 <= self.rotation <= 180, "rotation", "must be between 0 and 180 degrees")
        self._require(0 <= self.blur <= 16, "blur", "must be between 0 and 16 pixels")
        self._require(0 <= self.rand_augment <= 16, "rand_augment", "must be between 0 and 16")
        for field in ("rare_class_crops", "cutout", "rand_augment_magnitude", "cut_mix", "mosaic"):
            self._require(0 <= getattr(self, field) <= 1, field, "must be between 0 and 1")
        if self.cut_mix or self.mosaic:
            self._require(
                self.train_batch_size % MIXED == 0,
                "train_batch_size",
                f"must be a multiple of {MIXED} with `cut_mix` or `mosaic`, which mix {MIXED} "
                "images",
            )
        for field in ("train_samples", "eval_samples"):
            count = getattr(self, field)
            self._require(1 <= count <= 10**7, field, "must be between 1 and 10000000")
        for field in ("min_resize_value", "max_resize_value", "resize_factor"):
            self._require((getattr(self, field) or 0) >= 0, field, "must be at least 0")
        height, width = self.synthetic_size
        self._require(
            height * width <= LARGEST_SCENE, "synthetic_size", "must be at most 4096,4096 pixels"
        )

    def _validate_parts(self) -> None:
        """Checks the options that set a part of the training images aside for validation."""
        self._require(0 <= self.val_fraction < 1, "val_fraction", "must be at least 0 and below 1")
        if self.fold:
            match = _FOLD.fullmatch(self.fold)
            self._require(
                match is not None and 1 <= int(match[1]) <= int(match[2]) and int(match[2]) >= 2,
                "fold",
                "must be NUMBER/FOLDS, such as 1/5 to 5/5",
            )
        self._require(
            not (self.val_fraction and self.fold),
            "fold",
            "cannot be combined with `val_fraction`",
        )
        used = bool(self.val_fraction or self.fold)
        for field in ("split_by", "split_seed"):
            default = self.options()[field].default
            self._require(
                used or getattr(self, field) == default,
                field,
                "has no effect without `val_fraction` or `fold`",
            )
        self._require(
            0 <= self.split_seed < 2**32, "split_seed", "must be between 0 and 4294967295"
        )
        self._require(
            not used or self.dataset == "folder",
            "val_fraction" if self.val_fraction else "fold",
            f"has no effect with `dataset={self.dataset}`, which has its own splits",
        )
