"""A direction that takes longer: when pieces come out, in which order, and how much is on its way."""

from __future__ import annotations

import asyncio
import itertools

from bench.delay import DelayLine

PIECE = b"x" * 1000


async def drain(line: DelayLine) -> list[tuple[float, bytes]]:
    """What comes out until the end, with the times."""
    taken = []
    while piece := await line.take():
        taken.append((asyncio.get_running_loop().time(), piece))
    return taken


async def test_every_piece_comes_out_a_delay_later_and_in_order() -> None:
    line, clock = DelayLine(lambda: 0.05), asyncio.get_running_loop()
    sent = [b"%d" % number for number in range(50)]
    sent_s = []
    for piece in sent:
        sent_s.append(clock.time())
        await line.put(piece)
    await line.put(b"")
    async with asyncio.timeout(20):
        taken = await drain(line)
    assert [piece for _, piece in taken] == sent
    assert all(out_s - in_s >= 0.05 for (out_s, _), in_s in zip(taken, sent_s, strict=True))
    assert line.held_bytes == 0


async def test_a_delay_is_no_rate_what_was_sent_together_comes_together() -> None:
    line, clock = DelayLine(lambda: 0.05), asyncio.get_running_loop()
    for _ in range(40):
        await line.put(PIECE)
    await line.put(b"")
    began_s = clock.time()
    async with asyncio.timeout(20):
        await drain(line)
    assert clock.time() - began_s < 40 * 0.05 / 2  # one delay, not one per piece


async def test_a_shorter_delay_from_now_on_does_not_overtake() -> None:
    delays = itertools.chain([0.1], itertools.repeat(0.0))
    line = DelayLine(lambda: next(delays))
    await line.put(b"first")

    async def send_rest() -> None:
        await line.put(b"second")
        await line.put(b"")

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(send_rest(), name="rest")
        assert [piece for _, piece in await drain(line)] == [b"first", b"second"]


async def test_a_full_line_makes_the_sender_wait() -> None:
    line = DelayLine(lambda: 0.05, held_bytes=3 * len(PIECE))
    held: list[int] = []

    async def send() -> None:
        for _ in range(20):
            await line.put(PIECE)
            held.append(line.held_bytes)
        await line.put(b"")

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(send(), name="send")
        assert len(await drain(line)) == 20
    assert max(held) == 3 * len(PIECE)


async def test_without_a_delay_one_piece_is_on_its_way() -> None:
    line = DelayLine(lambda: 0.0)
    await line.put(PIECE)
    sender = asyncio.create_task(line.put(PIECE), name="second")
    done, _ = await asyncio.wait({sender}, timeout=0.05)
    assert not done
    assert await line.take() == PIECE
    async with asyncio.timeout(20):
        await sender
        assert await line.take() == PIECE


async def test_a_sender_that_waits_goes_on_when_nobody_takes_any_more() -> None:
    line = DelayLine(lambda: 0.0)
    await line.put(PIECE)
    sender = asyncio.create_task(line.put(PIECE), name="second")
    await asyncio.sleep(0)
    line.end()
    async with asyncio.timeout(20):
        await sender
        await line.put(PIECE)
    assert line.is_ended
    assert line.held_bytes == 0
