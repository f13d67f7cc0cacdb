"""Two organisations' consortium as it runs: registrar and cosigner as processes, hospitals at their own terminals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from agent.core.errors import NetworkError, OperatorError
from agent.core.ids import SiteID
from agent.trust.records import StewardFile, public_pem
from agent.trust.snapshot import SiteRecord
from provisioning.authority.signers import create_file_key
from provisioning.cli.main import app
from tests.simulators.authority import FoundedConsortium
from tests.simulators.registrar_host import RegistrarHost
from tests.simulators.superlink import SimulatorError, free_port, wait_until

A = "hospital-a"


@dataclass
class CosignerProcess:
    """`seh-provision cosigner run`; a context manager.

    Args:
        directory: What the second organisation took away.
        address: Where it listens.
    """

    directory: Path
    address: str
    process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-c", "from provisioning.cli.main import main; main()", "cosigner", "run"]
        command += ["--config", str(self.directory / "cosigner.toml")]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._is_ready, limit_s=60, what="the cosigner listens")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(signal.SIGTERM)

    def end(self, how: signal.Signals) -> None:
        """End it, if it runs."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(20)
            self.process = None

    @property
    def log(self) -> Path:
        return self.directory / "cosigner.log"

    def _is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise SimulatorError(f"the cosigner ended\n{self.log.read_text()[-3000:]}")
        return "cosigner_ready" in self.log.read_text()


@dataclass
class Consortium:
    """The registrar's host, and the second organisation's cosigner.

    Args:
        host: Runs.
        cosigner: Runs, unless a test ends it.
        key: File of the hospital's key.
        home: Of the hospital's terminal.
    """

    host: RegistrarHost
    cosigner: CosignerProcess
    key: Path
    home: Path

    @property
    def authority(self) -> FoundedConsortium:
        return self.host.consortium

    def call(self, *arguments: str) -> str:
        """One of the hospital's commands."""
        options = ["--site", A, "--key", f"file:{self.key}", "--state", str(self.home / "state")]
        options += ["--registrar", self.host.address, "--root", str(self.home / "1.root.json")]
        result = CliRunner().invoke(app, [*arguments, *options])
        if result.exception is not None:
            raise result.exception
        return result.output

    def record(self) -> SiteRecord:
        """What a new box reads of the hospital."""
        return self.authority.read(self.home / "box").sites[SiteID(A)]


@pytest.fixture
def consortium(tmp_path: Path) -> Iterator[Consortium]:
    address = f"127.0.0.1:{free_port()}"
    host = RegistrarHost.found(tmp_path / "authority", A, organisations=2, cosigner=address)
    second = host.consortium.layout.second_organisation
    settings = second.cosigner_settings
    settings.write_text(settings.read_text(encoding="utf-8").replace("0.0.0.0", "127.0.0.1"), encoding="utf-8")
    host.consortium.enrol(A)
    key = tmp_path / "hospital.pem"
    key.write_bytes(host.sites[A].private_bytes)
    (tmp_path / "1.root.json").write_bytes(host.root)
    # The second organisation takes its part away: the registrar's host has one online key, and not the other.
    away = tmp_path / "second"
    second.path.rename(away)
    with CosignerProcess(away, address) as cosigner, host:
        yield Consortium(host, cosigner, key, tmp_path)


@pytest.mark.slow
def test_hospital_keeps_its_record_from_its_own_terminal(consortium: Consortium) -> None:
    (node,) = consortium.record().nodes
    assert f"{node.node}  software" in consortium.call("node", "list")
    steward = StewardFile(
        site=A,
        steward="dr-a",
        rp_id="localhost",
        credential_id="ab",
        public_key=public_pem(ec.generate_private_key(ec.SECP256R1()).public_key()),
    )
    (consortium.home / "dr-a.json").write_bytes(steward.encode())
    consortium.call("steward", "add", str(consortium.home / "dr-a.json"))
    assert consortium.record().stewards == (steward,)
    assert "dr-a  -  security key, for localhost  decides" in consortium.call("steward", "list")
    consortium.call("steward", "revoke", "dr-a", "--reason", "lost")
    assert "REVOKED: lost" in consortium.call("steward", "list")
    with pytest.raises(OperatorError, match="cannot come back"):
        consortium.call("steward", "add", str(consortium.home / "dr-a.json"))
    with pytest.raises(OperatorError, match="no steward"):
        consortium.call("steward", "revoke", "dr-x", "--reason", "lost")
    consortium.call("node", "revoke", node.node, "--reason", "stolen")
    assert consortium.record().revoked == {node.root.key_id, steward.key_id}
    assert "REVOKED: stolen" in consortium.call("node", "list")
    version = consortium.record().version
    assert f"version {version + 1}" in consortium.call("site", "renew")
    with pytest.raises(OperatorError, match="no box"):
        consortium.call("node", "replace", "nobody")
    (consortium.home / "dr-b.json").write_bytes(steward.model_copy(update={"site": "hospital-b"}).encode())
    with pytest.raises(OperatorError, match="record of hospital-b"):
        consortium.call("steward", "add", str(consortium.home / "dr-b.json"))


@pytest.mark.slow
def test_box_is_replaced_after_a_repair(consortium: Consortium) -> None:
    (node,) = consortium.record().nodes
    assert "seh-agent re-enrol" in consortium.call("node", "replace", node.node)
    assert node.root.key_id in consortium.record().revoked
    desk = consortium.authority.desk(A, consortium.host.sites[A])
    with pytest.raises(OperatorError, match="cannot come back"):
        desk.endorse(node)


@pytest.mark.slow
def test_hospital_moves_to_another_key(consortium: Consortium) -> None:
    """The offline keys of both organisations are in one room for the part that is the consortium's."""
    before = consortium.record()
    new = consortium.home / "next.pem"
    create_file_key(new, None)
    assert "has named its next key" in consortium.call("site", "move", "--new-key", f"file:{new}")
    public = consortium.home / "next.pub"
    run = CliRunner().invoke(app, ["key", "show", f"file:{new}"])
    public.write_text(run.stdout)
    follow = ["site", "add", A, "-d", str(consortium.host.directory), "--public-key", str(public), "--follow"]
    result = CliRunner().invoke(app, [*follow, "--sign-with", f"file:{consortium.cosigner.directory}/keys/sites-2.pem"])
    assert result.exception is None, result.exception
    old, consortium.key = consortium.key, new
    consortium.call("site", "renew")
    after = consortium.record()
    assert after.version == before.version + 2
    assert not any(key in before.keys for key in after.keys)
    consortium.key = old
    with pytest.raises(OperatorError):
        consortium.call("site", "renew")


@pytest.mark.slow
def test_nothing_is_published_without_the_second_organisation(consortium: Consortium) -> None:
    (node,) = consortium.record().nodes
    consortium.cosigner.end(signal.SIGKILL)
    with pytest.raises((NetworkError, OperatorError), match="cosigner"):
        consortium.call("node", "revoke", node.node, "--reason", "stolen")
    assert not consortium.record().revoked
    with consortium.cosigner:
        consortium.call("node", "revoke", node.node, "--reason", "stolen")
        assert consortium.record().revoked == {node.root.key_id}


@pytest.mark.slow
def test_cosigner_refuses_what_it_cannot_read(consortium: Consortium) -> None:
    with httpx.Client(
        base_url=f"https://{consortium.cosigner.address}", verify=consortium.host.trust, timeout=30
    ) as client:
        for body in (b"", b"nonsense", b"\xa0", b"\x5a\xff\xff\xff\xff"):
            answer = client.post("/v1/cosignatures", content=body)
            assert answer.status_code == 409
            assert json.loads(answer.content)["code"] == "cosigner.bad_proposal"
        too_large = (bytes(1 << 20) for _ in range(40))
        assert client.post("/v1/cosignatures", content=too_large).status_code == 413
        assert client.get("/docs").status_code == 404
