"""Enrolment, the box's half: from a token's text to a box that finds itself in its hospital's own signed record.

1. The token is read; nothing in it is believed beyond where to ask.
2. The TLS authority and the consortium's first root must be those that the token pins; until then nothing is sent.
3. The repository is fetched and verified, and the token's signature with it.
4. Registrar and hospital ask for evidence (`agent.enrolment.conversation`).
5. The box finds its own key, at its own site, in what its hospital signed. Only that makes it enrolled.

Every step can be repeated: what a power cut must not take (token, authority, repository) is on the disk before the
next request, and all else the registrar tells again to the same key with the same token.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import structlog

from agent.core.clock import Clock
from agent.core.errors import OperatorError, PeerProtocolError
from agent.enrolment.conversation import Box, Conversation, Occasion
from agent.enrolment.line import Patience, RegistrarLine, check_authority, fetch_authority, trust_in
from agent.enrolment.progress import Progress, Step, Tell
from agent.enrolment.record import EnrolmentFolder, EnrolmentRecord, PendingEnrolment, check_may_enrol, revoked_key
from agent.statements.roots import public_key_bytes
from agent.trust.fingerprint import consortium_words
from agent.trust.peers import node_name
from agent.trust.records import ConsortiumRecord, NodeFile, parse_public_pem
from agent.trust.snapshot import TrustSnapshot
from agent.trust.token import SignedToken, Token, check_expiry, ek_digest, parse_token, verify_token

MAX_ROOT_BYTES: Final = 1 << 18
PUBLISHING_LIMIT_S: Final = 60.0
"""How long the repository may take to show what the registrar says stands in it."""
PUBLISHING_POLL_S: Final = 0.2
_SPENT_CODES: Final = frozenset({"enrolment.refused", "enrolment.not_confirmed", "enrolment.other_box"})

log = structlog.get_logger()


class Repository(Protocol):
    """The consortium's repository on this box."""

    def refresh(self) -> TrustSnapshot:
        """Fetch and verify what is new."""
        ...

    def close(self) -> None:
        """Let go of it, for the agent to take it up."""
        ...


OpenRepository = Callable[[Path, str, bytes, str], Repository]
"""Opens, or founds, the repository in a directory: directory, URL, first root metadata, and its digest (hex)."""
Confirm = Callable[[ConsortiumRecord, str], bool]
"""Asks the person at the box whether this is the right consortium: its record, and its fingerprint in words."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an enrolment needs of the box.

    Args:
        folder: What outlives it.
        open_repository: Opens the consortium's repository.
        clock: For expiry and limits.
        patience: Waits.
        tell: Told how far it is.
        confirm: Asked where the consortium is not the preset one; None where nobody stands at the box.
        preset: Root digest (hex) that came with the image or the configuration; empty where none did.
        proxy: The hospital's HTTP proxy.
    """

    folder: EnrolmentFolder
    open_repository: OpenRepository
    clock: Clock
    patience: Patience
    tell: Tell
    confirm: Confirm | None
    preset: str = ""
    proxy: str | None = None


class Enrolment:
    """Enrols one box."""

    def __init__(self, box: Box, around: Surroundings) -> None:
        self._box = box
        self._around = around
        self._folder = around.folder

    def start(self, text: str, *, replaces: bool = False) -> EnrolmentRecord:
        """Enrol with a token; the same one again goes on where it was.

        Args:
            text: As read from stick, code or keyboard.
            replaces: Whether a new key shall take the place of one that is gone.

        Returns:
            Where the box belongs.

        Raises:
            SecureHealthError: It came to nothing; the sentence says why.
            EnrolmentStoppedError: Told to stop; `resume` goes on.
        """
        token = parse_token(text).token
        with self._folder.locked():
            record = self._folder.load_record()
            if not check_may_enrol(record, token, self._box.key.key_id, replaces=replaces) and record is not None:
                self._folder.forget_pending()
                self._folder.check_not_revoked(record)
                self._tell(Step.ENROLLED, f"This box is enrolled already: {record.site} in {record.name}.")
                return record
            pending = self._folder.load_pending()
            if pending is None or pending.token != text.strip():
                check_expiry(token, self._now_s())
                pending = PendingEnrolment(token=text.strip())
            pending = pending.model_copy(update={"replaces": replaces})
            self._folder.store_pending(pending)
            return self._enrol(pending)

    def resume(self) -> EnrolmentRecord | None:
        """Go on with the enrolment that a power cut or a stop broke off; None where there is none.

        Raises:
            SecureHealthError: See `start`.
            EnrolmentStoppedError: See `start`.
        """
        with self._folder.locked():
            record, pending = self._folder.load_record(), self._folder.load_pending()
            if pending is None:
                return None
            token, key_id = parse_token(pending.token).token, self._box.key.key_id
            if not check_may_enrol(record, token, key_id, replaces=pending.replaces):
                self._folder.forget_pending()  # the power went between the last two steps
                return record
            return self._enrol(pending)

    def _enrol(self, pending: PendingEnrolment) -> EnrolmentRecord:
        try:
            return self._run(pending)
        except OperatorError as error:
            if error.code in _SPENT_CODES or error.code.startswith("token."):
                self._folder.forget_pending()
            raise

    def _run(self, pending: PendingEnrolment) -> EnrolmentRecord:
        token = parse_token(pending.token).token
        self._check_box(token)
        self._check_preset(pending, token)
        self._tell(Step.TOKEN, f"The token is for {token.site}, and names the registrar {token.registrar}.")
        with closing(self._line(token)) as line, closing(self._open_repository(token, line)) as repository:
            self._talk(pending, line, repository)
            record = self._found(token, repository)
        # The repository is free by now: an agent that sees the record may take it up at once.
        self._folder.store_record(record)
        self._folder.forget_pending()
        log.info("enrolled", site=record.site, node=record.node, consortium=record.consortium)
        self._tell(Step.ENROLLED, f"Enrolled: {record.site} in {record.name}.")
        return record

    def _talk(self, pending: PendingEnrolment, line: RegistrarLine, repository: Repository) -> None:
        signed = parse_token(pending.token)
        snapshot = self._refreshed(repository)
        pending = self._confirmed(pending, signed.token, snapshot)
        by_site = self._verify(signed, snapshot, pending)
        occasion = Occasion(signed.token, snapshot, by_site)
        talk = Conversation(line, self._around.patience, self._around.tell, self._box, occasion)
        talk.open()
        self._keep(pending, accepted=True)
        talk.run()

    def _check_box(self, token: Token) -> None:
        if token.ek_digest is None:
            return
        ek_name, _ = self._box.key.evidence_names()
        if not ek_name or not hmac.compare_digest(ek_digest(ek_name), token.ek_digest):
            raise OperatorError(
                "enrolment.other_box",
                f"The enrolment token for {token.site} was made for another box than this one.",
                next_step="Use it on the box whose label it names, or ask the consortium for one for this box.",
            )

    def _check_preset(self, pending: PendingEnrolment, token: Token) -> None:
        """Where nobody can confirm it, another consortium is neither asked nor fetched: sticks come from anybody."""
        if self._around.confirm is None and not pending.confirmed and token.root_digest.hex() != self._around.preset:
            raise _not_preset(token)

    def _line(self, token: Token) -> RegistrarLine:
        """To the registrar that the token pins; its authority is on the disk from then on."""
        proxy, clock = self._around.proxy, self._around.clock

        def fetch() -> bytes:
            return fetch_authority(token.registrar, token.tls_pin, proxy=proxy, clock=clock)

        try:
            authority = check_authority(self._folder.authority.read_bytes(), token.tls_pin, token.registrar)
        except (OSError, PeerProtocolError):
            authority = self._around.patience.insist(Step.TOKEN, fetch)
            self._folder.store_authority(authority)
        return RegistrarLine(token.registrar, trust_in(authority), proxy=proxy, clock=clock)

    def _open_repository(self, token: Token, line: RegistrarLine) -> Repository:
        root = self._around.patience.insist(
            Step.CONSORTIUM, lambda: line.fetch("/repository/1.root.json", limit_bytes=MAX_ROOT_BYTES)
        )
        if not hmac.compare_digest(hashlib.sha256(root).digest(), token.root_digest):
            raise PeerProtocolError(
                "enrolment.wrong_root",
                "The registrar serves another consortium's repository than the one that the token names.",
                next_step="Do not go on. Ask the consortium, and compare its fingerprint with the token's sheet.",
            )
        url, digest = f"https://{token.registrar}/repository/", token.root_digest.hex()
        return self._around.open_repository(self._folder.trust(digest), url, root, digest)

    def _refreshed(self, repository: Repository) -> TrustSnapshot:
        self._tell(Step.CONSORTIUM, "The consortium's signed records are fetched and verified.")
        return self._around.patience.insist(Step.CONSORTIUM, repository.refresh)

    def _confirmed(self, pending: PendingEnrolment, token: Token, snapshot: TrustSnapshot) -> PendingEnrolment:
        if pending.confirmed or token.root_digest.hex() == self._around.preset:
            return pending
        consortium = snapshot.consortium
        if self._around.confirm is None:
            raise _not_preset(token)
        if not self._around.confirm(consortium, consortium_words(token.root_digest.hex())):
            raise OperatorError(
                "enrolment.not_confirmed",
                f"Nobody confirmed that this box is to join {consortium.name}; nothing was sent.",
                next_step="Compare the words with those on the consortium's sheet, then run `seh-agent enrol` again.",
            )
        return self._keep(pending, confirmed=True)

    def _verify(self, signed: SignedToken, snapshot: TrustSnapshot, pending: PendingEnrolment) -> bool:
        """Verify the token with its issuer's key from the repository; returns whether the site itself issued it."""
        token = signed.token
        site = snapshot.sites.get(token.site)
        if site is None:
            raise _unknown_site(token, snapshot.set_aside.get(token.site, ""))
        # Once the registrar has taken the token, its date is no more than a date: hospitals may take their time.
        now_s = token.expires_s - 1 if pending.accepted else self._now_s()
        for key in site.keys:
            if signed.is_issued_by(key):
                verify_token(signed, key, now_s)
                return True
        verify_token(signed, parse_public_pem(snapshot.consortium.registrar_key), now_s)
        return False

    def _found(self, token: Token, repository: Repository) -> EnrolmentRecord:
        """Look for this box in what its hospital signed."""
        self._tell(Step.RECORD, f"{token.site} has endorsed this box; its signed record is fetched.")
        clock, patience = self._around.clock, self._around.patience
        end_s = clock.monotonic_s() + PUBLISHING_LIMIT_S
        while True:
            snapshot = patience.insist(Step.RECORD, repository.refresh)
            node = find_node(snapshot, token, self._box)
            if node is not None:
                break
            if clock.monotonic_s() >= end_s:
                raise _not_published(token)
            patience.pause(PUBLISHING_POLL_S)
        return EnrolmentRecord(
            site=token.site,
            node=node.node,
            key_id=self._box.key.key_id,
            root_digest=snapshot.root_digest,
            environment=snapshot.environment,
            consortium=snapshot.consortium.id,
            name=snapshot.consortium.name,
            registrar=token.registrar,
            enrolled=clock.now(),
        )

    def _keep(self, pending: PendingEnrolment, **changes: bool) -> PendingEnrolment:
        changed = pending.model_copy(update=changes)
        if changed != pending:
            self._folder.store_pending(changed)
        return changed

    def _now_s(self) -> int:
        return int(self._around.clock.now().timestamp())

    def _tell(self, step: Step, sentence: str) -> None:
        self._around.tell(Progress(step, sentence))


def find_node(snapshot: TrustSnapshot, token: Token, box: Box) -> NodeFile | None:
    """This box's record, as its own hospital signed it; None where there is none yet.

    Raises:
        OperatorError: Its hospital revoked the key (`enrolment.revoked_key`).
        PeerProtocolError: Its hospital put the key on record in another way than it was enrolled, or in one that does
            not count in this consortium (`enrolment.wrong_record`).
    """
    key_id, record = box.key.key_id, snapshot.sites.get(token.site)
    found = [node for node in record.nodes if node.root.key_id == key_id] if record else []
    if record is None or not found:
        return None
    if key_id in record.revoked:
        raise revoked_key(token.site)
    node = snapshot.node(key_id, site=token.site)
    if node is None or found != [node] or not _is_ours(node, box):
        raise PeerProtocolError(
            "enrolment.wrong_record",
            f"{token.site} has put this box's key on record in another way than it was enrolled.",
            next_step="Do not use the box. Tell the consortium and the hospital's operator.",
        )
    return node


def _is_ours(node: NodeFile, box: Box) -> bool:
    link = public_key_bytes(parse_public_pem(node.link_key))
    expected = (box.key.kind, node_name(box.key.key_id), public_key_bytes(box.link))
    return (node.kind, node.node, link) == expected


def _not_preset(token: Token) -> OperatorError:
    return OperatorError(
        "enrolment.not_preset",
        "The token is of a consortium that this box was not prepared for; a person has to confirm it.",
        next_step="Run `seh-agent enrol` at the box, and compare these words with the token's sheet: "
        f"{consortium_words(token.root_digest.hex())}.",
    )


def _unknown_site(token: Token, why: str) -> PeerProtocolError:
    return PeerProtocolError(
        "enrolment.unknown_site",
        f"The consortium's repository has no valid records of {token.site}{f': {why}' if why else ''}.",
        next_step="Ask the consortium; the hospital's operator may have to sign its records anew.",
    )


def _not_published(token: Token) -> PeerProtocolError:
    return PeerProtocolError(
        "enrolment.not_published",
        f"The registrar says that this box is enrolled, and {token.site}'s signed records do not name it.",
        next_step="Ask the consortium to look at its registrar's log, then run `seh-agent enrol` again.",
    )
