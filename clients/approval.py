"""Code that a device's owner approved: what a run may bring, checked before any of it is installed.

Whoever may start runs sends the code that every device executes. An owner who does not want that names, in the
node config, the digest of the code that was looked at: ``code-digest``. It is the SHA-256 of what this prints, so
that nobody needs this project to compute it::

    find clients fedmlic strategies -name '*.py' | LC_ALL=C sort | xargs sha256sum

It is checked at two places:

* ``clients.supernode`` (the command ``fedmlic supernode``) looks into the app before the SuperNode stores it.
  Nothing of another app is unpacked, installed or imported. The settings of a run are free; the code is not.
* the ClientApp compares its own files before it does anything else. By then Flower has installed and imported them:
  with a plain ``flower-supernode`` this finds a wrong version, but no attacker, whose code would not check itself.
"""

from __future__ import annotations

import hashlib
import io
import re
import tomllib
import zipfile
from collections.abc import Mapping
from typing import Final

from fedmlic.code import DECIDING
from fedmlic.errors import InputError, shown

KEY: Final = "code-digest"
"""Of the node config."""

COMPONENTS: Final = {"serverapp": "strategies.app:app", "clientapp": "clients.app:app"}
"""What Flower may start of an app."""

_BESIDE: Final = {"pyproject.toml", "README.md", "LICENSE", ".info/CONTENT"}
_CODE: Final = re.compile(rf"(?:{'|'.join(DECIDING)})(?:/\w+)+\.py", re.ASCII)
_MOST_BYTES: Final = 100_000_000
"""Of an unpacked app; Flower's own limit is 10 MB packed."""


def digest_of(files: Mapping[str, bytes]) -> str:
    """SHA-256 over the lines that ``sha256sum`` prints for the files, sorted by name.

    >>> digest_of({"clients/app.py": b""})[:16]
    '9022dd9ad00ccccc'
    """
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()


def own_code() -> dict[str, bytes]:
    """Every Python file of the packages that a run consists of, as this process finds them, by name."""
    from fedmlic import wire

    files: dict[str, bytes] = {}
    for package in DECIDING:
        folder = wire.package_folder(package)
        files |= {
            f"{package}/{file.relative_to(folder).as_posix()}": file.read_bytes() for file in folder.rglob("*.py")
        }
    return files


def check_digest(value: object) -> str:
    """The digest of a node config.

    Raises:
        InputError: it is not 64 hexadecimal digits.
    """
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return value
    msg = (
        f"Expected {KEY} of --node-config to be 64 hexadecimal digits, got {shown(value, 100)!r}. "
        "'fedmlic supernode --digest' prints that of the installed code."
    )
    raise InputError(msg)


def check_own_code(approved: object) -> None:
    """Make sure that this process runs the approved code.

    Raises:
        InputError: it does not.
    """
    expected, found = check_digest(approved), digest_of(own_code())
    if found != expected:
        raise InputError(_refusal(expected, found))


def problem_of(app: bytes, approved: str) -> str:
    """Why an app must not be installed; empty if it holds the approved code and nothing else that could run.

    Args:
        app: Flower's bundle (FAB), a zip archive.
        approved: digest of the code.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(app)) as archive:
            names = archive.namelist()
            strange = [name for name in names if name not in _BESIDE and not _CODE.fullmatch(name)]
            if strange or len(set(names)) < len(names):
                what = shown(sorted(strange)[:5]) if strange else "a name twice"
                return f"Expected an app of this project's packages only, got {what}."
            if sum(each.file_size for each in archive.infolist()) > _MOST_BYTES:
                return f"Expected an app of at most {_MOST_BYTES:,} bytes, got more."
            files = {each.filename: _content(archive, each) for each in archive.infolist()}
        project = tomllib.loads(files["pyproject.toml"].decode("utf-8"))
        components = project["tool"]["flwr"]["app"]["components"]
    except Exception as error:  # noqa: BLE001  (each kind of packing has errors of its own; none may end the node)
        return f"Expected a bundle of Flower, got {type(error).__name__}: {shown(error, 200)}."
    if components != COMPONENTS:
        return f"Expected the app to start {COMPONENTS}, got {shown(components, 300)}."
    found = digest_of({name: text for name, text in files.items() if name not in _BESIDE})
    return "" if found == approved else _refusal(approved, found)


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A file of an archive; never more bytes than it says, in memory neither.

    Raises:
        ValueError: it is packed in a way that Flower does not use, and that is unpacked whole.
    """
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        msg = f"a file packed by method {member.compress_type}"
        raise ValueError(msg)
    with archive.open(member) as file:
        return file.read(member.file_size)


def _refusal(expected: str, found: str) -> str:
    return (
        f"Expected code with the digest that this device's owner approved ({expected}), got {found}. "
        f"If the new code was looked at, its owner sets {KEY} in the node config and restarts the SuperNode."
    )
