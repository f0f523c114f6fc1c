"""The page in a real Chromium: what it shows, that it asks for nothing, and that it fits."""

import itertools
from pathlib import Path

import pytest

from sim.reports.report.write import write_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(small_study, tmp_path_factory):
    found = write_report([small_study], tmp_path_factory.mktemp("page") / "out")
    return Path(found["page"])


@pytest.mark.parametrize("width", [400, 900, 1400])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_and_asks_for_nothing(browser, page, width, theme):
    browser.open(page, width, theme)

    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.complaints() == []
    assert browser.requests() == []
    dark = browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 28)"
    assert dark == (theme == "dark")


def test_a_reader_chooses_rows_and_sees_values(browser, page):
    browser.open(page)
    shown = "[...document.querySelectorAll('#curves figure')][0].querySelectorAll('g[data-k=s0]:not(.off)').length"

    assert browser.run(shown) == 2  # the line and its number
    browser.run("document.querySelector('.key input[value=s0]').click()")
    assert browser.run(shown) == 0
    browser.run(
        "(() => { const svg = document.querySelector('#curves figure svg');"
        "const box = svg.getBoundingClientRect();"
        "const at = {clientX: box.left + box.width / 2, clientY: box.top + 50};"
        "svg.dispatchEvent(new PointerEvent('pointermove', at)) })()"
    )
    words = browser.run("document.getElementById('tip').textContent")
    assert words.startswith("round\n")
    assert "asl: 0." in words
    assert "bce: 0." not in words.replace("local-only, bce", "")


def test_arrow_keys_read_a_chart(browser, page):
    browser.open(page)
    browser.run("document.querySelector('#holdings figure svg').focus()")
    for _ in range(2):
        for kind in ("keyDown", "keyUp"):
            browser.call(
                "Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39
            )

    assert "% of images" in browser.run("document.getElementById('tip').textContent")


def test_tables_sort(browser, page):
    browser.open(page)
    column = (
        "[...document.querySelectorAll('#labels table.sortable tbody tr')].map((row) => Number(row.cells[5].dataset.v))"
    )
    browser.run("document.querySelectorAll('#labels table.sortable thead button')[5].click()")

    values = browser.run(column)
    assert values == sorted(values, reverse=True)
    assert browser.run("document.querySelectorAll('#labels thead th')[5].ariaSort") == "descending"


def test_the_switch_of_themes(browser, page):
    browser.open(page, theme="light")
    chosen = "(() => {{ const s = document.getElementById('theme'); s.value = '{}';"
    chosen += "s.dispatchEvent(new Event('change')) }})()"
    browser.run(chosen.format("dark"))

    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 28)"
    browser.run(chosen.format(""))


def test_main_figures_show_without_scripts(browser, page):
    browser.open(page, scripts=False)
    found = browser.call("DOMSnapshot.captureSnapshot", computedStyles=["display"])
    strings = found["strings"]

    assert sum(strings[n] == "svg" for n in found["documents"][0]["nodes"]["nodeName"]) > 10
    shown = {strings[place] for place in found["documents"][0]["layout"]["text"] if place >= 0}
    assert {"Test mAP", "What clients see", "Reliability"} <= shown
    assert "Theme " not in shown
    browser.open(page)


def test_print_keeps_figures_whole(browser, page):
    browser.open(page, 1000)
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])

    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.run("getComputedStyle(document.querySelector('figure')).breakInside") == "avoid"
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
    data = browser.call("Page.printToPDF", preferCSSPageSize=True)["data"]
    assert len(data) > 50_000


def test_landmarks_headings_and_names(browser, page):
    browser.open(page)
    levels = browser.run("[...document.querySelectorAll('h1,h2,h3,h4')].map((each) => Number(each.tagName[1]))")

    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 2 for before, after in itertools.pairwise(levels))
    nameless = (
        "[...document.querySelectorAll('section, nav, svg[role=img], [role=region]')].filter((each) => "
        "!each.ariaLabel && !(each.getAttribute('aria-labelledby') || '').split(' ').every((id) => "
        "id && document.getElementById(id))).length"
    )
    assert browser.run(nameless) == 0
