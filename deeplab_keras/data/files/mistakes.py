"""What a mask was meant to be, where its values are not those of the classes: the usual mistakes by their traces."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from deeplab_keras.data.files.mask_values import STRAY, MaskValues
from deeplab_keras.data.info import Colour, DatasetInfo, pascal_palette

VOC_CONTOUR = (224, 224, 192)  # the colour of 255 in PASCAL VOC's palette
CONVERT = "scripts/convert_masks.py"


def luminances(colours: Collection[Colour]) -> set[int]:
    """The grey values that image libraries make of colours; those that cut off differ by one from those that round."""
    exact = np.array(list(colours)) @ np.array([0.299, 0.587, 0.114])
    return {int(value) for value in (*np.floor(exact), *np.round(exact))}


def likely_mistake(
    values: MaskValues, info: DatasetInfo, label_map: Mapping[int, int] | None = None
) -> str:
    """What masks with these values look like and what to do about it, as a part of a sentence; "" if they look like nothing.

    Args:
        values: the values in the mask files.
        info: the classes that are expected.
        label_map: value in the masks -> class id, where the two differ.
    """
    count = info.num_classes
    allowed = {*range(count), info.ignore_label} if label_map is None else set(label_map)
    strange = values.present - allowed
    if label_map is None and count > 1 and (found := two_classes(values, info)):
        return found
    if found := blended(values, fewest=3 if strange else 8):
        return found
    return _other_ids(values.present, strange, info, label_map) if strange else ""


def two_classes(values: MaskValues, info: DatasetInfo) -> str:
    """`likely_mistake` for masks of one object in black and white, and such with a few stray values; else ""."""
    allowed = {*range(info.num_classes), info.ignore_label}
    # A very rare class next to an ignored area looks like stray values, so where all are classes
    # there must be fewer.
    strange = bool(values.present - allowed)
    white = values.black_and_white(STRAY if strange else STRAY / 10, one_mask=strange)
    if not (white == 255 or (white not in allowed and info.num_classes == 2)):
        return ""
    strays = sorted(values.present - {0, white})
    if not strays:
        if white != 255:  # this gray may be a luminance, which `_other_ids` recognizes
            return ""
        return (
            f"0 and 255 only: these are masks of two classes in black and white; run {CONVERT} "
            "--from=binary"
        )
    share = values.pixels[strays].sum() / values.pixels.sum()
    listed = ", ".join(map(str, strays[:4])) + (", ..." if len(strays) > 4 else "")
    return (
        f"0, {white} and a few stray pixels of {listed} ({share:.2%}): these are masks of two "
        "classes in black and white; "
        f"run {CONVERT} --from=binary"
    )


def blended(values: MaskValues, fewest: int) -> str:
    """`likely_mistake` for values that occur only between areas of others, on at least `fewest` values; else ""."""
    if not values.blended(fewest):
        return ""
    if values.blended_black_and_white():
        return (
            "black and white masks with values blended by JPEG, smooth resizing or smooth edges; "
            f"run {CONVERT} --from=binary"
        )
    return (
        "values blended by JPEG, smooth resizing or smooth edges, which no class has an area "
        "of: export the masks again"
    )


def _other_ids(
    found: set[int], strange: set[int], info: DatasetInfo, label_map: Mapping[int, int] | None
) -> str:
    """`likely_mistake` for ids outside the classes, by the values alone."""
    count = info.num_classes
    for name, colours in (
        (f"the colours of {info.name}", info.palette),
        ("PASCAL VOC's colours", pascal_palette(21)),
    ):
        if len(found) > 1 and found <= luminances([*colours, VOC_CONTOUR]) | {255}:
            return (
                f"these values are the luminances of {name}: palette or RGB masks were saved as "
                "grey; "
                f"run {CONVERT} --from=palette (or --from=rgb) on the original masks"
            )
        if found == {0, max(found)} and (count == 2 or max(found) == 255):
            return (
                f"0 and {max(found)} only: these are masks of two classes; run {CONVERT} "
                "--from=binary"
            )
    if 3 <= len(found) <= count + 1 and _evenly_spread(sorted(found)):
        return (
            f"grey levels spread evenly up to {max(found)}, a class each; run {CONVERT} --from=grey"
        )
    if label_map is None and strange == {count}:
        if 0 not in found:
            shifted = f"1 to {count} in place of 0 to {count - 1}: the ids are shifted by one"
            return f"{shifted}; run {CONVERT} --from=index --id_offset=-1"
        return (
            f"0 to {count} are {count + 1} values for {count} classes: if 0 is 'unlabelled', run "
            f"{CONVERT} --from=index "
            "--id_offset=-1, else name the missing class"
        )
    if label_map is None and count == 19 and found <= {*range(34), 255}:
        return (
            f"these look like Cityscapes' labelIds; run {CONVERT} --from=cityscapes, or train "
            "with `dataset='cityscapes'`"
        )
    if len(strange) > max(20, count):
        return (
            "so many values between the classes come from saving as JPEG or from smooth "
            "resizing: export the masks again"
        )
    return ""


def _evenly_spread(levels: list[int]) -> bool:
    """Whether the levels are 0 and multiples of one step, up to rounding, from 0 to 250 and more."""
    step = levels[-1] / (len(levels) - 1)
    return (
        step > 1.5
        and levels[-1] >= 250
        and all(abs(level - i * step) <= 1.5 for i, level in enumerate(levels))
    )
