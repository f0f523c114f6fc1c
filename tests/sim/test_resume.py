"""Killed runs go on to the weights of the run that nobody killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from fedmlic import record
from fedmlic.errors import InputError
from fedmlic.record import RunFolder, open_run, read_json
from sim import run as engine
from strategies.server import rounds, server

ROUNDS = 6
SLOW = """
import os
import time
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.training import classifier


def slow(*, seconds: float = 0.0):
    base = classifier(mean_binary_cross_entropy)

    def train(resident, shard, local):
        time.sleep(seconds if "FEDMLIC_TEST_SLOW" in os.environ else 0)
        return base.train(resident, shard, local)

    return base._replace(train=train)
"""


@pytest.fixture(scope="module")
def whole(play, tmp_path_factory):
    """The undisturbed run: (folder, result)."""
    path = tmp_path_factory.mktemp("whole") / "run"
    return path, play(path, num_rounds=ROUNDS)


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the program catches it."""


def broken_at(monkeypatch, play, out, target, name, call, **changes):
    """Run into ``out`` and break off when ``target.name`` is called the ``call``-th time."""
    original, calls = getattr(target, name), []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, counted)
        with pytest.raises(Killed):
            play(out, **{"num_rounds": ROUNDS, **changes})


VARYING = {"time", "started", "idle-share", "slowest-client"}
"""Keys of events that no two runs share, besides those with "seconds"."""

MOMENTS = {
    "before the frozen tensors": (server, "_write_frozen", 1),
    "in the first round": (rounds.Rounds, "_updates", 1),
    "before the first checkpoint": (RunFolder, "save_checkpoint", 1),
    "between two rounds": (rounds, "sample_cohort", 4),
    "after the events and before the checkpoint": (RunFolder, "save_checkpoint", 3),
    "after the checkpoint and before pruning": (RunFolder, "prune_checkpoints", 4),
    "in the final evaluation": (rounds.Rounds, "_evaluate_clients", 1),
    "before the tables": (RunFolder, "write_tables", 1),
    "before the result": (server, "write_json", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_broken_off_at_a_chosen_moment(monkeypatch, play, whole, tmp_path, moment):
    path, expected = whole
    out = tmp_path / "run"
    target, name, call = MOMENTS[moment]

    broken_at(monkeypatch, play, out, target, name, call)
    result = engine.resume(out)

    assert expected["weights_sha256"] == result["weights_sha256"]
    assert expected["metrics"] == pytest.approx(result["metrics"], nan_ok=True)
    assert (expected["best_round"], expected["rounds"]) == (result["best_round"], result["rounds"])
    first, second = (without_time(folder) for folder in (path, out))
    assert first == second, "the log should not tell that the run was interrupted"
    assert all((out / f"{name}.parquet").exists() for name in ("rounds", "clients", "labels"))


PERSONAL_MOMENTS = {
    "in the final evaluation": (rounds.Rounds, "_evaluate_clients", 2),
    "before the last checkpoint": (RunFolder, "save_checkpoint", ROUNDS),
    "after the last checkpoint": (RunFolder, "prune_checkpoints", ROUNDS),
    "before the result": (server, "write_json", 1),
}
"""The final evaluation of clients with tensors of their own comes before the last checkpoint: it chooses the best."""


PERSONAL = {"mods": "fedper()", "evaluate_clients_every": 3, "local_epochs": 6}


@pytest.fixture(scope="module")
def personal(play, tmp_path_factory):
    """The undisturbed run of clients with tensors of their own, evaluated in rounds 3 and 6: (folder, result)."""
    path = tmp_path_factory.mktemp("personal") / "run"
    return path, play(path, num_rounds=ROUNDS, **PERSONAL)


@pytest.mark.parametrize("moment", PERSONAL_MOMENTS)
def test_the_best_round_of_personal_models_does_not_tell_of_an_interruption(
    monkeypatch, play, personal, tmp_path, moment
):
    path, expected = personal
    out = tmp_path / "run"

    broken_at(monkeypatch, play, out, *PERSONAL_MOMENTS[moment], **PERSONAL)
    result = engine.resume(out)

    assert expected["best_round"] == ROUNDS, "the case of interest"
    assert expected["weights_sha256"] == result["weights_sha256"]
    for name in ("metrics", "best_metrics"):
        assert expected[name] == pytest.approx(result[name], nan_ok=True)
    assert result["best_round"] == ROUNDS
    first, second = (without_time(folder) for folder in (path, out))
    assert first == second, "nothing is evaluated twice"
    assert [event["round"] for event in second if event["event"] == "clients-evaluated"] == [3, ROUNDS]


def test_personal_models_evaluated_after_the_last_checkpoint_are_still_a_candidate(monkeypatch, play, tmp_path):
    """Runs of earlier versions: nothing in the log says what clients found of the last model."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(rounds.Rounds, "_clients_due", lambda _, number: number == 3)
        patch.setattr(rounds.Rounds, "_chosen_by_clients", broken)
        with pytest.raises(Killed):
            play(out, num_rounds=ROUNDS, **PERSONAL)
    assert RunFolder(out).checkpoint_values(ROUNDS)["best_round"] == 3

    result = engine.resume(out)

    found = {e["round"]: e["client/mAP"] for e in RunFolder(out).events() if e["event"] == "clients-evaluated"}
    assert result["best_round"] == max(found, key=found.get) == ROUNDS
    assert RunFolder(out).checkpoint_values(ROUNDS)["best_round"] == ROUNDS


def broken(*_):
    raise Killed


def without_time(path):
    """Events of rounds, clients and labels without durations."""
    return [
        {key: value for key, value in event.items() if "seconds" not in key and key not in VARYING}
        for event in RunFolder(path).events()
        if event["event"] in {"round", "client", "labels", "clients-evaluated"}
    ]


@pytest.mark.parametrize("half", ["tensors-tmp", "tensors", "manifest-tmp"])
def test_broken_off_while_a_checkpoint_was_written(monkeypatch, play, whole, tmp_path, half):
    out = tmp_path / "run"
    broken_at(monkeypatch, play, out, RunFolder, "save_checkpoint", 4)
    folder = out / "checkpoints"
    data = (folder / "round-00003.safetensors").read_bytes()
    if half == "tensors-tmp":
        (folder / ".round-00004.safetensors.tmp").write_bytes(data[:100])
    else:
        (folder / "round-00004.safetensors").write_bytes(data)
    if half == "manifest-tmp":
        (folder / ".round-00004.json.tmp").write_text('{"schema": 1, "round": 4')
    with (out / "events.jsonl").open("a") as log:
        log.write('{"event":"round","rou')

    assert whole[1]["weights_sha256"] == engine.resume(out)["weights_sha256"]
    assert not list(out.rglob(".*.tmp"))


@pytest.mark.parametrize("strategy", ["fedavg()", "loss_weighted()"])
def test_every_strategy_resumes(monkeypatch, play, tmp_path, strategy):
    change = {"strategy": strategy, "optimizer": "sgd", "schedule": "cosine", "augmentation": "shift"}
    expected = play(tmp_path / "whole", num_rounds=ROUNDS, **change)

    broken_at(monkeypatch, play, tmp_path / "run", RunFolder, "save_checkpoint", 3, **change)

    assert expected["weights_sha256"] == engine.resume(tmp_path / "run")["weights_sha256"]


def test_interrupted_again_and_again(monkeypatch, play, whole, tmp_path):
    out = tmp_path / "run"
    broken_at(monkeypatch, play, out, RunFolder, "save_checkpoint", 2)
    for _ in range(3):
        with monkeypatch.context() as patch:
            original, calls = RunFolder.prune_checkpoints, []

            def second(*args, original=original, calls=calls):
                calls.append(1)
                if len(calls) == 2:
                    raise Killed
                original(*args)

            patch.setattr(RunFolder, "prune_checkpoints", second)
            try:
                engine.resume(out)
            except Killed:
                continue

    assert whole[1]["weights_sha256"] == engine.resume(out)["weights_sha256"]


def test_a_complete_run_is_not_played_again(whole, monkeypatch):
    path, expected = whole
    monkeypatch.setattr(engine, "_play", None)

    assert expected == engine.resume(path)


def test_time_spent_before_the_kill_counts(monkeypatch, play, tmp_path):
    out = tmp_path / "run"
    broken_at(monkeypatch, play, out, RunFolder, "save_checkpoint", 4)
    spent = open_run(out).checkpoint_values(3)["seconds"]

    assert engine.resume(out)["seconds"] > spent > 0


@pytest.fixture
def interrupted(monkeypatch, play, tmp_path):
    """The folder of a run that was killed before its fourth checkpoint."""
    out = tmp_path / "run"
    broken_at(monkeypatch, play, out, RunFolder, "save_checkpoint", 4)
    return out


@pytest.mark.parametrize("log", ["whole", "missing"])
def test_a_damaged_checkpoint_costs_its_rounds_and_not_the_run(interrupted, whole, log):
    last = interrupted / "checkpoints" / "round-00003"
    last.with_suffix(".safetensors").write_bytes(b"rubbish")
    if log == "missing":
        (interrupted / "events.jsonl").unlink()

    assert whole[1]["weights_sha256"] == engine.resume(interrupted)["weights_sha256"]
    warnings = [event["text"] for event in open_run(interrupted).events() if event["event"] == "warning"]
    assert any("checkpoint of round 3 is damaged" in text for text in warnings)
    assert any("got no such file" in text for text in warnings) is (log == "missing")
    rounds = [event["round"] for event in open_run(interrupted).events() if event["event"] == "round"]
    assert rounds == [*range(1 if log == "whole" else 3, ROUNDS + 1)]
    assert last.with_name("round-00003.safetensors.damaged").exists()


def test_a_checkpoint_of_another_experiment_is_an_error(interrupted, play, tmp_path):
    play(tmp_path / "other", num_rounds=5)
    for file in (tmp_path / "other" / "checkpoints").iterdir():
        shutil.copy(file, interrupted / "checkpoints")

    with pytest.raises(InputError, match="belong to this run's experiment"):
        engine.resume(interrupted)


def test_other_images_than_at_the_start_are_an_error(interrupted):
    """A folder of images can change between the kill and the resume."""
    for file in (interrupted / "checkpoints").glob("*.json"):
        values = read_json(file)
        values["corpus"] = "0" * 12
        values[record.MANIFEST_HASH] = record._hash_of(values)
        file.write_text(json.dumps(values))

    with pytest.raises(InputError, match=r"images and labels that .* was started with"):
        engine.resume(interrupted)


def test_a_run_can_be_resumed_with_other_workers_but_not_with_nonsense(interrupted, whole):
    for change in ({"engine": "rey"}, {"workers": -1}, {"threads": 0}):
        with pytest.raises(InputError):
            engine.resume(interrupted, changes=change)

    assert whole[1]["weights_sha256"] == engine.resume(interrupted, changes={"workers": 3})["weights_sha256"]


def test_two_processes_on_one_folder_are_refused(interrupted):
    def files():
        return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in interrupted.rglob("*")}

    with FileLock(interrupted / ".lock"):
        before = files()
        with pytest.raises(InputError, match="another process is running"):
            engine.resume(interrupted)
        assert files() == before, "nothing should be written into a folder that another process holds"


# Real processes


def command(settings, *arguments, **changes):
    """Start ``fedmlic`` as a process in a session of its own."""
    pairs = [f"{key}={value}" for key, value in {**settings(num_rounds=ROUNDS), **changes}.items()]
    pairs = pairs if arguments[0] == "run" else []
    return subprocess.Popen(
        [sys.executable, "-m", "sim.command", *arguments, *pairs, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "FEDMLIC_TEST_SLOW": "1"},
    )


def alive(session):
    """Processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                found.append(int(entry.name))
        except (OSError, IndexError):
            continue
    return found


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


@pytest.fixture
def heeded():
    """Ctrl-C is heeded: a test run in the background of a script is told to ignore it, and passes that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def slowly(plug):
    """The method whose clients take their time in started processes, so that a kill hits them."""
    plug("slow", SLOW)
    return "slow.slow(seconds=0.5)"


@pytest.mark.parametrize("checkpoints", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_killed_for_real(settings, play, tmp_path, slowly, checkpoints):
    expected = play(tmp_path / "whole", num_rounds=ROUNDS, method=slowly)
    out = tmp_path / "run"
    process = command(settings, "run", "--out", str(out), method=slowly)
    wait_for(lambda: (out / "events.jsonl").exists() and len(RunFolder(out).checkpoints()) >= checkpoints)

    process.send_signal(signal.SIGKILL)
    process.communicate()

    assert process.returncode == -signal.SIGKILL
    assert not (out / "result.json").exists()
    assert not alive(process.pid)
    assert expected["weights_sha256"] == engine.resume(out)["weights_sha256"]


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("heeded")
def test_interrupted_by_a_person(settings, play, tmp_path, slowly, sent):
    out = tmp_path / "run"
    process = command(settings, "run", "--out", str(out), method=slowly)
    wait_for(lambda: (out / "events.jsonl").exists() and RunFolder(out).checkpoints())

    os.killpg(process.pid, sent)
    stdout, stderr = process.communicate(timeout=60)

    assert process.returncode == 130
    assert stdout == ""
    assert "Interrupted. The last checkpoint is kept" in stderr
    assert "Traceback" not in stderr
    assert not alive(process.pid)
    expected = play(tmp_path / "whole", num_rounds=ROUNDS, method=slowly)
    assert expected["weights_sha256"] == engine.resume(out)["weights_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("heeded")
def test_ray_leaves_nothing_behind(settings, play, tmp_path, slowly, sent):
    out = tmp_path / "run"
    process = command(settings, "run", "--out", str(out), method=slowly, engine="ray", workers=2)
    wait_for(lambda: (out / "events.jsonl").exists() and RunFolder(out).checkpoints())

    if sent == signal.SIGKILL:
        process.send_signal(sent)
    else:
        os.killpg(process.pid, sent)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == (-sent if sent == signal.SIGKILL else 130)
    assert "Traceback" not in stderr
    assert "SIGTERM received" not in stderr  # of Ray's C++ parts
    # Two agents of Ray try for a minute to report a death that nobody reads any more (its GCS timeout), then end.
    wait_for(lambda: not alive(process.pid), 100)
    expected = play(tmp_path / "whole", num_rounds=ROUNDS, method=slowly)
    assert expected["weights_sha256"] == engine.resume(out, changes={"engine": "inprocess"})["weights_sha256"]


def test_a_folder_that_another_process_runs_is_refused(settings, tmp_path, slowly):
    out = tmp_path / "run"
    first = command(settings, "run", "--out", str(out), method=slowly.replace("0.1", "1.0"))
    wait_for((out / "events.jsonl").exists)

    with pytest.raises(InputError, match="another process is running"):
        engine.resume(out)

    first.kill()
    first.communicate()


REGIME = """
import numpy as np
from fedmlic.regime import Regime

def mine(*, x: int = 1):
    def annotate(assignment):
        {body}
    return Regime(annotate)
"""


def edited(monkeypatch, plug, body):
    """Write the plug-in's file, and have the next import read it."""
    plug("my_regime", REGIME.format(body=body))
    monkeypatch.delitem(sys.modules, "my_regime", raising=False)


def resumed_events(path):
    return [event["text"] for event in open_run(path).events() if event["event"] == "warning"]


def test_a_run_that_goes_on_with_other_code_says_which_files(monkeypatch, play, plug, tmp_path):
    """Labels that are the same can be gone on with; code that was edited is named, in the record too."""
    out = tmp_path / "run"
    edited(monkeypatch, plug, "return assignment.labels.copy()")
    broken_at(monkeypatch, play, out, RunFolder, "save_checkpoint", 2, regime="my_regime.mine()")
    assert resumed_events(out) == []
    edited(monkeypatch, plug, "return assignment.labels.copy()  # a comment")

    engine.resume(out)

    assert [text.partition(")")[0] for text in resumed_events(out)] == [
        "this run was started with other code (changed: my_regime.py"
    ]


def test_sums_of_other_code_are_said_before_the_first_round_is_complete(monkeypatch, play, plug, tmp_path):
    """What clients have counted is in the checkpoint of round 0, so that a run which goes on from it is no new one."""
    out = tmp_path / "run"
    edited(monkeypatch, plug, "return assignment.labels.copy()")
    counting = {"regime": "my_regime.mine()", "method": "balanced_bce(counts='global')", "allow_statistics": True}
    broken_at(monkeypatch, play, out, RunFolder, "save_checkpoint", 2, **counting)
    assert RunFolder(out).checkpoints() == [0]
    before = (out / "code.json").read_bytes()
    edited(monkeypatch, plug, "return assignment.labels.copy()  # a comment")

    engine.resume(out)

    assert "this run was started with other code (changed: my_regime.py" in resumed_events(out)[0]
    assert (out / "code.json").read_bytes() == before


def test_a_run_does_not_go_on_with_other_labels(monkeypatch, play, plug, tmp_path):
    out = tmp_path / "run"
    edited(monkeypatch, plug, "return assignment.labels.copy()")
    broken_at(monkeypatch, play, out, RunFolder, "save_checkpoint", 2, regime="my_regime.mine()")
    edited(monkeypatch, plug, "return np.full_like(assignment.labels, -1)")

    with pytest.raises(InputError, match=r"Expected the images and labels that .* was started with, got others"):
        engine.resume(out)


def test_a_run_of_an_earlier_version_says_that_its_code_is_not_known(interrupted):
    (interrupted / "code.json").unlink()
    (interrupted / "data.json").unlink()

    engine.resume(interrupted)

    assert resumed_events(interrupted) == [
        "the code that this run was started with is not known: it was not recorded then"
    ]


DATASET = """
from dataclasses import replace
from fedmlic.datasets.multidigits import multidigits

def digits(*, x: int = 1):
    found = multidigits(num_train=120, num_val=20, num_test=20, image_size=24, num_owners=5)
    return replace(found, name="digits", image=lambda row: {body}, images=None)
"""


@pytest.mark.parametrize(("body", "same"), [("found.image(row)", True), ("found.image(row) // 2", False)])
def test_a_run_goes_on_after_an_edit_of_its_data_set_that_draws_the_same(monkeypatch, play, plug, tmp_path, body, same):
    out = tmp_path / "run"
    plug("my_digits", DATASET.format(body="found.image(row)"))
    broken_at(monkeypatch, play, out, RunFolder, "save_checkpoint", 2, dataset="my_digits.digits()")
    plug("my_digits", "# edited\n" + DATASET.format(body=body))
    monkeypatch.delitem(sys.modules, "my_digits")

    if same:
        engine.resume(out)
        assert "changed: my_digits.py" in resumed_events(out)[0]
    else:
        with pytest.raises(InputError, match=r"images and labels that .* was started with"):
            engine.resume(out)
