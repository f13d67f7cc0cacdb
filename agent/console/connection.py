"""One browser's connection: so many from one address, and none that only dribbles or sleeps."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, ClassVar, Final

from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_FROM_ADDRESS: Final = 24
"""A browser opens six; some may sit behind one proxy of the hospital's."""
PATIENCE_S: Final = 15.0
"""In this time, a connection has to bring a whole request's head."""


class ImpatientProtocol(H11Protocol):
    """uvicorn's protocol, which waits for the head of a request for ever, with an end to that."""

    patience_s: ClassVar[float] = PATIENCE_S
    _from: ClassVar[Counter[str]] = Counter()

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*args, **kwargs)
        self._address = ""
        self._before: object = self
        self._timer: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._from[self._address] += 1
        if self._from[self._address] > MAX_FROM_ADDRESS:
            transport.abort()
            return
        self._watch()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._from[self._address] -= 1
        if not self._from[self._address]:
            del self._from[self._address]
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Look again later; what brought no new request in between, and answers none now, is closed."""
        self._before = self.cycle
        self._timer = self.loop.call_later(self.patience_s, self._look)

    def _look(self) -> None:
        if self.cycle is self._before and (self.cycle is None or self.cycle.response_complete):
            self.transport.abort()
        else:
            self._watch()
