"""The node: the asyncio shell round raft's core. See docs/architecture/node.md."""

from kvserver.node.debug import DebugPages
from kvserver.node.node import Node, RemovedError
from kvserver.node.reader import StoreReader
from kvserver.node.status import NodeStatus

__all__ = ["DebugPages", "Node", "NodeStatus", "RemovedError", "StoreReader"]
