"""Every citation of docs/reference/ and every link leads to an existing section."""

from __future__ import annotations

import collections
import pathlib
import re

import pytest
from contracts import ROOT

FOLDERS = ("deeplab_keras", "benchmarks", "tests", "scripts", "configs", "docs", "demo")
SUFFIXES = (".py", ".flags", ".md", ".js", ".html")
# A citation is "docs/reference/PAGE.md#section". Links of pages are tested below.
CITATION = re.compile(r"(?<!\]\()docs/reference/([\w.-]*\w)(?:#([\w-]*\w))?")
ELSEWHERE = re.compile(
    r"\bspec/\w|\bSTACK\b|\bits spec\b|\bspec, (?:section|T\d)|\bspec's section|\(T\d+\)"
)
LINK = re.compile(r"\]\(([^)\s#]*)#([^)\s]+)\)")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def texts() -> list[pathlib.Path]:
    inside = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
    files = [path for path in [*inside, *ROOT.glob("*.md")] if path.suffix in SUFFIXES]
    return [path for path in files if path != pathlib.Path(__file__)]


def sections(page: pathlib.Path) -> list[str]:
    """The anchors that GitHub gives the headings of a page."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.*?) *$", prose, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    seen: collections.Counter[str] = collections.Counter()
    numbered = []
    for anchor in anchors:
        numbered.append(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return numbered


def test_every_citation_names_a_section():
    found = [
        (path, *citation) for path in texts() for citation in CITATION.findall(path.read_text())
    ]
    assert len(found) > 50
    known = {page.name: sections(page) for page in (ROOT / "docs" / "reference").glob("*.md")}
    broken = [
        f"{path.relative_to(ROOT)}: docs/reference/{page}#{section}"
        for path, page, section in found
        if section not in known.get(page, ())
    ]
    assert broken == []


def test_nothing_cites_documents_outside_the_repository():
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in texts()
        for match in ELSEWHERE.finditer(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_sections_lead_somewhere(page):
    for target, section in LINK.findall(page.read_text()):
        if not target.startswith(("https://", "http://")):
            assert section in sections((page.parent / target) if target else page), (
                f"{page.relative_to(ROOT)} links to {target}#{section}"
            )


@pytest.mark.parametrize(
    "page", ["official_deeplab.md", "sssegmentation.md", "libraries.md", "pytorch.md"]
)
def test_sections_of_a_reference_page_have_unique_names(page):
    found = sections(ROOT / "docs" / "reference" / page)
    assert len(found) == len(set(found))


ROOMS = sorted(path.name for path in (ROOT / "deeplab_keras").iterdir() if path.is_dir())
MODULE_PATH = re.compile(rf"(?<![\w./-])(?:deeplab_keras/)?((?:{'|'.join(ROOMS)})/[\w/]+\.py)\b")
MODULE_NAME = re.compile(r"\bdeeplab_keras((?:\.[a-z_0-9]+)+)")


def module_exists(dotted: str) -> bool:
    """Whether a dotted name leads to a module, or to a name in one."""
    place = ROOT / "deeplab_keras"
    for part in dotted.strip(".").split("."):
        if (place / f"{part}.py").exists():
            return True
        if not (place / part).is_dir():
            return bool(re.search(rf"\b{part}\b", (place / "__init__.py").read_text()))
        place = place / part
    return True


def test_modules_that_documentation_names_exist():
    pages = [page for page in PAGES if page.parent.name != "reference"]
    code = [path for path in texts() if "deeplab_keras" in path.parts and path.suffix == ".py"]
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in pages + code
        for name in MODULE_PATH.findall(path.read_text())
        if not (ROOT / "deeplab_keras" / name).exists() and not re.search("[A-Z]", name)
    ]
    missing += [
        f"{path.relative_to(ROOT)}: deeplab_keras{name}"
        for path in pages + code
        for name in MODULE_NAME.findall(path.read_text())
        if not module_exists(name)
    ]
    # Examples of CONTRIBUTING.md, which exist in the reader's copy only.
    examples = ("models/backbones/plain.py", "models/heads/context.py", "data/datasets/roads.py")
    assert [line for line in missing if not line.endswith(examples)] == []


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the tables in a section of a reference page, header rows included."""
    text = (ROOT / "docs" / "reference" / page).read_text()
    section = re.split(r"^#+ ", text.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.M)[0]
    rows = re.findall(r"^\| (.*) \|$", section, re.MULTILINE)
    return [[cell.strip(" `") for cell in row.split("|")] for row in rows]


def test_released_models_agree_with_the_code():
    from deeplab_keras.zoo.official import RELEASES

    stated = {row[-1]: row for row in table("official_deeplab.md", "Released models")}
    assert len(RELEASES) == 12
    for release in RELEASES.values():
        name, split, stride, miou, several, _ = stated[release.file]
        assert name.split()[0] == release.zoo_name and split == release.split
        assert int(stride.split()[-1]) == release.config.output_stride
        assert (float(miou.split()[-1]) if miou else None) == release.miou
        expected = f"{release.miou_multi_scale} ({release.scales})"
        assert several == (expected if release.miou_multi_scale else "")


def test_systems_of_sssegmentation_agree_with_the_tests():
    from test_zoo import TABLE

    counts = {row[0]: row[1:] for row in table("sssegmentation.md", "Parameters and multiply-adds")}
    scores = {row[0]: row[2:] for row in table("sssegmentation.md", "Systems")}
    for name, (*numbers, miou) in TABLE.items():
        assert [float(cell.replace(",", "")) for cell in counts[name]] == numbers
        system, dataset = name.rsplit("_", 1)
        assert float(scores[system][["voc", "ade20k", "cityscapes"].index(dataset)]) == miou
