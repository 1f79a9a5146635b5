"""Connections to a TPM that watch, spoil or change what passes; each does what it says, and nothing more."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CC, TPM2_RC, TPM2_SE, TSS2_RC
from tpm2_pytss.types import (
    TPM2B_SENSITIVE_CREATE,
    TPMS_SENSITIVE_CREATE,
    TPMT_SYM_DEF,
)

from keyvouch_bench.swtpm import Swtpm
from keyvouch_bench.tpm_contents import read_contents
from keyvouch_bench.tpm_faults import (
    Action,
    Fault,
    FaultingTcti,
    FaultPlan,
    FaultyTpm,
    call,
    delay,
    disconnect,
    lose_reply,
    refuse,
    truncate,
)
from keyvouch_bench.tpm_tcti import ExchangeTcti, Recording, RecordingTcti, open_tcti
from support.programs import run_python

IO_ERROR = int(TSS2_RC.TCTI_RC_IO_ERROR)
BAD_SEQUENCE = int(TSS2_RC.ESYS_RC_BAD_SEQUENCE)
FAILURE = int(TPM2_RC.FAILURE)
CANARY = b"canary-of-a-test"
STORAGE = "ecc256:aes128cfb"
GET_RANDOM = bytes.fromhex("80010000000c0000017b0001")


@pytest.fixture
def tpm(tpm_factory: Callable[[], Swtpm]) -> Swtpm:
    """An emulated TPM, also where the other tests have a real one: a resource manager would clear up behind us."""
    return tpm_factory()


@contextmanager
def esys_over(tcti: Any) -> Iterator[Any]:
    with tcti, ESAPI(tcti) as esys:
        yield esys


def code_of(action: Callable[[], object]) -> int:
    with pytest.raises(TSS2_Exception) as caught:
        action()
    return int(caught.value.rc)


def sensitive(auth: bytes) -> TPM2B_SENSITIVE_CREATE:
    return TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=auth))


# Recording


def test_a_recording_holds_what_was_sent_in_clear(tpm: Swtpm):
    recording = Recording()
    with esys_over(RecordingTcti(open_tcti(tpm.tcti), recording)) as esys:
        key, *_ = esys.create_primary(sensitive(CANARY), STORAGE)
        esys.flush_context(key)
    assert CANARY in recording.traffic
    assert recording.codes == (TPM2_CC.CreatePrimary, TPM2_CC.FlushContext)
    assert recording.count(TPM2_CC.CreatePrimary) == 1
    assert [one.result for one in recording.exchanges] == [0, 0]


def test_a_recording_holds_nothing_of_an_encrypted_parameter(tpm: Swtpm):
    recording, aes = Recording(), TPMT_SYM_DEF.parse("aes128cfb")
    with esys_over(RecordingTcti(open_tcti(tpm.tcti), recording)) as esys:
        parent, *_ = esys.create_primary(None, STORAGE)
        session = esys.start_auth_session(parent, ESYS_TR.NONE, TPM2_SE.HMAC, aes, TPM2_ALG.SHA256)
        esys.trsess_set_attributes(session, 0x20 | 0x01)
        esys.create(parent, sensitive(CANARY), "ecc256", session1=ESYS_TR.PASSWORD, session2=session)
        for handle in (session, parent):
            esys.flush_context(handle)
    assert [one.result for one in recording.exchanges if one.code == TPM2_CC.Create][-1] == 0
    assert CANARY not in recording.traffic


def test_refusals_of_the_tpm_pass_with_their_code(tpm: Swtpm):
    recording = Recording()
    with esys_over(RecordingTcti(open_tcti(tpm.tcti), recording)) as esys:
        assert code_of(lambda: esys.tr_from_tpmpublic(0x01800042)) == 0x18B
    assert [one.result for one in recording.exchanges] == [0x18B]


# Faults


@pytest.fixture
def watched(tpm_with_faults: FaultyTpm) -> Callable[[Fault], tuple[FaultingTcti, Recording, FaultPlan]]:
    """A connection with one fault, what really reached the TPM, and the plan."""

    def connect(fault: Fault) -> tuple[FaultingTcti, Recording, FaultPlan]:
        recording, plan = Recording(), FaultPlan(fault)
        return tpm_with_faults.connections(plan, recording)(), recording, plan

    return connect


Watched = Callable[[Fault], tuple[FaultingTcti, Recording, FaultPlan]]


def random_byte(esys: Any) -> int:
    return len(bytes(esys.get_random(1)))


@pytest.mark.parametrize(("action", "reached"), [(refuse(FAILURE), 2), (lose_reply(FAILURE), 3)])
def test_the_command_meant_fails_and_only_that(watched: Watched, action: Action, reached: int):
    tcti, recording, plan = watched(Fault(action, at=2))
    with esys_over(tcti) as esys:
        assert random_byte(esys) == 1
        assert code_of(lambda: random_byte(esys)) == FAILURE
        assert random_byte(esys) == 1
    assert recording.count(TPM2_CC.GetRandom) == reached
    assert plan.struck == 1


def test_a_lost_reply_leaves_what_was_made(tpm: Swtpm, watched: Watched):
    tcti, *_ = watched(Fault(lose_reply(FAILURE), code=TPM2_CC.CreatePrimary))
    with esys_over(tcti) as esys:
        assert code_of(lambda: esys.create_primary(None, STORAGE)) == FAILURE
        (left,) = read_contents(tpm.tcti).loaded
        handle = esys.tr_from_tpmpublic(left)
        esys.flush_context(handle)


def test_only_commands_of_the_code_are_counted(watched: Watched):
    tcti, *_ = watched(Fault(refuse(FAILURE), code=TPM2_CC.ReadClock, at=2))
    with esys_over(tcti) as esys:
        for _ in range(3):
            random_byte(esys)
        esys.read_clock()
        random_byte(esys)
        assert code_of(esys.read_clock) == FAILURE
        esys.read_clock()


def test_a_fault_may_last(watched: Watched):
    tcti, _, plan = watched(Fault(refuse(FAILURE), at=2, times=None))
    with esys_over(tcti) as esys:
        random_byte(esys)
        assert [code_of(lambda: random_byte(esys)) for _ in range(3)] == [FAILURE] * 3
    assert plan.struck == 3


def test_a_busy_tpm_is_asked_again_by_the_library(watched: Watched):
    tcti, recording, plan = watched(Fault(refuse(int(TPM2_RC.RETRY)), times=3))
    with esys_over(tcti) as esys:
        assert random_byte(esys) == 1
    assert (plan.struck, recording.count(TPM2_CC.GetRandom)) == (3, 1)


def test_a_tpm_may_take_longer(watched: Watched):
    tcti, *_ = watched(Fault(delay(0.05)))
    with esys_over(tcti) as esys:
        start = time.monotonic()
        assert random_byte(esys) == 1
        assert time.monotonic() - start >= 0.05


@pytest.mark.parametrize("length", [10, 12])
def test_a_truncated_response_arrives_as_short_as_it_says(watched: Watched, length: int):
    tcti, recording, _ = watched(Fault(truncate(length)))
    with tcti:
        tcti.transmit(GET_RANDOM)
        answer = tcti.receive()
    assert len(answer) == length == int.from_bytes(answer[2:6], "big")
    assert len(recording.exchanges[0].response) == 13


@pytest.mark.parametrize("length", [0, 9])
def test_a_response_shorter_than_a_header_is_an_error_of_the_connection(watched: Watched, length: int):
    tcti, *_ = watched(Fault(truncate(length)))
    with esys_over(tcti) as esys:
        assert code_of(lambda: random_byte(esys)) == int(TSS2_RC.TCTI_RC_MALFORMED_RESPONSE)


def test_a_truncated_response_is_noticed_where_a_session_protects_it(watched: Watched):
    tcti, *_ = watched(Fault(truncate(12), code=TPM2_CC.GetRandom))
    null = TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL)
    with esys_over(tcti) as esys:
        session = esys.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.HMAC, null, TPM2_ALG.SHA256)
        esys.trsess_set_attributes(session, 0x80 | 0x01)
        assert code_of(lambda: esys.get_random(8, session1=session)) >> 16


@pytest.mark.parametrize(("executed", "reached"), [(False, 1), (True, 2)])
def test_a_broken_connection_stays_broken_and_a_new_one_works(tpm_with_faults: FaultyTpm, executed: bool, reached: int):
    recording, plan = Recording(), FaultPlan(Fault(disconnect(executed=executed), at=2))
    connect = tpm_with_faults.connections(plan, recording)
    with esys_over(tcti := connect()) as esys:
        random_byte(esys)
        assert [code_of(lambda: random_byte(esys)) for _ in range(3)] == [IO_ERROR, BAD_SEQUENCE, BAD_SEQUENCE]
        assert code_of(lambda: tcti.transmit(GET_RANDOM)) == IO_ERROR
    assert recording.count(TPM2_CC.GetRandom) == reached
    with esys_over(connect()) as esys:
        assert random_byte(esys) == 1


def test_a_tpm_that_goes_away_gives_the_same_error(tpm_factory: Callable[..., Swtpm]):
    chip = tpm_factory()
    with esys_over(FaultingTcti(open_tcti(chip.tcti), FaultPlan())) as esys:
        random_byte(esys)
        chip.power_cut()
        assert code_of(lambda: random_byte(esys)) == IO_ERROR


@pytest.mark.parametrize(("executed", "reached"), [(False, 0), (True, 1)])
def test_a_function_is_called_before_or_after(watched: Watched, executed: bool, reached: int):
    seen: list[int] = []
    recording = Recording()
    tcti, recording, _ = watched(Fault(call(lambda: seen.append(len(recording.exchanges)), executed=executed)))
    with esys_over(tcti) as esys:
        assert random_byte(esys) == 1
    assert seen == [reached]


SELF_KILLER = """
import os, signal, sys
from tpm2_pytss import ESAPI
from keyvouch_bench.tpm_faults import Fault, FaultPlan, FaultingTcti, call
from keyvouch_bench.tpm_tcti import open_tcti
plan = FaultPlan(Fault(call(lambda: os.kill(os.getpid(), signal.SIGKILL), executed=True), at=2))
with FaultingTcti(open_tcti(sys.argv[1]), plan) as tcti, ESAPI(tcti) as esys:
    for number in (1, 2, 3):
        esys.get_random(1)
        print(number, flush=True)
"""


def test_a_program_can_end_itself_at_a_command(tpm: Swtpm):
    done = run_python(SELF_KILLER, tpm.tcti)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split() == ["1"]


def test_several_faults_are_counted_side_by_side(tpm_with_faults: FaultyTpm):
    plan = FaultPlan(Fault(refuse(FAILURE), at=2), Fault(refuse(0x921), code=TPM2_CC.GetRandom, at=3))
    with esys_over(tpm_with_faults.connections(plan)()) as esys:
        random_byte(esys)
        assert [code_of(lambda: random_byte(esys)) for _ in range(2)] == [FAILURE, 0x921]
        assert random_byte(esys) == 1


def test_a_mistake_in_python_does_not_pass_for_an_answer(tpm: Swtpm):
    class Broken(ExchangeTcti):  # type: ignore[misc]
        def exchange(self, command: bytes, send: Callable[[bytes], bytes]) -> bytes:
            raise ValueError("a mistake")

    with esys_over(Broken(open_tcti(tpm.tcti))) as esys:
        assert code_of(lambda: random_byte(esys)) == int(TSS2_RC.TCTI_RC_GENERAL_FAILURE)


def test_closing_twice_is_harmless_and_closes_what_is_below(tpm: Swtpm):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        tcti = RecordingTcti(FaultingTcti(open_tcti(tpm.tcti), FaultPlan()), Recording())
        with esys_over(tcti) as esys:
            random_byte(esys)
        tcti.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
