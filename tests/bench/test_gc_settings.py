"""The garbage collector's settings: one small real run of the chosen one and of Python's own."""

from __future__ import annotations

import pytest

from bench.gc_settings import HEADER, measure, row
from bench.workloads import Workload
from kvserver.testing.ports import PortAllocator


@pytest.mark.process
def test_python_s_own_setting_collects_more_often_than_the_chosen_one() -> None:
    loads = [Workload(puts=300, value_bytes=256, clients=4), Workload(puts=5, value_bytes=100_000)]
    often, seldom = (measure(name, loads, PortAllocator()) for name in ("python", "chosen"))
    assert often.collections > seldom.collections
    assert 0.0 <= seldom.cpu_share < often.cpu_share < 1.0
    assert len(row([often])) == len(HEADER)
