"""The worker thread: order, results on the loop, errors to the caller, and an end that finishes what was begun."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kvserver.node.worker import Worker


async def test_work_runs_in_order_on_the_thread_and_answers_on_the_loop() -> None:
    worker = Worker("w")
    ran: list[tuple[int, str]] = []
    answered: list[tuple[int, str]] = []
    finished = asyncio.Event()

    def work(number: int) -> int:
        ran.append((number, threading.current_thread().name))
        return number

    def done(result: int, error: BaseException | None) -> None:
        assert error is None
        answered.append((result, threading.current_thread().name))
        if result == 9:
            finished.set()

    for number in range(10):
        worker.submit(lambda number=number: work(number), done)  # type: ignore[misc]
    await finished.wait()
    await worker.stop()
    assert ran == [(number, "w") for number in range(10)]
    assert answered == [(number, "MainThread") for number in range(10)]


async def test_an_error_reaches_the_caller_and_the_thread_goes_on() -> None:
    worker = Worker("w")
    with pytest.raises(OSError, match="EIO"):
        await worker.run(_fail)
    assert await worker.run(lambda: 7) == 7
    await worker.stop()


def _fail() -> None:
    raise OSError("EIO")


async def test_stop_finishes_what_was_submitted_and_refuses_what_follows() -> None:
    worker = Worker("w")
    gate = threading.Event()
    first, second = worker.run(gate.wait), worker.run(lambda: "last")
    stopping = asyncio.get_running_loop().create_task(worker.stop())
    await asyncio.sleep(0)
    gate.set()
    await stopping
    assert (await first, await second) == (True, "last")
    with pytest.raises(RuntimeError, match="stopped"):
        worker.submit(_fail, lambda result, error: None)
    await worker.stop()
