"""The witness as another party runs it: made by a command, asked over HTTPS, killed, started again."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from http import HTTPStatus

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from agent.audit.leaves import AgentStarted, LogOpened
from agent.audit.log import AuditLog, log_origin
from agent.audit.witness import ADD_CHECKPOINT, REGISTER, encode_submission, parse_witness, register, submit
from agent.core.clock import SystemClock
from agent.core.errors import OperatorError, PeerProtocolError
from agent.statements.envelope import encode_proof
from agent.statements.kinds import AuditLogKey
from agent.trust.records import WitnessRecord
from provisioning.cli.main import app
from tests.simulators.beating_box import BeatingBox, sign
from tests.simulators.repository import PlayedRepository
from tests.simulators.repository_server import served_repository
from tests.simulators.superlink import free_port
from tests.simulators.witness import NAME, PASSPHRASE, RunningWitness

pytestmark = pytest.mark.slow

SITE = "hospital-a"
NOW_S = int(datetime.now(UTC).timestamp())


@pytest.fixture(scope="module")
def repository() -> PlayedRepository:
    return PlayedRepository.found(SystemClock())


@pytest.fixture(scope="module")
def box(repository: PlayedRepository) -> BeatingBox:
    box = BeatingBox(repository.root_digest, SITE)
    site = repository.add_site(SITE)
    site.add_node(box.root.public_key())
    site.sign()
    repository.publish()
    return box


@pytest.fixture(scope="module")
def witness(
    repository: PlayedRepository, box: BeatingBox, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningWitness]:
    place = tmp_path_factory.mktemp("witness")
    (place / "1.root.json").write_bytes(repository.files["1.root.json"])
    (place / "passphrase").write_text(PASSPHRASE, encoding="utf-8")
    with served_repository(repository, place / "tls") as served:
        arguments = ["witness", "init", "--directory", str(place / "own"), "--name", NAME]
        arguments += ["--address", f"127.0.0.1:{free_port()}", "--root", str(place / "1.root.json")]
        arguments += ["--registrar", f"localhost:{served.port}", "--passphrase-file", str(place / "passphrase")]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        record = WitnessRecord.model_validate_json((place / "own" / "witness.json").read_bytes())
        assert repository.root_digest in result.output
        assert record.vkey in result.output
        with RunningWitness.over(place / "own", record) as witness:
            yield witness


@pytest.fixture(scope="module")
def log(
    repository: PlayedRepository, box: BeatingBox, witness: RunningWitness, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AuditLog]:
    key = Ed25519PrivateKey.generate()
    origin = log_origin("consortium-a", SITE, box.node, key)
    with AuditLog.open(tmp_path_factory.mktemp("audit"), key, origin) as log:
        opened = LogOpened(
            at_s=NOW_S, consortium=repository.root_digest, site=SITE, node=box.node, key=log.key.public_key.hex()
        )
        log.append(opened)
        statement = AuditLogKey(
            consortium=repository.root_digest,
            site=SITE,
            node=box.node,
            log_key=log.key.public_key.hex(),
            origin=origin,
            issued_s=NOW_S,
        )
        version = repository.timestamp.version
        certificate = box.certificate(timestamp_version=version)
        register(log, witness.post, encode_proof(sign(statement, box.session)), encode_proof(certificate))
        yield log


def test_log_is_cosigned_over_https(witness: RunningWitness, log: AuditLog) -> None:
    log.append(AgentStarted(at_s=NOW_S, version="1"))
    assert submit(log, witness.post, parse_witness(witness.record.vkey)).size == log.size


def test_statuses_and_media_type_are_the_specified_ones(witness: RunningWitness, log: AuditLog) -> None:
    log.append(AgentStarted(at_s=NOW_S, version="2"))
    size = submit(log, witness.post, witness.key).size
    answer = witness.ask(ADD_CHECKPOINT, encode_submission(0, (), log.checkpoint()))
    assert answer.status_code == HTTPStatus.CONFLICT
    assert answer.headers["content-type"] == "text/x.tlog.size"
    assert answer.text == f"{size}\n"
    assert witness.ask(REGISTER, b"{}").status_code == HTTPStatus.BAD_REQUEST
    assert witness.ask(ADD_CHECKPOINT, b"x" * (1 << 20)).status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


def test_stranger_is_refused_over_https(witness: RunningWitness, log: AuditLog) -> None:
    stranger = BeatingBox("ab" * 32, SITE)
    papers = encode_proof(stranger.certificate()), encode_proof(sign(stranger.heartbeat(), stranger.session))
    with pytest.raises(PeerProtocolError) as failure:
        register(log, witness.post, papers[1], papers[0])
    assert failure.value.code == "audit.not_registered"


def test_witness_that_was_killed_remembers(witness: RunningWitness, log: AuditLog) -> None:
    log.append(AgentStarted(at_s=NOW_S, version="3"))
    submit(log, witness.post, witness.key)
    witness.stop(signal.SIGKILL)
    witness.start()
    older = encode_submission(1, log.consistency_proof(1, 2), log.checkpoint(2))
    assert witness.post(ADD_CHECKPOINT, older) == (HTTPStatus.CONFLICT, f"{log.size}\n".encode())
    log.append(AgentStarted(at_s=NOW_S, version="4"))
    assert submit(log, witness.post, witness.key).size == log.size


def test_running_witness_lets_nobody_touch_its_memory(witness: RunningWitness, box: BeatingBox) -> None:
    arguments = ["witness", "forget", "--config", str(witness.directory / "witness.toml"), "--site", SITE]
    result = CliRunner().invoke(app, [*arguments, "--node", box.node])
    assert isinstance(result.exception, OperatorError)
    assert result.exception.code == "witness.in_use"


def test_its_key_lies_encrypted_and_its_log_names_no_secret(witness: RunningWitness) -> None:
    assert (witness.directory / "witness.pem").stat().st_mode & 0o077 == 0
    told = (witness.directory / "witness.log").read_text(encoding="utf-8")
    assert PASSPHRASE not in told
    assert "witness_ready" in told
    assert json.loads((witness.directory / "witness.json").read_text(encoding="utf-8"))["name"] == NAME
