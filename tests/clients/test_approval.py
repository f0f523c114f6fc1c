"""Code that a device's owner approved: the digest, the app that is looked into, and the SuperNode that looks."""

import hashlib
import io
import subprocess
import sys
import tracemalloc
import types
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.cli.build import build_fab_from_disk

from clients import app as client_app
from clients import approval, supernode
from fedmlic.errors import InputError
from sim.engines.flower import stage_app

ROOT = Path(approval.__file__).parents[1]


@pytest.fixture(scope="module")
def digest():
    return approval.digest_of(approval.own_code())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of the app of a run, by name."""
    folder = stage_app(tmp_path_factory.mktemp("app") / "app", {"seed": 3})
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".typed"
    }


def packed(files, twice=None):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        if twice:
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr(twice, b"import os\n")
    return target.getvalue()


def test_the_digest_is_what_sha256sum_says(digest):
    """The owner needs none of our programs to compute it."""
    command = "find clients fedmlic strategies -name '*.py' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    printed = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert printed.split()[0] == digest


def test_the_digest_of_two_files_by_hand():
    lines = hashlib.sha256(b"x").hexdigest() + "  a.py\n" + hashlib.sha256(b"y").hexdigest() + "  b.py\n"

    assert approval.digest_of({"b.py": b"y", "a.py": b"x"}) == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # in the build of flwr
def test_flowers_own_bundle_is_accepted_and_its_settings_do_not_matter(tmp_path, digest):
    """What ``flwr build`` makes, which is what ``flwr run`` sends."""
    found = [build_fab_from_disk(stage_app(tmp_path / f"app{seed}", {"seed": seed})) for seed in (1, 2)]

    assert found[0] != found[1]
    assert [approval.problem_of(each, digest) for each in found] == ["", ""]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("clients/app.py", b"import os\n", "digest"),
        ("clients/extra.py", b"", "digest"),
        ("sitecustomize.py", b"", "this project's packages only"),
        ("numpy/__init__.py", b"", "this project's packages only"),
        ("clients/../evil.py", b"", "this project's packages only"),
        ("/etc/evil.py", b"", "this project's packages only"),
        ("clients/evil.so", b"", "this project's packages only"),
        ("clients/app.pth", b"", "this project's packages only"),
        ("clients/a\nb.py", b"", "this project's packages only"),
        ("clients/\uff41pp.py", b"", "this project's packages only"),
        ("pyproject.toml", b"[tool.flwr.app.components]\nserverapp='x:y'\nclientapp='os:system'", "to start"),
        ("pyproject.toml", b"[tool.flwr.app.components]\nserverapp='strategies.app:app'\n", "to start"),
        ("pyproject.toml", b"\xff", "bundle of Flower"),
        ("pyproject.toml", b"[tool]", "bundle of Flower"),
    ],
)  # fmt: skip
def test_an_app_with_anything_else_is_refused(files, digest, name, text, reason):
    assert approval.problem_of(packed(files), digest) == ""
    assert reason in approval.problem_of(packed({**files, name: text}), digest)


def test_an_app_without_a_file_with_one_twice_or_that_is_none_is_refused(files, digest):
    rest = {name: text for name, text in files.items() if name != "fedmlic/wire.py"}

    assert "digest" in approval.problem_of(packed(rest), digest)
    assert "twice" in approval.problem_of(packed(files, twice="clients/app.py"), digest)
    assert "bundle of Flower" in approval.problem_of(b"no zip", digest)
    assert "bundle of Flower" in approval.problem_of(packed(files)[:-40], digest)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_of_an_app_is_a_reason_whatever_it_is_packed_with(files, digest, method):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    whole = target.getvalue()
    found = [approval.problem_of(whole[:at] + bytes(40) + whole[at + 40 :], digest) for at in range(60, 4000, 97)]

    plain = method in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
    assert ("packed by method" in approval.problem_of(whole, digest)) is not plain
    assert (approval.problem_of(whole, digest) == "") is plain
    assert all("bundle of Flower" in each or "packages only" in each for each in found)
    assert any("bundle of Flower" in each for each in found)


def test_an_app_that_unpacks_to_more_than_it_says_takes_no_memory(files, digest):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in {**files, "README.md": bytes(200_000_000)}.items():
            archive.writestr(name, text)
    lying = target.getvalue().replace((200_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    tracemalloc.start()
    try:
        found = approval.problem_of(lying, digest)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert len(lying) < 10_000_000
    assert "bundle of Flower, got BadZipFile" in found
    assert peak < 30_000_000


@pytest.mark.parametrize("value", ["", "ab", "A" * 64, 5, None, "0" * 63 + "g"])
def test_a_digest_is_64_hexadecimal_digits(value):
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        approval.check_digest(value)


def test_the_client_app_refuses_before_it_opens_data(monkeypatch, digest):
    opened = []
    monkeypatch.setattr(client_app, "open_node", lambda *_: opened.append(1))
    monkeypatch.setattr(client_app, "_nodes", {})

    def context(value):
        node = {"data": "folder(root='/nowhere')", "client": 0, "code-digest": value}
        return Context(run_id=1, node_id=2, node_config=node, state=RecordDict(), run_config={}, series_id=0)

    with pytest.raises(InputError, match="owner approved"):
        client_app.node_of(context("0" * 64))
    assert not opened
    with pytest.raises(AttributeError):  # None has no host: it was opened
        client_app.node_of(context(digest))
    assert opened


# --- the SuperNode -----------------------------------------------------------------------


class App:
    """As Flower's Fab."""

    def __init__(self, hash_str, content, verifications):
        self.hash_str, self.content, self.verifications = hash_str, content, verifications


@pytest.fixture
def flower():
    """Flower's two modules as far as they are used, and what they were called with."""
    calls = {}

    @contextmanager
    def connect(*_arguments, **_options):
        yield (1, 2, 3, 4, lambda name, _run: App(name, b"content", {}), 6)

    command = types.SimpleNamespace(start_client_internal=lambda **options: calls.update(options))
    loop = types.SimpleNamespace(http_request_response=connect, _verify_fab=lambda *_: True)
    supernode.pin(command, loop)
    return command, loop, calls


def test_a_supernode_trusts_the_digest_of_its_node_config_only(flower, files, digest):
    command, loop, calls = flower
    command.start_client_internal(node_config={"code-digest": digest}, trusted_entities=None)
    trusted = calls["trusted_entities"]

    assert loop._verify_fab(App("x", packed(files), {}), trusted) is True
    assert loop._verify_fab(App("x", packed({**files, "clients/app.py": b""}), {}), trusted) is False
    with loop.http_request_response() as parts:
        assert parts[:4] == (1, 2, 3, 4)
        assert parts[4]("hash", 7).verifications["valid_license"]
        assert parts[5:] == (6,)


def test_a_supernode_does_not_start_without_a_digest(flower):
    command, _, calls = flower

    with pytest.raises(InputError, match="code-digest"):
        command.start_client_internal(node_config={}, trusted_entities=None)
    with pytest.raises(InputError, match="either"):
        command.start_client_internal(node_config={"code-digest": "0" * 64}, trusted_entities={"a": "b"})
    assert not calls


def test_flower_has_what_is_replaced():
    """Where Flower gets, checks and stores an app: in this order, and nowhere else."""
    import importlib
    import inspect

    loop = importlib.import_module("flwr.supernode.start_client_internal")
    command = importlib.import_module("flwr.supernode.cli.flower_supernode")
    source = inspect.getsource(loop._pull_and_store_message)
    order = [source.index(text) for text in ("get_fab(", "_verify_fab(fab", "get_fused_config_from_fab(", "store_fab(")]

    assert order == sorted(order)
    assert source.count("store_fab(") == 1
    assert "trusted_entities" in inspect.signature(loop.start_client_internal).parameters
    assert command.start_client_internal is loop.start_client_internal
    assert list(inspect.signature(loop._verify_fab).parameters) == ["fab", "trusted_entities"]
    assert "with http_request_response(" in inspect.getsource(loop._init_connection)
    names = "node_id,receive,send,get_run,get_fab,pull_object,push_object,confirm_message_received"
    assert names in inspect.getsource(loop.start_client_internal).replace(" ", "").replace("\n", "")


def test_another_version_of_flower_is_refused(monkeypatch):
    monkeypatch.setattr(supernode, "version", lambda _: "1.43.0")

    with pytest.raises(InputError, match=r"Expected Flower 1\.42"):
        supernode.run_supernode()


def test_the_supernode_does_not_load_torch():
    """It stays beside the process that trains, on machines with little memory."""
    code = "import sys, clients.supernode, sim.command; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
