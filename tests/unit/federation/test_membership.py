from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.federation.membership import MembershipStore


@pytest.fixture
def store(tmp_path: Path) -> MembershipStore:
    return MembershipStore(tmp_path / "fleet", "superlink:9092", b"key")


def test_an_empty_memory_says_so(store: MembershipStore) -> None:
    assert store.load_node_id() is None
    assert store.load_in_hand() is None
    store.forget_in_hand()


def test_what_is_stored_is_found_again(store: MembershipStore) -> None:
    store.store_node_id((1 << 64) - 1)
    store.store_in_hand(b"message")
    assert store.load_node_id() == (1 << 64) - 1
    assert store.load_in_hand() == b"message"
    store.forget_in_hand()
    assert store.load_in_hand() is None


def test_another_key_or_another_superlink_has_another_memory(store: MembershipStore) -> None:
    store.store_node_id(7)
    assert MembershipStore(store.directory, store.address, b"other").load_node_id() is None
    assert MembershipStore(store.directory, "elsewhere:1", store.public_key).load_node_id() is None


@given(st.binary(max_size=200))
def test_a_damaged_memory_counts_as_empty(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agent.federation.membership._load", lambda _: data)
        assert MembershipStore(Path("nowhere"), "a:1", b"k").load_node_id() is None


@pytest.mark.parametrize("node_id", ["0", "-1", "true", '"7"', "1.5", str(1 << 64)])
def test_an_impossible_node_id_counts_as_none(store: MembershipStore, node_id: str) -> None:
    store.store_node_id(7)
    path = store.directory / "membership.json"
    path.write_text(path.read_text().replace("7}", f"{node_id}}}"))
    assert store.load_node_id() is None
