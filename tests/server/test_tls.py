"""Transport security: certificates of both sides, replaced while the server runs, and what does not fit refused."""

import json
import socket
import ssl
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from mmecg_server.config import AuthConfig, TlsConfig
from mmecg_server.server import Server

from mmecg.client import ChannelOptions, Client, RetryPolicy
from mmecg.errors import ConfigError, NotReadyError, PermissionDeniedError, UnauthenticatedError

ONCE = ChannelOptions(retry=RetryPolicy(attempts=1))


class Authority:
    """Signs certificates. Files go into a folder: NAME.pem and NAME.key."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = folder / f"{name}.pem"
        made = self._sign(self._name, self._key.public_key(), x509.BasicConstraints(ca=True, path_length=None))
        self.certificate.write_bytes(made)

    def issue(self, name: str, file: str | None = None) -> tuple[Path, Path]:
        """Write certificate and key of a server on this machine, or of a client; return their paths."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName(f"{name}.clinic")]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate, private = self._folder / f"{file or name}.pem", self._folder / f"{file or name}.key"
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        private.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
        certificate.write_bytes(self._sign(subject, key.public_key(), x509.SubjectAlternativeName(names)))
        return certificate, private

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType) -> bytes:
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "ca")


@pytest.fixture
def serve(config, retriever, authority):
    """Start servers with TLS; returns the port."""
    servers = []

    def start(*, mutual: bool = False, **changes) -> Server:
        certificate, key = authority.issue("server")
        tls = TlsConfig(certificate=certificate, key=key, client_ca=authority.certificate if mutual else None)
        server = Server(replace(config, tls=tls, **changes))
        servers.append(server)
        server.serve(retriever)
        return server

    yield start
    for server in servers:
        server.stop()


def client_of(server: Server, authority: Authority, own: tuple[Path, Path] | None = None, **changes) -> Client:
    certificate, key = own or (None, None)
    options = replace(ONCE, tls_ca=authority.certificate, tls_certificate=certificate, tls_key=key, **changes)
    return Client(f"127.0.0.1:{server.port}", options)


def serial_of(server: Server) -> int:
    """Return the serial number of the certificate that the next connection meets."""
    shown = ssl.get_server_certificate(("127.0.0.1", server.port))
    return x509.load_pem_x509_certificate(shown.encode()).serial_number


def serial_in(path: Path) -> int:
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


def test_tls_and_who_does_not_fit(serve, authority, tmp_path):
    server = serve()
    with client_of(server, authority) as client:
        assert client.stats().studies == 0
    with client_of(server, authority, tls_server_name="server.clinic") as client:
        assert client.stats().studies == 0
    with client_of(server, Authority(tmp_path, "other")) as client, pytest.raises(NotReadyError, match=r"(?i)ssl|cert"):
        client.stats()
    with client_of(server, authority, tls_server_name="elsewhere") as client, pytest.raises(NotReadyError):
        client.stats()
    with Client(f"127.0.0.1:{server.port}", ONCE) as client, pytest.raises(NotReadyError):  # plain text to a TLS port
        client.stats()


def test_plain_text_to_a_tls_port_is_hung_up_on(serve, authority):
    server = serve()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
        line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        assert b"mmecg" not in line.recv(1000)
    with client_of(server, authority) as client:
        assert client.stats().studies == 0


def test_tls_to_a_plain_port_fails_at_once(server, authority):
    with client_of(server, authority) as client, pytest.raises(NotReadyError):
        client.stats()


def test_client_certificates(serve, authority, tmp_path):
    server = serve(mutual=True)
    with client_of(server, authority, authority.issue("ward-3")) as client:
        assert client.stats().studies == 0
    stranger = Authority(tmp_path, "other").issue("ward-3", "stranger")
    for own in (None, stranger):
        with client_of(server, authority, own) as client, pytest.raises(NotReadyError):
            client.stats()


def test_a_client_certificate_is_a_principal(serve, authority, tmp_path, make_study):
    file = tmp_path / "principals.toml"
    file.write_text(
        '[[principal]]\nname = "ward 3"\nroles = ["reader"]\ncertificate = "ward-3"\n'
        '[[principal]]\nname = "loader"\nroles = ["ingester"]\ncertificate = "loader.clinic"\n'
        '[[principal]]\nname = "gone"\nroles = ["reader"]\ncertificate = "gone"\nexpires = 2020-01-01T00:00:00Z\n'
    )
    server = serve(mutual=True, auth=AuthConfig(principals=file))
    with client_of(server, authority, authority.issue("loader")) as client:
        assert [outcome.error for outcome in client.upsert([make_study(1)])] == [None]
    with client_of(server, authority, authority.issue("ward-3")) as client:
        assert client.get_study("study-1").study_id == "study-1"
        with pytest.raises(PermissionDeniedError):
            client.delete_study("study-1")
    for name, words in (("nobody", "nobody is known"), ("gone", "expired")):
        with client_of(server, authority, authority.issue(name)) as client:
            with pytest.raises(UnauthenticatedError, match=words):
                client.stats()
            with pytest.raises(UnauthenticatedError):
                list(client.upsert([make_study(2)]))


def test_a_new_certificate_is_served_without_a_restart(serve, authority):
    server = serve()
    with client_of(server, authority) as old:
        assert old.stats().studies == 0
        before = serial_of(server)
        certificate, _ = authority.issue("server")
        assert before != serial_in(certificate) == serial_of(server)
        assert old.stats().studies == 0  # open connections go on
    with client_of(server, authority) as new:
        assert new.stats().studies == 0


@pytest.mark.parametrize("part", ["noise", "empty", "of another key", "gone"])
def test_a_broken_certificate_keeps_the_old_one(serve, authority, log_lines, part):
    server = serve()
    before = serial_of(server)
    certificate, key = authority._folder / "server.pem", authority._folder / "server.key"
    kept = certificate.read_bytes()
    if part == "gone":
        key.unlink()
    elif part == "of another key":
        certificate.write_bytes(authority.issue("other")[0].read_bytes())
    else:
        certificate.write_bytes(b"" if part == "empty" else b"-----BEGIN CERTIFICATE-----\nabc")
    for _ in range(2):
        assert serial_of(server) == before
    failures = [json.loads(line) for line in log_lines if "reload_failed" in line]
    assert len(failures) == 1  # told once, and not at every connection
    assert failures[0]["level"] == "error"
    certificate.write_bytes(kept)
    certificate, _ = authority.issue("server")
    assert serial_of(server) == serial_in(certificate)


def test_a_key_that_does_not_fit_stops_the_start(config, authority):
    certificate, _ = authority.issue("server")
    _, key = authority.issue("other")
    with pytest.raises(ConfigError, match="is not the key of"):
        Server(replace(config, tls=TlsConfig(certificate=certificate, key=key)))
    with pytest.raises(ConfigError, match="cannot be read"):
        Server(replace(config, tls=TlsConfig(certificate=certificate, key=Path("nowhere.key"))))


def test_a_stranger_that_says_nothing_is_hung_up_on(serve, monkeypatch):
    monkeypatch.setattr("mmecg_server.server.HANDSHAKE_MS", 300)
    server = serve()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as line:
        started = time.monotonic()
        assert line.recv(100) == b""
        assert time.monotonic() - started < 30
