"""`seh-agent key`: see, make, test and unlock the key that says who this box is."""

from __future__ import annotations

import secrets
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typing_extensions import override

from agent.cli.run import DEFAULT_CONFIG
from agent.core.config import load_config
from agent.core.errors import OperatorError
from agent.identity.key import (
    Capabilities,
    HardwareKey,
    Person,
    Presence,
    PresenceState,
    find_devices,
    init_key,
    open_key,
)
from agent.identity.session import renewal_policy, utc
from agent.statements.kinds import Possession, SessionCertificate
from agent.statements.roots import KeyKind, verify_proof

app = typer.Typer(name="key", help="The key that says who this box is.", no_args_is_help=True)

_SOFTWARE_WARNING: Final = "SOFTWARE KEY: for development only. Whoever copies its file is this box."
_TIMED_SIGNATURES: Final = 20

KeyOption = Annotated[str | None, typer.Option("--key", "-k", help="Key URI; the configured one if left out.")]
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The agent's configuration file.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Try the PIN although only one attempt is left.")]
UnblockOption = Annotated[bool, typer.Option("--unblock", help="The PIN is blocked: set a new one by the PUK.")]


class TerminalPerson(Person):
    """Whoever sits at the terminal.

    Args:
        force: Whether the last PIN attempt may be risked.
    """

    def __init__(self, *, force: bool = False) -> None:
        self._force = force

    @property
    @override
    def risks_last_attempt(self) -> bool:
        """As said on the command line."""
        return self._force

    @override
    def ask_pin(self, device: str, *, attempts_remaining: int | None) -> str:
        """Ask without echo."""
        _check_terminal(device)
        left = "" if attempts_remaining is None else f" ({attempts_remaining} attempts left)"
        return str(typer.prompt(f"PIN of {device}{left}", hide_input=True, err=True))

    @override
    def ask_new_pin(self, device: str) -> str:
        """Ask twice, without echo."""
        _check_terminal(device)
        return str(typer.prompt(f"New PIN of {device}", hide_input=True, confirmation_prompt=True, err=True))

    @override
    def ask_touch(self, device: str) -> None:
        """Say so."""
        typer.echo(f"Touch {device} now.", err=True)


@app.command("list")
def list_keys() -> None:
    """List the devices on this box that hold, or could hold, its key."""
    devices = find_devices()
    if not devices:
        typer.echo("No TPM, smartcard or FIDO2 key was found. Plug one in, or switch the TPM on in the firmware.")
    for found in devices:
        typer.echo(f"{found.uri}\n    {found.device}; {'holds a key' if found.holds_key else 'empty'}")


@app.command()
def init(key: KeyOption = None, config: ConfigOption = DEFAULT_CONFIG, force: ForceOption = False) -> None:
    """Make this box's key inside its device; one that is there is kept."""
    _describe(init_key(_uri(key, config), person=TerminalPerson(force=force)))


@app.command()
def show(key: KeyOption = None, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Show this box's key: where it lives, whether it answers, what it can do."""
    _describe(open_key(_uri(key, config), person=TerminalPerson()))


@app.command("test")
def try_key(key: KeyOption = None, config: ConfigOption = DEFAULT_CONFIG, force: ForceOption = False) -> None:
    """Let this box's key prove itself, and measure how long that takes."""
    opened = open_key(_uri(key, config), person=TerminalPerson(force=force))
    _describe(opened)
    proving_s = _timed(lambda: _prove(opened))
    typer.echo(f"Proved a statement in {_milliseconds(proving_s)}; the proof verifies.")
    if opened.capabilities.signs and opened.capabilities.unattended:
        _measure_signing(opened)


@app.command()
def renew(config: ConfigOption = DEFAULT_CONFIG, force: ForceOption = False) -> None:
    """Let this box's key vouch for the running agent: enter its PIN, touch it, and the box takes part again."""
    from agent.service.control import renew_session  # noqa: PLC0415 - other commands need not load the service

    settings = load_config(config)
    key = open_key(settings.key.uri, person=TerminalPerson(force=force))
    expires_s = renew_session(settings.node.state_directory, key, show=_show_offer)
    typer.echo(f"Done: this box can prove who it is until {utc(expires_s)}.")


@app.command()
def link(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Print the public key by which the SuperLink knows this box, for the consortium to register."""
    from agent.service.wiring import link_of  # noqa: PLC0415 - other commands need not load the service

    settings = load_config(config)
    public_key = link_of(settings, open_key(settings.key.uri, person=TerminalPerson()))
    pem = public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    typer.echo(pem.decode(), nl=False)


@app.command()
def pin(
    key: KeyOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    force: ForceOption = False,
    unblock: UnblockOption = False,
) -> None:
    """Change the PIN of the device that holds this box's key, or unblock it."""
    opened = open_key(_uri(key, config), person=TerminalPerson(force=force))
    if unblock:
        opened.unblock_pin()
    else:
        opened.change_pin()
    typer.echo("The PIN was changed.")


def _show_offer(offer: SessionCertificate) -> None:
    hours = (offer.expires_s - offer.issued_s) / 3600
    typer.echo("Your key will now sign that the agent on this box may act in its name:")
    typer.echo(
        f"  hospital  {offer.site}\n  box       {offer.node}\n  until     {utc(offer.expires_s)} ({hours:.3g} h)"
    )


def _uri(key: str | None, config: Path) -> str:
    return key if key is not None else load_config(config).key.uri


def _describe(key: HardwareKey) -> None:
    presence, policy = key.presence(), renewal_policy(key)
    endorsement, _ = key.evidence_names()
    if key.kind is KeyKind.SOFTWARE:
        typer.secho(_SOFTWARE_WARNING, fg="yellow", bold=True, err=True)
    who = "by itself" if key.capabilities.unattended else "and a person must be there"
    lines = {
        "Key": key.uri,
        "Kind": key.kind.value,
        "Id": key.key_id,
        "Device": presence.device,
        "TPM": endorsement.hex() or "none",
        "State": _state(presence),
        "Can": _abilities(key.capabilities),
        "Renews": f"every {(policy.lifetime_s - policy.renew_before_s) / 3600:g} h, {who}",
    }
    for label, text in lines.items():
        typer.echo(f"{label + ':':8}{text}")


def _state(presence: Presence) -> str:
    words = [presence.state.value]
    if presence.attempts_remaining is not None:
        words.append(f"{presence.attempts_remaining} PIN attempts left")
    if presence.state is not PresenceState.READY:
        words.append(presence.next_step)
    return "; ".join(words)


def _abilities(capabilities: Capabilities) -> str:
    words = {
        "prove": True,
        "sign": capabilities.signs,
        "work unattended": capabilities.unattended,
        "show that it is hardware": capabilities.attests,
        "hold session keys": capabilities.holds_sessions,
        "seal secrets": capabilities.seals,
        "measure the boot state": capabilities.measures,
    }
    return ", ".join(word for word, can in words.items() if can)


def _prove(key: HardwareKey) -> None:
    statement = Possession(purpose="key-test", challenge=secrets.token_hex(32))
    verify_proof(key.prove(statement), key.root())


def _measure_signing(key: HardwareKey) -> None:
    times_s = sorted(_timed(lambda: key.sign(secrets.token_bytes(32))) for _ in range(_TIMED_SIGNATURES))
    slow_s = times_s[round(0.95 * (_TIMED_SIGNATURES - 1))]
    typer.echo(
        f"Signed {_TIMED_SIGNATURES} times: median {_milliseconds(statistics.median(times_s))}, "
        f"95 of 100 within {_milliseconds(slow_s)}."
    )


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def _check_terminal(device: str) -> None:
    if not sys.stdin.isatty():
        raise OperatorError(
            "cli.no_terminal",
            f"{device} wants its PIN, and this command has no terminal to ask at.",
            next_step="Run it in a terminal on the box.",
        )
