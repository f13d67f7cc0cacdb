from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.secagg.shamir import MAX_SHARES, PRODUCT, combine_shares, split_secret
from tests.simulators.cohort import SeededRandomness


def test_field_products_are_those_of_fips_197() -> None:
    # FIPS 197, section 4.2 and 4.2.1.
    assert PRODUCT[0x57, 0x83] == 0xC1
    assert PRODUCT[0x57, 0x13] == 0xFE
    assert np.array_equal(PRODUCT[1], np.arange(256))
    assert np.array_equal(PRODUCT, PRODUCT.T)


def test_published_shares_of_draft_mcgrew_tss_recover_its_secret() -> None:
    shares = {1: bytes.fromhex("b9fa07e185"), 2: bytes.fromhex("f5409b4511")}
    assert combine_shares(shares) == b"test\0"


def test_published_shares_come_out_again_from_their_coefficients() -> None:
    secret = b"test\0"
    # The polynomial is of degree 1: its coefficient is the difference of share 1 and the secret.
    coefficients = bytes(a ^ b for a, b in zip(secret, bytes.fromhex("b9fa07e185"), strict=True))
    rows = split_secret(secret, threshold=2, shares=2, coefficients=coefficients)
    assert [row.tobytes().hex() for row in rows] == ["b9fa07e185", "f5409b4511"]


@given(st.data())
def test_any_threshold_of_shares_recovers_the_secret(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 40))
    threshold = data.draw(st.integers(1, count))
    secret = data.draw(st.binary(min_size=1, max_size=70))
    chosen = data.draw(st.permutations(range(count)))[:threshold]
    coefficients = SeededRandomness(secret)((threshold - 1) * len(secret))
    rows = split_secret(secret, threshold=threshold, shares=count, coefficients=coefficients)
    assert combine_shares({index + 1: rows[index].tobytes() for index in chosen}) == secret


def test_one_share_fewer_fits_every_secret() -> None:
    rows = split_secret(b"\x2a", threshold=3, shares=5, coefficients=b"\x11\x22")
    known = {1: rows[0].tobytes(), 2: rows[1].tobytes()}
    recovered = {combine_shares({**known, 3: bytes([guess])}) for guess in range(256)}
    assert len(recovered) == 256


def test_the_largest_field_holds_255_shares() -> None:
    coefficients = SeededRandomness(1)(254 * 4)
    rows = split_secret(b"abcd", threshold=255, shares=MAX_SHARES, coefficients=coefficients)
    assert combine_shares({index + 1: row.tobytes() for index, row in enumerate(rows)}) == b"abcd"


@pytest.mark.parametrize(("threshold", "shares"), [(0, 3), (4, 3), (2, 256)])
def test_thresholds_and_counts_outside_the_field_are_refused(threshold: int, shares: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        split_secret(b"x", threshold=threshold, shares=shares, coefficients=b"")
