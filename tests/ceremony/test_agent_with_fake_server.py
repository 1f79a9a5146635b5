"""The device agent against a server in the same process: real TLS, real keys, real verification on both sides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from keyvouch.errors import (
    ConflictError,
    DeviceError,
    EvidenceError,
    KeyvouchError,
    MalformedError,
    NotFoundError,
    Reason,
    RefusedError,
    UnauthenticatedError,
    UnavailableError,
)
from keyvouch.ids import ServerId
from keyvouch.v1 import common_pb2
from keyvouch_agent import bootstrap
from keyvouch_agent.ports import Pin
from support.agent_bench import PIN, AgentBench, given_pin, pending_ids, state_of, until
from support.provider_ui import ScriptedInteraction

APPROVED, DENIED, REPORTED, FAILED, SUPERSEDED = (
    common_pb2.SIGN_IN_STATE_APPROVED,
    common_pb2.SIGN_IN_STATE_DENIED,
    common_pb2.SIGN_IN_STATE_REPORTED,
    common_pb2.SIGN_IN_STATE_FAILED,
    common_pb2.SIGN_IN_STATE_SUPERSEDED,
)


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[AgentBench]:
    made = await AgentBench.start(tmp_path)
    yield made
    await made.server.stop()


# Enrolment


async def test_enrolment_makes_a_record_that_opens_the_device_channel(bench: AgentBench) -> None:
    enrolment = await bench.enrol()
    assert bench.ledger.enrolments() == (enrolment,)
    assert bench.ledger.staged() == ()
    assert enrolment.server_id == bench.rows.authority.server_id
    assert enrolment.provider == "software"
    assert await bootstrap.check_server(bench.home, enrolment) == "Ada's laptop"


async def test_a_refused_access_pass_leaves_nothing_behind(bench: AgentBench) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        await bench.enrol(access_pass="wrong")
    assert caught.value.reason is Reason.ACCESS_PASS_REFUSED
    assert caught.value.fix
    assert (bench.rows.begun, bench.ledger.enrolments(), bench.ledger.staged()) == (0, (), ())


async def test_a_device_without_a_pin_cannot_enrol_ps8(bench: AgentBench) -> None:
    with pytest.raises(DeviceError) as caught:
        await bench.enrol(interaction=ScriptedInteraction(pin=None, new_pin=None))
    assert caught.value.reason is Reason.PIN_NOT_SET
    assert bench.ledger.enrolments() == ()


async def test_what_the_policy_asks_for_in_vain_is_told_before_the_pin(bench: AgentBench) -> None:
    bench.rows.required = common_pb2.AssuranceRequirement(protection=common_pb2.REQUIRED_PROTECTION_HARDWARE)
    interaction = ScriptedInteraction(new_pin=PIN)
    with pytest.raises(RefusedError) as caught:
        await bench.enrol(interaction=interaction)
    assert caught.value.reason is Reason.ASSURANCE_TOO_LOW
    assert interaction.asked == []


async def test_a_lost_reply_is_finished_with_the_same_bytes_and_no_questions(bench: AgentBench) -> None:
    bench.server.lose_completions = 1
    with pytest.raises(UnavailableError):
        await bench.enrol()
    assert len(bench.ledger.staged()) == 1
    asked = bench.asked
    await bench.enrol(interaction=ScriptedInteraction(pin=None))
    assert (bench.asked, bench.rows.begun, bench.rows.completed) == (asked, 1, 1)
    assert bench.ledger.staged() == ()


async def test_a_final_refusal_is_not_repeated_for_ever(bench: AgentBench) -> None:
    bench.rows.refuse_completion = RefusedError(Reason.REGISTRATION_EXPIRED, "Too late.", fix="Begin again.")
    with pytest.raises(RefusedError):
        await bench.enrol()
    assert bench.ledger.staged() == ()
    bench.rows.refuse_completion = None
    await bench.enrol()


async def test_a_leftover_of_a_recorded_registration_is_swept_away(bench: AgentBench) -> None:
    bench.server.lose_completions = 1
    with pytest.raises(UnavailableError):
        await bench.enrol()
    (staged,) = bench.ledger.staged()
    await bench.enrol()
    bench.ledger.stage(staged)  # as if the agent had been killed between record and unstage
    with pytest.raises(ConflictError) as caught:
        await bench.enrol()
    assert caught.value.reason is Reason.ALREADY_ENROLLED
    assert bench.ledger.staged() == ()


async def test_another_tenant_is_refused_with_the_way_out_ps17(bench: AgentBench) -> None:
    await bench.enrol()
    with pytest.raises(ConflictError) as caught:
        await bench.enrol(tenant="elsewhere")
    assert caught.value.reason is Reason.DEVICE_REGISTERED_ELSEWHERE
    assert "unregister" in caught.value.fix


@pytest.mark.parametrize("pinned", [True, False])
async def test_a_pinned_server_id_lets_only_that_server_in(bench: AgentBench, pinned: bool) -> None:
    if pinned:
        await bench.enrol(server_id=bench.rows.authority.server_id)
        return
    with pytest.raises(EvidenceError) as caught:
        await bench.enrol(server_id=ServerId(bytes(32)))
    assert caught.value.reason is Reason.WRONG_SERVER


async def test_a_server_with_another_authority_is_not_spoken_to(bench: AgentBench, tmp_path: Path) -> None:
    other = await AgentBench.start(tmp_path / "other")
    try:
        with pytest.raises(UnavailableError) as caught:
            await bench.enrol(public_ca=other.rows.authority.pem.decode())
    finally:
        await other.server.stop()
    assert caught.value.reason is Reason.SERVER_UNREACHABLE
    assert bench.asked == 1
    assert bench.rows.begun == 0


# Deciding


async def test_approve_with_number_and_pin(bench: AgentBench) -> None:
    enrolment = await bench.enrol()
    async with bench.running() as agent:
        row = await bench.prompted(agent, enrolment.device_id, number="07")
        shown = await agent.show("")
        assert (shown["app_name"], shown["place"], shown["username"]) == ("Payroll", "Utrecht", "ada")
        outcome = await agent.approve("", "07", Pin(PIN))
    assert (outcome["accepted"], outcome["state"]) == (True, "approved")
    assert row.state == APPROVED
    assert bench.ledger.outbox(enrolment.device_id) == ()


async def test_deny_and_report_are_signed_without_a_pin(bench: AgentBench) -> None:
    enrolment = await bench.enrol()
    async with bench.running() as agent:
        first = await bench.prompted(agent, enrolment.device_id)
        assert (await agent.deny(first.prompt_id))["accepted"]
        second = await bench.prompted(agent, enrolment.device_id)
        assert (await agent.report(""))["accepted"]
    assert (first.state, second.state) == (DENIED, REPORTED)


async def test_a_wrong_number_ends_the_request_on_the_server(bench: AgentBench) -> None:
    enrolment = await bench.enrol()
    async with bench.running() as agent:
        row = await bench.prompted(agent, enrolment.device_id, number="07")
        outcome = await agent.approve("", "08", Pin(PIN))
    assert (outcome["accepted"], outcome["reason"]) == (False, "number_mismatch")
    assert row.state == FAILED


@pytest.mark.parametrize("number", ["7", "007", "", "0a", "０７"])  # noqa: RUF001
async def test_a_number_with_the_wrong_digits_is_not_even_signed(bench: AgentBench, number: str) -> None:
    enrolment = await bench.enrol()
    async with bench.running() as agent:
        row = await bench.prompted(agent, enrolment.device_id, number="07")
        with pytest.raises(MalformedError) as caught:
            await agent.approve("", number, Pin(PIN))
        assert caught.value.reason is Reason.FIELD_INVALID
        assert (row.answers, pending_ids(agent)) == ([], [row.prompt_id])
        assert (await agent.approve("", "07", Pin(PIN)))["accepted"]


async def test_a_wrong_pin_costs_a_try_and_the_prompt_stays(bench: AgentBench) -> None:
    enrolment = await bench.enrol()
    async with bench.running() as agent:
        row = await bench.prompted(agent, enrolment.device_id)
        with pytest.raises(DeviceError) as caught:
            await agent.approve("", "07", Pin("000000"))
        assert (caught.value.reason, caught.value.retries_left) == (Reason.PIN_WRONG, 7)
        pin = (await agent.show(""))["pin"]
        assert isinstance(pin, dict)
        assert pin["retries_left"] == 7
        assert (await agent.approve("", "07", Pin(PIN)))["accepted"]
    assert row.state == APPROVED


async def test_without_a_prompt_the_error_says_so(bench: AgentBench) -> None:
    await bench.enrol()
    async with bench.running() as agent:
        with pytest.raises(NotFoundError) as caught:
            await agent.deny("")
    assert caught.value.reason is Reason.PROMPT_UNKNOWN


async def test_several_prompts_have_to_be_named(bench: AgentBench) -> None:
    enrolment = await bench.enrol()
    rows = [bench.rows.offer(enrolment.device_id) for _ in range(2)]
    async with bench.running() as agent:
        await until(lambda: len(pending_ids(agent)) == 2)
        with pytest.raises(ConflictError):
            await agent.deny("")
        await agent.deny(rows[0].prompt_id)
        assert pending_ids(agent) == [rows[1].prompt_id]


# The stream


async def test_prompts_survive_a_restart_of_the_server_ps21(bench: AgentBench) -> None:
    enrolment = await bench.enrol()
    async with bench.running() as agent:
        row = await bench.prompted(agent, enrolment.device_id)
        await bench.server.stop()
        late = bench.rows.offer(enrolment.device_id)
        await until(lambda: state_of(agent) == "waiting")
        await bench.server.start()
        await until(lambda: set(pending_ids(agent)) == {row.prompt_id, late.prompt_id})
        assert (await agent.approve(row.prompt_id, "07", Pin(PIN)))["accepted"]
        assert (await agent.deny(late.prompt_id))["accepted"]


async def test_a_copy_of_a_prompt_changes_nothing(bench: AgentBench) -> None:
    enrolment = await bench.enrol()
    async with bench.running() as agent:
        row = await bench.prompted(agent, enrolment.device_id)
        with agent.watch() as events:
            assert events.get_nowait()["event"] == "prompt"
            bench.server.ask(row)
            await agent.deny("")
            assert (await events.get())["event"] == "outcome"


async def test_another_request_under_a_known_id_is_refused(bench: AgentBench) -> None:
    enrolment = await bench.enrol()
    async with bench.running() as agent:
        row = await bench.prompted(agent, enrolment.device_id)
        swapped = bench.rows.offer(enrolment.device_id, app_name="Something else")
        genuine, row.offer = row.offer, swapped.offer
        bench.server.ask(row)
        await until(lambda: "prompt-refused" in bench.logged.getvalue())
        row.offer = genuine
        assert (await agent.show(row.prompt_id))["app_name"] == "Payroll"
        assert (await agent.approve(row.prompt_id, "07", Pin(PIN)))["accepted"]


async def test_a_withdrawn_prompt_disappears(bench: AgentBench) -> None:
    enrolment = await bench.enrol()
    async with bench.running() as agent:
        row = await bench.prompted(agent, enrolment.device_id)
        bench.server.withdraw(row, SUPERSEDED)
        await until(lambda: pending_ids(agent) == [])
        with pytest.raises(NotFoundError):
            await agent.approve(row.prompt_id, "07", Pin(PIN))
    assert row.answers == []


async def test_a_prompt_withdrawn_while_the_agent_was_away_disappears(bench: AgentBench) -> None:
    enrolment = await bench.enrol()
    async with bench.running() as agent:
        row = await bench.prompted(agent, enrolment.device_id)
        await bench.server.stop()
        row.state = SUPERSEDED
        await bench.server.start()
        await until(lambda: pending_ids(agent) == [])


async def test_an_expired_prompt_disappears(bench: AgentBench) -> None:
    enrolment = await bench.enrol()
    async with bench.running() as agent:
        await bench.prompted(agent, enrolment.device_id, seconds=2)
        await until(lambda: pending_ids(agent) == [])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"server_id": bytes(32)}, "wrong_server"),
        ({"tenant_id": "ten_other"}, "wrong_tenant"),
        ({"user_id": "usr_other"}, "wrong_user"),
        ({"credential_id": b"another"}, "credential_id"),
    ],
)
async def test_offers_for_somebody_else_are_never_shown(
    bench: AgentBench, changes: dict[str, object], reason: str
) -> None:
    enrolment = await bench.enrol()
    bench.rows.offer(enrolment.device_id, **changes)  # type: ignore[arg-type]
    async with bench.running() as agent:
        await until(lambda: f'reason="{reason}"' in bench.logged.getvalue())
        assert pending_ids(agent) == []
        await bench.prompted(agent, enrolment.device_id)


@pytest.mark.parametrize("fault", ["lose_answers", "lose_outcomes"])
@pytest.mark.parametrize("decision", ["approve", "deny"])
async def test_an_answer_sent_into_a_breaking_connection_is_sent_again(
    bench: AgentBench, fault: str, decision: str
) -> None:
    enrolment = await bench.enrol()
    async with bench.running() as agent:
        row = await bench.prompted(agent, enrolment.device_id)
        setattr(bench.server, fault, 1)
        deciding = agent.approve("", "07", Pin(PIN)) if decision == "approve" else agent.deny("")
        outcome = await deciding
    assert outcome["accepted"] is True
    assert row.state == (APPROVED if decision == "approve" else DENIED)
    assert len(set(row.answers)) == 1
    assert bench.ledger.outbox(enrolment.device_id) == ()


async def test_an_answer_outlives_the_agent(bench: AgentBench) -> None:
    """Killed after signing: the next agent sends the same bytes, and does not ask the person again."""
    enrolment = await bench.enrol()
    async with bench.running() as agent:
        row = await bench.prompted(agent, enrolment.device_id)
        await bench.server.stop()
        await until(lambda: state_of(agent) == "waiting")
        deciding = asyncio.create_task(agent.approve("", "07", Pin(PIN)))
        await until(lambda: len(bench.ledger.outbox(enrolment.device_id)) == 1)
        deciding.cancel()
    assert row.answers == []
    await bench.server.start()
    async with bench.running() as agent:
        await until(lambda: row.state == APPROVED)
        await until(lambda: bench.ledger.outbox(enrolment.device_id) == ())
        assert pending_ids(agent) == []


async def test_removal_ends_the_stream_at_once_with_a_named_state_ps18(bench: AgentBench) -> None:
    enrolment = await bench.enrol()
    async with bench.running() as agent:
        await bench.prompted(agent, enrolment.device_id)
        bench.server.remove(enrolment.device_id)
        await until(lambda: state_of(agent) == "removed")
        assert pending_ids(agent) == []
        hellos = len(bench.server.hellos)
        await asyncio.sleep(0.5)
        assert len(bench.server.hellos) == hellos


async def test_unregister_removes_the_device_on_both_sides(bench: AgentBench) -> None:
    enrolment = await bench.enrol()
    ended = await bootstrap.unregister(
        home=bench.home, enrolment=enrolment, progress=bench.progress.append, only_here=False
    )
    assert ended == 2
    assert bench.ledger.enrolments() == ()
    with pytest.raises(KeyvouchError):
        bench.rows.device(enrolment.device_id)
    await bench.enrol()


async def test_unregister_of_a_device_the_server_has_removed_cleans_up_here(bench: AgentBench) -> None:
    enrolment = await bench.enrol()
    bench.server.remove(enrolment.device_id)
    await bootstrap.unregister(home=bench.home, enrolment=enrolment, progress=bench.progress.append, only_here=False)
    assert bench.ledger.enrolments() == ()


async def test_unregister_without_the_server_changes_nothing_unless_asked(bench: AgentBench) -> None:
    enrolment = await bench.enrol()
    await bench.server.stop()
    with pytest.raises(UnavailableError):
        await bootstrap.unregister(
            home=bench.home, enrolment=enrolment, progress=bench.progress.append, only_here=False
        )
    assert bench.ledger.enrolments() == (enrolment,)
    await bootstrap.unregister(home=bench.home, enrolment=enrolment, progress=bench.progress.append, only_here=True)
    assert bench.ledger.enrolments() == ()


async def test_the_certificate_is_renewed_after_two_thirds_of_its_life(bench: AgentBench) -> None:
    bench.rows.certificate_seconds = 3.0
    enrolment = await bench.enrol()
    bench.rows.certificate_seconds = 3600.0
    async with bench.running() as agent:
        await until(lambda: bench.rows.renewed == 1)
        await until(lambda: bench.ledger.enrolments()[0].certificate_chain != enrolment.certificate_chain)
        await asyncio.sleep(1.5)  # the first certificate has ended now
        await bench.server.stop()
        await bench.server.start()
        await bench.prompted(agent, enrolment.device_id)
        assert (await agent.approve("", "07", Pin(PIN)))["accepted"]
    assert bench.rows.renewed == 1


async def test_an_enrolment_made_meanwhile_is_taken_up_and_the_vault_is_lent(bench: AgentBench) -> None:
    async with bench.running() as agent:
        async with agent.lend():
            enrolment = await bench.enrol()
        await agent.reload()
        await bench.prompted(agent, enrolment.device_id)
        async with agent.lend():
            with pytest.raises(DeviceError) as caught:
                await agent.approve("", "07", Pin(PIN))
            assert caught.value.reason is Reason.VAULT_BUSY
        assert (await agent.approve("", "07", Pin(PIN)))["accepted"]


async def test_one_agent_per_home(bench: AgentBench) -> None:
    async with bench.running():
        with pytest.raises(ConflictError) as caught:
            async with bench.running():
                pass
    assert caught.value.reason is Reason.AGENT_RUNNING
    async with bench.running():
        pass


async def test_secrets_never_reach_the_log_or_the_ledger_a4(bench: AgentBench) -> None:
    enrolment = await bench.enrol(interaction=given_pin("canary-5821"))
    async with bench.running() as agent:
        await bench.prompted(agent, enrolment.device_id)
        with pytest.raises(DeviceError):
            await agent.approve("", "07", Pin("canary-wrong"))
        assert (await agent.approve("", "07", Pin("canary-5821")))["accepted"]
    kept = b"".join(path.read_bytes() for path in bench.home.path.rglob("*") if path.is_file())
    for text in (bench.logged.getvalue(), kept.decode("utf-8", "replace"), " ".join(bench.progress)):
        assert "canary" not in text
        assert "correct-horse-pass" not in text


async def test_the_agent_started_before_its_server_connects_by_itself(bench: AgentBench) -> None:
    enrolment = await bench.enrol()
    await bench.server.stop()
    async with bench.running() as agent:
        await until(lambda: state_of(agent) == "waiting")
        await bench.server.start()
        await until(lambda: state_of(agent) == "connected")
        await bench.prompted(agent, enrolment.device_id)
