"""Boxes that govern studies: their policy, a steward with a virtual security key, and their running agents as seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.core.box_view import ApprovalView, Box
from agent.governance.approval import TERMINAL_ORIGIN
from agent.governance.challenge import Challenge, WithdrawalChallenge
from tests.simulators.steward import PasskeySteward, approval_by, proof_by

PURPOSE = {"purpose_terms": ["DUO:0000037"]}
"""A study's `use` that the policies here let pass."""


@dataclass(slots=True)
class Deciding:
    """A hospital's steward at its box's terminal.

    Args:
        site: The hospital.
        key: The virtual security key.
    """

    site: str
    name: str = "dr-steward"
    key: PasskeySteward = field(init=False)

    def __post_init__(self) -> None:
        self.key = PasskeySteward(self.name, site=self.site)

    def approve(self, box: Box, study: str) -> ApprovalView:
        """Approve a study, without reading it."""
        asked = box.begin_approval(study, self.name)
        challenge = Challenge.parse(asked.payload.encode())
        approval = approval_by(self.key, challenge, self.key.evidence(challenge, origin=TERMINAL_ORIGIN))
        return box.complete_approval(approval.encode().decode())

    def withdraw(self, box: Box, sequence: int) -> None:
        """Withdraw an approval."""
        asked = box.begin_withdrawal(sequence, self.name)
        act = WithdrawalChallenge.parse(asked.payload.encode())
        proof = proof_by(self.key, act, self.key.evidence(act, origin=TERMINAL_ORIGIN))
        box.complete_withdrawal(sequence, proof.encode().decode())


def govern(directory: Path, *, dataset: str = "local", **terms: object) -> None:
    """Turn governance on in a box's configuration, under a policy that lets most studies be approved.

    Args:
        directory: Of `agent.toml`; the policy is written beside it.
        dataset: The catalog's name.
        terms: Replace entries of the data set's policy.
    """
    write_policy(directory / "policy.toml", dataset=dataset, **terms)
    config = directory / "agent.toml"
    text = config.read_text(encoding="utf-8")
    config.write_text(f'{text}\n[governance]\npolicy = "policy.toml"\n', encoding="utf-8")


def write_policy(path: Path, *, dataset: str = "local", **terms: object) -> None:
    """Write such a policy."""
    budget = {"epsilon": 100.0, "delta": 1e-3}
    entries = {
        "duo": ["DUO:0000042"],
        "fields": "all",
        "minimum_rows": 1,
        "unbounded_releases": 10_000,
        "budget": {"hospital": budget, "record": budget},
    } | terms
    lines = ["[policy]", 'requesters = "all"', f"[datasets.{dataset}]"]
    lines += [f"{name} = {_toml(value)}" for name, value in entries.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + " }"
    return json.dumps(value)
