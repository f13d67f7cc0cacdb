"""The decisions that keep one hospital's update secret: pure functions, the same for node, server and model checker."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from agent.secagg import refusals
from agent.secagg.terms import Dropout, Terms
from agent.secagg.transcript import NO_DIGEST, digest

_STEP_RUN = 1 << 16

Floats = npt.NDArray[np.float32]

OPEN_LOCK = b""
"""An attempt on which nothing was decided yet."""
ABORT_LOCK = digest("abort-lock")
"""An attempt that was given up; a survivors' digest under another label can never equal it."""


class Verdict(StrEnum):
    """What a set of survivors means."""

    COMPLETE = "complete"  # the whole cohort: reveal at once
    AGREE = "agree"  # a part that may be summed: agree first
    ABORT = "abort"  # too few, or a differencing risk: give the attempt up


def agreement_threshold(cohort: int, colluders: int) -> int:
    """T = floor((n + c) / 2) + 1: 2T > n + c, so no two sets of survivors both gather T signatures."""
    return (cohort + colluders) // 2 + 1


def check_cohort(terms: Terms, cohort: Collection[str], *, own: str) -> None:
    """Check who takes part: distinct sites of the study, among them our own, enough of them, in whole blocks.

    Raises:
        PeerProtocolError: A rule is broken.
    """
    for site in cohort:
        if site not in terms.sites:
            raise refusals.unknown_site(site)
    if len(set(cohort)) != len(cohort):
        raise refusals.duplicate_site(next(site for site in cohort if list(cohort).count(site) > 1))
    if own not in cohort:
        raise refusals.own_bundle_missing()
    if len(cohort) < terms.minimum_sites or len(cohort) < agreement_threshold(len(cohort), terms.colluders):
        raise refusals.cohort_too_small(len(cohort), terms.minimum_sites)
    if terms.dropout is Dropout.WAIT and not is_whole_blocks(terms, cohort):
        raise refusals.broken_block()


def is_whole_blocks(terms: Terms, sites: Collection[str]) -> bool:
    """Whether `sites` is a union of the study's blocks: then two such sets differ by whole blocks at least."""
    chosen = set(sites)
    return all(chosen.isdisjoint(block) or chosen.issuperset(block) for block in terms.whole_blocks)


def fewest_survivors(terms: Terms, cohort: Collection[str]) -> int:
    """max(T, n_min): fewer survivors are never summed."""
    return max(agreement_threshold(len(cohort), terms.colluders), terms.minimum_sites)


def may_sum_part(terms: Terms, cohort: Collection[str]) -> bool:
    """Whether any part of `cohort` may ever be summed; if not, shares of pairwise seeds are not even dealt."""
    fewest_lost = 1
    if terms.dropout is Dropout.WAIT:
        fewest_lost = min(len(block) for block in terms.whole_blocks if block[0] in cohort)
    return len(cohort) - fewest_lost >= fewest_survivors(terms, cohort)


def judge_survivors(terms: Terms, cohort: Collection[str], survivors: Collection[str]) -> Verdict:
    """What may be done with a sum over `survivors`, a part of `cohort`."""
    if len(survivors) < fewest_survivors(terms, cohort):
        return Verdict.ABORT
    if terms.dropout is Dropout.WAIT and not is_whole_blocks(terms, survivors):
        return Verdict.ABORT
    return Verdict.COMPLETE if len(survivors) == len(cohort) else Verdict.AGREE


def has_quorum(signers: Collection[str], cohort: Collection[str], colluders: int) -> bool:
    """Whether distinct members of `cohort` among `signers` reach T."""
    return len(set(signers) & set(cohort)) >= agreement_threshold(len(cohort), colluders)


def settle_lock(lock: bytes, wanted: bytes) -> bytes:
    """The one decision about an attempt: the first stands, aborting again repeats it.

    Args:
        lock: `OPEN_LOCK`, `ABORT_LOCK` or a digest of survivors.
        wanted: `ABORT_LOCK` or a digest of survivors.

    Raises:
        PeerProtocolError: Another decision stands.
    """
    if lock == OPEN_LOCK or lock == wanted == ABORT_LOCK:
        return wanted
    raise refusals.second_survivors() if wanted != ABORT_LOCK else refusals.locked_on_survivors()


def vanished_sites(cohort: Collection[str], survivors: Collection[str]) -> tuple[str, ...]:
    """The hospitals whose masks with survivors must be removed, in the cohort's order."""
    return tuple(site for site in cohort if site not in survivors)


def revealed_slots(cohort: Collection[str], survivors: Collection[str], dealer: str) -> tuple[str, ...]:
    """Which slots of a survivor's shares a holder may reveal: its self seed's, and those of seeds with the vanished.

    Never both the self seed and a pairwise seed with a survivor: together they would unmask the dealer alone.
    """
    return (dealer, *vanished_sites(cohort, survivors))


def check_undecided(lock: bytes) -> None:
    """Check that no attempt of a round was agreed to: its sum may be out, so the round is over, whatever comes later.

    Raises:
        PeerProtocolError: Survivors were locked.
    """
    if lock not in {OPEN_LOCK, ABORT_LOCK}:
        raise refusals.locked_on_survivors()


def check_turn(last: tuple[int, int] | None, wanted: tuple[int, int], *, same_attempt: bool = False) -> None:
    """Check (round, attempt) against the last one used: a later round, or the next attempt or any later of the same.

    Args:
        last: Round and attempt used last on this data set, or None.
        wanted: Those asked for.
        same_attempt: Whether the same attempt may be asked for again (aborts only).

    Raises:
        PeerProtocolError: They were used already.
    """
    if last is None or wanted > last or (same_attempt and wanted == last):
        return
    raise refusals.used_round(*wanted)


def check_step(terms: Terms, before: Floats, after: Floats, *, rounds: int) -> None:
    """Check that a model lies within the study's greatest step, times the rounds since the last one accepted.

    Args:
        terms: The study's.
        before: Shape (m,), float32: the model accepted last.
        after: Shape (m,), float32: the model received.
        rounds: Rounds between the two; 0 asks for equality.

    Raises:
        PeerProtocolError: It moved too far, or is not finite.
    """
    if rounds == 0:
        # By bytes: a zero of the other sign would be the same number, and another model to the cohorts' memory.
        if after.tobytes() != before.tobytes():
            raise refusals.model_step(rounds)
        return
    squares = 0.0
    for low in range(0, len(after), _STEP_RUN):
        with np.errstate(over="ignore", invalid="ignore"):
            step = after[low : low + _STEP_RUN] - before[low : low + _STEP_RUN]
        # NaN and infinity fail the comparison.
        if not max(float(step.max()), -float(step.min())) <= rounds * terms.max_step_linf:
            raise refusals.model_step(rounds)
        squares += float(np.dot(step, step))
    if not squares**0.5 <= rounds * terms.max_step_l2:
        raise refusals.model_step(rounds)


def check_model_cohort(known: Collection[str] | None, cohort: Collection[str], model: bytes) -> None:
    """Check that one model is never trained on by two different cohorts.

    Args:
        known: The cohort recorded for this model, or None.
        cohort: The one asked for.
        model: The model's digest; `NO_DIGEST` where a round has none.

    Raises:
        PeerProtocolError: They differ.
    """
    if known is not None and model != NO_DIGEST and set(known) != set(cohort):
        raise refusals.second_cohort()
