"""Pictures of label maps: colours, overlays, panels with captions and legend, the confusion matrix.

Every picture is a uint8 array `[height, width, 3]`; text is drawn at its final size, so that it
stays crisp.
"""

from deeplab_keras.visualization.colours import (
    BLACK,
    COLOUR_BLINDNESS,
    OKABE_ITO,
    PALETTES,
    WHITE,
    WRONG,
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
    "COLOUR_BLINDNESS",
    "LARGEST",
    "OKABE_ITO",
    "PALETTES",
    "SMALLEST",
    "WHITE",
    "WRONG",
    "captioned",
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
