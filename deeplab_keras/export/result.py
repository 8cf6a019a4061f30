"""What an export has written, as data and as the line that is printed for it."""

from __future__ import annotations

import dataclasses
import pathlib

from deeplab_keras.config import render_options
from deeplab_keras.export import tflite
from deeplab_keras.export.check import Comparison, percent
from deeplab_keras.export.delegates import Verdict

# Where an 8-bit file is said to lose accuracy: points of mIoU, or without labels the share of
# pixels with Keras' label.
NOTABLE_MIOU_LOSS, NOTABLE_AGREEMENT = 1.0, 0.98
MANY = 12  # names of layers that a line can hold


def fitting_size(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """About as many pixels as `size` at the aspect ratio of `shape`, sides a multiple of 8 plus what they are in `size`."""
    area, (height, width) = size[0] * size[1], shape
    ideal = ((area * height / width) ** 0.5, (area * width / height) ** 0.5)
    rows, columns = (
        max(8, 8 * round((side - given % 8) / 8)) + given % 8
        for side, given in zip(ideal, size, strict=True)
    )
    return rows, columns


@dataclasses.dataclass(frozen=True)
class ExportedFile:
    """What was written, and how it did beside Keras on the same images.

    Attributes:
        path: the file, or the folder of a SavedModel.
        kind: the format.
        bytes: its size.
        compared: how it did.
        milliseconds: an image took, median, in the runtime on this machine.
        operators: of a TFLite file: operator -> how often it stands there.
        float_layers: of a mixed file: the layers that stayed in float32.
        verdicts: of a TFLite file: what each delegate makes of it.
        input_size: (height, width) of the images that the file takes; None: any.
    """

    path: pathlib.Path
    kind: str
    bytes: int
    compared: Comparison
    milliseconds: float = 0.0
    operators: dict[str, int] = dataclasses.field(default_factory=dict)
    float_layers: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    input_size: tuple[int, int] | None = None

    @property
    def max_logit_difference(self) -> float:
        """Largest absolute difference of a logit."""
        return self.compared.max_logit_difference

    @property
    def label_agreement(self) -> float:
        """Share of the pixels with the same label, 0..1."""
        return self.compared.label_agreement

    @property
    def classes(self) -> int:
        """How many different labels Keras gave on these images; of one class alone an agreement says little."""
        return self.compared.classes

    @property
    def loses_accuracy(self) -> bool:
        """Whether more is lost than rounding at the borders of things explains."""
        lost = self.compared.miou_loss
        return (
            self.label_agreement < NOTABLE_AGREEMENT if lost is None else lost > NOTABLE_MIOU_LOSS
        )

    def __str__(self) -> str:
        text = (
            f"{self.path}: {self.bytes / 1e6:.2f} MB, {self.milliseconds:.3g} ms an image, "
            f"{percent(self.label_agreement)} of labels as Keras gives them "
            f"({self.classes} classes seen), largest logit difference "
            f"{self.max_logit_difference:.2g}"
        )
        if self.compared.miou is not None and self.compared.keras_miou is not None:
            text += (
                f", mIoU {100 * self.compared.miou:.2f} where Keras has "
                f"{100 * self.compared.keras_miou:.2f} "
                f"({self.compared.images} images)"
            )
        text += self._at_own_size()
        if self.float_layers:
            more = ", ..." if len(self.float_layers) > MANY else ""
            text += (
                f"; {len(self.float_layers)} layers in float: "
                f"{', '.join(self.float_layers[:MANY])}{more}"
            )
        if self.kind == "tflite_int8" and self.loses_accuracy:
            text += (
                "; 8 bits lose accuracy here: `formats='tflite_mixed'` keeps the most sensitive "
                "layers in float, and "
                "train.py --quantization_aware trains the network for them"
            )
        unwanted = {
            name: count
            for name, count in self.operators.items()
            if name.startswith(tflite.UNWANTED)
        }
        slow = "".join(f"; slow operator: {count} x {name}" for name, count in unwanted.items())
        return render_options(text + slow)

    def _at_own_size(self) -> str:
        """What the file loses against Keras at the images' own sizes, and a warning where they are stretched."""
        own, compared = self.compared.own_size, self.compared
        if own is None:
            return ""
        if own.miou is not None and own.keras_miou is not None:
            text = (
                f"; at the images' own size mIoU {100 * own.miou:.2f} where Keras has "
                f"{100 * own.keras_miou:.2f}"
            )
            both = f"mIoU {100 * own.miou:.2f} instead of {100 * own.keras_miou:.2f}"
        else:
            text = (
                f"; at the images' own size {percent(own.label_agreement)} of labels as Keras "
                "gives them"
            )
            both = (
                f"{percent(own.label_agreement)} of labels as Keras gives them instead of "
                f"{percent(compared.label_agreement)}"
            )
        if not own.stretched or self.input_size is None:
            return text
        (height, width), (rows, columns) = own.example, fitting_size(own.example, self.input_size)
        return (
            f"{text}; warning: `input_size={self.input_size[0]},{self.input_size[1]}` changes the "
            "aspect ratio of "
            f"{own.stretched} of {own.images} images (most are {height}x{width}), which gives "
            f"{both}; "
            f"`input_size={rows},{columns}` keeps it"
        )

    def report(self) -> str:
        """The operators of a TFLite file, and a line for each delegate; of other files nothing."""
        if not self.operators:
            return ""
        counts = ", ".join(f"{count} {name}" for name, count in self.operators.items())
        lines = [f"{sum(self.operators.values())} operators: {counts}", *map(str, self.verdicts)]
        return "".join(f"\n  {line}" for line in lines)
