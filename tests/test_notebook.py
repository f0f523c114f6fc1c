"""docs/notebook.ipynb: its cells run, use public names only, and say what came out."""

import ast
import json
from pathlib import Path

import pytest

from sim import api

FILE = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
NOTEBOOK = json.loads(FILE.read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_cells_use_public_names_only():
    tree = ast.parse("\n".join(CODE))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "api"
    }
    imported = {
        (node.module, name.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names
    }

    assert {"sweep", "compare", "plot_curves", "shard"} <= used <= set(api.__all__)
    assert imported == {("sim", "api")}
    assert not any(isinstance(node, ast.Attribute) and node.attr.startswith("_") for node in ast.walk(tree))


def test_what_is_kept_of_its_outputs_is_small_and_names_no_machine():
    for cell in NOTEBOOK["cells"]:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error"
            for data in output.get("data", {}).values():
                assert len("".join(data)) < 140_000  # base64 of 100 kB
    text = json.dumps([cell.get("outputs", []) for cell in NOTEBOOK["cells"]])
    assert "/tmp" not in text  # noqa: S108
    assert "/home" not in text
    assert len(FILE.read_bytes()) < 500_000


@pytest.mark.slow
def test_its_cells_run_and_the_answer_is_the_one_that_it_tells(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, cell in enumerate(CODE):
        exec(compile(cell, f"cell {number}", "exec"), names)  # noqa: S102  (our own file)

    pairs = names["compared"].pairs.set_index("first")
    assert (pairs["mean"] > 0).all()
    assert pairs.loc["assume_negative", "p_holm"] < 0.05 < pairs.loc["asl", "p_holm"]
