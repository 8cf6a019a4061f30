"""Recognizes common mistakes in masks from their values, and suggests how to fix them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from deeplab_keras.data.files.mask_values import STRAY, MaskValues
from deeplab_keras.data.info import Color, DatasetInfo, pascal_palette

VOC_CONTOUR = (224, 224, 192)  # the color of id 255 in PASCAL VOC's palette
CONVERT = "`scripts/convert_masks.py`"


def luminances(colors: Collection[Color]) -> set[int]:
    """Returns the gray levels to which image libraries convert the colors.

    Some libraries truncate and others round, so a color can have two of them.
    """
    exact = np.array(list(colors)) @ np.array([0.299, 0.587, 0.114])
    return {int(value) for value in (*np.floor(exact), *np.round(exact))}


def likely_mistake(
    values: MaskValues, info: DatasetInfo, label_map: Mapping[int, int] | None = None
) -> str:
    """Describes the likely mistake in the masks and its fix, as part of a sentence.

    Args:
        values: The values in the mask files.
        info: The expected classes.
        label_map: Value in the masks -> class id; `None`: The values are class ids.

    Returns:
        The description; "" if no mistake is recognized.
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
    """Recognizes black-and-white masks of one object, also with a few stray values.

    Returns:
        The description, as for `likely_mistake`.
    """
    allowed = {*range(info.num_classes), info.ignore_label}
    # A very rare class next to an ignored area looks like stray values. So if all values are
    # classes, fewer strays are allowed.
    strange = bool(values.present - allowed)
    white = values.black_and_white(STRAY if strange else STRAY / 10, one_mask=strange)
    if not (white == 255 or (white not in allowed and info.num_classes == 2)):
        return ""
    strays = sorted(values.present - {0, white})
    if not strays:
        if white != 255:  # this gray may be a luminance, which `_other_ids` recognizes
            return ""
        return (
            f"only 0 and 255: these are black-and-white masks of two classes; run {CONVERT} "
            "--from=binary"
        )
    share = values.pixels[strays].sum() / values.pixels.sum()
    listed = ", ".join(map(str, strays[:4])) + (", ..." if len(strays) > 4 else "")
    return (
        f"0, {white} and a few stray pixels of {listed} ({share:.2%}): these are black-and-white "
        f"masks of two classes; run {CONVERT} --from=binary"
    )


def blended(values: MaskValues, fewest: int) -> str:
    """Recognizes masks in which at least `fewest` values occur only between areas of other values.

    Returns:
        The description, as for `likely_mistake`.
    """
    if not values.blended(fewest):
        return ""
    if values.blended_black_and_white():
        return (
            "black and white with values blended by JPEG, smooth resizing or anti-aliasing; run "
            f"{CONVERT} --from=binary"
        )
    return (
        "values blended by JPEG, smooth resizing or anti-aliasing, which no area has: export the "
        "masks again"
    )


def _other_ids(
    found: set[int], strange: set[int], info: DatasetInfo, label_map: Mapping[int, int] | None
) -> str:
    """Recognizes mistakes behind ids outside the classes, from the values that occur.

    Returns:
        The description, as for `likely_mistake`.
    """
    count = info.num_classes
    if len(found) == 2 and found == {0, max(found)} and (count == 2 or max(found) == 255):
        return (
            f"only 0 and {max(found)}: these are masks of two classes; run {CONVERT} --from=binary"
        )
    for name, colors in (
        (f"the colors of {info.name}", info.palette),
        ("PASCAL VOC's colors", pascal_palette(21)),
    ):
        if len(found) > 1 and found <= luminances([*colors, VOC_CONTOUR]) | {255}:
            return (
                f"these values are the luminances of {name}: palette or RGB masks were saved as "
                f"gray; run {CONVERT} --from=palette (or --from=rgb) on the original masks"
            )
    if 3 <= len(found) <= count + 1 and _evenly_spread(sorted(found)):
        return (
            f"evenly spaced gray levels up to {max(found)}, one per class; run {CONVERT} "
            "--from=gray"
        )
    if label_map is None and strange == {count}:
        if 0 not in found:
            shifted = f"1 to {count} instead of 0 to {count - 1}: the ids are shifted by one"
            return f"{shifted}; run {CONVERT} --from=index --id_offset=-1"
        return (
            f"0 to {count} are {count + 1} values for {count} classes: if 0 is 'unlabeled', run "
            f"{CONVERT} --from=index --id_offset=-1, otherwise add the missing class"
        )
    if label_map is None and count == 19 and found <= {*range(34), 255}:
        return (
            f"these look like Cityscapes' labelIds; run {CONVERT} --from=cityscapes, or train "
            "with `dataset='cityscapes'`"
        )
    if len(strange) > max(20, count):
        return "this many values usually come from JPEG or smooth resizing: export the masks again"
    return ""


def _evenly_spread(levels: list[int]) -> bool:
    """Whether the levels are the multiples of a step, up to rounding, from 0 to at least 250."""
    step = levels[-1] / (len(levels) - 1)
    return (
        step > 1.5
        and levels[-1] >= 250
        and all(abs(level - i * step) <= 1.5 for i, level in enumerate(levels))
    )
