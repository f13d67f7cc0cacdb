"""Starts a published study at the consortium's SuperLink, and follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.core.errors import NetworkError, OperatorError
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.superlink import SuperLinkConnection
from provisioning.coordinator.directory import CoordinatorDirectory, CoordinatorSettings
from provisioning.coordinator.fab import has_ended, launch_run
from provisioning.coordinator.progress import OVER_INTERVAL_S, follow_events
from provisioning.studies.standing import published_files, run_directory


@dataclass(frozen=True, slots=True)
class Launched:
    """A run at a SuperLink.

    Args:
        connection: The SuperLink.
        directory: The coordination's.
        run_id: The run's.
        offset: Where its events begin in the progress file.
    """

    connection: SuperLinkConnection
    directory: CoordinatorDirectory
    run_id: int
    offset: int

    def follow(self) -> Iterator[Mapping[str, Any]]:
        """Its events as they come, until it ends, however it ends.

        Raises:
            OperatorError: It ended without a word; the SuperLink's are passed on.
            NetworkError: The SuperLink does not answer.
        """
        last: Mapping[str, Any] = {}
        for event in follow_events(self.directory.progress, offset=self.offset, is_over=self._is_over):
            last = event
            yield event
        if not last:
            raise OperatorError(
                "study.run_ended",
                f"The run {self.run_id} ended before it began: {has_ended(self.connection, self.run_id)}",
                next_step="Read the SuperLink's log; check that the coordinator's directory is on its host.",
            )

    def _is_over(self) -> bool:
        try:
            return has_ended(self.connection, self.run_id) is not None
        except NetworkError:  # it may be started again; the study goes on from its last round
            return False


@dataclass(frozen=True, slots=True)
class Afar:
    """A run whose progress is written elsewhere; the SuperLink tells no more of it than how it ended.

    Args:
        connection: The SuperLink.
        run_id: The run's.
    """

    connection: SuperLinkConnection
    run_id: int

    def wait(self, sleep: Callable[[float], None]) -> str:
        """Wait until it ends; returns how, in the SuperLink's words.

        Args:
            sleep: Waits, in seconds.

        Raises:
            OperatorError: There is no such run.
            NetworkError: The SuperLink does not answer.
        """
        while (how := has_ended(self.connection, self.run_id)) is None:
            sleep(OVER_INTERVAL_S)
        return how


def prepare_run(layout: AuthorityLayout, study: str, key: bytes, *, registrar: str) -> CoordinatorDirectory:
    """The directory that coordinates a published study; made where there is none yet.

    Args:
        layout: The authority's directory.
        study: The study's id.
        key: The coordinator's private key, PEM.
        registrar: `host:port` that serves the repository.

    Raises:
        OperatorError: The study is not published, or the directory coordinates an earlier one of that id.
    """
    data, model = published_files(layout, study)
    directory = run_directory(layout, study)
    if not (directory.path / "study.json").exists():
        root = (layout.repository / "1.root.json").read_bytes()
        directory.prepare(data, model, CoordinatorSettings(registrar=registrar), root=root, key=key)
    elif (directory.path / "study.json").read_bytes() != data:
        raise OperatorError(
            "study.another_run",
            f"{directory.path} coordinates another study of the id {study}.",
            next_step="Publish the study under an id of its own: boxes answer each round of a study once.",
        )
    return directory


def launch(connection: SuperLinkConnection, directory: CoordinatorDirectory) -> Launched:
    """Start a coordination at a SuperLink, or resume it.

    Raises:
        OperatorError: The study has ended, or the SuperLink refuses.
        NetworkError: It does not answer.
    """
    if directory.result.exists():
        raise OperatorError(
            "study.has_ended",
            f"The study in {directory.path} has ended; nothing was started.",
            next_step="Take its result with `seh-provision study result`.",
        )
    offset = directory.progress.stat().st_size if directory.progress.exists() else 0
    return Launched(connection, directory, launch_run(connection, directory.path), offset)


def launch_afar(connection: SuperLinkConnection, path: Path) -> Afar:
    """Start a coordination whose directory lies on the SuperLink's host, and not here.

    Args:
        connection: The SuperLink.
        path: The directory there; absolute.

    Raises:
        OperatorError: The SuperLink refuses.
        NetworkError: It does not answer.
    """
    return Afar(connection, launch_run(connection, path))
