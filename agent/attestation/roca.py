"""Tells RSA moduli made by the broken generator of some TPMs and cards (ROCA, CVE-2017-15361) from all others.

Such a modulus is a power of 65537 modulo every small prime; another one is so with a chance of about 2^-27.

Source: Nemec, Sys, Svenda, Klinec, Matyas: The Return of Coppersmith's Attack, CCS 2017, section 2.2.
"""

from __future__ import annotations

_GENERATOR = 65537
_PRIMES = (
    *(3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97),
    *(101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167),
)


def _powers(prime: int) -> frozenset[int]:
    powers, value = {1}, _GENERATOR % prime
    while value not in powers:
        powers.add(value)
        value = value * _GENERATOR % prime
    return frozenset(powers)


_POWERS_FOR_PRIME = {prime: _powers(prime) for prime in _PRIMES}


def is_roca(modulus: int) -> bool:
    """Whether the broken generator made `modulus`."""
    return all(modulus % prime in powers for prime, powers in _POWERS_FOR_PRIME.items())
