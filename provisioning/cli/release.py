"""`seh-provision release`: the maker's side of updates: build, sign, publish, offer, halt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import ValidationError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from agent.core.clock import SystemClock
from agent.core.errors import OperatorError
from agent.core.ids import check_identifier
from agent.core.terminal import render_columns
from agent.core.validation import explain_invalid
from agent.statements.release import Release, Version
from agent.trust.channels import EVERY_SITE, IMAGE_NAME, Offer
from agent.trust.snapshot import Environment
from provisioning.authority.ceremony import PendingChange, add_signatures, load_pending, unchanged
from provisioning.authority.keyring import Keyring
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.roles import MAKER
from provisioning.cli.ceremony import KeysOption, describe_change, from_here
from provisioning.cli.files import read_file
from provisioning.cli.secrets import PassphraseFile, ask, interactive
from provisioning.releases.founding import KEYS_FILE, ROOT_FILE, ReleaseFounding, ReleasePlan
from provisioning.releases.maker import Maker, opened_maker, read_only_maker
from provisioning.releases.parts import load_parts
from provisioning.releases.provenance import PROVENANCE_FILE
from provisioning.releases.record import parse_record
from provisioning.releases.sbom import SBOM_FILE
from provisioning.releases.stick import write_release

app = typer.Typer(name="release", help="Releases of the software, and who gets them.", no_args_is_help=True)

DirectoryOption = Annotated[Path, typer.Option("--directory", "-d", help="The maker's directory.")]
VersionArgument = Annotated[str, typer.Argument(help="The release: X.Y.Z")]
ChannelOption = Annotated[str, typer.Option(help="The channel.")]
_PENDING: Final = ".cbor"
_RENEWED: Final = (Root.type, Targets.type, *MAKER.delegated)


@app.callback()
def _release() -> None:
    """Releases of the software, and who gets them."""


@app.command()
def init(
    *,
    directory: DirectoryOption,
    root_key: Annotated[list[str] | None, typer.Option(help="URI of a key of the root; files if left out.")] = None,
    root_threshold: Annotated[int, typer.Option(min=1, help="How many of them must sign.")] = 2,
    release_key: Annotated[list[str] | None, typer.Option(help="URI of a key that signs releases; files else.")] = None,
    threshold: Annotated[int, typer.Option(min=1, help="How many of them must sign each release.")] = 2,
    channel_key: Annotated[
        list[str] | None, typer.Option(help="URI of a key that chooses what channels offer; a file else.")
    ] = None,
    online_key: Annotated[str | None, typer.Option(help="URI of the key of timestamp and snapshot.")] = None,
    environment: Annotated[Environment, typer.Option(help="`test` lets keys lie open.")] = Environment.PRODUCTION,
    passphrase_file: PassphraseFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made, and make nothing.")] = False,
) -> None:
    """Found the release repository. Call it again after a failure."""
    try:
        plan = ReleasePlan(
            root=_uris(root_key),
            root_threshold=root_threshold,
            releases=_uris(release_key),
            threshold=threshold,
            channels=_uris(channel_key),
            online=_uris([online_key] if online_key else None),
            environment=environment,
        )
    except ValidationError as error:
        raise OperatorError(
            "release.bad_plan",
            f"A release repository cannot be founded like this: {explain_invalid(error, whole='it')}.",
            next_step="Correct the command's options.",
        ) from error
    layout = AuthorityLayout(directory)
    passphrase = None
    if not dry_run and (passphrase_file is not None or environment is Environment.PRODUCTION):
        is_new = not layout.signers.exists()
        secret = interactive(passphrase_file)
        passphrase = secret("passphrase") if passphrase_file else ask("passphrase for the key files", twice=is_new)
    founding = ReleaseFounding(
        layout, plan, "-" * 32 if dry_run else passphrase, lambda what: _answer(what, passphrase), SystemClock()
    )
    if dry_run:
        for line in founding.describe():
            typer.echo(line)
        return
    if not founding.run(lambda what: typer.echo(f"Made: {what}.")):
        typer.echo("The repository is founded already; nothing was changed.")
    typer.echo(
        f"Ship {layout.path / ROOT_FILE} and {layout.path / KEYS_FILE} in the package; serve {layout.repository}."
    )
    typer.echo(
        "Take all keys but the online one to where they belong, and refresh daily: seh-provision release refresh."
    )


@app.command()
def build(
    version: VersionArgument,
    image: Annotated[Path, typer.Argument(help="Its app.raw.")],
    *,
    directory: DirectoryOption,
    commit: Annotated[str, typer.Option(help="Which source it was built from: the whole hash.")],
    epoch: Annotated[
        int | None, typer.Option(min=0, max=1000, help="Security epoch; that of the newest release if left out.")
    ] = None,
    base: Annotated[
        list[str] | None,
        typer.Option("--from", help="Make a delta from this earlier release: X.Y.Z, or X.Y.Z=its app.raw."),
    ] = None,
) -> None:
    """Make a release's record, unsigned, and its deltas."""
    maker = read_only_maker(directory, ask, SystemClock())
    bases = dict(_base(maker, text) for text in base or ())
    draft = maker.build(Version.parse(version), image, epoch=epoch, commit=commit, bases=bases)
    whole = draft.image.stat().st_size
    sizes = {file.name: file.stat().st_size for file in draft.files}
    rows = [(name, f"{size:,}", f"{size / whole:.2%}") for name, size in sizes.items()]
    typer.echo(render_columns(("file", "bytes", "of the whole"), rows))
    _, threshold = maker.release_keys()
    typer.echo(f"Now {threshold} of its signers must sign it: seh-provision release sign {draft.record_file}")


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(help="A release.json, or a change that waits in the maker's `pending`.")],
    directory: DirectoryOption,
    key: KeysOption = None,
    passphrase_file: PassphraseFile = None,
    yes: Annotated[bool, typer.Option("--yes", help="Sign without asking.")] = False,
) -> None:
    """Show what is to be signed, and sign it with the keys that are here."""
    uris = [from_here(uri) for uri in key or ()]
    if file.suffix == _PENDING:
        _sign_change(load_pending(file), directory, uris, passphrase_file, yes=yes)
        return
    record = parse_record(read_file(file))
    for line in _described(record.release):
        typer.echo(line)
    _agree(yes=yes)
    maker = _signing_maker(directory, uris, passphrase_file)
    signed = maker.sign(record, uris)
    file.write_bytes(signed.encode())
    keys, threshold = maker.release_keys()
    missing = threshold - len(signed.signers(keys))
    typer.echo("Signed. " + ("It is complete." if missing <= 0 else f"{missing} more must sign."))


@app.command()
def attest(
    version: VersionArgument,
    parts: Annotated[Path, typer.Argument(help="The folder `parts` beside the app.raw that was built.")],
    *,
    directory: DirectoryOption,
    key: KeysOption = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Say what a release's image was made of, and sign where it comes from; both are published with it."""
    uris = _uris(key)
    maker = _signing_maker(directory, uris, passphrase_file)
    found = load_parts(parts)
    draft = maker.draft(Version.parse(version))
    maker.attest(draft, found, uris)
    typer.echo(f"{SBOM_FILE} lists {len(found)} packages; it and {PROVENANCE_FILE} lie in {draft.path}.")


@app.command()
def publish(
    version: VersionArgument,
    directory: DirectoryOption,
    key: KeysOption = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Put a signed release into the repository; no box takes it before a channel offers it."""
    wanted = Version.parse(version)
    with opened_maker(directory, interactive(passphrase_file), SystemClock(), _here(key)) as maker:
        draft = maker.draft(wanted)
        if wanted in maker.releases():
            typer.echo(f"Release {version} is published already.")
        elif _tell(maker, maker.publish(draft), f"Release {version} is published."):
            typer.echo(f"Offer it: seh-provision release promote {version} --channel stable --percentage 20")
        if wanted in maker.releases() and draft.record_file.exists():
            maker.forget(draft)


@app.command()
def promote(
    version: VersionArgument,
    *,
    directory: DirectoryOption,
    channel: ChannelOption = "stable",
    percentage: Annotated[int, typer.Option(min=0, max=100, help="Of the boxes.")] = 100,
    site: Annotated[list[str] | None, typer.Option(help="Only to this hospital; all if left out.")] = None,
    key: KeysOption = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Have a channel offer a release, or offer it to more or fewer boxes than before."""
    sites = tuple(check_identifier(name, kind="site") for name in site or ()) or (EVERY_SITE,)
    offer = Offer(version=str(Version.parse(version)), percentage=percentage, sites=sites)
    with opened_maker(directory, interactive(passphrase_file), SystemClock(), _here(key)) as maker:
        whom = "all hospitals" if sites == (EVERY_SITE,) else ", ".join(sites)
        pending = maker.offer(check_identifier(channel, kind="channel"), offer)
        _tell(maker, pending, f"{channel} offers {version} to {percentage} % of the boxes of {whom}.")


@app.command()
def halt(
    version: VersionArgument,
    *,
    directory: DirectoryOption,
    channel: ChannelOption = "stable",
    key: KeysOption = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Have a channel offer a release to nobody any more; boxes that run it keep it."""
    with opened_maker(directory, interactive(passphrase_file), SystemClock(), _here(key)) as maker:
        pending = maker.halt(check_identifier(channel, kind="channel"), Version.parse(version))
        _tell(maker, pending, f"{channel} offers {version} to nobody any more.")


@app.command()
def refresh(directory: DirectoryOption, passphrase_file: PassphraseFile = None) -> None:
    """Sign timestamp and snapshot anew, so that boxes see that the repository lives; every few hours."""
    with opened_maker(directory, interactive(passphrase_file), SystemClock()) as maker:
        state = maker.publisher.refresh_online()
    typer.echo(f"Timestamp {state.timestamp_version} and snapshot {state.snapshot_version} are published.")


@app.command()
def renew(
    role: Annotated[str, typer.Argument(help="One of: root, targets, releases, channels")],
    directory: DirectoryOption,
    key: KeysOption = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Sign a role again before its time runs out; nothing else of it changes."""
    if role not in _RENEWED:
        raise OperatorError(
            "release.no_such_role", f"There is no role {role!r}.", next_step=f"Name one of: {', '.join(_RENEWED)}."
        )
    with opened_maker(directory, interactive(passphrase_file), SystemClock(), _here(key)) as maker:
        ceremony = maker.ceremony
        pending = ceremony.rotate_root({}) if role == Root.type else ceremony.change(role, unchanged)
        _tell(maker, pending, f"{role} is renewed.")


@app.command()
def status(directory: DirectoryOption) -> None:
    """What is published, what is offered to whom, what waits, and what runs out when."""
    maker = read_only_maker(directory, ask, SystemClock())
    typer.echo(render_columns(("release", "epoch", "bytes", "deltas", "commit"), _release_rows(maker)))
    typer.echo("\n" + render_columns(("channel", "release", "boxes", "hospitals"), _offer_rows(maker)))
    typer.echo("\n" + render_columns(("role", "version", "counts until"), _expiry_rows(maker)))
    keys, threshold = maker.release_keys()
    for draft in maker.drafts():
        record = draft.load()
        typer.echo(
            f"Release {record.release.version} is built: {len(record.signers(keys))} of {threshold} signatures; not "
            "published."
        )
    for path in sorted(maker.layout.pending.glob(f"*{_PENDING}")):
        pending = load_pending(path)
        typer.echo(f"{pending.role}, version {pending.version}, waits for {pending.missing} signature(s) in {path}.")


@app.command()
def stick(
    place: Annotated[Path, typer.Argument(help="The stick's device (/dev/sdb), or a directory.")],
    version: VersionArgument,
    directory: DirectoryOption,
) -> None:
    """Put a published release onto a stick, for boxes that reach no repository."""
    maker = read_only_maker(directory, ask, SystemClock())
    wanted = Version.parse(version)
    write_release(place, maker.record(wanted), maker.image(wanted), confirm=typer.confirm)
    typer.echo(f"{place} holds release {version}. A stick must be labelled SEH-UPDATE; a box that runs it says so.")


def _sign_change(
    pending: PendingChange, directory: Path, uris: Sequence[str], passphrase_file: Path | None, *, yes: bool
) -> None:
    for line in describe_change(pending):
        typer.echo(line)
    _agree(yes=yes)
    with opened_maker(directory, interactive(passphrase_file), SystemClock(), uris) as maker:
        before = len(pending.unsigned)
        pending = maker.ceremony.complete(add_signatures(pending, maker.keyring))
        if not pending.is_complete and len(pending.unsigned) == before:
            raise OperatorError(
                "authority.no_key_of_it",
                "None of the keys here may sign this, or they have signed it already.",
                next_step="Name another key with --key.",
            )
        _tell(maker, pending, "Published.")


def _signing_maker(directory: Path, uris: Sequence[str], passphrase_file: Path | None) -> Maker:
    """Without the online key, which is not where a release is signed."""
    maker = read_only_maker(directory, ask, SystemClock())
    keyring = Keyring(maker.layout, interactive(passphrase_file), uris)
    return Maker(maker.layout, keyring, maker.publisher, SystemClock())


def _described(release: Release) -> Iterable[str]:
    yield f"Release {release.version}, security epoch {release.epoch}, of commit {release.commit}"
    yield f"  {IMAGE_NAME}: {release.image_bytes} bytes, SHA-256 {release.image_sha256}"
    yield f"  verity root {release.root_hash}"


def _tell(maker: Maker, pending: PendingChange, done: str) -> bool:
    if pending.is_complete:
        typer.echo(done)
        return True
    path = maker.ceremony.pending_file(pending)
    typer.echo(f"Not published yet: {pending.role} needs {pending.missing} more signature(s). It waits in {path}.")
    typer.echo(f"Each further signer: seh-provision release sign {path} --directory {maker.layout.path} --key URI")
    return False


def _release_rows(maker: Maker) -> Iterator[tuple[str, ...]]:
    for version, release in maker.releases().items():
        deltas = {
            name.removeprefix("from-").removesuffix(".zst"): length
            for name, length in maker.lengths(version).items()
            if name.startswith("from-")
        }
        shown = ", ".join(f"from {base}: {length / release.image_bytes:.2%}" for base, length in deltas.items())
        yield str(version), str(release.epoch), f"{release.image_bytes:,}", shown, release.commit[:12]


def _offer_rows(maker: Maker) -> Iterator[tuple[str, ...]]:
    for name, channel in maker.channels().items():
        for offer in channel.releases:
            share = "halted" if offer.halted else f"{offer.percentage} %"
            yield name, offer.version, share, "all" if EVERY_SITE in offer.sites else ", ".join(offer.sites)


def _expiry_rows(maker: Maker) -> Iterator[tuple[str, ...]]:
    state = maker.publisher.load()
    files = {Root.type: state.roots[-1], Timestamp.type: state.timestamp, Snapshot.type: state.snapshot}
    files |= {name: state.roles[name] for name in (Targets.type, *MAKER.delegated)}
    for name, data in files.items():
        signed = Metadata[Targets].from_bytes(data).signed
        yield name, str(signed.version), f"{signed.expires:%Y-%m-%d %H:%M} UTC"


def _base(maker: Maker, text: str) -> tuple[Version, Path]:
    version, mark, path = text.partition("=")
    base = Version.parse(version)
    return base, Path(path) if mark else maker.image(base)


def _agree(*, yes: bool) -> None:
    if not yes and not typer.confirm("Sign this?"):
        raise typer.Exit(1)


def _answer(what: str, passphrase: str | None) -> str:
    return passphrase if passphrase is not None and what.startswith("passphrase") else ask(what)


def _uris(keys: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(_here(keys))


def _here(keys: Sequence[str] | None) -> list[str]:
    return [from_here(uri) for uri in keys or ()]
