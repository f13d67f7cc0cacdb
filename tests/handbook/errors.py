"""docs/errors.md: every failure that the code can name, read from the literals where it is raised."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.core.errors import Fault

ROOT = Path(__file__).parents[2]
PACKAGES = ("agent", "provisioning")
CODE = re.compile(r"^[a-z0-9_]+\.[a-z0-9_]+$")
FAULT_OF_CLASS = {
    "OperatorError": Fault.OPERATOR,
    "PeerProtocolError": Fault.PEER,
    "HardwareError": Fault.HARDWARE,
    "NetworkError": Fault.NETWORK,
    "SoftwareError": Fault.SOFTWARE,
}
FAULT_NAMES = {
    Fault.OPERATOR: "something here: configuration, files, arguments or local data",
    Fault.PEER: "another party: coordinator, hospital or registrar",
    Fault.HARDWARE: "hardware: a key, a TPM, a GPU or a disk",
    Fault.NETWORK: "the network; waiting and trying again is right",
    Fault.SOFTWARE: "this software",
}
_WHOLLY_FILLED = re.compile(r"^<[^<>]*>$")
"""A text that is chosen where it happens."""
_HEAD = """# Errors

Every failure that the software names: a stable code, whose fault it is, what it says, and what to do next. Parts in
angle brackets are filled in when it happens. This page is written by `make docs` from the code.
"""


@dataclass(frozen=True, slots=True, order=True)
class Failure:
    """One place that raises.

    Args:
        code: `room.name`.
        fault: Whose fault; a value of `Fault`.
        sentence: What it says.
        next_step: What it tells the reader to do.
    """

    code: str
    fault: str
    sentence: str
    next_step: str


def page(failures: Iterable[Failure]) -> str:
    """The whole page, from what `find_failures` found."""
    by_room: dict[str, dict[str, list[Failure]]] = defaultdict(lambda: defaultdict(list))
    for failure in sorted(set(failures)):
        by_room[failure.code.partition(".")[0]][failure.code].append(failure)
    parts = [_HEAD]
    for room, codes in sorted(by_room.items()):
        parts.append(f"## {room}\n")
        parts += [_entry(code, places) for code, places in sorted(codes.items())]
    return "\n".join(parts).rstrip() + "\n"


def find_failures(root: Path) -> Iterator[Failure]:
    """Every call in agent/ and provisioning/ that makes an error with a literal code."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in _sources(root)]
    faults = _faults(trees)
    for tree in trees:
        yield from _failures_in(tree, faults)


def _sources(root: Path) -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((root / package).rglob("*.py"))


def _faults(trees: Iterable[ast.Module]) -> dict[str, Fault]:
    """Fault of every error class, also of those that rooms derive for themselves."""
    bases = {
        node.name: [base.id for base in node.bases if isinstance(base, ast.Name)]
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found: dict[str, Fault] = dict(FAULT_OF_CLASS)
    while True:
        fresh = {name: found[base] for name, above in bases.items() for base in above if base in found}
        if fresh.keys() <= found.keys():
            return found
        found = fresh | found


def _failures_in(tree: ast.Module, faults: Mapping[str, Fault]) -> Iterator[Failure]:
    constants = _constants(tree)
    for name, call in _named_calls(tree):
        if name in faults and call.args and (code := _code(call.args[0])):
            sentence = call.args[1] if len(call.args) > 1 else _keyword(call, "sentence")
            texts = (_text(_resolved(part, constants)) for part in (sentence, _keyword(call, "next_step")))
            yield Failure(code, faults[name].value, *texts)


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    """What the module gives a name at its top."""
    return {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _resolved(node: ast.expr | None, constants: Mapping[str, ast.expr]) -> ast.expr | None:
    return constants.get(node.id, node) if isinstance(node, ast.Name) else node


def _named_calls(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, ast.Call]]:
    """Every call with the class that it makes; `super().__init__(...)` counts for the class that it stands in."""
    for node in ast.iter_child_nodes(tree):
        inside = node.name if isinstance(node, ast.ClassDef) else owner
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield (inside if node.func.id == "cls" else node.func.id), node
            elif isinstance(node.func, ast.Attribute):
                yield (inside if node.func.attr == "__init__" else node.func.attr), node
        yield from _named_calls(node, inside)


def _code(node: ast.expr) -> str:
    """The literal code; empty where there is none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.match(node.value):
        return node.value
    return ""


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def _text(node: ast.expr | None) -> str:
    """A string expression as a reader sees it: what is filled in later stands in angle brackets."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.IfExp):
        return f"{_text(node.body)} / {_text(node.orelse)}"
    return f"<{_name(node.value if isinstance(node, ast.FormattedValue) else node)}>"


def _name(node: ast.expr | None) -> str:
    """The most telling name in an expression."""
    if isinstance(node, ast.Call) and node.args:
        return _name(node.args[0])
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    names = [item for item in ast.walk(node) if isinstance(item, (ast.Name, ast.Attribute))] if node else []
    if not names:
        return "..."
    first = names[0]
    return (first.attr if isinstance(first, ast.Attribute) else first.id).strip("_").lower().replace("_", " ")


def _entry(code: str, failures: list[Failure]) -> str:
    # An explicit anchor: sites that show Markdown do not agree on how a dot in a heading becomes one.
    anchor = code.replace(".", "").replace("_", "-")
    faults = " or ".join(sorted({FAULT_NAMES[Fault(failure.fault)] for failure in failures}))
    lines = [f'<a id="{anchor}"></a>', f"### `{code}`", "", f"Lies with {faults}.", ""]
    for failure in failures:
        sentence = "It says what was found." if _WHOLLY_FILLED.match(failure.sentence) else failure.sentence
        step = "It says what to do." if _WHOLLY_FILLED.match(failure.next_step) else failure.next_step
        lines.append(f"- {_escape(sentence)} *{_escape(step)}*")
    return "\n".join([*lines, ""])


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("<", "\\<").replace("*", "\\*")
