"""The files behind an entry, against folders whose imports are known."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

from fedmlic import code


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A package outside of the project: ``my_lab.entry`` and what it imports, in several ways."""
    files = {
        "my_lab/__init__.py": "",
        "my_lab/entry.py": (
            "import numpy as np, os.path\nfrom . import near\nfrom .deep.inner import (  # why\n    a,\n    b,\n)\n"
            "def entry():\n    import lone_module as lone\n    from fedmlic.labels import PRESENT\n    return lone\n"
        ),
        "my_lab/near.py": "from \\\n    .cousin import x\n",
        "my_lab/cousin.py": "import my_lab.entry\nx = 1\n",
        "my_lab/unused.py": "",
        "my_lab/deep/__init__.py": "from ..siblings import *\n",
        "my_lab/deep/inner.py": "a = b = 1\n",
        "my_lab/siblings.py": "",
        "lone_module.py": "try: import numpy\nexcept ImportError: pass\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    code._installed.cache_clear()
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in {"my_lab", "lone_module"}]:
        del sys.modules[name]


EXPECTED = {
    "lone_module.py",
    *(
        f"my_lab/{name}.py"
        for name in ("__init__", "entry", "near", "cousin", "siblings", "deep/__init__", "deep/inner")
    ),
}


@pytest.mark.usefixtures("lab")
def test_everything_an_entry_imports_is_behind_it_and_nothing_else():
    files = code.files_behind("my_lab.entry")

    assert set(code.outside(files)) == EXPECTED
    assert "fedmlic/labels.py" in files
    assert not any(name.startswith(("numpy", "os")) for name in files)
    assert "my_lab.entry" not in sys.modules  # nothing was imported to find out


@pytest.mark.parametrize("name", ["my_lab/deep/inner.py", "lone_module.py", "my_lab/entry.py"])
def test_an_edit_changes_the_hash_of_that_file_alone(lab, name):
    before = code.files_behind("my_lab.entry")
    (lab / name).write_text((lab / name).read_text() + "# edited\n")

    change = code.compare(before, code.files_behind("my_lab.entry"))

    assert change == ([name], [], [])
    assert str(change) == f"changed: {name}"
    assert not code.compare(before, before)


def test_what_was_imported_before_an_edit_keeps_the_hash_of_what_runs(lab):
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    importlib.import_module("my_lab.entry")
    first = code.files_behind("my_lab.entry")
    (lab / "my_lab" / "entry.py").write_text("z = 1\n")
    same = code.files_behind("my_lab.entry")["my_lab/entry.py"]
    importlib.reload(sys.modules["my_lab.entry"])
    sys.dont_write_bytecode = before

    assert same == first["my_lab/entry.py"] != code.files_behind("my_lab.entry")["my_lab/entry.py"]


def test_installed_modules_have_no_files_here_unless_they_are_the_entry():
    assert code.files_behind("json") == {} or all(name.startswith("json/") for name in code.files_behind("json"))
    assert all(name.startswith("packaging/") for name in code.files_behind("packaging.version"))
    assert code.files_behind("no_such_module.at_all") == {}


@pytest.mark.parametrize(("name", "counts"), [("site-packages", False), ("dist-packages", False), ("mine", True)])
def test_packages_of_another_environment_on_the_path_are_installed_ones(tmp_path, monkeypatch, name, counts):
    folder = tmp_path / name
    (folder / f"elsewhere_{counts}").mkdir(parents=True)
    (folder / f"elsewhere_{counts}" / "__init__.py").write_text("")
    (tmp_path / f"entry_{counts}.py").write_text(f"import elsewhere_{counts}\n")
    for path in (tmp_path, folder):
        monkeypatch.syspath_prepend(path)
    importlib.invalidate_caches()
    code._installed.cache_clear()

    assert (f"elsewhere_{counts}/__init__.py" in code.files_behind(f"entry_{counts}")) is counts
    code._installed.cache_clear()


@pytest.mark.parametrize("package", ["fedmlic", "clients", "strategies"])
def test_imports_of_this_project_are_those_that_pythons_parser_finds(package):
    root = Path(code.__file__).parents[1]
    for file in sorted((root / package).rglob("*.py")):
        module = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        expected = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                expected |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                expected |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        assert expected <= set(code._imports(file, module)), file


def test_a_change_names_ten_files():
    change = code.compare({f"{n:02}": "a" for n in range(12)}, {"x": "b", "00": "c"})

    assert str(change).startswith("changed: 00; new: x; gone: 01, 02, ")
    assert str(change).endswith("10 and 1 more")
