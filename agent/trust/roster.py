"""The pinned roster: which sites take part, and which hardware keys each one endorses. A file, read at start.

{"format": "secur-e-health/roster/1",
 "coordinator": "-----BEGIN PUBLIC...",
 "sites": {"hospital-a": {"nodes": [{"kind": "tpm", "evidence": "hardware", "public_key": "-----BEGIN PUBLIC..."}],
                          "stewards": [{"site": "hospital-a", "steward": "dr-a", ...}]}}}

Stewards are as in the trust repository (`agent.trust.records.StewardFile`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent.core.errors import OperatorError, PeerProtocolError
from agent.core.ids import IdentifierText, SiteID
from agent.core.validation import explain_invalid
from agent.statements.roots import EvidenceClass, FIDO2Terms, KeyKind, RootKey, load_public_key
from agent.trust.records import StewardFile
from agent.trust.study import MAX_SITES, EvidenceName

MAX_ROSTER_BYTES = 1 << 20
MAX_NODES_PER_SITE = 64
MAX_STEWARDS_PER_SITE = 64
FORMAT = "secur-e-health/roster/1"


@dataclass(frozen=True, slots=True)
class RosterNode:
    """One node as its site endorses it.

    Args:
        site: Who endorses it.
        root: Its hardware key.
    """

    site: SiteID
    root: RootKey


@dataclass(frozen=True, slots=True)
class Roster:
    """All sites and their nodes; no key stands in it twice.

    Args:
        sites: Nodes by site.
        coordinator: The key that signs each round of secure aggregation; None where there is only an unprotected
            demonstration.
        stewards: Who decides at each site; a site without any is left out.
    """

    sites: Mapping[SiteID, tuple[RosterNode, ...]]
    coordinator: ec.EllipticCurvePublicKey | None = None
    stewards: Mapping[SiteID, tuple[StewardFile, ...]] = field(default_factory=dict)

    def coordinator_key(self) -> ec.EllipticCurvePublicKey:
        """The coordinator's key.

        Raises:
            OperatorError: The roster names none.
        """
        if self.coordinator is None:
            raise _invalid("it names no coordinator, and secure aggregation needs one")
        return self.coordinator

    def node(self, key_id: str) -> RosterNode:
        """The node with this key id (SHA-256 of its public key, hex).

        Raises:
            PeerProtocolError: No site endorses such a key.
        """
        for nodes in self.sites.values():
            for node in nodes:
                if node.root.key_id == key_id:
                    return node
        raise PeerProtocolError(
            "roster.unknown_key",
            f"No site of the roster endorses the key {key_id[:16]}...",
            next_step="Have the site endorse the node, and install the new roster on every box.",
        )


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _FIDO2Entry(_Entry):
    rp_id: Annotated[str, Field(min_length=1, max_length=253)]
    user_verified: bool = True


class _NodeEntry(_Entry):
    kind: KeyKind
    evidence: EvidenceName = "none"
    public_key: Annotated[str, Field(max_length=2000)]
    fido2: _FIDO2Entry | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind is KeyKind.FIDO2) != (self.fido2 is not None):
            raise ValueError("a fido2 key, and no other, states its terms under `fido2`")
        if self.kind is KeyKind.SOFTWARE and self.evidence != "none":
            raise ValueError("a software key shows no evidence")
        return self


class _SiteEntry(_Entry):
    nodes: tuple[_NodeEntry, ...] = Field(default=(), max_length=MAX_NODES_PER_SITE)
    stewards: tuple[StewardFile, ...] = Field(default=(), max_length=MAX_STEWARDS_PER_SITE)


class _File(_Entry):
    format: Literal["secur-e-health/roster/1"]
    coordinator: Annotated[str, Field(max_length=2000)] | None = None
    sites: dict[IdentifierText, _SiteEntry] = Field(max_length=MAX_SITES)


def parse_roster(data: bytes) -> Roster:
    """Parse a roster file.

    Args:
        data: JSON, at most 1 MiB.

    Raises:
        OperatorError: It is too large, breaks a rule, or names a key twice; the sentence says where.
    """
    if len(data) > MAX_ROSTER_BYTES:
        raise _invalid(f"it is larger than {MAX_ROSTER_BYTES} bytes")
    try:
        content = _File.model_validate_json(data)
    except ValidationError as error:
        raise _invalid(explain_invalid(error, whole="roster")) from error
    sites = {
        SiteID(name): tuple(_parse_node(SiteID(name), entry) for entry in site.nodes)
        for name, site in content.sites.items()
    }
    key_ids = [node.root.key_id for nodes in sites.values() for node in nodes]
    if len(set(key_ids)) != len(key_ids):
        raise _invalid("a key stands in it twice")
    coordinator = None if content.coordinator is None else _parse_key(content.coordinator, owner="the coordinator")
    return Roster(sites, coordinator, _stewards_of(content))


def load_roster(path: Path) -> Roster:
    """Read and parse a roster file.

    Raises:
        OperatorError: It cannot be read, or `parse_roster` refuses it.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_ROSTER_BYTES + 1)
    except OSError as error:
        raise OperatorError(
            "roster.unreadable",
            f"The roster {path} cannot be read: {error.strerror}.",
            next_step="Check the path in the configuration, and the file's permissions.",
        ) from error
    return parse_roster(data)


def encode_roster(roster: Roster) -> bytes:
    """Write a roster file; the inverse of `parse_roster`."""
    content: dict[str, object] = {"format": FORMAT}
    if roster.coordinator is not None:
        content["coordinator"] = _pem(roster.coordinator)
    content["sites"] = {site: _encode_site(roster, site) for site in roster.sites}
    return json.dumps(content, indent=1).encode()


def roster_node(
    site: SiteID,
    kind: KeyKind,
    evidence: EvidenceClass,
    key: ec.EllipticCurvePublicKey,
    *,
    fido2: FIDO2Terms | None = None,
) -> RosterNode:
    """Make one node's entry from its public key; a FIDO2 key needs its terms too."""
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return RosterNode(site, RootKey(kind, spki, evidence, fido2))


def _parse_node(site: SiteID, entry: _NodeEntry) -> RosterNode:
    key = _parse_key(entry.public_key, owner=site)
    terms = None if entry.fido2 is None else FIDO2Terms(entry.fido2.rp_id, user_verified=entry.fido2.user_verified)
    return roster_node(site, entry.kind, EvidenceClass[entry.evidence.upper()], key, fido2=terms)


def _stewards_of(content: _File) -> dict[SiteID, tuple[StewardFile, ...]]:
    for name, site in content.sites.items():
        names = {steward.steward for steward in site.stewards}
        if len(names) != len(site.stewards) or any(steward.site != name for steward in site.stewards):
            raise _invalid(f"a steward of {name} stands in it twice, or belongs to another site")
    return {SiteID(name): site.stewards for name, site in content.sites.items() if site.stewards}


def _parse_key(pem: str, *, owner: str) -> ec.EllipticCurvePublicKey:
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _invalid(f"a public key of {owner} cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1)):
        raise _invalid(f"a public key of {owner} is on none of the curves P-256 and P-384")
    return key


def _encode_site(roster: Roster, site: SiteID) -> dict[str, object]:
    entry: dict[str, object] = {"nodes": [_encode_node(node) for node in roster.sites[site]]}
    stewards = roster.stewards.get(site, ())
    if stewards:
        entry["stewards"] = [steward.model_dump(mode="json", exclude_none=True) for steward in stewards]
    return entry


def _encode_node(node: RosterNode) -> dict[str, object]:
    pem, terms = _pem(load_public_key(node.root.public_key)), node.root.fido2
    entry: dict[str, object] = {"kind": node.root.kind.value, "evidence": node.root.evidence.name.lower()}
    if terms is not None:  # a counter rises with every use: it is each verifier's own to remember
        entry["fido2"] = {"rp_id": terms.rp_id, "user_verified": terms.user_verified}
    return entry | {"public_key": pem}


def _pem(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _invalid(what: str) -> OperatorError:
    return OperatorError(
        "roster.invalid",
        f"The roster cannot be used: {what}.",
        next_step="Install the roster that the consortium published; nothing was started.",
    )
