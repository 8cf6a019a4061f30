"""Prediction of many images: reading ahead, batches, tiles, writing in the background."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from PIL import Image

from deeplab_keras.config import PredictConfig, UserError, render_options
from deeplab_keras.inference import Predictor, as_image, open_picture, predict_tiles
from deeplab_keras.io.progress import Progress
from deeplab_keras.prediction.inputs import Input
from deeplab_keras.prediction.results import Results

AHEAD = 64_000_000  # pixels that are read ahead, and pixels that wait to be written
TOGETHER = 8_000_000  # largest number of pixels of a batch; a larger image is a batch of one
# Images with more pixels are predicted in tiles. A whole image takes 450 to 600 bytes per pixel in
# full-width networks at any output stride, because the first layers are the largest. Sliding
# windows have bounded activations.
HUGE = {"whole": 12_500_000, "slide": 25_000_000}
TILE = (1024, 1024)
MAX_PROBABILITIES = 1 << 32  # bytes of an image's probabilities in float32

Picture = tuple[Input, Image.Image]


class ImageJob:
    """Predicts images and writes their results.

    Args:
        predictor: The predictor.
        results: Writes the results.
        config: The tiles and the number of threads.
        bar: The progress line.

    Attributes:
        done: The number of finished images, including failed ones.
        failures: The images that could not be read or predicted, each with its error.
    """

    def __init__(
        self, predictor: Predictor, results: Results, config: PredictConfig, bar: Progress
    ) -> None:
        self.predictor, self.results, self.config, self.bar = predictor, results, config, bar
        self.done, self.failures = 0, dict[str, str]()

    @property
    def failed(self) -> int:
        """The number of images that could not be read or predicted."""
        return len(self.failures)

    def run(self, inputs: Sequence[Input]) -> None:
        """Predicts all inputs; reports those that fail and continues.

        Raises:
            UserError: A result cannot be written, or the config suits no image.
        """
        with (
            ThreadPoolExecutor(self.config.threads) as readers,
            ThreadPoolExecutor(self.config.threads) as writers,
        ):
            writing: collections.deque[tuple[int, Future[None]]] = collections.deque()
            try:
                for batch in self._batches(self._read(inputs, readers)):
                    self._predict_and_write(batch, writers, writing)
                    batch.clear()  # frees a huge picture before the next one is read
                while writing:
                    self._finish(writing.popleft()[1])
            finally:
                readers.shutdown(cancel_futures=True)
                writers.shutdown(cancel_futures=True)

    def _predict_and_write(
        self,
        batch: list[Picture],
        writers: ThreadPoolExecutor,
        writing: collections.deque[tuple[int, Future[None]]],
    ) -> None:
        for item, image, labels, probabilities in self._predict(batch):
            write = writers.submit(self.results.write, item, image, labels, probabilities)
            writing.append((labels.size, write))
            while sum(size for size, _ in writing) > AHEAD:
                self._finish(writing.popleft()[1])

    def _finish(self, future: Future[None]) -> None:
        future.result()
        self._count()

    def _count(self) -> None:
        self.done += 1
        self.bar.update(self.done)

    def _fail(self, item: Input, error: UserError) -> None:
        text = str(error)
        named = text if text.startswith(item.path) else f"{item.path}: {text}"
        self.bar.write_error(f"error: {named}")
        self.failures[item.path] = named
        self._count()

    # --- Reading ---

    def _read(self, inputs: Iterable[Input], pool: ThreadPoolExecutor) -> Iterator[Picture]:
        """Yields the pictures in order, reading ahead up to `AHEAD` pixels or one picture."""
        waiting: collections.deque[tuple[Input, int, Future[Image.Image]]] = collections.deque()
        for item in inputs:
            size = _pixels(item.path)
            while waiting and (
                sum(pixels for _, pixels, _ in waiting) + size > AHEAD
                or len(waiting) > 16 * self.config.threads
            ):
                yield from self._opened(waiting)
            waiting.append((item, size, pool.submit(self._open, item)))
        while waiting:
            yield from self._opened(waiting)

    def _open(self, item: Input) -> Image.Image:
        self.results.files(item)  # refuses names without a result before any work
        return open_picture(item.path)

    def _opened(
        self, waiting: collections.deque[tuple[Input, int, Future[Image.Image]]]
    ) -> Iterator[Picture]:
        """Yields the first waiting picture without keeping a reference, so that it can be freed."""
        item, _, future = waiting.popleft()
        try:
            opened = [future.result()]
        except UserError as error:
            self._fail(item, error)
            return
        del future
        yield item, opened.pop()

    def _batches(self, pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
        """Yields batches of pictures of equal size."""
        groups: dict[tuple[int, int], list[Picture]] = {}
        for pair in pictures:
            size = pair[1].size
            groups.setdefault(size, []).append(pair)
            del pair
            if len(groups[size]) >= self._batch_size(size):
                yield groups.pop(size)
            while (
                sum(len(group) * width * height for (width, height), group in groups.items())
                > AHEAD
            ):
                yield groups.pop(
                    max(groups, key=lambda size: len(groups[size]) * size[0] * size[1])
                )
        while groups:
            yield groups.popitem()[1]

    def _batch_size(self, size: tuple[int, int]) -> int:
        if self._in_tiles(size):
            return 1
        return min(self.predictor.config.eval_batch_size, max(1, TOGETHER // (size[0] * size[1])))

    # --- Predicting ---

    def _predict(
        self, batch: list[Picture]
    ) -> Iterator[tuple[Input, Image.Image | None, np.ndarray, np.ndarray | None]]:
        picture = batch[0][1]
        try:
            self.results.check_size(picture.size)
            if self._in_tiles(picture.size):
                labels, probabilities = self._tiles(batch[0])[None], None
            else:
                images = np.stack(
                    [as_image(picture, self.predictor.network.channels) for _, picture in batch]
                )
                if self.results.with_probabilities:
                    self._check_probabilities(picture.size)
                    labels, probabilities = self.predictor.labels_and_probabilities(images)
                else:
                    labels, probabilities = self.predictor.predict_batch(images), None
        except UserError as error:
            if error.field:  # about an option, so it would fail for every image
                raise
            for item, _ in batch:
                self._fail(item, error)
            return
        for index, (item, image) in enumerate(batch):
            shown = image if self.results.with_image else None
            yield (
                item,
                shown,
                labels[index],
                None if probabilities is None else probabilities[index],
            )

    def _in_tiles(self, size: tuple[int, int]) -> bool:
        settings, (width, height) = self.predictor.config, size
        if self.config.tile_size:
            return height > self.config.tile_size[0] or width > self.config.tile_size[1]
        in_one_piece = (
            settings.inference not in HUGE
            or settings.eval_short_side
            or self.predictor.network.input_size
        )
        return not in_one_piece and width * height > HUGE[settings.inference]

    def _tiles(self, picture: Picture) -> np.ndarray:
        item, image = picture
        if self.results.with_probabilities:
            raise UserError(
                "probabilities are not available for an image in tiles; omit them from `outputs`, "
                "or give a larger `tile_size`"
            )
        height, width = self.config.tile_size or TILE
        if not self.config.tile_size:
            limit = HUGE[self.predictor.config.inference] / 1e6
            self.bar.write(
                f"{item.path}: {image.width}x{image.height}, above {limit:g} megapixels, is "
                f"predicted in tiles of {height}x{width}; see {render_options('`tile_size`')}"
            )
        bar = Progress(1, item.path, unit="tiles")

        def show(done: int, count: int) -> None:
            bar.total = count
            bar.update(done)

        return predict_tiles(
            self.predictor, image, (height, width), self.config.tile_overlap, on_tile=show
        )

    def _check_probabilities(self, size: tuple[int, int]) -> None:
        needed = 4 * size[0] * size[1] * self.predictor.network.num_classes
        if needed > MAX_PROBABILITIES:
            raise UserError(
                f"its probabilities take {needed / 2**30:.1f} GiB; omit them from `outputs`, or "
                "split the image"
            )


def _pixels(path: str) -> int:
    """Reads the number of pixels in an image's header; 0 if that fails, reported later."""
    try:
        with Image.open(path) as picture:
            return picture.width * picture.height
    except Exception:  # a damaged file can raise anything
        return 0
