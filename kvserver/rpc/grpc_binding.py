"""The api handlers on grpcio: one generic handler per method.

Purpose: everything between the bytes that grpcio delivers and a handler's messages: decode, call, encode, count, and turn what went wrong
into a status.

Rules
- grpcio moves bytes, decoding happens here: the size of a request is known before it is decoded, and one that does not decode is our
  refusal, not grpcio's traceback.
- A call without a place (calls.py) is refused before anything is received.
- A message is asked for when there is room for it (intake.py), and held in one form at a time: what is decoded, encoded or handed over
  is let go of at once.
- What a handler does not ask for costs nothing: metadata, peer and deadline are read from grpcio on demand.
- A status is set, not raised: grpcio's `abort` throws through the handler and logs.
- Cancellation (the client left, or its deadline passed) cancels the handler's task; it is counted and passed on.

Caveats: a stream of requests is read when its handler asks, and no room is taken for it (intake.py): it may stay silent for hours, and its
messages are small; a hostile client can have grpcio receive one largest message on each such stream. grpcio answers messages beyond its
own limit itself, with the same code and a text of its own. Its limit is therefore twice ours, and those in between get etcd's exact text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from grpc import StatusCode

from kvserver.api import Api, BidiHandler, StreamHandler, UnaryHandler
from kvserver.errors import RequestError, TooManyRequestsError, UnimplementedError
from kvserver.logs import Logger
from kvserver.metrics import Metrics, RpcMetrics
from kvserver.rpc.calls import Calls
from kvserver.rpc.client_socket import ClientSocket, find_client_socket
from kvserver.rpc.errors import GO_NAMES, INTERNAL_MESSAGE, oversized_message, status_of
from kvserver.rpc.intake import Intake, NoMessageError
from kvserver.rpc.methods import MethodKind, MethodSpec, method_table

__all__ = ["GrpcCall", "bind_methods"]

_Context = Any  # grpc.aio.ServicerContext[bytes, bytes]; the stubs' generic parameters add nothing here
_OK: Final = GO_NAMES[StatusCode.OK]
_CANCELED: Final = GO_NAMES[StatusCode.CANCELLED]


class GrpcCall:
    """A `Call` over grpcio's context."""

    __slots__ = ("_context", "_raw", "request_bytes")

    def __init__(self, context: _Context, raw: bytes) -> None:
        self._context = context
        self._raw = raw
        self.request_bytes = len(raw)

    def take_raw(self) -> bytes:
        """The encoded request; the call holds it no longer."""
        raw, self._raw = self._raw, b""
        return raw

    def on_done(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the call is over: the answer has left, or the client."""
        self._context.add_done_callback(lambda _: callback())

    def connection(self) -> ClientSocket | None:
        """The client's TCP connection."""
        return find_client_socket(self.peer)

    @property
    def metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """The client's metadata; keys in lower case."""
        return tuple((key, value) for key, value in self._context.invocation_metadata() or ())

    @property
    def peer(self) -> str:
        """The client's address as grpcio writes it."""
        return str(self._context.peer())

    @property
    def deadline_s(self) -> float | None:
        """When the client stops waiting, monotonic; None when it did not say."""
        remaining_s = self._context.time_remaining()
        return None if remaining_s is None else monotonic() + remaining_s

    @property
    def cancelled(self) -> bool:
        """Whether the client is gone."""
        return bool(self._context.cancelled())


class GrpcStreamCall(GrpcCall):
    """A `StreamCall`: the call of the task that serves it."""

    __slots__ = ("_task", "cut_off_by")

    def __init__(self, context: _Context, raw: bytes, task: asyncio.Task[Any]) -> None:
        super().__init__(context, raw)
        self._task = task
        self.cut_off_by: RequestError | None = None

    def cut_off(self, error: RequestError) -> None:
        """End the stream with this error, although its handler waits for the client."""
        self.cut_off_by = error
        self._task.cancel()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Binding:
    """What every handler of one server shares, and the way it ends a call."""

    receive_limit_bytes: int
    intake: Intake
    calls: Calls
    logger: Logger

    def decode(self, spec: MethodSpec, raw: bytes) -> Message:
        """Decode a request. Raises `_RefusedError`."""
        if len(raw) > self.receive_limit_bytes:
            raise _RefusedError(StatusCode.RESOURCE_EXHAUSTED, oversized_message(len(raw), self.receive_limit_bytes))
        try:
            return spec.request_class.FromString(raw)
        except DecodeError as error:
            raise _RefusedError(StatusCode.INTERNAL, f"grpc: error unmarshalling request: {error}") from error

    def fail(self, spec: MethodSpec, context: _Context, error: Exception) -> str:
        """End the call with the status that stands for `error`; returns the code's name for the metrics."""
        match error:
            case RequestError():
                code, message = status_of(error)
            case _RefusedError():
                code, message = error.code, error.message
            case NoMessageError():
                code, message = StatusCode.INTERNAL, "grpc: the call ended without a request message"
            case _:
                self.logger.error("handler failed", error=error, path=spec.path)
                code, message = StatusCode.INTERNAL, INTERNAL_MESSAGE
        context.set_code(code)
        context.set_details(message)
        return GO_NAMES[code]


class _RefusedError(Exception):
    """The binding itself refuses the call, before any handler sees it."""

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def bind_methods(
    api: Api, *, metrics: Metrics, logger: Logger, receive_limit_bytes: int, intake: Intake, calls: Calls
) -> tuple[grpc.GenericRpcHandler, ...]:
    """Handlers for every method of the contract; those that `api` does not serve answer Unimplemented.

    Args:
        receive_limit_bytes: the largest request that is decoded.
        intake: what requests pass before they are received.
        calls: how many are served at a time.
    """
    binding = _Binding(receive_limit_bytes=receive_limit_bytes, intake=intake, calls=calls, logger=logger)
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for spec in method_table():
        counted = metrics.rpc(service=spec.service, method=spec.method, kind=spec.kind.value)
        services.setdefault(spec.service, {})[spec.method] = _handler(spec, api, counted, binding)
    return tuple(grpc.method_handlers_generic_handler(service, handlers) for service, handlers in services.items())


def _handler(spec: MethodSpec, api: Api, counted: RpcMetrics, binding: _Binding) -> grpc.RpcMethodHandler[Any, Any]:
    unary, stream = api.unary.get(spec.name), api.server_streams.get(spec.name)
    refuse = _refuse(spec, counted, binding)
    match spec.kind:  # as methods that read their messages themselves (intake.py)
        case MethodKind.UNARY:
            return grpc.stream_unary_rpc_method_handler(_serve_unary(spec, unary, counted, binding) if unary is not None else refuse)
        case MethodKind.SERVER_STREAM:
            return grpc.stream_stream_rpc_method_handler(_serve_stream(spec, stream, counted, binding) if stream is not None else refuse)
        case MethodKind.CLIENT_STREAM:
            return grpc.stream_unary_rpc_method_handler(refuse)
        case MethodKind.BIDI_STREAM:
            bidi = api.bidi_streams.get(spec.name)
            return grpc.stream_stream_rpc_method_handler(_serve_bidi(spec, bidi, counted, binding) if bidi is not None else refuse)


def _serve_unary(
    spec: MethodSpec, handler: UnaryHandler, counted: RpcMetrics, binding: _Binding
) -> Callable[[object, _Context], Awaitable[bytes]]:
    lane, places = binding.intake.lane(spec.name), binding.calls.unary

    async def serve(_: object, context: _Context) -> bytes:
        started_s = monotonic()
        counted.started += 1
        if not places.begin():
            counted.note_handled(binding.fail(spec, context, TooManyRequestsError()), 0.0)
            return b""
        held_bytes = 0
        outcome = _CANCELED
        try:
            raw = await lane.receive(context)
            held_bytes = len(raw)
            counted.received_bytes += held_bytes
            call = GrpcCall(context, raw)
            handling = handler(binding.decode(spec, raw), call)
            del raw
            encoded: bytes = (await handling).SerializeToString()
            counted.sent_bytes += len(encoded)
            outcome = _OK
        except Exception as error:  # noqa: BLE001 - the edge: everything becomes a status, the unexpected is logged
            outcome = binding.fail(spec, context, error)
            return b""
        finally:
            places.end()
            lane.gate.give(held_bytes)
            counted.note_handled(outcome, monotonic() - started_s)
        return encoded

    return serve


def _serve_stream(
    spec: MethodSpec, handler: StreamHandler, counted: RpcMetrics, binding: _Binding
) -> Callable[[object, _Context], Awaitable[None]]:
    lane, places = binding.intake.lane(spec.name), binding.calls.streams

    async def serve(_: object, context: _Context) -> None:
        started_s = monotonic()
        counted.started += 1
        if not places.begin():
            counted.note_handled(binding.fail(spec, context, TooManyRequestsError()), 0.0)
            return
        held_bytes = 0
        outcome = _CANCELED
        task = asyncio.current_task()
        assert task is not None
        call: GrpcStreamCall | None = None
        try:
            raw = await lane.receive(context)
            held_bytes = len(raw)
            counted.received_bytes += held_bytes
            call = GrpcStreamCall(context, raw, task)
            async with aclosing(handler(binding.decode(spec, raw), call)) as responses:
                async for response in responses:
                    encoded: bytes = response.SerializeToString()
                    counted.sent_bytes += len(encoded)
                    await context.write(encoded)
            outcome = _OK
        except asyncio.CancelledError:
            if call is None or call.cut_off_by is None or task.uncancel():
                raise
            # grpcio sends no status for a cancelled handler: a client that comes to would wait for ever.
            outcome = binding.fail(spec, context, call.cut_off_by)
        except Exception as error:  # noqa: BLE001 - the edge, as above
            outcome = binding.fail(spec, context, error)
        finally:
            places.end()
            lane.gate.give(held_bytes)
            counted.note_handled(outcome, monotonic() - started_s)

    return serve


def _serve_bidi(
    spec: MethodSpec, handler: BidiHandler, counted: RpcMetrics, binding: _Binding
) -> Callable[[object, _Context], Awaitable[None]]:
    places = binding.calls.streams

    async def serve(_: object, context: _Context) -> None:
        started_s = monotonic()
        counted.started += 1
        if not places.begin():
            counted.note_handled(binding.fail(spec, context, TooManyRequestsError()), 0.0)
            return
        outcome = _CANCELED
        task = asyncio.current_task()
        assert task is not None
        call = GrpcStreamCall(context, b"", task)
        try:
            async with aclosing(_requests(spec, context, counted, binding)) as requests, aclosing(handler(requests, call)) as responses:
                async for response in responses:
                    encoded: bytes = response.SerializeToString()
                    counted.sent_bytes += len(encoded)
                    await context.write(encoded)
            outcome = _OK  # also for a client that left between two messages: grpcio shows it as one that closed its side
        except asyncio.CancelledError:
            if call.cut_off_by is None or task.uncancel():
                raise
            outcome = binding.fail(spec, context, call.cut_off_by)  # as for a server's stream
        except Exception as error:  # noqa: BLE001 - the edge, as above
            outcome = binding.fail(spec, context, error)
        finally:
            places.end()
            counted.note_handled(outcome, monotonic() - started_s)

    return serve


async def _requests(spec: MethodSpec, context: _Context, counted: RpcMetrics, binding: _Binding) -> AsyncGenerator[Message, None]:
    """The messages of a client that sends a stream, until it closes its side. Raises `_RefusedError`."""
    while True:
        raw = await context.read()
        if raw is grpc.aio.EOF:
            return
        counted.received_bytes += len(raw)
        message = binding.decode(spec, raw)
        del raw
        yield message
        del message


def _refuse(spec: MethodSpec, counted: RpcMetrics, binding: _Binding) -> Callable[[object, _Context], Awaitable[Any]]:
    """What answers for a method, of any kind, that this version does not serve."""

    async def serve(request: object, context: _Context) -> bytes | None:
        counted.started += 1
        counted.note_handled(binding.fail(spec, context, UnimplementedError()), 0.0)
        return b"" if spec.kind in (MethodKind.UNARY, MethodKind.CLIENT_STREAM) else None

    return serve
