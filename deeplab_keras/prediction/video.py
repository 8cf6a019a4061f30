"""Prediction of videos and cameras, written as videos of the same size and frame rate."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from deeplab_keras.config import UserError
from deeplab_keras.inference import Predictor, as_image
from deeplab_keras.io.progress import Progress
from deeplab_keras.io.writing import replacing
from deeplab_keras.prediction.inputs import Input
from deeplab_keras.prediction.results import Results
from deeplab_keras.visualization import legend, save_png

TOGETHER = 8_000_000  # largest number of pixels of a batch; a larger frame is a batch of one
USUAL_RATE = Fraction(25)  # frames per second for files without a frame rate
MISSING = 0.05  # share of the frames in the header that may be missing in a file


class Frames(NamedTuple):
    """A stream of frames.

    Attributes:
        size: The (width, height).
        rate: The frames per second.
        length: The number of frames according to the header, 0 if unknown.
        frames: Iterator of frames, uint8 `[height, width, 3]`.
    """

    size: tuple[int, int]
    rate: Fraction
    length: int
    frames: Iterator[np.ndarray]


def predict_video(predictor: Predictor, item: Input, results: Results, max_frames: int = 0) -> None:
    """Predicts a video or a camera and writes the videos in `results.files`.

    Writes the readable part of a truncated file. Ctrl-C stops a camera.

    Args:
        predictor: The predictor.
        item: An input of kind "video" or "camera".
        results: Names the files and draws the pictures.
        max_frames: The number of frames to predict, 0 for all.

    Raises:
        UserError: The extra `video` is not installed, the file cannot be read or is truncated, or a
            video cannot be written.
    """
    files = results.files(item)
    source = read_camera(item.path) if item.kind == "camera" else read_video(item.path)
    expected = (
        min(source.length, max_frames)
        if source.length and max_frames
        else source.length or max_frames
    )
    bar, seen = Progress(expected, item.name, unit="frames"), set[int]()
    frames = itertools.islice(source.frames, max_frames) if max_frames else source.frames
    with contextlib.ExitStack() as stack:
        sinks = {
            kind: stack.enter_context(_written(path, source))
            for kind, path in files.items()
            if kind != "legend"
        }

        def write(images: np.ndarray, labels: np.ndarray) -> None:
            seen.update(np.unique(labels).tolist())
            for image, found in zip(images, labels, strict=True):
                for kind, sink in sinks.items():
                    sink(results.picture(kind, image, found))

        done = _stream(predictor, frames, _batch_size(predictor, source, item), write, bar, item)
    if "legend" in files:
        save_png(
            files["legend"], legend(results.info, seen, source.size[0], palette=results.palette)
        )
    bar.total = done
    bar.update(done)
    if item.kind == "video" and expected - done > max(2, MISSING * expected):
        raise UserError(
            f"{item.path}: is truncated after {done} of {expected} frames, which were written; "
            "replace the file"
        )


def _batch_size(predictor: Predictor, source: Frames, item: Input) -> int:
    if item.kind == "camera":
        return 1
    pixels = source.size[0] * source.size[1]
    return min(predictor.config.eval_batch_size, max(1, TOGETHER // pixels))


def _stream(
    predictor: Predictor,
    frames: Iterator[np.ndarray],
    batch_size: int,
    write: Callable[[np.ndarray, np.ndarray], None],
    bar: Progress,
    item: Input,
) -> int:
    """Reads, predicts and writes in parallel, and returns the number of frames."""
    done = 0

    def read() -> list[np.ndarray]:
        return list(itertools.islice(frames, batch_size))

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        try:
            coming = reader.submit(read)
            while batch := coming.result():
                coming = reader.submit(read)
                images = np.stack(batch)
                labels = predictor.predict_batch(
                    np.stack([as_image(image, predictor.network.channels) for image in images])
                )
                if writing:
                    writing.result()
                writing = writer.submit(write, images, labels)
                done += len(batch)
                if not bar.total or done < bar.total:
                    bar.update(done)
        except KeyboardInterrupt:
            if item.kind != "camera":
                raise
        if writing:
            writing.result()
    return done


# --- Files ---


def _ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UserError(
            "videos and the camera need imageio-ffmpeg: pip install imageio imageio-ffmpeg"
        ) from error
    return imageio_ffmpeg


def read_video(path: str) -> Frames:
    """Opens a video file.

    Raises:
        UserError: The file cannot be read.
    """
    stream = _ffmpeg().read_frames(path)
    try:
        about = next(stream)
    except Exception as error:  # a damaged file can raise anything
        lines = [line for line in str(error).splitlines() if path in line and ":" in line]
        reason = lines[-1].rpartition(": ")[2] if lines else "not a video, or truncated"
        raise UserError(f"{path}: cannot be read as a video ({reason}); replace it") from error
    (width, height), rate = about["size"], exact_rate(about["fps"])
    return Frames(
        (width, height), rate, round(about["duration"] * rate), _decoded(stream, (height, width, 3))
    )


def _decoded(stream: Iterator[bytes], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    while True:
        try:
            frame = next(stream, None)
            picture = None if frame is None else np.frombuffer(frame, np.uint8).reshape(shape)
        except Exception:  # the file ends within a frame
            return
        if picture is None:
            return
        yield picture


def exact_rate(rate: float) -> Fraction:
    """Returns the exact frame rate for a header's two decimals, such as 30000/1001 for 29.97."""
    if not rate > 0:
        return USUAL_RATE
    american = Fraction(round(rate) * 1000, 1001)
    return american if abs(american - rate) < 0.005 else Fraction(rate).limit_denominator(1000)


def read_camera(number: str) -> Frames:
    """Opens a camera of this machine by its number.

    Raises:
        UserError: The camera cannot be opened.
    """
    _ffmpeg()
    try:
        import imageio.v2

        reader = imageio.v2.get_reader(f"<video{number}>", format="FFMPEG")
        about = reader.get_meta_data()
    except ImportError as error:
        raise UserError("the camera needs imageio: pip install imageio imageio-ffmpeg") from error
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise UserError(
            f"`input=camera:{number}`: no such camera, or it is in use; give another number"
        ) from error
    width, height = about["size"]
    return Frames((width, height), exact_rate(about["fps"]), 0, _captured(reader))


def _captured(reader: Any) -> Iterator[np.ndarray]:
    """Yields the frames of a camera until it is unplugged, and releases it at the end."""
    with contextlib.closing(reader), contextlib.suppress(OSError, RuntimeError, IndexError):
        for frame in reader.iter_data():
            yield np.asarray(frame)


@contextlib.contextmanager
def _written(path: pathlib.Path, source: Frames) -> Iterator[Callable[[np.ndarray], None]]:
    """Context with a function that appends a frame to a video file, written at its end."""
    even = source.size[0] % 2 == source.size[1] % 2 == 0
    with replacing(path) as aside, contextlib.ExitStack() as opened:
        sink = None

        def put(frame: np.ndarray) -> None:
            nonlocal sink
            if sink is None:
                sink = _ffmpeg().write_frames(
                    str(aside),
                    source.size,
                    fps=source.rate,
                    macro_block_size=1,
                    quality=7,
                    ffmpeg_log_level="fatal",
                    # Most players need yuv420p, which halves the size of the colors, so it cannot
                    # have an odd size.
                    pix_fmt_out="yuv420p" if even else "yuv444p",
                    output_params=["-f", "mp4", "-movflags", "+faststart"],
                )
                opened.callback(sink.close)
                sink.send(None)
            sink.send(np.ascontiguousarray(frame))

        try:
            yield put
            opened.close()
        except OSError as error:
            raise UserError(
                f"{path}: the video cannot be written; free some space, or give another `output`"
            ) from error
        if sink is None:
            raise UserError("no frame can be read; replace the file")
        if not _is_whole(aside):  # ffmpeg does not report a full disk at the end
            raise UserError(
                f"{path}: the video cannot be written; free some space, or give another `output`"
            )


def _is_whole(path: pathlib.Path) -> bool:
    """Returns whether an MP4 file is complete.

    That is the case if its boxes (ISO/IEC 14496-12) end where the file ends, and one of them is the
    table of its frames.
    """
    if not path.is_file():
        return False
    position, end = 0, path.stat().st_size
    kinds = set()
    with open(path, "rb") as file:
        while position < end:
            file.seek(position)
            head = file.read(16)
            size = int.from_bytes(head[:4], "big")
            if size == 1:  # a box of 4 GiB or more
                size = int.from_bytes(head[8:], "big")
            if size < 8:  # the size was not written yet
                return False
            kinds.add(head[4:8])
            position += size
    return position == end and b"moov" in kinds
