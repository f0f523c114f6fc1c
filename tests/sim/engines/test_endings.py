"""What a run started ends with it, also where it is killed, and temporary folders of killed runs go."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from sim.engines import endings
from sim.engines.endings import MARK, OWNER, own, remove_left, service_processes

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")

DRIVER = """
import os, subprocess, sys, time
from pathlib import Path
from sim.engines.endings import MARK, Watcher, own
mark, folder, how = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
own(folder)
watcher = Watcher(mark, folder)
# A service that starts a service in a session of its own, as a SuperLink does, which heeds no SIGTERM.
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
service = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], start_new_session=True)"
subprocess.Popen([sys.executable, "-c", service], env={**os.environ, MARK: mark}, stdout=subprocess.DEVNULL,
    start_new_session=True)
print("started", flush=True)
if how == "wait":
    time.sleep(60)
watcher.close()
print("closed", flush=True)
"""


NOTES = """
import sys
from pathlib import Path
from sim.engines.endings import own
for name in sys.argv[1:]:
    own(Path(name))
"""


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@pytest.fixture
def driver(tmp_path):
    """A function: a process with a service, its mark and its folder."""
    started = []

    def start(how):
        mark, folder = uuid.uuid4().hex, tmp_path / "fedmlic-service"
        folder.mkdir()
        command = [sys.executable, "-c", DRIVER, mark, str(folder), how]
        started.append((subprocess.Popen(command, stdout=subprocess.PIPE, text=True), mark, folder))
        assert started[-1][0].stdout.readline() == "started\n"
        return started[-1]

    yield start
    for process, mark, folder in started:
        process.kill()
        process.communicate()
        endings.send(service_processes(mark, folder), signal.SIGKILL)


def test_a_service_and_what_it_started_end_with_a_run_that_is_killed(driver):
    process, mark, folder = driver("wait")
    wait_for(lambda: len(service_processes(mark, folder)) == 2)

    process.send_signal(signal.SIGKILL)
    process.wait()

    wait_for(lambda: not service_processes(mark, folder) and not folder.exists())


def test_a_watcher_that_is_sent_away_ends_nothing(driver):
    process, mark, folder = driver("close")

    assert process.communicate(timeout=20)[0] == "closed\n"

    wait_for(lambda: len(service_processes(mark, folder)) == 2)
    assert folder.exists()


def test_a_worker_ends_in_the_middle_of_its_work_when_its_parent_does():
    child = (
        "import time; from sim.engines.endings import end_with_parent; end_with_parent(); print('up', flush=True);"
        "time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    mark = uuid.uuid4().hex
    environment = {**os.environ, MARK: mark}
    process = subprocess.Popen([sys.executable, "-c", parent], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"

    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)  # the child held the pipe too

    wait_for(lambda: not service_processes(mark, Path("/nowhere")))


def test_folders_of_killed_runs_go_and_all_others_stay(tmp_path):
    kept = ("pymp-mine", "fedmlic-mine", "pymp-foreign", "others", "fedmlic-elsewhere")
    for name in (*kept, "fedmlic-left", "pymp-left"):
        (tmp_path / name).mkdir()
    (tmp_path / "fedmlic-link").symlink_to(tmp_path / "others")
    (tmp_path / "fedmlic-text").write_text("not a folder")
    subprocess.run(
        [
            sys.executable,
            "-c",
            NOTES,
            *(tmp_path / n for n in ("others", "fedmlic-left", "pymp-left")),
        ],
        check=True,
    )
    own(tmp_path / "pymp-mine")
    own(tmp_path / "fedmlic-mine")
    about = json.loads((tmp_path / "others" / OWNER).read_text())
    about["started"] = "another-boot" + about["started"][12:]  # of another machine that sees the same folder
    (tmp_path / "fedmlic-elsewhere" / OWNER).write_text(json.dumps(about))

    removed = remove_left([tmp_path])

    assert sorted(path.name for path in removed if path.parent == tmp_path) == ["fedmlic-left", "pymp-left"]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*kept, "fedmlic-link", "fedmlic-text"}
    assert (tmp_path / "others" / OWNER).exists()


@pytest.fixture
def short_folder():
    """Where the paths of Ray's sockets are short enough."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["processes", "flower", "ray"])
def test_nothing_of_a_killed_run_is_left(tmp_path, short_folder, engine):
    """Not even what its services started in sessions of their own; Ray's agents end by themselves in about a minute."""
    mark, out = uuid.uuid4().hex, tmp_path / "run"
    data = "multidigits(num_train=120, num_val=24, num_test=24, image_size=24)"
    settings = [f"dataset={data}", "method=bce()", "num-clients=4", "cohort-size=0", "num-rounds=500", "device=cpu"]
    command = [sys.executable, "-m", "sim.command", "run", *settings, "--engine", engine, "--workers", "2"]
    environment = {**os.environ, "FEDMLIC_TRIAL": mark, "TMPDIR": str(short_folder), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "printed.txt").open("wb") as printed:
        process = subprocess.Popen([*command, "--out", str(out)], env=environment, stdout=printed, stderr=printed)

    def alive():
        needle, found = f"FEDMLIC_TRIAL={mark}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if needle in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_bytes()[:80])
            except OSError:
                continue
        return found

    try:
        wait_for(lambda: process.poll() is not None or any(out.glob("checkpoints/round-*.json")), 300)
        assert process.poll() is None, (tmp_path / "printed.txt").read_text()
    finally:
        process.kill()
        process.wait()

    wait_for(lambda: not alive(), 120 if engine == "ray" else 30)
    events = (out / "events.jsonl").read_bytes()
    time.sleep(2)
    assert (out / "events.jsonl").read_bytes() == events  # nobody goes on
    remove_left([short_folder, "/tmp"])  # noqa: S108  (where the next run would look)
    assert not [
        path for prefix in endings.PREFIXES for path in short_folder.glob(f"{prefix}*") if (path / OWNER).exists()
    ]


def test_a_folder_that_a_child_shares_stays_its_parents(tmp_path):
    """``multiprocessing`` hands its temporary folder on to the processes that it starts."""
    folder = tmp_path / "pymp-shared"
    folder.mkdir()
    own(folder)
    child = "import sys, pathlib; from sim.engines.endings import own; own(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", child, str(folder)], check=True)

    assert remove_left([tmp_path]) == []
    assert json.loads((folder / OWNER).read_text())["process"] == os.getpid()
