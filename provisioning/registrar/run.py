"""The registrar as one process: HTTPS, one database, one thread that lets boxes in; it ends in order when told to."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cryptography import x509
from securesystemslib.signer import Signer
from sqlalchemy.engine import make_url
from starlette.types import ASGIApp

from agent.core.clock import Clock
from agent.core.errors import OperatorError
from agent.core.ids import SiteID
from agent.web.connection import PatientProtocol
from agent.web.server import Limits, answer, configured, listening
from provisioning.authority.opening import open_online_key, opened_publisher
from provisioning.authority.repository import make_directory, storing
from provisioning.authority.signers import Secrets, elliptic_key, open_signer, sign_der
from provisioning.registrar.app import create_app
from provisioning.registrar.desk import RegistrarDesk, Tools
from provisioning.registrar.limits import address_name
from provisioning.registrar.operator import OperatorDesk, RequestCounter, opened_page
from provisioning.registrar.pairing import IssueToken, PairingDesk
from provisioning.registrar.passkeys import PasskeyServer
from provisioning.registrar.publish import Door, PublishedReader, PublishingDesk, Registrations
from provisioning.registrar.settings import RegistrarSettings
from provisioning.registrar.store import Store
from provisioning.tokens.token import Destination, Issuer, TokenEntry, issue, make_tokens

PHONE_TOKEN_S: Final = 900
"""How long a token counts that a technician approved: its box waits for it."""
_STANDARD_PORT: Final = ":443"  # which an origin leaves out (RFC 6454 4)


class BoxProtocol(PatientProtocol):
    """A hospital's boxes and tools often share one address; each has a few connections."""

    max_from_address = 200
    patience_s = 20.0
    counted_as = staticmethod(address_name)


LIMITS: Final = Limits(BoxProtocol, connections=1000, header_bytes=1 << 15, grace_s=3)


@dataclass(frozen=True, slots=True)
class RegistrarKeys:
    """Keys that sign without a person.

    Args:
        online: Signs timestamp and snapshot.
        registrar: Signs tokens of the registrar's own.
    """

    online: Signer
    registrar: Signer


def open_keys(settings: RegistrarSettings, ask: Secrets) -> RegistrarKeys:
    """Open the keys that the settings name.

    Args:
        settings: Of the registrar.
        ask: For passphrases.

    Raises:
        OperatorError, HardwareError: One cannot be opened.
    """
    registrar = open_signer(settings.keys.registrar, ask, base=settings.authority)
    return RegistrarKeys(open_online_key(settings, ask), registrar)


@contextmanager
def opened_registrar(settings: RegistrarSettings, keys: RegistrarKeys, door: Door, clock: Clock) -> Iterator[ASGIApp]:
    """The registrar's application, with all that it works with; goes on first where an earlier one stopped.

    Args:
        settings: Its settings.
        keys: On this host.
        door: Lets boxes in.
        clock: For everything that has a date.

    Raises:
        SecureHealthError: A part cannot be opened.
    """
    authority = _authority(settings.tls.authority)
    with opened_publisher(settings, keys.online, clock) as publisher:
        store = Store.open(database_url(settings), clock)
        try:
            reader = PublishedReader(publisher.files, clock)
            publishing = PublishingDesk(publisher, reader, store, door, clock)
            publishing.resume()
            with Registrations(publishing) as registrations:
                tools = Tools(store, reader, publishing, registrations.wake, clock, secrets.token_bytes)
                record = reader.current().snapshot.consortium
                origin = f"https://{record.registrar.address.removesuffix(_STANDARD_PORT)}"
                issue_token = _token_maker(reader, store, keys.registrar, clock)
                pairing = PairingDesk(PasskeyServer(origin), store, issue_token, clock, secrets.token_bytes)
                app = create_app(
                    RegistrarDesk(tools),
                    pairing,
                    consortium=record.name,
                    authority=authority,
                    repository=publisher.files.path,
                    clock=clock,
                )
                counter = RequestCounter(app)
                with opened_page(settings.operator, OperatorDesk(reader, store, clock, counter.registry), clock):
                    yield counter
        finally:
            store.close()


class Listening(Protocol):
    """Where a server listens, and with which certificate; the settings of registrar and cosigner."""

    @property
    def listen(self) -> str:
        """`host:port`."""
        ...

    @property
    def tls(self) -> Certified:
        """Its certificate."""
        ...


class Certified(Protocol):
    """A certificate and its key, PEM."""

    @property
    def certificate(self) -> Path:
        """With the chain above it."""
        ...

    @property
    def key(self) -> Path:
        """Unencrypted."""
        ...


def serve(app: ASGIApp, settings: Listening, *, ready: Callable[[], None]) -> None:
    """Answer over HTTPS until SIGTERM or SIGINT.

    Args:
        app: Answers.
        settings: Where, and with which certificate.
        ready: Called once it listens.

    Raises:
        OperatorError: It cannot listen there, or has no certificate (`registrar.cannot_serve`).
    """
    try:
        config = configured(app, LIMITS, settings.tls.certificate, settings.tls.key)
        listener = listening(settings.listen, LIMITS.connections)
    except (OSError, ValueError, OverflowError) as error:
        raise OperatorError(
            "registrar.cannot_serve",
            f"The registrar cannot answer at {settings.listen}: {error}.",
            next_step="Correct `listen` and `tls` in its settings, or stop what listens there.",
        ) from error
    answer(config, listener, ready=ready, ending=lambda: notify("STOPPING=1"))


def notify(state: str) -> None:
    """Tell systemd, where it started us (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
        line.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def _token_maker(reader: PublishedReader, store: Store, signer: Signer, clock: Clock) -> IssueToken:
    issuer = Issuer(elliptic_key(signer.public_key), lambda data: sign_der(signer, data))

    def make(site: SiteID, ek_name: bytes) -> str:
        snapshot = reader.current().snapshot
        destination = Destination.of(snapshot.consortium.registrar, snapshot.root_digest)
        expires_s = int(clock.now().timestamp()) + PHONE_TOKEN_S
        tokens = make_tokens(
            destination, site, boxes=[ek_name or None], expires_s=expires_s, random_bytes=secrets.token_bytes
        )
        (issued,) = issue(tokens, issuer, _StoreRegister(store), None)
        return issued.text

    return make


@dataclass(frozen=True, slots=True)
class _StoreRegister:
    """`TokenRegister` on the registrar's own host."""

    store: Store

    def add(self, entry: TokenEntry) -> None:
        self.store.add_token(entry)


def database_url(settings: RegistrarSettings) -> str:
    """SQLAlchemy's URL of the registrar's database; the folder of a file is made."""
    url = make_url(settings.database)
    if url.get_backend_name() == "sqlite" and url.database:
        path = settings.authority / url.database
        with storing():
            make_directory(path.parent)
        url = url.set(database=str(path))
    return url.render_as_string(hide_password=False)


def _authority(path: Path) -> bytes:
    try:
        pem = path.read_bytes()
        x509.load_pem_x509_certificate(pem)
    except (OSError, ValueError) as error:
        raise OperatorError(
            "registrar.bad_authority",
            f"{path} holds no certificate that tokens could pin.",
            next_step="Restore it from the authority's `tls` folder.",
        ) from error
    return pem
