"""One file from a FAT volume: as other people's tools write them, and as nobody honest would."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.errors import HardwareError, OperatorError, SecureHealthError
from agent.core.fat import MAX_DIRECTORY_BYTES, read_root_file
from tests.simulators.stick import PARTITION_AT, find_tool, make_stick, run

NAME = "SEH-TOKEN.TXT"
LIMIT = 64 << 10
CONTENT = bytes(range(256)) * 40
MOST_READ = MAX_DIRECTORY_BYTES + LIMIT + (64 << 10)
"""What one look at a stick may read: a directory, a file, and a table entry for each of their clusters."""


class Image:
    """A stick in memory that counts what is read from it.

    Args:
        data: Its bytes.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.bytes_read = 0

    def read(self, offset: int, count: int) -> bytes:
        self.bytes_read += count
        part = self.data[offset : offset + count]
        if len(part) < count:
            raise HardwareError("stick.unreadable", "It ends.", next_step="Another.")
        return part


def token_of(data: bytes) -> bytes:
    image = Image(data)
    try:
        return read_root_file(image, NAME, limit=LIMIT)
    finally:
        assert image.bytes_read <= MOST_READ


def refusal(data: bytes) -> str:
    with pytest.raises(SecureHealthError) as caught:
        token_of(data)
    return caught.value.code


@pytest.fixture
def stick(tmp_path: Path) -> Callable[..., bytes]:
    def make(files: dict[str, bytes] | None = None, **how: object) -> bytes:
        files = {NAME: CONTENT} if files is None else files
        return make_stick(tmp_path / "stick", files, **how).read_bytes()  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize("partition", [False, True], ids=["whole stick", "partition"])
@pytest.mark.parametrize(
    ("bits", "mebibytes", "options"),
    [
        (12, 2, ()),
        (12, 8, ("-s", "8")),
        (16, 16, ()),
        (16, 64, ("-s", "4", "-f", "1")),
        (32, 34, ()),
        (32, 34, ("-s", "1")),
        (32, 34, ("-a", "-R", "64")),
    ],
)
def test_every_fat_that_mkfs_makes(
    stick: Callable[..., bytes], bits: int, mebibytes: int, options: tuple[str, ...], partition: bool
) -> None:
    if partition:
        mebibytes += 1
    data = stick(bits=bits, mebibytes=mebibytes, options=options, partition=partition)
    assert token_of(data) == CONTENT


def test_a_stick_with_larger_sectors(stick: Callable[..., bytes]) -> None:
    assert token_of(stick(options=("-S", "2048"), mebibytes=160)) == CONTENT


def test_a_partition_by_itself_as_the_kernel_hands_it_out(stick: Callable[..., bytes]) -> None:
    assert token_of(stick(partition=True)[PARTITION_AT:]) == CONTENT


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 4096, LIMIT])
@pytest.mark.parametrize("bits", [12, 16, 32])
def test_every_size_up_to_the_limit(stick: Callable[..., bytes], bits: int, size: int) -> None:
    content = (CONTENT * 8)[:size]
    assert token_of(stick({NAME: content}, bits=bits, mebibytes=8 if bits == 12 else 34)) == content


def test_the_file_among_many_with_long_names_and_after_deleted_ones(tmp_path: Path) -> None:
    others = {f"Übersicht über den Dienst Nr. {k} {'x' * (7 * k)}.docx": bytes(k * 700) for k in range(25)}
    path = make_stick(tmp_path / "stick", {**others, "old.txt": b"old", NAME: CONTENT, "z.txt": b"z"})
    run(find_tool("mdel"), "-i", str(path), "::old.txt")
    assert token_of(path.read_bytes()) == CONTENT


def test_a_fragmented_file(tmp_path: Path) -> None:
    fillers = {f"f{k}.bin": bytes(512) for k in range(200)}
    path = make_stick(tmp_path / "stick", fillers, bits=12, mebibytes=2, options=("-s", "1"))
    with path.open("rb") as stream:
        free = len(stream.read()) // 512
    run(find_tool("mcopy"), "-i", str(path), "-", "::big.bin", data=bytes((free - 290) * 512))
    for k in range(0, 200, 2):
        run(find_tool("mdel"), "-i", str(path), f"::f{k}.bin")
    content = CONTENT * 4
    run(find_tool("mcopy"), "-i", str(path), "-", f"::{NAME}", data=content)
    assert token_of(path.read_bytes()) == content


def test_names_are_compared_without_case(stick: Callable[..., bytes]) -> None:
    assert token_of(stick({"seh-token.txt": CONTENT})) == CONTENT


def test_a_short_name_is_found_too(stick: Callable[..., bytes]) -> None:
    image = Image(stick({"ASK.TXT": b"short"}))
    assert read_root_file(image, "ask.txt", limit=LIMIT) == b"short"


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_a_stick_without_the_file_says_so(stick: Callable[..., bytes], bits: int) -> None:
    files = {"SEH-TOKEN.TXT.TXT": CONTENT, "SEH-TOKE.TXT": CONTENT}
    assert refusal(stick(files, bits=bits, mebibytes=8 if bits == 12 else 34)) == "stick.no_file"


def test_a_folder_called_like_the_file(tmp_path: Path) -> None:
    path = make_stick(tmp_path / "stick", {})
    run(find_tool("mmd"), "-i", str(path), f"::{NAME}")
    assert refusal(path.read_bytes()) == "stick.no_file"


def test_the_file_inside_a_folder_is_not_taken(tmp_path: Path) -> None:
    path = make_stick(tmp_path / "stick", {})
    run(find_tool("mmd"), "-i", str(path), "::folder")
    run(find_tool("mcopy"), "-i", str(path), "-", f"::folder/{NAME}", data=CONTENT)
    assert refusal(path.read_bytes()) == "stick.no_file"


def test_a_file_that_is_too_large_is_not_read(stick: Callable[..., bytes]) -> None:
    assert refusal(stick({NAME: bytes(LIMIT + 1)})) == "stick.file_too_large"


@pytest.mark.parametrize("label", ["", "NO NAME", "$%'-_@~`!", "SEH-TOKEN\xff"])
def test_the_label_does_not_matter_to_the_reader(tmp_path: Path, label: str) -> None:
    data = bytearray(make_stick(tmp_path / "stick", {NAME: CONTENT}, label="X").read_bytes())
    odd = label.encode("latin-1").ljust(11)[:11]
    data[71:82] = odd
    at = data.index(b"X          \x08")
    data[at : at + 11] = odd
    assert token_of(bytes(data)) == CONTENT


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(512),
        bytes(1 << 20),
        b"\xff" * (1 << 20),
        b"\xeb\x52\x90NTFS    " + bytes(499) + b"\x55\xaa",
        bytes(510) + b"\x55\xaa",
        b"\xeb\x76\x90EXFAT   " + bytes(499) + b"\x55\xaa",
    ],
)
def test_what_is_no_fat_volume(data: bytes) -> None:
    assert refusal(data) in {"stick.not_fat", "stick.unreadable"}


def test_a_partition_table_whose_entries_point_nowhere() -> None:
    entries = b"".join(struct.pack("<4xB3xII", 0x0C, start, 1) for start in (1, 0xFFFFFFFF, 7, 0))
    assert refusal(bytes(446) + entries + b"\x55\xaa" + bytes(1 << 16)) in {"stick.not_fat", "stick.unreadable"}


def test_two_files_of_one_name(tmp_path: Path) -> None:
    data = bytearray(make_stick(tmp_path / "stick", {NAME: CONTENT, "SECOND-TK.TXT": b"other"}).read_bytes())
    new = NAME.encode("utf-16-le")
    at = data.index("SECOND".encode("utf-16-le")[:10])  # a long entry's fields hold 5, 6 and 2 characters
    data[at : at + 10], data[at + 13 : at + 25], data[at + 27 : at + 31] = new[:10], new[10:22], new[22:26]
    assert refusal(bytes(data)) == "stick.damaged"


def _fat_at(data: bytes | bytearray) -> int:
    return int.from_bytes(data[14:16], "little") * 512


def _first_cluster(data: bytes | bytearray) -> int:
    at = data.index(b"SEH-TO~1TXT")
    return int.from_bytes(data[at + 26 : at + 28], "little")


@pytest.mark.parametrize("value", [0, 1, 0x0FFFFFF7, 0x0FFFFFFF, 0xFFFFFFFF, 200_000])
def test_a_chain_that_leaves_the_stick_or_ends_early(stick: Callable[..., bytes], value: int) -> None:
    data = bytearray(stick(options=("-s", "1")))
    struct.pack_into("<I", data, _fat_at(data) + 4 * _first_cluster(data), value)
    assert refusal(bytes(data)) == "stick.damaged"


def test_a_chain_that_runs_in_a_circle(stick: Callable[..., bytes]) -> None:
    data = bytearray(stick(options=("-s", "1")))
    first = _first_cluster(data)
    struct.pack_into("<I", data, _fat_at(data) + 4 * (first + 3), first)
    assert refusal(bytes(data)) == "stick.damaged"


def test_a_root_directory_that_runs_in_a_circle(stick: Callable[..., bytes]) -> None:
    data = bytearray(stick({}, options=("-s", "1")))
    struct.pack_into("<I", data, _fat_at(data) + 4 * 2, 2)
    assert refusal(bytes(data)) == "stick.damaged"


def test_a_root_directory_without_an_end(tmp_path: Path) -> None:
    data = bytearray(make_stick(tmp_path / "stick", {}, options=("-s", "1")).read_bytes())
    for cluster in range(2, 2000):
        struct.pack_into("<I", data, _fat_at(data) + 4 * cluster, cluster + 1)
    assert refusal(bytes(data)) == "stick.too_many_files"


def test_a_size_beyond_the_chain(stick: Callable[..., bytes]) -> None:
    data = bytearray(stick({NAME: b"short"}))
    at = data.index(b"SEH-TO~1TXT")
    struct.pack_into("<I", data, at + 28, LIMIT)
    assert refusal(bytes(data)) == "stick.damaged"


def _long_entry(data: bytes | bytearray) -> int:
    return data.index("SEH-T".encode("utf-16-le")) - 1


@pytest.mark.parametrize(("at", "value"), [(0, 0x01), (0, 0x42), (0, 0x40), (0, 0x5F), (13, 0), (0, 0xE5)], ids=str)
def test_a_long_name_that_does_not_belong_to_its_entry_is_ignored(
    stick: Callable[..., bytes], at: int, value: int
) -> None:
    data = bytearray(stick())
    data[_long_entry(data) + at] = value
    assert refusal(bytes(data)) == "stick.no_file"


SMALL: dict[str, bytes] = {}


@pytest.fixture(scope="module", autouse=True)
def _small_sticks(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("sticks")
    for bits, mebibytes in ((12, 1), (16, 16), (32, 34)):
        path = make_stick(place / str(bits), {NAME: CONTENT}, bits=bits, mebibytes=mebibytes)
        data = path.read_bytes()
        # Everything honest lies in front; what is cut off reads as the device's end.
        SMALL[str(bits)] = data[: data.index(CONTENT) + len(CONTENT) + 4096]


@settings(max_examples=400)
@given(
    bits=st.sampled_from(["12", "16", "32"]),
    changes=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 95), st.integers(0, 1 << 20)),
            st.one_of(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]), st.integers(0, 255)),
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_no_altered_stick_crashes_the_reader_or_makes_it_read_without_bound(
    bits: str, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(SMALL[bits])
    for at, value in changes:
        data[at % len(data)] = value
    try:
        assert len(token_of(bytes(data))) <= LIMIT
    except (OperatorError, HardwareError) as error:
        assert error.code.startswith("stick.")  # noqa: PT017 - either outcome is right


@settings(max_examples=200)
@given(st.binary(min_size=512, max_size=4096))
def test_no_bytes_at_all_crash_the_reader(data: bytes) -> None:
    for sector in (data, data[:510] + b"\x55\xaa" + data[512:], SMALL["12"][:64] + data):
        try:
            token_of(sector)
        except (OperatorError, HardwareError) as error:
            assert error.code.startswith("stick.")  # noqa: PT017 - either outcome is right
