"""What a run costs: rounds and checkpoints grow with it, frozen tensors do not, and runs of a study share them."""

import pytest

from fedmlic.experiment import split_settings
from fedmlic.record import create
from sim.sweep import pace as paces
from sim.sweep.folder import StudyFolder
from sim.sweep.pace import Cost, Pace, disk, measured
from sim.sweep.plan import Plan
from sim.sweep.study import check_study, rows_of


def test_frozen_tensors_are_written_once(tmp_path):
    (tmp_path / "frozen.safetensors").write_bytes(bytes(1000))
    (tmp_path / "rounds.parquet").write_bytes(bytes(20))
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for number in (1, 2):
        (checkpoints / f"round-{number:05d}.safetensors").write_bytes(bytes(50))

    cost = measured(tmp_path, wall=12.0, rounds=2, seconds=8.0)

    assert cost.frozen == 1000
    assert cost.bytes(2, keep=1) == pytest.approx(20 + 2 * 50)
    assert cost.bytes(200, keep=3) == pytest.approx(200 * 10 + 4 * 50)
    assert cost.seconds(200) == pytest.approx(4 + 200 * 4)


def test_equal_frozen_tensors_of_a_study_are_one_file(tmp_path):
    study = StudyFolder(tmp_path)
    contents = {"a": b"backbone", "b": b"backbone", "c": b"another"}
    for name, content in contents.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "frozen.safetensors").write_bytes(content)

    for _ in range(2):
        for name in contents:
            study.share_frozen(tmp_path / "runs" / name)

    files = {name: tmp_path / "runs" / name / "frozen.safetensors" for name in contents}
    assert {name: file.read_bytes() for name, file in files.items()} == contents
    assert files["a"].samefile(files["b"])
    assert not files["a"].samefile(files["c"])
    assert sorted(path.name for path in (tmp_path / "runs" / "b").iterdir()) == ["frozen.safetensors"]


def test_the_time_that_is_left_takes_one_mean_of_each_row(monkeypatch):
    """It is asked for every second, with thousands of runs."""
    study = check_study({"axes": {"num-rounds": [4, 5, 6, 7], "seed": "0..9"}})
    rows = rows_of(study)
    plan, pace = Plan(rows, study.seeds), Pace()
    jobs = list(plan.ready())
    for place, job in enumerate(jobs[::10][:3]):  # the last row was not measured
        for more in (0.0, 2.0):
            pace.note(job, Cost(1.0 + more, 1.0 + place, checkpoint=10.0, frozen=5.0))
    each = {4: 2 + 4 * 1.0, 5: 2 + 5 * 2.0, 6: 2 + 6 * 3.0, 7: 2 + 7 * 2.0}
    asked = []
    mean = paces._mean
    monkeypatch.setattr(paces, "_mean", lambda costs: asked.append(1) or mean(costs))

    assert pace.left(plan, 2) == pytest.approx(10 * sum(each.values()) / 2)
    assert len(asked) <= 2 * len(rows)
    assert disk(plan, pace.costs, keep=1) == pytest.approx(40 * 2 * 10.0 + 3 * 5.0)
    assert len(asked) <= 4 * len(rows)
    assert [pace.cost(job).seconds(job.experiment.num_rounds) for job in jobs[::10]] == [
        pytest.approx(each[number]) for number in (4, 5, 6, 7)
    ]


@pytest.mark.parametrize("text", ["import not_there_anywhere\n", "def mine(:\n", "raise SystemExit(3)\n"])
def test_a_run_whose_plug_in_is_broken_is_named_and_the_others_are_found(tmp_path, monkeypatch, text):
    (tmp_path / "broken_plug_in.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "broken_plug_in", raising=False)
    places = {}
    for name, method in (("a", "broken_plug_in.mine()"), ("b", "bce()")):
        experiment, runtime = split_settings({"method": method})
        places[name] = tmp_path / "study" / "runs" / name
        create(places[name], experiment, runtime)
    (tmp_path / "study" / "study.json").write_text("{}")
    study = StudyFolder(tmp_path / "study")

    (problem,) = study.find_runs()

    assert problem.startswith(f"{places['a']} is not used: ")
    assert list(study._runs.values()) == [places["b"]]
