"""Runs of the version before tables had schemas can still be read."""

import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from fedmlic.record import open_run, read_json
from fedmlic.tables import SCHEMAS
from sim.commands.shared import EXIT_INPUT
from sim.comparison.read import metrics_of
from sim.reports.show import show, summary
from sim.schemas import check_output, tag

OLD = Path(__file__).parents[1] / "fixtures" / "old_run"
"""Three rounds with ten labels, without checkpoints and Parquet files."""


def test_it_is_shown():
    found = summary(OLD)
    console = Console(file=io.StringIO(), width=100)

    show(found, console)

    text = " ".join(console.file.getvalue().split())
    assert found["status"] == "complete"
    assert "test, last" in text
    assert "test, best" in text
    assert "last: the model after round 3; best: after round 1, chosen on validation" in text
    assert "worst 0.298 over 6 of 6 clients" in text
    assert "labels on test, model after round 3" in text
    assert "│ nine" in text
    check_output({"schema": tag("show"), **found})


def test_its_tables_follow_the_schemas():
    tables = open_run(OLD).tables()

    assert {name: len(table) for name, table in tables.items()} == {
        "rounds": 3,
        "clients": 12,
        "hosts": 3,
        "labels": 60,
        "evaluations": 1,
        "client-evaluations": 0,
    }
    assert list(tables["client-evaluations"].columns) == [
        column.name for column in SCHEMAS["client-evaluations"].columns if not column.optional
    ]
    labels = tables["labels"]
    assert labels["ap"].dtype == np.float32
    last = labels.query("round == 3 and split == 'test'")["ap"].mean()
    assert last == pytest.approx(read_json(OLD / "result.json")["metrics"]["server/mAP"])
    assert "train_present" not in labels


def test_a_round_of_this_version_goes_below_those_of_the_old(tmp_path):
    shutil.copytree(OLD, tmp_path / "run")
    folder = open_run(tmp_path / "run")
    names = [str(number) for number in range(10)]
    shares = {name: [0.25] * 9 + [float("nan")] for name in ("ap", "precision", "recall", "f1")}
    counts = {"train_present": [3] * 10, "num_present": [1] * 10, "num_known": [2] * 10}
    folder.event("labels", {"round": 4, "split": "test", "label": names, **counts, **shares})

    folder.write_tables()
    found = pd.read_parquet(folder.path / "labels.parquet")

    assert len(found) == 70
    new = found.query("round == 4")
    assert new["ap"].tolist()[:9] == [0.25] * 9
    assert new["ap"].isna().sum() == 1
    assert new["train_present"].tolist() == [3.0] * 10
    assert found.query("round < 4")["train_present"].isna().all()
    assert new["annotated"].isna().all()
    assert found.query("round < 4")["annotated"].all()


def test_metrics_of_its_best_model_are_those_of_its_events():
    best = metrics_of(OLD, "best")

    assert best["server/val/mAP"] == pytest.approx(0.36970911)
    assert metrics_of(OLD, "last")["server/val/mAP"] == pytest.approx(0.36481131)


def test_what_it_did_not_keep_is_asked_for_in_vain(tmp_path):
    from typer.testing import CliRunner

    from sim.command import app

    shutil.copytree(OLD, tmp_path / "run")

    result = CliRunner().invoke(app, ["predict", str(tmp_path / "run"), str(tmp_path / "x.png")])

    assert result.exit_code == EXIT_INPUT
