"""The operator's side of a real SuperLink: registering nodes, and what a restart forgets."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import NetworkError, OperatorError
from provisioning.authority.superlink import NodeStatus
from tests.simulators.superlink import RunningSuperLink

pytestmark = pytest.mark.slow


def _public_key() -> ec.EllipticCurvePublicKey:
    return ec.generate_private_key(ec.SECP256R1()).public_key()


def test_a_key_is_registered_once_and_survives_a_kill_with_a_database(tmp_path: Path) -> None:
    key = _public_key()
    with RunningSuperLink.start(tmp_path, in_memory=False) as superlink:
        superlink.register(key)
        superlink.kill()
        with pytest.raises(NetworkError):
            superlink.register(_public_key())
        superlink.restart()
        with pytest.raises(OperatorError, match="already in use"):
            superlink.register(key)


def test_in_memory_a_restart_forgets_and_nodes_can_be_registered_again(tmp_path: Path) -> None:
    with RunningSuperLink.start(tmp_path) as superlink:
        old = superlink.register(_public_key())
        superlink.stop()
        superlink.restart()
        with pytest.raises(OperatorError):
            superlink.connection.unregister_node(old)
        assert list(superlink.register_again()) == [old]


def test_status_of_registered_nodes(tmp_path: Path) -> None:
    with RunningSuperLink.start(tmp_path) as superlink:
        assert superlink.connection.nodes() == {}
        node = superlink.register(_public_key())
        assert superlink.connection.nodes() == {node: NodeStatus("registered", "")}
