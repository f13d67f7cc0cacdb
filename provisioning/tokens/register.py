"""Making tokens known to the registrar over its site API."""

from __future__ import annotations

from provisioning.authority.site_line import SiteLine
from provisioning.tokens.token import TokenEntry


class SiteRegister:
    """`TokenRegister` over `POST /v1/sites/<site>/tokens`.

    Args:
        line: The hospital's, to the registrar.
    """

    def __init__(self, line: SiteLine) -> None:
        self._line = line

    def add(self, entry: TokenEntry) -> None:
        """Make a token known; the same entry again changes nothing.

        Raises:
            NetworkError, OperatorError, PeerProtocolError: As `SiteLine.call` says.
        """
        self._line.call("POST", "/tokens", entry.model_dump_json(exclude_none=True).encode())
