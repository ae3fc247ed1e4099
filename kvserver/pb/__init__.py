"""Generated protobuf messages: the client API, the peer protocol, and what is persisted.

Rules: everything here but this file is generated from proto/ (`make proto`; `make verify` fails when stale). Import the modules by name:
`from kvserver.pb import rpc_pb2`. Messages carry etcd's field names and numbers in a proto package of our own, `kvserver.pb`, so that a
process may import a stock etcd client beside them. There are no service stubs: paths are tables (`kvserver.client.methods`, `kvserver.rpc`).
"""
