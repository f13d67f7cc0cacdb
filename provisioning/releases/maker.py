"""A maker's repository, opened: what is built, what is signed, what is offered to whom."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Metadata, TargetFile, Targets

from agent.core.clock import Clock
from agent.core.errors import OperatorError
from agent.core.files import store_atomically, sync_directory
from agent.statements.release import Release, Version
from agent.trust.channels import (
    CHANNELS_ROLE,
    IMAGE_NAME,
    RECORD_NAME,
    RELEASES_ROLE,
    Channel,
    Offer,
    channel_path,
    delta_name,
    parse_channel,
    release_path,
)
from provisioning.authority.ceremony import Ceremony, Edit, PendingChange, list_files
from provisioning.authority.keyring import Keyring
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.online import LocalOnlineSigner
from provisioning.authority.publisher import Publisher
from provisioning.authority.repository import RepositoryFiles, hashed_name, make_directory, storing
from provisioning.authority.roles import MAKER
from provisioning.authority.signers import Secrets
from provisioning.releases.delta import make_delta
from provisioning.releases.founding import ONLINE, load_plan
from provisioning.releases.image import measure_image
from provisioning.releases.parts import Part
from provisioning.releases.provenance import PROVENANCE_FILE, provenance, sign_provenance
from provisioning.releases.record import ReleaseRecord, parse_record
from provisioning.releases.sbom import SBOM_FILE, bill_of_materials

_PARTIAL: Final = ".partial"


@dataclass(frozen=True, slots=True)
class Draft:
    """A release that is built and not published yet: a folder with its record, image and deltas.

    Args:
        path: The folder.
    """

    path: Path

    @property
    def record_file(self) -> Path:
        """Its record."""
        return self.path / RECORD_NAME

    @property
    def image(self) -> Path:
        """Its image."""
        return self.path / IMAGE_NAME

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is published of it."""
        statements = [path for name in (SBOM_FILE, PROVENANCE_FILE) if (path := self.path / name).exists()]
        return (self.record_file, self.image, *sorted(self.path.glob("from-*.zst")), *statements)

    def load(self) -> ReleaseRecord:
        """Its record.

        Raises:
            OperatorError: It is not built, or damaged.
        """
        try:
            return parse_record(self.record_file.read_bytes())
        except OSError as error:
            raise OperatorError(
                "release.not_built",
                f"There is no release in {self.path}.",
                next_step="Build it first: `seh-provision release build`.",
            ) from error

    def store(self, record: ReleaseRecord) -> None:
        """Keep its record, with more signatures."""
        with storing():
            store_atomically(self.record_file, record.encode())


class Maker:
    """The repository and the keys that are here.

    Args:
        layout: The directory.
        keyring: The keys.
        publisher: Writes the repository.
        clock: For times.
    """

    def __init__(self, layout: AuthorityLayout, keyring: Keyring, publisher: Publisher, clock: Clock) -> None:
        self.layout = layout
        self.keyring = keyring
        self.publisher = publisher
        self.ceremony = Ceremony(layout, keyring, publisher, clock)
        self._clock = clock

    def draft(self, version: Version) -> Draft:
        """Where a release is built."""
        return Draft(self.layout.path / "drafts" / str(version))

    def drafts(self) -> list[Draft]:
        """All that are built and not published."""
        found = [Draft(path.parent) for path in (self.layout.path / "drafts").glob(f"*/{RECORD_NAME}")]
        return sorted(found, key=lambda draft: draft.load().release.version)

    def release_keys(self) -> tuple[Mapping[str, Key], int]:
        """Who may sign releases, and how many of them must."""
        targets = self._role(Targets.type)
        role = targets.get_delegated_role(RELEASES_ROLE)
        return {keyid: targets.get_key(keyid) for keyid in role.keyids}, role.threshold

    def releases(self) -> dict[Version, Release]:
        """What is published, oldest first."""
        listed = self._role(RELEASES_ROLE).targets
        found: dict[Version, Release] = {}
        for path, target in listed.items():
            if path.endswith(f"/{RECORD_NAME}"):
                data = self.publisher.files.target(path, target.hashes["sha256"])
                release = parse_record(data).release
                found[release.version] = release
        return dict(sorted(found.items()))

    def lengths(self, version: Version) -> dict[str, int]:
        """Lengths of a published release's files, by name."""
        start = release_path(str(version), "")
        listed = self._role(RELEASES_ROLE).targets
        return {path.removeprefix(start): target.length for path, target in listed.items() if path.startswith(start)}

    def image(self, version: Version) -> Path:
        """A published release's image.

        Raises:
            OperatorError: It is not published (`release.not_published`).
        """
        return self._file(version, IMAGE_NAME)

    def record(self, version: Version) -> Path:
        """A published release's record.

        Raises:
            OperatorError: It is not published (`release.not_published`).
        """
        return self._file(version, RECORD_NAME)

    def build(
        self, version: Version, image: Path, *, epoch: int | None, commit: str, bases: Mapping[Version, Path]
    ) -> Draft:
        """Make a release's record, unsigned, and its deltas; what was built of it already stays.

        Args:
            version: Which it is.
            image: Its app.raw.
            epoch: Its security epoch; None for that of the newest release.
            commit: Which source it was built from.
            bases: Earlier images, by version.

        Raises:
            OperatorError: It is published already, is not newer, was built otherwise, or an image cannot be used.
        """
        published = self.releases()
        newest = max(published, default=None)
        if newest is not None and version <= newest:
            raise OperatorError(
                "release.not_newer",
                f"Release {version} is not newer than {newest}, which is published.",
                next_step="Give it a higher version.",
            )
        measured = measure_image(image)
        least = published[newest].epoch if newest is not None else 0
        draft = self.draft(version)
        release = Release(
            version,
            least if epoch is None else epoch,
            measured.sha256,
            measured.length,
            measured.root_hash,
            measured.salt,
            commit,
            draft.load().release.built_s if draft.record_file.exists() else int(self._clock.now().timestamp()),
        )
        if release.epoch < least:
            raise OperatorError(
                "release.lower_epoch",
                f"The security epoch {release.epoch} is lower than {least}, that of release {newest}.",
                next_step="An epoch never falls: give the same, or a higher one.",
            )
        if draft.record_file.exists() and draft.load().release != release:
            raise OperatorError(
                "release.built_otherwise",
                f"{draft.path} holds release {version} with another image, commit or epoch.",
                next_step="Remove that folder to build it anew; what was signed of it is lost.",
            )
        self._fill(draft, release, image, bases)
        return draft

    def sign(self, record: ReleaseRecord, uris: Sequence[str]) -> ReleaseRecord:
        """Add signatures to a record.

        Args:
            record: As it is.
            uris: Keys to sign with; empty for those of its signers' keys that are here, as many as are missing.

        Raises:
            OperatorError: None of the keys may sign it, or all of them have.
        """
        return record.signed_by(self._signers(uris, record.signers(self.release_keys()[0])))

    def attest(self, draft: Draft, parts: Sequence[Part], uris: Sequence[str]) -> None:
        """Put bill of materials and signed provenance beside a record, in place of what was there.

        Args:
            draft: A release that is built.
            parts: What its image was made of.
            uris: Keys to sign the provenance with; empty for as many of the signers' keys that are here as it takes.

        Raises:
            OperatorError: It is not built, or none of the keys may sign releases.
        """
        release = draft.load().release
        sbom = bill_of_materials(release, parts)
        signed = sign_provenance(provenance(release, parts, sbom), self._signers(uris))
        with storing():
            store_atomically(draft.path / SBOM_FILE, sbom)
            store_atomically(draft.path / PROVENANCE_FILE, signed)

    def publish(self, draft: Draft) -> PendingChange:
        """Put a signed release into the repository; no channel offers it yet.

        Raises:
            OperatorError: Signatures are missing (`release.not_signed`), or its image was changed.
        """
        record = draft.load()
        keys, threshold = self.release_keys()
        if (count := len(record.signers(keys))) < threshold:
            raise OperatorError(
                "release.not_signed",
                f"{count} of those who may sign releases signed this one; it takes {threshold}.",
                next_step=f"Have it signed: `seh-provision release sign {draft.record_file}`.",
            )
        release = record.release
        measured = measure_image(draft.image)
        if (measured.sha256, measured.length) != (release.image_sha256, release.image_bytes):
            raise OperatorError(
                "release.changed_image",
                f"{draft.image} is not the image that was signed.",
                next_step="Remove the folder, and build the release anew.",
            )
        listed = {
            (path := release_path(str(release.version), file.name)): TargetFile.from_file(path, str(file), ["sha256"])
            for file in draft.files
        }
        for file, target in zip(draft.files, listed.values(), strict=True):
            self._lay(file, target)
        return self.ceremony.change(RELEASES_ROLE, _list(listed))

    def forget(self, draft: Draft) -> None:
        """Remove what was built, once it is published."""
        with storing():
            shutil.rmtree(draft.path)

    def channels(self) -> dict[str, Channel]:
        """What each channel offers."""
        listed = self._role(CHANNELS_ROLE).targets
        names = {path.removeprefix(f"{CHANNELS_ROLE}/").removesuffix(".json"): path for path in listed}
        return {
            name: parse_channel(self.publisher.files.target(path, listed[path].hashes["sha256"]), name)
            for name, path in names.items()
        }

    def offer(self, name: str, offer: Offer) -> PendingChange:
        """Have a channel offer a release, in place of how it did before.

        Raises:
            OperatorError: The release is not published.
        """
        self.record(offer.release)
        before = self.channels().get(name, Channel(channel=name))
        kept = [one for one in before.releases if one.version != offer.version]
        releases = tuple(sorted((*kept, offer), key=lambda one: one.release))
        return self._store_channel(Channel(channel=name, releases=releases))

    def halt(self, name: str, version: Version) -> PendingChange:
        """Have a channel offer a release to nobody any more.

        Raises:
            OperatorError: It does not offer it (`release.not_offered`).
        """
        before = self.channels().get(name, Channel(channel=name))
        if before.offer(str(version)) is None:
            raise OperatorError(
                "release.not_offered",
                f"The channel {name} does not offer release {version}.",
                next_step="See `seh-provision release status`.",
            )
        releases = tuple(
            one.model_copy(update={"halted": True}) if one.release == version else one for one in before.releases
        )
        return self._store_channel(Channel(channel=name, releases=releases))

    def _signers(self, uris: Sequence[str], done: frozenset[str] = frozenset()) -> list[Signer]:
        keys, threshold = self.release_keys()
        if uris:
            signers = [signer for uri in uris if (signer := self.keyring.open(uri)).public_key.keyid in keys]
        else:
            signers = self.keyring.signers(keyid for keyid in keys if keyid not in done)[: threshold - len(done)]
        new = [signer for signer in signers if signer.public_key.keyid not in done]
        if not new:
            raise OperatorError(
                "release.no_key_of_it",
                "None of the keys here may sign releases, or they have signed this one already.",
                next_step="Name the key of another signer with --key.",
            )
        return new

    def _store_channel(self, channel: Channel) -> PendingChange:
        files = {channel_path(channel.channel): channel.encode()}
        return self.ceremony.change(CHANNELS_ROLE, list_files(files), targets=files)

    def _fill(self, draft: Draft, release: Release, image: Path, bases: Mapping[Version, Path]) -> None:
        with storing():
            make_directory(draft.path)
            if not draft.image.exists():
                _copy(image, draft.image)
            for base, path in bases.items():
                delta = draft.path / delta_name(str(base))
                if not delta.exists():
                    partial = delta.with_name(delta.name + _PARTIAL)
                    make_delta(path, image, partial)
                    partial.replace(delta)
            if not draft.record_file.exists():
                store_atomically(draft.record_file, ReleaseRecord.of(release).encode())

    def _lay(self, file: Path, target: TargetFile) -> None:
        """Put a file where it is served from; nobody reads it before metadata lists it."""
        place = self.publisher.files.path / hashed_name(target.path, target.hashes["sha256"])
        with storing():
            make_directory(place.parent)
            if not place.exists():
                _copy(file, place)

    def _file(self, version: Version, name: str) -> Path:
        target = self._role(RELEASES_ROLE).targets.get(release_path(str(version), name))
        if target is None:
            raise OperatorError(
                "release.not_published",
                f"Release {version} is not published.",
                next_step="See `seh-provision release status`.",
            )
        return self.publisher.files.path / hashed_name(target.path, target.hashes["sha256"])

    def _role(self, name: str) -> Targets:
        return Metadata[Targets].from_bytes(self.publisher.load().roles[name]).signed


@contextmanager
def opened_maker(directory: Path, secrets: Secrets, clock: Clock, keys: Sequence[str] = ()) -> Iterator[Maker]:
    """Open the repository in a directory.

    Args:
        directory: As `ReleaseFounding` made it.
        secrets: Asked for passphrases and PINs.
        clock: For times.
        keys: URIs of further keys.

    Raises:
        OperatorError: There is none, or the online key cannot be opened.
    """
    layout = AuthorityLayout(directory)
    plan = load_plan(layout)
    keyring = Keyring(layout, secrets, keys)
    online = [LocalOnlineSigner(keyring.open(uri)) for uri in plan.uris(ONLINE)]
    yield Maker(layout, keyring, Publisher(layout, online, clock, MAKER), clock)


def read_only_maker(directory: Path, secrets: Secrets, clock: Clock) -> Maker:
    """The same without any key: for looking.

    Raises:
        OperatorError: There is none.
    """
    layout = AuthorityLayout(directory)
    load_plan(layout)
    if not RepositoryFiles(layout.repository).load().timestamp:
        raise OperatorError(
            "release.not_finished",
            f"The repository in {directory} is not finished.",
            next_step="Call `seh-provision release init` again.",
        )
    return Maker(layout, Keyring(layout, secrets), Publisher(layout, (), clock, MAKER), clock)


def _list(files: Mapping[str, TargetFile]) -> Edit:
    def edit(role: Targets) -> None:
        role.targets.update(files)

    return edit


def _copy(source: Path, place: Path) -> None:
    """Copy a file, whole or not at all, and onto the disk."""
    partial = place.with_name(place.name + _PARTIAL)
    partial.unlink(missing_ok=True)
    with source.open("rb") as read, partial.open("xb") as written:
        shutil.copyfileobj(read, written, 1 << 20)
        written.flush()
        os.fsync(written.fileno())
    partial.replace(place)
    sync_directory(place.parent)
