"""CamVid: 367 training and 101 validation frames of a drive through Cambridge, 480x360, 11 classes."""

from __future__ import annotations

from deeplab_keras.data.info import DatasetInfo

# The 11-class split of the SegNet tutorial with its colours; 255 is unlabelled.
CAMVID = DatasetInfo(
    name="camvid",
    class_names=("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    palette=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
)
