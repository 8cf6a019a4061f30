"""The progress line: a bar on a terminal, plain lines on a pipe, and the speed without pauses."""

from __future__ import annotations

import io
import os

import pytest

from deeplab_keras.io import progress
from deeplab_keras.io.progress import Progress, clock, without_noise


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch):
    """A fake clock; `now[0]` is the time."""
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_one_line_per_interval_on_a_pipe(now):
    stream = io.StringIO()
    bar = Progress(100, "step", start=10, images_per_step=4, interval=10, stream=stream)
    for done in range(11, 101):
        now[0] += 0.5
        bar.update(done, loss=2 / done)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5, "after 10, 20, 30, 40 and 45 seconds"
    assert lines[0] == "step 30/100  loss 0.06667  8.0 images/s  0:35 left"
    assert lines[-1] == "step 100/100  loss 0.02  8.0 images/s  0:45 in total"
    assert "\r" not in stream.getvalue()


def test_a_pause_does_not_count(now):
    stream = io.StringIO()
    bar = Progress(100, "step", interval=10, stream=stream)
    now[0] += 60
    bar.pause(50)
    bar.update(20)
    assert stream.getvalue() == "step 20/100  2.0 images/s  0:40 left\n"


def test_a_terminal_shows_one_bar_below_the_lines(now):
    stream = Terminal()
    bar = Progress(4, "files", stream=stream, unit="files")
    for done in (1, 2):
        now[0] += 1
        bar.update(done)
        bar.update(done)  # right away, so it is not drawn again
    bar.write("a line")
    now[0] += 2
    bar.update(4)
    drawn = stream.getvalue().split("\r")
    assert drawn[1].rstrip() == "files 1/4  [======..................]  1.0 files/s  0:03 left"
    assert drawn[2].rstrip() == "files 2/4  [============............]  1.0 files/s  0:02 left"
    assert drawn[3].isspace() and drawn[4] == "a line\n"
    assert drawn[5] == "files 4/4  [========================]  1.0 files/s  0:04 in total\n"
    assert len(drawn) == 6


def test_an_unknown_total_shows_only_the_count(now):
    stream = io.StringIO()
    bar = Progress(0, "video", interval=1, stream=stream, unit="frames")
    now[0] += 2
    bar.update(5)
    assert stream.getvalue() == "video 5  2.5 frames/s\n"


@pytest.mark.parametrize("seconds, text", [(75, "1:15"), (4000, "1:06:40"), (0.4, "0:00")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_messages_about_a_machine_without_a_gpu_are_noise_and_others_are_not(capfd):
    """The first two lines are those of TensorFlow 2.21 with GPU libraries, but without a driver."""
    noise = [
        "I0000 00:00:1795750040.331480   18554 cudart_stub.cc:31] Could not find cuda drivers on "
        "your machine, GPU will not be used.",
        "E0000 00:00:1795750062.913108   18554 cuda_platform.cc:52] failed call to cuInit: "
        "INTERNAL: CUDA error: Failed call to cuInit: UNKNOWN ERROR (303)",
    ]
    kept = "failed call to cuInit: INTERNAL: CUDA error: Failed call to cuInit: UNKNOWN ERROR (100)"
    with without_noise():
        os.write(2, "\n".join([*noise, kept, ""]).encode())
    assert capfd.readouterr().err == f"{kept}\n"
