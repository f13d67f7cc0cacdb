"""A box leaves its consortium with a steward's key: the hospital's own record on the disk says who that may be."""

from __future__ import annotations

import secrets

import typer

from agent.cli.steward_signing import StewardChoice
from agent.core.box_view import StewardView
from agent.core.clock import SystemClock
from agent.core.config import AgentConfig
from agent.core.ids import SiteID
from agent.enrolment.record import EnrolmentFolder, EnrolmentRecord
from agent.governance.approval import TERMINAL_ORIGIN, check_certificate, verify_act
from agent.governance.book import COUNTERS_FILE_NAME
from agent.governance.challenge import UnenrolChallenge
from agent.governance.stewards import RepositoryStewards, StewardCounters, steward_named
from agent.trust.fetcher import BoundedFetcher
from agent.trust.records import StewardFile
from agent.trust.repository import TrustRepository


def steward_approves(settings: AgentConfig, record: EnrolmentRecord, choice: StewardChoice) -> None:
    """Have a steward of the box's hospital sign that the box may leave; the agent must not run meanwhile.

    Args:
        settings: Of the agent.
        record: Where the box belongs.
        choice: Whose key signs.

    Raises:
        OperatorError: No steward counts here, or the agent runs (`trust.in_use`).
        PeerProtocolError: The key did not sign it, or may have been copied.
        SecureHealthError: The key is not there, or refuses.
    """
    state, clock = settings.node.state_directory, SystemClock()
    directory = EnrolmentFolder.of(state).trust(record.root_digest)
    fetcher = BoundedFetcher(clock)  # nothing is fetched: what the disk holds is what the agent saw last
    try:
        with TrustRepository(directory, f"https://{record.registrar}/repository/", fetcher, clock) as repository:
            repository.load()
            now_s = repository.now_s()
            source = RepositoryStewards(repository, SiteID(record.site))
            signer = choice.among(tuple(_view(steward) for steward in source.stewards().values()))
            steward = steward_named(source, signer.steward.steward)
    finally:
        fetcher.close()
    act = UnenrolChallenge(
        root_digest=record.root_digest, site=record.site, node=record.node, nonce=secrets.token_hex(32)
    )
    typer.echo(f"{steward.steward}'s key will sign that the box {record.node} may leave {record.name}.")
    check_certificate(steward, now_s=now_s)
    count = verify_act(act, signer.prove(act), steward, frozenset({TERMINAL_ORIGIN}))
    StewardCounters(state / "approvals" / COUNTERS_FILE_NAME).check(steward.key_id, count)


def _view(steward: StewardFile) -> StewardView:
    return StewardView(
        steward=steward.steward,
        kind=steward.kind,
        key_id=steward.key_id,
        rp_id=steward.rp_id or "",
        credential_id=steward.credential_id or "",
        public_key=steward.public_key,
    )
