"""Worker processes and Ray actors: the same weights as in process, and what happens when they die.

Starting Ray takes seconds, so all tests share two workers; every run sets them up anew.
"""

import gc
import multiprocessing
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from clients.opening import open_federation
from fedmlic.errors import InputError
from fedmlic.record import create, write_json
from sim.data.federation_warnings import examine
from sim.engines.processes import Processes, check_room, limit
from sim.engines.ray import RayCarrier
from sim.engines.workers import Place, Workers, _Queue
from strategies.server.rounds import RunFailedError
from strategies.server.server import build_server, serve

# Ray leaves its own log files and processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::FutureWarning"
)

DEADLY = """
import os, time
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.training import classifier


def deadly(*, clients: str = "", how: str = "exit", flag: str = ""):
    base = classifier(mean_binary_cross_entropy)
    marked = {int(client) for client in clients.split(",") if client}

    def train(resident, shard, local):
        if shard.client in marked:
            if how == "once" and not os.path.exists(flag):
                open(flag, "w").close()
                os._exit(1)
            if how == "exit":
                os._exit(1)
            if how == "raise":
                raise ValueError("no [/data] today")
            if how == "sleep":
                time.sleep(600)
        if how == "slow":
            open(flag, "w").close()
            time.sleep(0.2)
        return base.train(resident, shard, local)

    return base._replace(train=train)
"""


@pytest.fixture(scope="module")
def plugs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugs")
    (folder / "deadly.py").write_text(DEADLY, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture(scope="module", params=["processes", "ray"])
def workers(tiny, plugs, request):
    assert plugs.exists()
    runtime = tiny()[1]
    carrier = Processes() if request.param == "processes" else RayCarrier(2, runtime)
    pool = Workers(carrier, 2, runtime)
    yield pool
    pool.close()
    pool.close()
    gc.collect()  # here, where its warnings are ignored


@pytest.fixture
def on_workers(tiny, workers, tmp_path):
    """A function: run the tiny experiment on the shared workers; returns (outcome, events)."""

    def run(num_workers=2, on_turn=None, **changes):
        experiment, runtime = tiny(engine="processes", **changes)
        server = build_server(experiment, runtime)
        federation = open_federation(experiment, runtime, server.corpus)
        slots = workers._slots
        workers._slots, workers._runtime = slots[:num_workers], runtime
        workers.setup(experiment, server.learner)
        folder = create(tmp_path / f"run-{num_workers}-{len(list(tmp_path.iterdir()))}", experiment, runtime)
        counts = examine(federation.whole or federation, experiment.method).present_counts
        write_json(folder.path / "data.json", {"present_counts": counts})
        try:
            with folder.alone():
                outcome = serve(server, workers, folder, on_turn)
        finally:
            workers._slots = [*workers._slots, *slots[num_workers:]]
        return outcome, list(folder.events())

    return run


ON_RAY_IF_SLOW = pytest.mark.parametrize(
    "workers", ["processes", pytest.param("ray", marks=pytest.mark.slow)], indirect=True
)
"""Ray takes ten seconds and more to replace a worker that died."""


def failures(events):
    return [(event["round"], event["client"], event["error"]) for event in events if event.get("error")]


@pytest.mark.parametrize("strategy", ["labelwise()", "loss_weighted()"])
def test_one_and_two_workers_give_the_weights_of_one_process(on_workers, play, tmp_path, strategy):
    expected = play(tmp_path / "in-process", strategy=strategy, evaluate_clients_every=2)

    outcomes = {count: on_workers(count, strategy=strategy, evaluate_clients_every=2) for count in (1, 2)}

    for outcome, events in outcomes.values():
        assert expected["weights_sha256"] == outcome.weights_sha256
        assert expected["metrics"] == pytest.approx(outcome.metrics, nan_ok=True)
        assert not failures(events)
    hosts = {event["host"] for event in outcomes[2][1] if event["event"] == "client"}
    assert len(hosts) == 2, "both workers were expected to play"


def test_a_client_that_raises_is_one_failed_turn_with_its_traceback(on_workers, play, tmp_path):
    change = {"method": "deadly.deadly(clients='1', how='raise')"}
    expected = play(tmp_path / "in-process", **change)

    outcome, events = on_workers(2, **change)

    assert expected["weights_sha256"] == outcome.weights_sha256
    found = failures(events)
    assert found
    assert {client for _, client, _ in found} == {1}
    for _, _, error in found:
        assert error.splitlines()[0] == "ValueError: no [/data] today"
        assert "in train" in error


@ON_RAY_IF_SLOW
@pytest.mark.parametrize(
    ("strategy", "clients", "num_rounds"),
    [
        ("labelwise()", "1", 1),
        pytest.param("labelwise()", "1,3", 4, marks=pytest.mark.slow),
        pytest.param("loss_weighted()", "1,3,5", 2, marks=pytest.mark.slow),
    ],
)
def test_a_client_that_kills_its_worker_is_one_failed_client(on_workers, play, tmp_path, strategy, clients, num_rounds):
    change = {"strategy": strategy, "num_rounds": num_rounds, "cohort_size": 6}
    expected = play(tmp_path / "in-process", method=f"deadly.deadly(clients='{clients}', how='raise')", **change)

    outcome, events = on_workers(2, method=f"deadly.deadly(clients='{clients}')", **change)

    assert expected["weights_sha256"] == outcome.weights_sha256
    found = failures(events)
    marked = {int(client) for client in clients.split(",")}
    assert sorted((number, client) for number, client, _ in found) == [
        (number, client) for number in range(1, num_rounds + 1) for client in sorted(marked)
    ]
    assert all("WorkerDied" in error for _, _, error in found)


@pytest.mark.slow
def test_a_worker_that_dies_once_is_replaced_and_nothing_is_lost(on_workers, play, tmp_path):
    expected = play(tmp_path / "in-process", method="deadly.deadly()")

    flag = tmp_path / "died"
    outcome, events = on_workers(2, method=f"deadly.deadly(clients='0,1,2,3,4,5', how='once', flag={str(flag)!r})")

    assert flag.exists()
    assert expected["weights_sha256"] == outcome.weights_sha256
    assert not failures(events)
    assert any("+" in event["host"] for event in events if event["event"] == "client")


@ON_RAY_IF_SLOW
def test_workers_killed_from_outside_in_the_middle_of_a_round_change_nothing(on_workers, play, tmp_path, workers):
    expected = play(tmp_path / "in-process", method="deadly.deadly()", cohort_size=6)
    flag = tmp_path / "started"
    killed = []

    def kill():
        while not flag.exists():
            time.sleep(0.01)
        victim = next(pid for pid in worker_pids(workers) if pid not in killed)
        killed.append(victim)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    outcome, events = on_workers(2, method=f"deadly.deadly(how='slow', flag={str(flag)!r})", cohort_size=6)
    killer.join()

    assert killed
    assert expected["weights_sha256"] == outcome.weights_sha256
    assert not failures(events)
    assert workers._num_deaths > 0


def worker_pids(workers):
    """Processes that play clients: those of the carrier, or Ray's, found by the actor's name in their title."""
    if isinstance(workers._carrier, Processes):
        held = workers._carrier._processes.values()
        return [each.process.pid for each in held if each.process is not None and each.pipe is not None]
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
                ours = os.environ["FEDMLIC_HOME"].encode() in (entry / "environ").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::_Actor") and ours:
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_when_every_client_kills_its_worker_the_run_stops_with_the_reason(on_workers):
    with pytest.raises(RunFailedError, match="WorkerDied"):
        on_workers(2, method="deadly.deadly(clients='0,1,2,3,4,5')")


@pytest.mark.slow
def test_a_client_that_hangs_is_one_failed_client(on_workers, play, tmp_path):
    expected = play(tmp_path / "in-process", method="deadly.deadly(clients='1', how='raise')")

    outcome, events = on_workers(2, method="deadly.deadly(clients='1', how='sleep')", round_timeout=2.0)

    assert expected["weights_sha256"] == outcome.weights_sha256
    assert {client for _, client, _ in failures(events)} == {1}


def test_a_worker_that_cannot_be_set_up_says_why(workers, tiny):
    experiment, runtime = tiny()
    learner = build_server(experiment, runtime).learner
    workers.setup(experiment, replace(learner, task=replace(learner.task, label_names=("other", "labels"))))

    with pytest.raises(ValueError, match="to see the labels"):
        workers.hosts()


def test_hosts_before_setup_is_a_mistake_of_the_caller(workers, monkeypatch):
    monkeypatch.setattr(workers, "_setup", None)

    with pytest.raises(RuntimeError, match="setup before hosts"):
        workers.hosts()


def test_chunks_shrink_and_hold_half_of_a_fair_share_of_the_cost():
    costs = {client: 1.0 + client % 3 for client in range(60)}
    queue = _Queue(range(60), costs, 1)
    left = sum(costs.values())
    sizes = []
    while queue:
        chunk = queue.chunk(3)
        cost = sum(costs[client] for client in chunk)
        assert cost <= left / 6 or len(chunk) == 1
        left -= cost
        sizes.append(len(chunk))

    assert sum(sizes) == 60
    assert sizes[0] > 1
    assert sizes[-1] == 1


def test_a_suspect_is_played_alone_and_chunks_are_as_large_as_clients_train_at_once():
    queue = _Queue([1, 2, 3, 4, 5, 6], {}, 4)
    queue.put_first(9)
    queue.put_last([7])

    assert queue.chunk(2) == [9]
    assert queue.chunk(2) == [1, 2, 3, 4]
    assert queue.chunk(2) == [5, 6, 7]
    assert not queue


def test_too_little_shared_memory_is_told_before_it_kills(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(64 << 20, 0, 64 << 20))
    check_room(60 << 20)
    with pytest.raises(InputError, match=r"to have 73 MB free .* got 67 MB\. Use fewer workers"):
        check_room(70 << 20)


class Stopped(Processes):
    """Forked processes of which the first to get a call of one kind is stopped (SIGSTOP) just before it."""

    def __init__(self, method, timeout):
        super().__init__(timeout=timeout)
        self.method = method
        self.stopped = []

    def call(self, worker, method, *arguments):
        held = self._processes[worker]
        if method == self.method and not self.stopped and held.process is not None:
            self.stopped.append(held.process.pid)
            os.kill(held.process.pid, signal.SIGSTOP)
        return super().call(worker, method, *arguments)


@pytest.mark.parametrize(
    "method", ["play", *(pytest.param(name, marks=pytest.mark.slow) for name in ("begin", "collect"))]
)
def test_a_worker_that_is_stopped_anywhere_costs_a_deadline_and_not_the_run(tiny, play, tmp_path, method):
    changes = {"strategy": "scaffold()", "optimizer": "sgd", "num_rounds": 1}
    expected = play(tmp_path / "in-process", **changes)
    experiment, runtime = tiny(engine="processes", round_timeout=8.0, **changes)
    carrier = Stopped(method, 8.0)
    pool = Workers(carrier, 2, runtime)
    try:
        server = build_server(experiment, runtime)
        open_federation(experiment, runtime, server.corpus)
        folder = create(tmp_path / "run", experiment, runtime)
        pool.setup(experiment, server.learner, Place(server.learner.task.label_names, memory=str(tmp_path / "memory")))
        outcome = serve(server, pool, folder)
    finally:
        pool.close()

    assert carrier.stopped
    assert outcome.weights_sha256 == expected["weights_sha256"]
    assert not any(event.get("error") for event in folder.events())


def test_a_large_message_to_a_stopped_worker_does_not_wait_for_ever():
    ours, theirs = multiprocessing.Pipe()
    limit(ours, 0.2)
    with pytest.raises(BlockingIOError):
        ours.send(bytes(10**7))
    with pytest.raises(BlockingIOError):
        ours.recv()
    theirs.close()
    ours.close()


class Silent:
    """A carrier whose workers never answer."""

    def __init__(self):
        self.killed = []
        self.started = 0

    def open(self, size):
        pass

    def start(self, name):
        self.started += 1
        return name

    def call(self, worker, method, *_):
        return (worker, method)

    def wait(self, *_):
        return []

    def kill(self, worker):
        self.killed.append(worker)

    def close(self):
        pass


def test_workers_that_are_never_set_up_end_the_run(tiny):
    carrier = Silent()
    pool = Workers(carrier, 1, tiny(round_timeout=0.1)[1])
    pool._setup = ({}, None)

    with pytest.raises(RuntimeError, match=r"worker-0\+3 was not set up within 0\.1 s"):
        pool.hosts()
    assert carrier.killed == ["worker-0", "worker-0+1", "worker-0+2", "worker-0+3"]
