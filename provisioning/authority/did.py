"""Decentralised identifiers and membership credentials, so that others can check a box's membership by open standards.

A hospital and each of its boxes have a `did:web` that resolves below the registrar's repository; the DID documents are
TUF targets too, so a box never depends on the web for them. A box's membership is a verifiable credential that the
hospital's own key signs.

Source: W3C DID Core 1.0; did:web method; W3C VC Data Model 2.0; Securing VCs using JOSE and COSE (3.1); RFC 7515, 7518.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import Signer

from agent.core.base64url import encode_bytes
from agent.statements.roots import key_id
from agent.trust.records import NodeFile, SitePaths, parse_public_pem
from provisioning.authority.signers import elliptic_key, sign_raw

DID_CONTEXT: Final = ("https://www.w3.org/ns/did/v1", "https://w3id.org/security/suites/jws-2020/v1")
CREDENTIAL_CONTEXT: Final = (
    "https://www.w3.org/ns/credentials/v2",
    "https://www.w3.org/ns/credentials/undefined-terms/v2",
)
_JOSE_FOR_CURVE: Final = {"secp256r1": ("P-256", "ES256"), "secp384r1": ("P-384", "ES384")}


@dataclass(frozen=True, slots=True)
class DIDNames:
    """The identifiers of one hospital.

    Args:
        registrar: `host:port` that serves the repository.
        paths: Of the hospital.
    """

    registrar: str
    paths: SitePaths

    @property
    def site(self) -> str:
        """The hospital's."""
        # did:web 3.1: the port's colon is percent-encoded; 3.2: the path's slashes become colons.
        return f"did:web:{quote(self.registrar, safe='')}:repository:sites:{self.paths.site}"

    def node(self, node: str) -> str:
        """A box's."""
        return f"{self.site}:nodes:{node}"

    @property
    def site_document(self) -> str:
        """Target path of the hospital's DID document."""
        return f"sites/{self.paths.site}/did.json"

    def node_document(self, node: str) -> str:
        """Target path of a box's DID document."""
        return f"sites/{self.paths.site}/nodes/{node}/did.json"

    def membership(self, node: str) -> str:
        """Target path of a box's membership credential."""
        return f"sites/{self.paths.site}/nodes/{node}/membership.jwt"


def site_document(names: DIDNames, keys: Sequence[ec.EllipticCurvePublicKey]) -> bytes:
    """A hospital's DID document: the keys of its role speak for it.

    Args:
        names: Its identifiers.
        keys: Of its role.
    """
    return _document(names.site, keys, relationships=("assertionMethod",))


def node_document(names: DIDNames, node: NodeFile) -> bytes:
    """A box's DID document, controlled by its hospital."""
    key = parse_public_pem(node.public_key)
    return _document(
        names.node(node.node), [key], relationships=("authentication", "assertionMethod"), controller=names.site
    )


def membership(names: DIDNames, node: NodeFile, consortium: str, signer: Signer, *, until: datetime) -> bytes:
    """A box's membership: a verifiable credential as a JWT, compact.

    Args:
        names: The hospital's identifiers.
        node: The box.
        consortium: Digest of its root, hex.
        signer: The hospital's key.
        until: When it ends; the hospital makes it anew before.
    """
    key = elliptic_key(signer.public_key)
    header = {
        "alg": _JOSE_FOR_CURVE[key.curve.name][1],
        "typ": "vc+jwt",
        "cty": "vc",
        "kid": f"{names.site}#{key_id(key)}",
    }
    credential = {
        "@context": list(CREDENTIAL_CONTEXT),
        "type": ["VerifiableCredential", "MembershipCredential"],
        "issuer": names.site,
        "validFrom": _time(node.enrolled),
        "validUntil": _time(until),
        "credentialSubject": {
            "id": names.node(node.node),
            "memberOf": f"urn:sha256:{consortium}",
            "keyKind": node.kind.value,
            "evidence": node.evidence,
        },
    }
    signed = f"{encode_bytes(_json(header))}.{encode_bytes(_json(credential))}"
    return f"{signed}.{encode_bytes(sign_raw(signer, signed.encode('ascii')))}".encode("ascii")


def _document(
    did: str, keys: Sequence[ec.EllipticCurvePublicKey], *, relationships: Sequence[str], controller: str = ""
) -> bytes:
    methods = [
        {
            "id": f"{did}#{key_id(key)}",
            "type": "JsonWebKey2020",
            "controller": did,
            "publicKeyJwk": public_jwk(key),
        }
        for key in keys
    ]
    named = [method["id"] for method in methods]
    document: dict[str, Any] = {"@context": list(DID_CONTEXT), "id": did}
    if controller:
        document["controller"] = controller
    document["verificationMethod"] = methods
    document |= dict.fromkeys(relationships, named)
    return _json(document, indent=2) + b"\n"


def public_jwk(key: ec.EllipticCurvePublicKey) -> Mapping[str, str]:
    """A public key as a JWK (RFC 7518 6.2.1)."""
    size, numbers = (key.key_size + 7) // 8, key.public_numbers()
    return {
        "kty": "EC",
        "crv": _JOSE_FOR_CURVE[key.curve.name][0],
        "x": encode_bytes(numbers.x.to_bytes(size, "big")),
        "y": encode_bytes(numbers.y.to_bytes(size, "big")),
    }


def _json(value: Mapping[str, Any], *, indent: int | None = None) -> bytes:
    return json.dumps(value, indent=indent, separators=None if indent else (",", ":")).encode()


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
