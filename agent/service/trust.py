"""What this box holds to be true about its consortium, kept fresh while the agent runs."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from agent.core.clock import Clock
from agent.core.errors import NetworkError, SecureHealthError
from agent.core.ids import SiteID
from agent.trust.fetcher import BoundedFetcher
from agent.trust.repository import TrustRepository, bootstrap
from agent.trust.snapshot import TrustSnapshot

REFRESH_S: Final = 60.0
_JITTER: Final = 0.2
STOP_LIMIT_S: Final = 2.0
"""How long a fetch under way may delay the agent's end; its own limits end it later."""

log = structlog.get_logger()


class OpenedRepository:
    """A repository with the fetcher that it alone uses.

    Args:
        directory: As `bootstrap` made it.
        url: Of the repository.
        clock: The service's.
        proxy: The hospital's HTTP proxy.
    """

    def __init__(self, directory: Path, url: str, clock: Clock, *, proxy: str | None) -> None:
        self._fetcher = BoundedFetcher(clock, proxy=proxy)
        try:
            self.trust = TrustRepository(directory, url, self._fetcher, clock)
        except SecureHealthError:
            self._fetcher.close()
            raise

    def refresh(self) -> TrustSnapshot:
        """Fetch and verify what is new."""
        return self.trust.refresh()

    def interrupt(self) -> None:
        """End what is being fetched, and fetch nothing more."""
        self._fetcher.close()

    def close(self) -> None:
        """Let go of it."""
        self._fetcher.close()
        self.trust.close()


def found_repository(
    directory: Path, url: str, root: bytes, digest: str, clock: Clock, *, proxy: str | None
) -> OpenedRepository:
    """Pin a consortium's first root in `directory`, or find it pinned, and open its repository.

    Raises:
        SecureHealthError: See `agent.trust.repository.bootstrap`.
    """
    bootstrap(directory, root, digest)
    return OpenedRepository(directory, url, clock, proxy=proxy)


class TrustKeeper:
    """The newest snapshot of an enrolled box, and a thread that keeps it fresh; a `TrustSource`. Thread-safe.

    Args:
        repository: Opened, with a snapshot; closed with the keeper.
        dice: Source of jitter, so that a consortium's boxes do not fall into step.
        on_news: Told what is wrong with the repository, in words for a technician; nothing where all is well.
        on_snapshot: Told of every new snapshot, from the keeper's thread, whoever asked for it; where it fails, it is
            told again when the repository is asked next.
        every_s: How often the repository is asked, give or take a fifth.
    """

    def __init__(
        self,
        repository: OpenedRepository,
        dice: random.Random,
        *,
        on_news: Callable[[str], None],
        on_snapshot: Callable[[TrustSnapshot], None],
        every_s: float = REFRESH_S,
    ) -> None:
        self._repository = repository
        self._dice = dice
        self._on_news = on_news
        self._on_snapshot = on_snapshot
        self._every_s = every_s
        self._told: TrustSnapshot | None = None
        self._ended = False
        self._asked = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trust", daemon=True)

    def current(self) -> TrustSnapshot:
        """The newest snapshot known here, without asking anybody."""
        return self._repository.trust.current()

    def now_s(self) -> int:
        """The present, in seconds since 1970, not before the latest signed time."""
        return self._repository.trust.now_s()

    def refresh(self) -> TrustSnapshot:
        """Ask the repository now, and return the newest snapshot."""
        snapshot = self._repository.refresh()
        self._wake.set()
        return snapshot

    def accept_site_keys(self, site: SiteID, key_ids: Collection[str]) -> None:
        """Believe a hospital's other keys, as a person here had them confirmed; they count as soon as we looked again.

        Raises:
            OperatorError: The consortium names other keys for it.
            HardwareError: The disk does not take it.
        """
        self._repository.trust.accept_site_keys(site, key_ids)
        log.info("site_keys_accepted", site=site, keys=sorted(key_ids))
        self._asked = True
        self._wake.set()

    def _run(self) -> None:
        wait_s = 0.0
        while True:
            woken = self._wake.wait(wait_s)
            self._wake.clear()
            if self._ended:
                return
            try:
                if self._asked or not woken:
                    self._asked = False
                    wait_s = self._every_s * self._dice.uniform(1 - _JITTER, 1 + _JITTER)
                    self._repository.refresh()
                self._tell()
                self._on_news("")
            except SecureHealthError as error:
                log.warning("trust_not_refreshed", error=error)
                self._on_news(self._news_of(error))
            except Exception:  # a fault of ours in one refresh must not end all others
                log.exception("trust_refresh_broke")

    def _tell(self) -> None:
        snapshot = self.current()
        if snapshot != self._told:
            self._on_snapshot(snapshot)
            self._told = snapshot

    def _news_of(self, error: SecureHealthError) -> str:
        """A lost registrar is nothing to speak of until what is known here no longer counts."""
        if isinstance(error, NetworkError) and self.current().is_current(self.now_s()):
            return ""
        return f"{error.sentence} {error.next_step}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._wake.set()
        self._repository.interrupt()
        self._thread.join(STOP_LIMIT_S)
        self._repository.close()
