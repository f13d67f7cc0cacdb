"""Passkeys of hospitals' technicians: WebAuthn, each with a person verified, each of one hospital.

Source: WebAuthn Level 3, 7.1 and 7.2; `fido2.server` checks all but the signature counter, which is checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fido2.server import Fido2Server
from fido2.webauthn import (
    AttestationConveyancePreference,
    AttestedCredentialData,
    AuthenticationResponse,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialUserEntity,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from agent.core.errors import OperatorError
from agent.core.ids import SiteID

RP_NAME: Final = "Secur-e-Health registrar"
_UNREADABLE: Final = (ValueError, KeyError, TypeError, AttributeError, AssertionError, IndexError)
"""What `fido2` raises over an answer that a stranger bent."""


@dataclass(frozen=True, slots=True)
class Passkey:
    """A technician's.

    Args:
        credential_id: Hex.
        site: The hospital.
        credential: AttestedCredentialData.
        count: The highest signature count seen.
    """

    credential_id: str
    site: SiteID
    credential: bytes
    count: int


@dataclass(frozen=True, slots=True)
class Ceremony:
    """What the browser is asked, and what its answer is checked against.

    Args:
        options: For `navigator.credentials`, as JSON.
        state: Kept here, for one answer.
    """

    options: Mapping[str, Any]
    state: Mapping[str, Any]


class PasskeyServer:
    """Asks browsers, and checks what they answer.

    Args:
        origin: Of the pages, `https://host[:port]`.
    """

    def __init__(self, origin: str) -> None:
        host = origin.partition("://")[2].partition(":")[0]
        entity = PublicKeyCredentialRpEntity(id=host, name=RP_NAME)
        self._server = Fido2Server(
            entity, AttestationConveyancePreference.NONE, verify_origin=lambda claimed: claimed == origin
        )

    def invite(self, user_id: bytes, site: SiteID, challenge: bytes) -> Ceremony:
        """Ask for a new passkey."""
        user = PublicKeyCredentialUserEntity(id=user_id, name=site, display_name=f"Technician at {site}")
        options, state = self._server.register_begin(
            user,
            resident_key_requirement=ResidentKeyRequirement.REQUIRED,
            user_verification=UserVerificationRequirement.REQUIRED,
            challenge=challenge,
        )
        return Ceremony(dict(options), state)

    def register(self, state: Mapping[str, Any], answer: Mapping[str, Any], site: SiteID) -> Passkey:
        """Check a new passkey.

        Raises:
            OperatorError: It is none, or not for this asking (`passkey.refused`).
        """
        try:
            data = self._server.register_complete(state, answer)
            credential = data.credential_data
            assert credential is not None  # noqa: S101 - one of those caught below
            return Passkey(credential.credential_id.hex(), site, bytes(credential), data.counter)
        except _UNREADABLE as error:
            raise _refused("it does not hold") from error

    def ask(self, challenge: bytes) -> Ceremony:
        """Ask for a signature by any passkey."""
        options, state = self._server.authenticate_begin(
            user_verification=UserVerificationRequirement.REQUIRED, challenge=challenge
        )
        return Ceremony(dict(options), state)

    def verify(self, state: Mapping[str, Any], answer: Mapping[str, Any], passkey: Passkey) -> int:
        """Check a signature; returns its count.

        Raises:
            OperatorError: It does not hold, or a copy of the passkey made one before (`passkey.refused`).
        """
        try:
            self._server.authenticate_complete(state, [AttestedCredentialData(passkey.credential)], answer)
            count = AuthenticationResponse.from_dict(answer).response.authenticator_data.counter
        except _UNREADABLE as error:
            raise _refused("it does not hold") from error
        except Exception as error:  # InvalidSignature, and whatever else another type of key raises
            raise _refused("its signature does not hold") from error
        # WebAuthn Level 3, 6.1.1: both zero means that the authenticator keeps no counter.
        if (count or passkey.count) and count <= passkey.count:
            raise _refused("it may have been copied")
        return count


def credential_id(answer: Mapping[str, Any]) -> str:
    """Which passkey an answer names, hex.

    Raises:
        OperatorError: None (`passkey.refused`).
    """
    try:
        return AuthenticationResponse.from_dict(answer).raw_id.hex()
    except _UNREADABLE as error:
        raise _refused("it cannot be read") from error


def _refused(what: str) -> OperatorError:
    return OperatorError(
        "passkey.refused",
        f"The passkey is not accepted: {what}.",
        next_step="Try once more; if it repeats, ask the hospital's operator for a new invitation.",
    )
