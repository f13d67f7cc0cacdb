"""What a steward does: approve, refuse, withdraw, enrol a key, sign in and out.

Approving and withdrawing take two steps. The agent says what shall be signed, which a page shows; the steward's key
signs it in the browser; the agent alone decides whether that counts. A page of this console that was broken into could
show one thing and have another signed, which is why the record of every approval names what was signed, word by word.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from fastapi import APIRouter
from starlette.responses import JSONResponse, RedirectResponse, Response

from agent.console.asked import Asked, AskedRequest, chosen_language, own_page
from agent.console.pages import Pages
from agent.console.passkeys import PasskeyDesk, approval_record, withdrawal_proof
from agent.console.sessions import Pending, SessionShelf
from agent.core.box_view import Box
from agent.core.errors import OperatorError
from agent.core.ids import check_identifier
from agent.governance.challenge import Challenge
from agent.trust.records import StewardFile

MAX_PERSON: Final = 200
_CHALLENGE_BYTES: Final = 32
Random = Callable[[int], bytes]


def act_routes(box: Box) -> APIRouter:
    """Approve, refuse, withdraw.

    Args:
        box: The agent.
    """
    router = APIRouter(prefix="/studies/{name}")

    @router.post("/approve")
    def approve(name: str, asked: AskedRequest) -> Response:
        study = check_identifier(name, kind="study")
        title = box.study(study).line.title
        challenge = box.begin_approval(study, _steward(asked))
        _check_as_read(asked, Challenge.parse(challenge.payload.encode()))
        return _to_sign(asked, Pending("approve", study, challenge, title))

    @router.post("/withdraw/{sequence}")
    def withdraw(name: str, sequence: int, asked: AskedRequest) -> Response:
        study = check_identifier(name, kind="study")
        challenge = box.begin_withdrawal(sequence, _steward(asked))
        return _to_sign(asked, Pending("withdraw", study, challenge))

    @router.post("/refuse")
    def refuse(name: str, asked: AskedRequest) -> Response:
        study = check_identifier(name, kind="study")
        box.refuse_study(study, _steward(asked))
        return _to(f"/studies/{study}")

    @router.post("/sign/{sequence}")
    def sign(name: str, sequence: int, asked: AskedRequest) -> Response:
        pending = asked.session.pending.get(sequence)
        if pending is None or pending.study != name:
            raise _nothing_pending()
        steward, payload = pending.challenge.steward.steward, pending.challenge.payload
        if pending.act == "approve":
            box.complete_approval(approval_record(steward, payload, asked.answer))
        else:
            box.complete_withdrawal(sequence, withdrawal_proof(steward, asked.answer))
        asked.session.pending.pop(sequence, None)  # a second press of the button may have been quicker
        return JSONResponse({"to": f"/studies/{pending.study}"})

    return router


def key_routes(box: Box, pages: Pages, passkeys: PasskeyDesk, random: Random) -> APIRouter:
    """A steward's new key. Whoever makes one gains nothing by it: the hospital's role has to sign its record first.

    Args:
        box: The agent.
        pages: Renders.
        passkeys: Asks the browser.
        random: Makes so many random bytes.
    """
    router = APIRouter(prefix="/keys")

    @router.get("/new")
    def new(asked: AskedRequest) -> Response:
        made = StewardFile.model_validate_json(asked.session.record) if asked.session.record else None
        return pages.page("new_key", asked, made=made, rp_id=passkeys.rp_id)

    @router.post("/options")
    def options(asked: AskedRequest) -> Response:
        steward = check_identifier(asked.fields.get("steward", "").strip(), kind="steward")
        person = asked.fields.get("person", "").strip()
        if not 0 < len(person) <= MAX_PERSON:
            raise OperatorError(
                "console.no_person",
                "The key's owner has no name, or too long a one.",
                next_step="Type the name by which the hospital knows this person.",
            )
        if not box.status().site:
            raise OperatorError(
                "console.no_site",
                "This box belongs to no hospital yet, so nobody decides for one here.",
                next_step="Enrol the box first (docs/technician.md).",
            )
        challenge, user_id = random(_CHALLENGE_BYTES), random(_CHALLENGE_BYTES)
        known = passkeys.usable(box.stewards())
        asking, asked.session.ceremony = passkeys.begin_key(steward, person, known, challenge, user_id)
        return JSONResponse(asking)

    @router.post("/registration")
    def registration(asked: AskedRequest) -> Response:
        record = passkeys.finish_key(asked.session.take_ceremony(), asked.answer, box.status().site)
        text = record.model_dump_json(exclude_none=True)
        box.offer_steward(text)
        asked.session.record = text
        return JSONResponse({"to": "/keys/new"})

    @router.get("/record")
    def record(asked: AskedRequest) -> Response:
        if not asked.session.record:
            return _to("/keys/new")
        name = json.loads(asked.session.record)["steward"]
        headers = {"content-disposition": f'attachment; filename="{name}.json"'}
        return Response(asked.session.record, media_type="application/json", headers=headers)

    return router


def door_routes(box: Box, pages: Pages, passkeys: PasskeyDesk, shelf: SessionShelf, random: Random) -> APIRouter:
    """Sign in and out, and the language.

    Args:
        box: The agent.
        pages: Renders.
        passkeys: Asks the browser.
        shelf: Of sessions.
        random: Makes so many random bytes.
    """
    router = APIRouter()

    @router.get("/sign-in")
    def door(asked: AskedRequest) -> Response:
        return pages.page("sign_in", asked, any_steward=bool(passkeys.usable(box.stewards())))

    @router.post("/sign-in/options")
    def options(asked: AskedRequest) -> Response:
        stewards = passkeys.usable(box.stewards())
        asking, asked.session.ceremony = passkeys.begin_sign_in(stewards, random(_CHALLENGE_BYTES))
        return JSONResponse(asking)

    @router.post("/sign-in")
    def sign_in(asked: AskedRequest) -> Response:
        stewards = passkeys.usable(box.stewards())
        steward = passkeys.finish_sign_in(asked.session.take_ceremony(), asked.answer, stewards)
        shelf.sign_in(asked.session, steward)
        return JSONResponse({"to": "/"})

    @router.post("/sign-out")
    def sign_out(asked: AskedRequest) -> Response:
        shelf.end(asked.session)
        return _to("/sign-in")

    @router.post("/language")
    def language(asked: AskedRequest) -> Response:
        asked.session.language = chosen_language(asked.fields.get("language", ""))
        return _to(own_page(asked.fields.get("page", "")))

    return router


def _steward(asked: Asked) -> str:
    """Who acts: who signed in, or whom a page on the box itself names."""
    if asked.session.signed_in:
        return asked.session.steward
    steward = check_identifier(asked.fields.get("steward", ""), kind="steward")
    asked.session.steward = steward
    return steward


def _check_as_read(asked: Asked, challenge: Challenge) -> None:
    """What is asked to be signed must be what the page showed: a study can be replaced while it is read."""
    read = (asked.fields.get("study_digest"), asked.fields.get("dataset_digest"))
    if read != (challenge.study_digest, challenge.dataset_digest):
        raise OperatorError(
            "console.not_as_read",
            "The study or its data set is another one than the page showed.",
            next_step="Read the study's page anew, and approve it if it is still right. Nothing was signed.",
        )


def _to_sign(asked: Asked, pending: Pending) -> Response:
    sequence = json.loads(pending.challenge.payload)["sequence"]
    asked.session.keep(sequence, pending)
    return _to(f"/studies/{pending.study}/sign/{sequence}")


def _to(path: str) -> Response:
    return RedirectResponse(path, HTTPStatus.SEE_OTHER)


def _nothing_pending() -> OperatorError:
    return OperatorError(
        "console.nothing_pending",
        "Nothing waits to be signed under this number in this browser.",
        next_step="Begin again on the study's page. Nothing was changed.",
    )
