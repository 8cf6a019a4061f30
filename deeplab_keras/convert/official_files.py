"""Reads the files that official DeepLab weights come in, as tensors under their TF1 names and in TF1's axes.

    TF1 checkpoint       a prefix, one of its files, or the folder
    release archive      the .tar.gz as downloaded; nothing of it is unpacked but the weights, into
    a temporary folder frozen graph (.pb)   convolutions with their batch norm, folded or not
    .tflite, float       convolutions with their folded batch norm

A folded batch norm becomes one that does the same: mean 0, variance 1 - epsilon, gamma the folded
factor (or 1) and beta the folded offset.

TensorFlow is imported where a file is read, so that models are built and loaded on other backends
without it.
"""

from __future__ import annotations

import dataclasses
import glob
import math
import os
import pathlib
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from deeplab_keras.checkpoints.values import check_values
from deeplab_keras.config import UserError
from deeplab_keras.convert.graphs import Convolution
from deeplab_keras.io.foreign import reading

Tensors = dict[str, np.ndarray]
LARGEST_RATIO = 20  # of an archive's content to the archive
ARCHIVES = (".tar.gz", ".tgz", ".tar")
SHARD = re.compile(r"\.data-(\d{5})-of-(\d{5})$")
AGAIN = "download or copy it again"
COMPLETE = "a checkpoint is the .index file and every .data file beside it"
# Beginning of a file -> what it is, and the flag for it.
OTHER_KINDS = {
    b"\x89HDF": "an HDF5 file of Keras; give `source='keras_applications'` if it holds ImageNet "
    "weights",
    b"PK\x03\x04": "a zip file, as PyTorch writes them (.pth); give `source='sssegmentation'` or "
    "`source='torchvision'`",
    b"\x1f\x8b": "a gzip file; an archive's name ends in .tar.gz, give it such a name",
    b"\xff\xd8\xff": "a JPEG picture; give a TF1 checkpoint, a release's .tar.gz, a .pb or a "
    ".tflite file",
    b"\x89PNG": "a PNG picture; give a TF1 checkpoint, a release's .tar.gz, a .pb or a .tflite "
    "file",
}
MEMBER = re.compile(r"(^|/)(checkpoint|[^/]+\.(index|pb|tflite)|[^/]+\.data-\d{5}-of-\d{5})$")


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights as they were found.

    Attributes:
        tensors: by TF1 name; a folded batch norm has its four vectors again.
        kind: "TF1 checkpoint", "frozen graph" or "TFLite file".
        path: what was read, for the reader of the proof.
        folded: whether the batch norms had been folded into the convolutions.
        graph: the open graph, unless the file holds weights only.
    """

    tensors: Tensors
    kind: str
    path: str
    folded: bool = False
    graph: Any = None


def read_source(
    path: str | os.PathLike[str], epsilon: float = 1e-3, head_epsilon: float = 1e-5
) -> Source:
    """The tensors of an official file, whatever its kind.

    Args:
        path: checkpoint prefix, folder, archive, .pb or .tflite.
        epsilon: the backbone's batch norm epsilon, to undo the folding with.
        head_epsilon: the head's.

    Raises:
        UserError: nothing there, a file of it is missing, truncated or damaged, an archive that
            would write elsewhere, quantised weights.
    """
    path = pathlib.Path(path)
    if path.name.endswith(ARCHIVES):
        with tempfile.TemporaryDirectory() as folder:
            _unpack(path, pathlib.Path(folder))
            found = read_source(folder, epsilon, head_epsilon)
            return dataclasses.replace(
                found, path=f"{path} ({os.path.relpath(found.path, folder)})"
            )
    if path.is_dir():
        path = _find(path)
    if path.suffix in (".pb", ".tflite"):
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        graph, layers = _open_graph(path)
        tensors, folded = unfold(tensors_of(layers), epsilon, head_epsilon)
        check_values(tensors, path, AGAIN)
        return Source(tensors, graph.kind, str(path), folded, graph)
    prefix = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", str(path))
    tensors = _read_checkpoint(prefix)
    check_values(tensors, prefix, AGAIN)
    return Source(tensors, "TF1 checkpoint", prefix)


def is_official_file(path: str) -> bool:
    """Whether `path` looks like something for `read_source`: an archive, a graph, a TFLite file, a TF1 checkpoint."""
    if path.endswith((*ARCHIVES, ".pb", ".tflite")) or os.path.exists(f"{path}.index"):
        return True
    return os.path.isdir(path) and any(name.endswith(".index") for name in os.listdir(path))


def _open_graph(path: pathlib.Path) -> tuple[Any, dict[str, Convolution]]:
    """The graph of a file and its convolutions by their official names; none if the names are lost."""
    if path.suffix == ".pb":
        from deeplab_keras.convert.frozen_graph import FrozenGraph, layer_name

        graph: Any = FrozenGraph(path)
        needed = "a frozen graph of a float model is needed"
    else:
        from deeplab_keras.convert.tflite_weights import TFLiteGraph, layer_name

        graph, needed = TFLiteGraph(path), "this is no segmentation network"
    network = graph.network
    if not network.convolutions:
        raise UserError(f"{path}: no convolution in it; {needed}")
    layers = {layer_name(convolution.names): convolution for convolution in network.convolutions}
    return graph, {} if "" in layers or len(layers) < len(network.convolutions) else layers


def tensors_of(layers: Mapping[str, Convolution]) -> Tensors:
    """The weights of convolutions under TF1 names; see `unfold`."""
    tensors = {}
    for layer, convolution in layers.items():
        tensors[f"{layer}/{'depthwise_weights' if convolution.depthwise else 'weights'}"] = (
            convolution.kernel.astype(np.float32)
        )
        tensors |= {f"{layer}/{name}": vector for name, vector in convolution.vectors.items()}
    return tensors


# === Checkpoints ===


def _read_checkpoint(prefix: str) -> Tensors:
    import tensorflow as tf

    if os.path.exists(f"{prefix}.index"):
        _check_shards(prefix)
    elif not os.path.isfile(prefix):
        raise UserError(
            f"{prefix}: no such checkpoint ({prefix}.index is missing); give the prefix "
            "(.../model.ckpt-30000), its "
            "folder, a release's .tar.gz, a .pb or a .tflite file"
        )
    other = _other_kind(prefix)
    if other:
        raise UserError(f"{prefix}: {other}")
    with reading(prefix, "a TF1 checkpoint"):
        reader = tf.train.load_checkpoint(prefix)
        shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        stated = sum(
            math.prod(shape) * max(1, types[name].size or 1) for name, shape in shapes.items()
        )
        stored = sum(os.path.getsize(file) for file in glob.glob(f"{glob.escape(prefix)}*"))
        if stated > stored:
            raise UserError(
                f"{prefix}: its index states {stated} bytes of tensors, its files have {stored}; "
                f"{COMPLETE}"
            )
        return {name: np.asarray(reader.get_tensor(name)) for name in sorted(shapes)}


def _other_kind(path: str) -> str:
    """What a file is that begins as files of other kinds do, and the flag for it; "" if it does not."""
    if not os.path.isfile(path):
        return ""
    with open(path, "rb") as file:
        start = file.read(8)
    return next(
        (advice for beginning, advice in OTHER_KINDS.items() if start.startswith(beginning)), ""
    )


def _check_shards(prefix: str) -> None:
    folder, name = os.path.split(prefix)
    shards = [
        SHARD.search(entry)
        for entry in os.listdir(folder or ".")
        if entry.startswith(f"{name}.data-")
    ]
    total = next((int(match[2]) for match in shards if match), 1)
    missing = [
        i for i in range(total) if not os.path.exists(f"{prefix}.data-{i:05d}-of-{total:05d}")
    ]
    if missing:
        raise UserError(f"{prefix}.data-{missing[0]:05d}-of-{total:05d}: missing; {COMPLETE}")


def _find(folder: pathlib.Path) -> pathlib.Path:
    """The weights in a folder or in its only subfolder: a checkpoint, else a frozen graph, else a TFLite file."""
    import tensorflow as tf

    for place in (folder, *sorted(entry for entry in folder.iterdir() if entry.is_dir())):
        with reading(
            place / "checkpoint",
            "a list of checkpoints",
            "delete it, or give a checkpoint's prefix",
        ):
            state = tf.train.latest_checkpoint(str(place))  # what the file `checkpoint` names
        if state:
            return pathlib.Path(state)
        for pattern in ("*.index", "*.pb", "*.tflite"):
            found = sorted(place.glob(pattern))
            if len(found) > 1:
                names = ", ".join(entry.name for entry in found)
                raise UserError(f"{place}: several weights ({names}); give the one that is meant")
            if found:
                return found[0]
        shards = sorted(place.glob("*.data-?????-of-?????"))
        if shards:
            raise UserError(f"{SHARD.sub('.index', str(shards[0]))}: missing; {COMPLETE}")
    raise UserError(f"{folder}: no TF1 checkpoint (*.index), frozen graph (*.pb) or *.tflite in it")


# === Archives ===


def _unpack(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Unpacks the weights of a release; refuses an archive that would write anywhere else."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    limit = LARGEST_RATIO * path.stat().st_size + (256 << 20)
    with reading(path, "a tar archive", "download it again"), tarfile.open(path) as archive:
        members, unpacked = [], 0
        for member in archive:
            _refuse_escape(path, member)
            members.append(member)
            unpacked += max(member.size, 0)
            if unpacked > limit:
                raise UserError(
                    f"{path}: unpacks to more than {limit >> 20} MiB, which no release does; "
                    "download it again"
                )
        wanted = [member for member in members if member.isfile() and MEMBER.search(member.name)]
        archive.extractall(folder, wanted, filter="data")
    if not wanted:
        raise UserError(f"{path}: no checkpoint, frozen graph or .tflite in this archive")


def _refuse_escape(path: pathlib.Path, member: tarfile.TarInfo) -> None:
    for name in (member.name, member.linkname if member.issym() or member.islnk() else ""):
        if (
            name.startswith(("/", "\\"))
            or ".." in re.split(r"[/\\]", name)
            or re.match(r"[A-Za-z]:", name)
        ):
            raise UserError(
                f"{path}: would write outside of its folder ({name}); this is no official release"
            )


# === Folded batch norms ===


def unfold(tensors: Tensors, epsilon: float, head_epsilon: float) -> tuple[Tensors, bool]:
    """Batch norms in place of the vectors `<layer>/scale` and `<layer>/offset` that the readers found at convolutions.

    Layers that never have a batch norm (classifiers, squeeze-and-excite, a gate) get `biases`
    instead.
    """
    result, folded = {}, False
    for layer, name, value in _split(tensors):
        if name not in ("scale", "offset"):
            result[f"{layer}/{name}"] = value
    for layer, name, value in _split(tensors):
        if name != "offset":
            continue
        if _without_batch_norm(layer, tensors):
            result[f"{layer}/biases"] = value
            if f"{layer}/scale" in tensors:
                result[f"{layer}/weights"] = result[f"{layer}/weights"] * tensors[f"{layer}/scale"]
            continue
        folded = True
        variance = np.float32(1 - (epsilon if layer.startswith("Mobilenet") else head_epsilon))
        result |= {
            f"{layer}/BatchNorm/gamma": tensors.get(f"{layer}/scale", np.ones_like(value)),
            f"{layer}/BatchNorm/beta": value,
            f"{layer}/BatchNorm/moving_mean": np.zeros_like(value),
            f"{layer}/BatchNorm/moving_variance": np.full_like(value, variance),
        }
    return result, folded


def _split(tensors: Tensors) -> Iterator[tuple[str, str, np.ndarray]]:
    for full, value in tensors.items():
        layer, _, name = full.rpartition("/")
        yield layer, name, value


def _without_batch_norm(layer: str, tensors: Tensors) -> bool:
    if layer.startswith("logits/") or "/squeeze_excite/" in layer:
        return True
    # LR-ASPP: no classifier of its own, and no batch norm at the gate and in the decoder.
    is_lraspp = not any(name.startswith("logits/") for name in tensors)
    return is_lraspp and layer in (
        "image_pooling",
        "decoder/feature_projection0",
        "decoder/decoder_conv0",
    )
