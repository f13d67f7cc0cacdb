"""`signers.json`: where each of the authority's keys lives. It holds no secret."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from securesystemslib.signer import Signer

from agent.core.errors import Fault, HardwareError, OperatorError
from agent.core.files import store_atomically
from agent.core.validation import explain_invalid
from agent.statements.kinds import Hex32
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.signers import Secrets, open_signer

_log = structlog.get_logger(__name__)


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["secur-e-health/signers/1"] = "secur-e-health/signers/1"
    keys: Annotated[dict[Hex32, str], Field(max_length=1024)] = {}


class Keyring:
    """Opens the keys that are here.

    Args:
        layout: The authority's directory; relative paths of key files begin there.
        secrets: Asked for passphrases and PINs.
        extra: URIs of further keys, on a medium that was plugged in, say.
    """

    def __init__(self, layout: AuthorityLayout, secrets: Secrets, extra: Iterable[str] = ()) -> None:
        self._layout = layout
        self._secrets = secrets
        self._extra = tuple(extra)
        self._opened: dict[str, Signer] = {}
        self._away: set[str] = set()

    def remember(self, signer: Signer, uri: str) -> None:
        """Note where a key lives.

        Raises:
            OperatorError: The file is damaged.
        """
        keys = {**self._load().keys, signer.public_key.keyid: uri}
        store_atomically(self._layout.signers, _Stored(keys=keys).model_dump_json(indent=2).encode() + b"\n")

    def open(self, uri: str) -> Signer:
        """Open one key.

        Raises:
            OperatorError, HardwareError: It cannot be opened.
        """
        return open_signer(uri, self._secrets, base=self._layout.path)

    def signers(self, keyids: Iterable[str]) -> list[Signer]:
        """Those of the keys that are here.

        Args:
            keyids: Which.

        Raises:
            OperatorError: A passphrase is wrong, or one of the extra keys cannot be opened.
        """
        if not self._opened:
            self._opened = {signer.public_key.keyid: signer for signer in map(self.open, self._extra)}
        return [signer for keyid in keyids if (signer := self._find(keyid)) is not None]

    def _find(self, keyid: str) -> Signer | None:
        uri = self._load().keys.get(keyid)
        if keyid in self._opened or uri is None or uri in self._away:
            return self._opened.get(keyid)
        try:
            signer = self.open(uri)
        except (HardwareError, OperatorError) as error:
            if error.fault is Fault.OPERATOR and error.code != "authority.no_key_file":
                raise
            self._away.add(uri)
            _log.warning("key_is_away", key=uri, why=error.sentence)
            return None
        if signer.public_key.keyid == keyid:
            self._opened[keyid] = signer
        return self._opened.get(keyid)

    def _load(self) -> _Stored:
        try:
            return _Stored.model_validate_json(self._layout.signers.read_bytes())
        except FileNotFoundError:
            return _Stored()
        except ValidationError as error:
            raise OperatorError(
                "authority.bad_signers_file",
                f"{self._layout.signers} cannot be used: {explain_invalid(error, whole='file')}.",
                next_step="Restore it from a backup, or remove it and name each key with --key.",
            ) from error
