"""Many images through a network: read ahead, of one size together, huge ones in tiles, written behind."""

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

AHEAD = 64_000_000  # pixels that are read, or wait to be written, beside those in work
TOGETHER = 8_000_000  # pixels of a batch at most, unless one image has more
# Pixels above which an image is predicted in tiles. In one piece full-width networks take 450 to
# 600 bytes a pixel, whatever their output stride: the largest layers are the first ones. Sliding
# windows have bounded activations.
HUGE = {"whole": 12_500_000, "slide": 25_000_000}
TILE = (1024, 1024)
MAX_PROBABILITIES = 1 << 32  # bytes of an image's probabilities in float32

Picture = tuple[Input, Image.Image]


class ImageJob:
    """Predicts images and writes their results.

    Args:
        predictor: the network, and how it is run.
        results: what is written.
        config: tiles and threads.
        bar: shows how far it is.

    Attributes:
        failed: how many images could not be read or predicted.
    """

    def __init__(
        self, predictor: Predictor, results: Results, config: PredictConfig, bar: Progress
    ) -> None:
        self.predictor, self.results, self.config, self.bar = predictor, results, config, bar
        self.done = self.failed = 0

    def run(self, inputs: Sequence[Input]) -> None:
        """Predicts all of them; one that fails is named, and the others go on.

        Raises:
            UserError: a result cannot be written, or the settings fit no image.
        """
        with (
            ThreadPoolExecutor(self.config.threads) as readers,
            ThreadPoolExecutor(self.config.threads) as writers,
        ):
            writing: collections.deque[tuple[int, Future[None]]] = collections.deque()
            try:
                for batch in self._batches(self._read(inputs, readers)):
                    self._predict_and_write(batch, writers, writing)
                    batch.clear()  # a huge picture goes before the next one is read
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
            writing.append(
                (
                    labels.size,
                    writers.submit(self.results.write, item, image, labels, probabilities),
                )
            )
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
        self.bar.write(f"error: {text if text.startswith(item.path) else f'{item.path}: {text}'}")
        self.failed += 1
        self._count()

    # --- Reading ---

    def _read(self, inputs: Iterable[Input], pool: ThreadPoolExecutor) -> Iterator[Picture]:
        """The pictures in order; so many are read ahead that those that wait have `AHEAD` pixels together, or one has more."""
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
        self.results.files(item)  # a name that gives no result is refused before the work
        return open_picture(item.path)

    def _opened(
        self, waiting: collections.deque[tuple[Input, int, Future[Image.Image]]]
    ) -> Iterator[Picture]:
        """The first one that waits; what is yielded is kept by nobody else, so that a huge picture goes when it is done."""
        item, _, future = waiting.popleft()
        try:
            opened = [future.result()]
        except UserError as error:
            self._fail(item, error)
            return
        del future
        yield item, opened.pop()

    def _batches(self, pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
        """Pictures of one size together."""
        groups: dict[tuple[int, int], list[Picture]] = {}
        for pair in pictures:
            size = pair[1].size
            groups.setdefault(size, []).append(pair)
            del pair
            if len(groups[size]) >= min(
                self.predictor.config.eval_batch_size, max(1, TOGETHER // (size[0] * size[1]))
            ):
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

    # --- Predicting ---

    def _predict(
        self, batch: list[Picture]
    ) -> Iterator[tuple[Input, Image.Image | None, np.ndarray, np.ndarray | None]]:
        picture = batch[0][1]
        try:
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
            if error.field:  # of the settings: no image would do
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
                "no probabilities of an image in tiles; leave them out of `outputs`, or give a "
                "larger `tile_size`"
            )
        height, width = self.config.tile_size or TILE
        if not self.config.tile_size:
            size, limit = (
                f"{image.width}x{image.height}",
                HUGE[self.predictor.config.inference] / 1e6,
            )
            self.bar.write(
                f"{item.path}: {size}, above {limit:g} megapixels, is predicted in tiles of "
                f"{height}x{width}; see {render_options('`tile_size`')}"
            )
        bar = Progress(1, item.path, unit="tiles")

        def show(done: int, count: int) -> None:
            bar.total = count
            bar.update(done)

        return predict_tiles(
            self.predictor, image, (height, width), self.config.tile_overlap, on_tile=show
        )

    def _check_probabilities(self, size: tuple[int, int]) -> None:
        if (
            needed := 4 * size[0] * size[1] * self.predictor.network.num_classes
        ) > MAX_PROBABILITIES:
            raise UserError(
                f"its probabilities take {needed / 2**30:.1f} GiB; leave them out of `outputs`, "
                "or cut it into parts"
            )


def _pixels(path: str) -> int:
    """Of an image file, by its header; 0 where that cannot be read, which is told later."""
    try:
        with Image.open(path) as picture:
            return picture.width * picture.height
    except Exception:  # a damaged file can raise anything
        return 0
