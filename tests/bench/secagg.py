"""What secure aggregation costs in CPU and bytes: ours beside raw AES-CTR and beside stock Flower SecAgg+, in one run.

All figures are CPU time of single calls in one process, without transport or serialisation on either side: the round
over a real SuperLink is the section `secure_rounds`. Ours are the best of a few turns, the peer's are of one turn: they
are far beyond the noise.
"""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from agent.core.wire import encode_frame
from agent.secagg.codec import Contribution
from agent.secagg.masking import CHUNK_WORDS, Mask, add_masks
from agent.secagg.rules import agreement_threshold
from agent.secagg.terms import Dropout, default_colluders
from tests.bench.stock_secagg import Cost, stock_cost
from tests.bench.table import Row, Target, at_most
from tests.simulators.cohort import Cohort, make_terms

MILLION = 10**6
SHAPES = ((4, MILLION), (16, MILLION), (16, 10 * MILLION), (64, MILLION))
STOCK = "stock SecAgg+"
METRIC_WORDS = 206
_TURNS = 3

Result = TypeVar("Result")


def rows() -> Iterator[Row]:
    """Masking, bytes, memory, then a round of each shape, whole and with a fifth of the hospitals gone."""
    yield _masking_row()
    yield from _bytes_rows()
    yield _memory_row()
    for nodes, parameters in SHAPES:
        for dropped in sorted({0, nodes // 5}):
            yield from _round_rows(nodes, parameters, dropped)


def _masking_row() -> Row:
    """Mask bytes a second on one core, beside AES-256-CTR into one reused buffer and nothing else."""
    words, masks = 64 * CHUNK_WORDS, [Mask(os.urandom(32), subtract=k % 2 == 1) for k in range(16)]
    target = np.zeros(words, np.uint64)
    zeros, buffer = bytes(CHUNK_WORDS * 8), bytearray(CHUNK_WORDS * 8 + 16)
    encryptor = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16))).encryptor()

    def raw() -> None:
        for _ in range(64 * len(masks)):
            encryptor.update_into(zeros, buffer)

    size = words * 8 * len(masks) / 1e9
    ours = size / _best(lambda: add_masks(target, masks), turns=7)
    return Row(
        "mask generation, one core",
        ours,
        "GB/s",
        Target(">=", 4.0),
        peer=size / _best(raw, turns=7),
        peer_name="raw AES-256-CTR",
    )


def _bytes_rows() -> Iterator[Row]:
    """All that one hospital uploads in leg 1, a parameter; where a part may be summed, with shares of all its seeds."""
    for nodes, dropped in ((4, 0), (16, 0), (32, 0), (32, 1), (64, 0), (64, 1)):
        upload = _Round(nodes, MILLION, dropped).upload_bytes()
        name = f"upload of one hospital, {nodes} hospitals, 1 M parameters" + (", continue" if dropped else "")
        target = Target("<=", 2.7) if nodes <= 32 and not dropped else None
        yield Row(name, upload / MILLION, "B/parameter", target, peer=8.0, peer_name=STOCK)


def _memory_row() -> Row:
    """Memory beyond the update and the model, at its peak, over the packed vector."""
    made = _Round(4, MILLION, 0)
    session, request = made.cohort.hospitals[made.sites[0]].session, made.opened.masked_input_request()
    session.accept(request)
    # The journal's copy of the model goes to the disk; the simulator's would stay in memory.
    session._journal.record_model = lambda _: None  # type: ignore[method-assign, assignment]
    tracemalloc.start()
    session.masked_input(made.contribution)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    packed = made.opened.attempt.codec.total_words * 8
    return at_most("peak memory of leg 1 over the packed vector", peak / packed, "x", 3.0)


def _round_rows(nodes: int, parameters: int, dropped: int) -> Iterator[Row]:
    ours = [_Round(nodes, parameters, dropped).run() for _ in range(_TURNS if nodes * parameters < 10**8 else 2)]
    client, server = min(cost.client_s for cost in ours), min(cost.server_s for cost in ours)
    threshold = agreement_threshold(nodes, default_colluders(nodes))
    peer = stock_cost(nodes, threshold, _update(parameters), dropped=dropped)
    where = f"{nodes} hospitals, {parameters // MILLION} M parameters" + (f", {dropped} vanished" if dropped else "")
    whole = not dropped and parameters == MILLION
    yield Row(
        f"client CPU, all legs, {where}",
        client * 1e3,
        "ms",
        Target("<=", 15.0) if whole and nodes == 4 else None,
        peer=peer.client_s * 1e3,
        peer_name=STOCK,
    )
    yield Row(
        f"server CPU, {where}",
        server * 1e3,
        "ms",
        Target("<=", 60.0) if whole and nodes == 64 else None,
        peer=peer.server_s * 1e3,
        peer_name=STOCK,
    )


@dataclass
class _Round:
    """One round of ours, each side's CPU on its own account.

    Args:
        nodes: n.
        parameters: m.
        dropped: How many vanish before their upload.
    """

    nodes: int
    parameters: int
    dropped: int

    def __post_init__(self) -> None:
        going_on = {"dropout": Dropout.CONTINUE, "accept_differencing": True} if self.dropped else {}
        terms = make_terms(self.nodes, parameters=self.parameters, words=METRIC_WORDS, **going_on)
        self.cohort = Cohort(terms)
        self.sites = terms.sites
        self.cohort.advertise()
        self.model = bytes(4 * self.parameters)
        for hospital in self.cohort.hospitals.values():
            # The simulator's repeatable stream is slower than the operating system's.
            hospital.session._randomness = os.urandom
        self.contribution = Contribution(_update(self.parameters), 300, np.ones(METRIC_WORDS, np.uint64))
        self.client_s, self.server_s = 0.0, 0.0
        self.opened = self._server(partial(self.cohort.server.begin_round, 1, self.model))

    def upload_bytes(self) -> int:
        """Header and payload of one masked input."""
        session = self.cohort.hospitals[self.sites[0]].session
        session.accept(self.opened.masked_input_request())
        frame = session.masked_input(self.contribution).frame
        return len(encode_frame(frame))

    def run(self) -> Cost:
        """All legs."""
        request = self._server(self.opened.masked_input_request)
        for site in self.sites[self.dropped :]:
            session = self.cohort.hospitals[site].session
            self._client(site, partial(session.accept, request))
            upload = self._client(site, partial(session.masked_input, self.contribution))
            self._server(partial(self.opened.receive_masked_input, site, upload.frame))
        for site, asked in self._server(self.opened.agree_requests).items():
            reply = self._client(site, partial(self.cohort.hospitals[site].session.agree, asked))
            self._server(partial(self.opened.receive_agreement, site, reply))
        if self.opened.needs_reveal:
            self._reveal()
        self._server(self.opened.finish)
        return Cost(self.client_s, self.server_s)

    def _reveal(self) -> None:
        asked = self._server(self.opened.reveal_request)
        for site in self.opened.uploaded:
            reply = self._client(site, partial(self.cohort.hospitals[site].session.reveal, asked))
            self._server(partial(self.opened.receive_reveal, site, reply))

    def _client(self, site: str, call: Callable[[], Result]) -> Result:
        """Call on a hospital's account; the last one's is kept."""
        result, spent = _timed(call)
        self.client_s += spent if site == self.sites[-1] else 0.0
        return result

    def _server(self, call: Callable[[], Result]) -> Result:
        """Call on the server's account."""
        result, spent = _timed(call)
        self.server_s += spent
        return result


def _timed(call: Callable[[], Result]) -> tuple[Result, float]:
    started = time.process_time()
    return call(), time.process_time() - started


def _best(call: Callable[[], object], *, turns: int) -> float:
    """The least CPU seconds of a few turns."""
    return min(_timed(call)[1] for _ in range(turns))


def _update(parameters: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(1).normal(0, 0.01, parameters).astype(np.float32)
