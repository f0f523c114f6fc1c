"""``fedmlic doctor``: every finding is right where it says ok, and says what to do where it does not."""

import datetime as dt
import http.server
import ipaddress
import json
import ssl
import threading
import time

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from packaging.requirements import Requirement
from PIL import Image
from typer.testing import CliRunner

from fedmlic.errors import InputError
from fedmlic.experiment import Experiment, Runtime
from sim.command import app
from sim.deployment import doctor, load, reach
from sim.deployment.findings import Place

PEM = serialization.Encoding.PEM
NAMES = ["cat", "dog", "bird"]


# --- certificates, keys, a server --------------------------------------------------------------


def write_pair(folder, stem, *, signer=None, days=(0, 100), host="127.0.0.1"):
    """A certificate and its key, ``STEM.crt`` and ``STEM.key``; an authority's own without a signer."""
    now, key = dt.datetime.now(dt.UTC), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, stem)])
    builder = x509.CertificateBuilder().subject_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).issuer_name(signer[1] if signer else name)
    start, end = (now + dt.timedelta(days=each) for each in days)
    builder = builder.not_valid_before(start).not_valid_after(end)
    if signer is None:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    else:
        held = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
        builder = builder.add_extension(held, critical=False)
    certificate = builder.sign(signer[0] if signer else key, hashes.SHA256())
    (folder / f"{stem}.crt").write_bytes(certificate.public_bytes(PEM))
    private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{stem}.key").write_bytes(private)
    return key, name


class Answering(http.server.BaseHTTPRequestHandler):
    off = 0.0
    reads = True

    def do_GET(self):
        self.send_response_only(200)
        self.send_header("Date", self.date_time_string(time.time() + self.off))
        self.end_headers()

    def do_POST(self):
        if self.reads:
            left = int(self.headers["Content-Length"])
            while left > 0 and (got := self.rfile.read(min(left, 1 << 16))):
                left -= len(got)
                time.sleep(0.001)
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    authority = write_pair(folder, "ca")
    write_pair(folder, "other")
    write_pair(folder, "server", signer=authority)
    write_pair(folder, "elsewhere", signer=authority, host="10.1.2.3")
    write_pair(folder, "ended", signer=authority, days=(-9, -1))
    write_pair(folder, "soon", signer=authority, days=(-1, 5))
    return folder


@pytest.fixture
def served(certificates):
    """A function: a server with a certificate on this machine; gives its address."""
    running = []

    def serve(stem="server", **changes):
        kind = type("Handler", (Answering,), changes)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
        server.handle_error = lambda *_: None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / f"{stem}.crt", certificates / f"{stem}.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        running.append(server)
        return f"127.0.0.1:{server.server_port}"

    yield serve
    for server in running:
        server.shutdown()
        server.server_close()


def by_name(findings):
    return {finding.about: finding for finding in findings}


def test_a_server_that_is_as_it_should_be(served, certificates, monkeypatch):
    monkeypatch.setattr(reach, "SHORTEST_PROBE_S", 0.0)  # loopback may be too fast to be told from an early answer
    found = reach.reach(served(), certificates / "ca.crt")

    assert {about: finding.verdict for about, finding in by_name(found.findings).items()} == {
        "port": "ok",
        "TLS": "ok",
        "clock": "ok",
    }
    assert found.connected
    assert 0 < found.mbit < 1e6


@pytest.mark.parametrize("off", [-300.0, 300.0])
def test_a_clock_that_is_wrong_is_a_problem(served, certificates, off):
    clock = by_name(reach.reach(served(off=off), certificates / "ca.crt").findings)["clock"]

    assert clock.verdict == "problem"
    assert clock.values["seconds"] == pytest.approx(300, abs=5)
    assert "set-ntp" in clock.remedy


@pytest.mark.parametrize(
    ("stem", "authority", "words", "remedy"),
    [
        ("server", "other.crt", "refused", "may be an intruder"),
        ("elsewhere", "ca.crt", "IP address mismatch", "must hold 127.0.0.1"),
        ("ended", "ca.crt", "expired", "make new certificates"),
    ],
)
def test_a_server_that_is_somebody_else(served, certificates, stem, authority, words, remedy):
    found = reach.reach(served(stem), certificates / authority)
    finding = by_name(found.findings)["TLS"]

    assert finding.verdict == "problem"
    assert words in finding.text
    assert remedy in finding.remedy
    assert not found.connected


def test_a_server_that_is_not_there_and_one_without_tls(certificates):
    closed = reach.reach("127.0.0.1:1", certificates / "ca.crt")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    bare = reach.reach(f"127.0.0.1:{server.server_port}", certificates / "ca.crt")
    server.shutdown()
    server.server_close()

    assert [finding.verdict for finding in closed.findings] == ["problem"]
    assert "nodes connect outwards only" in closed.findings[0].remedy
    assert "no TLS there" in by_name(bare.findings)["TLS"].text


@pytest.mark.parametrize("text", ["server.example", "server:0", "server:99999", ":80", "a:b"])
def test_an_address_needs_a_port(text):
    with pytest.raises(InputError, match="HOST:PORT"):
        reach.address_of(text)


@pytest.mark.parametrize(
    ("stem", "authority", "names", "verdicts"),
    [
        ("ca", True, (), ["ok"]),
        ("server", True, (), ["ok", "problem"]),
        ("server", False, ("127.0.0.1",), ["ok", "ok"]),
        ("server", False, ("server.example",), ["ok", "problem"]),
        ("ended", False, (), ["problem", "ok"]),
        ("soon", False, (), ["warning", "ok"]),
    ],
)
def test_dates_names_and_purpose_of_certificates(certificates, stem, authority, names, verdicts):
    found = list(reach.certificate_findings(certificates / f"{stem}.crt", authority=authority, names=names))

    assert [finding.verdict for finding in found] == verdicts
    assert all(finding.remedy for finding in found if finding.verdict != "ok")


def write_key(path, key, passphrase=b""):
    hidden = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    kind = serialization.PrivateFormat.PKCS8 if passphrase else serialization.PrivateFormat.OpenSSH
    path.write_bytes(key.private_bytes(PEM, kind, hidden))
    path.chmod(0o600)
    return path


def test_a_key_is_private_unlocked_and_of_the_right_kind(tmp_path):
    curve = ec.generate_private_key(ec.SECP384R1())
    good = write_key(tmp_path / "good", curve)
    public = curve.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    (tmp_path / "good.pub").write_bytes(public + b" somebody\n")

    def verdicts(path):
        return [(finding.verdict, finding.text) for finding in reach.key_findings(path)]

    assert [verdict for verdict, _ in verdicts(good)] == ["ok"]
    (tmp_path / "good.pub").write_bytes(public[:-9] + b"AAAAAAAA= somebody\n")
    assert verdicts(good)[0] == ("problem", "good.pub is not its public part")
    good.chmod(0o640)
    assert "its mode is 0640: others may read it" in verdicts(good)[0][1]
    locked = write_key(tmp_path / "locked", curve, b"secret")
    assert verdicts(locked)[0][0] == "problem"
    other = write_key(tmp_path / "other", ed25519.Ed25519PrivateKey.generate())
    assert "elliptic curve keys only" in verdicts(other)[0][1]


# --- data, machine, time -----------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """The node config of twelve pictures with two labels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = ["path,cat,dog,split"]
    for number in range(12):
        Image.fromarray(np.full((24, 24, 3), number, np.uint8)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{number % 2},1,train")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return {"data": f"folder(root={str(folder)!r}, image_size=24)", "client": 0, "device": "cpu", "home": str(tmp_path)}


KIT = {"label-names": NAMES, "image-size": 24, "channels": 3}


def test_images_are_counted_decoded_and_compared_with_the_federations(photos):
    found = load.images_of(photos, KIT, None)

    assert {finding.about: finding.verdict for finding in found.findings} == dict.fromkeys(
        ["images", "image size", "labels", "readable", "disk"], "ok"
    )
    assert (found.shape, found.label_names, found.num_train) == ((24, 24, 3), ("cat", "dog"), 12)
    assert by_name(found.findings)["labels"].text == "2 of the federation's 3 are annotated here"


def test_what_is_wrong_with_images_is_named(photos, tmp_path):
    foreign = by_name(load.images_of(photos, {**KIT, "label-names": ["cats", "birds"]}, None).findings)["labels"]
    assert foreign.verdict == "problem"
    assert "'cat', 'dog' are not among the federation's 2 labels" in foreign.text
    assert "Did you mean 'cats'?" in foreign.remedy

    size = by_name(load.images_of(photos, {**KIT, "image-size": 32}, None).findings)["image size"]
    assert (size.verdict, size.text) == ("problem", "24 x 24, 3 channels; the federation's is 32 x 32, 3 channels")

    (tmp_path / "photos" / "7.png").write_bytes(b"no picture")
    readable = by_name(load.images_of(photos, KIT, None).findings)["readable"]
    assert readable.verdict == "problem"
    assert "7.png" in readable.text


SMALL = {"model": "small_cnn(width=4)", "method": "bce()", "batch_size": 4, "local_epochs": 2, "holdout_fraction": 0.0}


def test_a_turn_is_played_with_the_experiments_network():
    found = load.measure(Experiment(**SMALL), Runtime(device="cpu"), tuple(NAMES), (24, 24, 3))
    wider = load.measure(Experiment(**{**SMALL, "model": "small_cnn(width=8)"}), Runtime(), tuple(NAMES), (24, 24, 3))

    assert found.step_s > 0
    assert found.bytes_down > 1000
    assert wider.bytes_down > 2 * found.bytes_down


def test_bytes_are_those_of_the_messages(monkeypatch):
    """As a device sends them: packed, and with int8() the change."""
    from fedmlic import wire

    answers, pack_reply = [], wire.pack_reply
    monkeypatch.setattr(wire, "pack_reply", lambda *given: answers.append(pack_reply(*given)) or answers[-1])
    experiment = Experiment(**{**SMALL, "model": "small_cnn(width=16)", "mods": "int8()"})
    found = load.measure(experiment, Runtime(device="cpu"), tuple(NAMES), (24, 24, 3))
    change = answers[0]["update-0"]["change"]

    assert len(change.data) < found.bytes_up < len(change.data) + 5_000
    assert len(change.data) < 2 * change.shape[0]
    assert 4 * change.shape[0] < found.bytes_down < 4 * change.shape[0] + 1_000


def test_a_rounds_time_is_the_sum_of_its_parts():
    experiment, measured = Experiment(**SMALL), load.Measured(0.5, 30_000_000, 60_000_000, 1)

    def last(timeout, mbit):
        runtime = Runtime(round_timeout=timeout)
        return list(load.round_findings(measured, experiment, runtime, 10, mbit))[-1]

    slow = last(3600.0, 8.0)
    # Three steps an epoch, two epochs, half a second each; 90 MB at 1 MB/s.
    assert slow.values["seconds"] == pytest.approx(load.START_S + 3.0 + 90.0)
    assert slow.verdict == "warning"
    assert "Most of it is sending" in slow.remedy
    assert last(60.0, 8.0).verdict == "problem"
    assert "round-timeout" in last(60.0, 8.0).remedy
    assert last(3600.0, 800.0).verdict == "ok"
    assert last(3600.0, None).remedy == "Give --link-mbit."


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def device(tmp_path, photos, certificates, served):
    """The folder of a device as a kit makes it."""
    folder = tmp_path / "device"
    folder.mkdir()
    (folder / "node.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in photos.items()))
    (folder / "ca.crt").write_bytes((certificates / "ca.crt").read_bytes())
    write_key(folder / "device.key", ec.generate_private_key(ec.SECP384R1()))
    (folder / "kit.json").write_text(json.dumps({**KIT, "server": {"address": served(), "names": ["127.0.0.1"]}}))
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


SET = ["model=small_cnn(width=4)", "method=bce()", "batch-size=4"]


def test_a_device_of_a_kit_is_ready(device):
    settings = [part for text in SET for part in ("--set", text)]
    done = run(device, *settings, "--link-mbit", 10, "--json")
    found = json.loads(done.stdout)

    assert (done.exit_code, found["ok"]) == (0, True)
    verdicts = {finding["about"]: finding["verdict"] for finding in found["findings"]}
    assert set(verdicts) == {
        *("versions", "certificate ca.crt", "key", "port", "TLS", "clock", "link", "processors", "device", "images"),
        *("image size", "labels", "readable", "disk", "training", "memory", "round"),
    }
    assert "problem" not in verdicts.values()


def test_the_settings_of_a_devices_first_run_are_known(device):
    (device / "run.toml").write_text('model = "small_cnn(width=4)"\nmethod = "bce()"\nround-timeout = 0.5\n')
    done = run(device, "--set", "batch-size=4", "--link-mbit", 10, "--json")
    found = {finding["about"]: finding for finding in json.loads(done.stdout)["findings"]}

    assert "a step of 4 images" in found["training"]["text"]
    assert "The run gives up after 0.5 s" in found["round"]["remedy"]


def test_a_server_trains_nothing(tmp_path):
    (tmp_path / "kit.json").write_text(json.dumps({**KIT, "role": "server"}))
    (tmp_path / "run.toml").write_text('method = "bce()"\n')
    found = json.loads(run(tmp_path, "--json").stdout)["findings"]

    assert "training" not in {finding["about"] for finding in found}


def test_a_device_with_a_problem_is_not_ready_and_everything_else_is_said(device):
    (device / "device.key").chmod(0o644)
    (device / "node.toml").write_text("data = \"folder(root='/nowhere', image_size=24)\"\nclient = 0\n")
    done = run(device)

    assert done.exit_code == 1
    assert "PROBLEM  key: its mode is 0644" in done.stdout
    assert "PROBLEM  images:" in done.stdout
    assert "ok       port" in done.stdout
    assert "2 problems" in done.stdout


def test_nothing_at_all_is_looked_at_too():
    done = run("--json")

    assert done.exit_code == 0
    assert {finding["about"] for finding in json.loads(done.stdout)["findings"]} == {
        *("versions", "processors", "device", "round")
    }


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("node.toml", "data = ", "to be a node config in TOML"),
        ("node.toml", "dta = 'x'", "Did you mean 'data'?"),
        ("kit.json", "[]", "to hold an object"),
        ("kit.json", "{", "to be JSON"),
    ],
)
def test_a_damaged_folder_is_one_line(device, name, text, words):
    (device / name).write_text(text)
    done = run(device)

    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())


def test_constraints_are_what_is_installed_and_enough(tmp_path):
    from importlib import metadata

    path = tmp_path / "constraints.txt"
    assert run("--constraints", path).exit_code == 0
    lines = dict(line.split("==") for line in path.read_text().splitlines())

    assert list(lines) == sorted(lines)
    assert all(metadata.version(name).partition("+")[0] == version for name, version in lines.items())
    direct = [Requirement(text) for text in metadata.requires("fedmlic")]
    assert {need.name for need in direct if not need.marker} <= set(lines)
    assert {"ray", "grpcio", "torch"} <= set(lines)  # of flwr[simulation], of flwr, and without the name of its build
    assert "://" not in path.read_text()


def test_a_servers_certificate_must_hold_the_names_that_nodes_use(certificates):
    place = Place(
        about={"server": {"names": ["server.example"]}}, certificates=(certificates / "server.crt",), superlink=""
    )
    found = [finding for finding in doctor.examine(place, None, Runtime()) if finding.verdict == "problem"]

    assert [finding.text for finding in found] == ["it is for 127.0.0.1, and not for server.example"]
