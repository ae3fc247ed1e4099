"""The HTTP endpoints: /health, /livez, /readyz, /version, /metrics, /debug/raft.

Rules: GET (and HEAD, where starlette adds it) only; any other method is 405 with `Allow`, any other path 404. An unhealthy member answers
503 with the reason in the body, because that is what probes look at. No endpoint changes anything. The metrics and the raft page cost
milliseconds of the loop each: they are made at most every `SHARED_S`, for everybody who has asked by then (shared_page.py).

Source: etcd's HTTP endpoints for paths, queries and bodies; /debug/raft is our own. Deviation: /health is served as application/json, which
it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from kvserver.api import DebugSource, HealthReport, Probes, encode_page
from kvserver.config import ETCD_API_VERSION
from kvserver.metrics import CONTENT_TYPE_LATEST, Metrics
from kvserver.rpc.shared_page import SharedPage

__all__ = ["build_http_app"]

SHARED_S: Final = 0.1

_Endpoint = Callable[[Request], Awaitable[Response]]


def build_http_app(probes: Probes, metrics: Metrics, debug: DebugSource) -> Starlette:
    """The ASGI application over a server's checks, metrics and pages."""
    endpoints = _Endpoints(probes, metrics, debug)
    routes: list[tuple[str, _Endpoint]] = [
        ("/health", endpoints.health),
        ("/livez", endpoints.livez),
        ("/readyz", endpoints.readyz),
        ("/version", endpoints.version),
        ("/metrics", endpoints.metrics),
        ("/debug/raft", endpoints.debug_raft),
    ]
    app = Starlette(routes=[Route(path, endpoint, methods=["GET"]) for path, endpoint in routes])
    app.router.redirect_slashes = False
    return app


class _Endpoints:
    def __init__(self, probes: Probes, metrics: Metrics, debug: DebugSource) -> None:
        self._probes = probes
        self._metrics = SharedPage(metrics.render, interval_s=SHARED_S)
        self._raft = SharedPage(lambda: encode_page(debug.raft_page()), interval_s=SHARED_S)
        self._success, self._failures = metrics.health_success, metrics.health_failures

    async def health(self, request: Request) -> Response:
        query = request.query_params
        report = await self._probes.health(
            serializable=query.get("serializable") == "true", exclude=frozenset(filter(None, query.getlist("exclude")))
        )
        self._count(report)
        body = {"health": "true" if report.healthy else "false", "reason": report.reason}
        return JSONResponse(body, status_code=200 if report.healthy else 503)

    async def livez(self, request: Request) -> Response:
        return self._checks(request, await self._probes.live())

    async def readyz(self, request: Request) -> Response:
        exclude = frozenset(filter(None, request.query_params.getlist("exclude")))
        return self._checks(request, await self._probes.ready(exclude=exclude))

    async def version(self, request: Request) -> Response:
        return JSONResponse({"etcdserver": ETCD_API_VERSION, "etcdcluster": ETCD_API_VERSION})

    async def metrics(self, request: Request) -> Response:
        return Response(await self._metrics.current(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def debug_raft(self, request: Request) -> Response:
        return Response(await self._raft.current(), media_type="application/json")

    def _checks(self, request: Request, report: HealthReport) -> Response:
        self._count(report)
        lines = [f"[-]{check.name} failed: {check.reason}" if check.reason else f"[+]{check.name} ok" for check in report.checks]
        if report.healthy and "verbose" not in request.query_params:
            lines = []
        lines.append("ok" if report.healthy else "failed")
        return PlainTextResponse("\n".join(lines) + "\n", status_code=200 if report.healthy else 503)

    def _count(self, report: HealthReport) -> None:
        counter = self._success if report.healthy else self._failures
        counter.add()
