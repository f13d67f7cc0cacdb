from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, Signer
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Root

from agent.core.errors import HardwareError, OperatorError
from agent.identity.key import HardwareKey, init_key
from agent.identity.signer import HardwareSigner, tuf_key
from tests.contract.rigs import RIG_FOR_SCHEME

SIGNING = sorted(set(RIG_FOR_SCHEME) - {"fido2"})


@pytest.fixture
def key(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HardwareKey]:
    with RIG_FOR_SCHEME[request.param](tmp_path) as rig:
        yield init_key(rig.uri, person=rig.person)


@pytest.mark.parametrize("key", SIGNING, indirect=True)
def test_tuf_accepts_metadata_signed_by_hardware(key: HardwareKey) -> None:
    root = Metadata(Root())
    signer = HardwareSigner(key)
    root.signed.add_key(signer.public_key, "root")
    root.sign(signer)
    received = Metadata[Root].from_bytes(root.to_bytes())
    received.verify_delegate("root", received)
    received.signed.version += 1
    with pytest.raises(UnsignedMetadataError):
        received.verify_delegate("root", received)


@pytest.mark.parametrize("key", ["fido2"], indirect=True)
def test_fido2_cannot_sign_metadata_and_says_so(key: HardwareKey) -> None:
    with pytest.raises(HardwareError, match="cannot sign"):
        HardwareSigner(key)


@pytest.mark.parametrize("key", ["software"], indirect=True)
def test_another_key_than_the_metadata_lists(key: HardwareKey, tmp_path: Path) -> None:
    other = init_key(f"software:{tmp_path / 'other.pem'}")
    with pytest.raises(OperatorError, match="not the one"):
        HardwareSigner(key, tuf_key(other.public_key()))


@pytest.mark.parametrize("key", ["software", "tpm"], indirect=True)
def test_opened_by_uri_as_securesystemslib_does(key: HardwareKey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, key.kind.value, HardwareSigner)
    signer = Signer.from_priv_key_uri(key.uri, tuf_key(key.public_key()))
    signer.public_key.verify_signature(signer.sign(b"payload"), b"payload")


@pytest.mark.parametrize("scheme", SIGNING)
def test_imported_by_uri_with_secrets_for_its_pin(scheme: str, tmp_path: Path) -> None:
    asked: list[str] = []
    with RIG_FOR_SCHEME[scheme](tmp_path) as rig:
        made = init_key(rig.uri, person=rig.person)

        def answer(what: str) -> str:
            asked.append(what)
            return rig.person.ask_pin("", attempts_remaining=None)

        signer = HardwareSigner.import_(rig.uri, answer)
        signer.public_key.verify_signature(signer.sign(b"payload"), b"payload")
        assert signer.public_key.keyval == tuf_key(made.public_key()).keyval
    assert all(what.startswith("PIN of ") for what in asked)
    assert bool(asked) == scheme.endswith("-with-pin")
