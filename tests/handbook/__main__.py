"""`python -m tests.handbook`: write the pages of docs/ that are made from the code."""

from __future__ import annotations

from tests.handbook.errors import ROOT, find_failures, page
from tests.handbook.study import study_schema


def main() -> None:
    """Write all pages."""
    (ROOT / "docs" / "errors.md").write_text(page(find_failures(ROOT)), encoding="utf-8")
    (ROOT / "docs" / "study.schema.json").write_text(study_schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
