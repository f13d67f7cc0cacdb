"""TLS interception: whether a device on the way opens connections that only the two ends may read."""

from __future__ import annotations

from agent.core.errors import NetworkError, SecureHealthError
from agent.service.doctor.box import Box
from agent.service.doctor.finding import Finding
from agent.service.doctor.probe import shake_hands


def check(box: Box) -> Finding:
    """Compare who issued each server's certificate with who should have.

    Raises:
        NetworkError: Another one did.
    """
    seen = []
    for server in box.servers:
        try:
            shown = shake_hands(server, box.config.network.proxy)
        except SecureHealthError:
            continue  # other checks say so
        seen.append(server.name)
        if shown.foreign:
            raise NetworkError(
                "doctor.tls_opened",
                f"The certificate shown for the {server.name} at {server.address} was issued by {shown.issuer}, "
                "not by the consortium: a device on the hospital's network opens TLS connections, and the agent "
                "sends nothing through it.",
                next_step="Have the network department exempt that address from TLS inspection.",
            )
    if not seen:
        return Finding.not_applicable("No server could be reached whose certificate could be looked at.")
    return Finding.ok(f"Nobody on the way opens TLS connections; looked at: {', '.join(seen)}.")
