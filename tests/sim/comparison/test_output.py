"""Names in Markdown are read as they are: what a Markdown parser makes of a table has the same text."""

from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from sim.comparison.output import markdown_table, markdown_text

NAMES = (
    "plain",
    "snake_case_name",
    "<b>x</b>&<script>alert(1)</script>",
    "&lt;",
    "bar|x\\|y",
    "*stars* **two**",
    "_underscores_ __two__",
    "`code` ``two``",
    "[link](http://example.org) ![image](x.png)",
    "$\\frac{1}{2}$",
    "~~struck~~",
    "ends with \\",
    "a, \"quoted\" 'name'",
    "日本 é",
)


class Cells(HTMLParser):
    """The text of every cell, and the tags that are in a cell."""

    def __init__(self):
        super().__init__()
        self.texts, self.tags, self.within = [], [], False

    def handle_starttag(self, tag, _):
        if self.within:
            self.tags.append(tag)
        if tag in {"td", "th"}:
            self.within = True
            self.texts.append("")

    def handle_endtag(self, tag):
        self.within = self.within and tag not in {"td", "th"}

    def handle_data(self, data):
        if self.within:
            self.texts[-1] += data


def rendered(text):
    cells = Cells()
    cells.feed(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))
    return cells


def test_cells_hold_what_was_given():
    cells = rendered("\n".join(markdown_table(["name", "a|b"], [[name, "1"] for name in NAMES])))

    assert cells.texts == ["name", "a|b", *(cell for name in NAMES for cell in (name, "1"))]
    assert cells.tags == []


def test_one_cell_is_bold():
    cells = rendered("\n".join(markdown_table(["row", "value"], [["a*", "0.5"], ["b", "0.4"]], {(0, 1)})))

    assert cells.texts[2:] == ["a*", "0.5", "b", "0.4"]
    assert cells.tags == ["strong"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_sentence_is_what_was_given(name):
    html = MarkdownIt("commonmark").render(f"- of {markdown_text(name)}.")
    cells = Cells()
    cells.feed(f"<td>{html}</td>")

    assert cells.texts[0].strip() == f"of {name}."
    assert cells.tags == ["ul", "li"]


def test_a_name_is_on_one_line():
    assert markdown_text("a\n# b") == "a # b"
