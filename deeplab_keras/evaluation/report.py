"""The report of an evaluation, as JSON, CSV, Markdown and text."""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import json
import os
import re
from typing import Any

import numpy as np

from deeplab_keras.config.commands import render_pages
from deeplab_keras.data.info import RARE, DatasetInfo
from deeplab_keras.evaluation.metrics import Scores
from deeplab_keras.io.writing import write_text

BAR_WIDTH = 20


@dataclasses.dataclass(frozen=True)
class Report:
    """The scores of a model on a dataset. The attributes are the keys of metrics.json.

    Attributes:
        miou: The mean IoU over the classes in the labels or predictions.
        pixel_accuracy: The share of pixels with the correct class.
        mean_accuracy: The mean recall over the classes in the labels.
        frequency_weighted_iou: The mean IoU weighted by the classes' shares of the labeled pixels.
        per_class_iou: The IoU by class name, `None` for a class in neither the labels nor the
            predictions.
        confusion_matrix: Pixel counts, with labels as rows and predictions as columns.
        images: The number of images.
        model: The name of the model.
        dataset: The name of the dataset.
        split: The name of the split.
        boundary_iou: The mean IoU of the classes' boundaries, see `evaluation/detail.py`; `None` if
            not measured, as for the next two.
        per_class_boundary_iou: The boundary IoU by class name, `None` for a class without
            boundaries.
        expected_calibration_error: The mean distance between confidence and accuracy, 0..1.

    Example:
        >>> source = dk.open_dataset(dk.DataConfig(dataset="synthetic"), "val")
        >>> report = dk.evaluate(dk.load_model("runs/demo"), source, limit=4, progress=False)
        >>> report.save("metrics.json")
        >>> dk.Report.from_json(report.to_json()) == report
        True
        >>> print(report.to_csv().splitlines()[0])
        class,iou,precision,recall,pixels
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
        """Makes the report of a confusion matrix, int `[num_classes, num_classes]`."""
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
        """Returns the scores as JSON values, without those that were not measured."""
        values = {
            **dataclasses.asdict(self),
            "confusion_matrix": [list(row) for row in self.confusion_matrix],
        }
        return {name: value for name, value in values.items() if value is not None}

    def to_json(self) -> str:
        """Returns the scores as JSON, with one line per row of the confusion matrix."""
        rows = ",\n    ".join(json.dumps(row) for row in self.confusion_matrix)
        text = json.dumps({**self.to_dict(), "confusion_matrix": None}, indent=2)
        return (
            text.replace('"confusion_matrix": null', f'"confusion_matrix": [\n    {rows}\n  ]')
            + "\n"
        )

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Reads the result of `to_json`; ignores other keys, as in a checkpoint's metrics.json."""
        names = [field.name for field in dataclasses.fields(cls)]
        values = {name: value for name, value in json.loads(text).items() if name in names}
        return cls(**{**values, "confusion_matrix": tuple(map(tuple, values["confusion_matrix"]))})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file atomically.

        Raises:
            UserError: The file cannot be written.
        """
        write_text(path, self.to_json())

    def classes(self) -> list[dict[str, Any]]:
        """Returns the scores of each class, in 0..1 or `None`, and its share of labeled pixels."""
        matrix = np.array(self.confusion_matrix, np.float64)
        hits, labeled, predicted = np.diagonal(matrix), matrix.sum(1), matrix.sum(0)
        rows = []
        for i, (name, iou) in enumerate(self.per_class_iou.items()):
            row = {
                "class": name,
                "iou": iou,
                "precision": _share(hits[i], predicted[i]),
                "recall": _share(hits[i], labeled[i]),
                "pixels": _share(labeled[i], matrix.sum()),
            }
            if self.per_class_boundary_iou is not None:
                row["boundary_iou"] = self.per_class_boundary_iou[name]
            rows.append(row)
        return rows

    def totals(self) -> dict[str, float]:
        """Returns the scores over all classes, in 0..1, by their display names."""
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
        """Returns one line with the number of images, dataset, split and model."""
        images = f"{self.images} {'image' if self.images == 1 else 'images'}"
        return ", ".join(filter(None, [images, self.dataset, self.split, self.model]))

    def confusions(self, count: int = 10) -> list[tuple[str, str, float, float]]:
        """Returns the largest confusions.

        Returns:
            Tuples of label, prediction, share of the label's pixels, and share of all pixels.
        """
        matrix = np.array(self.confusion_matrix, np.float64)
        labeled, total = matrix.sum(1), matrix.sum()
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
                        matrix[row, column] / labeled[row],
                        matrix[row, column] / total,
                    )
                )
        return found

    def advice(self) -> str:
        """Returns one line about rare classes with a low IoU, or "" if there are none.

        These are classes with less than 5 % of the labeled pixels and less than half of the mIoU.
        """
        weak = [
            row["class"]
            for row in self.classes()
            if 0 < (row["pixels"] or 0) < RARE and (row["iou"] or 0) < self.miou / 2
        ]
        if not weak:
            return ""
        more = f" and {len(weak) - 5} more" if len(weak) > 5 else ""
        return render_pages(
            f"rare classes with a low IoU: {', '.join(weak[:5])}{more}; what helps: "
            "docs/your_own_dataset.md#rare-classes"
        )

    def table(self) -> str:
        """Returns all scores in percent as text, one line per class, and advice if there is any."""
        width = max(len("class"), *(min(len(name), 32) for name in self.per_class_iou))
        lines = [
            f"{'class':<{width}} {'IoU':>6} {'precision':>9} {'recall':>6} {'pixels':>6}   all in "
            "percent"
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
        advice = [f"advice: {self.advice()}"] if self.advice() else []
        return "\n".join([self.about(), *lines, summary, *advice]) + "\n"

    def to_csv(self) -> str:
        """Returns CSV text with one line per class, in 0..1; undefined scores are empty."""
        rows = self.classes()
        lines = [list(rows[0]), *([row[key] for key in rows[0]] for row in rows)]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        return text.getvalue()

    def to_markdown(self) -> str:
        """Returns a Markdown table, in percent."""
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
                escape_markdown(row["class"]),
                *(_percent(value, 0) for key, value in row.items() if key != "class"),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        totals = ", ".join(f"{name} {100 * value:.2f}" for name, value in self.totals().items())
        return "\n".join([f"{escape_markdown(self.about())}: {totals}", "", *lines]) + "\n"


def escape_markdown(text: str) -> str:
    """Returns a name as Markdown that shows it unchanged, on one line, also in a table."""
    # Markdown ignores underscores inside a word, so they need no backslash.
    special = r"[\\`*\[\]<>|~&#!:@$]|(?<![^\W_])_|_(?![^\W_])"
    return re.sub(special, r"\\\g<0>", " ".join(text.split()))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _percent(value: float | None, width: int) -> str:
    return "-".rjust(width) if value is None else f"{100 * value:{width}.2f}"


def _distinct(names: tuple[str, ...]) -> list[str]:
    """Returns the class names, with the id added to duplicates (as in ADE20k's short names)."""
    counts = collections.Counter(names)
    return [f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names)]
