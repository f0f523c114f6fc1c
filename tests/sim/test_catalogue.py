"""What can be chosen is read from the source, and it is what can be built."""

import importlib
import importlib.util
import inspect
import runpy
from pathlib import Path

import pytest

from fedmlic import spec
from fedmlic.experiment import Experiment, Runtime
from sim import catalogue

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.parametrize("key", spec.CATALOGUES)
def test_every_entry_has_a_line_and_the_arguments_of_its_factory(key):
    found = catalogue.catalogue(key)

    assert [entry.name for entry in found] == spec.entries(key)
    for entry in found:
        parameters = inspect.signature(spec.factory(key, entry.name)).parameters
        assert entry.summary
        assert "\n" not in entry.summary
        assert "defines no factory" not in entry.summary
        assert list(entry.arguments) == list(parameters)
        for name, default in entry.arguments.items():
            assert (default is None) == (parameters[name].default is inspect.Parameter.empty)


@pytest.mark.parametrize("key", spec.CATALOGUES)
def test_what_is_shown_can_be_pasted(key, tmp_path, monkeypatch):
    runpy.run_path(str(FIXTURES / "hapi.py"))["tree"](tmp_path, "coco")  # whose regime looks for files
    monkeypatch.setenv("HAPI_DATA_DIR", str(tmp_path))
    for entry in catalogue.catalogue(key):
        if None in entry.arguments.values():
            continue
        spec.check(key, entry.call)
        packages = getattr(importlib.import_module(f"{spec.CATALOGUES[key]}.{entry.name}"), "IMPORTS", ())
        if all(importlib.util.find_spec(package) for package in packages):
            assert spec.build(key, entry.call) is not None


def test_listing_imports_no_entry_and_survives_a_broken_one(tmp_path):
    (tmp_path / "broken.py").write_text(
        '"""A plug-in."""\n\nimport nothing_like_this\n\n\ndef broken(*, a: int = 1):\n    """One line."""\n'
    )
    (tmp_path / "empty.py").write_text('"""Nothing here."""\n')

    broken, empty = (catalogue._read(tmp_path / f"{name}.py") for name in ("broken", "empty"))

    assert broken == catalogue.Entry("broken", "One line.", {"a": "1"})
    assert broken.call == "broken(a=1)"
    assert "defines no factory empty" in empty.summary


def test_all_catalogues_and_all_other_settings_are_there():
    assert set(catalogue.everything()) == set(spec.CATALOGUES)
    keys = {*Experiment.model_fields, *Runtime.model_fields} - set(spec.CATALOGUES)
    assert {key.replace("_", "-") for key in keys} == set(catalogue.settings())
    for name, (_, about) in catalogue.settings().items():
        assert about, name
