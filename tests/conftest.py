"""Shared by all tests: a home of their own, no network, one thread, and one tiny real experiment."""

import os

# Before torch or flwr are imported by anything.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"

import sys

import pytest

from fedmlic.experiment import split_settings

STARTS_PROCESSES = ("tests/sim/engines", "tests/strategies/server/test_flower.py", "tests/test_deployment.py")
"""Tests that start workers, Ray or Flower; run one after another where others run beside them."""


SHARES_RUNS = (
    "tests/sim/api/test_api.py",
    "tests/sim/api/test_plots.py",
    "tests/sim/export/test_export.py",
    "tests/sim/reports/report/test_report.py",
    "tests/sim/sweep/test_sweep.py",
    "tests/sim/test_schemas.py",
)
"""Files whose tests read the same runs, which one process plays once."""


@pytest.hookimpl(tryfirst=True)  # pytest-xdist writes the groups into the names of tests in the same hook
def pytest_collection_modifyitems(items):
    """Groups of pytest-xdist: what starts processes, and what reads the same runs."""
    for item in items:
        if item.nodeid.startswith(STARTS_PROCESSES):
            item.add_marker(pytest.mark.xdist_group("processes"))
        elif item.nodeid.startswith(SHARES_RUNS):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


TINY = {
    "dataset": "multidigits(num_train=240, num_val=30, num_test=60, image_size=24, num_owners=12)",
    "partition": "iid()",
    "regime": "label_subset(labels_per_client=4)",
    "model": "small_cnn(width=4, num_blocks=0)",
    "method": "bce()",
    "strategy": "labelwise()",
    "num-clients": 6,
    "cohort-size": 4,
    "num-rounds": 4,
    "local-epochs": 1,
    "batch-size": 16,
    "learning-rate": 3e-3,
    "holdout-fraction": 0.2,
    "client-min-entries": 1,
    "engine": "inprocess",
    "device": "cpu",
}
"""Settings of a run over a few hundred real images that takes about a second."""


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """The folder of corpora and federations, shared by all tests of a session and by nobody else."""
    path = tmp_path_factory.mktemp("home")
    os.environ["FEDMLIC_HOME"] = str(path)
    return path


@pytest.fixture(scope="session")
def settings():
    """A function: the tiny experiment's settings with some of them changed (dashed keys)."""

    def changed(**changes):
        return {**TINY, **{key.replace("_", "-"): value for key, value in changes.items()}}

    return changed


@pytest.fixture(scope="session")
def tiny(settings):
    """A function: the tiny ``(Experiment, Runtime)`` with some settings changed."""

    def made(**changes):
        return split_settings(settings(**changes))

    return made


@pytest.fixture(scope="session")
def play(tiny):
    """A function: run the tiny experiment into a folder and return its result."""
    from sim.run import run

    def played(out, **changes):
        return run(*tiny(**changes), out)

    return played


@pytest.fixture(scope="session")
def finished(play, tmp_path_factory):
    """The folder of a finished tiny run. Read it, never change it."""
    path = tmp_path_factory.mktemp("finished") / "run"
    play(path)
    return path


@pytest.fixture
def plug(tmp_path, monkeypatch):
    """A function: put a module with this name and text on the path, for this test only."""
    folder = tmp_path / "plug-ins"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    made = []

    def write(name, text):
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        made.append(name)
        return folder

    yield write
    for name in made:
        sys.modules.pop(name, None)
