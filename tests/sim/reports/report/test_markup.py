"""Markup is balanced and every text comes back as it was; charts' small parts."""

import itertools
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.console import visible
from sim.reports.report.markup import VOID, Markup, element, joined, named, table
from sim.reports.report.svg import Scale, marker, padded, round_step, spaced


class Balance(HTMLParser):
    """Checks that elements nest, and collects the text."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.text, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_comes_back_and_opens_nothing(text, attribute):
    parser = Balance()
    parser.feed(joined([element("p", text, title=attribute), named(text)]))
    parser.close()

    expected = visible(text).encode("utf-8", "backslashreplace").decode()
    assert parser.open == []
    assert (expected * 2).replace("\r", "\n") == "".join(parser.text).replace("\r", "\n")


def test_only_what_is_markup_is_markup():
    assert element("p", "<i>", element("i", "x")) == "<p>&lt;i&gt;<i>x</i></p>"
    assert element("img", alt='"<', hidden=True, width=None) == '<img alt="&quot;&lt;" hidden>'
    assert isinstance(element("p"), Markup)


def test_a_tables_numbers_sort_by_their_full_value():
    found = table("caption", ["name", "value"], [["a", 0.123456789], ["b", float("nan")], ["c", 12345]])

    assert 'data-v="0.123457">0.123<' in found
    assert 'data-v="">-<' in found
    assert 'data-v="12345">12,345<' in found


def test_scales_put_round_ticks_between_their_ends():
    assert Scale(0, 1, 0, 100).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert Scale(3, 3000, 0, 1, log=True).ticks() == [10, 100, 1000]
    assert Scale(1, 100, 0, 10, log=True)(10) == pytest.approx(5)


@given(st.floats(1e-6, 1e6))
def test_steps_are_round_and_not_below(rough):
    step = round_step(rough)
    digits = f"{step:e}"[0]

    assert step >= rough * (1 - 1e-9)
    assert step <= rough * 2.5 * (1 + 1e-9)
    assert digits in "125"


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_marks_are_moved_apart_within_their_room(places):
    moved = spaced(places, 10, 0, 100)
    ordered = sorted(moved)

    assert all(b - a >= 10 - 1e-6 for a, b in itertools.pairwise(ordered))
    assert [i for i, _ in sorted(enumerate(places), key=lambda e: e[1])] == [
        i for i, _ in sorted(enumerate(moved), key=lambda e: e[1])
    ]


def test_scales_of_one_value_have_a_width():
    low, high = padded([3.0, 3.0])
    assert low < 3 < high
    assert padded([])[0] < padded([])[1]


def test_four_shapes_differ():
    assert len({marker(shape, 10, 10) for shape in range(4)}) == 4
