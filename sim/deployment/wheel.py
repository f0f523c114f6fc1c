"""This project as a wheel, and the versions of everything it needs, as they are installed here."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import re
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from fedmlic.code import OURS
from fedmlic.errors import InputError

_EPOCH: Final = (2024, 1, 1, 0, 0, 0)
"""Time of every file in the wheel, so that the same code gives the same wheel."""

_WHEEL: Final = "Wheel-Version: 1.0\nGenerator: fedmlic kit\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def project_version() -> str:
    """Version of this project.

    Raises:
        InputError: it is not installed, only lies there.
    """
    return _own().version


def wheel_name() -> str:
    """File name of the wheel."""
    return f"fedmlic-{project_version()}-py3-none-any.whl"


@functools.cache
def build_wheel() -> bytes:
    """The packages of this project as this process finds them, installable with pip."""
    about = f"fedmlic-{project_version()}.dist-info"
    files = dict(sorted(_package_files().items()))
    files[f"{about}/METADATA"] = (_own().read_text("METADATA") or "").encode("utf-8")
    files[f"{about}/WHEEL"] = _WHEEL.encode("ascii")
    files[f"{about}/entry_points.txt"] = (_own().read_text("entry_points.txt") or "").encode("utf-8")
    record = [f"{name},sha256={_hash(text)},{len(text)}" for name, text in files.items()]
    files[f"{about}/RECORD"] = "\n".join([*record, f"{about}/RECORD,,", ""]).encode("utf-8")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, text, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


@functools.cache
def constraints() -> str:
    """A line ``name==version`` for every installed package that this project needs, directly or not.

    Local parts of versions (``+cpu``, ``+cu128``) are left out: which build of torch fits is up to the machine.
    """
    found: dict[str, str] = {}
    waiting = [(need, "") for need in _needs(_own(), "")]
    seen: set[tuple[str, str]] = set()
    while waiting:
        need, extra = waiting.pop()
        name = re.sub(r"[-_.]+", "-", need.name).lower()
        waiting += [(need, each) for each in need.extras if extra == ""]
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for another platform
            continue
        found[name] = installed.version.partition("+")[0]
        waiting += [(each, "") for each in _needs(installed, extra)]
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()))


def _needs(installed: metadata.Distribution, extra: str) -> list[Requirement]:
    """What a package needs on this machine, with one of its extras."""
    needs = [Requirement(line) for line in installed.requires or []]
    return [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]


def _own() -> metadata.Distribution:
    try:
        return metadata.distribution("fedmlic")
    except metadata.PackageNotFoundError:
        msg = "Expected fedmlic to be installed, which says what it needs, got no such package. Run 'pip install .'."
        raise InputError(msg) from None


def _package_files() -> dict[str, bytes]:
    root = Path(__file__).resolve().parents[2]
    return {
        file.relative_to(root).as_posix(): file.read_bytes()
        for package in OURS
        for file in sorted((root / package).rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }


def _hash(text: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=").decode("ascii")
