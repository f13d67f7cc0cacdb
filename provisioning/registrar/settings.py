"""`registrar.toml`: what the registrar on the operator's host is told. Paths in it begin at the file's directory."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from agent.core.config import Address, LocalPath
from agent.core.errors import OperatorError
from agent.core.validation import explain_invalid

MAX_SETTINGS_BYTES: Final = 1 << 16

KeyURIText = Annotated[str, Field(pattern=r"^[a-z0-9]+:.{1,500}$")]


LOOPBACK: Final = frozenset({"127.0.0.1", "[::1]", "localhost"})


def _check_loopback(address: str) -> str:
    if address.rpartition(":")[0] not in LOOPBACK:
        raise ValueError("name 127.0.0.1, [::1] or localhost: nobody signs in there")
    return address


LoopbackAddress = Annotated[Address, AfterValidator(_check_loopback)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TLSSection(_Section):
    """The registrar's own certificate.

    Args:
        certificate: PEM.
        key: PEM, readable by the registrar only.
        authority: The certificate of whoever issued it, PEM: what tokens pin and `/v1/ca.pem` shows.
    """

    certificate: LocalPath
    key: LocalPath
    authority: LocalPath


class KeysSection(_Section):
    """Keys that sign without a person.

    Args:
        registrar: Names the registrar in evidence, and signs its tokens; P-256.
        online: Signs timestamp and snapshot.
        passphrase_file: Opens key files that are encrypted; the credential `passphrase` of the unit where left out.
    """

    registrar: KeyURIText
    online: KeyURIText
    passphrase_file: LocalPath | None = None


class CosignerSection(_Section):
    """The second organisation's cosigner.

    Args:
        address: `host:port`.
        root_certificates: PEM, the only roots that its certificate may come from.
    """

    address: Address
    root_certificates: LocalPath


class SuperLinkSection(_Section):
    """The consortium's SuperLink.

    Args:
        address: `host:port`.
        home: Flower's home with the operator's connection.
        root_certificates: PEM, the only roots that its certificate may come from.
    """

    address: Address
    home: LocalPath
    root_certificates: LocalPath


class RegistrarSettings(_Section):
    """The whole file.

    Args:
        listen: `host:port` to listen on.
        authority: The authority's directory (`provisioning.authority.layout`).
        database: SQLAlchemy URL.
        tls: Its certificate.
        keys: Its keys.
        superlink: Where enrolled boxes are registered.
        cosigner: The second organisation's; None where there is one organisation.
        operator: `host:port` of this host alone, where the operator's page and metrics are shown; None shows none.
    """

    listen: Address
    authority: LocalPath = Field(default=Path(), validate_default=True)
    database: Annotated[str, Field(max_length=1000, repr=False)] = "sqlite:///registrar.db"
    tls: TLSSection
    keys: KeysSection
    superlink: SuperLinkSection
    cosigner: CosignerSection | None = None
    operator: LoopbackAddress | None = None


def parse_settings(data: bytes, *, directory: Path) -> RegistrarSettings:
    """Parse the file.

    Args:
        data: TOML.
        directory: Where its relative paths begin.

    Raises:
        OperatorError: It is malformed (`registrar.bad_settings`).
    """
    try:
        table = tomllib.loads(data.decode())
        return RegistrarSettings.model_validate(table, context={"directory": directory})
    except ValidationError as error:
        raise _bad_settings(explain_invalid(error, whole="settings")) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _bad_settings(f"it is no TOML: {error}") from error


def load_settings(path: Path) -> RegistrarSettings:
    """Read the file.

    Raises:
        OperatorError: It cannot be read, or is malformed.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_SETTINGS_BYTES)
    except OSError as error:
        raise _bad_settings(f"{path} cannot be read: {error.strerror}") from error
    return parse_settings(data, directory=path.parent)


def render_table(table: Mapping[str, object]) -> bytes:
    """TOML of texts, and of sections of texts.

    Args:
        table: Values are texts or mappings of texts; texts come first.
    """
    return "".join(_lines(table)).encode()


def _lines(table: Mapping[str, object]) -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield f"\n[{name}]\n"
            yield from _lines(value)
        else:
            yield f"{name} = {json.dumps(value)}\n"


def _bad_settings(what: str) -> OperatorError:
    return OperatorError(
        "registrar.bad_settings",
        f"The registrar's settings cannot be used: {what}.",
        next_step="Correct the file; `seh-provision consortium init` writes a whole one.",
    )
