"""The site's policy: whether it can be read; without it, every study is refused."""

from __future__ import annotations

from agent.core.errors import OperatorError
from agent.governance.policy import load_policy
from agent.service.doctor.box import Box
from agent.service.doctor.finding import Finding


def check(box: Box) -> Finding:
    """Read it."""
    section = box.config.governed_by
    if section is None:
        return Finding.not_applicable("This box runs demonstrations, which nothing governs.")
    try:
        policy = load_policy(section.policy)
    except OperatorError as error:
        return Finding.warning(error)
    named = ", ".join(sorted(policy.datasets))
    if not named:
        return Finding.ok(f"{section.policy} can be read; it lets no data set be used yet.")
    return Finding.ok(f"{section.policy} lets studies ask for {named}.")
