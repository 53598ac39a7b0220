"""The private CA and the TLS certificate of a SuperLink on this machine.

    <state>/keys/superlink/ca.pem      for clients to verify the SuperLink: `--root-certificates`
    <state>/keys/superlink/ca.key      the CA's private key, 0600
    <state>/keys/superlink/server.pem  for localhost and 127.0.0.1, signed by the CA
    <state>/keys/superlink/server.key  its private key, 0600

All PEM, the keys on P-256 (PKCS 8, no password). The CA is valid for ten years, the server
certificate for a year; it is renewed when less than a month is left.
"""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from streams.contract.errors import UsageError
from streams.runtime.disk import write_atomic
from streams.runtime.key_files import write_private_key

CA_LASTS = datetime.timedelta(days=3650)
SERVER_LASTS = datetime.timedelta(days=365)
LEFT = datetime.timedelta(days=30)
CLOCKS = datetime.timedelta(hours=1)  # by which a client's clock may be behind
HOSTS = ("localhost", "127.0.0.1")


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
    folder = keys.absolute() / "superlink"
    now = now or datetime.datetime.now(datetime.UTC)
    tls = Tls(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    try:
        ca, ca_key = _authority(folder, now)
        if not _still_good(tls, ca, now):
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = _server_certificate(key.public_key(), ca, ca_key, now)
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
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
) -> x509.Certificate:
    host, address = HOSTS
    names = [x509.DNSName(host), x509.IPAddress(ipaddress.ip_address(address))]
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
