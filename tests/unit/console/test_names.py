"""Every short name that the agent uses has words in the console."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

from agent.audit.leaves import Leaf
from agent.console.names import ENTRIES, OUTCOMES, RULES, STATES, UNITS
from agent.core.box_view import CheckView, StudyState, Unit
from agent.governance import admission, gate, permit


def literal_rules(module: object) -> set[str]:
    """The rules that a module's findings name by a literal."""
    tree = ast.parse(Path(str(getattr(module, "__file__", ""))).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    firsts = [call.args[0] for call in calls if call.func.id == "Finding" and call.args]  # type: ignore[attr-defined]
    return {str(first.value) for first in firsts if isinstance(first, ast.Constant)}


def test_every_rule_of_the_permit_has_a_name() -> None:
    rules = literal_rules(permit) | literal_rules(gate) | literal_rules(admission)
    assert {"site_named", "budget", "approved"} <= rules
    assert {rule for rule in rules if not rule.startswith("duo_")} <= set(RULES)


def test_every_kind_of_leaf_has_a_name() -> None:
    union, _ = get_args(Leaf)
    assert {leaf.model_fields["kind"].default for leaf in get_args(union)} == set(ENTRIES)


def test_states_outcomes_and_units_have_names() -> None:
    assert set(get_args(StudyState)) == set(STATES)
    assert set(get_args(Unit)) == set(UNITS)
    assert set(get_args(CheckView.model_fields["outcome"].annotation)) == set(OUTCOMES)
