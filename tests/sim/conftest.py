"""Fixtures of several folders of this one."""

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from sim.engines.ray import ENVIRONMENT

RAY = Path(sys.executable).parent / "ray"


@pytest.fixture
def free_port():
    """A port that nobody listens at, outside the range of Ray's own workers."""
    return _free_port()


def _free_port():
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if not 10_000 <= port < 20_000:
            return port


@pytest.fixture(scope="session")
def ray_nodes():
    """``with ray_nodes(homes) as address``: a Ray cluster with a node of one processor per home."""

    @contextmanager
    def start(homes):
        port = _free_port()
        nodes = []
        try:
            for home in homes:
                kind = [f"--address=127.0.0.1:{port}"]
                if not nodes:
                    kind = ["--head", f"--port={port}", "--include-dashboard=false"]
                nodes.append(
                    subprocess.Popen(
                        [RAY, "start", "--block", "--num-cpus=1", *kind],
                        env={**os.environ, **ENVIRONMENT, "FEDMLIC_HOME": str(home), "PYTHONUNBUFFERED": "1"},
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        text=True,
                    )
                )
                assert any("Ray runtime started" in line for line in nodes[-1].stdout)
            yield f"127.0.0.1:{port}"
        finally:
            for node in reversed(nodes):  # 'ray stop' would end every Ray of this machine
                node.terminate()
                node.wait()
                node.stdout.close()

    return start
