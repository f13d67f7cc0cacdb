"""What the site's endorsing tool keeps of each token that its own key issued: one small file each, in its state."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.core.errors import OperatorError
from agent.core.files import store_atomically
from agent.core.ids import IdentifierText
from agent.core.validation import explain_invalid
from agent.statements.kinds import Hex32, Seconds
from agent.trust.token import Token

MAX_FILE_BYTES = 4096
_TOKEN_ID = re.compile(r"[0-9a-f]{16}")


class KeptToken(BaseModel):
    """One token, as the site keeps it.

    Args:
        id: Hex.
        site: The hospital.
        secret: `agent.trust.token.site_secret`, hex: what a box proves the token with.
        expires_s: From when it counts no more.
        ek_digest: Of the one box that may use it, hex; None where any may.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    site: IdentifierText
    secret: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    expires_s: Seconds
    ek_digest: Hex32 | None = None

    @classmethod
    def of(cls, token: Token, secret: bytes) -> Self:
        """What is kept of `token`, whose site secret is `secret`."""
        bound = None if token.ek_digest is None else token.ek_digest.hex()
        return cls(id=token.id.hex(), site=token.site, secret=secret.hex(), expires_s=token.expires_s, ek_digest=bound)


class SiteTokenFiles:
    """Kept tokens under `directory`, each in `<id>.json`, readable by their owner only.

    Args:
        directory: Made when the first is kept.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, kept: KeptToken) -> None:
        """Keep it; on disk when this returns."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        store_atomically(self._path(kept.id), kept.model_dump_json(indent=2).encode() + b"\n", mode=0o600)

    def find(self, token_id: str) -> KeptToken | None:
        """The token called `token_id` (hex); None where this site's key issued none of that name.

        Raises:
            OperatorError: Its file cannot be used (`token.bad_file`).
        """
        if not _TOKEN_ID.fullmatch(token_id):
            return None
        path = self._path(token_id)
        try:
            with path.open("rb") as stream:
                return KeptToken.model_validate_json(stream.read(MAX_FILE_BYTES))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _bad_file(path, error.strerror or "it cannot be read") from error
        except ValidationError as error:
            raise _bad_file(path, explain_invalid(error, whole="token")) from error

    def _path(self, token_id: str) -> Path:
        return self._directory / f"{token_id}.json"


class UsedTokenFiles:
    """Which box used which token, each in `<id>.used` under `directory`; written once, never changed.

    Args:
        directory: Made when the first is noted.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, token_id: str, key_id: str) -> None:
        """Note that a box used a token; on disk when this returns.

        Args:
            token_id: Hex.
            key_id: Of the box's key, hex.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        store_atomically(self._path(token_id), key_id.encode("ascii"), mode=0o600)

    def find(self, token_id: str) -> str | None:
        """Key id (hex) of the box that used a token; None where none did."""
        try:
            return self._path(token_id).read_text("ascii")
        except FileNotFoundError:
            return None

    def _path(self, token_id: str) -> Path:
        return self._directory / f"{token_id}.used"


def _bad_file(path: Path, what: str) -> OperatorError:
    return OperatorError(
        "token.bad_file",
        f"What is kept of an enrolment token in {path} cannot be used: {what}.",
        next_step="Restore the file from a backup, or issue another token.",
    )
