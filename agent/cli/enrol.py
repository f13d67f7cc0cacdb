"""`seh-agent enrol`, `re-enrol` and `unenrol`: how this box comes to a consortium, and leaves it."""

from __future__ import annotations

import os
import pwd
import re
import secrets
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from agent.cli.key import TerminalPerson
from agent.cli.run import DEFAULT_CONFIG, ConfigOption
from agent.cli.steward_signing import CardOption, ReaderOption, StewardChoice, StewardOption
from agent.core.clock import SystemClock
from agent.core.config import AgentConfig, load_config
from agent.core.errors import HardwareError, OperatorError
from agent.core.ids import check_identifier

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

    from agent.enrolment.client import Confirm
    from agent.enrolment.progress import Progress
    from agent.enrolment.record import EnrolmentRecord
    from agent.identity.key import HardwareKey
    from agent.trust.records import ConsortiumRecord

_LOOKING_S: Final = 60.0
_KEY_ID: Final = r"[0-9a-f]{64}"

UsbOption = Annotated[Path | None, typer.Option("--usb", help="The stick's device (/dev/sdb1), or an image of one.")]
QROption = Annotated[Path | None, typer.Option("--qr", help="A picture of the code, PNG or JPEG.")]
CameraOption = Annotated[bool, typer.Option("--camera", help="Hold the code before this box's camera.")]
PhoneOption = Annotated[bool, typer.Option("--phone", help="Show a code that a telephone approves.")]
TokenOption = Annotated[
    str | None, typer.Option("--token", help="The token's text; - waits for a scanner or a keyboard.")
]
WordsOption = Annotated[
    str | None, typer.Option("--yes-fingerprint", help="The consortium's eight words, for scripts: nobody is asked.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Try the PIN although only one attempt is left.")]


@dataclass(frozen=True, slots=True)
class TokenSource:
    """Where the token comes from; at most one place.

    Args:
        usb: A stick or an image of one.
        qr: A picture.
        camera: Whether the camera looks.
        token: The text, or `-`.
        phone: Whether a telephone approves the box; the token then comes from the registrar.
    """

    usb: Path | None
    qr: Path | None
    camera: bool
    token: str | None
    phone: bool = False

    def read(self) -> str | None:
        """The token's text; None where no place was named.

        Raises:
            SecureHealthError: Several places were named, or what is there cannot be read.
        """
        from agent.enrolment import medium  # noqa: PLC0415 - other commands need not load it

        places: list[Callable[[], str]] = []
        if self.usb is not None:
            stick = self.usb
            places.append(lambda: medium.token_from_stick(stick))
        if self.qr is not None:
            picture = self.qr
            places.append(lambda: medium.token_from_image(picture))
        if self.camera:
            places.append(_look)
        if self.token is not None:
            text = self.token
            places.append(lambda: medium.token_from_line(sys.stdin) if text == "-" else text)
        if len(places) + self.phone > 1:
            raise OperatorError(
                "cli.several_tokens",
                "The token can come from one place only.",
                next_step="Name one of --usb, --qr, --camera, --token and --phone.",
            )
        return places[0]() if places else None


def enrol(
    usb: UsbOption = None,
    qr: QROption = None,
    camera: CameraOption = False,
    token: TokenOption = None,
    phone: PhoneOption = False,
    words: WordsOption = None,
    force: ForceOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Make this box a member of its hospital's consortium; without a token, go on with what was begun."""
    settings = load_config(config)
    _enrol(settings, TokenSource(usb, qr, camera, token, phone), words, TerminalPerson(force=force))
    typer.echo("The agent takes part by itself from now on; `seh-agent status` says how it does.")
    typer.echo("If it does not run yet, start it: `seh-agent run`, or let your service manager do so.")


def re_enrol(
    usb: UsbOption = None,
    qr: QROption = None,
    camera: CameraOption = False,
    token: TokenOption = None,
    phone: PhoneOption = False,
    words: WordsOption = None,
    force: ForceOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Enrol this box's new key in the old one's place, after a new mainboard, card or security key."""
    from agent.enrolment.record import EnrolmentFolder  # noqa: PLC0415 - other commands need not load it

    settings = load_config(config)
    old = EnrolmentFolder.of(settings.node.state_directory).load_record()
    if old is None:
        raise OperatorError(
            "enrolment.nothing_to_replace",
            "This box is not enrolled, so there is nothing to replace.",
            next_step="Run `seh-agent enrol`.",
        )
    _make_room(settings)
    new = _enrol(
        settings, TokenSource(usb, qr, camera, token, phone), words, TerminalPerson(force=force), replaces=True
    )
    if new.node != old.node:
        typer.echo(f"Ask {new.site}'s operator to revoke the old key: `seh-provision node revoke {old.node}`.")


def unenrol(
    yes: Annotated[bool, typer.Option("--yes", help="This box shall leave its consortium.")] = False,
    steward: StewardOption = None,
    key: CardOption = None,
    reader: ReaderOption = "",
    force: ForceOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Leave the consortium, with a steward's key; the box can be enrolled in another one afterwards."""
    from agent.cli.leaving import steward_approves  # noqa: PLC0415 - other commands need not load it
    from agent.enrolment.record import EnrolmentFolder  # noqa: PLC0415 - the same
    from agent.enrolment.record import unenrol as leave  # noqa: PLC0415 - the same

    settings = load_config(config)
    if not yes:
        raise OperatorError(
            "cli.not_confirmed",
            "This would take the box out of its consortium; nothing was done.",
            next_step="Say so with --yes.",
        )
    become_owner(settings.node.state_directory)
    signing = StewardChoice(steward, TerminalPerson(force=force), key, reader)
    record = leave(
        EnrolmentFolder.of(settings.node.state_directory), lambda record: steward_approves(settings, record, signing)
    )
    typer.echo(f"This box has left {record.name}.")
    typer.echo(f"Ask {record.site}'s operator to revoke its key: `seh-provision node revoke {record.node}`.")


def accept_keys(
    site: Annotated[str, typer.Argument(help="The hospital whose keys changed without its old ones saying so.")],
    keys: Annotated[list[str], typer.Argument(help="Ids of its keys now, as that hospital itself confirmed them.")],
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Believe a hospital's new keys after it lost its old ones; ask that hospital itself first, by another way."""
    from agent.service.control import ask_agent  # noqa: PLC0415 - other commands need not load the service

    check_identifier(site, kind="site")
    for key in keys:
        if not re.fullmatch(_KEY_ID, key):
            raise OperatorError(
                "cli.bad_key_id",
                f"{key[:80]!r} is no id of a key; nothing was changed.",
                next_step="Give each id whole: 64 digits and letters a to f, as the hospital itself confirmed it.",
            )
    ask_agent(load_config(config).node.state_directory, "accept-keys", site=site, keys=" ".join(keys))
    typer.echo(f"This box believes {site}'s keys from now on; its boxes take part again within a minute or so.")


def become_owner(directory: Path) -> None:
    """Go on as the user whose agent this is, where root started the command: what it writes has to be the agent's.

    Args:
        directory: The agent's state directory.
    """
    if os.geteuid() != 0 or not directory.exists():
        return
    status = directory.stat()
    if status.st_uid == 0:
        return
    os.initgroups(pwd.getpwuid(status.st_uid).pw_name, status.st_gid)
    os.setgid(status.st_gid)
    os.setuid(status.st_uid)


def _enrol(
    settings: AgentConfig, source: TokenSource, words: str | None, person: TerminalPerson, *, replaces: bool = False
) -> EnrolmentRecord:
    from agent.identity.key import init_key  # noqa: PLC0415 - other commands need not load what enrols
    from agent.service.affiliation import check_not_pinned  # noqa: PLC0415 - the same
    from agent.service.enrolling import make_enrolment  # noqa: PLC0415 - the same
    from agent.service.wiring import link_of  # noqa: PLC0415 - the same

    check_not_pinned(settings)
    text = source.read()
    become_owner(settings.node.state_directory)
    key = init_key(settings.key.uri, person=person)
    link = link_of(settings, key)
    if source.phone:
        text = _by_phone(settings, key, link)
    enrolment = make_enrolment(
        settings,
        key,
        link,
        SystemClock(),
        wait=threading.Event().wait,
        tell=_Teller().tell,
        confirm=_confirmation(words),
    )
    record = enrolment.resume() if text is None else enrolment.start(text, replaces=replaces)
    if record is None:
        raise OperatorError(
            "cli.no_token",
            "No token was given, and no enrolment was begun on this box.",
            next_step="Name the token with --usb, --qr, --camera or --token.",
        )
    return record


@dataclass(slots=True)
class _Teller:
    """Shows progress, each piece of news once in a row."""

    last: list[Progress] = field(default_factory=list)

    def tell(self, news: Progress) -> None:
        if self.last == [news]:
            return
        self.last = [news]
        typer.secho(news.sentence, fg="yellow" if news.trouble else None, bold=news.step.value == "enrolled")
        if news.next_step:
            typer.echo(f"    {news.next_step}")


def _confirmation(given: str | None) -> Confirm:
    from agent.trust.fingerprint import same_words  # noqa: PLC0415 - other commands need not load it

    def confirm(consortium: ConsortiumRecord, words: str) -> bool:
        typer.echo(f"This box would join {consortium.name}. Its fingerprint:\n\n    {words}\n")
        if given is not None:
            return same_words(given, words)
        if not sys.stdin.isatty():
            raise OperatorError(
                "cli.nobody_to_confirm",
                f"Somebody has to confirm that {consortium.name} is the right consortium, and there is no terminal.",
                next_step="Run the command in a terminal, or give the words from the token's sheet: --yes-fingerprint.",
            )
        return typer.confirm("Are these the words on the sheet that came with the token?", default=False)

    return confirm


def _make_room(settings: AgentConfig) -> None:
    """Put away secrets that were sealed to a TPM which is gone."""
    from agent.service.enrolling import set_aside_sealed  # noqa: PLC0415 - other commands need not load it
    from agent.service.safekeeping import load_vault  # noqa: PLC0415 - the same

    try:
        load_vault(settings)
    except HardwareError as error:
        if error.code != "identity.sealed_elsewhere":
            raise
        become_owner(settings.node.state_directory)
        place = set_aside_sealed(settings.node.state_directory, f"{SystemClock().now():%Y%m%dT%H%M%S}")
        typer.echo(f"What was sealed to the old mainboard cannot be opened any more; it lies in {place}.")


def _by_phone(settings: AgentConfig, key: HardwareKey, link: ec.EllipticCurvePublicKey) -> str:
    from agent.enrolment.conversation import Box  # noqa: PLC0415 - other commands need not load it
    from agent.enrolment.phone import Code, token_by_phone  # noqa: PLC0415 - the same
    from agent.enrolment.qr import terminal_code  # noqa: PLC0415 - an optional library
    from agent.service.enrolling import preset_registrar  # noqa: PLC0415 - other commands need not load it

    def show(code: Code) -> None:
        typer.echo(terminal_code(code.address))
        typer.echo(f"Open this page on a telephone that holds a passkey of this hospital: {code.address}")
        typer.secho(f"\n    {code.grouped}\n", bold=True)
        typer.echo("Type this code there. There is one attempt, and five minutes.")

    return token_by_phone(
        Box(key, link),
        preset_registrar(settings),
        SystemClock(),
        show=show,
        wait=threading.Event().wait,
        random_bytes=secrets.token_bytes,
    )


def _look() -> str:
    from agent.enrolment.camera import DEFAULT_CAMERA, token_from_camera  # noqa: PLC0415 - an optional library

    typer.echo("Hold the code before the camera.")
    return token_from_camera(DEFAULT_CAMERA, SystemClock(), limit_s=_LOOKING_S)
