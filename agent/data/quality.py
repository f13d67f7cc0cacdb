"""What is wrong with a data set, or was set aside from it, in plain words and in counts; never a value, never a row."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from agent.core.errors import OperatorError
from agent.core.wire import Refusal

Sentence = Annotated[str, Field(max_length=1000)]
Count = Annotated[int, Field(ge=0, lt=1 << 48)]


class DeclinedError(OperatorError):
    """Every failure that may depend on local data.

    On the wire all of them are one word, so that no refusal tells anything about the data; code, sentence and details
    stay in this hospital.
    """

    refusal: ClassVar[Refusal] = Refusal.DECLINED


class FindingKind(StrEnum):
    """Why a data set does not fit a study."""

    SCHEMA = "schema"
    COLUMNS = "columns"
    UNIT = "unit"
    EMPTY = "empty"
    COHORT = "cohort"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(_Value):
    """One reason why a data set does not fit."""

    kind: FindingKind
    sentence: Sentence


class SetAside(_Value):
    """Rows left out for one reason.

    Args:
        reason: In plain words, with the field's name where one is at fault.
        rows: How many.
        examples: Line numbers of the first few (row numbers in a Parquet file), to find them here.
    """

    reason: Sentence
    rows: Count
    examples: tuple[Count, ...] = Field(default=(), max_length=5)


class DataReport(_Value):
    """How a data set meets a study's requirement.

    Args:
        dataset: Its name.
        rows: Rows in the file.
        set_aside: Rows left out, by reason.
        missing: Field -> cells without a value, among the rows that could be read.
        train_rows, held_out_rows: Rows to train on and to evaluate on.
        train_positive, held_out_positive: Positive rows among them.
        findings: Why the data set does not fit; empty where it does.
    """

    dataset: str = Field(max_length=63)
    rows: Count = 0
    set_aside: tuple[SetAside, ...] = Field(default=(), max_length=20_000)
    missing: Mapping[str, Count] = Field(default_factory=dict, max_length=5000)
    train_rows: Count = 0
    held_out_rows: Count = 0
    train_positive: Count = 0
    held_out_positive: Count = 0
    findings: tuple[Finding, ...] = Field(default=(), max_length=10_000)

    @property
    def fits(self) -> bool:
        """Whether a study can run on the data set."""
        return not self.findings

    @property
    def usable_rows(self) -> int:
        """Rows that take part."""
        return self.train_rows + self.held_out_rows

    def sentences(self) -> tuple[str, ...]:
        """The report as a person reads it, one sentence each."""
        lines = [finding.sentence for finding in self.findings]
        for item in self.set_aside:
            where = f" (for example line {item.examples[0]})" if item.examples else ""
            lines.append(f"{count_rows(item.rows)} set aside: {item.reason}{where}.")
        lines += [f"Field {name} is missing in {count_rows(cells)}." for name, cells in self.missing.items() if cells]
        if self.fits:
            lines.append(
                f"{self.usable_rows} of {count_rows(self.rows)} take part: {self.train_rows} to train on "
                f"({self.train_positive} positive), {self.held_out_rows} held out ({self.held_out_positive} positive)."
            )
        return tuple(lines)

    def require_fit(self) -> None:
        """Raise unless the data set fits.

        Raises:
            DeclinedError: It does not; the sentence names every reason.
        """
        if not self.fits:
            raise DeclinedError(
                "data.does_not_fit",
                f"Data set {self.dataset} does not fit the study. " + " ".join(item.sentence for item in self.findings),
                next_step="Correct the catalog or the file; `seh-agent data check` shows the whole report.",
                kinds=[item.kind.value for item in self.findings],
            )


def count_rows(number: int) -> str:
    """`1 row`, `2 rows`."""
    return f"{number} row" if number == 1 else f"{number} rows"
