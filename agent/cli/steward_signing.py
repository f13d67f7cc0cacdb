"""A steward's key at the box's terminal: what will be signed is held against what was shown, then the key is asked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Final

import typer

from agent.core.base64url import encode_bytes
from agent.core.box_view import ChallengeView, StewardView, StudyView
from agent.core.errors import HardwareError, OperatorError
from agent.governance.approval import (
    Approval,
    Evidence,
    PIVEvidence,
    StewardProof,
    WebAuthnEvidence,
    terminal_client_data,
)
from agent.governance.challenge import Act, Challenge
from agent.identity.key import Person
from agent.trust.records import parse_public_pem

CARD_URI: Final = "piv:?slot=9c"
"""PIV's slot for signatures that a person makes: the card wants its PIN for each."""


StewardOption = Annotated[str | None, typer.Option(help="Whose key decides; may be left out where there is only one.")]
CardOption = Annotated[str | None, typer.Option("--key", help="Where a smartcard's key is; else slot 9c of the card.")]
ReaderOption = Annotated[str, typer.Option(help="Card reader where a security key lies; else USB, then any reader.")]


@dataclass(frozen=True, slots=True)
class StewardChoice:
    """Whose key shall sign, as told on the command line.

    Args:
        name: The steward; None for the only one.
        person: Whoever stands there.
        uri: Where a card is; None for slot 9c of the only one.
        reader: Part of a card reader's name, where a security key lies on it; empty for everywhere.
    """

    name: str | None
    person: Person
    uri: str | None = None
    reader: str = ""

    def among(self, stewards: tuple[StewardView, ...]) -> StewardKey:
        """The key that is meant.

        Raises:
            OperatorError: None is meant, or none counts (`cli.which_steward`); a card is named, and the steward signs
                with a security key (`cli.no_card`).
        """
        steward = choose_steward(stewards, self.name)
        if self.uri is not None and steward.kind != "piv":
            raise OperatorError(
                "cli.no_card",
                f"{steward.steward} signs with a security key, and --key names a smartcard.",
                next_step="Leave --key out; --reader names the reader of a security key without USB.",
            )
        return StewardKey(steward, self.person, self.uri, self.reader)


@dataclass(frozen=True, slots=True)
class StewardKey:
    """A steward's key, to be used at this terminal.

    Args:
        steward: As the hospital has it on record.
        person: Whoever stands there.
        uri: Where a card is; None for the only one.
        reader: Part of a card reader's name, where a security key lies on it; empty for everywhere.
    """

    steward: StewardView
    person: Person
    uri: str | None = None
    reader: str = ""

    def approve(self, challenge: Challenge) -> Approval:
        """Sign an approval.

        Raises:
            HardwareError: The key is not there, or is another (`identity.not_the_stewards_key`).
            OperatorError: Its PIN is wrong, or the key cannot be used.
        """
        return Approval(steward=self.steward.steward, evidence=self._evidence(challenge), challenge=challenge)

    def prove(self, act: Act) -> StewardProof:
        """Sign any other act; raises as `approve`."""
        return StewardProof(steward=self.steward.steward, evidence=self._evidence(act))

    def _evidence(self, act: Act) -> Evidence:
        if self.steward.kind == "piv":
            return self._card_signature(act.message())
        return self._assertion(act.digest)

    def _assertion(self, challenge: bytes) -> WebAuthnEvidence:
        from agent.identity.fido2 import Credential  # noqa: PLC0415 - optional library
        from agent.identity.fido2_steward import sign_as_steward  # noqa: PLC0415 - the same

        client_data = terminal_client_data(challenge)
        credential = Credential(self.steward.rp_id, bytes.fromhex(self.steward.credential_id))
        data, signature = sign_as_steward(
            credential,
            parse_public_pem(self.steward.public_key),
            hashlib.sha256(client_data).digest(),
            self.person,
            reader=self.reader,
        )
        return WebAuthnEvidence(
            authenticator_data=encode_bytes(data),
            client_data_json=encode_bytes(client_data),
            signature=encode_bytes(signature),
        )

    def _card_signature(self, message: bytes) -> PIVEvidence:
        from agent.identity.key import open_key  # noqa: PLC0415 - optional libraries

        key = open_key(self.uri or CARD_URI, person=self.person)
        if key.key_id != self.steward.key_id:
            raise HardwareError(
                "cli.another_card",
                f"The card's key is not the one that the hospital has on record for {self.steward.steward}.",
                next_step="Insert the steward's own card, or name its slot: --key 'piv:?slot=9a'.",
            )
        if key.capabilities.unattended:
            raise _signs_alone()
        return PIVEvidence(signature=encode_bytes(key.sign(message)))


def choose_steward(stewards: tuple[StewardView, ...], name: str | None) -> StewardView:
    """The key that shall sign.

    Args:
        stewards: On record, and offered.
        name: As told on the command line.

    Raises:
        OperatorError: None is meant or on record (`cli.which_steward`).
    """
    endorsed = {steward.steward: steward for steward in stewards if steward.endorsed}
    if name is None and len(endorsed) == 1:
        return next(iter(endorsed.values()))
    if name in endorsed:
        return endorsed[name]
    if not endorsed:
        raise OperatorError(
            "cli.which_steward",
            "The hospital has no steward's key on record, so nobody can decide here yet.",
            next_step="At the hospital's desk: `seh-provision steward new`, then `seh-provision steward add`; "
            "docs/steward.md shows both.",
        )
    known = ", ".join(sorted(endorsed))
    what = "Which steward decides was not said" if name is None else f"{name[:80]!r} is no steward who may decide here"
    raise OperatorError(
        "cli.which_steward",
        f"{what}; the hospital has on record: {known}.",
        next_step="Name one with --steward. A new key is put on record with `seh-provision steward add`.",
    )


def read_challenge(view: ChallengeView, shown: StudyView) -> Challenge:
    """What will be signed, if it is what the person was shown.

    Raises:
        OperatorError: It is about something else (`cli.not_as_shown`).
        PeerProtocolError: It cannot be read.
    """
    challenge = Challenge.parse(view.payload.encode())
    line = shown.line
    asked = (challenge.study, challenge.study_digest, challenge.dataset, challenge.dataset_digest, challenge.epsilon)
    if asked != (line.study, line.study_digest, line.dataset, shown.dataset_digest, shown.epsilon):
        raise OperatorError(
            "cli.not_as_shown",
            "What the key would sign is not what was shown: the study or its data set has changed meanwhile.",
            next_step="Nothing was signed. Run the command again, and read anew.",
        )
    return challenge


def _signs_alone() -> OperatorError:
    return OperatorError(
        "cli.card_signs_alone",
        "This key of the card signs without its PIN, so whoever finds the card could approve with it.",
        next_step="Use the key in slot 9c or 9a, and have it put on record.",
    )
