"""Command lines of the official DeepLab's train.py, eval.py, vis.py and export_model.py.

Most of our flags have the official names. The classes here define the other official flags, so that
an official command line can be pasted. A command line with one of them is an official one: flags
that it leaves out have the official defaults, and its model flags describe an official network.
docs/from_official_deeplab.md has the table of all official flags.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, ClassVar

from absl import flags as absl_flags

from deeplab_keras.cli.fields import flag_name
from deeplab_keras.config import Config, ModelConfig, UserError, option
from deeplab_keras.config.backbones import BACKBONES
from deeplab_keras.zoo.official import DECODER_TAPS, official_config

if TYPE_CHECKING:
    from deeplab_keras.data.info import DatasetInfo

logger = logging.getLogger(__name__)

GUIDE = "docs/from_official_deeplab.md"


# === The official flags that are not flags of ours ===


@dataclasses.dataclass(frozen=True)
class OfficialFlags(Config):
    """Flags of all official scripts: those of common.py, and absl's flags of logging."""

    decoder_output_stride: tuple[int, ...] = option((), "strides of the decoder's features")
    aspp_with_concat_projection: bool = option(True, "a convolution after ASPP's concatenation")
    aspp_with_squeeze_and_excitation: bool = option(False, "LR-ASPP instead of ASPP")
    decoder_output_is_logits: bool = option(False, "the decoder of LR-ASPP")
    image_se_uses_qsigmoid: bool = option(False, "activation of LR-ASPP's gate")
    multi_grid: tuple[int, ...] = option((), "ResNet and Xception only")
    prediction_with_upsampled_logits: bool = option(True, "labels from upsampled logits")
    dense_prediction_cell_json: str = option("", "Xception only")
    nas_stem_output_num_conv_filters: int = option(20, "NAS only")
    nas_use_classification_head: bool = option(False, "NAS only")
    nas_remove_os32_stride: bool = option(False, "NAS only")
    keep_aspect_ratio: bool = option(True, "without effect")
    batch_norm_decay: float = option(0.9997, "without effect")
    quantize_delay_step: int = option(-1, "simulated quantization")
    master: str = option("", "address of a TensorFlow server")
    logtostderr: bool = option(False, "logging")
    alsologtostderr: bool = option(False, "logging")
    log_dir: str = option("", "logging")
    stderrthreshold: str = option("", "logging")
    verbosity: int = option(0, "logging")
    v: int = option(0, "logging")


@dataclasses.dataclass(frozen=True)
class TrainFlags(OfficialFlags):
    """Flags of the official train.py."""

    official_script: ClassVar[str] = "train.py"

    num_clones: int = option(1, "number of GPUs")
    clone_on_cpu: bool = option(False, "trains on the CPU")
    num_replicas: int = option(1, "number of workers")
    startup_delay_steps: int = option(15, "delay of the workers")
    num_ps_tasks: int = option(0, "number of parameter servers")
    task: int = option(0, "number of this worker")
    log_steps: int = option(10, "steps between two lines of the log")
    save_interval_secs: int = option(1200, "seconds between two checkpoints")
    save_summaries_secs: int = option(600, "seconds between two summaries")
    save_summaries_images: bool = option(False, "images in TensorBoard")
    profile_logdir: str = option("", "folder of a profile")
    upsample_logits: bool = option(True, "loss at the size of the labels")
    drop_path_keep_prob: float = option(1.0, "NAS only")


@dataclasses.dataclass(frozen=True)
class EvalFlags(OfficialFlags):
    """Flags of the official eval.py."""

    official_script: ClassVar[str] = "eval.py"

    eval_interval_secs: int = option(300, "seconds between two evaluations")
    max_number_of_evaluations: int = option(0, "number of evaluations")


@dataclasses.dataclass(frozen=True)
class VisFlags(OfficialFlags):
    """Flags of the official vis.py."""

    official_script: ClassVar[str] = "vis.py"

    vis_crop_size: tuple[int, ...] = option((), "size of the padded image, as height,width")
    vis_batch_size: int = option(1, "images per step")
    colormap_type: str = option(
        "", "colors of the classes", choices=("", "pascal", "cityscapes", "ade20k")
    )
    eval_interval_secs: int = option(300, "seconds between two rounds")
    max_number_of_iterations: int = option(0, "number of rounds")


@dataclasses.dataclass(frozen=True)
class ExportFlags(OfficialFlags):
    """Flags of the official export_model.py."""

    official_script: ClassVar[str] = "export_model.py"

    checkpoint_path: str = option("", "a checkpoint")
    crop_size: tuple[int, ...] = option((), "input size, as height,width")
    inference_scales: tuple[float, ...] = option((1.0,), "scales of the image")
    save_inference_graph: bool = option(False, "also writes a text file")


ONE_DEVICE = "`strategy` selects the devices: by default all visible GPUs"
WORKERS = "`strategy='multi_worker'` trains on several machines (docs/several_machines.md)"
ONCE = "the script runs once and ends; `train.py` evaluates during training"
NAS_ONLY = "only the official NAS backbones use it; leave it out"
# Flags without an effect, with what to use instead; logged unless they have the default value or
# one of QUIET.
NO_EFFECT = {
    "keep_aspect_ratio": "the official scripts do not use it either",
    "batch_norm_decay": "the official scripts do not use it either; `head_bn_momentum` is the "
    "momentum of the head's batch norm",
    "quantize_delay_step": "the checkpoint records whether its network is quantized; "
    "`export_model.py` `formats=tflite_int8` writes 8-bit files",
    "master": WORKERS,
    "num_clones": ONE_DEVICE,
    "clone_on_cpu": "`strategy='none'` trains on one device; set CUDA_VISIBLE_DEVICES= for the CPU",
    "num_replicas": WORKERS,
    "startup_delay_steps": WORKERS,
    "num_ps_tasks": WORKERS,
    "task": WORKERS,
    "log_steps": "the log has a progress line, and training.csv has every step",
    "save_interval_secs": "`save_interval_steps` is the number of steps between two checkpoints",
    "save_summaries_secs": "TensorBoard gets scalars during training and images at each "
    "evaluation (`eval_interval_epochs`)",
    "save_summaries_images": "`summary_images` is the number of images in TensorBoard",
    "profile_logdir": "`profile_steps=10,20` writes a profile for TensorBoard",
    "eval_interval_secs": ONCE,
    "max_number_of_evaluations": ONCE,
    "max_number_of_iterations": ONCE,
    "save_inference_graph": "the text of the graph is not written",
}
QUIET = {"max_number_of_evaluations": 1, "max_number_of_iterations": 1}
# Flags with a single allowed value, the default, and what to do instead.
REFUSED = {
    "multi_grid": "only the official ResNet and Xception backbones use it; leave it out",
    "prediction_with_upsampled_logits": "labels always come from upsampled logits; leave it out",
    "dense_prediction_cell_json": "dense prediction cells are not supported; "
    "`head=deeplab_v3_plus` (`decoder_output_stride=4`) is the closest head; leave it out",
    "nas_stem_output_num_conv_filters": NAS_ONLY,
    "nas_use_classification_head": NAS_ONLY,
    "nas_remove_os32_stride": NAS_ONLY,
    "drop_path_keep_prob": NAS_ONLY,
    "upsample_logits": "the loss is always computed at the size of the labels; leave it out",
    "inference_scales": "exported models have a single scale; `eval.py` `eval_scales` averages "
    "over several",
}
# Refused in training only.
NO_QUANTIZED_TRAINING = (
    "the official 8-bit training is not reproduced; train without it, then fine-tune that run with "
    "`quantization_aware` and export it with `formats=tflite_int8`"
)


# === The official defaults, where ours differ ===

TRAIN_DEFAULTS: dict[str, Any] = {
    "dataset": "pascal_voc_seg",
    "train_crop_size": (513, 513),
    "train_batch_size": 8,
    "preprocessing": "official",
    "scale_factor_step_size": 0.25,
    "crop_max_category_share": 1.0,
    "photometric_distortion": False,
    "padding_position": "top_left",
    "training_number_of_steps": 30000,
    "base_learning_rate": 1e-4,
    "end_learning_rate": 0.0,
    "weight_decay": 4e-5,
    "weight_decay_on_all": False,
    "bias_learning_rate_multiplier": 2.0,
    # The official script saves every 20 minutes and does not evaluate.
    "save_interval_steps": 1000,
    "eval_interval_epochs": 10.0,
}
EVAL_DEFAULTS: dict[str, Any] = {
    "inference": "official",
    "eval_crop_size": (513, 513),
    "eval_batch_size": 1,
}
DEFAULTS: dict[type[OfficialFlags], dict[str, Any]] = {
    TrainFlags: TRAIN_DEFAULTS,
    EvalFlags: EVAL_DEFAULTS,
    VisFlags: EVAL_DEFAULTS | {"vis_samples": 0},
    ExportFlags: {"input_size": (513, 513)},
}
ADAM_LEARNING_RATE = 1e-3
# The rate at which the official script works if `output_stride` is left out.
OUTPUT_STRIDES: dict[type[OfficialFlags], int] = {EvalFlags: 16, VisFlags: 16, ExportFlags: 8}
DATASET = "pascal_voc_seg"
# The padded size of the largest image, as in the official documents.
EVAL_CROP_SIZES = {"pascal_voc_seg": (513, 513), "cityscapes": (1025, 2049)}
NUM_CLASSES = {"pascal_voc_seg": 21, "cityscapes": 19, "ade20k_151": 151}
COLORMAPS = {"pascal_voc_seg": "pascal", "cityscapes": "cityscapes", "ade20k_151": "ade20k"}
# Official flag -> our flag of the same meaning.
RENAMED: dict[type[OfficialFlags], dict[str, str]] = {
    TrainFlags: {},
    EvalFlags: {
        "min_resize_value": "eval_short_side",
        "max_resize_value": "eval_long_side",
        "resize_factor": "eval_resize_factor",
    },
    VisFlags: {
        "min_resize_value": "eval_short_side",
        "max_resize_value": "eval_long_side",
        "resize_factor": "eval_resize_factor",
        "vis_crop_size": "eval_crop_size",
        "vis_batch_size": "eval_batch_size",
    },
    ExportFlags: {"checkpoint_path": "checkpoint_dir", "crop_size": "input_size"},
}


# === The official model ===

# Our flags that are official model flags, and official model flags that are not ours.
SHARED_MODEL_FLAGS = (
    "model_variant",
    "output_stride",
    "atrous_rates",
    "depth_multiplier",
    "divisible_by",
    "add_image_level_feature",
    "image_pooling_crop_size",
    "image_pooling_stride",
    "aspp_with_batch_norm",
    "aspp_with_separable_conv",
    "aspp_convs_filters",
    "logits_kernel_size",
    "decoder_use_separable_conv",
    "decoder_use_sum_merge",
    "decoder_filters",
    "use_bounded_activation",
)
MODEL_FLAGS = (
    "decoder_output_stride",
    "aspp_with_concat_projection",
    "aspp_with_squeeze_and_excitation",
    "decoder_output_is_logits",
    "image_se_uses_qsigmoid",
)
PYRAMID_FLAGS = ("image_pyramid", "merge_method")
# Flags of ours that eval.py, vis.py and export_model.py accept only in an official command line.
ACCEPTED = {*SHARED_MODEL_FLAGS, *PYRAMID_FLAGS, "label_weights"}
ACCEPTED_IN_EXPORT = {"num_classes", "add_flipped_images"}
# Options that can differ from the checkpoint's, because no weight depends on them.
REBUILDABLE = {
    "output_stride",
    "atrous_rates",
    "image_pooling_crop_size",
    "image_pooling_stride",
    "image_pyramid",
    "merge_method",
    "use_bounded_activation",
    "image_pooling_gate",
}


@dataclasses.dataclass(frozen=True)
class OfficialCommand:
    """An official command line.

    Attributes:
        section: The class of its script's flags.
        model: The model flags that it gives, by their official names.
    """

    section: type[OfficialFlags]
    model: dict[str, Any]

    @property
    def accepted(self) -> set[str]:
        """The flags of ours that the script accepts in an official command line."""
        return ACCEPTED | (ACCEPTED_IN_EXPORT if self.section is ExportFlags else set())

    def changes(self, config: ModelConfig) -> dict[str, Any]:
        """Returns the options in which the flags differ from a checkpoint's config.

        The official scripts build the network from their flags and then load the weights. All
        weights fit as long as only these options differ.

        Raises:
            UserError: A flag describes a network with other weights.
        """
        found: dict[str, Any] = {}
        for name, value in self.model.items():
            for field, wanted in _options(name, value, config).items():
                current = config.get(field, None)
                if current == wanted:
                    continue
                same_rates = field != "atrous_rates" or len(wanted) == len(current or ())
                if current is None or field not in REBUILDABLE or not same_rates:
                    shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
                    raise UserError(
                        f"`{name}={shown}`: the weights of the checkpoint are for another network "
                        f"({_described(field, config)}); leave it out: the checkpoint records its "
                        "network"
                    )
                found[field] = wanted
        default = OUTPUT_STRIDES[self.section]
        if "output_stride" not in self.model and config.output_stride != default:
            logger.info(
                "output stride %d, as the checkpoint was trained; the official script's default is "
                "%d: --output_stride=%d",
                config.output_stride,
                default,
                default,
            )
        if found:
            logger.info(
                "network of the checkpoint with %s",
                ", ".join(f"`{name}={value}`" for name, value in found.items()),
            )
        return found


def _described(field: str, config: ModelConfig) -> str:
    value = config.get(field, None)
    if value is None:
        return f"`head={config.head}`"
    return f"`{field}={','.join(map(str, value)) if isinstance(value, tuple) else value}`"


def _options(name: str, value: Any, config: ModelConfig) -> dict[str, Any]:
    """Returns the model options that an official flag requires of a checkpoint's network."""
    lraspp = config.head == "lraspp"
    taps = DECODER_TAPS.get(config.backbone, {})
    if name == "decoder_output_stride":
        if not value:
            return {"head": "deeplab_v3"}
        return {"low_level_features": tuple(taps.get(stride, str(stride)) for stride in value)}
    if name in ("aspp_with_squeeze_and_excitation", "decoder_output_is_logits"):
        return {} if value == lraspp else {"head": "lraspp" if value else "deeplab_v3"}
    if name == "image_se_uses_qsigmoid":
        return {"image_pooling_gate": "q_sigmoid" if value else "sigmoid"} if lraspp else {}
    if name == "aspp_with_concat_projection":
        return {} if lraspp and not value else {"aspp_projection_kernel": int(value)}
    if lraspp and name == "decoder_filters":
        return {"num_classes": value}
    # What LR-ASPP does not have; official_config requires these values.
    fixed = {"decoder_use_sum_merge": True, "add_image_level_feature": True, "atrous_rates": ()}
    without = ("aspp_with_batch_norm", "aspp_with_separable_conv", "decoder_use_separable_conv")
    if lraspp and (fixed.get(name, not value) == value or name in without):
        return {}
    decoder = name.startswith("decoder_")
    if decoder and config.head == "deeplab_v3" or name == "divisible_by" and _full_width(config):
        return {}  # without effect
    return {_field(name): value}


def _full_width(config: ModelConfig) -> bool:
    return config.backbone != "mobilenet_v2" or config.depth_multiplier == 1


def _field(name: str) -> str:
    """Returns the option of the model with a flag's name."""
    fields = ModelConfig.options()
    return next(field for field in fields if flag_name(fields[field]) == name)


# === Reading a command line ===


def read(
    values: absl_flags.FlagValues, section: type[OfficialFlags], *, flagfile: bool
) -> OfficialCommand | None:
    """Recognizes an official command line, and sets our flags as it describes.

    A command line with `--flagfile`, `--model` or `--head` is not an official one, but may have
    official flags other than those of the model.

    Args:
        values: The parsed flags.
        section: The official flags of the script.
        flagfile: Whether the command line has a flagfile.

    Returns:
        The official command line; `None` if it is not one.

    Raises:
        UserError: An official flag has a value that is not supported.
    """
    given = [name for name in section.options() if values[name].present]
    if not given:
        return None
    section(**{name: _value(values, name) for name in given})  # checks the values
    for name in given:
        _answer(name, _value(values, name), section)
    names = (*SHARED_MODEL_FLAGS, *MODEL_FLAGS, *PYRAMID_FLAGS)
    own = "flagfile" if flagfile else ""
    own = own or next((name for name in ("model", "head") if values[name].present), "")
    if own:
        if described := [name for name in given if name in MODEL_FLAGS]:
            raise UserError(
                f"`{described[0]}` describes an official network and cannot be combined with "
                f"--{own}; leave one of them out ({GUIDE} has the option of each official flag)"
            )
        _rename(values, section, section.options())
        return None
    model = {name: _value(values, name) for name in names if values[name].present}
    if model.get("image_pyramid") == (1.0,):  # no pyramid
        model["image_pyramid"] = ()
    if section is ExportFlags and values["num_classes"].present:
        model["num_classes"] = _value(values, "num_classes")
    variant = model.get("model_variant", "mobilenet_v2")
    if variant not in BACKBONES:
        raise UserError(
            f"`backbone={variant}`: this project has mobile networks only; the official ones are "
            f"{', '.join(DECODER_TAPS)}"
        )
    logger.info(
        "official DeepLab command line (--%s): flags that are left out have the official defaults; "
        "see %s",
        "logtostderr" if "logtostderr" in given else given[0],
        GUIDE,
    )
    _rename(values, section, RENAMED[section])
    _set_defaults(values, section)
    if section is TrainFlags:
        _set_model(values, model)
    if section is ExportFlags:
        _set_export(values)
    return OfficialCommand(section, model)


def _answer(name: str, value: Any, section: type[OfficialFlags]) -> None:
    """Refuses a value that is not supported, and logs flags without an effect."""
    default = section.options()[name].default
    if value in (default, QUIET.get(name, default)):
        return
    reason = REFUSED.get(name)
    if name == "quantize_delay_step" and value < 0:
        return
    if name == "quantize_delay_step" and section is TrainFlags:
        reason = NO_QUANTIZED_TRAINING
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
    if reason:
        raise UserError(f"`{name}={shown}`: {reason}")
    if name in NO_EFFECT:
        logger.info("`%s=%s` has no effect: %s", name, shown, NO_EFFECT[name])


def _rename(
    values: absl_flags.FlagValues, section: type[OfficialFlags], names: Collection[str]
) -> None:
    for official, ours in RENAMED[section].items():
        if official in names and values[official].present and not values[ours].present:
            _set(values, ours, _value(values, official))


def _value(values: absl_flags.FlagValues, name: str) -> Any:
    return values[name].value


def _set(values: absl_flags.FlagValues, name: str, value: Any) -> None:
    flag = values[name]
    flag.value, flag.present, flag.using_default_value = value, 1, False


def _unset(values: absl_flags.FlagValues, name: str) -> None:
    values[name].unparse()


def _set_defaults(values: absl_flags.FlagValues, section: type[OfficialFlags]) -> None:
    defaults = dict(DEFAULTS[section])
    if section is TrainFlags and values["epochs"].present:
        del defaults["training_number_of_steps"]
    if section is TrainFlags and _value(values, "optimizer") == "adam":
        defaults["adam_learning_rate"] = ADAM_LEARNING_RATE
    elif section is TrainFlags and values["adam_learning_rate"].present:
        logger.info("`adam_learning_rate` has no effect: the optimizer is not adam")
        _unset(values, "adam_learning_rate")
    for name, value in defaults.items():
        if not values[name].present:
            _set(values, name, value)
    if section is TrainFlags and _value(values, "image_pooling_crop_size"):
        _pad_validation(values)
    if _value(values, "dataset") == "ade20k":
        logger.info("--dataset=ade20k: the official 151 classes (--dataset=ade20k_151)")
        _set(values, "dataset", "ade20k_151")
    if section is VisFlags and values["colormap_type"].present:
        dataset = _value(values, "dataset") if values["dataset"].present else DATASET
        if COLORMAPS.get(dataset) != _value(values, "colormap_type"):
            logger.info(
                "--colormap_type=%s has no effect: pictures have the colors of the dataset "
                "(`palette`)",
                _value(values, "colormap_type"),
            )


def _pad_validation(values: absl_flags.FlagValues) -> None:
    """Sets padded inference in the validation of a run.

    The official train.py does not validate. Whole images of any size do, unless one is smaller than
    the window of image pooling.
    """
    crop_size = _value(values, "train_crop_size")
    sizes = {"eval_crop_size": EVAL_CROP_SIZES.get(_value(values, "dataset"), crop_size)}
    resize = {ours: _value(values, name) for name, ours in RENAMED[EvalFlags].items()}
    for name, value in (EVAL_DEFAULTS | sizes | resize).items():
        if not values[name].present and value is not None:
            _set(values, name, value)


def _set_model(values: absl_flags.FlagValues, model: dict[str, Any]) -> None:
    """Sets all model flags to those of the official network."""
    dataset = _value(values, "dataset")
    official = {name: value for name, value in model.items() if name not in PYRAMID_FLAGS}
    num_classes = NUM_CLASSES.get(dataset, 21)
    if official.get("decoder_output_is_logits"):
        filters = official.get("decoder_filters", 256)
        if dataset in NUM_CLASSES and filters != num_classes:
            raise UserError(
                f"`decoder_filters={filters}`: with `decoder_output_is_logits` it is the number of "
                f"classes, {num_classes} for `dataset={dataset}`"
            )
        num_classes = filters
    config = official_config(**official, num_classes=num_classes)
    own = {
        name: _value(values, flag)
        for name, field in ModelConfig.options().items()
        if values[flag := flag_name(field)].present and flag not in official
    }
    for flag in official.keys() - set(MODEL_FLAGS):  # the network may not have all of them
        _unset(values, flag)
    for name, value in config.replace(**own).to_dict().items():
        if name not in ("name", "num_classes"):  # the dataset determines the number
            _set(values, flag_name(ModelConfig.options()[name]), value)


def _set_export(values: absl_flags.FlagValues) -> None:
    if _value(values, "add_flipped_images"):
        raise UserError(
            "`add_flipped_images`: exported models run a single pass; `eval.py` "
            "`add_flipped_images` averages over two"
        )
    path = pathlib.Path(_value(values, "export_path"))
    if path.suffix == ".pb":
        folder = path.with_suffix("")
        logger.info(
            "--export_path=%s: frozen graphs are not written; the SavedModel and the TFLite file "
            "go to %s",
            path,
            folder,
        )
        _set(values, "export_path", str(folder))


# === Checkpoints ===

_STEP = re.compile(r"model\.ckpt-(\d+)")


def find_step(path: str) -> str:
    """Returns the checkpoint of `RUN/model.ckpt-1000`, step 1000 in the workdir RUN.

    Raises:
        UserError: The workdir has no checkpoint of that step.
    """
    folder, name = os.path.split(path)
    step = _STEP.fullmatch(name)
    checkpoints = pathlib.Path(folder, "checkpoints")
    if not step or not checkpoints.is_dir():
        return path
    wanted = checkpoints / f"step_{int(step[1]):08d}"
    if wanted.is_dir():
        return str(wanted)
    there = sorted(int(found.name[5:]) for found in checkpoints.glob("step_" + "[0-9]" * 8))
    raise UserError(
        f"{path}: {folder} has no checkpoint of step {step[1]}, but of "
        f"{', '.join(map(str, there)) or 'none'} (`keep_checkpoints` in training); "
        f"give one of these, or {folder} for the best one"
    )


def find_newest(path: str) -> str:
    """Returns the newest checkpoint of a workdir, which the official scripts read."""
    steps = sorted(pathlib.Path(path, "checkpoints").glob("step_" + "[0-9]" * 8))
    if not steps:
        return path
    logger.info(
        "%s: the newest checkpoint of %s, as in the official scripts; --checkpoint_dir=%s has the "
        "best mIoU",
        steps[-1].name,
        path,
        pathlib.Path(path, "best"),
    )
    return str(steps[-1])


def is_official_checkpoint(path: str) -> bool:
    """Whether a path is a TF1 checkpoint, a folder with one, or a release archive."""
    from deeplab_keras.convert.official_files import is_official_file

    return is_official_file(path) and not path.endswith((".pb", ".tflite"))


def convert(path: str, command: OfficialCommand, info: DatasetInfo | None) -> str:
    """Converts a TF1 checkpoint to a temporary checkpoint folder.

    Args:
        path: The checkpoint.
        command: The command line, which describes the network.
        info: The classes; `None`: those of the official dataset with this number of classes.

    Returns:
        The folder, which is deleted when the process ends.

    Raises:
        UserError: The weights do not fit the network that the flags describe.
    """
    from deeplab_keras.checkpoints.folder import save_checkpoint
    from deeplab_keras.convert import conversion

    model = {"output_stride": OUTPUT_STRIDES[command.section], **command.model}
    for name in PYRAMID_FLAGS:  # `changes` adds the pyramid to the loaded checkpoint
        model.pop(name, None)
    if info is not None:
        model["num_classes"] = info.num_classes
    config = official_config(**model)
    network, proof = conversion.convert("official_deeplab", path, config)
    logger.info("%s: %s", path, proof)
    info = info or conversion.dataset_info(config, source=" ".join(NUM_CLASSES))
    folder = tempfile.mkdtemp(prefix="deeplab_keras_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(save_checkpoint(os.path.join(folder, "checkpoint"), network, config, info))
