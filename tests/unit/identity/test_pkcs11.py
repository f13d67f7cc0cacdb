from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pkcs11
import pytest
from pkcs11 import Attribute, KeyType
from pkcs11.constants import TokenFlag
from pkcs11.util.ec import encode_named_curve_parameters

from agent.core.errors import HardwareError, OperatorError
from agent.identity import pkcs11 as backend
from agent.identity.key import Nobody, PresenceState, init_key, open_key
from tests.simulators.person import Technician
from tests.simulators.softhsm import MODULE, PIN, TOKEN, SoftHSM


@pytest.fixture
def token(tmp_path: Path) -> SoftHSM:
    return SoftHSM(tmp_path)


@pytest.fixture
def person() -> Technician:
    return Technician(pin=PIN)


def test_wrong_pin(token: SoftHSM, person: Technician) -> None:
    key = init_key(token.uri, person=person)
    person.pin = "999999"
    with pytest.raises(OperatorError, match="is wrong"):
        key.sign(b"message")
    person.pin = PIN
    key.sign(b"message")


def test_pin_changes(token: SoftHSM, person: Technician) -> None:
    key = init_key(token.uri, person=person)
    person.new_pin = "975310"
    key.change_pin()
    with pytest.raises(OperatorError, match="is wrong"):
        key.sign(b"message")
    person.pin = "975310"
    key.sign(b"message")


def test_pin_of_one_signature_is_worth_nothing_for_the_next(token: SoftHSM, person: Technician) -> None:
    key = init_key(token.uri, person=person)
    key.sign(b"message")
    with pytest.raises(OperatorError, match="nobody is at the box"):
        open_key(token.uri, person=Nobody()).sign(b"message")


def test_key_that_can_be_taken_out_is_refused(token: SoftHSM, person: Technician) -> None:
    library = pkcs11.lib(str(MODULE))
    library.reinitialize()
    with library.get_token(token_label=TOKEN).open(rw=True, user_pin=PIN) as session:
        curve = {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
        parameters = session.create_domain_parameters(KeyType.EC, curve, local=True)
        template = {Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True}
        parameters.generate_keypair(store=True, label=backend.DEFAULT_OBJECT, private_template=template)
    library.finalize()
    with pytest.raises(HardwareError, match="can be taken out"):
        open_key(token.uri, person=person).sign(b"message")


def test_key_removed_from_its_token(token: SoftHSM, person: Technician) -> None:
    key = init_key(token.uri, person=person)
    token.swap()
    assert key.presence().state is PresenceState.EMPTY
    with pytest.raises(HardwareError, match="holds no key"):
        key.sign(b"message")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("pkcs11:", "does not say which token"),
        (f"pkcs11:token={TOKEN}", "does not say which token"),
        (f"pkcs11:object=x?module-path={MODULE}", "does not say which token"),
        (f"pkcs11:token={TOKEN};colour=blue?module-path={MODULE}", "does not say which token"),
    ],
)
def test_incomplete_uris(uri: str, words: str) -> None:
    with pytest.raises(OperatorError, match=words):
        open_key(uri)


def test_module_and_token_that_are_not_there(token: SoftHSM, tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.so"
    nonsense.write_bytes(b"no library")
    for module in (tmp_path / "missing.so", nonsense):
        with pytest.raises(HardwareError, match="cannot be loaded"):
            open_key(f"pkcs11:token={TOKEN}?module-path={module}")
    with pytest.raises(HardwareError, match="There is no PKCS#11 token 'elsewhere'"):
        open_key(f"pkcs11:token=elsewhere?module-path={MODULE}")


def test_pin_file_that_cannot_be_read(token: SoftHSM, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="with the token's PIN cannot be read"):
        init_key(f"{token.uri}&pin-source={tmp_path}/missing")


@dataclass
class FlaggedToken:
    """SoftHSM counts no attempts, so its flags are played."""

    flags: TokenFlag


PLACE = backend.Place(MODULE, TOKEN, "key", None)


def test_last_attempt_is_not_spent_by_accident() -> None:
    token = FlaggedToken(TokenFlag.USER_PIN_FINAL_TRY)
    with pytest.raises(OperatorError, match="one PIN attempt left"):
        backend._check_attempts(token, PLACE, Technician())  # type: ignore[arg-type] # only its flags are read
    backend._check_attempts(token, PLACE, Technician(insists=True))  # type: ignore[arg-type] # likewise


def test_locked_token_is_not_asked() -> None:
    token = FlaggedToken(TokenFlag.USER_PIN_LOCKED)
    with pytest.raises(HardwareError, match="is blocked"):
        backend._check_attempts(token, PLACE, Technician(insists=True))  # type: ignore[arg-type] # only its flags are read
