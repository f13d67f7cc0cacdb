"""Studies that come from the repository, into the directory that the box runs them from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.core.errors import NetworkError
from agent.federation.studies import check_model, load_study
from agent.service.shelf import StudyLibrary
from agent.trust.repository import TrustRepository
from tests.simulators.clock import SetClock
from tests.simulators.hospital import MODEL, study_json
from tests.simulators.repository import PlayedRepository

SITE = "hospital-a"


@dataclass(slots=True)
class Shelf:
    """A box's shelf, and the repository that it follows."""

    directory: Path
    repository: PlayedRepository
    box: TrustRepository
    library: StudyLibrary

    def put(self, name: str, study: bytes, model: bytes = MODEL) -> None:
        """Sign a study."""
        studies = self.repository.studies
        self.repository.put(studies, f"studies/{name}/model.onnx", model)
        self.repository.put(studies, f"studies/{name}/study.json", study)

    def withdraw(self, name: str) -> None:
        """Sign no such study any more."""
        for file in ("study.json", "model.onnx"):
            del self.repository.studies.targets[f"studies/{name}/{file}"]

    def follow(self) -> list[str]:
        """Publish, and let the box follow; returns what it fetched of studies."""
        self.repository.sign_role("studies", self.repository.studies)
        self.repository.publish()
        self.repository.requests.clear()
        self.library.follow(self.box.refresh())
        return [path for path in self.repository.requests if path.startswith("studies/")]

    @property
    def names(self) -> list[str]:
        """What is there."""
        return sorted(path.name for path in self.directory.glob("*"))


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    repository = PlayedRepository.found(SetClock(datetime.now(UTC)))
    with repository.client(tmp_path / "trust") as box:
        yield Shelf(tmp_path / "studies", repository, box, StudyLibrary(tmp_path / "studies", SITE, box))


def test_a_study_that_names_this_hospital_comes_whole_and_once(shelf: Shelf) -> None:
    shelf.put("one", study_json((SITE,), id="one"))
    assert len(shelf.follow()) == 2
    folder = load_study(shelf.directory, "one")
    check_model(folder)
    assert folder.study.sites == (SITE,)
    assert shelf.follow() == []


def test_a_study_for_others_is_looked_at_once_and_left(shelf: Shelf) -> None:
    shelf.put("theirs", study_json(("hospital-b",), id="theirs"))
    assert len(shelf.follow()) == 1
    assert shelf.names == []
    assert shelf.follow() == []
    shelf.put("theirs", study_json(("hospital-b", SITE), id="theirs"))
    assert len(shelf.follow()) == 2
    assert shelf.names == ["theirs"]


def test_a_new_version_with_the_same_model_fetches_no_model(shelf: Shelf) -> None:
    shelf.put("one", study_json((SITE,), id="one"))
    shelf.follow()
    shelf.put("one", study_json((SITE,), id="one", title="Another title"))
    (fetched,) = shelf.follow()
    assert fetched.endswith("study.json")
    assert load_study(shelf.directory, "one").study.title == "Another title"


def test_a_withdrawn_study_goes(shelf: Shelf) -> None:
    shelf.put("one", study_json((SITE,), id="one"))
    shelf.put("two", study_json((SITE,), id="two"))
    shelf.follow()
    shelf.withdraw("one")
    shelf.follow()
    assert shelf.names == ["two"]


def test_what_nobody_signed_goes(shelf: Shelf) -> None:
    (shelf.directory / "smuggled").mkdir(parents=True)
    (shelf.directory / "smuggled" / "study.json").write_bytes(study_json((SITE,), id="smuggled"))
    shelf.follow()
    assert shelf.names == []


@pytest.mark.parametrize("bad", [b"{}", b"not json", study_json((SITE,), id="another")])
def test_one_bad_study_keeps_no_other_from_coming(shelf: Shelf, bad: bytes) -> None:
    shelf.put("bad", bad)
    shelf.put("good", study_json((SITE,), id="good"))
    shelf.follow()
    assert shelf.names == ["good"]


def test_a_model_that_cannot_be_had_leaves_no_half_of_a_study(shelf: Shelf) -> None:
    shelf.put("one", study_json((SITE,), id="one"))
    shelf.repository.interfere = lambda path: b"" if path.endswith("model.onnx") else None
    shelf.follow()
    assert not (shelf.directory / "one" / "study.json").exists()
    shelf.repository.interfere = lambda _: None
    shelf.follow()
    check_model(load_study(shelf.directory, "one"))


def test_a_network_that_fails_is_said_after_every_study_was_tried(shelf: Shelf) -> None:
    shelf.put("one", study_json((SITE,), id="one"))
    shelf.put("two", study_json((SITE,), id="two"))

    def down(path: str) -> None:
        if path.startswith("studies/one/"):
            raise NetworkError("trust.unreachable", "Nobody answers.", next_step="Wait.")

    shelf.repository.interfere = down
    with pytest.raises(NetworkError):
        shelf.follow()
    assert shelf.names == ["two"]
    shelf.repository.interfere = lambda _: None
    shelf.library.follow(shelf.box.current())
    assert shelf.names == ["one", "two"]


def test_an_altered_file_on_the_box_is_fetched_again(shelf: Shelf) -> None:
    shelf.put("one", study_json((SITE,), id="one"))
    shelf.follow()
    (shelf.directory / "one" / "study.json").write_bytes(study_json((SITE,), id="one", rounds=9))
    shelf.follow()
    assert load_study(shelf.directory, "one").study.rounds != 9
