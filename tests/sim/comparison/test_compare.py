"""Which runs are paired, and what is refused."""

import csv
import io

import pytest
from scipy import stats

from fedmlic.errors import InputError
from fedmlic.experiment import split_settings
from fedmlic.record import create, write_json
from sim.comparison.compare import compare
from sim.comparison.output import render, tables, to_json


@pytest.fixture
def made(tmp_path):
    """A function: the folder of a complete run with these settings and this score, without playing it."""
    numbers = iter(range(1000))

    def make(score, **settings):
        folder = create(tmp_path / f"run-{next(numbers)}", *split_settings(settings))
        metrics = {
            "server/mAP": score,
            "server/val/mAP": score,
            "server/prevalence": 0.2,
            "server/one-error": 1 - score,
        }
        result = {"rounds": 4, "best_round": 2, "metrics": metrics, "weights_sha256": "0"}
        folder.event("round", {"round": 2, "server/mAP": score + 0.1})
        folder.event("round", {"round": 4, "server/mAP": score})
        write_json(folder.path / "result.json", result)
        return folder.path

    return make


def runs_of(made, scores, **settings):
    return [made(score, seed=seed, **settings) for seed, score in enumerate(scores)]


FIRST, SECOND = [0.5, 0.6, 0.55, 0.7, 0.65], [0.4, 0.45, 0.5, 0.6, 0.66]


def test_rows_are_paired_by_seed_and_scipy_agrees(made):
    paths = runs_of(made, FIRST, method="asl()") + runs_of(made, SECOND, method="bce()")

    found = to_json(compare(paths))

    values = [list(row["values"].values()) for row in found["rows"]]
    pair = found["pairs"][0]
    assert found["by"] == ["method"]
    assert values == [FIRST, SECOND]
    assert (pair["first"], pair["second"]) == ("bce", "asl")
    assert pair["mean"] == pytest.approx(sum(SECOND) / 5 - sum(FIRST) / 5)
    expected = stats.permutation_test(
        ([b - a for a, b in zip(*values, strict=True)],),
        lambda d: sum(d) / len(d),
        permutation_type="samples",
        vectorized=False,
    )
    assert pair["p"] == pytest.approx(expected.pvalue)
    assert pair["improvement"] == pytest.approx(stats.mannwhitneyu(SECOND, FIRST).statistic / 25)
    assert any("smallest attainable p is 0.0625" in note and "at least 6 seeds" in note for note in found["notes"])


def test_texts_of_one_experiment_are_one_row(made):
    paths = [made(0.5, method="bce", seed=0), made(0.6, method="bce(pool='mean')", seed=1), made(0.4, method="asl()")]

    assert [len(row["values"]) for row in to_json(compare(paths))["rows"]] == [2, 1]


def test_runs_that_differ_in_more_than_is_compared_are_refused_by_name(made):
    paths = runs_of(made, FIRST, method="asl()", batch_size=8) + runs_of(made, SECOND, method="bce()")

    with pytest.raises(InputError, match="differences in method, batch-size"):
        compare(paths)
    with pytest.raises(InputError, match="differences in batch-size"):
        compare(paths, by=["method"])
    assert len(compare(paths, by=["method", "batch-size"]).pairs) == 1


def test_a_setting_that_varies_alike_in_all_rows_is_averaged_at_each_seed(made):
    paths = [
        made(score + 0.1 * (strategy == "fedavg()"), method=method, strategy=strategy, seed=seed)
        for method, scores in (("asl()", FIRST), ("bce()", SECOND))
        for strategy in ("fedavg()", "labelwise()")
        for seed, score in enumerate(scores)
    ]

    found = compare(paths, by=["method"])

    assert list(found.groups[0].values.values()) == pytest.approx([score + 0.05 for score in FIRST])
    assert found.pairs[0].found.num_seeds == 5


def test_only_common_seeds_are_paired(made):
    paths = runs_of(made, FIRST, method="asl()") + [made(0.4, method="bce()", seed=seed) for seed in (3, 4, 9)]

    assert compare(paths).pairs[0].found.num_seeds == 2


def test_the_model_is_named_and_chosen(made):
    paths = runs_of(made, FIRST, method="asl()") + runs_of(made, SECOND, method="bce()")

    last, best = compare(paths), compare(paths, model="best")

    assert (last.model, best.model) == ("after the last round", "best on validation")
    assert best.groups[0].mean == pytest.approx(last.groups[0].mean + 0.1)


def test_a_row_is_the_best_only_if_it_beats_all_others_after_correction(made):
    seven = [0.5, 0.52, 0.54, 0.56, 0.58, 0.6, 0.62]
    low, high = runs_of(made, seven, method="bce()"), runs_of(made, [s + 0.1 for s in seven], method="asl()")

    assert compare(low + high).best() == "asl"
    assert compare(low + high, metric="server/one-error").best() == "asl"
    assert compare(low[:5] + high[:5]).best() == ""


def test_a_baseline_halves_the_comparisons(made):
    paths = [run for method in ("bce()", "asl()", "fedlgt()") for run in runs_of(made, FIRST, method=method)]

    found = compare(paths, baseline="asl()")

    assert [(pair.first, pair.second) for pair in found.pairs] == [("bce", "asl"), ("fedlgt", "asl")]
    with pytest.raises(InputError, match="Did you mean 'asl'"):
        compare(paths, baseline="als")


def test_formats_hold_the_same_numbers(made):
    found = compare(runs_of(made, FIRST, method="asl()") + runs_of(made, SECOND, method="bce()"))

    rows = list(csv.DictReader(io.StringIO(render(found, "csv"))))
    assert [row["kind"] for row in rows] == ["row", "row", "difference"]
    assert float(rows[2]["mean"]) == found.pairs[0].found.mean
    assert float(rows[2]["p_holm"]) == found.pairs[0].p_holm
    latex = render(found, "latex")
    assert r"\toprule" in latex
    assert r"0.600 $\pm$ 0.079" in latex
    assert r"95 \%" in latex
    assert "| asl | 0.600 ± 0.079 | 5 |" in render(found, "markdown")
    assert len(tables(found)) == 2


def test_a_folder_without_a_complete_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="folder of a run or of a study"):
        compare([tmp_path])
    path = create(tmp_path / "run", *split_settings({})).path
    with pytest.raises(InputError, match="got none"):
        compare([path])
