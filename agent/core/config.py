"""The agent's configuration file (TOML): checked as a whole before anything starts.

    [node]
    state_directory = "/var/lib/secur-e-health"

    [key]
    uri = "tpm:device:/dev/tpmrm0"

    [data]
    catalog = "/etc/secur-e-health/catalog.toml"

    [network]                                          # only where the hospital has a proxy
    proxy = "http://proxy.example.org:3128"

    [vault]                                            # only where a TPM is to seal this box's secrets
    approver = "/etc/secur-e-health/releases.pem"
    approvals = "/var/lib/secur-e-health/approvals"

A box learns all else from the consortium that it is enrolled in. A box that is never enrolled has it pinned instead:

    [node]
    site = "hospital-a"

    [superlink]
    address = "superlink.example.org:8000"
    root_certificates = "/etc/secur-e-health/root.pem"

    [studies]
    directory = "/var/lib/secur-e-health/studies"

    [roster]
    file = "/etc/secur-e-health/roster.json"

    [update]                                           # only where releases come over the network
    url = "https://releases.example.org/"
    channel = "stable"
    window = "02:00-05:00"                             # when the box may change over to another release
    automatic = true

    [governance]                                       # only where they differ from this
    policy = "/etc/secur-e-health/policy.toml"

    [console]                                          # only where the hospital's network may reach the console
    address = "0.0.0.0:8470"
    name = "box.hospital-a.example"
    certificate = "/etc/secur-e-health/console.pem"
    private_key = "/etc/secur-e-health/console.key"

Relative paths start at the file's own directory.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from agent.core.errors import OperatorError
from agent.core.ids import IdentifierText
from agent.core.validation import ADDRESS_PATTERN, explain_invalid

MAX_CONFIG_BYTES = 1 << 18
_SCHEMES_OF_FILES = frozenset({"software", "fido2"})


def _from_directory(path: Path, info: ValidationInfo) -> Path:
    directory = (info.context or {}).get("directory", Path())
    return Path(directory, path)


def _key_from_directory(uri: str, info: ValidationInfo) -> str:
    scheme, _, rest = uri.partition(":")
    place, mark, options = rest.partition("?")
    if scheme not in _SCHEMES_OF_FILES or not place:
        return uri
    return f"{scheme}:{_from_directory(Path(place), info)}{mark}{options}"


def _with_length(window: str) -> str:
    start, _, end = window.partition("-")
    if start == end:
        raise ValueError("a window that ends when it begins is none")
    return window


LocalPath = Annotated[Path, AfterValidator(_from_directory)]
KeyText = Annotated[str, Field(pattern=r"^[a-z0-9]+:", max_length=1000), AfterValidator(_key_from_directory)]
Address = Annotated[str, Field(pattern=ADDRESS_PATTERN, max_length=300)]
RepositoryURL = Annotated[str, Field(pattern=r"^https?://[^\s/?#]+(/[^\s?#]*)?$", max_length=300)]
WindowText = Annotated[
    str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$"), AfterValidator(_with_length)
]
ProxyURL = Annotated[str, Field(pattern=r"^https?://[^\s/]+/?$", max_length=300)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NodeSection(_Section):
    """Who this box is.

    Args:
        site: The hospital, where it is pinned here.
        state_directory: Where the agent keeps what outlives it; only it writes there.
        environment: `demo` admits what a hospital never may: software keys, unprotected updates.
    """

    site: IdentifierText | None = None
    state_directory: LocalPath
    environment: Literal["production", "demo"] = "production"


class SuperLinkSection(_Section):
    """The SuperLink to join.

    Args:
        address: `host:port`.
        root_certificates: PEM file with the only roots that its certificate may come from.
    """

    address: Address
    root_certificates: LocalPath


class NetworkSection(_Section):
    """The way out.

    Args:
        proxy: The hospital's HTTP proxy, where it has one; the environment's proxy variables are not used.
    """

    proxy: ProxyURL | None = None


class EnrolmentSection(_Section):
    """How this box comes to a consortium.

    Args:
        root_digest: SHA-256 (hex) of the first root metadata of the one consortium that this box joins without a
            person's confirmation.
        preset: File of the image that says the same; it need not be there.
        drop: Directory where the reader of sticks leaves what it found (`agent.enrolment.drop`).
    """

    root_digest: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    preset: LocalPath = Path("/usr/share/secur-e-health/consortium.json")
    drop: LocalPath = Path("/run/secur-e-health/token")


class KeySection(_Section):
    """The node's hardware key.

    Args:
        uri: `tpm:...`, `piv:...`, `fido2:<file>`, or (demo only) `software:<file>`.
        sessions_in: `tpm:...`, where a box whose own key is a card or a security key has a TPM too: session keys then
            live in that TPM, not in memory.
    """

    uri: KeyText
    sessions_in: str | None = Field(default=None, pattern=r"^tpm:", max_length=1000)

    @property
    def tpm_uri(self) -> str | None:
        """The box's TPM, if it uses one."""
        return self.uri if self.uri.startswith("tpm:") else self.sessions_in


class VaultSection(_Section):
    """Seals the box's secrets to its TPM and to boot states that somebody approved.

    Args:
        approver: PEM file with the public key (P-256) that approves boot states.
        approvals: Directory with the approvals (`*.cbor`, `agent.attestation.policy.encode_approval`).
    """

    approver: LocalPath
    approvals: LocalPath


class DataSection(_Section):
    """Local data.

    Args:
        catalog: TOML file that lists the data sets.
    """

    catalog: LocalPath


class StudiesSection(_Section):
    """Studies that this box was given.

    Args:
        directory: Holds `<study id>/study.json` and `<study id>/model.onnx`.
    """

    directory: LocalPath


class RosterSection(_Section):
    """The other sites.

    Args:
        file: The pinned roster.
    """

    file: LocalPath


class TrainingSection(_Section):
    """The training worker.

    Args:
        device: `auto` takes the GPU where there is one.
        worker: Socket at which the service manager starts a worker for each connection; without one, workers are
            children of the agent.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    worker: LocalPath | None = None


class UpdateSection(_Section):
    """Where releases of this software come from, and when the box changes over to one.

    Args:
        url: Of the maker's release repository; without one, releases come on sticks alone.
        channel: Which of its channels this box listens to.
        window: Hours of the day in the box's own time zone, `02:00-05:00`.
        automatic: Whether the box takes by itself what the channel offers.
        directory: The updater's own; only it writes there.
        slots: The slot tool's directory.
        slots_status: Where the slot tool says how it stands.
        enrolment: The box's enrolment as its unit shows it to the updater, which may not look into the agent's state.
        root_file: The repository's root, as the package brought it.
        keys_file: Who may sign releases, likewise.
    """

    url: RepositoryURL | None = None
    channel: IdentifierText = "stable"
    window: WindowText = "02:00-05:00"
    automatic: bool = True
    directory: LocalPath = Path("/var/lib/secur-e-health-update")
    slots: LocalPath = Path("/var/lib/secur-e-health-slots")
    slots_status: LocalPath = Path("/run/secur-e-health/slots")
    enrolment: LocalPath = Path("/run/secur-e-health/enrolment.json")
    root_file: LocalPath = Path("/usr/share/secur-e-health/release-root.json")
    keys_file: LocalPath = Path("/usr/share/secur-e-health/release-keys.json")


class ConsoleSection(_Section):
    """The steward's console.

    Args:
        address: Where it listens. Beyond loopback it takes TLS, and asks for a steward's key at the door.
        name: How browsers call it: it is in its address and certificate, and stewards' keys are made for it.
        certificate: PEM file, with the chain above it.
        private_key: PEM file.
    """

    address: Address = "127.0.0.1:8470"
    name: str = Field(default="localhost", pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)
    certificate: LocalPath | None = None
    private_key: LocalPath | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key go together")
        if not self.on_loopback and (self.certificate is None or self.name == "localhost"):
            raise ValueError("beyond loopback it needs certificate, private_key, and the name that browsers use")
        if self.name.rpartition(".")[2].isdigit():
            raise ValueError("name is a number: keys are made for names alone (WebAuthn, 5.1.3)")
        return self

    @property
    def on_loopback(self) -> bool:
        """Whether only this host reaches it."""
        host = self.address.rpartition(":")[0].strip("[]")
        return host in {"localhost", "::1"} or host.startswith("127.")

    @property
    def origin(self) -> str:
        """As browsers state it (RFC 6454 4)."""
        scheme, standard = ("http", "80") if self.certificate is None else ("https", "443")
        port = self.address.rpartition(":")[2]
        return f"{scheme}://{self.name}" + ("" if port == standard else f":{port}")


class GovernanceSection(_Section):
    """Who decides here what this hospital's data are used for, and by which rules.

    Args:
        policy: The site's policy (`agent.governance.policy`); without the file every study is refused.
        origins: Where stewards' assertions may come from beside the console's own address and the box's terminal.
    """

    policy: LocalPath = Path("/etc/secur-e-health/policy.toml")
    origins: tuple[Annotated[str, Field(pattern=r"^https?://[^\s/]+$", max_length=300)], ...] = ()


class FederationSection(_Section):
    """How the node behaves in a federation.

    Args:
        allow_plain: Whether unprotected updates may leave; demonstration and measurements only.
        heartbeats: Whether the consortium's registrar hears every few minutes how the box does.
        fast_poll_s: Least wait between polls, inside a round.
        idle_poll_s: Greatest wait between polls, when idle.
        max_message_bytes: Greatest message taken in.
    """

    allow_plain: bool = False
    heartbeats: bool = True
    fast_poll_s: float = Field(default=0.04, ge=0.005, le=5)
    idle_poll_s: float = Field(default=1.5, ge=0.01, le=60)
    max_message_bytes: int = Field(default=256 << 20, ge=1 << 20, le=1 << 30)


@dataclass(frozen=True, slots=True)
class Pinned:
    """What a box that is not enrolled is told by its configuration.

    Args:
        site: The hospital.
        superlink: The SuperLink to join.
        studies: Directory of the studies that this box was given.
        roster: The pinned roster; None in demonstrations without one.
    """

    site: str
    superlink: SuperLinkSection
    studies: Path
    roster: Path | None


class AgentConfig(_Section):
    """The whole file."""

    node: NodeSection
    key: KeySection
    data: DataSection
    network: NetworkSection = NetworkSection()
    enrolment: EnrolmentSection = EnrolmentSection()
    superlink: SuperLinkSection | None = None
    studies: StudiesSection | None = None
    roster: RosterSection | None = None
    vault: VaultSection | None = None
    training: TrainingSection = TrainingSection()
    update: UpdateSection = UpdateSection()
    federation: FederationSection = FederationSection()
    console: ConsoleSection = ConsoleSection()
    governance: GovernanceSection | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        pinned = self.pinned
        if self.vault is not None and self.key.tpm_uri is None:
            raise ValueError("vault needs a TPM: key.uri or key.sessions_in must begin with tpm:")
        if self.node.environment == "production":
            if self.federation.allow_plain:
                raise ValueError('federation.allow_plain needs node.environment = "demo"')
            if self.key.uri.startswith("software:"):
                raise ValueError('a software key needs node.environment = "demo"')
            if pinned is not None and pinned.roster is None:
                raise ValueError("roster.file is missing")
        if self.governance is not None and pinned is not None and pinned.roster is None:
            raise ValueError("roster.file is missing: governance asks for the stewards that it names")
        if self.governance is not None and self.federation.allow_plain:
            raise ValueError("federation.allow_plain and governance exclude each other: a permit is for masked updates")
        return self

    @property
    def governed_by(self) -> GovernanceSection | None:
        """What governs studies here; None only in demonstrations that leave the section out."""
        if self.governance is None and self.node.environment != "demo":
            return GovernanceSection()
        return self.governance

    @property
    def pinned(self) -> Pinned | None:
        """What is pinned here; None for a box that is, or will be, enrolled.

        Raises:
            ValueError: Only a part of it is; never once the file was checked.
        """
        parts = (self.node.site, self.superlink, self.studies)
        if parts == (None, None, None) and self.roster is None:
            return None
        if self.node.site is None or self.superlink is None or self.studies is None:
            raise ValueError("node.site, superlink and studies go together, and are left out where the box is enrolled")
        roster = None if self.roster is None else self.roster.file
        return Pinned(self.node.site, self.superlink, self.studies.directory, roster)

    @property
    def studies_directory(self) -> Path:
        """Where this box's studies lie: given to it, or fetched from its consortium's repository."""
        pinned = self.pinned
        return self.node.state_directory / "studies" if pinned is None else pinned.studies


def parse_config(data: bytes, *, directory: Path) -> AgentConfig:
    """Parse a configuration file.

    Args:
        data: TOML in UTF-8.
        directory: Where its relative paths start.

    Raises:
        OperatorError: It is no TOML, or breaks a rule; the sentence names the first place at fault.
    """
    try:
        content = tomllib.loads(data.decode("utf-8"))
        return AgentConfig.model_validate(content, context={"directory": directory})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _invalid(str(error)) from error
    except ValidationError as error:
        raise _invalid(explain_invalid(error, whole="configuration"), faults=error.error_count()) from error


def load_config(path: Path) -> AgentConfig:
    """Read and parse a configuration file.

    Raises:
        OperatorError: It cannot be read, is larger than 256 KiB, or `parse_config` refuses it.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise OperatorError(
            "config.unreadable",
            f"The configuration {path} cannot be read: {error.strerror}.",
            next_step="Write it (docs/technician.md shows one), or name another with --config; check its permissions.",
        ) from error
    if len(data) > MAX_CONFIG_BYTES:
        raise _invalid(f"it is larger than {MAX_CONFIG_BYTES} bytes")
    return parse_config(data, directory=path.resolve().parent)


def _invalid(what: str, **details: object) -> OperatorError:
    return OperatorError(
        "config.invalid",
        f"The configuration cannot be used: {what}.",
        next_step="Correct the file and start again; nothing was started.",
        **details,
    )
