"""Whose releases count on this box: the newer of the package's list and the one that it was followed by.

What was committed here before that list came may still start, whoever signed it; nothing else may. Both stand in the
slot tool's state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from agent.statements.release import Release
from agent.statements.release_keys import ReleaseKeys, parse_release_keys
from agent.update.keys import newer
from agent.update.release import read_verified, verify_release
from agent.update.state import State


class TrustedReleases:
    """The list that counts, and the records that were committed before it.

    Args:
        shipped: Who may sign releases, as the package says.
    """

    def __init__(self, shipped: ReleaseKeys) -> None:
        self._shipped = shipped
        self._kept: frozenset[str] = frozenset()
        self.keys = shipped

    def recall(self, state: State | None) -> None:
        """Take up what a state remembers; what was taken up before stays where it remembers nothing."""
        if state is not None and state.keys is not None:
            self.keys = newer(self._shipped, parse_release_keys(state.keys.encode()))
            self._kept = frozenset(state.kept)

    def is_outdated(self, state: State) -> bool:
        """Whether the package brings a newer list than a state holds; that state's is the one that counts then."""
        if state.keys is None:
            return False
        held = parse_release_keys(state.keys.encode())
        if self._shipped.version > held.version:
            # What was committed is held against the list under which it was, not against the newer package's.
            self.keys = held
            return True
        return False

    def adopt(self, keys: ReleaseKeys, committed: Iterable[bytes]) -> None:
        """Have a newer list count.

        Args:
            keys: It, verified.
            committed: Records of the releases here that were well.
        """
        self.keys, self._kept = keys, frozenset(map(_digest, committed))

    def noted(self, state: State) -> State:
        """The state that remembers it all."""
        return replace(state, keys=self.keys.payload().decode("ascii"), kept=tuple(sorted(self._kept)))

    def verify(self, record: bytes) -> Release:
        """Verify the record of a release that is to be installed.

        Raises:
            PeerProtocolError: As `verify_release` says.
        """
        return verify_release(record, self.keys)

    def verify_stored(self, record: bytes) -> Release:
        """Verify the record of a release that lies in a slot.

        Raises:
            PeerProtocolError: As `verify_release` says; not where it was committed before the list came.
        """
        return read_verified(record) if _digest(record) in self._kept else verify_release(record, self.keys)


def _digest(record: bytes) -> str:
    return hashlib.sha256(record).hexdigest()
