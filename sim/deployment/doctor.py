"""``fedmlic doctor``: whether this machine can take part, before the first round finds out.

Everything that is known is looked at, whatever is missing: a folder of the kit, a node config, an address, an
experiment. Nothing is changed, and nothing but a probe of 4 MB of zeros is sent.
"""

from __future__ import annotations

import json
import platform
import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedmlic.errors import InputError
from sim.deployment.findings import Finding, Place, looked_at
from sim.deployment.reach import certificate_findings, key_findings, link_finding, reach

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fedmlic.experiment import Experiment, Runtime
    from sim.deployment.load import Images

KEYS: Final = ("device.key", "key")
"""Names of a node's private key in a folder of the kit."""

OWN_CERTIFICATES: Final = ("proxy.crt", "superlink.crt", "server.pem", "server.crt")
"""Names of a server's certificates there."""

LOOPBACK: Final = "superlink"
"""Begins the name of the certificate that only this machine sees, behind the proxy."""


def place_of(folder: Path | None) -> Place:
    """What a folder of the kit holds: ``node.toml``, ``ca.crt``, the key, ``kit.json``; each may be missing.

    Raises:
        InputError: it is no folder, or a file in it cannot be read.
    """
    if folder is None:
        return Place()
    if not folder.is_dir():
        msg = f"Expected the folder of a device or a server, got {folder}. Check the path, or give --node-config."
        raise InputError(msg)
    about = _json(folder / "kit.json") if (folder / "kit.json").is_file() else {}
    node = read_node(folder / "node.toml") if (folder / "node.toml").is_file() else None
    server = about.get("server", {})
    address = server.get("address", "") if isinstance(server, Mapping) else ""
    there = [folder / name for name in KEYS if (folder / name).is_file()]
    return Place(
        node,
        about,
        str(address),
        folder / "ca.crt" if (folder / "ca.crt").is_file() else None,
        tuple(folder / name for name in OWN_CERTIFICATES if (folder / name).is_file()),
        there[0] if there else None,
    )


def run_of(folder: Path | None) -> str:
    """The file with the settings of the first run in the folder of a device; empty where there is none."""
    path = folder / "run.toml" if folder is not None and (folder / "node.toml").is_file() else None
    return str(path) if path is not None and path.is_file() else ""


def read_node(path: Path) -> dict[str, Any]:
    """A node config, with the keys that a node may have.

    Raises:
        InputError: it cannot be read, or is not one.
    """
    from clients.source import is_device

    try:
        node = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        msg = f"Expected {path} to be a node config in TOML, got an error: {error}."
        raise InputError(msg) from None
    is_device(node)
    return node


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"Expected {path} to be JSON, got an error: {error}. Copy the folder again."
        raise InputError(msg) from None
    if not isinstance(found, dict):
        msg = f"Expected {path} to hold an object, got {type(found).__name__}. Copy the folder again."
        raise InputError(msg)
    return found


def examine(place: Place, experiment: Experiment | None, runtime: Runtime, link_mbit: float = 0.0) -> Iterator[Finding]:
    """Look at everything that is known of a place, one finding after another.

    Args:
        place: what is there.
        experiment: that will be run; None if unknown, then its time is.
        runtime: device, threads and time limit, where no node config names them.
        link_mbit: the link's upload in megabits a second; 0: measured where the server allows.
    """
    yield from looked_at("versions", lambda: _versions(place.about))
    if place.authority is not None:
        yield from _certificate(place.authority, authority=True)
    names = tuple(place.about.get("server", {}).get("names", ())) if place.certificates else ()
    for path in place.certificates:
        yield from _certificate(path, names=() if path.name.startswith(LOOPBACK) else names)
    if place.key is not None:
        key = place.key
        yield from looked_at("key", lambda: key_findings(key))
    mbit = yield from _link(place, link_mbit)
    here = runtime
    if place.node is not None:
        node = place.node
        settings = {name: node[name] for name in ("device", "threads") if name in node}
        here = runtime.model_copy(update=settings)
    yield from looked_at("device", lambda: _machine(here))
    images = yield from _images(place, experiment)
    if experiment is None:
        yield Finding("round", "warning", "its time is unknown", "Give the run's settings with --experiment.")
        return
    yield from looked_at("training", lambda: _round(experiment, here, place, images, mbit))


def _certificate(path: Path, *, authority: bool = False, names: tuple[str, ...] = ()) -> Iterator[Finding]:
    yield from looked_at(
        f"certificate {path.name}", lambda: certificate_findings(path, authority=authority, names=names)
    )


def _link(place: Place, given: float) -> Any:  # noqa: ANN401  (a generator of findings that returns the speed)
    """What the server's address leads to; returns the link's megabits a second, or None."""
    if not place.superlink:
        if place.node is not None:
            text = "the server's address is unknown"
            yield Finding("port", "warning", text, "Give --superlink HOST:PORT.")
        return given or None
    found = None

    def look() -> Iterable[Finding]:
        nonlocal found
        found = reach(place.superlink, place.authority)
        return found.findings

    yield from looked_at("port", look)
    if found is None or not (found.connected or given):
        return given or None
    yield link_finding(found.mbit, given)
    return given or found.mbit


def _machine(runtime: Runtime) -> Iterator[Finding]:
    from sim.deployment.load import machine_findings

    return machine_findings(runtime.device)


def _images(place: Place, experiment: Experiment | None) -> Any:  # noqa: ANN401  (findings, and what was found)
    from sim.deployment.load import Images, images_of

    found = Images([])
    node = place.node
    if node is None:
        return found

    def look() -> Iterable[Finding]:
        nonlocal found
        found = images_of(node, place.about, experiment)
        return found.findings

    yield from looked_at("images", look)
    return found


def _round(
    experiment: Experiment, runtime: Runtime, place: Place, images: Images, mbit: float | None
) -> Iterator[Finding]:
    from sim.deployment.load import measure, round_findings

    names = experiment.label_names.split(",") if experiment.label_names else place.about.get("label-names", ())
    labels = tuple(str(name).strip() for name in names) or images.label_names
    size, channels = place.about.get("image-size", 0), place.about.get("channels", 3)
    shape = images.shape if images.shape[0] else (size, size, channels)
    if not labels or not shape[0]:
        text = "labels or image size are unknown, so no network can be built"
        yield Finding("training", "warning", text, "Give label-names=... with --set, and the folder of a device.")
        return
    found = measure(experiment, runtime, labels, shape)
    count = round((1 - experiment.holdout_fraction) * images.num_train) or experiment.batch_size
    yield from round_findings(found, experiment, runtime, count, mbit)


# --- versions ------------------------------------------------------------------------------


def _versions(about: Mapping[str, Any]) -> Iterator[Finding]:
    """What is installed, against what this project needs and what the kit was made with."""
    from packaging.requirements import Requirement

    from fedmlic import wire

    found = {**wire.versions(), "fedmlic": metadata.version("fedmlic")}
    wrong = []
    for text in metadata.requires("fedmlic") or []:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        there = _installed(needed.name)
        if there is None or not needed.specifier.contains(there, prereleases=True):
            wrong.append(f"{needed.name}{needed.specifier} (here: {there or 'none'})")
    shown = ", ".join(f"{name} {version}" for name, version in sorted(found.items()))
    if wrong:
        remedy = "Install them from the server's constraints: pip install fedmlic -c constraints.txt"
        yield Finding("versions", "problem", f"{shown}; wrong: {', '.join(wrong)}", remedy, found)
    else:
        yield Finding("versions", "ok", shown, "", found)
    python = str(about.get("python", ""))
    if python and python.split(".")[:2] != platform.python_version().split(".")[:2]:
        text = f"{platform.python_version()}; the kit was made for {python}"
        yield Finding("python", "warning", text, f"Use Python {python}, so that the same wheels fit.")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def constraints(extras: tuple[str, ...] = ()) -> list[str]:
    """``name==version`` of everything that this project needs, as it is installed here, sorted.

    Parts of versions that name a build (``+cpu``) are left out: another machine may need another one.

    Args:
        extras: optional parts of this project that are needed too.
    """
    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    waiting = [("fedmlic", frozenset({"", *extras}))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, wanted = waiting.pop()
        version = _installed(name)
        if (name, wanted) in seen or version is None:
            continue
        seen.add((name, wanted))
        found[re.sub(r"[-_.]+", "-", name).lower()] = version.partition("+")[0]
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in wanted):
                waiting.append((needed.name, frozenset({"", *needed.extras})))
    del found["fedmlic"]
    return [f"{name}=={version}" for name, version in sorted(found.items())]
