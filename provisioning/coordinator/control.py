"""The SuperLink's Control interface, called at once: Flower's own commands need seconds to start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from agent.core.errors import NetworkError, OperatorError
from provisioning.authority.superlink import SuperLinkConnection


@contextmanager
def open_control(connection: SuperLinkConnection) -> Iterator[ControlHttpClient]:
    """Connect as an operator without an account; what goes wrong inside comes out as an error of ours.

    Raises:
        OperatorError: The SuperLink refuses what was asked.
        NetworkError: It does not answer.
    """
    try:
        with ControlHttpClient.from_server_address(
            connection.address,
            insecure=False,
            root_certificates=connection.root_certificate.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        ) as client:
            yield client
    except httpx.HTTPStatusError as error:
        raise _refused(connection, error.response) from error
    except httpx.TransportError as error:
        raise NetworkError(
            "coordinator.superlink_unreachable",
            f"The SuperLink at {connection.address} cannot be reached: {error}.",
            next_step="Check that it runs and that a firewall lets this address through, then try again.",
        ) from error


def _refused(connection: SuperLinkConnection, response: httpx.Response) -> OperatorError:
    known = FlowerError.from_json(response.text)
    said = f"{known.message} {known.public_details or ''}".strip() if known else f"HTTP status {response.status_code}"
    return OperatorError(
        "coordinator.superlink_refused",
        f"The SuperLink at {connection.address} refuses: {said}.",
        next_step="Correct what it names and try again; nothing was changed.",
    )
