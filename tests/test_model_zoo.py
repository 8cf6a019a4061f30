"""docs/model_zoo.md is what the configs and the recipes say."""

from __future__ import annotations

import re

import pytest
from contracts import ROOT, script
from test_zoo import TABLE

from benchmarks import model_zoo
from deeplab_keras.zoo import registry as zoo
from deeplab_keras.zoo.downloads import download_of

PAGE = (ROOT / "docs" / "model_zoo.md").read_text()
ROW = r"^\| `([^`]+)` \| ([\d,]+) \| ([\d,]+) \| ([\d.]+|-) \| (.*?) \| (.*?) \| (?:\[|\|)"
ROWS = {row[0]: row for row in re.findall(ROW, PAGE, re.MULTILINE)}
COUNTS = {name: row[1:4] for name, row in ROWS.items()}


def test_every_model_stands_in_it_once():
    assert sorted(re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)) == sorted(zoo.MODELS)


@pytest.mark.parametrize(
    "output, message",
    [
        ("", "--output=.: cannot be read (Is a directory); run the script from the repository"),
        ("none.md", "none.md: cannot be read (No such file or directory); run the script from"),
        ("bytes.md", "bytes.md: cannot be read ('utf-8' codec can't decode"),
        ("text.md", "text.md: has no headings of level 2 with tables; run the script from the"),
    ],
)
def test_pages_that_cannot_be_written(tmp_path, monkeypatch, capsys, output, message):
    monkeypatch.setattr(model_zoo, "load_keras", None)  # before the models are counted
    (tmp_path / "bytes.md").write_bytes(b"\xff")
    (tmp_path / "text.md").write_text("# Title\n")
    output = output and str(tmp_path / output)
    assert script("make_model_zoo.py")(f"--output={output}") == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_tables_are_up_to_date():
    """All but what has to be counted: names, order, reported and measured values, links."""
    assert model_zoo.replace_tables(PAGE, model_zoo.tables(COUNTS.__getitem__)) == PAGE, (
        "run: python scripts/make_model_zoo.py"
    )


def test_every_row_has_everything_that_is_known_about_the_release():
    """Both file names, the checksum, the config, the log, the license and the papers."""
    bibliography = (ROOT / "CITATION.bib").read_text()
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", PAGE, re.MULTILINE))
    checksums = 0
    for name in zoo.MODELS:
        found = download_of(name)
        *_, links, license, cite = rows[name].split(" | ")
        addresses = re.findall(r"\]\(([^)]+)\)", links)
        logs = [found.log] if found.source == "sssegmentation" else []
        assert addresses == [*found.urls, found.config, *logs] and all(addresses), name
        assert license == found.license != ""
        assert tuple(cite.split()) == found.papers != ()
        assert all(f"{{{paper}," in bibliography for paper in found.papers)
        if found.checksum:
            assert f"({found.checksum.replace(':', ' ')})" in links
            checksums += 1
    assert checksums == 3 and len(rows) == 32


@pytest.mark.parametrize("name", TABLE)
def test_the_counts_are_the_reference_s(name):
    """Those that tests/test_zoo.py finds in the models themselves."""
    parameters, auxiliary, _, multiply_adds, reported = TABLE[name]
    assert ROWS[name][1:5] == (
        f"{parameters:,}",
        f"{auxiliary:,}",
        f"{multiply_adds:.3f}",
        f"{reported:.2f}",
    )


def test_a_measured_value_in_a_header_gets_into_the_table(tmp_path, monkeypatch):
    (tmp_path / "voc").mkdir()
    name = "fcn_mobilenetv2os8_voc"
    header = (ROOT / "configs" / "voc" / f"{name}.flags").read_text()
    (tmp_path / "voc" / f"{name}.flags").write_text(
        header.replace("not measured here\n\n", "59.12 (one H100)\n\n")
    )
    monkeypatch.setitem(vars(model_zoo), "CONFIGS", tmp_path)
    assert (
        "| 59.89 | 59.12 | [voc](../configs/voc/fcn_mobilenetv2os8_voc.flags) |"
        in model_zoo.tables(COUNTS.__getitem__)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.MODELS)
def test_the_counts_are_the_model_s(name):
    assert model_zoo.count(name) == COUNTS[name], "run: python scripts/make_model_zoo.py"
