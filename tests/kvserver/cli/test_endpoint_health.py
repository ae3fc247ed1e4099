"""What makes an endpoint healthy: a read through the quorum, and no alarm."""

from __future__ import annotations

from typing import Any

import pytest

from kvserver.cli.endpoint import probe
from kvserver.client import CallTimeoutError, ClientError, ConnectError, ServerError, methods
from kvserver.pb import rpc_pb2 as pb

NOSPACE = pb.AlarmResponse(alarms=[pb.AlarmMember(memberID=1, alarm=pb.NOSPACE), pb.AlarmMember(memberID=2, alarm=pb.CORRUPT)])


class Scripted:
    """Answers the read and the question for alarms as told."""

    def __init__(self, read: Any, alarms: Any) -> None:
        self._answers = {methods.RANGE.path: read, methods.ALARM_GET.path: alarms}

    async def call_endpoint(self, endpoint: str, method: Any, request: Any) -> Any:
        assert endpoint == "a:1"
        answer = self._answers[method.path]
        if isinstance(answer, ClientError):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("read", "alarms", "error"),
    [
        (pb.RangeResponse(), pb.AlarmResponse(), ""),
        (pb.RangeResponse(), NOSPACE, "Active Alarm(s): NOSPACE CORRUPT "),
        (pb.RangeResponse(), ServerError(12, "etcdserver: method not implemented"), ""),
        (pb.RangeResponse(), ServerError(7, "etcdserver: permission denied"), ""),
        (pb.RangeResponse(), ServerError(14, "etcdserver: no leader"), "Unable to fetch the alarm list"),
        (pb.RangeResponse(), CallTimeoutError(), "Unable to fetch the alarm list"),
        (ServerError(7, "etcdserver: permission denied"), pb.AlarmResponse(), ""),
        (ServerError(14, "etcdserver: no leader"), pb.AlarmResponse(), "etcdserver: no leader"),
        (CallTimeoutError(), pb.AlarmResponse(), "context deadline exceeded"),
        (ConnectError({"a:1": "connection refused"}), pb.AlarmResponse(), "cannot connect: connection refused"),
    ],
)
async def test_health(read: Any, alarms: Any, error: str) -> None:
    health = await probe(Scripted(read, alarms), "a:1")
    assert (health.endpoint, health.error, health.healthy) == ("a:1", error, not error)
    assert health.took_ns >= 0
