"""A study's terms of secure aggregation, as node and coordinator both derive them from the signed study."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from agent.core.errors import OperatorError
from agent.secagg.accounting import PrivacySpent, spent_privacy, spent_record_privacy
from agent.secagg.terms import Dropout, NoiseTerms, RecordTerms, Terms, default_colluders
from agent.statements.roots import EvidenceClass
from agent.trust.metrics import Moments, moments_layout, training_layout
from agent.trust.study import Study


def aggregation_terms(study: Study, digest: str) -> Terms:
    """The bounds that every node of a study keeps.

    Args:
        study: As parsed.
        digest: SHA-256 of the signed file, hex.

    Raises:
        OperatorError: They contradict each other, or leave no safe cohort.
    """
    asked = study.secagg
    colluders = asked.colluders or default_colluders(len(study.sites))
    return Terms(
        study_id=study.id,
        study_digest=bytes.fromhex(digest),
        sites=tuple(sorted(study.sites)),
        colluders=colluders,
        minimum_sites=asked.minimum_sites or colluders + 2,
        rounds=study.rounds,
        parameters=study.model.parameters,
        words=len(training_layout(study).words),
        moment_words=len(moments_layout(study).words) if study.data.standardise == "federated" else 0,
        clip=asked.clip,
        bits=asked.bits,
        weight_cap=asked.weight_cap,
        dropout=Dropout(asked.dropout),
        blocks=asked.blocks,
        accept_differencing=asked.accept_differencing,
        max_step_l2=asked.max_step_l2,
        max_step_linf=asked.max_step_linf,
        privacy=_noise_terms(study),
        record=record_terms(study),
    )


def record_terms(study: Study) -> RecordTerms | None:
    """A study's noise in training; a function of the study alone, so that every hospital's records cost the same.

    A record's chance to take part in a step is `batch_size` over the fewest rows that a fitting data set has.
    """
    asked, plan = study.plan.record_privacy, study.plan
    if asked is None:
        return None
    rate = min(1.0, plan.batch_size / study.data.minimum_rows)
    steps = plan.steps if plan.epochs is None else plan.epochs * math.ceil(1 / rate)
    return RecordTerms(asked.epsilon, asked.delta, asked.noise_multiplier, rate, steps or 0)


def least_evidence(study: Study) -> EvidenceClass:
    """The least evidence that a study wants of every box's key."""
    return EvidenceClass[study.minimum_evidence.upper()]


def check_privacy(terms: Terms) -> PrivacySpent | None:
    """What the whole study's releases will cost a hospital or a record, if it adds noise.

    Raises:
        OperatorError: More than the study's own budget.
    """
    if terms.privacy is not None:
        spent, promised = spent_privacy(terms, rounds=terms.rounds), terms.privacy.epsilon
    elif terms.record is not None:
        spent, promised = spent_record_privacy(terms.record, rounds=terms.rounds), terms.record.epsilon
    else:
        return None
    if spent.epsilon > promised:
        raise OperatorError(
            "study.privacy_overspent",
            f"The study's {terms.rounds} rounds would cost epsilon {spent.epsilon:.2f}, and it promises at most "
            f"{promised:g}.",
            next_step="More noise, fewer rounds or a larger promise: ask the study's requester; nothing was done.",
        )
    return spent


def encode_configuration(moments: Mapping[str, Moments] | None) -> bytes:
    """What a round's request adds to the study: federation-wide moments, or nothing. Bound by the round's context."""
    if moments is None:
        return b""
    pairs = {name: [moment.mean, moment.deviation] for name, moment in moments.items()}
    return json.dumps(pairs, sort_keys=True, allow_nan=False).encode()


def _noise_terms(study: Study) -> NoiseTerms | None:
    asked = study.privacy
    if asked is None:
        return None
    return NoiseTerms(asked.l2_clip, asked.noise_multiplier, asked.epsilon, asked.delta)
