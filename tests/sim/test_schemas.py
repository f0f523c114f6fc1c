"""What commands print and what tables hold is what docs/schemas says."""

import inspect
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator
from PIL import Image
from pydantic import ValidationError
from typer.testing import CliRunner

from fedmlic.tables import METADATA, SCHEMAS
from sim.command import app, data
from sim.schemas import OUTPUTS, check_output, json_schemas, tables, tag, text_of

FOLDER = Path(__file__).parents[2] / "docs" / "schemas"

SAME = {"resume": "run", "sweep-dry-run": "sweep"}
"""Schemas that belong to another command of that name, and commands that print another command's schema."""


def printed(*words):
    result = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    lines = ["path,labels,owner,split"]
    for number in range(16):
        pixels = np.random.default_rng(number).integers(0, 255, (12, 12, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        split = ("train", "train", "val", "test")[number % 4]
        lines.append(f"{number}.png,{'a|b' if number % 3 else 'b'},{('N', 'S')[number // 8]},{split}")
    (root / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def outputs(settings, photos, tmp_path_factory, finished):
    """What each command printed."""
    out = tmp_path_factory.mktemp("printed")
    pairs = [f"{key}={value}" for key, value in settings(num_rounds=1).items()]
    source = ["folder", f"root={photos}", "image-size=12", "separator=|"]
    found = {
        "run": printed("run", *pairs, "--out", out / "run"),
        "run of no rounds": printed("run", *pairs, "num-rounds=0", "--out", out / "none"),
        "resume": printed("resume", out / "run"),
        "show": printed("show", finished),
        "show of a run of no rounds": printed("show", out / "none"),
        "show of a run under way": printed("show", _begun(finished, out / "begun")),
        "predict": printed("predict", finished, photos / "0.png"),
        "describe": printed("describe", *pairs),
        "list": printed("list"),
        "list bce": printed("list", "bce"),
        "list seed": printed("list", "seed"),
        "compare": printed("compare", finished, out / "run", "--by", "num-rounds"),
        "data-import": printed("data", "import", *source),
        "data-check": printed("data", "check", *source),
        "data-check of nothing": printed("data", "check", "folder", f"root={out}", "image-size=12"),
        "data-describe": printed("data", "describe", *source, "--out", out / "pictures"),
    }
    found["data-verify"] = printed("data", "verify", found["data-import"]["corpus"])
    return found


def _begun(finished, path):
    path.mkdir()
    for name in ("experiment.json", "data.json"):
        (path / name).write_bytes((finished / name).read_bytes())
    return path


def test_every_output_follows_the_schema_that_it_names(outputs):
    schemas = json_schemas()
    for name, found in outputs.items():
        plain = name.partition(" ")[0]
        assert found["schema"] == tag(SAME.get(plain, plain)), name
        check_output(found)
        Draft202012Validator(schemas[f"{SAME.get(plain, plain)}.json"]).validate(found)


@pytest.mark.slow
def test_a_study_and_the_plan_of_one_follow_their_schemas(settings, tmp_path):
    pairs = [f"{key}={value}" for key, value in settings(num_rounds=1, seed="0,1").items()]
    for name, words in {"sweep-dry-run": ["--dry-run"], "sweep": []}.items():
        found = printed("sweep", *pairs, "--out", tmp_path / "study", *words)
        assert found["schema"] == tag(name)
        check_output(found)
        Draft202012Validator(json_schemas()[f"{name}.json"]).validate(found)


def test_a_field_that_no_schema_names_is_refused(outputs):
    with pytest.raises(ValidationError, match="surprise"):
        check_output({**outputs["run"], "surprise": 1})
    with pytest.raises(ValidationError, match="rounds"):
        check_output({**outputs["run"], "rounds": "3"})
    for wrong in ("run/0", "nothing/1", ""):
        with pytest.raises(ValueError, match="Expected a schema of this version"):
            check_output({**outputs["run"], "schema": wrong})


def test_every_command_with_json_has_a_schema():
    commands = {each.name or each.callback.__name__: each.callback for each in app.registered_commands}
    commands |= {f"data-{each.name}": each.callback for each in data.registered_commands}
    with_json = {name for name, call in commands.items() if "json_output" in inspect.signature(call).parameters}

    assert {SAME.get(name, name) for name in with_json} == {SAME.get(name, name) for name in OUTPUTS}


def test_the_files_are_those_of_the_code():
    """Write them with: python -m sim.schemas docs/schemas."""
    expected = {name: text_of(schema) for name, schema in json_schemas().items()}

    assert {file.name: file.read_text(encoding="utf-8") for file in FOLDER.glob("*.json")} == expected
    for name, schema in json_schemas().items():
        if name != "tables.json":
            Draft202012Validator.check_schema(schema)


def test_the_page_names_every_schema():
    page = (FOLDER.parent / "json.md").read_text(encoding="utf-8")

    for file in FOLDER.glob("*.json"):
        assert f"(schemas/{file.name})" in page


# Tables


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_tables_of_a_run_follow_their_schema(finished, name):
    path, schema = finished / f"{name}.parquet", SCHEMAS[name]
    table = pd.read_parquet(path)

    assert len(table)
    for column in table.columns:
        about = schema.column(column)
        assert about is not None, f"{column} is in no schema"
        dtype = str(table[column].dtype)
        floats = about.dtype == "int64" and about.nullable and table[column].isna().any()
        assert dtype == ("float64" if floats else {"string": "str"}.get(about.dtype, about.dtype)), column
        assert about.nullable or not table[column].isna().any(), column
    for about in schema.columns:
        assert about.optional or about.name in table, f"{about.name} is missing"
    assert json.loads(pq.read_schema(path).metadata[METADATA]) == {"table": name, "version": schema.version}


def test_tables_of_a_run_without_rounds_have_the_columns_that_all_have(tiny, tmp_path):
    from fedmlic.record import create

    folder = create(tmp_path / "run", *tiny())
    folder.write_tables()

    for name, schema in SCHEMAS.items():
        table = pd.read_parquet(folder.path / f"{name}.parquet")
        assert list(table.columns) == [column.name for column in schema.columns if not column.optional]
        assert len(table) == 0


def test_the_page_of_the_record_explains_every_column():
    page = (FOLDER.parent / "record.md").read_text(encoding="utf-8")

    for name, about in tables()["tables"].items():
        _, _, section = page.partition(f"\n## {name}\n")
        cells = section.partition("\n## ")[0]
        for column in about["columns"]:
            assert f"`{column['name'].replace('*', '')}" in cells, f"{name}: {column['name']}"
