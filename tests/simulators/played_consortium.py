"""A played registrar with a real, signed repository, and a SuperLink, where there is one, that lets in whom it enrols.

Boxes fetch and verify everything as from any consortium; only what endorses them is played.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from typing_extensions import override

from agent.attestation.makers import TrustStore
from agent.core.clock import SystemClock
from agent.core.ids import SiteID
from agent.statements.roots import KeyKind, key_id
from agent.trust.records import (
    CONSORTIUM_TARGET,
    ConsortiumRecord,
    EvidenceTerms,
    NodeFile,
    ServerRecord,
    StewardFile,
    WitnessRecord,
    parse_public_pem,
    public_pem,
)
from tests.simulators.played_node import register_quickly
from tests.simulators.registrar import OTHER_SITE, SITE, Asked, PlayedRegistrar, Said
from tests.simulators.repository import PlayedRepository, PlayedSite, new_signer, public_key
from tests.simulators.superlink import RunningSuperLink


class PlayedConsortium(PlayedRegistrar):
    """The registrar, the repository, and every key.

    Args:
        directory: For TLS files.
        superlink: Where boxes join, and are registered; None where the test needs none.
        sites: Hospitals; the first is whose tokens `token` issues.
        stores: Makers of TPMs that it trusts.
    """

    def __init__(
        self,
        directory: Path,
        superlink: RunningSuperLink | None = None,
        *,
        sites: Iterable[SiteID] = (SITE, OTHER_SITE),
        stores: tuple[TrustStore, ...] = (),
    ) -> None:
        super().__init__(directory, stores=stores)
        self.superlink = superlink
        self.coordinator = ec.generate_private_key(ec.SECP256R1())
        self.repository = PlayedRepository.found(SystemClock(), environment="test")
        self._publishing = threading.Lock()
        self.root = self.repository.files["1.root.json"]
        self.superlink_address = "127.0.0.1:9" if superlink is None else superlink.address
        self.desks: dict[SiteID, PlayedSite] = {}
        self.node_ids: dict[str, int] = {}
        self.witnesses: tuple[WitnessRecord, ...] = ()
        for site in sites:
            self.desks[site] = self.repository.add_site(site, new_signer(self.site_key))
            self.desks[site].sign()
            self.nodes[site] = ()
        self.publish_consortium()

    @property
    @override
    def consortium(self) -> ConsortiumRecord:
        authority = self.authority.decode()
        return ConsortiumRecord(
            id="played",
            name="The Played Consortium",
            registrar=ServerRecord(address=self.address, root_certificates=authority),
            superlink=ServerRecord(
                address=self.superlink_address,
                root_certificates=authority if self.superlink is None else self.superlink.root_certificate.read_text(),
            ),
            registrar_key=public_pem(self.key.public_key()),
            coordinator=public_pem(self.coordinator.public_key()),
            evidence=EvidenceTerms(minimum="none", kinds=tuple(KeyKind)),
            witnesses=self.witnesses,
        )

    def publish_consortium(self) -> None:
        """Sign `consortium.json` as it is now."""
        with self._publishing:
            self.repository.put(self.repository.targets, CONSORTIUM_TARGET, self.consortium.encode())
            self.repository.sign_targets()
            self.repository.publish()

    def employ(self, steward: StewardFile) -> None:
        """Have a hospital put a steward's key on record."""
        desk = self.desks[SiteID(steward.site)]
        with self._publishing:
            desk.put(desk.paths.steward(steward.steward), steward.encode())
            desk.sign()
            self.repository.publish()

    def publish_study(self, study_id: str, study: bytes, model: bytes) -> None:
        """Put a study into the repository, or a new version of it."""
        with self._publishing:
            studies = self.repository.studies
            self.repository.put(studies, f"studies/{study_id}/model.onnx", model)
            self.repository.put(studies, f"studies/{study_id}/study.json", study)
            self.repository.sign_role("studies", studies)
            self.repository.publish()

    def withdraw_study(self, study_id: str) -> None:
        """Take a study out of the repository."""
        with self._publishing:
            studies = self.repository.studies
            for name in ("study.json", "model.onnx"):
                del studies.targets[f"studies/{study_id}/{name}"]
            self.repository.sign_role("studies", studies)
            self.repository.publish()

    def revoke(self, site: SiteID, key: ec.EllipticCurvePublicKey) -> None:
        """Have a hospital revoke a box."""
        with self._publishing:
            self.desks[site].revoke(key)
            self.desks[site].sign()
            self.repository.publish()

    def swap_keys(self, site: SiteID) -> str:
        """Name another key for a hospital, without its old one saying so; returns the new key's id."""
        signer = new_signer()
        with self._publishing:
            self.repository.delegate_site(site, signer)
            self.desks[site].signers = [signer]
            self.desks[site].sign()
            self.repository.publish()
        return key_id(public_key(signer))

    @override
    def publish(self, node: NodeFile) -> None:
        """Have its hospital sign a box's record, and the SuperLink let it in."""
        super().publish(node)
        desk = self.desks[SiteID(node.site)]
        with self._publishing:
            desk.put(desk.paths.node(node.node), node.encode())
            desk.sign()
            self.repository.publish()
        if self.superlink is not None:
            link = parse_public_pem(node.link_key)
            self.node_ids[node.site] = register_quickly(self.superlink, link, name=node.node)

    @override
    def _answer(self, asked: Asked) -> Said:
        path = asked.path.removeprefix("/repository/")
        if path == asked.path:
            return super()._answer(asked)
        with self._publishing:
            data = self.repository.files.get(path)
        return Said(404) if data is None else Said(body=data)

    def token_for(self, site: SiteID, **changes: Any) -> str:  # noqa: ANN401 - any part of a token
        """Issue a token for one hospital."""
        return self.token(site=site, **changes)
