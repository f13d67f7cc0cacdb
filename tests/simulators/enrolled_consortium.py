"""Hospitals whose boxes came bare, were enrolled by sticks, and have everything from a signed repository.

with EnrolledConsortium.grow(superlink, directory, rounds=3) as consortium:
    consortium.launch()
    consortium.wait_for("finished")
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typing_extensions import override

from agent.core.ids import SiteID
from agent.statements.roots import load_public_key
from agent.trust.study import parse_study
from provisioning.coordinator.directory import CoordinatorDirectory
from tests.simulators.hospital import RunningHospital
from tests.simulators.played_consortium import PlayedConsortium
from tests.simulators.played_study import study_files
from tests.simulators.secure_consortium import ROWS, STEPS, SecureConsortium, quick_settings, roster_of
from tests.simulators.superlink import RunningSuperLink, wait_until

_NUMBERS = itertools.count()


@dataclass(slots=True)
class EnrolledConsortium(SecureConsortium):
    """Four hospitals under one repository; `authority` is None only before `grow`."""

    authority: PlayedConsortium | None = None
    spares: list[RunningHospital] = field(default_factory=list)

    @classmethod
    def grow(
        cls,
        superlink: RunningSuperLink,
        place: Path,
        *,
        refresh_s: float = 1.0,
        training_s: float = 0.0,
        sections: str = "",
        prepare: Callable[[PlayedConsortium, dict[str, RunningHospital]], None] = lambda *_: None,
        **changes: Any,  # noqa: ANN401 - any part of a study
    ) -> Self:
        """Found a consortium, enrol its boxes, publish a study, and prepare its coordinator; the agents run.

        Args:
            superlink: Where all meet; others may use it too, so the sites have names of their own.
            place: Holds all directories.
            refresh_s: How often boxes ask the repository.
            training_s: How long a box trains.
            sections: Additional sections of every box's configuration, TOML.
            prepare: Called before the boxes start.
            changes: Replace top-level fields of the study.
        """
        number = next(_NUMBERS)
        sites = tuple(SiteID(f"enrolled-{number}-{letter}") for letter in "abcd")
        authority = PlayedConsortium(place / "registrar", superlink, sites=sites)
        authority.__enter__()
        boxes = {
            str(site): RunningHospital.bare(
                place / site,
                site=site,
                preset=authority.repository.root_digest,
                refresh_s=refresh_s,
                sections=sections,
            )
            for site in sites
        }
        terms: dict[str, Any] = {"weight_cap": max(ROWS)} | changes.pop("secagg", {})
        study, model = study_files(tuple(boxes), secagg=terms, **changes)
        key = authority.coordinator
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        directory = CoordinatorDirectory(place / "coordinator")
        settings = quick_settings(registrar=authority.address)
        assignment = directory.prepare(study, model, settings, root=authority.root, key=pem)
        roster = roster_of(boxes.values(), key.public_key())
        consortium = cls(superlink, boxes, roster, key, directory, assignment, authority=authority)
        for box, step, rows in zip(boxes.values(), STEPS, ROWS, strict=True):
            box.step, box.rows = step, rows
        try:
            prepare(authority, boxes)
            consortium.enrol(training_s=training_s)
            consortium.publish(study, model)
        except BaseException:
            consortium.__exit__(None, None, None)
            raise
        return consortium

    @property
    def registrar(self) -> PlayedConsortium:
        """Whoever endorses and publishes."""
        assert self.authority is not None
        return self.authority

    def enrol(self, *, training_s: float = 0.0) -> None:
        """Start every agent, put its stick in, and wait until it is online."""
        for box in self.boxes.values():
            box.start(training_s=training_s)
        for box in self.boxes.values():
            box.wait_for_link("waiting for enrolment", limit_s=60)
            box.insert_stick(self.registrar.token_for(SiteID(box.site)))
        for box in self.boxes.values():
            box.wait_for_link("online", limit_s=60)

    def publish(self, study: bytes, model: bytes) -> None:
        """Put the study into the repository, and wait until it lies on every box."""
        name = parse_study(study).id
        self.registrar.publish_study(name, study, model)
        for box in self.boxes.values():
            file = box.directory / "state" / "studies" / name / "study.json"
            wait_until(lambda file=file: file.exists() and file.read_bytes() == study, limit_s=20, what="the study")  # type: ignore[misc]

    def add_spare(self, letter: str, place: Path) -> RunningHospital:
        """Enrol a second box of a hospital, with the same data, and wait until it is online and has the study."""
        first = self.box(letter)
        preset = self.registrar.repository.root_digest
        spare = RunningHospital.bare(place, site=first.site, preset=preset, refresh_s=first.refresh_s)
        spare.step, spare.rows = first.step, first.rows
        self.spares.append(spare)
        spare.start()
        spare.wait_for_link("waiting for enrolment", limit_s=60)
        spare.insert_stick(self.registrar.token_for(SiteID(spare.site)))
        spare.wait_for_link("online", limit_s=60)
        folder = spare.directory / "state" / "studies" / self.assignment.study.id
        wait_until((folder / "study.json").exists, limit_s=20, what="the study arrives")
        return spare

    def revoke(self, letter: str) -> None:
        """Have a hospital revoke its box."""
        box = self.box(letter)
        self.registrar.revoke(SiteID(box.site), load_public_key(box.root.public_key))

    @override
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        SecureConsortium.__exit__(self, kind, value, trace)
        for spare in self.spares:
            spare.__exit__(kind, value, trace)
        self.registrar.__exit__(kind, value, trace)
