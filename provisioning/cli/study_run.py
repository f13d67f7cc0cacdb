"""`seh-provision study launch | status | result`: a study that runs, and what comes out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

import typer
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.clock import SystemClock
from agent.core.errors import OperatorError
from agent.core.files import store_atomically
from agent.trust.records import parse_public_pem
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.repository import RepositoryFiles
from provisioning.authority.signers import load_file_key, private_pem
from provisioning.authority.superlink import SuperLinkConnection
from provisioning.cli.files import read_file
from provisioning.cli.secrets import PassphraseFile, interactive
from provisioning.coordinator.directory import CoordinatorDirectory
from provisioning.coordinator.progress import ENDINGS, Happening, read_events
from provisioning.registrar.settings import load_settings
from provisioning.studies.bundle import MODEL, Result, verify_result
from provisioning.studies.standing import describe_run, find_publication, run_directory, tell
from provisioning.studies.words import printable

WATCH_S: Final = 1.0
_COMPLETED: Final = "completed"
"""How the SuperLink calls a run that ended well."""

AuthorityOption = Annotated[Path | None, typer.Option("--directory", "-d", help="The authority's directory.")]
RunOption = Annotated[
    Path | None, typer.Option("--run", help="The coordinator's directory; DIRECTORY/runs/STUDY if left out.")
]

result = typer.Typer(name="result", help="A study's signed result.", invoke_without_command=True)


def launch(
    study: Annotated[str | None, typer.Argument(help="Its id; --run says it too.")] = None,
    *,
    directory: AuthorityOption = None,
    run: RunOption = None,
    address: Annotated[
        str | None, typer.Option(help="host:port of the SuperLink; the consortium's if left out.")
    ] = None,
    root_certificate: Annotated[Path | None, typer.Option(help="Of the SuperLink, PEM; the same.")] = None,
    coordinator_key: Annotated[
        Path | None, typer.Option(help="The coordinator's private key; DIRECTORY/keys/coordinator.pem if left out.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    there: Annotated[
        Path | None, typer.Option(help="The coordinator's directory on the SuperLink's host, where that is another.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return at once; see `study status`.")] = False,
) -> None:
    """Start a published study at the SuperLink, or resume it where it stands, and follow it."""
    from provisioning.studies import launching  # noqa: PLC0415 - loads Flower

    if there is not None:
        _launch_afar(there, _connection(there, directory, address, root_certificate), detach=detach)
        return
    if run is None and study is not None and directory is not None:
        layout = AuthorityLayout(directory.absolute())
        key = load_file_key(coordinator_key or layout.keys / "coordinator.pem", interactive(passphrase_file))
        place = launching.prepare_run(layout, study, private_pem(key, None), registrar=_registrar(layout))
    else:
        place = _place(study, directory, run)
    launched = launching.launch(_connection(place.path, directory, address, root_certificate), place)
    typer.echo(f"Run {launched.run_id} of {place.load().study.id} is started; it works in {place.path}.")
    if detach:
        return
    rounds, last = place.load().study.rounds, ""
    try:
        for event in launched.follow():
            last = str(event["event"])
            if said := tell(event, rounds):
                typer.echo(printable(said))
    except KeyboardInterrupt:
        typer.echo(f"No longer followed; the study goes on: seh-provision study status --run {place.path}")
        return
    if last != Happening.FINISHED:
        typer.echo("The study stands where it is; the same command resumes it.")
        raise typer.Exit(1)


def status(
    study: Annotated[str | None, typer.Argument(help="Its id; --run says it too.")] = None,
    *,
    directory: AuthorityOption = None,
    run: RunOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again each second, until the study ends.")] = False,
) -> None:
    """Say where a study stands: signatures, rounds, figures so far, and what is waited for."""
    place, shown = _place(study, directory, run), [""]
    while True:
        lines, is_over = _standing(place, study, directory)
        if lines != shown:
            if watch and shown != [""]:
                typer.clear()
            typer.echo("\n".join(lines))
            shown = lines
        if not watch or is_over:
            return
        time.sleep(WATCH_S)


@result.callback()
def make(
    context: typer.Context,
    *,
    study: Annotated[str | None, typer.Option("--study", help="Its id; --run says it too.")] = None,
    directory: AuthorityOption = None,
    run: RunOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the result goes.")] = Path("result.zip"),
) -> None:
    """Make the signed result of a study that has ended: model, metrics, curve, model card, study and provenance."""
    if context.invoked_subcommand is not None:
        return
    from provisioning.studies.result import make_result  # noqa: PLC0415 - loads onnx

    place = _place(study, directory, run)
    data = make_result(place)
    store_atomically(out, data)
    typer.echo(f"{out} holds the result, {len(data):,} bytes, signed by the coordinator's key.")
    typer.echo(f"Whoever gets it checks it with: seh-provision study result verify {out.name} --coordinator PUBLIC.pem")


@result.command()
def verify(
    file: Annotated[Path, typer.Argument(help="The result.")],
    *,
    coordinator: Annotated[Path, typer.Option(help="The coordinator's public key, PEM, from the consortium.")],
    study: Annotated[Path | None, typer.Option(help="The study.json that it must belong to.")] = None,
    extract: Annotated[Path | None, typer.Option(help="A new folder for its files, once they are verified.")] = None,
) -> None:
    """Check a result, offline: who signed it, that nothing was altered, and what it says of itself."""
    verified = verify_result(
        read_file(file), _public_key(coordinator), study=None if study is None else read_file(study)
    )
    for line in _described(verified):
        typer.echo(printable(line))
    if extract is not None:
        extract.mkdir(parents=True)
        for name, data in verified.files.items():
            store_atomically(extract / name, data)
        typer.echo(f"Its files are in {extract}.")


def _launch_afar(there: Path, connection: SuperLinkConnection, *, detach: bool) -> None:
    from provisioning.studies.launching import launch_afar  # noqa: PLC0415 - loads Flower

    afar = launch_afar(connection, there)
    typer.echo(f"Run {afar.run_id} is started. On that host: seh-provision study status --run {there}")
    if detach:
        return
    how = afar.wait(time.sleep)
    typer.echo(f"It ended: {how}")
    if not how.startswith(_COMPLETED):
        raise typer.Exit(1)


def _described(verified: Result) -> list[str]:
    counted, provenance = verified.provenance.counted, verified.provenance
    (model,) = [item.digest.sha256 for item in provenance.subject if item.name == MODEL]
    return [
        f"The result of {verified.study.id} ({verified.study.title}) is whole and signed by the coordinator.",
        f"Study: {provenance.asked.studyDigest}",
        f"Model: {model}",
        f"{counted.hospitals} hospitals counted in {counted.rounds} rounds, finished {provenance.finished}.",
        counted.noise,
        f"Made with {', '.join(f'{name} {version}' for name, version in provenance.software.items())}.",
    ]


def _standing(place: CoordinatorDirectory, study: str | None, directory: Path | None) -> tuple[list[str], bool]:
    lines: list[str] = []
    launched, listed = (place.path / "study.json").exists(), True
    if study is not None and directory is not None:
        publication = find_publication(AuthorityLayout(directory), study)
        listed = publication.listed
        lines.append(publication.sentence(launched=launched))
    if not launched:
        # Only a published study can be launched: elsewhere the publication's line says what comes next.
        return [*lines, "Not launched yet: `seh-provision study launch` begins it."] if listed else lines, False
    asked = place.load().study
    events, _ = read_events(place.progress)
    lines.insert(0, f"{asked.title} ({asked.id}), {asked.rounds} rounds with {len(asked.sites)} hospitals")
    if not (listed or events):  # withdrawn before it began: nothing is left to launch
        return [printable(line) for line in lines], True
    return [printable(line) for line in (*lines, *describe_run(events, asked))], bool(events) and events[-1][
        "event"
    ] in ENDINGS


def _place(study: str | None, directory: Path | None, run: Path | None) -> CoordinatorDirectory:
    if run is not None:
        return CoordinatorDirectory(run.absolute())
    if study is None or directory is None:
        raise OperatorError(
            "study.not_named",
            "Which study is meant is not said.",
            next_step="Name its id and --directory, or the coordinator's directory with --run.",
        )
    return run_directory(AuthorityLayout(directory), study)


def _connection(
    run: Path, directory: Path | None, address: str | None, root_certificate: Path | None
) -> SuperLinkConnection:
    home = run / "flower"
    if address is not None and root_certificate is not None:
        return SuperLinkConnection(home, address, root_certificate.absolute())
    if directory is None:
        raise OperatorError(
            "study.no_superlink",
            "Where the SuperLink is is not said.",
            next_step="Name the authority's --directory, or --address and --root-certificate.",
        )
    settings = load_settings(AuthorityLayout(directory.absolute()).registrar_settings).superlink
    return SuperLinkConnection(home, address or settings.address, root_certificate or settings.root_certificates)


def _registrar(layout: AuthorityLayout) -> str:
    from provisioning.registrar.publish import PublishedReader  # noqa: PLC0415 - many libraries

    snapshot = PublishedReader(RepositoryFiles(layout.repository), SystemClock()).current().snapshot
    return snapshot.consortium.registrar.address


def _public_key(path: Path) -> ec.EllipticCurvePublicKey:
    try:
        return parse_public_pem(read_file(path).decode("ascii"))
    except ValueError as error:
        raise OperatorError(
            "result.bad_key",
            f"{path} holds no public key on P-256 or P-384.",
            next_step="Name the coordinator's public key, PEM, as the consortium's operator gave it.",
        ) from error
