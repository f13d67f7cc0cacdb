"""What a study asks of a table, as far as this room needs to know it; `agent.trust.study` has values of this form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class FieldRequirement(Protocol):
    """One field that must be there, with the meaning that its values must have."""

    @property
    def name(self) -> str:
        """Its name in the study."""
        ...

    @property
    def kind(self) -> str:
        """`number`, `category` or `flag`."""
        ...

    @property
    def unit(self) -> str | None:
        """Unit of its numbers; None where it has none."""
        ...

    @property
    def minimum(self) -> float | None:
        """Least possible number, in `unit`."""
        ...

    @property
    def maximum(self) -> float | None:
        """Greatest possible number, in `unit`."""
        ...

    @property
    def categories(self) -> Sequence[str]:
        """All categories; the first one is the reference and gets no column."""
        ...


class LabelRequirement(Protocol):
    """The outcome."""

    @property
    def field(self) -> str:
        """Its field's name in the study."""
        ...

    @property
    def positive_above(self) -> float:
        """A row is positive where the field's number exceeds this."""
        ...


class TableRequirement(Protocol):
    """A whole table."""

    @property
    def schema_name(self) -> str:
        """What the records describe; a data set states the same name."""
        ...

    @property
    def features(self) -> Sequence[FieldRequirement]:
        """Model inputs, in order."""
        ...

    @property
    def label(self) -> LabelRequirement:
        """The outcome."""
        ...

    @property
    def missing(self) -> str:
        """`drop-row` or `impute-mean`."""
        ...

    @property
    def standardise(self) -> str:
        """`none`, `local` or `federated`."""
        ...

    @property
    def minimum_rows(self) -> int:
        """Fewest usable rows."""
        ...

    @property
    def holdout(self) -> float:
        """Share of rows held out."""
        ...

    @property
    def holdout_seed(self) -> int:
        """Seed of the split."""
        ...


class FieldMoments(Protocol):
    """Mean and standard deviation of one number field, in its own unit."""

    @property
    def mean(self) -> float:
        """Mean."""
        ...

    @property
    def deviation(self) -> float:
        """Standard deviation, above 0."""
        ...
