"""The GPU kit: its parts, its time, its file and its parity check. All of it runs on the CPU."""

from __future__ import annotations

import importlib.util
import json
import time
import types

import keras
import numpy as np
import pytest
import toy
from benchmark_workers import InProcess
from contracts import as_command_line, raises_line, script

from benchmarks import batches, golden, gpu, parity, peers, training, workers
from benchmarks.precisions import PRECISIONS
from deeplab_keras.config import UserError
from deeplab_keras.models.segmentor import build_segmentor

SHAPE = (2, 64, 64, 3)
ROW = {"subject": "jax, CPU", "quantity": "steps alone", "unit": "images/s", "median": 5.0,
       "low": 4.0, "high": 6.0, "rounds": 2}  # fmt: skip


@pytest.fixture
def kit(monkeypatch, tmp_path):
    """Returns a function that runs the kit as if on JAX, with parts that take no time."""
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    monkeypatch.setattr(peers, "require", lambda peer, packages: None)
    device = types.SimpleNamespace(name="JAX", measure=lambda: {"device": "CPU"}, close=int)
    monkeypatch.setattr(workers, "Worker", lambda recipe, deadline: device)
    ran: list[str] = []

    def run(entry=lambda part: {}, **options):
        ran.clear()

        def part(self, part, seconds):
            ran.append(part.name)
            done = {"status": "done", "seconds": 1.0, "errors": {}, "rows": [ROW]}
            return done | entry(part)

        monkeypatch.setattr(gpu.Kit, "run", part)
        gpu.measure_gpu(str(tmp_path / "gpu.json"), **{"preset": "small", **options})
        return list(ran)

    return run


@pytest.fixture
def entries(tmp_path):
    """Returns a function that reads the parts of the file."""
    return lambda: json.loads((tmp_path / "gpu.json").read_text())["parts"]


# --- The file and the time ---


def test_every_part_is_in_the_file(kit, entries, tmp_path, capsys):
    ran = kit(page=str(tmp_path / "page.md"))
    assert ran == list(entries()) and len(ran) == 1 + 2 * 2
    assert {entry["status"] for entry in entries().values()} == {"done"}
    setting = json.loads((tmp_path / "gpu.json").read_text())["setting"]
    assert setting["device"] == "CPU" and {"card", "driver", "packages", "batch"} < set(setting)
    page = (tmp_path / "page.md").read_text()
    assert page.count("\n## gpu: ") == 3 and "| jax, CPU | 5 (4 to 6) |" in page
    assert capsys.readouterr().out.startswith("no GPU: small networks on the CPU; ")


def test_parts_that_were_not_reached_are_listed_and_run_later(kit, entries, tmp_path, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))
    page = tmp_path / "page.md"
    ran = kit(seconds=25, page=str(page))
    assert ran == ["parity", "train fcn_mobilenetv2os8_voc bfloat16"]
    left = [name for name, entry in entries().items() if entry["status"] == "not run"]
    assert left == list(entries())[2:] and len(left) == 3
    assert page.read_text().count(": not run\n") == 3
    assert kit(seconds=1000) == left


def test_a_killed_run_keeps_its_results(kit, entries):
    def stop(part):
        if part.precision == "float32":
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        kit(stop)
    done = [name for name, entry in entries().items() if entry["status"] == "done"]
    assert len(done) == 3 and kit() == list(entries())[3:]


def test_a_failed_part_is_recorded_and_run_again(kit, capsys):
    error = {"status": "failed", "error": "out of memory"}
    ran = kit(lambda part: error if part.kind == "train" else {})
    assert len(ran) == 5 and "train fcn_mobilenetv2os8_voc float32: failed: out of memory" in (
        capsys.readouterr().out
    )
    assert kit() == [name for name in ran if name.startswith("train")]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"status": "failed", "error": "a, tf32: logits 1"}, "parity failed: a, tf32: logits 1; "),
        ({"status": "not run"}, "parity failed: not run; "),
    ],
)
def test_failed_parity_fails_the_run_after_all_parts(entry, message, kit, entries):
    with raises_line(message):
        kit(lambda part: entry if part.kind == "parity" else {})
    assert entries()["inference fcn_mobilenetv2os8_voc float32"]["status"] == "done"
    with raises_line(message):  # also later, when nothing is left to run but a failed part
        kit(lambda part: entry if part.kind == "parity" else {})


# --- The parts ---


@pytest.fixture
def made(monkeypatch):
    """A kit whose contenders run in this process."""
    monkeypatch.setattr(workers, "Worker", InProcess)
    monkeypatch.setattr(peers, "require", lambda peer, packages: None)
    plan = {"steps": [], "multiply_adds": 10**9}
    monkeypatch.setattr(training, "plan", lambda model, size: plan)
    return gpu.Kit(gpu.PRESETS["small"], batches.noise(SHAPE, 5), gpu.PEERS)


def test_parity_compares_all_systems_in_all_precisions(made, monkeypatch):
    policies = []

    def measure(self, system, train):
        policies.append(self.policy)
        return {"logits": 1e-3, "labels": 1.0}

    monkeypatch.setattr(parity.Parity, "measure", measure)
    entry = made.run(gpu.Part("parity"), 100)
    assert policies == ["float32", "mixed_bfloat16"]
    assert entry["status"] == "failed" and entry["error"] == (
        "deeplabv3plus_mobilenetv2os8_voc, float32: logits 0.001 (required: <= 2e-05)"
    )
    assert [row["median"] for row in entry["rows"]] == 2 * [1e-3, 1.0]


@pytest.mark.parametrize("broken", ["torch_compile", "jax"])
def test_training_goes_on_without_a_peer_that_fails(broken, made, monkeypatch):
    speeds = {"jax": 30.0, "torch": 10.0, "torch_compile": 20.0}

    def recipe(name, model, step, batch, steps, precision):
        assert precision is PRECISIONS["tf32"] and not model.auxiliary_head
        if name == broken:
            return workers.Recipe(name, "benchmark_workers:Failing", {})
        return workers.Recipe(name, "benchmark_workers:Stepping", {"speed": speeds[name]})

    monkeypatch.setattr(training, "peer_recipe", recipe)
    entry = made.run(gpu.Part("train", "fcn_mobilenetv2os8_voc", "tf32"), 100)
    if broken == "jax":
        assert (entry["status"], entry["error"], entry["rows"]) == ("failed", "out of memory", [])
        return
    assert entry["status"] == "done" and entry["errors"] == {"torch_compile": "out of memory"}
    found = {(row["subject"], row["quantity"]): row["median"] for row in entry["rows"]}
    subject = "fcn_mobilenetv2os8_voc, tf32: torch, A GPU"
    assert found[subject, "steps alone"] == 10 and found[subject, "GPU memory"] == 3000


# --- The workers ---


@pytest.mark.parametrize("failed", [None, {}])
def test_contenders_that_cannot_be_created_can_be_left_out(failed, monkeypatch):
    monkeypatch.setattr(workers, "Worker", InProcess)
    recipes = [
        workers.Recipe(name, f"benchmark_workers:{name}", {}) for name in ("Failing", "Sleeping")
    ]
    if failed is None:
        with raises_line("out of memory"), workers.running(recipes):
            pass
        return
    with workers.running(recipes, failed=failed) as running:
        assert [worker.name for worker in running] == ["Sleeping"]
    assert str(failed["Failing"]) == "out of memory"


def test_a_worker_ends_at_its_deadline():
    recipe = workers.Recipe("slow", "benchmark_workers:Sleeping", {})
    with workers.running([recipe]) as (worker,):
        assert worker.measure(seconds=0.01) == {"slept": 0.01}
        worker.deadline = time.monotonic() + 0.1
        start = time.monotonic()
        with pytest.raises(workers.OutOfTime, match="was stopped because its time was over"):
            worker.measure(seconds=60)
    assert time.monotonic() - start < 10 and not worker._process.is_alive()


# --- Parity ---


@pytest.fixture
def tiny_golden():
    """A network and its outputs as golden values."""
    with toy.registered():
        model = build_segmentor(toy.toy_config(num_classes=5, dropout_rate=0.0))
    view = keras.Model(model.input, [model.get_layer("logits").output, model.output])
    logits, final = view.predict_on_batch(golden.images(48, 64).astype(np.float32))
    arrays = {"logits_48x64": logits[:, ::2, ::2], "step_logits_48x64": 2,
              "final_48x64": final, "step_final_48x64": 1,
              "argmax_48x64": final.argmax(-1), "step_argmax_48x64": 1}  # fmt: skip
    return golden.Golden("toy", {}, {}, {}, arrays), model


def test_a_perturbed_weight_fails_the_parity(tiny_golden):
    values, model = tiny_golden
    assert parity.failures(parity.outputs(values, model), "float32") == []
    kernel = model.get_layer("logits").kernel
    changed = np.array(kernel)
    # All weights of one class: a single one may belong to a channel that ReLU keeps at zero.
    changed[..., 0] *= 1.05
    kernel.assign(changed)
    (failure, *_) = parity.failures(parity.outputs(values, model), "float32")
    assert failure.startswith("logits ")


@pytest.mark.parametrize("name", parity.QUANTITIES)
def test_values_out_of_bounds_fail(name):
    for precision, bounds in parity.BOUNDS.items():
        assert set(bounds) == set(parity.QUANTITIES)
        assert parity.failures(bounds, precision) == []
        worse = 0.99 if name == "labels" else 1.01
        for value in (bounds[name] * worse, float("nan")):
            (failure,) = parity.failures({**bounds, name: value}, precision)
            assert failure.startswith(f"{name} ")


# --- Batches ---


def test_a_batch_of_a_dataset_as_a_command(tmp_path, capsys):
    path = tmp_path / "crops.npz"
    flags = ["--dataset=synthetic", "--synthetic_size=64,64", "--train_crop_size=64,64",
             "--train_samples=4", "--train_batch_size=2"]  # fmt: skip
    assert script("benchmark.py")("--what=batch", *flags, f"--npz={path}") == 0
    batch = batches.read_batch(path, SHAPE)
    assert batch.images.dtype == np.float32 and 20 < batch.images.std() < 128
    assert 2 <= len(np.unique(batch.labels[batch.labels != 255])) <= batch.classes == 10
    assert batch.source == "crops.npz, 10 classes" and "wrote" in capsys.readouterr().out


def arrays(**changes):
    images = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.uint8)
    labels = (np.arange(2 * 64 * 64).reshape(SHAPE[:3]) % 5).astype(np.int32)
    return {"images": images, "labels": labels, "num_classes": np.int32(5),
            "ignore_label": np.int32(255), **changes}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((2, 32, 64, 3), np.uint8)},
         "images must be uint8 of shape (2, 64, 64, 3). Received: uint8 of shape (2, 32, 64, 3)"),
        ({"images": np.zeros(SHAPE, np.float64)}, "images must be uint8 of shape (2, 64, 64, 3)"),
        ({"labels": np.zeros((1, 64, 64), np.int32)}, "labels must be int32 of shape (2, 64, 64)"),
        ({"labels": np.full(SHAPE[:3], 5, np.int32)}, "labels must be in 0..4 or 255"),
        ({"labels": np.full(SHAPE[:3], -1, np.int32)}, "labels must be in 0..4 or 255"),
        ({"images": np.array([{}, 1], object)}, "is not an .npz file of plain arrays"),
        ({"num_classes": np.int32(1)}, "num_classes of at least 2"),
        ({"ignore_label": None}, "has no array ignore_label"),
    ],
)  # fmt: skip
def test_an_unsuitable_batch_gets_one_line(changes, message, tmp_path):
    path = tmp_path / "batch.npz"
    values = {name: value for name, value in arrays(**changes).items() if value is not None}
    np.savez(path, **values)
    with pytest.raises(UserError) as error:
        batches.read_batch(path, SHAPE)
    line = as_command_line(error.value)
    assert line.startswith(f"--npz={path}: ") and message in line and "\n" not in line


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"text", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_batch_gets_one_line(content, tmp_path):
    path = tmp_path / "batch.npz"
    path.write_bytes(content)
    with raises_line("is not an .npz file of plain arrays"):
        batches.read_batch(path, SHAPE)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with raises_line("is not an .npz file of plain arrays"):
        batches.read_batch(tmp_path / "one.npy", SHAPE)
    with raises_line(r"cannot be read \(No such file or directory\); check the path"):
        batches.read_batch(tmp_path / "none.npz", SHAPE)


# --- User errors ---


def test_another_backend_gets_one_line(tmp_path, capsys):
    if keras.backend.backend() == "jax":
        pytest.skip("this process runs on JAX")
    assert script("benchmark.py")("--what=gpu", f"--json={tmp_path / 'gpu.json'}") == 1
    assert capsys.readouterr().err == (
        "error: --what=gpu requires Keras' JAX backend. Received: backend tensorflow; set "
        "KERAS_BACKEND=jax\n"
    )


def test_a_cpu_requires_the_small_preset(kit, tmp_path):
    with raises_line("preset=full requires a GPU, but JAX only finds a CPU"):
        kit(preset="full")
    assert not (tmp_path / "gpu.json").exists()


def test_an_unknown_peer_gets_one_line(kit):
    with raises_line("against must be torch or torch_compile. Received: --against=openvino"):
        kit(against=("torch", "openvino"))


def test_peers_that_are_not_installed_are_recorded(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        peers.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )
    made = gpu.Kit(gpu.PRESETS["small"], batches.noise(SHAPE, 5), gpu.PEERS)
    assert made.peers == [] and list(made.missing) == ["torch", "torch_compile"]
    assert made.missing["torch"].endswith("not installed: torch; run: pip install torch")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"setting": {}, "parts": {"parity": 1}}'])
def test_another_json_file_is_not_overwritten(text, kit, tmp_path):
    path = tmp_path / "gpu.json"
    path.write_text(text)
    with raises_line("was not written by --what=gpu; give another path"):
        kit()
    assert path.read_text() == text


def test_results_of_another_setting_are_not_overwritten(kit, tmp_path):
    kit()
    path = tmp_path / "gpu.json"
    report = json.loads(path.read_text())
    report["setting"]["driver"] = "1.0"
    path.write_text(text := json.dumps(report))
    with raises_line("was measured with another driver, '1.0'. Received: ''; give another path"):
        kit()
    assert path.read_text() == text


# --- On JAX ---


@pytest.mark.jax
def test_parity_on_jax_and_a_perturbed_weight(monkeypatch):
    name, weights = golden.VOC[3], golden.weights

    def perturbed(values):
        tensors = weights(values)
        tensors["backbone_net.conv1.conv.weight"][0, 0, 0, 0] *= 1.1
        return tensors

    found = parity.Parity("float32").measure(name, train=True)
    print(found)
    assert set(found) == set(parity.QUANTITIES) and parity.failures(found, "float32") == []
    monkeypatch.setattr(golden, "weights", perturbed)
    failures = parity.failures(parity.Parity("float32").measure(name, train=False), "float32")
    print(failures)
    assert failures[0].startswith("logits ")
