"""The hospital's proxy: whether it is there, and lets the agent through."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from agent.service.doctor.box import Box, Server
from agent.service.doctor.finding import Finding
from agent.service.doctor.probe import STEP_LIMIT_S, silent, tunnel


def check(box: Box) -> Finding:
    """Have the proxy connect to each server.

    Raises:
        NetworkError: It does not answer.
        OperatorError: It lets nobody through.
    """
    proxy = box.config.network.proxy
    if proxy is None:
        return Finding.not_applicable("The configuration names no proxy: the box connects by itself.")
    for server in box.servers:
        tunnel(server, proxy).close()
    place = urlsplit(proxy)
    name = f"{place.hostname}:{place.port or 80}"  # without its password
    if not box.servers:
        try:
            socket.create_connection((place.hostname, place.port or 80), timeout=STEP_LIMIT_S).close()
        except OSError as error:
            raise silent(Server("proxy", name, b""), error) from error
    return Finding.ok(f"The proxy {name} connects the box with {len(box.servers)} of {len(box.servers)} servers.")
