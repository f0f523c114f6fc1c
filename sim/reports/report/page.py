"""The page: sections in order, with styles and script inside, and a policy that forbids the network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from sim.reports.report.clients import clients_section, holdings_section
from sim.reports.report.curves import curves_section
from sim.reports.report.gather import Report
from sim.reports.report.judged import calibration_section, cooccurrence_section, images_section
from sim.reports.report.labels import labels_section
from sim.reports.report.markup import Markup, bullets, element, joined, named
from sim.reports.report.overview import results_section, sentence, summary_section
from sim.reports.report.running import again_section, cost_section, failures_section

SECTIONS: tuple[tuple[str, str, Callable[[Report], Markup]], ...] = (
    ("summary", "Summary", summary_section),
    ("results", "Results", results_section),
    ("holdings", "Who holds what", holdings_section),
    ("curves", "Curves", curves_section),
    ("labels", "Labels", labels_section),
    ("clients", "Clients", clients_section),
    ("calibration", "Calibration and thresholds", calibration_section),
    ("cooccurrence", "Errors by co-occurrence", cooccurrence_section),
    ("images", "Hardest images", images_section),
    ("cost", "Bytes and seconds", cost_section),
    ("failures", "Failures", failures_section),
    ("again", "Run it again", again_section),
)

GENERATOR = "fedmlic report"


@cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def page_of(report: Report, tables: Sequence[str]) -> str:
    """The whole page as text.

    Args:
        report: what it shows.
        tables: names of the CSV files in ``tables/`` beside it.
    """
    style, script = _asset("page.css"), _asset("page.js")
    allowed = f"img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=GENERATOR),
        element("title", f"{report.title}: FedMLIC report"),
        element("style", Markup(style)),
    )
    parts = [_section(key, title, made(report)) for key, title, made in SECTIONS]
    files = _section("tables", "Tables", _files(tables))
    links = [element("li", element("a", title, href=f"#{key}")) for key, title, _ in SECTIONS]
    links.append(element("li", element("a", "Tables", href="#tables")))
    body = element(
        "body",
        element("a", "Skip to the content", href="#main", class_="skip"),
        _header(report),
        element(
            "div",
            element("nav", element("ol", *links), aria_label="Contents"),
            element("main", *parts, files, id="main", tabindex=-1),
            class_="columns",
        ),
        element(
            "footer", element("p", f"Made by FedMLIC {version('fedmlic')}. Nothing on this page comes from a network.")
        ),
        element("div", id="tip", role="status", aria_live="polite", hidden=True),
        element("script", Markup(script)),
    )
    return "<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n"


def _header(report: Report) -> Markup:
    themes = [
        element("option", words, value=value)
        for value, words in (("", "as the system"), ("light", "light"), ("dark", "dark"))
    ]
    switch = element("label", "Theme ", element("select", *themes, id="theme"), class_="script theme")
    title = element("h1", named(report.title))
    return element(
        "header",
        element("div", element("p", "FedMLIC report", class_="kicker"), switch, class_="bar"),
        title,
        sentence(report),
    )


def _section(key: str, title: str, content: Markup) -> Markup:
    return element(
        "section", element("h2", title, id=f"{key}-heading"), content, id=key, aria_labelledby=f"{key}-heading"
    )


def _files(tables: Sequence[str]) -> Markup:
    lead = element(
        "p", "What the figures are drawn from, as CSV in the folder ", element("code", "tables"), " beside this page:"
    )
    return joined([lead, bullets(element("a", name, href=f"tables/{name}") for name in tables)])
