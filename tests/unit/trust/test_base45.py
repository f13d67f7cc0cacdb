from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.trust.base45 import decode_base45, encode_base45


@pytest.mark.parametrize(
    ("data", "text"),
    # RFC 9285 4.3 and 4.4
    [(b"AB", "BB8"), (b"Hello!!", "%69 VD92EX0"), (b"base-45", "UJCLQE7W581"), (b"ietf!", "QED8WEX0"), (b"", "")],
)
def test_the_standard_s_examples(data: bytes, text: str) -> None:
    assert encode_base45(data) == text
    assert decode_base45(text) == data


@pytest.mark.parametrize("text", ["A", "AAAA", "GGX", ":::", "XX", "ab8", "B\nB", "é12"])
def test_what_stands_for_no_bytes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="base45"):
        decode_base45(text)


@given(st.binary(max_size=400))
def test_every_byte_string_comes_back_and_no_text_ends_in_a_space(data: bytes) -> None:
    text = encode_base45(data)
    assert decode_base45(text) == data
    assert text == text.rstrip()
