"""A data steward with a virtual security key: reads nothing, and approves or withdraws whatever a test says."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.core.base64url import encode_bytes
from agent.core.box_view import ApprovalView, Box, ChallengeView
from agent.governance.approval import TERMINAL_ORIGIN, Approval, StewardProof, WebAuthnEvidence
from agent.governance.challenge import Challenge
from agent.trust.records import StewardFile, public_pem
from tests.simulators.passkey import PlayedPasskey

RP_ID = "localhost"


def _passkey() -> PlayedPasskey:
    return PlayedPasskey(TERMINAL_ORIGIN)


@dataclass(slots=True)
class PlayedSteward:
    """One steward.

    Args:
        site: The hospital.
        name: Short name of the key.
        key: The virtual security key.
    """

    site: str
    name: str = "dr-steward"
    key: PlayedPasskey = field(default_factory=_passkey)

    @property
    def record(self) -> StewardFile:
        """As the hospital's role endorses it."""
        return StewardFile(
            site=self.site,
            steward=self.name,
            rp_id=RP_ID,
            credential_id=self.key.credential_id.hex(),
            public_key=public_pem(self.key.key.public_key()),
        )

    def approve(self, box: Box, study: str) -> ApprovalView:
        """Approve a study on a box, as at its terminal."""
        asked = box.begin_approval(study, self.name)
        challenge = Challenge.parse(asked.payload.encode())
        approval = Approval(steward=self.name, evidence=self._touch(asked), challenge=challenge)
        return box.complete_approval(approval.encode().decode())

    def withdraw(self, box: Box, sequence: int) -> None:
        """Withdraw an approval."""
        asked = box.begin_withdrawal(sequence, self.name)
        proof = StewardProof(steward=self.name, evidence=self._touch(asked))
        box.complete_withdrawal(sequence, proof.encode().decode())

    def _touch(self, asked: ChallengeView) -> WebAuthnEvidence:
        options = {"publicKey": {"challenge": encode_bytes(bytes.fromhex(asked.challenge)), "rpId": RP_ID}}
        response = self.key.sign(options)["response"]
        return WebAuthnEvidence(
            authenticator_data=response["authenticatorData"],
            client_data_json=response["clientDataJSON"],
            signature=response["signature"],
        )


def govern(directory: Path, *, dataset: str = "local", **terms: object) -> None:
    """Turn governance on in a box's configuration, with a policy that lets every study of a data set be approved.

    Args:
        directory: Of `agent.toml`; the policy is written beside it.
        dataset: The catalog's name.
        terms: Replace entries of the data set's policy.
    """
    entries = {
        "duo": ["DUO:0000042"],
        "fields": "all",
        "minimum_rows": 1,
        "unbounded_releases": 1000,
        "budget": {"hospital": {"epsilon": 100.0, "delta": 1e-4}, "record": {"epsilon": 100.0, "delta": 1e-4}},
    } | terms
    lines = ["[policy]", 'requesters = "all"', f"[datasets.{dataset}]"]
    lines += [f"{name} = {_toml(value)}" for name, value in entries.items()]
    text = "\n".join(lines) + "\n"
    tomllib.loads(text)
    (directory / "policy.toml").write_text(text, encoding="utf-8")
    config = directory / "agent.toml"
    before = config.read_text(encoding="utf-8")
    if "[governance]" not in before:
        config.write_text(f'{before}\n[governance]\npolicy = "policy.toml"\n', encoding="utf-8")


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + " }"
    return json.dumps(value)
