"""Secure aggregation once more, from docs/secure-aggregation.md alone: slow, plain, nothing shared with the agent.

If this and the agent agree on the vectors, the document says what the agent does.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction

from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PREFIX = "secur-e-health/secagg/1/"
WORD = 1 << 64
Field = bytes | str | int


def framed(label: str, *fields: Field) -> bytes:
    out = b""
    for field in (PREFIX + label, *fields):
        data = field.encode() if isinstance(field, str) else field
        data = struct.pack(">Q", data) if isinstance(data, int) else data
        out += struct.pack(">I", len(data)) + data
    return out


def hashed(label: str, *fields: Field) -> bytes:
    return hashlib.sha256(framed(label, *fields)).digest()


def hashed_list(label: str, items: Sequence[bytes]) -> bytes:
    return hashed(label, len(items), *items)


def expand(key: bytes, label: str, *fields: Field) -> bytes:
    """HKDF-Expand to one block (RFC 5869 2.3)."""
    return hmac.digest(key, framed(label, *fields) + b"\x01", "sha256")


def extract(salt: bytes, secret: bytes) -> bytes:
    return hmac.digest(salt, secret, "sha256")


def key_stream(key: bytes, words: int) -> list[int]:
    data = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(words * 8))
    return list(struct.unpack(f"<{words}Q", data))


def times(a: int, b: int) -> int:
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = (a << 1) ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def share_out(secret: bytes, coefficients: bytes, threshold: int, point: int) -> bytes:
    """Highest power first: the first run of coefficients belongs to x^(T-1)."""
    size = len(secret)
    rows = [coefficients[k * size : (k + 1) * size] for k in range(threshold - 1)] + [secret]
    value = [0] * size
    for row in rows:
        value = [times(point, v) ^ r for v, r in zip(value, row, strict=True)]
    return bytes(value)


def recombine(shares: Mapping[int, bytes]) -> bytes:
    size = len(next(iter(shares.values())))
    out = [0] * size
    for point, share in shares.items():
        weight = 1
        for other in shares:
            if other != point:
                inverse = next(x for x in range(1, 256) if times(x, other ^ point) == 1)
                weight = times(weight, times(other, inverse))
        out = [o ^ times(weight, s) for o, s in zip(out, share, strict=True)]
    return bytes(out)


def check_word(words: Sequence[int], key: bytes) -> int:
    return (
        sum((coefficient | 1) * word for coefficient, word in zip(key_stream(key, len(words)), words, strict=True))
        % WORD
    )


class Layout:
    """Lanes of a cohort of n: b bits each, W words."""

    def __init__(self, length: int, cohort: int, bits: int) -> None:
        self.limit = 2 ** (bits - 1) - 1
        self.lane_bits = (2 * self.limit * cohort).bit_length()
        self.lanes = 64 // self.lane_bits
        words = -(-length // self.lanes)
        self.words = words + words % 2
        self.length = length

    def pack(self, integers: Sequence[int]) -> list[int]:
        padded = [*integers, *[0] * (self.words * self.lanes - self.length)]
        return [
            sum(
                (padded[lane * self.words + word] + self.limit) << (lane * self.lane_bits) for lane in range(self.lanes)
            )
            for word in range(self.words)
        ]

    def unpack(self, words: Sequence[int], hospitals: int) -> list[int]:
        mask = 2**self.lane_bits - 1
        every = [((word >> (lane * self.lane_bits)) & mask) for lane in range(self.lanes) for word in words]
        return [value - hospitals * self.limit for value in every[: self.length]]

    def mean(self, words: Sequence[int], hospitals: int, weight: int, clip: float, cap: int) -> list[float]:
        step = Fraction(clip) / self.limit / (1 - Fraction(1, 2**20))
        return [float(value * step * cap / weight) for value in self.unpack(words, hospitals)]


class Round:
    """One attempt, from the inputs that a vector file states."""

    def __init__(self, given: Mapping[str, object]) -> None:
        self.given = given
        terms = given["terms"]
        assert isinstance(terms, dict)
        self.terms = terms
        self.sites = [str(site) for site in terms["sites"]]
        bundles = given["bundles"]
        assert isinstance(bundles, list)
        self.bundles = bundles
        self.threshold = (len(self.sites) + int(terms["colluders"])) // 2 + 1
        # Where no part of the cohort may be summed, only the self seed is shared out.
        largest_part = len(self.sites) - 1 if terms["dropout"] == "continue" else 0
        self.partial = largest_part >= max(self.threshold, int(terms["minimum_sites"]))
        self.layout = Layout(int(terms["parameters"]), len(self.sites), int(terms["bits"]))
        self.study = bytes.fromhex(terms["study_digest"])
        self.bundles_digest = hashed_list("bundles", [framed("bundle", *self.bundle_fields(one)) for one in bundles])
        self.context = self._context()

    @staticmethod
    def bundle_fields(bundle: Mapping[str, str]) -> tuple[Field, ...]:
        certificate = hashed("certificate", bytes.fromhex(bundle["certificate"]))
        return bundle["site"], bytes.fromhex(bundle["key"]), certificate

    def hex(self, name: str) -> bytes:
        return bytes.fromhex(str(self.given[name]))

    def _context(self) -> bytes:
        terms, layout = self.terms, self.layout
        shape = (terms["parameters"], terms["words"], len(self.sites), terms["bits"], terms["weight_cap"])
        return hashed(
            "context",
            self.study,
            self.hex("run"),
            int(str(self.given["round"])),
            int(str(self.given["attempt"])),
            self.bundles_digest,
            hashed("model", self.hex("model")),
            self.hex("previous"),
            hashed("configuration", self.hex("configuration")),
            int(terms["colluders"]),
            int(terms["minimum_sites"]),
            self.threshold,
            int(self.partial),
            str(terms["dropout"]),
            struct.pack(">ddd", terms["clip"], terms["max_step_l2"], terms["max_step_linf"]),
            framed("codec", *shape, layout.lane_bits, layout.words),
        )

    def root(self, site: str, peer: str) -> bytes:
        by_site = {bundle["site"]: bundle for bundle in self.bundles}
        private = x25519.X25519PrivateKey.from_private_bytes(bytes.fromhex(by_site[site]["private_key"]))
        public = x25519.X25519PublicKey.from_public_bytes(bytes.fromhex(by_site[peer]["key"]))
        first, second = sorted((site, peer))
        return expand(extract(self.bundles_digest, private.exchange(public)), "root", self.study, first, second)

    def seed(self, site: str, peer: str) -> bytes:
        return expand(self.root(site, peer), "seed", self.context, *sorted((site, peer)))

    def seeds(self, site: str, self_seed: bytes) -> list[bytes]:
        return [self_seed if peer == site else self.seed(site, peer) for peer in self.sites]

    def mask(self, site: str, vector: Sequence[int], self_seed: bytes) -> list[int]:
        total = list(vector)
        for peer, seed in zip(self.sites, self.seeds(site, self_seed), strict=True):
            sign = -1 if peer < site else 1
            total = [
                (value + sign * mask) % WORD for value, mask in zip(total, key_stream(seed, len(total)), strict=True)
            ]
        return total

    def slots(self, site: str, holder: str, self_seed: bytes, coefficients: bytes) -> list[bytes]:
        secret = b"".join(self.seeds(site, self_seed)) if self.partial else self_seed
        shares = share_out(secret, coefficients, self.threshold, self.sites.index(holder) + 1)
        return [shares[start : start + 32] for start in range(0, len(shares), 32)]

    def commitment(self, dealer: str, holder: str, slots: Sequence[bytes]) -> bytes:
        own = self.sites.index(dealer) if self.partial else 0
        hidden = [hashlib.sha256(PREFIX.encode() + b"slot" + slot).digest() for k, slot in enumerate(slots) if k != own]
        return hashed("share-commitment", self.context, dealer, holder, slots[own], hashed("slots", b"".join(hidden)))

    def seal(self, dealer: str, holder: str, slots: Sequence[bytes]) -> bytes:
        key = expand(self.root(dealer, holder), "share-key", self.context, dealer, holder)
        return AESGCM(key).encrypt(bytes(12), b"".join(slots), framed("share", self.context, dealer, holder))

    def upload(self, site: str, node: Mapping[str, object]) -> dict[str, object]:
        """Everything that a hospital sends and signs in leg 1."""
        self_seed = bytes.fromhex(str(node["self_seed"]))
        coefficients = bytes.fromhex(str(node["coefficients"]))
        vector = node["vector"]
        assert isinstance(vector, list)
        masked = self.mask(site, vector, self_seed)
        entries, sealed, commitments = b"", b"", b""
        for holder in self.sites:
            slots = self.slots(site, holder, self_seed, coefficients)
            box = b"" if holder == site else self.seal(site, holder, slots)
            sealed += box
            entries += hashlib.sha256(PREFIX.encode() + b"sealed" + box).digest() if box else bytes(32)
            entries += self.commitment(site, holder, slots)
            first, second = sorted((site, holder))
            seed = self.seed(site, holder) if box else b""
            commitments += hashed("seed-commitment", self.context, first, second, seed) if box else bytes(32)
        masked_digest = hashed("masked", self.context, struct.pack(f"<{len(masked)}Q", *masked))
        commitment = hashed("self-commitment", self.context, site, self_seed)
        seeds_digest = hashed("seed-commitments", commitments)
        statement = (self.context, site, masked_digest, commitment, hashed("entries", entries), seeds_digest)
        return {
            "masked": masked,
            "masked_digest": masked_digest.hex(),
            "commitment": commitment.hex(),
            "entries": entries.hex(),
            "seeds_digest": seeds_digest.hex(),
            "sealed_shares": sealed.hex(),
            "signed": framed("upload", *statement).hex(),
        }

    def unmask(
        self, survivors: Sequence[str], masked: Mapping[str, Sequence[int]], revealed: Mapping[str, list[object]]
    ) -> list[int]:
        """The sum, from the masked vectors and what hospitals revealed, as a server would."""
        vanished = [site for site in self.sites if site not in survivors]
        total = [sum(column) % WORD for column in zip(*(masked[site] for site in survivors), strict=True)]
        for place, dealer in enumerate(survivors):
            shares = {
                self.sites.index(holder) + 1: bytes.fromhex(str(fields[1]))[place * 32 : (place + 1) * 32]
                for holder, fields in list(revealed.items())[: self.threshold]
            }
            total = self._add(total, recombine(shares), -1)
            for number, gone in enumerate(vanished):
                own = bytes.fromhex(str(revealed[dealer][5]))[number * 32 : (number + 1) * 32]
                start = (place * len(vanished) + number) * 32
                slices = {
                    self.sites.index(holder) + 1: bytes.fromhex(str(fields[3]))[start : start + 32]
                    for holder, fields in list(revealed.items())[: self.threshold]
                }
                assert recombine(slices) == own
                total = self._add(total, own, -1 if dealer < gone else 1)
        return total

    @staticmethod
    def _add(total: Sequence[int], seed: bytes, sign: int) -> list[int]:
        return [(value + sign * mask) % WORD for value, mask in zip(total, key_stream(seed, len(total)), strict=True)]
