from __future__ import annotations

import pytest

from agent.secagg.terms import Dropout
from tests.simulators.cohort import Cohort, make_terms
from tests.simulators.malicious_server import MaliciousServer


@pytest.fixture
def server() -> MaliciousServer:
    """Four hospitals, one of which may collude; the study waits for the whole cohort."""
    return MaliciousServer.over(Cohort(make_terms(4)))


@pytest.fixture
def lenient() -> MaliciousServer:
    """Five hospitals, one of which may collude; the study goes on without the missing."""
    return MaliciousServer.over(Cohort(make_terms(5, dropout=Dropout.CONTINUE, accept_differencing=True)))
