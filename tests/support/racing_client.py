"""A client process that races: it sends calls all at once when it is told to, and says what became of each.

    python -m support.racing_client HOST:PORT CA.pem

One line of JSON on standard input is one race: {"method", "metadata": [[name, value]], "requests": [base64], "insist"}.
With `insist` a call that nobody answers is sent again until somebody does. It answers {"ready": n} when it knows them,
waits for the line "go", and then prints a list of {"code", "reason", "response"}, in the order of the requests.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

CHANNELS = 4
SECONDS = 60.0
_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))


async def main(server: str, ca: bytes) -> None:
    """Race until standard input ends."""
    credentials = grpc.ssl_channel_credentials(ca)
    channels = [grpc.aio.secure_channel(server, credentials, options=_OPTIONS) for _ in range(CHANNELS)]
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    reading = loop.run_in_executor(None, _read_lines, loop, lines)
    while line := await lines.get():
        race = json.loads(line)
        calls: list[Any] = [channels[n % CHANNELS].unary_unary(race["method"]) for n in range(len(race["requests"]))]
        requests = [base64.b64decode(text) for text in race["requests"]]
        metadata = [tuple(pair) for pair in race["metadata"]]
        _say({"ready": len(requests)})
        if await lines.get() != "go\n":
            raise SystemExit("the race did not start")
        done = await asyncio.gather(
            *(_send(call, r, metadata, race["insist"]) for call, r in zip(calls, requests, strict=True))
        )
        _say(done)
    await reading
    for channel in channels:
        await channel.close()


async def _send(call: Any, request: bytes, metadata: list[Any], insist: bool) -> dict[str, str]:
    until = asyncio.get_running_loop().time() + SECONDS
    while True:
        try:
            response = await call(request, metadata=metadata, timeout=SECONDS)
        except grpc.aio.AioRpcError as error:
            if insist and error.code() is grpc.StatusCode.UNAVAILABLE and asyncio.get_running_loop().time() < until:
                await asyncio.sleep(0.05)
                continue
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
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_bytes()))
