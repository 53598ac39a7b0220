"""The private CA and the TLS certificate of a SuperLink on this machine.

    <state>/keys/superlink/ca.pem      for clients to verify the SuperLink: `--root-certificates`
    <state>/keys/superlink/ca.key      the CA's private key, 0600
    <state>/keys/superlink/server.pem  for localhost and 127.0.0.1, signed by the CA
    <state>/keys/superlink/server.key  its private key, 0600
    <state>/keys/superlink/<host>.pem, .key   the same for a proxy that devices reach by this name

All PEM, the keys on P-256 (PKCS 8, no password). The CA is valid for ten years, the server
certificate for a year; it is renewed when less than a month is left.
"""

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from streams.contract.errors import UsageError
from streams.runtime.files import write_atomic
from streams.runtime.trust import write_private_key

CA_LASTS = datetime.timedelta(days=3650)
SERVER_LASTS = datetime.timedelta(days=365)
LEFT = datetime.timedelta(days=30)
CLOCKS = datetime.timedelta(hours=1)  # by which a client's clock may be behind
HOSTS = ("localhost", "127.0.0.1")
HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,250}[A-Za-z0-9])?")
RESERVED = ("ca", "server")  # names of files


@dataclass(frozen=True)
class Tls:
    """Paths of PEM files. `ca` is public; the certificate and its key belong to the SuperLink."""

    ca: Path
    certificate: Path
    key: Path


def make_certificates(keys: Path, now: datetime.datetime | None = None) -> Tls:
    """Create missing certificates, and renew an expiring one, under `keys`, the state's folder of
    keys.

    Raises UsageError if existing files are unreadable.
    """
    return _certificate(keys, "server", HOSTS, now or datetime.datetime.now(datetime.UTC))


def proxy_certificate(keys: Path, host: str, now: datetime.datetime | None = None) -> Tls:
    """Create or renew, as above, the certificate of a proxy in front of the SuperLink; `host` is
    the name or address by which devices reach it. Raises UsageError if that is none."""
    if not HOST_NAME.fullmatch(host) or host in RESERVED:
        raise UsageError(f"{host!r} is not the name or address of a host")
    return _certificate(keys, host, (host,), now or datetime.datetime.now(datetime.UTC))


def _certificate(keys: Path, name: str, hosts: Sequence[str], now: datetime.datetime) -> Tls:
    folder = keys.absolute() / "superlink"
    tls = Tls(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key")
    try:
        ca, ca_key = _authority(folder, now)
        if not _still_good(tls, ca, now):
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = _server_certificate(key.public_key(), hosts, ca, ca_key, now)
            write_private_key(key, tls.key)
            write_atomic(tls.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    except (OSError, ValueError, TypeError) as exc:
        raise UsageError(
            f"the certificates in {folder} cannot be used: {exc}: remove the folder to create "
            "new ones"
        ) from exc
    return tls


def _authority(
    folder: Path, now: datetime.datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate_path, key_path = folder / "ca.pem", folder / "ca.key"
    if certificate_path.exists():
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{key_path} is not a key of an elliptic curve")
        return certificate, key
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Tidewheel CA of one state folder")
    certificate = (
        _builder(name, name, key.public_key(), now, CA_LASTS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(_identifier(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private_key(key, key_path)  # first: a CA without its key cannot sign
    write_atomic(certificate_path, certificate.public_bytes(serialization.Encoding.PEM))
    return certificate, key


def _still_good(tls: Tls, ca: x509.Certificate, now: datetime.datetime) -> bool:
    """Return whether the server's certificate exists, is of this CA, fits its key, and is valid
    long enough."""
    if not (tls.certificate.exists() and tls.key.exists()):
        return False
    found = x509.load_pem_x509_certificate(tls.certificate.read_bytes())
    key = serialization.load_pem_private_key(tls.key.read_bytes(), password=None)
    try:
        found.verify_directly_issued_by(ca)
    except InvalidSignature:
        return False
    # A crash between the two files leaves a key without its certificate.
    return key.public_key() == found.public_key() and found.not_valid_after_utc - now > LEFT


def _server_certificate(
    key: ec.EllipticCurvePublicKey,
    hosts: Sequence[str],
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
) -> x509.Certificate:
    names = [_general_name(host) for host in hosts]
    return (
        _builder(_name("Tidewheel SuperLink"), ca.subject, key, now, SERVER_LASTS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(_identifier(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    lasts: datetime.timedelta,
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.public_key(key).serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - CLOCKS).not_valid_after(now + lasts)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _identifier(key: ec.EllipticCurvePublicKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
