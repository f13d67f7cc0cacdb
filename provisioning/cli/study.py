"""`seh-provision study`: from a model file to a signed result."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from agent.core.clock import SystemClock
from agent.core.errors import OperatorError
from agent.core.files import store_atomically
from agent.trust.delegations import STUDIES
from agent.trust.model import verify_model
from agent.trust.study import EvidenceName, parse_study, study_digest
from provisioning.authority.ceremony import PendingChange, add_signatures, load_pending, unlist_below
from provisioning.authority.keyring import Keyring
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.site import LocalSource
from provisioning.cli import study_run
from provisioning.cli.ceremony import Authority, DirectoryOption, KeysOption, asked_authority, from_here, tell_outcome
from provisioning.cli.files import read_file
from provisioning.cli.secrets import PassphraseFile, interactive
from provisioning.studies.draft import DEFAULT_DAYS, DEFAULT_ROUNDS, Draft, check_width, write_study
from provisioning.studies.fields import Column, parse_column, plain_name, read_columns
from provisioning.studies.signing import Proposal, propose_study, read_proposal
from provisioning.studies.words import cautions, explain, printable

PENDING_SUFFIX = ".cbor"

app = typer.Typer(name="study", help="Studies, from a model file to a signed result.", no_args_is_help=True)

StudyArgument = Annotated[Path, typer.Argument(help="study.json, or a file from the authority's `pending` folder.")]
ModelArgument = Annotated[Path | None, typer.Argument(help="The model file that study.json names.")]


@app.callback()
def _study() -> None:
    """Studies, from a model file to a signed result."""


@app.command()
def new(
    model: Annotated[Path, typer.Argument(help="The ONNX file to train.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the study goes.")] = Path("study.json"),
    study_id: Annotated[
        str | None, typer.Option("--id", help="Short name: lower-case letters, digits, hyphens.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="In one line.")] = None,
    purpose: Annotated[str | None, typer.Option(help="What it is for, in words that a patient understands.")] = None,
    requester: Annotated[str | None, typer.Option(help="Who asks.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="A hospital that is asked; once for each.")] = None,
    schema: Annotated[
        str | None, typer.Option(help="Which data set each hospital needs, as its catalog names it.")
    ] = None,
    fields: Annotated[
        Path | None, typer.Option(help="A schema (.json), a data dictionary or a table with a header (.csv).")
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(help="age=number:0:120:years, sex=flag or stage=I|II; adds to the file, or corrects it."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="The field of the outcome.")] = None,
    positive_above: Annotated[float, typer.Option(help="From where on the outcome counts as positive.")] = 0.5,
    legal_basis: Annotated[str, typer.Option(help="Legal basis, or the data permit's number.")] = "",
    duo: Annotated[list[str] | None, typer.Option(help="A research purpose, DUO:0000031 to DUO:0000040.")] = None,
    rounds: Annotated[int, typer.Option(help="How many.")] = DEFAULT_ROUNDS,
    expires: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help=f"The last day; {DEFAULT_DAYS} days from now if left out."),
    ] = None,
    evidence: Annotated[EvidenceName, typer.Option(help="How well keys must live in hardware.")] = "hardware",
) -> None:
    """Write a study for a model; what no option says is asked."""
    if out.exists():
        raise OperatorError(
            "study.file_exists", f"{out} is there already.", next_step="Name another file with --out, or move it away."
        )
    data = read_file(model)
    named = _told(study_id, "short name of the study", "--id")
    wanted = plain_name(_told(label, "field of the outcome", "--label"))
    columns = _columns(fields, field or [], without=wanted)
    draft = Draft(
        id=named,
        title=_told(title, "title", "--title"),
        purpose=_told(purpose, "purpose, in words that a patient understands", "--purpose"),
        requester=_told(requester, "name of who asks", "--requester"),
        sites=site or [part.strip() for part in _told(None, "hospitals, with commas between", "--site").split(",")],
        expires=expires.replace(tzinfo=UTC) if expires else SystemClock().now() + timedelta(days=DEFAULT_DAYS),
        schema_name=_told(schema, "schema of the hospitals' data set", "--schema"),
        label=wanted,
        columns=columns,
        positive_above=positive_above,
        rounds=rounds,
        legal_basis=legal_basis,
        purpose_terms=duo or [],
        minimum_evidence=evidence,
    )
    store_atomically(out, write_study(draft, data))
    typer.echo(f"{named} is written to {out}. Everything that was not asked has a default; edit the file to change it.")
    typer.echo(f"Next, read what hospitals will be asked:  seh-provision study validate {out} --model {model}")
    typer.echo(f"Then give both files to the consortium's operator:  seh-provision study sign {out} {model} -d DIR")


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="study.json")],
    model: Annotated[Path | None, typer.Option(help="The model file that it names; checked if given.")] = None,
) -> None:
    """Check a study file, and say in plain words what a hospital will be asked."""
    data = read_file(file)
    study = parse_study(data)
    said = _described(data)
    if model is not None:
        check_width(study, verify_model(read_file(model), study.model))
    for line in said:
        typer.echo(line)
    typer.echo(f"Digest: {study_digest(data)}")


@app.command()
def sign(
    file: StudyArgument,
    model: ModelArgument = None,
    *,
    directory: Annotated[Path | None, typer.Option("--directory", "-d", help="The authority's directory.")] = None,
    key: KeysOption = None,
    passphrase_file: PassphraseFile = None,
    yes: Annotated[bool, typer.Option("--yes", help="Sign without asking.")] = False,
) -> None:
    """Show a study and sign it with the keys that are here; it is not published. Holders of keys sign one by one."""
    if directory is None:
        pending = _waiting(file)
        _agree(read_proposal(pending), yes=yes)
        file.write_bytes(_signed(pending, passphrase_file, key).encode())
        typer.echo(f"Signed. Give {file} to the next holder of a key, or back to the consortium's operator.")
        return
    with asked_authority(directory, passphrase_file, key) as authority:
        pending = _proposed(authority, file, model)
        _agree(read_proposal(pending), yes=yes)
        pending = authority.ceremony.sign(pending)
        place = authority.ceremony.pending_file(pending)
    if pending.is_complete:
        typer.echo(f"Signed by enough. Now: seh-provision study publish {place} -d {directory}")
        return
    typer.echo(
        f"{pending.missing} more must sign. The study waits in {place}; take that file to a holder of another key:"
    )
    typer.echo("  seh-provision study sign FILE --key URI")


@app.command()
def publish(
    file: StudyArgument,
    model: ModelArgument = None,
    *,
    directory: DirectoryOption,
    key: KeysOption = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Put a study before the hospitals that it names: a threshold of the studies role's keys must have signed it."""
    with asked_authority(directory, passphrase_file, key) as authority:
        pending = _proposed(authority, file, model)
        proposal = read_proposal(pending)
        pending = authority.ceremony.complete(pending)
        tell_outcome(
            authority, pending, f"{proposal.study.id} is published; its hospitals' boxes fetch it within a minute."
        )
        if pending.is_complete:
            typer.echo(
                f"When its hospitals have approved it: seh-provision study launch {proposal.study.id} -d {directory}"
            )


@app.command()
def withdraw(
    study: Annotated[str, typer.Argument(help="Its id.")],
    directory: DirectoryOption,
    key: KeysOption = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Withdraw a study: boxes take no further part in it."""
    with asked_authority(directory, passphrase_file, key) as authority:
        pending = authority.ceremony.change(STUDIES, unlist_below(f"{STUDIES}/{study}/"))
        tell_outcome(
            authority,
            pending,
            f"{study} is withdrawn; its hospitals' boxes take no part in it from their next look on.",
        )


app.command()(study_run.launch)
app.command()(study_run.status)
app.add_typer(study_run.result)


def _described(data: bytes) -> Iterable[str]:
    study = parse_study(data)
    for heading, sentences in explain(data, study).items():
        yield typer.style(heading, bold=True)
        yield from (f"  {printable(sentence)}" for sentence in sentences)
    if doubts := cautions(study, now=SystemClock().now()):
        yield typer.style("What hospitals usually refuse, or ask about", bold=True)
        yield from (f"  {printable(sentence)}" for sentence in doubts)


def _agree(proposal: Proposal, *, yes: bool) -> None:
    for line in _described(proposal.data):
        typer.echo(line)
    typer.echo(f"Digest: {proposal.digest}")
    typer.echo(f"Published beside it: {', '.join(proposal.others) or 'no other study'}.")
    if not yes and not typer.confirm("Sign this?"):
        raise typer.Exit(1)


def _proposed(authority: Authority, file: Path, model: Path | None) -> PendingChange:
    """The change that a file is, or that puts study and model before the hospitals."""
    if model is None:
        return _waiting(file)
    data, model_data = read_file(file), read_file(model)
    for path in sorted(authority.layout.pending.glob(f"{STUDIES}-*{PENDING_SUFFIX}")):
        pending = load_pending(path)
        if data in pending.change.targets.values() and read_proposal(pending).data == data:
            return pending
    sites = LocalSource(authority.publisher.files).sites
    return propose_study(authority.ceremony, data, model_data, sites)


def _waiting(file: Path) -> PendingChange:
    if file.suffix != PENDING_SUFFIX:
        raise OperatorError(
            "study.no_model",
            f"{file} is no study that waits for signatures, and no model file is named beside it.",
            next_step="Name study.json, its model and --directory; or a file that `study sign` wrote.",
        )
    return load_pending(file)


def _signed(pending: PendingChange, passphrase_file: Path | None, keys: list[str] | None) -> PendingChange:
    uris = [from_here(uri) for uri in keys or ()]
    signed = add_signatures(pending, Keyring(AuthorityLayout(Path()), interactive(passphrase_file), uris))
    if len(signed.unsigned) == len(pending.unsigned):
        raise OperatorError(
            "study.no_key_of_it",
            "None of the keys here may sign studies, or they have signed this one already.",
            next_step="Name another key with --key.",
        )
    return signed


def _columns(file: Path | None, typed: Iterable[str], *, without: str) -> list[Column]:
    found = {} if file is None else {column.name: column for column in read_columns(file.name, read_file(file))}
    found |= {column.name: column for column in map(parse_column, typed)}
    if not found:
        text = _told(None, "fields, as age=number:0:120:years, sex=flag, stage=I|II", "--fields or --field")
        found = {column.name: column for column in (parse_column(part.strip()) for part in text.split(","))}
    if file is not None and without not in found:
        raise OperatorError(
            "study.no_such_field",
            f"{file} has no field {without[:80]!r}, which --label names; it has {', '.join(found)[:400]}.",
            next_step="Correct --label, or add the field with --field.",
        )
    found.pop(without, None)
    return [column if column.is_complete else _completed(column) for column in found.values()]


def _completed(column: Column) -> Column:
    known = "number:MINIMUM:MAXIMUM" if column.kind else "number:MINIMUM:MAXIMUM:UNIT, flag, or texts with | between"
    text = _told(None, f"kind of {column.name} ({known})", f"--field {column.name}=...")
    return parse_column(f"{column.name}={text}")


def _told(given: str | None, what: str, option: str) -> str:
    """What an option says, or else whoever sits at the terminal."""
    if given:
        return given
    try:
        return str(typer.prompt(what[:1].upper() + what[1:]))
    except typer.Abort as error:
        raise OperatorError(
            "study.not_told", f"The {what} was not given.", next_step=f"Give it with {option}."
        ) from error
