"""The registrar's line to the second organisation's cosigner."""

from __future__ import annotations

import ssl
from types import TracebackType
from typing import Final, Self

import httpx
from pydantic import ValidationError

from agent.core.errors import NetworkError, PeerProtocolError, SecureHealthError
from provisioning.authority.cosigner_app import PATH, CosignatureAnswer, Refusal
from provisioning.authority.online import add_signatures
from provisioning.authority.repository import Proposal

LIMIT_S: Final = 30.0
MAX_ANSWER_BYTES: Final = 1 << 14


class CosignerLine:
    """An `OnlineSigner` at another organisation; a context manager.

    Args:
        address: The cosigner's `host:port`.
        trust: Whose certificates count.
    """

    def __init__(self, address: str, trust: ssl.SSLContext) -> None:
        self._address = address
        self._client = httpx.Client(
            base_url=f"https://{address}", verify=trust, timeout=LIMIT_S, follow_redirects=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End its connections."""
        self._client.close()

    def sign(self, proposal: Proposal) -> Proposal:
        """Have it signed.

        Raises:
            PeerProtocolError: The cosigner refuses (`cosigner.refused`).
            NetworkError: It does not answer, or not as a cosigner does (`cosigner.unreachable`).
        """
        try:
            with self._client.stream("POST", PATH, content=proposal.encode()) as response:
                body = self._bounded(response)
        except httpx.TransportError as error:
            raise self._unreachable(str(error)) from error
        if response.status_code == httpx.codes.CONFLICT:
            raise self._refused(body)
        if response.status_code != httpx.codes.OK:
            raise self._unreachable(f"it answered with status {response.status_code}")
        try:
            answer = CosignatureAnswer.model_validate_json(body)
        except ValidationError as error:
            raise self._unreachable("it answered with something else") from error
        snapshot = answer.snapshot.signature if answer.snapshot is not None and proposal.snapshot else None
        return add_signatures(proposal, snapshot=snapshot, timestamp=answer.timestamp.signature)

    def _bounded(self, response: httpx.Response) -> bytes:
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise self._unreachable("it answered with too much")
        return bytes(body)

    def _refused(self, body: bytes) -> SecureHealthError:
        try:
            refusal = Refusal.model_validate_json(body)
        except ValidationError:
            return self._unreachable("it refused without saying why")
        return PeerProtocolError(
            "cosigner.refused",
            f"The second organisation's cosigner does not sign: {refusal.sentence}",
            next_step=refusal.next_step or "Ask the second organisation.",
            cosigner_code=refusal.code,
        )

    def _unreachable(self, what: str) -> NetworkError:
        return NetworkError(
            "cosigner.unreachable",
            f"The second organisation's cosigner at {self._address} does not answer: {what}.",
            next_step="Nothing is published meanwhile. Try again; if it lasts, call the second organisation.",
        )
