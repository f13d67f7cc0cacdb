from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from provisioning.authority.tls import ServerFiles, create_authority, issue_server, store_server

NOW = datetime.now(UTC)


def _handshake(files: ServerFiles, root: Path, name: str) -> None:
    """One TLS handshake over a socket pair, the client pinning `root` and asking for `name`."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(files.certificate, files.key)
    client_context = ssl.create_default_context(cafile=str(root))
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT
    left, right = socket.socketpair()

    def serve() -> None:
        try:
            server_context.wrap_socket(left, server_side=True).close()
        except OSError:
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client_context.wrap_socket(right, server_hostname=name).close()
    finally:
        right.close()
        thread.join()


@pytest.fixture
def files(tmp_path: Path) -> ServerFiles:
    authority = create_authority("test", now=NOW)
    return store_server(tmp_path, authority, issue_server(authority, ["127.0.0.1", "superlink.test"], now=NOW))


@pytest.mark.parametrize("name", ["127.0.0.1", "superlink.test"])
def test_a_strict_client_that_pins_the_root_accepts_the_server(files: ServerFiles, name: str) -> None:
    _handshake(files, files.root, name)


def test_another_root_is_refused(files: ServerFiles, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(create_authority("test", now=NOW).certificate_pem)
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(files, other, "127.0.0.1")


def test_another_name_is_refused(files: ServerFiles) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(files, files.root, "elsewhere.test")


def test_the_key_is_readable_by_its_owner_only(files: ServerFiles) -> None:
    assert files.key.stat().st_mode & 0o777 == 0o600


def test_a_server_certificate_is_valid_a_little_before_now_and_cannot_sign_others(files: ServerFiles) -> None:
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    assert certificate.not_valid_before_utc < NOW < certificate.not_valid_after_utc - timedelta(days=300)
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
