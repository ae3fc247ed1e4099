"""Whether every member understands a command: asked before a kind is proposed that older versions don't know.

Theory of operation: a member that meets an unknown kind in the log must stop, so none may be proposed that some member might not know. A
member says what it knows in its hello, and when it publishes itself, which every member's store keeps. Its last hello counts; if none came
since this process began, what it published does: older versions say nothing there, and drop what others say. A member that has not
published has not run yet, and is nobody's concern. Once a kind was applied, the cluster is bound to it, and there is nothing left to ask
(`Store.kinds_version`).

Source: architecture.md (new kinds are proposed only when every member's hello supports them); etcd's cluster version is the same idea.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from google.protobuf.message import Message as PbMessage

from kvserver.commands import CommandKind, kinds_version
from kvserver.errors import NotCapableError
from kvserver.types import Member, NodeId


class Capability:
    """What this member knows of the others.

    Args:
        applied: the version of kinds that the store is bound to.
        members: as applied here.
        heard: what a member said in its last hello, None if none came yet.
    """

    def __init__(
        self,
        *,
        self_id: NodeId,
        applied: Callable[[], int],
        members: Callable[[], Mapping[NodeId, Member]],
        heard: Callable[[NodeId], int | None],
    ) -> None:
        self._self_id = self_id
        self._applied = applied
        self._members = members
        self._heard = heard

    def check(self, kind: CommandKind, request: PbMessage) -> None:
        """Raises NotCapableError: some member may not know the kind."""
        del request
        needed = kinds_version(kind)
        if needed > 1 and needed > self._applied() and not all(self._is_capable(member, needed) for member in self._members().values()):
            raise NotCapableError

    def _is_capable(self, member: Member, needed: int) -> bool:
        if member.id == self._self_id:
            return True
        version = self._heard(member.id)
        if version is None:
            version = member.kinds_version if member.client_urls else needed
        return version >= needed
