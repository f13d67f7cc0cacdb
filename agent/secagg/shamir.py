"""Shamir's secret sharing, byte by byte over GF(2^8).

Source: A. Shamir, "How to share a secret", 1979; the field and the byte-wise form are those of draft-mcgrew-tss-03
(polynomial x^8 + x^4 + x^3 + x + 1, as in AES), whose test case stands among our vectors.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

MAX_SHARES = 255
_GENERATOR = 3
_POLYNOMIAL = 0x11B

Octets = npt.NDArray[np.uint8]


def _build_tables() -> tuple[Octets, Octets, Octets]:
    """Exponentials and logarithms to base 3, and the whole product table."""
    exponentials = np.zeros(512, np.uint8)
    logarithms = np.zeros(256, np.uint8)
    value = 1
    for power in range(255):
        exponentials[power] = exponentials[power + 255] = value
        logarithms[value] = power
        value ^= value << 1
        if value & 0x100:
            value ^= _POLYNOMIAL
    rows, columns = np.meshgrid(logarithms.astype(np.uint16), logarithms.astype(np.uint16), indexing="ij")
    product = exponentials[rows + columns]
    product[0, :] = 0
    product[:, 0] = 0
    return exponentials, logarithms, product


_EXPONENTIALS, _LOGARITHMS, PRODUCT = _build_tables()
"""`PRODUCT[a, b]` is a times b in the field; shape (256, 256), uint8."""


def split_secret(secret: bytes, *, threshold: int, shares: int, coefficients: bytes) -> Octets:
    """Share `secret` so that any `threshold` shares recover it and fewer say nothing.

    Args:
        secret: L bytes.
        threshold: 1..shares.
        shares: How many, at most 255; share k belongs to the point k + 1.
        coefficients: (threshold - 1) * L uniform bytes, used once.

    Returns:
        Shape (shares, L), uint8.
    """
    if not 1 <= threshold <= shares <= MAX_SHARES:
        raise ValueError("threshold and shares do not fit the field")
    rows = np.frombuffer(coefficients, np.uint8).reshape(threshold - 1, len(secret))
    points = np.arange(1, shares + 1, dtype=np.uint8)[:, None]
    value = np.zeros((shares, len(secret)), np.uint8)
    for row in rows:
        value = PRODUCT[points, value ^ row]
    return value ^ np.frombuffer(secret, np.uint8)


def combine_shares(shares: Mapping[int, bytes]) -> bytes:
    """Recover a secret from shares by their points (1..255): the interpolation at 0.

    Args:
        shares: At least `threshold` shares of equal length; all of them are used.
    """
    points = sorted(shares)
    weights = _weights_at_zero(points)
    rows = np.stack([np.frombuffer(shares[point], np.uint8) for point in points])
    total: Octets = np.bitwise_xor.reduce(PRODUCT[weights[:, None], rows], axis=0)
    return total.tobytes()


def _weights_at_zero(points: list[int]) -> Octets:
    """Lagrange's basis polynomials at 0: product over j != i of x_j / (x_j - x_i)."""
    weights = []
    for own in points:
        others = [point for point in points if point != own]
        log = sum(int(_LOGARITHMS[point]) - int(_LOGARITHMS[point ^ own]) for point in others)
        weights.append(_EXPONENTIALS[log % 255])
    return np.array(weights, np.uint8)
