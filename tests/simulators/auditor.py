"""An auditor who trusts none of our code: verifies an exported audit log with hashlib and cryptography alone.

    python tests/simulators/auditor.py EXPORT [WITNESS_VKEY]

Written from docs/auditor.md and the standards that it names.
"""

import base64
import hashlib
import json
import struct
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import load_der_public_key


def verify(data: bytes, witness: str = "") -> dict[str, Any]:
    """Raise unless the export holds; say whose it is and how much of it is witnessed."""
    first, *entries, end = data.split(b"\n")
    require(end == b"", "the last line is cut")
    header = json.loads(first)
    # The box's key signed the session certificate, and the session's key the statement.
    root = header["node"]["public_key"]
    terms = header["node"]["fido2"]
    certificate = opened(header["certificate"], "session-certificate", root, terms and terms["rp_id"])
    statement = opened(header["statement"], "audit-log-key", certificate["session_key"])
    require(certificate["root_key"] == hashlib.sha256(bytes.fromhex(root)).hexdigest(), "another key's certificate")
    require(certificate["issued_s"] - 120 <= statement["issued_s"] < certificate["expires_s"], "not while it counted")
    for name in ("consortium", "site", "node"):
        require(certificate[name] == statement[name], f"another {name}")
    require((statement["site"], statement["node"]) == (header["node"]["site"], header["node"]["node"]), "another box")
    # The log's key signed the checkpoint, whose root is that of the leaves.
    log_key = bytes.fromhex(statement["log_key"])
    size = checked_checkpoint(header["checkpoint"], statement["origin"], log_key, entries)
    require(size == len(entries), "not all leaves")
    # The first leaf opens this very log.
    opening = json.loads(entries[0])
    require(opening["kind"] == "log-opened" and opening["key"] == statement["log_key"], "another log's beginning")
    result = {"site": statement["site"], "node": statement["node"], "size": size, "root_key": certificate["root_key"]}
    if witness:
        result["witnessed"], result["witnessed_s"] = witnessed(header, statement["origin"], log_key, entries, witness)
    return result


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def opened(envelope: str, kind: str, public_key: str, rp_id: str | None = None) -> dict[str, Any]:
    """DSSE: PAE(type, payload) is signed; by a security key as WebAuthn's client data hash."""
    parts = json.loads(envelope)
    payload, (signature,) = base64.b64decode(parts["payload"]), parts["signatures"]
    require(parts["payloadType"] == f"application/vnd.secur-e-health.{kind}.v1+json", "another kind of statement")
    media_type = parts["payloadType"].encode()
    encoded = b"DSSEv1 %d %b %d %b" % (len(media_type), media_type, len(payload), payload)
    key = load_der_public_key(bytes.fromhex(public_key))
    assert isinstance(key, EllipticCurvePublicKey)
    signed = base64.b64decode(signature["sig"])
    if rp_id is not None:
        # length of authenticatorData (2) | authenticatorData | signature over it and SHA-256(PAE)
        end = 2 + int.from_bytes(signed[:2], "big")
        data, signed = signed[2:end], signed[end:]
        require(data[:32] == hashlib.sha256(rp_id.encode()).digest(), "made for another relying party")
        require(bool(data[32] & 1), "nobody touched the key")
        encoded = data + hashlib.sha256(encoded).digest()
    key.verify(signed, encoded, ECDSA(SHA384() if key.key_size == 384 else SHA256()))
    return dict(json.loads(payload))


def tree_hash(leaves: list[bytes]) -> bytes:
    """RFC 9162 2.1.1."""
    level = [hashlib.sha256(b"\0" + leaf).digest() for leaf in leaves]
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\1" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0] if level else hashlib.sha256(b"").digest()


def signatures(note: str, name: str, kind: int, key: bytes) -> list[bytes]:
    """C2SP signed-note: what this key put below a note."""
    key_id = hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + key).digest()[:4]
    lines = [line.split(" ") for line in note.rpartition("\n\n")[2].splitlines()]
    decoded = [base64.b64decode(line[2]) for line in lines if line[:2] == ["—", name]]
    return [data[4:] for data in decoded if data[:4] == key_id]


def checked_checkpoint(note: str, origin: str, key: bytes, leaves: list[bytes]) -> int:
    """C2SP tlog-checkpoint: signed by the log, and its root is that of so many leaves."""
    text = note.rpartition("\n\n")[0] + "\n"
    said, size, root = text.splitlines()
    require(said == origin, "another log's checkpoint")
    (signature,) = signatures(note, origin, 1, key)
    Ed25519PublicKey.from_public_bytes(key).verify(signature, text.encode())
    require(len(leaves) >= int(size), "leaves are missing")
    require(base64.b64decode(root) == tree_hash(leaves[: int(size)]), "other leaves than were signed")
    return int(size)


def witnessed(header: dict[str, list[str]], origin: str, key: bytes, leaves: list[bytes], vkey: str) -> tuple[int, int]:
    """C2SP tlog-cosignature: how many leaves the witness saw last, and when."""
    name, _, material = vkey.split("+", 2)
    public_key = base64.b64decode(material)
    found = []
    for note in header["cosigned"]:
        size = checked_checkpoint(note, origin, key, leaves)
        for signature in signatures(note, name, public_key[0], public_key[1:]):
            (time_s,) = struct.unpack(">Q", signature[:8])
            message = f"cosignature/v1\ntime {time_s}\n{note.rpartition(chr(10) * 2)[0]}\n"
            Ed25519PublicKey.from_public_bytes(public_key[1:]).verify(signature[8:], message.encode())
            found.append((size, time_s))
    require(bool(found), "the witness has not cosigned it")
    return max(found)


if __name__ == "__main__":
    print(verify(Path(sys.argv[1]).read_bytes(), *sys.argv[2:]))  # noqa: T201 - a program of its own
