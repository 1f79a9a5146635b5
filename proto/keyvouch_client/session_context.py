"""The verified session of the call that is being handled, for the code of a resource server.

Not here: verification; the interceptors do it before they set anything.
"""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import grpc

from keyvouch.errors import UsageError
from keyvouch.tokens import AccessTokenClaims

__all__ = ["Admit", "AdmitAsync", "bind", "bind_async", "current_session", "is_asynchronous", "remember"]

_SESSION: contextvars.ContextVar[AccessTokenClaims | None] = contextvars.ContextVar("keyvouch_session", default=None)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Admit = Callable[[grpc.ServicerContext], AccessTokenClaims]
"""Judges the call of a context, or aborts it."""

AdmitAsync = Callable[[Any], Awaitable[None]]
"""The same on the event loop."""


def current_session() -> AccessTokenClaims:
    """Claims of the caller's verified access token. Raises `UsageError` where nobody had to sign in."""
    claims = _SESSION.get()
    if claims is None:
        raise UsageError(
            "No session has been verified for this call.",
            fix="Ask inside a handler, behind RequireSession, of a method that is not an open one.",
        )
    return claims


def remember(claims: AccessTokenClaims | None) -> None:
    """Set the session of the present context."""
    _SESSION.set(claims)


def is_asynchronous(handler: Handler) -> bool:
    """Whether a handler runs on the event loop, and so in the context of the interceptor before it."""
    return _is(inspect.iscoroutinefunction, handler) or _is(inspect.isasyncgenfunction, handler)


def _is(kind: Callable[[object], bool], handler: Handler) -> bool:
    behaviour = _behaviour(handler)
    candidates = (behaviour, getattr(behaviour, "__call__", None))  # noqa: B004 # it is the type of it that counts
    return any(kind(candidate) for candidate in candidates)


def bind_async(handler: Handler, admit: AdmitAsync) -> Handler:
    """A handler for the event loop that admits the caller first, then runs `handler` as it is: generator or not."""
    behaviour = _behaviour(handler)

    async def whole(request: Any, context: Any) -> Any:
        await admit(context)
        return await behaviour(request, context)

    async def piecemeal(request: Any, context: Any) -> AsyncIterator[Any]:
        await admit(context)
        async for response in behaviour(request, context):
            yield response

    return _FACTORIES[handler.request_streaming, handler.response_streaming](
        piecemeal if _is(inspect.isasyncgenfunction, handler) else whole,
        handler.request_deserializer,
        handler.response_serializer,
    )


def bind(handler: Handler, admit: Admit) -> Handler:
    """A handler for threads that admits the caller first and then runs `handler` in a context that knows it.

    The context is the call's own, so that nothing is left behind in a thread of the pool.
    """
    behaviour = _behaviour(handler)

    def one(request: Any, context: grpc.ServicerContext) -> Any:
        return _context_of(admit(context)).run(behaviour, request, context)

    def many(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        own = _context_of(admit(context))
        responses = own.run(lambda: iter(behaviour(request, context)))
        end = object()
        while (response := own.run(next, responses, end)) is not end:
            yield response

    return _FACTORIES[handler.request_streaming, handler.response_streaming](
        many if handler.response_streaming else one, handler.request_deserializer, handler.response_serializer
    )


def _context_of(claims: AccessTokenClaims) -> contextvars.Context:
    own = contextvars.copy_context()
    own.run(_SESSION.set, claims)
    return own


_ATTRIBUTES = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}

_FACTORIES: dict[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _behaviour(handler: Handler) -> Callable[..., Any]:
    behaviour: Callable[..., Any] = getattr(handler, _ATTRIBUTES[handler.request_streaming, handler.response_streaming])
    return behaviour
