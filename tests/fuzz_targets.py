"""The targets of the fuzz lane: for every kind of file, a valid file and its reader."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import pathlib
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import fuzz_annotations
import fuzz_semantics as semantics
import keras
import numpy as np
import pth_files
import tensorflow as tf
from contracts import script
from data_files import mask, photograph, write_dataset, write_mat
from PIL import Image

import deeplab_keras as dk
from deeplab_keras.checkpoints.folder import (
    assign_weights,
    find_checkpoint,
    load_checkpoint,
    named_weights,
    read_config,
    read_info,
    read_weights,
    save_checkpoint,
)
from deeplab_keras.checkpoints.workdir import Workdir
from deeplab_keras.config import DataConfig
from deeplab_keras.convert import keras_applications, pth
from deeplab_keras.convert.official_files import read_source
from deeplab_keras.data.annotations import labelme
from deeplab_keras.data.info import info_for_classes
from deeplab_keras.data.pipeline import user_error
from deeplab_keras.data.records.build import build_records
from deeplab_keras.data.records.cache import cache_on_disk
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.export import export_model
from deeplab_keras.inference.images import open_image

Folder = pathlib.Path
CLASSES = ("wall", "floor", "lamp")


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        name: The name of the kind.
        make: Writes a valid folder.
        victim: The file in the folder that is damaged.
        read: Reads the folder as a user's command does, and returns its contents.
        checked: Whether checksums cover all relevant contents, so that a damaged file is refused or
            has the same contents.
        inputs: Number of damaged copies to test.
        package: A package that the reader needs, in addition to those of the tests.
        impossible: Functions that change the valid file to well-formed files with impossible
            contents. These are tested first.
        rebuilt: Whether such a file is rebuilt from other files instead of being refused.
    """

    name: str
    make: Callable[[Folder], object]
    victim: str
    read: Callable[[Folder], Any]
    checked: bool = False
    inputs: int = 100
    package: str = ""
    impossible: Mapping[str, semantics.Rewrite] = dataclasses.field(default_factory=dict)
    rebuilt: bool = False


TARGETS: dict[str, Target] = {}


def target(
    name: str,
    make: Callable[[Folder], object],
    victim: str,
    read: Callable[[Folder], Any],
    **more: Any,
) -> None:
    """Adds a target to `TARGETS`."""
    TARGETS[name] = Target(name, make, victim, read, **more)


# === Images and datasets ===


def _photo(form: str, folder: Folder) -> None:
    Image.fromarray(photograph(40, 56)).save(folder / f"photo.{form}")


for form in ("jpg", "png", "gif", "bmp", "webp", "tif", "avif"):
    target(
        f"photo, {form.upper()}",
        functools.partial(_photo, form),
        f"photo.{form}",
        lambda folder, form=form: open_image(folder / f"photo.{form}"),
        checked=form == "png",
        inputs=160,
        impossible=semantics.PNG if form == "png" else {},
    )


def _dataset(folder: Folder) -> None:
    write_dataset(folder, count=3)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))


def _pairs(folder: Folder, split: str = "train", **settings: Any) -> Any:
    source = open_dataset(
        DataConfig(**({"dataset": "folder", "dataset_dir": str(folder)} | settings)), split
    )
    return (
        source.names,
        source.info.class_names,
        [source.load(index) for index in range(len(source))],
    )


def _streamed(folder: Folder) -> Any:
    """Reads images as a training run does: with TensorFlow's decoders and translated errors."""
    source = open_dataset(DataConfig(dataset="folder", dataset_dir=str(folder)), "train")
    try:
        return [
            [part.numpy() for part in source.tf_load(tf.constant(index))]
            for index in range(len(source))
        ]
    except tf.errors.OpError as error:
        raise user_error(error, source) or error from error


def _files_of(kind: str, content: str) -> Callable[[Folder], None]:
    def make(folder: Folder) -> None:
        write_dataset(folder, count=3)
        (folder / kind).write_text(content)

    return make


target(
    "mask, PNG",
    _dataset,
    "labels/train/pic_1.png",
    _pairs,
    checked=True,
    inputs=300,
    impossible=semantics.PNG,
)
target(
    "mask, PNG, in the stream",
    _dataset,
    "labels/train/pic_1.png",
    _streamed,
    checked=True,
    impossible=semantics.PNG,
)
target("image of a dataset, JPEG", _dataset, "images/train/pic_1.jpg", _pairs)
target("image of a dataset, JPEG, in the stream", _dataset, "images/train/pic_1.jpg", _streamed)
target("classes.txt", _dataset, "classes.txt", _pairs)
TABLE = "name,r,g,b\nwall,0,0,0\nfloor,1,1,1\nlamp,2,2,2\n"
target("class_dict.csv", _files_of("class_dict.csv", TABLE), "class_dict.csv", _pairs)
LIST = "image,mask\n" + "".join(
    f"images/train/pic_{i}.jpg,labels/train/pic_{i}.png\n" for i in range(3)
)
target(
    "list of pairs",
    _files_of("pairs.csv", LIST),
    "pairs.csv",
    functools.partial(_pairs, split="pairs.csv"),
)


def _two_lists(folder: Folder) -> None:
    write_dataset(folder, count=3)
    for name, kind, suffix in (("images", "images", "jpg"), ("masks", "labels", "png")):
        lines = [f"{kind}/train/pic_{i}.{suffix}\n" for i in range(3)]
        (folder / f"{name}.txt").write_text("".join(lines))


target(
    "list of masks",
    _two_lists,
    "masks.txt",
    functools.partial(_pairs, split="images.txt,masks.txt"),
    impossible=semantics.LIST,
)


def _voc(folder: Folder) -> None:
    for kind, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (folder / f"VOCdevkit/VOC2012/{kind}").mkdir(parents=True)
        for i in range(3):
            pixels = photograph(20, 30) if suffix == "jpg" else mask(20, 30, ids=(0, 1, 20, 255))
            path = folder / f"VOCdevkit/VOC2012/{kind}/2008_00000{i}.{suffix}"
            Image.fromarray(pixels).save(path)
    (folder / "VOCdevkit/VOC2012/ImageSets/Segmentation").mkdir(parents=True)
    (folder / VOC_LIST).write_text("".join(f"2008_00000{i}\n" for i in range(3)))


VOC_LIST = "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt"
target(
    "PASCAL VOC's list",
    _voc,
    VOC_LIST,
    functools.partial(_pairs, dataset="voc2012"),
    impossible=semantics.NAMES,
)


def _cityscapes(folder: Folder) -> None:
    for kind, suffix in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        place = folder / f"{kind}/train/bonn"
        place.mkdir(parents=True)
        for i in range(2):
            pixels = mask(20, 40, ids=(0, 7, 33)) if kind == "gtFine" else photograph(20, 40)
            Image.fromarray(pixels).save(place / f"bonn_{i:06d}_000019_{suffix}.png")


target(
    "Cityscapes mask, PNG",
    _cityscapes,
    "gtFine/train/bonn/bonn_000001_000019_gtFine_labelIds.png",
    functools.partial(_pairs, dataset="cityscapes"),
    checked=True,
    impossible=semantics.PNG,
)


def _labelme(folder: Folder) -> None:
    stream = io.BytesIO()
    Image.fromarray(mask(8, 8, ids=(0, 1))).save(stream, "PNG")
    shapes = [
        {"label": "floor", "shape_type": "polygon", "points": [[2, 2], [30, 4], [20, 25]]},
        {"label": "lamp", "shape_type": "circle", "points": [[10, 10], [14, 10]]},
        {"label": "wall", "shape_type": "rectangle", "points": [[1, 1], [9, 9]]},
    ]
    content = {
        "shapes": shapes,
        "imageHeight": 32,
        "imageWidth": 40,
        "imagePath": "a.jpg",
        "imageData": None,
    }
    (folder / "a.json").write_text(json.dumps(content, indent=1))


target(
    "labelme annotation",
    _labelme,
    "a.json",
    inputs=200,
    impossible=semantics.LABELME,
    read=lambda folder: labelme.draw_labelme(
        str(folder / "a.json"), {name: index for index, name in enumerate(CLASSES)}
    ),
)


def _mat(folder: Folder) -> None:
    """PASCAL VOC with the masks of the Semantic Boundaries Dataset."""
    (folder / "VOCdevkit/VOC2012/ImageSets/Segmentation").mkdir(parents=True)
    (folder / "VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt").write_text("2008_000002\n")
    for place in (
        "VOCdevkit/VOC2012/JPEGImages",
        "VOCdevkit/VOC2012/SegmentationClass",
        "benchmark_RELEASE/dataset/cls",
    ):
        (folder / place).mkdir(parents=True)
    Image.fromarray(photograph(20, 30)).save(
        folder / "VOCdevkit/VOC2012/JPEGImages/2008_000002.jpg"
    )
    write_mat(
        folder / "benchmark_RELEASE/dataset/cls/2008_000002.mat", mask(20, 30, ids=(0, 1, 20))
    )
    for split, names in {"train": "2008_000002\n", "val": ""}.items():
        (folder / f"benchmark_RELEASE/dataset/{split}.txt").write_text(names)


target(
    "mask, MATLAB",
    _mat,
    "benchmark_RELEASE/dataset/cls/2008_000002.mat",
    inputs=160,
    read=functools.partial(_pairs, split="trainaug", dataset="voc2012"),
)


def _zip(folder: Folder) -> None:
    inside = folder.parent / "inside"
    if not inside.exists():
        _dataset(inside)
    with zipfile.ZipFile(folder / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(inside.rglob("*.*")):
            archive.write(path, path.relative_to(inside))


def _tar(folder: Folder) -> None:
    inside = folder.parent / "inside"
    if not inside.exists():
        _dataset(inside)
    with tarfile.open(folder / "data.tar", "w") as archive:
        archive.add(inside, ".")


def _archived(name: str) -> Callable[[Folder], Any]:
    return lambda folder: _pairs(folder, dataset_dir=str(folder / name))


target(
    "dataset archive, zip",
    _zip,
    "data.zip",
    _archived("data.zip"),
    checked=True,
    inputs=160,
    impossible=semantics.ZIP,
)
target("dataset archive, tar", _tar, "data.tar", _archived("data.tar"), inputs=160)


def _records(folder: Folder) -> None:
    home = folder.parent / "source"
    if not home.exists():
        _dataset(home)
    build_records(_source(home), "train", folder, num_shards=1)


def _source(home: Folder) -> Any:
    return open_dataset(DataConfig(dataset="folder", dataset_dir=str(home)), "train")


def _of_records(folder: Folder) -> Any:
    return _pairs(folder, dataset="tfrecord")


target(
    "TFRecord shard",
    _records,
    "train-00000-of-00001.tfrecord",
    _of_records,
    checked=True,
    inputs=160,
)
target(
    "TFRecord index",
    _records,
    "train.index.npz",
    _of_records,
    checked=True,
    inputs=160,
    impossible=semantics.INDEX | semantics.ARRAYS,
    rebuilt=True,
)
target("TFRecord manifest", _records, "train.manifest.json", _of_records)


def _cache(folder: Folder) -> None:
    _dataset(folder)
    cached = cache_on_disk(_source(folder), str(folder / "cache"), "train")
    shutil.copy(pathlib.Path(cached.folder) / "00000001.raw", folder / "damaged.raw")


def _cached(folder: Folder) -> Any:
    """Reads a damaged cache file, whose name depends on the modification times of the files."""
    source = _source(folder)
    cached = cache_on_disk(source, str(folder / "cache"), "train")
    shutil.copy(folder / "damaged.raw", pathlib.Path(cached.folder) / "00000001.raw")
    return [cached.load(index) for index in range(len(source))]


target("cached pair", _cache, "damaged.raw", _cached, checked=True)


# === Weights ===


@functools.cache
def _config() -> dk.ModelConfig:
    base = dk.get_config("deeplabv3plus_mobilenetv2os8_voc")
    return base.replace(
        num_classes=3,
        depth_multiplier=0.35,
        output_stride=32,
        head_channels=8,
        atrous_rates=(),
        decoder_filters=8,
        low_level_channels=(8,),
        auxiliary_head=False,
    )


@functools.cache
def _model() -> keras.Model:
    keras.utils.set_random_seed(1)
    return dk.build_segmentor(_config(), (32, 32))


def _checkpoint(folder: Folder) -> None:
    save_checkpoint(
        folder / "checkpoint",
        _model(),
        _config(),
        info_for_classes("mine", CLASSES),
        metrics={"miou": 0.5},
    )


def _loaded(folder: Folder) -> Any:
    """Loads a checkpoint like `load_checkpoint`, but builds the network only once."""
    path = find_checkpoint(folder / "checkpoint")
    config, info = read_config(path), read_info(path)
    model = _model() if config == _config() else load_checkpoint(path).model
    assign_weights(model, read_weights(path), str(path))
    return config.to_json(), info.to_dict(), named_weights(model)


target(
    "checkpoint, weights.npz",
    _checkpoint,
    "checkpoint/weights.npz",
    _loaded,
    checked=True,
    inputs=200,
    impossible=semantics.WEIGHTS,
)
target(
    "checkpoint, config.json",
    _checkpoint,
    "checkpoint/config.json",
    _loaded,
    inputs=150,
    impossible=semantics.MODEL,
)
target(
    "checkpoint, dataset.json",
    _checkpoint,
    "checkpoint/dataset.json",
    _loaded,
    impossible=semantics.CLASSES,
)
target(
    "checkpoint, metrics.json",
    _checkpoint,
    "checkpoint/metrics.json",
    inputs=40,
    read=lambda folder: load_checkpoint(folder / "checkpoint").metrics,
)


def _workdir(folder: Folder) -> None:
    velocity = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    state = {"step": np.array(4), "best_miou": np.array(0.5), "velocity": velocity}
    with Workdir(folder / "run", {"model": _config()}) as workdir:
        info, weights = info_for_classes("mine", CLASSES), named_weights(_model())
        workdir.save_step(4, _model(), _config(), info, weights=weights, state=state)


def _newest(folder: Folder) -> Any:
    with Workdir(folder / "run", {"model": _config()}) as workdir:
        found = workdir.newest()
        return found and (found.weights, found.state, found.info.to_dict())


target(
    "run, state.npz",
    _workdir,
    "run/checkpoints/step_00000004/state.npz",
    _newest,
    checked=True,
    inputs=200,
    impossible=semantics.ARRAYS,
)


def _tensors() -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0)
    return {
        f"backbone_net.conv{i}.weight": numbers.normal(size=(8, 4, 3, 3)).astype(np.float32)
        for i in range(4)
    }


def _pth(folder: Folder) -> None:
    pth.write_pth(folder / "model.pth", _tensors())


def _pytorch(form: str) -> Callable[[Folder], object]:
    """Copies a file written by PyTorch."""
    return lambda folder: shutil.copy(pth_files.GOLDEN / f"{form}.pth", folder / "model.pth")


def _read_pth(folder: Folder) -> Any:
    return pth.read_pth(folder / "model.pth")


target(
    "PyTorch weights, zip",
    _pytorch("zip"),
    "model.pth",
    _read_pth,
    checked=True,
    inputs=400,
    impossible=semantics.pickles("zip"),
)
target("PyTorch weights, by write_pth", _pth, "model.pth", _read_pth, checked=True, inputs=200)
target(
    "PyTorch weights, before 1.6",
    _pytorch("stream"),
    "model.pth",
    _read_pth,
    inputs=400,
    impossible=semantics.pickles("stream"),
)


def _official_tensors() -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0)
    return {
        "MobilenetV2/Conv/weights": numbers.normal(size=(3, 3, 3, 8)).astype(np.float32),
        "MobilenetV2/Conv/BatchNorm/gamma": np.ones(8, np.float32),
        "MobilenetV2/Conv/BatchNorm/beta": np.zeros(8, np.float32),
        "MobilenetV2/Conv/BatchNorm/moving_mean": np.zeros(8, np.float32),
        "MobilenetV2/Conv/BatchNorm/moving_variance": np.ones(8, np.float32),
        "logits/semantic/weights": numbers.normal(size=(1, 1, 8, 5)).astype(np.float32),
        "logits/semantic/biases": numbers.normal(size=5).astype(np.float32),
    }


def _tf1_checkpoint(folder: Folder) -> None:
    tensors = _official_tensors()
    tf.raw_ops.SaveV2(
        prefix=str(folder / "model.ckpt-1"),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )


def _source_of(name: str) -> Callable[[Folder], Any]:
    return lambda folder: read_source(folder / name).tensors


def _release(folder: Folder) -> None:
    inside = folder.parent / "release"
    if not inside.exists():
        inside.mkdir()
        _tf1_checkpoint(inside)
    with tarfile.open(folder / "release.tar.gz", "w:gz") as archive:
        archive.add(inside, "release")


target(
    "TensorFlow 1 checkpoint, data",
    _tf1_checkpoint,
    "model.ckpt-1.data-00000-of-00001",
    _source_of("model.ckpt-1"),
    checked=True,
    inputs=150,
)
target(
    "TensorFlow 1 checkpoint, index",
    _tf1_checkpoint,
    "model.ckpt-1.index",
    _source_of("model.ckpt-1"),
    checked=True,
    inputs=150,
)
target(
    "official release, tar.gz",
    _release,
    "release.tar.gz",
    _source_of("release.tar.gz"),
    checked=True,
    impossible=semantics.RELEASE,
)


def _network(image: tf.Tensor) -> tf.Tensor:
    tensors = _official_tensors()
    for layer in ("MobilenetV2/Conv", "logits/semantic"):
        with tf.name_scope(layer):
            image = tf.nn.conv2d(
                image,
                tf.constant(tensors[f"{layer}/weights"], name="weights"),
                1,
                "SAME",
                name="Conv2D",
            )
            image = tf.nn.bias_add(image, tf.ones(image.shape[-1]))
    return image


def _frozen_graph(folder: Folder) -> None:
    graph = tf.Graph()
    with graph.as_default():
        _network(tf.compat.v1.placeholder(tf.float32, (1, 8, 8, 3), "ImageTensor"))
    (folder / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())


def _foreign_tflite(folder: Folder) -> None:
    function = tf.function(_network, input_signature=[tf.TensorSpec((1, 8, 8, 3))])
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], tf.Module()
    )
    (folder / "model.tflite").write_bytes(converter.convert())


target(
    "frozen graph",
    _frozen_graph,
    "graph.pb",
    _source_of("graph.pb"),
    inputs=200,
    impossible=semantics.GRAPH,
)
target(
    "foreign TFLite weights",
    _foreign_tflite,
    "model.tflite",
    _source_of("model.tflite"),
    inputs=250,
)


def _h5(folder: Folder) -> None:
    keras.utils.set_random_seed(2)
    network = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, include_top=False, weights=None
    )
    network.save_weights(folder / "mobilenet.weights.h5")


def _read_h5(folder: Folder) -> Any:
    keras_applications.load_imagenet(_model(), _config(), str(folder / "mobilenet.weights.h5"))
    return named_weights(_model())


target("Keras weights, HDF5", _h5, "mobilenet.weights.h5", _read_h5, inputs=40)


# === Exported models ===


@functools.cache
def _exports(home: str) -> Folder:
    """All formats of a small model, exported once."""
    folder = pathlib.Path(home)
    if not (folder / "done").exists():
        _checkpoint(folder)
        formats = ("tflite", "onnx", "saved_model")
        export_model(
            folder / "checkpoint",
            folder / "export",
            formats=formats,
            input_size=(32, 32),
            output="both",
            log=_quiet,
        )
        (folder / "done").write_text("")
    return folder / "export"


def _quiet(line: str) -> None:
    del line


def _export(name: str) -> Callable[[Folder], None]:
    def make(folder: Folder) -> None:
        source = _exports(str(folder.parent.parent / "exports")) / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)

    return make


def _predicted(name: str) -> Callable[[Folder], Any]:
    def read(folder: Folder) -> Any:
        predictor = dk.Predictor(folder / name)
        image = photograph(32, 32)
        return predictor(image), predictor.probabilities(image)

    return read


target(
    "exported TFLite",
    _export("model.tflite"),
    "model.tflite",
    _predicted("model.tflite"),
    inputs=250,
)
target(
    "exported ONNX",
    _export("model.onnx"),
    "model.onnx",
    _predicted("model.onnx"),
    inputs=150,
    package="onnxruntime",
)
target(
    "exported SavedModel, graph",
    _export("saved_model"),
    "saved_model/saved_model.pb",
    _predicted("saved_model"),
    inputs=60,
)
target(
    "exported SavedModel, weights",
    _export("saved_model"),
    "saved_model/variables/variables.data-00000-of-00001",
    _predicted("saved_model"),
    checked=True,
    inputs=60,
)


# === Exports of labeling tools ===

fuzz_annotations.add(target)


# === Flags ===


def _flagfile(folder: Folder) -> None:
    (folder / "run.flags").write_text(
        "# a recipe\n--dataset=synthetic\n--train_batch_size=4\n--output_stride=16\n"
    )


def _flags(folder: Folder) -> Any:
    command = script("train.py").parse(f"--flagfile={folder / 'run.flags'}")
    return command.data_config("no run").to_json(), command.model_config().to_json()


target("flagfile", _flagfile, "run.flags", _flags)
