"""The local API: what the commands of the same user may ask of the running agent, over its UNIX socket.

    request   {"op": "approve", "prompt_id": "...", "number": "07", "pin": "..."}\\n
    answer    {"ok": {...}}\\n  or  {"error": {"kind", "reason", "message", "fix", ...}}\\n

One strict JSON object per line, at most 16 KiB, answered in order. `watch` turns the connection into a stream of
events; `lend` lets another command use the key providers until it hangs up. Operations: pending, show, approve,
deny, report, begin_sign_in, sign_in, status, reload, stop, watch, lend. The PIN passes here and nowhere else, and so do
the tokens that `sign_in` answers with; neither is ever logged.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Final

from keyvouch.errors import KeyvouchError, MalformedError, Reason
from keyvouch_agent.agent import Agent, Events
from keyvouch_agent.home import Home
from keyvouch_agent.local_socket import LONGEST_LINE, bind_socket, check_peer, unlink_socket
from keyvouch_agent.logs import AgentLog
from keyvouch_agent.ports import Pin
from keyvouch_agent.session_ports import AppRequest
from keyvouch_agent.strict_json import Field, dump_object, parse_object, text
from keyvouch_agent.views import Document, error_document

__all__ = ["LocalApi"]

MAX_CONNECTIONS: Final = 32
IDLE_SECONDS: Final = 60.0

_PROMPT: Final = MappingProxyType({"prompt_id": text(128)})
_DECIDE: Final = MappingProxyType({**_PROMPT, "number": text(16), "pin": text(256)})
_BEGIN: Final = MappingProxyType(
    {
        "account": text(300),
        "app_id": text(512),
        "app_name": text(256),
        "audience": text(1024),
        "message": text(512),
    }
)
_SIGN_IN: Final = MappingProxyType({**_PROMPT, "pin": text(256)})
_LAST_TRY: Final[Mapping[str, Field]] = MappingProxyType({"last_try": text(3)})
"""Optional in `approve` and `sign_in`: `yes`, if the last try of a card's PIN may be spent."""

_NOTHING: Final[Mapping[str, Field]] = MappingProxyType({})

_OPERATIONS: Final[Mapping[str, Mapping[str, Field]]] = MappingProxyType(
    {
        "pending": _NOTHING,
        "status": _NOTHING,
        "reload": _NOTHING,
        "stop": _NOTHING,
        "watch": _NOTHING,
        "lend": _NOTHING,
        "show": _PROMPT,
        "deny": _PROMPT,
        "report": _PROMPT,
        "approve": _DECIDE,
        "begin_sign_in": _BEGIN,
        "sign_in": _SIGN_IN,
    }
)


class LocalApi:
    """Serves one agent. `uid` is the only user that may connect: the agent's own, except in tests."""

    def __init__(self, agent: Agent, *, home: Home, log: AgentLog, uid: int | None = None) -> None:
        self._agent = agent
        self._home = home
        self._log = log
        self._uid = os.geteuid() if uid is None else uid
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises as `bind_socket` does."""
        listening = bind_socket(self._home)
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=LONGEST_LINE)

    async def close(self) -> None:
        """Stop listening, end the connections, remove the socket."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        unlink_socket(self._home)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._converse(reader, writer)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            pass  # the command went away, or the agent is ending
        finally:
            self._connections.discard(task)
            writer.close()
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            check_peer(writer.get_extra_info("socket"), uid=self._uid)
        except KeyvouchError as error:
            self._log.warning("local-peer-refused", reason=error.reason, **error.metadata)
            await _send(writer, {"error": error_document(error)})
            return
        if len(self._connections) > MAX_CONNECTIONS:
            return
        while True:
            try:
                line = await _read_line(reader)
            except MalformedError as error:
                await _send(writer, {"error": error_document(error)})
                return
            if not line:
                return
            if not await self._answer(line, reader, writer):
                return

    async def _answer(self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False ends the connection."""
        try:
            request = _parse(line)
            if request["op"] == "watch":
                await self._watch(reader, writer)
                return False
            if request["op"] == "lend":
                async with self._agent.lend():
                    await _send(writer, {"ok": {"lent": True}})
                    await reader.read(1)
                return False
            document: Document = {"ok": await self._perform(request)}
        except KeyvouchError as error:
            document = {"error": error_document(error)}
        await _send(writer, document)
        return "error" not in document

    async def _perform(self, request: Mapping[str, str]) -> Document:
        agent, prompt_id = self._agent, request.get("prompt_id", "")
        match request["op"]:
            case "pending":
                return agent.pending()
            case "status":
                return agent.status()
            case "reload":
                return await agent.reload()
            case "show":
                return await agent.show(prompt_id)
            case "approve":
                pin = Pin(request["pin"])
                return await agent.approve(prompt_id, request["number"], pin, last_try=_is_last(request))
            case "deny":
                return await agent.deny(prompt_id)
            case "report":
                return await agent.report(prompt_id)
            case "begin_sign_in":
                return await agent.begin_sign_in(request["account"], _app_request(request))
            case "sign_in":
                return await agent.sign_in(prompt_id, Pin(request["pin"]), last_try=_is_last(request))
            case _:
                agent.stop()
                return {"stopping": True}

    async def _watch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send events until the other end hangs up or says anything."""
        gone = asyncio.create_task(reader.read(1))
        try:
            with self._agent.watch() as events:
                await _send(writer, {"ok": {"watching": True}})
                while (event := await _next(events, gone)) is not None:
                    await _send(writer, event)
        finally:
            gone.cancel()


async def _next(events: Events, gone: asyncio.Task[bytes]) -> Document | None:
    """The next event, or None once `gone` is done."""
    waiting = asyncio.create_task(events.get())
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        waiting.cancel()


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    """One line, or nothing at the end. Raises `MalformedError` for a longer or an unfinished one."""
    try:
        async with asyncio.timeout(IDLE_SECONDS):
            return await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return b""
        raise _malformed("the line is not finished") from None
    except asyncio.LimitOverrunError:
        raise _malformed(f"the line is longer than {LONGEST_LINE} bytes") from None


def _parse(line: bytes) -> dict[str, str]:
    """A request: its operation and exactly the fields of that, all of them texts. Raises `MalformedError`."""
    found = parse_object(line, {"op": text(20)}, longest=LONGEST_LINE, optional={**_DECIDE, **_BEGIN, **_LAST_TRY})
    shape = _OPERATIONS.get(str(found["op"]))
    if shape is None:
        raise _malformed("there is no such operation")
    may_have = _LAST_TRY.keys() if "pin" in shape else set()
    if found.keys() - {"op"} - may_have != shape.keys() or found.get("last_try", "yes") != "yes":
        raise _malformed("a field is missing or does not belong to this operation")
    return {name: str(value) for name, value in found.items()}


def _is_last(request: Mapping[str, str]) -> bool:
    return "last_try" in request


def _app_request(request: Mapping[str, str]) -> AppRequest:
    return AppRequest(request["app_id"], request["app_name"], request["audience"], request["message"])


def _malformed(why: str) -> MalformedError:
    return MalformedError(
        Reason.ENCODING,
        f"The agent does not understand the request: {why}.",
        fix="Use the command of the same version as the agent.",
    )


async def _send(writer: asyncio.StreamWriter, document: Document) -> None:
    writer.write(dump_object(document))
    await writer.drain()
