"""Can this machine reach the server, and is the server who it should be: certificates, port, clock, key, link."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from fedmlic.errors import InputError, shown
from sim.deployment.findings import Finding, size

CONNECT_S: Final = 10.0
"""How long the server may take to accept a connection, and to answer."""

SOON_DAYS: Final = 30
"""A certificate that ends sooner is warned about."""

MOST_OFF_S: Final = 60.0
"""By how much clocks may differ before it is warned about; Flower refuses signatures that are older or newer."""

PROBE_BYTES: Final = 4_000_000
"""Sent to measure a link."""

SHORTEST_PROBE_S: Final = 0.02
"""A faster answer says nothing of the link: the probe was not read to its end, or only by a buffer."""


class Address(NamedTuple):
    """A server as nodes name it."""

    host: str
    port: int


def address_of(text: str) -> Address:
    """The parts of ``host:port``.

    Raises:
        InputError: another text.

    >>> address_of("[::1]:9092"), address_of("server.example:8000")
    (Address(host='::1', port=9092), Address(host='server.example', port=8000))
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        msg = f"Expected --superlink to be HOST:PORT, got {shown(text, 100)!r}."
        raise InputError(msg)
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


# --- certificates --------------------------------------------------------------------------


def certificate_findings(path: Path, *, authority: bool, names: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Dates of a certificate, what it is for, and whether it holds the names that nodes use.

    Args:
        path: a PEM file; its first certificate counts.
        authority: whether it should be that of an authority, or of a server.
        names: host names or addresses that it must hold.
    """
    from cryptography import x509

    about = f"certificate {path.name}"
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        yield Finding(about, "problem", f"it cannot be read: {shown(error)}", "Copy it again from where it was made.")
        return
    yield _dates(about, found.not_valid_before_utc, found.not_valid_after_utc)
    is_authority = _is_authority(found)
    if authority and not is_authority:
        yield Finding(
            about,
            "problem",
            "it is not that of a certificate authority",
            "Use ca.crt, the certificate that signed the server's.",
        )
    if not authority:
        held = _names_of(found)
        missing = [name for name in names if name not in held]
        text = f"it is for {', '.join(held) or 'no name at all'}"
        if missing:
            remedy = f"Make a certificate whose subject alternative names hold {', '.join(missing)}."
            yield Finding(about, "problem", f"{text}, and not for {', '.join(missing)}", remedy)
        else:
            yield Finding(about, "ok" if held else "problem", text, "" if held else "Make one with names.")


def _dates(about: str, start: dt.datetime, end: dt.datetime) -> Finding:
    now = dt.datetime.now(dt.UTC)
    values = {"start": start.isoformat(), "end": end.isoformat()}
    if now < start:
        remedy = "Set this machine's clock, or wait."
        return Finding(about, "problem", f"it begins only on {start:%Y-%m-%d %H:%M} UTC", remedy, values)
    if now > end:
        remedy = "Have the server's owner make new certificates and give them to all."
        return Finding(about, "problem", f"it ended on {end:%Y-%m-%d}", remedy, values)
    days = (end - now).days
    text = f"valid to {end:%Y-%m-%d}, for {days} more days"
    if days < SOON_DAYS:
        return Finding(about, "warning", text, "Have new certificates made before that day.", values)
    return Finding(about, "ok", text, "", values)


def _is_authority(certificate: Any) -> bool:  # noqa: ANN401  (imported late)
    from cryptography import x509

    with contextlib.suppress(x509.ExtensionNotFound):
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    return False


def _names_of(certificate: Any) -> list[str]:  # noqa: ANN401
    from cryptography import x509

    with contextlib.suppress(x509.ExtensionNotFound):
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [
            *held.get_values_for_type(x509.DNSName),
            *(str(each) for each in held.get_values_for_type(x509.IPAddress)),
        ]
    return []


# --- the key -------------------------------------------------------------------------------


def key_findings(path: Path) -> Iterator[Finding]:
    """Whether a node's private key is one, and nobody else's to read."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if os.name != "nt":
        about = path.stat()
        if stat.S_IMODE(about.st_mode) & 0o077:
            mode = f"its mode is {stat.S_IMODE(about.st_mode):04o}: others may read it"
            yield Finding("key", "problem", mode, f"chmod 600 {path}, and register a new key if anybody could have.")
    content = path.read_bytes()
    try:
        if content.startswith(b"-----BEGIN OPENSSH"):
            key: Any = serialization.load_ssh_private_key(content, None)
        else:
            key = serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        remedy = f"Make one without a passphrase: ssh-keygen -t ecdsa -b 384 -N '' -f {path}"
        yield Finding("key", "problem", f"it cannot be read: {shown(error)}", remedy)
        return
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        remedy = f"Make one: ssh-keygen -t ecdsa -b 384 -N '' -f {path}"
        yield Finding("key", "problem", "Flower takes elliptic curve keys only, this is another kind", remedy)
        return
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    beside = path.with_name(f"{path.name}.pub") if not path.suffix else path.with_suffix(".pub")
    if beside.is_file() and beside.read_bytes().split()[:2] != public.split()[:2]:
        remedy = f"Make it again: ssh-keygen -y -f {path} > {beside}, and register that one."
        yield Finding("key", "problem", f"{beside.name} is not its public part", remedy)
    yield Finding(
        "key",
        "ok",
        f"private, {key.curve.name}; whether it is registered only the server can say",
        "",
        {"public": public.decode()},
    )


# --- the server ----------------------------------------------------------------------------


class Reached(NamedTuple):
    """What a connection to the server showed.

    Attributes:
        findings: of port, certificate and clock.
        mbit: megabits a second upwards, as measured; None where that was not possible.
        connected: whether a verified connection was made.
    """

    findings: list[Finding]
    mbit: float | None = None
    connected: bool = False


def reach(superlink: str, authority: Path | None) -> Reached:
    """Connect to the server as a node does, look at its clock, and time an upload."""
    address = address_of(superlink)
    try:
        socket.create_connection(address, CONNECT_S).close()
    except socket.gaierror as error:
        remedy = "Check the name, and this machine's DNS."
        return Reached([Finding("port", "problem", f"nobody knows {address.host}: {error.strerror}", remedy)])
    except OSError as error:
        text = f"no connection to {superlink}: {error.strerror or error}"
        remedy = "Check that the server runs, and that no firewall between is closed: nodes connect outwards only."
        return Reached([Finding("port", "problem", text, remedy)])
    found = [Finding("port", "ok", f"{superlink} accepts connections")]
    if authority is None:
        text = "the server's certificate was not looked at"
        return Reached([*found, Finding("TLS", "warning", text, "Give --root-certificates ca.crt.")])
    try:
        with _connected(address, authority) as connection:
            end = dict(connection.getpeercert() or {}).get("notAfter", "")
            found.append(_dates("TLS", dt.datetime.fromtimestamp(0, dt.UTC), _ends(str(end))))
            found += _clock(connection, address)
    except ssl.SSLCertVerificationError as error:
        return Reached([*found, Finding("TLS", "problem", f"refused: {error.verify_message}", _remedy(error, address))])
    except (ssl.SSLError, OSError) as error:
        remedy = "Check the port, and that the server was started with certificates."
        return Reached([*found, Finding("TLS", "problem", f"no TLS there: {shown(error)}", remedy)])
    return Reached(found, _measured(address, authority), connected=True)


def _ends(text: str) -> dt.datetime:
    return dt.datetime.fromtimestamp(ssl.cert_time_to_seconds(text), dt.UTC)


def _remedy(error: ssl.SSLCertVerificationError, address: Address) -> str:
    text = error.verify_message.lower()
    if "hostname" in text or "ip address" in text:
        return f"The certificate must hold {address.host}; use another name of the server, or have a new one made."
    if "expired" in text or "not yet valid" in text:
        return "Check this machine's clock; have the server's owner make new certificates."
    return "Ask the server's owner for ca.crt and compare its SHA-256. Until then this may be an intruder."


def _connected(address: Address, authority: Path) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(authority))
    plain = socket.create_connection(address, CONNECT_S)
    plain.settimeout(CONNECT_S)
    try:
        return context.wrap_socket(plain, server_hostname=address.host)
    except BaseException:
        plain.close()
        raise


def _clock(connection: ssl.SSLSocket, address: Address) -> Iterator[Finding]:
    """The difference to the server's clock, where it answers HTTP; both ends of the request are taken."""
    before = time.time()
    connection.sendall(f"GET /health HTTP/1.1\r\nHost: {address.host}\r\nConnection: close\r\n\r\n".encode())
    answer = connection.recv(4096).decode("latin-1")
    after = time.time()
    dates = [line[5:].strip() for line in answer.split("\r\n") if line.lower().startswith("date:")]
    if not dates:
        yield Finding("clock", "ok", "the server does not tell the time; its certificate is valid by this clock")
        return
    there = parsedate_to_datetime(dates[0]).timestamp()  # whole seconds
    off = max(before - there - 1.0, there - after, 0.0)
    text, values = f"{off:.0f} s off the server's", {"seconds": round(off, 1)}
    if off > MOST_OFF_S:
        yield Finding("clock", "problem", text, "Switch time synchronisation on (timedatectl set-ntp true).", values)
    else:
        yield Finding("clock", "ok", text if off else "as the server's", "", values)


def _measured(address: Address, authority: Path) -> float | None:
    """Megabits a second of an upload that the server reads to its end and refuses; None if it did not."""
    head = (
        f"POST /fedmlic-doctor HTTP/1.1\r\nHost: {address.host}\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Length: {PROBE_BYTES}\r\nConnection: close\r\n\r\n"
    )
    try:
        with _connected(address, authority) as connection:
            started = time.perf_counter()
            connection.sendall(head.encode())
            connection.sendall(bytes(PROBE_BYTES))
            # An answer that came early is one to the head alone.
            sent = time.perf_counter() - started
            if not connection.recv(64):
                return None
            seconds = time.perf_counter() - started
    except OSError:
        return None
    return 8e-6 * PROBE_BYTES / seconds if sent > SHORTEST_PROBE_S else None


def link_finding(mbit: float | None, given: float) -> Finding:
    """What the link carries."""
    if given:
        return Finding("link", "ok", f"{given:g} Mbit/s, as --link-mbit says", "", {"mbit": given})
    if mbit is None:
        text = "its speed could not be measured: the server reads no probe"
        return Finding("link", "warning", text, "Give --link-mbit, the upload that your provider promises.")
    text = f"about {mbit:,.0f} Mbit/s upwards ({size(PROBE_BYTES)} sent)"
    return Finding("link", "ok", text, "", {"mbit": mbit})
