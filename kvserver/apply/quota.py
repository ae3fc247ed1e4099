"""What a write costs against the quota, and whether it fits: pure decisions.

Purpose: the api asks before it proposes (does the store stay below `--quota-backend-bytes`?), apply asks while the NOSPACE alarm is raised
(does this transaction put anything?). Both use the same formula, so that what is charged and what is refused are the same requests.

Rules
- A put is charged its key, its value and a flat sum for what is stored beside them; a lease a flat sum; everything else nothing. What costs
  nothing always fits: reads, deletions and compactions go on over the quota.
- A transaction is charged the dearer of its two branches, whichever will run: that is known only when it is applied.
- A negative quota is none.

Source: etcd's storage/quota.go for the formula. Deviation: etcd doesn't look into nested transactions, whose puts pass both its quota and
its NOSPACE alarm; here a nested transaction is charged like any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kvserver.pb.rpc_pb2 import PutRequest, RequestOp, TxnRequest

PUT_OVERHEAD_BYTES: Final = 256
LEASE_COST_BYTES: Final = 64


def put_cost_bytes(request: PutRequest) -> int:
    """What a put is charged; never 0."""
    return PUT_OVERHEAD_BYTES + len(request.key) + len(request.value)


def txn_cost_bytes(request: TxnRequest) -> int:
    """What a transaction is charged; 0 if no put is in it, at any depth, in any branch."""
    return max(_branch_cost_bytes(request.success), _branch_cost_bytes(request.failure))


def _branch_cost_bytes(ops: Iterable[RequestOp]) -> int:
    cost_bytes = 0
    for op in ops:
        if op.HasField("request_put"):
            cost_bytes += put_cost_bytes(op.request_put)
        elif op.HasField("request_txn"):
            cost_bytes += txn_cost_bytes(op.request_txn)
    return cost_bytes


def fits(*, used_bytes: int, cost_bytes: int, quota_bytes: int) -> bool:
    """Whether a request that is charged `cost_bytes` may be proposed by a member whose store uses `used_bytes`."""
    return cost_bytes == 0 or quota_bytes < 0 or used_bytes + cost_bytes < quota_bytes
