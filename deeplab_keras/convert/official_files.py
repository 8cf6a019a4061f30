"""Reads official DeepLab weights as tensors with TF1 names and TF1 axes.

    TF1 checkpoint        a prefix, one of its files, or its folder
    release archive       a .tar.gz as downloaded; only the weights are unpacked, into a temporary
                          folder
    frozen graph (.pb)    convolutions with their batch norm, folded or not
    .tflite, float        convolutions with their folded batch norm

A folded batch norm is converted to an equivalent one: mean 0, variance 1 - epsilon, the folded
factor (or 1) as gamma and the folded offset as beta.

TensorFlow is only imported when a file is read, so that models can be built and loaded on other
backends without it.
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
LARGEST_RATIO = 20  # of the size of an archive's content to the size of the archive
ARCHIVES = (".tar.gz", ".tgz", ".tar")
SHARD = re.compile(r"\.data-(\d{5})-of-(\d{5})$")
AGAIN = "download or copy it again"
COMPLETE = "a checkpoint consists of an .index file and all its .data files"
# First bytes of a file -> what it is, and what to do.
OTHER_KINDS = {
    b"\x89HDF": "an HDF5 file of Keras; give `source='keras_applications'` if it holds ImageNet "
    "weights",
    b"PK\x03\x04": "a zip file, as written by PyTorch (.pth); give `source='sssegmentation'` or "
    "`source='torchvision'`",
    b"\x1f\x8b": "a gzip file; if it is a release archive, give it a name that ends in .tar.gz",
    b"\xff\xd8\xff": "a JPEG image; give a TF1 checkpoint, a release's .tar.gz, a .pb or a "
    ".tflite file",
    b"\x89PNG": "a PNG image; give a TF1 checkpoint, a release's .tar.gz, a .pb or a .tflite file",
}
MEMBER = re.compile(r"(^|/)(checkpoint|[^/]+\.(index|pb|tflite)|[^/]+\.data-\d{5}-of-\d{5})$")


@dataclasses.dataclass(frozen=True)
class OfficialSource:
    """The weights of an official file.

    Attributes:
        tensors: The weights by TF1 name. A folded batch norm has its four vectors again.
        kind: "TF1 checkpoint", "frozen graph" or "TFLite file".
        path: The file, for messages.
        folded: Whether the batch norms were folded into the convolutions.
        graph: The open graph; `None` if the file only has weights.
    """

    tensors: Tensors
    kind: str
    path: str
    folded: bool = False
    graph: Any = None


def read_source(
    path: str | os.PathLike[str], epsilon: float = 1e-3, head_epsilon: float = 1e-5
) -> OfficialSource:
    """Reads the tensors of an official file of any kind.

    Args:
        path: A checkpoint prefix, a folder, an archive, a .pb or a .tflite file.
        epsilon: The backbone's batch norm epsilon, to undo the folding.
        head_epsilon: The head's batch norm epsilon.

    Raises:
        UserError: If a file is missing, truncated or damaged, an archive would write outside of its
            folder, or the weights are quantized.
    """
    path = pathlib.Path(path)
    if path.name.endswith(ARCHIVES):
        with tempfile.TemporaryDirectory() as folder:
            _unpack(path, pathlib.Path(folder))
            try:
                found = read_source(folder, epsilon, head_epsilon)
            except UserError as error:
                inside = error.message.replace(f"{folder}{os.sep}", "")
                raise UserError(f"{path}: {inside}", hint=error.hint) from error
            name = f"{path} ({os.path.relpath(found.path, folder)})"
            if found.graph is not None:
                found.graph.path = name
            return dataclasses.replace(found, path=name)
    if path.is_dir():
        path = _find(path)
    if path.suffix in (".pb", ".tflite"):
        if not path.is_file():
            raise UserError(f"{path}: no such file; give a frozen graph or a TFLite file")
        graph, layers = _open_graph(path)
        tensors, folded = unfold(tensors_of(layers), epsilon, head_epsilon)
        check_values(tensors, path, AGAIN)
        return OfficialSource(tensors, graph.kind, str(path), folded, graph)
    prefix = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", str(path))
    tensors = _read_checkpoint(prefix)
    check_values(tensors, prefix, AGAIN)
    return OfficialSource(tensors, "TF1 checkpoint", prefix)


def is_official_file(path: str) -> bool:
    """Whether a path seems to be an archive, a graph, a TFLite file or a TF1 checkpoint."""
    if path.endswith((*ARCHIVES, ".pb", ".tflite")) or os.path.exists(f"{path}.index"):
        return True
    return os.path.isdir(path) and any(name.endswith(".index") for name in os.listdir(path))


def _open_graph(path: pathlib.Path) -> tuple[Any, dict[str, Convolution]]:
    """Opens a graph.

    Returns:
        The graph and its convolutions by their official names, which are empty if the names are
        lost.
    """
    if path.suffix == ".pb":
        from deeplab_keras.convert.frozen_graph import FrozenGraph, layer_name

        graph: Any = FrozenGraph(path)
    else:
        from deeplab_keras.convert.tflite_weights import TFLiteGraph, layer_name

        graph = TFLiteGraph(path)
    network = graph.network
    if not network.convolutions:
        raise UserError(
            f"{path}: has no convolutions; give the {graph.kind} of a float segmentation network"
        )
    layers = {layer_name(convolution.names): convolution for convolution in network.convolutions}
    return graph, {} if "" in layers or len(layers) < len(network.convolutions) else layers


def tensors_of(layers: Mapping[str, Convolution]) -> Tensors:
    """Returns the weights of convolutions by their TF1 names; see `unfold`."""
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
            "(.../model.ckpt-30000), its folder, a release's .tar.gz, a .pb or a .tflite file"
        )
    other = _other_kind(prefix)
    if other:
        raise UserError(f"{prefix}: {other}")
    with reading(prefix, "a TF1 checkpoint"):
        reader = tf.train.load_checkpoint(prefix)
        shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        declared = sum(
            math.prod(shape) * max(1, types[name].size or 1) for name, shape in shapes.items()
        )
        stored = sum(os.path.getsize(file) for file in glob.glob(f"{glob.escape(prefix)}*"))
        if declared > stored:
            raise UserError(
                f"{prefix}: its index declares {declared} bytes of tensors, but its files have "
                f"{stored}; {COMPLETE}"
            )
        return {name: np.asarray(reader.get_tensor(name)) for name in sorted(shapes)}


def _other_kind(path: str) -> str:
    """Returns what a file of another kind is, and what to do with it; "" if it is unknown."""
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
    """Finds the weights in a folder or its subfolders.

    Checkpoints take precedence over frozen graphs, and these over TFLite files.
    """
    import tensorflow as tf

    for location in (folder, *sorted(entry for entry in folder.iterdir() if entry.is_dir())):
        with reading(
            location / "checkpoint",
            "a list of checkpoints",
            "delete it, or give a checkpoint's prefix",
        ):
            state = tf.train.latest_checkpoint(str(location))  # what the file `checkpoint` names
        if state:
            return pathlib.Path(state)
        for pattern in ("*.index", "*.pb", "*.tflite"):
            found = sorted(location.glob(pattern))
            if len(found) > 1:
                names = ", ".join(entry.name for entry in found)
                raise UserError(
                    f"{location}: several files with weights ({names}); give one of them"
                )
            if found:
                return found[0]
        shards = sorted(location.glob("*.data-?????-of-?????"))
        if shards:
            raise UserError(f"{SHARD.sub('.index', str(shards[0]))}: missing; {COMPLETE}")
    raise UserError(
        f"{folder}: no TF1 checkpoint (*.index), frozen graph (*.pb) or *.tflite in it; give a "
        "folder with one of these"
    )


# === Archives ===


def _unpack(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Unpacks the weights of a release. Refuses an archive that would write outside of `folder`."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a release archive (.tar.gz)")
    limit = LARGEST_RATIO * path.stat().st_size + (256 << 20)
    with reading(path, "a tar archive", "download it again"), tarfile.open(path) as archive:
        members, unpacked = [], 0
        for member in archive:
            _refuse_escape(path, member)
            members.append(member)
            unpacked += max(member.size, 0)
            if unpacked > limit:
                raise UserError(
                    f"{path}: unpacks to more than {limit >> 20} MiB, larger than any release; "
                    "download it again"
                )
        wanted = [member for member in members if member.isfile() and MEMBER.search(member.name)]
        archive.extractall(folder, wanted, filter="data")
    if not wanted:
        raise UserError(
            f"{path}: no checkpoint, frozen graph or .tflite in this archive; give a release "
            "archive"
        )


def _refuse_escape(path: pathlib.Path, member: tarfile.TarInfo) -> None:
    for name in (member.name, member.linkname if member.issym() or member.islnk() else ""):
        if (
            name.startswith(("/", "\\"))
            or ".." in re.split(r"[/\\]", name)
            or re.match(r"[A-Za-z]:", name)
        ):
            raise UserError(
                f"{path}: would write outside of its folder ({name}), so it is not an official "
                "release; download it again"
            )


# === Folded batch norms ===


def unfold(tensors: Tensors, epsilon: float, head_epsilon: float) -> tuple[Tensors, bool]:
    """Converts the vectors `<layer>/scale` and `<layer>/offset` of convolutions to batch norms.

    Layers without batch norm (classifiers, squeeze-and-excite, gates) get `biases` instead.

    Returns:
        The tensors, and whether there were any folded batch norms.
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
    # LR-ASPP has no separate classifier, and no batch norm at the gate and in the decoder.
    is_lraspp = not any(name.startswith("logits/") for name in tensors)
    return is_lraspp and layer in (
        "image_pooling",
        "decoder/feature_projection0",
        "decoder/decoder_conv0",
    )
