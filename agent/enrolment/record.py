"""What an enrolment leaves on the box, and the rules that hold from then on.

    <state>/enrolment/pending.json    while it is under way: the token, until it was used
    <state>/enrolment/ca.pem          the authority that the registrar's certificate comes from
    <state>/enrolment/trust/<root>/   a consortium's repository, by the digest of its first root
    <state>/enrolment/record.json     written last: where this box belongs

A box belongs to one consortium: whatever a token says, its root must be the box's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from agent.core.config import Address
from agent.core.errors import HardwareError, OperatorError
from agent.core.files import store_atomically, sync_directory
from agent.core.ids import IdentifierText
from agent.core.validation import explain_invalid
from agent.statements.kinds import Hex32
from agent.trust.snapshot import Environment
from agent.trust.store import load_pins
from agent.trust.token import MAX_TOKEN_CHARACTERS, Token

MAX_FILE_BYTES: Final = 1 << 16


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EnrolmentRecord(_File):
    """`record.json`: where this box belongs.

    Args:
        site: The hospital.
        node: The box, as its hospital endorses it.
        key_id: Id of the key that it was enrolled with.
        root_digest: SHA-256 of the consortium's first root metadata, hex.
        environment: As the verified root says.
        consortium: The consortium's short name.
        name: As people call it.
        registrar: `host:port` that enrolled it.
        enrolled: When.
    """

    format: Literal["secur-e-health/enrolment/1"] = "secur-e-health/enrolment/1"
    site: IdentifierText
    node: IdentifierText
    key_id: Hex32
    root_digest: Hex32
    environment: Environment
    consortium: IdentifierText
    name: Annotated[str, Field(min_length=1, max_length=200)]
    registrar: Address
    enrolled: AwareDatetime


class PendingEnrolment(_File):
    """`pending.json`: an enrolment under way.

    Args:
        token: The token's text; a secret until it was used.
        confirmed: Whether a person at the box said that the consortium is the right one.
        accepted: Whether the registrar has taken the token for this box.
        replaces: Whether it was asked for to replace the enrolment of a key that is gone.
    """

    format: Literal["secur-e-health/enrolment-pending/1"] = "secur-e-health/enrolment-pending/1"
    token: Annotated[str, Field(max_length=2 * MAX_TOKEN_CHARACTERS, repr=False)]
    confirmed: bool = False
    accepted: bool = False
    replaces: bool = False


FileT = TypeVar("FileT", bound=_File)


@dataclass(frozen=True, slots=True)
class EnrolmentFolder:
    """The directory.

    Args:
        path: Made when first written to.
    """

    path: Path

    @classmethod
    def of(cls, state_directory: Path) -> EnrolmentFolder:
        """The one below the agent's state directory."""
        return cls(state_directory / "enrolment")

    @property
    def authority(self) -> Path:
        """The registrar's TLS authority, PEM."""
        return self.path / "ca.pem"

    def trust(self, root_digest: str) -> Path:
        """The repository of a consortium; what was pinned of one never counts for another."""
        return self.path / "trust" / root_digest

    def load_record(self) -> EnrolmentRecord | None:
        """Where this box belongs; None where it is not enrolled.

        Raises:
            HardwareError: The file is damaged (`enrolment.bad_file`).
        """
        return self._load("record.json", EnrolmentRecord)

    def store_record(self, record: EnrolmentRecord) -> None:
        """Enrolled: from the moment that this is on the disk, and not before."""
        self._store("record.json", record)
        # No secret: the updater, which is shown this file alone, learns from it whom it works for.
        (self.path / "record.json").chmod(0o644)

    def load_pending(self) -> PendingEnrolment | None:
        """The enrolment under way; None where none is.

        Raises:
            HardwareError: The file is damaged (`enrolment.bad_file`).
        """
        return self._load("pending.json", PendingEnrolment)

    def store_pending(self, pending: PendingEnrolment) -> None:
        """Keep what a power cut must not take."""
        self._store("pending.json", pending)

    def forget_pending(self) -> None:
        """The token was used, or counts no more."""
        (self.path / "pending.json").unlink(missing_ok=True)

    def check_not_revoked(self, record: EnrolmentRecord) -> None:
        """Hold the enrolment against what this box remembers of its hospital's revocations; nobody is asked.

        Raises:
            OperatorError: The hospital has revoked the key (`enrolment.revoked_key`), or the memory is damaged.
            HardwareError: The memory cannot be read.
        """
        pin = load_pins(self.trust(record.root_digest)).sites.get(record.site)
        if pin is not None and record.key_id in pin.revoked:
            raise revoked_key(record.site)

    def store_authority(self, pem: bytes) -> None:
        """Keep the registrar's authority, which the token's pin was compared with."""
        self._write("ca.pem", pem)

    def clear(self) -> None:
        """Belong nowhere; the record goes first."""
        (self.path / "record.json").unlink(missing_ok=True)
        sync_directory(self.path)
        self.forget_pending()
        self.authority.unlink(missing_ok=True)
        shutil.rmtree(self.path / "trust", ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from enrolling this box at the same time.

        Raises:
            OperatorError: Somebody does (`enrolment.under_way`).
            HardwareError: The directory cannot be written (`enrolment.not_stored`).
        """
        try:
            self._make()
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _not_stored(self.path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise OperatorError(
                "enrolment.under_way",
                "This box is being enrolled at this moment, by the running agent or by another command.",
                next_step="Wait for it: `seh-agent status` says how far it is.",
            ) from error
        try:
            yield
        finally:
            os.close(descriptor)

    def _make(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _load(self, name: str, kind: type[FileT]) -> FileT | None:
        path = self.path / name
        try:
            with path.open("rb") as stream:
                return kind.model_validate_json(stream.read(MAX_FILE_BYTES))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _bad_file(path, error.strerror or "it cannot be read") from error
        except ValidationError as error:
            raise _bad_file(path, explain_invalid(error, whole="file")) from error

    def _store(self, name: str, value: _File) -> None:
        self._write(name, value.model_dump_json(indent=1).encode() + b"\n")

    def _write(self, name: str, data: bytes) -> None:
        try:
            self._make()
            store_atomically(self.path / name, data, mode=0o600)
        except OSError as error:
            raise _not_stored(self.path, error) from error


def check_may_enrol(record: EnrolmentRecord | None, token: Token, key_id: str, *, replaces: bool) -> bool:
    """Hold a token against where this box belongs already.

    Args:
        record: Where; None where nowhere.
        token: Parsed, not verified.
        key_id: Of the box's key.
        replaces: Whether a person asked to enrol a new key in the old one's place.

    Returns:
        Whether there is anything left to do: no, where the box is enrolled with this key at this site.

    Raises:
        OperatorError: The token would take the box elsewhere, or its key is not the one that was enrolled.
    """
    if record is None:
        return True
    if record.root_digest != token.root_digest.hex():
        raise OperatorError(
            "enrolment.other_consortium",
            f"The token is of another consortium, and this box belongs to {record.name}; the token was ignored.",
            next_step="Use a token of this box's own consortium. To hand the box over, `seh-agent unenrol` first.",
        )
    if record.site != token.site:
        raise OperatorError(
            "enrolment.other_site",
            f"The token is for {token.site}, and this box belongs to {record.site}; the token was ignored.",
            next_step="Use this token on its own hospital's box. To move this one, `seh-agent unenrol` first.",
        )
    if record.key_id == key_id:
        return False
    if not replaces:
        raise other_key(record)
    return True


def other_key(record: EnrolmentRecord) -> OperatorError:
    """The failure of a box that was enrolled with another key than the one that it has."""
    return OperatorError(
        "enrolment.other_key",
        f"This box was enrolled at {record.site} with another key than the one that it has now.",
        next_step="Put its own key back. After a new mainboard or a new card, run `seh-agent re-enrol` with a token.",
    )


def revoked_key(site: str) -> OperatorError:
    """The failure of a box whose hospital takes it for no box of its own any more."""
    return OperatorError(
        "enrolment.revoked_key",
        f"{site} has revoked this box's key.",
        next_step="Ask the hospital's operator why. The box comes back only with a new key: name one under [key], then "
        "enrol it with a new token (docs/technician.md).",
    )


Approve = Callable[[EnrolmentRecord], None]
"""Returns once a steward of the box's hospital has signed that the box may leave; raises otherwise."""


def nobody_approves(record: EnrolmentRecord) -> None:
    """The answer where no steward is at the box.

    Raises:
        OperatorError: Always (`enrolment.needs_steward`).
    """
    raise OperatorError(
        "enrolment.needs_steward",
        f"This box belongs to {record.name}, and may leave it only with the approval of {record.site}'s data steward.",
        next_step="Run `seh-agent unenrol --yes` at the box, with a steward's security key or smartcard. Where none is "
        "left, have the hospital revoke the box (`seh-provision node revoke`), and install the box anew.",
    )


def unenrol(folder: EnrolmentFolder, approve: Approve = nobody_approves) -> EnrolmentRecord:
    """Leave the consortium.

    Args:
        folder: Of the enrolment.
        approve: Asks a steward, where the consortium is not one for tests.

    Returns:
        Where the box belonged.

    Raises:
        OperatorError: It is not enrolled (`enrolment.not_enrolled`), no steward approved, or it is being enrolled at
            this moment (`enrolment.under_way`).
    """
    with folder.locked():  # whoever enrols it now would put it back
        record = folder.load_record()
        if record is None:
            raise OperatorError(
                "enrolment.not_enrolled",
                "This box is not enrolled.",
                next_step="Enrol it: put the consortium's stick in, or run `seh-agent enrol`.",
            )
        if record.environment is Environment.PRODUCTION:
            approve(record)
        folder.clear()
        return record


def _bad_file(path: Path, why: str) -> HardwareError:
    return HardwareError(
        "enrolment.bad_file",
        f"The file {path} is damaged: {why}.",
        next_step="Check the disk. Put the file back from a backup, or remove it and enrol the box again.",
    )


def _not_stored(path: Path, error: OSError) -> HardwareError:
    return HardwareError(
        "enrolment.not_stored",
        f"The enrolment cannot be written to {path}: {error.strerror}.",
        next_step="Check the disk, its free space and the directory's owner, then try again; nothing is lost.",
    )
