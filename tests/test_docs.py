"""The index of the documentation, docs/README.md, and what no file of the project may hold."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def test_the_index_links_every_page_once_and_every_folder():
    """Pages of catalogue entries are found in their folder: a new entry needs no line in this index."""
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    linked = re.findall(r"^\| \[\w+\]\((\w+\.md)\) \| \S", text, re.MULTILINE)
    pages = [path.name for path in DOCS.glob("*.md") if path.name != "README.md"]
    folders = {path.parent.name for path in DOCS.glob("*/*.md")}

    assert sorted(linked) == sorted(pages), "Add one line for each new page of docs/ to docs/README.md."
    assert folders == set(re.findall(r"^\| \[(\w+)\]\(\1[/)]", text, re.MULTILINE))


def test_the_page_of_a_folder_has_a_line_for_each_of_its_other_pages():
    """Such as docs/strategies/README.md, a table of all rules."""
    lacking = [
        str(page.relative_to(DOCS))
        for index in DOCS.glob("*/README.md")
        for page in sorted(index.parent.glob("*.md"))
        if page != index and f"]({page.name})" not in index.read_text(encoding="utf-8")
    ]

    assert lacking == [], "Add a line for each of these pages to the README.md of its folder."


def test_links_to_files_of_the_project_lead_somewhere():
    links = [
        (page, target)
        for page in DOCS.rglob("*.md")
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    ]

    assert [(page.name, target) for page, target in links if not (page.parent / target).exists()] == []


def test_the_page_of_benchmarks_has_a_line_for_each_program_and_for_nothing_else():
    """A program is a file that says what to do when it is started; the rest are shared parts."""
    files = (DOCS.parent / "benchmarks").glob("*.py")
    programs = [file.name for file in files if "\nif __name__ ==" in file.read_text(encoding="utf-8")]
    page = (DOCS / "benchmarks.md").read_text(encoding="utf-8")

    assert len(programs) > 10
    assert sorted(re.findall(r"^\| `benchmarks/(\w+\.py)` \| \S", page, re.MULTILINE)) == sorted(programs)


def test_extras_are_there_with_uv_run_and_the_index_names_all_of_them():
    """The group dev, or what FedMLIC always brings, holds the packages of every extra."""
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    always = set(project["project"]["dependencies"])
    there = always | set(project["dependency-groups"]["dev"])
    text = (DOCS / "README.md").read_text(encoding="utf-8").partition("## Extras")[2].partition("\n- ")[0]
    absent, bundled = (set(re.findall(r"`(\w+)`", part)) for part in text.partition("(`emoji`")[::2])

    assert {name: set(packages) - there for name, packages in extras.items() if set(packages) - there} == {}
    assert absent | bundled | {"emoji"} == set(extras)
    assert {name for name, packages in extras.items() if set(packages) <= always} == bundled | {"emoji"}


def test_no_file_holds_the_marks_of_an_unfinished_merge():
    """A page with them is still good Markdown, so nothing else would tell."""
    root = DOCS.parent
    names = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False).stdout
    if not names:
        pytest.skip("this copy of the project is no git checkout")
    marks = re.compile(rb"^(<{7}|\|{7}|>{7}) .*$|^={7}$", re.MULTILINE)

    files = [root / name for name in names.split("\0") if (root / name).is_file()]

    assert DOCS / "README.md" in files
    assert [str(file.relative_to(root)) for file in files if marks.search(file.read_bytes())] == []
