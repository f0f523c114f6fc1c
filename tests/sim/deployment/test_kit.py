"""The kit of a federation: its certificates by openssl, its secrets apart, and what becomes of it later."""

import base64
import datetime as dt
import hashlib
import json
import re
import shutil
import stat
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from flwr.common.config import parse_config_args

from clients import approval
from clients.source import NODE_KEYS
from fedmlic.errors import InputError
from fedmlic.experiment import split_settings
from sim.deployment import certificates
from sim.deployment import kit as kits
from sim.deployment.kit import make_kit, read_manifest
from sim.deployment.settings import Deployment, Device, Server, read_deployment

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "federation.toml"
PEM, OPENSSH = serialization.Encoding.PEM, serialization.Encoding.OpenSSH


def write(folder, text):
    path = folder / "federation.toml"
    path.write_text(text, encoding="utf-8")
    return path


SMALL = """
name = "study"
label-names = ["cat", "dog"]
image-size = 24
[server]
names = ["fed.example.org", "192.0.2.10", "2001:db8::1"]
[[devices]]
name = "one"
data = "folder(root='/data/a', image_size=24)"
[[devices]]
name = "two"
data = "folder(root='/data/b', image_size=24)"
"""


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """A kit of two devices; tests that change one copy it."""
    folder = tmp_path_factory.mktemp("kit")
    description = write(folder, SMALL)
    return make_kit(description, folder / "kit"), description, folder / "kit"


@pytest.fixture
def copied(kit, tmp_path):
    shutil.copytree(kit[2], tmp_path / "kit")
    shutil.copy(kit[1], tmp_path / "federation.toml")
    return tmp_path / "federation.toml", tmp_path / "kit"


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- certificates --------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_openssl_verifies_chain_names_and_purpose(kit):
    out = kit[2]

    def verify(certificate, *options):
        command = [
            "openssl",
            "verify",
            "-x509_strict",
            "-CAfile",
            out / "authority/ca.crt",
            *options,
            out / certificate,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False).returncode

    for name in ("fed.example.org", "localhost"):
        assert verify("server/proxy.crt", "-purpose", "sslserver", "-verify_hostname", name) == 0
    for address in ("192.0.2.10", "2001:db8::1", "127.0.0.1"):
        assert verify("server/proxy.crt", "-verify_ip", address) == 0
    assert verify("server/superlink.crt", "-purpose", "sslserver", "-verify_hostname", "localhost") == 0
    assert verify("server/superlink.crt", "-verify_hostname", "fed.example.org") != 0
    assert verify("server/proxy.crt", "-verify_hostname", "elsewhere.example") != 0
    assert verify("server/proxy.crt", "-purpose", "sslclient") != 0


def test_dates_and_authority(kit):
    authority = x509.load_pem_x509_certificate((kit[2] / "authority/ca.crt").read_bytes())
    proxy = x509.load_pem_x509_certificate((kit[2] / "server/proxy.crt").read_bytes())
    now = dt.datetime.now(dt.UTC)

    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    assert not proxy.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert abs((proxy.not_valid_after_utc - now).days - 365) <= 1
    assert abs((authority.not_valid_after_utc - now).days - 3650) <= 1
    assert proxy.not_valid_before_utc < now
    proxy.verify_directly_issued_by(authority)


def test_a_certificate_never_outlives_its_authority():
    authority = certificates.make_authority("study", 10)

    assert certificates.expiry(
        certificates.make_certificate(authority, ["a.example"], 3650).public
    ) == certificates.expiry(authority.public)


def test_device_keys_are_pairs_that_flower_reads_and_the_proxy_knows(kit):
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes

    lines = dict(re.findall(r'^"(.+)" "(.+)";$', (kit[2] / "server/devices.map").read_text(), re.MULTILINE)[::-1])
    names = {name: value for value, name in lines.items()}
    for name in ("one", "two"):
        folder = kit[2] / "devices" / name
        private = serialization.load_ssh_private_key((folder / "device.key").read_bytes(), None)
        public = serialization.load_ssh_public_key((folder / "device.pub").read_bytes())
        sent = public_key_to_bytes(private.public_key())

        assert private.public_key() == public == bytes_to_public_key(sent)
        assert names[name] == base64.b64encode(sent).decode()
        assert (kit[2] / f"server/devices/{name}.pub").read_bytes() == (folder / "device.pub").read_bytes()


# --- secrets -------------------------------------------------------------------------------


def private_value(text):
    """The secret number of a key, 48 bytes."""
    load = serialization.load_ssh_private_key if b"OPENSSH" in text else serialization.load_pem_private_key
    return load(text, None).private_numbers().private_value.to_bytes(48, "big")


def holds(text, value):
    blocks = re.findall(rb"-----BEGIN [^-]+-----\n([^-]+)-----END", text)
    return value in text or value.hex().encode() in text or any(value in base64.b64decode(block) for block in blocks)


def test_nothing_secret_of_one_receiver_is_in_anothers_folder(kit):
    files = contents(kit[2])
    secret = {name for name, text in files.items() if re.search(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\n", text)}

    assert secret == {
        *("authority/ca.key", "server/proxy.key", "server/superlink.key"),
        *("devices/one/device.key", "devices/two/device.key"),
    }
    for name in secret:
        value = private_value(files[name])
        assert [other for other, text in files.items() if holds(text, value)] == [name]
        assert stat.S_IMODE((kit[2] / name).stat().st_mode) == 0o600
    for folder in [kit[2], *(p for p in kit[2].rglob("*") if p.is_dir())]:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_nothing_names_this_machine(kit):
    import socket

    told = b"\n".join(
        text for name, text in contents(kit[2]).items() if not name.endswith(".whl") and "/app/" not in name
    )

    assert str(Path.home()).encode() not in told.replace(b"/root/superlink.db", b"")
    assert str(kit[2]).encode() not in told
    prose = re.sub(rb"-----BEGIN.*?-----END[^\n]*", b"", told, flags=re.DOTALL)  # base64 has every short word in it
    assert not re.search(rb"\b" + re.escape(socket.gethostname().encode()) + rb"\b", prose)
    assert b"://" not in (kit[2] / "server/constraints.txt").read_bytes()
    assert re.fullmatch(r"([a-z0-9-]+==[0-9][^\s+]*\n)+", (kit[2] / "server/constraints.txt").read_text())


def test_an_owners_public_key_leaves_no_private_one(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(certificates._name("two")).sign(key, hashes.SHA256())
    other = ec.generate_private_key(ec.SECP384R1())
    (tmp_path / "one.pub").write_bytes(other.public_key().public_bytes(OPENSSH, serialization.PublicFormat.OpenSSH))
    (tmp_path / "two.csr").write_bytes(request.public_bytes(PEM))
    text = SMALL.replace('name = "one"', 'name = "one"\npublic-key = "one.pub"')
    make_kit(write(tmp_path, text.replace('name = "two"', 'name = "two"\npublic-key = "two.csr"')), tmp_path / "kit")
    found = contents(tmp_path / "kit")

    assert [name for name in found if name.endswith("device.key")] == []
    for name, expected in (("one", other), ("two", key)):
        assert serialization.load_ssh_public_key(found[f"devices/{name}/device.pub"]) == expected.public_key()
        assert b"You made the key" in found[f"devices/{name}/README.md"]


def _unsigned_request():
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(certificates._name("x")).sign(key, hashes.SHA256())
    der = bytearray(request.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(PEM)


KEYS = {
    "a private key": (lambda: certificates.make_device_key("x").private, "got a private one"),
    "rsa": (
        lambda: (
            rsa.generate_private_key(65537, 2048)
            .public_key()
            .public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        ),
        "NIST curve",
    ),
    "ed25519": (
        lambda: (
            ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(OPENSSH, serialization.PublicFormat.OpenSSH)
        ),
        "NIST curve",
    ),
    "text": (lambda: b"hello", "public key or a signing request"),
    "a request with a wrong signature": (_unsigned_request, "signature is wrong"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_wrong_public_key_is_refused(tmp_path, kind):
    make, reason = KEYS[kind]
    (tmp_path / "key").write_bytes(make())

    with pytest.raises(InputError, match=reason):
        certificates.read_public_key(tmp_path / "key", "device")


def test_one_key_for_two_devices_is_refused(tmp_path):
    (tmp_path / "key").write_bytes(certificates.make_device_key("x").public)
    text = SMALL.replace("data =", 'public-key = "key"\ndata =')

    with pytest.raises(InputError, match="one key for one and two"):
        make_kit(write(tmp_path, text), tmp_path / "kit")


# --- contents ------------------------------------------------------------------------------


def test_templates_are_filled_and_programs_parse(kit):
    for name, text in contents(kit[2]).items():
        if not name.endswith(".whl") and "/app/" not in name:
            assert not re.search(rb"@[A-Z_]+@", text), name
    for name in ("server/install.sh", "server/fedmlic-admin", "devices/one/install.sh", "devices/one/fedmlic-device"):
        subprocess.run(["sh", "-n", kit[2] / name], check=True)
        assert stat.S_IMODE((kit[2] / name).stat().st_mode) == 0o700


def test_units_bind_to_loopback_run_as_users_and_name_files_of_the_kit(kit):
    superlink = (kit[2] / "server/fedmlic-superlink.service").read_text()
    device = (kit[2] / "devices/two/fedmlic-device.service").read_text()
    proxy = (kit[2] / "server/fedmlic-proxy.service").read_text()

    assert "--host 127.0.0.1 --port 9091 --enable-supernode-auth" in superlink
    assert "fedmlic supernode --superlink fed.example.org:8443" in device
    for text, user in ((superlink, "server"), (device, "device"), (proxy, "proxy")):
        assert f"User=fedmlic-{user}\n" in text
        assert "Restart=always" in text
        assert "NoNewPrivileges=yes" in text
        for path in re.findall(r"/etc/fedmlic-server/([\w.]+)", text):
            assert (kit[2] / "server" / path).exists()
        for path in re.findall(r"/etc/fedmlic-device/([\w.]+)", text):
            assert (kit[2] / "devices/two" / path).exists()


def test_containers_publish_the_proxy_only(kit):
    server = yaml.safe_load((kit[2] / "server/compose.yaml").read_text())["services"]
    device = yaml.safe_load((kit[2] / "devices/one/compose.yaml").read_text())["services"]

    assert server["superlink"]["ports"] == ["8443:8443"]
    assert server["proxy"]["network_mode"] == "service:superlink"
    assert "ports" not in device["supernode"]
    for service in (*server.values(), *device.values()):
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["user"] != "root"
    for folder in ("server", "devices/one"):
        assert '"127.0.0.1"' in (kit[2] / folder / "Containerfile").read_text()


def test_node_configs_have_known_keys_and_the_digest_of_the_app(kit):
    digest = approval.digest_of(approval.own_code())
    app = {
        path.relative_to(kit[2] / "server/app").as_posix(): path.read_bytes()
        for path in (kit[2] / "server/app").rglob("*.py")
    }
    for client, name in enumerate(("one", "two")):
        node = tomllib.loads((kit[2] / f"devices/{name}/node.toml").read_text())

        assert node.keys() <= NODE_KEYS.keys()
        assert node["client"] == client
        assert node["code-digest"] == digest == approval.digest_of(app) == kit[0]["digest"]


def test_the_wheel_installs_this_code(kit):
    (wheel,) = (kit[2] / "devices/one").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        code = {
            n: archive.read(n)
            for n in names
            if n.endswith(".py") and n.split("/")[0] in {"clients", "fedmlic", "strategies"}
        }
    assert approval.digest_of(code) == kit[0]["digest"]
    assert "sim/deployment/templates/server/nginx.conf" in names
    assert {"METADATA", "WHEEL", "RECORD", "entry_points.txt"} == {n.split("/")[1] for n in names if ".dist-info/" in n}


def test_the_first_run_is_a_run(kit):
    settings = tomllib.loads((kit[2] / "server/run.toml").read_text())
    experiment, runtime = split_settings(settings)

    assert experiment.label_names == "cat,dog"
    assert runtime.min_hosts == 2
    assert experiment.cohort_size == 0


def test_a_run_may_start_without_all_devices(tmp_path):
    text = SMALL.replace("[server]", "[run]\nmin_hosts = 1\n[server]", 1)
    make_kit(write(tmp_path, text), tmp_path / "kit")
    settings = tomllib.loads((tmp_path / "kit/server/run.toml").read_text())

    assert split_settings(settings)[1].min_hosts == 1


def test_the_first_run_has_the_settings_of_another_one(tmp_path):
    simulated, _ = split_settings(
        {"method": "bce()", "model": "small_cnn(width=4)", "learning-rate": 0.02, "partition": "iid()", "seed": 5}
    )
    folder = tmp_path / "runs" / "winner"
    folder.mkdir(parents=True)
    about = {"experiment": simulated.model_dump(), "runtime": {"workers": 7}, "identity": simulated.identity()}
    (folder / "experiment.json").write_text(json.dumps(about))
    text = SMALL.replace("[server]", "run-of = 'runs/winner'\n[run]\nlearning_rate = 0.01\n[server]", 1)
    make_kit(write(tmp_path, text), tmp_path / "kit")
    written = (tmp_path / "kit/server/run.toml").read_text()
    settings = tomllib.loads(written)
    experiment, runtime = split_settings(settings)

    assert parse_config_args([re.sub(" = ", "=", written)]) == settings  # as fedmlic-admin hands them to Flower
    same = {"dataset", "partition", "regime", "num_clients", "cohort_size", "label_names", "learning_rate"}
    assert experiment.model_dump(exclude=same) == simulated.model_dump(exclude=same)
    assert simulated.num_rounds == 12  # a default of an experiment, where that of a kit is another
    assert experiment.learning_rate == 0.01
    assert (experiment.label_names, experiment.cohort_size, runtime.min_hosts) == ("cat,dog", 0, 2)
    assert runtime.workers == 0
    assert "partition" not in settings


def test_devices_get_the_settings_of_the_first_run(kit):
    for name in ("one", "two"):
        assert (kit[2] / f"devices/{name}/run.toml").read_text() == (kit[2] / "server/run.toml").read_text()


def test_an_owner_needs_no_page_of_this_projects_documentation(kit):
    for path in (kit[2] / "devices/one").iterdir():
        assert path.suffix == ".whl" or not re.search(rb"(?<![\w./])docs/", path.read_bytes()), path.name


def test_what_leaves_a_device_is_told_to_its_owner_as_on_the_page(kit):
    page = (EXAMPLE.parents[1] / "deployment.md").read_text(encoding="utf-8")
    told = page.split("\n## What leaves a device\n")[1].split("\n## ")[0]

    assert re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", told).strip() in (kit[2] / "devices/one/README.md").read_text()


@pytest.mark.parametrize(("root", "shown"), [("/home/eyes", True), ("/root", True), ("/homes/eyes", False)])
def test_images_below_home_are_shown_to_the_service(tmp_path, root, shown):
    make_kit(write(tmp_path, SMALL.replace("/data/a", root)), tmp_path / "kit")
    lines = (tmp_path / "kit/devices/one/fedmlic-device.service").read_text().splitlines()

    assert [line for line in lines if line.startswith("ProtectHome=")] == [
        "ProtectHome=yes",
        *(["ProtectHome=read-only"] if shown else []),
    ]


def test_a_container_with_a_torch_of_its_own_is_not_given_another(kit, tmp_path):
    lines = (kit[2] / "devices/one/Containerfile").read_text().splitlines()
    (command,) = (line.removeprefix("RUN ").removesuffix("\\") for line in lines if line.startswith("RUN if"))
    pinned = (kit[2] / "devices/one/constraints.txt").read_text()
    path = tmp_path / "constraints.txt"
    kept = {}
    for system in ("", "--system-site-packages"):
        path.write_text(pinned)
        shell = re.sub(r"\S+/constraints\.txt", str(path), command)
        subprocess.run(["sh", "-c", shell], check=True, env={"SYSTEM": system, "PATH": "/usr/bin:/bin"})
        kept[system] = path.read_text().splitlines()

    assert kept[""] == pinned.splitlines()
    left_out = set(kept[""]) - set(kept["--system-site-packages"])
    assert {line.partition("==")[0] for line in left_out} == {"torch", "torchvision"}


@pytest.mark.skipif(not shutil.which("nginx", path="/usr/sbin:/usr/bin"), reason="nginx is not installed")
def test_nginx_accepts_the_configuration(kit, tmp_path):
    text = (kit[2] / "server/nginx.conf").read_text().replace("/etc/fedmlic-server", str(kit[2] / "server"))
    for place in ("/var/log/fedmlic-proxy", "/var/lib/fedmlic-proxy", "/run/fedmlic-proxy"):
        text = text.replace(place, str(tmp_path))
    (tmp_path / "nginx.conf").write_text(re.sub(r"listen \[::\].*", "", text))
    done = subprocess.run(
        [shutil.which("nginx", path="/usr/sbin:/usr/bin"), "-t", "-c", tmp_path / "nginx.conf"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr


# --- later ---------------------------------------------------------------------------------


def test_a_kit_is_never_overwritten(copied, tmp_path):
    before = contents(copied[1])
    with pytest.raises(InputError, match="--update"):
        make_kit(*copied)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="other files"):
        make_kit(copied[0], tmp_path / "full")
    with pytest.raises(InputError, match="got none"):
        make_kit(copied[0], tmp_path / "new", update=True)

    assert contents(copied[1]) == before


def test_an_update_without_a_change_changes_nothing(copied):
    before = contents(copied[1])
    found = make_kit(*copied, update=True)

    assert contents(copied[1]) == before
    assert found["made"] == []
    assert len(found["kept"]) == 5


def test_a_device_is_added_and_everything_else_keeps_its_keys(copied):
    before = contents(copied[1])
    copied[0].write_text(SMALL + "[[devices]]\nname = 'three'\ndata = \"folder(root='/c', image_size=24)\"\n")
    found = make_kit(*copied, update=True)
    after = contents(copied[1])

    assert found["made"] == ["devices/three/device.key"]
    assert all(after[name] == text for name, text in before.items() if name.endswith((".key", ".crt", ".pub")))
    assert after["server/devices.map"].count(b'"three"') == 1
    assert read_manifest(copied[1])["devices"] == ["one", "three", "two"]


def test_renewal_makes_new_certificates_and_keeps_authority_and_devices(copied):
    before = contents(copied[1])
    found = make_kit(*copied, renew=True)
    after = contents(copied[1])

    assert found["made"] == ["server/proxy.key", "server/superlink.key"]
    assert after["server/proxy.key"] != before["server/proxy.key"]
    assert after["authority/ca.key"] == before["authority/ca.key"]
    assert after["devices/one/device.key"] == before["devices/one/device.key"]


def test_another_name_of_the_server_makes_its_certificate_anew(copied):
    copied[0].write_text(SMALL.replace("fed.example.org", "other.example.org"))
    found = make_kit(*copied, update=True)

    assert found["made"] == ["server/proxy.key"]
    assert "other.example.org" in certificates.names_of((copied[1] / "server/proxy.crt").read_bytes())


def test_a_device_that_left_is_shut_out_and_its_folder_stays(copied):
    copied[0].write_text(SMALL[: SMALL.rindex("[[devices]]")])
    found = make_kit(*copied, update=True)

    assert b'"two"' not in (copied[1] / "server/devices.map").read_bytes()
    assert found["removed"] == ["server/devices/two.pub"]
    assert "two is not in federation.toml any more" in found["notes"][0]
    assert (copied[1] / "devices/two/device.key").exists()


def test_a_device_that_comes_back_gets_another_key(copied):
    """Flower never takes a key again that was unregistered."""
    before = contents(copied[1])
    copied[0].write_text(SMALL[: SMALL.rindex("[[devices]]")])
    make_kit(*copied, update=True)
    copied[0].write_text(SMALL)
    found = make_kit(*copied, update=True)
    after = contents(copied[1])

    assert found["made"] == ["devices/two/device.key"]
    assert "two takes part again and gets a new key" in found["notes"][0]
    assert after["devices/two/device.pub"] != before["devices/two/device.pub"]
    assert after["server/devices/two.pub"] == after["devices/two/device.pub"]
    assert certificates.public_of(after["devices/two/device.key"], "two") == after["devices/two/device.pub"]
    assert after["devices/one/device.key"] == before["devices/one/device.key"]


def test_a_device_that_comes_back_with_its_owners_key_is_noted(tmp_path):
    (tmp_path / "two.pub").write_bytes(certificates.make_device_key("two").public)
    text = SMALL.replace('name = "two"', 'name = "two"\npublic-key = "two.pub"')
    make_kit(write(tmp_path, text), tmp_path / "kit")
    make_kit(write(tmp_path, text[: text.rindex("[[devices]]")]), tmp_path / "kit", update=True)
    again = make_kit(write(tmp_path, text), tmp_path / "kit", update=True)
    once_more = make_kit(write(tmp_path, text), tmp_path / "kit", update=True)

    assert again["made"] == []
    assert "two takes part again with the key that it had" in again["notes"][0]
    assert once_more["notes"] == []


def test_a_device_key_that_is_gone_is_made_anew_and_said(copied):
    (copied[1] / "devices/one/device.key").unlink()
    found = make_kit(*copied, update=True)

    assert found["made"] == ["devices/one/device.key"]
    assert "devices/one/device.key was not there, and a new key was made" in found["notes"][0]


@pytest.mark.parametrize("how", ["empty", "another"])
def test_a_device_key_that_is_not_that_of_its_public_one_is_an_error(copied, how):
    (copied[1] / "devices/one/device.key").write_bytes(
        b"" if how == "empty" else certificates.make_device_key("one").private
    )
    got = "a damaged file" if how == "empty" else "another key"

    with pytest.raises(InputError, match=rf"device\.pub beside it, got {got}"):
        make_kit(*copied, update=True)


def test_a_public_key_that_is_gone_is_that_of_the_private_one(copied):
    before = contents(copied[1])
    (copied[1] / "devices/one/device.pub").unlink()

    assert make_kit(*copied, update=True)["made"] == []
    assert contents(copied[1]) == before


def test_damaged_keys_of_the_server_and_the_authority(copied):
    (copied[1] / "server/proxy.key").write_bytes(b"")
    assert make_kit(*copied, update=True)["made"] == ["server/proxy.key"]

    (copied[1] / "authority/ca.key").write_bytes(b"")
    with pytest.raises(InputError, match="got another key or a damaged file"):
        make_kit(*copied, update=True)


@pytest.mark.parametrize("after", ["server/proxy.key", "server/proxy.crt", "server/README.md"])
def test_a_renewal_that_is_killed_is_finished_by_the_next_update(copied, monkeypatch, after):
    before = contents(copied[1])
    write_file = kits._write_file
    with monkeypatch.context() as patched:

        def killed(path, text):
            write_file(path, text)
            if path == copied[1] / after:
                raise KeyboardInterrupt

        patched.setattr(kits, "_write_file", killed)
        for _ in range(2):  # and killed again, with still other keys
            with pytest.raises(KeyboardInterrupt):
                make_kit(*copied, renew=True)
    found = make_kit(*copied, update=True)
    renewed = {f"server/{name}.{end}" for name in ("proxy", "superlink") for end in ("key", "crt")}
    pair = certificates.Pair(*((copied[1] / f"server/proxy.{end}").read_bytes() for end in ("key", "crt")))

    assert certificates.belongs(pair)
    assert found["made"] == ["server/proxy.key", "server/superlink.key"]
    assert renewed <= {name for name, text in contents(copied[1]).items() if text != before[name]}
    assert not {"pending", "renew"} & read_manifest(copied[1]).keys()
    assert make_kit(*copied, update=True)["made"] == []
    (copied[1] / "server/proxy.crt").write_bytes(pair.public + b"\n")
    with pytest.raises(InputError, match=r"proxy\.crt: edited"):
        make_kit(*copied, update=True)


@pytest.mark.parametrize("after", ["authority/ca.key", "server/proxy.key", "devices/one/device.key", "server/ca.crt"])
def test_a_first_kit_that_is_killed_is_made_by_an_update(kit, tmp_path, monkeypatch, after):
    description, out = write(tmp_path, SMALL), tmp_path / "kit"
    write_file = kits._write_file
    with monkeypatch.context() as patched:

        def killed(path, text):
            write_file(path, text)
            if path == out / after:
                raise KeyboardInterrupt

        patched.setattr(kits, "_write_file", killed)
        for update in (False, True):
            with pytest.raises(KeyboardInterrupt):
                make_kit(description, out, update=update)
    left = {name: text for name, text in contents(out).items() if name.endswith(".key")}
    with pytest.raises(InputError, match="got a kit, the making of which was interrupted"):
        make_kit(description, out)
    found = make_kit(description, out, update=True)
    after_all = contents(out)

    assert left
    assert {**kit[0], "kit": str(out)} == found
    assert after_all.keys() == contents(kit[2]).keys()
    assert not {name for name, text in left.items() if after_all[name] == text}
    assert read_manifest(out).keys() == read_manifest(kit[2]).keys()
    authority, proxy = (
        x509.load_pem_x509_certificate(after_all[f"{name}.crt"]) for name in ("authority/ca", "server/proxy")
    )
    proxy.verify_directly_issued_by(authority)


@pytest.mark.parametrize("half", ["device.key", "device.pub"])
def test_an_update_that_is_killed_with_a_new_device_key_is_finished_and_says_so(copied, monkeypatch, half):
    (copied[1] / "devices/one/device.key").unlink()
    write_file = kits._write_file
    with monkeypatch.context() as patched:

        def killed(path, text):
            write_file(path, text)
            if path == copied[1] / "devices/one" / half:
                raise KeyboardInterrupt

        patched.setattr(kits, "_write_file", killed)
        with pytest.raises(KeyboardInterrupt):
            make_kit(*copied, update=True)
    private = (copied[1] / "devices/one/device.key").read_bytes()
    found = make_kit(*copied, update=True)
    once_more = make_kit(*copied, update=True)
    after = contents(copied[1])

    assert after["devices/one/device.key"] == private
    assert after["devices/one/device.pub"] == after["server/devices/one.pub"] == certificates.public_of(private, "one")
    assert found["made"] == ["devices/one/device.key"]
    (note,) = found["notes"]
    assert "is another one than at the last finished update. Send devices/one to its owner again" in note
    assert "devices/one/device.key" in once_more["kept"]
    assert once_more["notes"] == []


@pytest.mark.parametrize("whose", ["kit's", "owner's"])
def test_a_new_device_whose_first_update_was_killed_is_told_as_a_new_one(copied, monkeypatch, whose):
    (copied[0].parent / "three.pub").write_bytes(certificates.make_device_key("three").public)
    key = "public-key = 'three.pub'\n" if whose == "owner's" else ""
    copied[0].write_text(SMALL + f"[[devices]]\nname = 'three'\n{key}data = \"folder(root='/c', image_size=24)\"\n")
    write_file = kits._write_file
    with monkeypatch.context() as patched:

        def killed(path, text):
            write_file(path, text)
            if path == copied[1] / "devices/three/device.pub":
                raise KeyboardInterrupt

        patched.setattr(kits, "_write_file", killed)
        with pytest.raises(KeyboardInterrupt):
            make_kit(*copied, update=True)
    found = make_kit(*copied, update=True)

    assert found["made"] == ([] if whose == "owner's" else ["devices/three/device.key"])
    assert found["notes"] == []


def test_a_new_version_leaves_one_wheel(copied, monkeypatch):
    """Also in the folder of a device that was away when the version changed; not in that of one that left."""
    (old,) = (path.name for path in (copied[1] / "server").glob("*.whl"))
    new = old.replace("fedmlic-", "fedmlic-9")
    copied[0].write_text(SMALL[: SMALL.rindex("[[devices]]")])
    write_file = kits._write_file
    with monkeypatch.context() as patched:  # an update to a version between them was killed

        def killed(path, text):
            write_file(path, text)
            if path == copied[1] / "devices/one/fedmlic-8.whl":
                raise KeyboardInterrupt

        patched.setattr(kits, "wheel_name", lambda: "fedmlic-8.whl")
        patched.setattr(kits, "_write_file", killed)
        with pytest.raises(KeyboardInterrupt):
            make_kit(*copied, update=True)
    assert (copied[1] / "devices/one/fedmlic-8.whl").exists()
    monkeypatch.setattr(kits, "wheel_name", lambda: new)
    found = make_kit(*copied, update=True)
    wheels = {name for name in contents(copied[1]) if name.endswith(".whl")}

    assert f"devices/one/{old}" in found["removed"]
    assert wheels == {f"server/{new}", f"devices/one/{new}", f"devices/two/{old}"}

    copied[0].write_text(SMALL)
    make_kit(*copied, update=True)
    assert {name for name in contents(copied[1]) if name.endswith(".whl")} == {
        f"{folder}/{new}" for folder in ("server", "devices/one", "devices/two")
    }


def test_letters_above_ffff_are_toml(tmp_path):
    make_kit(write(tmp_path, SMALL.replace('"dog"]', '"owl 🦉"]')), tmp_path / "kit")
    settings = tomllib.loads((tmp_path / "kit/server/run.toml").read_text(encoding="utf-8"))

    assert settings["label-names"] == "cat,owl 🦉"
    app = tomllib.loads((tmp_path / "kit/server/app/pyproject.toml").read_text(encoding="utf-8"))
    assert app["tool"]["flwr"]["app"]["config"]["label-names"] == "cat,owl 🦉"


def test_edited_files_and_another_federation_are_not_overwritten(copied):
    (copied[1] / "server/nginx.conf").write_text("mine")
    with pytest.raises(InputError, match=r"nginx\.conf: edited"):
        make_kit(*copied, update=True)
    copied[0].write_text(SMALL.replace('name = "study"', 'name = "another"'))
    with pytest.raises(InputError, match="got that of 'study'"):
        make_kit(*copied, update=True)

    assert (copied[1] / "server/nginx.conf").read_text() == "mine"


@pytest.mark.parametrize("gone", [("ca.key", "ca.crt"), ("ca.key",), ("ca.crt",)])
@pytest.mark.parametrize("how", ["update", "renew"])
def test_a_kit_whose_authority_is_elsewhere_is_an_error_and_stays_as_it_is(copied, gone, how):
    """Devices trust the ca.crt that they have: a new authority would lock all of them out."""
    for name in gone:
        (copied[1] / "authority" / name).unlink()
    before = contents(copied[1])

    with pytest.raises(InputError, match=f"got no {' and no '.join(gone)}. Put the folder .*authority back"):
        make_kit(*copied, **{how: True})
    assert contents(copied[1]) == before


def test_another_key_of_the_authority_is_an_error(copied):
    (copied[1] / "authority/ca.key").write_bytes(certificates.make_authority("study", 3650).private)

    with pytest.raises(InputError, match=r"the key of ca\.crt beside it, got another"):
        make_kit(*copied, renew=True)


@pytest.mark.parametrize("what", ["another authority's", "another key"])
def test_a_certificate_that_devices_would_refuse_is_made_anew(copied, what):
    names = certificates.names_of((copied[1] / "server/proxy.crt").read_bytes())
    ours = certificates.Pair(*((copied[1] / f"authority/ca.{end}").read_bytes() for end in ("key", "crt")))
    authority = certificates.make_authority("study", 3650) if what == "another authority's" else ours
    pair = certificates.make_certificate(authority, names, 365)
    (copied[1] / "server/proxy.key").write_bytes(pair.private)
    if what == "another authority's":
        (copied[1] / "server/proxy.crt").write_bytes(pair.public)
        manifest = read_manifest(copied[1])
        manifest["files"]["server/proxy.crt"] = hashlib.sha256(pair.public).hexdigest()
        (copied[1] / "kit.json").write_text(json.dumps(manifest))

    found = make_kit(*copied, update=True)

    assert found["made"] == ["server/proxy.key"]
    after = x509.load_pem_x509_certificate((copied[1] / "server/proxy.crt").read_bytes())
    after.verify_directly_issued_by(x509.load_pem_x509_certificate(ours.public))
    key = serialization.load_pem_private_key((copied[1] / "server/proxy.key").read_bytes(), None)
    assert key.public_key() == after.public_key()


@pytest.mark.parametrize(("days", "noted"), [(29, True), (31, False)])
def test_a_kept_certificate_that_ends_soon_is_noted(tmp_path, days, noted):
    description = write(tmp_path, SMALL.replace("image-size = 24", f"image-size = 24\ndays = {days}", 1))
    first = make_kit(description, tmp_path / "kit")
    found = make_kit(description, tmp_path / "kit", update=True)

    until = f"{dt.datetime.now(dt.UTC) + dt.timedelta(days=days):%Y-%m-%d}"
    expected = [
        f"server/{name}.crt is kept and ends on {until}. --renew makes a new one." for name in ("proxy", "superlink")
    ]
    assert first["notes"] == []
    assert found["notes"] == (expected if noted else [])


def test_an_authority_that_ends_soon_is_noted(tmp_path):
    text = SMALL.replace("image-size = 24", "image-size = 24\ndays = 9\nauthority-days = 9", 1)

    (note,) = make_kit(write(tmp_path, text), tmp_path / "kit")["notes"]
    assert note.startswith("authority/ca.crt ends on ")


def test_a_device_whose_owner_refuses_statistics_says_so_in_its_node_config(tmp_path):
    make_kit(write(tmp_path, SMALL + "allow-statistics = false\n"), tmp_path / "kit")
    nodes = [tomllib.loads((tmp_path / f"kit/devices/{name}/node.toml").read_text()) for name in ("one", "two")]

    assert [node.get("allow-statistics") for node in nodes] == [None, False]


def test_a_device_that_allows_files_says_so_in_its_node_config(tmp_path):
    make_kit(write(tmp_path, SMALL + 'allow-files = "/srv/weights"\n'), tmp_path / "kit")
    nodes = [tomllib.loads((tmp_path / f"kit/devices/{name}/node.toml").read_text()) for name in ("one", "two")]

    assert [node.get("allow-files") for node in nodes] == [None, "/srv/weights"]


# --- federation.toml -----------------------------------------------------------------------


def test_the_example_names_every_key():
    text = EXAMPLE.read_text(encoding="utf-8")
    tables = {"": Deployment, "[server]": Server, "[[devices]]": Device}
    for heading, table in tables.items():
        part = text[text.index(heading) :] if heading else text
        for name in set(table.model_fields) - {"server", "devices", "run"}:
            key = re.escape(name.replace("_", "-"))
            assert re.search(rf"^(# )?{key} += ", part, re.MULTILINE), key


def test_the_example_is_right():
    found = read_deployment(EXAMPLE)

    assert found.names == ["eye-clinic", "university", "practice"]
    assert found.server.address == "fed.example.org:8443"


WRONG = {
    "no TOML": ("= =", "", "to be TOML"),
    "unknown key": ('name = "study"', 'name = "study"\nnmae = 1', "nmae"),
    "scheme": ('"fed.example.org"', '"https://fed.example.org:8443"', "without scheme and port"),
    "bad address": ('"192.0.2.10"', '"192.0.2.300"', "IP addresses"),
    "no names": ('["fed.example.org", "192.0.2.10", "2001:db8::1"]', "[]", "server.names"),
    "capital": ('name = "one"', 'name = "One Clinic"', "small letters"),
    "path in a name": ('name = "one"', 'name = "../one"', "small letters"),
    "twice": ('name = "two"', 'name = "one"', "name of its own, got 'one' twice"),
    "client twice": ('name = "two"', 'name = "two"\nclient = 0', "client of its own, got '0' twice"),
    "label": ('"dog"]', '"dog, big"]', "without commas"),
    "label twice": ('"dog"]', '"cat"]', "every label once"),
    "image size": ("'/data/b', image_size=24", "'/data/b', image_size=32", "two to have image-size 24"),
    "image size by default": ("'/data/b', image_size=24", "'/data/b'", "image-size 24, got image_size=128 by default"),
    "image size as a list": (
        "folder(root='/data/b', image_size=24)",
        "my.mod.data(image_size=[24, 24])",
        "two to have image-size 24, got image_size=[24, 24]. Write image_size=24",
    ),
    "channels": ("'/data/b', image_size=24", "'/data/b', image_size=24, channels=1", "to have channels 3"),
    "name of a data set": ("folder(root='/data/b'", "foldr(root='/data/b'", "data of two: Expected dataset to name"),
    "data": ("folder(root='/data/b', image_size=24)", "rm -rf", "data of two"),
    "injection": ("'/data/b'", "'/data/\\nUser=root'", "line breaks"),
    "port": ('"2001:db8::1"]', '"2001:db8::1"]\nport = 70000', "server.port"),
    "ports": ('"2001:db8::1"]', '"2001:db8::1"]\nport = 9091', "to differ"),
    "days": ("image-size = 24", "image-size = 24\ndays = 400\nauthority-days = 300", "at most authority-days"),
    "run": ("[server]", "[run]\nnum-rounds = -1\n[server]", "num-rounds"),
    "run key": ("[server]", "[run]\nnum-runds = 1\n[server]", "num-rounds"),
    "own run": ("[server]", "[run]\nlabel-names = 'cat'\n[server]", "label-names, which follows from the rest"),
    "own run, underscore": ("[server]", "[run]\nlabel_names = 'cat'\n[server]", "[run] without label-names"),
    "nodes": ("[server]", "[run]\nnode-ids = '0=1'\n[server]", "node-ids, which is known once keys are registered"),
    "hosts": ("[server]", "[run]\nmin-hosts = 3\n[server]", "min-hosts to be at most the number of devices (2), got 3"),
    "no hosts": ("[server]", "[run]\nmin-hosts = 0\n[server]", "min-hosts"),
    "run of nothing": ("[server]", "run-of = 'nowhere'\n[server]", "nowhere to be the folder of a run"),
    "run of a number": ("[server]", "run-of = 3\n[server]", "run-of"),
    "quotes": ("[server]", "[run]\nmethod = 'x(a=\"b\")'\n[server]", "run.method without double quotes"),
    "memory": ('name = "two"', 'name = "two"\nmemory = "lots"', "memory"),
    "key": ('name = "two"', 'name = "two"\npublic-key = "nowhere.pub"', "public key of two"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_description_is_an_error_that_names_it(tmp_path, case):
    old, new, reason = WRONG[case]
    text = SMALL.replace(old, new, 1) if new else old

    assert text != SMALL
    with pytest.raises(InputError, match=re.escape(reason)):
        make_kit(write(tmp_path, text), tmp_path / "kit")
    assert not (tmp_path / "kit").exists()


def test_no_file_at_all(tmp_path):
    with pytest.raises(InputError, match=r"docs/examples/federation\.toml"):
        read_deployment(tmp_path / "nowhere.toml")


def test_the_command_prints_json_and_ends_with_2(tmp_path):
    from typer.testing import CliRunner

    from sim.command import app

    description = write(tmp_path, SMALL)
    first = CliRunner().invoke(app, ["kit", str(description), "--out", str(tmp_path / "kit"), "--json"])
    second = CliRunner().invoke(app, ["kit", str(description), "--out", str(tmp_path / "kit")])

    assert json.loads(first.stdout)["devices"] == ["one", "two"]
    assert second.exit_code == 2
    assert "--update" in second.output
