"""Distillation: the loss and gradients of a step, the teacher's files, resuming, and bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil

import keras
import numpy as np
import pytest
from contracts import MEASURED, label_blocks, noise, raises_line, script
from test_training import final_arrays, start, wait_for
from toy import toy_config

from deeplab_keras.checkpoints import folder
from deeplab_keras.config import DataConfig, TrainConfig
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.models.layers import BatchNormalization
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.training.engine_tensorflow import TensorFlowModel
from deeplab_keras.training.losses import make_loss
from deeplab_keras.training.teacher import Teacher, TeacherFiles, find_teacher

pytestmark = pytest.mark.usefixtures("toy_backbone")

CLASSES, IGNORE = 4, 255
STUDENT = toy_config(
    head="fcn", head_channels=8, output_stride=16, dropout_rate=0.0, num_classes=CLASSES
)
# Another head, width and output stride than the student's.
TEACHER = toy_config(
    head="deeplab_v3_plus",
    head_channels=8,
    atrous_rates=(2,),
    decoder_filters=8,
    low_level_channels=(8,),
    output_stride=32,
    num_classes=CLASSES,
    depth_multiplier=0.5,
)


def draw(model: keras.Model, seed: int) -> keras.Model:
    """Draws weights and statistics with which activations keep their scale."""
    random = np.random.default_rng(seed)
    for name, variable in folder.model_variables(model).items():
        if name.endswith(("gamma", "moving_variance")):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
        else:
            scale = np.sqrt(2 / np.prod(variable.shape[:-1])) if "kernel" in name else 0.1
            variable.assign(scale * random.standard_normal(variable.shape))
    return model


def trained(
    model: keras.Model,
    teacher: keras.Model,
    weight: float = 0.5,
    temperature: float = 1.0,
    parts: int = 1,
) -> TensorFlowModel:
    """Returns the model to train, with fixed statistics: its outputs are those of inference."""
    for layer in model.layers:
        if isinstance(layer, BatchNormalization):
            layer.freeze_statistics = True
    found = TensorFlowModel(model.input, model.output)
    files = TeacherFiles("big", pathlib.Path("big"), {}, None)
    found.set_step(
        parts=parts,
        ignore_label=IGNORE,
        teacher=Teacher(teacher, weight, temperature, files, step=None),
    )
    found.compile("sgd", loss=make_loss(ignore_label=IGNORE, sum_over_replicas=lambda x: x))
    return found


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Four images; the last two have few valid pixels."""
    labels = label_blocks(4, 48, 64, classes=CLASSES)
    labels[2:, 8:] = IGNORE
    return noise(4, 48, 64, 3), labels


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


# --- The step ---


@pytest.mark.parametrize(("weight", "temperature"), [(0.3, 1.0), (0.75, 4.0), (1.0, 2.0)])
def test_the_loss_and_the_gradient_of_a_step(weight, temperature):
    """The bias of the classifier moves the logits of every pixel alike.

    So its gradient is the sum over the pixels of the gradient of their logits.
    """
    student, teacher = (draw(build_segmentor(c), i) for i, c in enumerate((STUDENT, TEACHER)))
    images, labels = batch()
    model = trained(student, teacher, weight=weight, temperature=temperature)
    loss, gradients, _ = model._gradients(images, labels)

    z, t = (np.float64(network(images, training=False)) for network in (student, teacher))
    valid = labels != IGNORE
    target = np.eye(CLASSES)[np.where(valid, labels, 0)]
    hard = -(target * log_softmax(z)).sum(-1)
    p, log_q = np.exp(log_softmax(t / temperature)), log_softmax(z / temperature)
    soft = temperature**2 * (p * (log_softmax(t / temperature) - log_q)).sum(-1)
    expected = ((1 - weight) * hard[valid] + weight * soft[valid]).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert soft[valid].mean() > 0.01 and not valid.all()

    by_pixel = (1 - weight) * (np.exp(log_softmax(z)) - target)
    by_pixel += weight * temperature * (np.exp(log_q) - p)
    names = [folder.weight_name(variable) for variable in model.trained_variables]
    np.testing.assert_allclose(
        gradients[names.index("logits/bias")], by_pixel[valid].sum(0) / valid.sum(), atol=1e-6
    )


def test_a_student_that_equals_its_teacher_learns_nothing():
    student, teacher = (draw(build_segmentor(STUDENT), 3) for _ in range(2))
    model = trained(student, teacher, weight=1.0, temperature=3.0)
    loss, gradients, _ = model._gradients(*batch())
    assert abs(float(loss)) < 1e-6
    assert max(np.abs(gradient).max() for gradient in gradients) < 1e-5


def test_the_parts_of_a_batch_add_up():
    student, teacher = (draw(build_segmentor(c), i) for i, c in enumerate((STUDENT, TEACHER)))
    whole, parts = (
        trained(student, teacher, parts=count, temperature=2.0)._gradients(*batch())
        for count in (1, 2)
    )
    assert float(parts[0]) == pytest.approx(float(whole[0]), rel=1e-5)
    for found, expected in zip(parts[1], whole[1], strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_auxiliary_head_learns_from_the_labels_only():
    """With the same weight as without a teacher, also if nothing else learns from the labels."""
    config = STUDENT.replace(auxiliary_head=True, auxiliary_channels=8)
    student, teacher = draw(build_segmentor(config), 0), draw(build_segmentor(TEACHER), 1)
    images, labels = batch()
    model = trained(student, teacher, weight=1.0)
    loss, _, _ = model._gradients(images, labels)
    with student.training_step():
        outputs = student(images, training=True)
    z, a, t = (
        np.float64(x)
        for x in (outputs["logits"], outputs["auxiliary_logits"], teacher(images, training=False))
    )
    valid = labels != IGNORE
    hard = -np.take_along_axis(log_softmax(a), np.where(valid, labels, 0)[..., None], -1)[..., 0]
    p = np.exp(log_softmax(t))
    soft = (p * (log_softmax(t) - log_softmax(z))).sum(-1)
    assert float(loss) == pytest.approx(soft[valid].mean() + 0.4 * hard[valid].mean(), rel=1e-5)


def test_a_step_does_not_change_the_teacher():
    student, teacher = (draw(build_segmentor(c), i) for i, c in enumerate((STUDENT, TEACHER)))
    model, before = trained(student, teacher), folder.named_weights(teacher)
    student_before = folder.named_weights(student)
    model.optimizer.build(model.trained_variables)
    model.train_step(batch())
    own = {id(variable) for variable in (*model.variables, *model.optimizer.variables)}
    assert not own & {id(variable) for variable in teacher.variables}
    assert [layer.name for layer in model.layers] == [layer.name for layer in student.layers]
    for name, value in folder.named_weights(teacher).items():
        assert np.array_equal(value, before[name]), name
    moved = folder.named_weights(student)
    assert any(not np.array_equal(moved[name], student_before[name]) for name in moved)


# --- A run ---


@pytest.fixture(scope="module")
def info() -> DatasetInfo:
    return open_dataset(DataConfig(), "train").info


@pytest.fixture
def save(info, tmp_path):
    """Returns a function that saves a teacher with random weights and returns its path."""

    def save(name="teacher", change=None, info=info, **options) -> pathlib.Path:
        config = TEACHER.replace(num_classes=info.num_classes, **options)
        model = draw(build_segmentor(config), 1)
        weights = folder.named_weights(model)
        if change is not None:
            change(weights)
        return folder.save_checkpoint(tmp_path / name, model, config, info, weights=weights)

    return save


def teach(path, info, size=(64, 64), channels=3, run="runs/student") -> Teacher:
    training = TrainConfig(teacher=str(path), train_logdir=str(run))
    found = find_teacher(training)
    assert found is not None
    found.check_classes(info)
    return found.load(training, info, size, channels)


def test_any_kind_of_teacher_gives_the_logits_of_inference(save, info, tiny_run, tmp_path):
    path = save()
    model, images = folder.load_checkpoint(path).model, noise(2, 64, 64, 3)
    model.save(tmp_path / "teacher.keras")
    expected = model.predict(images, verbose=0)
    for source in (path, tmp_path / "teacher.keras"):
        teacher = teach(source, info)
        np.testing.assert_allclose(teacher.logits(images), expected, atol=1e-4)
        assert not teacher.model.trainable_variables
    workdir = teach(tiny_run, info)
    assert workdir.files.path == tiny_run / "best" and workdir.step == 2
    assert teach("synthetic_demo", info).step is None


def test_a_teacher_has_the_precision_of_the_run(save, info):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        teacher = teach(save(), info)
    finally:
        keras.config.set_dtype_policy("float32")
    logits = teacher.logits(noise(1, 64, 64, 3))
    assert teacher.model.get_layer("stem_conv").compute_dtype == "bfloat16"
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"


def test_a_run_records_its_teacher_and_saves_only_the_student(
    save, tiny_flags, tiny_run, tmp_path, capfd
):
    path, run = save(), tmp_path / "run"
    content = {file.name: file.read_bytes() for file in path.iterdir()}
    flags = [*tiny_flags, f"--teacher={path}", "--distillation_weight=0.25"]
    assert script("train.py")(*flags, f"--train_logdir={run}") == 0
    assert f"teacher: {path}, weight 0.25, temperature 2\n" in capfd.readouterr().err
    assert content == {file.name: file.read_bytes() for file in path.iterdir()}
    digests = dict(line.split()[::-1] for line in content["SHA256SUMS"].decode().splitlines())
    recorded = json.loads((run / "config.json").read_text())
    hashes = {name: digests[name] for name in ("config.json", "weights.npz")}
    assert recorded["teacher"] == {"checkpoint": str(path), "sha256": hashes}
    assert recorded["train"]["distillation_weight"] == 0.25
    card = (run / "model_card.md").read_text()
    assert f"SHA-256 of weights.npz: {digests['weights.npz']}\n" in card
    (parameters,) = (line for line in card.splitlines() if line.startswith("* parameters"))
    assert parameters in (tiny_run / "model_card.md").read_text()
    for name in ("weights.npz", "state.npz"):
        found, expected = (
            folder.read_arrays(folder.step_folders(workdir)[-1] / name)
            for workdir in (run, tiny_run)
        )
        shapes = [{key: value.shape for key, value in x.items()} for x in (found, expected)]
        assert shapes[0] == shapes[1], "checkpoints are those of a run without a teacher"
    assert not np.array_equal(found["optimizer/2"], expected["optimizer/2"])

    # Resuming with other weights.
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.name != ".lock"}
    shutil.rmtree(path)
    save(change=lambda weights: weights["logits/bias"].__iadd__(1))
    assert script("train.py")(*flags, f"--train_logdir={run}") == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "has a run whose teacher had other weights than" in lines[0]
    assert str(path) in lines[0] and "--train_logdir=" in lines[0]
    now = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.name != ".lock"}
    assert now == before


@pytest.mark.slow
def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_run(tiny_flags, tiny_run, tmp_path):
    flags = [*tiny_flags, f"--teacher={tiny_run}", "--nohtml_report"]
    process = start(tmp_path / "killed", flags)
    wait_for(tmp_path / "killed" / folder.STEPS / "step_00000004", process)
    process.kill()
    process.communicate()
    for run in ("killed", "undisturbed"):
        process = start(tmp_path / run, flags)
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        assert f"teacher: {tiny_run} (step 2), weight 0.5, temperature 2\n" in errors
    found, expected = (final_arrays(tmp_path / run) for run in ("killed", "undisturbed"))
    assert found.keys() == expected.keys()
    different = [name for name in expected if not np.array_equal(expected[name], found[name])]
    assert set(different) <= {*MEASURED}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_teacher_with_infinite_logits_is_named(precision, save, tiny_flags, tmp_path, capfd):
    path = save(change=lambda w: [w[f"logits/{name}"].fill(3e38) for name in ("kernel", "bias")])
    flags = [f"--teacher={path}", f"--precision={precision}", f"--train_logdir={tmp_path}/run"]
    assert script("train.py")(*tiny_flags, *flags) == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: training diverged at step 1 ")
    assert f"the logits of the teacher {path} are not finite" in error
    assert "give another --teacher" in error and "base_learning_rate" not in error
    report = json.loads((tmp_path / "run/diverged/report.json").read_text())
    assert report["teacher_is_finite"] is False and report["first_broken_layer"] is None


# --- Bad input ---


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--distillation_weight=0.5"], "--distillation_weight requires --teacher"),
        (["--distillation_temperature=2"], "--distillation_temperature requires --teacher"),
        (["--teacher=", "--distillation_weight=0.5"], "--distillation_weight requires --teacher"),
        (
            ["--teacher=synthetic_demo", "--distillation_weight=0"],
            "--distillation_weight must be above 0 and at most 1. Received: "
            "--distillation_weight=0.0",
        ),
        (
            ["--teacher=synthetic_demo", "--distillation_weight=1.5"],
            "must be above 0 and at most 1",
        ),
        (
            ["--teacher=synthetic_demo", "--distillation_weight=nan"],
            "--distillation_weight=nan: the value must be a number",
        ),
        (
            ["--teacher=synthetic_demo", "--distillation_temperature=0.5"],
            "--distillation_temperature must be at least 1 and at most 100",
        ),
        (["--teacher=nowhere"], "--teacher: nowhere: no such folder; give a checkpoint folder"),
        (["--teacher=nowhere.keras"], "--teacher: nowhere.keras: no such file"),
        (
            ["--teacher=synthetic_dem"],
            "--teacher: unknown folder or model 'synthetic_dem'; did you",
        ),
        (["--teacher=imagenet"], "--teacher: imagenet: a backbone trained on ImageNet"),
        (["--teacher=tests"], "--teacher: tests: not a checkpoint"),
    ],
)
def test_bad_flags_are_reported_in_one_line(flags, message, tiny_flags, tmp_path, capfd):
    run = tmp_path / "run"
    assert script("train.py")(*tiny_flags, *flags, f"--train_logdir={run}") == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0], lines
    assert not run.exists()


def flip(path: pathlib.Path) -> None:
    data = bytearray((path / folder.WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 4
    (path / folder.WEIGHTS).write_bytes(data)


def test_numbers_that_are_not_finite():
    for option in ("distillation_weight", "distillation_temperature"):
        for value in (float("nan"), float("inf")):
            with raises_line(f"--{option} must be a finite number"):
                TrainConfig(teacher="runs/big", **{option: value})


def test_damaged_weights(save, info):
    path = save()
    flip(path)
    with raises_line(r"^--teacher: .*weights\.npz: damaged .its SHA-256 differs from SHA256SUMS"):
        teach(path, info)
    (path / folder.HASHES).unlink()
    with raises_line(r"^--teacher: .*weights\.npz: damaged or not arrays of a checkpoint"):
        teach(path, info)
    (path / folder.CONFIG).write_text("{")
    with raises_line(r"^--teacher: .*config\.json: damaged"):
        teach(path, info)


def test_weights_that_are_not_finite(save, info, tmp_path):
    path = save()
    model = folder.load_checkpoint(path).model
    weights = folder.named_weights(model)
    weights["logits/bias"][1] = np.nan
    np.savez(path / folder.WEIGHTS, **weights)
    (path / folder.HASHES).unlink()
    folder.assign_weights(model, weights, source="test")
    model.save(tmp_path / "teacher.keras")
    for source in (path, tmp_path / "teacher.keras"):
        with raises_line("^--teacher: .*1 of 10 values of logits/bias are NaN or infinite"):
            teach(source, info)


def test_other_classes(save, info, tmp_path):
    fewer = dataclasses.replace(
        info, class_names=info.class_names[:7], palette=info.palette[:7], name="fewer"
    )
    path = save("fewer", info=fewer)
    with raises_line("--teacher=.*fewer: has 7 classes, and the dataset 'synthetic' has 10; give"):
        teach(path, info)
    folder.load_checkpoint(path).model.save(tmp_path / "fewer.keras")
    with raises_line(r"fewer\.keras: has 7 classes, and the dataset 'synthetic' has 10; give"):
        teach(tmp_path / "fewer.keras", info)
    names = list(info.class_names)
    names[2], names[3] = names[3], names[2]
    swapped = dataclasses.replace(info, class_names=tuple(names))
    with raises_line(
        "class 2 is 'beach ball' there and 'grass' here; give a teacher with the classes"
    ):
        teach(save("swapped", info=swapped), info)
    unnamed = dataclasses.replace(info, class_names=tuple(f"class {i}" for i in range(10)))
    assert teach(save("unnamed", info=unnamed), info)


def test_other_channels_and_sizes(save, info, tmp_path):
    with raises_line("--teacher=.*four: its images have 4 channels, and those of the run 3; give"):
        teach(save("four", input_channels=4, normalization="unit_range"), info)
    window = save("window", head="deeplab_v3", image_pooling_size=(3, 3))
    with raises_line(
        "window: cannot process training crops of 64x48: its image pooling requires 65x65; give a "
        "larger --train_crop_size or another teacher"
    ):
        teach(window, info, size=(64, 48))
    assert teach(window, info, size=(65, 65))
    config = folder.read_config(window)
    fixed = build_segmentor(config.replace(image_pooling_size=()), (96, 64))
    fixed.save(tmp_path / "fixed.keras")
    with raises_line(
        r"fixed\.keras: its input has the fixed shape .None, 96, 64, 3., and the training crops "
        "are 64x64"
    ):
        teach(tmp_path / "fixed.keras", info)
    assert teach(tmp_path / "fixed.keras", info, size=(96, 64))
    keras.Model(fixed.input, fixed.get_layer("logits").output).save(tmp_path / "small.keras")
    with raises_line(r"small\.keras: its output for an image of 96x64 has the shape .1, 3, 2, 10."):
        teach(tmp_path / "small.keras", info, size=(96, 64))
    x = keras.Input((5,))
    keras.Model(x, keras.layers.Dense(2)(x)).save(tmp_path / "dense.keras")
    with raises_line(
        r"dense\.keras: its input is not .* but .None, 5.; give a segmentation network"
    ):
        teach(tmp_path / "dense.keras", info)
    (tmp_path / "text.keras").write_text("text")
    with raises_line(r"--teacher: .*text\.keras: damaged or not a Keras model"):
        teach(tmp_path / "text.keras", info)


def test_a_teacher_in_the_folder_of_the_run(save, info, tmp_path):
    run = tmp_path / "run"
    path = save("run/best")
    os.symlink(run, tmp_path / "link")
    os.symlink(path, tmp_path / "other")
    for teacher, logdir in (
        (run, run), (path, run), (run, tmp_path / "link"), (tmp_path / "link", run),
        (tmp_path / "other", run), (path, tmp_path / "run" / ".." / "run"),
    ):  # fmt: skip
        with raises_line("--teacher: .*: is in the folder of this run, --train_logdir="):
            teach(teacher, info, run=logdir)
    assert teach(run, info, run=tmp_path / "run2")
    assert teach("synthetic_demo", info, run=".")
