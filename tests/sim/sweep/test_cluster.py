"""Sweeps on a Ray cluster that was there before: two nodes on this machine, each with a home of its own."""

import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fedmlic.errors import InputError
from fedmlic.experiment import split_settings
from fedmlic.record import open_run
from sim.sweep.cluster import Cluster, Needs, _look, fitting, needs_of
from sim.sweep.start import sweep
from sim.sweep.study import check_study
from sim.sweep.sweep import crew_for

ray_noise = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, ray_nodes):
    """The address of a cluster of two nodes with one processor each, and their homes."""
    homes = [tmp_path_factory.mktemp("home") for _ in range(2)]
    with ray_nodes(homes) as address:
        yield address, homes


def tables(settings, **changes):
    base = {key: value for key, value in settings(num_rounds=2).items() if key != "engine"}
    return {"base": base, "axes": {"method": ["bce()", "asl()"], "seed": [0, 1]}, **changes}


def played(study, out, **options):
    text = io.StringIO()
    return sweep(study, out, Console(file=text, width=100), **options), text.getvalue()


@pytest.mark.slow
@ray_noise
def test_the_table_of_a_cluster_is_the_table_of_this_machine(cluster, settings, tmp_path):
    address, homes = cluster
    study = check_study(tables(settings, search={"learning-rate": [0.001, 0.01]}))

    there, said = played(study, tmp_path / "there", ray_address=address)
    here, _ = played(study, tmp_path / "here", jobs=1)

    assert there["table"] == here["table"]
    assert (tmp_path / "there/table.csv").read_bytes() == (tmp_path / "here/table.csv").read_bytes()
    assert "2 at a time, in one process each, on a cluster of 2 machines" in said
    for home in homes:  # both have played, from their own disks
        assert list(home.glob("corpora/multidigits/*/manifest.json"))
    again, said = played(study, tmp_path / "there", ray_address=address)
    assert again["table"] == here["table"]
    assert "8 are complete already and reused" in said
    assert not list((tmp_path / "there").glob(".seen-*"))


@pytest.mark.slow
@ray_noise
def test_a_run_that_fails_or_whose_process_dies_is_named(cluster, settings, tmp_path):
    (tmp_path / "ends.py").write_text(
        "import os\nfrom fedmlic.methods.bce import bce\n\n\n"
        "def here(*, way: str):\n    made = bce()\n\n    def build(task):\n"
        "        if way == 'killed':\n            os.kill(os.getpid(), 9)\n        raise RuntimeError('not wanted')\n\n"
        "    return made._replace(build=build)\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        axes = {"method": ["ends.here(way='killed')", "ends.here(way='error')", "bce()"]}
        found, _ = played(check_study({**tables(settings), "axes": axes}), tmp_path / "out", ray_address=cluster[0])
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("ends", None)

    assert [row["state"] for row in found["table"]] == ["failed", "failed", "complete"]
    assert "its process on the cluster ended" in found["failed"][0]["reason"]
    assert "RuntimeError: not wanted (on the machine" in found["failed"][1]["reason"]


@pytest.mark.slow
def test_a_sweep_on_a_cluster_that_was_killed_goes_on(cluster, settings, tmp_path):
    given = {**tables(settings)["base"], "num_rounds": 6, "seed": "0..1"}
    words = [f"{key}={value}" for key, value in given.items()]
    command = [sys.executable, "-c", "from sim.command import main; main()", "sweep", *words]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "killed"), "--ray-address", cluster[0]], stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            if line.startswith("about"):  # in the middle of rounds
                break
        process.send_signal(signal.SIGKILL)
    subprocess.run(
        [*command, "--out", str(tmp_path / "killed"), "--ray-address", cluster[0]], check=True, capture_output=True
    )
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)

    assert (tmp_path / "killed/table.csv").read_bytes() == (tmp_path / "whole/table.csv").read_bytes()
    events = [event["event"] for run in (tmp_path / "killed/runs").iterdir() for event in open_run(run).events()]
    assert events.count("round") == 12


@pytest.mark.slow
@ray_noise
def test_a_run_that_no_machine_has_room_for_is_refused(cluster, settings, tmp_path):
    given = tables(settings)
    given["base"]["workers"] = 2

    with pytest.raises(InputError, match="to have 2 processors and 0 GPUs for a run, got 1 processors"):
        played(check_study(given), tmp_path / "out", ray_address=cluster[0])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@ray_noise
def test_a_folder_that_a_machine_does_not_see_is_refused(cluster, settings, tmp_path, monkeypatch):
    made = Cluster(split_settings({**tables(settings)["base"], "ray-address": cluster[0]})[1])
    try:
        made.check_folder(tmp_path)
        # To the machines the folder is another, in which the token is not.
        monkeypatch.setattr(Path, "write_text", lambda *_, **__: 0)
        monkeypatch.setattr(Path, "unlink", lambda *_: None)
        with pytest.raises(InputError, match=r"2 problems(.|\n)*FileNotFoundError(.|\n)*shared storage with --out"):
            made.check_folder(tmp_path)
    finally:
        made.close()


def test_a_machine_looks_for_the_token_and_writes(tmp_path):
    (tmp_path / "seen").write_text("abc")

    assert _look(str(tmp_path / "seen"), "abc") == ""
    assert "another file" in _look(str(tmp_path / "seen"), "other")
    assert "Give a folder on shared storage" in _look(str(tmp_path / "missing"), "abc")
    assert [file.name for file in tmp_path.iterdir()] == ["seen"]


def test_runs_fit_machine_by_machine():
    machines = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 3.0}]

    def room(needs):
        return sum(fitting(needs, machine) for machine in machines)

    assert room(Needs(1, 0.0)) == 6
    assert room(Needs(2, 0.0)) == 2  # not 6 / 2: a run is on one machine
    assert room(Needs(1, 0.5)) == 2
    assert room(Needs(1, 1.0)) == 1


@pytest.mark.parametrize(
    ("changes", "has_gpus", "needs", "engine"),
    [
        ({}, False, (1, 0.0), "inprocess"),
        ({}, True, (1, 1.0), "inprocess"),
        ({"device": "cpu"}, True, (1, 0.0), "inprocess"),
        ({"gpus_per_worker": 0.25, "threads": 2}, True, (2, 0.25), "inprocess"),
        ({"workers": 3, "threads": 2}, False, (6, 0.0), "processes"),
    ],
)
def test_what_a_run_takes_of_a_machine(changes, has_gpus, needs, engine):
    runtime = split_settings(changes)[1]

    assert needs_of(runtime, has_gpus=has_gpus) == needs
    crew = crew_for(runtime, 0, 9, cluster_room=4)
    assert (crew.players, crew.engine) == (4, engine)
    assert crew.changes(0)["ray_address"] == ""
    assert crew_for(runtime, 2, 9, cluster_room=4).players == 2


def test_no_cluster_at_that_address_is_a_clear_error(settings, free_port, tmp_path):
    with pytest.raises(InputError, match="running Ray cluster"):
        played(check_study(tables(settings)), tmp_path / "out", ray_address=f"127.0.0.1:{free_port}")
    assert not (tmp_path / "out").exists()
