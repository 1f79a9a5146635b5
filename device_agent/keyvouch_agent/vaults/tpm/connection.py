"""A connection to the TPM: opened for one ceremony, closed after it, leaving nothing loaded.

    access = TpmAccess(TpmSettings(tcti="device:/dev/tpmrm0"))
    with access.open() as tpm:
        key = tpm.hold(tpm.do(tpm.esapi.load, parent, private, public))

`do` sends one command: it waits for a TPM that is busy, and raises every refusal as `DeviceError`. `hold` marks what
has to be flushed; `close` flushes it, also when a ceremony ends by an error. A process that is killed cannot do that.
Behind a resource manager its objects go with the connection. Without one they stay: then `open` first waits until it
is alone (`claim`), and flushes whatever it finds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.vaults.tpm.claim import TpmClaim, claim_path
from keyvouch_agent.vaults.tpm.response_codes import BUSY, Code, Words, code_of, device_error

__all__ = ["DEFAULT_DEVICE", "JOIN_GROUP", "WITHHELD", "Tpm", "TpmAccess", "TpmSettings"]

WITHHELD: Final = "none"
"""What stands for the certificate of the endorsement key where the agent is to show none."""

DEFAULT_DEVICE: Final = "/dev/tpmrm0"
"""The kernel's resource manager (Linux 4.12 and later)."""

JOIN_GROUP: Final = "Run `sudo usermod -aG tss $USER`, then log out and in again."
"""What a user types who may not use the TPM: distributions give it to the group tss."""

_PAUSES: Final = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds between tries of a command while the TPM is busy."""
_MANAGED: Final = ("device:/dev/tpmrm", "tabrmd")
"""Beginnings of configurations that go through a resource manager."""
_TRANSIENT, _LOADED_SESSION = 0x8000_0000, 0x0200_0000
_MOST_HANDLES: Final = 64

_P = ParamSpec("_P")
_T = TypeVar("_T")

OpenTcti = Callable[[], Any]
"""Makes a `tpm2_pytss.TCTI`."""


@dataclass(frozen=True, slots=True)
class TpmSettings:
    """How to reach a TPM, and the passwords of its hierarchies where they have any.

    `tcti` is a configuration of the TSS (`device:/dev/tpmrm0`, `tabrmd`, `swtpm:host=127.0.0.1,port=2321`); empty for
    $TSS2_TCTI, and without that for /dev/tpmrm0. `endorsement_certificate` is a file with the certificate of the
    endorsement key, where the TPM does not hold it itself, or `WITHHELD`.
    """

    tcti: str = ""
    owner_auth: bytes = field(default=b"", repr=False)
    endorsement_auth: bytes = field(default=b"", repr=False)
    endorsement_certificate: str = ""

    def configuration(self, environment: Mapping[str, str]) -> str:
        """The TSS configuration in force."""
        return self.tcti or environment.get("TSS2_TCTI") or f"device:{DEFAULT_DEVICE}"


class Tpm:
    """An open connection. `esapi` is the TSS's Enhanced System API; every command goes through `do`."""

    def __init__(
        self,
        esapi: Any,
        tcti: Any,
        settings: TpmSettings,
        pause: Callable[[float], None],
        claim: TpmClaim | None = None,
    ) -> None:
        self.esapi = esapi
        self.settings = settings
        self._claim = claim
        self._tcti = tcti  # the TSS keeps no reference to it
        self._pause = pause
        self._held: list[Any] = []
        self._open = True

    def do(self, command: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
        """Send one command. Raises `DeviceError`: see `response_codes`."""
        return self.expecting({}, command, *arguments, **named)

    def expecting(
        self, meanings: Mapping[Code, Words], command: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs
    ) -> _T:
        """Send one command in which some response codes have a meaning of their own."""
        from tpm2_pytss import TSS2_Exception  # noqa: PLC0415 - libtss2 is loaded only where there is a TPM

        for pause in (*_PAUSES, None):
            try:
                return command(*arguments, **named)
            except TSS2_Exception as error:
                rc = int(error.rc)
                if pause is None or code_of(rc) not in BUSY:
                    raise device_error(rc, meanings) from error
            self._pause(pause)
        raise AssertionError("the last try returns or raises")

    def hold(self, handle: _T) -> _T:
        """Remember an object or session that must not stay in the TPM."""
        self._held.append(handle)
        return handle

    def release(self, *handles: Any) -> None:
        """Flush now what was held. Objects that are gone already, as used-up sessions are, are no error."""
        from tpm2_pytss import TSS2_Exception  # noqa: PLC0415

        for handle in tuple(handles):
            self._held.remove(handle)
            with suppress(TSS2_Exception):
                self.esapi.flush_context(handle)

    def spent(self, session: Any) -> None:
        """A session has ended with the command it authorized: there is nothing to flush."""
        if session in self._held:
            self._held.remove(session)

    @contextmanager
    def undoing(self) -> Iterator[None]:
        """What is held inside the block is flushed if the block fails: a TPM has room for few sessions."""
        before = list(self._held)
        try:
            yield
        except BaseException:
            self._release_since(before)
            raise

    @contextmanager
    def passing(self) -> Iterator[None]:
        """What is held inside the block is flushed at its end."""
        before = list(self._held)
        try:
            yield
        finally:
            self._release_since(before)

    def _release_since(self, before: list[Any]) -> None:
        self.release(*(handle for handle in reversed(self._held) if handle not in before))

    def flush_leftovers(self) -> None:
        """Flush objects and sessions that an earlier process left behind."""
        from tpm2_pytss import TPM2_CAP  # noqa: PLC0415

        for first in (_TRANSIENT, _LOADED_SESSION):
            found = self.do(self.esapi.get_capability, TPM2_CAP.HANDLES, first, _MOST_HANDLES)[1]
            for handle in [int(handle) for handle in found.data.handles]:
                self.do(self.esapi.flush_context, self.do(self.esapi.tr_from_tpmpublic, handle))

    def close(self) -> None:
        """Flush what is held and end the connection. Does nothing the second time, and never raises."""
        if not self._open:
            return
        self._open = False
        try:
            self.release(*reversed(self._held))
            self.esapi.close()
            with suppress(Exception):  # a connection that broke has nothing left to close
                self._tcti.close()
        finally:
            if self._claim is not None:
                self._claim.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TpmAccess:
    """Opens connections to one TPM. `open_tcti` takes the place of the configuration, for benches.

    Connections of `open_tcti` are not kept from each other: a bench uses one at a time.
    """

    def __init__(
        self,
        settings: TpmSettings | None = None,
        *,
        open_tcti: OpenTcti | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings = settings or TpmSettings()
        self._open_tcti = open_tcti
        self._pause = pause

    @property
    def configuration(self) -> str:
        """The TSS configuration in force."""
        return self.settings.configuration(os.environ)

    @property
    def managed(self) -> bool:
        """Whether a resource manager stands between this agent and the TPM."""
        return self._open_tcti is None and self.configuration.startswith(_MANAGED)

    @property
    def is_there(self) -> bool:
        """Whether there is reason to think that there is a TPM: one was named, or the kernel has one."""
        named = self._open_tcti is not None or self.settings.tcti or "TSS2_TCTI" in os.environ
        return bool(named) or Path(DEFAULT_DEVICE).exists()

    def require_library(self) -> None:
        """Raise `DeviceError(UNSUPPORTED)` where libtss2 or its Python part is missing."""
        try:
            import tpm2_pytss  # noqa: F401, PLC0415
        except (ImportError, OSError, RuntimeError) as error:
            raise _no_library() from error

    @property
    def origin(self) -> str:
        """Who says so: `agent.toml`, `TSS2_TCTI`, or `default`."""
        if self.settings.tcti:
            return "agent.toml"
        return "TSS2_TCTI" if os.environ.get("TSS2_TCTI") else "default"

    def open(self, *, as_it_is: bool = False) -> Tpm:
        """Connect. `as_it_is` leaves there what others left behind, to look at it.

        Raises `DeviceError`: UNSUPPORTED without libtss2, TPM_UNAVAILABLE, TPM_PERMISSION; without a resource manager
        TPM_BUSY when others had the TPM for 20 seconds.
        """
        tpm = self._connect()
        try:
            if not self.managed and not as_it_is:
                tpm.flush_leftovers()
        except BaseException:
            tpm.close()
            raise
        return tpm

    def _connect(self) -> Tpm:
        self.require_library()
        from tpm2_pytss import ESAPI, ESYS_TR, TCTILdr, TSS2_Exception  # noqa: PLC0415

        os.environ.setdefault("TSS2_LOG", "all+NONE")  # else libtss2 writes every expected refusal to stderr
        claim = self._take_claim()
        try:
            tcti = self._open_tcti() if self._open_tcti else TCTILdr.parse(self.configuration)
            esapi = ESAPI(tcti)
        except BaseException as error:
            if claim is not None:
                claim.release()
            if isinstance(error, TSS2_Exception | RuntimeError | ValueError):
                raise _cannot_connect(self.configuration) from error
            raise
        esapi.tr_set_auth(ESYS_TR.OWNER, self.settings.owner_auth)
        esapi.tr_set_auth(ESYS_TR.ENDORSEMENT, self.settings.endorsement_auth)
        return Tpm(esapi, tcti, self.settings, self._pause, claim)

    def _take_claim(self) -> TpmClaim | None:
        if self.managed or self._open_tcti is not None:
            return None
        return TpmClaim.take(claim_path(self.configuration, os.environ))


def _no_library() -> DeviceError:
    return DeviceError(
        Reason.UNSUPPORTED,
        "The TPM cannot be used: tpm2-pytss or the libraries of the TPM software stack are missing.",
        fix="Install libtss2-dev, pkg-config and gcc, then keyvouch[tpm].",
    )


def _cannot_connect(configuration: str) -> DeviceError:
    path = configuration.removeprefix("device:")
    if path != configuration and Path(path).exists() and not os.access(path, os.R_OK | os.W_OK):
        return DeviceError(
            Reason.TPM_PERMISSION,
            f"This user may not use the TPM at {path}.",
            fix=JOIN_GROUP,
            metadata={"tcti": configuration},
        )
    return DeviceError(
        Reason.TPM_UNAVAILABLE,
        f"No TPM answers at {configuration}.",
        fix="Run `keyvouch-agent doctor`: it says how the agent reaches a TPM and what is in the way.",
        metadata={"tcti": configuration},
    )
