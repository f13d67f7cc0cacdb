"""A study on its way through the hands of its signers: altered on the way, or published by too few."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, TargetFile, Targets
from typer.testing import CliRunner

from agent.core.errors import OperatorError, PeerProtocolError, SecureHealthError
from agent.trust.delegations import STUDIES
from provisioning.authority.ceremony import Ceremony, PendingChange, parse_pending
from provisioning.authority.keyring import Keyring
from provisioning.authority.roles import sign
from provisioning.cli.main import app
from provisioning.studies.signing import propose_study, read_proposal, target_path
from tests.simulators.authority import FoundedConsortium, no_secrets
from tests.simulators.played_study import SITES, linear_model, study_files

STUDY = target_path("played-study", "study.json")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A study that one of two holders has signed.

    Args:
        consortium: Whose.
        pending: The change as the first holder gave it on.
        second: The other holder's key.
    """

    consortium: FoundedConsortium
    pending: PendingChange
    second: Signer

    def holder(self) -> Ceremony:
        """The authority without any offline key: a second holder signs elsewhere, and nobody signs here."""
        empty = Keyring(replace(self.consortium.layout, path=self.consortium.layout.path / "nothing"), no_secrets)
        return Ceremony(self.consortium.layout, empty, self.consortium.publisher, self.consortium.clock)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    consortium = FoundedConsortium.found(tmp_path / "authority")
    first, second = consortium.role_signers(STUDIES)
    pending = propose_study(consortium.ceremony, *study_files(), SITES)
    return Prepared(consortium, parse_pending(pending.signed_by([first]).encode()), second)


def with_targets(pending: PendingChange, change: Callable[[bytes], bytes]) -> PendingChange:
    """The same change with other bytes of the study in it."""
    files = dict(pending.change.targets)
    files[STUDY] = change(files[STUDY])
    return replace(pending, change=replace(pending.change, targets=files))


def relisted(pending: PendingChange) -> PendingChange:
    """The same with metadata that lists its files as they are now; the signatures stay."""
    metadata = Metadata[Targets].from_bytes(pending.data)
    for path, data in pending.change.targets.items():
        metadata.signed.targets[path] = TargetFile.from_data(path, data, ["sha256"])
    return replace(pending, change=replace(pending.change, roles={STUDIES: metadata.to_bytes()}))


def greedier(study: bytes) -> bytes:
    return json.dumps(json.loads(study) | {"rounds": 5000}).encode()


def is_published(prepared: Prepared) -> bool:
    """Whether the repository lists anything of the study."""
    state = prepared.consortium.publisher.load()
    return STUDY in Metadata[Targets].from_bytes(state.roles[STUDIES]).signed.targets


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(SecureHealthError) as caught:
        action()
    return caught.value.code


def test_signed_one_after_another_then_published(prepared: Prepared) -> None:
    assert (prepared.pending.is_complete, prepared.pending.missing) == (False, 1)
    assert read_proposal(prepared.pending).study.rounds == 3
    complete = prepared.pending.signed_by([prepared.second])
    assert prepared.holder().sign(complete).is_complete
    assert not is_published(prepared)
    prepared.holder().complete(complete)
    assert is_published(prepared)


def test_study_altered_after_the_first_signature(prepared: Prepared) -> None:
    altered = with_targets(prepared.pending, greedier)
    assert refused(lambda: read_proposal(altered)) == "study.altered"
    # A holder who signs without reading: the repository takes no file but the one that was signed.
    complete = altered.signed_by([prepared.second])
    assert refused(lambda: prepared.holder().complete(complete)) == "trust.altered_file"
    assert not is_published(prepared)


def test_study_and_its_listing_altered_after_the_first_signature(prepared: Prepared) -> None:
    altered = relisted(with_targets(prepared.pending, greedier))
    assert read_proposal(altered).study.rounds == 5000  # whole in itself, but
    assert refused(lambda: prepared.holder().sign(altered)) == "authority.altered_change"
    assert not altered.signed_by([prepared.second]).is_complete


def test_model_exchanged_after_the_first_signature(prepared: Prepared) -> None:
    files = dict(prepared.pending.change.targets)
    files[target_path("played-study", "model.onnx")] = linear_model(value=2.0)
    altered = replace(prepared.pending, change=replace(prepared.pending.change, targets=files))
    assert refused(lambda: read_proposal(altered)) == "study.altered"
    assert refused(lambda: read_proposal(relisted(altered))) == "model.wrong_digest"


def test_second_study_hidden_behind_the_first(prepared: Prepared) -> None:
    files = dict(prepared.pending.change.targets) | {target_path("hidden", "model.onnx"): linear_model()}
    hidden = relisted(replace(prepared.pending, change=replace(prepared.pending.change, targets=files)))
    assert refused(lambda: read_proposal(hidden)) == "study.altered"


def test_below_threshold(prepared: Prepared) -> None:
    assert not prepared.holder().complete(prepared.pending).is_complete
    assert not is_published(prepared)


def test_same_holder_signs_twice(prepared: Prepared) -> None:
    first, _ = prepared.consortium.role_signers(STUDIES)
    assert prepared.pending.signed_by([first]).missing == 1


def test_threshold_lowered_in_the_file(prepared: Prepared) -> None:
    above = Metadata[Targets].from_bytes(prepared.pending.before)
    assert above.signed.delegations is not None
    assert above.signed.delegations.roles is not None
    above.signed.delegations.roles[STUDIES].threshold = 1
    lowered = replace(prepared.pending, before=above.to_bytes())
    assert lowered.is_complete  # by its own word
    with pytest.raises(PeerProtocolError):
        prepared.holder().complete(lowered)
    assert not is_published(prepared)


def test_foreign_key_s_signature_does_not_count(prepared: Prepared, tmp_path: Path) -> None:
    foreign = FoundedConsortium.found(tmp_path / "foreign").role_signers(STUDIES)[1]
    metadata = sign(Metadata[Targets].from_bytes(prepared.pending.data), [foreign]).to_bytes()
    signed = replace(prepared.pending, change=replace(prepared.pending.change, roles={STUDIES: metadata}))
    assert signed.missing == 1


def test_change_without_a_study_is_not_signed_as_one(prepared: Prepared) -> None:
    bare = replace(prepared.pending, change=replace(prepared.pending.change, targets={}))
    with pytest.raises(OperatorError, match="adds no study"):
        read_proposal(bare)


def test_published_study_is_not_replaced_under_its_id(prepared: Prepared) -> None:
    consortium = prepared.consortium
    consortium.ceremony.complete(prepared.pending)
    study, model = study_files()
    same = propose_study(consortium.ceremony, prepared.pending.change.targets[STUDY], model, SITES)
    assert read_proposal(same).others == ()
    assert refused(lambda: propose_study(consortium.ceremony, greedier(study), model, SITES)) == "study.id_taken"


def test_words_that_would_hide_others_on_a_signer_s_terminal(tmp_path: Path) -> None:
    hidden = "Harmless.\x1b[2K\x1b[1A\u202eylno"
    study, _ = study_files(title=hidden, purpose=hidden, requester=hidden, legal_basis=hidden)
    (tmp_path / "study.json").write_bytes(study)
    said = CliRunner().invoke(app, ["study", "validate", str(tmp_path / "study.json")], color=False).output
    assert said.count("Harmless.?[2K?[1A?ylno") == 4
    assert all(letter.isprintable() or letter == "\n" for letter in said)
