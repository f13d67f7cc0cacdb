"""The parts that the registrar's host needs, opened as its settings say."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from securesystemslib.signer import Signer

from agent.core.clock import Clock
from agent.core.errors import OperatorError
from provisioning.authority.cosigner_line import CosignerLine
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.online import LocalOnlineSigner, OnlineSigner
from provisioning.authority.publisher import Publisher
from provisioning.authority.signers import Secrets, open_signer
from provisioning.registrar.settings import RegistrarSettings

CREDENTIAL_NAME: Final = "passphrase"
MAX_PASSPHRASE_BYTES: Final = 4096


@contextmanager
def opened_publisher(settings: RegistrarSettings, online: Signer, clock: Clock) -> Iterator[Publisher]:
    """The publisher, with the cosigner's line where there is one.

    Args:
        settings: Of the registrar.
        online: The online key on this host.
        clock: For times of expiry.

    Raises:
        OperatorError: The cosigner's root certificate cannot be used (`authority.bad_root_certificates`).
    """
    signers: list[OnlineSigner] = [LocalOnlineSigner(online)]
    with ExitStack() as stack:
        if settings.cosigner is not None:
            trust = _trust(settings.cosigner.root_certificates)
            signers.append(stack.enter_context(CosignerLine(settings.cosigner.address, trust)))
        yield Publisher(AuthorityLayout(settings.authority), signers, clock)


def open_online_key(settings: RegistrarSettings, secrets: Secrets) -> Signer:
    """The online key on this host.

    Raises:
        OperatorError, HardwareError: It cannot be opened.
    """
    return open_signer(settings.keys.online, secrets, base=settings.authority)


def unattended_secrets(passphrase_file: Path | None, environment: Mapping[str, str]) -> Secrets:
    """Answers for a service: the passphrase from a file, or from the unit's credential; nothing else.

    Args:
        passphrase_file: From the settings.
        environment: `CREDENTIALS_DIRECTORY` is read, as systemd sets it.
    """

    def answer(what: str) -> str:
        folder = environment.get("CREDENTIALS_DIRECTORY")
        path = passphrase_file or (Path(folder) / CREDENTIAL_NAME if folder else None)
        if path is None:
            raise OperatorError(
                "authority.no_passphrase",
                f"The {what} is needed, and nobody is there to give it.",
                next_step="Give the unit a credential named `passphrase`, or name a passphrase_file in the settings.",
            )
        return read_passphrase(path)

    return answer


def read_passphrase(path: Path) -> str:
    """The passphrase that is a file's first line.

    Raises:
        OperatorError: It cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_PASSPHRASE_BYTES).decode().partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(
            "authority.no_passphrase_file",
            f"The passphrase cannot be read from {path}.",
            next_step="Check the file and its permissions.",
        ) from error


def _trust(path: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(path))
    except OSError as error:
        raise OperatorError(
            "authority.bad_root_certificates",
            f"{path} holds no certificates that a server could be known by.",
            next_step="Restore it from the authority's `tls` folder.",
        ) from error
