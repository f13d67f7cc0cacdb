"""What guards do with ASGI's messages, whatever it is that they let through."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from starlette.types import Message, Receive


def add_headers(message: MutableMapping[str, Any], headers: Mapping[str, str]) -> None:
    """Add to an answer's first message what it does not say for itself.

    Args:
        message: Of type `http.response.start`.
        headers: By name, lower case.
    """
    present = {name.lower() for name, _ in message.get("headers", ())}
    extra = [(name.encode(), text.encode()) for name, text in headers.items() if name.encode() not in present]
    message["headers"] = [*message.get("headers", ()), *extra]


def replay(body: bytes, receive: Receive) -> Receive:
    """Tell a body that was read already once more, whole.

    Args:
        body: Of the request.
        receive: Tells what comes after it.
    """
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
