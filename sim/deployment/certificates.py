"""Keys and certificates of a deployment: one authority, certificates of the server, one key pair per device.

Everything is on the curve P-384 with SHA-384: SuperNodes' keys must be keys of an elliptic curve, and all
versions of TLS that are allowed here know it. The device's key is no certificate: Flower registers public
keys, and a device proves with a signature on every request that it has the private one.
"""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedmlic.errors import InputError

CURVE: Final = ec.SECP384R1()
BACKDATE: Final = dt.timedelta(hours=1)
"""How much before now a certificate begins, for clocks that are behind."""

_PEM: Final = serialization.Encoding.PEM
_PLAIN: Final = serialization.NoEncryption()


@dataclass(frozen=True)
class Pair:
    """A private key and its certificate, or its public key.

    Attributes:
        private: PEM (OpenSSH's form for devices).
        public: certificate as PEM, or one line in OpenSSH's form.
    """

    private: bytes
    public: bytes


def make_authority(name: str, days: int) -> Pair:
    """A certificate authority that can sign certificates of servers and no further authorities."""
    key = ec.generate_private_key(CURVE)
    subject = _name(f"{name} authority")
    builder = _builder(subject, subject, key.public_key(), days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = builder.add_extension(usage, critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return Pair(
        _private(key), builder.add_extension(identifier, critical=False).sign(key, hashes.SHA384()).public_bytes(_PEM)
    )


def make_certificate(authority: Pair, names: Sequence[str], days: int) -> Pair:
    """A server's certificate.

    Args:
        authority: that signs it.
        names: DNS names and IP addresses under which it is reached; the first is the common name.
        days: validity; never longer than the authority's.
    """
    key, root = ec.generate_private_key(CURVE), x509.load_pem_x509_certificate(authority.public)
    builder = _builder(_name(names[0]), root.subject, key.public_key(), days, root.not_valid_after_utc)
    places = x509.SubjectAlternativeName([_general_name(name) for name in names])
    builder = builder.add_extension(places, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    builder = builder.add_extension(usage, critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key())  # type: ignore[arg-type]
    builder = builder.add_extension(issuer, critical=False)
    signed = builder.sign(_load_private(authority.private), hashes.SHA384())
    return Pair(_private(key), signed.public_bytes(_PEM))


def make_device_key(comment: str) -> Pair:
    """A device's key pair, as ``ssh-keygen -t ecdsa -b 384`` makes it."""
    key = ec.generate_private_key(CURVE)
    private = key.private_bytes(_PEM, serialization.PrivateFormat.OpenSSH, _PLAIN)
    return Pair(private, _ssh_line(key.public_key(), comment))


def read_public_key(path: Path, comment: str) -> bytes:
    """A device's public key, which its owner supplied: one line in OpenSSH's form.

    Args:
        path: a public key (OpenSSH or PEM), or a certificate signing request, whose signature is checked.
        comment: for the end of the line.

    Raises:
        InputError: it is missing, or no public key of an elliptic curve that Flower takes; a private key is refused.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        msg = f"Expected {path} to be the public key of {comment}, got: {error.strerror or error}."
        raise InputError(msg) from None
    if b"PRIVATE KEY" in text:
        msg = f"Expected {path} to be a public key, got a private one. That stays with its owner; give the .pub file."
        raise InputError(msg)
    try:
        key = _load_public(text)
    except (ValueError, UnsupportedAlgorithm) as error:
        msg = f"Expected {path} to be a public key or a signing request, got: {error}."
        raise InputError(msg) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in {"secp256r1", "secp384r1", "secp521r1"}:
        msg = (
            f"Expected {path} to be a key of a NIST curve, got another kind. Make one with: ssh-keygen -t ecdsa -b 384"
        )
        raise InputError(msg)
    return _ssh_line(key, comment)


def header_value(public: bytes) -> str:
    """What a SuperNode with this key sends in the header ``flwr-public-key`` of every request."""
    key = serialization.load_ssh_public_key(public)
    pem = key.public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(pem).decode("ascii")


def private_value(private: bytes) -> bytes:
    """The secret number of a private key of a kit, by which other files that hold it are found."""
    ssh = b"OPENSSH" in private
    key = (
        serialization.load_ssh_private_key(private, None) if ssh else serialization.load_pem_private_key(private, None)
    )
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101  (all keys of a kit are)
    return key.private_numbers().private_value.to_bytes((key.curve.key_size + 7) // 8, "big")


def holds(text: bytes, value: bytes) -> bool:
    """Whether a file holds a secret number: as it is, or in any block of PEM."""
    blocks = re.findall(rb"-----BEGIN [^-]+-----\s+([A-Za-z0-9+/=\s]+)-----END", text)
    return value in text or any(value in base64.b64decode(block) for block in blocks)


def expiry(certificate: bytes) -> dt.datetime:
    """When a certificate ends."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def belongs(pair: Pair) -> bool:
    """Whether a private key of a kit is that of its certificate; not where one of them cannot be read."""
    try:
        certificate = x509.load_pem_x509_certificate(pair.public)
        return _load_private(pair.private).public_key() == certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def public_of(private: bytes, comment: str) -> bytes:
    """The public key of a device's private one: one line in OpenSSH's form; empty if it cannot be read."""
    try:
        key = serialization.load_ssh_private_key(private, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return b""
    return _ssh_line(key.public_key(), comment) if isinstance(key, ec.EllipticCurvePrivateKey) else b""


def is_signed_by(certificate: bytes, authority: bytes) -> bool:
    """Whether a certificate names an authority as its issuer and has its signature."""
    try:
        x509.load_pem_x509_certificate(certificate).verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def names_of(certificate: bytes) -> list[str]:
    """The DNS names and addresses for which a certificate holds."""
    found = x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(each.value) for each in found.value]


def _load_public(text: bytes) -> object:
    if b"CERTIFICATE REQUEST" in text:
        request = x509.load_pem_x509_csr(text)
        if not request.is_signature_valid:
            msg = "a signing request whose signature is wrong"
            raise ValueError(msg)
        return request.public_key()
    if b"BEGIN PUBLIC KEY" in text:
        return serialization.load_pem_public_key(text)
    return serialization.load_ssh_public_key(text)


def _ssh_line(key: ec.EllipticCurvePublicKey, comment: str) -> bytes:
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return line + b" " + comment.encode("ascii") + b"\n"


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, _PLAIN)


def _load_private(text: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(text, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        msg = "Expected a private key of the kit to be of an elliptic curve, got another kind. Restore it from a copy."
        raise InputError(msg)
    return key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: int,
    latest: dt.datetime | None = None,
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    end = now + dt.timedelta(days=days)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - BACKDATE)
    return builder.not_valid_after(min(end, latest) if latest else end)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text[:64])])


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
