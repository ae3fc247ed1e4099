"""memory, top: what the members' memory consists of, and who holds it.

Rules: every endpoint is asked at once and on its own, over its client port (the method `kvserver.Debug/Memory`); no quorum is needed. One
that doesn't answer is shown as such beside the others. An etcd has no such method, and says so.
"""

from kvserver.cli.memory.commands import memory, top

__all__ = ["memory", "top"]
