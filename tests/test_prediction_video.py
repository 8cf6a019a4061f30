"""Prediction of videos and cameras."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from contracts import as_command_line, raises_line, script
from PIL import Image
from test_prediction import INFO, config, picture, strongest_channel

from deeplab_keras.config import UserError
from deeplab_keras.inference import Predictor
from deeplab_keras.prediction import Input, Results, find_inputs
from deeplab_keras.prediction import video as video_module
from deeplab_keras.prediction.video import (
    Frames,
    exact_rate,
    predict_video,
    read_camera,
    read_video,
)
from deeplab_keras.visualization import class_colors

# --- Videos ---


def film(
    path: pathlib.Path,
    frames: int = 30,
    size: tuple[int, int] = (64, 48),
    rate: float = 12,
    **options: object,
) -> pathlib.Path:
    """Frames of a red block that moves to the right on green."""
    import imageio_ffmpeg

    stream = imageio_ffmpeg.write_frames(
        str(path), size, fps=rate, quality=10, macro_block_size=1, **options
    )
    stream.send(None)
    for index in range(frames):
        frame = np.full((size[1], size[0], 3), (20, 200, 40), np.uint8)
        frame[8:24, index : index + 16] = (220, 30, 10)
        stream.send(frame)
    stream.close()
    return path


def predicted(
    source: str,
    tmp_path: pathlib.Path,
    *,
    max_frames: int = 0,
    palette: str = "dataset",
    **values: object,
) -> None:
    settings = config(tmp_path, **values)
    (item,) = find_inputs(source)
    predict_video(
        Predictor(strongest_channel()), item, Results(settings, INFO, palette), max_frames
    )


def frames_of(path: pathlib.Path) -> tuple[Frames, np.ndarray]:
    video = read_video(str(path))
    return video, np.stack(list(video.frames))


@pytest.mark.package("imageio_ffmpeg")
@pytest.mark.parametrize("left", [0.5, 0.999])
def test_a_video_truncated_by_a_full_disk_is_not_kept(tmp_path, monkeypatch, left):
    import imageio_ffmpeg

    source = film(tmp_path / "a.mp4")

    def write_frames(path, *_, **__):
        try:
            while True:
                yield
        finally:
            whole = source.read_bytes()
            pathlib.Path(path).write_bytes(whole[: int(left * len(whole))])

    monkeypatch.setattr(imageio_ffmpeg, "write_frames", write_frames)
    with raises_line("a_overlay.mp4: the video cannot be written; free some space"):
        predicted(str(source), tmp_path)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.package("imageio_ffmpeg")
def test_a_video_becomes_videos(tmp_path, capsys):
    source = film(tmp_path / "a b.mp4", rate=29.97)
    predicted(str(source), tmp_path, outputs=("color", "overlay"), palette="color_blind")
    given, images = frames_of(source)
    labels = images.argmax(-1)
    for kind in ("color", "overlay"):
        video, found = frames_of(tmp_path / f"out/a b_{kind}.mp4")
        assert (video.size, video.rate, video.length) == (
            (64, 48),
            Fraction(30000, 1001),
            30,
        ) and found.shape == images.shape
        drawn = class_colors(INFO, "color_blind")[labels].astype(int)
        expected = drawn if kind == "color" else (drawn + images) // 2
        assert np.abs(found - expected).mean() < 8, "compression changes a little, not the classes"
    legend = np.asarray(Image.open(tmp_path / "out/a b_legend.png"))
    sky, tree, car = class_colors(INFO, "color_blind")[:3]
    assert (
        (legend == sky).all(-1).any()
        and (legend == tree).all(-1).any()
        and not (legend == car).all(-1).any()
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a b_color.mp4",
        "a b_legend.png",
        "a b_overlay.mp4",
    ]
    assert "frames/s" in capsys.readouterr().err


@pytest.mark.package("imageio_ffmpeg")
def test_a_video_of_odd_size_keeps_it(tmp_path):
    source = film(tmp_path / "a.mkv", 4, (33, 21), codec="ffv1", pix_fmt_out="bgr0")
    predicted(str(source), tmp_path, legend=False)
    video, frames = frames_of(tmp_path / "out/a_overlay.mp4")
    assert video.size == (33, 21) and len(frames) == 4 and video.rate == 12
    predicted(str(source), tmp_path, legend=False, max_frames=3)
    assert len(frames_of(tmp_path / "out/a_overlay.mp4")[1]) == 3


@pytest.mark.package("imageio_ffmpeg")
def test_the_readable_part_of_a_truncated_video_is_kept(tmp_path):
    content = film(tmp_path / "whole.mkv", codec="ffv1", pix_fmt_out="bgr0").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    with raises_line(r"cut.mkv: is truncated after \d+ of 30 frames, which were written"):
        predicted(str(tmp_path / "cut.mkv"), tmp_path)
    assert 5 < len(frames_of(tmp_path / "out/cut_overlay.mp4")[1]) < 25


@pytest.mark.package("imageio_ffmpeg")
@pytest.mark.parametrize("content", [b"", b"no video", None])
def test_an_invalid_video_gets_one_line_and_leaves_no_file(tmp_path, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(
        film(tmp_path / "whole.mp4").read_bytes()[:2000] if content is None else content
    )
    with raises_line("a.mp4: cannot be read as a video") as error:
        predicted(str(path), tmp_path)
    assert "\n" not in as_command_line(error.value) and not (tmp_path / "out").exists()


@pytest.mark.package("imageio_ffmpeg")
def test_a_video_that_cannot_be_written_leaves_no_file(tmp_path, monkeypatch):
    source = film(tmp_path / "a.mp4")

    def fail(*arguments: object, **values: object) -> np.ndarray:
        raise UserError("no")

    monkeypatch.setattr(Results, "picture", fail)
    with raises_line("no"):
        predicted(str(source), tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.package("imageio_ffmpeg")
def test_ctrl_c_stops_the_camera(tmp_path, monkeypatch):
    def pictures() -> Iterator[np.ndarray]:
        for seed in range(5):
            yield np.asarray(picture(32, 48, seed))
        raise KeyboardInterrupt

    camera = Frames((48, 32), Fraction(10), 0, pictures())
    monkeypatch.setattr(
        video_module, "read_camera", lambda number: camera if number == "1" else None
    )
    predicted("camera:1", tmp_path)
    video, frames = frames_of(tmp_path / "out/camera_1_overlay.mp4")
    assert video.rate == 10 and frames.shape == (5, 32, 48, 3)


def seen_by_a_camera(count: int) -> np.ndarray:
    """Frames of a tree, and of the sky, which moves to the right."""
    frames = np.full((count, 32, 48, 3), (20, 200, 40), np.uint8)
    for index, frame in enumerate(frames):
        frame[8:24, 8 * index : 8 * index + 16] = (220, 30, 10)
    return frames


class Capture:
    """A fake imageio camera: frames until it is unplugged or Ctrl-C is pressed."""

    def __init__(self, ending: type[BaseException] | None, count: int = 4) -> None:
        self.ending, self.count, self.closed = ending, count, False

    def get_meta_data(self) -> dict[str, object]:
        return {"size": (48, 32), "fps": 14.99, "duration": float("inf")}

    def iter_data(self) -> Iterator[np.ndarray]:
        yield from seen_by_a_camera(self.count)
        if self.ending:
            raise self.ending("the frame")

    def close(self) -> None:
        self.closed = True


@pytest.mark.package("imageio_ffmpeg")
@pytest.mark.parametrize(
    "ending, options",
    [(KeyboardInterrupt, {}), (IndexError, {}), (None, {}), (RuntimeError, {"max_frames": 3})],
    ids=["Ctrl-C", "unplugged", "its end", "enough frames"],
)
def test_a_camera(tmp_path, monkeypatch, ending, options):
    capture, asked = Capture(ending), []
    monkeypatch.setattr(
        "imageio.v2.get_reader", lambda *given, **named: asked.append((given, named)) or capture
    )
    predicted("camera:2", tmp_path, **options)
    assert asked == [(("<video2>",), {"format": "FFMPEG"})]
    video, frames = frames_of(tmp_path / "out/camera_2_overlay.mp4")
    assert (
        video.size == (48, 32)
        and video.rate == Fraction(15000, 1001)
        and len(frames) == options.get("max_frames", 4)
    )
    expected = seen_by_a_camera(len(frames))
    drawn = class_colors(INFO)[expected.argmax(-1)].astype(int)
    assert np.abs(frames - (drawn + expected) // 2).mean() < 8, (
        "compression changes a little, not the classes"
    )
    assert (tmp_path / "out/camera_2_legend.png").is_file() and capture.closed


@pytest.mark.package("imageio_ffmpeg")
def test_a_camera_without_frames_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("imageio.v2.get_reader", lambda *given, **named: Capture(RuntimeError, 0))
    with raises_line("no frame can be read; replace the file"):
        predicted("camera", tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.package("imageio_ffmpeg")
def test_an_unknown_camera_is_refused():
    with raises_line("^--input=camera:87: no such camera"):
        read_camera("87")


def test_without_the_extra_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    (tmp_path / "a.mp4").write_bytes(b"x")
    with raises_line(
        r"^videos and the camera need imageio-ffmpeg: pip install imageio imageio-ffmpeg$",
    ):
        predicted(str(tmp_path / "a.mp4"), tmp_path)
    with raises_line("need imageio-ffmpeg"):
        read_camera("0")


def test_videos_have_no_label_maps(tmp_path):
    with raises_line("--outputs=labels: not available for a video, a.mp4"):
        Results(config(tmp_path, outputs=("labels",)), INFO).files(Input("a.mp4", "a", "video"))


@pytest.mark.parametrize(
    ("rate", "fraction"),
    [
        (25, Fraction(25)),
        (23.98, Fraction(24000, 1001)),
        (12.5, Fraction(25, 2)),
        (0, Fraction(25)),
    ],
)
def test_rates_are_exact(rate, fraction):
    assert exact_rate(rate) == fraction


@pytest.mark.package("imageio_ffmpeg")
def test_a_folder_of_images_and_videos_some_damaged(tiny_run, tmp_path, capsys):
    (tmp_path / "in/sub").mkdir(parents=True)
    picture(40, 60).save(tmp_path / "in/a.png")
    Image.fromarray(np.zeros((40, 60), np.float32)).save(tmp_path / "in/b.tif")
    film(tmp_path / "in/sub/c.mp4", frames=5)
    whole = (tmp_path / "in/sub/c.mp4").read_bytes()
    (tmp_path / "in/sub/d.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/e.avi").write_bytes(b"")
    given = (
        f"--checkpoint_dir={tiny_run}",
        f"--input={tmp_path}/in",
        f"--output={tmp_path}/out",
        "--outputs=colour",  # the former spelling
    )
    assert script("predict.py")(*given) == 1
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error")]
    assert [line.split(": ")[1].rpartition("/")[2] for line in errors] == [
        "b.tif",
        "e.avi",
        "d.mp4",
    ]
    assert said.out.splitlines()[-1] == f"written: 2 of 5 files to {tmp_path}/out; 3 failed"
    written = {
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert written == {"a_color.png", "sub/c_color.mp4", "sub/c_legend.png"}
