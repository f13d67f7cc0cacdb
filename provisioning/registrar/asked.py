"""A request as every place takes it: whole, and not parsed yet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request

from provisioning.registrar.access import Asked


async def _asked(request: Request) -> Asked:
    query = f"?{request.url.query}" if request.url.query else ""
    body = await request.body()
    return Asked(request.method, request.url.path + query, request.headers.get("authorization", ""), body)


AskedRequest = Annotated[Asked, Depends(_asked)]
Admission = Callable[[str, Asked], Awaitable[str]]
"""Verifies that the hospital of this name asks; gives the id of the key that signed."""
