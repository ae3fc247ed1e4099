"""The loop of `top`: every endpoint is polled by a task of its own, the screen is drawn at its own pace.

Rules: an endpoint that hangs delays nobody; its row says so once its call has timed out, and until then shows what it said last. Ends by
the key or the interrupt. Bounds: one call under way per endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import datetime

from kvserver.cli.memory.asking import Answer, ask, ask_all
from kvserver.cli.memory.screen import Screen, opened
from kvserver.cli.memory.show import as_lines
from kvserver.client import Client


async def show_once(client: Client, endpoints: Sequence[str]) -> list[Answer]:
    """Ask everybody and draw one frame of plain text; returns the answers."""
    answers = await ask_all(client, endpoints)
    Screen(is_terminal=False).draw(as_lines(answers))
    return answers


async def show_live(client: Client, endpoints: Sequence[str], interval_s: float) -> None:
    """Draw a frame every `interval_s` until the user leaves."""
    watch = _Watch(client, endpoints, interval_s)
    try:
        with opened() as screen:
            async with asyncio.TaskGroup() as group:
                pollers = [group.create_task(watch.poll(endpoint), name=f"poll {endpoint}") for endpoint in endpoints]
                await _wait_at_most(interval_s, watch.complete)
                while not screen.ended.is_set():
                    screen.draw([_title(interval_s, has_keys=screen.has_keys), "", *as_lines(watch.answers)])
                    await _wait_at_most(interval_s, screen.ended)
                for poller in pollers:
                    poller.cancel()
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None  # the reader of the output went away: an ending with a code of its own


class _Watch:
    """What each endpoint said last; `complete` is set once all have said something."""

    def __init__(self, client: Client, endpoints: Sequence[str], interval_s: float) -> None:
        self._client = client
        self._interval_s = interval_s
        self._latest = {endpoint: Answer(endpoint=endpoint, error="no answer yet") for endpoint in endpoints}
        self._open = set(endpoints)
        self.complete = asyncio.Event()

    @property
    def answers(self) -> list[Answer]:
        """In the order of the endpoints."""
        return list(self._latest.values())

    async def poll(self, endpoint: str) -> None:
        """Ask again and again, until cancelled."""
        while True:
            self._latest[endpoint] = await ask(self._client, endpoint, timeout_s=max(1.0, self._interval_s))
            self._open.discard(endpoint)
            if not self._open:
                self.complete.set()
            await asyncio.sleep(self._interval_s)


async def _wait_at_most(timeout_s: float, event: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


def _title(interval_s: float, *, has_keys: bool) -> str:
    now = datetime.now().astimezone().strftime("%H:%M:%S")
    return f"kvctl top  {now}  every {interval_s:g} s" + ("  (q leaves)" if has_keys else "")
