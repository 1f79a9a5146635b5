"""What runs inside the namespaces of `keyvouch_bench.pcscd`: pcscd, and a way to its virtual reader.

A script of its own, started by `unshare` as the first process of its namespaces: when it ends, the kernel ends pcscd
too. It obeys one socket, the descriptor that its first argument names, and ends when that closes:

    go                 start pcscd, wait until it can be asked; answers `done`
    connect PORT       answers `done` with a descriptor: a connection to that port of this network
    stop               end pcscd at once, as a crash would; answers `done`

Whatever fails is answered with the reason. Only the standard library is imported: this starts in some 40 ms.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

PATIENCE_SECONDS = 20.0

# linux/mount.h, linux/sockios.h, linux/if.h
_MS_BIND = 4096
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_IFREQ = struct.Struct("16sH22x")


class _Room:
    """pcscd, with a private folder in the place of its own, no real readers, and a loopback."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self._folder = folder
        self._command = command
        self._pcscd: subprocess.Popen[bytes] | None = None

    def furnish(self, ipc: Path, drivers: Path) -> None:
        """Hide the system's pcscd and its drivers for real readers; put our folder where pcscd makes its socket."""
        ours = os.open(self._folder, os.O_PATH)  # it may lie under what is hidden now
        _mount("tmpfs", ipc.parent, "tmpfs", 0)
        ipc.mkdir()
        _mount(f"/proc/self/fd/{ours}", ipc, "", _MS_BIND)
        _mount("tmpfs", drivers, "tmpfs", 0)
        _raise_loopback()

    def go(self) -> None:
        """Start pcscd and wait until it takes connections: by then it has its readers."""
        with (self._folder / "pcscd.log").open("ab") as log:
            self._pcscd = subprocess.Popen(  # noqa: S603 - looked up by its name
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end = time.monotonic() + PATIENCE_SECONDS
        while not self._listens():
            if self._pcscd.poll() is not None:
                raise OSError(f"pcscd ended with status {self._pcscd.returncode}")
            if time.monotonic() > end:
                raise OSError("pcscd does not answer")
            time.sleep(0.005)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self._folder / "pcscd.comm")) == 0

    def stop(self) -> None:
        """End pcscd and remove what it leaves."""
        if self._pcscd is not None:
            self._pcscd.kill()
            self._pcscd.wait()
        for name in ("pcscd.comm", "pcscd.pid"):
            (self._folder / name).unlink(missing_ok=True)


def _mount(source: str, target: Path, kind: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), None)
    if libc.mount(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: cannot mount", str(target))


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        answer = fcntl.ioctl(handle, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0))
        _, flags = _IFREQ.unpack(answer)
        fcntl.ioctl(handle, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))


def _obey(control: socket.socket, room: _Room, order: list[str]) -> None:
    match order:
        case ["go"]:
            room.go()
        case ["stop"]:
            room.stop()
        case ["connect", port]:
            with socket.create_connection(("127.0.0.1", int(port)), PATIENCE_SECONDS) as found:
                found.setblocking(True)
                socket.send_fds(control, [b"done"], [found.fileno()])
            return
        case _:
            raise OSError(f"no such order: {order}")
    control.sendall(b"done")


def main(descriptor: str, folder: str, ipc: str, drivers: str, *command: str) -> None:
    """Furnish the room, then obey until the other side closes its end."""
    control = socket.socket(fileno=int(descriptor))
    room = _Room(Path(folder), list(command))
    try:
        room.furnish(Path(ipc), Path(drivers))
    except OSError as error:
        control.sendall(str(error).encode())
        return
    control.sendall(b"done")
    while order := control.recv(256):
        try:
            _obey(control, room, order.decode().split())
        except OSError as error:
            control.sendall(str(error).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
