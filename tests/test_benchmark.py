"""The benchmark: every kind runs as a command on tiny data and writes plausible numbers."""

from __future__ import annotations

import csv
import functools
import importlib
import re

import numpy as np
import pytest
from benchmark_workers import InProcess
from contracts import ROOT, noise, raises_line, script
from data_files import write_dataset
from test_export_at_head import bilinear

import deeplab_keras as dk
from benchmarks import files, peers, records, rounds, workers
from benchmarks.models import as_labels
from deeplab_keras.checkpoints.folder import assign_weights, named_weights
from deeplab_keras.config import DataConfig
from deeplab_keras.export import delegates
from deeplab_keras.models.multiply_adds import count_multiply_adds
from deeplab_keras.models.segmentor import check_input_size

SHORT = ["--rounds=2", "--batches=1"]


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(workers, "Worker", InProcess)


def rows_of(path) -> dict[tuple[str, str], float]:
    with open(path, newline="") as file:
        return {
            (row["subject"], row["quantity"]): float(row["median"]) for row in csv.DictReader(file)
        }


# --- The four kinds ---


@pytest.mark.slow
def test_input_as_a_command_in_its_own_process(tmp_path, capsys):
    root = write_dataset(tmp_path / "photos")
    table = tmp_path / "found.csv"
    arguments = [
        "--dataset=folder",
        f"--dataset_dir={root}",
        "--train_crop_size=16,16",
        "--train_batch_size=2",
        f"--csv={table}",
    ]
    assert script("benchmark.py")("--what=input", *arguments, *SHORT) == 0
    found = rows_of(table)
    stages = [
        "read and decode",
        "scale, crop, pad, batch",
        "flip",
        "photometric",
        "normalize (the model's first layer)",
    ]
    assert [subject for subject, quantity in found if quantity == "speed"] == [
        f"deeplab_keras: {stage}" for stage in stages
    ]
    assert all(value > 0 for value in found.values())
    assert (
        "batches of 2 crops of 16x16" in table.read_text()
        and "photometric" in capsys.readouterr().out
    )


def test_eval_as_a_command(in_process, tiny_run, tmp_path):
    table, page = tmp_path / "found.csv", tmp_path / "page.md"
    page.write_text("# Ours\n\nWhat a person wrote.\n")
    for _ in range(2):
        flags = [
            f"--checkpoint_dir={tiny_run}",
            "--eval_batch_size=2",
            f"--csv={table}",
            f"--page={page}",
        ]
        assert script("benchmark.py")("--what=eval", *flags, *SHORT) == 0
    found = rows_of(table)
    assert found["evaluation", "evaluation over forward"] == pytest.approx(
        found["evaluation", "speed"] / found["evaluation", "forward pass alone"], rel=1e-3
    )
    text = page.read_text()
    assert text.startswith("# Ours\n\nWhat a person wrote.\n") and text.count(records.BEGIN) == 1
    assert "python scripts/benchmark.py --what=eval" in text and "| evaluation |" in text


@pytest.mark.slow
def test_model_as_a_command(tiny_real_run, tmp_path, capsys):
    table = tmp_path / "found.csv"
    flags = [
        f"--checkpoint_dir={tiny_real_run}",
        "--input_size=65,97",
        "--kinds=keras,tflite",
        "--batch_sizes=1,2",
        f"--csv={table}",
    ]
    assert script("benchmark.py")("--what=model", *flags, *SHORT) == 0
    found = rows_of(table)
    model = dk.load_model(tiny_real_run, (65, 97))
    assert found["the model", "parameters"] == model.count_params()
    assert found["the model", "multiply-adds"] == pytest.approx(
        count_multiply_adds(model), rel=1e-5
    )
    assert {subject for subject, _ in found} == {
        "the model",
        "keras, batch 1",
        "tflite, batch 1",
        "keras, batch 2",
    }
    assert found["tflite, batch 1", "agreement with Keras"] >= 99.5
    assert found["keras, batch 1", "latency"] > 0 and found["tflite, batch 1", "file"] > 0.01
    assert "billion multiply-adds" in capsys.readouterr().out


@pytest.mark.slow
def test_the_outputs_of_files_are_measured(tiny_real_run, tmp_path):
    """Bytes by hand: the head's stride is 8, labels are int32, and there are four classes."""
    table = tmp_path / "found.csv"
    flags = [
        f"--checkpoint_dir={tiny_real_run}",
        "--input_size=64,96",
        "--kinds=keras,tflite",
        "--outputs=labels,logits,head_labels,head_logits",
        f"--csv={table}",
    ]
    assert script("benchmark.py")("--what=model", *flags, *SHORT) == 0
    found = rows_of(table)
    classes = dk.load_model(tiny_real_run).output_shape[-1]
    pixels = {"tflite": 64 * 96, "tflite, logits": 64 * 96 * classes}
    for name, count in pixels.items():
        assert found[name, "output"] == pytest.approx(4 * count / 1000)
        assert found[name, "agreement with Keras"] >= 99.9
    assert found["tflite, head_logits", "output"] < found["tflite, logits", "output"] / 10
    assert found["tflite, head_logits", "agreement with Keras"] >= 99.9
    assert found["tflite, head_labels", "output"] * classes == pytest.approx(
        found["tflite, head_logits", "output"]
    )
    assert 50 < found["tflite, head_labels", "agreement with Keras"] < 100


def test_outputs_of_the_heads_size_become_labels():
    scores = noise(1, 5, 7, 3)
    expected = bilinear(scores[0], (17, 25), True).argmax(-1)
    np.testing.assert_array_equal(as_labels(scores, (17, 25), True)[0], expected)
    labels = scores.argmax(-1)
    np.testing.assert_array_equal(as_labels(labels, (5, 7), False), labels)
    np.testing.assert_array_equal(
        as_labels(labels, (10, 14), False)[0], labels[0].repeat(2, 0).repeat(2, 1)
    )


@pytest.mark.slow
def test_files_as_a_command(tmp_path, capsys):
    table, page = tmp_path / "found.csv", tmp_path / "page.md"
    flags = [
        "--what=files",
        "--models=lrasppnet_mobilenetv3sos8_voc",
        "--input_size=385,385",
        f"--csv={table}",
        f"--page={page}",
    ]
    assert script("benchmark.py")(*flags, *SHORT) == 0
    cases = {row["case"] for row in records.read(table)}
    assert cases == {
        "lrasppnet_mobilenetv3sos8_voc, 385x385, 2 threads",
        "lrasppnet_mobilenetv3sos8_voc (output_stride=16, image_pooling_size=()), 385x385, "
        "2 threads",
    }
    (row,) = re.findall(
        r"^\| `lrasppnet_mobilenetv3sos8_voc` \| (1 \| .*) \|$", page.read_text(), re.M
    )
    cells = row.split(" | ")
    model = dk.build_segmentor(dk.get_config("lrasppnet_mobilenetv3sos8_voc"), (385, 385))
    assert cells[1] == "8" and float(cells[3]) == pytest.approx(
        count_multiply_adds(model) / 1e9, abs=0.01
    )
    assert float(cells[2]) == pytest.approx(1.14, abs=0.01), "without the auxiliary head"
    size = [float(cell) for cell in cells[4:8]]
    assert size[0] > 1.7 * size[1] > 2.5 * size[3] and cells[12] == "-"
    assert all(float(cell) > 0 for cell in (*cells[8:12], *cells[13:]))
    capsys.readouterr()
    before = table.read_bytes()
    assert script("benchmark.py")(*flags, *SHORT) == 0
    assert table.read_bytes() == before and f"in {table}" in capsys.readouterr().out


# --- User errors ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--what is required: input, train, eval, model, files, gpu or batch"),
        (["--what=files"], "--what requires --csv, to which each measured model is added"),
        (
            ["--what=files", "--csv={tmp}/new.csv", "--models=resnet"],
            "--models=resnet matches no model; ",
        ),
        (["--what=inputs"], "unknown --what 'inputs'; did you mean 'input'?"),
        (["--what=input", "--rounds=0"], "--rounds must be at least 1. Received: --rounds=0"),
        (["--what=model", "--input_size=5"], "Received: --input_size=5"),
        (["--what=model", "--kinds=tflit"], "unknown --kinds 'tflit'; did you mean 'tflite'?"),
        (["--what=model", "--against=onyx"], "unknown --against 'onyx'"),
        (["--what=model", "--checkpoint_dir={tmp}/none"], "{tmp}/none: no such folder"),
        (
            ["--what=eval", "--against=torch"],
            "--against=torch cannot be combined with --what=eval, only with input, train and model",
        ),
        (
            ["--what=train", "--against=onnxruntime"],
            "--against must be one of jax, torch, torch_compile with --what=train. Received: "
            "--against=onnxruntime",
        ),
        (
            ["--what=train", "--checkpoint_dir={tmp}"],
            "--checkpoint_dir={tmp} cannot be combined with --what=train, which uses random "
            "weights",
        ),
        (
            ["--what=eval", "--eval_scales=0.5,1"],
            "--what=eval requires a single forward pass per image",
        ),
        (["--page={tmp}/a.md"], "--page requires --csv, from which the page is created"),
        (
            ["--page={tmp}/a.md", "--csv={tmp}/other.csv"],
            "--csv={tmp}/other.csv has other columns",
        ),
        (
            ["--what=input", "--csv={tmp}/other.csv"],
            "--csv={tmp}/other.csv has other columns",
        ),
        (["--what=input", "--csv={tmp}/other.csv/x.csv"], "other.csv: is a file"),
        (["--what=files", "--csv={tmp}/empty.csv"], "--csv={tmp}/empty.csv has other columns"),
        (
            ["--what=files", "--csv={tmp}/a.csv", "--page={tmp}"],
            "--page={tmp}: cannot be read (Is a directory); give a Markdown page",
        ),
        (
            ["--what=files", "--csv={tmp}/a.csv", "--page={tmp}/page.md"],
            "page.md: cannot be read ('utf-8' codec can't decode",
        ),
        (
            ["--what=input", "--against=torch"],
            "--against=torch requires packages that are not installed: torch, "
            "opencv-python-headless; run: pip install torch opencv-python-headless",
        ),
        (
            ["--what=model", "--against=openvino"],
            "--against=openvino requires packages that are not installed: openvino, tf2onnx, onnx, "
            "onnxruntime; run: ",
        ),
    ],
)
def test_user_errors_are_reported_in_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "page.md").write_bytes(b"\xff")
    assert script("benchmark.py")(*(argument.format(tmp=tmp_path) for argument in arguments)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message.format(tmp=tmp_path) in error


def test_a_dataset_that_a_peer_cannot_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "require", lambda peer, packages: None)
    measure = importlib.import_module("benchmarks.input").measure_input
    with raises_line(
        "--against=torch requires JPEG or PNG images, .* Received: --dataset=synthetic",
    ):
        measure(DataConfig(), against=["torch"])
    config = DataConfig(
        dataset="folder", dataset_dir=str(write_dataset(tmp_path / "photos")), rotation=9.0
    )
    with raises_line(
        "--against=torch cannot be combined with options that SSSegmentation does not"
    ):
        measure(config, against=["torch"])


# --- The files of many models ---


def test_the_plan_has_every_model_at_a_size_that_it_takes():
    rows = files.plan()
    assert {row.label for row in rows} >= set(dk.list_models())
    assert len({row.case(2) for row in rows}) == len(rows)
    for row in rows:
        check_input_size(row.model, *row.size)
    smallest = [row.size for row in rows if row.label == "deeplab_mnv3_small_cityscapes_trainfine"]
    assert smallest == [(769, 769)], "its image pooling takes none of the usual sizes"
    assert [row.size for row in rows if row.label == "lraspp_mobilenet_v3_large"] == [*files.SIZES]


def test_only_missing_rows_are_measured(tmp_path):
    rows = files.plan("fcn_mobilenetv2os8_voc") + files.plan("lraspp_mobilenet_v3_large")
    table, calls = tmp_path / "found.csv", []

    def measure(row):
        calls.append(row.case(2))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return [records.Measurement.single("tflite", "file", "MB", 1.0)]

    def run():
        known = records.read(table) if table.exists() else []
        save = functools.partial(records.append, table, "files", command="x")
        return list(files.measure_missing(rows, known, 2, measure, save))

    with pytest.raises(KeyboardInterrupt):
        run()
    found = run()
    cases = [row.case(2) for row in rows]
    assert calls == [cases[0], cases[1], *cases[1:]], "continues with the row that was interrupted"
    assert [new for _, new in found] == [False, *[True] * (len(rows) - 1)]


def test_the_last_measurement_of_a_row_counts():
    def measured(label, date, milliseconds, agreement=None):
        values = {("the model", name): 1.0 for name in ("width", "output stride")}
        values |= {("the model", "parameters"): 2.5e6, ("the model", "multiply-adds"): 3.21e9}
        for kind in files.KINDS:
            values |= {(kind, "file"): 4.0, (kind, "CPU per call"): milliseconds}
            values |= {(kind, "peak memory"): 99.0}
            for name in ("XNNPACK (CPU)", *(rule.delegate for rule in delegates.RULES)):
                values |= {(kind, f"pieces: {name}"): 2, (kind, f"left to the CPU: {name}"): 1}
        values |= {("tflite_dynamic", "pieces: Edge TPU"): 0}
        values |= {("tflite_int8", "left to the CPU: Edge TPU"): 0}
        if agreement:
            values |= {("tflite_int8", "agreement with Keras"): agreement}
        common = {"what": "files", "case": f"{label}, 64x96, 2 threads", "date": date}
        common |= dict.fromkeys(("cpu", "cores", "memory_gb", "python", "packages"), "x")
        return [
            {**common, "subject": subject, "quantity": quantity, "median": str(value)}
            for (subject, quantity), value in values.items()
        ]

    rows = measured("slow", "2026-01-01 09:00", 10.0, agreement=1.0)
    rows += measured("slow", "2026-01-01 10:00", 30.0)
    rows += measured("a (b=1, c=2)", "2026-01-02 10:00", 70.0)
    rows += measured("a (b=1, c=2)", "2026-01-03 10:00", 20.0, agreement=98.765)
    text = files.tables(rows)
    assert text.startswith("## 64x96\n\n2026-01-01 to 2026-01-03, 2 threads. ")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    times = " | ".join(["4"] * 4 + ["20"] * 4)
    assert lines[0] == f"| `a (b=1, c=2)` | 1 | 1 | 2.50 | 3.21 | {times} | 98.77 | 99 | 99 |"
    assert lines[1].startswith("| `slow` |") and lines[1].endswith("| - | 99 | 99 |")
    assert lines[2].endswith("| 2 (1) / 2 (1) / 2 (1) | 2 (1) / - / 2 |")


def test_the_page_is_written_from_the_measurements():
    rows = records.read(ROOT / "docs" / "files.csv")
    page = (ROOT / "docs" / "choosing_a_model.md").read_text()
    assert page.partition(f"{records.BEGIN}\n")[2] == files.tables(rows)


# --- Parts ---


def test_a_contender_that_cannot_be_created_is_reported_in_one_line():
    with raises_line("^nothing: AttributeError: "):
        workers.Worker(workers.Recipe("x", "math:nothing", {}))
    with raises_line("^x: the process ended with status 3, "):
        workers.Worker(workers.Recipe("x", "os:_exit", {"status": 3}))


def test_rounds_take_turns_and_keep_every_value():
    calls = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def measure(self, step):
            calls.append(self.name)
            return {"time": [len(calls), step], "speed": len(calls)}

    done = []
    found = rounds.measure_in_rounds([Fake("a"), Fake("b")], 3, {"step": 9}, done.append)
    assert calls == ["a", "b", "b", "a", "a", "b"] and done == [1, 2, 3]
    assert found["b"] == {"time": [2, 9, 3, 9, 6, 9], "speed": [2, 3, 6]}


def test_spread_is_median_and_quartiles():
    spread = rounds.Spread.of([5, 1, 2, 3, 4])
    assert (spread.low, spread.median, spread.high) == (2, 3, 4) and str(spread) == "3 (2 to 4)"


def test_rows_are_appended_and_become_a_page(tmp_path):
    table, page = tmp_path / "a.csv", tmp_path / "a.md"
    rows = [
        records.Measurement("one", "latency", "ms", rounds.Spread(12.34, 12, 13), 7),
        records.Measurement.single("one", "file", "MB", 3.5),
        records.Measurement.single("two", "file", "MB", 12345.6),
    ]
    records.append(table, "model", "this network", rows, "python scripts/benchmark.py --what=model")
    first = records.read(table)
    records.append(
        table,
        "model",
        "another network",
        rows[:1],
        "python scripts/benchmark.py --what=model --model=x",
    )
    assert records.read(table)[:3] == first and len(records.read(table)) == 4
    assert all(row["cores"] and row["cpu"] and "keras" in row["packages"] for row in first)
    records.write_page(page, table)
    records.write_page(page, table)
    text = page.read_text()
    assert text.count("\n## model: ") == 2 and "Median of 7 rounds" in text
    lines = re.findall(r"^\|.*\|$", text, re.MULTILINE)
    assert lines[:4] == [
        "| | latency, ms | file, MB |",
        "|---|--:|--:|",
        "| one | 12.3 (12 to 13) | 3.5 |",
        "| two |  | 12,346 |",
    ]


@pytest.mark.slow
def test_peak_memory_grows_with_the_memory_in_use():
    before = workers.peak_memory()
    block = np.ones(max(before, 50_000_000) // 4, np.float64)
    assert workers.peak_memory() >= before + 0.5 * block.nbytes


# --- The peers ---

PEERS = [
    "fcn_mobilenetv2os8_voc", "pspnet_mobilenetv2os8_voc", "deeplabv3plus_mobilenetv2os8_voc",
    "lrasppnet_mobilenetv3sos8_voc", "deeplabv3_mnv2_dm05_pascal_trainaug",
    "deeplab_mnv3_small_cityscapes_trainfine",
]  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("name", PEERS)
def test_torch_computes_the_same_network(name):
    import torch

    from benchmarks.peers import torch_model
    from benchmarks.peers.plan import describe

    size = (129, 161) if "os8" not in name or "v2" in name else (393, 401)
    config = dk.get_config(name)
    if config.get("image_pooling_crop_size", ()):
        config = config.replace(image_pooling_crop_size=())
    model = dk.build_segmentor(config, size)
    concatenated = dk.build_segmentor(config.replace(branchwise=False), size)
    for index, layer in enumerate(model.layers):
        # With the initial statistics 0 and 1, the test would not detect swapped layers.
        if hasattr(layer, "moving_mean"):
            random = np.random.default_rng(index)
            layer.moving_mean.assign(random.normal(0, 0.05, layer.moving_mean.shape))
            layer.moving_variance.assign(random.uniform(0.5, 1.5, layer.moving_variance.shape))
    assign_weights(concatenated, named_weights(model), name)
    images = noise(2, *size, 3)
    expected = np.asarray(model(images, training=False))
    with torch.inference_mode():
        found = (
            torch_model.TorchNetwork(describe(concatenated))
            .eval()
            .logits(torch.from_numpy(images))
            .permute(0, 2, 3, 1)
            .numpy()
        )
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


@pytest.mark.torch
def test_the_input_of_the_peer_equals_that_of_the_reference(tmp_path):
    """With the same seed of NumPy's generator, the tensors are the same."""
    from sssegmentation_input import make_dataset

    from benchmarks.peers.torch_input import TorchPairs
    from deeplab_keras.config import NORMALIZATIONS

    root = write_dataset(tmp_path / "photos")
    reference = make_dataset(root, 3)
    reference.clsid2label = {255: -100}
    config = DataConfig(train_crop_size=(512, 512), min_resize_value=512, max_resize_value=2048)
    names = [f"{root}/{{}}/train/{name}" for name in reference.imageids]
    images, labels = (
        tuple(f"{name.format(kind)}{end}" for name in names)
        for kind, end in (("images", reference.image_ext), ("labels", ".png"))
    )
    pairs = TorchPairs(images, labels, {255: -100}, config, NORMALIZATIONS["imagenet"])
    for seed in range(12):
        np.random.seed(seed)
        expected = reference[seed % 3]
        np.random.seed(seed)
        image, label = pairs[seed % 3]
        np.testing.assert_array_equal(image, expected["image"])
        np.testing.assert_array_equal(label, expected["seg_target"])
