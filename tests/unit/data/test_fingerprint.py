"""What a data set is, as one digest, and when its file is read anew."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from agent.data import fingerprint
from agent.data.catalog import Catalog, Dataset, parse_catalog
from agent.data.fingerprint import SETTLED_NS, FileDigests, dataset_digest
from agent.data.quality import DeclinedError

CATALOG = """
[datasets.local]
title = "Ours"
schema = "heart-disease"
source = "rows.csv"
"""


def catalog(folder: Path, text: str = CATALOG) -> Catalog:
    return parse_catalog(text, folder=folder)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    (tmp_path / "rows.csv").write_text("age\n50\n")
    return catalog(tmp_path).dataset("local")


class Reads:
    """Counts how often a file is really read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = os.pread

        def pread(descriptor: int, size: int, offset: int) -> bytes:
            self.count += 1
            return real(descriptor, size, offset)

        monkeypatch.setattr("os.pread", pread)


def later() -> int:
    return time.time_ns() + 10 * SETTLED_NS


def test_a_file_that_nobody_touches_is_read_once(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, digests = Reads(monkeypatch), FileDigests(later)
    first = digests.dataset_digest(dataset)
    once = reads.count
    assert once
    assert {digests.dataset_digest(dataset) for _ in range(5)} == {first}
    assert reads.count == once


def test_a_file_just_written_is_not_taken_for_settled(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, digests = Reads(monkeypatch), FileDigests()
    digests.dataset_digest(dataset)
    once = reads.count
    digests.dataset_digest(dataset)
    assert reads.count > once


def test_one_changed_byte_changes_it_even_with_its_times_set_back(dataset: Dataset) -> None:
    digests = FileDigests(later)
    before, times = digests.dataset_digest(dataset), dataset.source.stat()
    dataset.source.write_text("age\n51\n")
    os.utime(dataset.source, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digests.dataset_digest(dataset) != before


def test_another_file_under_the_same_name_changes_it(dataset: Dataset, tmp_path: Path) -> None:
    digests = FileDigests(later)
    before = digests.dataset_digest(dataset)
    (tmp_path / "new.csv").write_text("age\n51\n")
    (tmp_path / "new.csv").replace(dataset.source)
    assert digests.dataset_digest(dataset) != before


@pytest.mark.parametrize("edit", [("Ours", "Theirs"), ('source = "rows.csv"', 'source = "rows.csv"\nmissing = ["?"]')])
def test_every_word_of_the_catalog_entry_counts(dataset: Dataset, tmp_path: Path, edit: tuple[str, str]) -> None:
    other = catalog(tmp_path, CATALOG.replace(*edit)).dataset("local")
    digests = FileDigests(later)
    assert digests.dataset_digest(other) != digests.dataset_digest(dataset)


def test_the_open_file_counts_whatever_lies_at_its_path(dataset: Dataset, tmp_path: Path) -> None:
    digests = FileDigests(later)
    before = digests.dataset_digest(dataset)
    with dataset.source.open("rb") as opened:
        (tmp_path / "new.csv").write_text("age\n51\n")
        (tmp_path / "new.csv").replace(dataset.source)
        assert digests.opened_digest(dataset, opened.fileno()) == before
        assert opened.tell() == 0


def test_a_file_that_changes_under_the_reader_is_declined(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        piece = real(descriptor, size, offset)
        with dataset.source.open("a") as stream:
            stream.write("52\n")
        return piece

    monkeypatch.setattr("os.pread", pread)
    with pytest.raises(DeclinedError, match="being written") as caught:
        FileDigests(later).dataset_digest(dataset)
    assert caught.value.code == "data.changing"


def test_a_missing_file_is_declined(dataset: Dataset) -> None:
    dataset.source.unlink()
    with pytest.raises(DeclinedError, match="cannot be used"):
        FileDigests(later).dataset_digest(dataset)


def test_the_digest_is_of_canonical_json(dataset: Dataset) -> None:
    assert dataset_digest(dataset, "ab" * 32) == dataset_digest(dataset.model_copy(), "ab" * 32)
    assert dataset_digest(dataset, "ab" * 32) != dataset_digest(dataset, "cd" * 32)


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "MAX_REMEMBERED", 2)
    digests = FileDigests(later)
    for name in "abc":
        (tmp_path / "rows.csv").unlink(missing_ok=True)
        (tmp_path / "rows.csv").write_text(name)
        digests.dataset_digest(catalog(tmp_path).dataset("local"))
    assert len(digests._kept) == 2
