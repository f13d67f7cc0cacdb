"""`seh-provision steward`: who decides at a hospital what its data may be used for."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import ValidationError

from agent.core.errors import OperatorError, PeerProtocolError
from agent.core.ids import SiteID, check_identifier
from agent.core.validation import explain_invalid
from agent.trust.records import StewardFile, parse_record, public_pem
from provisioning.authority.signers import elliptic_key, open_signer
from provisioning.authority.site import SiteDesk
from provisioning.cli.desk import Hospital, SiteOption, for_hospital
from provisioning.cli.files import read_file
from provisioning.cli.secrets import ask, interactive

app = typer.Typer(name="steward", help="A hospital's data stewards.", no_args_is_help=True)

StewardArgument = Annotated[str, typer.Argument(help="Short name of the steward's key, e.g. dr-a.")]
_CARDS: Final = re.compile(r"piv:[^?]*\?(.*&)?slot=(9a|9c)(&.*)?|pkcs11:.*", re.IGNORECASE)
"""Keys that a card gives to nobody without its PIN."""


@app.callback()
def _steward() -> None:
    """A hospital's data stewards."""


@app.command()
def new(
    steward: StewardArgument,
    *,
    site: SiteOption,
    person: Annotated[str, typer.Option(help="Whose key it is. Two keys of one person count as one approval.")],
    out: Annotated[Path, typer.Option(help="Where the record goes (JSON), for `steward add`.")],
    card: Annotated[
        str | None, typer.Option(help="A smartcard's key, e.g. 'piv:?slot=9c'; else the security key on USB.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="The card's certificate (PEM): when it runs out, so does the key.")
    ] = None,
    console: Annotated[
        str, typer.Option(help="The name by which browsers call the boxes' console: [console] name.")
    ] = "localhost",
) -> None:
    """Make the record of a steward's key, from a security key or smartcard at this desk; the hospital then adds it."""
    name = check_identifier(steward, kind="steward")
    hospital = SiteID(check_identifier(site, kind="site"))
    try:
        if card is not None:
            record = _card_record(hospital, name, person, card, certificate)
        else:
            record = _security_key_record(hospital, name, person, console)
    except ValidationError as error:
        raise _bad_file("What was given", explain_invalid(error, whole="record")) from error
    try:
        with out.open("xb") as stream:
            stream.write(record.encode())
    except OSError as error:
        raise OperatorError(
            "steward.not_written",
            f"The record cannot be written to {out}: {error.strerror}.",
            next_step="Name a file that is not there yet, in a directory that may be written.",
        ) from error
    typer.echo(f"The record of {name} is in {out}. It counts once the hospital has signed it:")
    typer.echo(f"  seh-provision steward add {out} --site {hospital} ...")


@app.command()
@for_hospital
def add(
    hospital: Hospital,
    file: Annotated[Path, typer.Argument(help="The key's record: from `steward new`, or from the box's console.")],
) -> None:
    """Put a steward's key on record, or change what is on record of it: from then on it decides."""
    steward = _load_record(file)
    if steward.site != hospital.site:
        raise OperatorError(
            "steward.another_site",
            f"{file} is a record of {steward.site}, not of {hospital.site}.",
            next_step="Name the right file, or the right hospital.",
        )
    with hospital.office() as office:
        office.publish(lambda desk: desk.add_steward(steward))
        typer.echo(f"{steward.steward} is on record at {hospital.site}.")


@app.command("list")
@for_hospital
def list_stewards(
    hospital: Hospital,
) -> None:
    """Stewards' keys on record, revoked ones included."""
    with hospital.office() as office:
        reasons = {entry.key_id: entry.reason for entry in office.desk.revocations}
        if not office.desk.stewards:
            typer.echo(f"{hospital.site} has no steward on record yet.")
        for steward in office.desk.stewards:
            reason = reasons.get(steward.key_id)
            what = "smartcard" if steward.kind == "piv" else f"security key, for {steward.rp_id}"
            mark = "decides" if reason is None else f"REVOKED: {reason}"
            typer.echo(f"{steward.steward}  {steward.person or '-'}  {what}  {mark}")


@app.command()
@for_hospital
def revoke(
    hospital: Hospital,
    steward: StewardArgument,
    *,
    reason: Annotated[str, typer.Option(help="Why, in plain words; everybody can read it.")],
) -> None:
    """Revoke a steward's key, for good: what it approved counts no more once the boxes have seen it."""
    with hospital.office() as office:
        office.publish(lambda desk: desk.revoke(_find(desk, steward).key_id, reason))
        typer.echo(f"{steward} is revoked.")


def _security_key_record(site: SiteID, steward: str, person: str, console: str) -> StewardFile:
    from provisioning.authority.security_key import make_steward_key  # noqa: PLC0415 - an optional library

    return make_steward_key(
        site,
        steward,
        person,
        rp_id=console,
        ask_pin=lambda: ask("PIN of the security key"),
        say_touch=lambda: typer.echo("Touch the security key now.", err=True),
        random_bytes=secrets.token_bytes,
    )


def _card_record(site: SiteID, steward: str, person: str, card: str, certificate: Path | None) -> StewardFile:
    if not _CARDS.fullmatch(card):
        raise OperatorError(
            "steward.not_a_card",
            f"{card[:80]!r} names no card's key that wants its PIN for every signature.",
            next_step="Name one as 'piv:?slot=9c', 'piv:?slot=9a' or 'pkcs11:...'.",
        )
    public_key = elliptic_key(open_signer(card, interactive(None)).public_key)
    pem = None if certificate is None else read_file(certificate).decode("ascii", errors="replace")
    return StewardFile(site=site, steward=steward, person=person, public_key=public_pem(public_key), certificate=pem)


def _load_record(file: Path) -> StewardFile:
    try:
        return parse_record(StewardFile, read_file(file))
    except PeerProtocolError as error:
        raise _bad_file(str(file), error.sentence.partition(": ")[2].rstrip(".")) from error


def _find(desk: SiteDesk, name: str) -> StewardFile:
    for steward in desk.stewards:
        if steward.steward == name:
            return steward
    raise OperatorError(
        "steward.not_on_record",
        f"This hospital has no steward {name[:80]!r} on record.",
        next_step="See `seh-provision steward list`.",
    )


def _bad_file(file: str, what: str) -> OperatorError:
    return OperatorError(
        "steward.bad_file",
        f"{file} makes no steward's record: {what}.",
        next_step="Make it anew with `seh-provision steward new`, or offer the key in the box's console again.",
    )
