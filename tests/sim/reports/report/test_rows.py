"""Rows, curves and label tables equal pandas on the tables of the runs; thinned curves keep what is extreme."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.record import open_run
from sim.reports.report.read import find_runs, read_run
from sim.reports.report.rows import Curve, curve, label_curves, label_table, rows_of, thinned


@pytest.fixture(scope="module")
def rows(small_study):
    return rows_of(find_runs([small_study]).runs)


def test_runs_that_differ_in_the_seed_are_a_row(rows):
    assert [(row.label, row.reference, row.seeds) for row in rows] == [
        ("bce", "", [0, 1]),
        ("asl", "", [0, 1]),
        ("local-only, bce", "local-only", [0]),
    ]


@pytest.mark.parametrize("metric", ["server/mAP", "loss", "client/mAP/mean"])
def test_curves_are_those_of_pandas(rows, metric):
    row, found = rows[0], curve(rows[0], metric)
    name = "evaluations" if metric.startswith("client/") else "rounds"
    table = pd.concat([open_run(run.path).tables()[name] for run in row.runs])
    over = table.groupby("round")[metric].agg(["mean", "min", "max", "count"]).dropna()

    assert over.index.tolist() == found.rounds.tolist()
    for column, values in (("mean", found.mean), ("min", found.low), ("max", found.high), ("count", found.num_seeds)):
        assert over[column].tolist() == pytest.approx(values.tolist())


def test_seconds_of_a_round_are_differences(rows):
    found = curve(rows[0], "round-seconds")
    tables = [open_run(run.path).tables()["rounds"]["seconds"].diff().dropna().tolist() for run in rows[0].runs]

    assert np.mean(tables, axis=0).tolist() == pytest.approx(found.mean[1:].tolist())


def test_labels_are_those_of_the_chosen_round(rows):
    found = label_table(rows[1], "best")
    for place, run in enumerate(rows[1].runs):
        table = open_run(run.path).tables()["labels"]
        chosen = table[(table["round"] == run.best_round) & (table["split"] == "test")]
        assert tuple(chosen["label"]) == found.names
        assert chosen["ap"].astype(float).tolist() == pytest.approx(found.ap[place].tolist(), nan_ok=True)
        assert (chosen["num_present"] / chosen["num_known"]).tolist() == pytest.approx(
            run.labels["test"].prevalence.tolist()
        )
    assert np.nanmean(found.ap, axis=0) == pytest.approx(found.mean, nan_ok=True)


def test_label_curves_are_means_over_seeds(rows):
    found = label_curves(rows[0], "test", [0, 3])
    tables = [run.labels["test"] for run in rows[0].runs]

    assert set(found) == {0, 3}
    assert np.mean([table.ap[:, 3] for table in tables], axis=0) == pytest.approx(found[3].mean)


def test_values_of_the_best_model_are_of_its_round(rows):
    for run in rows[0].runs:
        events = {event["round"]: event for event in open_run(run.path).events() if event["event"] == "round"}
        expected = events[run.best_round]["server/mAP"]
        assert expected == rows[0].values("server/mAP", "best")[run.seed]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 1500), st.integers(10, 200), st.integers(0, 2**32 - 1))
def test_thinned_curves_keep_ends_and_extremes(count, most, seed):
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=count)
    whole = Curve(np.arange(1, count + 1), mean, mean - rng.uniform(size=count), mean + 1, np.full(count, 3))
    found = thinned(whole, most)

    assert len(found.rounds) <= max(most, 2)
    assert np.all(np.diff(found.rounds) > 0)
    assert (found.rounds[0], found.rounds[-1]) == (1, count)
    assert (found.mean.min(), found.mean.max()) == (mean.min(), mean.max())
    assert (found.low.min(), found.high.max()) == (whole.low.min(), whole.high.max())


def test_a_run_that_was_cut_off_is_read(small_study, tmp_path):
    import shutil

    shutil.copytree(small_study / "runs" / "bce-0", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "events.jsonl").write_text("".join(lines[:-3]) + '{"event":"rou')
    found = read_run(tmp_path / "run")

    assert found.status == "unfinished"
    assert found.last_round >= 2
    assert found.asked_round("last") == 3


def marked(row, *masks):
    """A row whose runs annotate the labels of these masks."""
    runs = [
        replace(run, labels={side: replace(found, annotated=np.array(mask)) for side, found in run.labels.items()})
        for run, mask in zip(row.runs, masks, strict=True)
    ]
    return replace(row, runs=runs)


def test_a_seed_at_which_nobody_annotates_a_label_does_not_count_for_it(rows):
    """Label 0 is annotated at both seeds, label 1 at seed 1 alone, label 2 at neither: it keeps all its seeds."""
    both = [run.labels["test"].ap[-1] for run in rows[0].runs]
    row = marked(rows[0], [True, False, False] + [True] * 7, [True, True, False] + [True] * 7)
    found, curves = label_table(row, "last"), label_curves(row, "test", [0, 1, 2])

    expected = [(both[0][0] + both[1][0]) / 2, both[1][1], (both[0][2] + both[1][2]) / 2]
    assert both[0][1] != both[1][1]
    assert found.mean[:3].tolist() == pytest.approx(expected)
    assert (~np.isnan(found.ap)).sum(axis=0)[:3].tolist() == [2, 1, 2]
    assert found.annotated[:3].tolist() == [True, True, False]
    assert [curves[label].mean[-1] for label in range(3)] == pytest.approx(expected)
    assert [curves[label].num_seeds[-1] for label in range(3)] == [2, 1, 2]


def test_clients_of_a_local_only_row_are_no_seeds(rows):
    """Two clients at seed 0 and one at seed 1, of which the second annotates label 1 alone."""
    runs = [replace(rows[0].runs[place], experiment=rows[0].runs[seed].experiment) for place, seed in ((0, 0), (1, 0))]
    runs.append(rows[1].runs[1])
    row = replace(rows[0], reference="local-only", runs=runs)
    row = marked(row, [True, True] + [True] * 8, [False, True] + [True] * 8, [True, True] + [True] * 8)
    ap = np.array([run.labels["test"].ap[-1, :2] for run in row.runs])

    found, curves = label_table(row, "last"), label_curves(row, "test", [0, 1])

    by_hand = np.array([[ap[0, 0], (ap[0, 1] + ap[1, 1]) / 2], ap[2]])
    assert row.seeds == [0, 1]
    assert found.ap[:, :2] == pytest.approx(by_hand)
    assert found.mean[:2] == pytest.approx(by_hand.mean(axis=0))
    assert found.std[:2] == pytest.approx(by_hand.std(axis=0, ddof=1))
    assert [curves[label].mean[-1] for label in (0, 1)] == pytest.approx(by_hand.mean(axis=0))
    assert [curves[label].num_seeds[-1] for label in (0, 1)] == [2, 2]


def test_rows_of_an_axis_of_tables_have_the_names_of_the_tables(write_run, tmp_path):
    """Beside a run from elsewhere settings are shown, since it has no name."""
    tables = [{"name": "one pass", "local-epochs": 1}, {"name": "two, small", "local-epochs": 2, "batch-size": 4}]
    rows = []
    for table in tables:
        settings = {"batch-size": 8, **{key: value for key, value in table.items() if key != "name"}}
        for seed in (0, 1):
            write_run(tmp_path / f"{settings['local-epochs']}-{seed}", ["a", "b"], seed=seed, **settings)
        runs = [{"seed": seed, "run": f"{settings['local-epochs']}-{seed}"} for seed in (0, 1)]
        rows.append({"label": table["name"], "values": {"work": table["name"]}, "reference": "", "runs": runs})
    write_run(tmp_path / "0", ["a", "b"], seed=0, **{"batch-size": 8, "num-rounds": 0})
    begun = {"label": "untrained", "values": {"work": "one pass"}, "reference": "untrained"}
    rows.append({**begun, "runs": [{"seed": 0, "run": "0"}]})
    about = {"axes": {"work": tables, "seed": [0, 1]}, "seeds": [0, 1], "search": None, "rows": rows}
    (tmp_path / "study.json").write_text(json.dumps(about))
    write_run(tmp_path / "elsewhere", ["a", "b"], **{"batch-size": 16})

    found = find_runs([tmp_path]).runs
    beside = find_runs([tmp_path, tmp_path / "elsewhere"]).runs

    assert [row.label for row in rows_of(found)] == ["one pass", "two, small", "untrained, one pass"]
    assert "local-epochs 2, batch-size 4" in [row.label for row in rows_of(beside)]
