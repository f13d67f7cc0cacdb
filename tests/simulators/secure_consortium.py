"""Hospitals with real agents under one roster at a real SuperLink, and the directory of their coordinator.

with SecureConsortium.found(superlink, directory, rounds=3) as consortium:
    consortium.start()
    consortium.launch()
    consortium.wait_for("finished")
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import psutil
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent.core.ids import SiteID
from agent.trust.model import parse_model
from agent.trust.roster import Roster, RosterNode, encode_roster
from provisioning.coordinator.directory import Assignment, CoordinatorDirectory, CoordinatorSettings
from provisioning.coordinator.fab import has_ended, launch_run, stop_run
from provisioning.coordinator.progress import read_events
from tests.simulators.hospital import RunningHospital
from tests.simulators.played_node import register_quickly
from tests.simulators.played_study import PARAMETERS, study_files
from tests.simulators.superlink import RunningSuperLink, wait_until

STEPS = (0.5, -0.25, 0.125, 0.0625)
ROWS = (100, 50, 10, 40)
_NUMBERS = itertools.count()


@dataclass(slots=True)
class SecureConsortium:
    """Hospitals, what they agreed on, and who coordinates them."""

    superlink: RunningSuperLink
    boxes: dict[str, RunningHospital]
    roster: Roster
    key: ec.EllipticCurvePrivateKey
    directory: CoordinatorDirectory
    assignment: Assignment
    run_id: int = 0

    @classmethod
    def found(
        cls,
        superlink: RunningSuperLink,
        place: Path,
        *,
        letters: str = "abcd",
        key_uris: Mapping[str, str] | None = None,
        parameters: int = PARAMETERS,
        settings: CoordinatorSettings | None = None,
        federation: Mapping[str, object] | None = None,
        write: Callable[[tuple[str, ...]], tuple[bytes, bytes]] | None = None,
        **changes: Any,  # noqa: ANN401 - any part of a study
    ) -> Self:
        """Prepare boxes, roster and the coordinator's directory; register the boxes; start nothing.

        Args:
            superlink: Where all meet; others may use it too, so the sites have names of their own.
            place: Holds all directories.
            letters: Last letters of the sites' names, from `a` on; at most four.
            key_uris: Nodes' keys by the last letter of the site; by default made of software.
            parameters: Length of the model.
            settings: The coordinator's; by default it waits for nothing for long.
            federation: `[federation]` of every box.
            write: Gives study and model for the sites; by default the played ones.
            changes: Replace top-level fields of the study.
        """
        number = next(_NUMBERS)
        sites = tuple(f"secure-{number}-{letter}" for letter in letters)
        # Fixed-point weights are relative to the cap: near the largest hospital, little is lost to rounding.
        terms: dict[str, Any] = {"weight_cap": max(ROWS)} | changes.pop("secagg", {})
        study, model = write(sites) if write else study_files(sites, parameters=parameters, secagg=terms, **changes)
        boxes = {
            site: RunningHospital.prepare(
                place / site,
                superlink,
                site=site,
                study=study,
                model=model,
                key_uri=(key_uris or {}).get(site[-1], ""),
                settings={"allow_plain": False} | dict(federation or {}),
            )
            for site in sites
        }
        key = ec.generate_private_key(ec.SECP256R1())
        roster = roster_of(boxes.values(), key.public_key())
        for box, step, rows in zip(boxes.values(), STEPS, ROWS, strict=False):
            box.pin_roster(roster)
            box.step, box.rows = step, rows
            box.node_id = register_quickly(superlink, box.link, name=box.site)
        directory = CoordinatorDirectory(place / "coordinator")
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        assignment = directory.prepare(
            study, model, settings or quick_settings(), roster=encode_roster(roster), key=pem
        )
        return cls(superlink, boxes, roster, key, directory, assignment)

    @property
    def sites(self) -> tuple[str, ...]:
        """All, sorted."""
        return tuple(self.boxes)

    @property
    def mean(self) -> float:
        """By how much one round moves each parameter: the weighted mean of the hospitals' steps."""
        boxes = self.boxes.values()
        return sum((box.step or 0.0) * box.rows for box in boxes) / sum(box.rows for box in boxes)

    @property
    def trained(self) -> npt.NDArray[np.float32]:
        """The trained model's parameters."""
        return parse_model(self.directory.trained_model.read_bytes()).parameters

    @property
    def result(self) -> dict[str, Any]:
        """What the coordinator left at the end."""
        result: dict[str, Any] = json.loads(self.directory.result.read_bytes())
        return result

    def box(self, letter: str) -> RunningHospital:
        """One hospital's, by the last letter of its name."""
        return next(box for site, box in self.boxes.items() if site.endswith(letter))

    def start(self, *, training_s: float = 0.0) -> None:
        """Start all agents, and wait until they are there."""
        for box in self.boxes.values():
            box.start(training_s=training_s)
        for box in self.boxes.values():
            box.wait_for_link(limit_s=60)

    def launch(self) -> None:
        """Start the coordinator, or start it again."""
        self.run_id = launch_run(self.superlink.connection, self.directory.path)

    def kill_coordinator(self) -> None:
        """As a power cut would; waits until it is gone."""
        for process in serverapps(self.superlink):
            process.kill()
        self.wait_until_coordinator_is_gone()

    def stop_coordinator(self) -> None:
        """As an operator would; waits until it is gone."""
        stop_run(self.superlink.connection, self.run_id)
        self.wait_until_coordinator_is_gone()

    def wait_until_coordinator_is_gone(self) -> None:
        """Wait until no ServerApp runs at this SuperLink."""
        wait_until(lambda: not serverapps(self.superlink), limit_s=60, what="the ServerApp ends")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The coordinator's events of one name."""
        return [event for event in read_events(self.directory.progress)[0] if event["event"] == name]

    def wait_for(self, name: str, *, count: int = 1, limit_s: float = 90.0) -> list[dict[str, Any]]:
        """Wait for so many of the coordinator's events of one name."""
        try:
            wait_until(lambda: len(self.events(name)) >= count, limit_s=limit_s, what=f"{count} x {name}")
        except RuntimeError as error:
            progress = self.directory.progress
            told = progress.read_text() if progress.exists() else "no progress"
            raise AssertionError(f"{error}\n{told}\n{self.superlink.log[-4000:]}") from error
        return self.events(name)

    def wait_for_work(self, letter: str, work: str) -> None:
        """Wait until a box is at work on a message, named by stage and round: `masked-input 2`."""
        box, wanted = self.box(letter), f"{self.assignment.study.id} {work}"
        wait_until(
            lambda: box.status is not None and box.status.answering == wanted, limit_s=60, what=work, interval_s=0.02
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.run_id and not has_ended(self.superlink.connection, self.run_id):
            self.stop_coordinator()
        for box in self.boxes.values():
            if box.process is not None and box.process.poll() is None:
                box.kill()


def roster_of(boxes: Iterable[RunningHospital], coordinator: ec.EllipticCurvePublicKey) -> Roster:
    """A roster of one node a site, under each box's own hardware key."""
    nodes = {SiteID(box.site): (RosterNode(SiteID(box.site), box.root),) for box in boxes}
    return Roster(nodes, coordinator)


def quick_settings(**changes: Any) -> CoordinatorSettings:  # noqa: ANN401 - any setting
    """Settings of a coordinator that waits for nothing for long."""
    values = {"open_deadline_s": 60.0, "open_retry_s": 0.3, "gather_s": 0.5}
    return CoordinatorSettings.model_validate(values | changes)


def serverapps(superlink: RunningSuperLink) -> list[psutil.Process]:
    """The ServerApp processes that this SuperLink started."""
    assert superlink.process is not None
    found = []
    for process in psutil.Process(superlink.process.pid).children(recursive=True):
        try:
            if any("flwr-serverapp" in word for word in process.cmdline()) and process.status() != "zombie":
                found.append(process)
        except psutil.NoSuchProcess:
            time.sleep(0)  # it ended while we looked
    return found
