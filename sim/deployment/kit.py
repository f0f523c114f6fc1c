"""Everything that a server and its devices need to join a federation, in a folder for each receiver.

::

    DIR/README.md, kit.json, federation.toml
    DIR/authority/      ca.key, ca.crt: sign certificates; leave this folder never
    DIR/server/         certificates and keys of proxy and SuperLink, services, firewall, app, devices' public keys
    DIR/devices/NAME/   the device's key pair (or only its public key), ca.crt, node config, first run, service

A folder holds secrets of its receiver only. A kit that is there is never overwritten: ``update`` keeps every key and
certificate that is still right.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import platform
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from clients import approval
from fedmlic.errors import InputError, listing
from fedmlic.experiment import flower_config, split_settings
from fedmlic.files import sync
from sim.deployment import certificates
from sim.deployment.certificates import Pair
from sim.deployment.settings import Deployment, read_deployment
from sim.deployment.texts import device_texts, server_texts, top_texts
from sim.deployment.wheel import build_wheel, constraints, wheel_name

MANIFEST: Final = "kit.json"
SECRET: Final = frozenset({"ca.key", "proxy.key", "superlink.key", "device.key"})
"""Names of files that nobody but their receiver may read."""

RENEW: Final = "renew"
"""Key of the manifest of a kit that is being written: whether the server gets new keys and certificates."""

PENDING: Final = "pending"
"""Key of the manifest of a kit that is being written: the hashes that its files may have besides those before."""

PROGRAMS: Final = frozenset({"install.sh", "fedmlic-admin", "fedmlic-device"})
SOON: Final = dt.timedelta(days=30)
"""A certificate that is kept and ends within this time gets a note."""

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
"""Names of the SuperLink's certificate; the proxy's has them too, so that the operator can try it on the server."""


@dataclass
class Contents:
    """Files of a kit by path, and what became of its secrets.

    Attributes:
        files: path below the kit's folder, and content.
        made: secrets that were made anew.
        kept: secrets that were there and are still right.
        notes: what the operator should know.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_kit(description: Path, out: Path, *, update: bool = False, renew: bool = False) -> dict[str, Any]:
    """Write the kit of a federation.

    Args:
        description: federation.toml.
        out: folder of the kit.
        update: ``out`` holds a kit of this federation, which follows the description from now on.
        renew: as ``update``, and the server gets new keys and certificates.

    Returns:
        ``kit``, ``devices``, ``made``, ``kept``, ``removed``, ``notes`` and the ``digest`` of the code.

    Raises:
        InputError: a wrong description, or a folder that holds something else, another federation's kit, a kit without
            its certificate authority, or files that somebody edited.
    """
    deployment = read_deployment(description)
    before = _before(out, deployment, update=update or renew)
    renew = renew or before.get(RENEW, False)  # one that was interrupted: some of its keys may be the old ones
    contents = _contents(deployment, description, out, before, renew=renew)
    removed = _write(out, contents, before, renew=renew)
    gone = [name for name in before.get("devices", []) if name not in deployment.names]
    contents.notes += [
        f"{name} is not in {description.name} any more. devices/{name} stays; its key is out of the proxy's list. "
        f"On the server also: fedmlic-admin flwr supernode unregister NODE-ID {deployment.name}"
        for name in gone
    ]
    return {
        "kit": str(out),
        "devices": deployment.names,
        "made": contents.made,
        "kept": contents.kept,
        "removed": removed,
        "notes": contents.notes,
        "digest": approval.digest_of(approval.own_code()),
    }


def read_manifest(out: Path) -> dict[str, Any]:
    """What ``kit.json`` says of a kit.

    Raises:
        InputError: the folder holds no kit.
    """
    try:
        found = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found["files"], dict):
            return found
    except (OSError, ValueError, KeyError):
        pass
    msg = f"Expected {out} to be a kit of 'fedmlic kit', got a folder without a readable {MANIFEST}."
    raise InputError(msg)


# --- what was there ---------------------------------------------------------------------


def _before(out: Path, deployment: Deployment, *, update: bool) -> dict[str, Any]:
    """The manifest of the kit that is there; empty if there is none."""
    if not (out / MANIFEST).exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            msg = f"Expected {out} to be a new or empty folder, got one that holds other files. Choose another --out."
            raise InputError(msg)
        if update:
            msg = f"Expected {out} to hold a kit to update, got none. Leave out --update and --renew."
            raise InputError(msg)
        return {}
    found = read_manifest(out)
    if not update:
        how = ", the making of which was interrupted" if PENDING in found else ""
        msg = (
            f"Expected {out} to be a new folder, got a kit{how}. Add --update: it follows the file; keys and "
            "certificates that are still right are kept. --renew also makes new certificates of the server."
        )
        raise InputError(msg)
    if found.get("name") != deployment.name:
        msg = (
            f"Expected the kit of {deployment.name}, got that of {found.get('name')!r} in {out}. Choose another --out."
        )
        raise InputError(msg)
    pending = found.get(PENDING, {})
    known = {
        name: [*filter(None, [found["files"].get(name)]), *pending.get(name, [])]
        for name in {**found["files"], **pending}
    }
    edited = [name for name, hashes in known.items() if _edited(out / name, hashes)]
    if edited:
        expected = f"Expected the files of {out} to be as 'fedmlic kit' wrote them"
        again = "edited; move it away, and make the change again afterwards"
        raise listing(expected, [f"{out / name}: {again}" for name in sorted(edited)])
    return found


def _edited(path: Path, before: Sequence[str]) -> bool:
    return path.is_file() and _sha256(path.read_bytes()) not in before


# --- what it holds ----------------------------------------------------------------------


def _contents(
    deployment: Deployment, description: Path, out: Path, before: Mapping[str, Any], *, renew: bool
) -> Contents:
    contents = Contents()
    make_authority = partial(certificates.make_authority, deployment.name, deployment.authority_days)
    is_first = not before.get("files")  # also where a first kit was interrupted, of which nobody has a file
    if not is_first:
        _check_authority(out)
    authority = _pair(contents, out, "authority/ca", make_authority, _never if is_first else certificates.belongs)
    names = list(dict.fromkeys([*deployment.server.names, *LOOPBACK]))
    for what, valid in (("proxy", names), ("superlink", list(LOOPBACK))):
        make = partial(certificates.make_certificate, authority, valid, deployment.days)
        pair = _pair(contents, out, f"server/{what}", make, _never if renew else partial(_is_right, authority, valid))
        expires = certificates.expiry(pair.public)
        if f"server/{what}.key" in contents.kept and _ends_soon(pair):
            contents.notes.append(f"server/{what}.crt is kept and ends on {expires:%Y-%m-%d}. --renew makes a new one.")
    if _ends_soon(authority):
        last = certificates.expiry(authority.public)
        contents.notes.append(
            f"authority/ca.crt ends on {last:%Y-%m-%d}, and no certificate of the server lasts longer. "
            "Make a new kit in another folder; every device needs its ca.crt."
        )
    keys = {name: _device_key(contents, deployment, description, out, before, name) for name in deployment.names}
    code = {
        "digest": approval.digest_of(approval.own_code()),
        "wheel": wheel_name(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "expires": f"{expires:%Y-%m-%d}",
        "authority_expires": f"{certificates.expiry(authority.public):%Y-%m-%d}",
    }
    wheel, pinned = build_wheel(), constraints().encode("ascii")
    common = {"ca.crt": authority.public, "constraints.txt": pinned, wheel_name(): wheel}
    _add(contents, "", top_texts(deployment, code))
    contents.files["federation.toml"] = description.read_bytes()
    _add(contents, "server/", {**server_texts(deployment, code), **common, **_app(deployment)})
    _add(contents, "server/", {"devices.map": _device_map(keys)})
    for name, public in keys.items():
        contents.files[f"server/devices/{name}.pub"] = public
        own = f"devices/{name}/device.key" in contents.files
        _add(contents, f"devices/{name}/", {**device_texts(deployment, name, code, own_key=own), **common})
    return contents


def _add(contents: Contents, folder: str, files: Mapping[str, bytes | str]) -> None:
    for name, text in files.items():
        contents.files[f"{folder}{name}"] = text.encode("utf-8") if isinstance(text, str) else text


def _pair(contents: Contents, out: Path, place: str, make: Callable[[], Pair], right: Callable[[Pair], bool]) -> Pair:
    """A key and certificate of the kit: those that are there if they are right, else new ones."""
    key, certificate = out / f"{place}.key", out / f"{place}.crt"
    pair = Pair(key.read_bytes(), certificate.read_bytes()) if key.is_file() and certificate.is_file() else None
    if pair is None or not right(pair):
        pair = make()
        contents.made.append(f"{place}.key")
    else:
        contents.kept.append(f"{place}.key")
    contents.files[f"{place}.key"], contents.files[f"{place}.crt"] = pair.private, pair.public
    return pair


def _check_authority(out: Path) -> None:
    """Make sure that the certificate authority of a kit is there: devices trust no other.

    Raises:
        InputError: a file of it is missing, or its key is another's.
    """
    place = out / "authority"
    gone = [name for name in ("ca.key", "ca.crt") if not (place / name).is_file()]
    again = (
        f"Put the folder {place} back while the kit is updated. Where it is lost, make a new kit in another folder: "
        "server and devices then need all of its files."
    )
    if gone:
        msg = f"Expected {place} to hold the certificate authority of this kit, got no {' and no '.join(gone)}. {again}"
        raise InputError(msg)
    if not certificates.belongs(Pair((place / "ca.key").read_bytes(), (place / "ca.crt").read_bytes())):
        msg = (
            f"Expected {place / 'ca.key'} to be the key of ca.crt beside it, got another key or a damaged file. {again}"
        )
        raise InputError(msg)


def _is_right(authority: Pair, names: list[str], pair: Pair) -> bool:
    """Whether a key and certificate of the server can stay: the authority's, for these names, not at its end."""
    if not (certificates.belongs(pair) and certificates.is_signed_by(pair.public, authority.public)):
        return False
    left = certificates.expiry(pair.public) - dt.datetime.now(dt.UTC)
    return set(certificates.names_of(pair.public)) == set(names) and left > dt.timedelta(0)


def _ends_soon(pair: Pair) -> bool:
    return certificates.expiry(pair.public) - dt.datetime.now(dt.UTC) < SOON


def _never(pair: Pair) -> bool:
    del pair
    return False


def _device_key(
    contents: Contents, deployment: Deployment, description: Path, out: Path, before: Mapping[str, Any], name: str
) -> bytes:
    """The public key of a device; its private key is made here only if its owner supplied none.

    A device that comes back gets a new one: its old key may have been unregistered, and Flower keeps those for ever.
    """
    device, folder = deployment.devices[deployment.names.index(name)], f"devices/{name}"
    private, stays = out / folder / "device.key", name in before.get("devices", [])
    had = before.get("files", {}).get(f"{folder}/device.pub")  # at the last finished update
    send = f"Send devices/{name} to its owner again, and register it on the server; until then it is shut out."
    if device.public_key is not None:
        public = certificates.read_public_key(description.parent / device.public_key, name)
        if private.exists():
            msg = (
                f"Expected no private key of {name} in the kit, whose owner supplied a public one, got {private}. "
                "Delete it if its owner has another key now."
            )
            raise InputError(msg)
        if not stays and _sha256(public) == had:
            contents.notes.append(
                f"{name} takes part again with the key that it had. If that was unregistered on the server, its owner "
                "makes a new one: Flower never takes a key again that was unregistered."
            )
    elif private.is_file() and stays:
        public = _public_of(private, name, before.get(PENDING, {}).get(f"{folder}/device.pub", []))
        contents.files[f"{folder}/device.key"] = private.read_bytes()
        if _sha256(public) == had:
            contents.kept.append(f"{folder}/device.key")
        else:
            contents.made.append(f"{folder}/device.key")
            contents.notes.append(f"{folder}/device.key is another one than at the last finished update. {send}")
    else:
        pair = certificates.make_device_key(name)
        contents.files[f"{folder}/device.key"], public = pair.private, pair.public
        contents.made.append(f"{folder}/device.key")
        if stays:
            contents.notes.append(f"{folder}/device.key was not there, and a new key was made. {send}")
        elif private.is_file() and had:
            contents.notes.append(
                f"{name} takes part again and gets a new key in place of that in {folder}: Flower never takes a key "
                f"again that was unregistered. {send}"
            )
    contents.files[f"{folder}/device.pub"] = public
    return public


def _public_of(private: Path, name: str, pending: Sequence[str]) -> bytes:
    """The public key of a device's private key that is there, which must be that of ``device.pub`` beside it.

    Args:
        private: file of the private key.
        name: of the device.
        pending: hashes that ``device.pub`` would have if updates had not been interrupted.

    Raises:
        InputError: it cannot be read, or is another's.
    """
    public, beside = certificates.public_of(private.read_bytes(), name), _bytes(private.with_name("device.pub"))
    if not public or (beside not in {b"", public} and _sha256(public) not in pending):
        msg = (
            f"Expected {private} to be the private key of device.pub beside it, got "
            f"{'another key' if public else 'a damaged file'}. Put back a copy, such as its owner's; or delete it, and "
            "a new key is made, which its owner and the server need."
        )
        raise InputError(msg)
    return public


def _bytes(path: Path) -> bytes:
    """A file's content; empty where there is none."""
    return path.read_bytes() if path.is_file() else b""


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _device_map(keys: Mapping[str, bytes]) -> str:
    """The proxy's list of registered keys, in the form of nginx's map."""
    values = {name: certificates.header_value(public) for name, public in keys.items()}
    double = [name for name in values if list(values.values()).count(values[name]) > 1]
    if double:
        msg = f"Expected every device to have a key of its own, got one key for {' and '.join(double)}."
        raise InputError(msg)
    lines = [f'"{value}" "{name}";' for name, value in values.items()]
    return (
        "# Public keys as SuperNodes send them, and the devices' names. Deleting a line shuts a device out.\n"
        + "".join(f"{line}\n" for line in lines)
    )


def _app(deployment: Deployment) -> dict[str, bytes]:
    """The app that a run sends to the devices."""
    from sim.engines.flower import stage_app

    experiment, runtime = split_settings(deployment.run_settings())
    with tempfile.TemporaryDirectory(prefix="fedmlic-") as scratch:
        runtime = runtime.model_copy(update={"engine": "flower"})
        app = stage_app(Path(scratch) / "app", flower_config(experiment, runtime))
        return {f"app/{p.relative_to(app).as_posix()}": p.read_bytes() for p in sorted(app.rglob("*")) if p.is_file()}


# --- writing it -------------------------------------------------------------------------


def _write(out: Path, contents: Contents, before: Mapping[str, Any], *, renew: bool) -> list[str]:
    """Write every file; return those of the kit before that belong to it no more and were deleted.

    What is interrupted leaves half a kit, or files of two. The manifest says so from before the first of them, and the
    next update goes on.
    """
    old_umask = os.umask(0o077)
    try:
        out.mkdir(parents=True, exist_ok=True)
        out.chmod(0o700)
        listed = {name: _sha256(text) for name, text in contents.files.items() if not is_secret(name)}
        devices = sorted({name.split("/")[1] for name in listed if name.startswith("devices/")})
        pending = before.get(PENDING, {})
        earlier = {*before.get("files", {}), *pending} - set(listed)
        # The folder of a device that left stays, and stays known: it may come back.
        left = {name for name in earlier if name.startswith("devices/") and name.split("/")[1] not in devices}
        about = {"format": 1, "name": json.loads(contents.files["server/kit.json"])["name"], "devices": devices}
        may = {name: sorted({*pending.get(name, []), text}) for name, text in listed.items()}
        finished = before or {**about, "devices": [], "files": {}}
        _write_manifest(out, {**finished, PENDING: {**pending, **may}, RENEW: renew})
        for name, text in contents.files.items():
            _write_file(out / name, text)
        gone = sorted(earlier - left)
        for name in gone:
            (out / name).unlink(missing_ok=True)
        for folder in {(out / name).parent for name in contents.files}:
            sync(folder)
        kept = {name: _sha256((out / name).read_bytes()) for name in left if (out / name).is_file()}
        _write_manifest(out, {**about, "files": dict(sorted({**listed, **kept}.items()))})
    finally:
        os.umask(old_umask)
    return gone


def _write_manifest(out: Path, manifest: Mapping[str, Any]) -> None:
    _write_file(out / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode("utf-8"))
    sync(out)


def _write_file(path: Path, text: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    partial.unlink(missing_ok=True)  # of an update that was killed
    mode = 0o600 if is_secret(path.name) else 0o700 if path.name in PROGRAMS else 0o644
    if path.is_file() and path.read_bytes() == text and stat.S_IMODE(path.stat().st_mode) == mode:
        return
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(text)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def is_secret(name: str) -> bool:
    """Whether a file of a kit must be read by its receiver only."""
    return name.rpartition("/")[2] in SECRET
