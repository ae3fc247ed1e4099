"""The judge: replays what the members hold and compares every answer with it.

Purpose: `check(history)` returns every broken promise. Pure: no clock, no chance, no files of its own (a history's stores may be read
lazily).

How: every answer carries a revision, so the order of all writes is known and nothing has to be searched. The members' stores are walked in
lockstep. For each revision

1. the operation that was acknowledged there is executed on the reference store (`replica`), and its answer and every member's changes are
   compared with what that gives; or, if nobody was acknowledged there, an operation without an answer must explain the changes
   (`attribution`), once, and never one that certainly failed;
2. the reference store moves on by what most members hold;
3. all reads (and mutations that changed nothing) that were answered from that revision are executed and compared.

Real-time order is judged before, by `order`; what the members said at the end, after, by `check_ends`.

Limits: a read of a revision that no answer could have (above every store's end) is reported, not executed. Revisions that no member holds
are holes. No compaction may happen during a run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from kvserver.testing.chaos.attribution import Attribution
from kvserver.testing.chaos.compare_answers import compare_answer
from kvserver.testing.chaos.model import Answer, Change, History, Operation
from kvserver.testing.chaos.order import Sighting, check_order
from kvserver.testing.chaos.replica import Executed, Replica
from kvserver.testing.chaos.show import show_bytes, show_changes
from kvserver.testing.chaos.stores import Held, walk
from kvserver.testing.chaos.violations import Findings, ViolationKind


def check(history: History) -> Findings:
    """Every broken promise of the history.

    Raises:
        HistoryError: a store of the history can't be read.
    """
    findings = Findings()
    for text in history.trouble:
        findings.add(ViolationKind.NO_RECOVERY, 0, text)
    floors = check_order(history, findings)
    replay = _Replay(history, floors, findings)
    replay.run()
    check_ends(history, replay.replica, findings)
    return findings


class _Replay:
    """The walk through the revisions."""

    def __init__(self, history: History, floors: dict[int, Sighting], findings: Findings) -> None:
        self._history = history
        self._findings = findings
        self.replica = Replica()
        self._attribution = Attribution(history.operations, floors, findings)
        self._written: dict[int, Operation] = {}
        self._observed: dict[int, list[Operation]] = defaultdict(list)
        self._highest = Sighting(self.replica.revision, None)
        self._index()

    def run(self) -> None:
        """Judge everything that depends on the stores."""
        self._check_observations()
        for held in walk(self._history, self._findings):
            for revision in range(self.replica.revision + 1, held.revision):
                self._take_hole(revision)
            self._take(held)
        if self._history.ends:
            self._judge_tail()
        self._attribution.finish()

    def _judge_tail(self) -> None:
        """What was acknowledged or seen above the last revision of all stores. Not after a run that ended in trouble: then the stores may
        end before the logs do."""
        for revision in sorted(each for each in self._written if each > self.replica.revision):
            self._lose(self._written[revision], revision, list(self._history.stores))
        for revision in sorted(self._observed):
            for operation in self._observed[revision]:
                self._findings.add(
                    ViolationKind.LOST_WRITE,
                    revision,
                    f"{operation} showed revision {revision}, but no member holds anything above revision {self.replica.revision}",
                )
        if self._highest.revision > self.replica.revision and self._highest.seen_by is not None:
            text = f"{self._highest.seen_by} showed revision {self._highest.revision}; the stores end at {self.replica.revision}"
            self._findings.add(ViolationKind.LOST_WRITE, self._highest.revision, text)

    def _index(self) -> None:
        for operation in self._history.operations:
            answer = operation.answer
            if answer is None:
                continue
            if answer.revision > self._highest.revision:
                self._highest = Sighting(answer.revision, operation)
            if not answer.claims_change:
                self._observed[operation.request.read_revision or answer.revision].append(operation)
            elif answer.revision in self._written:
                other = self._written[answer.revision]
                text = f"revision {answer.revision} was acknowledged to {other} and to {operation}"
                self._findings.add(ViolationKind.REVISION_REUSED, answer.revision, text)
            else:
                self._written[answer.revision] = operation

    def _take(self, held: Held) -> None:
        operation = self._written.pop(held.revision, None)
        changes = held.majority()
        if operation is not None:
            executed = self._judge_write(operation, held)
            if changes != executed.changes and any(each == executed.changes for each in held.by_member.values()):
                changes = executed.changes  # a majority that is wrong must not make everything behind it look wrong
        else:
            self._judge_members(held, changes)
            self._attribution.explain(held.revision, changes, self.replica)
        self._check_numbers(held.revision, changes)
        self.replica.apply(held.revision, changes)
        self._check_observations()

    def _take_hole(self, revision: int) -> None:
        """A revision that no member holds."""
        operation = self._written.pop(revision, None)
        if operation is None:
            text = f"no member holds revision {revision}, but some hold later ones"
            self._findings.add(ViolationKind.LOST_WRITE, revision, text)
            self.replica.apply(revision, ())
        else:
            self._lose(operation, revision, list(self._history.stores))
            self.replica.apply(revision, self.replica.execute(operation.request).changes)
        self._check_observations()

    def _judge_write(self, operation: Operation, held: Held) -> Executed:
        """The operation was acknowledged at this revision: do its answer and the stores agree with it?"""
        answer = operation.answer
        assert answer is not None
        executed = self._execute(operation, answer)
        self._attribution.note_acknowledged(operation, held.revision)
        lacking = [member for member, changes in held.by_member.items() if changes is None]
        if lacking:
            self._lose(operation, held.revision, lacking)
        expected = _bare(executed.changes)
        for member, changes in held.by_member.items():
            if changes is not None and _bare(changes) != expected:
                self._findings.add(
                    ViolationKind.CHANGED_WRITE,
                    held.revision,
                    f"{operation} was acknowledged at revision {held.revision}, where {member} holds {show_changes(changes)} "
                    f"in the place of {show_changes(executed.changes)}",
                )
        if not held.is_uniform and not lacking:
            self._judge_members(held, executed.changes)
        return executed

    def _execute(self, operation: Operation, answer: Answer) -> Executed:
        """What the request comes to in the present state; reports where the answer says otherwise.

        If the compares were answered wrongly, the branch that was answered is what the stores must hold.
        """
        executed = self.replica.execute(operation.request)
        if executed.succeeded != answer.succeeded:
            self._findings.add(
                ViolationKind.WRONG_COMPARE,
                answer.revision,
                f"{operation} at revision {answer.revision} was told that its compares {_held(answer.succeeded)}; "
                f"at revision {self.replica.revision} they {_held(executed.succeeded)}",
            )
            branch = operation.request.success if answer.succeeded else operation.request.failure
            executed = self.replica.execute_branch(branch, succeeded=answer.succeeded)
        for kind, text in compare_answer(operation.request, answer, executed.results):
            self._findings.add(kind, answer.revision, f"{operation} at revision {answer.revision}: {text}")
        return executed

    def _judge_members(self, held: Held, expected: tuple[Change, ...]) -> None:
        for member, changes in held.by_member.items():
            if changes is None:
                self._findings.add(
                    ViolationKind.MEMBER_DIFFERS, held.revision, f"{member} lacks revision {held.revision}: {show_changes(expected)}"
                )
            elif changes != expected:
                self._findings.add(
                    ViolationKind.MEMBER_DIFFERS,
                    held.revision,
                    f"at revision {held.revision} {member} holds {show_changes(changes)}, others {show_changes(expected)}",
                )

    def _lose(self, operation: Operation, revision: int, members: Sequence[str]) -> None:
        text = f"{operation} was acknowledged at revision {revision}, which is missing on {', '.join(members)}"
        self._findings.add(ViolationKind.LOST_WRITE, revision, text)

    def _check_numbers(self, revision: int, changes: tuple[Change, ...]) -> None:
        for change in changes:
            expected = self.replica.expected_numbers(change)
            if (change.create_revision, change.version) != expected:
                self._findings.add(
                    ViolationKind.WRONG_NUMBERS,
                    revision,
                    f"the change of {show_bytes(change.key)} at revision {revision} has create revision {change.create_revision} and "
                    f"version {change.version}; they should be {expected[0]} and {expected[1]}",
                )

    def _check_observations(self) -> None:
        """Every answer that was given from the state that the replica is in now."""
        for operation in self._observed.pop(self.replica.revision, ()):
            answer = operation.answer
            assert answer is not None
            executed = self._execute(operation, answer)
            if executed.changes:
                self._findings.add(
                    ViolationKind.WRONG_ANSWER,
                    answer.revision,
                    f"{operation} was told at revision {answer.revision} that it changed nothing; it should have changed "
                    f"{show_changes(executed.changes)}",
                )


def check_ends(history: History, replica: Replica, findings: Findings) -> None:
    """What the members said after everything had settled, among themselves and against the replayed stores."""
    ends = history.ends
    for member in history.members:
        if member not in ends:
            findings.add(ViolationKind.NO_RECOVERY, 0, f"{member} could not be asked at the end")
    hashes = {member: (end.hash_revision, end.hash_kv) for member, end in ends.items()}
    if len(set(hashes.values())) > 1:
        shown = ", ".join(f"{member} {value:08x} at revision {revision}" for member, (revision, value) in hashes.items())
        findings.add(ViolationKind.HASH_DIFFERS, max(revision for revision, _ in hashes.values()), f"HashKV is {shown}")
    lists = {member: end.member_list for member, end in ends.items()}
    if len(set(lists.values())) > 1:
        shown = "; ".join(f"{member}: {', '.join(listed)}" for member, listed in lists.items())
        findings.add(ViolationKind.MEMBER_LIST_DIFFERS, 0, f"the members are, according to {shown}")
    expected = replica.digest() if ends else ""
    for member, end in ends.items():
        if end.revision != replica.revision:
            text = f"{member} says that it is at revision {end.revision}; the last one in the stores is {replica.revision}"
            findings.add(ViolationKind.MEMBER_DIFFERS, end.revision, text)
        elif (end.state_digest, end.key_count) != (expected, len(replica)):
            findings.add(
                ViolationKind.STATE_DIFFERS,
                end.revision,
                f"{member} serves {end.key_count} keys with digest {end.state_digest[:16]} at revision {end.revision}; the stores, "
                f"replayed, give {len(replica)} keys with digest {expected[:16]}",
            )


def _bare(changes: tuple[Change, ...]) -> list[tuple[bytes, bytes | None]]:
    """What was written, without the numbers, which have a promise of their own."""
    return [(change.key, change.value) for change in changes]


def _held(succeeded: bool) -> str:
    return "hold" if succeeded else "do not hold"
