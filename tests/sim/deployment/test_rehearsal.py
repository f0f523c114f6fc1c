"""The rehearsal: what it makes of a kit's files, what it sees of ports and intruders, and the whole of it."""

import http.server
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import pytest

from fedmlic.errors import InputError
from sim.commands.shared import EXIT_INTERRUPTED
from sim.deployment import certificates, intruder, loopback
from sim.deployment.kit import make_kit, read_manifest
from sim.deployment.loopback import Stage
from sim.deployment.rehearsal import _stage, rehearse
from sim.engines.endings import OWNER, send, service_processes

NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
linux = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads /proc")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt-get install nginx-light)")

DESCRIPTION = """
name = "study"
label-names = ["cat", "dog", "bird"]
image-size = 24
[server]
names = ["fed.example.org"]
[[devices]]
name = "one"
data = "folder(root='/data/a', image_size=24)"
[[devices]]
name = "two"
data = "folder(root='/data/b', image_size=24)"
[[devices]]
name = "three"
data = "folder(root='/data/c', image_size=24)"
"""


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kit")
    (folder / "federation.toml").write_text(DESCRIPTION)
    make_kit(folder / "federation.toml", folder / "kit")
    return folder / "kit"


def staged(kit, folder, *, proxy=NGINX is not None):
    folder.mkdir()
    stage = Stage(folder, {"name": "study"}, ["one", "two"], proxy)
    stage.copy_kit(kit)
    return stage


# --- files -----------------------------------------------------------------------------------


def test_services_are_the_kits_with_other_places_and_ports(kit, tmp_path):
    stage = staged(kit, tmp_path / "stage")
    (command,) = loopback._read_unit(stage.folder / "devices/two/fedmlic-device.service")["ExecStart"]
    (original,) = loopback._read_unit(kit / "devices/two/fedmlic-device.service")["ExecStart"]

    assert f"--superlink localhost:{stage.port} " in command
    assert f"{stage.folder}/devices/two/device.key" in command
    assert [word for word in command.split() if word.startswith("--")] == [
        w for w in original.split() if w.startswith("--")
    ]
    for path in stage.folder.rglob("*"):
        if path.suffix in {".conf", ".service"} and path.name not in {"logrotate.conf", "nftables.conf"}:
            text = re.sub(r"#.*", "", path.read_text())
            assert not re.search(r"/etc/fedmlic|/var/lib/fedmlic|/opt/fedmlic/bin|:9091|:8443", text), path


def test_a_blank_in_the_interpreters_path_stays_in_one_word(kit, tmp_path, monkeypatch):
    monkeypatch.setattr(loopback.sys, "executable", "/home/me/my project/bin/python")
    stage = staged(kit, tmp_path / "stage", proxy=False)
    monkeypatch.undo()
    commands = {}
    for path in stage.folder.rglob("*.service"):
        (line,) = loopback._read_unit(path)["ExecStart"]
        commands[path.name] = shlex.split(line)

    program = ["/home/me/my project/bin/python", "-m", "sim.command", "supernode", "--superlink"]
    assert commands["fedmlic-device.service"][:5] == program
    assert commands["fedmlic-superlink.service"][0] == "/home/me/my project/bin/flower-superlink"
    unit = (stage.folder / "server/fedmlic-superlink.service").read_text()
    assert "Environment=PATH=/home/me/my project/bin:" in unit


def test_a_kit_whose_update_was_interrupted_is_not_played(kit, tmp_path):
    shutil.copytree(kit, tmp_path / "kit")
    manifest = read_manifest(kit)
    (tmp_path / "kit/kit.json").write_text(json.dumps({**manifest, "pending": {}}))

    with pytest.raises(InputError, match="one whose update was interrupted"):
        rehearse(tmp_path / "kit", proxy=False, rounds=1, keep=False, tell=lambda *_: None)


def test_a_kit_that_no_longer_says_where_it_listens_is_an_error(kit, tmp_path):
    shutil.copytree(kit, tmp_path / "kit")
    unit = tmp_path / "kit/server/fedmlic-superlink.service"
    unit.write_text(unit.read_text().replace("--host 127.0.0.1", "--host 0.0.0.0"))

    with pytest.raises(InputError, match=r"fedmlic-superlink\.service"):
        staged(tmp_path / "kit", tmp_path / "stage")


def test_no_kit_and_no_nginx_are_errors(kit, tmp_path, monkeypatch):
    def play(source):
        rehearse(source, proxy=True, rounds=1, keep=False, tell=lambda *_: None)

    with pytest.raises(InputError, match="to be a kit"):
        play(tmp_path)
    monkeypatch.setattr(loopback.shutil, "which", lambda *_, **__: None)
    with pytest.raises(InputError, match="nginx, the proxy of the kit"):
        play(kit)


# --- ports and intruders ---------------------------------------------------------------------


@linux
@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_listening_ports_of_a_process_are_found(family, address):
    with socket.socket(family) as server:
        try:
            server.bind((address, 0))
        except OSError:
            pytest.skip(f"this machine has no {address}")
        port = server.getsockname()[1]
        assert port not in {each.port for each in intruder.listeners([os.getpid()])}
        server.listen()
        found = [each for each in intruder.listeners([os.getpid()]) if each.port == port]

        assert [each.address for each in found] == [address]
    assert port not in {each.port for each in intruder.listeners([os.getpid()])}


class Inner:
    """What stands behind the proxy in place of the SuperLink: it answers every path with it."""

    def __init__(self, port, certificate, key):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                seen.append(self.path)
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            do_GET = do_PUT = do_DELETE = do_POST  # noqa: N815

            def log_message(self, *_):
                pass

        self.seen = seen = []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def proxied(kit, tmp_path_factory):
    """The kit's proxy before a server that says yes to everything, and the header of a registered device."""
    stage = staged(kit, tmp_path_factory.mktemp("proxied") / "stage")
    server = stage.folder / "server"
    inner = Inner(stage.control_port, server / "superlink.crt", server / "superlink.key")
    try:
        stage.start_unit(server / "fedmlic-proxy.service", "proxy")
        assert stage.wait(lambda: intruder.post(stage.port, "/", stage.trust()).status == 404, 30.0, "proxy"), (
            stage.log("proxy")
        )
        header = certificates.header_value((kit / "devices/one/device.pub").read_bytes())
        yield stage, inner, {intruder.HEADER: header}
    finally:
        assert stage.close() == []
        inner.close()


CALLS = [
    *(
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
    ),
    *("push-object", "pull-object", "confirm-message-received"),
]


@needs_nginx
@pytest.mark.deployment
def test_the_proxy_passes_the_ten_calls_of_a_registered_key_and_nothing_else(proxied):
    stage, inner, device = proxied
    trust = stage.trust()
    assert [intruder.post(stage.port, f"/v1/fleet/{call}", trust, device, b"x" * 10).status for call in CALLS] == [
        200
    ] * 10
    assert inner.seen == [f"/v1/fleet/{call}" for call in CALLS]
    for headers in ({}, {intruder.HEADER: "AAAA"}, {intruder.HEADER: ""}):
        assert {intruder.post(stage.port, f"/v1/fleet/{call}", trust, headers).status for call in CALLS} <= {412, 503}
    for path in (*intruder.PATHS, *intruder.TRICKS):
        intruder.post(stage.port, path, trust, device)

    # Whatever the spelling: what arrives is one of the ten, as the proxy writes it.
    assert set(inner.seen) <= {f"/v1/fleet/{call}" for call in CALLS}


@needs_nginx
@pytest.mark.deployment
def test_every_path_of_flower_but_ten_is_stopped(proxied):
    """All routes that the installed SuperLink has, as a registered device asks for them."""
    from flwr.superlink.main import create_app

    stage, inner, device = proxied
    del inner.seen[:]
    from fastapi.routing import iter_route_contexts

    routes = {
        context.route.path for context in iter_route_contexts(create_app().routes) if hasattr(context.route, "path")
    }
    assert {"/health", "/v1/control/start-run", "/v1/runtime/acquire-task"} <= routes
    for path in sorted(routes):
        intruder.post(stage.port, urllib.parse.quote(path), stage.trust(), device)

    assert sorted(inner.seen) == sorted(f"/v1/fleet/{call}" for call in CALLS)


@needs_nginx
@pytest.mark.deployment
def test_refusals_are_errors_that_a_supernode_prints(proxied):
    from flwr.supercore.error import FlowerError

    stage, _, device = proxied
    unknown = intruder.post(stage.port, "/v1/fleet/activate-node", stage.trust(), {intruder.HEADER: "AAAA"})
    keyless = intruder.post(stage.port, "/v1/fleet/register-node", stage.trust(), device)

    assert FlowerError.from_json(unknown.body.decode()).code == 2004
    assert FlowerError.from_json(keyless.body.decode()).code == 2001


@needs_nginx
@pytest.mark.deployment
def test_large_pieces_pass_and_larger_ones_do_not(proxied):
    stage, _, device = proxied

    assert intruder.post(stage.port, "/v1/fleet/push-object", stage.trust(), device, bytes(12_000_000)).status == 200
    assert intruder.post(stage.port, "/v1/fleet/push-object", stage.trust(), device, bytes(40_000_000)).status in {
        0,
        413,
    }


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_kept_of_a_rehearsal_holds_no_private_key(kit, keep):
    with _stage(read_manifest(kit), kit, proxy=False, keep=keep) as stage:
        (stage.folder / "state/stranger.key").write_bytes(certificates.make_device_key("x").private)
        (stage.folder / "log/proxy.log").write_text("GET /")
        secrets = [certificates.private_value(path.read_bytes()) for path in stage.folder.rglob("*.key")]
    try:
        assert len(secrets) == 6  # proxy, SuperLink, three devices, the stranger
        assert stage.folder.exists() is keep
        left = [path for path in stage.folder.rglob("*") if path.is_file()]
        assert (stage.folder / "log/proxy.log" in left) is keep
        assert not [path for path in left for value in secrets if certificates.holds(path.read_bytes(), value)]
        assert (kit / "server/proxy.key").exists()
    finally:
        shutil.rmtree(stage.folder, ignore_errors=True)


KILLED = """
import signal, sys, time
from pathlib import Path
import typer
from sim.commands.shared import report_errors
from sim.deployment.kit import read_manifest
from sim.deployment.rehearsal import _stage
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
kit = Path(sys.argv[1])
try:
    with report_errors(), _stage(read_manifest(kit), kit, proxy=False, keep=sys.argv[2] == "keep") as stage:
        stage.start("superlink", [sys.executable, "-c", "import time; time.sleep(300)"], stage.folder, {})
        print(stage.folder, stage.mark, flush=True)
        time.sleep(300)
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


@linux
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_nothing_of_a_rehearsal_that_is_ended_is_left(kit, number):
    program = subprocess.Popen([sys.executable, "-c", KILLED, kit, "go"], stdout=subprocess.PIPE, text=True)
    folder, mark = program.stdout.readline().split()
    try:
        assert service_processes(mark, Path(folder))
        program.send_signal(number)
        if number == signal.SIGHUP:
            program.send_signal(number)  # a shell sends it too, while services are being ended
        program.communicate(timeout=60)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (service_processes(mark, Path(folder)) or Path(folder).exists()):
            time.sleep(0.1)

        assert not service_processes(mark, Path(folder))
        assert not Path(folder).exists()
        assert program.returncode == (-number if number == signal.SIGKILL else EXIT_INTERRUPTED)
    finally:
        program.kill()
        send(service_processes(mark, Path(folder)), signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def test_what_is_kept_of_a_rehearsal_is_not_taken_for_a_killed_ones(kit):
    with _stage(read_manifest(kit), kit, proxy=False, keep=True) as stage:
        assert (stage.folder / OWNER).exists()
    try:
        assert not (stage.folder / OWNER).exists()
    finally:
        shutil.rmtree(stage.folder, ignore_errors=True)


# --- all of it -------------------------------------------------------------------------------


@needs_nginx
@pytest.mark.slow
@pytest.mark.deployment
def test_a_whole_rehearsal(kit):
    told = []
    before = {path: path.read_bytes() for path in kit.rglob("*") if path.is_file()}
    found = rehearse(kit, proxy=True, rounds=1, keep=False, tell=lambda text, _: told.append(text))

    assert found["ok"], "\n".join(told)
    assert [step["ok"] for step in found["steps"]] == [True] * 15
    assert {path: path.read_bytes() for path in kit.rglob("*") if path.is_file()} == before
