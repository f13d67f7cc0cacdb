"""One connection of a stranger: so many from one address, and none that only dribbles or sleeps."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, ClassVar

from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol


class PatientProtocol(H11Protocol):
    """uvicorn's protocol, which waits for the head of a request for ever, with an end to that.

    A server sets its own limits in a class of its own, which counts for itself.
    """

    max_from_address: ClassVar[int]
    patience_s: ClassVar[float]
    """In this time, a connection has to bring a whole request's head."""
    _from: ClassVar[Counter[str]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._from = Counter()

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*args, **kwargs)
        self._address = ""
        self._before: object = self
        self._timer: asyncio.TimerHandle | None = None

    @staticmethod
    def counted_as(host: str) -> str:
        """What is counted as one address."""
        return host

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.counted_as(self.client[0]) if self.client else ""
        self._from[self._address] += 1
        if self._from[self._address] > self.max_from_address:
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
