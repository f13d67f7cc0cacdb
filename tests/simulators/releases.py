"""A publisher of releases: two of three keys, as the maker of the software holds them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from agent.statements.release import PAYLOAD_TYPE, Release, Version
from agent.statements.release_keys import KEYS_PAYLOAD_TYPE, ReleaseKeys, parse_release_keys


class Publisher:
    """Signs release records.

    Args:
        threshold: How many of its keys it takes.
        count: How many it has.
        signers: Its keys, where it has some already.
        version: Of its list.
    """

    def __init__(
        self, threshold: int = 2, count: int = 3, *, signers: Sequence[CryptoSigner] = (), version: int = 1
    ) -> None:
        made = [CryptoSigner(ec.generate_private_key(ec.SECP256R1())) for _ in range(0 if signers else count)]
        self.threshold = threshold
        self.version = version
        self.signers = [*signers, *made]

    def successor(self, *kept: int, new: int = 1, threshold: int = 2) -> Publisher:
        """The publisher after others of its keys were revoked; `kept` are the first."""
        added = [CryptoSigner(ec.generate_private_key(ec.SECP256R1())) for _ in range(new)]
        signers = [*(self.signers[index] for index in kept), *added]
        return Publisher(threshold, signers=signers, version=self.version + 1)

    @property
    def keys_file(self) -> bytes:
        """release-keys.json."""
        keys = {signer.public_key.keyid: signer.public_key.keyval["public"] for signer in self.signers}
        fields = {"threshold": self.threshold, "keys": keys}
        # The first packages knew no versions.
        return json.dumps(fields if self.version == 1 else {"version": self.version, **fields}).encode()

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


def signed_list(payload: bytes, signers: Sequence[CryptoSigner]) -> dict[str, object]:
    """One step of keys.json, whatever it says."""
    envelope = Envelope(payload, KEYS_PAYLOAD_TYPE, {})
    for signer in signers:
        envelope.sign(signer)
    return dict(envelope.to_dict())


def key_lists(*publishers: Publisher, signers: Sequence[int] = (0, 1)) -> bytes:
    """keys.json: from each publisher to the next, signed by the one before."""
    steps = [
        signed_list(after.keys.payload(), [before.signers[index] for index in signers])
        for before, after in itertools.pairwise(publishers)
    ]
    return json.dumps(steps).encode()


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
