"""A key's power and touch over HTTP, as rigs with real keys in switched USB ports offer them.

    with BenchControl(key) as control:
        urlopen(f"{control.url}/usb1/power/off")

    /                        anything at all: the bench is there
    /usb1/power/off|on       take the key away, put it back
    /usb1/touch/off|on       touch it whenever it asks, or not

python-fido2's own tests of devices speak this (`--controller URL --pico-port 1`). Every request is a GET, answered when
it is done. It listens on the loopback, with no further protection: whoever is on this machine may touch a bench's key.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Self

from keyvouch_bench.virtual_fido import SecurityKey

__all__ = ["PORT", "BenchControl"]

PORT: Final = 1
"""The number of the only port: the key's path begins with `/usb1`."""


class BenchControl:
    """The HTTP server of one key, running inside a `with`. `port` 0 takes any free port."""

    def __init__(self, key: SecurityKey, *, port: int = 0) -> None:
        self._acts: Mapping[str, Callable[[], None]] = {
            "/": lambda: None,
            f"/usb{PORT}/power/on": key.insert,
            f"/usb{PORT}/power/off": key.remove,
            f"/usb{PORT}/touch/on": lambda: setattr(key, "touch", True),
            f"/usb{PORT}/touch/off": lambda: setattr(key, "touch", False),
        }
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self._carry_out))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def _carry_out(self, path: str) -> bool:
        act = self._acts.get(path)
        if act is None:
            return False
        with self._lock:
            act()
        return True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(carry_out: Callable[[str], bool]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            done = carry_out(self.path)
            body = b"done\n" if done else b"there is no such thing on this bench\n"
            self.send_response(200 if done else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    return Handler
