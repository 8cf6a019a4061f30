from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from itertools import zip_longest

import pytest
from contracts import ROOT

from deeplab_keras import cli as flags
from deeplab_keras.config import (
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    TrainConfig,
    UserError,
    option,
)
from deeplab_keras.config.backbones import BACKBONES
from deeplab_keras.config.heads import HEADS

ALL = (TrainConfig, DataConfig, EvalConfig, ModelConfig)


def command(*arguments: str, sections: tuple[type[Config], ...] = ALL) -> flags.Command:
    return flags.Command(["scripts/x.py", *arguments], *sections)


def as_text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(
    "config",
    [TrainConfig(), DataConfig(), EvalConfig()]
    + [
        ModelConfig(backbone, head)
        for backbone, head in zip_longest(BACKBONES, HEADS, fillvalue="fcn")
    ],
)
def test_a_flag_for_every_option_gives_the_value_back(config):
    section = type(config)
    values = {k: v for k, v in config.to_dict().items() if v is not None and k != "name"}
    parsed = command(
        *(f"--{flags.flag_name(section.options()[k])}={as_text(v)}" for k, v in values.items())
    )
    assert parsed.given(section) == values
    assert parsed.config(section) == config


def test_values_of_every_type():
    parsed = command(
        "--train_crop_size=33, 47",
        "--eval_scales=0.5,1",
        "--atrous_rates=",
        "--low_level_features=c2,c1",
        "--low_level_channels=48,32",
        "--norandom_flip",
        "--cache",
        "--deterministic=true",
        "--epochs",
        "2.5",
        "--training_number_of_steps=7",
        "--weight_decay=4e-5",
        "--dataset_dir=a folder/with blanks",
        "--min_resize_value=12",
    )
    data, training, model = (
        parsed.config(DataConfig),
        parsed.config(TrainConfig),
        parsed.config(ModelConfig),
    )
    assert (data.train_crop_size, data.random_flip, data.cache, data.min_resize_value) == (
        (33, 47),
        False,
        True,
        12,
    )
    assert data.dataset_dir == "a folder/with blanks"
    assert (training.epochs, training.training_number_of_steps, training.weight_decay) == (
        2.5,
        7,
        4e-5,
    )
    assert training.deterministic is True
    assert (model.atrous_rates, model.low_level_features) == ((), ("c2", "c1"))
    assert parsed.config(EvalConfig).eval_scales == (0.5, 1.0)


def test_aliases_and_official_names():
    parsed = command(
        "--initial_checkpoint=here", "--vis_split=test", "--model_variant=mobilenet_v3_small"
    )
    assert parsed.config(TrainConfig).tf_initial_checkpoint == "here"
    assert parsed.config(DataConfig).eval_split == "test"
    assert parsed.config(ModelConfig).backbone == "mobilenet_v3_small"
    assert command("--aspp_convs_filters=96").config(ModelConfig).head_channels == 96


def test_given_flags_change_a_base_and_nothing_else():
    base = ModelConfig(num_classes=7, decoder_filters=99, atrous_rates=(2,))
    assert command("--decoder_filters=11").config(ModelConfig, base) == base.replace(
        decoder_filters=11
    )
    assert command().config(ModelConfig, base) == base


def test_a_flag_of_its_default_value_counts_as_given():
    assert (
        command("--output_stride=8")
        .config(ModelConfig, ModelConfig(output_stride=16))
        .output_stride
        == 8
    )


def test_model_names_the_base():
    from deeplab_keras.zoo import registry as zoo

    other, name = ModelConfig(head="fcn"), "lrasppnet_mobilenetv3sos8_voc"
    expected = zoo.get_config(name).replace(num_classes=5)
    assert command(f"--model={name}", "--num_classes=5").model_config(other) == expected
    assert command("--num_classes=5").model_config(other) == ModelConfig(head="fcn", num_classes=5)
    with pytest.raises(UserError, match="did you mean 'lrasppnet_mobilenetv3sos8_voc'"):
        command("--model=lraspnet_mobilenetv3sos8_voc").model_config()


def test_another_head_than_that_of_the_named_model_drops_the_name():
    name = "deeplabv3_mobilenetv2os8_voc"
    config = command(f"--model={name}", "--head=psp").model_config()
    assert (config.name, config.head, config.dropout_placement) == ("", "psp", "classifier")
    assert command(f"--model={name}", "--output_stride=16").model_config().name == name
    base = ModelConfig(name="mine", head="deeplab_v3")
    assert command("--head=psp").model_config(base).name == ""
    assert command("--head=deeplab_v3").model_config(base).name == "mine"


def test_flagfiles_nest_and_later_values_win(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.flags").write_text(
        "# a half\n--output_stride=16\n--decoder_filters=64\n--atrous_rates=6,12\n"
    )
    (tmp_path / "recipe.flags").write_text(
        "--flagfile=base.flags\n\n--decoder_filters=32\n# --head=fcn\n"
    )
    config = command("--flagfile=recipe.flags", "--atrous_rates=1").model_config()
    assert config == ModelConfig(output_stride=16, decoder_filters=32, atrous_rates=(1,))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--atrous_rates=6", "--atrous_rates=12", "--atrous_rates=18"],
            (6, 12, 18),
        ),  # as the official scripts have it
        (["--atrous_rates", "6", "--head=deeplab_v3", "-atrous_rates=12"], (6, 12)),
        (["--atrous_rates=6,12", "--atrous_rates=1,2"], (1, 2)),  # a list replaces
        (["--atrous_rates=6", "--atrous_rates=1,2"], (1, 2)),
        (["--atrous_rates=6", "--atrous_rates="], ()),
        (["--atrous_rates=", "--atrous_rates=6"], (6,)),
        (["--atrous_rates=6"], (6,)),
        (["--flagfile=base.flags", "--atrous_rates=6"], (6,)),  # a flagfile's values are replaced
        (["--flagfile=base.flags", "--atrous_rates=6", "--atrous_rates=12"], (6, 12)),
        (["--atrous_rates=6", "--flagfile=base.flags"], (3, 4)),
        (["--flagfile=nested.flags"], (5, 7)),
        (["--flagfile", "nested.flags", "--atrous_rates=9"], (9,)),
        (["--flagfile=nested.flags", "--flagfile=base.flags"], (3, 4)),
    ],
)
def test_single_values_repeated_in_one_place_form_a_list(
    arguments, expected, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.flags").write_text("--atrous_rates=3\n--atrous_rates=4\n")
    (tmp_path / "nested.flags").write_text(
        "--flagfile=base.flags\n--atrous_rates=5\n// a comment\n--atrous_rates=7\n"
    )
    parsed = command(*arguments)
    assert parsed.model_config().atrous_rates == expected
    (tmp_path / "again.flags").write_text(parsed.text())
    assert command("--flagfile=again.flags").model_config().atrous_rates == expected


def test_every_flag_with_several_values_can_be_repeated():
    lists = [(s, f) for s in ALL for f in s.options().values() if isinstance(f.default, tuple)]
    assert {"eval_scales", "train_crop_size", "label_weights", "low_level_features"} <= {
        field.name for _, field in lists
    }
    for section, field in lists:
        value = "c2" if field.name == "low_level_features" else "2"
        name = flags.flag_name(field)
        found = command(f"--{name}={value}", f"--{name}={value}").given(section)[field.name]
        assert len(found) == 2 and found[0] == found[1], name
    assert command("--eval_scales=0.5", "--eval_scales=1.0").config(EvalConfig).eval_scales == (
        0.5,
        1.0,
    )
    assert command("--train_crop_size=33", "--train_crop_size=47").config(
        DataConfig
    ).train_crop_size == (33, 47)


def test_of_a_repeated_scalar_the_later_value_counts():
    assert command("--epochs=3", "--epochs=5").config(TrainConfig).epochs == 5


def test_a_single_value_after_a_list_is_refused():
    with pytest.raises(
        UserError,
        match=r"^--atrous_rates=6,12 is followed by --atrous_rates=18: give one list, separated",
    ):
        command("--atrous_rates=6,12", "--atrous_rates=18")


def test_flagfiles_of_windows_and_with_indented_comments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.flags").write_text("\ufeff--epochs=3\n  # a comment\n", encoding="utf-8")
    assert command("--flagfile=a.flags").config(TrainConfig).epochs == 3
    (tmp_path / "b.flags").write_text("--flagfile=b.flags\n")
    with pytest.raises(UserError, match="includes itself; delete that line$"):
        command("--flagfile=b.flags")
    with pytest.raises(UserError, match=f"paths are relative to the current folder, {tmp_path}$"):
        command("--flagfile=absent.flags")


def test_a_flagfile_that_includes_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.flags").write_text("--flagfile=b.flags\n")
    (tmp_path / "b.flags").write_text("--epochs=3\n--flagfile=a.flags\n")
    with pytest.raises(UserError, match=r"^--flagfile=a\.flags: includes itself through b\.flags"):
        command("--flagfile=a.flags")
    with pytest.raises(UserError, match="--flagfile: the file is missing"):
        command("--flagfile")


def test_the_text_is_a_flagfile_of_what_was_given(tmp_path):
    arguments = (
        "--nocache",
        "--train_crop_size=33,47",
        "--atrous_rates=",
        "--initial_checkpoint=a b",
        "--epochs=2.5",
    )
    text = command(*arguments).text()
    assert len(text.splitlines()) == len(arguments)
    path = tmp_path / "flags.txt"
    path.write_text(text)
    again, first = command(f"--flagfile={path}"), command(*arguments)
    for section in ALL:
        assert again.given(section) == first.given(section)


def test_a_script_accepts_a_whole_recipe_but_no_useless_flag(tmp_path):
    path = tmp_path / "recipe.flags"
    path.write_text("--head=fcn\n--epochs=3\n--eval_scales=0.5\n")
    assert command(f"--flagfile={path}", sections=(EvalConfig,)).config(EvalConfig).eval_scales == (
        0.5,
    )
    for argument in ("--epochs=3", "--nofine_tune_batch_norm"):
        with pytest.raises(UserError, match=r"x\.py does not use training flags; leave it out"):
            command(argument, sections=(EvalConfig,))


def test_the_data_of_the_training_are_the_default_of_an_evaluation(tmp_path):
    data = DataConfig(dataset="camvid", dataset_dir="there", eval_split="test")
    (tmp_path / "config.json").write_text(json.dumps({"data": data.to_dict()}))
    checkpoint = tmp_path / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text(ModelConfig().to_json())
    for folder in (tmp_path, checkpoint):
        assert command().data_config(str(folder)) == data
        assert command("--eval_split=val").data_config(str(folder)) == data.replace(
            eval_split="val"
        )
        assert command("--dataset=synthetic").data_config(str(folder)) == DataConfig()
    assert command("--eval_split=val").data_config("no/such/folder") == DataConfig()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--train_crop=3",
            r"^unknown flag --train_crop; did you mean --train_crop_size\? scripts/x\.py --help ",
        ),
        (
            "--train-crop-size=3,3",
            r"^unknown flag --train-crop-size; did you mean --train_crop_size\?",
        ),
        (
            "--head_channels=3",
            r"^unknown flag --head_channels; did you mean --aspp_convs_filters\?",
        ),
        ("--xyzzy", r"^unknown flag --xyzzy; scripts/x\.py --help lists all flags$"),
        ("--noseed", r"^unknown flag --noseed"),
        ("--epochs=x", r"^--epochs=x: the value must be a number, not 'x'$"),
        ("--epochs=nan", r"^--epochs=nan: the value must be a number, not 'nan'$"),
        ("--seed=1.5", r"^--seed=1\.5: the value must be a whole number, not '1\.5'$"),
        (
            "--train_crop_size=3,y",
            r"^--train_crop_size=3,y: the value must be whole numbers, separated by .* not 'y'$",
        ),
        ("--cache=perhaps", r"^--cache=perhaps: the value must be true or false$"),
        ("--head", r"^Missing value for flag --head; write flags as --name=value$"),
        ("fcn", r"^unexpected argument 'fcn'; write flags as --name=value$"),
        (
            "--flagfile=no/such.flags",
            r"^--flagfile=no/such\.flags: No such file.* relative to the current folder, ",
        ),
    ],
)
def test_mistakes_get_one_line(argument, message):
    with pytest.raises(UserError, match=message) as caught:
        command(argument)
    assert "\n" not in str(caught.value)


def test_a_binary_flagfile(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(UserError, match="not a text file"):
        command(f"--flagfile={path}")


def raising(error: BaseException):
    def main(_: flags.Command) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("--head=x: no"), 1, "error: --head=x: no\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b"),
            1,
            "error: a/b: no space left on device; free some space there and run the same command "
            "again\n",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "a/b"),
            1,
            "error: a/b: read-only file system; choose a writable folder and run the same "
            "command again\n",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "aaa"),
            1,
            "error: aaa: file name too long; choose a shorter path and run the same command "
            "again\n",
        ),
        (
            OSError(errno.ENOTDIR, "Not a directory", "a/b"),
            1,
            "error: a/b: not a directory; part of this path is a file; choose another path and "
            "run the same command again\n",
        ),
    ],
)
def test_exit_status_and_line(error, status, line, capsys):
    assert flags.call(["x"], "", raising(error), *ALL) == status
    assert capsys.readouterr() == ("", line)


def test_a_bug_keeps_its_traceback():
    with pytest.raises(FileNotFoundError):
        flags.call(["x"], "", raising(FileNotFoundError(errno.ENOENT, "No such file", "x")), *ALL)
    with pytest.raises(ZeroDivisionError):
        flags.call(["x"], "", raising(ZeroDivisionError()), *ALL)


def test_the_status_of_main_is_the_status_of_the_process():
    assert flags.call(["x"], "", lambda _: 1, *ALL) == 1
    assert flags.call(["x"], "", lambda _: None, *ALL) == 0


def test_help_is_grouped_wrapped_and_complete():
    @dataclasses.dataclass(frozen=True)
    class Options(Config):
        output: str = option("", "where it goes")

    text = flags.help_text("Does it.\n\n    python scripts/x.py --output=y\n", Options, *ALL)
    assert text.startswith("Does it.\n\n    python scripts/x.py --output=y\n")
    assert max(map(len, text.splitlines())) <= flags.HELP_WIDTH
    titles = ["This command:", "Training:", "Data:", "Inference and evaluation:", "Model:"]
    assert [line for line in text.splitlines() if line in titles] == titles
    for section in (Options, *ALL):
        for field in section.options().values():
            assert (
                f" --{flags.flag_name(field)}=" in text
                or f" --[no]{flags.flag_name(field)} " in text
            )
    words = " ".join(text.split())
    assert "(default: 512,512)" in words
    assert "one of: float32, mixed_bfloat16, mixed_float16 (default: float32)" in words
    assert flags.help_text("", EvalConfig).count("Training:") == 0


def test_help_that_nobody_reads_to_its_end():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "scripts.list_models", "--help"],
            cwd=ROOT,
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_reading_flags_does_not_import_tensorflow():
    code = (
        "import sys; from deeplab_keras import cli as flags, config;"
        "flags.Command(['x', '--epochs=3'], config.TrainConfig).config(config.TrainConfig);"
        "print([name for name in ('tensorflow', 'keras', 'matplotlib', 'PIL') if name in "
        "sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
