"""`seh-provision token`: enrolment tokens for boxes, on sticks, in codes and on paper."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from agent.core.clock import SystemClock
from agent.core.errors import OperatorError
from agent.core.ids import SiteID, check_identifier
from agent.trust.fingerprint import consortium_words
from agent.trust.snapshot import TrustSnapshot
from provisioning.authority.signers import open_signer
from provisioning.authority.site_line import SiteLine
from provisioning.authority.site_office import issuer_of
from provisioning.authority.site_repository import SitePlace
from provisioning.cli.desk import RegistrarOption, RootOption, SiteKeyOption, SiteOption, StateOption
from provisioning.cli.files import read_file
from provisioning.cli.secrets import PassphraseFile, interactive
from provisioning.tokens.consortium import check_issuer, fetch_consortium
from provisioning.tokens.register import SiteRegister
from provisioning.tokens.state import SiteTokenFiles
from provisioning.tokens.token import LONGEST_VALIDITY_S, Destination, IssuedToken, issue, make_tokens

app = typer.Typer(name="token", help="Enrolment tokens.", no_args_is_help=True)

_SECONDS_FOR_UNIT: Final = {"h": 3600, "d": 86_400}


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

    def write(self, issued: Sequence[IssuedToken], consortium: TrustSnapshot, labels: Sequence[str]) -> None:
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
    site: SiteOption,
    key: SiteKeyOption,
    state: StateOption,
    registrar: RegistrarOption,
    root: RootOption,
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
    passphrase_file: PassphraseFile = None,
) -> None:
    """Issue tokens with the site's key, and make them known to the registrar."""
    site_id = SiteID(check_identifier(site, kind="site"))
    clock = SystemClock()
    expires_s = int(clock.now().timestamp()) + _seconds(valid)
    boxes: list[bytes | None] = [_ek_name(name) for name in box or ()]
    boxes = boxes or [None] * count
    media = Media(usb, erase, file, qr, qr_terminal, sheet)
    media.check(len(boxes))
    place = SitePlace(state, registrar, read_file(root))
    consortium = fetch_consortium(registrar, place.first_root, clock)
    issuer = issuer_of(open_signer(key, interactive(passphrase_file)))
    check_issuer(consortium, site_id, issuer)
    destination = Destination.of(consortium.consortium.registrar, consortium.root_digest)
    tokens = make_tokens(destination, site_id, boxes=boxes, expires_s=expires_s, random_bytes=secrets.token_bytes)
    with SiteLine(
        consortium.consortium.registrar,
        consortium=consortium.root_digest,
        site=site_id,
        key=issuer,
        clock=clock,
        random_bytes=secrets.token_bytes,
    ) as line:
        issued = issue(tokens, issuer, SiteRegister(line), SiteTokenFiles(place.tokens))
    media.write(issued, consortium, label or ())
    until = datetime.fromtimestamp(expires_s, UTC)
    typer.echo(f"{len(issued)} token(s) for {site_id}, each good for one box until {until:%Y-%m-%d %H:%M} UTC.")
    words = consortium_words(consortium.root_digest)
    typer.echo(f"Whoever enrols a box compares these words with its screen: {words}")


def _sheet(issued: Sequence[IssuedToken], consortium: TrustSnapshot, labels: Sequence[str]) -> bytes:
    from provisioning.tokens.sheet import Label, make_sheet  # noqa: PLC0415 - loads what draws PDF

    names = [*labels, *(f"Box {place + 1} of {len(issued)}" for place in range(len(labels), len(issued)))]
    return make_sheet(
        [Label(one.token, one.text, name) for one, name in zip(issued, names, strict=False)],
        consortium=consortium.consortium.name,
        words=consortium_words(consortium.root_digest),
    )


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


def _bad_media(what: str) -> OperatorError:
    return OperatorError("token.bad_media", f"No token was made: {what}.", next_step="Correct the command.")
