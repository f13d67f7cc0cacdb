"""Publishing: everything is verified before it is written, and boxes see all of a change or nothing.

What is about to be published is first written down (`proposal.cbor`), then signed by each organisation's online key,
then written to the repository, its timestamp last. Wherever this stops, the next call goes on from there with the same
bytes: no organisation ever signs two things under one version.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import structlog
from tuf.api.metadata import Metadata, Root, Snapshot, Timestamp

from agent.core.clock import Clock
from agent.core.errors import PeerProtocolError
from agent.core.files import store_atomically, sync_directory
from agent.core.ids import SiteID
from agent.trust.delegations import STUDIES
from agent.trust.records import SitePaths
from agent.trust.tuf_faults import translated
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.online import OnlineSigner
from provisioning.authority.records import check_targets
from provisioning.authority.repository import (
    Change,
    Proposal,
    RepositoryFiles,
    RepositoryState,
    make_directory,
    parse_proposal,
    storing,
)
from provisioning.authority.roles import CONSORTIUM, RepositoryKind, new_snapshot, new_timestamp
from provisioning.authority.successor import check_successor

SNAPSHOT_RENEWED_BEFORE: Final = timedelta(days=3)
"""A refresh makes a new snapshot when the one before has no more time left than this."""

_log = structlog.get_logger(__name__)


class Publisher:
    """The only one who writes to the repository; several processes and threads take turns.

    Args:
        layout: The authority's directory.
        signers: The online keys in the order in which they are asked; the one on this host first.
        clock: For times of expiry.
        kind: Of the repository.
    """

    def __init__(
        self,
        layout: AuthorityLayout,
        signers: Sequence[OnlineSigner],
        clock: Clock,
        kind: RepositoryKind = CONSORTIUM,
    ) -> None:
        self._kind = kind
        self._layout = layout
        self._signers = tuple(signers)
        self._clock = clock
        self.files = RepositoryFiles(layout.repository)

    def publish(self, change: Change) -> RepositoryState:
        """Publish a change; one that was published already changes nothing.

        Args:
            change: New metadata, signed by whoever must, and the files that it lists anew.

        Returns:
            The state after it.

        Raises:
            PeerProtocolError: It may not follow what was published before, or an organisation refuses it.
            NetworkError: An organisation does not answer; the next call goes on from here.
            HardwareError: The disk does not take it; the state before stays in force.
        """
        with self._held():
            before = self._resume()
            if _is_published(change, before):
                return before
            return self._publish(before, change)

    def publish_role(self, role: str, metadata: bytes, targets: Mapping[str, bytes]) -> RepositoryState:
        """Publish the next version of one targets role.

        Args:
            role: Its name.
            metadata: Signed by the role's keys.
            targets: Contents of the files that it lists anew, by target path.

        Raises:
            PeerProtocolError, NetworkError, HardwareError: As `publish` says.
        """
        return self.publish(Change(roles={role: metadata}, targets=targets))

    def publish_site(self, site: SiteID, metadata: bytes, targets: Mapping[str, bytes]) -> RepositoryState:
        """Publish what a hospital signed.

        Args:
            site: The hospital.
            metadata: Of its role, signed by its keys, one version above the newest.
            targets: Contents of the files that it lists anew, by target path.

        Raises:
            PeerProtocolError, NetworkError, HardwareError: As `publish` says.
        """
        return self.publish_role(SitePaths(site).role, metadata, targets)

    def publish_study(self, metadata: bytes, targets: Mapping[str, bytes]) -> RepositoryState:
        """Publish the next version of the studies role.

        Args:
            metadata: Signed by a threshold of its keys.
            targets: `studies/<id>/study.json` and `studies/<id>/model.onnx` of new studies.

        Raises:
            PeerProtocolError, NetworkError, HardwareError: As `publish` says.
        """
        return self.publish_role(STUDIES, metadata, targets)

    def refresh_online(self) -> RepositoryState:
        """Make a new timestamp, and a new snapshot where its time runs out; boxes see that the repository lives.

        Raises:
            PeerProtocolError, NetworkError, HardwareError: As `publish` says.
        """
        with self._held():
            return self._publish(self._resume(), Change())

    def resume(self) -> RepositoryState:
        """Finish what an earlier call began, if anything; returns what is published then.

        Raises:
            NetworkError, HardwareError: As `publish` says.
        """
        with self._held():
            return self._resume()

    def load(self) -> RepositoryState:
        """What is published now.

        Raises:
            OperatorError: The directory is damaged.
        """
        return self.files.load()

    def _publish(self, before: RepositoryState, change: Change) -> RepositoryState:
        with translated():
            proposal = self._propose(before, change)
        check_successor(before, proposal, now=self._clock.now(), kind=self._kind)
        check_targets(before, change, self.files, self._kind)
        self.files.store_targets(change.targets)
        return self._commit(before, proposal)

    def _propose(self, before: RepositoryState, change: Change) -> Proposal:
        now = self._clock.now()
        version, snapshot = before.snapshot_version, b""
        if change.roots or change.roles or self._is_snapshot_old(before):
            version += 1
            # A hospital that was taken out stays listed: clients refuse a snapshot that lists less (TUF 5.5.5).
            snapshot = new_snapshot({**before.roles, **change.roles}, version=version, now=now).to_bytes()
        timestamp = new_timestamp(version, version=before.timestamp_version + 1, now=now).to_bytes()
        return Proposal(change.roots, change.roles, snapshot, timestamp)

    def _is_snapshot_old(self, state: RepositoryState) -> bool:
        if not state.snapshot:
            return True
        expires = Metadata[Snapshot].from_bytes(state.snapshot).signed.expires
        return expires - self._clock.now() < SNAPSHOT_RENEWED_BEFORE

    def _commit(self, before: RepositoryState, proposal: Proposal) -> RepositoryState:
        """Have a proposal signed by every organisation, and write it."""
        for signer in self._signers:
            try:
                proposal = signer.sign(proposal)
            except PeerProtocolError:
                self._forget()  # it will never be signed; what comes next begins from the state before
                raise
            # On the disk after each: an organisation that has signed must be shown the same bytes again.
            self._write_down(proposal)
        after = proposal.applied(before)
        verify_online(after)
        self.files.store(proposal)
        self._forget()
        _log.info("published", timestamp_version=after.timestamp_version, snapshot_version=after.snapshot_version)
        return after

    def _resume(self) -> RepositoryState:
        """Finish what an earlier call began; returns what is published then."""
        state = self.files.load()
        if not self._layout.proposal.exists():
            return state
        proposal = parse_proposal(self._layout.proposal.read_bytes())
        if Metadata[Timestamp].from_bytes(proposal.timestamp).signed.version <= state.timestamp_version:
            self.files.store(proposal)
            self._forget()
            return state
        try:
            return self._commit(state, proposal)
        except PeerProtocolError as error:
            _log.warning("proposal_refused", code=error.code, sentence=error.sentence)
            return state

    def _write_down(self, proposal: Proposal) -> None:
        with storing():
            store_atomically(self._layout.proposal, proposal.encode(), mode=0o600)

    def _forget(self) -> None:
        with storing():
            self._layout.proposal.unlink(missing_ok=True)
            sync_directory(self._layout.path)

    @contextmanager
    def _held(self) -> Iterator[None]:
        with storing():
            make_directory(self._layout.path)
            descriptor = os.open(self._layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def verify_online(state: RepositoryState) -> None:
    """Verify the online roles' signatures.

    Raises:
        PeerProtocolError: An organisation's is missing (`trust.not_signed`).
    """
    root = Metadata[Root].from_bytes(state.roots[-1]).signed
    with translated():
        for role, data in ((Snapshot.type, state.snapshot), (Timestamp.type, state.timestamp)):
            metadata = Metadata[Snapshot].from_bytes(data)
            root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)


def _is_published(change: Change, state: RepositoryState) -> bool:
    return set(change.roots) <= set(state.roots) and all(
        state.roles.get(name) == data for name, data in change.roles.items()
    )
