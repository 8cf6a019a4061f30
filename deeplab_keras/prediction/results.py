"""Output files of a prediction: label maps, pictures, probabilities and benchmark submissions."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from deeplab_keras.config import PredictConfig, UserError
from deeplab_keras.data.datasets.ade20k import ADE20K_151
from deeplab_keras.data.datasets.cityscapes import CITYSCAPES, CLASSES
from deeplab_keras.data.info import DatasetInfo, pascal_palette
from deeplab_keras.io.writing import remove_leftovers, replacing
from deeplab_keras.prediction.annotations import COCO_FILE, CocoAnnotations, write_labelme
from deeplab_keras.prediction.inputs import Input
from deeplab_keras.visualization import classes_in, colorize, legend, overlay, save_png_strips

IMAGE_OUTPUTS = ("labels", "color", "overlay")
VIDEO_OUTPUTS = ("overlay",)
CITYSCAPES_NAME = re.compile(r"(.+_\d+_\d+)(_leftImg8bit)?")
LARGEST_WITH_REGIONS = 1 << 26  # pixels of an image whose regions are searched
STRIP_ROWS = 512  # rows of a picture that are drawn and written at a time
LEGEND_GAP = 8  # white rows above the legend
CLASS_COUNTS = {"voc": 21, "ade20k": 150}


class Results:
    """Names and writes the output files of each input.

    Args:
        config: The outputs, their options and their folder.
        info: The classes of the model.
        palette: The palette of the pictures, see `visualization.class_colors`.

    Raises:
        UserError: The classes of the model are not those of the submission's benchmark, or an
            output needs a package that is not installed.
    """

    def __init__(self, config: PredictConfig, info: DatasetInfo, palette: str = "dataset") -> None:
        self.config, self.info, self.palette = config, info, palette
        self.folder = pathlib.Path(config.output).expanduser()
        self.outputs = config.outputs or IMAGE_OUTPUTS
        self._coco: CocoAnnotations | None = None
        if config.submission:
            SUBMISSIONS[config.submission].check(info)
        elif "coco" in self.outputs:
            self._coco = CocoAnnotations(info, config.coco_shapes, config.polygon_tolerance)

    @property
    def with_probabilities(self) -> bool:
        """Whether the outputs need probabilities."""
        return "probabilities" in self.outputs and not self.config.submission

    @property
    def with_image(self) -> bool:
        """Whether the outputs need the image."""
        return "overlay" in self.outputs and not self.config.submission

    def check_size(self, size: tuple[int, int]) -> None:
        """Checks that an image is not too large for its outputs.

        Raises:
            UserError: The search for its regions would take gigabytes.
        """
        with_regions = {"coco", "labelme"} & set(self.outputs) and not self.config.submission
        if with_regions and size[0] * size[1] > LARGEST_WITH_REGIONS:
            raise UserError(
                f"{size[0]}x{size[1]} pixels are too many for annotations; omit coco and labelme "
                "from `outputs`, or split the image"
            )

    @property
    def video_outputs(self) -> tuple[str, ...]:
        """The outputs of videos."""
        return self.config.outputs or VIDEO_OUTPUTS

    def files(self, item: Input) -> dict[str, pathlib.Path]:
        """Returns the path of each output.

        Raises:
            UserError: The input's name is not valid for the submission, or videos do not have this
                output.
        """
        if self.config.submission:
            if item.kind != "image":
                raise UserError(
                    f"`submission={self.config.submission}`: needs images; give `outputs` for a "
                    "video"
                )
            return {"submission": self.folder / SUBMISSIONS[self.config.submission].file(item)}
        if item.kind == "image":
            suffix = {"probabilities": "npz"}
            files = {
                kind: self.folder / f"{item.name}_{kind}.{suffix.get(kind, 'png')}"
                for kind in self.outputs
                if kind != "coco"  # one file for all images
            }
            if "labelme" in files:
                files["labelme"] = self.folder / f"{item.name}.json"
            return files
        for kind in self.video_outputs:
            if kind not in ("color", "overlay"):
                raise UserError(
                    f"`outputs={kind}`: not available for a video, {item.path}; give color, "
                    "overlay or both"
                )
        files = {kind: self.folder / f"{item.name}_{kind}.mp4" for kind in self.video_outputs}
        if self.config.legend:
            files["legend"] = self.folder / f"{item.name}_legend.png"
        return files

    def check(self, inputs: Sequence[Input]) -> list[Input]:
        """Returns the inputs to predict, after checking for existing results.

        Removes temporary files of an earlier call that was killed.

        Raises:
            UserError: A result would replace an input, or an existing result without `overwrite`,
                or two inputs would have the same result.
        """
        sources = {_real(item.path) for item in inputs if item.kind != "camera"}
        left: list[Input] = []
        there: list[pathlib.Path] = []
        targets: dict[pathlib.Path, str] = {}
        if self._coco:
            path = _real(self.folder / COCO_FILE)
            targets[path] = "`outputs='coco'`"
            there += [path] if path.exists() else []
        for item in inputs:
            files = [_real(path) for path in self._files_or_none(item)]
            if taken := sources.intersection(files):
                place = f"`output={self.config.output}`"
                raise UserError(
                    f"{place}: {taken.pop()} is an input and would be replaced; give another folder"
                )
            for path in files:
                if path in targets:
                    raise UserError(
                        f"{targets[path]} and {item.path} would both be written to {path.name}; "
                        "predict them in two calls"
                    )
                targets[path] = item.path
            existing = [path for path in files if path.exists()]
            there += existing
            if not files or len(existing) < len(files):
                left.append(item)
        remove_leftovers(targets)
        if self.config.skip_existing:
            return left
        if there and not self.config.overwrite:
            more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
            raise UserError(
                f"`output={self.config.output}`: {there[0].name}{more} exists; give `overwrite` to "
                "replace results, `skip_existing` to skip inputs that have them, or another folder"
            )
        return list(inputs)

    def _files_or_none(self, item: Input) -> Iterable[pathlib.Path]:
        """Returns the paths, or none for an invalid name, which is reported later."""
        try:
            return self.files(item).values()
        except UserError:
            return []

    def write(
        self,
        item: Input,
        image: Image.Image | None,
        labels: np.ndarray,
        probabilities: np.ndarray | None,
    ) -> None:
        """Writes all outputs of an image, each atomically.

        Args:
            item: The input.
            image: The image in mode RGB, if `with_image`.
            labels: `[height, width]`.
            probabilities: `[height, width, num_classes]`, if `with_probabilities`.

        Raises:
            UserError: A file cannot be written.
        """
        if self._coco:
            self._coco.add(item, labels)
        for kind, path in self.files(item).items():
            if kind == "labelme":
                write_labelme(path, item, labels, self.info, self.config.polygon_tolerance)
            elif kind == "submission":
                picture = SUBMISSIONS[self.config.submission].encode(labels, self.info)
                with replacing(path) as aside:
                    picture.save(aside, format="PNG")
            elif kind == "probabilities":
                assert probabilities is not None
                # An array of fixed-width text does not need pickle to load.
                names = np.array(self.info.class_names)
                with replacing(path) as aside, open(aside, "wb") as file:
                    np.savez_compressed(
                        file,
                        probabilities=probabilities.astype(self.config.probability_type),
                        class_names=names,
                    )
            else:
                save_png_strips(path, self._strips(kind, image, labels))

    def finish(self) -> None:
        """Writes the file that has the results of all images, if there is one.

        Raises:
            UserError: The file cannot be written.
        """
        if self._coco:
            self._coco.write(self.folder / COCO_FILE)

    def picture(self, kind: str, image: np.ndarray | None, labels: np.ndarray) -> np.ndarray:
        """Draws the output "color" or "overlay", uint8 RGB `[height, width, 3]`."""
        if kind == "color":
            return colorize(labels, self.info, self.palette)
        assert image is not None
        return overlay(image, labels, self.info, palette=self.palette)

    def _strips(
        self, kind: str, image: Image.Image | None, labels: np.ndarray
    ) -> Iterator[np.ndarray]:
        """Yields the rows of the output "labels", "color" or "overlay", with its legend."""
        height, width = labels.shape
        below = None
        if kind == "overlay" and self.config.legend:
            below = legend(self.info, classes_in(labels).tolist(), width, palette=self.palette)
        # A legend with a long name is wider than a small image.
        full_width = width if below is None else below.shape[1]
        for top in range(0, height, STRIP_ROWS):
            part = labels[top : top + STRIP_ROWS]
            if kind == "labels":
                yield part
                continue
            shown = np.asarray(image.crop((0, top, width, top + len(part)))) if image else None
            yield _widened(self.picture(kind, shown, part), full_width)
        if below is not None:
            yield np.full((LEGEND_GAP, full_width, 3), 255, np.uint8)
            yield below


def _real(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a path without links. `Path.resolve` raises an error for a loop of links."""
    return pathlib.Path(os.path.realpath(path))


def _widened(picture: np.ndarray, width: int) -> np.ndarray:
    """Pads a picture with white on the right."""
    return np.pad(picture, [(0, 0), (0, width - picture.shape[1]), (0, 0)], constant_values=255)


# --- Submissions ---


@dataclasses.dataclass(frozen=True)
class Submission:
    """The format of the files that a benchmark's server accepts.

    Attributes:
        check: Function that raises UserError if the model's classes are not the benchmark's.
        file: Function that returns the path of an input's file, relative to the output folder.
        encode: Function from a label map to a picture.
    """

    check: Callable[[DatasetInfo], None]
    file: Callable[[Input], str]
    encode: Callable[[np.ndarray, DatasetInfo], Image.Image]


def _check_count(name: str) -> Callable[[DatasetInfo], None]:
    def check(info: DatasetInfo) -> None:
        if info.num_classes != CLASS_COUNTS[name] and not (
            name == "ade20k" and info.class_names == ADE20K_151.class_names
        ):
            raise UserError(
                f"`submission={name}`: the model has the {info.num_classes} classes of "
                f"{info.name!r}, and the benchmark {CLASS_COUNTS[name]}; give a model that was "
                "trained on it"
            )

    return check


def _check_cityscapes(info: DatasetInfo) -> None:
    if info.class_names != CITYSCAPES.class_names:
        raise UserError(
            f"`submission='cityscapes'`: the model has the classes of {info.name!r}: "
            f"{', '.join(info.class_names[:3])}, ..., and the server expects "
            f"{', '.join(CITYSCAPES.class_names[:3])}, ...; give a model that was trained on "
            "Cityscapes"
        )


def _cityscapes_file(item: Input) -> str:
    """Returns a name in a single folder; the server looks for one file CITY_SEQUENCE_FRAME*.png."""
    name = item.name.rpartition("/")[2]
    match = CITYSCAPES_NAME.fullmatch(name)
    if not match:
        raise UserError(
            "`submission='cityscapes'`: its name must be CITY_SEQUENCE_FRAME_leftImg8bit, by which "
            "the server identifies it"
        )
    return f"{match[1]}_pred_labelIds.png"


def _label_ids(labels: np.ndarray, info: DatasetInfo) -> Image.Image:
    table = np.array([label_id for _, label_id, _ in CLASSES], np.uint8)
    return Image.fromarray(table[labels])


def _with_palette(labels: np.ndarray, info: DatasetInfo) -> Image.Image:
    picture = Image.fromarray(labels)
    picture.putpalette(np.array(pascal_palette(256), np.uint8).tobytes())
    return picture


def _from_one(labels: np.ndarray, info: DatasetInfo) -> Image.Image:
    # 1 for the official DeepLab's 151 classes, which start with "something else".
    other = info.num_classes - CLASS_COUNTS["ade20k"]
    return Image.fromarray(labels + np.uint8(1 - other))


SUBMISSIONS = {
    # The ids of cityscapesScripts' labels.py, not the 19 training ids.
    "cityscapes": Submission(_check_cityscapes, _cityscapes_file, _label_ids),
    # The folder layout of the devkit. The archive to upload is made by tar czf results.tgz results.
    "voc": Submission(
        _check_count("voc"),
        lambda item: (
            f"results/VOC2012/Segmentation/comp6_test_cls/{item.name.rpartition('/')[2]}.png"
        ),
        _with_palette,
    ),
    # Classes start at 1; 0 is "something else".
    "ade20k": Submission(
        _check_count("ade20k"), lambda item: f"{item.name.rpartition('/')[2]}.png", _from_one
    ),
}
