"""What the README shows is what works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def example(name):
    """The Python text that the README gives for the file ``name``."""
    found = re.search(rf"<!-- example: {re.escape(name)} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found, name
    return found[1]


def test_the_method_of_the_readme_is_short_and_learns(plug, play, tmp_path):
    text = example("focal.py")
    assert len(text.splitlines()) <= 30

    plug("focal", text)
    result = play(tmp_path / "run", method="focal.focal(gamma=1.5)")

    assert result["metrics"]["server/mAP"] > 0
    assert result["weights_sha256"] != play(tmp_path / "plain", method="bce()")["weights_sha256"]


def test_without_focus_it_is_bce(plug, play, tmp_path):
    plug("focal", example("focal.py"))
    result = play(tmp_path / "run", method="focal.focal(gamma=0)")
    plain = play(tmp_path / "plain", method="bce()")

    assert result["metrics"]["server/mAP"] == pytest.approx(plain["metrics"]["server/mAP"], abs=1e-6)


def test_every_path_that_the_readme_names_exists():
    root = Path(__file__).parents[1]
    named = set(re.findall(r"`((?:fedmlic|clients|strategies|sim|docs|benchmarks|tests)/[\w./]*)`", README))

    assert named
    assert [path for path in sorted(named) if not (root / path).exists()] == []
