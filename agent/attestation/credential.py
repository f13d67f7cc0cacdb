"""MakeCredential: a secret that only the TPM with a certain EK can read, and only if a certain key lives in it.

The asker's half of credential activation, without a TPM. Whoever answers with the secret has shown that the key of
that name is in the TPM that the EK certificate speaks of.

Source: TCG TPM 2.0 Library Part 1, 24 (Credential Protection), 11.4.10.2 (KDFa), 11.4.10.3 (KDFe), B.10.4 and C.6.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from agent.attestation.reader import malformed
from agent.attestation.structures import HASH_FOR_ALGORITHM, HASH_NAME, Algorithm, TPMPublic

SECRET_BYTES = 32
_LABEL = b"IDENTITY\x00"
_AES_BITS = frozenset({128, 192, 256})

RandomBytes = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Credential:
    """What travels to the box.

    Args:
        blob: TPM2B_ID_OBJECT: the secret, encrypted and bound to the key's name.
        encrypted_seed: TPM2B_ENCRYPTED_SECRET: what the EK decrypts.
    """

    blob: bytes
    encrypted_seed: bytes


def make_credential(ek: TPMPublic, name: bytes, secret: bytes, *, random_bytes: RandomBytes) -> Credential:
    """Encrypt `secret` for the TPM with `ek`, to be read only if the key called `name` lives in it.

    Args:
        ek: The endorsement key, a storage key with AES in CFB mode.
        name: The key's name (34 bytes with SHA-256).
        secret: At most 32 bytes.
        random_bytes: `secrets.token_bytes`.

    Raises:
        PeerProtocolError: `ek` is no key that can do this.
    """
    symmetric = ek.symmetric
    if symmetric is None or symmetric.algorithm != Algorithm.AES or symmetric.mode != Algorithm.CFB:
        raise malformed("an EK that does not encrypt with AES in CFB mode")
    if symmetric.key_bits not in _AES_BITS:
        raise malformed("an EK with an AES key of a length that there is not")
    seed, encrypted_seed = _share_seed(ek, random_bytes)
    key = _kdfa(ek.name_algorithm, seed, b"STORAGE", name, symmetric.key_bits)
    # The zero IV is the specification's; the key is used once.
    encryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).encryptor()
    identity = encryptor.update(_sized(secret)) + encryptor.finalize()
    digest_bits = HASH_FOR_ALGORITHM[ek.name_algorithm].digest_size * 8
    integrity_key = _kdfa(ek.name_algorithm, seed, b"INTEGRITY", b"", digest_bits)
    integrity = hmac.digest(integrity_key, identity + name, HASH_NAME[ek.name_algorithm])
    return Credential(_sized(_sized(integrity) + identity), _sized(encrypted_seed))


def _share_seed(ek: TPMPublic, random_bytes: RandomBytes) -> tuple[bytes, bytes]:
    algorithm = HASH_FOR_ALGORITHM[ek.name_algorithm]
    if isinstance(ek.key, rsa.RSAPublicKey):
        seed = random_bytes(algorithm.digest_size)
        return seed, ek.key.encrypt(seed, padding.OAEP(padding.MGF1(algorithm), algorithm, _LABEL))
    return _share_seed_on_curve(ek.key, algorithm, random_bytes)


def _share_seed_on_curve(
    key: ec.EllipticCurvePublicKey, algorithm: hashes.HashAlgorithm, random_bytes: RandomBytes
) -> tuple[bytes, bytes]:
    size = (key.curve.key_size + 7) // 8
    # 64 bits more than the order, so that the remainder is as good as uniform (FIPS 186-5, A.2.1).
    scalar = int.from_bytes(random_bytes(size + 8), "big") % (key.curve.group_order - 1) + 1
    ephemeral = ec.derive_private_key(scalar, key.curve)
    ours, theirs = ephemeral.public_key().public_numbers(), key.public_numbers()
    x, y, ek_x = ours.x.to_bytes(size, "big"), ours.y.to_bytes(size, "big"), theirs.x.to_bytes(size, "big")
    shared = ephemeral.exchange(ec.ECDH(), key)
    seed = ConcatKDFHash(algorithm, algorithm.digest_size, _LABEL + x + ek_x).derive(shared)
    return seed, _sized(x) + _sized(y)


def _kdfa(name_algorithm: int, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    return KBKDFHMAC(
        algorithm=HASH_FOR_ALGORITHM[name_algorithm],
        mode=Mode.CounterMode,
        length=bits // 8,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=label,
        context=context,
        fixed=None,
    ).derive(key)


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def activation_answer(secret: bytes, qualifying_data: bytes) -> bytes:
    """What a box answers with instead of the secret itself: (32,), bound to what the whole exchange is about.

    Args:
        secret: What the TPM released.
        qualifying_data: (32,), of this exchange (`agent.attestation.binding`).
    """
    return hmac.digest(secret, b"secur-e-health activation v1\x00" + qualifying_data, hashlib.sha256)
