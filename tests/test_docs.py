"""The index of the documentation: docs/README.md."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_index_links_every_page_once_and_nothing_else():
    lines = (DOCS / "README.md").read_text(encoding="utf-8").splitlines()
    linked = [match[2] for line in lines if (match := re.match(r"\| \[(\w+)\]\(([\w/]+\.md)\) \| \S", line))]
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if path != DOCS / "README.md"]

    assert sorted(linked) == sorted(pages), "Add one line for each new page to docs/README.md."


def test_links_to_files_of_the_project_lead_somewhere():
    links = [
        (page, target)
        for page in DOCS.rglob("*.md")
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    ]

    assert [(page.name, target) for page, target in links if not (page.parent / target).exists()] == []
