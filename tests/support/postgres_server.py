"""A real PostgreSQL for tests: a cluster of its own, in a folder of its own, reached by a UNIX socket there only.

    with PostgresCluster() as cluster:
        url = cluster.database()       # a new, empty database
        cluster.crash()                # every process killed at once
        cluster.start()                # recovers from its log; what was committed is there
        cluster.pause()                # answers nothing, closes nothing
        cluster.resume()

Tests take it from the fixtures `postgres_cluster` and `postgres_url`. It ends with this process, however that ends
(`support.postgres_keeper`). PostgreSQL refuses to run as root: for root it runs as `postgres`, or as `nobody`.

The folder is in memory (/dev/shm) where there is room, since a database is some 300 files: 20 ms there, 300 ms on a
disk. With TMPDIR set, or too little room, it is in the temporary folder.

It does not wait for the disk (`fsync=off`), which makes a commit some thirty times faster here: what a killed process
has written is in the kernel, so that this loses nothing. What a power cut would lose, these tests cannot see.
"""

from __future__ import annotations

import itertools
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

from keyvouch.errors import Reason, UnavailableError, UsageError
from support import postgres_keeper

PACKAGES: Final = "postgresql"
"""The Debian package with the programs."""

SUPERUSER: Final = "postgres"
"""The role that URLs name; it may do everything, without a password."""

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 30.0

_PORT: Final = 5432
_SOCKET_PATH_BYTES: Final = 107  # sun_path in unix(7), without the zero at its end
_PROGRAMS: Final = ("postgres", "initdb", "psql")
_MEMORY: Final = Path("/dev/shm")
_MEMORY_BYTES: Final = 2 << 30  # what must be free there; in containers it often is 64 MiB in all
_DEBIAN: Final = Path("/usr/lib/postgresql")
_SETTINGS: Final = {
    "listen_addresses": "",
    "port": str(_PORT),
    "max_connections": "100",
    "shared_buffers": "32MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    "fsync": "off",
    "synchronous_commit": "on",
    "dynamic_shared_memory_type": "mmap",  # in its folder: a killed cluster leaves nothing elsewhere
}


class PostgresCluster:
    """One cluster. Nothing is made before the first `start` or `with`; `close` ends it and removes all of it.

    Raises `UnavailableError(CONFIGURATION)` where PostgreSQL is missing or does not start, with what to do.
    Methods wait: called from a coroutine, they hold up its event loop meanwhile (`database` for 20 to 300 ms).
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._programs = Path()
        self._identity: dict[str, Any] = {}
        self._keeper: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False
        self._numbers = itertools.count(1)
        self._discarded: list[str] = []

    @property
    def folder(self) -> Path:
        """Where it lives; the socket is in it. Raises `UsageError` before the first start."""
        if self._folder is None:
            raise UsageError("The PostgreSQL cluster is not there.", fix="Call start() first, or use it in a `with`.")
        return self._folder

    @property
    def log(self) -> Path:
        """What it wrote, all starts together."""
        return self.folder / "log"

    @property
    def running(self) -> bool:
        """Whether the server process is there, be it paused."""
        return self._process is not None and self._process.poll() is None

    @property
    def processes(self) -> frozenset[int]:
        """The numbers of all its processes: server, helpers, and one for each connection."""
        return frozenset(postgres_keeper.processes(self.folder))

    def start(self) -> None:
        """Bring it into service from whatever state, and wait until it takes connections."""
        if self.running:
            self.resume()
            return
        if self._folder is None:
            try:
                self._prepare()
            except BaseException:
                self.close()
                raise
        self._kill()  # the children of a server that somebody else killed
        self._launch()

    def stop(self) -> None:
        """End it in order: open transactions are undone, connections closed. Nothing happens if it does not run."""
        process = self._process
        if process is None:
            return
        self.resume()
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            raise self._failed("PostgreSQL did not stop and was killed.") from None
        self._process = None

    def crash(self) -> None:
        """Kill all its processes at once, as a crash would, paused or not. `start` then recovers from the log."""
        self._kill()

    def pause(self) -> None:
        """Stop all its processes where they are: connections stay open, new ones wait, and nothing is answered."""
        if not self.running:
            raise UsageError("PostgreSQL does not run, so it cannot be paused.", fix="Call start() first.")
        self._paused = True
        postgres_keeper.stop_all(self.folder)

    def resume(self) -> None:
        """Let it go on after `pause`; nothing happens if it is not paused."""
        if self._paused:
            postgres_keeper.signal_all(self.folder, signal.SIGCONT)
            self._paused = False

    def database(self) -> str:
        """Make a new, empty database. Returns its URL, `postgresql://postgres@/name?host=/folder`."""
        name = f"kv_{next(self._numbers)}"
        drops = [f"DROP DATABASE IF EXISTS {old} WITH (FORCE)" for old in self._discarded]
        # Copied file by file, as before version 15: without waiting for the disk that is quicker than through the log.
        strategy = " STRATEGY FILE_COPY" if int((self._data / "PG_VERSION").read_text()) >= 15 else ""
        self._psql(*drops, f"CREATE DATABASE {name} TEMPLATE template0{strategy}")
        self._discarded.clear()
        return f"postgresql://{SUPERUSER}@/{name}?host={quote(str(self.folder))}"

    def discard(self, url: str) -> None:
        """Have a database removed when the next one is made; who is still connected to it loses the connection."""
        self._discarded.append(urlsplit(url).path.removeprefix("/"))

    def close(self) -> None:
        """End it without delay and remove its folder. May be called twice; `start` then makes a new one."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.communicate(b"end")
        process, self._process = self._process, None
        if process is not None:
            process.wait(STOP_SECONDS)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder, self._paused = None, False
        self._discarded.clear()

    def _prepare(self) -> None:
        self._programs, self._identity = _find_programs(), _identity()
        self._folder = Path(tempfile.mkdtemp(prefix="kv-pg-", dir=_place())).resolve()
        if len(os.fsencode(self._folder / f".s.PGSQL.{_PORT}")) > _SOCKET_PATH_BYTES:
            raise UsageError(
                f"The path of a UNIX socket has room for {_SOCKET_PATH_BYTES} bytes, and {self._folder} is too long.",
                fix="Name a folder with a shorter path in the environment variable TMPDIR.",
            )
        if self._identity:
            os.chown(self._folder, self._identity["user"], self._identity["group"])
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", postgres_keeper.__file__, str(os.getpid()), str(self._folder)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd="/", start_new_session=True,
        )  # fmt: skip
        made = self._spawn(
            "initdb", "--pgdata", str(self._data), "--no-sync", "--auth=trust", "--username", SUPERUSER,
            "--encoding=UTF8", "--locale=C", "--no-instructions",
        )  # fmt: skip
        if made.wait(START_SECONDS):
            raise self._failed("A PostgreSQL cluster could not be made.")

    def _launch(self) -> None:
        settings = [f"--{name}={value}" for name, value in (_SETTINGS | {"cluster_name": self.folder.name}).items()]
        self._process = process = self._spawn("postgres", "-D", str(self._data), "-k", str(self.folder), *settings)
        end = time.monotonic() + START_SECONDS
        while not self._ready(process.pid):
            if process.poll() is not None or time.monotonic() > end:
                failure = self._failed("PostgreSQL did not start.")
                self._kill()
                raise failure
            time.sleep(0.005)
        if process.pid not in self.processes:
            raise self._failed("PostgreSQL runs, but /proc does not show its processes, so that they cannot be ended.")

    def _ready(self, postmaster: int) -> bool:
        """What pg_ctl waits for: the lock file of this very server says so in its eighth line."""
        try:
            lines = (self._data / postgres_keeper.PID_FILE).read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(postmaster) and lines[7].strip() == "ready"

    def _kill(self) -> None:
        process, self._process = self._process, None
        postgres_keeper.kill_all(self.folder)
        if process is not None:
            process.wait(STOP_SECONDS)
        postgres_keeper.forget_traces(self.folder)
        self._paused = False

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a program of PostgreSQL as the user who may. The keeper knows it by the folder on its command line.

        setpriv changes the user: `subprocess` would fork for that, and gRPC, if it has calls under way, would have the
        forked child abort. Without a change of user it does not fork in this sense.
        """
        as_user = []
        if self._identity:
            user, group = self._identity["user"], self._identity["group"]
            as_user = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*as_user, self._programs / program, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.folder, env=_environment(), start_new_session=True,
            )  # fmt: skip

    def _psql(self, *statements: str) -> None:
        if not self.running or self._paused:
            raise UsageError("PostgreSQL does not run, or is paused.", fix="Call start() first.")
        commands = [argument for statement in statements for argument in ("--command", statement)]
        done = subprocess.run(
            [self._programs / "psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--host", str(self.folder),
             "--port", str(_PORT), "--username", SUPERUSER, "--dbname", "postgres", *commands],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=START_SECONDS,
            env=_environment(),
        )  # fmt: skip
        if done.returncode:
            raise self._failed(f"PostgreSQL refused what tests need: {done.stderr.strip()}")

    def _failed(self, what: str) -> UnavailableError:
        lines = self.log.read_text(errors="replace").splitlines()[-15:] if self.log.exists() else []
        last = "\n  ".join(lines) or "(nothing)"
        return UnavailableError(
            Reason.CONFIGURATION,
            f"{what} Its last words:\n  {last}\n",
            fix=f"See to what they say. {self.folder.parent} must be open to every user; TMPDIR names another folder.",
        )

    @property
    def _data(self) -> Path:
        return self.folder / postgres_keeper.DATA

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()


def _place() -> Path | None:
    """Where the folder is made; None for the temporary folder."""
    roomy = os.access(_MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(_MEMORY).free >= _MEMORY_BYTES
    return _MEMORY if roomy and "TMPDIR" not in os.environ else None


everywhere: list[PostgresCluster] = []
"""With `pytest --store postgres` the one cluster in which live servers keep their records, whatever a test wants."""


def _find_programs() -> Path:
    """The folder with the server's programs: the one on the PATH, else Debian's newest."""
    on_path = shutil.which("postgres")
    candidates = [Path(on_path).parent] if on_path else []
    candidates += sorted(_DEBIAN.glob("*/bin"), key=_version, reverse=True)
    for folder in candidates:
        if all(os.access(folder / program, os.X_OK) for program in _PROGRAMS):
            return folder
    raise UnavailableError(
        Reason.CONFIGURATION,
        f"There is no PostgreSQL here: no folder on the PATH or in {_DEBIAN} has {', '.join(_PROGRAMS)}.",
        fix=f"Install it: apt-get install {PACKAGES}",
    )


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", folder.parent.name)))


def _identity() -> dict[str, Any]:
    """Who PostgreSQL runs as, in the words of `subprocess.Popen`; empty for ourselves."""
    if os.geteuid() != 0:
        return {}
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    for name in (SUPERUSER, "nobody"):
        if name in known:
            return {"user": known[name].pw_uid, "group": known[name].pw_gid, "extra_groups": []}
    raise UnavailableError(
        Reason.CONFIGURATION,
        "PostgreSQL refuses to run as root, and this system has neither a user postgres nor a user nobody.",
        fix=f"Install it: apt-get install {PACKAGES}. Or run the tests as another user.",
    )


def _environment() -> dict[str, str]:
    """Ours without what would lead PostgreSQL's programs elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
