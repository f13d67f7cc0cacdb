"""A cursor over bytes that a stranger sent: every length is checked before it is believed."""

from __future__ import annotations

import struct
from typing import Literal

from agent.core.errors import PeerProtocolError


class Reader:
    """Reads numbers and byte strings from the front of `data`.

    Args:
        data: What came.
        limit: The most bytes that it may have.
        order: Big-endian for TPM structures, little-endian for firmware's event logs.

    Raises:
        PeerProtocolError: `data` is longer than `limit`; every read, if too little is left.
    """

    def __init__(self, data: bytes, *, limit: int, order: Literal["big", "little"] = "big") -> None:
        if len(data) > limit:
            raise malformed("more bytes than it may have")
        self._data = data
        self._at = 0
        self._mark = ">" if order == "big" else "<"

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > self.left:
            raise malformed("fewer bytes than it announces")
        self._at += count
        return self._data[self._at - count : self._at]

    def u8(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def u8_at_most(self, limit: int) -> int:
        """The next byte, a count that may not exceed `limit`."""
        value = self.u8()
        if value > limit:
            raise malformed("a count beyond the limits")
        return value

    def u16(self) -> int:
        """The next two bytes."""
        return int(struct.unpack(self._mark + "H", self.take(2))[0])

    def u32(self) -> int:
        """The next four bytes."""
        return int(struct.unpack(self._mark + "I", self.take(4))[0])

    def u64(self) -> int:
        """The next eight bytes."""
        return int(struct.unpack(self._mark + "Q", self.take(8))[0])

    def sized(self, *, limit: int) -> bytes:
        """A TPM2B: two bytes of length, and as many bytes, at most `limit`."""
        size = self.u16()
        if size > limit:
            raise malformed("a length beyond the limits")
        return self.take(size)

    def end(self) -> None:
        """Nothing may be left."""
        if self.left:
            raise malformed("bytes after its end")


def malformed(what: str) -> PeerProtocolError:
    """The failure of evidence that cannot be read."""
    return PeerProtocolError(
        "attestation.malformed",
        f"A node's evidence about its key cannot be read: it has {what}.",
        next_step="The evidence counts for nothing; ask the node for it anew. If it repeats, report it.",
    )
