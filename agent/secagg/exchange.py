"""Secrets between two hospitals: the key of a run, pairwise roots and seeds, and shares sealed for one reader.

Sources: X25519 (RFC 7748), HKDF (RFC 5869), AES-256-GCM (NIST SP 800-38D) under keys used once.
"""

from __future__ import annotations

from collections.abc import Mapping

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from agent.secagg import refusals
from agent.secagg.transcript import Field, digest, expand_key, extract_key, frame_fields

_PRIME = 2**255 - 19
_LOW_ORDER = frozenset(
    {
        # RFC 7748 section 7 and https://cr.yp.to/ecdh.html#validate: the points of order 1, 2, 4, 8, in canonical form.
        0,
        1,
        _PRIME - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)
_NONCE = bytes(12)
"""Each sealing key is used for one message only, so the nonce may be fixed."""
TAG_BYTES = 16
_SIGNATURE = ec.ECDSA(hashes.SHA256())


class RunKey:
    """A node's X25519 key of one run; it lives in memory only and has no representation."""

    __slots__ = ("_private", "_roots", "_salt", "public")

    def __init__(self, seed: bytes) -> None:
        """Make the key from 32 fresh uniform bytes."""
        self._private = x25519.X25519PrivateKey.from_private_bytes(seed)
        self._salt = b""
        self._roots: dict[str, bytes] = {}
        self.public = self._private.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return "RunKey(...)"

    def roots(self, site: str, peer_keys: Mapping[str, bytes], *, bundles: bytes, study: bytes) -> dict[str, bytes]:
        """The roots that a hospital shares with each peer in a run with exactly these bundles; kept for later rounds.

        Args:
            site: Our own.
            peer_keys: The others' public keys, 32 bytes each, checked.
            bundles: Digest of all bundles.
            study: Digest of the study.

        Raises:
            PeerProtocolError: A key is of low order.
        """
        if bundles != self._salt:
            self._roots = {peer: self._root(site, peer, key, bundles, study) for peer, key in peer_keys.items()}
            self._salt = bundles
        return self._roots

    def _root(self, site: str, peer: str, peer_key: bytes, bundles: bytes, study: bytes) -> bytes:
        public = x25519.X25519PublicKey.from_public_bytes(peer_key)
        try:
            shared = self._private.exchange(public)
        except ValueError as error:
            raise refusals.weak_key(peer) from error
        first, second = sorted((site, peer))
        return extract_key(shared, salt=bundles, label="root", fields=(study, first, second))


def check_public_key(key: bytes, *, site: str) -> None:
    """Check that an X25519 key is in canonical form and not of low order.

    Raises:
        PeerProtocolError: It is not.
    """
    value = int.from_bytes(key, "little")
    # The high bit would be ignored (RFC 7748 section 5), so one key would have two spellings.
    if len(key) != 32 or value >= _PRIME or value in _LOW_ORDER:
        raise refusals.weak_key(site)


def pair_seed(root: bytes, context: bytes, first: str, second: str) -> bytes:
    """s_ij: the seed of the common mask of two hospitals in one round."""
    return expand_key(root, "seed", context, *sorted((first, second)))


def seal_share(root: bytes, context: bytes, dealer: str, holder: str, plaintext: bytes) -> bytes:
    """Encrypt a dealer's shares for one holder under a key that serves this message alone."""
    return _cipher(root, context, dealer, holder).encrypt(_NONCE, plaintext, _binding(context, dealer, holder))


def open_share(root: bytes, context: bytes, dealer: str, holder: str, ciphertext: bytes) -> bytes | None:
    """Decrypt a dealer's shares; None if they were not sealed by `dealer` for `holder` in this round."""
    try:
        return _cipher(root, context, dealer, holder).decrypt(_NONCE, ciphertext, _binding(context, dealer, holder))
    except InvalidTag:
        return None


def seed_commitment(context: bytes, first: str, second: str, seed: bytes) -> bytes:
    """What both hospitals of a pair publish about their seed; hiding, since the seed has 256 bits."""
    return digest("seed-commitment", context, *sorted((first, second)), seed)


def self_commitment(context: bytes, site: str, seed: bytes) -> bytes:
    """What a hospital publishes about its self seed b_i."""
    return digest("self-commitment", context, site, seed)


def verify_signature(key: ec.EllipticCurvePublicKey, signature: bytes, label: str, *fields: Field) -> bool:
    """Whether `signature` (ECDSA over P-256 with SHA-256, DER) covers exactly these fields under `label`."""
    try:
        key.verify(signature, frame_fields(label, *fields), _SIGNATURE)
    except (InvalidSignature, ValueError):
        return False
    return True


def _cipher(root: bytes, context: bytes, dealer: str, holder: str) -> AESGCM:
    return AESGCM(expand_key(root, "share-key", context, dealer, holder))


def _binding(context: bytes, dealer: str, holder: str) -> bytes:
    return frame_fields("share", context, dealer, holder)
