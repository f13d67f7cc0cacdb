"""The SuperLink: whether it answers, and lets this box take part."""

from __future__ import annotations

from agent.core.errors import NetworkError, PeerProtocolError
from agent.federation.node import Link
from agent.service.doctor.box import Box, Server
from agent.service.doctor.finding import Finding, Outcome
from agent.service.doctor.probe import shake_hands


def check(box: Box) -> Finding:
    """Connect, and ask the agent how it stands there.

    Raises:
        NetworkError: It does not answer, or the agent is not connected.
        PeerProtocolError: Its certificate does not count.
        OperatorError: The proxy lets nobody through.
    """
    server = box.superlink
    if server is None:
        return Finding.not_applicable("The box knows no SuperLink: it is not enrolled, or lost what it knew.")
    check_certificate(server, box.config.network.proxy)
    status = box.status
    if status is None or status.link == Link.ONLINE:
        knows = "" if status is None else ", and this box takes part"
        return Finding.ok(f"The SuperLink at {server.address} answers{knows}.")
    if status.trouble:
        return Finding(Outcome.FAIL, status.sentence, NetworkError.fault, status.next_step, status.trouble)
    raise NetworkError(
        "doctor.not_online",
        f"The SuperLink at {server.address} answers, but the agent is not connected: it is {status.link}.",
        next_step="Wait for a minute: it tries again by itself. If it lasts, look into its log.",
    )


def check_certificate(server: Server, proxy: str | None) -> None:
    """Reach a server, and look whether its certificate counts.

    Raises:
        NetworkError: It does not answer.
        PeerProtocolError: Its certificate does not count.
        OperatorError: The proxy lets nobody through.
    """
    shown = shake_hands(server, proxy)
    if shown.refusal:
        raise PeerProtocolError(
            "doctor.wrong_certificate",
            f"The certificate of the {server.name} at {server.address} does not count: {shown.refusal}.",
            next_step="If the clock or TLS is at fault too, mend that first; else tell the consortium's operator.",
        )
