"""Every link of the guides leads somewhere, in the repository and on the site.

MkDocs is not needed for this: headings get the anchors that repositories' pages give them, and ``mkdocs.yml`` asks for
the same. `make docs` checks the built pages.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

import tada

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading.strip()).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(anchor if anchor not in found else f"{anchor}-{sum(name.startswith(anchor) for name in found)}")
    return found


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere, with what is wrong."""
    wrong = []
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        if re.match(r"(https?|mailto):", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT.resolve()) and not target.is_relative_to(page.parent):
            wrong.append(f"{link}: outside of the repository")
        elif not target.is_file():
            wrong.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            wrong.append(f"{link}: no such heading")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_every_guide_is_in_the_navigation_of_the_site() -> None:
    named = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= named


def test_lists_begin_after_an_empty_line() -> None:
    """The site's Markdown makes a paragraph of others, where the repository's page makes a list."""
    for page in PAGES:
        lines = FENCE.sub("", page.read_text(encoding="utf-8")).splitlines()
        for before, line in pairwise(lines):
            begins = (
                re.match(r"[-*] \S|\||\d+\. ", line) and before.strip() and not re.match(r"[-*] |\||\d+\. |\s", before)
            )
            assert not begins or before.startswith("<"), f"{page.name}: {line[:60]!r} begins a list below a paragraph"


def test_the_reference_has_every_public_name() -> None:
    tree = ast.parse((ROOT / "site" / "hook.py").read_text(encoding="utf-8"))
    assigned = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    pages = ast.literal_eval(assigned["PUBLIC"])
    assert sorted(name for names in pages.values() for name in names) == sorted(tada.__all__)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs MkDocs: pip install -e '.[docs]'")
def test_the_site_is_built_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in ("index.html", "networks.html", "published/index.html", "reference/networks.html", "changelog.html"):
        assert (tmp_path / "site" / page).is_file()


def test_the_rules(tmp_path: Path) -> None:
    """The test of the test."""
    page = tmp_path / "a.md"
    page.write_text(
        "# One `b_c`, two's\n## Same\n## Same\n[x](#one-b_c-twos) [x](#same-1) [x](#no) [x](b.md) [x](a.md#same) "
        "[x](https://c)\n"
        "```text\n[x](no.md)\n# No\n```\n"
    )
    assert broken(page) == ["#no: no such heading", "b.md: no such file"]
    assert anchors("# A - b\n") == {"a---b"}
