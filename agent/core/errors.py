"""Errors that say whose fault it is, in a plain sentence, with the next step and a stable code."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

DOCS_PAGE = "docs/errors.md"


class Fault(StrEnum):
    """Whose fault a failure is."""

    OPERATOR = "operator"
    PEER = "peer"
    HARDWARE = "hardware"
    NETWORK = "network"
    SOFTWARE = "software"


class SecureHealthError(Exception):
    """A failure that a person can act on.

    Args:
        code: Stable, dotted, lower-case identifier, e.g. `data.schema_mismatch`; never reused for another meaning.
        sentence: What happened, in plain words, without secrets and without patient values.
        next_step: What the reader should do now.
        details: Facts for the log (counts, names, limits); never secrets.
    """

    fault: ClassVar[Fault] = Fault.SOFTWARE

    def __init__(self, code: str, sentence: str, *, next_step: str, **details: object) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence
        self.next_step = next_step
        self.details = details

    @property
    def anchor(self) -> str:
        """Where the documentation speaks about this failure."""
        return f"{DOCS_PAGE}#{self.code.replace('.', '').replace('_', '-')}"

    def __str__(self) -> str:
        return f"{self.sentence} {self.next_step} [{self.code}; {self.fault.value}]"


class OperatorError(SecureHealthError):
    """Somebody here asked for what cannot be: configuration, files, arguments, local data."""

    fault = Fault.OPERATOR


class PeerProtocolError(SecureHealthError):
    """Another party (coordinator, hospital, registrar) broke the protocol."""

    fault = Fault.PEER


class HardwareError(SecureHealthError):
    """A key, a TPM, a GPU or a disk is missing or does not answer."""

    fault = Fault.HARDWARE


class NetworkError(SecureHealthError):
    """The other end cannot be reached; waiting and trying again is right."""

    fault = Fault.NETWORK


class SoftwareError(SecureHealthError):
    """Our own fault."""

    fault = Fault.SOFTWARE
