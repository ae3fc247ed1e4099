"""The HTTP endpoints: /health, /livez, /readyz, /version, /metrics, /debug/raft.

Rules: GET (and HEAD, where starlette adds it) only; any other method is 405 with `Allow`, any other path 404. An unhealthy member answers
503 with the reason in the body, because that is what probes look at. No endpoint changes anything.

Source: etcd's HTTP endpoints for paths, queries and bodies; /debug/raft is our own. Deviation: /health is served as application/json, which
it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from kvserver.api import DebugSource, HealthReport, Probes, encode_page
from kvserver.config import ETCD_API_VERSION
from kvserver.metrics import CONTENT_TYPE_LATEST, Metrics

__all__ = ["build_http_app"]

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
        self._metrics = metrics
        self._debug = debug

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
        return Response(self._metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def debug_raft(self, request: Request) -> Response:
        return Response(encode_page(self._debug.raft_page()), media_type="application/json")

    def _checks(self, request: Request, report: HealthReport) -> Response:
        self._count(report)
        lines = [f"[-]{check.name} failed: {check.reason}" if check.reason else f"[+]{check.name} ok" for check in report.checks]
        if report.healthy and "verbose" not in request.query_params:
            lines = []
        lines.append("ok" if report.healthy else "failed")
        return PlainTextResponse("\n".join(lines) + "\n", status_code=200 if report.healthy else 503)

    def _count(self, report: HealthReport) -> None:
        counter = self._metrics.health_success if report.healthy else self._metrics.health_failures
        counter.add()
