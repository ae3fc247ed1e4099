"""All endpoints of a cluster and the choice among them.

Rules: the connection that worked last is kept while it is up. When it isn't (or is to be avoided, because it just failed a call), all are
dialled at once and the first to answer wins, earlier in the list first; a hanging endpoint costs nothing as long as another one is there.
Rounds repeat until the dial timeout, so a cluster that is just starting is waited for.
"""

from __future__ import annotations

import asyncio

from kvserver.client.config import ClientConfig
from kvserver.client.connection import Connection
from kvserver.client.errors import ConnectError
from kvserver.client.policy import backoff_s


class EndpointPool:
    """Owns one `Connection` per endpoint; close it."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._connections = [Connection(endpoint, config) for endpoint in config.endpoints]
        self._current = self._connections[0]

    def connection_to(self, text: str) -> Connection | None:
        """The connection of the endpoint written exactly so; None if it isn't one of ours."""
        return next((each for each in self._connections if each.endpoint.text == text), None)

    async def wait_connected(self, *, avoid: Connection | None = None, timeout_s: float | None = None) -> Connection:
        """A connection that is up; `avoid` comes last. Raises `ConnectError` after `timeout_s` (default: the dial timeout)."""
        if self._current is not avoid and self._current.is_ready():
            return self._current
        budget_s = self._config.dial_timeout_s if timeout_s is None else timeout_s
        loop = asyncio.get_running_loop()
        deadline = loop.time() + budget_s
        order = sorted(self._connections, key=lambda each: (each is avoid, each is not self._current))
        attempt = 0
        while True:
            winner, reasons = await _race(order, max(0.001, deadline - loop.time()))
            if winner is not None:
                self._current = winner
                return winner
            attempt += 1
            pause_s = backoff_s(attempt)
            if loop.time() + pause_s >= deadline:
                raise ConnectError(reasons)
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """Close every connection."""
        await asyncio.gather(*(each.close() for each in self._connections))


async def _race(order: list[Connection], timeout_s: float) -> tuple[Connection | None, dict[str, str]]:
    """The first connection of `order` to be up, or None and the reason of each. No task outlives the call."""
    tasks = {asyncio.create_task(each.wait_ready(timeout_s), name=f"dial {each.endpoint.text}"): each for each in order}
    reasons: dict[str, str] = {}
    pending = set(tasks)
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in (each for each in tasks if each in done):
                error = task.exception()
                if error is None:
                    return tasks[task], {}
                if not isinstance(error, ConnectError):
                    raise error
                reasons.update(error.reasons)
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    return None, {each.endpoint.text: reasons[each.endpoint.text] for each in order}
