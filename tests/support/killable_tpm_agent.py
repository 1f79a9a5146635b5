"""A device agent with a TPM for crash tests: a process that is ready, and forks for each act it is told to do.

    python -m support.killable_tpm_agent TCTI

It reads lines of JSON and answers each with one: `Act` and `Ended`. The child does the act with what
`keyvouch_agent.bootstrap` puts together, and may kill itself with SIGKILL at one of its TPM commands. Forking takes
milliseconds where starting takes a second; nothing with threads or connections is made before the fork: no gRPC
channel, no connection to the TPM. A child that takes too long is killed.

`TpmAgentProcess` is the test's end of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from keyvouch.cose import CoseKey
from keyvouch.errors import KeyvouchError
from keyvouch.ids import SignInId
from keyvouch.statement import SignInOffer
from keyvouch_agent import bootstrap
from keyvouch_agent.agent_ports import Prompt, Secret
from keyvouch_agent.authenticator.vault import PIN_HASH_LENGTH
from keyvouch_agent.bootstrap import Tuning
from keyvouch_agent.ceremonies.registration import RegistrationWish
from keyvouch_agent.ceremonies.sign_in import SignInCeremony
from keyvouch_agent.home import Home
from keyvouch_agent.interactions import GivenPin
from keyvouch_agent.key_holders import TPM_FOLDER
from keyvouch_agent.ledger import Enrolment, Ledger
from keyvouch_agent.ports import Pin
from keyvouch_agent.provider_shelf import ProviderKey
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.tpm import channel_key, health, registration  # noqa: F401 - loaded before the fork
from keyvouch_agent.vaults.tpm.account import TpmAccount
from keyvouch_agent.vaults.tpm.vault import TpmVault
from keyvouch_bench.tpm_faults import Fault, FaultingTcti, FaultPlan, call
from keyvouch_bench.tpm_tcti import Recording, RecordingTcti, open_tcti
from support.kill_points import Trigger, start_program

LONGEST: Final = 60
"""Seconds for one act."""


@dataclass(frozen=True)
class Act:
    """What to do. Dies at the command number `kill_at` (0: never), `executed` or not."""

    what: str
    """`enrol`; `sign`: approve a sign-in; `sign_on`: give the PIN, and have the vault sign `times` times."""
    home: str
    kill_at: int = 0
    executed: bool = False
    times: int = 1
    wish: dict[str, Any] | None = None
    access_pass: str = ""
    pin: str = ""
    public_key: str = ""
    """COSE_Key in hexadecimal, to verify what is signed."""


@dataclass(frozen=True)
class Ended:
    """How it ended: as `os.waitstatus_to_exitcode` says, with the reason of the error there was."""

    status: int
    commands: tuple[int, ...] = ()
    reason: str = ""
    told: str = ""

    @property
    def was_killed(self) -> bool:
        """By itself, as it was told to."""
        return self.status == -signal.SIGKILL


class _Mortal:
    """The child's connections to the TPM."""

    def __init__(self, tcti: str, act: Act) -> None:
        self.recording = Recording()
        self._tcti = tcti
        faults = [Fault(call(_die, executed=act.executed), at=act.kill_at)] if act.kill_at else []
        self._plan = FaultPlan(*faults)

    def open(self) -> FaultingTcti:
        """A connection."""
        return FaultingTcti(RecordingTcti(open_tcti(self._tcti), self.recording), self._plan)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _enrol(act: Act, tuning: Tuning) -> None:
    async def access_pass() -> Secret:
        return Secret(act.access_pass)

    asyncio.run(
        bootstrap.enrol(
            home=Home.open(Path(act.home)),
            wish=RegistrationWish(**(act.wish or {})),
            provider="tpm",
            interaction=GivenPin(Pin(act.pin), may_set=True),
            ask_access_pass=access_pass,
            progress=lambda _: None,
            tuning=tuning,
        )
    )


def _sign(act: Act, tuning: Tuning) -> None:
    """The person approves sign-ins; what is signed is verified with the public key that the server has."""
    home = Home.open(Path(act.home))
    (enrolment,) = Ledger(home).enrolments()
    shelf = bootstrap.open_shelf(home, tuning)
    ceremony = SignInCeremony(
        enrolment=enrolment,
        provider=lambda: shelf.get(ProviderKey(enrolment.provider, enrolment.account)),
        channel_keys=bootstrap.key_holders(home, tuning).channel_keys(),
        server_now=lambda: 0.0,
    )
    review = ceremony.review(Prompt("prm_x", _offer(enrolment).encode(), 1, 2))
    made = ceremony.approve(review, "42", GivenPin(Pin(act.pin))).assertion
    assert made is not None
    message = made.authenticator_data + hashlib.sha256(made.client_data).digest()
    CoseKey(bytes.fromhex(act.public_key)).verify_signature(signature=made.signature, message=message)
    shelf.close()


def _sign_on(act: Act, tuning: Tuning) -> None:
    """One PIN for many signatures, each of them verified: what a sign-in needs of a TPM, without the rest."""
    home = Home.open(Path(act.home))
    (enrolment,) = Ledger(home).enrolments()
    access = bootstrap.key_holders(home, tuning).tpm_access()
    account = TpmAccount.open(home.folder(TPM_FOLDER) / enrolment.account, access)
    vault = TpmVault(account, SystemEntropy())
    vault.verify_pin(hashlib.sha256(act.pin.encode()).digest()[:PIN_HASH_LENGTH])
    key = CoseKey(bytes.fromhex(act.public_key))
    for number in range(act.times):
        message = f"message {number}".encode()
        signature = vault.sign(enrolment.credential_id, message)
        key.verify_signature(signature=signature, message=message)
    vault.close()


def _offer(enrolment: Enrolment) -> SignInOffer:
    return SignInOffer(
        server_id=enrolment.server_id,
        tenant_id=enrolment.tenant_id,
        user_id=enrolment.user_id,
        device_id=enrolment.device_id,
        credential_id=enrolment.credential_id,
        sign_in_id=SignInId("sin_x"),
        nonce=os.urandom(32),
        app_id="payroll",
        app_name="Payroll",
        audience="https://api.example.org",
        proof_key=os.urandom(32),
        place="",
        address="",
        binding_message="",
        issued_at=0,
        expires_at=1,
        policy_version=1,
        required_assurance="any/none/unattested",
    )


# The process that forks


def _act(tcti: str, act: Act, telling: int) -> None:
    """In the child: do it and tell. Never returns."""
    signal.alarm(LONGEST)
    os.environ["TSS2_LOG"] = "all+NONE"
    mortal = _Mortal(tcti, act)
    tuning = Tuning(open_tcti=mortal.open)
    reason, told = "", ""
    try:
        {"enrol": _enrol, "sign": _sign, "sign_on": _sign_on}[act.what](act, tuning)
    except KeyvouchError as error:
        reason, told = error.reason.value, str(error)
    except BaseException:  # noqa: BLE001 - whatever it is, the test shall see it
        reason, told = "unforeseen", traceback.format_exc()
    ended = Ended(1 if reason else 0, mortal.recording.codes, reason, told)
    with os.fdopen(telling, "w") as pipe:
        pipe.write(json.dumps(asdict(ended)))
    os._exit(0)


def _fork(tcti: str, act: Act) -> Ended:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _act(tcti, act, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Ended(**json.loads(told)) if told and not status else Ended(status)


def main() -> int:
    """Fork for every line, until there are no more."""
    for line in sys.stdin:
        ended = _fork(sys.argv[1], Act(**json.loads(line)))
        sys.stdout.write(json.dumps(asdict(ended)) + "\n")
        sys.stdout.flush()
    return 0


# The test's end


@dataclass
class TpmAgentProcess:
    """A process that is ready. Ask it from any thread, one act after the other."""

    process: subprocess.Popen[bytes]

    @classmethod
    @contextmanager
    def open(cls, tcti: str, folder: Path) -> Iterator[TpmAgentProcess]:
        """Start it; what its children write to their standard error goes into a file of the folder."""
        process = start_program(__spec__.name, tcti, environment=Trigger(folder).environment, log=folder / "agent.log")
        try:
            yield cls(process)
        finally:
            process.kill()
            process.communicate(timeout=LONGEST)

    def __call__(self, act: Act) -> Ended:
        """Have it done."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asdict(act)).encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError("the agent's process has ended")
        return Ended(**json.loads(line))


if __name__ == "__main__":
    sys.exit(main())
