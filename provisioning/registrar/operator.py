"""What the operator sees on the registrar's own host: a page of the fleet, and metrics.

GET /    GET /fleet.css    GET /metrics

Nobody signs in, so it listens on loopback alone, in a server apart from the one that boxes reach, and answers only
who asks for it by a name of this host: a page elsewhere cannot have the operator's browser fetch it (DNS rebinding).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import uvicorn
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from prometheus_client import CollectorRegistry, Counter, Info, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override

from agent.core.clock import Clock
from agent.core.errors import OperatorError
from agent.core.version import software_version
from agent.web.server import listening
from provisioning.registrar.fleet import Condition, Fleet, ago, survey, utc
from provisioning.registrar.guard import Guard
from provisioning.registrar.publish import PublishedReader
from provisioning.registrar.settings import LOOPBACK
from provisioning.registrar.store import Store

METRICS_TYPE: Final = "text/plain; version=1.0.0; charset=utf-8"
MAX_CONNECTIONS: Final = 32
GRACE_S: Final = 1
_PAGES: Final = Path(__file__).with_name("pages")
_POLICY: Final = "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_PLACES: Final = ("/v1/heartbeats", "/v1/enrolments", "/v1/sites", "/v1/pairings", "/approve", "/repository")


@dataclass(frozen=True, slots=True)
class OperatorDesk:
    """What the page and the metrics are made of.

    Args:
        reader: The published repository.
        store: What boxes told.
        clock: For the present.
        registry: Of metrics that are counted elsewhere.
    """

    reader: PublishedReader
    store: Store
    clock: Clock
    registry: CollectorRegistry

    def fleet(self) -> Fleet:
        """How the boxes do now.

        Raises:
            SecureHealthError: Repository or database cannot be read.
        """
        now_s = int(self.clock.now().timestamp())
        return survey(self.reader.current().snapshot, self.store.heartbeats(), now_s=now_s)


class RequestCounter:
    """Counts what is answered, by place and by how.

    Args:
        app: Answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.registry = CollectorRegistry()
        labels = ["place", "status"]
        self._answered = Counter("seh_registrar_requests", "Requests answered.", labels, registry=self.registry)
        Info("seh_registrar", "The registrar's release.", registry=self.registry).info({"version": software_version()})
        ProcessCollector(registry=self.registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"]
                place = next((name for name in _PLACES if path == name or path.startswith(f"{name}/")), "other")
                self._answered.labels(place, f"{message['status'] // 100}xx").inc()
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)


class FleetCollector(Collector):
    """The fleet as metrics, read when they are asked for.

    Args:
        desk: Reads.
    """

    def __init__(self, desk: OperatorDesk) -> None:
        self._desk = desk

    @override
    def collect(self) -> Iterable[Metric]:
        fleet = self._desk.fleet()
        boxes = GaugeMetricFamily("seh_fleet_boxes", "Boxes on record.", labels=["condition"])
        for condition, count in fleet.counts.items():
            boxes.add_metric([condition.value], count)
        yield boxes
        yield from _box_metrics(fleet)
        enrolments = GaugeMetricFamily("seh_registrar_enrolments", "Enrolments.", labels=["state"])
        for state, count in self._desk.store.enrolments_by_state().items():
            enrolments.add_metric([state.value], count)
        yield enrolments

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: else it is all read once to be registered."""
        return []


def _box_metrics(fleet: Fleet) -> Iterator[Metric]:
    names = ["site", "node"]
    info = GaugeMetricFamily("seh_fleet_box_info", "A box on record.", labels=[*names, "version", "key"])
    seen = GaugeMetricFamily("seh_fleet_box_seen_timestamp_seconds", "When it was heard of; 0: never.", labels=names)
    expiry = GaugeMetricFamily(
        "seh_fleet_box_session_expiry_timestamp_seconds", "Until when its key vouches; 0: not known.", labels=names
    )
    well = GaugeMetricFamily("seh_fleet_box_well", "Whether it is heard of, and well.", labels=names)
    person = GaugeMetricFamily("seh_fleet_box_needs_person", "Whether somebody has to come to it.", labels=names)
    for box in fleet.boxes:
        labels = [box.site, box.node]
        info.add_metric([*labels, box.release, box.key], 1)
        seen.add_metric(labels, box.seen_s or 0)
        expiry.add_metric(labels, box.session_expires_s or 0)
        well.add_metric(labels, box.condition is Condition.WELL)
        person.add_metric(labels, box.needs_person)
    return iter((info, seen, expiry, well, person))


def operator_app(desk: OperatorDesk, clock: Clock) -> ASGIApp:
    """Build the application.

    Args:
        desk: What it shows.
        clock: For rates.
    """
    pages = Environment(loader=FileSystemLoader(_PAGES), autoescape=True, undefined=StrictUndefined)
    pages.filters |= {"utc": utc, "ago": ago}
    fleet_registry = CollectorRegistry()
    fleet_registry.register(FleetCollector(desk))

    def page(_: Request) -> Response:
        text = pages.get_template("fleet.html").render(fleet=desk.fleet(), conditions=Condition)
        return HTMLResponse(text, headers={"content-security-policy": _POLICY})

    def style(_: Request) -> Response:
        return Response((_PAGES / "fleet.css").read_bytes(), media_type="text/css")

    def metrics(_: Request) -> Response:
        return Response(generate_latest(desk.registry) + generate_latest(fleet_registry), media_type=METRICS_TYPE)

    app = Starlette(routes=[Route("/", page), Route("/fleet.css", style), Route("/metrics", metrics)])
    return Guard(_OwnHost(app), clock)


class _OwnHost:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if host not in LOOPBACK and host.rpartition(":")[0] not in LOOPBACK:
            await PlainTextResponse("Ask by a name of this host.", HTTPStatus.FORBIDDEN)(scope, receive, send)
            return
        await self._app(scope, receive, send)


@contextmanager
def opened_page(address: str | None, desk: OperatorDesk, clock: Clock) -> Iterator[None]:
    """Show page and metrics inside the block.

    Args:
        address: `host:port` of loopback; None shows nothing.
        desk: What is shown.
        clock: For rates.

    Raises:
        OperatorError: It cannot listen there (`registrar.no_operator_page`).
    """
    if address is None:
        yield
        return
    try:
        listener = listening(address, MAX_CONNECTIONS)
    except (OSError, OverflowError) as error:
        raise OperatorError(
            "registrar.no_operator_page",
            f"The operator's page cannot be shown at {address}: {error}.",
            next_step="Correct `operator` in the registrar's settings, or stop what listens there.",
        ) from error
    server = uvicorn.Server(_config(operator_app(desk, clock)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="operator")
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def _config(app: ASGIApp) -> uvicorn.Config:
    settings: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "proxy_headers": False}
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_S,
        **settings,
    )
