"""Which runs are paired, and what is refused."""

import csv
import io
import itertools
import json
from dataclasses import replace

import pytest
from scipy import stats

from fedmlic.errors import InputError
from fedmlic.experiment import split_settings
from fedmlic.record import create, write_json
from sim.comparison.compare import compare
from sim.comparison.output import render, tables, to_json
from sim.comparison.read import keeps_private
from sim.comparison.same_data import part_of
from sim.reports.report.read import read_run


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


def test_a_seed_counts_only_with_every_run_of_its_row(made):
    """Two methods with equal scores: each seed of one row misses another of two runs, so none can be paired."""
    score = {"fedavg()": 0.6, "labelwise()": 0.2}
    paths = [
        made(score[strategy], method=method, strategy=strategy, seed=seed)
        for method, missing in (("asl()", ()), ("bce()", ((0, "fedavg()"), (1, "fedavg()"), (2, "labelwise()"))))
        for strategy in score
        for seed in range(3)
        if (seed, strategy) not in missing
    ]

    found = compare(paths, by=["method"])

    assert [dict(group.values) for group in found.groups] == [pytest.approx({0: 0.4, 1: 0.4, 2: 0.4}), {}]
    assert found.pairs[0].found.num_seeds == 0
    assert "bce: runs are missing at seeds [0, 1, 2], which are left out" in found.notes


def test_the_same_run_in_two_folders_counts_once(made):
    paths = [made(score, seed=seed) for score, seed in ((0.5, 0), (0.5, 0), (0.6, 1), (0.7, 2))]

    found = compare(paths)

    assert dict(found.groups[0].values) == {0: 0.5, 1: 0.6, 2: 0.7}
    assert f"{paths[1]} is the same run as {paths[0]} and counts once" in found.notes
    assert not [note for note in found.notes if "missing" in note]


def test_one_experiment_with_two_results_is_refused_with_both_folders(made):
    paths = [made(score, seed=0) for score in (0.5, 0.51)]

    with pytest.raises(InputError, match=rf"{paths[0]} and {paths[1]}.*same server/mAP, got 0.5 and 0.51"):
        compare(paths)


def test_the_probability_of_being_better_is_one_number_in_all_outputs(made):
    """Of errors 0.4 and 0.5 against 0.45 and 0.6, the first is lower in 3 of 4 pairs."""
    paths = runs_of(made, [0.55, 0.4], method="bce()") + runs_of(made, [0.6, 0.5], method="asl()")

    found = compare(paths, metric="server/one-error")

    line = list(csv.DictReader(io.StringIO(render(found, "csv"))))[-1]
    assert (line["row"], line["against"]) == ("asl", "bce")
    assert float(line["improvement"]) == to_json(found)["pairs"][0]["improvement"] == 0.75
    assert "| 0.75 |" in render(found, "markdown")
    assert compare(paths).pairs[0].found.improvement == 0.75


def test_less_spread_over_clients_is_better(made):
    found = compare(runs_of(made, FIRST, method="asl()"))

    assert found.higher_is_better
    assert not replace(found, metric="client/mAP/std").higher_is_better


def test_what_no_number_of_seeds_reaches_is_said(made):
    """23 rows make 253 pairs: 253 x 2/10,000 > 0.05; exact p-values fall to 0.05/253 with 14 seeds (2/2^14)."""
    paths = [made(0.5 + rate / 100, learning_rate=(rate + 1) / 100, seed=s) for rate in range(23) for s in range(2)]

    sampled, exact = compare(paths).notes[-1], compare(paths, test="wilcoxon").notes[-1]

    assert "cannot be reached with any number of seeds" in sampled
    assert "needs at least 14 seeds" in exact


def test_the_last_model_stands_in_where_nothing_chose_one(made):
    paths = runs_of(made, FIRST[:2], method="asl()") + runs_of(made, SECOND[:2], method="bce()")
    result = json.loads((paths[3] / "result.json").read_text())
    (paths[3] / "result.json").write_text(json.dumps(result | {"best_round": 0}))

    found = compare(paths, model="best-or-last")

    assert dict(found.groups[0].values) == pytest.approx({0: 0.6, 1: 0.7})
    assert dict(found.groups[1].values) == pytest.approx({0: 0.5, 1: 0.45})
    assert found.model == "best on validation, after the last round where nothing chose one"
    assert compare(paths[:3], model="best-or-last").model == "best on validation"
    assert compare(paths[3:], model="best-or-last").model == "after the last round"
    with pytest.raises(InputError, match="best on validation data, got none"):
        compare(paths, model="best")


def test_seeds_at_which_rows_are_equal_are_noted(made):
    paths = runs_of(made, FIRST, method="asl()") + runs_of(made, [*FIRST[:2], *SECOND[2:]], method="bce()")

    found = compare(paths)

    assert found.pairs[0].found.smallest_p == 2 / 2**3
    assert any(note.startswith("in 1 of 1 comparisons both rows are equal at some seeds") for note in found.notes)
    assert not [note for note in compare(runs_of(made, FIRST)).notes if "equal at some seeds" in note]


def test_only_seeds_at_which_rows_differ_are_enough(made):
    """Of 7 seeds 2 are equal: 2 / 2^5 is above 0.05, which 2 / 2^7 is not."""
    seven = [0.5, 0.52, 0.54, 0.56, 0.58, 0.6, 0.62]
    first = runs_of(made, seven, method="asl()")
    equal = runs_of(made, [*seven[:2], *(score - 0.1 for score in seven[2:])], method="bce()")
    lower = runs_of(made, [score - 0.1 for score in seven], method="fedlgt()")

    notes = " ".join(compare(first + equal).notes)

    assert "with 5 at which rows differ the smallest attainable p is 0.0625; p <= 0.05 needs at least 6 seeds" in notes
    assert "too few" not in " ".join(compare(first + lower).notes)
    assert "too few" not in " ".join(compare(first + equal + lower).notes)  # 3 x 2 / 2^7 of the others


def test_equal_seeds_are_noted_where_permutations_are_sampled(made):
    """From 14 seeds on, the smallest p no longer tells how many differ."""
    first = [0.5 + seed / 100 for seed in range(16)]
    second = [*first[:2], *(score - 0.1 for score in first[2:])]

    notes = compare(runs_of(made, first, method="asl()") + runs_of(made, second, method="bce()")).notes

    assert any(note.startswith("in 1 of 1 comparisons both rows are equal at some seeds") for note in notes)
    assert not any("too few" in note for note in notes)


# Whose model it is


def on_clients_alone(path):
    """A run whose server has no images: what is left are numbers of clients."""
    result = json.loads((path / "result.json").read_text())
    metrics = {"client/mAP": 0.4, "client/mAP/mean": 0.5, "client/mAP/std": 0.1}
    (path / "result.json").write_text(json.dumps({**result, "metrics": metrics}))
    (path / "events.jsonl").write_text(json.dumps({"event": "round", "round": 4, "loss": 0.1}) + "\n")
    return path


PAT = "pat(mode='cross', attention='{}')"


@pytest.mark.parametrize(
    ("settings", "personal"),
    [
        ({"method": "bce()"}, False),
        ({"method": "bce()", "strategy": "scaffold()", "optimizer": "sgd"}, False),
        ({"method": "bce()", "mods": "top_k(fraction=0.1)"}, False),
        ({"method": PAT.format("shared")}, False),
        ({"method": "hp_dval(weights='random')"}, False),
        ({"method": PAT.format("private")}, True),
        ({"method": "hp_dval(weights='random', local_context='private')"}, True),
        ({"method": "bce()", "mods": "fedper()"}, True),
    ],
    ids=str,
)
def test_a_server_without_images_makes_no_model_a_client_s_own(made, settings, personal):
    """Tensors that never leave a client do; memory of other kinds, which rules and mods keep too, does not."""
    path = on_clients_alone(made(0.5, **settings))
    (path / "memory").mkdir()

    found = compare([path])

    assert found.metric == "client/mAP/mean"
    assert found.model == ("each client's own" if personal else "after the last round")
    assert any("each client's own" in note for note in found.notes) == personal
    assert read_run(path).is_personal == personal


def test_clients_are_compared_where_some_server_evaluated_nothing(made):
    """A mean over clients is what both have; of the first alone the server's number is."""
    paths = [made(0.5, method="asl()"), on_clients_alone(made(0.5, method="bce()", mods="fedper()"))]
    first = json.loads((paths[0] / "result.json").read_text())
    first["metrics"]["client/mAP/mean"] = 0.3
    (paths[0] / "result.json").write_text(json.dumps(first))

    assert compare(paths[:1]).metric == "server/mAP"
    found = compare(paths, by=["method", "mods"])
    assert [group.mean for group in found.groups] == [0.3, 0.5]
    assert "of 1 runs the model is each client's own" in " ".join(found.notes)


def test_a_plug_in_that_is_not_there_is_taken_for_clients_own():
    experiment = split_settings({"method": "gone.method()"})[0]

    assert keeps_private(experiment, evaluated=False)
    assert not keeps_private(experiment, evaluated=True)


def test_runs_of_a_plug_in_that_is_not_there_are_compared_as_they_were_written(made):
    """Their numbers are in their folders, and what they differ in is in their texts."""
    paths = runs_of(made, FIRST, method="gone.method(rate=1)") + runs_of(made, SECOND, method="bce")
    paths += runs_of(made, FIRST, method="bce(pool='max')", mods="int8(), gone.mod()")

    found = compare(paths[:10])

    assert [group.label for group in found.groups] == ["gone.method(rate=1)", "bce"]
    assert found.pairs[0].found.num_seeds == 5
    (note,) = (note for note in found.notes if "as it was written" in note)
    assert note.startswith("method gone.method(rate=1) cannot be looked up on this machine and is compared as it was")
    with pytest.raises(InputError, match="differences in method, mods"):
        compare(paths)


# Runs of the same settings and other data


def noted(path, **values):
    write_json(path / "data.json", values)
    return path


def test_runs_of_other_images_are_not_paired_and_both_are_named(made):
    """The texts are equal; what lay in the folder was not."""
    first = [noted(made(0.5, method="asl()", seed=seed), corpus="a", federation=f"f{seed}") for seed in range(2)]
    second = [noted(made(0.6, method="bce()", seed=seed), corpus="b", federation=f"g{seed}") for seed in range(2)]

    with pytest.raises(InputError, match=rf"{first[0]} and {second[0]}, whose settings name the same data set"):
        compare(first + second)
    assert len(compare(first).groups[0].values) == 2


def test_seeds_of_one_row_are_of_the_same_images(made):
    paths = [noted(made(0.5, seed=seed), corpus=corpus) for seed, corpus in enumerate("aab")]

    with pytest.raises(InputError, match=rf"{paths[0]} and {paths[2]}"):
        compare(paths)


def test_the_same_seed_has_the_same_federation(made):
    """A regime that reads a file, for example; another seed, partition or number of clients deals out others."""
    first = [noted(made(0.5, method="asl()", seed=seed), corpus="a", federation=f"f{seed}") for seed in range(2)]
    second = [noted(made(0.6, method="bce()", seed=seed), corpus="a", federation=f"f{2 * seed}") for seed in range(2)]

    with pytest.raises(InputError, match=rf"{first[1]} and {second[1]}.*partition, regime and seed"):
        compare(first + second)


@pytest.mark.parametrize(
    "changes",
    [
        {"partition": "iid()"},
        {"regime": "complete()"},
        {"num_clients": 7},
        {"holdout_fraction": 0.3},
        {"single_client": "pooled"},
        {"dataset": "multidigits(num_train=5000)"},
    ],
    ids=str,
)
def test_what_is_compared_may_give_other_data(made, changes):
    key = next(iter(changes)).replace("_", "-")
    single = "single-client" in key
    corpora = ("a", "b") if key == "dataset" else ("a", "a")
    federations = ("f", part_of("f", "pooled") if single else "g")
    paths = [
        noted(made(score, seed=seed, **settings), corpus=corpus, federation=federation)
        for score, settings, corpus, federation in zip((0.5, 0.6), ({}, changes), corpora, federations, strict=True)
        for seed in (0,)
    ]

    assert compare(paths).by == (key,)


def test_a_part_is_of_the_federation_of_the_others(made):
    own = noted(made(0.5), corpus="a", federation="f")
    parts = [
        noted(made(0.4, single_client=str(client)), corpus="a", federation=part_of("fg"[client], str(client)))
        for client in range(2)
    ]

    compare([own, parts[0]])
    with pytest.raises(InputError, match=rf"{own} and {parts[1]}"):
        compare([parts[1], own], by=["single-client"])
    assert compare(parts).by == ("single-client",)  # without the whole, nothing says that they are of two


def test_runs_that_do_not_say_what_they_were_given_are_taken_at_their_settings(made):
    paths = [
        made(0.5, method="asl()"),
        noted(made(0.6, method="bce()"), warnings=[]),
        noted(made(0.7, method="fedlgt()"), corpus="a", federation=""),
    ]

    assert len(compare(paths).groups) == 3


# Axes of tables


WORK = [
    {"name": "short", "local-epochs": 1, "batch-size": 8},
    {"name": "long, twice", "local-epochs": 2, "batch-size": 8},
]


@pytest.fixture
def study_of_tables(made, tmp_path):
    """A function: a study with these tables in one axis, and other axes, as a sweep leaves it."""

    def make(**axes):
        rows = []
        for table in WORK:
            name, settings = table["name"], {key: value for key, value in table.items() if key != "name"}
            for values in itertools.product(*axes.values()):
                own = dict(zip(axes, values, strict=True))
                paths = [made(0.5 + len(rows) / 10 + s / 100, seed=s, **own, **underscored(settings)) for s in (0, 1)]
                runs = [{"seed": s, "run": path.name} for s, path in enumerate(paths)]
                rows.append({"label": name, "values": {"work": name, **own}, "reference": "", "runs": runs})
        about = {"axes": {"work": WORK, **axes, "seed": [0, 1]}, "seeds": [0, 1], "search": None, "rows": rows}
        write_json(tmp_path / "study.json", about)
        return tmp_path

    return make


def underscored(settings):
    return {key.replace("-", "_"): value for key, value in settings.items()}


@pytest.mark.parametrize("by", [(), ("work",), ("local-epochs",), ("local-epochs", "batch-size")])
def test_rows_of_tables_have_their_names(study_of_tables, by):
    """In place of settings that are too long to be read; an axis may be asked for by its name."""
    found = compare([study_of_tables()], by=by, baseline="short")

    assert found.by == ("work",)
    assert [(group.label, group.mean) for group in found.groups] == [
        ("short", pytest.approx(0.505)),
        ("long, twice", pytest.approx(0.605)),
    ]
    assert [(pair.first, pair.second) for pair in found.pairs] == [("long, twice", "short")]


def test_beside_another_axis_a_name_stands_behind_that_of_its_axis(study_of_tables):
    folder = study_of_tables(method=["bce()", "asl()"])

    assert [group.label for group in compare([folder]).groups] == [
        "work short, bce",
        "work short, asl",
        "work long, twice, bce",
        "work long, twice, asl",
    ]
    assert compare([folder], by=["method"]).by == ("method",)
    assert compare([folder], by=["method", "work"]).by == ("work", "method")


def test_a_name_stands_for_all_that_differs_in_its_table_and_for_one_study(study_of_tables, made, monkeypatch):
    """Where runs from elsewhere stand beside it, or a part of what differs is compared, settings are shown."""
    monkeypatch.setitem(WORK[1], "batch-size", 4)
    folder = study_of_tables()
    alone = [made(0.9, seed=s, local_epochs=3, batch_size=8) for s in (0, 1)]

    beside = compare([folder, *alone], by=["local-epochs", "batch-size"])

    assert [group.label for group in beside.groups] == [
        "local-epochs 1, batch-size 8",
        "local-epochs 2, batch-size 4",
        "local-epochs 3, batch-size 8",
    ]
    with pytest.raises(InputError, match="differences in batch-size"):
        compare([folder], by=["local-epochs"])
    with pytest.raises(InputError, match="got 'wrok'"):
        compare([folder], by=["wrok"])
