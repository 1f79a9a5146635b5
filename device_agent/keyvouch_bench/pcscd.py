"""A private pcscd with a virtual reader (vpcd), for tests and benches: the real daemon, and nothing of the system's.

    with PrivatePcscd() as pcscd:
        pcscd.claim()                       # before the first `import smartcard` of this process
        card = pcscd.connect(slot=0)        # vpcd's side of a card: 2 bytes of length, then the message
        ...
        card.close()                        # the card is taken from the reader

pcscd has its socket in a fixed place, and vpcd takes cards from anybody who reaches its port. So both run in
namespaces of their own: no network but a loopback nobody else has, no real readers, their own folder for the socket.
That needs no root where the kernel lets users make namespaces (Debian does). They end with this process, however it
ends. What is *not* here: the card (`keyvouch_agent.transports.vpcd`).
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from keyvouch.errors import Reason, UnavailableError, UsageError
from keyvouch_bench import pcscd_room
from keyvouch_bench.port_relay import PortRelay

__all__ = ["PACKAGES", "READER", "SLOTS", "PrivatePcscd"]

PACKAGES: Final = "pcscd vsmartcard-vpcd util-linux"
"""The Debian packages with the programs."""

READER: Final = "Keyvouch virtual reader"
"""How its name begins; pcscd adds numbers, as in `Keyvouch virtual reader 00 01` for slot 1."""

SLOTS: Final = 2
"""How many cards can be in the reader at once."""

SOCKET_VARIABLE: Final = "PCSCLITE_CSOCK_NAME"
"""The environment variable by which clients of pcscd find its socket (pcscd(8))."""

_PORT: Final = 0x8C7B
_DRIVER: Final = "libifdvpcd.so"
_END_SECONDS: Final = 10.0


class PrivatePcscd:
    """One pcscd of our own, running inside a `with`. `folder` is a new, short one of its own if none is given.

    Raises `UnavailableError(CONFIGURATION)` where a program is missing or namespaces are not allowed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._given = folder
        self._folder = folder or Path()
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket_path(self) -> Path:
        """Where clients reach it."""
        return self._folder / "pcscd.comm"

    @property
    def log(self) -> Path:
        """What pcscd wrote, all starts together."""
        return self._folder / "pcscd.log"

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to use this pcscd."""
        return {SOCKET_VARIABLE: str(self.socket_path)}

    def start(self) -> None:
        """Make the namespaces, start pcscd and wait until it has its readers."""
        if self._given is None:  # the path of a socket has room for 107 bytes: a test's own folder may be too long
            self._folder = Path(tempfile.mkdtemp(prefix="kv-pcscd-"))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder = self._folder.resolve()
        try:
            self._open_room()
            self._order("go")
        except BaseException:
            self.end()
            raise

    def restart(self) -> None:
        """End pcscd as a crash would, and start it again. Cards and clients lose their connections."""
        self._order("stop")
        self._order("go")

    def connect(self, slot: int = 0) -> socket.socket:
        """Put a card into the reader: the connection on which vpcd will speak to it. Close it to take it out.

        vpcd looks for a card some twice a second, and takes one at a time for each slot.
        """
        if not 0 <= slot < SLOTS:
            raise UsageError(f"The reader has no slot {slot}.", fix=f"Take one of 0 to {SLOTS - 1}.")
        found = self._order(f"connect {_PORT + slot}")
        if not found:
            raise UnavailableError(Reason.DEVICE_FAILED, "The virtual reader cannot be reached.", fix=self._see_log())
        return socket.socket(fileno=found[0])

    @contextmanager
    def port(self, slot: int = 0) -> Iterator[int]:
        """A port of the real loopback that leads to the reader, for a card in another process."""
        with PortRelay(lambda: self.connect(slot)) as relay:
            yield relay.port

    def claim(self) -> None:
        """Make this the pcscd of this process, for good: libpcsclite reads the variable once, at its first use."""
        if os.environ.get(SOCKET_VARIABLE) == str(self.socket_path):
            return
        if "smartcard" in sys.modules:
            raise UsageError(
                "This process already uses another pcscd.",
                fix="Start the private one before anything imports smartcard, and one only for each process.",
            )
        os.environ[SOCKET_VARIABLE] = str(self.socket_path)

    def end(self) -> None:
        """End pcscd and everything about it. May be called twice."""
        control, self._control = self._control, None
        process, self._process = self._process, None
        if control is not None:
            control.close()
        if process is not None:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._given is None and self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _open_room(self) -> None:
        unshare, pcscd = _program("unshare"), _program("pcscd")
        features = _output(pcscd, "--version")
        ipc, drivers = _feature(features, "ipcdir"), _feature(features, "usbdropdir")
        command = [pcscd, "--foreground", "--config", str(self._write_settings(drivers))]
        if "--disable-polkit" in _output(pcscd, "--help"):  # there is none in the room to ask
            command.append("--disable-polkit")
        own_user = [] if os.geteuid() == 0 else ["--map-root-user"]
        self._control, theirs = socket.socketpair()
        with theirs, self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the programs were looked up by their names
                [unshare, *own_user, "--mount", "--net", "--pid", "--fork", "--kill-child", sys.executable, "-I",
                 pcscd_room.__file__, str(theirs.fileno()), str(self._folder), str(ipc), str(drivers), *command],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._await("The namespaces of a private pcscd could not be made")

    def _write_settings(self, drivers: Path) -> Path:
        """A folder with a `reader.conf` (reader.conf(5)), and with the driver, which will be hidden in its place."""
        driver = drivers / "serial" / _DRIVER
        if not driver.exists():
            raise _missing(f"vpcd's driver {driver}")
        settings = self._folder / "reader.conf.d"
        settings.mkdir(exist_ok=True)
        own = shutil.copyfile(driver, self._folder / _DRIVER)
        (settings / "keyvouch").write_text(
            f'FRIENDLYNAME "{READER}"\nDEVICENAME /dev/null:{_PORT}\nLIBPATH {own}\nCHANNELID {_PORT}\n'
        )
        return settings

    def _order(self, order: str) -> list[int]:
        """Have something done in the room. Returns the descriptors that came back."""
        with self._lock:
            if self._control is None:
                raise UsageError("The private pcscd does not run.", fix="Use it inside its `with`.")
            with suppress(OSError):
                self._control.sendall(order.encode())
            return self._await(f"The private pcscd failed ({order})")

    def _await(self, what: str) -> list[int]:
        if self._control is None:
            return []
        try:
            answer, descriptors, _, _ = socket.recv_fds(self._control, 1024, 1)
        except OSError:
            answer, descriptors = b"", []
        if answer != b"done":
            why = answer.decode(errors="replace") or self._last_words() or "it ended"
            raise UnavailableError(Reason.CONFIGURATION, f"{what}: {why}.", fix=self._see_log())
        return descriptors

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return lines[-1].strip() if lines else ""

    def _see_log(self) -> str:
        return (
            f"Its last words are in {self.log}. It runs as root, and as anybody where the kernel lets users make "
            "namespaces; a container needs the capability SYS_ADMIN for it."
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.end()


def _feature(text: str, name: str) -> Path:
    """A folder that pcscd was built for, from the line `Enabled features` of `pcscd --version`."""
    found = re.search(rf"\b{name}=(\S+)", text)
    if found is None:
        raise _missing(f"a pcscd that tells its {name}")
    return Path(os.path.realpath(found.group(1)))


def _output(program: str, option: str) -> str:
    done = subprocess.run(  # noqa: S603 - the program was looked up by its name
        [program, option], check=False, capture_output=True, text=True, timeout=_END_SECONDS
    )
    return done.stdout + done.stderr


def _program(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        raise _missing(f"the program {name}")
    return path


def _missing(what: str) -> UnavailableError:
    return UnavailableError(
        Reason.CONFIGURATION,
        f"There is no virtual card reader here: {what} is missing.",
        fix=f"Install it: apt-get install {PACKAGES}",
    )
