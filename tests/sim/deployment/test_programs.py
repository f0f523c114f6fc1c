"""The kit's programs for root, with stand-ins for what changes a system, below a folder."""

import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

from sim.deployment.kit import make_kit

DESCRIPTION = """
name = "study"
label-names = ["cat", "dog"]
image-size = 24
[server]
names = ["fed.example.org"]
[[devices]]
name = "one"
client = 3
data = "folder(root='/data/a', image_size=24)"
allow-files = "/srv/weights"
"""

STANDS_IN = {
    "id": "echo 0",
    "getent": "exit 0",
    "systemctl": "exit 0",
    "setpriv": 'shift 5; echo "$@" >>"$ROOT/as-server"; exec "$@"',
    "install": """
folder=
while [ "${1#-}" != "$1" ]; do
    case "$1" in -d) folder=1; shift ;; *) shift 2 ;; esac
done
[ -z "$folder" ] || { mkdir -p "$@"; exit; }
for last; do :; done
cp "$@" """,
}

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the programs are for Linux")


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kit")
    (folder / "federation.toml").write_text(DESCRIPTION)
    make_kit(folder / "federation.toml", folder / "kit")
    return folder / "kit"


@pytest.fixture
def played(tmp_path, kit):
    """A function: runs a program of the kit as if ``tmp_path / "root"`` were the system's."""
    root, programs = tmp_path / "root", tmp_path / "programs"
    for folder in ("etc", "opt/fedmlic/bin", "usr/local/bin", "var/lib/fedmlic-server"):
        (root / folder).mkdir(parents=True)
    (root / "opt/fedmlic/bin/python").symlink_to(sys.executable)
    (root / "opt/fedmlic/bin/fedmlic").write_text("#!/bin/sh\n")
    (root / "opt/fedmlic/bin/fedmlic").chmod(0o700)
    programs.mkdir()
    for name, text in STANDS_IN.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o700)

    def play(path, *arguments, cwd, **environment):
        text = (kit / path).read_text()
        for place in ("/etc/", "/opt/", "/var/lib/", "/usr/local/"):
            text = text.replace(place, f"{root}{place}")
        program = Path(cwd) / Path(path).name
        program.write_text(text)
        return subprocess.run(
            ["/bin/sh", program, *arguments],
            cwd=cwd,
            env={"PATH": f"{programs}:{os.environ['PATH']}", "ROOT": str(root), "KEEP_ENVIRONMENT": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return play


@pytest.fixture
def device(tmp_path, kit):
    """A folder as the device's owner gets it."""
    folder = tmp_path / "one"
    folder.mkdir()
    for path in (kit / "devices/one").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_an_update_keeps_what_the_owner_wrote_into_the_node_config(played, device, tmp_path):
    def install(**environment):
        return played("devices/one/install.sh", cwd=device, **environment)

    installed = tmp_path / "root/etc/fedmlic-device/node.toml"
    first = install()
    assert first.returncode == 0, first.stderr
    assert installed.read_text() == (device / "node.toml").read_text()

    mine = installed.read_text() + 'allow-statistics = false\naudit-log = "/var/log/fedmlic/audit.jsonl"\n'
    installed.write_text(mine.replace('allow-files = "/srv/weights"\n', ""))
    before = {path: path.read_bytes() for path in installed.parent.iterdir()}
    refused = install()

    assert refused.returncode == 2
    assert '- allow-statistics = false\n- audit-log = "/var/log/fedmlic/audit.jsonl"\n' in refused.stderr
    assert '+ allow-files = "/srv/weights"\n' in refused.stderr
    assert {path: path.read_bytes() for path in installed.parent.iterdir()} == before

    (device / "node.toml").write_text(mine)
    assert install(REPLACE_NODE="1").returncode == 0
    assert installed.read_text() == mine


def test_another_digest_alone_is_an_update(played, device, tmp_path):
    assert played("devices/one/install.sh", cwd=device).returncode == 0
    node = device / "node.toml"
    lines = [line for line in node.read_text().splitlines() if not line.startswith("code-digest")]
    node.write_text("\n".join([*lines, 'code-digest = "0123"']) + "\n")

    assert played("devices/one/install.sh", cwd=device).returncode == 0
    assert 'code-digest = "0123"' in (tmp_path / "root/etc/fedmlic-device/node.toml").read_text()


@pytest.mark.parametrize("sign", ["-", "+"])
def test_a_digest_that_goes_or_comes_is_no_update(played, device, tmp_path, sign):
    """Without it, the device runs whatever code is sent."""
    assert played("devices/one/install.sh", cwd=device).returncode == 0
    installed = tmp_path / "root/etc/fedmlic-device/node.toml"
    without = (device / "node.toml") if sign == "-" else installed
    lines = without.read_text().splitlines(keepends=True)
    (pin,) = (line for line in lines if line.startswith("code-digest"))
    without.write_text("".join(line for line in lines if line != pin))
    before = installed.read_bytes()
    done = played("devices/one/install.sh", cwd=device)

    assert done.returncode == 2
    assert f"\n{sign} {pin}" in done.stderr
    assert installed.read_bytes() == before


def test_an_update_keeps_the_limits_that_the_owner_wrote_into_the_unit(played, device, tmp_path):
    system = tmp_path / "root/etc/systemd/system"
    system.mkdir(parents=True)
    assert played("devices/one/install.sh", cwd=device).returncode == 0
    unit, kits = system / "fedmlic-device.service", (device / "fedmlic-device.service").read_text()
    assert unit.read_text() == kits
    mine = kits.replace("# IPAddressDeny=any", "IPAddressDeny=any").replace("UMask=0077", "UMask=0077\nMemoryMax=2G")
    unit.write_text(mine.replace("ProtectHome=yes", "ProtectHome=tmpfs"))
    before = {path: path.read_bytes() for path in (tmp_path / "root/etc").rglob("*") if path.is_file()}
    (device / "device.pub").write_text("of another key")
    refused = played("devices/one/install.sh", cwd=device)

    assert refused.returncode == 2
    assert "without:\n- MemoryMax=2G\n- ProtectHome=tmpfs\n- IPAddressDeny=any\nNothing" in refused.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "root/etc").rglob("*") if path.is_file()} == before

    assert played("devices/one/install.sh", cwd=device, REPLACE_UNIT="1").returncode == 0
    assert unit.read_text() == kits


def test_another_address_of_the_server_is_an_update_of_the_unit(played, device, tmp_path):
    system = tmp_path / "root/etc/systemd/system"
    system.mkdir(parents=True)
    assert played("devices/one/install.sh", cwd=device).returncode == 0
    text = (device / "fedmlic-device.service").read_text()
    moved = text.replace("fed.example.org", "moved.example.org").replace("OMP_NUM_THREADS=1", "OMP_NUM_THREADS=2")
    (device / "fedmlic-device.service").write_text(moved.replace("video render", "video"))
    done = played("devices/one/install.sh", cwd=device)

    assert done.returncode == 0, done.stderr
    assert "moved.example.org" in (system / "fedmlic-device.service").read_text()


@pytest.mark.parametrize("where", ["relative", "absolute"])
def test_the_backup_lies_where_the_caller_says_and_the_servers_user_writes_below_its_own_folder(
    played, tmp_path, where
):
    state, caller = tmp_path / "root/var/lib/fedmlic-server", tmp_path / "caller"
    caller.mkdir()
    with sqlite3.connect(state / "superlink.db") as database:
        database.execute("create table node (name text)")
        database.execute("insert into node values ('one')")
    database.close()

    target = "copy.db" if where == "relative" else str(caller / "copy.db")
    done = played("server/fedmlic-admin", "backup", target, cwd=caller)

    assert done.returncode == 0, done.stderr
    with sqlite3.connect(caller / "copy.db") as found:
        assert found.execute("select name from node").fetchall() == [("one",)]
    found.close()
    assert (caller / "copy.db").stat().st_mode & 0o077 == 0
    asked = (tmp_path / "root/as-server").read_text()
    assert "copy.db" not in asked
    assert not (state / "backup.db").exists()


@pytest.mark.parametrize(
    ("target", "mv", "told"),
    [
        ("folder", "", "got the folder folder. Name a file in it"),
        ("folder/", "", "got the folder folder/. Name a file in it"),
        ("nowhere/copy.db", "", "nowhere/copy.db.part"),
        ("copy.db", "echo no space left >&2; exit 1", "no space left"),
    ],
)
def test_a_backup_that_fails_leaves_no_copy_of_the_database(played, tmp_path, target, mv, told):
    state, caller = tmp_path / "root/var/lib/fedmlic-server", tmp_path / "caller"
    (caller / "folder").mkdir(parents=True)
    with sqlite3.connect(state / "superlink.db") as database:
        database.execute("create table node (name text)")
    database.close()
    if mv:
        (tmp_path / "programs/mv").write_text(f"#!/bin/sh\n{mv}\n")
        (tmp_path / "programs/mv").chmod(0o700)
    done = played("server/fedmlic-admin", "backup", target, cwd=caller)

    assert done.returncode != 0
    assert told in done.stderr
    assert {path.name for path in caller.rglob("*")} == {"folder", "fedmlic-admin"}
    assert not (state / "backup.db").exists()


def test_a_backup_without_a_database_or_a_place_makes_none(played, tmp_path):
    for arguments, told in (((), "Say where to"), (("copy.db",), "no SuperLink has run here")):
        done = played("server/fedmlic-admin", "backup", *arguments, cwd=tmp_path)

        assert done.returncode == 2
        assert told in done.stderr
    assert not (tmp_path / "copy.db").exists()
    assert not (tmp_path / "root/var/lib/fedmlic-server/superlink.db").exists()


def test_a_devices_program_runs_as_the_service_does(played, device, tmp_path):
    root = tmp_path / "root"
    assert played("devices/one/install.sh", cwd=device).returncode == 0
    assert (root / "usr/local/bin/fedmlic-device").exists()
    assert (root / "etc/fedmlic-device/run.toml").read_text() == (device / "run.toml").read_text()
    told = '#!/bin/sh\necho "$@"; echo "$HOME $FEDMLIC_HOME $OMP_NUM_THREADS"; pwd\n'
    (root / "opt/fedmlic/bin/fedmlic").write_text(told)
    state = f"{root}/var/lib/fedmlic-device"
    around = [f"{state} {state}/fedmlic 1", f"{state}/empty"]

    looked = played("devices/one/fedmlic-device", "doctor", "--link-mbit", "10", cwd=device)
    other = played("devices/one/fedmlic-device", "data", "check", cwd=device)
    nothing = played("devices/one/fedmlic-device", cwd=device)

    assert looked.stdout.splitlines() == [f"doctor {root}/etc/fedmlic-device --link-mbit 10", *around], looked.stderr
    assert other.stdout.splitlines() == ["data check", *around]
    assert (root / "as-server").read_text().count("env PATH=") == 2
    assert nothing.returncode == 2
    assert "fedmlic-device doctor" in nothing.stdout


@pytest.mark.parametrize(
    ("there", "asked"),
    [("video render", "--groups=video,render"), ("render", "--groups=render"), ("", "--clear-groups")],
)
def test_a_devices_program_has_the_groups_of_the_service(played, device, tmp_path, there, asked):
    assert played("devices/one/install.sh", cwd=device).returncode == 0
    programs = tmp_path / "programs"
    (programs / "getent").write_text(f'#!/bin/sh\ncase " {there} " in *" $2 "*) ;; *) exit 2 ;; esac\n')
    (programs / "setpriv").write_text('#!/bin/sh\necho "$5"\n')

    assert played("devices/one/fedmlic-device", "doctor", cwd=device).stdout == f"{asked}\n"


@pytest.fixture
def operator(played, kit, tmp_path):
    """A function: plays fedmlic-admin on an installed server, with Flower's and our command as stand-ins."""
    root, folder = tmp_path / "root", tmp_path / "server"
    shutil.copytree(kit / "server", folder)
    done = played("server/install.sh", cwd=folder, NGINX="/bin/sh")
    assert done.returncode == 0, done.stderr
    for name in ("flwr", "fedmlic"):
        program = root / "opt/fedmlic/bin" / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@"\n')
        program.chmod(0o700)
    return lambda *arguments: played("server/fedmlic-admin", *arguments, cwd=folder)


def test_nodes_are_shown_with_their_names_and_what_a_run_saw(operator, tmp_path):
    state = tmp_path / "root/var/lib/fedmlic-server"
    assert operator("nodes").stdout.splitlines() == ["fedmlic", "nodes", "study"]

    (state / "nodes.txt").write_text("17 one\n")
    found = operator("nodes", "--run", "/runs/first").stdout.splitlines()
    assert found == ["fedmlic", "nodes", "study", "--names", f"{state}/nodes.txt", "--run", "/runs/first"]


def test_a_run_binds_clients_to_the_nodes_that_were_registered_last(operator, tmp_path):
    def settings(*arguments):
        done = operator("run", *arguments)
        assert done.returncode == 0, done.stderr
        words = done.stdout.splitlines()
        return parse_config_args([text for option, text in itertools.pairwise(words) if option == "--run-config"])

    nodes = tmp_path / "root/var/lib/fedmlic-server/nodes.txt"
    refused = operator("run", "--bind")
    assert refused.returncode != 0
    assert refused.stdout == ""
    assert "got none for one" in refused.stderr

    nodes.write_text("17 one\n18 gone\n19 one\n")
    assert settings("--bind", "num-rounds=9 out='/x'")["node-ids"] == "3=19"
    assert settings("--bind", "num-rounds=9 out='/x'")["num-rounds"] == 9
    assert settings("--bind")["out"].endswith("/runs/first")
    assert "node-ids" not in settings("num-rounds=9 out='/x'")


@pytest.mark.usefixtures("operator")
def test_the_key_of_a_device_that_left_leaves_the_server(played, tmp_path):
    keys = tmp_path / "root/etc/fedmlic-server/devices"
    (keys / "gone.pub").write_text("ecdsa-sha2-nistp384 AAAA\n")

    assert played("server/install.sh", cwd=tmp_path / "server", NGINX="/bin/sh").returncode == 0
    assert [path.name for path in keys.iterdir()] == ["one.pub"]
