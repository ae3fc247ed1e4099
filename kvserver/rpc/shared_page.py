"""A page that costs something to make, made once for everybody who asks at the same time.

Rules
- It is made at most once per interval. Who asks earlier waits until the interval is over, together with all the others: so nobody gets a
  page from before their question, and a thousand questions cost as much of the loop as ten pages a second do.
- What goes wrong in making it is raised to everybody who waited.

Belongs to the loop.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

__all__ = ["SharedPage"]


class SharedPage:
    """See the module. `make` must not block for long."""

    def __init__(self, make: Callable[[], bytes], *, interval_s: float) -> None:
        self._make = make
        self._interval_s = interval_s
        self._made_s = -math.inf
        self._next: asyncio.Future[bytes] | None = None

    async def current(self) -> bytes:
        """The page as it is now, or within the interval."""
        if self._next is None:
            loop = asyncio.get_running_loop()
            wait_s = self._made_s + self._interval_s - loop.time()
            if wait_s <= 0:
                self._made_s = loop.time()
                return self._make()
            self._next = loop.create_future()
            loop.call_later(wait_s, self._serve, self._next)
        return await asyncio.shield(self._next)  # one who leaves must not take the page from the others

    def _serve(self, waiting: asyncio.Future[bytes]) -> None:
        self._next = None
        self._made_s = asyncio.get_running_loop().time()
        try:
            page = self._make()
        except Exception as error:  # noqa: BLE001 - theirs, who wait
            waiting.set_exception(error)
        else:
            waiting.set_result(page)
