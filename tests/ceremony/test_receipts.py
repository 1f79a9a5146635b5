"""Receipts and exported logs of a real server, verified by the command line of somebody who has neither (H8, G10)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keyvouch.errors import Reason
from keyvouch.receipt import VerifiedReceipt, verify_receipt
from keyvouch.v1 import oversight_pb2, security_info_pb2
from keyvouch_client.__main__ import main as client
from keyvouch_client.errors import answer
from keyvouch_server.__main__ import main as server
from keyvouch_server.domain.model import Role
from keyvouch_server.domain.oversight_model import AuditRecord
from support.key_desk import begin_with_key, registered_key
from support.live_server import LIMIT, LiveServer, Metadata, SignedIn, refused
from support.own_sign_in import desk_of

OTHER = "other.example"


async def receipt_of(live: LiveServer, sign_in_id: str, metadata: Metadata | None = None) -> bytes:
    request = oversight_pb2.GetReceiptRequest(sign_in_id=sign_in_id)
    call = live.connection.oversight.GetReceipt(request, metadata=metadata or await live.admin(), timeout=LIMIT)
    receipt: bytes = (await answer(call)).receipt
    return receipt


async def own_receipt(session: SignedIn, session_id: str = "", metadata: Metadata | None = None) -> bytes:
    request = security_info_pb2.GetOwnReceiptRequest(session_id=session_id)
    call = session.live.connection.security_info.GetOwnReceipt(
        request, metadata=metadata or session.metadata, timeout=LIMIT
    )
    receipt: bytes = (await answer(call)).receipt
    return receipt


def verified(live: LiveServer, receipt: bytes) -> VerifiedReceipt:
    return verify_receipt(receipt, server_id=live.app.world.facts.server_id)


# Receipts


async def test_h8_a_sign_in_that_became_a_session_has_a_receipt(live: LiveServer) -> None:
    ada = await live.person("ada")
    opened = await live.approved(ada)
    session = await opened.redeem()
    proved = verified(live, await receipt_of(live, opened.begun.sign_in_id))
    receipt = proved.receipt
    assert (receipt.username, receipt.sign_in_id) == ("ada", opened.begun.sign_in_id)
    assert (receipt.session_id, receipt.device_id) == (session.session.session_id, ada.device.device_id)
    assert (receipt.number, receipt.acr, receipt.amr) == (opened.number, "number-matched", "pop pin mfa")
    assert proved.offer.app_name == "Shop"
    (record,) = [r for r in await live.audit("sign_in.redeem") if r.subject == opened.begun.sign_in_id]
    assert (receipt.audit_number, receipt.audit_hash) == (record.chain_number, record.hash)
    mine = verified(live, await own_receipt(session))
    assert mine.receipt == receipt
    assert verified(live, await own_receipt(session, session.session.session_id)).receipt == receipt


async def test_an_administrator_has_one_too_and_it_outlives_the_session(live: LiveServer) -> None:
    session = await live.signed_in(await live.person("ada"))
    before = verified(live, await own_receipt(session))
    await live.change_policy(approval={"number_digits": 4})
    after = await receipt_of(live, before.receipt.sign_in_id)
    assert verified(live, after).receipt == before.receipt


async def test_who_may_have_which_receipt(live: LiveServer) -> None:
    ada, bob = await live.person("ada"), await live.person("bob")
    opened = await live.approved(ada)
    session, other = await opened.redeem(), await live.signed_in(bob)
    with refused(Reason.ROLE_REQUIRED):
        await receipt_of(live, opened.begun.sign_in_id, session.metadata)
    with refused(Reason.SESSION_UNKNOWN):
        await own_receipt(other, session.session.session_id)
    reader = await live.signed_in(await live.person("reader", Role.GLOBAL_READER))
    assert await receipt_of(live, opened.begun.sign_in_id, reader.metadata)
    _, foreign = await live.tenant(OTHER)
    for unknown in (opened.begun.sign_in_id, "sin_" + "a" * 26, ""):
        with refused(Reason.SIGN_IN_UNKNOWN):
            await receipt_of(live, unknown, foreign.metadata)


async def test_what_became_no_session_has_none(live: LiveServer) -> None:
    ada = await live.person("ada")
    approved = await live.approved(ada)
    with refused(Reason.SIGN_IN_UNKNOWN):
        await receipt_of(live, approved.begun.sign_in_id)
    await approved.redeem()
    assert await receipt_of(live, approved.begun.sign_in_id)
    code = await live.issue_pass_again("ada")
    metadata = await live.pass_session("ada", code)
    with refused(Reason.SESSION_PURPOSE):
        await own_receipt(await live.signed_in(ada), metadata=metadata)


async def test_h8_each_way_of_approving_has_its_receipt(live: LiveServer) -> None:
    done = await (await desk_of(live)).signed_in()
    (own,) = [r for r in await live.audit("sign_in.redeem") if r.user_id == done.session.user_id]
    same_device = verified(live, await receipt_of(live, own.subject))
    assert (same_device.receipt.acr, same_device.offer.place) == ("phishing-resistant", "this computer")
    assert same_device.assertion.client_data.origin.startswith("keyvouch-agent://")

    key = await registered_key(live, "bob")
    opened = await begin_with_key(live, "bob")
    await opened.complete(opened.approval(key.credential))
    await opened.redeem()
    with_key = verified(live, await receipt_of(live, opened.begun.sign_in_id))
    assert (with_key.receipt.acr, with_key.receipt.device_id) == ("phishing-resistant", key.device_id)
    assert with_key.assertion.client_data.origin.startswith("keyvouch-client://")


# The command line, offline


@pytest.fixture
async def kept(live: LiveServer, tmp_path: Path) -> Path:
    """A receipt in a file."""
    session = await live.signed_in(await live.person("ada"))
    path = tmp_path / "receipt.cbor"
    path.write_bytes(await own_receipt(session))
    return path


def content(path: Path) -> bytes:
    return path.read_bytes()


def rewrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def judged(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    capsys.readouterr()
    status = client(["verify", *map(str, arguments)])
    said = capsys.readouterr()
    return status, json.loads(said.out), said.err


async def test_the_command_verifies_a_receipt_and_says_what_it_proves(
    live: LiveServer, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server_id = live.app.world.facts.server_id.hex()
    for pin in (("--ca", live.data / "ca.pem"), ("--server-id", server_id)):
        status, result, said = judged(capsys, kept, "--explain", *pin)
        assert (status, result["decision"], result["facts"]["server_expected"]) == (0, "accept", True)
        assert result["facts"]["username"] == "ada"
        assert "signed this very approval" in said
        assert "typed the number" in said
    status, result, said = judged(capsys, kept, "--explain")
    assert (status, result["facts"]["server_expected"]) == (0, False)
    assert "not proved" in said


async def test_the_command_refuses_a_receipt_of_another_server_or_one_that_was_changed(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, result, _ = judged(capsys, kept, "--server-id", "00" * 32)
    assert (status, result["decision"], result["reason"]) == (1, "reject", "receipt")
    whole = content(kept)
    rewrite(kept, whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    status, result, _ = judged(capsys, kept, "--explain")
    assert (status, result["decision"], result["reason"]) == (1, "reject", "receipt")
    assert "proves nothing" in result["message"]
    rewrite(kept, whole[:100])
    assert judged(capsys, kept)[0] == 1


async def test_what_is_no_server_is_a_wrong_use(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = kept.with_name("nothing")
    nothing.write_text("nothing")
    for wrong in (("--server-id", "12"), ("--server-id", "xy"), ("--ca", nothing), ("--ca", kept.with_name("none"))):
        assert client(["verify", str(kept), *map(str, wrong)]) == 2
        assert capsys.readouterr().err.startswith("keyvouch: ")


def exported(live: LiveServer, capsys: pytest.CaptureFixture[str], *more: object) -> str:
    capsys.readouterr()
    assert server([str(a) for a in ("audit", "export", "--data", live.data, "--tenant", "example", *more)]) == 0
    return capsys.readouterr().out


async def test_g10_an_exported_log_verifies_offline_and_no_line_of_it_can_be_spoiled(
    live: LiveServer, kept: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = exported(live, capsys).splitlines(keepends=True)
    log, ca = tmp_path / "log.jsonl", live.data / "ca.pem"
    log.write_text("".join(lines))
    status, result, said = judged(capsys, "--audit", log, "--ca", ca, "--explain")
    assert (status, result["decision"], result["first"], result["last"]) == (0, "accept", 1, len(lines) - 2)
    assert "are all there" in said
    for n in range(len(lines)):
        log.write_text("".join(lines[:n] + lines[n + 1 :]))
        status, result, _ = judged(capsys, "--audit", log, "--ca", ca)
        assert (status, result["decision"]) == ((0, "accept") if n == 2 else (1, "reject")), n
        assert n != 2 or result["first"] == 2, "a log that begins later says so"
    log.write_text("".join(lines).replace('"ok"', '"no"', 1))
    assert judged(capsys, "--audit", log)[1]["details"]["kind"] == "changed"
    assert client(["verify", "--audit", str(tmp_path / "none")]) == 2


async def test_an_export_since_an_instant_begins_there(
    live: LiveServer, kept: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    live.clock.advance(100)
    await live.create_user("late")
    (late,) = [r for r in await live.audit("user.create") if r.at >= live.clock.now()]
    since = f"{live.clock.now()}"
    lines = exported(live, capsys, "--since", _iso(int(since))).splitlines()
    assert json.loads(lines[2])["number"] <= late.chain_number
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(lines))
    status, result, _ = judged(capsys, "--audit", log, "--ca", live.data / "ca.pem")
    assert (status, result["first"] > 1) == (0, True)
    for wrong, why in ((("--since", "2090-01-01"), "no records"), (("--since", "soon"), "no instant")):
        assert server(["audit", "export", "--data", str(live.data), "--tenant", "example", *wrong]) == 1
        assert why in capsys.readouterr().err
    assert server(["audit", "export", "--data", str(live.data), "--tenant", "nobody"]) == 1
    assert "no tenant nobody" in capsys.readouterr().err


def _iso(seconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat()


@pytest.mark.parametrize("form", ["jsonl", "ocsf"])
async def test_g10_a_log_that_does_not_hold_is_not_exported(
    live: LiveServer, kept: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    (record,) = [r for r in await live.audit() if r.chain_number == 5]
    await live.app.store.write(lambda tx: tx.update(AuditRecord, {"sequence": record.sequence}, {"outcome": "denied"}))
    assert server(["audit", "export", "--data", str(live.data), "--tenant", "example", "--format", form]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "Record 5 was changed" in said.err


async def test_every_record_of_a_server_is_an_event_too(
    live: LiveServer, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = [json.loads(line) for line in exported(live, capsys, "--format", "ocsf").splitlines()]
    kinds = {event["class_uid"] for event in events}
    assert kinds == {3001, 3002, 3004}
    logons = [e for e in events if e["type_uid"] == 300201 and e["user"].get("name") == "ada"]
    assert [(e["status"], e["is_mfa"]) for e in logons] == [("Success", False), ("Success", True)]
