"""The coordinator's end of a real SuperLink, driven by a test: any message to any node, and what comes back."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import cbor2

from agent.core.wire import (
    PART_FIELD,
    REFUSAL_ERROR_CODE,
    Frame,
    Refusal,
    encode_frame,
    join_parts,
    parse_frame,
    split_parts,
)
from tests.simulators.superlink import RunningSuperLink, SimulatorError

APP = Path(__file__).parent / "grid_app"
CONNECT_LIMIT_S = 60.0
ANSWER_LIMIT_S = 60.0

Records = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class FlowerError:
    """An error that came instead of an answer."""

    code: int
    reason: str


class TestGrid:
    """A running ServerApp that does what this object tells it to."""

    __test__ = False

    def __init__(self, connection: socket.socket, run_id: int) -> None:
        self._connection = connection
        self._stream = cast("IO[bytes]", connection.makefile("rwb"))
        self.run_id = run_id

    @classmethod
    def start(cls, superlink: RunningSuperLink) -> Self:
        """Start a run at `superlink`, and wait until its ServerApp calls back."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(CONNECT_LIMIT_S)
            run_id = superlink.connection.start_run(APP, {"port": server.getsockname()[1]})
            try:
                connection, _ = server.accept()
            except TimeoutError as error:
                raise SimulatorError(f"the ServerApp did not start:\n{superlink.log[-3000:]}") from error
        connection.settimeout(ANSWER_LIMIT_S)
        return cls(connection, run_id)

    def push(self, node_id: int, frame: Frame | bytes, *, ttl_s: float = 3600.0) -> str:
        """Send a frame, or any bytes in a frame's place; returns the message's id."""
        data = frame if isinstance(frame, bytes) else encode_frame(frame)
        records = {name: {PART_FIELD: part} for name, part in split_parts(data).items()}
        return self.push_records(node_id, records, ttl_s=ttl_s)

    def push_records(self, node_id: int, records: Records, *, ttl_s: float = 3600.0) -> str:
        """Send any config records at all."""
        return str(self._do({"op": "push", "node": node_id, "records": records, "ttl": ttl_s}))

    def pull(self, message_id: str, *, limit_s: float = ANSWER_LIMIT_S) -> Frame | Refusal | FlowerError:
        """Wait for the answer to one message."""
        deadline_s = time.monotonic() + limit_s
        while True:
            for _, said in self._do({"op": "pull", "ids": [message_id]}):
                return _read(said)
            if time.monotonic() > deadline_s:
                raise SimulatorError(f"no answer within {limit_s:.0f} s")
            time.sleep(0.02)

    def ask(self, node_id: int, frame: Frame | bytes, *, limit_s: float = ANSWER_LIMIT_S) -> object:
        """Send and wait for the answer."""
        return self.pull(self.push(node_id, frame), limit_s=limit_s)

    def nodes(self) -> set[int]:
        """Ids of the nodes that the SuperLink calls online."""
        return set(self._do({"op": "nodes"}))

    def _do(self, command: dict[str, object]) -> Any:  # noqa: ANN401 - whatever the operation returns
        cbor2.dump(command, self._stream)
        self._stream.flush()
        return cbor2.load(self._stream)

    def close(self) -> None:
        """End the run."""
        try:
            cbor2.dump({"op": "end"}, self._stream)
            self._stream.close()
        except OSError:
            pass  # the SuperLink was killed, and the ServerApp with it
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(said: dict[str, Any]) -> Frame | Refusal | FlowerError:
    if "error" in said:
        code, reason = said["error"]
        return Refusal(reason) if code == REFUSAL_ERROR_CODE else FlowerError(code, reason)
    records = said["records"]
    return parse_frame(join_parts({name: record[PART_FIELD] for name, record in records.items()}))
