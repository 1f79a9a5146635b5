"""A client process that races: it sends calls all at once when it is told to, and says what became of each.

    python -m support.racing_client CA.pem HOST:PORT ...

One line of JSON on standard input is one race: {"method", "metadata": [[name, value]], "requests": [base64], "insist"}.
Calls go to the first server. With `insist` a call that is answered UNAVAILABLE, or by nobody, is sent again until
somebody else answers, each time to the next server in turn. It answers {"ready": n} when it knows them, waits for the
line "go", and then prints a list in the order of the requests:

    {"code", "reason", "response"      how the call ended
     "met"                             reasons of the refusals on the way; of no answer at all it is empty
     "longest"}                        seconds that the longest single attempt took
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

CHANNELS = 4
SECONDS = 60.0
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


async def main(ca: bytes, servers: Sequence[str]) -> None:
    """Race until standard input ends."""
    credentials = grpc.ssl_channel_credentials(ca)
    ways = [[grpc.aio.secure_channel(s, credentials, options=_OPTIONS) for s in servers] for _ in range(CHANNELS)]
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    reading = loop.run_in_executor(None, _read_lines, loop, lines)
    while line := await lines.get():
        race = json.loads(line)
        calls: list[Any] = [[channel.unary_unary(race["method"]) for channel in way] for way in ways]
        requests = [base64.b64decode(text) for text in race["requests"]]
        metadata = [tuple(pair) for pair in race["metadata"]]
        _say({"ready": len(requests)})
        if await lines.get() != "go\n":
            raise SystemExit("the race did not start")
        done = await asyncio.gather(
            *(_send(calls[n % CHANNELS], r, metadata, race["insist"]) for n, r in enumerate(requests))
        )
        _say(done)
    await reading
    for way in ways:
        for channel in way:
            await channel.close()


async def _send(calls: Sequence[Any], request: bytes, metadata: list[Any], insist: bool) -> dict[str, Any]:
    time = asyncio.get_running_loop().time
    until, longest, met = time() + SECONDS, 0.0, set[str]()
    for call in itertools.cycle(calls):
        began = time()
        finish = await _send_once(call, request, metadata)
        longest = max(longest, time() - began)
        if not insist or finish["code"] != "UNAVAILABLE" or time() > until:
            return {**finish, "met": sorted(met), "longest": longest}
        met.add(finish["reason"])
        await asyncio.sleep(0.05)
    raise SystemExit("there is no server")


async def _send_once(call: Any, request: bytes, metadata: list[Any]) -> dict[str, str]:
    try:
        response = await call(request, metadata=metadata, timeout=SECONDS)
    except grpc.aio.AioRpcError as error:
        return {"code": error.code().name, "reason": _reason(error), "response": ""}
    return {"code": "OK", "reason": "", "response": base64.b64encode(response).decode()}


def _reason(error: grpc.aio.AioRpcError) -> str:
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return str(info.reason)
    return ""


def _read_lines(loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[str]) -> None:
    for line in sys.stdin:
        loop.call_soon_threadsafe(lines.put_nowait, line)
    loop.call_soon_threadsafe(lines.put_nowait, "")


def _say(what: object) -> None:
    print(json.dumps(what), flush=True)  # noqa: T201 - the one way it speaks


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).read_bytes(), sys.argv[2:]))
