"""docs/android.md and docs/ios.md say what an exported file is, and their code uses it so."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from contracts import ROOT
from test_export import CLASSES, SIZE, TOY, lively

from deeplab_keras.export import export_model, images
from deeplab_keras.inference import Predictor
from deeplab_keras.inference.exported import open_interpreter, packed_files

PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("android", "ios")}
ROW = re.compile(r"^\| (input|output) 0(?: with `--output=(\w+)`)? \| `(\w+)` \| (.+) \| (.+) \|$")
SNIPPETS = {
    name: "".join(re.findall(r"^```(?:kotlin|swift)\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    for name, page in PAGES.items()
}


def contract(page: str) -> list[tuple[str, ...]]:
    """Returns the rows of the table: kind, `--output`, name, shape, dtypes."""
    return [found.groups() for line in page.splitlines() if (found := ROW.match(line))]


def shape(text: str) -> list[int]:
    """Returns a shape of the table for a file of `SIZE` and `CLASSES`."""
    lengths = {"height": SIZE[0], "width": SIZE[1], "classes": len(CLASSES)}
    return [lengths.get(word) or int(word) for word in text.strip("`[]").split(", ")]


def test_both_pages_have_the_same_contract():
    android, ios = (contract(page) for page in PAGES.values())
    assert android == ios and len(android) == 3


def test_the_code_names_the_tensors_of_the_contract():
    for page, code in SNIPPETS.items():
        for kind, output, name, dims, _ in contract(PAGES[page]):
            if output != "logits":
                call = {
                    ("android", "input"): "getInputTensor(0)",
                    ("android", "output"): "getOutputTensor(0)",
                    ("ios", "input"): "input(at: 0)",
                    ("ios", "output"): "output(at: 0)",
                }[page, kind]
                (line,) = [line for line in code.splitlines() if "//" in line and call in line]
                assert line.endswith(f'// "{name}", {dims.strip("`")}'), line
        heights = re.findall(r"height = image\.shape(?:\(\)|\.dimensions)\[(\d)\]", code)
        widths = re.findall(r"width = image\.shape(?:\(\)|\.dimensions)\[(\d)\]", code)
        assert (heights, widths) == (["1"], ["2"])
        assert not re.search(r"127\.5|/ ?255|Normalize", code), "the network normalizes"


@pytest.mark.slow
def test_the_contract_is_that_of_an_exported_file(toy_backbone, tmp_path):
    checkpoint = lively(TOY)
    pictures = images.synthetic_images(SIZE, 3, 16)
    rows = contract(PAGES["android"])
    for output, label_type in (("labels", "int32"), ("labels", "uint8"), ("logits", "int32")):
        files = export_model(
            checkpoint,
            tmp_path / f"{output}_{label_type}",
            formats=["tflite", "tflite_float16", "tflite_dynamic", "tflite_int8"],
            input_size=SIZE,
            output=output,
            label_type=label_type,
            representative_images=pictures,
            min_agreement=0.0,
            log=lambda line: None,
        )
        for file in files:
            interpreter = open_interpreter(file.path, 1)
            signature = interpreter.get_signature_list()["serving_default"]
            inside = {
                "input": (signature["inputs"], interpreter.get_input_details()),
                "output": (signature["outputs"], interpreter.get_output_details()),
            }
            chosen = [row for row in rows if row[1] in (None, output)]
            assert [row[0] for row in chosen] == ["input", "output"]
            for kind, _, name, dims, dtypes in chosen:
                names, (details,) = inside[kind]
                assert names == [name] and details["shape"].tolist() == shape(dims)
                usual, _, other = dtypes.partition("; ")
                special = {
                    "input": file.kind == "tflite_int8",
                    "output": label_type == "uint8",
                }[kind]
                said = other if special and other else usual
                assert f"`{np.dtype(details['dtype']).name}`" in said
            assert packed_files(file.path)["labels.txt"].splitlines() == list(CLASSES)


@pytest.mark.slow
def test_bytes_in_and_labels_out(toy_backbone, tmp_path):
    """The steps of both snippets, with the dtypes that they decide by."""
    checkpoint = lively(TOY)
    pictures = images.synthetic_images(SIZE, 3, 16)
    for kind, label_type in itertools.product(("tflite", "tflite_int8"), ("int32", "uint8")):
        (file,) = export_model(
            checkpoint,
            tmp_path / f"{kind}_{label_type}.tflite",
            formats=[kind],
            input_size=SIZE,
            label_type=label_type,
            representative_images=pictures,
            log=lambda line: None,
        )
        interpreter = open_interpreter(file.path, 1)
        (image,), (labels,) = interpreter.get_input_details(), interpreter.get_output_details()
        height, width = image["shape"][1:3]
        rgb = pictures[0].tobytes()
        assert len(rgb) == height * width * 3
        floats = image["dtype"] == np.float32
        values = np.float32(list(rgb)) if floats else np.frombuffer(rgb, np.uint8)
        interpreter.set_tensor(image["index"], values.reshape(image["shape"]))
        interpreter.invoke()
        content = interpreter.get_tensor(labels["index"]).tobytes()
        found = np.frombuffer(content, np.uint8 if labels["dtype"] == np.uint8 else np.int32)
        assert len(found) == height * width and len(np.unique(found)) >= 3
        expected = Predictor(file.path)(pictures[0])
        np.testing.assert_array_equal(found.reshape(height, width), expected)
