"""The audit log of a real server: one chain for each tenant whatever happens, checkpoints, and what spoils it (G10)."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from keyvouch.audit_chain import Checkpoint, verify_chain, verify_checkpoint
from keyvouch.audit_lines import parse_line
from keyvouch.errors import KeyvouchError, Reason
from keyvouch.ids import TenantId
from keyvouch.proofs import load_proof_key
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, oversight_pb2
from keyvouch_client.errors import answer
from keyvouch_server.__main__ import main
from keyvouch_server.domain.audit import CHECKPOINT_SECONDS, chain_record
from keyvouch_server.domain.model import Role
from keyvouch_server.domain.oversight_model import AuditCheckpoint, AuditRecord
from keyvouch_server.ports import Transaction
from support.audit_logs import SPOILINGS
from support.live_server import LIMIT, LiveServer, live_server, refused

OTHER = "other.example"


async def records_of(live: LiveServer, tenant: str) -> list[AuditRecord]:
    return await live.app.store.read(
        lambda tx: tx.find(AuditRecord, {"tenant_id": tenant}, order="sequence", limit=100_000)
    )


async def chains_hold(live: LiveServer) -> dict[str, int]:
    """The length of each tenant's chain, verified."""
    tenants = {r.tenant_id for r in await live.audit()}
    return {
        t: verify_chain(map(chain_record, await records_of(live, t)), tenant_id=t, checkpoints=[]).last for t in tenants
    }


async def list_checkpoints(live: LiveServer, **page: Any) -> oversight_pb2.ListAuditCheckpointsResponse:
    request = oversight_pb2.ListAuditCheckpointsRequest(page=common_pb2.PageRequest(**page))
    call = live.connection.oversight.ListAuditCheckpoints(request, metadata=await live.admin(), timeout=LIMIT)
    told: oversight_pb2.ListAuditCheckpointsResponse = await answer(call)
    return told


# The chain


async def test_g10_everything_that_happens_is_in_its_tenants_chain(live: LiveServer) -> None:
    ada = await live.person("ada")
    await live.signed_in(ada)
    await live.tenant(OTHER)
    with refused(Reason.ACCESS_PASS_REFUSED):
        await live.access_pass_sign_in("ada", "AAAA2222")
    with refused(Reason.ACCESS_PASS_REFUSED):
        await live.access_pass_sign_in("ada", "AAAA2222", tenant="nowhere.example")
    lengths = await chains_hold(live)
    assert len(lengths) == 3, "two tenants, and what belongs to none"
    assert sum(lengths.values()) == len(await live.audit())


async def test_g10_acts_at_once_make_one_chain_and_undone_ones_leave_no_gap(live: LiveServer) -> None:
    await live.admin()
    before = await chains_hold(live)
    tenant = max(before, key=lambda t: before[t])
    world = live.app.world

    async def act(tx: Transaction) -> None:
        await world.audit(tx, "test.act", actor="server", tenant_id=TenantId(tenant))
        await world.audit(tx, "test.again", actor="server", tenant_id=TenantId(tenant))

    async def undone(tx: Transaction) -> None:
        await act(tx)
        raise KeyvouchError(Reason.INTERNAL, "Undo this.")

    works = [world.store.write(undone if n % 3 == 0 else act) for n in range(120)]
    ended = await asyncio.gather(*works, return_exceptions=True)
    assert sum(isinstance(e, KeyvouchError) for e in ended) == 40
    after = await chains_hold(live)
    assert after[tenant] == before[tenant] + 2 * 80


async def test_g10_the_store_in_memory_keeps_chains_too(server_template: Path, tmp_path: Path) -> None:
    async with live_server(server_template, tmp_path, memory=True) as live:
        await live.signed_in(await live.person("ada"))
        (length,) = (await chains_hold(live)).values()
        assert length == len(await live.audit())
        assert [c.chain_number for c in await live.app.audit_log.sign_checkpoints()] == [length]


async def test_the_list_tells_number_and_hash(live: LiveServer) -> None:
    told: admin_pb.ListAuditRecordsResponse = await live.administer(
        "ListAuditRecords", admin_pb.ListAuditRecordsRequest()
    )
    newest = told.records[0]
    (kept,) = [r for r in await live.audit() if r.sequence == newest.sequence]
    assert (newest.chain_number, newest.hash) == (kept.chain_number, kept.hash)
    assert newest.chain_number > 0


# Checkpoints


async def test_checkpoints_are_signed_kept_logged_and_listed(
    live: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    await live.admin()
    log = live.app.audit_log
    with caplog.at_level(logging.INFO, "keyvouch.audit"):
        made = await log.sign_checkpoints()
        assert await log.sign_checkpoints() == [], "nothing has happened since"
        await live.create_user("ada")
        again = await log.sign_checkpoints()
    assert [len(made), len(again)] == [1, 1]
    told = await list_checkpoints(live)
    assert [c.chain_number for c in told.checkpoints] == [again[0].chain_number, made[0].chain_number]
    key = load_proof_key(live.app.keyring.identity_key)
    lines = [parse_line(r.getMessage().partition("{")[1].encode() + r.getMessage().partition("{")[2].encode())
             for r in caplog.records]  # fmt: skip
    checkpoints = [line for line in lines if isinstance(line, Checkpoint)]
    assert [c.signature for c in checkpoints] == [c.signature for c in reversed(told.checkpoints)]
    marks = [verify_checkpoint(c, identity_key=key) for c in checkpoints]
    records = await records_of(live, marks[0].tenant_id)
    chain = verify_chain(map(chain_record, records), tenant_id=marks[0].tenant_id, checkpoints=marks)
    assert chain.vouched == again[0].chain_number


async def test_the_sweep_signs_once_a_minute(live: LiveServer) -> None:
    await live.admin()
    log = live.app.audit_log

    async def count() -> int:
        return await live.app.store.read(lambda tx: tx.count(AuditCheckpoint, {}))

    await log.sign_in_time()
    assert await count() == 0, "the first minute has not passed"
    live.clock.advance(CHECKPOINT_SECONDS)
    await log.sign_in_time()
    first = await count()
    assert first == 1
    await live.create_user("ada")
    await log.sign_in_time()
    assert await count() == first
    live.clock.advance(-3600)
    await log.sign_in_time()
    assert await count() == first + 1, "a clock that was put back keeps nobody from signing"


async def test_a_tenant_sees_its_own_checkpoints_page_by_page(live: LiveServer) -> None:
    _, foreign = await live.tenant(OTHER)
    for n in range(5):
        await live.create_user(f"user{n}")
        await live.app.audit_log.sign_checkpoints()
    everything = await list_checkpoints(live)
    first = await list_checkpoints(live, size=2)
    second = await list_checkpoints(live, size=2, token=first.next_token)
    assert list(everything.checkpoints[:4]) == [*first.checkpoints, *second.checkpoints]
    request = oversight_pb2.ListAuditCheckpointsRequest()
    call = live.connection.oversight.ListAuditCheckpoints(request, metadata=foreign.metadata, timeout=LIMIT)
    theirs = (await answer(call)).checkpoints
    assert {c.signature for c in theirs}.isdisjoint({c.signature for c in everything.checkpoints})
    ada = await live.signed_in(await live.person("ada"))
    call = live.connection.oversight.ListAuditCheckpoints(request, metadata=ada.metadata, timeout=LIMIT)
    with refused(Reason.ROLE_REQUIRED):
        await answer(call)
    reader = await live.signed_in(await live.person("reader", Role.GLOBAL_READER))
    call = live.connection.oversight.ListAuditCheckpoints(request, metadata=reader.metadata, timeout=LIMIT)
    assert (await answer(call)).checkpoints


# The command, on a store that somebody has changed


@pytest.fixture
async def spoilable(live: LiveServer) -> LiveServer:
    """A server with two dozen records and a checkpoint over the last."""
    for n in range(20):
        await live.create_user(f"user{n}")
    await live.app.audit_log.sign_checkpoints()
    return live


def verified(capsys: pytest.CaptureFixture[str], live: LiveServer, *more: object) -> tuple[int, dict[str, Any]]:
    """What `audit verify` says of the first tenant, while the server runs."""
    capsys.readouterr()
    arguments = ["audit", "verify", "--data", live.data, "--tenant", "example", "--json", *more]
    status = main([str(a) for a in arguments])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["ok"] is (status == 0)
    return status, report["tenants"][0]


def change(live: LiveServer, *statements: str) -> None:
    """Change the store from outside, as whoever can write to its file."""
    with closing(sqlite3.connect(live.data / "keyvouch.db", isolation_level=None, timeout=5)) as connection:
        for statement in ("DROP INDEX audit_by_chain", "PRAGMA foreign_keys = OFF", *statements):
            connection.execute(statement)


@pytest.mark.parametrize("how", sorted(SPOILINGS))
async def test_g10_the_command_names_the_first_bad_record(
    spoilable: LiveServer, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    statements, kinds, number = SPOILINGS[how]
    assert verified(capsys, spoilable)[0] == 0
    change(spoilable, *statements)
    status, report = verified(capsys, spoilable)
    assert status == 1
    problem = report["problem"]
    assert problem["number"] == str(number), problem
    assert problem["kind"] in (kinds or {problem["kind"]})
    assert problem["fix"]


async def test_g10_a_checkpoint_kept_elsewhere_shows_what_the_store_alone_cannot(
    spoilable: LiveServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kept = tmp_path / "kept.jsonl"
    assert main(["audit", "checkpoint", "--data", str(spoilable.data)]) == 0
    line = capsys.readouterr().out
    kept.write_text(f"2026-11-28 INFO keyvouch.server ready\n2026-11-28 INFO keyvouch.audit checkpoint {line}")
    status, report = verified(capsys, spoilable, "--against", kept)
    assert (status, report["records"]) == (0, report["vouched"])
    change(
        spoilable,
        "DELETE FROM audit_record WHERE chain_number >= 12",
        "DELETE FROM audit_checkpoint",
    )
    assert verified(capsys, spoilable)[0] == 0, "with the checkpoints gone the store alone says nothing"
    status, report = verified(capsys, spoilable, "--against", kept)
    assert (status, report["problem"]["kind"], report["problem"]["number"]) == (1, "cut_off", "12")


@pytest.mark.parametrize(
    ("text", "why"), [("", "no checkpoint"), ("nothing\n{}\n", "no checkpoint"), (None, "cannot be read")]
)
async def test_a_file_without_checkpoints_is_refused(
    live: LiveServer, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | None, why: str
) -> None:
    path = tmp_path / "kept"
    if text is not None:
        path.write_text(text)
    assert main(["audit", "verify", "--data", str(live.data), "--against", str(path)]) == 1
    assert why in capsys.readouterr().err


async def test_a_checkpoint_that_the_server_did_not_sign_is_named(
    spoilable: LiveServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(["audit", "checkpoint", "--data", str(spoilable.data), "--tenant", "example"])
    document = json.loads(capsys.readouterr().out)
    forged = tmp_path / "forged"
    forged.write_text(json.dumps({**document, "number": 5}))
    assert main(["audit", "verify", "--data", str(spoilable.data), "--against", str(forged)]) == 1
    assert "did not sign" in capsys.readouterr().err
    change(spoilable, "UPDATE audit_checkpoint SET at = at + 1")
    assert verified(capsys, spoilable)[1]["problem"]["reason"] == Reason.AUDIT_CHECKPOINT


async def test_it_speaks_to_people_and_of_all_tenants(live: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    await live.tenant(OTHER)
    await live.app.audit_log.sign_checkpoints()
    assert main(["audit", "verify", "--data", str(live.data)]) == 0
    out = capsys.readouterr().out
    assert out.count("nothing changed, missing or put in") == 2
    assert "A checkpoint vouches for 1 to" in out
    change(live, "UPDATE audit_record SET outcome = 'denied' WHERE chain_number = 2")
    assert main(["audit", "verify", "--data", str(live.data)]) == 1
    assert capsys.readouterr().out.count("Record 2 was changed") == 2


async def test_records_from_before_the_chain_are_counted(live: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    old = len(await live.audit())
    change(
        live, "UPDATE audit_record SET chain_number = 0, previous_hash = x'', hash = x''"
    )  # as the upgrade leaves it
    assert verified(capsys, live)[1]["unchained"] == old > 0
    await live.create_user("ada")
    await live.app.audit_log.sign_checkpoints()
    report = verified(capsys, live)[1]
    assert report["unchained"] == old
    assert report["records"] == report["vouched"] == len(await live.audit()) - old > 0
    assert main(["audit", "verify", "--data", str(live.data)]) == 0
    assert f"{old} older records" in capsys.readouterr().out
