"""A port of the loopback that leads elsewhere: whatever comes is passed on, both ways, until one side ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self

from keyvouch.errors import KeyvouchError

__all__ = ["PortRelay"]

_END_SECONDS: Final = 10.0
_CHUNK: Final = 65536


class PortRelay:
    """Listens inside a `with`; `connect` opens the other side of each connection. At the end all are cut."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._listen, daemon=True)]

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def _listen(self) -> None:
        with suppress(OSError):  # the end
            while True:
                outside, _ = self._listener.accept()
                try:
                    inside = self._connect()
                except KeyvouchError:
                    outside.close()
                    continue
                self._open |= {outside, inside}
                for way in ((outside, inside), (inside, outside)):
                    pump = threading.Thread(target=_pump, args=way, daemon=True)
                    self._threads.append(pump)
                    pump.start()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *failure: object) -> None:
        _cut(self._listener)
        self._threads[0].join(_END_SECONDS)  # after it nothing is added to the others
        for each in self._open:
            _cut(each)
        for pump in self._threads:
            pump.join(_END_SECONDS)
        for each in (self._listener, *self._open):
            each.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Pass on without delay: small pieces are neither gathered nor acknowledged late (tcp(7)), or each costs 40 ms."""
    with suppress(OSError):
        target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            data = source.recv(_CHUNK)
            if not data:
                break
            target.sendall(data)
    _cut(source)
    _cut(target)


def _cut(link: socket.socket) -> None:
    with suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)
