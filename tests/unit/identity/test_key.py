from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, x448
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent.core.errors import HardwareError, OperatorError, SecureHealthError, SoftwareError
from agent.identity.key import (
    KEY_FOR_SCHEME,
    HardwareKey,
    PresenceState,
    find_devices,
    init_key,
    open_key,
    parse_key_uri,
)
from agent.statements.roots import KeyKind


@pytest.fixture
def key(tmp_path: Path) -> HardwareKey:
    return init_key(f"software:{tmp_path / 'keys' / 'key.pem'}")


@pytest.mark.parametrize("uri", ["", "floppy:a", "tpm", "TPM:x", "software", "../tpm:x"])
def test_unknown_schemes_are_refused(uri: str) -> None:
    known = uri.partition(":")[0] in KEY_FOR_SCHEME
    with pytest.raises(SecureHealthError) as failure:
        open_key(uri)
    assert (failure.value.code == "identity.unknown_scheme") is not known


@pytest.mark.parametrize(("scheme", "module", "library"), [("tpm", "agent.identity.tpm", "tpm2_pytss")])
def test_missing_library_says_what_to_install(
    scheme: str, module: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KEY_FOR_SCHEME, scheme, f"{module}_of_a_library_that_is_missing")
    with pytest.raises(OperatorError, match="not installed") as failure:
        open_key(f"{scheme}:x")
    assert f"'{scheme}' extra" in failure.value.next_step
    assert all(not found.uri.startswith(scheme) for found in find_devices())


@pytest.mark.parametrize(
    ("uri", "target", "options"),
    [
        ("tpm:", "", {}),
        ("tpm:swtpm:path=/run/x.sock", "swtpm:path=/run/x.sock", {}),
        ("tpm:device:/dev/tpmrm0?key=0x81020001", "device:/dev/tpmrm0", {"key": "0x81020001"}),
        ("tpm:?key=1&ek=p384", "", {"key": "1", "ek": "p384"}),
        ("tpm:a?key=%20b", "a", {"key": " b"}),
    ],
)
def test_uris_are_split(uri: str, target: str, options: dict[str, str]) -> None:
    parsed = parse_key_uri(uri, options=frozenset({"key", "ek"}))
    assert (parsed.scheme, parsed.target, dict(parsed.options)) == ("tpm", target, options)


@pytest.mark.parametrize("uri", ["tpm:?key", "tpm:?key=", "tpm:?colour=blue", "tpm:?key=1&=2"])
def test_bad_options_are_refused(uri: str) -> None:
    with pytest.raises(OperatorError, match="option"):
        parse_key_uri(uri, options=frozenset({"key"}))


@pytest.mark.parametrize("handle", ["", "x", "0", "0x80000000", "0x81000001", "0x81800000", "-1"])
def test_handles_that_no_node_key_may_have(handle: str) -> None:
    with pytest.raises(OperatorError):
        open_key(f"tpm:swtpm:path=/nonexistent?key={handle}")


def test_unknown_endorsement_key_is_refused() -> None:
    with pytest.raises(OperatorError, match="endorsement"):
        open_key("tpm:swtpm:path=/nonexistent?ek=rsa1024")


def test_software_key_never_passes_for_hardware(key: HardwareKey) -> None:
    assert key.kind is KeyKind.SOFTWARE
    assert "SOFTWARE" in key.presence().device
    assert not key.capabilities.attests
    with pytest.raises(HardwareError, match="cannot show evidence"):
        key.attest(bytes(32))


def test_software_key_files_are_private_and_encrypted(key: HardwareKey, tmp_path: Path) -> None:
    files = sorted((tmp_path / "keys").iterdir())
    assert [file.name for file in files] == ["key.pem", "key.pem.passphrase"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert files[0].read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"noise"),
        lambda path: path.with_name("key.pem.passphrase").write_text("wrong"),
        lambda path: path.write_bytes(
            x448.X448PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        ),
    ],
)
def test_spoilt_key_file_is_refused_in_words(key: HardwareKey, tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    spoil(tmp_path / "keys" / "key.pem")
    with pytest.raises(OperatorError, match="cannot be read as a key"):
        open_key(key.uri)
    assert key.presence().state is PresenceState.BLOCKED


def test_key_file_without_a_name() -> None:
    with pytest.raises(OperatorError, match="names no file"):
        open_key("software:")


def test_signing_key_gives_nothing_away(key: HardwareKey) -> None:
    private = key.signing_key
    for attempt in (
        private.private_numbers,
        lambda: private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        lambda: private.exchange(ec.ECDH(), key.public_key()),
        lambda: private.sign(b"x", ec.ECDSA(hashes.SHA512())),
    ):
        with pytest.raises(SoftwareError, match="which it cannot"):
            attempt()
    assert copy.copy(private) is copy.deepcopy(private) is private
