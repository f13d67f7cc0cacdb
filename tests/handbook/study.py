"""docs/study.schema.json: what study.json may hold, for editors and other people's programs (JSON Schema 2020-12)."""

from __future__ import annotations

import json

from agent.trust.study import Study


def study_schema() -> str:
    """The whole page."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Study.model_json_schema()
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
