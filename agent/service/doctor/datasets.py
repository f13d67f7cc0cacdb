"""The data sets: whether the catalog can be read, and each file opened."""

from __future__ import annotations

import os

from agent.core.errors import OperatorError
from agent.data.catalog import load_catalog, open_source
from agent.service.doctor.box import Box
from agent.service.doctor.finding import Finding


def check(box: Box) -> Finding:
    """Open each data set's file, without reading it.

    Raises:
        OperatorError: The catalog cannot be used.
        DeclinedError: A file cannot be opened.
    """
    datasets = load_catalog(box.config.data.catalog).datasets
    if not datasets:
        return Finding.warning(
            OperatorError(
                "doctor.no_datasets",
                f"The catalog {box.config.data.catalog} lists no data set: this box can take part in no study.",
                next_step="Describe the hospital's data sets there; docs/technician.md shows how.",
            )
        )
    for dataset in datasets.values():
        os.close(open_source(dataset))
    return Finding.ok(f"{len(datasets)} data sets can be opened: {', '.join(sorted(datasets))}.")
