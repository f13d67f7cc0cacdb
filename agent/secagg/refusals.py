"""Every refusal of secure aggregation: one error a rule, naming the rule by its code and the peer where there is one.

No sentence and no detail holds a secret or anything that depends on patient data; the wire carries less still.
"""

from __future__ import annotations

from agent.core.errors import PeerProtocolError, SecureHealthError

_NODE = "Nothing secret was sent. Tell the consortium's operator; if it repeats, stop the study."
_SERVER = "The round produced no model. Exclude or repair the named hospital's node, then start the round again."
_RETRY = "Start the next attempt of the round, or wait until more hospitals answer."


def malformed(what: str) -> PeerProtocolError:
    """A message that does not parse."""
    return PeerProtocolError(
        "secagg.malformed", f"A message of secure aggregation could not be read: {what}.", next_step=_NODE
    )


def out_of_turn(state: str, event: str) -> PeerProtocolError:
    """A message that the state machine does not expect."""
    return PeerProtocolError(
        "secagg.out_of_turn",
        f"A message of secure aggregation came out of turn: {event} while {state}.",
        next_step=_NODE,
        state=state,
        event=event,
    )


def foreign_study(study: str) -> PeerProtocolError:
    """A message for another study."""
    return PeerProtocolError(
        "secagg.foreign_study", "A message names another study than its session.", next_step=_NODE, study=study
    )


def foreign_run() -> PeerProtocolError:
    """A message of another run: this node advertised no key in it."""
    return PeerProtocolError(
        "secagg.foreign_run", "A message belongs to a run in which this node advertised no key.", next_step=_NODE
    )


def foreign_context(peer: str = "coordinator") -> PeerProtocolError:
    """A message of another round, attempt or cohort."""
    return PeerProtocolError(
        "secagg.foreign_context", "A message belongs to another round than the open one.", next_step=_NODE, peer=peer
    )


def unknown_site(site: str) -> PeerProtocolError:
    """A hospital that the study does not name."""
    return PeerProtocolError(
        "secagg.unknown_site", "A hospital takes part that the study does not name.", next_step=_NODE, peer=site
    )


def duplicate_site(site: str) -> PeerProtocolError:
    """A hospital named twice."""
    return PeerProtocolError("secagg.duplicate_site", "A hospital is listed twice.", next_step=_NODE, peer=site)


def own_bundle_missing() -> PeerProtocolError:
    """This node is asked to upload to a cohort without it."""
    return PeerProtocolError(
        "secagg.own_bundle_missing",
        "This hospital is missing from the cohort that it is asked to join.",
        next_step=_NODE,
    )


def own_bundle_changed() -> PeerProtocolError:
    """This node's key was replaced."""
    return PeerProtocolError(
        "secagg.own_bundle_changed", "This hospital's own key was changed on the way to the others.", next_step=_NODE
    )


def untrusted_certificate(site: str, cause: SecureHealthError | None = None) -> PeerProtocolError:
    """A node that the roster does not hold, or whose certificate does not count, for `cause`."""
    why = cause.sentence if cause else "The roster that this node trusts does not hold it."
    step = "Nothing secret was sent. Compare the roster with that hospital's own record of its nodes."
    return PeerProtocolError(
        "secagg.untrusted_certificate",
        f"The node that speaks for {site} is not believed. {why}",
        next_step=cause.next_step if cause else step,
        peer=site,
        cause=cause.code if cause else "",
    )


def bad_bundle_signature(site: str) -> PeerProtocolError:
    """A key that its hospital did not sign for this run."""
    return PeerProtocolError(
        "secagg.bad_bundle_signature",
        f"The key in the name of {site} was not signed by its node for this run.",
        next_step=_NODE,
        peer=site,
    )


def weak_key(site: str) -> PeerProtocolError:
    """A key of low order, or not in canonical form."""
    return PeerProtocolError(
        "secagg.weak_key",
        f"The key in the name of {site} is of low order or not canonical.",
        next_step=_NODE,
        peer=site,
    )


def repeated_key(site: str) -> PeerProtocolError:
    """One key in the name of two hospitals."""
    return PeerProtocolError("secagg.repeated_key", "Two hospitals show the same key.", next_step=_NODE, peer=site)


def cohort_too_small(size: int, minimum: int) -> PeerProtocolError:
    """Too few hospitals to hide among."""
    return PeerProtocolError(
        "secagg.cohort_too_small",
        f"The cohort has {size} hospitals; the study needs {minimum}.",
        next_step=_NODE,
        size=size,
        minimum=minimum,
    )


def broken_block() -> PeerProtocolError:
    """A cohort that splits a block."""
    return PeerProtocolError(
        "secagg.broken_block",
        "The cohort is not made of whole blocks of the study's hospitals; two such cohorts would single one out.",
        next_step=_NODE,
    )


def unknown_round(round_number: int) -> PeerProtocolError:
    """A round that the study does not have."""
    return PeerProtocolError(
        "secagg.unknown_round", "The study has no such round.", next_step=_NODE, round=round_number
    )


def used_round(round_number: int, attempt: int) -> PeerProtocolError:
    """A round or attempt that was used already."""
    return PeerProtocolError(
        "secagg.used_round",
        f"Round {round_number}, attempt {attempt}, was already used on this data set.",
        next_step=_NODE,
        round=round_number,
        attempt=attempt,
    )


def abort_missing() -> PeerProtocolError:
    """A further attempt without proof that the last one is dead."""
    return PeerProtocolError(
        "secagg.abort_missing",
        "A further attempt was asked for without enough signatures that the last one was given up.",
        next_step=_NODE,
    )


def bad_abort(site: str) -> PeerProtocolError:
    """An abort that its hospital did not sign, or that is of another attempt."""
    return PeerProtocolError(
        "secagg.bad_abort", f"An abort in the name of {site} is not signed by its node.", next_step=_NODE, peer=site
    )


def other_sites() -> PeerProtocolError:
    """A further attempt with another cohort."""
    return PeerProtocolError(
        "secagg.other_sites", "A further attempt names other hospitals than the one before it.", next_step=_NODE
    )


def second_cohort() -> PeerProtocolError:
    """A model that another cohort trained on already."""
    return PeerProtocolError(
        "secagg.second_cohort",
        "A second cohort was asked to train on a model that another cohort already trained on.",
        next_step=_NODE,
    )


def model_length(length: int, expected: int) -> PeerProtocolError:
    """A model vector of the wrong length."""
    return PeerProtocolError(
        "secagg.model_length",
        "The model does not have the study's number of parameters.",
        next_step=_NODE,
        length=length,
        expected=expected,
    )


def model_step(rounds: int) -> PeerProtocolError:
    """A model too far from the last one accepted."""
    return PeerProtocolError(
        "secagg.model_step",
        "The model moved further than the study allows since this node last accepted one, or is not the study's first.",
        next_step=_NODE,
        rounds=rounds,
    )


def coordinator_signature() -> PeerProtocolError:
    """A round that the coordinator did not sign."""
    return PeerProtocolError(
        "secagg.coordinator_signature",
        "The coordinator's signature does not cover this model and the sum before it.",
        next_step=_NODE,
        peer="coordinator",
    )


def own_upload_missing() -> PeerProtocolError:
    """This node's upload was left out of the survivors that it is asked to agree to."""
    return PeerProtocolError(
        "secagg.own_upload_missing", "This hospital is asked to agree to a sum without its own upload.", next_step=_NODE
    )


def own_upload_changed() -> PeerProtocolError:
    """This node's upload was altered."""
    return PeerProtocolError(
        "secagg.own_upload_changed", "This hospital's own upload was changed on the way.", next_step=_NODE
    )


def bad_upload_signature(site: str) -> PeerProtocolError:
    """An upload that its hospital did not sign for this round."""
    return PeerProtocolError(
        "secagg.bad_upload_signature",
        f"The upload in the name of {site} was not signed by its node for this round.",
        next_step=_NODE,
        peer=site,
    )


def altered_share(site: str) -> PeerProtocolError:
    """A share that was changed between two hospitals."""
    return PeerProtocolError(
        "secagg.altered_share", f"The share that {site} sent here was changed on the way.", next_step=_NODE, peer=site
    )


def second_survivors() -> PeerProtocolError:
    """A second decision about one attempt."""
    return PeerProtocolError(
        "secagg.second_survivors", "A second set of survivors was asked for in one attempt.", next_step=_NODE
    )


def locked_on_survivors() -> PeerProtocolError:
    """An abort after agreement."""
    return PeerProtocolError(
        "secagg.locked_on_survivors", "An attempt cannot be given up after its survivors were agreed.", next_step=_NODE
    )


def too_few_agreements(found: int, needed: int) -> PeerProtocolError:
    """Too few signatures on the survivors."""
    return PeerProtocolError(
        "secagg.too_few_agreements",
        f"{found} hospitals agreed to the survivors; {needed} are needed.",
        next_step=_NODE,
        found=found,
        needed=needed,
    )


def bad_agreement(site: str) -> PeerProtocolError:
    """An agreement that its hospital did not sign."""
    return PeerProtocolError(
        "secagg.bad_agreement",
        f"An agreement in the name of {site} is not its node's signature over the locked survivors.",
        next_step=_NODE,
        peer=site,
    )


def revealed_already() -> PeerProtocolError:
    """A second request to reveal."""
    return PeerProtocolError(
        "secagg.revealed_already", "The shares of this round were already revealed, or are gone.", next_step=_NODE
    )


def seed_mismatch(first: str, second: str) -> PeerProtocolError:
    """Two hospitals that committed to different pairwise seeds: one of the two deviated."""
    return PeerProtocolError(
        "secagg.seed_mismatch",
        f"{first} and {second} committed to different seeds for their common mask; one of the two deviated.",
        next_step=_SERVER,
        peers=(first, second),
    )


def masked_digest(site: str) -> PeerProtocolError:
    """A masked vector that is not the one its hospital signed."""
    return PeerProtocolError(
        "secagg.masked_digest",
        f"The masked vector of {site} is not the one that it signed.",
        next_step=_SERVER,
        peer=site,
    )


def bad_share(site: str, dealer: str) -> PeerProtocolError:
    """A revealed share that is not the one its dealer committed to: the holder lies."""
    return PeerProtocolError(
        "secagg.bad_share",
        f"{site} revealed a share of {dealer} that {dealer} did not commit to.",
        next_step=_SERVER,
        peer=site,
        dealer=dealer,
    )


def bad_dealer(site: str, complaints: int) -> PeerProtocolError:
    """More hospitals complain about a dealer than can collude: the dealer lies."""
    return PeerProtocolError(
        "secagg.bad_dealer",
        f"{site} dealt shares that {complaints} hospitals could not use, more than may collude.",
        next_step=_SERVER,
        peer=site,
        complaints=complaints,
    )


def bad_commitment(site: str) -> PeerProtocolError:
    """A recovered seed that its dealer did not commit to, from shares that it did: the dealer lies."""
    return PeerProtocolError(
        "secagg.bad_commitment",
        f"The shares that {site} dealt do not recover the seed that it committed to.",
        next_step=_SERVER,
        peer=site,
    )


def bad_seed(site: str, other: str) -> PeerProtocolError:
    """A revealed pairwise seed that is not the one committed to."""
    return PeerProtocolError(
        "secagg.bad_seed",
        f"{site} revealed another seed for its mask with {other} than it committed to.",
        next_step=_SERVER,
        peer=site,
        other=other,
    )


def too_few_shares(site: str, found: int, needed: int) -> PeerProtocolError:
    """Too few shares to unmask."""
    return PeerProtocolError(
        "secagg.too_few_shares",
        f"{found} of {needed} shares that unmask the part of {site} arrived.",
        next_step="Start the next round: this one cannot be finished without the hospitals that fell silent.",
        peer=site,
        found=found,
        needed=needed,
    )


def too_few_survivors(found: int, needed: int) -> PeerProtocolError:
    """Survivors that may not be summed."""
    return PeerProtocolError(
        "secagg.too_few_survivors",
        f"{found} hospitals uploaded; they may not be summed without the rest ({needed} at least, in whole blocks).",
        next_step=_RETRY,
        found=found,
        needed=needed,
    )


def bad_check_word() -> PeerProtocolError:
    """A sum that does not satisfy its check word."""
    return PeerProtocolError(
        "secagg.bad_check_word",
        "The unmasked sum fails its check: some hospital masked another vector than the one it encoded.",
        next_step="The round produced no model. Start the next round; if it repeats, run by blocks to find the node.",
    )
