"""Whether this release works on this box: its key proves, hospitals in memory sum a secret, a worker trains one step.

Each part is what a study's round needs, at its smallest, and none needs the network or the hospital's data. Large
imports stand inside: a box that idles holds none of them before.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.config import AgentConfig
from agent.core.errors import SoftwareError
from agent.identity.key import HardwareKey
from agent.identity.link import opens_by_itself
from agent.statements.kinds import Possession
from agent.statements.roots import public_key_bytes, verify_with

if TYPE_CHECKING:
    from agent.secagg.attempt import Signer
    from agent.secagg.codec import CohortSum, Contribution
    from agent.secagg.node import NodeSession
    from agent.secagg.terms import Terms
    from agent.training.client import TrainingWorker

SITES: Final = ("site-a", "site-b", "site-c")
PARAMETERS: Final = 4
ROWS: Final = 40
START_LIMIT_S: Final = 120.0
CALL_LIMIT_S: Final = 60.0
MODEL: Final = base64.b85decode(
    "2nafW0SX!l0eA`qcV%g3Xmkn$VrgM>5&?Q51V?3UZ3+(x0eTVva3Tj&X=iP3X=D-wXL4b1Xety40SEyQ0YV0MWoc(<bV>vO0000g5C{Pf0YU^~"
    "X<>6p1ONa409qFc0eBJ;3J?eZ5)29k5(IK@cXJ8?2mxXV3IT8u1PTHO0YU@{01y%"
)
"""A logistic model of one field in ONNX, zero at first."""


def check_key(key: HardwareKey) -> None:
    """Have the key prove, where it does so without a person.

    Raises:
        SecureHealthError: It does not answer, or its proof does not hold.
    """
    public = key.public_key()
    if opens_by_itself(key):
        verify_with(public, key.prove(Possession(purpose="self-test", challenge=os.urandom(32).hex())))


def check_secure_aggregation() -> None:
    """Let three hospitals in memory sum secret vectors.

    Raises:
        SoftwareError: The sum is another.
        SecureHealthError: A step failed.
    """
    from agent.secagg.codec import Contribution  # noqa: PLC0415 - see above

    inputs = {
        site: Contribution(np.full(PARAMETERS, 0.1 * number, np.float32), ROWS, np.array([number], np.uint64))
        for number, site in enumerate(SITES)
    }
    total = _sum_up(inputs)
    wanted = np.mean([each.update for each in inputs.values()], axis=0)
    if total.weight != ROWS * len(SITES) or total.words.tolist() != [sum(range(len(SITES)))]:
        raise _wrong("hospitals in memory counted wrongly")
    if not np.allclose(total.update, wanted, atol=1e-2):
        raise _wrong("hospitals in memory summed to another vector")


def check_worker(config: AgentConfig, directory: Path) -> None:
    """Have a worker train a tiny model for one step, on rows that are made up.

    Args:
        config: The box's.
        directory: For the files, for as long as this takes.

    Raises:
        SoftwareError: No worker can be had, or what it trained is no step.
        SecureHealthError: It failed.
    """
    with TemporaryDirectory(dir=directory, prefix="self-test-") as folder, _tiny_worker(config, Path(folder)) as worker:
        result = worker.train(worker.initial_parameters, round_number=1)
    if not result.update.any() or result.weight < 1:
        raise _wrong("the training worker took a step that leads nowhere")


def _sum_up(inputs: Mapping[str, Contribution]) -> CohortSum:
    """One round of secure aggregation, each party with keys of its own."""
    from agent.secagg.server import ServerSession  # noqa: PLC0415 - see above

    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in (*inputs, "coordinator")}
    terms, roster = _terms(tuple(inputs)), _Roster(keys)
    nodes = {site: _node(site, terms, roster) for site in inputs}
    server = ServerSession(terms=terms, run=os.urandom(16), roster=roster, sign=_signer(keys["coordinator"]))
    for node in nodes.values():
        server.receive_bundle(node.advertise(server.advertise_request()))
    attempt = server.begin_round(1, bytes(4 * PARAMETERS), previous=bytes(32))
    for site, node in nodes.items():
        node.accept(attempt.masked_input_request())
        attempt.receive_masked_input(site, node.masked_input(inputs[site]).frame)
    for site, request in attempt.agree_requests().items():
        attempt.receive_agreement(site, nodes[site].agree(request))
    return attempt.finish().total


@dataclass(frozen=True, slots=True)
class _Roster:
    """Who speaks for whom here: the public key itself is the certificate.

    Args:
        keys: Of every party, by its name.
    """

    keys: Mapping[str, ec.EllipticCurvePrivateKey] = field(repr=False)

    def verify_certificate(self, site: str, certificate: bytes) -> ec.EllipticCurvePublicKey:
        """See `agent.secagg.attempt.Roster`."""
        public = self.keys[site].public_key()
        if public_key_bytes(public) != certificate:
            raise _wrong("a hospital in memory showed another's key")
        return public


def _node(site: str, terms: Terms, roster: _Roster) -> NodeSession:
    from agent.secagg.journal import MemoryJournal  # noqa: PLC0415 - see above
    from agent.secagg.node import NodeIdentity, NodeSession  # noqa: PLC0415 - see above

    key = roster.keys[site]
    return NodeSession(
        identity=NodeIdentity(site, public_key_bytes(key.public_key()), _signer(key)),
        terms=terms,
        roster=roster,
        coordinator=roster.keys["coordinator"].public_key(),
        journal=MemoryJournal(),
        initial_model=np.zeros(terms.parameters, np.float32),
        randomness=os.urandom,
    )


def _terms(sites: tuple[str, ...]) -> Terms:
    from agent.secagg.terms import Terms  # noqa: PLC0415 - see above

    return Terms(
        study_id="self-test",
        study_digest=hashlib.sha256(b"self-test").digest(),
        sites=sites,
        colluders=1,
        minimum_sites=len(sites),
        rounds=1,
        parameters=PARAMETERS,
        words=1,
        moment_words=0,
        weight_cap=ROWS,
    )


def _signer(key: ec.EllipticCurvePrivateKey) -> Signer:
    return lambda data: key.sign(data, ec.ECDSA(hashes.SHA256()))


def _tiny_worker(config: AgentConfig, folder: Path) -> TrainingWorker:
    from agent.data.catalog import Dataset  # noqa: PLC0415 - see above
    from agent.training.client import TrainingWorker  # noqa: PLC0415 - see above
    from agent.trust.study import Study  # noqa: PLC0415 - see above

    study = Study.model_validate(
        {
            "id": "self-test",
            "title": "Self-test",
            "purpose": "Whether this box can train.",
            "requester": "This box",
            "sites": SITES,
            "rounds": 1,
            "expires": datetime.max.replace(tzinfo=UTC),
            "model": {"digest": hashlib.sha256(MODEL).hexdigest(), "size_bytes": len(MODEL), "parameters": 2},
            "data": {
                "schema_name": "self-test",
                "features": [{"name": "x", "kind": "number", "unit": "1", "minimum": 0, "maximum": ROWS}],
                "label": {"field": "y"},
                "minimum_rows": 10,
            },
            "plan": {"learning_rate": 0.1, "batch_size": ROWS, "steps": 1},
        }
    )
    rows = "".join(f"{number},{int(number >= ROWS // 2)}\n" for number in range(ROWS))
    (folder / "rows.csv").write_text(f"x,y\n{rows}", encoding="ascii")
    (folder / "model.onnx").write_bytes(MODEL)
    dataset = Dataset.model_validate(
        {"id": "self-test", "schema": "self-test", "source": folder / "rows.csv", "fields": {"x": {"unit": "1"}}}
    )
    return TrainingWorker.start(
        study,
        folder / "model.onnx",
        dataset,
        device=config.training.device,
        start_timeout_s=START_LIMIT_S,
        call_timeout_s=CALL_LIMIT_S,
        address=config.training.worker,
    )


def _wrong(what: str) -> SoftwareError:
    return SoftwareError(
        "service.self_test",
        f"This release fails its own test on this box: {what}.",
        next_step="A box that was just updated goes back by itself; else report it with the agent's log.",
    )
