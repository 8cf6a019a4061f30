"""What a run is made of: four frozen dataclasses, validated when made, to and from JSON.

Every field carries its help text; `flags.py` turns the fields into command-line flags, so a flag, a JSON key and a
Python keyword are one name. Fields that the official DeepLab scripts have keep their official names.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

OUTPUT_STRIDES = (8, 16, 32)


class UserError(ValueError):
    """A user's mistake, told in one line: what was given, what is allowed, what to do next."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that nobody knows; suggests the nearest known one."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UserError(f"unknown {kind} {name!r}; {hint}known: {', '.join(known)}")


def option(default: Any, help: str, *, flag: str | None = None, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field with its help text, the allowed strings, and a flag name where it differs from the field's."""
    return dataclasses.field(default=default, metadata={"help": help, "flag": flag, "choices": choices})


T = TypeVar("T", bound="Config")


@dataclasses.dataclass(frozen=True)
class Config:
    """Base of the four: checks `choices`, turns lists into tuples, reads and writes JSON."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, value := tuple(value))
            choices = field.metadata.get("choices")
            if choices and value is not None and value not in choices:
                raise unknown_name(f"--{field.metadata['flag'] or field.name}", str(value), choices)
        self.validate()

    def validate(self) -> None:
        """Raises UserError for values that no run could use."""

    def replace(self: T, **changes: Any) -> T:
        """A copy with some fields changed.

        Raises:
            UserError: a field of that name does not exist, or the new value is not allowed.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise unknown_name(f"{type(self).__name__} field", name, names)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """The fields as a JSON object, a line each."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
        """The config of these fields; what is left out has its default.

        Raises:
            UserError: a field of that name does not exist, or a value is not allowed.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise unknown_name(f"{cls.__name__} field", name, names)
        return cls(**values)

    @classmethod
    def from_json(cls: type[T], text: str) -> T:
        """The config that `to_json` wrote."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def types(cls) -> dict[str, Any]:
        """Field name -> resolved type annotation."""
        return typing.get_type_hints(cls)

    def _require(self, ok: bool, field: str, allowed: str) -> None:
        if not ok:
            flag = next(f.metadata["flag"] or f.name for f in dataclasses.fields(self) if f.name == field)
            raise UserError(f"--{flag}={getattr(self, field)}: {allowed}")


@dataclasses.dataclass(frozen=True)
class ModelConfig(Config):
    """A segmentation network, completely: two equal configs give two equal graphs.

    The reference implementations differ in a few conventions, which are the fields under "Conventions". `CONVENTIONS`
    holds one consistent set of them a family; the defaults are SSSegmentation's MobileNetV2 systems
    (spec/sssegmentation.md, section 1.1).
    """

    name: str = option("", "the model of the zoo to start from, which the other model flags then change; list_models.py lists them", flag="model")
    backbone: str = option("mobilenet_v2", "backbone network", flag="model_variant")
    head: str = option("deeplab_v3_plus", "decoding head: fcn, psp, deeplab_v3, deeplab_v3_plus or lraspp")
    num_classes: int = option(21, "number of classes, the background counted if it is one")
    output_stride: int = option(8, "input size over the size of the backbone's last features: 8, 16 or 32")
    depth_multiplier: float = option(1.0, "width of the backbone as a factor on its channels")
    input_channels: int = option(3, "channels of the input image")

    # --- Head ---
    auxiliary_head: bool = option(False, "adds FCN's auxiliary head on c4 for training")
    auxiliary_feature: str = option("c4", "backbone features that the auxiliary head reads")
    auxiliary_channels: int = option(512, "channels of the auxiliary head's 3x3 convolution")
    dropout_rate: float = option(0.1, "rate of the head's dropout in training")
    head_channels: int = option(512, "channels of the head's convolutions", flag="aspp_convs_filters")
    atrous_rates: tuple[int, ...] = option((12, 24, 36), "dilations of ASPP's 3x3 branches; empty: none of them")
    aspp_with_batch_norm: bool = option(True, "False: DeepLab before ASPP: a classifier for each of atrous_rates on the backbone's features, their scores added")
    aspp_with_separable_conv: bool = option(False, "ASPP's 3x3 branches are depthwise-separable")
    aspp_projection_kernel: int = option(3, "kernel of the convolution after ASPP's concatenation: 3 or 1; 0: none")
    aspp_output_convs: int = option(0, "3x3 convolutions between ASPP and DeepLabV3's classifier; torchvision has one")
    add_image_level_feature: bool = option(True, "ASPP has an image-pooling branch")
    image_pooling_first: bool = option(False, "image pooling is the first of ASPP's concatenated branches, not the last")
    image_pooling_size: tuple[int, ...] = option((), "window of image pooling in feature pixels, as height,width; empty: the whole map")
    image_pooling_crop_size: tuple[int, ...] = option(
        (), "window of image pooling in pixels of the input, as height,width, so that it follows output_stride; in place of image_pooling_size"
    )
    image_pooling_stride: tuple[int, ...] = option((1, 1), "stride of the image-pooling window, as height,width")
    image_pooling_gate: str = option(
        "sigmoid", "LR-ASPP's gate", choices=("sigmoid", "hard_sigmoid", "q_sigmoid")
    )
    image_pooling_batch_norm: bool = option(True, "LR-ASPP's image-pooling convolution is followed by batch norm")
    image_pooling_bias: bool = option(False, "LR-ASPP's image-pooling convolution has a bias")
    pool_scales: tuple[int, ...] = option((1, 2, 3, 6), "PSPNet: bins a side of each pyramid level")
    low_level_features: tuple[str, ...] = option(("c2",), "backbone features that the decoder merges, coarse to fine")
    low_level_channels: tuple[int, ...] = option(
        (48,), "channels to which each low-level feature is reduced; LR-ASPP: empty adds class scores instead (the paper's form)"
    )
    decoder_filters: int = option(512, "channels of the DeepLabV3+ decoder")
    decoder_use_separable_conv: bool = option(True, "the DeepLabV3+ decoder's convolutions are depthwise-separable")
    decoder_use_sum_merge: bool = option(False, "the DeepLabV3+ decoder adds the low-level features instead of concatenating them")
    logits_kernel_size: int = option(1, "kernel of the classifiers where aspp_with_batch_norm is false")
    use_bounded_activation: bool = option(False, "the head uses ReLU6 instead of ReLU")

    image_pyramid: tuple[float, ...] = option((), "scales of the image that the network sees, each with the same weights; empty: 1 alone")
    merge_method: str = option("max", "how the class scores of image_pyramid are merged", choices=("max", "avg"))

    # --- Conventions: one value a family, see CONVENTIONS ---
    normalization: str = option(
        "imagenet", "imagenet: (x - mean) / std with the ImageNet colours; unit_range: x / 127.5 - 1; none",
        choices=("imagenet", "unit_range", "none"),
    )
    padding: str = option(
        "symmetric", "padding of strided convolutions: symmetric (PyTorch) or same (TensorFlow)", choices=("symmetric", "same")
    )
    align_corners: bool = option(False, "bilinear resizing aligns the corner pixels (official DeepLab), not the pixel areas")
    backbone_bn_epsilon: float = option(1e-5, "epsilon of the backbone's batch norm")
    backbone_bn_momentum: float = option(0.9, "share of the old running statistics kept at a step, backbone")
    head_bn_epsilon: float = option(1e-5, "epsilon of the head's batch norm")
    head_bn_momentum: float = option(0.9, "share of the old running statistics kept at a step, head")
    dilation_placement: str = option(
        "first",
        "where the dilation of a removed stride goes: first: the first block of each stage; all: the de-strided block and all after it; "
        "after: all blocks after the de-strided one",
        choices=("first", "all", "after"),
    )
    residual_by_table: bool = option(True, "a block has a residual by its tabulated stride, not by the one really used")
    channel_divisor: int = option(8, "output channels under a depth multiplier are rounded to multiples of this", flag="divisible_by")
    initialization: str = option(
        "pytorch", "first weights: pytorch's uniform ones, or the official DeepLab's truncated normal and Xavier ones", choices=("pytorch", "tf_slim")
    )
    q_sigmoid: bool = option(False, "squeeze-and-excite gates multiply by 0.16667 (official DeepLab) instead of 1/6")
    dropout_placement: str = option(
        "classifier", "classifier: whole channels, before the classifier; aspp: single values, after ASPP's projection (official DeepLab)",
        choices=("classifier", "aspp"),
    )

    def validate(self) -> None:
        self._require(self.num_classes >= 1, "num_classes", "at least 1 class")
        self._require(self.output_stride in OUTPUT_STRIDES, "output_stride", "allowed are 8, 16, 32")
        self._require(0.1 <= self.depth_multiplier <= 4, "depth_multiplier", "between 0.1 and 4")
        self._require(self.input_channels >= 1, "input_channels", "at least 1 channel")
        self._require(0 <= self.dropout_rate < 1, "dropout_rate", "at least 0 and below 1")
        self._require(self.aspp_projection_kernel in (0, 1, 3), "aspp_projection_kernel", "allowed are 0, 1, 3")
        self._require(self.aspp_output_convs >= 0, "aspp_output_convs", "0 or more")
        self._require(self.channel_divisor >= 1, "channel_divisor", "at least 1")
        self._require(all(scale > 0 for scale in self.image_pyramid), "image_pyramid", "scales above 0")
        self._require(all(rate >= 1 for rate in self.atrous_rates), "atrous_rates", "rates of at least 1")
        self._require(self.logits_kernel_size == 1 or (not self.aspp_with_batch_norm and bool(self.atrous_rates)), "logits_kernel_size",
                      "other than 1 only with --aspp_with_batch_norm=false and --atrous_rates")
        for field in ("image_pooling_size", "image_pooling_crop_size", "image_pooling_stride"):
            value = getattr(self, field)
            self._require(len(value) in (0, 2) and all(v >= 1 for v in value), field, "two numbers: height,width")
        self._require(self.normalization != "imagenet" or self.input_channels == 3, "input_channels",
                      "ImageNet normalization has 3 channels; give --normalization=unit_range for another number")

    @property
    def image_pooling_window(self) -> tuple[int, ...]:
        """Window of image pooling in feature pixels; empty: the whole map."""
        return tuple(-(-length // self.output_stride) for length in self.image_pooling_crop_size) or self.image_pooling_size


CONVENTIONS: dict[str, dict[str, Any]] = {
    # spec/sssegmentation.md, section 0
    "sssegmentation_v2": {},
    "sssegmentation_v3": dict(padding="same", backbone_bn_epsilon=1e-3, head_bn_epsilon=1e-3, dilation_placement="all"),
    # spec/official-deeplab.md, T1 to T9
    "official_deeplab": dict(
        normalization="unit_range", padding="same", align_corners=True, dilation_placement="after", residual_by_table=False,
        backbone_bn_epsilon=1e-3, backbone_bn_momentum=0.997, head_bn_epsilon=1e-5, head_bn_momentum=0.9997,
        q_sigmoid=True, image_pooling_first=True, initialization="tf_slim", dropout_placement="aspp", channel_divisor=1,
    ),
    # torchvision's models/segmentation on MobileNetV3
    "torchvision": dict(
        dilation_placement="all", backbone_bn_epsilon=1e-3, backbone_bn_momentum=0.99,
    ),
}


@dataclasses.dataclass(frozen=True)
class DataConfig(Config):
    """Which images, and what happens to them before the network sees them."""

    dataset: str = option("synthetic", "dataset by name; 'folder' for a folder of your own")
    dataset_dir: str | None = option(None, "folder that holds the dataset; not needed for 'synthetic'")
    train_split: str = option("train", "split to train on")
    eval_split: str = option("val", "split to evaluate on")
    ignore_label: int = option(255, "label of pixels that count nowhere; for 'folder'")
    train_crop_size: tuple[int, ...] = option((512, 512), "size of the training crop, as height,width")
    train_batch_size: int = option(16, "images a training step, over all devices together")
    min_resize_value: int | None = option(None, "before all else the short side is resized to this length; 0: as it is")
    max_resize_value: int | None = option(None, "cap of the long side in that resize")
    resize_factor: int | None = option(None, "after that resize, sides are rounded up to a multiple of this plus one (with --preprocessing=official)")
    preprocessing: str = option(
        "default", "default: half-pixel resizing, rounded sizes; official: the official DeepLab's, aligned corners and truncated sizes",
        choices=("default", "official")
    )
    min_scale_factor: float = option(0.5, "random scaling: smallest factor")
    max_scale_factor: float = option(2.0, "random scaling: largest factor")
    scale_factor_step_size: float = option(0.0, "random scaling: step between the factors; 0: any factor in between")
    crop_max_category_share: float = option(0.75, "a crop in which one class has a larger share is drawn again, up to ten times; 1: never")
    random_flip: bool = option(True, "mirrors left and right with probability 1/2")
    photometric_distortion: bool = option(True, "random brightness, contrast, saturation and hue")
    padding_position: str = option("center", "where an image smaller than the crop lies in it", choices=("center", "top_left"))
    train_samples: int = option(512, "'synthetic': number of training scenes")
    eval_samples: int = option(64, "'synthetic': number of validation scenes")
    synthetic_size: tuple[int, ...] = option((160, 160), "'synthetic': size of a scene, as height,width")
    skip_broken_files: bool = option(False, "a file that cannot be read is named, counted and left out, instead of ending the run")
    cache: bool = option(False, "keeps decoded images in memory")
    seed: int = option(0, "seed of every random draw: order, augmentation, initial weights, dropout")

    def validate(self) -> None:
        for field in ("train_crop_size", "synthetic_size"):
            value = getattr(self, field)
            self._require(len(value) == 2 and all(v >= 1 for v in value), field, "two numbers of at least 1: height,width")
        self._require(self.train_batch_size >= 1, "train_batch_size", "at least 1")
        self._require(0 < self.min_scale_factor <= self.max_scale_factor, "min_scale_factor",
                      f"above 0 and at most --max_scale_factor={self.max_scale_factor}")
        self._require(self.scale_factor_step_size >= 0, "scale_factor_step_size", "0 or above")
        self._require(0 < self.crop_max_category_share <= 1, "crop_max_category_share", "above 0 and at most 1")
        self._require(0 <= self.ignore_label <= 255, "ignore_label", "0 to 255")
        self._require(self.train_samples >= 1 and self.eval_samples >= 1, "train_samples", "at least 1 scene a split")


@dataclasses.dataclass(frozen=True)
class TrainConfig(Config):
    """How the weights are found."""

    train_logdir: str = option("", "the run's folder (workdir); the same command again goes on from its last checkpoint")
    tf_initial_checkpoint: str | None = option(
        None, "where the weights start: a checkpoint or workdir, a converted folder, 'imagenet', or a file of ImageNet weights"
    )
    initialize_last_layer: bool = option(True, "False leaves the classifier layers of the initial checkpoint out; they are left out anyway where the classes differ")
    training_number_of_steps: int | None = option(None, "length of the training in steps; this or --epochs")
    epochs: float | None = option(None, "length of the training in passes over the data; this or --training_number_of_steps")
    optimizer: str = option("momentum", "optimizer", choices=("momentum", "adam", "adamw"))
    momentum: float = option(0.9, "momentum")
    base_learning_rate: float = option(0.01, "learning rate at the start")
    learning_policy: str = option("poly", "learning rate schedule", choices=("poly", "cosine", "constant"))
    end_learning_rate: float | None = option(None, "learning rate at the end; default: a hundredth of the base rate")
    learning_power: float = option(0.9, "exponent of the polynomial decay")
    warmup_steps: int = option(0, "steps in which the rate climbs linearly from 0")
    backbone_learning_rate_multiplier: float = option(1.0, "factor on the rate for the backbone's weights")
    weight_decay: float = option(5e-4, "L2 factor; coupled (added to the gradient) with momentum and adam, decoupled with adamw")
    weight_decay_on_all: bool = option(True, "decay acts on every weight; False: on convolution kernels only, depthwise ones left out")
    loss: str = option("cross_entropy", "terms of the loss with their weights, as cross_entropy+0.5*dice; also focal, lovasz")
    label_weights: tuple[float, ...] = option((), "weight of each class in the loss; empty: all equal")
    auxiliary_loss_weight: float = option(0.4, "weight of the auxiliary head's loss")
    label_smoothing: float = option(0.0, "share of the probability that goes evenly to all classes in the loss")
    ema_momentum: float = option(0.0, "keeps a running average of the weights with this momentum and evaluates it; 0: none")
    fine_tune_batch_norm: bool = option(True, "False keeps the batch statistics of the initial checkpoint")
    strategy: str = option("auto", "auto: all visible GPUs", choices=("auto", "none", "mirrored"))
    precision: str = option("float32", "arithmetic of the network; logits and loss stay float32",
                            choices=("float32", "mixed_bfloat16", "mixed_float16"))
    jit_compile: bool = option(False, "compiles the training step with XLA")
    deterministic: bool = option(False, "bit-equal results for equal seeds, somewhat slower")
    eval_interval_epochs: float = option(1.0, "passes over the training data between two evaluations")
    save_interval_steps: int = option(0, "steps between two checkpoints; 0: one at every evaluation")
    summary_images: int = option(4, "validation images drawn for TensorBoard at each evaluation")

    def validate(self) -> None:
        self._require(self.base_learning_rate > 0, "base_learning_rate", "above 0")
        self._require(self.weight_decay >= 0, "weight_decay", "0 or above")
        self._require(0 <= self.momentum < 1, "momentum", "at least 0 and below 1")
        self._require(0 <= self.ema_momentum < 1, "ema_momentum", "at least 0 and below 1")
        self._require(0 <= self.label_smoothing < 1, "label_smoothing", "at least 0 and below 1")
        self._require(self.training_number_of_steps is None or self.training_number_of_steps >= 0,
                      "training_number_of_steps", "at least 1; 0: not given")
        self._require(self.epochs is None or self.epochs >= 0, "epochs", "above 0; 0: not given")
        self._require(self.eval_interval_epochs > 0, "eval_interval_epochs", "above 0")
        self._require(self.save_interval_steps >= 0, "save_interval_steps", "0 or above")
        self._require(self.end_learning_rate is None or 0 <= self.end_learning_rate <= self.base_learning_rate,
                      "end_learning_rate", f"at least 0 and at most --base_learning_rate={self.base_learning_rate}")


@dataclasses.dataclass(frozen=True)
class EvalConfig(Config):
    """How a trained model is measured and used."""

    inference: str = option("whole", "whole: the image in one piece; slide: overlapping windows; official: padded to eval_crop_size as the official DeepLab does",
                            choices=("whole", "slide", "official"))
    eval_scales: tuple[float, ...] = option((1.0,), "scales of the image whose predictions are averaged")
    add_flipped_images: bool = option(False, "averages the mirrored image's prediction too")
    eval_crop_size: tuple[int, ...] = option((512, 512), "window of --inference=slide, size of the padded image of --inference=official, as height,width")
    eval_stride: tuple[int, ...] = option((), "step of the window, as height,width; empty: two thirds of it")
    eval_batch_size: int = option(4, "images a step")
    eval_short_side: int = option(0, "the image is resized to this short side before the network; 0: as it is")
    eval_long_side: int = option(0, "cap of the long side in that resize; 0: none")
    eval_resize_factor: int = option(0, "with --inference=official, sides are rounded up to a multiple of this plus one after that resize; 0: no")

    def validate(self) -> None:
        self._require(bool(self.eval_scales) and all(s > 0 for s in self.eval_scales), "eval_scales", "scales above 0")
        self._require(len(self.eval_crop_size) == 2 and all(v >= 1 for v in self.eval_crop_size), "eval_crop_size",
                      "two numbers: height,width")
        self._require(len(self.eval_stride) in (0, 2) and all(v >= 1 for v in self.eval_stride), "eval_stride",
                      "two numbers of at least 1: height,width; or none")
        self._require(self.eval_batch_size >= 1, "eval_batch_size", "at least 1")
        self._require(self.eval_short_side >= 0 and self.eval_long_side >= 0, "eval_short_side", "0 or above")
        self._require(self.eval_resize_factor >= 0, "eval_resize_factor", "0 or above")


# Normalization -> (mean, standard deviation) of RGB in 0..255. What is padded around an image has the mean, so that it is 0 to the network.
NORMALIZATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "unit_range": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
