"""What the registrar must not forget: tokens, enrolments, requests that were taken, and what happened.

SQLite by default, PostgreSQL by URL. Every change is one transaction that compares and sets: a doubled request, a
second process, or a power cut neither loses a change nor makes it twice.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Self

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, ColumnElement, Engine, Select, create_engine, delete, event, func, select, update
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from agent.attestation.credential import Credential
from agent.core.clock import Clock
from agent.core.errors import HardwareError, OperatorError
from agent.core.ids import SiteID
from agent.statements.roots import EvidenceClass, KeyKind
from provisioning.authority.appraisal import Subject
from provisioning.registrar.challenge import FINAL, Enrolment, Refusal, SiteTalk, State
from provisioning.registrar.heartbeats import BoxHeartbeat
from provisioning.registrar.passkeys import Passkey
from provisioning.registrar.tables import (
    EnrolmentRow,
    EventRow,
    HeartbeatRow,
    PasskeyRow,
    SiteNonceRow,
    Table,
    TokenRow,
)
from provisioning.tokens.token import TokenEntry

BUSY_LIMIT_MS: Final = 30_000
_ENGINE: Final[Mapping[str, Any]] = {
    "pool_size": 16,
    "hide_parameters": True,  # errors that are logged must not show what a statement was to write
}
MAX_UNUSED_TOKENS: Final = 10_000
"""Of one hospital."""
MAX_UNFINISHED: Final = 1000
"""Enrolments of one hospital: each may hold megabytes of evidence that nobody has appraised yet."""
SEEN_EVERY_S: Final = 30
"""A box that asks how far it is is noted this often."""
HEARTBEAT_KEPT_S: Final = 90 * 86_400
"""A box that is silent for longer was never heard of."""
_READING: Final = {"reading": True}


class StaleError(Exception):
    """Another request changed the enrolment in between: look again."""


@dataclass(frozen=True, slots=True)
class EventRecord:
    """What happened: when, in seconds since 1970, at which hospital, in which enrolment."""

    at_s: int
    site: str
    enrolment: str
    what: str


class Store:
    """The database; thread-safe.

    Args:
        engine: Connected, with its tables.
        clock: For the times of events.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    @classmethod
    def open(cls, url: str, clock: Clock) -> Self:
        """Open a database, and bring its tables up to date.

        Args:
            url: SQLAlchemy's: `sqlite:///<path>` or `postgresql://...`.
            clock: For the times of events.

        Raises:
            HardwareError: It does not answer (`registrar.store_away`).
        """
        with _translated():
            engine = connect(url)
            migrate(engine)
        return cls(engine, clock)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def add_token(self, entry: TokenEntry) -> None:
        """Make a token known; the same entry again changes nothing.

        Raises:
            OperatorError: Another token has this id (`registrar.other_token`), or the hospital has too many.
        """
        with self._writing() as session:
            known = session.get(TokenRow, entry.id)
            if known is None:
                self._make_room(session, entry.site)
                session.add(TokenRow(**entry.model_dump()))
                session.add(self._event(entry.site, "", "token_added"))
            elif _entry(known) != entry:
                raise OperatorError(
                    "registrar.other_token",
                    "Another enrolment token has this id already.",
                    next_step="Issue the token again.",
                )

    def _make_room(self, session: Session, site: str) -> None:
        """For one more token of a hospital; those that expired unused go first."""
        begun = select(EnrolmentRow.token).where(EnrolmentRow.site == site)
        unused = (TokenRow.site == site, TokenRow.id.not_in(begun))
        if _count(session, TokenRow, *unused) < MAX_UNUSED_TOKENS:
            return
        session.execute(delete(TokenRow).where(*unused, TokenRow.expires_s < self._now_s()))
        if _count(session, TokenRow, *unused) >= MAX_UNUSED_TOKENS:
            raise OperatorError(
                "registrar.too_many_tokens",
                f"{site} has {MAX_UNUSED_TOKENS} enrolment tokens that nobody used yet.",
                next_step="Use those, or wait until they have expired.",
            )

    def token(self, token_id: str) -> TokenEntry | None:
        """A token by its id (hex)."""
        with self._reading() as session:
            row = session.get(TokenRow, token_id)
            return None if row is None else _entry(row)

    def create(self, enrolment: Enrolment) -> Enrolment:
        """Begin an enrolment; returns the one that its token began already, where there is one.

        Raises:
            OperatorError: Too many of the hospital are unfinished (`registrar.too_many_unfinished`).
        """
        unfinished = (EnrolmentRow.site == enrolment.site, EnrolmentRow.state.not_in([state.value for state in FINAL]))
        try:
            with self._writing() as session:
                if _count(session, EnrolmentRow, *unfinished) >= MAX_UNFINISHED:
                    raise OperatorError(
                        "registrar.too_many_unfinished",
                        f"{MAX_UNFINISHED} enrolments at {enrolment.site} have begun, and none of them has ended.",
                        next_step="Have the hospital endorse or refuse those first.",
                    )
                session.add(EnrolmentRow(seen_s=enrolment.opened_s, **_columns(enrolment)))
                session.add(self._event(enrolment.site, enrolment.id, State.OPEN))
        except IntegrityError:
            known = self.of_token(enrolment.token)
            if known is None:
                raise
            return known
        return enrolment

    def enrolment(self, name: str) -> Enrolment | None:
        """An enrolment by its name."""
        with self._reading() as session:
            row = session.get(EnrolmentRow, name)
            return None if row is None else _enrolment(row)

    def of_token(self, token_id: str) -> Enrolment | None:
        """The enrolment that a token began."""
        with self._reading() as session:
            row = session.scalar(select(EnrolmentRow).where(EnrolmentRow.token == token_id))
            return None if row is None else _enrolment(row)

    def in_states(self, states: Collection[State], *, site: SiteID | None = None) -> list[Enrolment]:
        """Enrolments in any of these states, oldest first.

        Args:
            states: Which.
            site: Only of this hospital.
        """
        query = _in_states(states)
        if site is not None:
            query = query.where(EnrolmentRow.site == site)
        with self._reading() as session:
            return [_enrolment(row) for row in session.scalars(query.order_by(EnrolmentRow.opened_s, EnrolmentRow.id))]

    def heard_of(self, states: Collection[State], site: SiteID, *, limit: int) -> list[Enrolment]:
        """Enrolments of a hospital in any of these states, those first whose box was heard of last.

        Args:
            states: Which.
            site: The hospital.
            limit: At most so many.
        """
        query = _in_states(states).where(EnrolmentRow.site == site)
        query = query.order_by(EnrolmentRow.seen_s.desc(), EnrolmentRow.id).limit(limit)
        with self._reading() as session:
            return [_enrolment(row) for row in session.scalars(query)]

    def swap(self, before: Enrolment, after: Enrolment) -> Enrolment:
        """Put `after` in the place of `before`, if that still stands.

        Returns:
            `after`, with its new revision.

        Raises:
            StaleError: It does not.
        """
        changed = replace(after, revision=before.revision + 1)
        same = (EnrolmentRow.id == before.id, EnrolmentRow.revision == before.revision)
        with self._writing() as session:
            # `state` besides, so that whoever reads this need not believe in revisions.
            query = update(EnrolmentRow).where(*same, EnrolmentRow.state == before.state.value)
            result = session.execute(query.values(**_columns(changed)).returning(EnrolmentRow.id))
            if len(result.all()) != 1:
                raise StaleError
            if after.state is not before.state:
                session.add(self._event(after.site, after.id, after.state))
        return changed

    def note_seen(self, name: str) -> None:
        """Note that a box was heard of."""
        now_s = self._now_s()
        with self._reading() as session:
            seen_s = session.scalar(select(EnrolmentRow.seen_s).where(EnrolmentRow.id == name))
        if seen_s is None or now_s - seen_s < SEEN_EVERY_S:
            return
        with self._writing() as session:
            session.execute(update(EnrolmentRow).where(EnrolmentRow.id == name).values(seen_s=now_s))

    def last_seen(self, site: SiteID) -> dict[str, int]:
        """When each box that enrolled at a hospital was last heard of here: key name (hex) to seconds since 1970."""
        query = select(EnrolmentRow.key_name, EnrolmentRow.seen_s).where(EnrolmentRow.site == site)
        with self._reading() as session:
            return {key_name.hex(): seen_s for key_name, seen_s in session.execute(query)}

    def use_nonce(self, site: SiteID, nonce: str, *, expires_s: int) -> None:
        """Take a hospital's request, once.

        Args:
            site: The hospital.
            nonce: Hex.
            expires_s: From when its date alone refuses it.

        Raises:
            OperatorError: It was taken already (`registrar.replayed`).
        """
        try:
            with self._writing() as session:
                session.execute(delete(SiteNonceRow).where(SiteNonceRow.expires_s < self._now_s()))
                session.add(SiteNonceRow(site=site, nonce=nonce, expires_s=expires_s))
        except IntegrityError:
            raise OperatorError(
                "registrar.replayed",
                "This request was taken already.",
                next_step="Ask anew; if nobody did twice, tell the hospital that somebody repeats its requests.",
            ) from None

    def add_passkey(self, passkey: Passkey) -> None:
        """Keep a technician's passkey.

        Raises:
            OperatorError: It is known already (`registrar.known_passkey`).
        """
        row = PasskeyRow(
            credential_id=passkey.credential_id,
            site=passkey.site,
            credential=passkey.credential,
            count=passkey.count,
        )
        try:
            with self._writing() as session:
                session.add(row)
                session.add(self._event(passkey.site, "", "passkey_added"))
        except IntegrityError:
            raise OperatorError(
                "registrar.known_passkey", "This passkey is known already.", next_step="Use it; nothing is missing."
            ) from None

    def passkey(self, credential_id: str) -> Passkey | None:
        """A technician's passkey by its credential's id (hex)."""
        with self._reading() as session:
            row = session.get(PasskeyRow, credential_id)
            return None if row is None else Passkey(row.credential_id, SiteID(row.site), row.credential, row.count)

    def count_passkey(self, before: Passkey, count: int) -> bool:
        """Remember the count of a passkey's signature; False where another one came first."""
        same = (PasskeyRow.credential_id == before.credential_id, PasskeyRow.count == before.count)
        with self._writing() as session:
            result = session.execute(
                update(PasskeyRow).where(*same).values(count=count).returning(PasskeyRow.credential_id)
            )
            return len(result.all()) == 1

    def forget_passkeys(self, site: SiteID) -> int:
        """Forget all passkeys of a hospital; returns how many there were."""
        with self._writing() as session:
            result = session.execute(
                delete(PasskeyRow).where(PasskeyRow.site == site).returning(PasskeyRow.credential_id)
            )
            return len(result.all())

    def note_heartbeat(self, beat: BoxHeartbeat) -> None:
        """Keep a box's heartbeat in the place of its last one; those of boxes that are long gone go.

        Raises:
            OperatorError: It is not later than the last one (`registrar.old_heartbeat`).
        """
        earlier = (HeartbeatRow.key_id == beat.key_id, HeartbeatRow.issued_s < beat.issued_s)
        try:
            with self._writing() as session:
                session.execute(delete(HeartbeatRow).where(HeartbeatRow.seen_s < self._now_s() - HEARTBEAT_KEPT_S))
                changed = session.execute(
                    update(HeartbeatRow).where(*earlier).values(**asdict(beat)).returning(HeartbeatRow.key_id)
                )
                if not changed.all():
                    session.add(HeartbeatRow(**asdict(beat)))
        except IntegrityError:
            raise OperatorError(
                "registrar.old_heartbeat",
                "A later heartbeat of this box was taken already, or this very one.",
                next_step="The box sends the next one in a few minutes. If this lasts, set the box's clock right.",
            ) from None

    def heartbeats(self) -> dict[str, BoxHeartbeat]:
        """The last heartbeat of each box, by its key's id (hex)."""
        names = [part.name for part in fields(BoxHeartbeat)]
        with self._reading() as session:
            rows = session.scalars(select(HeartbeatRow))
            return {row.key_id: BoxHeartbeat(**{name: getattr(row, name) for name in names}) for row in rows}

    def enrolments_by_state(self) -> dict[State, int]:
        """How many enrolments there are in each state."""
        query = select(EnrolmentRow.state, func.count()).group_by(EnrolmentRow.state)
        with self._reading() as session:
            found = {State(state): count for state, count in session.execute(query)}
        return {state: found.get(state, 0) for state in State}

    def events(self, *, site: SiteID | None = None, limit: int = 1000) -> list[EventRecord]:
        """What happened last, newest first."""
        query = select(EventRow).order_by(EventRow.number.desc()).limit(limit)
        if site is not None:
            query = query.where(EventRow.site == site)
        with self._reading() as session:
            return [EventRecord(row.at_s, row.site, row.enrolment, row.what) for row in session.scalars(query)]

    def _event(self, site: str, enrolment: str, what: str) -> EventRow:
        return EventRow(at_s=self._now_s(), site=site, enrolment=enrolment, what=str(what))

    def _now_s(self) -> int:
        return int(self._clock.now().timestamp())

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with _translated(), Session(self._engine) as session, session.begin():
            yield session

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with _translated(), Session(self._engine) as session:
            session.connection(execution_options=_READING)
            yield session


def connect(url: str) -> Engine:
    """Make an engine; nothing is opened yet.

    Raises:
        OperatorError: It is the URL of neither SQLite nor PostgreSQL (`registrar.bad_database`).
    """
    address = _parse_url(url)
    if address.get_backend_name() == "postgresql":
        return create_engine(address.set(drivername="postgresql+psycopg"), pool_pre_ping=True, **_ENGINE)
    if address.database:
        # Before SQLite makes it: what hospitals' boxes are called is nobody else's affair.
        os.close(os.open(address.database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    engine = create_engine(address, **_ENGINE)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _parse_url(url: str) -> URL:
    try:
        address = make_url(url)
    except (ArgumentError, ValueError):
        address = None
    if address is None or address.get_backend_name() not in {"sqlite", "postgresql"}:
        raise OperatorError(
            "registrar.bad_database",
            "The registrar's database is named by no URL of SQLite or PostgreSQL.",
            next_step="Write `sqlite:///registrar.db` or `postgresql://user@host/name` into its settings.",
        )
    return address


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the tables up to `revision`; `base` takes all of them away.

    Args:
        engine: From `connect`.
        revision: A name under `migrations/versions`.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        step: Callable[[Config, str], None] = command.downgrade if revision == "base" else command.upgrade
        step(config, revision)


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # the driver begins transactions in its own way; ours begin below
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_LIMIT_MS}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # Who means to write says so at once: two readers that both came to write would wait for each other.
    reading = connection.get_execution_options().get("reading")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except (DBAPIError, PoolTimeoutError, OSError) as error:
        raise HardwareError(
            "registrar.store_away",
            f"The registrar's database does not answer ({type(error).__name__}).",
            next_step="Nothing was changed; try again. If it lasts, have the registrar's host looked at.",
        ) from error


def _count(session: Session, kind: type[Table], *where: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).select_from(kind).where(*where)) or 0


def _in_states(states: Collection[State]) -> Select[EnrolmentRow]:
    return select(EnrolmentRow).where(EnrolmentRow.state.in_([state.value for state in states]))


def _entry(row: TokenRow) -> TokenEntry:
    return TokenEntry(
        id=row.id,
        site=row.site,
        secret_digest=row.secret_digest,
        expires_s=row.expires_s,
        ek_digest=row.ek_digest,
        issuer=row.issuer,
    )


def _columns(enrolment: Enrolment) -> dict[str, Any]:
    subject, talk = enrolment.subject, enrolment.talk
    ours, theirs = enrolment.credential or Credential(b"", b""), talk.credential or Credential(b"", b"")
    refusal = enrolment.refusal or Refusal("", "")
    return {
        "id": enrolment.id,
        "token": enrolment.token,
        "site": enrolment.site,
        "kind": subject.kind.value,
        "public_key": subject.public_key,
        "ek_name": subject.ek_name,
        "key_name": subject.key_name,
        "link_key": enrolment.link_key,
        "nonce": enrolment.nonce,
        "opened_s": enrolment.opened_s,
        "state": enrolment.state.value,
        "revision": enrolment.revision,
        "evidence": enrolment.evidence,
        "secret": enrolment.secret,
        "blob": ours.blob,
        "encrypted_seed": ours.encrypted_seed,
        "grade": enrolment.grade.name,
        "asker_key": talk.asker_key,
        "site_nonce": talk.nonce,
        "site_evidence": talk.evidence,
        "site_proof": talk.proof,
        "site_blob": theirs.blob,
        "site_encrypted_seed": theirs.encrypted_seed,
        "site_answer": talk.answer,
        "refusal": refusal.sentence,
        "refusal_next_step": refusal.next_step,
        "superlink_node": enrolment.superlink_node,
    }


def _enrolment(row: EnrolmentRow) -> Enrolment:
    return Enrolment(
        id=row.id,
        token=row.token,
        site=SiteID(row.site),
        subject=Subject(KeyKind(row.kind), row.public_key, row.ek_name, row.key_name),
        link_key=row.link_key,
        nonce=row.nonce,
        opened_s=row.opened_s,
        state=State(row.state),
        revision=row.revision,
        evidence=row.evidence,
        secret=row.secret,
        credential=_credential(row.blob, row.encrypted_seed),
        grade=EvidenceClass[row.grade],
        talk=SiteTalk(
            row.asker_key,
            row.site_nonce,
            row.site_evidence,
            row.site_proof,
            _credential(row.site_blob, row.site_encrypted_seed),
            row.site_answer,
        ),
        refusal=Refusal(row.refusal, row.refusal_next_step) if row.refusal else None,
        superlink_node=row.superlink_node,
    )


def _credential(blob: bytes, encrypted_seed: bytes) -> Credential | None:
    return Credential(blob, encrypted_seed) if blob else None
