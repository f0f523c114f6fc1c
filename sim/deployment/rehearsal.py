"""A kit played on one machine before anybody installs it.

Real SuperLink, proxy and SuperNodes with the kit's own certificates, keys, services and app, over loopback. Images
are made up, and network and method are small: what is tried is the deployment, not the learning. Every step says
what an operator would see, and whether it is as it should be.
"""

from __future__ import annotations

import json
import re
import shutil
import ssl
import stat
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fedmlic.errors import InputError
from fedmlic.record import open_run, read_json
from sim.deployment import certificates, intruder
from sim.deployment.kit import PENDING, SECRET, is_secret, read_manifest
from sim.deployment.loopback import Stage, nginx
from sim.engines.endings import OWNER, Watcher, own, remove_left
from sim.toml import toml_value

MOST_DEVICES: Final = 3
MOST_KEY_BYTES: Final = 1 << 16
"""A larger file is no private key."""

RUN_S: Final = 900.0
"""Longest wait for a run, on a machine that is busy."""

TURN_S: Final = 120.0
REJOIN_S: Final = 300.0
RESTART_S: Final = 10.0
"""Between two tries of a service, where systemd would wait RestartSec."""

IMAGE_SIZE: Final = 24
NUM_IMAGES: Final = 24

_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")

Tell = Callable[[str, str], None]
Verdict = tuple[bool | None, list[str]]
"""Whether a step went as it should (``None``: it was left out), and what was seen."""


@dataclass
class Rehearsal:
    """One rehearsal.

    Attributes:
        stage: the copy of the kit.
        source: the kit.
        rounds: of each run.
        settings: of the kit's first run.
        steps: what was done: ``step``, ``ok``, ``seen``, ``seconds``.
    """

    stage: Stage
    source: Path
    rounds: int
    settings: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the federation."""
        return str(self.stage.kit["name"])


def rehearse(source: Path, *, proxy: bool, rounds: int, keep: bool, tell: Tell) -> dict[str, Any]:
    """Play a kit.

    Args:
        source: the kit's folder; it is only read.
        proxy: whether nginx is part of it.
        rounds: of each run.
        keep: keep the folder with all logs; private keys in it are deleted all the same.
        tell: hears of every line, with its colour.

    Returns:
        ``ok``, ``seconds``, ``steps`` and, with ``keep``, the ``folder``.

    Raises:
        InputError: no kit, or no nginx.
    """
    manifest = read_manifest(source)
    if PENDING in manifest:
        msg = (
            f"Expected a whole kit in {source}, got one whose update was interrupted. Run 'fedmlic kit --update' again."
        )
        raise InputError(msg)
    if proxy:
        nginx()
    begun = time.monotonic()
    with _stage(manifest, source, proxy=proxy, keep=keep) as stage:
        settings = tomllib.loads((source / "server" / "run.toml").read_text(encoding="utf-8"))
        here = Rehearsal(stage, source, rounds, settings)
        for title, step in STEPS:
            _play(here, title, step, tell)
            if here.steps[-1]["ok"] is False and step in NEEDED:
                tell("The rest needs this step, and was left out.", "red")
                break
        _play(here, "Everything is ended", _end, tell)
    steps = here.steps
    failed = [each["step"] for each in steps if each["ok"] is False]
    seconds = time.monotonic() - begun
    done = sum(each["ok"] is True for each in steps)
    tell(
        f"{done} of {len(steps)} steps as they should be, {len(failed)} not, in {seconds:.0f} s.",
        "red" if failed else "green",
    )
    if keep:
        tell(f"Logs, states and runs, without private keys: {stage.folder}", "")
    return {"ok": not failed, "seconds": seconds, "steps": steps, **({"folder": str(stage.folder)} if keep else {})}


@contextmanager
def _stage(manifest: dict[str, Any], source: Path, *, proxy: bool, keep: bool) -> Iterator[Stage]:
    """A folder with a copy of the kit; everything that was started there is ended, whatever happens.

    Where this process is killed, a watcher ends the services and removes the folder, which has the kit's private keys.
    """
    kit = read_json(source / "server" / "kit.json")
    remove_left()
    folder = Path(tempfile.mkdtemp(prefix="fedmlic-")).resolve()
    own(folder)
    stage = Stage(folder, kit, list(manifest["devices"])[:MOST_DEVICES], proxy)
    watcher = Watcher(stage.mark, folder)
    try:
        stage.copy_kit(source)
        yield stage
    finally:
        stage.close()
        if keep:
            _delete_keys(folder)
            (folder / OWNER).unlink(missing_ok=True)  # with it, a later run would take the folder for a killed one's
        else:
            shutil.rmtree(folder, ignore_errors=True)
        watcher.close()


def _delete_keys(folder: Path) -> None:
    """Delete the copies of the kit's private keys, and those that were made for the rehearsal."""
    for path in folder.rglob("*"):
        if path.is_file() and (is_secret(path.name) or _holds_key(path)):
            path.unlink()


def _holds_key(path: Path) -> bool:
    small = path.stat().st_size <= MOST_KEY_BYTES
    return small and re.search(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\r?\n", path.read_bytes()) is not None


def _play(here: Rehearsal, title: str, step: Callable[[Rehearsal], Verdict], tell: Tell) -> None:
    begun = time.monotonic()
    tell(f"{len(here.steps) + 1}. {title}", "bold")
    try:
        ok, seen = step(here)
    except (OSError, RuntimeError, subprocess.SubprocessError, InputError, KeyError, ValueError) as error:
        ok, seen = False, [f"{type(error).__name__}: {error}"]
    seconds = time.monotonic() - begun
    here.steps.append({"step": title, "ok": ok, "seen": seen, "seconds": round(seconds, 1)})
    for line in seen:
        tell(f"   {line}", "")
    word, style = {
        True: ("as it should be", "green"),
        False: ("NOT AS IT SHOULD BE", "red"),
        None: ("left out", "yellow"),
    }[ok]
    tell(f"   -> {word} ({seconds:.0f} s)", style)


# --- files ------------------------------------------------------------------------------


def _files(here: Rehearsal) -> Verdict:
    """Nothing secret of one receiver lies in another's folder, and secrets are readable for their owner only."""
    secrets = {p: p.read_bytes() for p in sorted(here.source.rglob("*")) if p.is_file() and is_secret(p.name)}
    values = {path: certificates.private_value(text) for path, text in secrets.items()}
    problems = [f"{path} is readable for others" for path in secrets if stat.S_IMODE(path.stat().st_mode) & 0o077]
    for path in sorted(here.source.rglob("*")):
        if path.is_file() and path not in secrets:
            text = path.read_bytes()
            problems += [
                f"{path} holds what {secret} keeps"
                for secret, value in values.items()
                if certificates.holds(text, value)
            ]
            problems += [f"{path} holds a private key"] if b"PRIVATE KEY-----" in text and path.suffix != ".whl" else []
    places = sorted(str(path.relative_to(here.source)) for path in secrets)
    expected = {"authority": {"ca.key"}, "server": {"proxy.key", "superlink.key"}}
    for path in secrets:
        receiver = path.relative_to(here.source).parts[0]
        if path.name not in expected.get(receiver, {"device.key"}) or path.name not in SECRET:
            problems.append(f"{path} does not belong there")
    owners = [name for name in here.stage.devices if not (here.source / "devices" / name / "device.key").exists()]
    seen = [f"secret files: {', '.join(places)}"]
    seen += (
        [f"{', '.join(owners)}: the private key is at the owner's; one made for this rehearsal plays it"]
        if owners
        else []
    )
    return not problems, [*seen, *problems]


def _certificates(here: Rehearsal) -> Verdict:
    seen, good = [], True
    for name in ("proxy", "superlink"):
        certificate = (here.source / "server" / f"{name}.crt").read_bytes()
        expires = certificates.expiry(certificate)
        left = (expires.timestamp() - time.time()) / 86400
        good &= left > 14
        seen.append(
            f"{name}.crt: {', '.join(certificates.names_of(certificate))}; until {expires:%Y-%m-%d} ({left:.0f} days)"
        )
    return good, seen


# --- services ---------------------------------------------------------------------------


def _start_server(here: Rehearsal) -> Verdict:
    stage = here.stage
    stage.start_unit(stage.folder / "server" / "fedmlic-superlink.service", "superlink")
    up = stage.wait(stage.answers, 120.0, "superlink")
    seen = [f"SuperLink on 127.0.0.1:{stage.control_port}, TLS"] if up else _tail(stage, "superlink")
    if up and stage.proxy:
        stage.start_unit(stage.folder / "server" / "fedmlic-proxy.service", "proxy")
        up = stage.wait(lambda: intruder.post(stage.port, "/", stage.trust()).status == 404, 30.0, "proxy")
        seen += [f"proxy on 127.0.0.1:{stage.port}, TLS"] if up else _tail(stage, "proxy")
    return up, seen


def _names(here: Rehearsal) -> Verdict:
    """The certificate holds for every name by which devices come; for another, and without ca.crt, nobody connects."""
    names = here.stage.kit["server"]["names"]
    seen, good = [], True
    for name, should in (*((name, True) for name in names), ("elsewhere.example", False)):
        error = _handshake(here.stage.port, here.stage.trust(), name)
        good &= (error == "") is should
        seen.append(f"as {name}: {error or 'accepted'}")
    error = _handshake(here.stage.port, ssl.create_default_context(), "localhost")
    return good and error != "", [*seen, f"without ca.crt: {error or 'accepted'}"]


def _handshake(port: int, trust: ssl.SSLContext, name: str) -> str:
    import socket

    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            trust.wrap_socket(plain, server_hostname=name).close()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    return ""


# --- intruders --------------------------------------------------------------------------


def _stranger_asks(here: Rehearsal) -> Verdict:
    stage, trust = here.stage, here.stage.trust()
    direct = intruder.post(stage.control_port, "/v1/control/list-runs", trust).status
    seen = [f"on the server itself, 127.0.0.1:{stage.control_port} answers list-runs without a question: HTTP {direct}"]
    if not stage.proxy:
        return None, [*seen, "Without the proxy, so would everybody's."]
    before = len(stage.log("superlink"))
    answers = [intruder.post(stage.port, path, trust) for path in (*intruder.PATHS, *intruder.TRICKS)]
    wrong = [f"{each.path}: HTTP {each.status}" for each in answers if not 400 <= each.status < 500]
    passed = [line for line in stage.log("superlink")[before:].splitlines() if "/v1/" in line or "/docs" in line]
    counts = {code: sum(each.status == code for each in answers) for code in sorted({each.status for each in answers})}
    shown = ", ".join(f"{number} times HTTP {code}" for code, number in counts.items())
    seen.append(f"through the proxy, {len(answers)} paths and spellings: {shown}; {len(passed)} reached the SuperLink")
    return not wrong and not passed and direct == 200, [*seen, *wrong, *passed]


def _stranger_uses_flower(here: Rehearsal) -> Verdict:
    stage = here.stage
    if not stage.proxy:
        return None, ["no proxy"]
    key = stage.folder / "state" / "stranger.pub"
    key.write_bytes(certificates.make_device_key("stranger").public)
    seen, good = [], True
    outside = f"localhost:{stage.port}"
    app = str(stage.folder / "server" / "app")
    for command in (("ls",), ("run", app), ("supernode", "register", str(key)), ("supernode", "list")):
        done = stage.flwr(*command, "here", address=outside)
        good &= done.returncode != 0
        words = " ".join(command).replace(str(stage.folder), "...")
        said = done.stdout + done.stderr
        shown = _find(said, "Not Found") if "Not Found" in said else _last(said)
        seen.append(f"flwr {words}: exit code {done.returncode}, {shown.strip(' │')[:100]}")
    runs = json.loads(_json(stage.flwr("ls", "here", "--format", "json").stdout))["runs"]
    return good and not runs, [*seen, f"runs on the server: {len(runs)}"]


def _stranger_joins(here: Rehearsal) -> Verdict:
    """SuperNodes that nobody registered: one with a key of its own, one without; and a thief of a public key."""
    stage = here.stage
    key = stage.folder / "state" / "stranger.key"
    key.write_bytes(certificates.make_device_key("stranger").private)
    common = ["--superlink", f"localhost:{stage.port}", "--root-certificates", str(stage.folder / "server" / "ca.crt")]
    kinds = {"unknown-key": ["--auth-supernode-private-key", str(key)], "no-key": []}
    seen, good = [], True
    for name, options in kinds.items():
        home = stage.folder / "state" / name
        home.mkdir()
        program = str(Path(nodes_program()))
        stage.start(name, [program, *common, *options, "--port", str(_free())], home, {"FLWR_HOME": str(home)})
    for name in kinds:
        process = stage.running.pop(name)
        try:
            code: int | None = process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            code = None
        good &= code == 1 and "[code: 200" in stage.log(name)
        seen.append(f"SuperNode, {name.replace('-', ' ')}: exit code {code}; log: {_find(stage.log(name), '[code:')}")
    public = (stage.folder / "devices" / stage.devices[0] / "device.pub").read_bytes()
    stolen = intruder.impostor_headers(certificates.header_value(public))
    answer = intruder.post(stage.port, "/v1/fleet/pull-messages", stage.trust(), stolen)
    seen.append(f"the public key of {stage.devices[0]} without its private key: HTTP {answer.status}")
    return good and answer.status == 401, seen


def nodes_program() -> Path:
    """``flower-supernode`` of this environment."""
    import sys

    return Path(sys.executable).parent / "flower-supernode"


def _free() -> int:
    from sim.engines.flower import free_port

    return free_port()


# --- devices ----------------------------------------------------------------------------


def _start_devices(here: Rehearsal) -> Verdict:
    stage = here.stage
    labels = list(here.settings["label-names"].split(","))
    for place, name in enumerate(stage.devices):
        folder = stage.folder / "devices" / name
        _make_images(stage.folder / "images" / name, labels, place)
        _rewrite_node(stage, name)
        if not (folder / "device.key").exists():
            pair = certificates.make_device_key(name)
            (folder / "device.key").write_bytes(pair.private)
            (folder / "device.pub").write_bytes(pair.public)
            _replace_key(stage, name, pair.public)
        done = stage.flwr("supernode", "register", str(folder / "device.pub"), "here", "--name", name)
        node = re.search(r"SuperNode (\d+) registered", done.stdout + done.stderr)
        if done.returncode or node is None:
            return False, [f"flwr supernode register {name}: {_last(done.stdout + done.stderr)}"]
        stage.nodes[node[1]] = name
    if "proxy" in stage.running:
        import signal

        stage.running["proxy"].send_signal(signal.SIGHUP)
    for name in stage.devices:
        _start_device(stage, name)
    up = stage.wait(lambda: all("SuperNode ID:" in stage.log(name) for name in stage.devices), 180.0, *stage.devices)
    if not up:
        return False, [line for name in stage.devices for line in _tail(stage, name)]
    return True, _online(stage)


def _start_device(stage: Stage, name: str, **environment: str) -> None:
    stage.start_unit(stage.folder / "devices" / name / "fedmlic-device.service", name, **environment)


def _make_images(folder: Path, labels: list[str], seed: int) -> None:
    """Small pictures with a table of labels, some of which this device's annotators did not look for."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(seed)
    known = [label for place, label in enumerate(labels) if len(labels) == 1 or (place + seed) % 3 != 2] or labels
    rows = [",".join(["path", *known, "split"])]
    for number in range(NUM_IMAGES + 6 * seed):
        Image.fromarray(rng.integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )
        rows.append(",".join([f"{number}.png", *map(str, rng.integers(0, 2, len(known))), "train"]))
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _rewrite_node(stage: Stage, name: str) -> None:
    """The node config with made-up images and the CPU; the rest is the kit's."""
    path = stage.folder / "devices" / name / "node.toml"
    lines = dict(line.split(" = ", 1) for line in path.read_text(encoding="utf-8").splitlines())
    lines["data"] = toml_value(f"folder(root='{stage.folder / 'images' / name}', image_size={IMAGE_SIZE})")
    lines["home"] = toml_value(str(stage.folder / "state" / name / "fedmlic"))
    lines |= {"device": '"cpu"', "threads": "1"}
    path.write_text("".join(f"{key} = {value}\n" for key, value in lines.items()), encoding="utf-8")


def _replace_key(stage: Stage, name: str, public: bytes) -> None:
    """Have the proxy know the key that plays a device whose own is at its owner's."""
    path = stage.folder / "server" / "devices.map"
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.endswith(f'"{name}";')]
    path.write_text("\n".join([*kept, f'"{certificates.header_value(public)}" "{name}";']) + "\n", encoding="utf-8")


def _online(stage: Stage) -> list[str]:
    nodes = json.loads(_json(stage.flwr("supernode", "list", "here", "--format", "json").stdout))["nodes"]
    return [f"{stage.nodes.get(node['node-id'], node['node-id'])}: {node['status']}" for node in nodes]


# --- runs -------------------------------------------------------------------------------


def _submit(here: Rehearsal, name: str, app: Path | None = None, **changes: Any) -> Path:  # noqa: ANN401
    out = here.stage.folder / "state" / "server" / "runs" / name
    settings = {
        **here.settings,
        "dataset": f"on_devices(image_size={IMAGE_SIZE})",
        "model": "small_cnn()",
        "method": "bce()",
        "batch-size": 8,
        "local-epochs": 1,
        "num-rounds": here.rounds,
        "num-clients": max(20, len(here.stage.devices)),
        "min-hosts": len(here.stage.devices),
        "out": str(out),
        **{key.replace("_", "-"): value for key, value in changes.items()},
    }
    words = " ".join(f"{key}={toml_value(value)}" for key, value in settings.items())
    done = here.stage.flwr("run", str(app or here.stage.folder / "server" / "app"), "here", "--run-config", words)
    if done.returncode:
        msg = f"flwr run: {_last(done.stdout + done.stderr)}"
        raise RuntimeError(msg)
    return out


def _first_run(here: Rehearsal) -> Verdict:
    out = _submit(here, "first")
    if not here.stage.wait((out / "result.json").exists, RUN_S, "superlink"):
        return False, _explain_run(here, out)
    events = list(open_run(out).events())
    turns = [event for event in events if event["event"] == "client"]
    played = {event["host"] for event in turns if "error" not in event}
    seen = [_turns_line(turns, number) for number in range(1, here.rounds + 1)]
    result = read_json(out / "result.json")
    seen.append(f"result.json is there; weights {str(result['weights_sha256'])[:16]}")
    return len(played) == len(here.stage.devices) and not any("error" in event for event in turns), seen


def _turns_line(turns: list[dict[str, Any]], number: int) -> str:
    here = [turn for turn in turns if turn["round"] == number]
    return f"round {number}: " + "; ".join(
        f"{turn['host']} "
        + (f"FAILED: {str(turn['error'])[:150]}" if "error" in turn else f"ok, loss {turn['loss']:.3f}")
        for turn in here
    )


def _other_code(here: Rehearsal) -> Verdict:
    """A run that brings other code: no device that pins its code unpacks it."""
    stage = here.stage
    pinned = [
        name for name in stage.devices if "code-digest" in (stage.folder / "devices" / name / "node.toml").read_text()
    ]
    if len(pinned) < len(stage.devices):
        return None, ["pin-code = false: devices run whatever code is sent"]
    app, trace = stage.folder / "other-app", stage.folder / "executed"
    shutil.copytree(stage.folder / "server" / "app", app)
    with (app / "clients" / "app.py").open("a", encoding="utf-8") as file:
        # Only devices import this module; its package is also imported by 'flwr run', to see whether it is there.
        file.write(f"\nimport sys\nopen({str(trace)!r}, 'a').write(' '.join(sys.argv) + '\\n')\n")
    out = _submit(here, "other-code", app, node_timeout=20.0)
    refused = stage.wait(lambda: all("An app was refused" in stage.log(name) for name in stage.devices), 180.0)
    stage.wait(lambda: _ended(here), 120.0)
    seen = [f"{name}: {_find(stage.log(name), 'An app was refused')[:200]}" for name in stage.devices]
    seen.append(
        f"executed on devices: {'yes' if trace.exists() else 'no'}; run completed: {(out / 'result.json').exists()}"
    )
    return refused and not trace.exists() and not (out / "result.json").exists(), seen


def _ended(here: Rehearsal) -> bool:
    runs = json.loads(_json(here.stage.flwr("ls", "here", "--format", "json").stdout))["runs"]
    return all(str(run["status"]).startswith("finished") for run in runs)


def _power_cut(here: Rehearsal) -> Verdict:
    """The SuperLink is killed and started again: registered keys and devices are still known."""
    stage = here.stage
    stage.kill("superlink")
    begun = time.monotonic()
    stage.start_unit(stage.folder / "server" / "fedmlic-superlink.service", "superlink")
    up = stage.wait(stage.answers, 120.0, "superlink")
    back = up and stage.wait(
        lambda: sum(line.endswith(": online") for line in _online(stage)) == len(stage.devices), 180.0
    )
    return back, [
        f"SuperLink killed (SIGKILL) and started; all devices online after {time.monotonic() - begun:.0f} s",
        *_online(stage),
    ]


def _bad_devices(here: Rehearsal) -> Verdict:
    """One device sends NaN, one is killed in the middle and started again; the run goes on with the others."""
    stage = here.stage
    if len(stage.devices) < 3:
        return None, ["needs three devices: one that lies, one that drops, one that goes on"]
    liar, robbed = stage.devices[-1], stage.devices[0]
    path = stage.folder / "liar"
    path.mkdir()
    (path / "sitecustomize.py").write_text(LIAR, encoding="utf-8")
    stage.kill(liar)
    own = stage.environment().get("PYTHONPATH", "")
    seen = [_rejoin(stage, liar, PYTHONPATH=f"{path}:{own}".rstrip(":"))]
    out = _submit(here, "bad-devices", num_rounds=here.rounds + 1, min_replies=0.1, round_timeout=TURN_S)
    if not stage.wait((out / "checkpoints" / "round-00001.json").exists, RUN_S, "superlink"):
        return False, [*seen, *_explain_run(here, out)]
    stage.kill(robbed)
    seen.append(f"{robbed} killed (SIGKILL) after round 1. {_rejoin(stage, robbed)}")
    if not stage.wait((out / "result.json").exists, RUN_S, "superlink"):
        return False, [*seen, *_explain_run(here, out)]
    turns = [event for event in open_run(out).events() if event["event"] == "client"]
    seen += [f"{liar} ({_host(here, liar)}) sends NaN:"]
    seen += [_turns_line(turns, number) for number in range(1, here.rounds + 2)]
    lies = [turn for turn in turns if turn["host"] == _host(here, liar)]
    good = bool(lies) and all("Refused" in turn.get("error", "") for turn in lies)
    # Whether the killed device plays again in this run depends on how long its rounds are; that it was let in does not.
    last = {turn["host"] for turn in turns if "error" not in turn and turn["round"] == here.rounds + 1}
    return good and bool(last), seen


def _rejoin(stage: Stage, name: str, **environment: str) -> str:
    """Start a killed device as systemd does, again and again until it is let in; how long that took."""
    begun, tries, before = time.monotonic(), 0, stage.log(name).count("SuperNode ID:")
    while time.monotonic() - begun < REJOIN_S:
        tries += 1
        _start_device(stage, name, **environment)
        if stage.wait(lambda: stage.log(name).count("SuperNode ID:") > before, REJOIN_S, name):
            seconds = time.monotonic() - begun
            said = (
                "; before: " + _find(stage.log(name).rpartition("Starting Flower SuperNode")[0], "[code:", last=True)
                if tries > 1
                else ""
            )
            return f"{name} started again: let in after {seconds:.0f} s, at try {tries}{said}"
        time.sleep(RESTART_S)
    msg = f"Expected {name} to be let in again within {REJOIN_S:g} s, got: {_last(stage.log(name))}"
    raise RuntimeError(msg)


def _host(here: Rehearsal, name: str) -> str:
    return f"device-{read_json(here.stage.folder / 'devices' / name / 'kit.json')['client']}"


def _ports(here: Rehearsal) -> Verdict:
    """Which ports the services opened, and what an empty request to each gets."""
    stage = here.stage
    found = intruder.listeners(stage.processes())
    if not found:
        return None, ["sockets of processes can be read on Linux only"]
    seen, good = [], True
    for each in found:
        role = {stage.control_port: "SuperLink", stage.port: "proxy" if stage.proxy else "SuperLink"}.get(
            each.port, "SuperNode"
        )
        good &= each.address in {"127.0.0.1", "::1"}
        tls = _handshake_or_plain(each.port, stage.trust())
        place = "every interface, once installed" if role == "proxy" else "this machine only"
        seen.append(f"{each.address}:{each.port} {role} ({each.process}): {tls}; reachable from {place}")
    return good, seen


def _handshake_or_plain(port: int, trust: ssl.SSLContext) -> str:
    answer = intruder.post(port, "/v1/control/list-runs", trust)
    return f"TLS, list-runs: HTTP {answer.status}" if answer.status else "no TLS (its own processes)"


def _access_log(here: Rehearsal) -> Verdict:
    if not here.stage.proxy:
        return None, ["no proxy"]
    lines = here.stage.log("../log/access").splitlines()
    known = {name: sum(f"device={name} " in line for line in lines) for name in here.stage.devices}
    strangers = sum("device= " in line or "device=- " in line for line in lines)
    shown = ", ".join(f"{name} {count}" for name, count in known.items())
    sample = next((line for line in reversed(lines) if "push-messages" in line), "")
    return all(known.values()) and strangers > 0, [f"requests: {shown}, strangers {strangers}", sample]


def _end(here: Rehearsal) -> Verdict:
    left = here.stage.close()
    ports = [each for each in (here.stage.port, here.stage.control_port) if _open(each)]
    return not left and not ports, [f"processes left: {len(left)}; ports still open: {len(ports)}"]


def _open(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# --- words ------------------------------------------------------------------------------


def _explain_run(here: Rehearsal, out: Path) -> list[str]:
    printed = here.stage.flwr("ls", "here", "--format", "json").stdout
    events = [str(event)[:300] for event in open_run(out).events()][-5:] if (out / "events.jsonl").exists() else []
    return [
        _last(printed),
        *events,
        *_tail(here.stage, "superlink"),
        *(x for n in here.stage.devices for x in _tail(here.stage, n)),
    ]


def _tail(stage: Stage, name: str, lines: int = 8) -> list[str]:
    return [f"{name}: {line}" for line in stage.log(name).splitlines()[-lines:]]


def _last(text: str) -> str:
    """The last line with letters of what a program printed."""
    lines = [line.strip(" │╭╮╰╯─") for line in text.splitlines()]
    return next((line for line in reversed(lines) if any(c.isalpha() for c in line)), "")[:200]


def _find(text: str, word: str, *, last: bool = False) -> str:
    lines = [line for line in text.splitlines() if word in line] or ["(nothing)"]
    return _COLOUR.sub("", lines[-1 if last else 0]).strip()


def _json(text: str) -> str:
    return text[text.index("{") :] if "{" in text else "{}"


STEPS: Final = (
    ("Secrets are apart", _files),
    ("Certificates have names and time left", _certificates),
    ("SuperLink and proxy start", _start_server),
    ("TLS: the certificate holds for the server's names and no others", _names),
    ("A stranger with address and ca.crt asks for runs and everything else", _stranger_asks),
    ("A stranger uses Flower's commands", _stranger_uses_flower),
    ("SuperNodes that nobody registered", _stranger_joins),
    ("Devices are registered and start", _start_devices),
    ("Open ports", _ports),
    ("First run", _first_run),
    ("A run with other code", _other_code),
    ("The SuperLink loses power", _power_cut),
    ("One device lies, one drops and restarts", _bad_devices),
    ("The proxy's log names devices and strangers", _access_log),
)
"""What is played, in order."""

NEEDED: Final = (_start_server, _start_devices)
"""Steps without which nothing after them means anything."""

LIAR: Final = """
import importlib.abc
import importlib.machinery
import sys


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "fedmlic.wire":
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path)
        load = found.loader.exec_module

        def exec_module(module):
            load(module)
            pack = module.pack_reply

            def pack_reply(reply, layout, **options):
                for update in reply.updates:
                    numbers = update.sums if update.change is None else update.change
                    numbers.fill_(float("nan"))
                return pack(reply, layout, **options)

            module.pack_reply = pack_reply

        found.loader.exec_module = exec_module
        return found


sys.meta_path.insert(0, Finder())
"""
"""A ``sitecustomize`` of a device's own machine: its code is the approved one, and what it sends is not a number."""
