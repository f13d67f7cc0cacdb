"""DNS: whether the names that the agent needs have addresses."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

from agent.core.errors import NetworkError
from agent.service.doctor.box import Box
from agent.service.doctor.finding import Finding


def check(box: Box) -> Finding:
    """Have each name looked up; behind a proxy, only the proxy's: it looks up the others.

    Raises:
        NetworkError: One has no address.
    """
    proxy = box.config.network.proxy
    hosts = {urlsplit(proxy).hostname or ""} if proxy else {server.host for server in box.servers}
    names = sorted(host for host in hosts if not _is_address(host))
    if not names:
        return Finding.not_applicable("No name has to be looked up: no server is known yet, or they have addresses.")
    for name in names:
        try:
            socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise NetworkError(
                "doctor.name_unknown",
                f"The name {name} has no address: {error.strerror or error}.",
                next_step="Check /etc/resolv.conf, and with the network department that its servers know the name.",
            ) from error
    return Finding.ok(f"These names have addresses: {', '.join(names)}.")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
