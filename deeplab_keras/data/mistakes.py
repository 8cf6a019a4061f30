"""What a mask was meant to be, where its values are not those of the classes: the usual mistakes by their traces."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from deeplab_keras.data.info import Colour, DatasetInfo, pascal_palette

VOC_CONTOUR = (224, 224, 192)  # the colour of 255 in PASCAL VOC's palette
CONVERT = "scripts/convert_masks.py"


def luminances(colours: Collection[Colour]) -> set[int]:
    """The grey values that image libraries make of colours; those that cut off differ by one from those that round."""
    exact = np.array(list(colours)) @ np.array([0.299, 0.587, 0.114])
    return {int(value) for value in (*np.floor(exact), *np.round(exact))}


def likely_mistake(present: Collection[int], info: DatasetInfo, label_map: Mapping[int, int] | None = None) -> str:
    """What masks with these values look like and what to do about it, as a part of a sentence; "" if they look like nothing.

    Args:
        present: the values found in masks, as they stand in the files.
        info: the classes that are expected.
        label_map: value in the masks -> class id, where the two differ.
    """
    found = {int(value) for value in present}
    count = info.num_classes
    allowed = {*range(count), info.ignore_label} if label_map is None else set(label_map)
    strange = found - allowed
    if found == {0, 255} and not (label_map or count < 2):
        return f"0 and 255 only: these are masks of two classes in black and white; run {CONVERT} --from=binary"
    if not strange:
        return ""
    two_classes = found == {0, max(found)} and (count == 2 or max(found) == 255)
    for name, colours in ((f"the colours of {info.name}", info.palette), ("PASCAL VOC's colours", pascal_palette(21))):
        if len(found) > 1 and found <= luminances([*colours, VOC_CONTOUR]) | {255}:
            return (
                f"these values are the luminances of {name}: palette or RGB masks were saved as grey; "
                f"run {CONVERT} --from=palette (or --from=rgb) on the original masks"
            )
        if two_classes:
            return f"0 and {max(found)} only: these are masks of two classes; run {CONVERT} --from=binary"
    if 3 <= len(found) <= count + 1 and _evenly_spread(sorted(found)):
        return f"grey levels spread evenly up to {max(found)}, a class each; run {CONVERT} --from=grey"
    if label_map is None and strange == {count}:
        if 0 not in found:
            shifted = f"1 to {count} in place of 0 to {count - 1}: the ids are shifted by one"
            return f"{shifted}; run {CONVERT} --from=index --id_offset=-1"
        return (
            f"0 to {count} are {count + 1} values for {count} classes: if 0 is 'unlabelled', run {CONVERT} --from=index "
            "--id_offset=-1, else name the missing class"
        )
    if label_map is None and count == 19 and found <= {*range(34), 255}:
        return f"these look like Cityscapes' labelIds; run {CONVERT} --from=cityscapes, or train with --dataset=cityscapes"
    if len(strange) > max(20, count):
        return "so many values between the classes come from saving as JPEG or from smooth resizing: export the masks again"
    return ""


def _evenly_spread(levels: list[int]) -> bool:
    """Whether the levels are 0 and multiples of one step, up to rounding, from 0 to 250 and more."""
    step = levels[-1] / (len(levels) - 1)
    return step > 1.5 and levels[-1] >= 250 and all(abs(level - i * step) <= 1.5 for i, level in enumerate(levels))
