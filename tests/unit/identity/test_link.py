"""Which key opens the SuperLink's door, for every kind of key."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.identity.key import init_key
from agent.identity.link import link_key
from agent.identity.vault import Vault, open_plain_vault
from agent.statements.roots import hash_for
from tests.contract.rigs import RIG_FOR_SCHEME
from tests.simulators.fake_key import FakeKey

BY_ITSELF = {
    "fido2": False,
    "piv": True,
    "piv-with-pin": False,
    "pkcs11": True,
    "pkcs11-with-pin": False,
    "software": True,
    "tpm": True,
}
VAULT = Vault(b"v" * 32, sealed=False)


@pytest.mark.parametrize("name", RIG_FOR_SCHEME)
def test_a_key_that_needs_nobody_signs_for_itself_and_every_other_is_stood_in_for(tmp_path: Path, name: str) -> None:
    with RIG_FOR_SCHEME[name](tmp_path) as rig:
        key = init_key(rig.uri, person=rig.person)
        link = link_key(key, VAULT)
        if not BY_ITSELF[name]:
            rig.pull_out()  # the door's key needs no device
        algorithm = ec.ECDSA(hash_for(link.public_key()))
        link.public_key().verify(link.sign(b"2026-11-24T12:00:00", algorithm), b"2026-11-24T12:00:00", algorithm)
        assert (link.public_key() == key.public_key()) is BY_ITSELF[name]


def test_it_is_the_same_after_every_restart_and_another_in_every_box(tmp_path: Path) -> None:
    key = FakeKey(unattended=False)
    first, again = (link_key(key, open_plain_vault(tmp_path / "vault")).public_key() for _ in range(2))
    assert first == again
    assert link_key(key, open_plain_vault(tmp_path / "other")).public_key() != first


def test_the_key_that_takes_another_s_place_has_one_of_its_own() -> None:
    first, second = (link_key(FakeKey(unattended=False), VAULT).public_key() for _ in range(2))
    assert first != second


def test_it_is_what_the_standard_makes_of_the_vault_s_bytes() -> None:
    # FIPS 186-5, A.2.1, steps 5 and 6, in other words than the code's.
    order = int(ec.SECP256R1().group_order)
    key = FakeKey(unattended=False)
    seed = int.from_bytes(VAULT.key_for(f"superlink key v1 {key.key_id}", size=48), "big")
    scalar = link_key(key, VAULT).private_numbers().private_value
    assert 1 <= scalar < order
    assert (scalar - 1 - seed) % (order - 1) == 0


def test_the_vault_gives_another_secret_for_every_purpose_and_length() -> None:
    secrets = {VAULT.key_for("superlink key v1"), VAULT.key_for("journal integrity v1"), VAULT.key_for("other")}
    assert len(secrets) == 3
    assert len(VAULT.key_for("superlink key v1", size=48)) == 48
