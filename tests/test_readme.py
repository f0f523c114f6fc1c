"""What the README shows is what works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedmlic.spec import entries

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def example(name):
    """The Python text that the README gives for the file ``name``."""
    found = re.search(rf"<!-- example: {re.escape(name)} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found, name
    return found[1]


def test_the_method_of_the_readme_is_short_and_learns(plug, play, tmp_path):
    text = example("focused.py")
    assert len(text.splitlines()) <= 30

    plug("focused", text)
    result = play(tmp_path / "run", method="focused.focused(gamma=1.5)")

    assert result["metrics"]["server/mAP"] > 0
    assert result["weights_sha256"] != play(tmp_path / "plain", method="bce()")["weights_sha256"]


def test_without_focus_it_is_bce(plug, play, tmp_path):
    plug("focused", example("focused.py"))
    result = play(tmp_path / "run", method="focused.focused(gamma=0)")
    plain = play(tmp_path / "plain", method="bce()")

    assert result["metrics"]["server/mAP"] == pytest.approx(plain["metrics"]["server/mAP"], abs=1e-6)


def test_no_example_has_the_name_of_a_shipped_method():
    """Whoever writes it to ``fedmlic/methods/`` would overwrite that."""
    names = set(re.findall(r"<!-- example: (\w+)\.py -->", README)) | set(re.findall(r"\b(\w+)\.\1\(", README))

    assert names == {"focused"}
    assert names.isdisjoint(entries("method"))


def test_every_path_that_the_readme_names_exists():
    root = Path(__file__).parents[1]
    named = set(re.findall(r"`((?:fedmlic|clients|strategies|sim|docs|benchmarks|tests)/[\w./]*)`", README))

    assert named
    assert [path for path in sorted(named) if not (root / path).exists()] == []
