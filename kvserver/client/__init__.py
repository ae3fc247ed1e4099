"""The client library: an async etcd v3 client with failover that never repeats a mutation.

Needs no server room. Importing it imports grpcio; a program that wants to start fast imports it late.
"""

from kvserver.client.client import Client
from kvserver.client.config import DEFAULT_ENDPOINT, ClientConfig, Endpoint, parse_endpoint
from kvserver.client.errors import (
    CallTimeoutError,
    ClientError,
    ConnectError,
    InvalidEndpointError,
    NoEndpointError,
    ServerError,
)
from kvserver.client.ranges import EVERYTHING_FROM_KEY, prefix_end
from kvserver.client.watching import Watch

__all__ = [
    "DEFAULT_ENDPOINT",
    "EVERYTHING_FROM_KEY",
    "CallTimeoutError",
    "Client",
    "ClientConfig",
    "ClientError",
    "ConnectError",
    "Endpoint",
    "InvalidEndpointError",
    "NoEndpointError",
    "ServerError",
    "Watch",
    "parse_endpoint",
    "prefix_end",
]
