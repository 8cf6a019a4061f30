"""TFLite metadata, read by an independent reader that knows only the schemas' field numbers."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from flatbuffers import number_types
from flatbuffers.table import Table
from test_export import CLASSES, SIZE, TOY, lively

from deeplab_keras import export
from deeplab_keras.config import ExportConfig
from deeplab_keras.export import images, metadata, tflite
from deeplab_keras.export.exportable import Exportable
from deeplab_keras.inference import Predictor
from deeplab_keras.inference.exported import open_interpreter, packed_files

KINDS = ("tflite", "tflite_float16", "tflite_dynamic", "tflite_int8")


class Fields:
    """A flatbuffer table with access to fields by their number in the schema."""

    def __init__(self, content, position=None):
        self.table = Table(content, 0)
        self.table.Pos = self.table.Indirect(0) if position is None else position

    def at(self, number):
        offset = self.table.Offset(4 + 2 * number)
        return offset and self.table.Pos + offset

    def number(self, number, flags=number_types.Uint8Flags):
        return self.table.Get(flags, self.at(number)) if self.at(number) else 0

    def text(self, number):
        return self.table.String(self.at(number)).decode()

    def inner(self, number):
        return Fields(self.table.Bytes, self.table.Indirect(self.at(number)))

    def position(self, number):
        return self.table.Vector(self.at(number) - self.table.Pos)

    def array(self, number, dtype):
        length = self.table.VectorLen(self.at(number) - self.table.Pos)
        return np.frombuffer(self.table.Bytes, dtype, length, self.position(number))

    def list(self, number):
        start, length = self.position(number), len(self.array(number, "<u4"))
        return [
            Fields(self.table.Bytes, self.table.Indirect(start + 4 * index))
            for index in range(length)
        ]


def entry(content):
    """Returns the content of the metadata buffer."""
    root = Fields(content)
    (found,) = [one for one in root.list(6) if one.text(0) == "TFLITE_METADATA"]
    return root.list(4)[found.number(1, number_types.Uint32Flags)].array(0, np.uint8).tobytes()


@pytest.fixture(scope="module")
def checkpoint(toy_backbone):
    return lively(TOY)


@pytest.fixture(scope="module")
def plain(checkpoint):
    """The converted file of each kind without metadata, with both outputs."""
    config = ExportConfig(input_size=SIZE, output="both", threads=1)
    source = Exportable.of(checkpoint)
    job = export._Job(source, source, config, images.synthetic_images(SIZE, 3, 16))
    files = {
        kind: tflite.convert(job.frozen, job.outputs, kind)
        for kind in ("float32", "float16", "dynamic")
    }
    return dict(zip(KINDS, [*files.values(), tflite.quantize(job.calibrated)], strict=True))


@pytest.mark.parametrize("output", ["labels", "logits", "both"])
def test_metadata_describes_the_tensors(checkpoint, tmp_path, output):
    path = tmp_path / "model.tflite"
    export.export_model(
        checkpoint, path, formats=["tflite"], input_size=SIZE, output=output, log=lambda line: None
    )
    content = path.read_bytes()
    assert content[4:8] == b"TFL3"
    said = entry(content)
    assert said[4:8] == b"M001"
    model = Fields(said)
    assert model.text(0) == "deeplab_v3_plus on toy" and "5 of test" in model.text(1)
    assert model.text(4) == "deeplab_keras" and model.text(7) == (
        "1.0.0" if output == "labels" else "1.5.0"
    )
    (graph,) = model.list(3)

    (image,) = graph.list(2)
    assert image.text(0) == "image"
    assert (
        image.inner(3).number(0) == 2 and image.inner(3).inner(1).number(0) == 1
    )  # ImageProperties, RGB
    (normalization,) = image.list(4)
    assert normalization.number(0) == 1  # NormalizationOptions: (x - mean) / std
    assert normalization.inner(1).array(0, "<f4").tolist() == [0] and normalization.inner(1).array(
        1, "<f4"
    ).tolist() == [1]
    assert image.inner(5).array(0, "<f4").tolist() == [255] and image.inner(5).array(
        1, "<f4"
    ).tolist() == [0]

    interpreter = open_interpreter(path, 1)
    assert len(graph.list(3)) == len(interpreter.get_output_details())
    by_shape = {
        len(details["shape"]): found
        for details, found in zip(interpreter.get_output_details(), graph.list(3), strict=True)
    }
    expected = {
        "labels": {3: "labels"},
        "logits": {4: "logits"},
        "both": {3: "labels", 4: "logits"},
    }[output]
    assert {rank: found.text(0) for rank, found in by_shape.items()} == expected
    for rank, found in by_shape.items():
        (names,) = found.list(6)
        assert (
            names.text(0) == "labels.txt" and names.number(2) == {3: 3, 4: 2}[rank]
        )  # for its values, for its axis
        area = found.inner(3).inner(2)
        assert [area.number(bound, number_types.Int32Flags) for bound in (0, 1)] == [
            1,
            2,
        ]  # rows, columns
    assert packed_files(path)["labels.txt"].splitlines() == list(CLASSES)
    recorded = {file.text(0) for file in model.list(6)} | {names.text(0)}
    assert recorded == set(zipfile.ZipFile(path).namelist())
    if output != "labels":
        (softmax,) = graph.list(9)
        assert softmax.text(0) == "SEGMENTER_METADATA"
        options = softmax.array(1, np.uint8).tobytes()
        assert options[4:8] == b"V001" and Fields(options).number(0) == 2
    assert (
        len(np.unique(Predictor(path)(images.synthetic_images(SIZE, 3, 1)[0]))) >= 3
    )  # the predictor reads it as before


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_does_not_change_results(plain, kind):
    before = plain[kind]
    after = metadata.describe(before, "a", "b", "c")
    assert tflite.named_operators(after) == tflite.named_operators(before)
    dtype = np.uint8 if kind == "tflite_int8" else np.float32
    runs = [open_interpreter(model, 2).get_signature_runner() for model in (before, after)]
    for picture in images.synthetic_images(SIZE, 3, 2):
        expected, found = (run(image=picture[None].astype(dtype)) for run in runs)
        assert (
            set(found) == set(expected) == {"labels", "logits"}
            and len(np.unique(found["labels"])) >= 3
        )
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("kind", KINDS)
def test_buffers_are_unchanged_and_aligned(plain, kind):
    before = plain[kind]
    after = metadata.describe(before, "a", "b", "c")
    assert after == metadata.describe(before, "a", "b", "c") and len(after) < len(before) + 10_000
    old, new = Fields(before), Fields(after)
    assert [one.text(0) for one in new.list(6)] == [
        *(one.text(0) for one in old.list(6)),
        "TFLITE_METADATA",
    ]
    kept, there = old.list(4), new.list(4)
    assert len(there) == len(kept) + 1
    for one, other in zip(kept, there, strict=False):
        assert bool(one.at(0)) == bool(other.at(0))
        if one.at(0):
            assert one.array(0, np.uint8).tobytes() == other.array(0, np.uint8).tobytes()
    assert not any(buffer.position(0) % 16 for buffer in there if buffer.at(0))


@pytest.mark.slow
def test_equal_models_are_equal_files(checkpoint, tmp_path):
    for name in ("a.tflite", "b.tflite"):
        export.export_model(
            checkpoint, tmp_path / name, formats=["tflite"], input_size=SIZE, log=lambda line: None
        )
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()
