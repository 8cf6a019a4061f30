"""Command lines of the official DeepLab: every flag, the defaults, and whole commands."""

from __future__ import annotations

import json
import logging
import pathlib
import re

import numpy as np
import official_commands as commands
import pytest
import tensorflow as tf
from contracts import ROOT, as_command_line, label_blocks, noise, raises_line, script
from contracts import commands as commands_of
from official_golden import drawn_tensors
from PIL import Image
from test_convert_official import save_checkpoint

from deeplab_keras.checkpoints.folder import load_checkpoint
from deeplab_keras.cli import Command
from deeplab_keras.config import DataConfig, EvalConfig, ExportConfig, ModelConfig, TrainConfig
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.zoo.official import RELEASES, official_config

OFFICIAL = "official DeepLab command line (--"


@pytest.fixture
def said(caplog):
    """Returns the lines of the log as the command line shows them."""
    caplog.set_level(logging.INFO, "deeplab_keras.cli.official")

    def lines() -> list[str]:
        found = [as_command_line(record.getMessage()) for record in caplog.records]
        caplog.clear()
        return [line for line in found if not line.startswith(OFFICIAL)]

    return lines


def parse(name: str, *arguments: str) -> Command:
    """Parses an official command line, and checks all of its configs."""
    if name in ("eval.py", "vis.py"):
        arguments = ("--checkpoint_dir=x", *arguments)
    command = script(name).parse("--logtostderr", *arguments)
    assert command.official is not None
    for section in script(name).sections:
        if section is not ModelConfig:
            command.config(section)
    return command


# --- Every flag: obeyed, or answered in one line ---

# Flag -> arguments, and the option of ours that gets this value.
OBEYED = {
    "min_resize_value": (["--min_resize_value=257"], DataConfig, "min_resize_value", 257),
    "max_resize_value": (["--max_resize_value=513"], DataConfig, "max_resize_value", 513),
    "resize_factor": (["--resize_factor=16"], DataConfig, "resize_factor", 16),
    "label_weights": (
        ["--label_weights=0.1", "--label_weights=0.5"],
        TrainConfig,
        "label_weights",
        (0.1, 0.5),
    ),
    "train_logdir": (["--train_logdir=a/train"], TrainConfig, "train_logdir", "a/train"),
    "optimizer": (["--optimizer=adam"], TrainConfig, "optimizer", "adam"),
    "learning_policy": (["--learning_policy=step"], TrainConfig, "learning_policy", "step"),
    "base_learning_rate": (["--base_learning_rate=.007"], TrainConfig, "base_learning_rate", 0.007),
    "decay_steps": (["--decay_steps=500.0"], TrainConfig, "decay_steps", 500),
    "end_learning_rate": (["--end_learning_rate=1e-6"], TrainConfig, "end_learning_rate", 1e-6),
    "learning_rate_decay_factor": (
        ["--learning_rate_decay_factor=0.5"],
        TrainConfig,
        "learning_rate_decay_factor",
        0.5,
    ),
    "learning_rate_decay_step": (
        ["--learning_rate_decay_step=70"],
        TrainConfig,
        "learning_rate_decay_step",
        70,
    ),
    "learning_power": (["--learning_power=0.8"], TrainConfig, "learning_power", 0.8),
    "training_number_of_steps": (
        ["--training_number_of_steps=90000"],
        TrainConfig,
        "training_number_of_steps",
        90000,
    ),
    "momentum": (["--momentum=0.8"], TrainConfig, "momentum", 0.8),
    "adam_learning_rate": (
        ["--optimizer=adam", "--adam_learning_rate=2e-3"],
        TrainConfig,
        "adam_learning_rate",
        0.002,
    ),
    "adam_epsilon": (["--adam_epsilon=1e-3"], TrainConfig, "adam_epsilon", 1e-3),
    "train_batch_size": (["--train_batch_size=12"], DataConfig, "train_batch_size", 12),
    "weight_decay": (["--weight_decay=0.0001"], TrainConfig, "weight_decay", 0.0001),
    "train_crop_size": (
        ["--train_crop_size=769", "--train_crop_size=1025"],
        DataConfig,
        "train_crop_size",
        (769, 1025),
    ),
    "last_layer_gradient_multiplier": (
        ["--last_layer_gradient_multiplier=10"],
        TrainConfig,
        "last_layer_gradient_multiplier",
        10.0,
    ),
    "tf_initial_checkpoint": (
        ["--tf_initial_checkpoint=a/model.ckpt"],
        TrainConfig,
        "tf_initial_checkpoint",
        "a/model.ckpt",
    ),
    "initialize_last_layer": (
        ["--initialize_last_layer=false"],
        TrainConfig,
        "initialize_last_layer",
        False,
    ),
    "last_layers_contain_logits_only": (
        ["--last_layers_contain_logits_only"],
        TrainConfig,
        "last_layers_contain_logits_only",
        True,
    ),
    "slow_start_step": (["--slow_start_step=20"], TrainConfig, "slow_start_step", 20),
    "slow_start_learning_rate": (
        ["--slow_start_learning_rate=1e-5"],
        TrainConfig,
        "slow_start_learning_rate",
        1e-5,
    ),
    "fine_tune_batch_norm": (
        ["--fine_tune_batch_norm=False"],
        TrainConfig,
        "fine_tune_batch_norm",
        False,
    ),
    "min_scale_factor": (["--min_scale_factor=0.75"], DataConfig, "min_scale_factor", 0.75),
    "max_scale_factor": (["--max_scale_factor=1.5"], DataConfig, "max_scale_factor", 1.5),
    "scale_factor_step_size": (
        ["--scale_factor_step_size=0.5"],
        DataConfig,
        "scale_factor_step_size",
        0.5,
    ),
    "hard_example_mining_step": (
        ["--hard_example_mining_step=100"],
        TrainConfig,
        "hard_example_mining_step",
        100,
    ),
    "top_k_percent_pixels": (
        ["--top_k_percent_pixels=0.25"],
        TrainConfig,
        "top_k_percent_pixels",
        0.25,
    ),
    "dataset": (["--dataset=cityscapes"], DataConfig, "dataset", "cityscapes"),
    "train_split": (["--train_split=train_aug"], DataConfig, "train_split", "train_aug"),
    "dataset_dir": (["--dataset_dir=tfrecord"], DataConfig, "dataset_dir", "tfrecord"),
    "eval_split": (["--eval_split=val_fine"], DataConfig, "eval_split", "val_fine"),
    "vis_split": (["--vis_split=val_fine"], DataConfig, "eval_split", "val_fine"),
    "eval_batch_size": (["--eval_batch_size=2"], EvalConfig, "eval_batch_size", 2),
    "vis_batch_size": (["--vis_batch_size=2"], EvalConfig, "eval_batch_size", 2),
    "eval_crop_size": (
        ["--eval_crop_size=1025,2049"],
        EvalConfig,
        "eval_crop_size",
        (1025, 2049),
    ),
    "vis_crop_size": (
        ["--vis_crop_size=1025", "--vis_crop_size=2049"],
        EvalConfig,
        "eval_crop_size",
        (1025, 2049),
    ),
    "eval_scales": (
        ["--eval_scales=0.5", "--eval_scales=1.0"],
        EvalConfig,
        "eval_scales",
        (0.5, 1),
    ),
    "add_flipped_images": (["--add_flipped_images"], EvalConfig, "add_flipped_images", True),
    "export_path": (["--export_path=out/folder"], ExportConfig, "export_path", "out/folder"),
    "checkpoint_path": (
        ["--checkpoint_path=a/model.ckpt-10"],
        ExportConfig,
        "checkpoint_dir",
        "a/model.ckpt-10",
    ),
    "crop_size": (["--crop_size=513", "--crop_size=257"], ExportConfig, "input_size", (513, 257)),
}
# In eval.py and vis.py, images are resized as in evaluation.
RESIZED = {
    "min_resize_value": "eval_short_side",
    "max_resize_value": "eval_long_side",
    "resize_factor": "eval_resize_factor",
}
# Flags of the scripts' own options: attribute of the config of the script.
SCRIPT_OPTIONS = {
    "checkpoint_dir": ("--checkpoint_dir=a/train", "a/train"),
    "eval_logdir": ("--eval_logdir=a/eval", "a/eval"),
    "vis_logdir": ("--vis_logdir=a/vis", "a/vis"),
    "also_save_raw_predictions": ("--also_save_raw_predictions=true", True),
}
LRASPP = {
    "aspp_with_squeeze_and_excitation": True,
    "aspp_with_concat_projection": False,
    "decoder_use_sum_merge": True,
    "decoder_filters": 21,
    "decoder_output_is_logits": True,
    "decoder_output_stride": (8,),
}
# Model flag -> arguments of official_config that contain it; the flags are made from them.
MODEL = {
    "model_variant": {"model_variant": "mobilenet_v3_large_seg"},
    "output_stride": {"output_stride": 8},
    "atrous_rates": {"atrous_rates": (6, 12, 18)},
    "depth_multiplier": {"depth_multiplier": 0.5},
    "divisible_by": {"divisible_by": 8, "depth_multiplier": 0.5},
    "logits_kernel_size": {
        "logits_kernel_size": 3,
        "aspp_with_batch_norm": False,
        "atrous_rates": (6,),
    },
    "add_image_level_feature": {"add_image_level_feature": False},
    "image_pooling_crop_size": {"image_pooling_crop_size": (769, 769)},
    "image_pooling_stride": {"image_pooling_stride": (4, 5)},
    "aspp_with_batch_norm": {"aspp_with_batch_norm": False, "atrous_rates": (6,)},
    "aspp_with_separable_conv": {"aspp_with_separable_conv": False},
    "aspp_convs_filters": {"aspp_convs_filters": 128},
    "use_bounded_activation": {"use_bounded_activation": True},
    "decoder_output_stride": {"decoder_output_stride": (4,)},
    "decoder_use_separable_conv": {
        "decoder_use_separable_conv": False,
        "decoder_output_stride": (4,),
    },
    "decoder_use_sum_merge": {"decoder_use_sum_merge": True, "decoder_output_stride": (8, 4)},
    "decoder_filters": {"decoder_filters": 64, "decoder_output_stride": (4,)},
    "aspp_with_concat_projection": {"aspp_with_concat_projection": False},
    "aspp_with_squeeze_and_excitation": LRASPP,
    "decoder_output_is_logits": LRASPP,
    "image_se_uses_qsigmoid": LRASPP | {"image_se_uses_qsigmoid": True},
}
PYRAMID = {"image_pyramid": (0.5, 1.0), "merge_method": "avg"}
# Flag -> argument, and the one line that answers it.
ANSWERED = {
    "keep_aspect_ratio": ("false", "the official scripts do not use it either"),
    "batch_norm_decay": ("0.99", "--head_bn_momentum is the momentum"),
    "master": ("grpc://a:1", "--strategy=multi_worker trains on several machines"),
    "num_clones": ("4", "--strategy selects the devices"),
    "clone_on_cpu": ("true", "--strategy=none trains on one device"),
    "num_replicas": ("2", "--strategy=multi_worker trains on several machines"),
    "startup_delay_steps": ("1", "--strategy=multi_worker trains on several machines"),
    "num_ps_tasks": ("1", "--strategy=multi_worker trains on several machines"),
    "task": ("1", "--strategy=multi_worker trains on several machines"),
    "log_steps": ("1", "the log has a progress line"),
    "save_interval_secs": ("60", "--save_interval_steps is the number of steps"),
    "save_summaries_secs": ("60", "--eval_interval_epochs"),
    "save_summaries_images": ("true", "--summary_images is the number"),
    "profile_logdir": ("a/profile", "--profile_steps=10,20 writes a profile"),
    "eval_interval_secs": ("60", "the script runs once and ends"),
    "max_number_of_evaluations": ("5", "the script runs once and ends"),
    "max_number_of_iterations": ("5", "the script runs once and ends"),
    "colormap_type": ("ade20k", "pictures have the colors of the dataset (--palette)"),
    "save_inference_graph": ("true", "the text of the graph is not written"),
}
REFUSED = {
    "multi_grid": ("1", "only the official ResNet and Xception backbones use it"),
    "prediction_with_upsampled_logits": ("false", "labels always come from upsampled logits"),
    "dense_prediction_cell_json": ("cell.json", "--head=deeplab_v3_plus"),
    "nas_stem_output_num_conv_filters": ("60", "only the official NAS backbones use it"),
    "nas_use_classification_head": ("true", "only the official NAS backbones use it"),
    "nas_remove_os32_stride": ("true", "only the official NAS backbones use it"),
    "drop_path_keep_prob": ("0.9", "only the official NAS backbones use it"),
    "upsample_logits": ("false", "the loss is always computed at the size of the labels"),
    "inference_scales": ("0.5", "eval.py --eval_scales averages over several"),
}
QUIET = {"logtostderr", "alsologtostderr"}


def as_flag(name: str, value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"--{name}={text}"


CASES = [(name, flag) for name, flags in commands.FLAGS.items() for flag in flags]


@pytest.mark.parametrize(("name", "flag"), CASES)
def test_every_flag_is_obeyed_or_answered_in_one_line(name, flag, said):
    model_flag = flag in MODEL or flag in PYRAMID
    if flag == "quantize_delay_step":
        if name == "train.py":
            with raises_line("--quantization_aware and export it with --formats=tflite_int8$"):
                parse(name, "--quantize_delay_step=0")
        else:
            parse(name, "--quantize_delay_step=0")
            (line,) = said()
            assert "the checkpoint records whether its network is quantized" in line
    elif flag == "add_flipped_images" and name == "export_model.py":
        with raises_line("^--add_flipped_images: exported models run a single pass; eval.py --add"):
            parse(name, "--add_flipped_images")
    elif flag in REFUSED:
        value, line = REFUSED[flag]
        with raises_line(f"^--{flag}={re.escape(value)}: .*{re.escape(line)}"):
            parse(name, f"--{flag}={value}")
    elif flag in ANSWERED:
        value, answer = ANSWERED[flag]
        parse(name, f"--{flag}={value}")
        (line,) = said()
        assert line.startswith(f"--{flag}={value} has no effect: ") and answer in line
    elif flag in QUIET:
        assert parse(name, f"--{flag}").official and said() == []
    elif flag == "num_classes":
        assert parse(name, "--num_classes=19").official.model == {"num_classes": 19}
    elif flag in SCRIPT_OPTIONS:
        argument, value = SCRIPT_OPTIONS[flag]
        parsed = parse(name, argument)
        assert getattr(parsed.config(script(name).sections[0]), flag) == value
    elif model_flag and name == "train.py":
        values = MODEL.get(flag, PYRAMID)
        expected = official_config(**{k: v for k, v in values.items() if k not in PYRAMID})
        expected = expected.replace(**PYRAMID) if flag in PYRAMID else expected
        parsed = parse(name, *(as_flag(*item) for item in values.items()))
        assert parsed.model_config() == expected and said() == []
    elif model_flag:
        values = MODEL.get(flag, PYRAMID)
        parsed = parse(name, *(as_flag(*item) for item in values.items()))
        assert parsed.official.model == values
    elif flag == "label_weights" and name != "train.py":
        parse(name, "--label_weights=0.1", "--label_weights=0.5")  # without effect there
        assert said() == []
    else:
        arguments, section, field, value = OBEYED[flag]
        if flag in RESIZED and name in ("eval.py", "vis.py"):
            section, field = EvalConfig, RESIZED[flag]
        assert getattr(parse(name, *arguments).config(section), field) == value
        assert said() == []


@pytest.mark.parametrize(("name", "flag"), CASES)
def test_every_flag_accepts_its_official_default_silently(name, flag, said):
    value = commands.FLAGS[name][flag]
    if value is None:
        return
    more = ["--crop_size=513"] if flag == "crop_size" else []
    optimizer = ["--optimizer=adam"] if flag == "adam_learning_rate" else []
    plain = parse(name, *optimizer)
    parsed = parse(name, *optimizer, f"--{flag}={value}", *more)
    assert said() == []
    for section in (TrainConfig, EvalConfig, ExportConfig):
        if section in script(name).sections:
            assert parsed.config(section) == plain.config(section)
    if name == "train.py":
        assert parsed.config(DataConfig) == plain.config(DataConfig)
    else:
        assert parsed.data_config("no/such/folder") == plain.data_config("no/such/folder")
    if name == "train.py":
        assert parsed.model_config() == plain.model_config()


# --- Defaults, and the lines that decide about them ---


def test_what_official_flags_cannot_say_is_that_of_the_official_recipe(said):
    """The base of the official recipes, apart from what differs between them."""
    recipe = script("train.py").parse(f"--flagfile={ROOT}/configs/base/official.flags")
    differ = {"base_learning_rate", "train_batch_size"}
    parsed = parse("train.py")
    for section in (TrainConfig, DataConfig):
        values = parsed.config(section).to_dict()
        expected = {k: v for k, v in recipe.given(section).items() if k not in differ}
        assert {name: values[name] for name in expected} == expected
    evaluation = parse("eval.py").config(EvalConfig)
    assert recipe.given(EvalConfig).items() <= evaluation.to_dict().items()
    assert evaluation == parse("vis.py").config(EvalConfig)
    assert evaluation.eval_crop_size == (513, 513)


def test_training_validates_whole_images_unless_they_may_be_smaller_than_image_pooling():
    assert parse("train.py").config(EvalConfig) == EvalConfig()
    official = EvalConfig(inference="official", eval_batch_size=1)
    for dataset, crop in (("pascal_voc_seg", (513, 513)), ("cityscapes", (1025, 2049))):
        parsed = parse("train.py", "--image_pooling_crop_size=769,769", f"--dataset={dataset}")
        assert parsed.config(EvalConfig) == official.replace(eval_crop_size=crop)
    resize = ["--min_resize_value=257", "--max_resize_value=257", "--resize_factor=16"]
    window = ["--train_crop_size=257,257", "--image_pooling_crop_size=257,257"]
    parsed = parse("train.py", "--dataset=ade20k", *resize, *window)
    assert parsed.config(EvalConfig) == official.replace(
        eval_crop_size=(257, 257), eval_short_side=257, eval_long_side=257, eval_resize_factor=16
    )


def test_a_given_length_replaces_the_official_one():
    training = parse("train.py", "--epochs=3").config(TrainConfig)
    assert (training.epochs, training.training_number_of_steps) == (3, None)
    assert parse("train.py", "--optimizer=adam").config(TrainConfig).adam_learning_rate == 1e-3


def test_a_rate_of_adam_without_adam_has_no_effect(said):
    parsed = parse("train.py", "--optimizer=momentum", "--adam_learning_rate=0.00005")
    assert parsed.config(TrainConfig) == parse("train.py").config(TrainConfig)
    assert said() == ["--adam_learning_rate has no effect: the optimizer is not adam"]


def test_the_official_ade20k_has_151_classes(said):
    for name in ("train.py", "eval.py", "vis.py"):
        assert parse(name, "--dataset=ade20k").config(DataConfig).dataset == "ade20k_151"
        assert said() == ["--dataset=ade20k: the official 151 classes (--dataset=ade20k_151)"]


def test_the_dataset_is_that_of_the_run_or_voc(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"data": DataConfig(dataset="cityscapes", dataset_dir="there").to_dict()})
    )
    parsed = parse("eval.py")
    assert parsed.data_config(str(tmp_path)).dataset == "cityscapes"
    assert parsed.data_config(str(tmp_path / "model.ckpt-9")).dataset == "cityscapes"
    assert parsed.data_config("no/such/folder").dataset == "pascal_voc_seg"


def test_a_colormap_of_the_dataset_needs_no_answer(said):
    parse("vis.py", "--dataset=cityscapes", "--colormap_type=cityscapes")
    parse("vis.py", "--dataset=ade20k", "--colormap_type=ade20k")
    assert [line for line in said() if "colormap" in line] == []


def test_one_line_says_that_the_command_is_official(caplog):
    caplog.set_level(logging.INFO, "deeplab_keras.cli.official")
    parse("train.py")
    (record,) = caplog.records
    assert record.getMessage() == (
        "official DeepLab command line (--logtostderr): flags that are left out have the official "
        "defaults; see docs/from_official_deeplab.md"
    )
    assert (ROOT / "docs/from_official_deeplab.md").is_file()


@pytest.mark.parametrize(
    "ours",
    [
        "--model=deeplabv3_mnv2_pascal_train_aug",
        "--head=fcn",
        "--flagfile=configs/synthetic/demo.flags",
    ],
)
def test_our_own_models_and_recipes_keep_our_defaults(ours, monkeypatch, said):
    monkeypatch.chdir(ROOT)
    parsed = script("train.py").parse(ours, "--logtostderr")
    plain = script("train.py").parse(ours)
    assert parsed.official is None and parsed.text() == plain.text() and said() == []
    for section in (TrainConfig, DataConfig, EvalConfig):
        assert parsed.config(section) == plain.config(section)
    with raises_line("^--decoder_output_stride describes an official network and cannot be combin"):
        script("train.py").parse(ours, "--decoder_output_stride=4")
    # Flags that only have another name work with ours too.
    recipe = "--flagfile=configs/synthetic/demo.flags"
    vis = script("vis.py").parse(recipe, "--checkpoint_dir=x", "--vis_crop_size=33,47")
    assert vis.config(EvalConfig).eval_crop_size == (33, 47)


def test_the_flags_of_a_run_are_ours_and_repeat_it(tmp_path):
    official = parse("train.py", *commands.MOBILENET_V3, "--dataset=cityscapes", "--num_clones=1")
    (tmp_path / "flags.txt").write_text(official.text())
    again = script("train.py").parse(f"--flagfile={tmp_path}/flags.txt")
    assert again.official is None
    assert again.model_config() == official.model_config()
    for section in (TrainConfig, DataConfig, EvalConfig):
        assert again.config(section) == official.config(section)


def test_flags_of_the_zoo_give_the_released_mobilenet_v3():
    parsed = parse("train.py", *commands.MOBILENET_V3, "--dataset=cityscapes")
    released = RELEASES["deeplab_mnv3_small_cityscapes_trainfine"].config
    assert parsed.model_config().replace(num_classes=19) == released


def test_the_resize_of_training_images_is_refused_in_an_evaluation_of_ours():
    for name in ("eval.py", "vis.py"):
        with raises_line("^--resize_factor: only resizes training images; give --eval_resize_fact"):
            script(name).parse("--checkpoint_dir=x", "--resize_factor=16")


# --- Lines of the official documents that are answered instead of run ---


@pytest.mark.parametrize("text", [commands.CITYSCAPES, commands.ADE20K], ids=["cityscapes", "ade"])
def test_xception_gets_one_line(text):
    for name, arguments in commands.lines(text):
        if name != "export_model.py":  # its default is MobileNetV2
            with raises_line(
                "^--model_variant=xception_65: this project has mobile networks only; the official "
                "ones are mobilenet_v2, mobilenet_v3_large_seg, mobilenet_v3_small_seg, mob"
            ):
                script(name).parse(*arguments)


def test_the_mistake_in_the_document_of_pascal_voc_gets_one_line():
    ((name, arguments),) = commands.lines(commands.PASCAL)
    with raises_line("^unknown flag --tf_initial_checkpoints; did you mean --tf_initial_checkpoin"):
        script(name).parse(*arguments)


def test_quantized_training_gets_one_line():
    ((name, arguments),) = commands.lines(commands.QUANTIZE)
    with raises_line("^--quantize_delay_step=0: the official 8-bit training is not reproduced; "):
        script(name).parse(*arguments)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--aspp_with_squeeze_and_excitation", "--atrous_rates=6"],
            "with --aspp_with_squeeze_and_excitation=true the network is LR-ASPP, which requires",
        ),
        (["--decoder_output_is_logits", "--decoder_filters=21"], "requires --aspp_with_squeeze"),
        (["--decoder_output_stride=3"], "^--decoder_output_stride=3: for mobilenet_v2 it must be"),
        (
            [*commands.MOBILENET_V3, "--dataset=pascal_voc_seg"],
            "^--decoder_filters=19: with --decoder_output_is_logits it is the number of classes, "
            "21 for --dataset=pascal_voc_seg$",
        ),
        (["--num_clones=two"], "^--num_clones=two: the value must be a whole number, not 'two'$"),
        (["--decay_steps=0.5"], "^--decay_steps=0.5: the value must be a whole number, not '0.5'$"),
        (["--log_step=3"], r"^unknown flag --log_step; did you mean --log_steps\? "),
        (["--vis_crop_size=3"], "^unknown flag --vis_crop_size, which vis.py has; "),
    ],
)
def test_mistakes_get_one_line(arguments, line):
    with raises_line(line):
        script("train.py").parse("--logtostderr", *arguments)


def test_flags_of_ours_that_are_not_official_are_still_refused():
    with raises_line("^--padding: eval.py does not use model flags"):
        script("eval.py").parse("--logtostderr", "--padding=same")
    with raises_line("^--output_stride: eval.py does not use model flags"):
        script("eval.py").parse("--output_stride=8")


# --- Flags that describe the network of a checkpoint ---

V2 = official_config()
DECODER = official_config(atrous_rates=(6, 12, 18), decoder_output_stride=(4,))
V3 = RELEASES["deeplab_mnv3_small_cityscapes_trainfine"].config


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        (V2, ["--model_variant=mobilenet_v2", "--output_stride=16", "--decoder_filters=256"]),
        (V2, ["--divisible_by=8", "--image_pyramid=1", "--aspp_with_concat_projection=true"]),
        (V2, ["--aspp_with_squeeze_and_excitation=false", "--image_se_uses_qsigmoid=false"]),
        (DECODER, ["--atrous_rates=6", "--atrous_rates=12", "--atrous_rates=18"]),
        (DECODER, ["--decoder_output_stride=4", "--decoder_use_sum_merge=0"]),
        (V3, [*commands.MOBILENET_V3]),
        (V3, ["--aspp_with_separable_conv=true", "--decoder_use_separable_conv=true"]),
    ],
)
def test_flags_of_the_checkpoints_network_change_nothing(config, arguments, said):
    stride = f"--output_stride={config.output_stride}"
    assert parse("eval.py", stride, *arguments).official.changes(config) == {} and said() == []


@pytest.mark.parametrize(
    ("config", "arguments", "changes"),
    [
        (V2, ["--output_stride=8"], {"output_stride": 8}),
        (DECODER, ["--atrous_rates=12,24,36"], {"atrous_rates": (12, 24, 36)}),
        (V2, ["--image_pyramid=0.5", "--image_pyramid=1"], {"image_pyramid": (0.5, 1.0)}),
        (V3, ["--image_se_uses_qsigmoid=0"], {"image_pooling_gate": "sigmoid"}),
    ],
)
def test_a_network_can_have_other_rates_than_in_training(config, arguments, changes, said):
    stride = [f"--output_stride={config.output_stride}"]
    parsed = parse("eval.py", *(arguments if "output_stride" in changes else arguments + stride))
    assert parsed.official.changes(config) == changes
    (line,) = said()
    assert line.startswith("network of the checkpoint with --")


@pytest.mark.parametrize(
    ("config", "arguments", "line"),
    [
        (V2, ["--model_variant=mobilenet_v3_small_seg"], "(--model_variant=mobilenet_v2)"),
        (V2, ["--depth_multiplier=0.5"], "(--depth_multiplier=1.0)"),
        (V2, ["--atrous_rates=6", "--atrous_rates=12"], "(--atrous_rates=)"),
        (V2, ["--decoder_output_stride=4"], "(--head=deeplab_v3)"),
        (V2, ["--aspp_with_squeeze_and_excitation"], "(--head=deeplab_v3)"),
        (DECODER, ["--decoder_output_stride=8"], "(--low_level_features=block3_depthwise)"),
        (DECODER, ["--aspp_with_concat_projection=0"], "(--aspp_projection_kernel=1)"),
        (V3, ["--aspp_with_concat_projection=1"], "(--head=lraspp)"),
        (V3, ["--decoder_filters=21"], "(--num_classes=19)"),
        (V3, ["--decoder_use_sum_merge=false"], "(--head=lraspp)"),
    ],
)
def test_flags_of_another_network_get_one_line(config, arguments, line):
    name = arguments[0].partition("=")[0]
    with raises_line(
        f"^{name}[^ ]*: the weights of the checkpoint are for another network {re.escape(line)}; "
        "leave it out"
    ):
        parse("eval.py", *arguments).official.changes(config)


def test_the_official_default_of_the_output_stride_is_said(said):
    parse("export_model.py").official.changes(V2)
    assert said() == [
        "output stride 16, as the checkpoint was trained; the official script's default is 8: "
        "--output_stride=8"
    ]


def test_checkpoints_by_their_official_names(tmp_path, said):
    run = tmp_path / "train"
    for step in (8, 10):
        (run / f"checkpoints/step_{step:08d}").mkdir(parents=True)
    official, ours = parse("eval.py"), script("eval.py").parse(f"--checkpoint_dir={run}")
    for command in (official, ours):
        found = command.checkpoint(str(run / "model.ckpt-8"))
        assert found == str(run / "checkpoints/step_00000008")
        with raises_line(
            r"model\.ckpt-9: .*/train has no checkpoint of step 9, but of 8, 10 \(--k"
        ):
            command.checkpoint(str(run / "model.ckpt-9"))
        assert command.checkpoint("elsewhere/model.ckpt-9") == "elsewhere/model.ckpt-9"
    assert ours.checkpoint(str(run)) == str(run) and said() == []
    assert official.checkpoint(str(run)) == str(run / "checkpoints/step_00000010")
    assert said() == [
        f"step_00000010: the newest checkpoint of {run}, as in the official scripts; "
        f"--checkpoint_dir={run}/best has the best mIoU"
    ]


def test_a_tf1_checkpoint_without_official_flags_gets_one_line(tmp_path):
    (tmp_path / "model.ckpt-3.index").touch()
    for name in ("eval.py", "vis.py", "export_model.py"):
        more = [f"--export_path={tmp_path}/out"] if name == "export_model.py" else []
        with raises_line(
            "a checkpoint of the official DeepLab; convert it first: python scripts/c"
        ):
            script(name).parse(*more).checkpoint(str(tmp_path / "model.ckpt-3"))


@pytest.mark.slow
def test_a_tf1_checkpoint_for_the_classes_of_a_folder(tmp_path):
    """The number of classes is that of the dataset, as in the official scripts."""
    for part in ("images", "labels"):
        (tmp_path / "data" / part / "val").mkdir(parents=True)
    Image.fromarray(noise(40, 48, 3).astype(np.uint8)).save(tmp_path / "data/images/val/a.png")
    mask = label_blocks(1, 40, 48, classes=4)[0].astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "data/labels/val/a.png")
    names = ["ground", "wall", "door", "window"]
    (tmp_path / "data/classes.txt").write_text("\n".join(names))
    write_start(tmp_path / "model.ckpt-3", official_config(num_classes=4))
    command = script("eval.py").parse(
        "--logtostderr",
        f"--checkpoint_dir={tmp_path}",
        "--dataset=folder",
        f"--dataset_dir={tmp_path / 'data'}",
    )
    loaded = load_checkpoint(command.checkpoint(str(tmp_path / "model.ckpt-3")))
    assert loaded.config.num_classes == 4 and list(loaded.info.class_names) == names


# --- Whole commands ---


def write_records(
    folder: pathlib.Path, split: str, sizes: list[tuple[int, int]], classes: int, ignored: int
) -> None:
    """Writes two record files with the features that the official build_*_data.py write."""
    folder.mkdir(parents=True, exist_ok=True)

    def text(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def number(value: int) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    for shard in range(2):
        name = f"{split}-{shard:05d}-of-00002.tfrecord"
        with tf.io.TFRecordWriter(str(folder / name)) as writer:
            for index, (height, width) in enumerate(sizes):
                if index % 2 != shard:
                    continue
                image = noise(height, width, 3, seed=index).astype(np.uint8)
                label = label_blocks(1, height, width, classes=classes, seed=index)[0]
                label = np.where(label == 255, ignored, label).astype(np.uint8)
                features = {
                    "image/encoded": text(tf.io.encode_jpeg(image).numpy()),
                    "image/filename": text(f"2007_{index:06d}".encode()),
                    "image/format": text(b"jpeg"),
                    "image/height": number(height),
                    "image/width": number(width),
                    "image/channels": number(3),
                    "image/segmentation/class/encoded": text(
                        tf.io.encode_png(label[..., None]).numpy()
                    ),
                    "image/segmentation/class/format": text(b"png"),
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())


def smaller(arguments: list[str], **values: str) -> list[str]:
    """Replaces the values of flags."""
    found = []
    for argument in arguments:
        name = argument.removeprefix("--").partition("=")[0]
        found.append(f"--{name}={values[name]}" if name in values else argument)
    return found


def write_start(prefix: pathlib.Path, config: ModelConfig) -> dict[str, np.ndarray]:
    """Writes a TF1 checkpoint of an official network with random weights."""
    model = build_segmentor(config)
    tensors = drawn_tensors(model, config)
    save_checkpoint(prefix, tensors)
    return tensors


def run(name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a script to its end, and returns its log."""
    status = script(name)(*arguments)
    said = capsys.readouterr()
    assert status == 0, said.err
    assert said.err.count(OFFICIAL) == 1
    return said.err


def in_dataset(folder: str | pathlib.Path) -> tuple[int, str]:
    metrics = json.loads((pathlib.Path(folder) / "metrics.json").read_text())
    return metrics["images"], metrics["dataset"]


@pytest.mark.slow
def test_an_evaluation_at_another_output_stride(tiny_run, tmp_path, capsys):
    """The toy network of the suite was trained at output stride 32."""
    arguments = (f"--checkpoint_dir={tiny_run}", "--eval_crop_size=65,65", "--eval_samples=2")
    confusions = []
    for stride in (32, 16):
        folder = tmp_path / str(stride)
        log = run(
            "eval.py",
            ["--logtostderr", f"--output_stride={stride}", *arguments, f"--eval_logdir={folder}"],
            capsys,
        )
        assert ("network of the checkpoint with --output_stride=16" in log) == (stride == 16)
        confusions.append(json.loads((folder / "metrics.json").read_text())["confusion_matrix"])
    assert confusions[0] != confusions[1]


@pytest.mark.slow
def test_local_test_mobilenetv2_runs_to_its_end(tmp_path, capsys):
    """All four commands with 2 steps and crops of 65 pixels, and an evaluation of the start."""
    start = tmp_path / "init_models/deeplabv3_mnv2_pascal_train_aug/model.ckpt-30000"
    write_start(start, official_config())
    records = tmp_path / "pascal_voc_seg/tfrecord"
    for split, count in (("trainval", 5), ("val", 2)):
        write_records(records, split, [(48, 60)] * count, 21, 255)
    folders = {name: str(tmp_path / "exp" / name) for name in ("train", "eval", "vis")}
    calls = commands.lines(
        commands.LOCAL_TEST_MOBILENETV2,
        WORK_DIR="deeplab",
        NUM_ITERATIONS="2",
        INIT_FOLDER=str(tmp_path / "init_models"),
        CKPT_NAME="deeplabv3_mnv2_pascal_train_aug",
        TRAIN_LOGDIR=folders["train"],
        EVAL_LOGDIR=folders["eval"],
        VIS_LOGDIR=folders["vis"],
        PASCAL_DATASET=str(records),
        CKPT_PATH=f"{folders['train']}/model.ckpt-2",
        EXPORT_PATH=str(tmp_path / "exp/export/frozen_inference_graph.pb"),
    )
    assert [name for name, _ in calls] == ["train.py", "eval.py", "vis.py", "export_model.py"]
    sizes = {f"{name}crop_size": "65" for name in ("train_", "eval_", "vis_", "")}
    logs = {name: run(name, smaller(call, **sizes), capsys) for name, call in calls}
    assert "tensors with 2146645 values: each was assigned to one variable" in logs["train.py"]
    assert f"step_00000002: the newest checkpoint of {folders['train']}" in logs["eval.py"]
    assert in_dataset(folders["eval"]) == (2, "voc2012")
    pictures = {path.name for path in pathlib.Path(folders["vis"]).iterdir()}
    assert {"2007_000000_prediction.png", "2007_000001_prediction.png"} <= pictures
    exported = tmp_path / "exp/export/frozen_inference_graph"
    assert {path.name for path in exported.iterdir()} == {"saved_model", "model.tflite"}

    # The official TF1 checkpoint in the place of the run.
    evaluation = smaller(
        calls[1][1],
        **sizes,
        checkpoint_dir=str(start.parent),
        eval_logdir=str(tmp_path / "start"),
    )
    log = run("eval.py", evaluation, capsys)
    assert "tensors with 2146645 values: each was assigned to one variable" in log
    converted = tmp_path / "converted"
    assert 0 == script("convert_checkpoint.py")(
        "--source=official_deeplab",
        "--model=deeplabv3_mnv2_pascal_train_aug",
        f"--checkpoint={start}",
        f"--output={converted}",
    )
    ours = ["--dataset=voc2012", f"--dataset_dir={records}", "--inference=official"]
    size = ["--eval_crop_size=65,65", "--eval_batch_size=1"]
    assert 0 == script("eval.py")(f"--checkpoint_dir={converted}", *ours, *size)
    for key in ("confusion_matrix", "miou"):
        assert (
            json.loads((tmp_path / "start/metrics.json").read_text())[key]
            == json.loads((converted / "eval_val/metrics.json").read_text())[key]
        )


@pytest.mark.slow
def test_the_commands_of_cityscapes_run_to_their_end(tmp_path, capsys):
    """g3doc/cityscapes.md with MobileNetV3's flags of g3doc/model_zoo.md, with smaller crops."""
    start = tmp_path / "deeplab_mnv3_small_cityscapes_trainfine/model.ckpt"
    write_start(start, V3.replace(image_pooling_crop_size=(65, 65)))
    for split in ("train_fine", "val_fine"):
        write_records(tmp_path / "tfrecord", split, [(64, 96)] * 2, 19, 255)
    folders = {name: str(tmp_path / "exp" / name) for name in ("train", "eval", "vis")}
    calls = commands.lines(
        commands.CITYSCAPES,
        PATH_TO_INITIAL_CHECKPOINT=str(start),
        PATH_TO_TRAIN_DIR=folders["train"],
        PATH_TO_CHECKPOINT=folders["train"],
        PATH_TO_EVAL_DIR=folders["eval"],
        PATH_TO_VIS_DIR=folders["vis"],
        PATH_TO_DATASET=str(tmp_path / "tfrecord"),
    )
    assert [name for name, _ in calls] == ["train.py", "eval.py", "vis.py"]
    for name, call in calls:
        call = [argument for argument in call if argument not in commands.XCEPTION]
        sizes = {f"{part}_crop_size": "65,65" for part in ("train", "image_pooling")}
        sizes |= {f"{part}_crop_size": "65,97" for part in ("eval", "vis")}
        run(
            name,
            smaller([*call, *commands.MOBILENET_V3], training_number_of_steps="2", **sizes),
            capsys,
        )
    assert in_dataset(folders["eval"]) == (2, "cityscapes")
    assert len(list(pathlib.Path(folders["vis"]).glob("*_prediction.png"))) == 2


@pytest.mark.slow
def test_the_commands_of_ade20k_run_to_their_end(tmp_path, capsys):
    """g3doc/ade20k.md with MobileNetV2 instead of Xception, then g3doc/export_model.md."""
    start = tmp_path / "init/model.ckpt"
    write_start(start, DECODER.replace(num_classes=151))
    for split in ("train", "val"):
        write_records(tmp_path / "tfrecord", split, [(48, 60)] * 4, 151, 0)
    calls = commands.lines(
        commands.ADE20K,
        PATH_TO_INITIAL_CHECKPOINT=str(start),
        PATH_TO_TRAIN_DIR=str(tmp_path / "train"),
        PATH_TO_DATASET=str(tmp_path / "tfrecord"),
        CHECKPOINT_PATH=str(tmp_path / "train/model.ckpt-2"),
        OUTPUT_DIR=str(tmp_path / "out"),
    )
    (_, train), (_, export) = calls
    train = smaller(
        train,
        model_variant="mobilenet_v2",
        training_number_of_steps="2",
        train_crop_size="65,65",
        min_resize_value="65",
        max_resize_value="65",
    )
    log = run("train.py", train, capsys)
    assert "ade20k_151, 4 training images (train)" in log
    assert "each was assigned to one variable" in log and "random weights" not in log
    run("export_model.py", [*export, "--crop_size=65", "--crop_size=65"], capsys)
    assert (tmp_path / "out/frozen_inference_graph/saved_model/saved_model.pb").is_file()


def test_the_guide_has_every_official_flag_and_the_commands_that_were_run():
    guide = (ROOT / "docs/from_official_deeplab.md").read_text()
    missing = {flag for flags in commands.FLAGS.values() for flag in flags} - set(
        re.findall(r"`(\w+)`", guide)
    )
    assert missing == set()
    shown = {name: arguments for name, arguments in documented(guide)}
    assert set(shown) >= set(commands.FLAGS)
    pasted = [arguments for _, arguments in documented(guide)]
    for text in (commands.LOCAL_TEST_MOBILENETV2, commands.CITYSCAPES, commands.ADE20K):
        name, call = commands.lines(text)[0]
        given = {argument for argument in call if "${" not in argument} - set(commands.XCEPTION)
        assert any(given <= set(arguments) for arguments in pasted), f"{name} {given}"


def documented(guide: str) -> list[tuple[str, list[str]]]:
    blocks = re.findall(r"^```bash\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    return [call for block in blocks for call in commands_of(block)]
