"""What a study fixes about secure aggregation; a node takes it from the signed study, never from messages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from agent.core.errors import OperatorError
from agent.secagg.transcript import DIGEST_BYTES

MAX_SITES = 100
MAX_PARAMETERS = 1 << 28
MAX_WORDS = 1 << 16
MIN_BITS = 8
MAX_BITS = 24
MAX_WEIGHT = 1 << 20


class Dropout(StrEnum):
    """What happens when a hospital falls silent after the masks were fixed."""

    WAIT = "wait"  # the attempt is aborted and the round waits for the whole cohort, or for whole blocks
    CONTINUE = "continue"  # the sum of those who are left is released


@dataclass(frozen=True, slots=True)
class NoiseTerms:
    """Hospital-level differential privacy by noise that the honest cohort shares out.

    Args:
        l2_clip: Euclidean bound on one hospital's update.
        noise_multiplier: Standard deviation of the honest cohort's noise over the sensitivity.
        epsilon: The whole study's budget; the achieved value is accounted beside it.
        delta: Its failure probability.
    """

    l2_clip: float
    noise_multiplier: float
    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True)
class RecordTerms:
    """Record-level differential privacy by noise in every gradient step of each hospital's training.

    Args:
        epsilon: The whole study's promise for one record; the achieved value is accounted beside it.
        delta: Its failure probability.
        noise_multiplier: Standard deviation of a step's noise over the bound on one record's gradient.
        rate: Chance of each record to take part in a step, the same at every hospital.
        steps: Steps a round, the same at every hospital.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    rate: float
    steps: int


@dataclass(frozen=True, slots=True)
class Terms:
    """A study's bounds, checked when they are built.

    Args:
        study_id: Names the study in messages.
        study_digest: SHA-256 of the signed study file, 32 bytes.
        sites: All hospitals of the study, sorted, distinct.
        colluders: c, the most hospitals assumed to conspire with the coordinator; fixed for the study.
        minimum_sites: n_min, the smallest cohort and the fewest survivors; at least c + 2.
        rounds: Training rounds; round 0 gathers moments, round `rounds` + 1 is the last evaluation.
        parameters: m, length of the model's flat vector.
        words: k, metric words of rounds 1..rounds + 1.
        moment_words: Metric words of round 0; 0 where the study has no round 0.
        clip: Greatest magnitude of one coordinate of an update.
        bits: q, quantisation bits a coordinate, sign included.
        weight_cap: Most rows counted for one hospital.
        dropout: See `Dropout`.
        blocks: Partition of `sites`, each of at least c + 2; empty for one block of all.
        accept_differencing: The steward accepted what `continue` without noise can reveal.
        max_step_l2: How far the model may move a round, Euclidean norm.
        max_step_linf: How far any coordinate may move a round.
        privacy: Noise, or None.
        record: Noise in training, or None.

    Raises:
        OperatorError: The bounds contradict each other.
    """

    study_id: str
    study_digest: bytes
    sites: tuple[str, ...]
    colluders: int
    minimum_sites: int
    rounds: int
    parameters: int
    words: int
    moment_words: int = 0
    clip: float = 1.0
    bits: int = 14
    weight_cap: int = 1000
    dropout: Dropout = Dropout.WAIT
    blocks: tuple[tuple[str, ...], ...] = ()
    accept_differencing: bool = False
    max_step_l2: float = 1e3
    max_step_linf: float = 10.0
    privacy: NoiseTerms | None = None
    record: RecordTerms | None = None

    def __post_init__(self) -> None:
        """Refuse bounds that contradict each other."""
        for holds, rule in (*self._site_rules(), *self._number_rules()):
            if not holds:
                raise OperatorError(
                    "secagg.bad_terms",
                    f"The study's terms of secure aggregation cannot be kept: {rule}.",
                    next_step="Ask the study's requester for corrected terms; nothing was started.",
                    study=self.study_id,
                )

    @property
    def whole_blocks(self) -> tuple[tuple[str, ...], ...]:
        """The blocks that a cohort is made of under `wait`."""
        return self.blocks or (self.sites,)

    def vector_length(self, round_number: int) -> int:
        """Coordinates that a hospital sends in a round: m in training rounds, else 0."""
        return self.parameters if 1 <= round_number <= self.rounds else 0

    def word_count(self, round_number: int) -> int:
        """Metric words that a hospital sends in a round."""
        return self.moment_words if round_number == 0 else self.words

    def model_length(self, round_number: int) -> int:
        """Coordinates of the model that a round's request carries: none in round 0."""
        return self.parameters if round_number else 0

    def has_round(self, round_number: int) -> bool:
        """Whether the study has such a round."""
        return (0 if self.moment_words else 1) <= round_number <= self.rounds + 1

    def _site_rules(self) -> tuple[tuple[bool, str], ...]:
        members = [site for block in self.blocks for site in block]
        smallest = self.colluders + 2
        return (
            (len(self.study_digest) == DIGEST_BYTES, "the study digest must be 32 bytes"),
            (tuple(sorted(set(self.sites))) == self.sites, "sites must be sorted and distinct"),
            (self.colluders >= 1, "at least one colluding site must be assumed"),
            (self.minimum_sites >= smallest, "a cohort needs at least two sites more than may collude"),
            (
                self.minimum_sites <= len(self.sites) <= MAX_SITES,
                f"between minimum_sites and {MAX_SITES} sites take part",
            ),
            (not self.blocks or tuple(sorted(members)) == self.sites, "blocks must partition the sites"),
            (all(len(block) >= smallest for block in self.blocks), "a block needs two sites more than may collude"),
            (
                self.dropout is Dropout.WAIT or self.privacy is not None or self.accept_differencing,
                "continuing without a silent hospital needs noise, or the stewards' acceptance of differencing",
            ),
        )

    def _number_rules(self) -> tuple[tuple[bool, str], ...]:
        return (
            (self.rounds >= 1, "a study has at least one round"),
            (0 < self.parameters <= MAX_PARAMETERS, "the number of parameters is out of range"),
            (0 <= self.words <= MAX_WORDS and 0 <= self.moment_words <= MAX_WORDS, "too many metric words"),
            (MIN_BITS <= self.bits <= MAX_BITS, f"quantisation takes {MIN_BITS} to {MAX_BITS} bits"),
            (1 <= self.weight_cap <= MAX_WEIGHT, "the weight cap is out of range"),
            (
                _is_positive(self.clip, self.max_step_l2, self.max_step_linf),
                "clip and steps must be positive and finite",
            ),
            (self.privacy is None or _are_noise_terms(self.privacy), "the noise terms are out of range"),
            (self.record is None or _are_record_terms(self.record), "the terms of noise in training are out of range"),
        )


def default_colluders(sites: int) -> int:
    """C where a study states none: max(1, floor((sites - 1) / 3))."""
    return max(1, (sites - 1) // 3)


def _is_positive(*values: float) -> bool:
    return all(math.isfinite(value) and value > 0 for value in values)


def _are_noise_terms(terms: NoiseTerms) -> bool:
    return _is_positive(terms.l2_clip, terms.noise_multiplier, terms.epsilon, terms.delta) and terms.delta < 1


def _are_record_terms(terms: RecordTerms) -> bool:
    numbers = _is_positive(terms.epsilon, terms.delta, terms.noise_multiplier, terms.rate)
    return numbers and terms.delta < 1 and terms.rate <= 1 and terms.steps >= 1
