"""Founding the maker's repository: keys, roles, first metadata, in steps of which each can be begun again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from agent.core.clock import Clock
from agent.core.errors import OperatorError
from agent.core.files import store_atomically
from agent.core.validation import explain_invalid
from agent.trust.channels import CHANNELS_ROLE
from agent.trust.delegations import RELEASES
from agent.trust.snapshot import Environment
from provisioning.authority.consortium import MIN_PASSPHRASE_CHARACTERS, Step, take_missing
from provisioning.authority.keyring import Keyring
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.online import LocalOnlineSigner
from provisioning.authority.publisher import Publisher
from provisioning.authority.repository import Change, RepositoryFiles, make_directory
from provisioning.authority.roles import MAKER, RoleKeys, new_role, new_root, new_targets, sign
from provisioning.authority.signers import FILE_SCHEME, Secrets, create_file_key, elliptic_key, listed_key

ONLINE: Final = "online"
ROOT_FILE, KEYS_FILE = "release-root.json", "release-keys.json"
"""What the package ships: where trust in releases begins, and who may sign their records."""
_COUNT: Final[Mapping[str, int]] = {Root.type: 2, RELEASES: 2, CHANNELS_ROLE: 1, ONLINE: 1}
"""How many key files a role gets where none of its keys is named."""

KeyURIs = Annotated[tuple[str, ...], Field(max_length=16)]
Threshold = Annotated[int, Field(ge=1, le=16)]


class ReleasePlan(BaseModel):
    """What is asked for; kept in `founding.json`.

    Args:
        root: URIs of the root's keys, which sign the top-level targets too; empty for key files, here and below.
        root_threshold: How many of them must sign.
        releases: URIs of the keys that sign releases.
        threshold: How many of them must sign each.
        channels: URIs of the keys of which one chooses what a channel offers.
        online: URI of the key of timestamp and snapshot.
        environment: `test` lets keys lie open.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["secur-e-health/release-founding/1"] = "secur-e-health/release-founding/1"
    root: KeyURIs = ()
    root_threshold: Threshold = 2
    releases: KeyURIs = ()
    threshold: Threshold = 2
    channels: KeyURIs = ()
    online: KeyURIs = ()
    environment: Environment = Environment.PRODUCTION

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, least in ((Root.type, self.root_threshold), (RELEASES, self.threshold)):
            keys = len(set(self.named(name))) or _COUNT[name]
            if least > keys:
                raise ValueError(f"{least} keys must sign {name}, and it has {keys}")
            if self.environment is Environment.PRODUCTION and least < 2:
                raise ValueError(f"one key alone must not be able to sign {name}")
        return self

    def named(self, role: str) -> tuple[str, ...]:
        """URIs of a role's keys, where they were named."""
        return {Root.type: self.root, RELEASES: self.releases, CHANNELS_ROLE: self.channels, ONLINE: self.online}[role]

    def uris(self, role: str) -> tuple[str, ...]:
        """URIs of a role's keys; key files below the directory where none was named."""
        files = tuple(f"{FILE_SCHEME}:keys/{role}-{number + 1}.pem" for number in range(_COUNT[role]))
        return self.named(role) or files


class ReleaseFounding:
    """Founds a maker's repository in a directory.

    Args:
        layout: The directory.
        plan: What is asked for.
        passphrase: Encrypts the key files; None in a test, whose keys lie open.
        secrets: Asked for passphrases and PINs.
        clock: For times of expiry.
    """

    def __init__(
        self, layout: AuthorityLayout, plan: ReleasePlan, passphrase: str | None, secrets: Secrets, clock: Clock
    ) -> None:
        self._layout = layout
        self._plan = plan
        self._passphrase = passphrase
        self._clock = clock
        self._keyring = Keyring(layout, secrets)
        self._files = RepositoryFiles(layout.repository)
        check_passphrase(plan, passphrase)

    @property
    def steps(self) -> tuple[Step, ...]:
        """All parts, in order."""
        return (
            Step("what was asked for", self._layout.founding.exists, self._write_plan),
            Step("private keys", self._layout.signers.exists, self._make_keys),
            Step("the release repository", lambda: bool(self._files.load().timestamp), self._publish),
            Step("what the package ships", (self._layout.path / KEYS_FILE).exists, self._write_package_files),
        )

    def describe(self) -> list[str]:
        """What there will be, a line each; nothing is made."""
        plan = self._plan
        least = {Root.type: plan.root_threshold, RELEASES: plan.threshold, CHANNELS_ROLE: 1, ONLINE: 1}
        return [f"{role}: signed by {least[role]} of {', '.join(plan.uris(role))}" for role in _COUNT]

    def run(self, tell: Callable[[str], object]) -> bool:
        """Do what is missing.

        Args:
            tell: Told of each part as it is made.

        Returns:
            Whether anything was missing.

        Raises:
            OperatorError: The directory holds another repository (`release.other_plan`), or a key cannot be opened.
        """
        if self._layout.founding.exists() and load_plan(self._layout) != self._plan:
            raise OperatorError(
                "release.other_plan",
                f"{self._layout.path} was begun with other options.",
                next_step="Name another directory, or repeat the options of the first call.",
            )
        return take_missing(self.steps, tell)

    def _write_plan(self) -> None:
        make_directory(self._layout.path)
        store_atomically(self._layout.founding, self._plan.model_dump_json(indent=2).encode() + b"\n")

    def _make_keys(self) -> None:
        opened: dict[str, Signer] = {}
        for role in _COUNT:
            for uri in self._plan.uris(role):
                place = self._layout.path / uri.partition(":")[2]
                if not self._plan.named(role) and not place.exists():
                    create_file_key(place, self._passphrase)
                opened[uri] = self._keyring.open(uri)
        # Last of all, and each again: the file says that all keys are there.
        for uri, signer in opened.items():
            self._keyring.remember(signer, uri)

    def _publish(self) -> None:
        plan, now = self._plan, self._clock.now()
        signers = {role: [self._keyring.open(uri) for uri in plan.uris(role)] for role in _COUNT}
        keys = {
            Root.type: _role_keys(signers[Root.type], plan.root_threshold),
            RELEASES: _role_keys(signers[RELEASES], plan.threshold),
            CHANNELS_ROLE: _role_keys(signers[CHANNELS_ROLE], 1),
            ONLINE: _role_keys(signers[ONLINE], 1),
        }
        top = {Root.type: keys[Root.type], Targets.type: keys[Root.type]}
        top |= dict.fromkeys((Timestamp.type, Snapshot.type), keys[ONLINE])
        root = self._files.load().roots or (
            sign(new_root(top, plan.environment, version=1, now=now), signers[Root.type]).to_bytes(),
        )
        roles = {
            Targets.type: sign(new_targets(keys, {}, now=now, kind=MAKER), signers[Root.type]).to_bytes(),
            **{name: sign(new_role(name, now=now), signers[name]).to_bytes() for name in MAKER.delegated},
        }
        online = [LocalOnlineSigner(signer) for signer in signers[ONLINE]]
        Publisher(self._layout, online, self._clock, MAKER).publish(Change(roots=root, roles=roles))

    def _write_package_files(self) -> None:
        state = self._files.load()
        targets = Metadata[Targets].from_bytes(state.roles[Targets.type]).signed
        role = targets.get_delegated_role(RELEASES)
        keys = {keyid: targets.get_key(keyid).keyval["public"] for keyid in role.keyids}
        store_atomically(self._layout.path / ROOT_FILE, state.roots[0])
        fields = {"threshold": role.threshold, "keys": keys}
        store_atomically(self._layout.path / KEYS_FILE, json.dumps(fields, indent=1).encode() + b"\n")


def load_plan(layout: AuthorityLayout) -> ReleasePlan:
    """What a directory was founded with.

    Raises:
        OperatorError: It holds no release repository (`release.not_founded`).
    """
    try:
        return ReleasePlan.model_validate_json(layout.founding.read_bytes())
    except (OSError, ValidationError) as error:
        what = explain_invalid(error, whole="file") if isinstance(error, ValidationError) else "it has no founding.json"
        raise OperatorError(
            "release.not_founded",
            f"{layout.path} holds no release repository: {what}.",
            next_step="Name the right directory, or found one: `seh-provision release init`.",
        ) from error


def check_passphrase(plan: ReleasePlan, passphrase: str | None) -> None:
    """Check that keys may lie as they are to.

    Raises:
        OperatorError: They would lie open, or behind too short a passphrase (`release.bad_passphrase`).
    """
    makes_files = any(not plan.named(role) for role in _COUNT)
    if passphrase is None:
        if makes_files and plan.environment is Environment.PRODUCTION:
            raise _bad_passphrase("there is none")
    elif len(passphrase) < MIN_PASSPHRASE_CHARACTERS:
        raise _bad_passphrase(f"it has {len(passphrase)} characters, and needs {MIN_PASSPHRASE_CHARACTERS}")


def _role_keys(signers: list[Signer], threshold: int) -> RoleKeys:
    return RoleKeys(tuple(listed_key(elliptic_key(signer.public_key)) for signer in signers), threshold)


def _bad_passphrase(what: str) -> OperatorError:
    return OperatorError(
        "release.bad_passphrase",
        f"The passphrase of the key files cannot be used: {what}.",
        next_step="Give a longer one, or name each role's keys (--root-key, --release-key, --channel-key, "
        "--online-key).",
    )
