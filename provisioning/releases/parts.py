"""What a payload was made of, as `packaging/payload/build.sh` notes it beside the image.

parts/debian.tsv    a line for each of Debian's packages: name, version, architecture, SHA-256 of the .deb, licences
parts/python.json   pip's installation report (pip.pypa.io, "Installation Report", version 1)
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import quote

from pydantic import BaseModel, Field, ValidationError

from agent.core.errors import OperatorError
from agent.core.validation import explain_invalid

OURS: Final = "secur-e-health"
DEBIAN_FILE, PYTHON_FILE = "debian.tsv", "python.json"
_MAX_BYTES: Final = 64 << 20
_MAX_LICENCE: Final = 100
_CLASSIFIER: Final = "License :: OSI Approved :: "

SHA256: Final = r"^[0-9a-f]{64}$"


@dataclass(frozen=True, slots=True)
class Part:
    """One package in a payload.

    Args:
        name: As its makers call it.
        version: Theirs.
        purl: Where it comes from: a package URL (purl-spec), without a host.
        sha256: Of the archive that was fetched, hex.
        expression: Its licence as an SPDX expression, where its makers say one.
        licences: Its licences' names, where they do not.
    """

    name: str
    version: str
    purl: str
    sha256: str
    expression: str | None = None
    licences: tuple[str, ...] = ()


class _Archive(BaseModel):
    hashes: dict[str, str]


class _Download(BaseModel):
    archive_info: _Archive | None = None


class _Metadata(BaseModel):
    name: str
    version: str
    license_expression: str | None = None
    license: str | None = None
    classifier: list[str] = []


class _Installed(BaseModel):
    download_info: _Download
    metadata: _Metadata


class _Report(BaseModel):
    version: Literal["1"]
    install: list[_Installed]


class _Debian(BaseModel):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
    version: Annotated[str, Field(min_length=1)]
    architecture: Annotated[str, Field(pattern=r"^[a-z0-9]+$")]
    sha256: Annotated[str, Field(pattern=SHA256)]
    licences: str


def load_parts(directory: Path) -> tuple[Part, ...]:
    """Read what a payload was made of.

    Args:
        directory: `parts` beside the image.

    Returns:
        Its parts, by package URL.

    Raises:
        OperatorError: A file is missing or damaged (`release.bad_parts`).
    """
    try:
        debian, python = (_read(directory / name) for name in (DEBIAN_FILE, PYTHON_FILE))
        found = [*_parse_debian(debian), *_parse_python(python)]
    except (OSError, ValueError) as error:
        what = explain_invalid(error, whole="file") if isinstance(error, ValidationError) else str(error)
        raise OperatorError(
            "release.bad_parts",
            f"{directory} does not tell what the image was made of: {what}.",
            next_step="Name the folder `parts` that packaging/payload/build.sh left beside the image.",
        ) from error
    return tuple(sorted(found, key=lambda part: part.purl))


def _read(path: Path) -> str:
    with path.open("rb") as stream:
        data = stream.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{path.name} is larger than it may be")
    return data.decode()


def _parse_debian(text: str) -> list[Part]:
    reader = csv.DictReader(text.splitlines(), tuple(_Debian.model_fields), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [_debian_part(_Debian.model_validate(row)) for row in reader]


def _debian_part(row: _Debian) -> Part:
    place = f"{quote(row.name, safe='')}@{quote(row.version, safe=':')}"
    purl = f"pkg:deb/debian/{place}?arch={row.architecture}&distro=bookworm"
    licences = tuple(licence[:_MAX_LICENCE] for licence in row.licences.split("|") if licence)
    # Older packages' licences stand in running text only.
    return Part(
        row.name, row.version, purl, row.sha256, licences=licences or (f"see usr/share/doc/{row.name}/copyright",)
    )


def _parse_python(text: str) -> list[Part]:
    report = _Report.model_validate_json(text)
    return [_python_part(one) for one in report.install if one.metadata.name != OURS]


def _python_part(installed: _Installed) -> Part:
    metadata, archive = installed.metadata, installed.download_info.archive_info
    sha256 = archive.hashes.get("sha256") if archive else None
    if sha256 is None:
        raise ValueError(f"{metadata.name} has no hash")
    # Names are compared like this (PyPA, "Names and normalization").
    name = metadata.name.lower().replace("_", "-").replace(".", "-")
    purl = f"pkg:pypi/{name}@{quote(metadata.version, safe=':')}"
    return Part(metadata.name, metadata.version, purl, sha256, metadata.license_expression, _licences(metadata))


def _licences(metadata: _Metadata) -> tuple[str, ...]:
    if metadata.license_expression:
        return ()
    text = (metadata.license or "").strip()
    if text and "\n" not in text and len(text) <= _MAX_LICENCE:
        return (text,)
    return tuple(line.removeprefix(_CLASSIFIER) for line in metadata.classifier if line.startswith(_CLASSIFIER))
