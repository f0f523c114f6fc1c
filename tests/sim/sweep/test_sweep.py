"""Studies that are played."""

import csv
import io
import os
import pickle
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from fedmlic.errors import InputError
from fedmlic.experiment import Runtime, split_settings
from fedmlic.record import create, open_run, read_json, write_json
from sim.comparison.compare import compare
from sim.comparison.output import render, to_json
from sim.comparison.same_data import part_of
from sim.references import reference_rows
from sim.run import describe_federation
from sim.sweep import folder as folders
from sim.sweep import sweep as sweeps
from sim.sweep.folder import StudyFolder
from sim.sweep.plan import Plan, distinct
from sim.sweep.start import check_references, sweep
from sim.sweep.study import REFERENCES, check_study, rows_of
from sim.sweep.sweep import Sweep

RATES = [1e-9, 3e-3]
METHODS = ["bce()", "fails.on_seed_one()"]
FAILS = """
from fedmlic.errors import InputError
from fedmlic.methods.bce import bce


def on_seed_one():
    made = bce()

    def build(task):
        if task.seed == 1:
            raise InputError("this seed is not wanted")
        return made.build(task)

    return made._replace(build=build)
"""


def base(settings, **changes):
    return {key: value for key, value in settings(**{"num_rounds": 2, **changes}).items() if key != "engine"}


def played(study, out, width=80, **options):
    text = io.StringIO()
    found = sweep(study, out, Console(file=text, width=width), **options)
    return found, text.getvalue()


@pytest.fixture(scope="module")
def swept(settings, tmp_path_factory):
    """A study with a search, a row that fails at one seed, and references; its result and what was said."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "fails.py").write_text(FAILS)
    sys.path.insert(0, str(folder))
    try:
        tables = {
            "base": base(settings, num_clients=2, cohort_size=2),
            "axes": {"method": METHODS, "seed": [0, 1]},
            "search": {"learning-rate": RATES},
            "references": ["local-only"],
        }
        found, said = played(check_study(tables), folder / "out", jobs=2)
        again = played(check_study(tables), folder / "out", jobs=1)
        yield folder / "out", found, said, again
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("fails", None)


def test_a_row_chooses_on_validation_data_and_says_where_the_grid_ends(swept):
    out, found, said, _ = swept
    rows = {row["label"]: row for row in read_json(out / "study.json")["rows"]}

    scores = [read_json(out / run / "result.json")["metrics"]["server/val/mAP"] for run in rows["bce()"]["search"]]
    best = RATES[scores.index(max(scores))]
    assert rows["bce()"]["chosen"] == {"learning-rate": best}
    assert rows["bce()"]["score"] == max(scores)
    assert "at the border of what was searched: widen the grid" in said.replace("\n", " ")
    assert {row["learning-rate"] for row in found["table"] if row["method"] == "bce()"} == {best}


def test_a_failed_run_is_named_and_the_others_go_on(swept):
    _, found, said, (again, _) = swept
    states = {(row["method"], row["reference"], row["seed"]): row["state"] for row in found["table"]}

    assert [failure["label"].endswith("seed 1") for failure in found["failed"]].count(False) == 0
    assert "this seed is not wanted" in found["failed"][0]["reason"]
    assert "FAILED" in said
    assert states["fails.on_seed_one()", "", 0] == "complete"
    assert states["fails.on_seed_one()", "", 1] == "failed"
    assert states["bce()", "", 1] == "complete"
    assert again["table"] == found["table"]


def test_what_is_complete_is_reused(swept):
    _, _, _, (_, said) = swept

    assert "are complete already and reused" in said
    assert "bce(), seed 0:" not in said


def test_a_run_of_a_sweep_is_that_of_the_command(swept, play, tmp_path):
    _, found, _, _ = swept
    row = next(row for row in found["table"] if row["method"] == "bce()" and row["seed"] == 1 and not row["reference"])

    alone = play(
        tmp_path / "alone", num_rounds=2, num_clients=2, cohort_size=2, seed=1, learning_rate=row["learning-rate"]
    )

    assert row["weights-sha256"] == alone["weights_sha256"]


def test_local_training_is_that_of_each_client(swept):
    out, found, _, _ = swept
    federated = next(row for row in found["table"] if row["method"] == "bce()" and row["seed"] == 0)
    alone = [row for row in found["table"] if row["method"] == "bce()" and row["seed"] == 0 and row["reference"]]

    images = [_last_round(out / row["run"])["num-images"] for row in alone]

    assert [row["single-client"] for row in alone] == ["0", "1"]
    assert sum(images) == _last_round(out / federated["run"])["num-images"]


def _last_round(run):
    return [event for event in open_run(run).events() if event["event"] == "round"][-1]


def test_all_references_of_a_row(settings):
    """Passes over the images are those of the federation, and what depends on the strategy is there once."""
    study = check_study({"base": base(settings, num_rounds=6), "axes": {"strategy": ["labelwise()", "fednova()"]}})

    rows, _ = distinct([*rows_of(study), *reference_rows(rows_of(study), REFERENCES, lambda _: 0)])

    names = [row.reference for row in rows]
    assert names == ["", "", "central", "central-observed", *["local-only"] * 6, "fedavg", "untrained"]
    made = {row.reference: row.experiment() for row in rows}
    assert (made["central"].num_rounds, made["central"].local_epochs, made["central"].regime) == (4, 1, "complete()")
    assert (made["central-observed"].single_client, made["central-observed"].regime) == (
        "pooled",
        rows[0].experiment().regime,
    )
    assert (made["local-only"].num_rounds, made["local-only"].cohort_size) == (4, 0)


def test_references_are_added_to_a_study_that_was_played_and_only_they_are_played(settings, tmp_path):
    """Its runs stay what they are; the references of one row are said to be that row's."""
    tables = {"base": base(settings, num_rounds=1, workers=1)}
    tables["axes"] = {"method": ["bce()", "asl()"], "seed": [0, 1]}
    tables["search"] = {"learning-rate": [1e-3, 3e-3]}
    more = {**tables, "references": ["central", "untrained"], "references_of": {"method": "bce(pool='mean')"}}
    out = tmp_path / "out"
    before, _ = played(check_study(tables), out, jobs=1)
    dates = {file: file.stat().st_mtime_ns for file in out.rglob("result.json")}

    after, said = played(check_study(more), out, jobs=1)

    assert "study: 4 rows x 2 seeds, 14 runs (6 of them to choose settings)" in " ".join(said.split())
    assert "8 are complete already and reused" in said
    assert after["table"][:4] == before["table"]
    assert {file: file.stat().st_mtime_ns for file in dates} == dates
    assert [row["reference"] for row in after["table"][4:]] == ["central"] * 2 + ["untrained"] * 2
    untrained = after["table"][-2:]
    assert [(row["rounds"], row["method"], row.get("learning-rate")) for row in untrained] == [(0, "bce()", None)] * 2
    found = compare([out])
    (note,) = (text for text in found.notes if text.startswith("references"))
    assert note == "references (central, untrained) are those of the row bce(); the other 1 have none"
    (group,) = (group for group in found.groups if group.label == "untrained: bce")
    assert (dict(group.chosen), group.reference) == ({}, True)
    assert dict(group.values) == {row["seed"]: row["server/mAP"] for row in untrained}
    again, said = played(check_study(more), out, jobs=1)
    assert "14 are complete already and reused" in said
    assert again == after


def test_one_client_of_a_federation_holds_what_it_held(tiny):
    whole = describe_federation(*tiny())
    pooled, third = whole.single("pooled"), whole.single("3")

    shard, own = pooled.shard(0), third.shard(3)
    assert np.array_equal(own.labels, whole.shard(3).labels)
    assert np.array_equal(own.holdout_rows, whole.shard(3).holdout_rows)
    assert np.array_equal(shard.labels, np.concatenate([whole.shard(client).labels for client in whole.clients]))
    assert np.array_equal(pooled.sizes, [whole.sizes.sum()])
    assert np.array_equal(pooled.label_counts, whole.label_counts.sum(axis=0, keepdims=True))
    assert len({whole.content, pooled.content, third.content}) == 3
    assert (pooled.content, third.content) == (part_of(whole.content, "pooled"), part_of(whole.content, "3"))
    again = pickle.loads(pickle.dumps(third))  # noqa: S301  (as between our own processes)
    assert again.content == third.content
    with pytest.raises(InputError, match="a client from 0 to 5"):
        whole.single("6")


def test_the_table_is_a_file(swept):
    out, found, _, _ = swept
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))

    assert [row["run"] for row in rows] == [row["run"] for row in found["table"]]
    assert float(rows[0]["server/mAP"]) == found["table"][0]["server/mAP"]


def test_a_study_is_compared_with_its_references_beside_it(swept):
    out, found, _, _ = swept
    made = compare([out])
    shown = to_json(made)

    labels = [row["label"] for row in shown["rows"]]
    assert labels[:2] == ["bce", "fails.on_seed_one"]
    assert {"local-only mean: bce", "local-only worst: bce"} <= set(labels)
    assert len(shown["pairs"]) == 1
    assert shown["rows"][0]["values"]["0"] == found["table"][0]["server/mAP"]
    assert any("are missing" in note for note in shown["notes"])
    assert any("too few seeds" in note for note in shown["notes"])
    assert any("bce(): best learning-rate at the border" in note for note in shown["notes"])
    assert shown["model"] == "after the last round"
    for form in ("csv", "markdown", "latex"):
        assert "bce" in render(made, form)


def test_a_metric_that_is_not_there_is_refused(swept):
    with pytest.raises(InputError, match="Did you mean 'server/mAP'"):
        compare([swept[0]], metric="server/map")


def test_a_folder_whose_name_is_not_utf_8_is_refused(tmp_path):
    with pytest.raises(InputError, match="to be UTF-8"):
        StudyFolder(tmp_path / "bad\udcff")


def test_another_folder_is_not_written_into(settings, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(InputError, match="new, empty or a study"):
        played(check_study({"base": base(settings)}), tmp_path)


def test_a_study_that_is_interrupted_before_its_first_run_goes_on(settings, tmp_path, monkeypatch):
    """Broken off at each file that is written in the folder; a folder of hidden files is as good as an empty one."""
    study = check_study({"base": base(settings, num_rounds=1)})

    class KilledError(BaseException):
        pass

    def killed(*_):
        raise KilledError

    for number, (target, name) in enumerate([(folders, "write_json"), (StudyFolder, "find_runs"), (Sweep, "run")]):
        out = tmp_path / str(number)
        with monkeypatch.context() as patch:
            patch.setattr(target, name, killed)
            with pytest.raises(KilledError):
                played(study, out)
        assert {file.name for file in out.iterdir() if not file.name.startswith(".")} == (
            {"runs", "study.json"} if number else set()
        )
        StudyFolder(out)
    with pytest.raises(InputError, match="Expected complete runs to compare, got none"):
        compare([out])
    found, _ = played(study, out)

    assert [row["state"] for row in found["table"]] == ["complete"]
    assert len(read_json(out / "study.json")["rows"]) == 1


@pytest.mark.slow
def test_a_run_of_data_that_was_changed_since_is_named_as_soon_as_a_later_one_ends(settings, tmp_path):
    tables = {"base": base(settings, num_rounds=1, num_clients=2, cohort_size=2)}
    out = tmp_path / "out"
    first, _ = played(check_study({**tables, "axes": {"seed": [0]}}), out)
    old = first["table"][0]["run"]
    noted = read_json(out / old / "data.json")
    write_json(out / old / "data.json", {**noted, "corpus": "what the folder held before"})

    found, said = played(check_study({**tables, "axes": {"seed": [0, 1]}}), out, width=10_000)

    assert [row["state"] for row in found["table"]] == ["complete"] * 2
    warning = r"1 complete run was given other images or labels than later runs.*: (.*)$"
    assert re.findall(warning, said, re.MULTILINE) == [old]


@pytest.fixture
def dealt(tmp_path):
    """A function: a study's folder that found complete runs, from settings to what each was given, and its plan."""

    def deal(*runs):
        study = check_study({"axes": {"single-client": ["", "0"], "method": ["bce()", "asl()"], "seed": [0, 1]}})
        plan = Plan(rows_of(study), study.seeds)
        folder = StudyFolder(tmp_path / "study")
        for time, (name, single, method, seed, data) in enumerate(runs):
            experiment = split_settings({"single-client": single, "method": method, "seed": seed})[0]
            place = tmp_path / "study" / "runs" / name
            create(place, experiment, Runtime())
            write_json(place / "result.json", {})
            write_json(place / "data.json", data)
            os.utime(place / "data.json", (time, time))
        folder.find_runs()
        folder.note_complete(plan)
        return folder, plan

    return deal


@pytest.mark.parametrize(
    ("runs", "named"),
    [
        (["a  bce() 0 A f", "b  bce() 1 A g", "c  asl() 0 A f"], []),
        (["a  bce() 0 A f", "b  bce() 1 B g", "c  asl() 0 A f"], ["b"]),
        (["a  bce() 0 A f", "b  bce() 1 A g", "c  asl() 0 B h"], ["a", "b"]),
        (["a  bce() 0 A f", "b  asl() 0 A g", "c  asl() 1 A h"], ["a"]),
        (["a  bce() 0 A f", "b 0 bce() 0 A whole:g"], ["a"]),
        (["a 0 bce() 0 A whole:g", "b  bce() 0 A f"], ["a"]),
        (["a 0 bce() 0 A whole:f", "b  bce() 0 A f"], []),
    ],
    ids=str,
)
def test_which_runs_were_given_other_data_than_later_ones(dealt, runs, named):
    """Each of: name, ``single-client``, method, seed, corpus, federation, in the order in which they were played."""
    made = []
    for run in runs:
        name, single, method, seed, corpus, federation = run.split(" ")
        whole, _, part = federation.partition(":")
        made.append(
            (
                name,
                single,
                method,
                int(seed),
                {"corpus": corpus, "federation": part_of(part, single) if part else whole},
            )
        )
    folder, plan = dealt(*made)

    assert folder.newly_outdated(plan) == [f"runs/{name}" for name in named]
    assert folder.newly_outdated(plan) == []


def test_engines_that_carry_single_runs_are_refused(settings, tmp_path):
    for engine in ("flower", "ray"):
        with pytest.raises(InputError, match="whole runs, on this machine or a cluster"):
            played(check_study({"base": {**base(settings), "engine": engine}}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_measures_and_leaves_nothing(settings, tmp_path):
    found, said = played(
        check_study({"base": base(settings), "axes": {"seed": "0..4"}}), tmp_path / "new", dry_run=True
    )

    assert found["runs_left"] == 5
    assert found["seconds"] > 0
    assert found["bytes"] > 0
    assert "5 runs" in said
    assert not (tmp_path / "new").exists()


STAGES = "probe_then_tune(probe_rounds=3)"


@pytest.mark.slow
def test_a_dry_run_of_a_method_in_stages_is_ended_after_two_rounds(settings, tmp_path, monkeypatch):
    rounds = []
    note = sweeps.measured

    def measured(run, wall, number, seconds):
        rounds.append([event["round"] for event in open_run(run).events() if event["event"] == "round"])
        assert 0 < seconds <= wall
        return note(run, wall, number, seconds)

    monkeypatch.setattr(sweeps, "measured", measured)
    study = check_study({"base": base(settings, num_rounds=400), "axes": {"method": [STAGES, "bce()"]}})

    found, said = played(study, tmp_path / "new", dry_run=True)

    assert rounds[0][:2] == [1, 2]
    assert len(rounds[0]) < 40
    assert rounds[1] == [1, 2]
    assert found["seconds"] > 0
    assert f"the last rounds of {STAGES} are of a later stage" in said.replace("\n", " ")


def test_a_reference_with_too_few_rounds_for_a_method_in_stages_is_refused_and_named(settings, tmp_path):
    """In 4 rounds of 4 of 6 clients each has 2.7 turns on average: 3 rounds alone, all of them of the first stage."""
    study = {"base": base(settings, num_rounds=4, method=STAGES), "references": ["local-only"]}

    with pytest.raises(InputError, match=r"Expected reference local-only .*num-rounds=3.*leave this reference out"):
        played(check_study(study), tmp_path / "out")

    assert not (tmp_path / "out").exists()
    check_references(check_study({**study, "references": ["fedavg"]}))


@pytest.mark.slow
def test_five_kills_leave_the_table_of_an_uninterrupted_sweep(settings, tmp_path):
    settings = {**base(settings, num_rounds=8), "method": ["bce()", "asl()"], "seed": ["0..1"]}
    words = [f"{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in settings.items()]
    command = [sys.executable, "-c", "from sim.command import main; main()", "sweep", *words, "--jobs", "2"]
    whole = subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True, text=True)
    for kill in range(5):
        process = subprocess.Popen([*command, "--out", str(tmp_path / "killed")], stderr=subprocess.PIPE, text=True)
        for line in process.stderr:  # in the middle of rounds, and after a run ended
            if line.startswith(("about", "[") if kill % 2 else "["):
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    subprocess.run([*command, "--out", str(tmp_path / "killed")], check=True, capture_output=True)

    assert "2 of 2" in whole.stdout
    assert (tmp_path / "killed/table.csv").read_bytes() == (tmp_path / "whole/table.csv").read_bytes()


@pytest.mark.slow
def test_an_interrupted_search_of_a_range_has_the_table_of_an_undisturbed_one(settings, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    rates = {"low": 1e-4, "high": 1e-1, "log": True}
    tables = {
        "base": base(settings, num_rounds=1),
        "search": {"learning-rate": rates, "trials": 4, "trials-at-once": 2},
    }
    whole, _ = played(check_study(tables), tmp_path / "whole", jobs=1)

    end = Sweep._end

    def interrupted(self, job, reason):
        end(self, job, reason)
        if len(self.plan.outcomes) == 3:  # in the middle of the second wave
            raise KeyboardInterrupt

    monkeypatch.setattr(Sweep, "_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        played(check_study(tables), tmp_path / "broken", jobs=1)
    monkeypatch.setattr(Sweep, "_end", end)
    found, said = played(check_study(tables), tmp_path / "broken", jobs=2)

    assert "3 are complete already and reused" in said
    assert found["table"] == whole["table"]
    assert (tmp_path / "broken/table.csv").read_bytes() == (tmp_path / "whole/table.csv").read_bytes()
    assert len(list((tmp_path / "broken/search").iterdir())) == 4
    rows = [read_json(tmp_path / name / "study.json")["rows"] for name in ("broken", "whole")]
    assert rows[0] == rows[1]
    scores = {
        open_run(tmp_path / "whole" / run).settings()[0].learning_rate: read_json(
            tmp_path / "whole" / run / "result.json"
        )["metrics"]["server/val/mAP"]
        for run in rows[0][0]["search"]
    }
    assert found["table"][0]["learning-rate"] == max(scores, key=scores.__getitem__)
