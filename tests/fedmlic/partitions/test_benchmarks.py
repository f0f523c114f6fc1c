"""The benchmarks of partitions run, on a small federation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SMALL = ("--images=3000", "--clients=60", "--labels=10")


@pytest.mark.slow
def test_cost_is_measured_in_seconds_and_megabytes(tmp_path):
    arguments = [
        "--only=dirichlet",
        "--only=natural(min_images=2)",
        "--only=statistics",
        f"--out={tmp_path / 'x.json'}",
    ]
    script = BENCHMARKS / "partition_scale.py"
    subprocess.run([sys.executable, script, *SMALL, *arguments], check=True, capture_output=True)
    rows = json.loads((tmp_path / "x.json").read_text())

    assert [row["partition"] for row in rows] == ["dirichlet", "natural(min_images=2)", "statistics"]
    assert all({"seconds", "cpu_seconds", "megabytes"} <= row.keys() for row in rows)
    assert [row["clients"] for row in rows] == [60, 60, 60]


@pytest.mark.slow
def test_skew_is_shown_as_a_table():
    script = BENCHMARKS / "partition_skew.py"
    done = subprocess.run(
        [sys.executable, script, "--images=6000", "--clients=6"], check=True, capture_output=True, text=True
    )
    rows = [line.split("|") for line in done.stdout.splitlines()]

    assert len(rows) > 20
    assert {len(row) for row in rows} == {9}
