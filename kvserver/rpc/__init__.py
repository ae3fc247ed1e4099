"""The wire: the api's handlers on grpcio, the HTTP endpoints on uvicorn's protocol, and the listeners of both."""

from kvserver.rpc.grpc_server import GrpcLimits, GrpcServer
from kvserver.rpc.http_app import build_http_app
from kvserver.rpc.http_server import HttpLimits, HttpServer
from kvserver.rpc.ports import ListenError, bind_listener, check_free

__all__ = ["GrpcLimits", "GrpcServer", "HttpLimits", "HttpServer", "ListenError", "bind_listener", "build_http_app", "check_free"]
