"""Facts about other projects live in docs/reference/, and every citation and link leads to one of its sections."""

from __future__ import annotations

import collections
import pathlib
import re

import pytest
from contracts import ROOT

FOLDERS = ("deeplab_keras", "benchmarks", "tests", "scripts", "configs", "docs", "demo")
SUFFIXES = (".py", ".flags", ".md", ".js", ".html")
# A citation is "docs/reference/PAGE.md#section"; links of Markdown pages are tested below and in test_docs.py.
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


@pytest.mark.parametrize("page", ["official_deeplab.md", "sssegmentation.md", "libraries.md"])
def test_sections_of_a_reference_page_have_unique_names(page):
    found = sections(ROOT / "docs" / "reference" / page)
    assert len(found) == len(set(found))
