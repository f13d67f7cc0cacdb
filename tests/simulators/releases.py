"""A publisher of releases: two of three keys, as the maker of the software holds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from agent.statements.release import PAYLOAD_TYPE, Release, Version
from agent.update.release import ReleaseKeys, parse_release_keys


class Publisher:
    """Signs release records.

    Args:
        threshold: How many of its keys it takes.
        count: How many it has.
    """

    def __init__(self, threshold: int = 2, count: int = 3) -> None:
        keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(count)]
        self.threshold = threshold
        self.signers = [CryptoSigner(key) for key in keys]

    @property
    def keys_file(self) -> bytes:
        """release-keys.json."""
        keys = {signer.public_key.keyid: signer.public_key.keyval["public"] for signer in self.signers}
        return json.dumps({"threshold": self.threshold, "keys": keys}).encode()

    @property
    def keys(self) -> ReleaseKeys:
        """The same, parsed."""
        return parse_release_keys(self.keys_file)

    def record(self, release: Release, signers: Sequence[int] = (0, 1), payload_type: str = PAYLOAD_TYPE) -> bytes:
        """release.json.

        Args:
            release: What is signed.
            signers: Which of its keys sign.
            payload_type: As another kind of statement would name itself.
        """
        envelope = Envelope(release.payload(), payload_type, {})
        for index in signers:
            envelope.sign(self.signers[index])
        return json.dumps(envelope.to_dict()).encode()


def sample_release(version: str, *, epoch: int = 0, image: bytes = bytes(4096), root_hash: str = "0" * 64) -> Release:
    """A release of `image`, whose root hash is whatever the caller says."""
    return Release(
        version=Version.parse(version),
        epoch=epoch,
        image_sha256=hashlib.sha256(image).hexdigest(),
        image_bytes=len(image),
        root_hash=root_hash,
        salt=hashlib.sha256(version.encode()).hexdigest(),
        commit="0" * 40,
        built_s=1_750_000_000,
    )
