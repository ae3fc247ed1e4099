"""The nemesis: carries out a plan on real processes, and waits after each step until everybody is back and writes go on.

Rules
- Synchronous, in a thread of its own; nobody else touches the processes meanwhile. It stops early when `stop` is set.
- What breaks a promise by itself (a member that ends unasked or doesn't come back, a cluster that takes no writes any more) is a
  `TroubleError`; the run ends there and the history says so.
- All bounds are generous (`RECOVERY_S`): a slow machine is no violation.
- Stopped processes are continued in a `finally`; ending the processes is their owner's.
"""

from __future__ import annotations

import contextlib
import http.client
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, assert_never

from kvserver.errors import KvError
from kvserver.testing.chaos.model import Fault
from kvserver.testing.chaos.plan import FaultKind, Step, kills_of
from kvserver.testing.processes import NodeProcess, NodeStartError

RECOVERY_S: Final = 90.0
PROGRESS_WRITES: Final = 40
"""Acknowledged writes between the end of one step and the beginning of the next."""
_MAKE_UP_S: Final = 3.0
_ELECTION_S: Final = 60.0
_LAG_WRITES: Final = 450
_LAG_S: Final = 4.0
_POLL_S: Final = 0.05
_METRICS_TIMEOUT_S: Final = 1.0


class TroubleError(KvError):
    """The cluster did not recover from a fault; the text says from which and how."""


class Nemesis:
    """Faults for the members in `nodes`.

    Args:
        acknowledged: how many writes clients were acknowledged so far.
        is_behind: whether the clients have writes to make up for; the next fault waits for them, but not for long.
    """

    def __init__(
        self,
        nodes: Sequence[NodeProcess],
        *,
        acknowledged: Callable[[], int],
        is_behind: Callable[[], bool],
        stop: threading.Event,
        on_fault: Callable[[Fault], None],
    ) -> None:
        self._nodes = list(nodes)
        self._acknowledged = acknowledged
        self._is_behind = is_behind
        self._stop = stop
        self._on_fault = on_fault
        self.kills = 0

    def run(self, plan: Sequence[Step]) -> None:
        """Carry out the plan.

        Raises:
            TroubleError: the cluster does not recover.
        """
        self._wait_progress("the start")
        for step in plan:
            if self._stop.is_set():
                return
            began_ns = time.monotonic_ns()
            killed_before = self.kills
            try:
                victims = self._carry_out(step)
            except NodeStartError as error:
                raise TroubleError(f"after “{step.kind.value}”: {error}") from error
            self._wait_progress(f"“{step.kind.value}” of {', '.join(victim.name for victim in victims)}")
            fault = Fault(
                kind=step.kind.value,
                kills=self.kills - killed_before,
                began_ns=began_ns,
                ended_ns=time.monotonic_ns(),
                members=tuple(victim.name for victim in victims),
            )
            self._on_fault(fault)
            self._wait(lambda: not self._is_behind(), _MAKE_UP_S)

    # --- deeds -------------------------------------------------------------------------------------------------------------------------

    def _carry_out(self, step: Step) -> list[NodeProcess]:
        """Do it, make it good, and return the victims."""
        leader = self._wait_leader()
        followers = [node for node in self._nodes if node is not leader] or [leader]
        follower = followers[int(step.aim * len(followers))]
        match step.kind:
            case FaultKind.LEADER:
                return self._kill_and_restart([leader], step)
            case FaultKind.FOLLOWER:
                return self._kill_and_restart([follower], step)
            case FaultKind.TWO:
                pair = [leader, follower] if step.aim < 0.7 else followers
                return self._kill_and_restart(pair[: kills_of(step.kind, len(self._nodes))], step)
            case FaultKind.ALL:
                return self._kill_and_restart(self._nodes, step)
            case FaultKind.CATCH_UP:
                return self._kill_in_catch_up(follower, step)
            case FaultKind.AFTER_RESTART:
                self._kill_and_restart([leader], step)
                return self._kill_and_restart([leader], step)
            case FaultKind.STOPPED_LEADER:
                return self._stop_leader(leader, step, kill=False)
            case FaultKind.STOPPED_THEN_KILLED:
                return self._stop_leader(leader, step, kill=True)
            case FaultKind.LONE_LEADER:
                return self._kill_lone_leader(leader, step)
            case unknown:
                assert_never(unknown)

    def _kill_and_restart(self, victims: Sequence[NodeProcess], step: Step) -> list[NodeProcess]:
        self._kill(victims)
        self._let_pass(step.hold_s)
        self._start(victims)
        return list(victims)

    def _kill_in_catch_up(self, victim: NodeProcess, step: Step) -> list[NodeProcess]:
        """Far enough behind that it needs entries or a snapshot; the second kill comes as soon as it answers HTTP, or some time later."""
        self._kill([victim])
        goal = self._acknowledged() + _LAG_WRITES
        self._wait(lambda: self._acknowledged() >= goal, _LAG_S)
        victim.start(wait_ready=False)
        self._wait(lambda: not victim.is_running or _metrics(victim) is not None, RECOVERY_S)
        self._let_pass(step.hold_s / 4)
        self._kill([victim])
        self._start([victim])
        return [victim]

    def _stop_leader(self, leader: NodeProcess, step: Step, *, kill: bool) -> list[NodeProcess]:
        """SIGSTOP until another member leads and has acknowledged writes; then SIGCONT, or SIGKILL and a restart."""
        others = [node for node in self._nodes if node is not leader]
        with self._stopped([leader]):
            elected = self._wait(lambda: any(_leads(node) for node in others), _ELECTION_S)
            if others and not elected and not self._stop.is_set():
                raise TroubleError(f"{leader.name} was stopped for {_ELECTION_S:.0f} s, and no other member was elected leader")
            goal = self._acknowledged() + PROGRESS_WRITES
            self._wait(lambda: self._acknowledged() >= goal, _LAG_S)
            self._let_pass(step.hold_s)
            if kill:
                self._kill([leader])
        if kill:
            self._start([leader])
        return [leader]

    def _kill_lone_leader(self, leader: NodeProcess, step: Step) -> list[NodeProcess]:
        """What a leader does while nobody follows must not be acknowledged, because the others can go on without it.

        The followers are killed, too, as what the leader sent lies in their sockets: continued, they would still read it.
        """
        others = [node for node in self._nodes if node is not leader]
        with self._stopped(others):
            self._let_pass(0.2 + step.hold_s / 2)
            self._kill(self._nodes)
        if len(others) > len(self._nodes) // 2:
            self._start(others)
            self._start([leader])
        else:
            self._start(self._nodes)
        return list(self._nodes)

    # --- processes ---------------------------------------------------------------------------------------------------------------------

    def _kill(self, victims: Sequence[NodeProcess]) -> None:
        """SIGKILL, to all before the first is awaited."""
        self._check_running()
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
            self.kills += 1
        for victim in victims:
            victim.kill()

    def _start(self, victims: Sequence[NodeProcess]) -> None:
        for victim in victims:
            victim.start(wait_ready=False)
        for victim in victims:
            victim.wait_ready(RECOVERY_S)

    @contextlib.contextmanager
    def _stopped(self, victims: Sequence[NodeProcess]) -> Iterator[None]:
        try:
            for victim in victims:
                victim.send_signal(signal.SIGSTOP)
            yield
        finally:
            for victim in victims:
                if victim.is_running:
                    victim.send_signal(signal.SIGCONT)

    def _check_running(self) -> None:
        for node in self._nodes:
            if not node.is_running:
                tail = node.log_path.read_text(errors="replace").splitlines()[-4:]
                raise TroubleError(f"{node.name} ended by itself:\n" + "\n".join(tail))

    # --- waiting -----------------------------------------------------------------------------------------------------------------------

    def _wait_leader(self) -> NodeProcess:
        found: list[NodeProcess] = []

        def one_leads() -> bool:
            found.extend(node for node in self._nodes if _leads(node))
            return bool(found)

        if not self._wait(one_leads, RECOVERY_S) and not self._stop.is_set():
            self._check_running()
            raise TroubleError(f"no member leads after {RECOVERY_S:.0f} s")
        return found[-1] if found else self._nodes[0]

    def _wait_progress(self, after: str) -> None:
        goal = self._acknowledged() + PROGRESS_WRITES
        if not self._wait(lambda: self._acknowledged() >= goal, RECOVERY_S) and not self._stop.is_set():
            self._check_running()
            raise TroubleError(f"after {after}: fewer than {PROGRESS_WRITES} writes were acknowledged in {RECOVERY_S:.0f} s")

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether the condition came true in time and before the end of the run."""
        until_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > until_s or self._stop.wait(_POLL_S):
                return False
        return True

    def _let_pass(self, seconds: float) -> None:
        """A fault's duration."""
        if seconds > 0:
            self._stop.wait(seconds)


def _leads(node: NodeProcess) -> bool:
    metrics = _metrics(node)
    return metrics is not None and b"\netcd_server_is_leader 1.0\n" in metrics


def _metrics(node: NodeProcess) -> bytes | None:
    """The member's metrics; None while it can't say."""
    if not node.is_running:
        return None
    try:
        return node.http("/metrics", timeout_s=_METRICS_TIMEOUT_S)
    except (OSError, http.client.HTTPException):
        return None
