"""`seh-provision study`: what a study will ask of hospitals, in plain words, before anybody signs it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Final

import typer

from agent.core.errors import OperatorError
from agent.trust.delegations import STUDIES
from agent.trust.model import verify_model
from agent.trust.study import Study, parse_study, study_digest
from agent.trust.terms import aggregation_terms, check_privacy
from provisioning.authority.ceremony import list_files, unlist_below
from provisioning.authority.site import LocalSource
from provisioning.cli.ceremony import DirectoryOption, KeysOption, asked_authority, tell_outcome
from provisioning.cli.files import read_file
from provisioning.cli.secrets import PassphraseFile

app = typer.Typer(name="study", help="Studies.", no_args_is_help=True)


@app.callback()
def _study() -> None:
    """Studies."""


@app.command()
def publish(
    study: Annotated[Path, typer.Argument(help="study.json")],
    model: Annotated[Path, typer.Argument(help="The model file that it names.")],
    directory: DirectoryOption,
    key: KeysOption = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Put a study before the hospitals that it names: a threshold of the studies role's keys signs it."""
    data, model_data = read_file(study), read_file(model)
    parsed = parse_study(data)
    check_privacy(aggregation_terms(parsed, study_digest(data)))
    verify_model(model_data, parsed.model)
    with asked_authority(directory, passphrase_file, key) as authority:
        _check_sites(parsed, LocalSource(authority.publisher.files).sites)
        files = {f"{STUDIES}/{parsed.id}/study.json": data, f"{STUDIES}/{parsed.id}/model.onnx": model_data}
        pending = authority.ceremony.change(STUDIES, list_files(files), targets=files)
        tell_outcome(authority, pending, f"{parsed.id} is published; its hospitals' boxes fetch it within a minute.")


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
        tell_outcome(authority, pending, f"{study} is withdrawn.")


def _check_sites(study: Study, known: Collection[str]) -> None:
    if missing := sorted(set(study.sites) - set(known)):
        raise OperatorError(
            "study.unknown_site",
            f"The study names {', '.join(missing)}, which the consortium does not know.",
            next_step="Correct study.json, or have the hospital added first.",
        )


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="study.json")],
    model: Annotated[Path | None, typer.Option(help="The model file that it names; checked if given.")] = None,
) -> None:
    """Check a study file, and say in plain words what a hospital will be asked."""
    data = read_file(file)
    study, digest = parse_study(data), study_digest(data)
    terms = aggregation_terms(study, digest)
    spent = check_privacy(terms)
    if model is not None:
        verify_model(read_file(model), study.model)
    for line in (*_asked(study), _evidence(study), *_protection(study, terms.minimum_sites, terms.colluders)):
        typer.echo(line)
    if spent is not None:
        typer.echo(
            f"Noise protects each hospital's whole data set: epsilon {spent.epsilon:.2f} at delta {spent.delta:g}."
        )
    typer.echo(f"Digest: {digest}")


def _asked(study: Study) -> list[str]:
    data = study.data
    fields = ", ".join(f"{spec.name} ({spec.unit})" if spec.unit else spec.name for spec in data.features)
    return [
        f"{study.title} ({study.id}), asked by {study.requester}, until {study.expires:%Y-%m-%d}.",
        study.purpose,
        f"Asked of {len(study.sites)} hospitals: {', '.join(study.sites)}.",
        f"Each needs at least {data.minimum_rows} records with {data.label.field} and: {fields}.",
        f"Each trains a model of {study.model.parameters:,} numbers on its own records in {study.rounds} rounds; "
        f"{data.holdout:.0%} of the records are held out to measure it.",
    ]


_EVIDENCE: Final = {
    "none": "Any box that its hospital names takes part, also one whose key is a file that can be copied.",
    "test": "Only boxes whose key shows some evidence take part; a simulator's is enough, so this protects nothing.",
    "virtual": "Only boxes take part whose key lives in hardware, or in a virtual TPM that its operator can copy.",
    "hardware": "Only boxes take part whose key lives in hardware, by the word of its maker.",
}


def _evidence(study: Study) -> str:
    if study.minimum_evidence == "none":
        return _EVIDENCE["none"]
    return f"{_EVIDENCE[study.minimum_evidence]} Every other hospital's box refuses one that shows less."


def _protection(study: Study, minimum: int, colluders: int) -> list[str]:
    lines = [
        f"Only sums over at least {minimum} hospitals leave, also if {colluders} of them and the coordinator conspire."
    ]
    if study.secagg.dropout == "wait":
        lines.append("A round waits for every hospital (or every whole block).")
        if len(study.sites) == minimum:
            lines.append("Mind: with this few hospitals, one silent hospital halts the study.")
    elif study.privacy is None:
        lines.append(
            "Mind: rounds go on without a silent hospital, and no noise is added. Two sums that differ by one hospital "
            "can show that hospital's update and size; each steward is asked to accept that."
        )
    if study.privacy is None:
        lines.append("No noise is added: what the sums themselves reveal is not bounded.")
    return lines
