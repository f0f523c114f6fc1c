"""A Ray cluster that was there before: two nodes on this machine, each with a home of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedmlic.errors import InputError
from sim.engines.ray import RayCarrier

BIN = Path(sys.executable).parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def cluster(tmp_path, ray_nodes):
    """The address of a cluster of two nodes with one processor each, and their homes."""
    homes = [tmp_path / f"home-{number}" for number in range(2)]
    with ray_nodes(homes) as address:
        yield address, homes


def test_both_machines_play_and_the_weights_are_those_of_one_process(cluster, settings, play, tmp_path):
    address, homes = cluster
    expected = play(tmp_path / "alone", num_rounds=2)
    given = [f"{key}={json.dumps(value)}" for key, value in settings(num_rounds=2).items() if key != "engine"]
    command = [BIN / "fedmlic", "run", *given, "--ray-address", address, "--out", str(tmp_path / "out"), "--json"]
    environment = {**os.environ, "FEDMLIC_HOME": str(homes[0])}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["weights_sha256"] == expected["weights_sha256"]
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert {event["host"] for event in events if event["event"] == "client"} == {"worker-0", "worker-1"}
    # Both see the server's disk, so the images are built once, there (see ``clients.opening.images_of``).
    assert [len(list(home.glob("corpora/multidigits/*/manifest.json"))) for home in homes] == [1, 0]


def test_no_cluster_at_that_address_is_a_clear_error(tiny, free_port):
    with pytest.raises(InputError, match="Expected ray-address to be that of a running Ray cluster"):
        RayCarrier(1, tiny(ray_address=f"127.0.0.1:{free_port}")[1])
