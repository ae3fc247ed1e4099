"""Bounded error texts, met for sure; and connections that are TCP connections of their own."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from kvserver.cli.bench.links import open_links
from kvserver.cli.bench.loads import Kind
from kvserver.cli.bench.tally import MAX_ERROR_TEXTS, OTHER_ERRORS, Tally
from kvserver.client import ClientConfig, parse_endpoint


def test_more_different_errors_than_are_kept_are_counted_together() -> None:
    tally = Tally(Kind.WRITE)
    for number in range(MAX_ERROR_TEXTS + 7):
        tally.fail(f"error {number}")
    assert (len(tally.errors), tally.errors[OTHER_ERRORS], tally.failed) == (MAX_ERROR_TEXTS + 1, 7, MAX_ERROR_TEXTS + 7)


@pytest.mark.parametrize("number", [1, 3])
async def test_each_link_is_a_tcp_connection_of_its_own(number: int) -> None:
    peers: list[str] = []

    async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        peers.append(context.peer())
        return b""

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("etcdserverpb.KV", {"Put": grpc.unary_unary_rpc_method_handler(answer)})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        config = ClientConfig(endpoints=(parse_endpoint(f"127.0.0.1:{port}"),))
        async with open_links(config, number, (), None) as links:
            for link in links * 2:
                assert await link.send(Kind.WRITE, b"") is None
    finally:
        await server.stop(None)
    assert (len(peers), len(set(peers))) == (2 * number, number)
