"""`seh-provision consortium`: found it, see how it stands, sign what waits, renew what runs out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import ValidationError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from agent.core.clock import SystemClock
from agent.core.errors import OperatorError, PeerProtocolError, SecureHealthError
from agent.core.validation import explain_invalid
from agent.trust.fingerprint import consortium_words
from agent.trust.records import WitnessRecord, parse_record
from agent.trust.snapshot import Environment
from provisioning.authority.ceremony import add_signatures, load_pending, unchanged
from provisioning.authority.consortium import Founding, FoundingPlan
from provisioning.authority.keyring import Keyring
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.repository import RepositoryFiles, RepositoryState
from provisioning.authority.roles import OFFLINE
from provisioning.authority.site import LocalSource, SiteDesk
from provisioning.authority.superlink import SuperLinkConnection
from provisioning.authority.witnesses import consortium_record, dismiss_witness, name_witness
from provisioning.cli.ceremony import (
    DirectoryOption,
    KeysOption,
    OnlineKeyOption,
    asked_authority,
    describe_change,
    tell_outcome,
    use_online_key,
)
from provisioning.cli.files import read_file
from provisioning.cli.fleet import load_heartbeats
from provisioning.cli.secrets import PassphraseFile, ask, interactive
from provisioning.registrar.fleet import ago
from provisioning.registrar.heartbeats import BoxHeartbeat
from provisioning.registrar.settings import load_settings

app = typer.Typer(name="consortium", help="The consortium as a whole.", no_args_is_help=True)

_MAKERS: Final = ("hardware", "virtual", "test")


@app.callback()
def _consortium() -> None:
    """The consortium as a whole."""


@app.command()
def init(
    *,
    directory: DirectoryOption,
    id_: Annotated[str, typer.Option("--id", help="Short name: lower-case letters, digits, hyphens.")],
    name: Annotated[str, typer.Option(help="As people call it.")],
    registrar: Annotated[str, typer.Option(help="host:port where boxes will reach the registrar.")],
    superlink: Annotated[str, typer.Option(help="host:port where boxes will reach the SuperLink.")],
    organisations: Annotated[int, typer.Option(min=1, max=2, help="How many hold the consortium's keys.")] = 1,
    cosigner: Annotated[str | None, typer.Option(help="host:port of the second organisation's cosigner.")] = None,
    root_key: Annotated[list[str] | None, typer.Option(help="URI of a key of the root; key files if left out.")] = None,
    threshold: Annotated[int, typer.Option(min=1, help="How many of the root's keys must sign.")] = 2,
    environment: Annotated[Environment, typer.Option(help="`test` admits simulators and open keys.")] = (
        Environment.PRODUCTION
    ),
    evidence: Annotated[
        str | None, typer.Option(help="The least that boxes' keys must show: none, test, virtual or hardware.")
    ] = None,
    makers: Annotated[
        Path | None, typer.Option(help="Folder with certificates of makers in hardware/, virtual/ and test/.")
    ] = None,
    passphrase_file: Annotated[
        list[Path] | None, typer.Option(help="Holds the passphrase of the key files; twice for two organisations.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made, and make nothing.")] = False,
) -> None:
    """Found a consortium: keys, certificates, settings, and its trust repository. Call it again after a failure."""
    least = evidence or ("none" if environment is Environment.TEST else "hardware")
    plan = _plan(
        id=id_,
        name=name,
        registrar=registrar,
        superlink=superlink,
        organisations=organisations,
        cosigner=cosigner,
        root_keys=tuple(root_key or ()),
        threshold=threshold,
        environment=environment,
        minimum_evidence=least,
        makers=_read_makers(makers),
    )
    layout = AuthorityLayout(directory)
    if dry_run:
        for line in Founding(layout, plan, ("-" * 32,) * organisations, ask, SystemClock()).describe():
            typer.echo(line)
        return
    founding = Founding(layout, plan, _passphrases(layout, plan, passphrase_file or []), ask, SystemClock())
    if not founding.run(lambda what: typer.echo(f"Made: {what}.")):
        typer.echo(f"{plan.name} is founded already; nothing was changed.")
    for line in _what_next(layout, plan):
        typer.echo(line)


@app.command()
def status(directory: DirectoryOption) -> None:
    """Who belongs to it, who is enrolled, and what runs out when."""
    layout = AuthorityLayout(directory)
    files = RepositoryFiles(layout.repository)
    state = files.load()
    if not state.timestamp:
        typer.echo("Founding is not finished: call `seh-provision consortium init` again.")
        raise typer.Exit(2)
    for line in _summary(layout, files, state, _last_seen(layout), load_heartbeats(layout)):
        typer.echo(line)


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(help="A change that waits, from the authority's `pending` folder.")],
    key: KeysOption = None,
    directory: Annotated[
        Path | None, typer.Option("--directory", "-d", help="The authority's directory; publishes what is complete.")
    ] = None,
    online_key: OnlineKeyOption = None,
    passphrase_file: PassphraseFile = None,
    yes: Annotated[bool, typer.Option("--yes", help="Sign without asking.")] = False,
) -> None:
    """Show a change that waits for signatures, and sign it with the keys that are here."""
    pending = load_pending(file)
    for line in describe_change(pending):
        typer.echo(line)
    if not yes and not typer.confirm("Sign this?"):
        raise typer.Exit(1)
    if directory is not None:
        with asked_authority(directory, passphrase_file, key, online_key) as authority:
            pending = authority.ceremony.complete(pending)
            tell_outcome(authority, pending, "Published.")
            if online_key is not None and pending.is_complete:
                use_online_key(authority.layout, online_key)
        return
    before = len(pending.unsigned)
    signed = add_signatures(pending, Keyring(AuthorityLayout(Path()), interactive(passphrase_file), key or ()))
    if len(signed.unsigned) == before and not pending.is_complete:
        raise OperatorError(
            "authority.no_key_of_it",
            "None of the keys here may sign this, or they have signed it already.",
            next_step="Name another key with --key.",
        )
    file.write_bytes(signed.encode())
    typer.echo("Signed. " + ("It is complete." if signed.is_complete else f"{signed.missing} more must sign."))


@app.command()
def renew(
    role: Annotated[str, typer.Argument(help=f"One of: {', '.join(OFFLINE)}")],
    directory: DirectoryOption,
    key: KeysOption = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Sign a role again before its time runs out; nothing else of it changes."""
    if role not in OFFLINE:
        raise OperatorError(
            "authority.no_such_role", f"There is no role {role!r}.", next_step=f"Name one of: {', '.join(OFFLINE)}."
        )
    with asked_authority(directory, passphrase_file, key) as authority:
        ceremony = authority.ceremony
        pending = ceremony.rotate_root({}) if role == Root.type else ceremony.change(role, unchanged)
        tell_outcome(authority, pending, f"{role} is renewed.")


@app.command()
def witness(
    file: Annotated[
        Path | None, typer.Argument(help="The witness's record, witness.json, as `witness init` made it.")
    ] = None,
    *,
    directory: DirectoryOption,
    dismiss: Annotated[str, typer.Option(help="Instead: the name of a witness that is named no more.")] = "",
    key: KeysOption = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Name a witness of the boxes' audit logs; from then on nothing leaves a box that it has not seen lately."""
    if (file is None) == (not dismiss):
        raise typer.BadParameter("Give either a witness's record or --dismiss.")
    record = None if file is None else _read_witness(file)
    with asked_authority(directory, passphrase_file, key) as authority:
        files = RepositoryFiles(authority.layout.repository)
        if record is None:
            pending = dismiss_witness(authority.ceremony, files, dismiss)
            tell_outcome(authority, pending, f"{dismiss} is named no more; boxes stop submitting their logs there.")
        else:
            pending = name_witness(authority.ceremony, files, record)
            tell_outcome(authority, pending, f"{record.name} is named; every box submits its log there from now on.")


def _read_witness(file: Path) -> WitnessRecord:
    try:
        return parse_record(WitnessRecord, read_file(file))
    except PeerProtocolError as error:
        raise OperatorError(
            "authority.no_witness_record",
            f"{file} is no witness's record.",
            next_step="Take witness.json, as `seh-provision witness init` made it, from the witness's operator.",
        ) from error


def _plan(**fields: object) -> FoundingPlan:
    try:
        return FoundingPlan.model_validate(fields)
    except ValidationError as error:
        raise OperatorError(
            "authority.bad_plan",
            f"A consortium cannot be founded like this: {explain_invalid(error, whole='it')}.",
            next_step="Correct the command's options.",
        ) from error


def _passphrases(layout: AuthorityLayout, plan: FoundingPlan, files: list[Path]) -> list[str]:
    interactive_ = [interactive(path)("passphrase") for path in files]
    if files or plan.environment is Environment.TEST:
        return interactive_
    whose = ["key files"] if plan.organisations == 1 else ["first organisation's keys", "second organisation's keys"]
    is_new = not layout.signers.exists()
    return [ask(f"passphrase for the {name}", twice=is_new) for name in whose]


def _read_makers(folder: Path | None) -> dict[str, str]:
    if folder is None:
        return {}
    found = {name: sorted((folder / name).glob("*.pem")) for name in _MAKERS}
    return {name: "".join(read_file(path).decode("ascii") for path in paths) for name, paths in found.items() if paths}


def _what_next(layout: AuthorityLayout, plan: FoundingPlan) -> list[str]:
    root = layout.repository / "1.root.json"
    digest = RepositoryFiles(layout.repository).load().root_digest
    lines = [
        f"Root digest: {digest}",
        f"Fingerprint: {consortium_words(digest)}",
        f"Give every hospital {root}.",
        f"Run the registrar: seh-provision registrar run --config {layout.registrar_settings}",
        f"Run the SuperLink: seh-provision superlink run --directory {layout.path}",
    ]
    if plan.organisations > 1:
        lines.append(f"Carry {layout.second_organisation.path} to the second organisation, and remove it here. There:")
        lines.append(f"  seh-provision cosigner run --config {layout.second_organisation.cosigner_settings.name}")
    if plan.environment is Environment.PRODUCTION:
        lines.append(f"Move the offline keys ({layout.keys}/root-*, targets-*, sites-*, studies-*, releases-*) and")
        lines.append(f"{layout.tls}/authority.key to a medium that lies in a safe, and keep a copy of it elsewhere.")
    lines.append("Then add hospitals: seh-provision site add")
    return lines


def _last_seen(layout: AuthorityLayout) -> dict[str, str]:
    """What registrar and SuperLink know of each enrolled box, in plain words, by its key's id."""
    from provisioning.registrar.challenge import State  # noqa: PLC0415 - many libraries
    from provisioning.registrar.run import database_url  # noqa: PLC0415 - the same
    from provisioning.registrar.store import Store  # noqa: PLC0415 - the same

    settings = load_settings(layout.registrar_settings)
    url = database_url(settings)
    if url.startswith("sqlite") and not Path(url.partition("///")[2]).exists():
        return {}  # the registrar never ran, and makes the file as its own user
    store = Store.open(url, SystemClock())
    try:
        enrolments = store.in_states(set(State))
    finally:
        store.close()
    found = {each.key_id: f"registrar: {each.state.value}" for each in enrolments}
    superlink = settings.superlink
    line = SuperLinkConnection(superlink.home.resolve(), superlink.address, superlink.root_certificates.resolve())
    registered = {each.key_id: int(each.superlink_node) for each in enrolments if each.superlink_node}
    try:
        nodes = line.nodes() if registered else {}
    except SecureHealthError as error:
        return found | dict.fromkeys(registered, error.sentence)
    for key_id, number in registered.items():
        status = nodes.get(number)
        found[key_id] = f"{status.state} {status.since}".rstrip() if status else "the SuperLink does not know it"
    return found


def _summary(
    layout: AuthorityLayout,
    files: RepositoryFiles,
    state: RepositoryState,
    seen: Mapping[str, str],
    beats: Mapping[str, BoxHeartbeat],
) -> list[str]:
    source, now = LocalSource(files), datetime.now(UTC)
    root = Metadata[Root].from_bytes(state.roots[-1]).signed
    lines = [
        f"Root digest {state.root_digest}, version {root.version}, {root.unrecognized_fields.get('environment')}",
        _until("root", root.expires, now),
        _until("timestamp", Metadata[Timestamp].from_bytes(state.timestamp).signed.expires, now),
        _until("snapshot", Metadata[Snapshot].from_bytes(state.snapshot).signed.expires, now),
    ]
    for role, data in state.roles.items():
        lines.append(_until(role, Metadata[Targets].from_bytes(data).signed.expires, now))
    for path in sorted(layout.pending.glob("*.cbor")):
        lines.append(f"waits for signatures: {path}")
    witnesses = consortium_record(files).witnesses
    lines += [f"witness of audit logs: {witness.name} at {witness.address}" for witness in witnesses]
    for site in source.sites:
        desk = SiteDesk(site, source, (), SystemClock())
        revoked = {entry.key_id for entry in desk.revocations}
        lines.append(f"{site}: {len(desk.nodes)} box(es)" + ("" if desk.metadata else "; has signed nothing yet"))
        for node in desk.nodes:
            mark = "REVOKED" if node.root.key_id in revoked else "enrolled"
            key_id = node.root.key_id
            known = "  ".join(filter(None, (seen.get(key_id), _heard(beats.get(key_id), now))))
            lines.append(f"  {node.node}  {node.kind.value}, {node.evidence}  {mark} {node.enrolled:%Y-%m-%d}  {known}")
    return lines


def _heard(beat: BoxHeartbeat | None, now: datetime) -> str:
    if beat is None:
        return "sent no heartbeat"
    return f"release {beat.release}, heard of {ago(int(now.timestamp()) - beat.seen_s)}"


def _until(what: str, expires: datetime, now: datetime) -> str:
    left = expires - now
    mark = "EXPIRED" if left.total_seconds() <= 0 else f"{left.days} d left"
    return f"{what}: counts until {expires:%Y-%m-%d %H:%M} UTC ({mark})"
