"""The study file and its words in a command."""

import re
from pathlib import Path

import pytest

from fedmlic.errors import InputError
from fedmlic.experiment import split_settings
from sim import api
from sim.commands.settings import read_recipe, read_value
from sim.references import reference_rows
from sim.sweep.plan import Plan, distinct
from sim.sweep.search import edges_of
from sim.sweep.start import STUDIES, check_references, study_of
from sim.sweep.study import REFERENCES, check_study, read_study, rows_of, rows_with, split_values
from sim.sweep.sweep import about
from strategies.server.check import check_experiment


def asked(*arguments, search=()):
    return study_of(arguments, search, recipe=read_recipe, value=read_value)


def test_axes_are_crossed_and_the_seed_is_none_of_a_row():
    study = check_study(
        {"axes": {"method": ["bce()", "asl()"], "strategy": ["fedavg()", "labelwise()"], "seed": "0..4"}}
    )
    rows = rows_of(study)

    assert [row.label for row in rows] == [
        "bce(), fedavg()",
        "bce(), labelwise()",
        "asl(), fedavg()",
        "asl(), labelwise()",
    ]
    assert study.seeds == [0, 1, 2, 3, 4]
    assert rows[2].experiment(seed=3).method == "asl()"


def test_tables_are_settings_that_go_together():
    work = [
        {"name": "short", "local-epochs": 1, "learning_rate": 0.01},
        {"name": "long", "local-epochs": 8, "learning-rate": 0.001},
    ]
    rows = rows_of(check_study({"axes": {"work": work, "method": ["bce()", "asl()"]}}))

    assert [row.label for row in rows] == [
        "work short, bce()",
        "work short, asl()",
        "work long, bce()",
        "work long, asl()",
    ]
    assert [(row.experiment().local_epochs, row.experiment().learning_rate) for row in rows[1:3]] == [
        (1, 0.01),
        (8, 0.001),
    ]


def test_a_command_makes_axes_of_settings_with_several_values():
    study, name = asked("quick", "method=bce(),asl(gamma_neg=4)", "seed=0..2", "num-rounds=3")

    assert study.axes == {"method": ["bce()", "asl(gamma_neg=4)"], "seed": [0, 1, 2]}
    assert study.base["num-rounds"] == 3
    assert name.startswith("quick-")
    assert asked("quick", "method=bce(),asl(gamma_neg=4)", "seed=0..2", "num-rounds=3")[1] == name
    assert asked("quick", "method=bce(),asl(gamma_neg=4)", "seed=0..3", "num-rounds=3")[1] != name


def test_a_command_changes_a_study_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'references = true\n[base]\nrecipe = "quick"\nnum_rounds = 7\n[axes]\nmethod = ["bce()", "asl()"]\n'
    )

    study, _ = asked(str(file), "method=fedlgt()", "seed=1,2", search=["learning-rate=0.1,0.01"])

    assert study.base["num-rounds"] == 7
    assert study.base["method"] == "fedlgt()"
    assert study.axes == {"seed": [1, 2]}
    assert study.search.settings == {"learning-rate": [0.1, 0.01]}
    assert study.references == REFERENCES
    assert asked(str(file))[1] == "mine"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            '[[axes.work]]\nname = "short"\nlocal_epochs = 1\n[[axes.work]]\nname = "long"\nlocal_epochs = 8',
            "axis 'work' set",
        ),
        ("[search]\nlocal-epochs = [1, 8]", "the search sets"),
    ],
)
def test_a_setting_that_the_study_sets_again_is_no_setting_of_all_runs(tmp_path, table, words):
    file = tmp_path / "mine.toml"
    file.write_text(f'[base]\nrecipe = "quick"\n{table}\n')

    for change in (["local-epochs=2"], ["local_epochs=2"]):
        with pytest.raises(InputError, match=f"Expected local-epochs=VALUE.*{words}"):
            asked(str(file), *change)
    with pytest.raises(InputError, match="Expected local-epochs=VALUE"):
        api.sweep(file, local_epochs=2, out=tmp_path / "out", progress=False)
    study, _ = asked(str(file), "batch-size=2", "seed=5")
    assert (study.base["batch-size"], study.seeds) == (2, [5])


CLIENTS = ("partition", "num-clients", "strategy", "single-client")


@pytest.mark.parametrize(
    ("reference", "keys"),
    [
        ("central", (*CLIENTS, "cohort-size", "num-rounds", "regime", "local-epochs", "local-steps")),
        ("central-observed", (*CLIENTS, "cohort-size", "num-rounds", "regime", "local-epochs", "local-steps")),
        ("local-only", (*CLIENTS, "cohort-size", "num-rounds")),
        ("fedavg", (*CLIENTS, "method", "regime")),
    ],
)
def test_what_defines_a_reference_is_not_searched_beside_it(reference, keys):
    values = {"partition": ["iid()"], "strategy": ["labelwise()", "fedavg()"], "method": ["bce()", "asl()"]}
    values |= {"regime": ["complete()"], "single-client": ["0"]}
    for key in keys:
        search = {key: values.get(key, [1, 8])}
        with pytest.raises(InputError, match=rf"search.{key} would change what the reference {reference} stand"):
            check_study({"search": search, "references": [reference]})
        assert check_study({"search": search}).search.settings == search
    other = {"learning-rate": [0.1], "batch-size": [8, 16], "weight-decay": [0.0]}
    assert check_study({"search": other, "references": True}).search.settings == other


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a(x=[1,2]),b(y='1,2')", ["a(x=[1,2])", "b(y='1,2')"]),
        ('"a,b"', ['"a,b"']),
        ("3..5", ["3", "4", "5"]),
        ("0.1", ["0.1"]),
    ],
)
def test_commas_in_brackets_and_quotes_separate_nothing(text, values):
    assert split_values("dataset", text) == values


def test_mods_are_one_value_in_a_command():
    assert split_values("mods", "fedper(), int8()") == ["fedper(), int8()"]


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"axes": {"metod": ["bce()"]}}, "Did you mean 'method'"),
        ({"axes": {"method": []}}, "axes.method"),
        ({"axes": {"method": ["bce()", {"name": "x", "method": "asl()"}]}}, "side by side"),
        ({"axes": {"a": [{"method": "bce()"}]}}, "a name of its own"),
        ({"axes": {"method": ["bce()"], "a": [{"name": "x", "method": "asl()"}]}}, "both set method"),
        ({"axes": {"a": [{"name": "x", "seed": 1}]}}, "seeds are an axis of their own"),
        ({"axes": {"seed": ["one"]}}, "whole numbers"),
        *(
            ({"axes": {name: [{"name": "short", "num-rounds": 2}]}}, "another column of the study's table")
            for name in (
                "rounds",
                "state",
                "run",
                "best-round",
                "at-border",
                "reference",
                "single-client",
                "server/mAP",
            )
        ),
        (
            {"axes": {"momentum": [{"name": "x", "num-rounds": 2}]}, "search": {"momentum": [0.1]}},
            "that of a searched setting",
        ),
        ({"axes": {"seed": "4..1"}}, "FIRST..LAST"),
        ({"axes": {"workers": [1, 2]}}, "where and how fast"),
        ({"base": {"out": "x"}}, "--out"),
        ({"axes": {"learning-rate": [0.1]}, "search": {"learning-rate": [0.1]}}, "also searched"),
        ({"axes": {"seed": [1000]}, "search": {"learning-rate": [0.1]}}, "also a seed of the table"),
        ({"base": {"seed": 1000}, "search": {"learning-rate": [0.1]}}, "also a seed of the table"),
        ({"search": {"learning-rate": [0.1], "seed": 0}}, "also a seed of the table"),
        ({"search": {"learning-rate": [0.1], "metric": "server/mAP"}}, "validation data"),
        ({"search": {"seed": [1, 2], "learning-rate": [0.1]}}, "seed"),
        ({"search": {}}, "search.settings"),
        ({"axis": {}}, "axis"),
        ({"references": ["centre"]}, "references"),
    ],
)
def test_what_is_wrong_with_a_study_is_said(tables, words):
    with pytest.raises(InputError) as caught:
        check_study(tables)

    assert words in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_wrong_settings_of_all_rows_are_said_at_once():
    study = check_study({"axes": {"method": ["bec()", "bce()"], "strategy": ["fedavgg()", "fedavg()"]}})

    with pytest.raises(InputError) as caught:
        rows_of(study)

    assert "bec" in str(caught.value)
    assert "fedavgg" in str(caught.value)


def test_a_table_that_a_study_has_not_is_refused(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[axs]\nseed = [0]\n")

    with pytest.raises(InputError, match="Did you mean 'axes'"):
        read_study(file, read_recipe)


def test_rows_that_are_one_experiment_are_one_row():
    rows = rows_of(check_study({"axes": {"method": ["bce", "asl()", "bce(pool='mean')"]}}))

    kept, twice = distinct(rows)

    assert [row.values["method"] for row in kept] == ["bce", "asl()"]
    assert [(row.values["method"], first.values["method"]) for row, first in twice] == [("bce(pool='mean')", "bce")]


def test_adding_a_value_or_a_seed_leaves_other_runs_their_identity():
    few = check_study({"axes": {"method": ["bce()"], "seed": [0]}})
    more = check_study({"axes": {"method": ["asl()", "bce(pool='mean')"], "seed": [1, 0]}})
    jobs = [{job.identity for job in Plan(rows_of(study), study.seeds).jobs()} for study in (few, more)]

    assert len(jobs[1]) == 4
    assert jobs[0] < jobs[1]


def test_the_edge_of_a_grid_is_noticed_for_numbers_only():
    tried = {"learning-rate": [0.1, 0.01, 0.001], "optimizer": ["sgd", "adam"], "momentum": [0.9]}

    assert edges_of({"learning-rate": 0.01, "optimizer": "sgd", "momentum": 0.9}, tried) == []
    assert edges_of({"learning-rate": 0.001, "optimizer": "sgd", "momentum": 0.9}, tried) == ["learning-rate"]


TWO_AXES = """references = ["central", "untrained"]
references-of = {method = "bce", regime = "complete()"}
[axes]
method = ["bce(pool='mean')", "asl()"]
regime = ["complete()", "single_positive()"]
seed = "0..1"
[search]
learning-rate = [0.1, 0.2]
"""


@pytest.fixture
def two_axes(tmp_path):
    """A study file whose references belong to one of four rows."""
    (tmp_path / "two.toml").write_text(TWO_AXES)
    return str(tmp_path / "two.toml")


def referred(study):
    """Labels of the rows that the references of a study belong to."""
    return [row.label for row in rows_with(rows_of(study), study.references_of)]


def test_references_belong_to_the_rows_that_are_named(two_axes):
    study, _ = asked(two_axes)
    rows = rows_with(rows_of(study), study.references_of)

    made = reference_rows(rows, study.references, lambda _: 4)

    assert [row.label for row in rows] == ["bce(pool='mean'), complete()"]
    assert [row.label for row in made] == [f"{name}, bce(pool='mean'), complete()" for name in ("central", "untrained")]
    assert about(study, rows_of(study))["references_of"] == ["bce(pool='mean'), complete()"]


def test_a_command_says_whose_references_are_added_in_the_words_of_axes(two_axes):
    def of(*words, **more):
        return study_of([two_axes], [], recipe=read_recipe, value=read_value, references_of=words, **more)[0]

    every = [row.label for row in rows_of(of())]
    assert referred(of("method=asl")) == every[2:]
    assert referred(of("method=asl(),bce()", "regime=complete")) == [every[0], every[2]]
    assert referred(of("num-rounds=12")) == every  # a setting that is no axis, at its default
    assert (of(references=False).references, of(references=False).references_of) == ((), {})
    assert of(references=True).references == REFERENCES
    assert about(of("num-rounds=12"), rows_of(of()))["references_of"] == []


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("method=wan()", r"got method=wan\(\), which none has. Choose of \"bce\(pool='mean'\)\", 'asl\(\)'"),
        ("num-rounds=3", r"got num-rounds=3, which none has. Choose of '12'"),
        ("metod=bce()", "got 'metod'. Did you mean 'method'"),
    ],
)
def test_rows_of_references_that_are_not_there_are_refused_with_those_that_are(two_axes, word, said):
    study, _ = study_of([two_axes], [], recipe=read_recipe, value=read_value, references_of=[word])

    with pytest.raises(InputError, match=said):
        check_references(study)


def test_rows_of_no_references_are_refused():
    with pytest.raises(InputError, match="references-of says whose references are added, and none are"):
        check_study({"axes": {"method": ["bce()", "asl()"]}, "references_of": {"method": "bce()"}})


def test_references_change_neither_the_folder_nor_a_run_of_a_study(two_axes, tmp_path):
    (tmp_path / "plain.toml").write_text(TWO_AXES.partition("[axes]")[1] + TWO_AXES.partition("[axes]")[2])
    (study, _), (plain, _) = asked(two_axes), asked(str(tmp_path / "plain.toml"))

    jobs = [{job.identity for job in Plan(rows_of(each), each.seeds, each.search).jobs()} for each in (study, plain)]
    assert jobs[0] == jobs[1]
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "two.toml").write_text((tmp_path / "plain.toml").read_text())
    named = [asked(file, "num-rounds=2")[1] for file in (two_axes, str(tmp_path / "two" / "two.toml"))]
    assert named[0] == named[1]
    assert named[0].startswith("two-")


def test_a_model_that_never_trains_is_there_once_for_rows_that_differ_in_training():
    """Nothing is searched for it, and what is chosen for its row of other settings it takes."""
    work = [{"name": "short", "local-epochs": 1, "batch-size": 4}, {"name": "long", "local-epochs": 8}]
    tables = {"base": {"optimizer": "sgd", "num-clients": 3, "cohort-size": 2}, "references": ["untrained"]}
    tables["axes"] = {"work": work, "strategy": ["fedavg()", "labelwise()"], "method": ["bce()", "asl()"]}
    rows = rows_of(check_study(tables))

    made, _ = distinct(reference_rows(rows, ["untrained"], lambda _: 3))

    assert [row.label for row in made] == ["untrained, bce()", "untrained, asl()"]
    experiment = made[0].experiment()
    assert (experiment.num_rounds, experiment.optimizer, experiment.strategy) == (0, "adam", "fedavg()")
    plan = Plan([*rows, *made], [0, 1], check_study({"search": {"learning-rate": [0.1, 0.2]}}).search)
    assert [job.seed for job in plan.ready() if job.row.reference] == [0, 1] * 2
    searched = {"learning-rate": [0.1], "method": ["bce()", "asl()"]}
    waiting = Plan([rows[0], made[0]], [0], check_study({"search": searched}).search)
    assert not [job for job in waiting.ready() if job.row.reference]


def test_a_command_plays_a_part_of_an_axis_of_tables(tmp_path):
    (tmp_path / "work.toml").write_text(
        "[[axes.work]]\nname = 'one, short'\nlocal-epochs = 1\n[[axes.work]]\nname = 'long'\nlocal-epochs = 8\n"
        "[[axes.work]]\nname = 'longest'\nlocal-epochs = 9\n[axes]\nmethod = ['bce()']\n"
    )
    file = str(tmp_path / "work.toml")

    assert [row.label for row in rows_of(asked(file, "work=one, short")[0])] == ["work one, short, bce()"]
    some = rows_of(asked(file, "work=long,longest", "batch-size=4")[0])
    assert [(row.experiment().local_epochs, row.experiment().batch_size) for row in some] == [(8, 4), (9, 4)]
    with pytest.raises(InputError, match="Expected work to be one of 'one, short', 'long', 'longest', got 'short'"):
        asked(file, "work=short")
    with pytest.raises(InputError, match="Expected work to be one of 'one, short'"):
        api.sweep(file, work=["long", "short"], out=tmp_path / "out", progress=False)


@pytest.mark.parametrize("name", sorted(file.stem for file in STUDIES.glob("*.toml")))
def test_every_row_of_a_shipped_study_is_a_run_that_would_start(name):
    study, _ = asked(name)

    rows = rows_of(study)
    for row in rows:
        check_experiment(*split_settings(row.settings))
    assert len({row.label for row in rows}) == len(rows) > 1
    assert study.search is None or study.search.ends()
    references = reference_rows(rows_with(rows, study.references_of), study.references, lambda _: 24)
    # Clients that train alone differ in nothing else: one of them is enough.
    unlike = {repr({**row.settings, "single-client": row.reference}): row for row in references}
    for row in unlike.values():
        check_experiment(*split_settings(row.settings))
    assert not study.references_of or sum(row.reference == "untrained" for row in references) == 1


def test_every_row_of_the_study_that_the_page_shows_is_a_run_that_would_start(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "studies" / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- example: voc.toml -->\n```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "voc.toml").write_text(found[1], encoding="utf-8")

    study, _ = asked(str(tmp_path / "voc.toml"))

    rows = rows_of(study)
    for row in rows:
        check_experiment(*split_settings(row.settings))
    assert len(rows) == 4
    assert study.search.settings
