"""Attacks through the model that the server sends (Pasquini et al. 2022 and after)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agent.secagg.masking import Mask
from tests.simulators.cohort import PARAMETERS, Cohort, make_key, make_signer, make_terms, relay
from tests.simulators.malicious_server import MaliciousServer, refused

VICTIM = "site-000"


def send(server: MaliciousServer, model: np.ndarray, round_number: int = 1) -> None:
    opened = server.open(round_number, model=model.astype(np.float32))
    server.cohort.hospitals[VICTIM].session.accept(relay(opened.frame))


@pytest.mark.parametrize("shift", [1e-7, 1.0, -1e-30])
def test_first_round_trains_exactly_the_study_s_own_model(server: MaliciousServer, shift: float) -> None:
    model = np.zeros(PARAMETERS)
    model[17] = shift
    with refused("model_step"):
        send(server, model)


def test_round_2_at_first_sight_is_measured_from_the_study_s_own_model(server: MaliciousServer) -> None:
    with refused("model_step"):
        send(server, np.full(PARAMETERS, 10.1), round_number=2)
    send(server, np.full(PARAMETERS, 9.9), round_number=2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_models_that_are_not_numbers(server: MaliciousServer, bad: float) -> None:
    model = np.zeros(PARAMETERS)
    model[0] = bad
    with refused("model_step"):
        send(server, model, round_number=2)


def test_step_too_far_in_one_coordinate(server: MaliciousServer) -> None:
    server.upload(VICTIM, server.open(1))
    model = np.zeros(PARAMETERS)
    model[3] = -10.5
    with refused("model_step"):
        send(server, model, round_number=2)


def test_step_too_far_in_length() -> None:
    server = MaliciousServer.over(Cohort(make_terms(4, max_step_l2=1.0)))
    server.upload(VICTIM, server.open(1))
    with refused("model_step"):
        send(server, np.full(PARAMETERS, 0.2), round_number=2)
    send(server, np.full(PARAMETERS, 0.15), round_number=2)


def test_missed_rounds_widen_the_step_and_no_more(server: MaliciousServer) -> None:
    server.upload(VICTIM, server.open(1))
    with refused("model_step"):
        send(server, np.full(PARAMETERS, 20.5), round_number=3)
    send(server, np.full(PARAMETERS, 19.5), round_number=3)


def test_the_step_is_measured_from_what_was_accepted_not_from_what_was_asked(server: MaliciousServer) -> None:
    """Requests that were refused, or never uploaded to, do not drag the bound along."""
    server.upload(VICTIM, server.open(1))
    for _ in range(3):
        send(server, np.full(PARAMETERS, 9.0), round_number=2)
    with refused("model_step"):
        send(server, np.full(PARAMETERS, 18.0), round_number=2)


@pytest.mark.parametrize("length", [0, PARAMETERS - 1, PARAMETERS + 1])
def test_models_of_another_length(server: MaliciousServer, length: int) -> None:
    with refused("model_length") as error:
        send(server, np.zeros(length))
    assert error[0].details["expected"] == PARAMETERS


def test_a_model_in_the_round_of_moments(server: MaliciousServer) -> None:
    frame = replace(server.open(0).frame, payload=bytes(4 * PARAMETERS))
    with refused("model_length"):
        server.cohort.hospitals[VICTIM].session.accept(relay(frame))


def test_two_models_sent_leave_noise(server: MaliciousServer) -> None:
    """Round 2 with one model for the victim and another for the rest: masks do not cancel, uploads do not verify."""
    ours, theirs = server.open(2), server.open(2, model=np.full(PARAMETERS, 1e-3, np.float32))
    server.upload(VICTIM, ours)
    for site in server.sites[1:]:
        server.upload(site, theirs)
    relayed = server.relayed("site-001", theirs, server.sites[1:])
    victim = server.uploads[ours.attempt.context, VICTIM].upload

    def splice(_: object) -> list[object]:
        return [replace(relayed[0], upload=victim, share=b"s" * 48), *relayed]

    with refused("bad_upload_signature") as error:
        server.agree("site-001", theirs, server.sites[1:], tamper=splice)  # type: ignore[arg-type]
    assert error[0].details["peer"] == VICTIM
    # Even with the self mask gone, seeds of the other context remove nothing.
    seeds = server.cohort.hospitals["site-001"].session._secrets
    assert seeds is not None
    bare = server.unmask(ours, VICTIM, [Mask(seeds.seeds[VICTIM], subtract=True)])
    assert np.unique(bare).size > bare.size * 0.9


def test_a_model_without_the_coordinator_s_signature(server: MaliciousServer) -> None:
    frame, other = server.open().frame, server.open(configuration=b"other").frame
    forged = make_signer(make_key("forger"))(b"anything")
    for signature in (forged, other.header["signature"]):
        with refused("coordinator_signature"):
            changed = replace(frame, header={**frame.header, "signature": signature})
            server.cohort.hospitals[VICTIM].session.accept(relay(changed))


@pytest.mark.parametrize("change", ["previous", "configuration"])
def test_the_sum_before_and_the_configuration_are_bound(server: MaliciousServer, change: str) -> None:
    changed = server.open(**{change: b"x" * 32})  # type: ignore[arg-type]
    assert changed.attempt.context != server.open().attempt.context
    frame = replace(
        changed.frame, header={**changed.frame.header, "signature": server.open().frame.header["signature"]}
    )
    with refused("coordinator_signature"):
        server.cohort.hospitals[VICTIM].session.accept(relay(frame))
