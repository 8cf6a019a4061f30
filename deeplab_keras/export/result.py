"""The result of an export, as data and as the line printed for it."""

from __future__ import annotations

import dataclasses
import pathlib

from deeplab_keras.config import render_options
from deeplab_keras.export import tflite
from deeplab_keras.export.calibration import Calibration
from deeplab_keras.export.check import FileAgreement, percent
from deeplab_keras.export.delegates import Verdict

# An 8-bit file gets a warning if it loses more points of mIoU or, without labels, if a smaller
# share of labels agrees with Keras.
NOTABLE_MIOU_LOSS, NOTABLE_AGREEMENT = 1.0, 0.98
LABELS_ONLY = "MediaPipe: needs scores instead of labels; export with `output='logits'`"
MANY = 12  # layers listed in the printed line


def fitting_size(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Returns a size with the aspect ratio of `shape` and about as many pixels as `size`.

    Its sides have the same remainders modulo 8 as those of `size`.
    """
    area, (height, width) = size[0] * size[1], shape
    ideal = ((area * height / width) ** 0.5, (area * width / height) ** 0.5)
    rows, columns = (
        max(8, 8 * round((side - given % 8) / 8)) + given % 8
        for side, given in zip(ideal, size, strict=True)
    )
    return rows, columns


@dataclasses.dataclass(frozen=True)
class ExportedFile:
    """An exported file, and its comparison with Keras on the same images.

    `str()` is the line that the export prints, and `report()` the lines that follow it.

    Attributes:
        path: The file, or the folder of a SavedModel.
        kind: The format.
        bytes: The size of the file or folder.
        compared: The comparison with Keras.
        milliseconds: The median time per image in the format's runtime on this machine.
        operators: For a TFLite file, the number of occurrences of each operator.
        float_layers: For a mixed file, the layers in float32.
        verdicts: For a TFLite file, what each delegate does with it.
        input_size: The (height, width) of input images, or `None` for any size.
        calibration: The temperature that was folded into the network, and its effect on Keras.
        outputs: The names of its outputs.
    """

    path: pathlib.Path
    kind: str
    bytes: int
    compared: FileAgreement
    milliseconds: float = 0.0
    operators: dict[str, int] = dataclasses.field(default_factory=dict)
    float_layers: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    input_size: tuple[int, int] | None = None
    calibration: Calibration | None = None
    outputs: tuple[str, ...] = ()

    @property
    def max_logit_difference(self) -> float:
        """The largest absolute difference of a logit."""
        return self.compared.max_logit_difference

    @property
    def label_agreement(self) -> float:
        """The share of pixels with the same label, 0..1."""
        return self.compared.label_agreement

    @property
    def classes(self) -> int:
        """The number of classes that Keras predicted; with only one, the agreement means little."""
        return self.compared.classes

    @property
    def loses_accuracy(self) -> bool:
        """Whether the loss is larger than rounding at the borders of objects explains."""
        lost = self.compared.miou_loss
        if lost is None:
            return self.label_agreement < NOTABLE_AGREEMENT
        return lost > NOTABLE_MIOU_LOSS

    def __str__(self) -> str:
        text = (
            f"{self.path}: {self.bytes / 1e6:.2f} MB, {self.milliseconds:.3g} ms per image, "
            f"{self._agreement()}, largest logit difference {self.max_logit_difference:.2g}"
        )
        if self.compared.miou is not None and self.compared.keras_miou is not None:
            text += (
                f", mIoU {100 * self.compared.miou:.2f} (Keras "
                f"{100 * self.compared.keras_miou:.2f}) on {self.compared.images} images"
            )
        text += self._at_own_size()
        if self.calibration:
            text += f"; {self.calibration}"
        if self.float_layers:
            more = ", ..." if len(self.float_layers) > MANY else ""
            text += (
                f"; {len(self.float_layers)} layers in float: "
                f"{', '.join(self.float_layers[:MANY])}{more}"
            )
        if self.kind == "tflite_int8" and self.loses_accuracy:
            text += (
                "; warning: 8 bits lose accuracy; `formats='tflite_mixed'` keeps the most "
                "sensitive layers in float, and `train.py` --quantization_aware trains the network "
                "for 8 bits"
            )
        unwanted = {
            name: count
            for name, count in self.operators.items()
            if name.startswith(tflite.UNWANTED)
        }
        slow = "".join(f"; slow operator: {count} x {name}" for name, count in unwanted.items())
        return render_options(text + slow)

    def _agreement(self) -> str:
        """How many labels agree, and for outputs of the head's size how they were enlarged."""
        compared, of_classes = self.compared, f"({self.classes} classes)"
        text = f"{percent(self.label_agreement)} of labels agree with Keras"
        if compared.output_size is None:
            return f"{text} {of_classes}"
        size = "{}x{}".format(*compared.output_size)
        if compared.at_head is None:
            return f"{text} {of_classes} after bilinear enlargement of the {size} logits"
        return (
            f"{percent(compared.at_head)} of the {size} labels agree with Keras {of_classes}, "
            f"{percent(self.label_agreement)} after enlargement by nearest neighbor"
        )

    def _at_own_size(self) -> str:
        """The comparison at the images' own sizes, with a warning if the file stretches them."""
        own, compared = self.compared.own_size, self.compared
        if own is None:
            return ""
        if own.miou is not None and own.keras_miou is not None:
            result = f"mIoU {100 * own.miou:.2f}"
            text = f"; at the images' own size {result} (Keras {100 * own.keras_miou:.2f})"
            before = f"{100 * own.keras_miou:.2f}"
        else:
            result = f"{percent(own.label_agreement)} of labels agree"
            text = f"; at the images' own size {result} with Keras"
            before = percent(compared.label_agreement)
        if not own.stretched or self.input_size is None:
            return text
        (height, width), (rows, columns) = own.example, fitting_size(own.example, self.input_size)
        return (
            f"{text}; warning: `input_size={self.input_size[0]},{self.input_size[1]}` changes the "
            f"aspect ratio of {own.stretched} of {own.images} images (most are {height}x{width}): "
            f"{result} instead of {before}; `input_size={rows},{columns}` keeps it, and so does "
            "`resize='letterbox'`"
        )

    def report(self) -> str:
        """Returns a TFLite file's operators and what delegates do with it, else an empty string."""
        if not self.operators:
            return ""
        counts = ", ".join(f"{count} {name}" for name, count in self.operators.items())
        lines = [f"{sum(self.operators.values())} operators: {counts}", *map(str, self.verdicts)]
        if self.outputs == ("labels",):
            lines.append(render_options(LABELS_ONLY))
        return "".join(f"\n  {line}" for line in lines)
