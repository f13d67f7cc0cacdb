"""The consortium's side of the demonstration: its repository, its registrar, and each hospital's own tools."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import socket
import ssl
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from securesystemslib.signer import Signer
from tuf.api.metadata import TargetFile, Targets

from agent.core.clock import SystemClock
from agent.core.errors import SecureHealthError
from agent.core.ids import SiteID
from agent.trust.delegations import SITES, STUDIES
from agent.trust.records import ServerRecord, StewardFile, WitnessRecord
from agent.trust.snapshot import Environment
from agent.trust.study import Study
from provisioning.authority.ceremony import Ceremony, add_site
from provisioning.authority.consortium import Founding, FoundingPlan
from provisioning.authority.endorsing import opened_tool
from provisioning.authority.keyring import Keyring
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.online import LocalOnlineSigner
from provisioning.authority.publisher import Publisher
from provisioning.authority.repository import RepositoryFiles
from provisioning.authority.roles import RoleKeys
from provisioning.authority.signers import create_file_key, elliptic_key, listed_key
from provisioning.authority.site import LocalSource, SiteDesk
from provisioning.authority.site_line import SiteLine
from provisioning.authority.site_office import issuer_of
from provisioning.authority.site_repository import SitePlace
from provisioning.authority.superlink import flower_environment
from provisioning.authority.tls import ServerFiles
from provisioning.authority.witnesses import name_witness
from provisioning.tokens.register import SiteRegister
from provisioning.tokens.state import SiteTokenFiles
from provisioning.tokens.token import Destination, Issuer, issue, make_tokens
from tests.demo.parts import Part, PartFailedError, stop_all
from tests.simulators.superlink import HOST, free_port, wait_until

NAME = "The Demonstration Consortium"
PROVISION = Path(sys.executable).parent / "seh-provision"
TOKEN_LASTS_S = 3600
LOOK_EVERY_S = 0.2
START_LIMIT_S = 30.0

log = structlog.get_logger()


def no_secrets(what: str) -> str:
    """Keys of a test consortium lie open: nobody is asked for anything."""
    raise PartFailedError("consortium", f"it asks for the {what}", next_step="Report it.")


@dataclass(slots=True)
class Office:
    """One hospital's own key and the state of its tools.

    Args:
        site: The hospital.
        signer: Its key.
        state: Where its tools keep theirs.
    """

    site: SiteID
    signer: Signer = field(repr=False)
    state: Path

    @property
    def issuer(self) -> Issuer:
        """Signs tokens and requests."""
        return issuer_of(self.signer)


@dataclass(slots=True)
class Authority:
    """A founded consortium; `open_doors` lets boxes come.

    Args:
        layout: Its directory.
        plan: What was asked for.
        offices: Its hospitals.
    """

    layout: AuthorityLayout
    plan: FoundingPlan
    offices: dict[str, Office] = field(default_factory=dict)
    registrar: Part | None = None
    _clock: SystemClock = field(default_factory=SystemClock)

    @classmethod
    def found(cls, directory: Path, makers: Mapping[str, str]) -> Authority:
        """Found it.

        Args:
            directory: An empty place.
            makers: Certificates (PEM) of makers of keys, by evidence class.
        """
        plan = FoundingPlan.model_validate(
            {
                "id": "demonstration",
                "name": NAME,
                "registrar": f"{HOST}:{free_port()}",
                "superlink": f"{HOST}:{free_port()}",
                "environment": Environment.TEST,
                "minimum_evidence": "none",
                "makers": makers,
            }
        )
        layout = AuthorityLayout(directory)
        Founding(layout, plan, (), no_secrets, SystemClock()).run(lambda _: None)
        return cls(layout, plan)

    @property
    def first_root(self) -> bytes:
        """`1.root.json`."""
        return (self.layout.repository / "1.root.json").read_bytes()

    @property
    def root_digest(self) -> str:
        """What boxes pin, hex."""
        return hashlib.sha256(self.first_root).hexdigest()

    @property
    def coordinator_key(self) -> bytes:
        """The coordinator's private key, PEM."""
        return (self.layout.keys / "coordinator.pem").read_bytes()

    @property
    def superlink_files(self) -> ServerFiles:
        """The SuperLink's certificate."""
        place = self.layout.tls / "superlink"
        return ServerFiles(place / "server.pem", place / "server.key", self.layout.tls / "authority.pem")

    def name_witness(self, witness: WitnessRecord) -> None:
        """Put the witness into the consortium's record."""
        name_witness(self._ceremony, RepositoryFiles(self.layout.repository), witness)

    def admit(self, hospitals: Mapping[str, Path], stewards: Mapping[str, StewardFile]) -> None:
        """Take hospitals in; each makes its own key, and signs its first record.

        Args:
            hospitals: Directory of each hospital's own tools, by site.
            stewards: Each hospital's steward, where it has one, by site.
        """
        for site, state in hospitals.items():
            signer = create_file_key(state / "site.pem", None)
            self.offices[site] = Office(SiteID(site), signer, state)

        def edit(sites: Targets) -> None:
            for office in self.offices.values():
                keys = RoleKeys((listed_key(elliptic_key(office.signer.public_key)),), 1)
                add_site(office.site, keys)(sites)

        self._ceremony.change(SITES, edit)
        publisher = self._publisher
        for office in self.offices.values():
            desk = SiteDesk(office.site, LocalSource(publisher.files), [office.signer], self._clock)
            steward = stewards.get(office.site)
            staged = desk.stage() if steward is None else desk.add_steward(steward)
            publisher.publish_site(office.site, staged.metadata, staged.targets)

    def publish_study(self, study: Study, study_file: bytes, model: bytes) -> None:
        """Put a study into the repository."""
        folder = f"studies/{study.id}"
        files = {f"{folder}/study.json": study_file, f"{folder}/model.onnx": model}

        def edit(studies: Targets) -> None:
            studies.targets |= {path: TargetFile.from_data(path, data, ["sha256"]) for path, data in files.items()}

        self._ceremony.change(STUDIES, edit, targets=files)

    @contextmanager
    def open_doors(self, home: Path) -> Iterator[None]:
        """Run the registrar as a process, and each hospital's tool in a thread, inside the block.

        Args:
            home: Flower's, for the registrar's own calls.
        """
        self.registrar = Part.start(
            "registrar",
            [str(PROVISION), "registrar", "run", "--config", str(self.layout.registrar_settings)],
            log=self.layout.path / "registrar.log",
            environment=flower_environment(home),
        )
        stop = threading.Event()
        threads = [threading.Thread(target=self._endorse, args=(office, stop)) for office in self.offices.values()]
        try:
            wait_until(self._answers, limit_s=START_LIMIT_S, what="the registrar answers over TLS")
            for thread in threads:
                thread.start()
            yield
        finally:
            stop.set()
            for thread in threads:
                if thread.is_alive():
                    thread.join()
            stop_all([self.registrar])

    def issue_token(self, site: str) -> str:
        """Have a hospital issue a token for its box."""
        office = self.offices[site]
        record = ServerRecord(address=self.plan.registrar, root_certificates=self._root_certificates)
        expires_s = int(self._clock.now().timestamp()) + TOKEN_LASTS_S
        destination = Destination.of(record, self.root_digest)
        tokens = make_tokens(
            destination, office.site, boxes=[None], expires_s=expires_s, random_bytes=secrets.token_bytes
        )
        with SiteLine(
            record,
            consortium=self.root_digest,
            site=office.site,
            key=office.issuer,
            clock=self._clock,
            random_bytes=secrets.token_bytes,
        ) as line:
            kept = SiteTokenFiles(self._place(office).tokens)
            return issue(tokens, office.issuer, SiteRegister(line), kept)[0].text

    def check(self) -> None:
        """Raise if the registrar has ended by itself."""
        if self.registrar is not None:
            self.registrar.check()

    def _endorse(self, office: Office, stop: threading.Event) -> None:
        try:
            with opened_tool(
                office.site, office.signer, self._place(office), self._clock, random_bytes=secrets.token_bytes
            ) as tool:
                while not stop.wait(LOOK_EVERY_S):
                    with contextlib.suppress(SecureHealthError):
                        tool.look()
        except SecureHealthError as error:
            log.warning("endorsing_tool_ended", site=office.site, error=error)

    def _place(self, office: Office) -> SitePlace:
        return SitePlace(office.state, self.plan.registrar, self.first_root)

    def _answers(self) -> bool:
        self.check()
        host, _, port = self.plan.registrar.rpartition(":")
        context = ssl.create_default_context(cadata=self._root_certificates)
        try:
            with (
                socket.create_connection((host, int(port)), timeout=2) as plain,
                context.wrap_socket(plain, server_hostname=host),
            ):
                return True
        except OSError:
            return False

    @property
    def _root_certificates(self) -> str:
        return (self.layout.tls / "authority.pem").read_text("ascii")

    @property
    def _publisher(self) -> Publisher:
        online = Keyring(self.layout, no_secrets).open("file:keys/online.pem")
        return Publisher(self.layout, [LocalOnlineSigner(online)], self._clock)

    @property
    def _ceremony(self) -> Ceremony:
        return Ceremony(self.layout, Keyring(self.layout, no_secrets), self._publisher, self._clock)
