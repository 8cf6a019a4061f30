"""Predictions as annotations for labeling tools: COCO's and labelme's JSON files."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import numpy as np

from deeplab_keras.data.annotations.exports import BACKGROUND_NAMES
from deeplab_keras.data.annotations.rendering import compress_counts, require_pycocotools
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.io.writing import write_text
from deeplab_keras.prediction.inputs import Input
from deeplab_keras.prediction.outlines import find_regions, simplify, trace, with_holes

COCO_FILE = "annotations_coco.json"


def image_name(item: Input) -> str:
    """Returns the path of an input relative to the folder of the inputs, with its suffix."""
    suffix = pathlib.PurePath(item.path).suffix
    return item.name if item.name.endswith(suffix) else item.name + suffix


def _is_background(info: DatasetInfo, label: int) -> bool:
    return label == 0 and info.class_names[0].lower() in BACKGROUND_NAMES


class CocoAnnotations:
    """Collects the regions of all images for a COCO file.

    Each connected region is an annotation. The background of a model is none. Annotations of an
    image are sorted by area, so that drawing them in order restores its label map.

    Args:
        info: The classes.
        shapes: "rle": exact run lengths. "polygons": simplified outlines.
        tolerance: The largest distance of a polygon from the outline, in pixels.

    Raises:
        UserError: Run lengths need a package that is not installed.
    """

    def __init__(self, info: DatasetInfo, shapes: str, tolerance: float) -> None:
        self.info, self.shapes, self.tolerance = info, shapes, tolerance
        self._found: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
        if shapes == "rle":
            require_pycocotools()

    def add(self, item: Input, labels: np.ndarray) -> None:
        """Adds an image with its label map."""
        height, width = labels.shape
        regions, numbers = find_regions(labels)
        outlines = trace(numbers) if self.shapes == "polygons" else []
        first = 0 if _is_background(self.info, 0) else 1
        annotations = []
        for region in sorted(regions, key=lambda region: -region.area):
            if _is_background(self.info, region.label):
                continue
            if self.shapes == "polygons":
                lines = [simplify(line, self.tolerance) for line, _ in outlines[region.number]]
                segmentation: Any = [with_holes(lines).ravel().tolist()]
            else:
                text = compress_counts(region.counts, (height, width))
                segmentation = {"size": [height, width], "counts": text}
            annotations.append(
                {
                    "category_id": region.label + first,
                    "segmentation": segmentation,
                    "area": region.area,
                    "bbox": list(region.box),
                    "iscrowd": 0,
                }
            )
        image = {"file_name": image_name(item), "width": width, "height": height}
        self._found[item.name] = image, annotations

    def write(self, path: pathlib.Path) -> None:
        """Writes the file, with the images sorted by name.

        Raises:
            UserError: The file cannot be written.
        """
        first = 0 if _is_background(self.info, 0) else 1
        categories = [
            {"id": label + first, "name": name, "supercategory": ""}
            for label, name in enumerate(self.info.class_names)
            if not _is_background(self.info, label)
        ]
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for name in sorted(self._found):
            image, found = self._found[name]
            images.append({"id": len(images) + 1, **image})
            for annotation in found:
                identity = {"id": len(annotations) + 1, "image_id": len(images)}
                annotations.append(identity | annotation)
        content = {"images": images, "categories": categories, "annotations": annotations}
        write_text(path, json.dumps(content) + "\n")


def write_labelme(
    path: pathlib.Path, item: Input, labels: np.ndarray, info: DatasetInfo, tolerance: float
) -> None:
    """Writes the file of an image for labelme, with a polygon per connected region.

    labelme draws polygons with their outline, so that they go through the outermost pixels.

    Args:
        path: The file.
        item: The image.
        labels: Its label map.
        info: The classes.
        tolerance: The largest distance of a polygon from the outline, in pixels.

    Raises:
        UserError: The file cannot be written.
    """
    height, width = labels.shape
    regions, numbers = find_regions(labels)
    outlines = trace(numbers)
    shapes = []
    for region in sorted(regions, key=lambda region: -region.area):
        if _is_background(info, region.label):
            continue
        lines = [simplify(line, tolerance) for _, line in outlines[region.number]]
        shapes.append(
            {
                "label": info.class_names[region.label],
                "points": with_holes(lines).tolist(),
                "group_id": None,
                "shape_type": "polygon",
                "flags": {},
            }
        )
    image = os.path.relpath(item.path, path.parent).replace(os.sep, "/")
    content = {
        "version": "5.0.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    write_text(path, json.dumps(content) + "\n")
