"""Founds a consortium on loopback: a CA, a SuperLink, a study, and hospitals, each with its own key, file and agent."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent.core.config import load_config
from agent.core.errors import SecureHealthError
from agent.identity.key import HardwareKey
from agent.service.control import renew_session
from agent.service.wiring import link_of
from agent.trust.roster import Roster, RosterNode, encode_roster
from agent.trust.study import PrivacyTerms, Study, study_digest
from agent.trust.terms import aggregation_terms, check_privacy
from provisioning.authority.superlink import flower_environment
from tests.demo.cohorts import Cohort, Hospital
from tests.demo.keys import KeyMaker, describe_key
from tests.demo.live import View
from tests.demo.parts import Part, PartFailedError, stop_all, tail
from tests.simulators.person import Technician
from tests.simulators.superlink import RunningSuperLink, SimulatorError

Result = TypeVar("Result")

TOUCHES = "the technician touches the security key"
AGENT = Path(sys.executable).parent / "seh-agent"
WORKERS = 4
"""Commands that run side by side: a little more than a small machine has cores, as each waits for the network too."""


@dataclass(slots=True)
class Member:
    """A hospital in the consortium.

    Args:
        hospital: Who.
        directory: All that belongs to it.
        key: Its node key.
        agent: Its agent process, once started.
    """

    hospital: Hospital
    directory: Path
    key: HardwareKey
    agent: Part | None = None

    @property
    def state_directory(self) -> Path:
        """The agent's own."""
        return self.directory / "state"


@dataclass(slots=True)
class Consortium:
    """A founded consortium; `close` ends all its processes.

    Args:
        directory: Where it lies.
        study: What it is to do.
        study_file: The study as the hospitals hold it.
        model_file: The untrained model.
        roster_file: Who speaks for whom.
        coordinator_key: The coordinator's private key, PEM.
        superlink: The SuperLink.
        members: The hospitals.
    """

    directory: Path
    study: Study
    study_file: bytes
    model_file: bytes
    roster_file: bytes
    coordinator_key: bytes = field(repr=False)
    superlink: RunningSuperLink
    members: tuple[Member, ...]
    _stack: ExitStack = field(repr=False)

    def start_agents(self, view: View) -> None:
        """Start every hospital's agent."""
        environment = flower_environment(self.directory / "home")
        for member in self.members:
            site = member.hospital.site
            member.agent = Part.start(
                f"agent of {member.hospital.name}",
                [str(AGENT), "run", "--config", str(member.directory / "agent.toml")],
                log=member.directory / "agent.log",
                environment=environment,
            )
            view.hospital(site, state="starting")

    def vouch(self, member: Member, view: View) -> None:
        """Have a key that needs a person vouch for its running agent; other keys do so by themselves.

        Raises:
            PartFailedError: The key or the agent refuses.
        """
        if member.key.capabilities.unattended:
            return
        view.hospital(member.hospital.site, state="waits for a touch")
        renew = partial(renew_session, member.state_directory, member.key)
        _result_of(f"{describe_key(member.key)} of {member.hospital.name}", renew)

    def check(self) -> None:
        """Raise if a process has ended by itself.

        Raises:
            PartFailedError: One has; the error names it.
        """
        for member in self.members:
            if member.agent is not None:
                member.agent.check()
        process = self.superlink.process
        if process is None or process.poll() is not None:
            log = self.superlink.directory / "superlink.log"
            raise PartFailedError("SuperLink", "it ended by itself", next_step=f"Read its log: {log}", log=tail(log))

    def close(self) -> None:
        """End everything, agents first, so that they can say goodbye to the SuperLink."""
        stop_all([member.agent for member in self.members if member.agent is not None])
        self._stack.close()


def found_consortium(
    directory: Path,
    cohort: Cohort,
    hospitals: Sequence[Hospital],
    *,
    rounds: int,
    keys: Sequence[str],
    now: datetime,
    view: View,
    privacy: PrivacyTerms | None = None,
    allow_plain: bool = False,
) -> Consortium:
    """Found it, up to the point where the agents can start.

    Args:
        directory: An empty directory.
        cohort: The data set.
        hospitals: Who takes part.
        rounds: Rounds of training.
        keys: The kind of each hospital's key.
        now: When the study is published.
        view: Where to report to.
        privacy: Noise on what is released, or none.
        allow_plain: Whether the boxes may send unprotected updates.

    Raises:
        PartFailedError: A part did not come up; nothing is left running.
    """
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(WORKERS, "found"))
        starting = pool.submit(RunningSuperLink.start, directory / "superlink")
        stack.callback(_kill_started, starting)
        study, study_file, model = _result_of(
            "study", lambda: _write_study(directory, cohort, hospitals, rounds=rounds, now=now, privacy=privacy)
        )
        kinds = {str(hospital.site): kind for hospital, kind in zip(hospitals, keys, strict=True)}
        maker = _result_of("keys", lambda: stack.enter_context(KeyMaker(directory, kinds)))
        members = _result_of("keys", lambda: tuple(_make_members(pool, directory, hospitals, maker, view)))
        roster, coordinator_key = _write_roster(directory, members)
        superlink = _result_of("SuperLink", starting.result)
        for member in members:
            _write_hospital(member, cohort, superlink, study, model, allow_plain=allow_plain)
        _register(pool, superlink, members, view)
        return Consortium(
            directory, study, study_file, model, roster, coordinator_key, superlink, members, stack.pop_all()
        )


def _make_members(
    pool: ThreadPoolExecutor, directory: Path, hospitals: Sequence[Hospital], maker: KeyMaker, view: View
) -> list[Member]:
    def make(hospital: Hospital) -> Member:
        home = directory / hospital.site
        home.mkdir()
        technician = Technician(on_touch=lambda: view.note(f"{hospital.name}: {TOUCHES}"))
        key = maker.make(hospital.site, technician)
        view.hospital(hospital.site, state="key made", key=describe_key(key))
        return Member(hospital, home, key)

    return list(pool.map(make, hospitals))


def _write_study(
    directory: Path,
    cohort: Cohort,
    hospitals: Sequence[Hospital],
    *,
    rounds: int,
    now: datetime,
    privacy: PrivacyTerms | None,
) -> tuple[Study, bytes, bytes]:
    model = cohort.model(cohort.data.width)
    study = cohort.study(hospitals, model, rounds=rounds, now=now, privacy=privacy)
    study_file = study.model_dump_json(indent=2).encode() + b"\n"
    if privacy is not None:
        check_privacy(aggregation_terms(study, study_digest(study_file)))
    (directory / "study.json").write_bytes(study_file)
    (directory / "model.onnx").write_bytes(model)
    return study, study_file, model


def _write_roster(directory: Path, members: Sequence[Member]) -> tuple[bytes, bytes]:
    """The roster that every hospital pins, and the private half of the coordinator's key that it names."""
    key = ec.generate_private_key(ec.SECP256R1())
    nodes = {member.hospital.site: (RosterNode(member.hospital.site, member.key.root()),) for member in members}
    roster = encode_roster(Roster(nodes, key.public_key()))
    (directory / "roster.json").write_bytes(roster)
    return roster, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_hospital(
    member: Member, cohort: Cohort, superlink: RunningSuperLink, study: Study, model: bytes, *, allow_plain: bool
) -> None:
    """What lies on a hospital's box: its own file and nobody else's, the study, the roster, and the configuration."""
    home, source = member.directory, member.hospital.source
    (home / "data").mkdir()
    shutil.copyfile(source, home / "data" / source.name)
    (home / "catalog.toml").write_text(cohort.catalog_text(member.hospital, Path("data") / source.name))
    shelf = home / "studies" / study.id
    shelf.mkdir(parents=True)
    shutil.copyfile(home.parent / "study.json", shelf / "study.json")
    (shelf / "model.onnx").write_bytes(model)
    shutil.copyfile(home.parent / "roster.json", home / "roster.json")
    (home / "agent.toml").write_text(
        _as_toml(
            {
                "node": {"site": member.hospital.site, "state_directory": "state", "environment": "demo"},
                "superlink": {
                    "address": superlink.address,
                    "root_certificates": str(superlink.root_certificate.resolve()),
                },
                "key": {"uri": member.key.uri},
                "data": {"catalog": "catalog.toml"},
                "studies": {"directory": "studies"},
                "roster": {"file": "roster.json"},
                "training": {"device": "auto"},
                "federation": {"allow_plain": allow_plain},
            }
        )
    )


def _as_toml(tables: Mapping[str, Mapping[str, str | bool]]) -> str:
    # A TOML basic string and a TOML boolean are written as in JSON.
    lines = []
    for table, entries in tables.items():
        lines += [f"[{table}]", *(f"{name} = {json.dumps(value)}" for name, value in entries.items()), ""]
    return "\n".join(lines)


def _register(pool: ThreadPoolExecutor, superlink: RunningSuperLink, members: Sequence[Member], view: View) -> None:
    def register(member: Member) -> None:
        link = link_of(load_config(member.directory / "agent.toml"), member.key)
        superlink.register(link, name=member.hospital.site)
        view.hospital(member.hospital.site, state="registered")

    _result_of("registration at the SuperLink", lambda: list(pool.map(register, members)))


def _result_of(part: str, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except SecureHealthError as error:
        raise PartFailedError(part, error.sentence, next_step=error.next_step) from error
    except (SimulatorError, RuntimeError, OSError) as error:
        raise PartFailedError(part, str(error), next_step="Run `make demo` again; if it repeats, report it.") from error


def _kill_started(starting: Future[RunningSuperLink]) -> None:
    if starting.exception() is None:
        starting.result().stop()
