"""The registrar: whether it answers."""

from __future__ import annotations

from agent.service.doctor.box import Box
from agent.service.doctor.finding import Finding
from agent.service.doctor.superlink import check_certificate


def check(box: Box) -> Finding:
    """Connect, and look at its certificate.

    Raises:
        NetworkError: It does not answer.
        PeerProtocolError: Its certificate does not count.
        OperatorError: The proxy lets nobody through.
    """
    server = box.registrar
    if server is None:
        return Finding.not_applicable("The box knows no registrar: it is not enrolled, or lost what it knew.")
    check_certificate(server, box.config.network.proxy)
    return Finding.ok(f"The registrar at {server.address} answers.")
