"""The config of datasets and of what happens to their images."""

from __future__ import annotations

import dataclasses

from deeplab_keras.config.base import Config, option

# images that are mixed with each other: neighbours in the stream, so that no other image of a batch
# is needed
MIXED = 4


@dataclasses.dataclass(frozen=True)
class DataConfig(Config):
    """Which images, and what happens to them before the network sees them."""

    dataset: str = option(
        "synthetic",
        "dataset by name; 'folder' for a folder of your own, 'tfrecord' for records, 'tfds:NAME' "
        "for one of tensorflow-datasets",
    )
    dataset_dir: str | None = option(
        None, "folder that holds the dataset, or its .zip or .tar; not needed for 'synthetic'"
    )
    train_split: str = option(
        "train", "split to train on; for 'folder' also a list: FILE.csv, or IMAGES.txt,LABELS.txt"
    )
    eval_split: str = option("val", "split to evaluate on")
    ignore_label: int = option(255, "label of pixels that count nowhere; for 'folder'")
    mask_format: str = option(
        "index",
        "what a mask of a 'folder' holds: index: class ids, in a grey or palette PNG; colour: the "
        "colours or grey levels that classes.txt gives",
        choices=("index", "colour"),
    )
    train_crop_size: tuple[int, ...] = option(
        (512, 512), "size of the training crop, as height,width"
    )
    train_batch_size: int = option(16, "images a training step, over all devices together")
    min_resize_value: int | None = option(
        None, "before all else the short side is resized to this length; 0: as it is"
    )
    max_resize_value: int | None = option(None, "cap of the long side in that resize")
    resize_factor: int | None = option(
        None,
        "after that resize, sides are rounded up to a multiple of this plus one (with "
        "`preprocessing='official'`)",
    )
    preprocessing: str = option(
        "default",
        "default: half-pixel resizing of images and labels; sssegmentation: labels by OpenCV's "
        "nearest neighbour, up to half a pixel beside the image; "
        "official: the official DeepLab's, aligned corners and truncated sizes",
        choices=("default", "sssegmentation", "official"),
    )
    min_scale_factor: float = option(0.5, "random scaling: smallest factor")
    max_scale_factor: float = option(2.0, "random scaling: largest factor")
    scale_factor_step_size: float = option(
        0.0, "random scaling: step between the factors; 0: any factor in between"
    )
    crop_max_category_share: float = option(
        0.75,
        "a crop in which one class has a larger share is drawn again, up to ten times; 1: never",
    )
    random_flip: bool = option(True, "mirrors left and right with probability 1/2")
    photometric_distortion: bool = option(True, "random brightness, contrast, saturation and hue")
    rotation: float = option(0.0, "random rotation: largest angle in degrees, either way; 0: none")
    blur: float = option(
        0.0, "random Gaussian blur of every second image: largest sigma in pixels; 0: none"
    )
    cutout: float = option(
        0.0, "random hole in every second image: its largest side as a share of the crop's; 0: none"
    )
    rand_augment: int = option(
        0, "RandAugment's colour operations: how many an image gets; 0: none"
    )
    rand_augment_magnitude: float = option(0.5, "how strong RandAugment's operations are, 0 to 1")
    cut_mix: float = option(
        0.0, "CutMix: probability that a rectangle of a crop comes from another image; 0: none"
    )
    mosaic: float = option(
        0.0, "Mosaic: probability that a crop is put together from parts of four images; 0: none"
    )
    padding_position: str = option(
        "center", "where an image smaller than the crop lies in it", choices=("center", "top_left")
    )
    train_samples: int = option(512, "'synthetic': number of training scenes")
    eval_samples: int = option(64, "'synthetic': number of validation scenes")
    synthetic_size: tuple[int, ...] = option(
        (160, 160), "'synthetic': size of a scene, as height,width"
    )
    skip_broken_files: bool = option(
        False,
        "a file that cannot be read, or a mask of another size, is named, counted and left out, "
        "instead of ending the run",
    )
    cache: bool = option(False, "keeps decoded images in memory")
    cache_dir: str | None = option(
        None,
        "keeps decoded images in a folder: about 4 bytes a pixel, written before the first step",
    )
    data_service: str | None = option(
        None,
        "batches are made by the tf.data service at this address, as grpc://HOST:PORT; see "
        "scripts/data_service.py",
    )
    seed: int = option(
        0, "seed of every random draw: order, augmentation, initial weights, dropout"
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
            f"must be smaller with a crop size of {height}x{width}: a batch holds fewer than 2^31 values",
        )
        self._require(0 <= self.seed < 2**32, "seed", "must be between 0 and 4294967295")
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
        self._require(self.rand_augment >= 0, "rand_augment", "must be at least 0")
        for field in ("cutout", "rand_augment_magnitude", "cut_mix", "mosaic"):
            self._require(0 <= getattr(self, field) <= 1, field, "must be between 0 and 1")
        if self.cut_mix or self.mosaic:
            self._require(
                self.train_batch_size % MIXED == 0,
                "train_batch_size",
                f"must be a multiple of {MIXED} with `cut_mix` or `mosaic`, which mix {MIXED} images",
            )
        self._require(
            self.train_samples >= 1 and self.eval_samples >= 1,
            "train_samples",
            "must be at least 1, as must `eval_samples`",
        )
