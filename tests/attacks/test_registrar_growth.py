"""Hospitals and strangers who would fill the registrar's disk, or its tables, a bit at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from agent.core.base64url import encode_bytes
from agent.core.errors import OperatorError
from agent.core.ids import SiteID
from agent.statements.roots import KeyKind
from provisioning.authority.appraisal import Subject
from provisioning.registrar import store as store_module
from provisioning.registrar.challenge import Enrolment, State
from provisioning.registrar.limits import PAIRING_RATE, PUBLICATION_RATE
from provisioning.registrar.store import Store
from provisioning.tokens.token import TokenEntry
from tests.simulators.clock import SetClock
from tests.simulators.registrar_host import RegistrarHost

A, B = SiteID("hospital-a"), SiteID("hospital-b")
NOW_S = int(SetClock().now().timestamp())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(f"sqlite:///{tmp_path / 'registrar.db'}", SetClock())
    yield store
    store.close()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistrarHost]:
    with RegistrarHost.found(tmp_path_factory.mktemp("registrar") / "authority", A, B) as host:
        yield host


def entry(number: int, site: SiteID = A, *, expires_s: int = NOW_S + 60) -> TokenEntry:
    return TokenEntry(id=f"{number:016x}", site=site, secret_digest="11" * 32, expires_s=expires_s, issuer="22" * 32)


def enrolment(number: int, site: SiteID = A) -> Enrolment:
    subject = Subject(KeyKind.SOFTWARE, b"public", b"", b"key")
    return Enrolment(str(number), f"{number:016x}", site, subject, b"link", bytes(32), NOW_S)


def test_hospital_makes_tokens_without_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_UNUSED_TOKENS", 3)
    for number in range(3):
        store.add_token(entry(number))
    with pytest.raises(OperatorError) as caught:
        store.add_token(entry(3))
    assert caught.value.code == "registrar.too_many_tokens"
    store.add_token(entry(4, B))
    store.add_token(entry(2))  # known already
    store.create(enrolment(0))
    store.add_token(entry(5))


def test_expired_tokens_make_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_UNUSED_TOKENS", 2)
    store.add_token(entry(0, expires_s=NOW_S - 1))
    store.add_token(entry(1))
    store.add_token(entry(2))
    assert store.token(entry(0).id) is None
    assert store.token(entry(1).id) == entry(1)


def test_boxes_of_one_hospital_begin_and_never_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_UNFINISHED", 2)
    for number in range(4):
        store.add_token(entry(number, B if number == 3 else A))
    first = store.create(enrolment(0))
    store.create(enrolment(1))
    with pytest.raises(OperatorError) as caught:
        store.create(enrolment(2))
    assert caught.value.code == "registrar.too_many_unfinished"
    store.create(enrolment(3, B))
    store.swap(first, replace(first, state=State.REFUSED))
    store.create(enrolment(2))


@pytest.mark.slow
def test_hospital_publishes_without_end(host: RegistrarHost) -> None:
    body = json.dumps({"metadata": encode_bytes(b"x")}).encode()
    path = f"/v1/sites/{A}/metadata"
    with host.client() as client:
        codes = [
            client.post(path, content=body, headers=host.site_headers(A, "POST", path, body)).json()["code"]
            for _ in range(int(PUBLICATION_RATE.burst) + 5)
        ]
    assert codes[-1] == "registrar.too_many"


def test_stranger_begins_pairings_until_no_box_can(host: RegistrarHost) -> None:
    transport = httpx.HTTPTransport(verify=host.trust, local_address="127.8.8.8")
    with httpx.Client(base_url=f"https://{host.address}", transport=transport) as client:
        statuses = [client.post("/v1/pairings", content=b"{}").status_code for _ in range(int(PAIRING_RATE.burst) + 3)]
    assert statuses[-1] == 429
    with host.client() as other:
        assert other.post("/v1/pairings", content=b"{}").status_code == 400
