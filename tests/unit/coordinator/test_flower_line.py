from __future__ import annotations

import numpy as np
from flwr.app import ConfigRecord

from agent.core.wire import PART_BYTES, PART_FIELD, Frame, Stage, join_parts, parse_frame
from provisioning.coordinator.flower_line import pack_frames

MODEL = np.arange(PART_BYTES // 4 + 100_000, dtype="<f4").tobytes()


def frame(header: dict[str, object], payload: bytes) -> Frame:
    return Frame("study", Stage.MASKED_INPUT, 1, header=header, payload=payload)


def back(content: object) -> Frame:
    assert hasattr(content, "items")
    return parse_frame(join_parts({name: record[PART_FIELD] for name, record in content.items()}))


def test_one_frame_for_several_nodes_is_one_content() -> None:
    asked = frame({"kind": "train"}, MODEL)

    packed = pack_frames([asked, asked, asked])

    assert packed[0] is packed[1] is packed[2]
    assert back(packed[0]).payload == MODEL


def test_frames_with_own_headers_share_the_payload_that_they_share() -> None:
    frames = [frame({"to": site}, MODEL) for site in ("a", "b", "c")]

    packed = pack_frames(frames)

    assert [back(content).header["to"] for content in packed] == ["a", "b", "c"]
    assert all(back(content).payload == MODEL for content in packed)
    records = [list(content.values()) for content in packed]
    # The header's record is each frame's own, the payload's are the very same objects.
    assert all(len(of_frame) == 3 for of_frame in records)
    assert len({id(of_frame[0]) for of_frame in records}) == 3
    assert len({id(record) for of_frame in records for record in of_frame[1:]}) == 2


def test_small_or_single_payloads_travel_with_their_header() -> None:
    packed = pack_frames(
        [frame({"to": "a"}, b"small"), frame({"to": "b"}, b"small"), frame({"to": "c"}, MODEL[: PART_BYTES // 2])]
    )

    assert [len(content) for content in packed] == [1, 1, 1]
    assert all(isinstance(record, ConfigRecord) for content in packed for record in content.values())
    assert back(packed[2]).payload == MODEL[: PART_BYTES // 2]


def test_empty_payloads_are_not_torn_off() -> None:
    packed = pack_frames([frame({"to": "a"}, b""), frame({"to": "b"}, b"")])

    assert [back(content).header["to"] for content in packed] == ["a", "b"]
