"""What boxes, coordinators and strangers try with the witness of audit logs, and what a witness tries with a box."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from agent.audit.leaves import AgentStarted, LogOpened
from agent.audit.log import LOG_FILE_NAME, AuditLog, log_origin, retire
from agent.audit.note import COSIGNATURE, NoteKey, cosign, note_key, parse_checkpoint, sign_checkpoint
from agent.audit.witness import (
    ADD_CHECKPOINT,
    FRESH_S,
    check_witnessed,
    encode_submission,
    parse_witness,
    register,
    submit,
)
from agent.core.errors import HardwareError, NetworkError, PeerProtocolError, SecureHealthError
from agent.statements.envelope import encode_proof
from agent.statements.kinds import AuditLogKey
from agent.statements.roots import key_id, public_key_bytes
from agent.trust.records import ConsortiumRecord, WitnessRecord
from agent.trust.repository import TrustRepository
from provisioning.witness.app import FreshSource
from provisioning.witness.settings import found_witness, open_key
from provisioning.witness.store import WitnessStore
from tests.simulators.beating_box import BeatingBox, sign
from tests.simulators.clock import SetClock
from tests.simulators.repository import PlayedRepository, consortium
from tests.simulators.witness import NAME, PlayedWitness

A, B = "hospital-a", "hospital-b"


@dataclass
class Scene:
    """A consortium with a witness, and one box of hospital A with a log of three leaves."""

    place: Path
    clock: SetClock
    repository: PlayedRepository
    client: TrustRepository
    witness: PlayedWitness
    box: BeatingBox
    key: Ed25519PrivateKey

    @property
    def now_s(self) -> int:
        return int(self.clock.wall.timestamp())

    def log(
        self, name: str = "audit", *, box: BeatingBox | None = None, key: Ed25519PrivateKey | None = None
    ) -> AuditLog:
        box, key = box or self.box, key or self.key
        return AuditLog.open(self.place / name, key, log_origin("consortium-a", box.site, box.node, key))

    def opened(self, log: AuditLog, *, box: BeatingBox | None = None, previous: str = "", at_s: int = 0) -> LogOpened:
        box = box or self.box
        return LogOpened(
            at_s=at_s or self.now_s,
            consortium=self.repository.root_digest,
            site=box.site,
            node=box.node,
            key=log.key.public_key.hex(),
            previous=previous,
        )

    def begin(self, log: AuditLog, *, previous: str = "", at_s: int = 0, version: str = "1") -> AuditLog:
        log.append(self.opened(log, previous=previous, at_s=at_s))
        for _ in range(2):
            log.append(AgentStarted(at_s=self.now_s, version=version))
        return log

    def papers(self, log: AuditLog, *, box: BeatingBox | None = None, **changes: object) -> tuple[bytes, bytes]:
        """Statement and certificate."""
        box = box or self.box
        fields = {
            "consortium": self.repository.root_digest,
            "site": box.site,
            "node": box.node,
            "log_key": log.key.public_key.hex(),
            "origin": log.origin,
            "issued_s": self.now_s,
        }
        statement = sign(AuditLogKey.model_validate(fields | changes), box.session)
        certificate = box.certificate(
            issued_s=self.now_s - 10, expires_s=self.now_s + 3000, timestamp_version=self.repository.timestamp.version
        )
        return encode_proof(statement), encode_proof(certificate)

    def register(self, log: AuditLog, *, box: BeatingBox | None = None, **changes: object) -> None:
        register(log, self.witness.post, *self.papers(log, box=box, **changes))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    clock = SetClock(datetime.now(UTC))
    repository = PlayedRepository.found(clock)
    box = BeatingBox(repository.root_digest, A)
    for name, key in ((A, box.root), (B, ec.generate_private_key(ec.SECP256R1()))):
        site = repository.add_site(name)
        site.add_node(key.public_key())
        site.sign()
    repository.publish()
    with repository.client(tmp_path / "trust") as client:
        source = FreshSource(client, clock)
        with PlayedWitness.beside(tmp_path / "witness", clock, source=source) as witness:
            yield Scene(tmp_path, clock, repository, client, witness, box, Ed25519PrivateKey.generate())


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(SecureHealthError) as failure:
        call()
    return failure.value.code


def post(scene: Scene, log: AuditLog, old: int, size: int | None = None) -> tuple[int, bytes]:
    """Submit without the client's help."""
    head = log.checkpoint(size)
    return scene.witness.post(
        ADD_CHECKPOINT, encode_submission(old, log.consistency_proof(old, head.checkpoint.size), head)
    )


# The honest course.


def test_log_is_registered_and_cosigned(scene: Scene) -> None:
    with scene.begin(scene.log()) as log:
        scene.register(log)
        scene.register(log)  # the same again changes nothing
        cosigned = submit(log, scene.witness.post, scene.witness.key)
        assert (cosigned.size, cosigned.time_s) == (3, scene.now_s)
        log.append(AgentStarted(at_s=scene.now_s, version="2"))
        assert submit(log, scene.witness.post, scene.witness.key).size == 4
        assert check_witnessed(log, scene.witness.key, size=4, now_s=scene.now_s).size == 4
    with scene.log() as log:  # after a restart, the log still has it
        assert log.cosigned(scene.witness.key) is not None


def test_same_checkpoint_again_is_cosigned_with_a_new_time(scene: Scene) -> None:
    with scene.begin(scene.log()) as log:
        scene.register(log)
        submit(log, scene.witness.post, scene.witness.key)
        scene.clock.move(3600)
        assert submit(log, scene.witness.post, scene.witness.key).time_s == scene.now_s


def test_lost_answer_is_made_up_for(scene: Scene) -> None:
    """The witness has cosigned, the power goes before the box hears it."""
    with scene.begin(scene.log()) as log:
        scene.register(log)
        assert post(scene, log, 1)[0] == HTTPStatus.OK
        log.append(AgentStarted(at_s=scene.now_s, version="2"))
        assert submit(log, scene.witness.post, scene.witness.key).size == 4


# Split views, and disks put back.


def test_split_view_is_refused_with_422_and_named(scene: Scene) -> None:
    with scene.begin(scene.log()) as log, scene.log("other") as other:
        scene.register(log)
        submit(log, scene.witness.post, scene.witness.key)
        other.append(log.leaf(0))
        for version in ("2", "3", "4"):
            other.append(AgentStarted(at_s=scene.now_s, version=version))
        assert post(scene, other, 3)[0] == HTTPStatus.UNPROCESSABLE_ENTITY
        assert code_of(lambda: submit(other, scene.witness.post, scene.witness.key)) == "audit.split_view"


def test_other_root_of_the_same_size_is_refused_with_409(scene: Scene) -> None:
    with scene.begin(scene.log()) as log, scene.log("other") as other:
        scene.register(log)
        submit(log, scene.witness.post, scene.witness.key)
        other.append(log.leaf(0))
        for version in ("2", "3"):
            other.append(AgentStarted(at_s=scene.now_s, version=version))
        assert post(scene, other, 3) == (HTTPStatus.CONFLICT, b"3\n")
        assert code_of(lambda: submit(other, scene.witness.post, scene.witness.key)) == "audit.split_view"


def test_older_checkpoint_is_refused_with_the_known_size(scene: Scene) -> None:
    with scene.begin(scene.log()) as log:
        scene.register(log)
        submit(log, scene.witness.post, scene.witness.key)
        assert post(scene, log, 1, size=2) == (HTTPStatus.CONFLICT, b"3\n")


def test_rolled_back_disk_is_named(scene: Scene) -> None:
    with scene.begin(scene.log()) as log:
        scene.register(log)
    before = (scene.place / "audit" / LOG_FILE_NAME).read_bytes()
    with scene.log() as log:
        log.append(AgentStarted(at_s=scene.now_s, version="2"))
        submit(log, scene.witness.post, scene.witness.key)
    (scene.place / "audit" / LOG_FILE_NAME).write_bytes(before)
    with scene.log() as log:
        assert code_of(lambda: submit(log, scene.witness.post, scene.witness.key)) == "audit.rolled_back"


def test_log_deleted_and_begun_again_with_its_key_is_named(scene: Scene) -> None:
    with scene.begin(scene.log()) as log:
        scene.register(log)
        submit(log, scene.witness.post, scene.witness.key)
    with scene.begin(scene.log("anew"), at_s=scene.now_s + 1) as log:
        assert code_of(lambda: scene.register(log)) == "audit.history_hidden"
        assert code_of(lambda: submit(log, scene.witness.post, scene.witness.key)) == "audit.split_view"


def test_log_begun_again_with_another_key_must_name_the_end_of_the_one_before(scene: Scene) -> None:
    with scene.begin(scene.log()) as log:
        scene.register(log)
        early = log.checkpoint(2).note
        submit(log, scene.witness.post, scene.witness.key)
    last = retire(scene.place / "audit")
    forged = sign_checkpoint(parse_checkpoint(last.encode()).checkpoint, Ed25519PrivateKey.generate()).note
    for number, previous in enumerate(("", early, forged)):
        with scene.begin(scene.log(f"anew-{number}", key=Ed25519PrivateKey.generate()), previous=previous) as hiding:
            assert code_of(lambda log=hiding: scene.register(log)) == "audit.history_hidden"  # type: ignore[misc]
    with scene.begin(scene.log("anew", key=Ed25519PrivateKey.generate()), previous=last) as log:
        scene.register(log)
        assert submit(log, scene.witness.post, scene.witness.key).size == 3


def test_forgotten_box_may_begin_again(scene: Scene) -> None:
    with scene.begin(scene.log()) as log:
        scene.register(log)
    assert scene.witness.store.forget(A, scene.box.node) == 1
    with scene.begin(scene.log("anew", key=Ed25519PrivateKey.generate())) as log:
        scene.register(log)


# Strangers and neighbours.


def test_unknown_log_is_refused_with_404(scene: Scene) -> None:
    with scene.begin(scene.log()) as log:
        assert post(scene, log, 0)[0] == HTTPStatus.NOT_FOUND
        assert code_of(lambda: submit(log, scene.witness.post, scene.witness.key)) == "audit.unknown_log"


def test_checkpoint_of_a_foreign_key_is_refused_with_403(scene: Scene) -> None:
    with scene.begin(scene.log()) as log:
        scene.register(log)
        forged = sign_checkpoint(log.checkpoint().checkpoint, Ed25519PrivateKey.generate())
        assert scene.witness.post(ADD_CHECKPOINT, encode_submission(1, (), forged))[0] == HTTPStatus.FORBIDDEN
        swapped = log.checkpoint().note.replace("\n3\n", "\n4\n").encode()
        assert scene.witness.post(ADD_CHECKPOINT, b"old 1\n\n" + swapped)[0] == HTTPStatus.FORBIDDEN


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"old 1\n\n",
        b"old 01\n\n%s",
        b"old -1\n\n%s",
        b"old 9\n\n%s",
        b"new 1\n\n%s",
        b"old 1\nAAAA\n\n%s",
        b"old 1\n" + b"A" * 43 + b"=\n" + b"\n%s",
        b"old 1\n" + (b"A" * 43 + b"=\n") * 64 + b"\n%s",
        b"old 1\n%s",
        b"old 1\r\n\n%s",
    ],
)
def test_malformed_submission_is_refused_and_changes_nothing(scene: Scene, body: bytes) -> None:
    with scene.begin(scene.log()) as log:
        scene.register(log)
        status, _ = scene.witness.post(ADD_CHECKPOINT, body.replace(b"%s", log.checkpoint().note.encode()))
        assert status in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}
        assert submit(log, scene.witness.post, scene.witness.key).size == 3


def test_box_that_is_on_no_record_registers_nothing(scene: Scene) -> None:
    stranger = BeatingBox(scene.repository.root_digest, A)
    with scene.log(box=stranger) as log:
        log.append(scene.opened(log, box=stranger))
        assert code_of(lambda: scene.register(log, box=stranger)) == "audit.not_registered"


def test_revoked_box_registers_nothing(scene: Scene) -> None:
    site = scene.repository.played[A]
    site.revoke(scene.box.root.public_key())
    site.sign()
    scene.repository.publish()
    scene.clock.move(120)
    with scene.begin(scene.log()) as log:
        assert code_of(lambda: scene.register(log)) == "audit.not_registered"


@pytest.mark.parametrize(
    "changes", [{"site": B}, {"node": "another"}, {"consortium": "cd" * 32}, {"log_key": "ef" * 32}]
)
def test_log_key_in_another_boxs_name_is_refused(scene: Scene, changes: dict[str, Any]) -> None:
    with scene.begin(scene.log()) as log:
        assert code_of(lambda: scene.register(log, **changes)) == "audit.not_registered"


def test_box_enrolled_a_moment_ago_is_believed(scene: Scene) -> None:
    young = BeatingBox(scene.repository.root_digest, A)
    scene.witness.witness._source.current()
    site = scene.repository.played[A]
    site.add_node(young.root.public_key())
    site.sign()
    scene.repository.publish()
    scene.clock.move(3)
    with scene.log(box=young) as log:
        log.append(scene.opened(log, box=young))
        scene.register(log, box=young)


def test_origin_taken_by_another_box_is_refused(scene: Scene) -> None:
    """A neighbour of the same hospital wants its checkpoints counted as this box's."""
    neighbour = BeatingBox(scene.repository.root_digest, A)
    site = scene.repository.played[A]
    site.add_node(neighbour.root.public_key())
    site.sign()
    scene.repository.publish()
    scene.clock.move(3)
    with scene.begin(scene.log()) as log:
        scene.register(log)
        origin = log.origin
    key = Ed25519PrivateKey.generate()
    with AuditLog.open(scene.place / "neighbour", key, origin) as log:
        log.append(scene.opened(log, box=neighbour))
        assert code_of(lambda: scene.register(log, box=neighbour)) == "audit.history_hidden"


def test_origin_of_a_box_that_is_yet_to_come_taken_before_it(scene: Scene) -> None:
    neighbour = BeatingBox(scene.repository.root_digest, A)
    site = scene.repository.played[A]
    site.add_node(neighbour.root.public_key())
    site.sign()
    scene.repository.publish()
    scene.clock.move(3)
    with scene.begin(scene.log()) as log:
        with AuditLog.open(scene.place / "neighbour", Ed25519PrivateKey.generate(), log.origin) as squatter:
            squatter.append(scene.opened(squatter, box=neighbour))
            assert code_of(lambda: scene.register(squatter, box=neighbour)) == "audit.not_registered"
        scene.register(log)
        assert submit(log, scene.witness.post, scene.witness.key).size == log.size


# Witnesses that are none, or lie.


def answering(scene: Scene, answer: Callable[[AuditLog], str]) -> Callable[[AuditLog], str]:
    def code(log: AuditLog) -> str:
        return code_of(lambda: submit(log, lambda *_: (HTTPStatus.OK, answer(log).encode()), scene.witness.key))

    return code


def test_forged_cosignature_is_refused(scene: Scene) -> None:
    stranger = Ed25519PrivateKey.generate()

    def forged(log: AuditLog) -> str:
        line = cosign(log.checkpoint().checkpoint, NAME, stranger, time_s=scene.now_s)
        return type(line)(line.name, scene.witness.key.key_id, line.signature).line

    def of_another_time(log: AuditLog) -> str:
        line = cosign(log.checkpoint().checkpoint, NAME, scene.witness.witness._key, time_s=scene.now_s)
        later = (scene.now_s + 90_000).to_bytes(8, "big") + line.signature[8:]
        return type(line)(line.name, line.key_id, later).line

    with scene.begin(scene.log()) as log:
        assert answering(scene, forged)(log) == "audit.bad_cosignature"
        assert answering(scene, of_another_time)(log) == "audit.bad_cosignature"
        assert log.cosigned(scene.witness.key) is None


def test_cosignature_of_another_checkpoint_or_witness_is_refused(scene: Scene) -> None:
    def of_older(log: AuditLog) -> str:
        return cosign(log.checkpoint(2).checkpoint, NAME, scene.witness.witness._key, time_s=scene.now_s).line

    def by_another(log: AuditLog) -> str:
        return cosign(log.checkpoint().checkpoint, NAME, Ed25519PrivateKey.generate(), time_s=scene.now_s).line

    def by_another_name(log: AuditLog) -> str:
        return cosign(log.checkpoint().checkpoint, "other", Ed25519PrivateKey.generate(), time_s=scene.now_s).line

    with scene.begin(scene.log()) as log:
        assert answering(scene, of_older)(log) == "audit.bad_cosignature"
        assert answering(scene, by_another)(log) == "audit.not_cosigned"
        assert answering(scene, by_another_name)(log) == "audit.not_cosigned"


@pytest.mark.parametrize("late_s", [FRESH_S + 1, -121])
def test_old_cosignature_and_one_of_the_future_count_no_more(scene: Scene, late_s: int) -> None:
    with scene.begin(scene.log()) as log:
        scene.register(log)
        submit(log, scene.witness.post, scene.witness.key)
        check_witnessed(log, scene.witness.key, size=3, now_s=scene.now_s + FRESH_S)
        late = scene.now_s + late_s
        assert code_of(lambda: check_witnessed(log, scene.witness.key, size=3, now_s=late)) == "audit.cosignature_old"


def test_cosignature_kept_on_the_disk_is_believed_only_from_the_named_witness(scene: Scene) -> None:
    with scene.begin(scene.log()) as log, PlayedWitness.beside(scene.place / "own", scene.clock, name="own") as own:
        own.know(log)
        submit(log, own.post, own.key)
        named = code_of(lambda: check_witnessed(log, scene.witness.key, size=3, now_s=scene.now_s))
        assert named == "audit.not_witnessed"


def test_witness_with_the_boxs_own_key_is_refused(scene: Scene) -> None:
    with scene.begin(scene.log()) as log:
        own = NoteKey("own", COSIGNATURE, log.key.public_key)
        assert code_of(lambda: submit(log, scene.witness.post, own)) == "audit.own_witness"


def test_witness_that_forgot_is_named(scene: Scene) -> None:
    key = Ed25519PrivateKey.generate()
    with scene.begin(scene.log()) as log:
        with PlayedWitness.beside(scene.place / "first", scene.clock, key=key) as witness:
            witness.know(log)
            submit(log, witness.post, witness.key)
        with PlayedWitness.beside(scene.place / "second", scene.clock, key=key) as witness:
            witness.know(log)
            assert code_of(lambda: submit(log, witness.post, witness.key)) == "audit.witness_forgot"


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, b""), (302, b""), (200, b""), (200, b"\xff" * 40_000), (409, b""), (409, b"x\n"), (409, b"1e3\n")],
)
def test_answer_of_no_witness_is_no_cosignature(scene: Scene, status: int, body: bytes) -> None:
    with scene.begin(scene.log()) as log:
        code = code_of(lambda: submit(log, lambda *_: (status, body), scene.witness.key))
        assert code in {"audit.no_witness", "audit.bad_note"}
        assert log.cosigned(scene.witness.key) is None


def test_witness_that_sends_in_circles_is_left(scene: Scene) -> None:
    sizes = iter([b"1\n", b"2\n"] * 10)
    with scene.begin(scene.log()) as log:
        assert code_of(lambda: submit(log, lambda *_: (409, next(sizes)), scene.witness.key)) == "audit.no_witness"


# The coordinator's own.


def record(**changes: object) -> WitnessRecord:
    key = note_key(NAME, Ed25519PrivateKey.generate(), COSIGNATURE)
    fields = {"name": NAME, "vkey": key.vkey, "address": "witness.example:443", "root_certificates": "none"}
    return WitnessRecord.model_validate(fields | changes)


def with_witnesses(*witnesses: WitnessRecord) -> ConsortiumRecord:
    fields = json.loads(consortium().encode()) | {"witnesses": [json.loads(one.encode()) for one in witnesses]}
    return ConsortiumRecord.model_validate_json(json.dumps(fields))


def test_witness_at_the_coordinators_own_address_is_refused() -> None:
    assert with_witnesses(record()).witnesses
    with pytest.raises(ValidationError, match="another party's"):
        with_witnesses(record(address=consortium().superlink.address))


def test_witness_with_the_coordinators_key_is_refused() -> None:
    """Its key is ECDSA, which notes know as another type; a witness's is Ed25519 with its time."""
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    spki = public_key_bytes(key)
    for material in (b"\x02" + spki, b"\x04" + spki, b"\x02" + spki[-32:]):
        vkey = f"{NAME}+{key_id(key)[:8]}+{base64.b64encode(material).decode()}"
        with pytest.raises((ValidationError, PeerProtocolError)):
            parse_witness(record(vkey=vkey).vkey)


def test_logs_key_is_no_witnesss_key(scene: Scene) -> None:
    with scene.begin(scene.log()) as log:
        assert code_of(lambda: parse_witness(log.key.vkey)) == "audit.bad_witness"


def test_witness_named_twice_or_by_another_name_is_refused() -> None:
    one = record()
    with pytest.raises(ValidationError, match="twice"):
        with_witnesses(one, one)
    with pytest.raises(ValidationError, match="another one's"):
        record(name="other")


# The witness's own disk.


def test_nothing_is_cosigned_that_cannot_be_remembered(scene: Scene) -> None:
    with scene.begin(scene.log()) as log:
        scene.register(log)
        pages = scene.witness.store._database.execute("PRAGMA page_count").fetchone()[0]
        scene.witness.store._database.execute(f"PRAGMA max_page_count = {pages}")
        scene.witness.store._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        note = "x" * 100_000
        with pytest.raises(HardwareError) as failure, scene.witness.store.changing():
            scene.witness.store.advance(log.origin, 3, bytes(32), note)
        assert failure.value.code == "witness.not_stored"
        known = scene.witness.store.log(log.origin)
        assert known is not None
        assert known.size == 1
        assert submit(log, scene.witness.post, scene.witness.key).size == 3


def test_witness_never_begins_anew_over_its_memory(scene: Scene) -> None:
    assert code_of(lambda: WitnessStore.create(scene.place / "witness")) == "witness.has_state"
    assert code_of(lambda: WitnessStore.open(scene.place / "nowhere")) == "witness.no_state"
    assert code_of(lambda: WitnessStore.open(scene.place / "witness")) == "witness.in_use"


def test_two_submissions_at_once_leave_the_larger_one(scene: Scene) -> None:
    """tlog-witness's own race: the smaller checkpoint is checked first and stored last."""
    with scene.begin(scene.log()) as log:
        scene.register(log)
        for number in range(20):
            log.append(AgentStarted(at_s=scene.now_s, version=f"{number}"))
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda size=size: answers.append(post(scene, log, 1, size)[0])) for size in (5, 23)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == [HTTPStatus.OK, HTTPStatus.CONFLICT]
        assert submit(log, scene.witness.post, scene.witness.key).size == 23


def test_two_threads_of_a_box_never_take_each_other_for_a_rollback(scene: Scene) -> None:
    with scene.begin(scene.log()) as log:
        scene.register(log)
        failures: list[Exception] = []

        def work() -> None:
            try:
                for number in range(8):
                    log.append(AgentStarted(at_s=scene.now_s, version=f"{number}"))
                    submit(log, scene.witness.post, scene.witness.key)
            except NetworkError:
                pass  # sent in circles by the others: tried again later
            except SecureHealthError as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert submit(log, scene.witness.post, scene.witness.key).size == log.size


def test_witness_founded_whole_or_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = PlayedRepository.found(SetClock())
    arguments = {
        "name": NAME,
        "address": "witness.example:8444",
        "root": repository.files["1.root.json"],
        "root_digest": repository.root_digest,
        "registrar": "registrar.example:8443",
        "passphrase": "secret",
        "now": repository.clock.now(),
    }
    made = found_witness(tmp_path / "whole", **arguments)  # type: ignore[arg-type]
    assert b"ENCRYPTED" in (tmp_path / "whole" / "witness.pem").read_bytes()
    assert code_of(lambda: open_key(tmp_path / "whole" / "witness.pem", "wrong")) == "witness.bad_key"
    key = open_key(tmp_path / "whole" / "witness.pem", "secret")
    assert parse_witness(made.vkey) == note_key(NAME, key, COSIGNATURE)
    again = code_of(lambda: found_witness(tmp_path / "whole", **arguments))  # type: ignore[arg-type]
    assert again == "witness.has_state"
