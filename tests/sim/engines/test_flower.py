"""Flower's Simulation Runtime: the settings it knows, the bundle it gets, and whole runs through it."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
import uuid
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk, build_fab_from_files

from fedmlic.errors import InputError
from fedmlic.experiment import flower_config, split_settings
from fedmlic.record import create
from sim.commands.settings import read_settings, with_recipe
from sim.engines import flower
from sim.run import Watch, resume, run
from strategies.server.rounds import RunFailedError

ROOT = Path(flower.__file__).resolve().parents[2]
TAG = "FEDMLIC_TEST_TAG"


def tagged(tag):
    """Processes alive that carry this test's tag, or are in the folder of a service that ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            homeless = "/fedmlic-" in (cwd := str((folder / "cwd").readlink())) and cwd.endswith("(deleted)")
            carries = f"{TAG}={tag}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if not zombie and (carries or homeless):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
        except OSError:
            continue
    return found


@pytest.fixture
def tag(monkeypatch):
    """A mark in this process's environment that everything it starts inherits."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(TAG, value)
    return value


# --- settings and bundles ------------------------------------------------------------------


def test_pyproject_holds_every_setting_of_the_default_recipe_with_its_type():
    """``flwr run . --run-config`` only takes keys that are there; a bare ``flwr run .`` is a bare ``fedmlic run``."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    expected = flower_config(*split_settings({**read_settings(with_recipe([])), "engine": "flower"}))

    assert expected == table
    assert list(expected) == list(table)
    assert {k: type(v) for k, v in expected.items()} == {k: type(v) for k, v in table.items()}


def test_letters_above_ffff_reach_the_app(tmp_path):
    settings = flower_config(*split_settings({"label-names": "owl 🦉,cat\x7f"}))
    app = flower.stage_app(tmp_path / "app", settings)

    found = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
    assert found == settings


def test_a_service_that_does_not_answer_is_an_error_with_the_end_of_its_log(tmp_path, monkeypatch):
    def silent(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    (tmp_path / "flower.log").write_text("starting\nlast words\n")
    monkeypatch.setattr(flower.subprocess, "run", silent)
    service = flower.Service(tmp_path, tmp_path / "flower.log", {}, None)

    with pytest.raises(RuntimeError, match=r"(?s)Expected flwr run to answer within 60 s.*last words"):
        service.submit(tmp_path / "app", 2, 0.0)


def names_in(bundle):
    return set(zipfile.ZipFile(io.BytesIO(bundle)).namelist())


def code_of(package, root=ROOT):
    return {f"{package}/{path.relative_to(root / package)}" for path in (root / package).rglob("*.py")}


# Flower's dependency asks it to spell a pattern's name in a new way.
flowers_patterns = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


@flowers_patterns
def test_the_checkouts_bundle_holds_what_a_node_needs_and_no_more():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("this copy of the project is no git checkout")
    bundle, _ = build_fab_from_files({name: ROOT / name for name in tracked if (ROOT / name).is_file()})
    names = names_in(bundle)

    assert {
        name for name in tracked if name.startswith(("fedmlic/", "clients/", "strategies/")) and name.endswith(".py")
    } <= names
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names
    assert not {name for name in names if name.startswith(("tests/", "docs/", "sim/", "runs/", "benchmarks/"))}
    assert len(bundle) < 4_000_000


@flowers_patterns
def test_a_staged_app_is_the_code_with_the_settings_in_it(tmp_path, tiny):
    settings = flower_config(*tiny(dataset="multidigits(noise=1e-05)", learning_rate=1e-05, out='/a "b" \\ ü'))
    app = flower.stage_app(tmp_path / "app", settings)

    table = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    names = names_in(build_fab_from_disk(app))

    assert settings == table
    assert {k: type(v) for k, v in settings.items()} == {k: type(v) for k, v in table.items()}
    assert code_of("fedmlic") | code_of("clients") | code_of("strategies") <= names
    assert not list(app.rglob("__pycache__"))


# --- following a run -----------------------------------------------------------------------


def test_the_log_is_followed_line_by_line(tmp_path):
    log = tmp_path / "events.jsonl"
    seen = []
    tail = flower._Tail(log, 0)
    listeners = [lambda kind, values: seen.append((kind, values))]
    assert not tail.read(listeners)
    assert seen == []

    log.write_text('{"event":"start","round":0}\n{"event":"rou')
    assert tail.read(listeners)
    assert not tail.read(listeners)
    with log.open("a") as file:
        file.write('nd","round":1}\n')
    assert tail.read(listeners)

    assert seen == [("start", {"round": 0}), ("round", {"round": 1})]


def test_flower_is_asked_only_about_a_run_that_is_silent(monkeypatch):
    """Asking starts a process, which a run that is going on would have to share the processor with."""
    now, asked = 1000.0, threading.Semaphore(0)
    monkeypatch.setattr(flower.time, "monotonic", lambda: now)

    class Told:
        def status(self, run_id):
            asked.release()
            return f"finished:{run_id}"

    status = flower._Status(Told(), "7")
    for _ in range(100):
        now += 0.9 * flower.STATUS_S[0]
        status.heard()
        assert status.ended() == ""
    assert not asked.acquire(blocking=False)

    now += 1.1 * flower.STATUS_S[0]
    told = status.ended()
    assert asked.acquire(timeout=10)
    assert (told or status._answers.get(timeout=10)) == "finished:7"


def test_a_resumed_log_is_followed_from_its_checkpoint(tmp_path, tiny):
    import torch

    folder = create(tmp_path / "run", *tiny())
    assert flower._rewind(folder) == 0
    folder.event("round", {"round": 1})
    length = folder.events_path.stat().st_size
    folder.save_checkpoint(1, {"model/a": torch.zeros(2)}, {})
    folder.event("client", {"round": 2})

    assert flower._rewind(folder) == length
    assert folder.events_path.stat().st_size == length


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_clients": 100_000, "cohort_size": 1}, "clients"),
        ({"method": "asl(gama_pos=1)"}, "gam"),
    ],
)
def test_bad_input_is_found_before_anything_is_started(play, tmp_path, monkeypatch, changes, told):
    monkeypatch.setattr(flower, "_service", None)

    with pytest.raises(InputError, match=told):
        play(tmp_path / "run", engine="flower", **changes)

    assert not (tmp_path / "run").exists()


# --- whole runs ----------------------------------------------------------------------------


class Notes(Watch):
    """Writes down what it hears."""

    def __init__(self):
        self.events, self.turns, self.starts = [], [], []

    def started(self, folder, experiment, resumed_round):
        del folder, experiment
        self.starts.append(resumed_round)

    def turn(self, round_number, turn, total):
        self.turns.append((round_number, turn.client, turn.host, total))

    def event(self, kind, values):
        self.events.append((kind, values))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are counted in /proc")
def test_flower_gives_the_hash_of_a_run_in_process_and_leaves_nothing_behind(tiny, play, tmp_path, tag, monkeypatch):
    """Two Ray actors under Flower; started beside a foreign ``clients`` package, which must not be imported."""
    flower_home = tmp_path / "user" / ".flwr"
    monkeypatch.setenv("FLWR_HOME", str(flower_home))
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "__init__.py").write_text("raise SystemExit('a foreign package was imported')")
    monkeypatch.chdir(tmp_path)
    expected = play(tmp_path / "in-process", num_rounds=2)
    notes = Notes()

    result = run(*tiny(num_rounds=2, engine="flower", workers=2), Path("flower"), notes)

    assert result["weights_sha256"] == expected["weights_sha256"]
    assert result["metrics"] == expected["metrics"]
    assert result["run"] == str(tmp_path / "flower")
    assert notes.starts == [0]
    assert [values["round"] for kind, values in notes.events if kind == "round"] == [1, 2]
    assert {(host, total) for _, _, host, total in notes.turns} == {("node-0", 4), ("node-1", 4)}
    assert list((tmp_path / "flower" / "tensorboard").iterdir())
    assert tagged(tag) == []
    assert not flower_home.exists()


KILLER = """
import os
from contextlib import suppress
from pathlib import Path

from fedmlic.methods.bce import bce


def killer(*, flag: str):
    inner = bce()

    def train(resident, shard, local):
        if local.round == 2:
            with suppress(FileExistsError):
                Path(flag).touch(exist_ok=False)  # one worker wins, and dies
                os._exit(1)
        return inner.train(resident, shard, local)

    return inner._replace(train=train)


def raiser():
    def train(resident, shard, local):
        if local.round == 2:
            raise ArithmeticError("no more")
        return bce().train(resident, shard, local)

    return bce()._replace(train=train)
"""


@pytest.mark.slow
def test_a_worker_that_dies_changes_nothing(play, tmp_path, tag, plug):
    """Flower leaves the dead actor in its pool; its clients are played again, in that round and in later ones."""
    plug("killer", KILLER)
    flag = tmp_path / "killed"
    method = f"killer.killer(flag={str(flag)!r})"
    result = play(tmp_path / "flower", engine="flower", workers=2, method=method)
    assert flag.exists()

    expected = play(tmp_path / "in-process", method=method)

    assert result["weights_sha256"] == expected["weights_sha256"]
    assert tagged(tag) == []


@pytest.mark.slow
def test_a_failed_run_is_an_error_and_goes_on_when_mended(play, tmp_path, tag, plug):
    folder = plug("killer", KILLER)

    with pytest.raises(RunFailedError, match=r"in round 2.*ArithmeticError"):
        play(tmp_path / "run", engine="flower", workers=1, method="killer.raiser()")

    assert tagged(tag) == []
    (folder / "killer.py").write_text(KILLER.replace("local.round == 2:", "False:"))
    sys.modules.pop("killer", None)
    result = resume(tmp_path / "run")
    expected = play(tmp_path / "in-process", method="killer.raiser()")
    assert result["weights_sha256"] == expected["weights_sha256"]
    assert tagged(tag) == []


@pytest.mark.slow
def test_control_c_ends_everything_and_keeps_the_checkpoint(settings, tmp_path, tag):
    script = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from fedmlic.experiment import split_settings\n"
        "from sim.run import run\n"
        "run(*split_settings(json.loads(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    values = json.dumps(settings(engine="flower", workers=1, num_rounds=5000))
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", script, values, str(out)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and not list(out.glob("checkpoints/*.json")) and process.poll() is None:
        time.sleep(0.2)
    assert process.poll() is None

    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert "KeyboardInterrupt" in errors
    assert tagged(tag) == []
    assert list(out.glob("checkpoints/*.json"))
