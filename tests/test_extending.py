"""What docs/extending.md shows is what works: every template runs, and the batteries take it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedmlic.spec import CATALOGUES, entries

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- example: (\w+)\.py -->\n```python\n(.*?)```", TEXT, re.DOTALL))

TEMPLATES = {
    "smoothed": "method",
    "agreeing": "method",
    "fading": "regime",
    "blocks": "partition",
    "bars": "dataset",
    "median": "strategy",
    "centred": "mods",
    "plain_cnn": "model",
    "mirrored": "inference",
}
BATTERIES = {key: "mods" if key == "mods" else f"{key}s".replace("strategys", "strategies") for key in CATALOGUES}

HARMFUL = """
from fedmlic.inference import Inference
def harmful() -> Inference:
    return Inference(lambda predict: lambda images: 2 * predict(images))
"""


def with_template(name):
    """What is changed in the tiny experiment."""
    changed = {"num_rounds": 2, TEMPLATES[name]: f"{name}.{name}()"}
    return {**changed, "regime": "complete()"} if TEMPLATES[name] == "dataset" else changed  # it has other labels


@pytest.fixture(scope="module")
def plain_weights(play, tmp_path_factory):
    """The result of the tiny experiment without any template."""
    return play(tmp_path_factory.mktemp("plain") / "run", num_rounds=2)


def test_every_catalogue_has_a_template_and_every_template_is_tested():
    assert set(EXAMPLES) == set(TEMPLATES)
    assert set(TEMPLATES.values()) == set(CATALOGUES)


def test_no_file_that_the_page_names_is_one_that_is_shipped():
    """Whoever writes it to the folder of its catalogue would overwrite that."""
    dotted, written = re.findall(r"\b([a-z]\w*)\.\1\b", TEXT), re.findall(r"writefile (\w+)\.py", TEXT)
    names = {*TEMPLATES, *dotted, *written}

    assert names == set(TEMPLATES)
    assert names.isdisjoint(name for key in CATALOGUES for name in entries(key))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_complete_and_changes_something(plug, play, plain_weights, tmp_path, name):
    plug(name, EXAMPLES[name])
    result = play(tmp_path / "run", **with_template(name))

    assert 0 < result["metrics"]["server/mAP"] <= 1
    if TEMPLATES[name] == "inference":  # it trains nothing
        assert result["weights_sha256"] == plain_weights["weights_sha256"]
        assert result["metrics"]["server/mAP"] != plain_weights["metrics"]["server/mAP"]
    else:
        assert result["weights_sha256"] != plain_weights["weights_sha256"]


def test_worker_processes_find_a_plug_in_and_come_to_the_same(plug, play, tmp_path):
    plug("agreeing", EXAMPLES["agreeing"])
    settings = with_template("agreeing")
    here = play(tmp_path / "here", **settings)
    there = play(tmp_path / "there", engine="processes", workers=2, **settings)

    assert here["weights_sha256"] == there["weights_sha256"]


def battery(name, key, folder):
    """Play the battery of a catalogue on a module beside the user, as the page says."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        ROOT / "tests" / "contracts" / f"test_{BATTERIES[key]}.py",
    ]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "FEDMLIC_ENTRY": f"{name}.{name}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_battery_refuses_a_plug_in_that_breaks_a_promise(tmp_path):
    (tmp_path / "harmful.py").write_text(HARMFUL, encoding="utf-8")
    found = battery("harmful", "inference", tmp_path)

    assert found.returncode == 1, found.stdout
    assert "FAILED" in found.stdout
    assert "harmful.harmful" in found.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_passes_the_battery_of_its_catalogue(tmp_path, name):
    (tmp_path / f"{name}.py").write_text(EXAMPLES[name], encoding="utf-8")
    found = battery(name, TEMPLATES[name], tmp_path)

    assert found.returncode == 0, found.stdout
    assert re.search(r"\b[4-9]\d* passed|\b\d{2,} passed", found.stdout)


def test_every_path_that_the_page_names_exists():
    named = set(re.findall(r"`((?:fedmlic|strategies|docs|tests)/[\w./]*)`", TEXT))

    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
