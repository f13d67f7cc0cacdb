"""Governance in the demonstration: a witness, stewards with simulated security keys, and hospitals' verified logs."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.audit.bundle import verify_bundle
from agent.audit.leaves import UpdateSent
from agent.audit.witness import parse_witness
from agent.core.errors import OperatorError, SecureHealthError
from agent.service.running_box import RunningBox
from agent.trust.records import WitnessRecord
from provisioning.authority.superlink import flower_environment
from provisioning.witness.settings import SETTINGS_NAME, found_witness
from tests.demo.parts import Part, PartFailedError
from tests.demo.summary import LogRecord
from tests.simulators.superlink import HOST, free_port

if TYPE_CHECKING:
    from tests.demo.found import Consortium, Member
    from tests.demo.live import View

NAME: Final = "witness.demonstration/1"
APPROVES: Final = "the data steward approves the study with a simulated security key"
APPROVAL_LIMIT_S: Final = 30.0
LOG_NAME: Final = "audit.jsonl"


@dataclass(frozen=True, slots=True)
class DemoWitness:
    """The consortium's witness, of another party than its coordinator in a real one.

    Args:
        directory: Its own.
        record: As the consortium names it.
    """

    directory: Path
    record: WitnessRecord

    @classmethod
    def found(cls, directory: Path, *, root: bytes, root_digest: str, registrar: str, now: datetime) -> DemoWitness:
        """Make it; it does not run yet."""
        passphrase = "the demonstration's witness"
        record = found_witness(
            directory,
            name=NAME,
            address=f"{HOST}:{free_port()}",
            root=root,
            root_digest=root_digest,
            registrar=registrar,
            passphrase=passphrase,
            now=now,
        )
        (directory / "passphrase").write_text(passphrase, encoding="utf-8")
        settings = directory / SETTINGS_NAME
        text = settings.read_text(encoding="utf-8").replace("0.0.0.0", HOST)
        settings.write_text(f'passphrase_file = "passphrase"\n{text}', encoding="utf-8")
        return cls(directory, record)

    def start(self, home: Path) -> Part:
        """Run it; boxes ask it until it answers."""
        provision = Path(sys.executable).parent / "seh-provision"
        return Part.start(
            "witness",
            [str(provision), "witness", "run", "--config", str(self.directory / SETTINGS_NAME)],
            log=self.directory / "witness.log",
            environment=flower_environment(home),
        )


def approve_all(consortium: Consortium, view: View) -> None:
    """Every hospital's steward approves the study.

    Raises:
        PartFailedError: A box refuses.
    """
    with ThreadPoolExecutor(len(consortium.members), "steward") as pool:
        for each in [pool.submit(_approve, consortium, member, view) for member in consortium.members]:
            each.result()


def verify_logs(consortium: Consortium) -> dict[str, LogRecord]:
    """Export each hospital's audit log, and verify the file as an auditor would: offline, with the witness's key.

    Raises:
        PartFailedError: One does not hold.
    """
    return {member.hospital.site: _verified(consortium, member) for member in consortium.members}


def _approve(consortium: Consortium, member: Member, view: View) -> None:
    box, study = RunningBox(member.state_directory), consortium.study.id
    deadline_s = time.monotonic() + APPROVAL_LIMIT_S
    while True:
        try:
            member.steward.approve(box, study)
        except OperatorError as error:
            if error.code != "study.unknown" or time.monotonic() > deadline_s:
                raise _failed(f"approval at {member.hospital.name}", error) from error
            time.sleep(0.1)  # its study is on its way
        except SecureHealthError as error:
            raise _failed(f"approval at {member.hospital.name}", error) from error
        else:
            view.note(f"{member.hospital.name}: {APPROVES}")
            view.hospital(member.hospital.site, state="approved")
            return


def _verified(consortium: Consortium, member: Member) -> LogRecord:
    box, data = RunningBox(member.state_directory), bytearray()
    try:
        size, total = 0, 1
        while len(data) < total:
            piece = box.export(size, len(data))
            size, total = piece.size, piece.total
            data += piece.text.encode()
        (member.directory / LOG_NAME).write_bytes(data)
        held = verify_bundle(bytes(data), [parse_witness(consortium.witness.record.vkey)])
    except SecureHealthError as error:
        raise _failed(f"audit log of {member.hospital.name}", error) from error
    sent = [leaf for leaf in held.leaves if isinstance(leaf, UpdateSent)]
    return LogRecord(
        entries=len(held.leaves),
        receipts=len(sent),
        bytes_out=sum(leaf.bytes for leaf in sent),
        cosigned=held.cosigned[0].size,
        path=str(member.directory / LOG_NAME),
    )


def _failed(part: str, error: SecureHealthError) -> PartFailedError:
    return PartFailedError(part, error.sentence, next_step=error.next_step)
