"""Kill ``fedmlic run`` with SIGKILL at random moments, resume it, compare the final weights.

Every trial is a fresh run folder over the same prepared data. The run is killed at a
random moment, and so is every resume with probability ``--again``; the last resume is
left alone. One kill in five comes before the first round; the others come after a round that is
drawn among those that are left, and a random part of a round's time later, so that a busy
machine changes nothing. A trial passes if it ends with the weights of the undisturbed run and
leaves no process behind.

    python benchmarks/resume_kills.py --trials 20 --engine inprocess
    python benchmarks/resume_kills.py --set 'strategy=scaffold()' --set optimizer=sgd
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import numpy as np

MARK = "FEDMLIC_TRIAL"
NUM_ROUNDS = 30
SETTINGS = (
    "dataset=multidigits(num_train=600, num_val=60, num_test=120, image_size=24, num_owners=20)",
    "model=small_cnn(width=8)",
    "method=bce()",
    "partition=iid()",
    "num-clients=12",
    "cohort-size=8",
    f"num-rounds={NUM_ROUNDS}",
    "evaluate-clients-every=3",
    "device=cpu",
)


class Trial(NamedTuple):
    """What happened in one trial.

    Attributes:
        kills: where each kill hit: ``before the folder``, or rounds with a checkpoint and
            the stage that followed.
        sha256: of the final weights.
        left: processes that outlived their kill by more than 30 seconds.
    """

    kills: list[str]
    sha256: str
    left: int


def command(arguments: list[str], mark: str) -> subprocess.Popen[bytes]:
    """Start ``fedmlic`` in a session of its own, marked so that its descendants can be found."""
    environment = {**os.environ, MARK: mark, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "sim.command", *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )


def finish(arguments: list[str], mark: str) -> str:
    """Run to the end and return the hash of the weights."""
    process = command(arguments, mark)
    out, _ = process.communicate()
    if process.returncode:
        msg = f"fedmlic {' '.join(arguments)} ended with {process.returncode}"
        raise RuntimeError(msg)
    return str(json.loads(out)["weights_sha256"])


class Moment(NamedTuple):
    """When to kill.

    Attributes:
        rounds: wait until so many rounds have a checkpoint; -1: from the start.
        seconds: and then so long.
    """

    rounds: int
    seconds: float


def last_round(out: Path) -> int:
    """The newest round with a checkpoint; -1 without a run folder."""
    if not (out / "experiment.json").exists():
        return -1
    return max((int(file.stem[6:]) for file in (out / "checkpoints").glob("round-*.json")), default=0)


def kill_at(arguments: list[str], mark: str, out: Path, moment: Moment) -> bool:
    """Kill the command at a moment; False if it had ended by itself."""
    process = command(arguments, mark)
    while process.poll() is None and last_round(out) < moment.rounds:
        time.sleep(0.005)
    try:
        process.communicate(timeout=moment.seconds)
    except subprocess.TimeoutExpired:
        # The command alone, as `kill -9` does; what it started has to notice.
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    return False


def marked(mark: str) -> list[int]:
    """Processes that descend from a command started with ``mark``."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def left_over(mark: str, patience_s: float = 30.0) -> int:
    """How many processes of a killed command are still there after a while; they are ended then."""
    deadline = time.monotonic() + patience_s
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    rest = marked(mark)
    for pid in rest:
        print(f"     left: {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ')[:120]!r}", flush=True)
        os.kill(pid, signal.SIGKILL)
    return len(rest)


def stage(out: Path) -> str:
    """How far a killed run had come."""
    if not (out / "experiment.json").exists():
        return "before the folder"
    events = (out / "events.jsonl").read_text(encoding="utf-8") if (out / "events.jsonl").exists() else ""
    ending = " tables" if '"event":"end"' in events else ""
    half = " half-written" if any(out.rglob(".*.tmp")) else ""
    return f"round {last_round(out)}{ending}{half}"


def undisturbed(out: Path, settings: list[str], engine: list[str]) -> tuple[str, float, float]:
    """The hash of a run that nobody kills, and the seconds to its folder and to its end."""
    started = time.monotonic()
    process = command(["run", *settings, "--out", str(out), *engine], "whole")
    while process.poll() is None and not (out / "experiment.json").exists():
        time.sleep(0.01)
    to_folder = time.monotonic() - started
    text, _ = process.communicate()
    return str(json.loads(text)["weights_sha256"]), to_folder, time.monotonic() - started


def draw(times: tuple[float, float], first: int, rng: np.random.Generator) -> Moment:
    """A moment for a run that has ``first`` rounds already."""
    to_folder, to_end = times
    if rng.random() < 0.2:
        return Moment(-1, float(rng.uniform(0, to_folder)))
    return Moment(int(rng.integers(first, NUM_ROUNDS + 1)), float(rng.uniform(0, (to_end - to_folder) / NUM_ROUNDS)))


def trial(
    folder: Path,
    settings: list[str],
    engine: list[str],
    times: tuple[float, float],
    again: float,
    rng: np.random.Generator,
) -> Trial:
    """Kill a run at least once, then let it end."""
    out = folder / "run"
    kills: list[str] = []
    left = 0
    start = ["run", *settings, "--out", str(out), *engine]
    while True:
        arguments = ["resume", str(out), *engine] if (out / "experiment.json").exists() else start
        if kills and rng.random() > again:
            break
        mark = uuid.uuid4().hex
        if kill_at(arguments, mark, out, draw(times, max(last_round(out), 0), rng)):
            left += left_over(mark)
            kills.append(stage(out))
        elif kills:
            break
        else:  # it was faster than the kill: once more from the start
            out = folder / f"run-{uuid.uuid4().hex[:6]}"
            start[-len(engine) - 1] = str(out)
    return Trial(kills, finish(arguments, uuid.uuid4().hex), left)


def main() -> int:
    """Run all trials and print one line for each; 0 if all passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--engine", choices=("inprocess", "processes", "ray"), default="inprocess")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", type=float, default=0.4, help="probability that a resume is killed too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the run")
    options = parser.parse_args()
    engine = ["--engine", options.engine, "--workers", str(options.workers)]
    settings = [*SETTINGS, *options.set]
    rng = np.random.default_rng(options.seed)
    passed = 0
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        finish(["run", *settings, "--out", str(base / "first"), *engine], "data")  # builds the data
        expected, *times = undisturbed(base / "whole", settings, engine)
        print(f"undisturbed: folder after {times[0]:.1f} s, end after {times[1]:.1f} s, {expected[:12]}", flush=True)
        for number in range(1, options.trials + 1):
            found = trial(base / str(number), settings, engine, (times[0], times[1]), options.again, rng)
            good = found.sha256 == expected and not found.left
            passed += good
            verdict = "same" if good else f"FAILED ({found.sha256[:12]}, {found.left} processes left)"
            print(f"{number:3d}  {verdict}  killed at: {'; '.join(found.kills)}", flush=True)
    print(f"{passed} of {options.trials} runs ended with the weights of the undisturbed run", flush=True)
    return 0 if passed == options.trials else 1


if __name__ == "__main__":
    sys.exit(main())
