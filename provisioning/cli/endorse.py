"""`seh-provision site endorse`: a hospital looks at its boxes for itself, and signs for them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import structlog
import typer

from agent.core.clock import Clock, SystemClock
from agent.core.errors import NetworkError, PeerProtocolError
from agent.core.ids import SiteID, check_identifier
from agent.core.logging import configure_logging
from agent.trust.repository import TrustRepository
from provisioning.authority.endorsing import Decide, EndorsingTool, Verdict, Waiting, decide_later, opened_tool
from provisioning.authority.signers import open_signer
from provisioning.authority.site_repository import SitePlace
from provisioning.cli.desk import RegistrarOption, RootOption, SiteKeyOption, SiteOption
from provisioning.cli.files import read_file
from provisioning.cli.secrets import PassphraseFile, interactive

BUSY_PAUSE_S: Final = 0.2
IDLE_PAUSE_S: Final = 1.0
LOST_PAUSE_S: Final = 5.0
PREPARED_FOR_S: Final = 3600.0
"""How often a tool that goes on looks whether its hospital has to sign anew."""

log = structlog.get_logger()


def endorse(
    *,
    site: SiteOption,
    key: SiteKeyOption,
    state: Annotated[Path, typer.Option(help="What this tool keeps: tokens, what they were used for, its own copy.")],
    registrar: RegistrarOption,
    root: RootOption,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until stopped; ask nobody.")] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Look at the boxes that wait, and endorse those that prove this hospital's own token, or that you recognise."""
    site_id, clock = SiteID(check_identifier(site, kind="site")), SystemClock()
    signer = open_signer(key, interactive(passphrase_file))
    place = SitePlace(state, registrar, read_file(root))
    decide = (lambda _: decide_later) if watch else _ask
    with opened_tool(site_id, signer, place, clock, random_bytes=secrets.token_bytes, decide=decide) as tool:
        if watch:
            configure_logging()
        tool.prepare()
        log.info("endorsing_ready", site=site_id)
        keep_looking(tool, clock, watch=watch, pause=time.sleep)


def keep_looking(tool: EndorsingTool, clock: Clock, *, watch: bool, pause: Callable[[float], object]) -> None:
    """Look until stopped, or without `watch` until nobody waits; the hospital's record is renewed meanwhile.

    Args:
        tool: Prepared.
        clock: Counts from when it was.
        watch: Whether to go on, also while the registrar is away.
        pause: Waits so many seconds.

    Raises:
        SecureHealthError: The registrar refuses the hospital; without `watch`, also where it does not answer.
    """
    prepared_s = clock.monotonic_s()
    while True:
        try:
            if clock.monotonic_s() - prepared_s >= PREPARED_FOR_S:
                tool.prepare()
                prepared_s = clock.monotonic_s()
            waiting = tool.look()
        except (NetworkError, PeerProtocolError) as error:
            if not watch:
                raise
            log.warning("registrar_lost", error=error)
            pause(LOST_PAUSE_S)
            continue
        if not waiting and not watch:
            typer.echo("No box waits for this hospital.")
            return
        pause(BUSY_PAUSE_S if waiting else IDLE_PAUSE_S)


def _ask(copy: TrustRepository) -> Decide:
    """Ask at the terminal, once for each box."""
    said: dict[str, Verdict] = {}

    def decide(waiting: Waiting) -> Verdict:
        if waiting.enrolment not in said:
            typer.echo(f"A box with a {waiting.kind.value} key wants to join {copy.current().consortium.name}.")
            typer.echo(f"Its words: {waiting.words}")
            same = typer.confirm("Does the box's own screen show the same words?")
            said[waiting.enrolment] = Verdict.ENDORSE if same else Verdict.REFUSE
        return said[waiting.enrolment]

    return decide
