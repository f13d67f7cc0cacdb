"""What a technician reads about the box's standing in its consortium."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.enrolment.record import EnrolmentRecord
from agent.service.affiliation import standing
from agent.statements.roots import key_id
from agent.trust.repository import TrustRepository
from tests.simulators.clock import SetClock
from tests.simulators.repository import PlayedRepository, PlayedSite
from tests.unit.enrolment.test_record import RECORD

KEY = ec.generate_private_key(ec.SECP256R1()).public_key()


@pytest.fixture
def repository() -> PlayedRepository:
    return PlayedRepository.found(SetClock(datetime.now(UTC)))


@pytest.fixture
def site(repository: PlayedRepository) -> PlayedSite:
    return repository.add_site("hospital-a")


@pytest.fixture
def box(tmp_path: Path, repository: PlayedRepository) -> Iterator[TrustRepository]:
    with repository.client(tmp_path / "trust") as box:
        yield box


@pytest.fixture
def record() -> EnrolmentRecord:
    return RECORD.model_copy(update={"key_id": key_id(KEY)})


def said(repository: PlayedRepository, box: TrustRepository, record: EnrolmentRecord) -> str:
    repository.publish()
    return standing(box.refresh(), record)


def test_a_box_in_good_standing_hears_nothing(
    repository: PlayedRepository, site: PlayedSite, box: TrustRepository, record: EnrolmentRecord
) -> None:
    site.add_node(KEY)
    site.sign()
    assert said(repository, box, record) == ""


def test_a_revoked_box_hears_so(
    repository: PlayedRepository, site: PlayedSite, box: TrustRepository, record: EnrolmentRecord
) -> None:
    site.add_node(KEY)
    site.revoke(KEY)
    site.sign()
    assert "has revoked this box's key" in said(repository, box, record)


def test_a_box_that_its_hospital_dropped_hears_so(
    repository: PlayedRepository, site: PlayedSite, box: TrustRepository, record: EnrolmentRecord
) -> None:
    site.sign()
    assert "do not name it" in said(repository, box, record)


def test_a_spare_box_hears_that_it_is_one(
    repository: PlayedRepository, site: PlayedSite, box: TrustRepository, record: EnrolmentRecord
) -> None:
    before = repository.clock.now() - timedelta(days=1)
    site.add_node(ec.generate_private_key(ec.SECP256R1()).public_key(), enrolled=before)
    site.add_node(KEY)
    site.sign()
    assert "spare" in said(repository, box, record)


def test_a_box_hears_which_hospitals_are_left_out_and_why(
    repository: PlayedRepository, site: PlayedSite, box: TrustRepository, record: EnrolmentRecord
) -> None:
    site.add_node(KEY)
    site.sign()
    repository.add_site("hospital-b")
    text = said(repository, box, record)
    assert text.startswith("Left out for now: hospital-b")


def test_a_box_whose_own_hospital_is_left_out_hears_why(
    repository: PlayedRepository, box: TrustRepository, record: EnrolmentRecord
) -> None:
    assert "no longer knows hospital-a" in said(repository, box, record)
    repository.add_site("hospital-a")
    assert said(repository, box, record).startswith("This box takes no part: hospital-a")
