"""What a model scored: the report, its JSON and its tables."""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import json
import os
from typing import Any

import numpy as np

from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.evaluation.metrics import Scores
from deeplab_keras.io.writing import write_text

BAR_WIDTH = 20


@dataclasses.dataclass(frozen=True)
class Report:
    """What a model scored; the keys of metrics.json.

    Attributes:
        miou: mean IoU over the classes that are in the labels or the predictions.
        pixel_accuracy: share of the pixels with the right class.
        mean_accuracy: mean recall over the classes in the labels.
        frequency_weighted_iou: mean IoU weighted by the classes' shares of the labelled pixels.
        per_class_iou: class name -> IoU; None for a class that is in neither the labels nor the
            predictions.
        confusion_matrix: pixel counts, rows: label, columns: prediction.
        images: number of images.
        model: name of the model.
        dataset: name of the dataset.
        split: name of the split.
        boundary_iou: mean IoU of the classes' outlines, see `detail`; None where it was not
            measured, as below.
        per_class_boundary_iou: class name -> IoU of its outlines; None for a class without.
        expected_calibration_error: mean distance between confidence and accuracy, 0..1.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    per_class_iou: dict[str, float | None]
    confusion_matrix: tuple[tuple[int, ...], ...]
    images: int
    model: str = ""
    dataset: str = ""
    split: str = ""
    boundary_iou: float | None = None
    per_class_boundary_iou: dict[str, float | None] | None = None
    expected_calibration_error: float | None = None

    @classmethod
    def from_matrix(
        cls, matrix: np.ndarray, info: DatasetInfo, images: int, *, model: str = "", split: str = ""
    ) -> Report:
        """The report of a confusion matrix, int `[num_classes, num_classes]`."""
        scores = Scores.from_matrix(matrix)
        return cls(
            miou=scores.miou,
            pixel_accuracy=scores.pixel_accuracy,
            mean_accuracy=scores.mean_accuracy,
            frequency_weighted_iou=scores.frequency_weighted_iou,
            per_class_iou=dict(zip(_distinct(info.class_names), scores.per_class_iou, strict=True)),
            confusion_matrix=tuple(tuple(row) for row in matrix.tolist()),
            images=images,
            model=model,
            dataset=info.name,
            split=split,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what was not measured is left out."""
        values = {
            **dataclasses.asdict(self),
            "confusion_matrix": [list(row) for row in self.confusion_matrix],
        }
        return {name: value for name, value in values.items() if value is not None}

    def to_json(self) -> str:
        """JSON text with one line a row of the confusion matrix."""
        rows = ",\n    ".join(json.dumps(row) for row in self.confusion_matrix)
        text = json.dumps({**self.to_dict(), "confusion_matrix": None}, indent=2)
        return (
            text.replace('"confusion_matrix": null', f'"confusion_matrix": [\n    {rows}\n  ]')
            + "\n"
        )

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The inverse of `to_json`; other keys are left out, as a checkpoint's metrics.json holds some."""
        names = [field.name for field in dataclasses.fields(cls)]
        values = {name: value for name, value in json.loads(text).items() if name in names}
        return cls(**{**values, "confusion_matrix": tuple(map(tuple, values["confusion_matrix"]))})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file, complete or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        write_text(path, self.to_json())

    def classes(self) -> list[dict[str, Any]]:
        """Each class with its scores in 0..1 (None: not defined), and its share of the labelled pixels."""
        matrix = np.array(self.confusion_matrix, np.float64)
        hits, labelled, predicted = np.diagonal(matrix), matrix.sum(1), matrix.sum(0)
        rows = []
        for i, (name, iou) in enumerate(self.per_class_iou.items()):
            row = {
                "class": name,
                "iou": iou,
                "precision": _share(hits[i], predicted[i]),
                "recall": _share(hits[i], labelled[i]),
                "pixels": _share(labelled[i], matrix.sum()),
            }
            if self.per_class_boundary_iou is not None:
                row["boundary_iou"] = self.per_class_boundary_iou[name]
            rows.append(row)
        return rows

    def totals(self) -> dict[str, float]:
        """The scores over all classes, by what people call them, in 0..1."""
        totals = {
            "mIoU": self.miou,
            "pixel accuracy": self.pixel_accuracy,
            "mean accuracy": self.mean_accuracy,
            "frequency-weighted IoU": self.frequency_weighted_iou,
            "boundary IoU": self.boundary_iou,
            "expected calibration error": self.expected_calibration_error,
        }
        return {name: value for name, value in totals.items() if value is not None}

    def about(self) -> str:
        """What was measured on what, in a line."""
        return ", ".join(
            filter(
                None,
                [
                    f"{self.images} {'image' if self.images == 1 else 'images'}",
                    self.dataset,
                    self.split,
                    self.model,
                ],
            )
        )

    def confusions(self, count: int = 10) -> list[tuple[str, str, float, float]]:
        """The largest confusions: label, prediction, their share of the label's pixels and of all pixels."""
        matrix = np.array(self.confusion_matrix, np.float64)
        labelled, total = matrix.sum(1), matrix.sum()
        np.fill_diagonal(matrix, 0)
        names = list(self.per_class_iou)
        found = []
        for cell in np.argsort(-matrix, axis=None)[:count]:
            row, column = divmod(int(cell), len(matrix))
            if matrix[row, column]:
                found.append(
                    (
                        names[row],
                        names[column],
                        matrix[row, column] / labelled[row],
                        matrix[row, column] / total,
                    )
                )
        return found

    def table(self) -> str:
        """All scores in per cent as text, one class a line."""
        width = max(len("class"), *(min(len(name), 32) for name in self.per_class_iou))
        lines = [
            f"{'class':<{width}} {'IoU':>6} {'precision':>9} {'recall':>6} {'pixels':>6}   all in "
            "per cent"
        ]
        for row in self.classes():
            values = [row[key] for key in ("iou", "precision", "recall", "pixels")]
            cells = " ".join(
                _percent(value, size) for value, size in zip(values, (6, 9, 6, 6), strict=True)
            )
            lines.append(
                f"{row['class'][:32]:<{width}} {cells}   "
                f"{'#' * round(BAR_WIDTH * (row['iou'] or 0))}".rstrip()
            )
        summary = ", ".join(f"{name} {100 * value:.2f}" for name, value in self.totals().items())
        return "\n".join([self.about(), *lines, summary]) + "\n"

    def to_csv(self) -> str:
        """One class a line, in 0..1; empty where a score is not defined."""
        rows = self.classes()
        lines = [list(rows[0]), *([row[key] for key in rows[0]] for row in rows)]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        return text.getvalue()

    def to_markdown(self) -> str:
        """The table for a page of documentation, in per cent."""
        rows = self.classes()
        names = {
            "class": "class",
            "iou": "IoU",
            "pixels": "share of pixels",
            "boundary_iou": "boundary IoU",
        }
        lines = [
            "| " + " | ".join(names.get(key, key) for key in rows[0]) + " |",
            "|---" + "|--:" * (len(rows[0]) - 1) + "|",
        ]
        for row in rows:
            cells = [
                row["class"].replace("|", "\\|"),
                *(_percent(value, 0) for key, value in row.items() if key != "class"),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        totals = ", ".join(f"{name} {100 * value:.2f}" for name, value in self.totals().items())
        return "\n".join([f"{self.about()}: {totals}", "", *lines]) + "\n"


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _percent(value: float | None, width: int) -> str:
    return "-".rjust(width) if value is None else f"{100 * value:{width}.2f}"


def _distinct(names: tuple[str, ...]) -> list[str]:
    """The class names; one that stands there twice (ADE20k's short names) gets its id behind it."""
    counts = collections.Counter(names)
    return [f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names)]
