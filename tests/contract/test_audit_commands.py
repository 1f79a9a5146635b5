"""The commands that read a store from outside, against a file and a database: what is read, what is found (G10).

Not here: a log in the hands of a running server, and the whole of the commands' grammar (`ceremony/test_audit_*`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from keyvouch.ids import TenantId
from keyvouch_client.__main__ import main as client
from keyvouch_server import bootstrap
from keyvouch_server.__main__ import main
from keyvouch_server.domain.model import Tenant
from keyvouch_server.stores import postgres_reading
from support.audit_logs import SPOILINGS
from support.kept_stores import KINDS, KeptStore
from support.live_server import ADMINISTRATOR, TENANT, configuration

Run = Callable[..., tuple[int, str, str]]
LENGTH = 30


@pytest.fixture(params=KINDS)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> KeptStore:
    """A server with records of its tenant, of a tenant that is gone and of none; with checkpoints."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else ""
    made = KeptStore(tmp_path / "server", url)
    bootstrap.init(made.data, made.configured(configuration(1)), TENANT, ADMINISTRATOR)
    asyncio.run(_acts(made))
    return made


async def _acts(kept: KeptStore) -> None:
    config = kept.configured(configuration(1))
    store = await bootstrap.open_store(kept.data, config)
    app = bootstrap.assemble(kept.data, config, store)
    (tenant,) = await store.read(lambda tx: tx.find(Tenant, {}))

    async def work(tx: Any) -> None:
        for number in range(LENGTH):
            who = {"actor": f"usr_{number}", "tenant_id": tenant.id, "user_id": "usr_x"}
            await app.world.audit(tx, f"test.{number % 3}", **who, number=str(number), text="\N{SNOWMAN} 'x' \x01")
        for name in ("ten_gone", ""):
            await app.world.audit(tx, "test.other", actor="server", tenant_id=TenantId(name))

    await store.write(work)
    await app.audit_log.sign_checkpoints()
    await store.close()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return command


def verified(run: Run, kept: KeptStore, *more: object) -> tuple[int, dict[str, Any]]:
    """What `audit verify` says of the first tenant."""
    status, out, _ = run("audit", "verify", "--data", kept.data, "--tenant", TENANT, "--json", *more)
    report: dict[str, Any] = json.loads(out)["tenants"][0]
    return status, report


def test_all_that_has_records_is_verified_and_exported(kept: KeptStore, run: Run, tmp_path: Path) -> None:
    status, out, _ = run("audit", "verify", "--data", kept.data, "--json")
    reports = json.loads(out)["tenants"]
    assert (status, [report["ok"] for report in reports]) == (0, [True] * 3)
    assert [report["tenant"] for report in reports] == [TENANT, "", ""]
    assert [report["tenant_id"] for report in reports[1:]] == ["", "ten_gone"]
    assert reports[0]["records"] == reports[0]["vouched"] > LENGTH
    status, out, _ = run("audit", "export", "--data", kept.data, "--tenant", TENANT)
    lines = [json.loads(line) for line in out.splitlines()]
    numbers = [line["number"] for line in lines if line["type"] == "record"]
    assert numbers == list(range(1, reports[0]["records"] + 1))
    log = tmp_path / "log.jsonl"
    log.write_text(out)
    assert client(["verify", "--audit", str(log), "--ca", str(kept.data / "ca.pem")]) == 0
    status, out, _ = run("audit", "export", "--data", kept.data, "--tenant", TENANT, "--format", "ocsf")
    assert (status, len(out.splitlines())) == (0, len(numbers))
    assert f'"{ADMINISTRATOR}"' in out
    status, out, _ = run("audit", "checkpoint", "--data", kept.data)
    assert (status, len(out.splitlines())) == (0, 3)


def test_what_was_written_since_an_instant_is_exported(kept: KeptStore, run: Run) -> None:
    kept.change("UPDATE audit_record SET at = at - 100000 WHERE chain_number < 20")  # so it is no chain any more
    export = ("audit", "export", "--data", kept.data, "--tenant", TENANT, "--since")
    since = kept.value("SELECT max(at) FROM audit_record") - 1000
    status, out, _ = run(*export, datetime.fromtimestamp(since, UTC).isoformat())
    assert status == 0
    assert next(json.loads(line)["number"] for line in out.splitlines() if '"record"' in line) == 20
    status, _, err = run(*export, "2999-01-01")
    assert (status, "There are no records" in err) == (1, True)


def test_a_batch_is_followed_by_the_next_one(kept: KeptStore, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the length of the log is to that of a batch."""
    whole = run("audit", "export", "--data", kept.data, "--tenant", TENANT)[1].splitlines()[2:]
    for batch in (1, 7, len(whole) - 1, len(whole), len(whole) + 1):
        monkeypatch.setattr(postgres_reading, "BATCH", batch)
        assert run("audit", "export", "--data", kept.data, "--tenant", TENANT)[1].splitlines()[2:] == whole
        assert verified(run, kept)[0] == 0


@pytest.mark.parametrize("how", sorted(SPOILINGS))
def test_g10_the_command_names_the_first_bad_record_of_either_store(kept: KeptStore, run: Run, how: str) -> None:
    statements, kinds, number = SPOILINGS[how]
    assert verified(run, kept)[0] == 0
    kept.change("DROP INDEX audit_by_chain", *statements)
    status, report = verified(run, kept)
    assert status == 1
    problem = report["problem"]
    assert problem["number"] == str(number), problem
    assert problem["kind"] in (kinds or {problem["kind"]})


def test_g10_a_checkpoint_kept_elsewhere_shows_what_the_store_alone_cannot(
    kept: KeptStore, run: Run, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "kept.jsonl"
    elsewhere.write_text(run("audit", "checkpoint", "--data", kept.data)[1])
    status, report = verified(run, kept, "--against", elsewhere)
    assert (status, report["records"]) == (0, report["vouched"])
    kept.change("DELETE FROM audit_record WHERE chain_number >= 12", "DELETE FROM audit_checkpoint")
    assert verified(run, kept)[0] == 0, "with the checkpoints gone the store alone says nothing"
    status, report = verified(run, kept, "--against", elsewhere)
    assert (status, report["problem"]["kind"], report["problem"]["number"]) == (1, "cut_off", "12")


def test_g10_a_record_before_the_chain_is_an_old_one_only_where_there_may_be_any(kept: KeptStore, run: Run) -> None:
    row = "5, at, tenant_id, action, actor, subject, user_id, outcome, details, 0, x'', x''"
    kept.change(
        "UPDATE audit_record SET sequence = sequence + 1000",
        f"INSERT INTO audit_record SELECT {row} FROM audit_record WHERE chain_number = 12",
    )
    status, report = verified(run, kept)
    if kept.url:
        assert (status, report["problem"]["kind"]) == (1, "inserted")
    else:
        assert (status, report["unchained"]) == (0, 1)


def test_check_and_verify_read_the_store_that_the_configuration_names(kept: KeptStore, run: Run) -> None:
    status, out, _ = run("check", "--data", kept.data, "--json")
    assert (status, json.loads(out)) == (0, {"ok": True, "problems": []})
    assert "The store is sound" in run("check", "--data", kept.data)[1]
    kept.change("DELETE FROM login_name")
    status, out, _ = run("check", "--data", kept.data)
    assert (status, "The store has 1 problem." in out, "without the login name" in out) == (1, True, True)
    assert kept.path.exists() is not bool(kept.url)


def test_a_store_of_another_schema_is_refused(kept: KeptStore, run: Run) -> None:
    kept.change("UPDATE store_version SET version = 99" if kept.url else "PRAGMA user_version = 99")
    for act in (("verify",), ("checkpoint",), ("export", "--tenant", TENANT)):
        status, out, err = run("audit", *act, "--json", "--data", kept.data)
        assert (status, out, json.loads(err)["error"]["reason"]) == (1, "", "store_schema")
