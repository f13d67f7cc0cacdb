"""The pages that show: overview, studies, rounds, budget, record, health, keys. Nothing here changes anything."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Final, TypeVar

from fastapi import APIRouter, Query
from starlette.responses import RedirectResponse, Response, StreamingResponse

from agent.console.asked import AskedRequest
from agent.console.charts import budget_bar, round_series
from agent.console.needs import needs_of
from agent.console.pages import Pages
from agent.console.passkeys import PasskeyDesk
from agent.core.box_view import Box, ExportPiece, HealthView, StewardView, StudyLine
from agent.core.errors import OperatorError, SecureHealthError, SoftwareError
from agent.core.ids import check_identifier
from agent.web.assets import asset_answer, assets

_ASSETS: Final = assets(Path(__file__).with_name("static"), "console.css", "console.js", "mark.svg")
MAX_SEARCH: Final = 200
_NOT_GOVERNED: Final = "service.not_governed"
_ORDER: Final = ("waiting", "approved", "not-permitted", "refused", "withdrawn", "absent")
PartT = TypeVar("PartT")


def view_routes(box: Box, pages: Pages, passkeys: PasskeyDesk) -> APIRouter:
    """The routes.

    Args:
        box: The agent.
        pages: Renders.
        passkeys: Knows which keys answer here.
    """
    router = APIRouter()

    @router.get("/")
    def overview(asked: AskedRequest) -> Response:
        state = box.status()
        audit = _governed(box.audit, None)
        studies: tuple[StudyLine, ...] = _governed(box.studies, ())
        stewards: tuple[StewardView, ...] = _governed(box.stewards, ())
        health = _governed(box.doctor, HealthView())
        return pages.page(
            "overview",
            asked,
            state=state,
            audit=audit,
            studies=studies,
            rounds=round_series(_governed(box.rounds, ()), () if audit is None else audit.leaves),
            health=health,
            needs=needs_of(state, audit, stewards, studies, health),
        )

    @router.get("/rounds")
    def rounds(asked: AskedRequest) -> Response:
        return pages.page("rounds", asked, series=round_series(box.rounds(), box.audit().leaves))

    @router.get("/budget")
    def budget(asked: AskedRequest) -> Response:
        return pages.page("budget", asked, rows=[(row, budget_bar(row)) for row in box.budget()])

    @router.get("/health")
    def health(asked: AskedRequest) -> Response:
        return pages.page("health", asked, state=box.status(), health=box.doctor())

    @router.get("/keys")
    def keys(asked: AskedRequest) -> Response:
        return pages.page("keys", asked, stewards=box.stewards(), rp_id=passkeys.rp_id)

    router.include_router(_study_routes(box, pages, passkeys))
    router.include_router(_audit_routes(box, pages))
    return router


def asset_routes() -> APIRouter:
    """What every page loads."""
    router = APIRouter(prefix="/static")

    @router.get("/{name}")
    def asset(name: str) -> Response:
        return asset_answer(_ASSETS.get(name), {"cache-control": "max-age=300"})

    return router


def _study_routes(box: Box, pages: Pages, passkeys: PasskeyDesk) -> APIRouter:
    router = APIRouter(prefix="/studies")

    @router.get("")
    def studies(asked: AskedRequest) -> Response:
        lines = sorted(box.studies(), key=lambda line: (_ORDER.index(line.state), line.expires_s))
        groups = {state: [line for line in lines if line.state == state] for state in _ORDER}
        return pages.page("studies", asked, groups=groups)

    @router.get("/{name}")
    def study(name: str, asked: AskedRequest) -> Response:
        view = box.study(check_identifier(name, kind="study"))
        known = box.stewards()
        return pages.page(
            "study",
            asked,
            study=view,
            stewards=passkeys.usable(known),
            factor=None if view.epsilon is None else math.exp(min(view.epsilon, 700.0)),
        )

    @router.get("/{name}/sign/{sequence}")
    def sign(name: str, sequence: int, asked: AskedRequest) -> Response:
        pending = asked.session.pending.get(sequence)
        if pending is None or pending.study != name:
            return RedirectResponse(f"/studies/{check_identifier(name, kind='study')}", HTTPStatus.SEE_OTHER)
        fields = json.loads(pending.challenge.payload)
        return pages.page("sign", asked, pending=pending, fields=fields, sequence=sequence, rp_id=passkeys.rp_id)

    return router


def _audit_routes(box: Box, pages: Pages) -> APIRouter:
    router = APIRouter(prefix="/record")

    @router.get("")
    def audit(
        asked: AskedRequest,
        search: Annotated[str, Query(max_length=MAX_SEARCH)] = "",
        start: Annotated[int | None, Query(ge=0)] = None,
    ) -> Response:
        return pages.page("record", asked, audit=box.audit(start, search), search=search, start=start)

    @router.get("/export")
    def export() -> Response:
        first = box.export(0, 0)
        headers = {
            "content-disposition": f'attachment; filename="audit-{first.size}.json"',
            "content-length": str(first.total),
        }
        return StreamingResponse(_pieces(box, first), media_type="application/json", headers=headers)

    return router


def _pieces(box: Box, piece: ExportPiece) -> Iterator[bytes]:
    """One export, whole: a browser sees by its announced length where it was cut off."""
    offset = 0
    while True:
        data = piece.text.encode()
        yield data
        offset += len(data)
        if offset >= piece.total:
            return
        if not data:
            raise SoftwareError(
                "console.export_stuck",
                "The agent gives no more of the record, though there is more.",
                next_step="Export it again; if it repeats, use `seh-agent audit export`.",
            )
        piece = box.export(piece.size, offset)


def _governed(ask: Callable[[], PartT], otherwise: PartT) -> PartT:
    """What the agent answers; `otherwise` where it governs no studies, as a box that is not enrolled does not."""
    try:
        return ask()
    except OperatorError as error:
        if error.code != _NOT_GOVERNED:
            raise
        return otherwise


def no_such_page() -> SecureHealthError:
    """The failure of an address that leads nowhere."""
    return OperatorError(
        "console.no_such_page",
        "There is no such page in this console.",
        next_step="Go on from the overview.",
    )
