"""`seh-agent audit`: the record of what happened on this box, and what any such record is worth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from agent.audit.bundle import MAX_BUNDLE_BYTES, VerifiedLog, checkpoint_of, verify_bundle
from agent.audit.leaves import UpdateSent
from agent.audit.note import NoteKey
from agent.audit.witness import parse_witness
from agent.cli.run import DEFAULT_CONFIG, ConfigOption
from agent.core.box_view import Box, LeafView
from agent.core.config import load_config
from agent.core.errors import OperatorError, PeerProtocolError, SoftwareError
from agent.core.files import store_atomically
from agent.core.terminal import render_columns
from agent.identity.session import utc

_OUTPUT = Path("-")

app = typer.Typer(name="audit", help="The record of what happened on this box.", no_args_is_help=True)


@app.callback()
def _audit() -> None:
    """The record of what happened on this box."""


@app.command()
def show(
    *,
    search: Annotated[str, typer.Option(help="Only entries with this text: a study, a steward, a kind.")] = "",
    count: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """The newest entries, and how much of the record is witnessed."""
    box = _box(config)
    first, leaves = box.audit(None, search), list[LeafView]()
    view = first
    while True:
        leaves += view.leaves
        if len(leaves) >= count or view.following is None:
            break
        view = box.audit(view.following, search)
    rows = [(str(leaf.index), utc(leaf.at_s), leaf.kind, _words(leaf)) for leaf in leaves[:count]]
    if rows:
        typer.echo(render_columns(("entry", "when", "what", "details"), rows))
    elif search:
        typer.echo("No entry has this text.")
    typer.echo(f"{first.size} entries in all.")
    if first.witness and first.cosigned_s is not None:
        typer.echo(f"{first.cosigned_size} of them witnessed by {first.witness}, last at {utc(first.cosigned_s)}.")
    elif first.witness:
        typer.echo(f"None of them witnessed yet by {first.witness}.")
    else:
        typer.echo("The consortium names no witness: only this box vouches for its record.")
    if first.blocked:
        typer.echo(f"Nothing leaves this box: {first.blocked}")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Where it goes, not there yet; `-` writes to the output.")],
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Write the whole record into one file, which verifies on any machine."""
    if file == _OUTPUT:
        for piece in _pieces(_box(config)):
            typer.get_binary_stream("stdout").write(piece)
        return
    if file.exists():
        raise OperatorError(
            "audit.file_exists",
            f"There is a file {file} already.",
            next_step="Name another one; exports are kept side by side, so that they can be compared.",
        )
    data = b"".join(_pieces(_box(config)))
    try:
        store_atomically(file, data, mode=0o600)
    except OSError as error:
        raise OperatorError(
            "audit.not_exported",
            f"The record cannot be written to {file}: {error.strerror}.",
            next_step="Name another place, or free space there; the folder must be there already.",
        ) from error
    typer.echo(f"{data.count(10) - 1} entries in {file}. To check it: seh-agent audit verify {file}")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="An exported record.")],
    witness: Annotated[
        list[str] | None, typer.Option(help="Key of a witness that must have cosigned it, as the witness gave it out.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="An earlier export or checkpoint that somebody kept: the record must continue it."),
    ] = None,
) -> None:
    """Check an exported record from its file alone; no box and no network is needed."""
    witnesses = [_witness(vkey) for vkey in witness or ()]
    earlier = None if checkpoint is None else checkpoint_of(_read(checkpoint, MAX_BUNDLE_BYTES))
    _tell(verify_bundle(_read(file, MAX_BUNDLE_BYTES), witnesses, earlier))
    if earlier is not None:
        typer.echo(f"It continues the record in {checkpoint}.")


def _witness(vkey: str) -> NoteKey:
    try:
        return parse_witness(vkey)
    except PeerProtocolError as error:
        raise OperatorError(
            "audit.no_witness_key",
            f"{vkey[:80]!r} is no witness's key: {error.sentence}",
            next_step="Copy the whole key that the witness gave out (name+id+key), in single quotes.",
        ) from error


def _tell(verified: VerifiedLog) -> None:
    record, size = verified.record, verified.checkpoint.size
    sent = [leaf for leaf in verified.leaves if isinstance(leaf, UpdateSent)]
    typer.echo(f"The record holds: {size} entries of the box {record.node} of {record.site}, none altered or missing.")
    typer.echo(f"From {utc(verified.leaves[0].at_s)} to {utc(verified.leaves[-1].at_s)}.")
    typer.echo(f"Updates sent: {len(sent)}, {sum(leaf.bytes for leaf in sent)} bytes in all.")
    typer.echo(f"The box's key: {record.root.key_id}\nCompare it with the box's record in the trust repository.")
    for one in verified.cosigned:
        typer.echo(f"Witnessed by {one.witness.name}: the first {one.size} entries, at {utc(one.time_s)}.")
    if not verified.cosigned:
        typer.echo("No witness was named: whether the box showed others another record, this check does not say.")


def _pieces(box: Box) -> Iterator[bytes]:
    size, offset = 0, 0
    while True:
        piece = box.export(size, offset)
        data = piece.text.encode()
        yield data
        size, offset = piece.size, offset + len(data)
        if offset >= piece.total:
            return
        if not data:
            raise SoftwareError(
                "audit.export_stopped",
                "The agent stopped in the middle of the export.",
                next_step="Try again; if it repeats, look at the agent's log.",
            )


def _words(leaf: LeafView) -> str:
    text = ", ".join(f"{name} {_value(value)}" for name, value in leaf.content.items() if value not in ("", None))
    return text if len(text) <= 100 else text[:97] + "..."


def _value(value: object) -> str:
    if isinstance(value, str):
        return value[:12] if len(value) == 64 else "".join(letter if letter.isprintable() else " " for letter in value)
    return json.dumps(value)


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(limit_bytes + 1)
    except OSError as error:
        raise OperatorError(
            "audit.unreadable",
            f"{path} cannot be read: {error.strerror}.",
            next_step="Check the path and the file's permissions.",
        ) from error


def _box(config: Path) -> Box:
    from agent.service.running_box import RunningBox  # noqa: PLC0415 - other commands need not load the service

    return RunningBox(load_config(config).node.state_directory)
