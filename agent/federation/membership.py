"""What a node remembers across a power cut: who it is at the SuperLink, and the message it had in hand.

With the node id a restarted node takes its session up again at once; without it, the SuperLink would refuse its key
until the lost session lapses. With the message it can tell the coordinator to ask again, instead of letting it wait.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class MembershipStore:
    """Two small files in a directory that only the agent writes.

    Args:
        directory: Made when first written to.
        address: The SuperLink that the memory is about; for another one it counts as empty.
        public_key: The node's key; likewise.
    """

    directory: Path
    address: str
    public_key: bytes

    def load_node_id(self) -> int | None:
        """The node id of the last session, or None."""
        data = _load(self.directory / "membership.json")
        try:
            value = json.loads(data or b"null")
        except ValueError:
            return None
        if not isinstance(value, dict) or value.get("of") != self._owner:
            return None
        node_id = value.get("node_id")
        return node_id if type(node_id) is int and 0 < node_id < 1 << 64 else None

    def store_node_id(self, node_id: int) -> None:
        """Remember the node id, durably."""
        value = {"of": self._owner, "node_id": node_id}
        self._store("membership.json", json.dumps(value).encode(), durable=True)

    def load_in_hand(self) -> bytes | None:
        """The message that was being answered when the last process ended, or None."""
        return _load(self.directory / "in-hand")

    def store_in_hand(self, packed: bytes) -> None:
        """Remember a message before work on it begins.

        Not forced to the disk: losing it in a power cut costs the coordinator a wait, forcing it costs every message.
        """
        self._store("in-hand", packed, durable=False)

    def forget_in_hand(self) -> None:
        """The message was answered."""
        (self.directory / "in-hand").unlink(missing_ok=True)

    @property
    def _owner(self) -> str:
        return hashlib.sha256(self.address.encode() + b"\0" + self.public_key).hexdigest()

    def _store(self, name: str, data: bytes, *, durable: bool) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        fresh = self.directory / f"{name}.new"
        with fresh.open("wb") as stream:
            stream.write(data)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        fresh.replace(self.directory / name)


def _load(path: Path) -> bytes | None:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
