"""The firmware's log of what it measured at boot, and the PCR values that follow from it.

A log proves nothing by itself: it explains a quote. Where the replayed values equal the quoted ones, each digest in it
is what was measured.

Source: TCG PC Client Platform Firmware Profile, version 1.06, 10 (Event Logging) and 3.3.4.2 (PCR[0] and locality).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.attestation.reader import Reader, malformed
from agent.attestation.structures import HASH_NAME

MAX_LOG_BYTES = 1 << 20
MAX_EVENTS = 8192
MAX_REGISTER = 23
_MAX_EVENT_BYTES = 1 << 18
_NO_ACTION = 0x00000003
_SIGNATURE = b"Spec ID Event03\x00"
_STARTUP_LOCALITY = b"StartupLocality\x00"


@dataclass(frozen=True, slots=True)
class Event:
    """One measurement.

    Args:
        register: Which PCR was extended.
        kind: TCG event type.
        digests: By hash algorithm id, what was extended.
        data: What the firmware says it was; only as good as `is_bound` says.
    """

    register: int
    kind: int
    digests: Mapping[int, bytes]
    data: bytes

    def is_bound(self) -> bool:
        """Whether the digests are over `data` itself (they need not be: an image's digest is over the image)."""
        return all(hashlib.new(HASH_NAME[bank], self.data).digest() == d for bank, d in self.digests.items())


def parse_event_log(data: bytes) -> tuple[Event, ...]:
    """Parse a crypto-agile event log (`/sys/kernel/security/tpm0/binary_bios_measurements`).

    Raises:
        PeerProtocolError: It is none, or exceeds our limits.
    """
    reader = Reader(data, limit=MAX_LOG_BYTES, order="little")
    sizes = _read_header(reader)
    events: list[Event] = []
    while reader.left:
        if len(events) == MAX_EVENTS:
            raise malformed("more boot events than we read")
        events.append(_read_event(reader, sizes))
    return tuple(events)


def _read_header(reader: Reader) -> dict[int, int]:
    # 10.4.5.1: the first event keeps the old form with one SHA-1 digest, and tells the digests' sizes of all others.
    register, kind = reader.u32(), reader.u32()
    reader.take(20)
    size = reader.u32()
    if register != 0 or kind != _NO_ACTION or size > 256:
        raise malformed("a boot log of an older form")
    header = Reader(reader.take(size), limit=256, order="little")
    if header.take(16) != _SIGNATURE:
        raise malformed("a boot log of an older form")
    header.take(8)  # platformClass, specVersionMinor, specVersionMajor, specErrata, uintnSize
    count = header.u32()
    if not 1 <= count <= 8:
        raise malformed("a boot log with an absurd number of banks")
    return {header.u16(): header.u16() for _ in range(count)}  # Python evaluates the key first


def _read_event(reader: Reader, sizes: Mapping[int, int]) -> Event:
    register, kind, count = reader.u32(), reader.u32(), reader.u32()
    if register > MAX_REGISTER or count > len(sizes):
        raise malformed("a boot event outside the registers")
    digests = {}
    for _ in range(count):
        bank = reader.u16()
        if bank not in sizes or sizes[bank] > 64:
            raise malformed("a boot event in a bank that its log does not announce")
        digests[bank] = reader.take(sizes[bank])
    size = reader.u32()
    if size > _MAX_EVENT_BYTES:
        raise malformed("a boot event larger than any")
    return Event(register, kind, {b: d for b, d in digests.items() if b in HASH_NAME}, reader.take(size))


def replay(events: Sequence[Event], bank: int) -> dict[int, bytes]:
    """The values of the PCRs that `events` extended, as the TPM computed them.

    Args:
        events: In order.
        bank: Hash algorithm id, e.g. `Algorithm.SHA256`.

    Returns:
        By register; a register that no event touched is not in it.

    Raises:
        PeerProtocolError: An event lacks a digest for this bank, or tells where register 0 began when it had begun.
    """
    size = hashlib.new(HASH_NAME[bank]).digest_size
    values: dict[int, bytes] = {}
    for event in events:
        if event.kind == _NO_ACTION:
            if event.data.startswith(_STARTUP_LOCALITY) and len(event.data) == 17:
                if 0 in values:  # what came before it would be explained by nothing
                    raise malformed("a startup event after others")
                values[0] = bytes(size - 1) + event.data[16:]
            continue
        if bank not in event.digests:
            raise malformed("a boot event without a digest for the quoted bank")
        before = values.get(event.register, bytes(size))
        values[event.register] = hashlib.new(HASH_NAME[bank], before + event.digests[bank]).digest()
    return values
