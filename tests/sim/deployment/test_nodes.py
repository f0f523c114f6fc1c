"""``fedmlic nodes``: Flower's list and a run's events, side by side."""

import json
import sys

import pytest
from typer.testing import CliRunner

from sim.command import app
from sim.deployment import nodes

LISTED = {
    "success": True,
    "nodes": [
        {
            "node-id": "17",
            "owner-name": "",
            "status": "online",
            "created-at": "2026-01-01T08:00:00.5Z",
            "online-at": "2026-01-02T09:30:00Z",
            "online-elapsed": "1",
            "offline-at": "",
            "deleted-at": "",
        },
        {
            "node-id": "9",
            "owner-name": "",
            "status": "registered",
            "created-at": "2026-01-01T08:00:00Z",
            "online-at": "",
            "online-elapsed": "",
            "offline-at": "",
            "deleted-at": "",
        },
    ],
}
EVENTS = [
    {"event": "versions", "host": "device-0"},
    {"event": "set-aside", "node": "9", "reason": "another code"},
    {"event": "client", "host": "device-0", "round": 1, "client": 0},
    {"event": "client", "host": "device-1", "round": 1, "client": 1, "error": "NodeFailed: gone\x1b[2J\nmore"},
    {"event": "client", "host": "device-0", "round": 2, "client": 0},
]


@pytest.fixture
def flwr(tmp_path, monkeypatch):
    """A function: what stands in for Flower's command prints this."""

    def stand_in(text, code=0):
        path = tmp_path / "flwr"
        path.write_text(f"#!{sys.executable}\nimport sys\nprint({text!r})\nsys.exit({code})\n")
        path.chmod(0o755)
        monkeypatch.setattr(nodes, "program", lambda _: str(path))

    return stand_in


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    class Run:
        def events(self):
            return iter(EVENTS)

    monkeypatch.setattr(nodes, "open_run", lambda _: Run())
    return tmp_path


def test_nodes_and_what_a_run_saw_of_them(flwr, run_folder, tmp_path):
    flwr("Listing all nodes...\n" + json.dumps(LISTED))
    (tmp_path / "names").write_text("17 eye clinic\n\n9 laboratory\n")
    done = CliRunner().invoke(app, ["nodes", "--run", str(run_folder), "--names", str(tmp_path / "names"), "--json"])

    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {
        "schema": "nodes/1",
        "nodes": [
            {
                "node": "17",
                "name": "eye clinic",
                "status": "online",
                "since": "2026-01-02 09:30:00",
                "registered": "2026-01-01 08:00:00",
            },
            {
                "node": "9",
                "name": "laboratory",
                "status": "registered",
                "since": "2026-01-01 08:00:00",
                "registered": "2026-01-01 08:00:00",
            },
        ],
        "run": [
            {"host": "device-0", "last_round": 2, "turns": 2, "failed": 0, "error": ""},
            {
                "host": "device-1",
                "last_round": 1,
                "turns": 1,
                "failed": 1,
                "error": r"round 1: NodeFailed: gone\x1b[2J",
            },
            {"host": "node 9", "last_round": 0, "turns": 0, "failed": 0, "error": "set aside: another code"},
        ],
    }
    shown = CliRunner().invoke(app, ["nodes", "--run", str(run_folder)]).stdout
    assert "device-1" in shown
    assert "17" in shown


@pytest.mark.parametrize("text", ["no such connection", '{"success": false}', ""])
def test_why_flower_does_not_answer_is_passed_on(flwr, text):
    flwr(text, 1)
    done = CliRunner().invoke(app, ["nodes", "lab"])

    assert done.exit_code == 2
    assert "Expected Flower to list the nodes of lab, got:" in " ".join(done.stderr.split())


def test_a_wrong_table_of_names_is_named(tmp_path):
    (tmp_path / "names").write_text("17 eye clinic\nlaboratory 9\n")
    done = CliRunner().invoke(app, ["nodes", "--names", str(tmp_path / "names")])

    assert done.exit_code == 2
    assert "line 2" in done.stderr


def test_a_superlink_that_does_not_answer_is_an_error_in_words(tmp_path, monkeypatch):
    path = tmp_path / "flwr"
    path.write_text("#!/bin/sh\nexec sleep 60\n")
    path.chmod(0o755)
    monkeypatch.setattr(nodes, "program", lambda _: str(path))
    monkeypatch.setattr(nodes, "ASK_S", 0.1)

    done = CliRunner().invoke(app, ["nodes", "lab"])

    assert done.exit_code == 2
    assert "Expected Flower to list the nodes of lab within 0.1 s, got no answer." in " ".join(done.output.split())
