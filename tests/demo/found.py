"""Founds a consortium on loopback, and hospitals that know nothing of it yet: each with its own key, file and agent."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from agent.core.clock import SystemClock
from agent.core.config import load_config
from agent.core.errors import SecureHealthError
from agent.enrolment.drop import StickReading, leave_reading
from agent.enrolment.record import EnrolmentFolder
from agent.identity.key import HardwareKey
from agent.service.control import renew_session
from agent.service.enrolling import make_enrolment
from agent.service.wiring import link_of
from agent.trust.study import PrivacyTerms, Study, study_digest
from agent.trust.terms import aggregation_terms, check_privacy
from provisioning.authority.superlink import flower_environment
from tests.demo.authority import Authority
from tests.demo.cohorts import Cohort, Hospital
from tests.demo.governing import DemoWitness
from tests.demo.keys import KeyMaker, describe_key
from tests.demo.live import View
from tests.demo.parts import Part, PartFailedError, stop_all, tail
from tests.simulators.governed import Deciding, write_policy
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
        steward: Who decides there, with a simulated security key.
        stick_in_s: When its token was handed in, on the monotonic clock.
        enrolled_s: How long it took from then to "Enrolled"; None before.
    """

    hospital: Hospital
    directory: Path
    key: HardwareKey
    steward: Deciding
    agent: Part | None = None
    stick_in_s: float = 0.0
    enrolled_s: float | None = None

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
        study_file: The study as it is published.
        model_file: The untrained model.
        authority: Its repository, registrar and hospitals' tools.
        superlink: The SuperLink.
        witness: Of the boxes' logs.
        witnessing: Its process.
        members: The hospitals.
    """

    directory: Path
    study: Study
    study_file: bytes
    model_file: bytes
    authority: Authority
    superlink: RunningSuperLink
    witness: DemoWitness
    witnessing: Part
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

    def hand_in(self, member: Member, view: View) -> None:
        """The technician's first action: the stick goes in; a key that needs a person is used on the spot.

        Raises:
            PartFailedError: The enrolment fails.
        """
        token = self.authority.issue_token(member.hospital.site)
        member.stick_in_s = time.monotonic()
        view.hospital(member.hospital.site, state="stick in")
        if member.key.capabilities.unattended:
            leave_reading(member.directory / "drop", StickReading(token=token))
            return
        config = load_config(member.directory / "agent.toml")
        enrolment = make_enrolment(
            config,
            member.key,
            link_of(config, member.key),
            SystemClock(),
            wait=threading.Event().wait,
            tell=lambda _: None,
        )
        _result_of(f"enrolment of {member.hospital.name}", lambda: enrolment.start(token))

    def is_enrolled(self, member: Member) -> bool:
        """Whether the box has found itself in its hospital's record."""
        if member.enrolled_s is None and EnrolmentFolder.of(member.state_directory).load_record() is not None:
            member.enrolled_s = time.monotonic() - member.stick_in_s
        return member.enrolled_s is not None

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
        self.authority.check()
        self.witnessing.check()
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
        study, study_file, model = _result_of(
            "study", lambda: _write_study(directory, cohort, hospitals, rounds=rounds, now=now, privacy=privacy)
        )
        kinds = {str(hospital.site): kind for hospital, kind in zip(hospitals, keys, strict=True)}
        maker = _result_of("keys", lambda: stack.enter_context(KeyMaker(directory, kinds)))
        members = _result_of("keys", lambda: tuple(_make_members(pool, directory, hospitals, maker, view)))
        authority = _result_of("consortium", lambda: Authority.found(directory / "authority", maker.certificates()))
        starting = pool.submit(_start_superlink, directory / "superlink", authority)
        stack.callback(_kill_started, starting)
        for member in members:
            _write_hospital(member, cohort, authority.root_digest, allow_plain=allow_plain)
        witness = _result_of("witness", lambda: _found_witness(directory / "witness", authority, now))
        _result_of("consortium", lambda: _fill_repository(authority, members, study, study_file, model, view))
        _result_of("registrar", lambda: stack.enter_context(authority.open_doors(directory / "home")))
        # Its first start reads the repository, which the registrar serves.
        witnessing = _result_of("witness", lambda: witness.start(directory / "home"))
        stack.callback(stop_all, [witnessing])
        superlink = _result_of("SuperLink", starting.result)
        return Consortium(
            directory, study, study_file, model, authority, superlink, witness, witnessing, members, stack.pop_all()
        )


def _found_witness(directory: Path, authority: Authority, now: datetime) -> DemoWitness:
    witness = DemoWitness.found(
        directory,
        root=authority.first_root,
        root_digest=authority.root_digest,
        registrar=authority.plan.registrar,
        now=now,
    )
    authority.name_witness(witness.record)
    return witness


def _start_superlink(directory: Path, authority: Authority) -> RunningSuperLink:
    port = int(authority.plan.superlink.rpartition(":")[2])
    return RunningSuperLink.start(directory, port=port, files=authority.superlink_files)


def _fill_repository(
    authority: Authority, members: Sequence[Member], study: Study, study_file: bytes, model: bytes, view: View
) -> None:
    offices = {str(member.hospital.site): member.directory / "office" for member in members}
    authority.admit(offices, {str(member.hospital.site): member.steward.key.record for member in members})
    for member in members:
        view.hospital(member.hospital.site, state="in the repository")
    authority.publish_study(study, study_file, model)


def _make_members(
    pool: ThreadPoolExecutor, directory: Path, hospitals: Sequence[Hospital], maker: KeyMaker, view: View
) -> list[Member]:
    def make(hospital: Hospital) -> Member:
        home = directory / hospital.site
        home.mkdir()
        technician = Technician(on_touch=lambda: view.note(f"{hospital.name}: {TOUCHES}"))
        key = maker.make(hospital.site, technician)
        view.hospital(hospital.site, state="key made", key=describe_key(key))
        return Member(hospital, home, key, Deciding(str(hospital.site)))

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


def _write_hospital(member: Member, cohort: Cohort, root_digest: str, *, allow_plain: bool) -> None:
    """What lies on a box before it is enrolled: its own hospital's file, and no word of any server."""
    home, source = member.directory, member.hospital.source
    (home / "data").mkdir()
    (home / "drop").mkdir()
    shutil.copyfile(source, home / "data" / source.name)
    (home / "catalog.toml").write_text(cohort.catalog_text(member.hospital, Path("data") / source.name))
    write_policy(
        home / "policy.toml", dataset=cohort.id, duo=["DUO:0000007"], limits={"diseases": list(cohort.diseases)}
    )
    (home / "agent.toml").write_text(
        _as_toml(
            {
                # Permits are for masked updates; an unprotected run shows what there is without them.
                **({} if allow_plain else {"governance": {"policy": "policy.toml"}}),
                "node": {"state_directory": "state", "environment": "demo"},
                "key": {"uri": member.key.uri},
                "data": {"catalog": "catalog.toml"},
                "enrolment": {"root_digest": root_digest, "drop": "drop"},
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
