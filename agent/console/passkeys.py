"""WebAuthn at the console: a steward's new key, and who stands at the door.

What a key signs to approve or to withdraw is the agent's to verify (`agent.governance.approval`), never this room's.

Source: WebAuthn Level 3, 7.1 and 7.2, with a person verified, by ES256 on P-256.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key
from fido2.cose import ES256
from fido2.server import Fido2Server
from fido2.webauthn import (
    AttestationConveyancePreference,
    AttestedCredentialData,
    AuthenticationResponse,
    PublicKeyCredentialDescriptor,
    PublicKeyCredentialParameters,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialType,
    PublicKeyCredentialUserEntity,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from agent.attestation.fido2 import attested_key
from agent.console.sessions import Ceremony
from agent.core.box_view import StewardView
from agent.core.config import ConsoleSection
from agent.core.errors import OperatorError, PeerProtocolError
from agent.governance.approval import Approval, StewardProof, WebAuthnEvidence
from agent.governance.challenge import Challenge
from agent.trust.records import StewardFile, parse_public_pem, public_pem

RP_NAME: Final = "Secur-e-Health steward"
_UNREADABLE: Final = (ValueError, KeyError, TypeError, AttributeError, AssertionError, IndexError, PeerProtocolError)
"""What is raised over an answer that a stranger bent."""


class PasskeyDesk:
    """Asks browsers, and checks what they answer.

    Args:
        settings: Of the console: origin, and the name that keys are made for.
    """

    def __init__(self, settings: ConsoleSection) -> None:
        entity = PublicKeyCredentialRpEntity(id=settings.name, name=RP_NAME)
        self.rp_id: Final = settings.name
        self._server = Fido2Server(
            entity, AttestationConveyancePreference.NONE, verify_origin=lambda claimed: claimed == settings.origin
        )
        kind = PublicKeyCredentialType.PUBLIC_KEY
        self._server.allowed_algorithms = [PublicKeyCredentialParameters(type=kind, alg=ES256.ALGORITHM)]

    def usable(self, stewards: Iterable[StewardView]) -> tuple[StewardView, ...]:
        """Those whose key counts, and answers in this browser's page."""
        return tuple(steward for steward in stewards if steward.endorsed and steward.rp_id == self.rp_id)

    def begin_key(
        self, steward: str, person: str, known: Iterable[StewardView], challenge: bytes, user_id: bytes
    ) -> tuple[Mapping[str, Any], Ceremony]:
        """Ask for a new key; returns what the browser is asked, and what its answer is checked against."""
        user = PublicKeyCredentialUserEntity(id=user_id, name=steward, display_name=person)
        options, state = self._server.register_begin(
            user,
            _descriptors(known),
            resident_key_requirement=ResidentKeyRequirement.DISCOURAGED,
            user_verification=UserVerificationRequirement.REQUIRED,
            challenge=challenge,
        )
        return dict(options), Ceremony("key", state, steward, person)

    def finish_key(self, ceremony: Ceremony | None, answer: Mapping[str, Any], site: str) -> StewardFile:
        """Check a new key.

        Returns:
            Its record, for the hospital's role to sign.

        Raises:
            OperatorError: It is none, or not for this asking (`console.key_refused`).
        """
        if ceremony is None or ceremony.kind != "key":
            raise _refused("it was not asked for here, or too long ago")
        try:
            data = self._server.register_complete(ceremony.state, answer)
            public_key = load_der_public_key(attested_key(data))
            if data.is_backup_eligible():
                raise _refused("it is a passkey that other devices may have too, and not in one key alone")
            assert isinstance(public_key, ec.EllipticCurvePublicKey)  # noqa: S101 - one of those caught below
            assert data.credential_data is not None  # noqa: S101 - the same
            return StewardFile(
                site=site,
                steward=ceremony.steward,
                person=ceremony.person,
                rp_id=self.rp_id,
                credential_id=data.credential_data.credential_id.hex(),
                public_key=public_pem(public_key),
            )
        except _UNREADABLE as error:
            raise _refused("its answer does not hold") from error

    def begin_sign_in(self, stewards: Iterable[StewardView], challenge: bytes) -> tuple[Mapping[str, Any], Ceremony]:
        """Ask who is there; returns what the browser is asked, and what its answer is checked against."""
        options, state = self._server.authenticate_begin(
            _descriptors(stewards), UserVerificationRequirement.REQUIRED, challenge
        )
        return dict(options), Ceremony("sign-in", state)

    def finish_sign_in(
        self, ceremony: Ceremony | None, answer: Mapping[str, Any], stewards: Iterable[StewardView]
    ) -> str:
        """Check who is there; returns the steward.

        Raises:
            OperatorError: No steward whose key counts here (`console.key_refused`).
        """
        if ceremony is None or ceremony.kind != "sign-in":
            raise _refused("it was not asked for here, or too long ago")
        try:
            named = AuthenticationResponse.from_dict(answer).raw_id.hex()
            steward = next(each for each in stewards if each.credential_id == named)
            key = ES256.from_cryptography_key(parse_public_pem(steward.public_key))  # type: ignore[no-untyped-call]
            credential = AttestedCredentialData.create(bytes(16), bytes.fromhex(named), key)
            self._server.authenticate_complete(ceremony.state, [credential], answer)
        except StopIteration as error:
            raise _refused("it is none of this hospital's stewards'") from error
        except _UNREADABLE as error:
            raise _refused("its answer does not hold") from error
        except Exception as error:  # InvalidSignature, and whatever else another type of key raises
            raise _refused("its signature does not hold") from error
        return steward.steward


def approval_record(steward: str, payload: str, answer: Mapping[str, Any]) -> str:
    """The record of an approval, from what the agent asked and what the browser answers.

    Args:
        steward: Whose key was asked.
        payload: The challenge's fields, as the agent gave them.
        answer: The browser's.

    Raises:
        OperatorError: The answer is none (`console.key_refused`).
        PeerProtocolError: The payload is none.
    """
    challenge = Challenge.parse(payload.encode())
    return Approval(steward=steward, evidence=_evidence(answer), challenge=challenge).encode().decode()


def withdrawal_proof(steward: str, answer: Mapping[str, Any]) -> str:
    """The proof of a withdrawal, likewise.

    Raises:
        OperatorError: The answer is none (`console.key_refused`).
    """
    return StewardProof(steward=steward, evidence=_evidence(answer)).encode().decode()


def _evidence(answer: Mapping[str, Any]) -> WebAuthnEvidence:
    try:
        response = answer["response"]
        names = ("authenticatorData", "clientDataJSON", "signature")
        return WebAuthnEvidence.model_validate_json(json.dumps({name: response[name] for name in names}))
    except _UNREADABLE as error:
        raise _refused("its answer cannot be read") from error


def _descriptors(stewards: Iterable[StewardView]) -> list[PublicKeyCredentialDescriptor]:
    kind = PublicKeyCredentialType.PUBLIC_KEY
    return [
        PublicKeyCredentialDescriptor(type=kind, id=bytes.fromhex(steward.credential_id))
        for steward in stewards
        if steward.credential_id
    ]


def _refused(what: str) -> OperatorError:
    return OperatorError(
        "console.key_refused",
        f"The security key is not accepted: {what}.",
        next_step="Try once more, with the key that the hospital put on record for this console.",
    )
