"""Where the released weights are: of the zoo's models, and of ImageNet backbones to start from."""

from __future__ import annotations

import dataclasses

from deeplab_keras.zoo.official import RELEASES
from deeplab_keras.zoo.registry import MODELS, TORCHVISION

# From SSSegmentation's docs/modelzoo/mobilenet/README.md.
SSSEGMENTATION_FILES = (
    "https://github.com/SegmentationBLWX/modelstore/releases/download/ssseg_mobilenet/"
)
SSSEGMENTATION_CONFIGS = (
    "https://raw.githubusercontent.com/SegmentationBLWX/sssegmentation/main/ssseg/configs/"
)
OFFICIAL_ZOO = (
    "https://github.com/tensorflow/models/blob/master/research/deeplab/g3doc/model_zoo.md"
)
PYTORCH_FILES = "https://download.pytorch.org/models/"
TORCHVISION_RECIPES = "https://github.com/pytorch/vision/tree/main/references/segmentation"
OPENMMLAB_FILES = "https://download.openmmlab.com/"


@dataclasses.dataclass(frozen=True)
class Download:
    """Released weights.

    Attributes:
        urls: Addresses of the file, in the order in which they are tried.
        source: The project, a name of `convert.conversion.SOURCES`.
        license: The license of the project.
        papers: Keys of `CITATION.bib`.
        checksum: The checksum in the format of `checkpoints.download.fetch`; may be shortened.
            Empty if none was published.
        config: The address of the authors' config or recipe.
        log: The address of the training log; "" if none was published.
    """

    urls: tuple[str, ...]
    source: str
    license: str
    papers: tuple[str, ...]
    checksum: str = ""
    config: str = ""
    log: str = ""


_HEADS = {
    "fcn": "long2015fully",
    "psp": "zhao2017pyramid",
    "deeplab_v3": "chen2017rethinking",
    "deeplab_v3_plus": "chen2018encoder",
    "lraspp": "howard2019searching",
}
_BACKBONES = {
    "mobilenet_v2": "sandler2018mobilenetv2",
    "mobilenet_v3_small": "howard2019searching",
    "mobilenet_v3_large": "howard2019searching",
    "mobilenet_v3_small_seg": "howard2019searching",
    "mobilenet_v3_large_seg": "howard2019searching",
    "mobilenet_edgetpu": "howard2019edgetpu",
}
# torchvision's file name has the first digits of its SHA-256. The rest was published in manifests
# of other projects.
_TORCHVISION = {
    "lraspp_mobilenet_v3_large": (
        "d234d4eae9d55d5f76de18b77cf0dc62c66fe5c5482758209d00f950c92bb280"
    ),
    "deeplabv3_mobilenet_v3_large": (
        "fc3c493d68e89cc31ef488c803d5d7dd2f3190fb570598faa49fef69be8e5e70"
    ),
}


def download_of(name: str) -> Download:
    """Returns where the released weights of a model of the zoo are."""
    config = MODELS[name]
    papers = tuple(dict.fromkeys((_HEADS[config.head], _BACKBONES[config.backbone])))
    if name in RELEASES:
        release = RELEASES[name]
        return Download(
            (release.url,),
            "official_deeplab",
            "Apache-2.0",
            papers,
            checksum=release.checksum,
            config=OFFICIAL_ZOO,
        )
    if name in TORCHVISION:
        digest = _TORCHVISION[name]
        return Download(
            (f"{PYTORCH_FILES}{name}-{digest[:8]}.pth",),
            "torchvision",
            "BSD-3-Clause",
            papers,
            checksum=f"sha256:{digest}",
            config=TORCHVISION_RECIPES,
        )
    folder = "lrasppnet" if config.head == "lraspp" else "mobilenetv2"
    return Download(
        # The second name is that of earlier versions of the page.
        (f"{SSSEGMENTATION_FILES}{name}.pth", f"{SSSEGMENTATION_FILES}{name}_train.pth"),
        "sssegmentation",
        "Apache-2.0",
        (*papers, "jin2023sssegmenation"),
        config=f"{SSSEGMENTATION_CONFIGS}{folder}/{name}.py",
        log=f"{SSSEGMENTATION_FILES}{name}.log",
    )


def _imagenet(
    address: str, source: str, license: str, backbone: str, checksum: str = ""
) -> Download:
    # The end of the file name is the beginning of its SHA-256.
    digest = checksum or address.removesuffix(".pth").rpartition("-")[2]
    return Download((address,), source, license, (_BACKBONES[backbone],), f"sha256:{digest}")


# Backbones trained on ImageNet, for `initial_checkpoint`. "imagenet" is the name of those of
# keras.applications, which Keras downloads itself.
IMAGENET: dict[str, Download] = {
    f"openmmlab_{backbone}": _imagenet(
        OPENMMLAB_FILES + path, "sssegmentation", "Apache-2.0", backbone
    )
    for backbone, path in {
        "mobilenet_v2": "mmclassification/v0/mobilenet_v2/"
        "mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth",
        "mobilenet_v3_small": "pretrain/third_party/mobilenet_v3_small-47085aa1.pth",
        "mobilenet_v3_large": "pretrain/third_party/mobilenet_v3_large-bc2c3fd3.pth",
    }.items()
} | {
    f"torchvision_{backbone}": _imagenet(
        f"{PYTORCH_FILES}{backbone}-{digest}.pth", "torchvision", "BSD-3-Clause", backbone
    )
    for backbone, digest in {
        "mobilenet_v2": "b0353104",
        "mobilenet_v3_small": "047dcff4",
        "mobilenet_v3_large": "8738ca79",
    }.items()
}
