"""`seh-agent data`: what data sets this hospital has, and whether they fit a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent.cli.run import DEFAULT_CONFIG, ConfigOption
from agent.core.config import load_config
from agent.core.errors import OperatorError
from agent.data.catalog import Catalog, Dataset, load_catalog
from agent.trust.study import MAX_STUDY_BYTES, Study, parse_study

app = typer.Typer(name="data", help="The hospital's data sets.", no_args_is_help=True)

CatalogOption = Annotated[
    Path | None, typer.Option("--catalog", help="Another catalog than the one that the configuration names.")
]


@app.command("list")
def list_datasets(config: ConfigOption = DEFAULT_CONFIG, catalog: CatalogOption = None) -> None:
    """Show what the catalog holds; no record is read."""
    datasets = _catalog(config, catalog).datasets
    for item in datasets.values():
        typer.echo(f"{item.id}  {item.schema_name}  {item.source}{'' if item.source.is_file() else '  (no such file)'}")
        if item.title:
            typer.echo(f"    {item.title}")
    if not datasets:
        typer.echo("The catalog is empty.")


@app.command("check")
def check(
    study: Annotated[str, typer.Argument(help="A study.json file, or the name of a study that this box was given.")],
    dataset: Annotated[str | None, typer.Option("--dataset", help="Which data set; else all of its schema.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    catalog: CatalogOption = None,
) -> None:
    """Check, here and for nobody else, whether a data set fits a study; rows are counted, never shown."""
    from agent.training.client import check_dataset  # noqa: PLC0415 - other commands need not load the worker's client

    wanted = _load_study(study, config)
    address = load_config(config).training.worker if config.is_file() else None
    chosen = _choose(_catalog(config, catalog), wanted, dataset)
    reports = [check_dataset(wanted, item, address=address) for item in chosen]
    for report in reports:
        typer.echo(f"{report.dataset}: {'fits' if report.fits else 'does not fit'} the study {wanted.id}")
        for sentence in report.sentences():
            typer.echo(f"  {sentence}")
    if not any(report.fits for report in reports):
        reports[0].require_fit()


def _catalog(config: Path, catalog: Path | None) -> Catalog:
    return load_catalog(catalog or load_config(config).data.catalog)


def _choose(catalog: Catalog, study: Study, dataset: str | None) -> tuple[Dataset, ...]:
    if dataset is not None:
        return (catalog.dataset(dataset),)
    chosen = catalog.with_schema(study.data.schema_name)
    if not chosen:
        raise OperatorError(
            "cli.no_dataset",
            f"The catalog has no data set of schema {study.data.schema_name}, which the study {study.id} needs.",
            next_step="Add one to the catalog, or name the data set to check with --dataset.",
        )
    return chosen


def _load_study(name: str, config: Path) -> Study:
    path = Path(name)
    if not path.is_file():
        path = load_config(config).studies_directory / name / "study.json"
    try:
        with path.open("rb") as stream:
            return parse_study(stream.read(MAX_STUDY_BYTES + 1))
    except OSError as error:
        raise OperatorError(
            "cli.no_study",
            f"The study {name[:200]!r} cannot be read: {error.strerror}.",
            next_step="Name a study.json file, or a study that this box was given.",
        ) from error
