"""The peer that kvserver's throughput is measured against: a bare grpc.aio server that decodes a PutRequest and answers a PutResponse.

It does nothing else: no log, no store, no checks. What it reaches is what the Python gRPC stack allows on this machine with these message
sizes.
"""

from __future__ import annotations

import sys

import grpc
import uvloop

from kvserver.pb import rpc_pb2


async def serve(port: int) -> None:
    """Answer Put on 127.0.0.1:`port` until the process is ended."""

    async def put(request: rpc_pb2.PutRequest, _: object) -> rpc_pb2.PutResponse:
        header = rpc_pb2.ResponseHeader(cluster_id=1 << 63, member_id=1 << 63, revision=len(request.value), raft_term=2)
        return rpc_pb2.PutResponse(header=header)

    handler = grpc.unary_unary_rpc_method_handler(
        put, request_deserializer=rpc_pb2.PutRequest.FromString, response_serializer=rpc_pb2.PutResponse.SerializeToString
    )
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 8 << 20), ("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("etcdserverpb.KV", {"Put": handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
