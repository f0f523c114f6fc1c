"""A real deployment on this machine: SuperLink and SuperNodes, TLS, node keys, and images that stay where they are."""

import datetime as dt
import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from clients.host import Host
from clients.source import open_node
from fedmlic.experiment import flower_config, split_settings
from fedmlic.protocol import Reply
from fedmlic.record import create, open_run
from sim.engines.flower import free_port, stage_app
from strategies.server.server import build_server, serve

pytestmark = [pytest.mark.deployment, pytest.mark.skipif(os.name == "nt", reason="POSIX signals end the services")]

BIN = Path(sys.executable).parent
LABELS = "cat, dog, bird"
NODES = {0: "cat,dog", 1: "bird,dog"}
"""What the annotators of each device looked for."""


# --- certificates and keys -------------------------------------------------------------------


def write_certificates(folder):
    """A certificate authority and a server certificate for 127.0.0.1, as ca.crt, server.pem and server.key."""
    now = dt.datetime.now(dt.UTC)
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())

    def name(text):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    def certificate(subject, key):
        builder = x509.CertificateBuilder().issuer_name(name("test authority")).subject_name(name(subject))
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        return builder.not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))

    root = certificate("test authority", authority).add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
    places = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")])
    leaf = certificate("127.0.0.1", server).add_extension(places, False)
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(root.sign(authority, hashes.SHA384()).public_bytes(pem))
    (folder / "server.pem").write_bytes(leaf.sign(authority, hashes.SHA384()).public_bytes(pem))
    private = serialization.PrivateFormat.PKCS8
    (folder / "server.key").write_bytes(server.private_bytes(pem, private, serialization.NoEncryption()))


def write_keys(folder, name):
    """A node's key pair as ``ssh-keygen -t ecdsa -b 384`` would make it; returns the private key's path."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    (folder / name).write_bytes(private)
    (folder / f"{name}.pub").write_bytes(public + b" test\n")
    return folder / name


def write_photos(folder, labels, seed):
    """Thirty small pictures with a table of the labels that this device annotates."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    lines = [f"path,{labels},split"]
    for number in range(30 + 6 * seed):
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        known = ",".join(str(value) for value in rng.integers(0, 2, labels.count(",") + 1))
        lines.append(f"{number}.png,{known},train")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return f"folder(root={str(folder)!r}, image_size=24)"


# --- services ----------------------------------------------------------------------------------


class Services:
    """Starts processes in a folder and ends every one of them, with whatever they started."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.running = {}
        self.mark = f"FEDMLIC_TEST_DEPLOYMENT={folder}"

    def environment(self, name):
        home = self.folder / f"home-{name}"
        home.mkdir(exist_ok=True)
        changes = dict([self.mark.split("=", 1)]) | {
            "FLWR_HOME": str(home / "flwr"),
            "FEDMLIC_HOME": str(home / "fedmlic"),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        return {**os.environ, **changes}

    def start(self, name, *command, environment=None):
        empty = self.folder / f"cwd-{name}"
        empty.mkdir(exist_ok=True)
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                [BIN / command[0], *map(str, command[1:])],
                cwd=empty,
                env={**self.environment(name), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self.running[name]

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def flwr(self, *arguments):
        done = subprocess.run(
            [BIN / "flwr", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment("user"),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def processes(self, text=""):
        """Ids of all living processes of this test, or of those whose environment also holds ``text``."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                values = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if self.mark in values and any(text in value for value in values) and not zombie:
                found.append(int(folder.name))
        return found

    def kill(self, name):
        """Pull the plug: the node and everything it started."""
        for process in self.processes(f"home-{name}"):
            os.kill(process, signal.SIGKILL)
        self.running[name].wait()

    def close(self):
        for process in self.running.values():
            process.terminate()
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline and self.processes():
            for process in self.running.values():
                process.poll()
            time.sleep(0.2)
        for process in self.processes():
            os.kill(process, signal.SIGKILL)
        for process in self.running.values():
            process.wait()


def wait_for(condition, seconds, services):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(f"--- {name}\n{services.log(name)[-3000:]}" for name in services.running)
            pytest.fail(f"Nothing after {seconds} s.\n{logs}")
        time.sleep(0.2)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    """A SuperLink with TLS and node authentication, and two registered SuperNodes beside their pictures."""
    folder = tmp_path_factory.mktemp("deployment")
    services = Services(folder)
    write_certificates(folder)
    config = folder / "home-user" / "flwr" / "config.toml"
    services.environment("user")
    config.parent.mkdir(parents=True)
    config.write_text(
        f'[superlink]\ndefault = "dep"\n[superlink.dep]\naddress = "127.0.0.1:{services.port}"\n'
        f'root-certificates = "{folder / "ca.crt"}"\n'
    )
    services.data = {node: write_photos(folder / f"photos-{node}", labels, node) for node, labels in NODES.items()}
    try:
        services.start(
            "superlink",
            *("flower-superlink", "--host", "127.0.0.1", "--port", services.port, "--enable-supernode-auth"),
            *("--ssl-ca-certfile", folder / "ca.crt", "--ssl-certfile", folder / "server.pem"),
            *("--ssl-keyfile", folder / "server.key"),
        )
        wait_for(lambda: "Uvicorn running" in services.log("superlink"), 60, services)
        for node in NODES:
            key = write_keys(folder, f"key-{node}")
            services.flwr("supernode", "register", f"{key}.pub", "dep", "--name", f"device-{node}")
            start_device(services, node)
        yield services
    finally:
        services.close()
        assert services.processes() == []


def start_device(services, node):
    """Start the SuperNode of a device that is registered."""
    config = f'client={node} data="{services.data[node]}" device="cpu"'
    start_node(services, f"node-{node}", services.folder / f"key-{node}", config)


def start_node(services, name, key, node_config, environment=None):
    return services.start(
        name,
        *("flower-supernode", "--superlink", f"127.0.0.1:{services.port}", "--port", free_port()),
        *("--root-certificates", services.folder / "ca.crt", "--auth-supernode-private-key", key),
        *("--node-config", node_config),
        environment=environment,
    )


def submit(services, name, settings):
    """Start a run with ``flwr run`` and return its folder."""
    experiment, runtime = split_settings(settings)
    out = services.folder / name
    runtime = runtime.model_copy(update={"engine": "flower", "out": str(out)})
    app = stage_app(services.folder / f"app-{name}", flower_config(experiment, runtime))
    services.flwr("run", app, "dep")
    return out


@pytest.fixture
def deployed(settings):
    """A function: the settings of a run on the two devices."""

    def made(**changes):
        common = {
            "dataset": "on_devices(image_size=24)",
            "label_names": LABELS,
            "cohort_size": 0,
            "min_hosts": 2,
            "num_rounds": 2,
            "batch_size": 8,
        }
        return settings(**{**common, **changes})

    return made


# --- what must hold -------------------------------------------------------------------------------


class Together:
    """A transport that calls the two devices' hosts in this process."""

    def __init__(self, hosts):
        self._hosts = dict(enumerate(hosts))

    def hosts(self):
        return [host.info() for host in self._hosts.values()]

    def play(self, request, clients, costs=None):
        del costs
        for client in clients:
            host: Host = self._hosts[client]
            reply = host.play(request, [client])
            yield Reply(reply.turns, reply.updates, reply.evaluation)

    def close(self):
        pass


def in_process(services, settings, out):
    """The result of the same run with both devices' images read by this process."""
    experiment, runtime = split_settings(settings)
    hosts = [
        open_node(settings, {"client": node, "data": data, "device": "cpu"}).host
        for node, data in services.data.items()
    ]
    serve(build_server(experiment, runtime), Together(hosts), create(out, experiment, runtime))
    return json.loads((out / "result.json").read_text())


@pytest.mark.slow
def test_two_devices_give_the_hash_of_a_run_in_process(deployment, deployed, tmp_path):
    """Two rounds of bce and labelwise over TLS; a node whose key nobody registered stays out."""
    stranger = start_node(
        deployment, "stranger", write_keys(deployment.folder, "key-stranger"), f'client=7 data="{deployment.data[0]}"'
    )
    out = submit(deployment, "run", deployed())
    expected = in_process(deployment, deployed(), tmp_path / "in-process")
    wait_for((out / "result.json").exists, 300, deployment)
    result = json.loads((out / "result.json").read_text())
    clients = [event for event in open_run(out).events() if event["event"] == "client"]

    assert result["weights_sha256"] == expected["weights_sha256"]
    assert result["metrics"] == expected["metrics"]
    assert {(event["round"], event["client"], event["host"]) for event in clients} == {
        (number, node, f"device-{node}") for number in (1, 2) for node in NODES
    }
    assert not any("error" in event for event in clients)
    wait_for(lambda: stranger.poll() is not None, 60, deployment)
    assert stranger.returncode != 0
    assert "2004" in deployment.log("stranger")
    assert "server/mAP" not in result["metrics"]
    for table in deployment.folder.glob("home-superlink/fedmlic/corpora/*"):
        assert table.name == "on_devices"  # no picture left its device
    assert tomllib.loads((deployment.folder / "app-run" / "pyproject.toml").read_text())


POOLED = {
    "method": "diff_feat(search_rounds=2, score='pooled', start_block=1, start_timestep=100, step_timestep=50)",
    "model": "dit(depth=4)",
    "strategy": "fedavg()",
    "num_rounds": 3,
    "allow_statistics": True,
    "statistics_min_clients": 1,
    "statistics_min_images": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("untrained", {"num_rounds": 0}),
        ("augmented", {"augmentation": "flip+crop+cutout+randaugment", "schedule": "one_cycle"}),
        ("pooled", POOLED),
        ("started", {"start": "a run in process"}),
    ],
)
def test_runs_of_other_kinds_give_the_hash_of_a_run_in_process(deployment, deployed, tmp_path, name, changes):
    if "start" in changes:
        in_process(deployment, deployed(num_rounds=1), tmp_path / "before")
        changes = {"start": str(tmp_path / "before")}
    out = submit(deployment, name, deployed(**changes))
    expected = in_process(deployment, deployed(**changes), tmp_path / "in-process")
    wait_for((out / "result.json").exists, 300, deployment)
    result = json.loads((out / "result.json").read_text())

    assert result["weights_sha256"] == expected["weights_sha256"]
    assert result["metrics"] == pytest.approx(expected["metrics"], nan_ok=True)
    assert not any("error" in event for event in open_run(out).events() if event["event"] == "client")


@pytest.mark.slow
def test_a_device_that_dies_does_not_end_the_run(deployment, deployed):
    out = submit(deployment, "robbed", deployed(min_replies=0.5, round_timeout=40.0))
    wait_for((out / "checkpoints" / "round-00001.json").exists, 300, deployment)
    deployment.kill("node-1")
    try:
        wait_for((out / "result.json").exists, 300, deployment)
    finally:
        start_device(deployment, 1)  # other tests count on it
    second = {
        event["client"]: event
        for event in open_run(out).events()
        if event.get("event") == "client" and event["round"] == 2
    }

    assert "error" not in second[0]
    assert second[1]["error"].startswith("NodeFailed: device-1")


LIAR = """
import importlib.abc
import importlib.machinery
import os
import sys


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "fedmlic.wire":
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path)
        load = found.loader.exec_module

        def exec_module(module):
            load(module)
            pack_reply, pack_introduction = module.pack_reply, module.pack_introduction

            def reply(reply, layout, **options):
                for update in reply.updates:
                    update.sums.fill_(float("nan"))
                return pack_reply(reply, layout, **options)

            def introduction(introduction):
                introduction.info.sizes[:] = 2**60
                return pack_introduction(introduction)

            if os.environ["LIE"] == "reply":
                module.pack_reply = reply
            else:
                module.pack_introduction = introduction

        found.loader.exec_module = exec_module
        return found


sys.meta_path.insert(0, Finder())
"""
"""A ``sitecustomize`` that makes a node lie; its files are those of an honest one."""


@pytest.mark.slow
def test_devices_that_lie_are_named_and_the_others_go_on(deployment, deployed):
    """One sends NaN, one says that it has 2**60 images; last in this file, since both must be gone afterwards."""
    folder = deployment.folder / "liars"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(LIAR, encoding="utf-8")
    try:
        for client, lie in ((3, "introduction"), (2, "reply")):
            key = write_keys(deployment.folder, f"key-{client}")
            deployment.flwr("supernode", "register", f"{key}.pub", "dep", "--name", f"device-{client}")
            config = f'client={client} data="{deployment.data[0]}" device="cpu"'
            start_node(deployment, f"node-{client}", key, config, {"PYTHONPATH": str(folder), "LIE": lie})
        out = submit(deployment, "lied-to", deployed(min_hosts=3, node_timeout=200.0, num_clients=4))
        wait_for((out / "result.json").exists, 400, deployment)
    finally:
        for client in (2, 3):
            if f"node-{client}" in deployment.running:
                deployment.kill(f"node-{client}")
    events = list(open_run(out).events())
    turns = [event for event in events if event["event"] == "client"]

    assert {turn["client"] for turn in turns} == {0, 1, 2}
    assert all(turn.get("error", "").startswith("Refused: device-2") is (turn["client"] == 2) for turn in turns)
    assert any("most-client-images" in event["reason"] for event in events if event["event"] == "set-aside")
