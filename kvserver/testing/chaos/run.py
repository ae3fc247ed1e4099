"""One chaos run: a cluster of real processes, clients, a nemesis, and at the end a history on disk.

Rules
- Clients run on the event loop of the caller's thread, the nemesis in a thread beside it; either one's end is the other's.
- Whatever happens, every process is killed by its id and the recorder is closed; `leftovers` looks for any that survived. Only a run
  that came to its end writes the history's end; one that was interrupted can't be judged.
- What the cluster itself fails at (a member that doesn't come back, nonsense on the wire) becomes the history's `trouble`, so that
  it is reported by the checker like every other broken promise; errors of the harness are raised.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import uvloop

from kvserver.client import ClientError
from kvserver.errors import KvError
from kvserver.testing.chaos.clients import Clients, Load
from kvserver.testing.chaos.collect import NotSettledError, ask_members, changes_in
from kvserver.testing.chaos.files import Recorder
from kvserver.testing.chaos.model import Fault, MemberEnd
from kvserver.testing.chaos.nemesis import Nemesis, TroubleError
from kvserver.testing.chaos.plan import FaultKind, Step, make_plan
from kvserver.testing.chaos.wire import MalformedAnswerError
from kvserver.testing.chaos.workload import Workload
from kvserver.testing.processes import ProcessCluster
from kvserver.version import __version__

SERVER_FLAGS: Final = ("--log-window-entries=1000", "--wal-segment-bytes=1MiB", "--log-level=info")
"""Small limits, so that members that were away meet entries, snapshots and segment changes alike."""


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class InterruptedRunError(KvError):
    """A signal ended the run before its end."""

    def __init__(self) -> None:
        super().__init__("interrupted; what was recorded so far has no end and can't be judged")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is made of. `program` is what the interpreter is given to start a member; flags follow it."""

    directory: Path
    seed: int
    kills: int = 200
    members: int = 3
    load: Load = field(default_factory=lambda: Load(rate_per_s=250.0, clients=24, value_size_bytes=128))
    only: frozenset[FaultKind] = frozenset()
    program: Sequence[str] = ("-m", "kvserver")
    flags: Sequence[str] = SERVER_FLAGS

    @property
    def history(self) -> Path:
        """Where the history goes."""
        return self.directory / "history"


def run(plan: Plan, say: Callable[[str], None]) -> Path:
    """Carry out the plan and return the history's directory; `say` hears of the progress.

    Raises:
        OSError: the directory can't be used, or no port is free.
        NodeStartError: the cluster does not start in the first place.
        InterruptedRunError: SIGINT or SIGTERM came.
        ValueError: the plan can't be made.
    """
    return uvloop.run(_until_signalled(_Run(plan, say).run()))


async def _until_signalled(running: Coroutine[None, None, Path]) -> Path:
    """SIGTERM and SIGINT end the run as an interruption: no member is left behind."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(running, name="chaos")
    for number in _SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise InterruptedRunError from None
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


def leftovers(directory: Path) -> list[int]:
    """Ids of processes whose command line names `directory`: there must be none after a run."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        if any(argument.startswith(b"--data-dir=" + str(directory).encode() + b"/") for argument in arguments):
            found.append(int(entry.name))
    return found


class _Run:
    """The parts of a run while it lasts."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        self._stop = threading.Event()
        self._trouble: list[str] = []
        self._kills = 0
        self._began_s = time.monotonic()

    async def run(self) -> Path:
        plan = self._plan
        random = Random(plan.seed)
        steps = make_plan(random, kills=plan.kills, members=plan.members, only=plan.only)
        cluster = ProcessCluster(plan.directory, size=plan.members, flags=plan.flags)
        for node in cluster.nodes:
            node.program = tuple(plan.program)
        recorder = Recorder(plan.history)
        endpoints = {node.name: node.endpoint for node in cluster.nodes}
        workload = Workload(Random(plan.seed + 1), value_size_bytes=plan.load.value_size_bytes)
        clients = Clients(endpoints, recorder, workload, plan.load, Random(plan.seed + 2))
        nemesis = Nemesis(
            cluster.nodes,
            acknowledged=lambda: recorder.counters.writes_ok,
            is_behind=clients.is_behind,
            stop=self._stop,
            on_fault=lambda fault: self._note_fault(recorder, fault),
        )
        ends: dict[str, MemberEnd] = {}
        try:
            with cluster:
                cluster.start()
                self._say(f"{plan.members} members are up, {len(steps)} faults are planned (seed {plan.seed})")
                await self._disturb(nemesis, steps, clients)
                if not self._trouble:
                    ends = await self._ask(endpoints)
                self._stop_cluster(cluster)
            self._read_stores(cluster, recorder)
            recorder.end(endpoints, ends, self._trouble, self._facts())
        finally:
            recorder.close()
        return plan.history

    def _facts(self) -> dict[str, int | str]:
        load = self._plan.load
        return {
            "seed": self._plan.seed,
            "kills_planned": self._plan.kills,
            "rate_per_s": round(load.rate_per_s),
            "clients": load.clients,
            "value_size_bytes": load.value_size_bytes,
            "server_version": __version__,
        }

    async def _disturb(self, nemesis: Nemesis, steps: Sequence[Step], clients: Clients) -> None:
        """Clients and nemesis side by side until the plan is done or something broke."""
        deeds = asyncio.create_task(asyncio.to_thread(self._run_nemesis, nemesis, steps), name="nemesis")
        try:
            await clients.run(self._stop)
        except* MalformedAnswerError as group:
            self._trouble.extend(str(error) for error in group.exceptions)
        finally:
            self._stop.set()
            await deeds

    def _run_nemesis(self, nemesis: Nemesis, steps: Sequence[Step]) -> None:
        try:
            nemesis.run(steps)
        except TroubleError as error:
            self._trouble.append(str(error))
        finally:
            self._stop.set()

    def _note_fault(self, recorder: Recorder, fault: Fault) -> None:
        recorder.fault(fault)
        self._kills += fault.kills
        counters = recorder.counters
        elapsed_s = time.monotonic() - self._began_s
        self._say(
            f"{elapsed_s:7.1f} s  {self._kills:>4} kills  {counters.writes_ok:>7} writes acknowledged, {counters.writes_unknown} unknown, "
            f"{counters.writes_failed} failed  {fault.kind}: {', '.join(fault.members)}"
        )

    async def _ask(self, endpoints: dict[str, str]) -> dict[str, MemberEnd]:
        try:
            return await ask_members(endpoints)
        except (ClientError, NotSettledError) as error:
            self._trouble.append(str(error))
            return {}

    def _stop_cluster(self, cluster: ProcessCluster) -> None:
        for node in cluster.nodes:
            if not node.is_running:
                self._trouble.append(f"{node.name} does not run at the end")
                node.kill()
            elif (code := node.stop()) != 0:
                self._trouble.append(f"{node.name} ended with exit code {code} after SIGTERM")

    def _read_stores(self, cluster: ProcessCluster, recorder: Recorder) -> None:
        for node in cluster.nodes:
            store = node.data_dir / "member" / "snap" / "db"
            try:
                recorder.store(node.name, changes_in(store))
            except KvError as error:
                self._trouble.append(f"{node.name}: {error}")
