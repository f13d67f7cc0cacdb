"""How the list of who may sign releases follows its maker: each list is signed by a threshold of the one before it.

keys.json in the release repository, on a stick and in `incoming/`: `[<envelope>, ...]`, one DSSE envelope for each
version of the list from the second on, oldest first. Whoever holds any of them follows step by step, however long he
was away; the payload is `ReleaseKeys.payload`. Runs in the slot tool too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from agent.core.errors import PeerProtocolError
from agent.statements.release_keys import KEYS_PAYLOAD_TYPE, MAX_STEPS, ReleaseKeys, bad_key_list, parse_key_list
from agent.update.release import SignedEnvelope, parse_envelope

KEYS_FILE: Final = "keys.json"
MAX_CHAIN_BYTES: Final = 1 << 20


def follow_keys(chain: bytes, held: ReleaseKeys) -> ReleaseKeys:
    """The newest list that follows from the one that is held.

    Args:
        chain: keys.json; untrusted.
        held: What counts here; a list of its version or an older one changes nothing.

    Raises:
        PeerProtocolError: A list is damaged (`update.bad_key_list`), one is missing before it (`update.keys_gap`), or
            too few of those before it signed it (`update.unsigned_keys`).
    """
    last = 0
    for envelope, keys in _steps(chain):
        if keys.version <= last:
            raise bad_key_list("its versions do not rise")
        last = keys.version
        if keys.version > held.version:
            held = _followed(envelope, keys, held)
    return held


def _followed(envelope: SignedEnvelope, keys: ReleaseKeys, held: ReleaseKeys) -> ReleaseKeys:
    if keys.version != held.version + 1:
        raise PeerProtocolError(
            "update.keys_gap",
            f"Version {keys.version} of the list of who may sign releases does not follow version {held.version}, "
            "which counts here.",
            next_step="The list that counts stays. Tell the maker of the software; a package of the newest release "
            "brings its list.",
        )
    if (signers := envelope.signers(held)) < held.threshold:
        raise PeerProtocolError(
            "update.unsigned_keys",
            f"{signers} of those who may sign releases signed the list of who may from now on; it takes "
            f"{held.threshold}.",
            next_step="The list that counts stays. Tell the maker of the software: somebody may be passing himself "
            "off as it.",
            signers=signers,
            threshold=held.threshold,
        )
    return keys


def _steps(chain: bytes) -> Iterator[tuple[SignedEnvelope, ReleaseKeys]]:
    if len(chain) > MAX_CHAIN_BYTES:
        raise bad_key_list("it is larger than any may be")
    try:
        entries = json.loads(chain)
    except (ValueError, RecursionError) as error:
        raise bad_key_list("it is no JSON") from error
    if not isinstance(entries, list) or len(entries) > MAX_STEPS:
        raise bad_key_list("it is no list, or too long")
    for entry in entries:
        envelope = parse_envelope(json.dumps(entry).encode(), KEYS_PAYLOAD_TYPE)
        yield envelope, parse_key_list(envelope.payload)


def newer(one: ReleaseKeys, other: ReleaseKeys) -> ReleaseKeys:
    """The list of the higher version; the first where they are the same."""
    return other if other.version > one.version else one
