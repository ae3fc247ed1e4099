"""The composition root: the only module that knows every room. Makes a member from a configuration, and ends it.

Order: addresses are looked at first (a port in use is found before anything is written), then the node starts, then HTTP (so that /health
tells the truth early), and when the cluster has accepted the member the client port opens and the log says `ready to serve client
requests`.

Rules: one root TaskGroup owns what runs beside the parts; SIGTERM and SIGINT begin an orderly stop, also of a start that is under way
(a large store takes a while to check; exit code 0, nothing has happened), one that comes `FORCIBLE_AFTER_S` later
ends the process at once (a disk that hangs can hold up an orderly stop for as long as it likes); a fatal error of the node ends the
process with exit code 1 and one line that says why.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Final

from kvserver.api import Answers, Api, MemberStatus, QuotaGate, build_api, min_ttl_s
from kvserver.apply import OnlineCheck
from kvserver.clock import SystemClock
from kvserver.config import ETCD_API_VERSION, ServerConfig, limits_in_force
from kvserver.errors import CorruptError, StoppedError
from kvserver.logs import Logger, RareLine
from kvserver.memory import HeapTrimmer
from kvserver.metrics import Metrics
from kvserver.node import DebugPages, Node, NodeStatus, RemovedError, StoreReader
from kvserver.open_files import divide, raise_limit
from kvserver.pb import rpc_pb2
from kvserver.rpc import GrpcLimits, GrpcServer, HttpLimits, HttpServer, build_http_app, check_free
from kvserver.types import Revision
from kvserver.version import __version__
from kvserver.watch import CatchUp
from wal import DescriptorReserve, Files, OsFiles

GRACE_S: Final = 0.3
LAG_PROBE_S: Final = 0.1
TRIM_S: Final = 1.0
FORCIBLE_AFTER_S: Final = 3.0
"""A signal that comes this long after the first is meant to end the process at once; one that comes sooner is a repetition (Ctrl-C reaches
a whole process group, and its leader may pass it on)."""
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class ClusterFacts(NodeStatus):
    """The node's status in the api's words."""

    def alarms(self) -> Sequence[rpc_pb2.AlarmMember]:
        """The alarms that are raised, as applied on this member."""
        return self.node.store.alarms

    def status(self) -> MemberStatus:
        """What Status shows of this member."""
        store = self.node.store
        return MemberStatus(
            revision=Revision(store.current_revision),
            committed_index=self.commit_index,
            applied_index=self.node.driver.applied_index,
            db_bytes=store.size_bytes,
            db_in_use_bytes=store.size_in_use_bytes,
            db_quota_bytes=self.config.quota_backend_bytes,
            errors=self.node.space.describe(),
        )


class Server:
    """One member with its listeners."""

    def __init__(self, config: ServerConfig, *, log: Logger, files: Files | None = None) -> None:
        """Raises `TooFewFilesError`."""
        wanted_connections = config.max_connections
        self._open_files = divide(raise_limit(), max_connections=config.max_connections)
        self._config = config = replace(
            config,
            max_connections=self._open_files.clients,
            max_http_connections=self._open_files.http,
            max_peer_connections=self._open_files.peers,
        )
        self._log = log
        self._files = files or OsFiles(DescriptorReserve())
        self._metrics = Metrics(version=ETCD_API_VERSION)
        self._stop_asked = asyncio.Event()
        if config.max_connections < wanted_connections:
            log.warning(
                "fewer connections of clients than --max-connections allows: the process may not open more files (ulimit -n)",
                max_connections=config.max_connections,
                wanted=wanted_connections,
                open_files=self._open_files.limit,
            )

    def ask_stop(self, reason: str) -> None:
        """Begin an orderly stop."""
        if not self._stop_asked.is_set():
            self._log.info("received signal; shutting down", signal=reason)
            self._stop_asked.set()

    async def run(self) -> int:
        """Run until asked to stop or until the node fails; returns the exit code.

        Raises:
            KvError: the member can't start; the text says why.
        """
        config = self._config
        for url in (*config.listen_client_urls, *config.listen_peer_urls, *config.http_urls):
            check_free(url)
        self._log.info("starting kvserver", version=__version__, name=config.name, data_dir=str(config.data_dir))
        if config.memory_budget_bytes:
            self._log.info("memory budget", **limits_in_force(config))
        node = await self._start_node()
        if node is None:
            self._log.info("stopped before the member ran")
            return 0
        http: HttpServer | None = None
        grpc: GrpcServer | None = None
        api: Api | None = None
        try:
            api = self._build_api(node)
            if config.http_urls:
                limits = HttpLimits(max_connections=config.max_http_connections)
                http = HttpServer(build_http_app(api.probes, self._metrics, api.debug), logger=self._log, limits=limits)
                await http.start(config.http_urls)
            grpc = GrpcServer(api, limits=GrpcLimits.of(config), metrics=self._metrics, logger=self._log)
            writes, others = grpc.intake.writes, grpc.intake.others
            self._metrics.attach_gate("writes", writes)
            self._metrics.attach_gate("other_requests", others)
            calls = grpc.calls
            self._metrics.attach_calls(calls, max_connections=config.max_connections)
            node.holders["requests"] = lambda: writes.held_bytes + others.held_bytes
            node.holders["calls"] = lambda: calls.held_bytes
            return await self._serve(node, grpc, api)
        finally:
            if api is not None:
                api.health.set_serving(False)
            await self._stop(node, grpc, http)

    async def _start_node(self) -> Node | None:
        """The running member; None if a stop was asked for first. Raises KvError: it can't start."""
        try:
            async with asyncio.TaskGroup() as group:
                start = Node.start(self._config, metrics=self._metrics, log=self._log, files=self._files)
                starting = group.create_task(start, name="start")
                asked = group.create_task(self._stop_asked.wait(), name="wait-stop")
                await asyncio.wait([starting, asked], return_when=asyncio.FIRST_COMPLETED)
                starting.cancel()
                asked.cancel()
        except ExceptionGroup as failures:
            failure = failures.exceptions[0]  # only the start can fail
            raise failure from failure.__cause__
        return None if starting.cancelled() else starting.result()

    def _build_api(self, node: Node) -> Api:
        facts, clock = ClusterFacts(node, self._config), SystemClock()
        self._metrics.attach_node(facts)
        self._metrics.attach_watch(node.watch)
        answers = self._make_answers()
        self._metrics.attach_gate("answers", answers.large)
        self._metrics.attach_gate("small_answers", answers.small)
        node.holders["answers"] = lambda: answers.held_bytes
        return build_api(
            proposals=node.proposals,
            reads=node.reads,
            reader=StoreReader(node.store),
            view=facts,
            reconfiguration=node.reconfiguration,
            snapshots=node.backups,
            lease_times=node.leases.desk,
            quota=QuotaGate(quota_bytes=self._config.quota_backend_bytes, space=node.store, alarms=node.alarms, clock=clock),
            answers=answers,
            debug=DebugPages(node, self._config, self._metrics),
            hub=node.watch,
            clock=clock,
            random=Random(secrets.randbits(64)),
            max_request_bytes=self._config.max_request_bytes,
            max_txn_ops=self._config.max_txn_ops,
            min_lease_ttl_s=min_ttl_s(self._config.election_timeout_s),
            request_timeout_s=self._config.request_timeout_s,
            election_timeout_s=self._config.election_timeout_s,
        )

    def _make_answers(self) -> Answers:
        config, cut_off = self._config, RareLine(self._log, "ended connections whose clients don't take their answers while others wait")

        def on_cut_off(client: str) -> None:
            self._metrics.clients_cut_off.add()
            cut_off.warning(client=client)

        return Answers(max_bytes=config.max_answer_bytes, max_waiting=config.max_concurrent_requests, on_cut_off=on_cut_off)

    async def _serve(self, node: Node, grpc: GrpcServer, api: Api) -> int:
        """Open the client port once the member is published; wait for the end."""
        tasks: dict[str, asyncio.Task[object]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                tasks["publish"] = group.create_task(self._open(node, grpc, api), name="publish")
                tasks["stop"] = group.create_task(self._stop_asked.wait(), name="wait-stop")
                tasks["fail"] = group.create_task(node.wait_failed(), name="wait-failed")
                tasks["watch"] = group.create_task(CatchUp(node.watch).run(), name="watch-catch-up")
                tasks["lag"] = group.create_task(self._watch_loop_lag(), name="loop-lag")
                tasks["trim"] = group.create_task(self._trim_heap(), name="heap-trim")
                if self._config.corrupt_check_time_s:
                    tasks["check"] = group.create_task(self._check_store(node), name="corrupt-check")
                await asyncio.wait([tasks["stop"], tasks["fail"]], return_when=asyncio.FIRST_COMPLETED)
                for task in tasks.values():
                    task.cancel()
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the client port can't be opened: one error with a text of its own
        failed = tasks["fail"]
        if failed.cancelled():
            return 0
        error = failed.result()
        self._log.fatal("the member stops", reason=str(error))
        return 0 if isinstance(error, RemovedError) else 1

    async def _open(self, node: Node, grpc: GrpcServer, api: Api) -> None:
        await node.wait_published()
        await grpc.start(self._config.listen_client_urls)
        api.health.set_serving(True)
        self._log.info("ready to serve client requests")

    async def _check_store(self, node: Node) -> None:
        """Look for damage in the store, again and again, until apply has failed: half an entry looks like damage."""
        check = OnlineCheck(node.store, interval_s=self._config.corrupt_check_time_s, progress=self._metrics.corrupt_check)
        with suppress(CorruptError, StoppedError):
            await check.run()

    async def _watch_loop_lag(self) -> None:
        """Note how late the loop runs a timer: what blocks it shows up here."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + LAG_PROBE_S
            await asyncio.sleep(LAG_PROBE_S)
            self._metrics.loop_lag_seconds.observe(max(0.0, loop.time() - due_s))

    async def _trim_heap(self) -> None:
        """Give back what bursts leave behind in the heap."""
        trimmer = HeapTrimmer()
        while trimmer.is_possible:
            await asyncio.sleep(TRIM_S)
            await asyncio.to_thread(trimmer.trim_if_worth)

    async def _stop(self, node: Node, grpc: GrpcServer | None, http: HttpServer | None) -> None:
        await node.retire()
        if grpc is not None:
            await grpc.stop(GRACE_S)
        if http is not None:
            await http.stop()
        await node.stop()
        self._log.info("stopped")


async def serve(config: ServerConfig, *, log: Logger, files: Files | None = None) -> int:
    """Run a member in this process until SIGTERM or SIGINT; returns the exit code. Raises as `Server.run`.

    `files` is the file system under the WAL and the snapshot files (None: the system's).
    """
    server = Server(config, log=log, files=files)
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        server.ask_stop(number.name)
        loop.call_later(FORCIBLE_AFTER_S, _heed_no_more_signals, loop)

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    return await server.run()


def _heed_no_more_signals(loop: asyncio.AbstractEventLoop) -> None:
    """From now on a signal meets the system's default: it ends the process."""
    for number in _SIGNALS:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
