"""The private CA and the SuperLink's certificate: who may read them, what they are good for."""

import datetime
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from compose.launcher.certificates import (
    SERVER_LASTS,
    Tls,
    make_certificates,
    proxy_certificate,
)
from streams.contract.errors import UsageError


def handshake(tls: Tls, client: ssl.SSLContext, name: str) -> None:
    """A client that is to reach `name` meets the certificate; ssl.SSLError when it is refused."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tls.certificate, tls.key)
    near, far = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(far, server_side=True).close()
        except OSError:
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(near, server_hostname=name).close()
    finally:
        near.close()
        thread.join(10)


def trusting(ca: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    return context


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return make_certificates(tmp_path)


def test_keys_are_private(tls: Tls) -> None:
    keys = sorted(tls.ca.parent.glob("*.key"))
    assert [path.name for path in keys] == ["ca.key", "server.key"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_it_is_good_for_this_machine(tls: Tls, name: str) -> None:
    handshake(tls, trusting(tls.ca), name)


def test_it_is_good_for_no_other_machine(tls: Tls) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(tls, trusting(tls.ca), "example.org")


def test_they_stay_until_a_month_before_the_end(tls: Tls, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tls.ca.parent.iterdir()}
    now = datetime.datetime.now(datetime.UTC)
    make_certificates(tmp_path, now + SERVER_LASTS - datetime.timedelta(days=31))
    assert {path: path.read_bytes() for path in before} == before
    make_certificates(tmp_path, now + SERVER_LASTS - datetime.timedelta(days=29))
    assert tls.ca.read_bytes() == before[tls.ca]
    assert tls.certificate.read_bytes() != before[tls.certificate]


def test_a_certificate_without_its_key_is_made_anew(tls: Tls, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other")
    tls.key.write_bytes(other.key.read_bytes())
    make_certificates(tmp_path)
    handshake(tls, trusting(tls.ca), "localhost")
    tls.certificate.write_bytes(other.certificate.read_bytes())
    tls.key.write_bytes(other.key.read_bytes())
    make_certificates(tmp_path)
    x509.load_pem_x509_certificate(tls.certificate.read_bytes()).verify_directly_issued_by(
        x509.load_pem_x509_certificate(tls.ca.read_bytes())
    )


def test_a_damaged_file_is_named(tls: Tls, tmp_path: Path) -> None:
    tls.ca.write_text("nothing")
    with pytest.raises(UsageError, match=r"superlink cannot be used: .*: remove the folder"):
        make_certificates(tmp_path)


def test_a_proxys_certificate_is_for_its_name_by_the_same_authority(tmp_path: Path) -> None:
    superlink = make_certificates(tmp_path)
    for host in ("proxy.example.org", "192.0.2.7"):
        tls = proxy_certificate(tmp_path, host)
        assert tls.ca == superlink.ca
        found = x509.load_pem_x509_certificate(tls.certificate.read_bytes())
        found.verify_directly_issued_by(x509.load_pem_x509_certificate(tls.ca.read_bytes()))
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [str(name.value) for name in names] == [host]
        assert stat.S_IMODE(tls.key.stat().st_mode) == 0o600
        assert proxy_certificate(tmp_path, host) == tls
        assert tls.certificate.read_bytes() == found.public_bytes(Encoding.PEM)


@pytest.mark.parametrize("host", ["", "../ca", "a/b", "-a", "ca", "server", "a b"])
def test_what_is_no_hosts_name_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not the name or address of a host"):
        proxy_certificate(tmp_path, host)
