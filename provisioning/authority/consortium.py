"""Founding a consortium: from nothing to a published repository, in steps of which each can be begun again.

What was asked for is written down first, so that a second call founds the same consortium; every later step looks
whether it is done, and does what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from securesystemslib.signer import Signer, SSlibKey
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from agent.core.clock import Clock
from agent.core.config import Address
from agent.core.errors import OperatorError
from agent.core.files import store_atomically
from agent.core.ids import IdentifierText
from agent.core.validation import explain_invalid
from agent.statements.roots import KeyKind
from agent.trust.delegations import RELEASES, SITES, STUDIES
from agent.trust.records import (
    CONSORTIUM_TARGET,
    ConsortiumRecord,
    EvidenceTerms,
    ServerRecord,
    public_pem,
)
from agent.trust.snapshot import Environment
from agent.trust.study import EvidenceName
from provisioning.authority.cosigner import STATE_FILE, encode_state
from provisioning.authority.keyring import Keyring
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.online import LocalOnlineSigner
from provisioning.authority.publisher import Publisher
from provisioning.authority.repository import Change, RepositoryFiles, make_directory
from provisioning.authority.roles import DELEGATED, RoleKeys, new_role, new_root, new_sites, new_targets, sign
from provisioning.authority.signers import (
    FILE_SCHEME,
    Secrets,
    create_file_key,
    elliptic_key,
    listed_key,
    load_file_key,
    private_pem,
)
from provisioning.authority.superlink import SuperLinkConnection
from provisioning.authority.tls import CertificateAuthority, create_authority, issue_server, store_server
from provisioning.registrar.settings import render_table

KEYS_A_ROLE: Final = 2
"""How many keys each offline role has, and how many of them must sign: one of each organisation where there are two."""
MIN_PASSPHRASE_CHARACTERS: Final = 15  # NIST SP 800-63B-4 3.1.1.2, for a secret that stands alone
_REGISTRAR_KEY, _COORDINATOR_KEY, _ONLINE_KEY, _AUTHORITY_KEY = "registrar.pem", "coordinator.pem", "online.pem", "ca"
COSIGNER_STATE: Final = "state"
_ALL_KINDS: Final = (KeyKind.TPM, KeyKind.PIV, KeyKind.FIDO2, KeyKind.PKCS11)

MakerName = Literal["test", "virtual", "hardware"]


class FoundingPlan(BaseModel):
    """What is asked for; kept in `founding.json`.

    Args:
        id: Short name of the consortium.
        name: As people call it.
        registrar: `host:port` where boxes reach the registrar.
        superlink: `host:port` where they reach the SuperLink.
        organisations: How many hold its keys.
        cosigner: `host:port` of the second organisation's cosigner.
        root_keys: URIs of the root's keys; empty for key files, one an organisation where there are two.
        threshold: How many of the root's keys must sign.
        environment: What the consortium is for.
        minimum_evidence: The least evidence class of boxes' keys.
        makers: Certificates (PEM) of makers, by evidence class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["secur-e-health/founding/1"] = "secur-e-health/founding/1"
    id: IdentifierText
    name: Annotated[str, Field(min_length=1, max_length=200)]
    registrar: Address
    superlink: Address
    organisations: Annotated[int, Field(ge=1, le=2)] = 1
    cosigner: Address | None = None
    root_keys: Annotated[tuple[str, ...], Field(max_length=16)] = ()
    threshold: Annotated[int, Field(ge=1, le=16)] = 2
    environment: Environment = Environment.PRODUCTION
    minimum_evidence: EvidenceName = "hardware"
    makers: dict[MakerName, str] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.organisations == 2) != (self.cosigner is not None):
            raise ValueError("name the cosigner's host:port where there are two organisations, and only there")
        keys = len(set(self.root_keys)) or KEYS_A_ROLE
        if self.threshold > keys:
            raise ValueError(f"{self.threshold} keys must sign the root, and it has {keys}")
        if self.environment is Environment.PRODUCTION and self.threshold < KEYS_A_ROLE:
            raise ValueError("one key alone must not be able to change the root of a production consortium")
        if self.environment is Environment.PRODUCTION and (
            self.minimum_evidence in {"none", "test"} or "test" in self.makers
        ):
            raise ValueError("simulators and keys without evidence count in a test consortium only")
        return self


@dataclass(frozen=True, slots=True)
class Step:
    """One part of founding.

    Args:
        what: What it makes, in plain words.
        is_done: Whether it was made already.
        do: Makes what is missing of it.
    """

    what: str
    is_done: Callable[[], bool]
    do: Callable[[], None]


def take_missing(steps: Sequence[Step], tell: Callable[[str], object]) -> bool:
    """Take the steps that were not taken yet, in order; returns whether there were any.

    Args:
        steps: All of them.
        tell: Told of each as it was taken.
    """
    missing = [step for step in steps if not step.is_done()]
    for step in missing:
        step.do()
        tell(step.what)
    return bool(missing)


class Founding:
    """Founds a consortium in a directory.

    Args:
        layout: The directory.
        plan: What is asked for.
        passphrases: Of the key files, one an organisation; empty in a test consortium, whose keys lie open.
        secrets: Asked for the PINs of hardware keys.
        clock: For times of expiry.
    """

    def __init__(
        self, layout: AuthorityLayout, plan: FoundingPlan, passphrases: Sequence[str], secrets: Secrets, clock: Clock
    ) -> None:
        self._layout = layout
        self._plan = plan
        self._passphrases: tuple[str | None, ...] = tuple(passphrases) or (None,) * plan.organisations
        self._secrets = secrets
        self._clock = clock
        self._files = RepositoryFiles(layout.repository)
        check_passphrases(plan, passphrases)

    @property
    def steps(self) -> tuple[Step, ...]:
        """All parts, in order."""
        steps = [
            Step("what was asked for", self._layout.founding.exists, self._write_plan),
            Step("private keys", self._has_keys, self._make_keys),
            Step("certificates of the servers", self._has_certificates, self._make_certificates),
            Step("settings of the servers", self._has_settings, self._write_settings),
            Step("the trust repository", self._is_published, self._publish),
        ]
        if self._plan.organisations > 1:
            steps.append(Step("what the cosigner begins with", self._cosigner_state.exists, self._write_cosigner_state))
        return tuple(steps)

    def run(self, tell: Callable[[str], object]) -> bool:
        """Do what is missing.

        Args:
            tell: Told of each part as it is made.

        Returns:
            Whether anything was missing.

        Raises:
            OperatorError: The directory holds another consortium (`authority.other_plan`), or a passphrase is wrong.
            HardwareError: A key's device or the disk does not answer.
        """
        self._check_plan()
        return take_missing(self.steps, tell)

    def describe(self) -> list[str]:
        """What there will be, in plain words, a line each; nothing is made."""
        plan = self._plan
        root = plan.root_keys or tuple(f"{FILE_SCHEME}:{path}" for path in self._role_keys(Root.type))
        lines = [
            f"{plan.name} ({plan.id}), for {plan.environment.value}, in {self._layout.path}",
            f"root, signed by {plan.threshold} of: {', '.join(root)}",
        ]
        lines += [f"{role}, signed by: {', '.join(self._role_keys(role))}" for role in (Targets.type, *DELEGATED)]
        lines.append(f"timestamp and snapshot, signed by: {', '.join(self._online_keys())}")
        lines.append(f"keys of registrar and coordinator: {_REGISTRAR_KEY}, {_COORDINATOR_KEY}")
        lines += [f"certificate of the {name} at {address}" for name, address in self._servers().items()]
        return lines

    def _check_plan(self) -> None:
        try:
            stored = FoundingPlan.model_validate_json(self._layout.founding.read_bytes())
        except FileNotFoundError:
            return
        except ValidationError as error:
            raise _other_plan(f"its founding.json is damaged ({explain_invalid(error, whole='file')})") from error
        if stored != self._plan:
            names = [name for name in FoundingPlan.model_fields if getattr(stored, name) != getattr(self._plan, name)]
            raise _other_plan(f"it was begun with another {' and another '.join(names)}")

    def _write_plan(self) -> None:
        make_directory(self._layout.path)
        store_atomically(self._layout.founding, self._plan.model_dump_json(indent=2).encode() + b"\n")

    # Private keys.

    def _organisation(self, number: int) -> AuthorityLayout:
        """Where an organisation's keys lie, counted from 0."""
        return self._layout.second_organisation if number and self._plan.organisations > 1 else self._layout

    def _passphrase(self, number: int) -> str | None:
        return self._passphrases[number if self._plan.organisations > 1 else 0]

    def _key_files(self) -> dict[str, int]:
        """Paths of all key files, below the directory, and whose each is."""
        roles = [
            role for role in (Root.type, Targets.type, *DELEGATED) if role != Root.type or not self._plan.root_keys
        ]
        found = {path: number for role in roles for number, path in enumerate(self._role_keys(role))}
        found |= {path: number for number, path in enumerate(self._online_keys())}
        return found | {f"keys/{name}": 0 for name in (_REGISTRAR_KEY, _COORDINATOR_KEY)}

    def _role_keys(self, role: str) -> list[str]:
        return [self._key_path(f"{role}-{number + 1}.pem", number) for number in range(KEYS_A_ROLE)]

    def _online_keys(self) -> list[str]:
        return [self._key_path(_ONLINE_KEY, number) for number in range(self._plan.organisations)]

    def _key_path(self, name: str, number: int) -> str:
        return (self._organisation(number).keys / name).relative_to(self._layout.path).as_posix()

    def _has_keys(self) -> bool:
        return self._layout.signers.exists() and all((self._layout.path / path).exists() for path in self._key_files())

    def _make_keys(self) -> None:
        keyring = Keyring(self._layout, self._secrets)
        for path, number in self._key_files().items():
            place = self._layout.path / path
            if not place.exists():
                create_file_key(place, self._passphrase(number))
            keyring.remember(self._open(path), f"{FILE_SCHEME}:{path}")
        for uri in self._plan.root_keys:
            keyring.remember(keyring.open(uri), uri)

    def _open(self, path: str) -> Signer:
        number = self._key_files()[path]
        return Keyring(self._layout, lambda _: self._passphrase(number) or "").open(f"{FILE_SCHEME}:{path}")

    # Certificates.

    def _servers(self) -> dict[str, str]:
        """Addresses by server."""
        servers = {"registrar": self._plan.registrar, "superlink": self._plan.superlink}
        return servers if self._plan.cosigner is None else servers | {"cosigner": self._plan.cosigner}

    def _server_layout(self, server: str) -> AuthorityLayout:
        return self._layout.second_organisation if server == "cosigner" else self._layout

    def _has_certificates(self) -> bool:
        return all(self._is_whole(server) for server in self._servers())

    def _is_whole(self, server: str) -> bool:
        directory = self._server_layout(server).tls / server
        try:
            certificate = x509.load_pem_x509_certificate((directory / "server.pem").read_bytes())
            key = load_pem_private_key((directory / "server.key").read_bytes(), None)
            root = x509.load_pem_x509_certificate((directory / "root.pem").read_bytes())
        except (OSError, ValueError):
            return False
        return key.public_key() == certificate.public_key() and root == self._load_authority_certificate()

    def _make_certificates(self) -> None:
        authority = self._authority()
        for server, address in self._servers().items():
            if not self._is_whole(server):
                certificate = issue_server(authority, [_host(address)], now=self._clock.now())
                store_server(self._server_layout(server).tls / server, authority, certificate)

    def _load_authority_certificate(self) -> x509.Certificate | None:
        try:
            return x509.load_pem_x509_certificate((self._layout.tls / "authority.pem").read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def _authority(self) -> CertificateAuthority:
        """The authority that issues the servers' certificates; made where it is missing."""
        place, passphrase = self._layout.tls / "authority.key", self._passphrase(0)
        certificate = self._load_authority_certificate()
        if certificate is not None:
            return CertificateAuthority(certificate, load_file_key(place, lambda _: passphrase or ""))
        authority = create_authority(f"{self._plan.name[:50]} servers", now=self._clock.now())
        make_directory(self._layout.tls)
        # The key first: a certificate without its key could never issue again.
        store_atomically(place, private_pem(authority.key, passphrase), mode=0o600)
        store_atomically(self._layout.tls / "authority.pem", authority.certificate_pem)
        return authority

    # Settings.

    def _settings(self) -> Mapping[AuthorityLayout, Mapping[str, object]]:
        plan = self._plan
        registrar: dict[str, object] = {
            "listen": f"0.0.0.0:{_port(plan.registrar)}",
            "tls": {
                "certificate": "tls/registrar/server.pem",
                "key": "tls/registrar/server.key",
                "authority": "tls/authority.pem",
            },
            "keys": {
                "registrar": f"{FILE_SCHEME}:keys/{_REGISTRAR_KEY}",
                "online": f"{FILE_SCHEME}:keys/{_ONLINE_KEY}",
            },
            "superlink": {
                "address": plan.superlink,
                "home": "superlink",
                "root_certificates": "tls/authority.pem",
            },
        }
        if plan.cosigner is None:
            return {self._layout: registrar}
        registrar["cosigner"] = {"address": plan.cosigner, "root_certificates": "tls/authority.pem"}
        cosigner = {
            "listen": f"0.0.0.0:{_port(plan.cosigner)}",
            "state": COSIGNER_STATE,
            "key": f"{FILE_SCHEME}:keys/{_ONLINE_KEY}",
            "tls": {"certificate": "tls/cosigner/server.pem", "key": "tls/cosigner/server.key"},
        }
        return {self._layout: registrar, self._layout.second_organisation: cosigner}

    def _settings_files(self) -> dict[str, bytes]:
        first, *second = self._settings().values()
        files = {self._layout.registrar_settings.name: render_table(first)}
        place = self._layout.second_organisation.cosigner_settings.relative_to(self._layout.path)
        return files | {place.as_posix(): render_table(table) for table in second}

    def _has_settings(self) -> bool:
        return all((self._layout.path / name).exists() for name in self._settings_files())

    def _write_settings(self) -> None:
        authority = self._layout.tls / "authority.pem"
        SuperLinkConnection(self._layout.superlink, self._plan.superlink, authority.resolve()).store()
        for name, data in self._settings_files().items():
            if not (self._layout.path / name).exists():
                store_atomically(self._layout.path / name, data, mode=0o600)  # a database's password may stand there

    # The repository.

    def _is_published(self) -> bool:
        return (self._layout.repository / "timestamp.json").exists() and not self._layout.proposal.exists()

    def _publish(self) -> None:
        online = [self._open(path) for path in self._online_keys()]
        publisher = Publisher(self._layout, [LocalOnlineSigner(signer) for signer in online], self._clock)
        if publisher.resume().timestamp:
            return
        publisher.publish(self._first_change())

    @property
    def _cosigner_state(self) -> Path:
        return self._layout.second_organisation.path / COSIGNER_STATE / STATE_FILE

    def _write_cosigner_state(self) -> None:
        make_directory(self._cosigner_state.parent)
        store_atomically(self._cosigner_state, encode_state(self._files.load()), mode=0o600)

    def _first_change(self) -> Change:
        now = self._clock.now()
        signers = {role: [self._open(path) for path in self._role_keys(role)] for role in (Targets.type, *DELEGATED)}
        signers[Root.type] = self._root_signers()
        online = [self._open(path) for path in self._online_keys()]
        keys = {role: RoleKeys(_public(owners), KEYS_A_ROLE) for role, owners in signers.items()}
        keys[Root.type] = RoleKeys(_public(signers[Root.type]), self._plan.threshold)
        keys |= dict.fromkeys((Snapshot.type, Timestamp.type), RoleKeys(_public(online), len(online)))
        top = {name: keys[name] for name in (Root.type, Snapshot.type, Targets.type, Timestamp.type)}
        files = {CONSORTIUM_TARGET: self._record().encode()}
        root = new_root(top, self._plan.environment, version=1, now=now)
        unsigned: dict[str, Metadata[Targets]] = {
            Targets.type: new_targets({name: keys[name] for name in DELEGATED}, files, now=now),
            SITES: new_sites(now=now),
            STUDIES: new_role(STUDIES, now=now),
            RELEASES: new_role(RELEASES, now=now),
        }
        roles = {name: sign(metadata, signers[name]).to_bytes() for name, metadata in unsigned.items()}
        return Change((sign(root, signers[Root.type]).to_bytes(),), roles, files)

    def _root_signers(self) -> list[Signer]:
        if not self._plan.root_keys:
            return [self._open(path) for path in self._role_keys(Root.type)]
        keyring = Keyring(self._layout, self._secrets)
        return [keyring.open(uri) for uri in self._plan.root_keys]

    def _record(self) -> ConsortiumRecord:
        plan = self._plan
        roots = (self._layout.tls / "authority.pem").read_text(encoding="ascii")
        kinds = (*_ALL_KINDS, KeyKind.SOFTWARE) if plan.environment is Environment.TEST else _ALL_KINDS
        return ConsortiumRecord(
            id=plan.id,
            name=plan.name,
            registrar=ServerRecord(address=plan.registrar, root_certificates=roots),
            superlink=ServerRecord(address=plan.superlink, root_certificates=roots),
            registrar_key=self._public_pem(_REGISTRAR_KEY),
            coordinator=self._public_pem(_COORDINATOR_KEY),
            evidence=EvidenceTerms(minimum=plan.minimum_evidence, kinds=kinds),
            makers=plan.makers,
        )

    def _public_pem(self, name: str) -> str:
        return public_pem(elliptic_key(self._open(f"keys/{name}").public_key))


def check_passphrases(plan: FoundingPlan, passphrases: Sequence[str]) -> None:
    """Check that every organisation protects its keys.

    Raises:
        OperatorError: A passphrase is missing or too short (`authority.weak_passphrase`).
    """
    if not passphrases and plan.environment is Environment.TEST:
        return
    if len(passphrases) != plan.organisations or any(len(text) < MIN_PASSPHRASE_CHARACTERS for text in passphrases):
        raise OperatorError(
            "authority.weak_passphrase",
            f"Each organisation needs a passphrase of at least {MIN_PASSPHRASE_CHARACTERS} characters for its keys.",
            next_step="Take four or more words that nobody would guess, and keep them where the keys are not.",
        )


def _public(signers: Sequence[Signer]) -> tuple[SSlibKey, ...]:
    return tuple(listed_key(elliptic_key(signer.public_key)) for signer in signers)


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def _other_plan(what: str) -> OperatorError:
    return OperatorError(
        "authority.other_plan",
        f"This directory holds another consortium: {what}.",
        next_step="Go on with what it was begun with, or take an empty directory.",
    )
