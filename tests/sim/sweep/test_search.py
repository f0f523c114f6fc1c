"""Searches: grids are Optuna's grids, and trials of ranges follow from the scores alone."""

import json
import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.errors import InputError
from sim.commands.settings import read_recipe, read_value
from sim.sweep import plan as plans
from sim.sweep.plan import Outcome, Plan
from sim.sweep.search import Range, Search, edges_of
from sim.sweep.start import folder_name, study_of
from sim.sweep.study import check_study, rows_of
from sim.sweep.table import study_table
from sim.sweep.trials import Trials

optuna = pytest.importorskip("optuna")

RATES = {"low": 1e-4, "high": 1e-1, "log": True}
MIXED = {"learning-rate": RATES, "local-epochs": {"low": 1, "high": 8}, "optimizer": ["sgd", "adam"]}


def score(choice):
    """Highest at a learning rate of 0.01 and three epochs of Adam."""
    apart = abs(math.log10(choice.get("learning-rate", 0.01)) + 2) + abs(choice.get("local-epochs", 3) - 3) / 10
    return 1 - apart / 4 - 0.1 * (choice.get("optimizer", "adam") == "sgd")


def searched(journal, search, row="row"):
    """Every trial of a row, from wherever the journal left off."""
    trials, scores = Trials(search, journal), []
    while len(scores) < search.trials:
        found = trials.proposed(row, scores)
        scores += [score(choice) for choice in found[len(scores) :]]
    return found


def asked(tables, tmp_path, monkeypatch, scores=score, journal="trials.jsonl"):
    """A plan whose runs end with the score of their choice, unless that is ``None``, which is a failure."""
    study = check_study(tables)
    monkeypatch.setattr(plans, "metric_of", lambda folder, *_: float(folder.name))
    drawn = study.search is not None and not study.search.is_grid
    plan = Plan(rows_of(study), study.seeds, study.search, Trials(study.search, tmp_path / journal) if drawn else None)
    played = []
    while not plan.is_over:
        for job in plan.ready():
            played.append(job)
            value = scores(job.choice) if job.search else 0.5
            plan.outcomes[job.identity] = Outcome(tmp_path / repr(value), "" if value is not None else "failed")
    return plan, played


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"low": 1e-1, "high": 1e-4}, "below its high"),
        ({"low": 0, "high": 1, "log": True}, "begin above 0"),
        ({"low": 1, "high": 9, "log": True, "step": 2}, "log = true or a step"),
        ({"low": 1, "high": 8, "step": 2}, "plus a multiple of step 2"),
        ({"low": 1}, "high"),
        ({"low": 1, "high": 2, "lgo": True}, "lgo"),
        ({"low": True, "high": 2}, "low"),
        ({"low": 0.1, "high": math.inf}, "high"),
    ],
)
def test_what_is_wrong_with_a_range_is_said(found, words):
    with pytest.raises(InputError) as caught:
        check_study({"search": {"learning-rate": found}})

    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"search": {"learning-rate": [0.1, 0.2], "trials": 4}}, "trials beside a range"),
        ({"search": {"learning-rate": [0.1], "sampler-seed": 4}}, "sampler-seed beside a range"),
        ({"search": {"learning-rate": RATES, "trials": 0}}, "trials"),
        ({"axes": {"learning-rate": RATES}}, r"Ranges belong in \[search\]"),
        ({"base": {}, "search": {"local-epochs": {"low": 0, "high": 4}}}, "local-epochs"),
    ],
)
def test_ranges_and_their_options_have_their_place(tables, words):
    with pytest.raises(InputError, match=words):
        rows_of(check_study(tables))


def test_a_command_and_a_file_ask_for_the_same(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        '[base]\nrecipe = "quick"\n[search]\nlearning-rate = {low = 1e-4, high = 0.1, log = true}\n'
        'optimizer = ["sgd", "adam"]\ntrials = 6\nsampler-seed = 3\n'
    )
    words = ["learning-rate={low=1e-4, high=0.1, log=true}", "optimizer=sgd,adam", "trials=6", "sampler-seed=3"]

    read, _ = study_of([str(file)], [], recipe=read_recipe, value=read_value)
    typed, _ = study_of(["quick"], words, recipe=read_recipe, value=read_value)

    assert read.search == typed.search
    assert read.search.ranges == {"learning-rate": Range(low=1e-4, high=0.1, log=True)}
    assert check_study(json.loads(read.model_dump_json())) == read


def test_a_grid_is_written_as_ever_and_its_folder_has_its_name():
    study = check_study({"search": {"learning-rate": [0.1, 0.01]}})

    assert study.model_dump()["search"] == {
        "settings": {"learning-rate": [0.1, 0.01]},
        "seed": 1000,
        "metric": "server/val/mAP",
        "model": "last",
    }
    # Of the version before ranges: a folder that was begun with it goes on.
    assert folder_name(study, changed=True) == "sweep-c27f54df"


def test_a_grid_chooses_what_optunas_grid_and_the_highest_score_choose(tmp_path, monkeypatch):
    grid = {"learning-rate": [0.001, 0.02, 0.05], "local-epochs": [1, 2, 4], "optimizer": ["sgd", "adam"]}
    plan, played = asked({"search": grid}, tmp_path, monkeypatch)

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.GridSampler(grid, seed=0))
    study.optimize(lambda trial: score({key: trial.suggest_categorical(key, values) for key, values in grid.items()}))
    by_hand = max((job for job in played if job.search), key=lambda job: score(job.choice))

    assert len(study.trials) == sum(job.search for job in played) == 18
    assert study.best_params == plan.choice(plan.rows[0]).values == by_hand.choice
    assert plan.choice(plan.rows[0]).score == study.best_value


def test_trials_choose_the_highest_score_and_every_row_has_as_many(tmp_path, monkeypatch):
    tables = {"axes": {"method": ["bce()", "asl()"], "seed": [0, 1]}, "search": {**MIXED, "trials": 10}}
    plan, played = asked(tables, tmp_path, monkeypatch)

    for row in plan.rows:
        its = [job for job in played if job.row is row and job.search]
        assert 8 <= len(its) <= 10  # what was proposed twice is played once
        assert len(plan.searches(row)) == 10
        assert {job.seed for job in its} == {1000}
        best = max(its, key=lambda job: score(job.choice))
        assert plan.choice(row).values == best.choice
        assert [job.choice for job in plan.runs(row)] == [best.choice] * 2
    first, second = ([job.choice for job in plan.searches(row)[:4]] for row in plan.rows)
    assert first == second


def test_what_is_left_counts_trials_that_are_not_proposed(tmp_path):
    study = check_study({"axes": {"method": ["bce()", "asl()"], "seed": [0, 1, 2]}, "search": {**MIXED, "trials": 10}})
    plan = Plan(rows_of(study), study.seeds, study.search, Trials(study.search, tmp_path / "trials.jsonl"))

    assert len(list(plan.ready())) == 8  # a wave of each row
    assert plan.num_trials_left == 12
    assert plan.num_unknown == 12 + 6
    assert not plan.is_over


@pytest.mark.parametrize("at_once", [1, 3, 4])
def test_a_search_that_was_killed_anywhere_tries_what_an_undisturbed_one_tries(tmp_path, at_once):
    search = Search(settings=MIXED, trials=9, trials_at_once=at_once)
    whole = searched(tmp_path / "whole.jsonl", search)
    written = (tmp_path / "whole.jsonl").read_bytes()
    ends = [place + 1 for place, byte in enumerate(written) if byte == ord("\n")]

    for number, end in enumerate(ends):
        cut = tmp_path / f"{number}.jsonl"
        cut.write_bytes(written[: end - 5 * (number % 2)])  # every second time within a line
        assert searched(cut, search) == whole


def test_more_trials_go_on_from_those_that_were(tmp_path):
    few = searched(tmp_path / "trials.jsonl", Search(settings=MIXED, trials=4))
    more = searched(tmp_path / "trials.jsonl", Search(settings=MIXED, trials=12))

    assert more[:4] == few
    assert more == searched(tmp_path / "other.jsonl", Search(settings=MIXED, trials=12))
    assert len(searched(tmp_path / "trials.jsonl", Search(settings=MIXED, trials=6))) == 6


def test_other_ranges_or_another_sampler_seed_try_other_values(tmp_path):
    one = searched(tmp_path / "trials.jsonl", Search(settings=MIXED, trials=4))
    other = searched(tmp_path / "trials.jsonl", Search(settings=MIXED, trials=4, sampler_seed=1))

    assert all(first["learning-rate"] != second["learning-rate"] for first, second in zip(one, other, strict=True))


def test_trials_learn_from_scores(tmp_path):
    found = searched(tmp_path / "trials.jsonl", Search(settings={"learning-rate": RATES}, trials=24))
    apart = [abs(math.log10(choice["learning-rate"]) + 2) for choice in found]

    assert sum(apart[12:]) / 12 < sum(apart[:4]) / 4
    assert min(apart) < 0.1


def test_a_failed_run_is_left_out_and_told_to_optuna(tmp_path, monkeypatch):
    tables = {"search": {"learning-rate": RATES, "trials": 8}}
    plan, _ = asked(
        tables, tmp_path, monkeypatch, lambda choice: None if choice["learning-rate"] > 0.003 else score(choice)
    )
    choice = plan.choice(plan.rows[0])
    tried = [job.choice["learning-rate"] for job in plan.searches(plan.rows[0])]

    assert choice.values["learning-rate"] == max(rate for rate in tried if rate <= 0.003)
    assert choice.num_failed == sum(rate > 0.003 for rate in tried) > 0
    states = [json.loads(line).get("state") for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    # What ended with the last wave is told with the next proposal, of which there is none.
    assert states.count(int(optuna.trial.TrialState.FAIL)) == sum(rate > 0.003 for rate in tried[:4])


def test_the_journal_is_lines_of_json(tmp_path):
    searched(tmp_path / "trials.jsonl", Search(settings=MIXED, trials=8))

    for line in (tmp_path / "trials.jsonl").read_bytes().splitlines():
        assert isinstance(json.loads(line), dict)
    assert [file.name for file in tmp_path.iterdir()] == ["trials.jsonl"]


def test_another_file_in_place_of_the_journal_is_refused(tmp_path):
    (tmp_path / "trials.jsonl").write_text("mine\nand more\n")

    with pytest.raises(InputError, match="Optuna's journal"):
        Trials(Search(settings=MIXED), tmp_path / "trials.jsonl")


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)

    with pytest.raises(InputError, match=r"Run: pip install 'fedmlic\[search\]'"):
        Trials(Search(settings=MIXED), None)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.booleans(),
    st.floats(1e-6, 1, allow_subnormal=False),
    st.floats(1.01, 1e6),
    st.integers(0, 5),
)
def test_trials_lie_in_their_ranges(low, more, log, first, ratio, seed):
    ranges = {
        "local-epochs": Range(low=low, high=low + more, log=log),
        "learning-rate": Range(low=first, high=first * ratio, log=not log),
        "batch-size": Range(low=8, high=8 + 8 * more, step=8),
    }
    search = Search(settings=ranges, trials=6, trials_at_once=3, sampler_seed=seed)

    for choice in searched(None, search):
        assert isinstance(choice["local-epochs"], int)
        assert low <= choice["local-epochs"] <= low + more
        assert first <= choice["learning-rate"] <= first * ratio
        assert choice["batch-size"] % 8 == 0
        assert 8 <= choice["batch-size"] <= 8 + 8 * more


@pytest.mark.parametrize(
    ("found", "at_edge", "inside"),
    [
        ({"low": 1e-4, "high": 1e-1, "log": True}, [1e-4, 1.3e-4, 0.08, 0.1], [1.5e-4, 0.05]),
        ({"low": 0.0, "high": 1.0}, [0.0, 0.04, 0.97], [0.06, 0.5, 0.94]),
        ({"low": 1, "high": 100}, [1, 100], [2, 99]),
        ({"low": 0.1, "high": 0.7, "step": 0.2}, [0.1, 0.1 + 3 * 0.2], [0.3, 0.1 + 2 * 0.2]),
    ],
)
def test_the_border_of_a_range(found, at_edge, inside):
    tried = {"momentum": Range(**found)}

    assert all(edges_of({"momentum": value}, tried) == ["momentum"] for value in at_edge)
    assert all(edges_of({"momentum": value}, tried) == [] for value in inside)


def test_the_table_marks_rows_whose_best_lies_at_the_border():
    rows = [
        {"method": method, "reference": "", "seed": 0, "learning-rate": 0.1, "at-border": border, "state": "complete"}
        for method, border in (("bce()", "learning-rate"), ("asl()", ""))
    ]
    grid = study_table([row | {"server/mAP": 0.5} for row in rows])

    assert [row[0] for row in grid.rows] == ["* bce, 0.1", "asl, 0.1"]
    assert "widen the grid or range (learning-rate)" in grid.caption
