"""`seh-provision token`: enrolment tokens for boxes, on sticks, in codes and on paper."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from agent.core.clock import SystemClock
from agent.core.errors import OperatorError
from agent.core.ids import SiteID, check_identifier
from agent.trust.fingerprint import consortium_words
from agent.trust.records import ConsortiumRecord, parse_record
from provisioning.cli.files import read_file
from provisioning.tokens.register import SiteRegister
from provisioning.tokens.state import SiteTokenFiles
from provisioning.tokens.token import LONGEST_VALIDITY_S, Destination, IssuedToken, Issuer, issue, make_tokens

app = typer.Typer(name="token", help="Enrolment tokens.", no_args_is_help=True)

TOKENS_DIRECTORY: Final = "tokens"
"""Of kept tokens, within the endorsing tool's state."""
_SECONDS_FOR_UNIT: Final = {"h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Consortium:
    """What the operator's files say of the consortium.

    Args:
        record: `consortium.json`.
        root_digest: SHA-256 of `1.root.json`, hex.
    """

    record: ConsortiumRecord
    root_digest: str


@dataclass(frozen=True, slots=True)
class Media:
    """Where tokens go; exactly one place.

    Args:
        usb: A stick's device, or an image to make.
        erase: Whether what it holds may be lost.
        file: A text file.
        qr: A picture, `.png` or `.svg`.
        qr_terminal: Whether the terminal shows the code.
        sheet: A PDF to print.
    """

    usb: Path | None
    erase: bool
    file: Path | None
    qr: Path | None
    qr_terminal: bool
    sheet: Path | None

    def check(self, count: int) -> None:
        """Refuse what cannot be written, before a token is made for it.

        Raises:
            OperatorError: Not exactly one place is named, several tokens are to go where one fits, or it is taken.
        """
        chosen = [place for place in (self.usb, self.file, self.qr, self.sheet) if place is not None]
        if len(chosen) + self.qr_terminal != 1:
            raise _bad_media("name exactly one of --usb, --file, --qr, --qr-terminal and --sheet")
        if count > 1 and self.sheet is None:
            raise _bad_media("several tokens go onto a --sheet only")
        for path in (self.file, self.qr, self.sheet):
            if path is not None and path.exists():
                raise _bad_media(f"{path} exists already")

    def write(self, issued: Sequence[IssuedToken], consortium: Consortium, labels: Sequence[str]) -> None:
        """Hand the tokens out."""
        from provisioning.tokens.qr import store_code, store_secret, terminal_code  # noqa: PLC0415 - optional libraries

        text = issued[0].text
        if self.usb is not None:
            from provisioning.tokens.usb import write_stick  # noqa: PLC0415 - only here

            serial = secrets.randbits(32)
            write_stick(self.usb, text, serial=serial, erase=self.erase, confirm=typer.confirm)
        elif self.file is not None:
            store_secret(self.file, text.encode("ascii") + b"\n")
        elif self.qr is not None:
            store_code(self.qr, text)
        elif self.sheet is not None:
            store_secret(self.sheet, _sheet(issued, consortium, labels))
        else:
            typer.echo(terminal_code(text))


@app.callback()
def _token() -> None:
    """Enrolment tokens."""


@app.command("issue")
def issue_tokens(
    *,
    site: Annotated[str, typer.Option(help="The hospital that the boxes join.")],
    key: Annotated[Path, typer.Option(help="The site's private key, PEM.")],
    state: Annotated[Path, typer.Option(help="The state directory of `seh-provision site endorse`.")],
    consortium: Annotated[Path, typer.Option(help="consortium.json")],
    root: Annotated[Path, typer.Option(help="1.root.json, the consortium's first root metadata.")],
    box: Annotated[
        list[str] | None,
        typer.Option(help="Only this box can use the token: the name of its TPM's endorsement key, hex."),
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help="What a box is called, for the sheet.")] = None,
    valid: Annotated[str, typer.Option(help="For how long: 12h, 7d.")] = "7d",
    count: Annotated[int, typer.Option(help="How many.")] = 1,
    usb: Annotated[Path | None, typer.Option(help="A stick (/dev/sdb), or an image file to make.")] = None,
    erase: Annotated[bool, typer.Option("--erase", help="What the stick holds may be lost.")] = False,
    file: Annotated[Path | None, typer.Option(help="A text file.")] = None,
    qr: Annotated[Path | None, typer.Option(help="A picture of the code, .png or .svg.")] = None,
    qr_terminal: Annotated[bool, typer.Option("--qr-terminal", help="Show the code here.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="A PDF to print, one label for each box.")] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="Holds the key's passphrase; asked for if left out.")
    ] = None,
) -> None:
    """Issue tokens with the site's key, and make them known to the registrar."""
    site_id = SiteID(check_identifier(site, kind="site"))
    clock = SystemClock()
    expires_s = int(clock.now().timestamp()) + _seconds(valid)
    boxes: list[bytes | None] = [_ek_name(name) for name in box or ()]
    boxes = boxes or [None] * count
    media = Media(usb, erase, file, qr, qr_terminal, sheet)
    media.check(len(boxes))
    known = _consortium(consortium, root)
    issuer = _issuer(key, passphrase_file)
    destination = Destination.of(known.record.registrar, known.root_digest)
    tokens = make_tokens(destination, site_id, boxes=boxes, expires_s=expires_s, random_bytes=secrets.token_bytes)
    trust = ssl.create_default_context(cadata=known.record.registrar.root_certificates)
    with SiteRegister(
        destination.registrar,
        trust,
        consortium=known.root_digest,
        issuer=issuer,
        clock=clock,
        random_bytes=secrets.token_bytes,
    ) as register:
        issued = issue(tokens, issuer, register, SiteTokenFiles(state / TOKENS_DIRECTORY))
    media.write(issued, known, label or ())
    until = datetime.fromtimestamp(expires_s, UTC)
    typer.echo(f"{len(issued)} token(s) for {site_id}, each good for one box until {until:%Y-%m-%d %H:%M} UTC.")


def _sheet(issued: Sequence[IssuedToken], consortium: Consortium, labels: Sequence[str]) -> bytes:
    from provisioning.tokens.sheet import Label, make_sheet  # noqa: PLC0415 - loads what draws PDF

    names = [*labels, *(f"Box {place + 1} of {len(issued)}" for place in range(len(labels), len(issued)))]
    return make_sheet(
        [Label(one.token, one.text, name) for one, name in zip(issued, names, strict=False)],
        consortium=consortium.record.name,
        words=consortium_words(consortium.root_digest),
    )


def _consortium(record: Path, root: Path) -> Consortium:
    return Consortium(parse_record(ConsortiumRecord, read_file(record)), hashlib.sha256(read_file(root)).hexdigest())


def _seconds(valid: str) -> int:
    match = re.fullmatch(r"([0-9]{1,4})([hd])", valid)
    seconds = int(match[1]) * _SECONDS_FOR_UNIT[match[2]] if match else 0
    if not 0 < seconds <= LONGEST_VALIDITY_S:
        raise OperatorError(
            "token.bad_validity",
            f"{valid!r} is no time for which a token can be valid.",
            next_step="Give hours or days, at most a year: --valid 12h, --valid 7d.",
        )
    return seconds


def _ek_name(text: str) -> bytes:
    # TPM 2.0 Part 1, 16: two bytes of the hash's name, then the hash.
    if not re.fullmatch(r"000b[0-9a-f]{64}|000c[0-9a-f]{96}|000d[0-9a-f]{128}", text.lower()):
        raise OperatorError(
            "token.bad_box",
            "A box is named by the name of its endorsement key: hex, beginning with 000b, 000c or 000d.",
            next_step="Copy what `seh-agent key show` on the box says under TPM.",
        )
    return bytes.fromhex(text)


def _issuer(path: Path, passphrase_file: Path | None) -> Issuer:
    data = read_file(path)
    passphrase: bytes | None = None
    if b"ENCRYPTED" in data:
        asked = typer.prompt(f"Passphrase of {path}", hide_input=True, err=True) if passphrase_file is None else ""
        passphrase = read_file(passphrase_file).rstrip(b"\r\n") if passphrase_file is not None else os.fsencode(asked)
    try:
        key = load_pem_private_key(data, password=passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unusable_key(path) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _unusable_key(path)
    return Issuer(key.public_key(), lambda data: key.sign(data, ec.ECDSA(hashes.SHA256())))


def _unusable_key(path: Path) -> OperatorError:
    return OperatorError(
        "token.unusable_key",
        f"{path} holds no private key on an elliptic curve that this passphrase opens.",
        next_step="Name the site's own key, and check the passphrase.",
    )


def _bad_media(what: str) -> OperatorError:
    return OperatorError("token.bad_media", f"No token was made: {what}.", next_step="Correct the command.")
