"""What holds session keys is pulled out in the middle of a round: the round waits, and ends as if nothing had been."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import HardwareError
from agent.identity.signing import SigningKey
from tests.unit.coordinator.test_secure import MEAN, Federation


@dataclass(slots=True)
class LooseTPM:
    """Signs, but not each time: its nth signatures fail."""

    failing: frozenset[int]
    asked: int = 0
    private: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self.private.public_key()

    def sign(self, message: bytes) -> bytes:
        self.asked += 1
        if self.asked in self.failing:
            raise HardwareError("tests.away", "No TPM answers.", next_step="Put it back.")
        return self.private.sign(message, ec.ECDSA(hashes.SHA256()))


# The first signature is over the run's key (leg 0), each further one over a round's upload (leg 1).
@pytest.mark.parametrize("failing", [{1}, {1, 2, 3}, {2}, {3, 4, 6}], ids=str)
def test_a_tpm_away_for_a_moment_costs_a_wait_and_nothing_else(tmp_path: Path, failing: set[int]) -> None:
    federation = Federation(tmp_path)
    tpm, site = LooseTPM(frozenset(failing)), federation.sites["hospital-b"]
    site.session_keys = lambda: SigningKey(tpm)
    site.restart()
    result = federation.run()
    np.testing.assert_allclose(federation.trained(), 1.0 + 3 * MEAN, atol=2e-3)
    assert [record["cohort"] for record in result["history"]] == [list(federation.sites)] * 3
    assert [record["attempts"] for record in result["history"]] == [1, 1, 1]
    assert tpm.asked == 5 + len(failing)
