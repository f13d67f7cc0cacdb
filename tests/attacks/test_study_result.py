"""A study's result on its way to a researcher: nothing in it can be altered, left out or taken from another."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import OperatorError, PeerProtocolError, SecureHealthError
from agent.trust.model import parse_model
from provisioning.studies.bundle import CARD, CURVE, METRICS, MODEL, PROVENANCE, STUDY, pack, unpack, verify_result
from provisioning.studies.provenance import File, Provenance, sign_provenance
from provisioning.studies.result import make_result
from tests.unit.coordinator.test_secure import Federation


@dataclass(frozen=True, slots=True)
class Ended:
    """A study that has ended, and its result as its coordinator made it."""

    federation: Federation
    key: ec.EllipticCurvePrivateKey
    data: bytes

    @classmethod
    def run(cls, place: Path, **changes: Any) -> Ended:  # noqa: ANN401 - any part of a study
        federation = Federation(place, rounds=1, **changes)
        federation.run()
        protection = federation.directory.load().protection
        assert protection is not None
        return cls(federation, protection.key, make_result(federation.directory))

    def altered(self, name: str, change: Callable[[bytes], bytes]) -> bytes:
        """The same file, but for one of its parts."""
        files = unpack(self.data)
        return pack(files | {name: change(files[name])})


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return Ended.run(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, ended: Ended) -> Ended:
    """Another study under the same coordinator's key."""
    made = Ended.run(tmp_path_factory.mktemp("other"), id="another-study")
    key = (ended.federation.directory.path / "coordinator.key").read_bytes()
    (made.federation.directory.path / "coordinator.key").write_bytes(key)
    return Ended(made.federation, ended.key, make_result(made.federation.directory))


def refused(ended: Ended, data: bytes, **options: Any) -> SecureHealthError:  # noqa: ANN401 - as verify_result takes
    with pytest.raises(SecureHealthError) as caught:
        verify_result(data, ended.key.public_key(), **options)
    return caught.value


def statement_of(envelope: bytes) -> Provenance:
    return Provenance.model_validate_json(base64.b64decode(json.loads(envelope)["payload"]))


def better(model: bytes) -> bytes:
    """A model that runs, with other weights."""
    parsed = parse_model(model)
    return parsed.with_parameters(parsed.parameters + 1)


def praised(metrics: bytes) -> bytes:
    content = json.loads(metrics)
    content["final"]["auc"] = 0.99
    return json.dumps(content).encode()


def test_the_untouched_result_verifies_with_the_very_study(ended: Ended) -> None:
    result = verify_result(ended.data, ended.key.public_key(), study=unpack(ended.data)[STUDY])
    assert result.study.id == "played-study"
    assert result.provenance.counted.hospitals == 4


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (MODEL, better),
        (METRICS, praised),
        (CARD, lambda card: card.replace(b"No noise was added", b"Noise was added")),
        (CURVE, lambda curve: curve.replace(b"<circle", b"<circle onload='x()'")),
    ],
)
def test_altered_part(ended: Ended, name: str, change: Callable[[bytes], bytes]) -> None:
    data = ended.altered(name, change)
    assert data != ended.data
    error = refused(ended, data)
    assert error.code == "result.altered"
    assert name in error.sentence


def test_part_of_another_result_of_the_same_coordinator(ended: Ended, other: Ended) -> None:
    assert refused(ended, ended.altered(METRICS, lambda _: unpack(other.data)[METRICS])).code == "result.altered"
    envelope = unpack(other.data)[PROVENANCE]
    assert refused(ended, ended.altered(PROVENANCE, lambda _: envelope)).code == "result.altered"


def test_foreign_key_signs_the_same_statement(ended: Ended) -> None:
    foreign = ec.generate_private_key(ec.SECP256R1())

    def again(envelope: bytes) -> bytes:
        return sign_provenance(statement_of(envelope), foreign)

    assert refused(ended, ended.altered(PROVENANCE, again)).code == "result.foreign_key"


def test_foreign_signature_under_the_coordinator_s_name(ended: Ended) -> None:
    foreign = ec.generate_private_key(ec.SECP256R1())

    def again(envelope: bytes) -> bytes:
        own = json.loads(envelope)
        own["signatures"][0]["sig"] = json.loads(sign_provenance(statement_of(envelope), foreign))["signatures"][0][
            "sig"
        ]
        return json.dumps(own).encode()

    assert refused(ended, ended.altered(PROVENANCE, again)).code == "statements.unverified"


def test_statement_altered_under_its_signature(ended: Ended) -> None:
    def again(envelope: bytes) -> bytes:
        own, statement = json.loads(envelope), statement_of(envelope)
        own["payload"] = base64.b64encode(
            statement.model_copy(update={"subject": statement.subject[:1]}).payload()
        ).decode()
        return json.dumps(own).encode()

    assert refused(ended, ended.altered(PROVENANCE, again)).code == "statements.unverified"


def test_result_of_another_study(ended: Ended, other: Ended) -> None:
    error = refused(other, other.data, study=unpack(ended.data)[STUDY])
    assert error.code == "result.another_study"
    assert "another-study" in error.sentence


def test_study_beside_the_result_was_exchanged(ended: Ended, other: Ended) -> None:
    assert refused(ended, ended.altered(STUDY, lambda _: unpack(other.data)[STUDY])).code == "result.altered"

    # Even where the coordinator itself signed such a statement.
    files = unpack(ended.data) | {STUDY: unpack(other.data)[STUDY]}
    own = statement_of(files[PROVENANCE])
    subject = tuple(File.of(file.name, files[file.name]) for file in own.subject)
    signed = sign_provenance(own.model_copy(update={"subject": subject}), ended.key)
    assert refused(ended, pack(files | {PROVENANCE: signed})).code == "result.another_study"


def test_something_left_out_or_put_in(ended: Ended) -> None:
    files = unpack(ended.data)
    for chosen in ({name: files[name] for name in files if name != CARD}, files | {"setup.py": b"print()"}):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, data in chosen.items():
                archive.writestr(name, data)
        assert refused(ended, stream.getvalue()).code == "result.unreadable"
    assert refused(ended, ended.data[:-40]).code == "result.unreadable"
    assert refused(ended, b"").code == "result.unreadable"


def test_second_zip_before_or_behind_the_result(ended: Ended, other: Ended) -> None:
    for data in (other.data + ended.data, b"#!/bin/sh\n" + ended.data, ended.data + b"\0"):
        assert refused(ended, data).code == "result.unreadable"


def test_bomb_is_not_unpacked(ended: Ended) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in unpack(ended.data).items():
            archive.writestr(name, b"0" * (8 << 20) if name == MODEL else data)
    assert len(stream.getvalue()) < 1 << 16
    error = refused(ended, stream.getvalue())
    assert (error.code, "compressed" in error.sentence) == ("result.unreadable", True)


def test_part_beyond_its_limit(ended: Ended) -> None:
    error = refused(ended, ended.altered(CARD, lambda _: b"0" * ((1 << 20) + 1)))
    assert (error.code, CARD in error.sentence) == ("result.unreadable", True)


def test_trained_model_was_exchanged_before_the_result_was_made(tmp_path: Path) -> None:
    federation = Federation(tmp_path, rounds=1)
    federation.run()
    trained = federation.directory.trained_model
    trained.write_bytes(better(trained.read_bytes()))
    with pytest.raises(OperatorError) as caught:
        make_result(federation.directory)
    assert caught.value.code == "result.damaged"


def test_no_plain_statement_of_the_same_key_is_taken_for_a_result(ended: Ended) -> None:
    def again(envelope: bytes) -> bytes:
        own = json.loads(envelope)
        own["payloadType"] = "application/vnd.secur-e-health.session.v1+json"
        return json.dumps(own).encode()

    with pytest.raises(PeerProtocolError):
        verify_result(ended.altered(PROVENANCE, again), ended.key.public_key())
