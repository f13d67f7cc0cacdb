"""`seh-provision site passkey`: a hospital lets its technicians approve boxes on their telephones."""

from __future__ import annotations

from typing import Annotated, Final

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.core.errors import PeerProtocolError
from provisioning.cli.desk import Hospital, for_hospital

_PLACE: Final = "/passkeys"


class _Invited(BaseModel):
    model_config = ConfigDict(frozen=True)

    invitation: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class _Forgotten(BaseModel):
    model_config = ConfigDict(frozen=True)

    forgotten: Annotated[int, Field(ge=0)]


@for_hospital
def passkey(
    hospital: Hospital,
    *,
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget all passkeys of the hospital: a telephone was lost, say.")
    ] = False,
) -> None:
    """Invite a technician to make a passkey; show the code to the telephone within 15 minutes."""
    from provisioning.tokens.qr import terminal_code  # noqa: PLC0415 - an optional library

    with hospital.office() as office:
        answer = office.line.call("DELETE" if forget else "POST", _PLACE)
    try:
        if forget:
            typer.echo(
                f"{_Forgotten.model_validate_json(answer).forgotten} passkey(s) of {hospital.site} count no more."
            )
            return
        address = f"https://{hospital.registrar}/approve/passkey/{_Invited.model_validate_json(answer).invitation}"
    except ValidationError as error:
        raise PeerProtocolError(
            "passkey.bad_answer",
            "The registrar answered with something else than an invitation.",
            next_step="Use the release that the registrar uses.",
        ) from error
    typer.echo(terminal_code(address))
    typer.echo(f"Open this page on the technician's telephone, within 15 minutes: {address}")
