"""Changes that need keys which touch no server: signed by a threshold of them, wherever each of them is.

A change that lacks signatures waits as a file in `pending/`; the holders of the other keys add theirs wherever they
are (the file holds no secret), and whoever completes it in the authority's directory publishes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import cbor2
from securesystemslib.signer import Key, Signer
from tuf.api.metadata import DelegatedRole, Metadata, Root, TargetFile, Targets, VerificationResult

from agent.core.cbor import decode_plain
from agent.core.clock import Clock
from agent.core.errors import OperatorError
from agent.core.files import store_atomically
from agent.core.ids import SiteID
from agent.trust.records import SitePaths
from agent.trust.tuf_faults import translated
from provisioning.authority.keyring import Keyring
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.publisher import Publisher
from provisioning.authority.repository import MAX_TARGET_BYTES, Change, RepositoryState, make_directory, storing
from provisioning.authority.roles import LIFETIME, RoleKeys, delegate, next_version, sign

_FORMAT: Final = "secur-e-health/pending/1"

Edit = Callable[[Targets], None]
"""Changes the next version of a role before it is signed."""


@dataclass(frozen=True, slots=True)
class PendingChange:
    """A change to one offline role, signed by some or all that must.

    Args:
        role: Which.
        before: Metadata that says who must sign: the root before for a root, else the delegating role's.
        change: What is to be published; its one root or its metadata of `role` is what is being signed.
    """

    role: str
    before: bytes
    change: Change

    @property
    def data(self) -> bytes:
        """The metadata that is being signed."""
        return self.change.roots[-1] if self.role == Root.type else self.change.roles[self.role]

    @property
    def version(self) -> int:
        """Of that metadata."""
        return Metadata[Targets].from_bytes(self.data).signed.version

    @property
    def is_complete(self) -> bool:
        """Whether enough keys have signed."""
        return all(result.verified for result in self._results())

    @property
    def missing(self) -> int:
        """How many more signatures it needs at least."""
        return max(result.missing for result in self._results())

    @property
    def unsigned(self) -> Mapping[str, Key]:
        """Keys that have not signed, by id."""
        return {keyid: key for result in self._results() for keyid, key in result.unsigned.items()}

    @property
    def broken(self) -> frozenset[str]:
        """Ids of keys that signed something else than what stands here now."""
        return frozenset(Metadata[Targets].from_bytes(self.data).signatures) & frozenset(self.unsigned)

    def signed_by(self, signers: Iterable[Signer]) -> PendingChange:
        """The same with more signatures."""
        data = sign(Metadata[Targets].from_bytes(self.data), signers).to_bytes()
        if self.role == Root.type:
            return replace(self, change=replace(self.change, roots=(data,)))
        return replace(self, change=replace(self.change, roles={**self.change.roles, self.role: data}))

    def encode(self) -> bytes:
        """CBOR; the inverse of `parse_pending`."""
        fields = {
            "format": _FORMAT,
            "role": self.role,
            "before": self.before,
            "roots": list(self.change.roots),
            "roles": dict(self.change.roles),
            "targets": dict(self.change.targets),
        }
        return cbor2.dumps(fields, canonical=True)

    def _results(self) -> list[VerificationResult]:
        with translated():
            metadata = Metadata[Targets].from_bytes(self.data)
            delegators: list[Root | Targets] = []
            if self.role in {Root.type, Targets.type}:
                delegators.append(Metadata[Root].from_bytes(self.before).signed)
            else:
                delegators.append(Metadata[Targets].from_bytes(self.before).signed)
            if self.role == Root.type:
                delegators.append(Metadata[Root].from_bytes(self.data).signed)
            return [
                delegator.get_verification_result(self.role, metadata.signed_bytes, metadata.signatures)
                for delegator in delegators
            ]


def parse_pending(data: bytes) -> PendingChange:
    """Parse what `PendingChange.encode` gave.

    Raises:
        OperatorError: It is something else (`authority.bad_pending`).
    """
    try:
        fields = decode_plain(data, max_depth=4, text_keys=True)
    except ValueError as error:
        raise _bad_pending() from error
    match fields:
        case {
            "format": "secur-e-health/pending/1",
            "role": str(role),
            "before": bytes(before),
            "roots": list(roots),
            "roles": dict(roles),
            "targets": dict(targets),
        }:
            change = Change(tuple(map(bytes, roots)), roles, targets)
        case _:
            raise _bad_pending()
    if (role == Root.type and len(roots) != 1) or (role != Root.type and role not in roles):
        raise _bad_pending()
    return PendingChange(role, before, change)


class Ceremony:
    """Makes changes with the offline keys that are here.

    Args:
        layout: The authority's directory.
        keyring: The keys.
        publisher: Publishes what is complete.
        clock: For times of expiry.
    """

    def __init__(self, layout: AuthorityLayout, keyring: Keyring, publisher: Publisher, clock: Clock) -> None:
        self._layout = layout
        self._keyring = keyring
        self._publisher = publisher
        self._clock = clock

    def change(
        self,
        role: str,
        edit: Edit,
        *,
        targets: Mapping[str, bytes] | None = None,
    ) -> PendingChange:
        """Make the next version of an offline role.

        Args:
            role: `targets`, `sites`, `studies` or `releases`.
            edit: What changes beside version and expiry.
            targets: Contents of the files that it lists anew.

        Returns:
            The change: published if it is complete, else kept in `pending/`.

        Raises:
            OperatorError: Another change of the role is pending (`authority.already_pending`).
            SecureHealthError: As `Publisher.publish` says.
        """
        return self.complete(self.propose(role, edit, targets=targets))

    def propose(self, role: str, edit: Edit, *, targets: Mapping[str, bytes] | None = None) -> PendingChange:
        """The same change, signed by nobody and kept nowhere yet.

        Raises:
            OperatorError, SecureHealthError: As `change` says.
        """
        self._check_none_pending(role)
        state = self._publisher.resume()
        metadata = next_version(_required(state, role), role=role, now=self._clock.now())
        edit(metadata.signed)
        above = state.roots[-1] if role == Targets.type else _required(state, Targets.type)
        return PendingChange(role, above, Change(roles={role: metadata.to_bytes()}, targets=targets or {}))

    def rotate_root(self, keys: Mapping[str, RoleKeys]) -> PendingChange:
        """Make the next version of the root; the quorum before and the new one must sign.

        Args:
            keys: By role; roles that are not named keep theirs. Empty to renew its time alone.

        Raises:
            OperatorError, SecureHealthError: As `change` says.
        """
        self._check_none_pending(Root.type)
        state = self._publisher.resume()
        metadata = Metadata[Root].from_bytes(state.roots[-1])
        metadata.signatures.clear()
        root = metadata.signed
        root.version += 1
        root.expires = self._clock.now() + LIFETIME[Root.type]
        for role, owners in keys.items():
            for keyid in list(root.roles[role].keyids):
                root.revoke_key(keyid, role)
            for key in owners.keys:
                root.add_key(key, role)
            root.roles[role].threshold = owners.threshold
        return self.complete(PendingChange(Root.type, state.roots[-1], Change(roots=(metadata.to_bytes(),))))

    def complete(self, pending: PendingChange) -> PendingChange:
        """Add the signatures of the keys that are here; publish the change if it is complete, else keep it.

        Raises:
            OperatorError, SecureHealthError: As `change` says.
        """
        pending = add_signatures(pending, self._keyring)
        if not pending.is_complete:
            self._keep(pending)
            return pending
        self._publisher.publish(pending.change)
        with storing():
            self.pending_file(pending).unlink(missing_ok=True)
        return pending

    def sign(self, pending: PendingChange) -> PendingChange:
        """Add the signatures of the keys that are here, and keep the change; complete or not, it is not published.

        Raises:
            OperatorError, HardwareError: As `add_signatures` says.
        """
        pending = add_signatures(pending, self._keyring)
        self._keep(pending)
        return pending

    def _keep(self, pending: PendingChange) -> None:
        place = self.pending_file(pending)
        with storing():
            make_directory(place.parent)
            store_atomically(place, pending.encode())

    def pending_file(self, pending: PendingChange) -> Path:
        """Where a change waits."""
        return self._layout.pending / f"{pending.role}-{pending.version}.cbor"

    def _check_none_pending(self, role: str) -> None:
        waiting = sorted(self._layout.pending.glob(f"{role}-*.cbor"))
        if waiting:
            raise OperatorError(
                "authority.already_pending",
                f"A change of {role} waits for signatures in {waiting[0]}.",
                next_step="Have it signed by the holders of the other keys, or remove the file to give it up.",
            )


def add_signatures(pending: PendingChange, keyring: Keyring) -> PendingChange:
    """The same with the signatures of those missing keys that are here; no more than are needed.

    Raises:
        OperatorError: What others signed was altered since (`authority.altered_change`), or a key cannot be opened.
        HardwareError: A key does not answer.
    """
    if pending.broken:
        raise OperatorError(
            "authority.altered_change",
            f"The change of {pending.role} was altered after it was signed: a signature on it does not hold.",
            next_step="Sign nothing. Ask who prepared it, remove the file, and have the change made anew.",
        )
    for keyid in list(pending.unsigned):
        if pending.is_complete:
            break
        pending = pending.signed_by(keyring.signers([keyid]))
    return pending


def load_pending(path: Path) -> PendingChange:
    """Read a change that waits.

    Raises:
        OperatorError: It cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return parse_pending(stream.read(MAX_TARGET_BYTES))
    except OSError as error:
        raise OperatorError(
            "authority.no_pending", f"{path} cannot be read: {error.strerror}.", next_step="Name the right file."
        ) from error


def add_site(site: SiteID, keys: RoleKeys) -> Edit:
    """The `sites` role takes a hospital in.

    Args:
        site: Its name.
        keys: It signs its role with.
    """

    def edit(sites: Targets) -> None:
        delegations = _delegations(sites)
        paths = SitePaths(site)
        if paths.role in delegations:
            raise OperatorError(
                "authority.site_exists",
                f"{site} belongs to the consortium already.",
                next_step="Choose another name, or leave it as it is.",
            )
        delegations[paths.role] = delegate(paths.role, keys, paths.patterns)
        for key in keys.keys:
            sites.add_key(key, paths.role)

    return edit


def replace_site_keys(site: SiteID, keys: RoleKeys) -> Edit:
    """The `sites` role follows a hospital to its next keys.

    Args:
        site: Its name.
        keys: As the hospital itself named them under its old ones (`SiteDesk.move_to`); boxes refuse any others.
    """

    def edit(sites: Targets) -> None:
        suspend_site(site)(sites)
        add_site(site, keys)(sites)

    return edit


def suspend_site(site: SiteID) -> Edit:
    """The `sites` role lets a hospital go: all its boxes count no more."""

    def edit(sites: Targets) -> None:
        delegations = _delegations(sites)
        role = SitePaths(site).role
        if role not in delegations:
            raise OperatorError(
                "authority.no_such_site",
                f"The consortium knows no hospital {site!r}.",
                next_step="See `seh-provision site list`.",
            )
        for keyid in list(delegations[role].keyids):
            sites.revoke_key(keyid, role)
        del delegations[role]

    return edit


def unchanged(_: Targets) -> None:
    """Only the time is renewed."""


def list_files(files: Mapping[str, bytes]) -> Edit:
    """The role lists files.

    Args:
        files: Contents by target path.
    """

    def edit(role: Targets) -> None:
        role.targets.update({path: TargetFile.from_data(path, data, ["sha256"]) for path, data in files.items()})

    return edit


def unlist_below(start: str) -> Edit:
    """The role lists no file whose path begins with `start` any more."""

    def edit(role: Targets) -> None:
        found = [path for path in role.targets if path.startswith(start)]
        if not found:
            raise OperatorError(
                "authority.not_listed", f"Nothing is listed under {start}.", next_step="Check the name."
            )
        for path in found:
            del role.targets[path]

    return edit


def _delegations(sites: Targets) -> dict[str, DelegatedRole]:
    if sites.delegations is None or sites.delegations.roles is None:
        raise OperatorError(
            "authority.not_founded", "The repository has no list of hospitals.", next_step="Found the consortium first."
        )
    return sites.delegations.roles


def _required(state: RepositoryState, role: str) -> bytes:
    try:
        return state.roles[role]
    except KeyError:
        raise OperatorError(
            "authority.not_founded",
            f"The repository has no metadata of {role}.",
            next_step="Found the consortium with `seh-provision consortium init` first.",
        ) from None


def _bad_pending() -> OperatorError:
    return OperatorError(
        "authority.bad_pending",
        "The file holds no change that waits for signatures.",
        next_step="Name a file from the authority's `pending` folder.",
    )
