"""Keys of the online roles: each organisation's signs timestamp and snapshot of what is about to be published."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, TypeVar

from securesystemslib.signer import Signature, Signer
from tuf.api.metadata import Metadata, Snapshot, Timestamp

from provisioning.authority.repository import Proposal

SignedT = TypeVar("SignedT", Snapshot, Timestamp)


class OnlineSigner(Protocol):
    """One organisation's key."""

    def sign(self, proposal: Proposal) -> Proposal:
        """The same proposal with this organisation's signatures on its online metadata.

        Raises:
            PeerProtocolError: The organisation refuses.
            NetworkError: It does not answer.
        """
        ...


class LocalOnlineSigner:
    """A key on this host.

    Args:
        signer: The key.
    """

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def sign(self, proposal: Proposal) -> Proposal:
        """Add its signatures where they are missing."""
        return add_signatures(
            proposal,
            snapshot=self._signature_over(Metadata[Snapshot].from_bytes(proposal.snapshot))
            if proposal.snapshot
            else None,
            timestamp=self._signature_over(Metadata[Timestamp].from_bytes(proposal.timestamp)),
        )

    def _signature_over(self, metadata: Metadata[SignedT]) -> Signature:
        made = metadata.signatures.get(self._signer.public_key.keyid)
        return made or self._signer.sign(metadata.signed_bytes)


def add_signatures(proposal: Proposal, *, snapshot: Signature | None, timestamp: Signature) -> Proposal:
    """The same proposal with more signatures.

    Args:
        proposal: As it was.
        snapshot: Over its snapshot; None where that stays.
        timestamp: Over its timestamp.
    """
    signed = replace(proposal, timestamp=_with(proposal.timestamp, timestamp))
    return signed if snapshot is None else replace(signed, snapshot=_with(proposal.snapshot, snapshot))


def _with(data: bytes, signature: Signature) -> bytes:
    metadata = Metadata[Timestamp].from_bytes(data)
    metadata.signatures[signature.keyid] = signature
    return metadata.to_bytes()
