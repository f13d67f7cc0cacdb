"""Pushes and pulls messages at a test's word.

Each command and each answer is one CBOR item: {"op": "push", "node", "records", "ttl"} -> message id;
{"op": "pull", "ids"} -> [[reply to, {"records"} or {"error": [code, reason]}], ...]; {"op": "nodes"} -> node ids;
{"op": "end"}.
"""

from __future__ import annotations

import socket
from typing import IO, Any, cast

import cbor2
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

Command = dict[str, Any]

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Serve the test until it says end, or is gone."""
    with socket.create_connection(("127.0.0.1", int(context.run_config["port"]))) as connection:
        stream = cast("IO[bytes]", connection.makefile("rwb"))
        while True:
            try:
                command = cbor2.load(stream)
            except cbor2.CBORDecodeEOF:
                return
            if command["op"] == "end":
                return
            cbor2.dump(_OPERATIONS[command["op"]](grid, command), stream)
            stream.flush()


def _push(grid: Grid, command: Command) -> object:
    records = {name: ConfigRecord(fields) for name, fields in command["records"].items()}
    message = Message(RecordDict(records), int(command["node"]), "query", ttl=command["ttl"])
    return next(iter(grid.push_messages([message])))


def _pull(grid: Grid, command: Command) -> object:
    return [[reply.metadata.reply_to_message_id, _said(reply)] for reply in grid.pull_messages(command["ids"])]


def _said(reply: Message) -> object:
    if reply.has_error():
        return {"error": [reply.error.code, reply.error.reason]}
    return {"records": {name: dict(record) for name, record in reply.content.items()}}


def _nodes(grid: Grid, _: Command) -> object:
    return list(grid.get_node_ids())


_OPERATIONS = {"push": _push, "pull": _pull, "nodes": _nodes}
