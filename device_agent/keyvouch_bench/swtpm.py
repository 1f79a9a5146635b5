"""An emulated TPM 2.0 (`swtpm`) in a process of its own, with endorsement certificates of its own maker.

    factory = SwtpmFactory(cache)
    with factory.make(folder) as tpm:
        with TCTILdr.parse(tpm.tcti) as tcti, ESAPI(tcti) as esys:
            ...
        tpm.power_cut()        # as when the plug is pulled
        tpm.start()            # the same chip, the same ports

Making a chip takes a second, a copy of one that is made some milliseconds. All copies of one chip have the same
endorsement keys, as if one machine had been cloned: where a test needs two machines, take two chips.

An emulated TPM protects nothing: its secrets lie in a file. It says so by its manufacturer, which TCG does not list.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, unique
from pathlib import Path
from typing import Any, Final, Self

from tpm2_pytss.constants import TPM2_SU

from keyvouch.errors import Reason, UnavailableError, UsageError
from keyvouch_bench import swtpm_profiles
from keyvouch_bench.server_process import free_ports
from keyvouch_bench.tpm_contents import connected, read_contents, read_lockout_counter

MANUFACTURER: Final = "id:00001014"
"""What its endorsement certificates name as manufacturer: IBM's number in PCI lists, not registered with TCG."""

PACKAGES: Final = "swtpm swtpm-tools"
"""The Debian packages with the programs."""

START_SECONDS: Final = 30.0

_STATE: Final = "tpm2-00.permall"


@unique
class Profile(Enum):
    """What a maker put into a chip."""

    STANDARD = "standard"
    """RSA-2048 and P-384 endorsement keys (0x81010001, 0x81010016), certificates at 0x01C00002 and 0x01C00016."""
    NO_EK_CERTIFICATE = "no-ek-certificate"
    """The same keys without any certificate."""
    NON_DER_CERTIFICATE = "non-der-certificate"
    """Both certificates with an outer length of three octets where two do, and 0xFF behind: BER, not DER."""
    RSA_EK = "rsa-ek"
    """No endorsement key with a curve, and no certificate for one."""
    P256_EK = "p256-ek"
    """As `STANDARD`, and a certificate at 0x01C0000A for the P-256 key of template L-2, which is still to be made."""
    WITH_SRK = "with-srk"
    """As `STANDARD`, with the P-256 storage root key of template H-2 made persistent at 0x81000001."""


_CHANGES: Final[Mapping[Profile, Callable[[Any, Path], None]]] = {
    Profile.NO_EK_CERTIFICATE: swtpm_profiles.remove_certificates,
    Profile.NON_DER_CERTIFICATE: swtpm_profiles.spoil_certificates,
    Profile.RSA_EK: swtpm_profiles.remove_curve,
    Profile.P256_EK: swtpm_profiles.certify_p256,
    Profile.WITH_SRK: swtpm_profiles.persist_srk,
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole non-volatile memory of a TPM at one instant."""

    state: bytes = field(repr=False)


@dataclass(slots=True)
class Swtpm:
    """One emulated TPM: its folder, its ports (`port` for commands, the next for control), its process while it runs.

    `with` starts it and ends it without a shutdown.
    """

    folder: Path
    ca_certificates: Path
    port: int
    _process: subprocess.Popen[bytes] | None = None

    @property
    def tcti(self) -> str:
        """How programs that use libtss2 reach it."""
        return f"swtpm:host=127.0.0.1,port={self.port}"

    @property
    def log(self) -> Path:
        """What the process wrote, all starts together."""
        return self.folder / "swtpm.log"

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Switch it on (Startup CLEAR) and wait until it takes commands. Raises `UnavailableError`."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the program was looked up by its name
                [_program("swtpm"), "socket", "--tpm2", "--tpmstate", f"dir={self.folder}",
                 "--server", f"type=tcp,port={self.port}", "--ctrl", f"type=tcp,port={self.port + 1}",
                 "--flags", "not-need-init,startup-clear"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        end = time.monotonic() + START_SECONDS
        while not (_listens(self.port) and _listens(self.port + 1)):
            if not self.running or time.monotonic() > end:
                self.power_cut()
                raise _failed("The emulated TPM did not start.", self.log)
            time.sleep(0.005)

    def stop(self) -> None:
        """Switch it off in order (Shutdown CLEAR); nothing happens if it is off."""
        if self.running:
            with connected(self.tcti) as esys:
                esys.shutdown(TPM2_SU.CLEAR)
        self._end(signal.SIGTERM)

    def power_cut(self) -> None:
        """End the process at once and without a shutdown, as when power fails."""
        self._end(signal.SIGKILL)

    def snapshot(self) -> Snapshot:
        """A copy of its memory. What it holds in RAM (sessions, transient objects) is not part of it."""
        return Snapshot((self.folder / _STATE).read_bytes())

    def restore(self, snapshot: Snapshot) -> None:
        """Put an older memory back, as the owner of a virtual machine could. Raises `UsageError` while it runs."""
        if self.running:
            raise UsageError("The emulated TPM is running.", fix="Stop it before its memory is exchanged.")
        (self.folder / _STATE).write_bytes(snapshot.state)

    def loaded_handles(self) -> frozenset[int]:
        """Transient objects and sessions that are loaded or saved now: what somebody has not flushed."""
        return read_contents(self.tcti).loaded

    def lockout_counter(self) -> int:
        """Failures counted by the dictionary attack protection (TPM_PT_LOCKOUT_COUNTER)."""
        return read_lockout_counter(self.tcti)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(START_SECONDS)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.power_cut()


class SwtpmFactory:
    """Makes chips, each kind once, and hands out copies. `cache` is a folder that it alone uses.

    `ca_certificates` in it holds `root.pem` and `issuer.pem` of the maker, and nothing else.
    """

    def __init__(self, cache: Path) -> None:
        # swtpm changes its working directory: relative paths would lead elsewhere.
        self._cache = cache.resolve()
        self.ca_certificates = self._cache / "ca-certificates"

    def make(self, folder: Path, profile: Profile = Profile.STANDARD, *, chip: int = 0) -> Swtpm:
        """A fresh TPM in `folder`, which is made, switched off. Each number `chip` is a chip with keys of its own.

        Raises `UnavailableError(CONFIGURATION)` where the programs are missing, and names the packages.
        """
        made = self._manufactured(profile, chip)
        folder.mkdir(parents=True, exist_ok=True)
        return self._copy(made, folder.resolve())

    def _copy(self, made: Path, folder: Path) -> Swtpm:
        shutil.copyfile(made, folder / _STATE)
        return Swtpm(folder, self.ca_certificates, _free_pair())

    def _manufactured(self, profile: Profile, chip: int) -> Path:
        """The memory of a chip as it leaves the maker."""
        made = self._cache / f"chip-{chip}" / profile.value / _STATE
        if not made.exists():
            made.parent.mkdir(parents=True, exist_ok=True)
            self._manufacture(made, profile, chip)
        return made

    def _manufacture(self, made: Path, profile: Profile, chip: int) -> None:
        if profile not in _CHANGES:
            self._set_up(made.parent)
            return
        workshop = made.parent / "workshop"
        workshop.mkdir(exist_ok=True)
        with self._copy(self._manufactured(Profile.STANDARD, chip), workshop) as tpm:
            with connected(tpm.tcti) as esys:
                _CHANGES[profile](esys, self._cache / "ca")
            tpm.stop()
        shutil.move(workshop / _STATE, made)

    def _set_up(self, state: Path) -> None:
        """Run the maker's tool. It and the CA it starts are told by files to keep everything in our folder."""
        done = subprocess.run(  # noqa: S603 - the program was looked up by its name
            [_program("swtpm_setup"), "--tpm2", "--tpm-state", state, "--create-ek-cert", "--create-platform-cert",
             "--config", self._write_settings(), "--pcr-banks", "sha256,sha384", "--overwrite",
             "--logfile", state / "swtpm_setup.log"],
            check=False, capture_output=True, timeout=START_SECONDS,
        )  # fmt: skip
        if done.returncode:
            raise _failed("The emulated TPM could not be made.", state / "swtpm_setup.log")
        self._publish()

    def _write_settings(self) -> Path:
        ca = self._cache / "ca"
        ca.mkdir(parents=True, exist_ok=True)
        (ca / "options").write_text("--platform-manufacturer Keyvouch\n--platform-version 1\n--platform-model bench\n")
        files = {"signingkey": "signkey.pem", "issuercert": "issuercert.pem", "certserial": "certserial"}
        places = "".join(f"{name} = {ca / file}\n" for name, file in files.items())
        (ca / "ca.conf").write_text(f"statedir = {ca}\n{places}")
        (ca / "setup.conf").write_text(
            f"create_certs_tool = {_program('swtpm_localca')}\n"
            f"create_certs_tool_config = {ca / 'ca.conf'}\ncreate_certs_tool_options = {ca / 'options'}\n"
        )
        return ca / "setup.conf"

    def _publish(self) -> None:
        """Copy the certificates of the CA away from its private keys."""
        self.ca_certificates.mkdir(exist_ok=True)
        for name, source in {"root": "swtpm-localca-rootca-cert.pem", "issuer": "issuercert.pem"}.items():
            shutil.copyfile(self._cache / "ca" / source, self.ca_certificates / f"{name}.pem")


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise UnavailableError(
            Reason.CONFIGURATION,
            f"The program {name} is not installed: there is no emulated TPM.",
            fix=f"Install it: apt-get install {PACKAGES}",
        )
    return path


def _free_pair() -> int:
    """A port that nobody listens on, and neither on the next."""
    while True:
        (port,) = free_ports(1)
        with socket.socket() as following:
            try:
                following.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
        return port


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _failed(what: str, log: Path) -> UnavailableError:
    return UnavailableError(Reason.DEVICE_FAILED, what, fix=f"Its last words are in {log}.")
