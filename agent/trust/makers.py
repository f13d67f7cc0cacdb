"""Makers of TPMs that the consortium trusts: a directory with one folder a class of evidence, each full of PEM files.

hardware/   makers of chips            virtual/   makers of virtual TPMs (clouds, hypervisors)
test/       simulators' own makers: read only where the consortium's root metadata says environment=test
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agent.attestation.makers import TrustStore, build_store
from agent.core.errors import OperatorError
from agent.statements.roots import EvidenceClass

_FOLDERS: Final = {
    "hardware": EvidenceClass.HARDWARE,
    "virtual": EvidenceClass.VIRTUAL,
    "test": EvidenceClass.TEST,
}
TEST_ENVIRONMENT: Final = "test"


def load_maker_stores(directory: Path, *, environment: str) -> tuple[TrustStore, ...]:
    """Read the trusted makers, best class first.

    Args:
        directory: Holds the folders; a missing folder is an empty store.
        environment: From the verified root metadata of the consortium, never from a local file.

    Raises:
        OperatorError: A file there holds no certificates.
    """
    classes = {name: grade for name, grade in _FOLDERS.items() if name != "test" or environment == TEST_ENVIRONMENT}
    return tuple(_load_store(directory / name, grade) for name, grade in classes.items())


def _load_store(folder: Path, grade: EvidenceClass) -> TrustStore:
    pems = []
    for path in sorted(folder.glob("*.pem")):
        pem = path.read_bytes()
        try:
            build_store(grade, [pem])
        except ValueError as error:
            raise OperatorError(
                "trust.bad_maker_file",
                f"The file {path} holds no certificates of a maker of TPMs.",
                next_step="Replace it by the maker's certificate in PEM form, or remove it.",
            ) from error
        pems.append(pem)
    return build_store(grade, pems)
