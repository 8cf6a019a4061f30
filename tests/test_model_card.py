"""The model card of a run: its numbers, its links, any names, and the time of all starts."""

from __future__ import annotations

import html
import json
import math
import pathlib
import re
import shutil

import numpy as np
import pytest
from contracts import script
from markdown_it import MarkdownIt
from PIL import Image

from deeplab_keras.checkpoints import folder
from deeplab_keras.training import meter
from deeplab_keras.training.card import _duration, _fenced

HOSTILE = ("a|b", "<img src=x>", "[x](y) *z* `q`", r"\|_&amp; https://x.y")


def render(path: pathlib.Path) -> str:
    return MarkdownIt().enable("table").render(path.read_text())


def table(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [
        [html.unescape(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)]
        for row in rows
    ]


def test_the_numbers_are_those_of_the_files(tiny_run):
    card, page = (tiny_run / "model_card.md").read_text(), render(tiny_run / "model_card.md")
    scores = json.loads((tiny_run / "metrics.json").read_text())
    _, *rows = table(page)
    matrix = np.array(scores["confusion_matrix"])
    assert [row[0] for row in rows] == list(scores["per_class_iou"])
    for number, row in enumerate(rows):
        hits, union = matrix[number, number], matrix[number].sum() + matrix[:, number].sum()
        expected = 100 * hits / (union - hits) if union else math.nan
        assert row[1] == ("-" if math.isnan(expected) else f"{expected:.2f}")
    assert f"mIoU {100 * scores['miou']:.2f}" in card
    error = 100 * scores["expected_calibration_error"]
    assert f"expected calibration error {error:.2f}" in card
    wrong = matrix * (1 - np.eye(len(matrix), dtype=int))
    share = 100 * wrong.max() / matrix.sum(1)[wrong.max(1).argmax()]
    assert f"* {share:.2f} % of the pixels of " in card
    weights = folder.read_weights(tiny_run / "best")
    count = sum(value.size for name, value in weights.items() if "/moving_" not in name)
    assert f"* parameters: {count:,}, of which {count:,} were trained" in card
    for line in ("training: 8 images (train)", "validation: 4 images (val)", "batch size: 4",
                 "steps: 2 of 2, 1 epochs", "seed: 0", "initial weights: random"):  # fmt: skip
        assert f"\n* {line}\n" in card
    assert (tiny_run / "flags.txt").read_text() in card
    assert "multiply-adds at 64x64" in card and "ms for an image of 64x64" in card
    assert re.search(r"training time: .* in 1 start,", card)


def test_links_lead_to_files(tiny_run):
    found = re.findall(r'(?:src|href)="([^"]+)"', render(tiny_run / "model_card.md"))
    assert len(found) == 2 + 2 and all((tiny_run / name).is_file() for name in found)
    pictures = [name for name in found if name.endswith(".png")]
    assert pictures == ["model_card/worst_1.png", "model_card/worst_2.png"]
    assert all(Image.open(tiny_run / name).width > 64 for name in pictures)


def test_any_name_is_shown_unchanged(tmp_path, tiny_flags):
    data, run, random = tmp_path / "data", tmp_path / "run", np.random.default_rng(0)
    file = "a_b](x) _c_ <b>"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (data / kind / split).mkdir(parents=True)
        mask = random.integers(0, 4, (8, 8), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(mask).save(data / "labels" / split / f"{file}.png")
        Image.fromarray((mask[..., None] * 60).repeat(3, 2)).save(
            data / "images" / split / f"{file}.png"
        )
    (data / "classes.txt").write_text("\n".join(HOSTILE) + "\n")
    flags = ("--dataset=folder", f"--dataset_dir={data}", "--train_batch_size=1")
    assert script("train.py")(*tiny_flags, *flags, f"--train_logdir={run}") == 0
    page = render(run / "model_card.md")
    _, *rows = table(page)
    assert tuple(row[0] for row in rows) == HOSTILE and {len(row) for row in rows} == {5}
    assert f"<p>{html.escape(file)}: mIoU " in page and page.count("<img") == 1
    assert f'alt="{html.escape(file)}"' in page
    confused = html.unescape(re.search("confusions</h2>(.*?)<h2>", page, re.DOTALL)[1])
    assert any(f"of {a} were predicted as {b}" in confused for a in HOSTILE for b in HOSTILE)


def test_a_code_block_contains_any_text():
    text = "--a=1\n````\n--b=`````"
    page = MarkdownIt().render("\n".join(_fenced(text)))
    assert page == f'<pre><code class="language-text">{text}\n</code></pre>\n'


@pytest.mark.parametrize("older", [False, True])
def test_the_time_is_that_of_all_starts(older, tiny_flags, tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (last,) = folder.step_folders(run)
    (last / folder.HASHES).unlink()
    state = folder.read_arrays(last / folder.STATE)
    assert state["meter/starts"] == 1 and 0 < state["meter/seconds"] < 600
    state |= {"meter/seconds": np.float64(36000), "meter/joules": np.float64(7200)}
    state |= {"step": np.int64(1)}  # a start without a step does not count
    if older:
        state = {name: value for name, value in state.items() if not name.startswith("meter/")}
    np.savez(last / folder.STATE, **state)
    assert script("train.py")(*tiny_flags, f"--train_logdir={run}") == 0
    card = (run / "model_card.md").read_text()
    if older:
        assert "* training time: not measured (the run was started by an older version)" in card
        assert "* energy: not measured" in card
    else:
        assert re.search(r"\* training time: 10 h .* in 2 starts, with", card)


def test_a_duration_is_readable():
    assert [_duration(s) for s in (0.2, 59.6, 3600, 3725)] == [
        "0 s",
        "1 min",
        "1 h",
        "1 h 2 min 5 s",
    ]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Two processor packages, one of them with a part, and the whole system; a clock."""

    def write(zone: str, name: str, energy: int) -> None:
        (tmp_path / zone).mkdir(exist_ok=True)
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "energy_uj").write_text(f"{energy}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("65532610987\n")

    def spend(first: int, second: int, seconds: float) -> None:
        for zone, name, energy in (
            ("intel-rapl:0", "package-0", first),
            ("intel-rapl:0:0", "core", second + 7),
            ("intel-rapl:1", "package-1", second),
            ("intel-rapl:2", "psys", second + 9),
        ):
            write(zone, name, energy)
        clock[0] += seconds

    clock = [100.0]
    monkeypatch.setattr(meter, "POWERCAP", tmp_path)
    monkeypatch.setattr(meter.time, "monotonic", lambda: clock[0])
    spend(65532000000, 1000000, 0)
    return spend


def test_energy_is_summed_over_packages_and_starts(machine):
    first = meter.Meter()
    machine(389012, 4000000, 60)  # the first counter wraps around: 1 J
    state = first.state()
    assert (state["meter/seconds"], state["meter/starts"]) == (60, 1)
    assert float(state["meter/joules"]) == pytest.approx(1 + 3)
    second = meter.Meter()
    second.restore(state)
    machine(2389012, 4000000, 30)
    second.update()
    assert (second.starts, second.seconds) == (2, 90)
    third = meter.Meter()
    third.restore(state, finished=True)
    assert third.starts == 1, "it takes no steps"
    assert second.joules == pytest.approx(1 + 3 + 2)


def test_energy_that_is_not_known_stays_unknown(machine, tmp_path):
    found = meter.Meter()
    machine(1, 1, 1000)  # long enough for a counter to wrap around twice
    found.update()
    assert math.isnan(found.joules) and found.seconds == 1000
    found = meter.Meter()
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    found.update()
    assert math.isnan(found.joules)
