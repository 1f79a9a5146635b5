"""One interceptor around every method: who is calling, may they call, and what becomes of errors.

Each handler is wrapped once and kept. The credential it found is in `caller_of` and its siblings for the servicer.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from keyvouch.call_proof import METADATA_KEY
from keyvouch.errors import EvidenceError, KeyvouchError, MalformedError, Reason, UnauthenticatedError
from keyvouch.errors import PermissionDeniedError as Denied
from keyvouch_server.device_authority import identify
from keyvouch_server.domain.model import Device, SessionKind
from keyvouch_server.rpc.access import ACCESS, Access
from keyvouch_server.rpc.held_streams import HeldStreams, Over
from keyvouch_server.rpc.status import abort
from keyvouch_server.use_cases.call_proofs import CallProofs
from keyvouch_server.use_cases.requests import Requests
from keyvouch_server.use_cases.sessions import certificate_required, check_own_audience
from keyvouch_server.use_cases.world import Caller

Context = grpc.aio.ServicerContext[Any, Any]
Authenticate = Callable[[str], Awaitable[Caller]]
Connect = Callable[[str, str, bytes], Awaitable[Device]]
Tell = Callable[[Caller, str, KeyvouchError], Awaitable[None]]
"""Writes into the audit log that a caller was refused a method it has no right to."""

UNARY_SECONDS: Final = 30
"""Longest a unary call may take, whatever deadline the client set."""

_OF_SESSIONS: Final = frozenset({Access.ANY_AUDIENCE, Access.SESSION, Access.APPROVED_SESSION})

_log = logging.getLogger("keyvouch.rpc")
_CALLER: ContextVar[Caller] = ContextVar("caller")
_DEVICE: ContextVar[Device] = ContextVar("device")
_CERTIFICATE: ContextVar[bytes] = ContextVar("certificate")
_TOKEN: ContextVar[str] = ContextVar("token")
_PROVE: ContextVar[Callable[[], Awaitable[None]]] = ContextVar("prove")


def caller_of() -> Caller:
    """The session behind the call being served (Access.SESSION, Access.APPROVED_SESSION)."""
    return _CALLER.get()


def device_of() -> Device:
    """The device behind the call being served (Access.DEVICE)."""
    return _DEVICE.get()


def certificate_of() -> bytes:
    """SHA-256 of the DER certificate of the connection the call came over, 32 bytes (Access.DEVICE)."""
    return _CERTIFICATE.get()


def token_of() -> str:
    """The ceremony token of the call being served (Access.SIGN_IN, Access.REGISTRATION)."""
    return _TOKEN.get()


async def must_be_proved() -> None:
    """Of a method whose calls may come without a proof (Access.ANY_AUDIENCE), this call may not.

    Raises `UnauthenticatedError(PROOF_REQUIRED)`.
    """
    await _PROVE.get()()


class Gatekeeper(grpc.aio.ServerInterceptor):
    """Authenticates and authorises calls, and turns errors into statuses."""

    def __init__(
        self,
        authenticate: Authenticate,
        connect: Connect,
        tell: Tell,
        requests: Requests,
        proofs: CallProofs,
        over: Over,
    ) -> None:
        self._held = HeldStreams(over)
        self._proofs = proofs
        self._requests = requests
        self._authenticate = authenticate
        self._connect = connect
        self._tell = tell
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the method's handler; unknown methods stay unknown."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            wrapped = self._wrapped[method] = self._wrap(handler, method)
        return wrapped

    def _wrap(self, handler: Any, method: str) -> Any:
        access = ACCESS.get(method)
        codec = {
            "request_deserializer": _lenient(handler.request_deserializer, in_stream=bool(handler.request_streaming)),
            "response_serializer": _or_bytes(handler.response_serializer),
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary, access, method), **codec)
        wrap = self._session_stream if access in _OF_SESSIONS else self._stream
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(wrap(handler.unary_stream, access, method), **codec)
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(wrap(handler.stream_stream, access, method), **codec)
        raise TypeError("no method of this server is of the stream-unary kind")

    def _unary(self, serve: Any, access: Access | None, method: str) -> Any:
        async def call(request: Any, context: Context) -> Any:
            try:
                async with asyncio.timeout(UNARY_SECONDS):
                    await self._admit(access, context, method)
                    return await self._serve_once(serve, _readable(request), context, method)
            except TimeoutError:
                await abort(context, _too_slow())
            except Denied as error:
                await self._report(method, error)
                await abort(context, error)
            except KeyvouchError as error:
                await abort(context, error)
            except grpc.aio.AbortError:
                raise
            except Exception:  # noqa: BLE001 - fail closed: nothing but a coded refusal leaves the server
                _log.exception("unexpected error")
                await abort(context, internal_error())

        return call

    def _stream(self, serve: Any, access: Access | None, method: str) -> Any:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                await self._admit(access, context, method)
                answers = serve(_readable(request), context)
                if hasattr(answers, "__aiter__"):
                    async for answer in answers:
                        yield answer
                else:
                    await answers
            except KeyvouchError as error:
                await abort(context, error)
            except (grpc.aio.AbortError, asyncio.CancelledError, GeneratorExit):
                raise
            except Exception:  # noqa: BLE001 - fail closed: nothing but a coded refusal leaves the server
                _log.exception("unexpected error")
                await abort(context, internal_error())

        return call

    def _session_stream(self, serve: Any, access: Access | None, method: str) -> Any:
        """A stream that ends with the session of its caller. It writes by itself: whatever it waits for, and be it a
        client that does not read, the end of the session comes first.
        """

        async def call(request: Any, context: Context) -> None:
            try:
                await self._admit(access, context, method)
                async with self._held.hold(_CALLER.get().session.id):
                    answers = serve(_readable(request), context)
                    if hasattr(answers, "__aiter__"):
                        async for answer in answers:
                            await context.write(answer)
                    else:
                        await answers
            except KeyvouchError as error:
                if isinstance(error, Denied):
                    await self._report(method, error)
                await abort(context, error)
            except (grpc.aio.AbortError, asyncio.CancelledError):
                raise
            except Exception:  # noqa: BLE001 - fail closed: nothing but a coded refusal leaves the server
                _log.exception("unexpected error")
                await abort(context, internal_error())

        return call

    async def _serve_once(self, serve: Any, request: Any, context: Context, method: str) -> Any:
        """Serve a call; one with a `request_id` is done once, and its answer may come back as bytes."""
        request_id, caller = getattr(request, "request_id", ""), _CALLER.get(None)
        if not request_id or caller is None:
            return await serve(request, context)
        asked = type(request)()
        asked.CopyFrom(request)
        asked.ClearField("request_id")

        async def answer() -> tuple[bytes, bool]:
            message = await serve(request, context)
            return message.SerializeToString(deterministic=True), "code" not in message.DESCRIPTOR.fields_by_name

        plain = asked.SerializeToString(deterministic=True)
        return await self._requests.perform(caller.user, request_id, method, plain, answer)

    async def _report(self, method: str, refusal: Denied) -> None:
        """P16: who reaches for more than their role leaves a trace. The refusal stands also where that fails."""
        caller = _CALLER.get(None)
        if caller is None:
            return
        try:
            await self._tell(caller, method, refusal)
        except KeyvouchError as error:
            _log.warning("a refusal could not be audited: %s", error.reason)

    async def _admit(self, access: Access | None, context: Context, method: str) -> None:
        if access is Access.OPEN:
            return
        if access is Access.DEVICE:
            _DEVICE.set(await self._device(context))
        elif access is Access.INTROSPECTION or access in _OF_SESSIONS:
            await self._admit_caller(access, context, method)
        elif access is Access.SIGN_IN:
            _TOKEN.set(_credential(context, "SignIn"))
        elif access is Access.REGISTRATION:
            _TOKEN.set(_credential(context, "Registration"))
        else:
            raise Denied(Reason.UNKNOWN_METHOD, "This method is not open to anybody.", fix="Use a documented method.")

    async def _admit_caller(self, access: Access, context: Context, method: str) -> None:
        token = _credential(context, "Bearer")
        try:
            caller = await self._authenticate(token)
        except (MalformedError, EvidenceError) as error:
            raise UnauthenticatedError(error.reason, error.message, fix=error.fix) from error
        _CALLER.set(caller)
        if access is Access.INTROSPECTION:
            return
        if caller.session.certificate_bound:
            raise certificate_required()
        if access is not Access.ANY_AUDIENCE:
            check_own_audience(caller.session)
        if access is Access.APPROVED_SESSION and caller.session.kind is not SessionKind.APPROVAL:
            raise Denied(
                Reason.SESSION_PURPOSE,
                "A session opened with an access pass may register methods and review security info, nothing else.",
                fix="Enrol a device, then sign in with it.",
            )
        proof, may_miss = _proof(context), access is Access.ANY_AUDIENCE
        await self._proofs.check(caller, method, token, proof, may_miss=may_miss)

        async def prove() -> None:
            if proof is None:
                await self._proofs.check(caller, method, token, None, may_miss=False)

        _PROVE.set(prove)

    async def _device(self, context: Context) -> Device:
        certificates = context.auth_context().get("x509_pem_cert", ())
        if len(tuple(certificates)) != 1:
            raise UnauthenticatedError(
                Reason.CERTIFICATE_REQUIRED,
                "This listener serves registered devices only.",
                fix="Connect with the device's certificate.",
            )
        pem = bytes(next(iter(certificates)))
        who = identify(pem)
        _CERTIFICATE.set(hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))).digest())
        return await self._connect(who.device_id, who.tenant_id, who.channel_key)


def _lenient(parse: Callable[[bytes], Any], *, in_stream: bool) -> Callable[[bytes], Any]:
    """A deserializer that turns bytes which are no message into a coded refusal.

    Inside a stream it is raised where the servicer reads; a first request is looked at by `_readable`, after
    the caller has been admitted.
    """

    def deserialize(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            refusal = MalformedError(
                Reason.ENCODING, "The request is not a message of this method.", fix="Check the client's version."
            )
            if in_stream:
                raise refusal from None
            return refusal

    return deserialize


def _or_bytes(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """A serializer that lets an answer pass that is bytes already: one that was kept (`use_cases.requests`)."""
    return lambda answer: answer if isinstance(answer, bytes) else serialize(answer)


def _readable(request: Any) -> Any:
    if isinstance(request, KeyvouchError):
        raise request
    return request


def _credential(context: Context, scheme: str) -> str:
    """The one `authorization` header of the call, which must be of `scheme`."""
    found = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    text = found[0] if len(found) == 1 and isinstance(found[0], str) else ""
    given, _, token = text.partition(" ")
    if given.lower() != scheme.lower() or not token:
        raise UnauthenticatedError(
            Reason.CREDENTIALS_MISSING,
            f"This call needs one authorization header of the form: {scheme} TOKEN.",
            fix="Sign in, then send the token with the call.",
        )
    return token


def _proof(context: Context) -> bytes | None:
    """The proof of possession that came with the call, or None. Two of them prove nothing."""
    found = [value for key, value in context.invocation_metadata() or () if key == METADATA_KEY]
    if not found:
        return None
    return found[0] if len(found) == 1 and isinstance(found[0], bytes) else b""


def internal_error() -> KeyvouchError:
    """What a caller learns of a failure nobody foresaw; the log has the rest."""
    return KeyvouchError(
        Reason.INTERNAL, "The server failed to handle this call.", fix="Try again; the server's log says what happened."
    )


def _too_slow() -> KeyvouchError:
    return KeyvouchError(Reason.DEADLINE, "The server could not finish in time.", fix="Try again in a moment.")
