"""The vector files are what the agent computes, and what an independent reading of the document computes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from agent.core.errors import PeerProtocolError
from agent.secagg.exchange import check_public_key
from tests.vectors.secagg import generate, reference

ROUNDS = ["round-3-whole.json", "round-5-partial.json"]


def load(name: str) -> Any:  # noqa: ANN401 - what JSON holds
    return json.loads((Path(generate.__file__).parent / name).read_text())


@pytest.mark.parametrize("name", ["primitives.json", "codec.json", *ROUNDS])
def test_the_agent_computes_the_files(name: str) -> None:
    assert json.loads(json.dumps(generate.build()[name])) == load(name)


def test_primitives_by_the_reference() -> None:
    given = load("primitives.json")
    framing = given["framing"]
    fields = [
        bytes.fromhex(field) if kind == "bytes" else field
        for field, kind in zip(framing["fields"], framing["types"], strict=True)
    ]
    assert reference.framed(framing["label"], *fields).hex() == framing["framed"]
    assert reference.hashed(framing["label"], *fields).hex() == framing["digest"]
    shamir = given["shamir"]
    secret, coefficients = bytes.fromhex(shamir["secret"]), bytes.fromhex(shamir["coefficients"])
    shares = [reference.share_out(secret, coefficients, shamir["threshold"], point) for point in range(1, 6)]
    assert [share.hex() for share in shares] == shamir["shares"]
    assert reference.recombine({5: shares[4], 1: shares[0], 3: shares[2]}) == secret
    published = {int(point): bytes.fromhex(share) for point, share in shamir["published"]["shares"].items()}
    assert reference.recombine(published).hex() == shamir["published"]["secret"]
    assert reference.key_stream(bytes.fromhex(given["key_stream"]["key"]), 6) == given["key_stream"]["words"]
    check = given["check_word"]
    assert reference.check_word(check["words"], bytes.fromhex(check["key"])) == check["value"]


def test_every_key_listed_as_refused_is_refused() -> None:
    for key in load("primitives.json")["refused_x25519_keys"].values():
        with pytest.raises(PeerProtocolError):
            check_public_key(bytes.fromhex(key), site="site-000")


def test_codecs_by_the_reference() -> None:
    for case in load("codec.json"):
        layout = reference.Layout(len(case["integers"]), case["cohort"], case["bits"])
        assert (layout.limit, layout.lane_bits, layout.lanes) == (case["offset"], case["lane_bits"], case["lanes"])
        assert layout.pack(case["integers"]) == case["packed"]
        doubled = [2 * word for word in case["packed"]]
        assert layout.unpack(doubled, 2) == [2 * value for value in case["integers"]]
        mean = layout.mean(doubled, 2, case["sum_of_two"]["weight"], case["clip"], case["weight_cap"])
        assert mean == pytest.approx(case["sum_of_two"]["mean"], rel=1e-6)


@pytest.mark.parametrize("name", ROUNDS)
def test_a_round_by_the_reference(name: str) -> None:
    given = load(name)
    made = reference.Round(given)
    assert (made.threshold, made.partial) == (given["threshold"], given["partial"])
    assert made.bundles_digest.hex() == given["bundles_digest"]
    assert made.context.hex() == given["context"]
    assert reference.expand(made.context, "check-word").hex() == given["check_key"]
    for bundle in given["bundles"]:
        statement = (*made.bundle_fields(bundle), made.study, made.hex("run"))
        assert reference.framed("advertise", *statement).hex() == bundle["signed"]
    for site, node in given["nodes"].items():
        for name_, value in made.upload(site, node).items():
            assert value == node[name_], (site, name_)
        for peer, root in node["roots"].items():
            assert made.root(site, peer).hex() == root


@pytest.mark.parametrize("name", ROUNDS)
def test_the_sum_by_the_reference(name: str) -> None:
    given = load(name)
    made, survivors, nodes = reference.Round(given), given["survivors"], given["nodes"]
    locked = reference.hashed_list("survivors", [bytes.fromhex(nodes[site]["signed"]) for site in survivors])
    assert locked.hex() == given["survivors_digest"]
    masked = {site: nodes[site]["masked"] for site in survivors}
    total = made.unmask(survivors, masked, given["revelations"])
    assert total == given["sum"]
    assert reference.check_word(total[:-1], bytes.fromhex(given["check_key"])) == total[-1]
    digest = reference.hashed("sum", made.context, struct.pack(f"<{len(total)}Q", *total))
    assert digest.hex() == given["sum_digest"]
