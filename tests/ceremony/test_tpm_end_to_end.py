"""Registration and sign-in with keys in an emulated TPM: server, agent and client are the real programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keyvouch_bench.swtpm import Swtpm
from keyvouch_bench.tpm_contents import TpmContents, read_contents
from support.agent_process import PIN, AgentProcess
from support.tpm_desk import WRONG, TpmDesk


@pytest.fixture
def desk(tpm_factory: Callable[[], Swtpm], tmp_path: Path) -> Iterator[TpmDesk]:
    with TpmDesk.open(tmp_path, tpm_factory()) as made:
        yield made
    assert not made.tpm.loaded_handles()
    assert made.tpm.lockout_counter() == 0
    made.stage.check()


def contents(desk: TpmDesk) -> TpmContents:
    return read_contents(desk.tpm.tcti)


def test_a_person_whose_key_is_in_a_tpm_signs_in_and_the_session_says_what_was_proved_H5_H8(desk: TpmDesk):
    laptop, ada = desk.device("laptop"), desk.account()
    status, enrolled = laptop.enroll(ada)
    assert status == 0, enrolled
    assert (enrolled["provider"], enrolled["channel_key"]) == ("tpm", "in the TPM")
    assert desk.devices("ada") == [enrolled["device_id"]]
    with desk.running(laptop):
        session = desk.signed_in(laptop, ada)
        assert "key       in tpm, PIN hardware_gated, proof attested" in session.told("whoami")


def test_a_wrong_pin_leaves_the_request_open_and_the_tries_are_shown_H3(desk: TpmDesk):
    laptop, ada = desk.device("laptop"), desk.account()
    assert laptop.enroll(ada)[0] == 0
    with desk.running(laptop):
        sign_in = desk.begin(ada)
        assert shown_tries(laptop.agent, laptop.prompted()) == 3
        status, error = laptop.approve(sign_in.number, WRONG)
        assert (status, error["error"]["reason"], error["error"]["retries_left"]) == (1, "pin_wrong", 2)
        assert shown_tries(laptop.agent, laptop.prompted()) == 2
        assert "2" in laptop.told("pin", "--status")
        assert laptop.approve(sign_in.number)[0] == 0
        assert sign_in.result()[0] == 0
        desk.begin(ada)
        assert shown_tries(laptop.agent, laptop.prompted()) == 3


def shown_tries(agent: AgentProcess, prompt: str) -> int:
    found: int = agent.ask("show", prompt_id=prompt)["pin"]["retries_left"]
    return found


def test_a_blocked_pin_is_replaced_with_a_new_pass_on_the_same_tpm_and_the_old_device_goes_H3_H10(desk: TpmDesk):
    laptop, ada = desk.device("laptop"), desk.account(one_time=True)
    before = contents(desk)
    old = laptop.enroll(ada)[1]["device_id"]
    with desk.running(laptop):
        session = desk.signed_in(laptop, ada)
        sign_in = desk.begin(ada)
        tries = [laptop.approve(sign_in.number, WRONG)[1]["error"] for _ in range(3)]
        assert [(error["reason"], error["retries_left"]) for error in tries] == [
            ("pin_wrong", 2),
            ("pin_wrong", 1),
            ("pin_blocked", 0),
        ]
        assert "`keyvouch-agent enroll --replace`" in tries[-1]["fix"]
        assert laptop.approve(sign_in.number)[1]["error"]["reason"] == "pin_blocked"
        assert "user      ada" in session.told("whoami")
    again = desk.new_pass("ada")
    assert laptop.enroll(again)[1]["error"]["reason"] == "already_enrolled"
    status, new = laptop.enroll(again, "--replace", pin="918273")
    assert status == 0, new
    assert desk.devices("ada") == [new["device_id"]] != [old]
    assert "session_revoked" in session.told("whoami", "--json")
    assert len(contents(desk).nv_indices - before.nv_indices) == 1
    with desk.running(laptop):
        assert "hardware_gated" in desk.signed_in(laptop, ada, "918273").told("whoami")


# Who may have a key in it, and what stays behind


def test_a_second_account_in_one_tpm_is_a_matter_of_policy_PS17(desk: TpmDesk):
    laptop, ada, bob = desk.device("laptop"), desk.account(), desk.account("bob")
    assert laptop.enroll(ada)[0] == 0
    before = contents(desk)
    assert laptop.enroll(bob)[1]["error"]["reason"] == "device_accounts"
    assert desk.device("another home").enroll(bob)[1]["error"]["reason"] == "device_accounts"
    assert contents(desk) == before
    desk.change_policy(registration={"accounts_per_device": 2})
    status, second = laptop.enroll(bob, pin="918273")
    assert status == 0, second
    with desk.running(laptop, accounts=2):
        for account, pin in ((ada, PIN), (bob, "918273")):
            assert "hardware_gated" in desk.signed_in(laptop, account, pin).told("whoami")
        sign_in = desk.begin(bob)
        for _ in range(3):
            laptop.approve(sign_in.number, PIN)  # the other account's
        assert laptop.approve(sign_in.number, "918273")[1]["error"]["reason"] == "pin_blocked"
        assert laptop.agent.command("deny")[0] == 0
        assert desk.signed_in(laptop, ada)


def test_unregistering_leaves_nothing_in_the_tpm_and_ends_the_sessions_PS18(desk: TpmDesk):
    before, laptop, ada = contents(desk), desk.device("laptop"), desk.account()
    assert laptop.enroll(ada)[0] == 0
    assert contents(desk) != before
    with desk.running(laptop):
        session = desk.signed_in(laptop, ada)
        status, ended = laptop.agent.command("unregister", "--yes")
        assert (status, ended["revoked_sessions"]) == (0, 1)
        assert contents(desk) == before
        assert "session_revoked" in session.told("whoami", "--json")
    assert desk.devices("ada") == []
    assert list((laptop.agent.home / "vault-tpm").iterdir()) == []
    assert laptop.enroll(ada)[0] == 0  # another account may have the room


def test_a_registration_that_the_server_refuses_leaves_nothing_in_the_tpm(desk: TpmDesk):
    before, laptop, ada = contents(desk), desk.device("laptop"), desk.account()
    desk.change_policy(registration={"accounts_per_device": 1})
    mistaken = type(ada)(ada.username, "AAAAAAAA")
    assert laptop.enroll(mistaken)[1]["error"]["reason"] == "access_pass_refused"
    assert contents(desk) == before
    assert list((laptop.agent.home / "vault-tpm").iterdir()) == []
