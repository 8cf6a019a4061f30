"""Pictures of label maps: colors, overlays, panels with captions and legend, confusion matrices.

Every picture is a uint8 array `[height, width, 3]`. Text is drawn at its final size, so that it is
sharp.
"""

from deeplab_keras.visualization.colors import (
    BLACK,
    COLOR_BLINDNESS,
    COLOUR_BLINDNESS,
    OKABE_ITO,
    PALETTES,
    WHITE,
    WRONG,
    class_colors,
    class_colours,
    classes_in,
    colorblind_palette,
    colorize,
    confidence_map,
    error_map,
    overlay,
)
from deeplab_keras.visualization.figures import confusion_matrix_figure, save_png, save_png_strips
from deeplab_keras.visualization.panels import LARGEST, SMALLEST, captioned, grid, legend, panel

__all__ = [
    "BLACK",
    "COLOR_BLINDNESS",
    "COLOUR_BLINDNESS",
    "LARGEST",
    "OKABE_ITO",
    "PALETTES",
    "SMALLEST",
    "WHITE",
    "WRONG",
    "captioned",
    "class_colors",
    "class_colours",
    "classes_in",
    "colorblind_palette",
    "colorize",
    "confidence_map",
    "confusion_matrix_figure",
    "error_map",
    "grid",
    "legend",
    "overlay",
    "panel",
    "save_png",
    "save_png_strips",
]
