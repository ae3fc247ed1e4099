"""The HTTP endpoints over a real socket."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from kvserver.api import Check, HealthReport
from kvserver.config import Url
from kvserver.logs import Logger, StdlibBridge
from kvserver.metrics import Metrics
from kvserver.rpc import HttpLimits, HttpServer, ListenError, build_http_app
from kvserver.rpc.shared_page import SharedPage

ANY_PORT = Url(host="localhost", port=0)


HEALTHY = HealthReport(checks=(Check(name="serializable_read"),))


@dataclass
class FakeProbes:
    """Answers what it is told to, and remembers the questions; with a gate it says that it was reached, and waits."""

    report: HealthReport = HEALTHY
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    gate: asyncio.Event | None = None
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    async def health(self, *, serializable: bool, exclude: frozenset[str]) -> HealthReport:
        self.asked.append(("health", serializable, exclude))
        self.reached.set()
        if self.gate is not None:
            await self.gate.wait()
        return self.report

    async def live(self) -> HealthReport:
        self.asked.append(("live",))
        return self.report

    async def ready(self, *, exclude: frozenset[str]) -> HealthReport:
        self.asked.append(("ready", exclude))
        if "explode" in exclude:
            raise LookupError("secret detail")
        return self.report


class FakePages:
    """A page with what JSON and UTF-8 make difficult."""

    def raft_page(self) -> dict[str, object]:
        return {"member": {"id": "a1", "name": "größer"}, "pin": None}


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: str


@dataclass
class Site:
    server: HttpServer
    url: Url
    probes: FakeProbes
    metrics: Metrics
    lines: Any

    async def raw(self, data: bytes) -> bytes:
        """Send bytes, return everything until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.url.port)
        try:
            writer.write(data)
            await writer.drain()
            return await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.close()

    async def request(self, target: str, method: str = "GET") -> Response:
        answer = await self.raw(f"{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        head, _, body = answer.decode().partition("\r\n\r\n")
        status, *headers = head.split("\r\n")
        return Response(int(status.split()[1]), dict(line.split(": ", 1) for line in headers), body)


@pytest.fixture
def limits() -> HttpLimits:
    return HttpLimits()


@pytest.fixture
async def site(lines: Any, limits: HttpLimits) -> AsyncIterator[Site]:
    probes, metrics, logger = FakeProbes(), Metrics(version="test", process=False), Logger(lines)
    server = HttpServer(build_http_app(probes=probes, metrics=metrics, debug=FakePages()), logger=logger, limits=limits)  # type: ignore[arg-type]
    with StdlibBridge(logger).installed():
        (url,) = await server.start([ANY_PORT])
        yield Site(server, url, probes, metrics, lines)
        await server.stop(0.0)


FAILING = HealthReport(
    checks=(Check(name="serializable_read"), Check(name="linearizable_read", reason="RANGE ERROR:etcdserver: no leader"))
)


async def test_health_is_json_with_health_and_reason(site: Site) -> None:
    response = await site.request("/health")
    assert (response.status, response.body) == (200, '{"health":"true","reason":""}')
    assert response.headers["content-type"] == "application/json"
    assert site.probes.asked == [("health", False, frozenset())]
    assert site.metrics.health_success.value == 1


async def test_the_raft_page_is_json_in_utf8(site: Site) -> None:
    response = await site.request("/debug/raft")
    assert (response.status, response.headers["content-type"]) == (200, "application/json")
    assert json.loads(response.body) == {"member": {"id": "a1", "name": "größer"}, "pin": None}
    assert (await site.request("/debug/raft", "POST")).status == 405


async def test_unhealthy_is_503_with_the_reason(site: Site) -> None:
    site.probes.report = FAILING
    response = await site.request("/health")
    assert (response.status, json.loads(response.body)) == (503, {"health": "false", "reason": "RANGE ERROR:etcdserver: no leader"})
    assert site.metrics.health_failures.value == 1


async def test_health_takes_etcds_queries(site: Site) -> None:
    await site.request("/health?exclude=NOSPACE&exclude=CORRUPT&exclude=&serializable=true")
    assert site.probes.asked == [("health", True, frozenset({"NOSPACE", "CORRUPT"}))]


@pytest.mark.parametrize(
    ("target", "report", "status", "body"),
    [
        ("/livez", HEALTHY, 200, "ok\n"),
        ("/livez?verbose", HEALTHY, 200, "[+]serializable_read ok\nok\n"),
        ("/readyz", HEALTHY, 200, "ok\n"),
        (
            "/readyz",
            FAILING,
            503,
            "[+]serializable_read ok\n[-]linearizable_read failed: RANGE ERROR:etcdserver: no leader\nfailed\n",
        ),
    ],
)
async def test_live_and_ready_are_text(site: Site, target: str, report: HealthReport, status: int, body: str) -> None:
    site.probes.report = report
    response = await site.request(target)
    assert (response.status, response.body) == (status, body)
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


async def test_ready_takes_checks_to_leave_out(site: Site) -> None:
    await site.request("/readyz?exclude=linearizable_read")
    assert site.probes.asked == [("ready", frozenset({"linearizable_read"}))]


async def test_version_is_the_api_version(site: Site) -> None:
    response = await site.request("/version")
    assert (response.status, json.loads(response.body)) == (200, {"etcdserver": "3.6.0", "etcdcluster": "3.6.0"})
    assert response.headers["content-type"] == "application/json"


async def test_metrics_are_prometheus_text(site: Site) -> None:
    response = await site.request("/metrics")
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert 'etcd_server_version{server_version="test"} 1.0' in response.body


@pytest.mark.parametrize("target", ["/", "/healthz", "/health/", "/v3/kv/range", "/metrics/../health", "//health"])
async def test_any_other_path_is_404(site: Site, target: str) -> None:
    assert (await site.request(target)).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_any_other_method_is_405(site: Site, method: str) -> None:
    response = await site.request("/health", method)
    assert response.status == 405
    assert "GET" in response.headers["allow"]
    assert site.probes.asked == []


async def test_an_unexpected_error_is_500_and_logged_and_hidden(site: Site) -> None:
    response = await site.request("/readyz?exclude=explode")
    assert response.status == 500
    assert "secret" not in response.body
    assert [record["error"] for record in site.lines.of_level("error")] == ["secret detail"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    ],
    ids=["bytes", "http/2", "no target", "not ascii", "tls"],
)
async def test_garbage_is_answered_or_cut_and_does_not_disturb(site: Site, garbage: bytes) -> None:
    answer = await site.raw(garbage)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert (await site.request("/version")).status == 200
    assert site.lines.of_level("error") == []
    assert site.lines.of_level("warn") == []


@pytest.mark.parametrize("head", [b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000, b"GET /" + b"a" * 100_000], ids=["headers", "target"])
async def test_a_head_without_end_is_cut(site: Site, head: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.url.port)
    writer.write(head)
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 400")
    writer.close()


@pytest.mark.parametrize("limits", [HttpLimits(first_request_timeout_s=0.05)])
async def test_a_client_that_does_not_finish_its_first_request_is_cut(site: Site) -> None:
    assert await site.raw(b"GET / HT") == b""


@pytest.mark.parametrize("limits", [HttpLimits(first_request_timeout_s=0.05)])
async def test_an_answer_may_take_longer_than_a_request(site: Site) -> None:
    site.probes.gate = asyncio.Event()
    asyncio.get_running_loop().call_later(0.2, site.probes.gate.set)
    assert (await site.request("/health")).status == 200


@pytest.mark.parametrize("limits", [HttpLimits(max_head_bytes=300)])
async def test_a_body_does_not_count_as_head(site: Site) -> None:
    site.probes.gate = asyncio.Event()
    reader, writer = await asyncio.open_connection("127.0.0.1", site.url.port)
    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 290\r\n\r\n")
    await site.probes.reached.wait()
    writer.write(b"b" * 290)
    asyncio.get_running_loop().call_later(0.05, site.probes.gate.set)
    await reader.readuntil(b'"reason":""}')
    writer.write(b"GET /version HTTP/1.1\r\n")
    asyncio.get_running_loop().call_later(0.05, writer.write, b"host: x\r\nconnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200")
    writer.close()


@pytest.mark.parametrize("limits", [HttpLimits(next_request_timeout_s=0.05)])
async def test_a_client_that_stays_idle_is_cut(site: Site) -> None:
    answer = await site.raw(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\nGET")
    assert answer.count(b"HTTP/1.1 200") == 1


@pytest.mark.parametrize("limits", [HttpLimits(max_connections=1)])
async def test_connections_beyond_the_limit_are_cut(site: Site) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.url.port)
    writer.write(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    answers = await asyncio.gather(site.raw(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n"), return_exceptions=True)
    assert answers == [b""] or isinstance(answers[0], ConnectionError)
    writer.close()


async def test_one_connection_serves_several_requests_and_bodies_are_ignored(site: Site) -> None:
    get = b"GET /version HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nabcde"
    last = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = await site.raw(get + get + last)
    assert answer.count(b"HTTP/1.1 200") == 3


async def test_a_client_that_sends_too_many_requests_ahead_is_cut(site: Site) -> None:
    site.probes.gate = asyncio.Event()
    reader, writer = await asyncio.open_connection("127.0.0.1", site.url.port)
    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 1000)
    with suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    site.probes.gate.set()
    assert len(site.probes.asked) <= 1
    assert (await site.request("/health")).status == 200
    assert site.lines.of_level("error") == []


class Counting(Collector):
    """Notes each time that the page is made."""

    def __init__(self, made: list[int]) -> None:
        self._made = made

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        self._made.append(1)
        return iter(())


async def test_scrapes_at_the_same_time_share_one_page_and_none_is_from_before_the_question(site: Site) -> None:
    version = "etcd_server_leader_changes_seen_total "
    made: list[int] = []
    await site.request("/metrics")
    site.metrics.registry.register(Counting(made))
    site.metrics.leader_changes.add()
    answers = await asyncio.gather(*(site.request("/metrics") for _ in range(50)))
    assert all(f"{version}1.0" in answer.body for answer in answers)
    assert len(made) == 1
    site.metrics.leader_changes.add()
    assert f"{version}2.0" in (await site.request("/metrics")).body


async def test_a_client_that_leaves_takes_the_shared_page_from_nobody() -> None:
    page = SharedPage(lambda: b"page", interval_s=0.05)
    assert await page.current() == b"page"
    leaving, staying = asyncio.ensure_future(page.current()), asyncio.ensure_future(page.current())
    await asyncio.sleep(0)
    leaving.cancel()
    assert await asyncio.wait_for(staying, 5) == b"page"


async def test_a_page_that_fails_fails_for_all_who_wait_and_not_for_the_next() -> None:
    outcomes = iter([b"one", LookupError("gone"), b"two"])

    def make() -> bytes:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    page = SharedPage(make, interval_s=0.01)
    assert await page.current() == b"one"
    failed = await asyncio.gather(page.current(), page.current(), return_exceptions=True)
    assert [str(each) for each in failed] == ["gone", "gone"]
    assert await page.current() == b"two"


async def test_a_port_in_use_is_a_clear_error_and_leaves_nothing_listening(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as spare:
        free_port = spare.getsockname()[1]
    other = HttpServer(build_http_app(probes=FakeProbes(), metrics=site.metrics, debug=FakePages()), logger=Logger(site.lines))  # type: ignore[arg-type]
    with pytest.raises(ListenError, match=f"^listen tcp localhost:{site.url.port}: address already in use$"):
        await other.start([Url(host="127.0.0.1", port=free_port), site.url])
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", free_port)


async def test_stopping_waits_for_requests_within_the_grace(site: Site) -> None:
    site.probes.gate = asyncio.Event()
    request = asyncio.ensure_future(site.request("/health"))
    await site.probes.reached.wait()
    stopping = asyncio.ensure_future(site.server.stop(5))
    asyncio.get_running_loop().call_later(0.05, site.probes.gate.set)
    assert (await request).status == 200
    await asyncio.wait_for(stopping, 5)


async def test_stopping_cuts_what_outlasts_the_grace(site: Site) -> None:
    site.probes.gate = asyncio.Event()
    request = asyncio.ensure_future(site.raw(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"))
    await site.probes.reached.wait()
    await asyncio.wait_for(site.server.stop(0.01), 5)
    results: Sequence[Any] = await asyncio.gather(request, return_exceptions=True)
    assert results == [b""] or isinstance(results[0], ConnectionResetError)


async def test_signals_stay_ours_and_requests_are_not_logged(site: Site) -> None:
    await site.request("/version")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert [record["msg"] for record in site.lines.records] == ["serving client requests"]
