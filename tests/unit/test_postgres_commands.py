"""`keyvouch-server backup`, `check` and `audit` where the store is in PostgreSQL: what only that brings with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from keyvouch.errors import UnavailableError
from keyvouch.ids import TenantId
from keyvouch_server import bootstrap
from keyvouch_server.__main__ import main
from keyvouch_server.domain.model import Tenant
from keyvouch_server.store_access import dump_command
from keyvouch_server.stores import postgres_audit
from keyvouch_server.stores.postgres_reading import LONG_SECONDS, reading
from keyvouch_server.stores.postgres_upkeep import NOT_COMPARED, check
from support.kept_stores import KeptStore, changed
from support.live_server import ADMINISTRATOR, TENANT, configuration
from support.postgres_server import PostgresCluster
from support.programs import PYTHON_PATH, run_program, run_python

PASSWORD = "hunter2"


@pytest.fixture
def kept(postgres_url: str, tmp_path: Path) -> KeptStore:
    """A server whose configuration holds a password."""
    made = KeptStore(tmp_path / "it's a server", postgres_url.replace("postgres@", f"postgres:{PASSWORD}@"))
    bootstrap.init(made.data, made.configured(configuration(1)), TENANT, ADMINISTRATOR)
    return made


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 1
    said = capsys.readouterr()
    assert PASSWORD not in said.out + said.err
    error: dict[str, Any] = json.loads(said.err)["error"]
    return error


def test_the_command_that_backup_prints_makes_a_copy_that_serves(
    kept: KeptStore, capsys: pytest.CaptureFixture[str], tmp_path: Path, postgres_cluster: PostgresCluster
) -> None:
    copy = tmp_path / "the copy.dump"
    error = refusal(capsys, "backup", "--data", kept.data, "--to", copy)
    assert error["reason"] == "configuration"
    assert not copy.exists()
    advice, _, command = error["fix"].partition(" Type: ")
    assert f"Keep the keys in {kept.data} with the copy" in advice
    assert "--schema=keyvouch" in command
    subprocess.run(["/bin/sh", "-c", command], check=True, timeout=60)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600

    new = postgres_cluster.database()
    subprocess.run(
        ["pg_restore", "--exit-on-error", "--no-owner", "--dbname", new, copy], check=True, timeout=60, text=True
    )
    assert check(new) == check(kept.url)
    assert check(new).problems == ()

    settings = kept.data / "keyvouch.toml"
    settings.write_text(settings.read_text().replace(urlsplit(kept.url).path, urlsplit(new).path))
    assert main(["audit", "verify", "--data", str(kept.data)]) == 0
    asyncio.run(_serves(kept.data))
    assert main(["check", "--data", str(kept.data)]) == 0
    postgres_cluster.discard(new)


async def _serves(data: Path) -> None:
    """Whoever founded the server finds it there, and what is written continues the chain."""
    config = bootstrap.load_config(data)
    store = await bootstrap.open_store(data, config)
    app = bootstrap.assemble(data, config, store)
    async with bootstrap.running(app, grace=0) as listening:
        assert listening.public_port
        (tenant,) = await store.read(lambda tx: tx.find(Tenant, {}))
        await store.write(lambda tx: app.world.audit(tx, "test.act", actor="server", tenant_id=tenant.id))
    await store.close()


def test_the_command_has_no_password_and_is_one_line_for_a_shell() -> None:
    command = dump_command("postgresql://kv:hunter2@db.example.org/kv?sslmode=verify-full", Path("/b/a $(x).dump"))
    assert command == (
        "(umask 077; pg_dump --format=custom --schema=keyvouch '--file=/b/a $(x).dump'"
        " 'postgresql://kv@db.example.org/kv?sslmode=verify-full')"
    )
    assert PASSWORD not in dump_command(f"postgresql://db.example.org/kv?user=kv&password={PASSWORD}", Path("x"))


COMMANDS = (("check",), ("audit", "verify"), ("audit", "export", "--tenant", TENANT), ("audit", "checkpoint"))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_database_that_is_away_is_told_without_the_password(
    kept: KeptStore, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], postgres_cluster: PostgresCluster
) -> None:
    postgres_cluster.stop()
    assert refusal(capsys, *command, "--data", kept.data)["reason"] == "store_unavailable"
    postgres_cluster.start()
    assert main([*command, "--data", str(kept.data)]) == 0


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_without_the_driver_it_says_what_to_install_and_a_file_needs_none(
    kept: KeptStore, tmp_path: Path, command: tuple[str, ...]
) -> None:
    bootstrap.init(tmp_path / "file", configuration(1), TENANT, ADMINISTRATOR)
    code = "import sys; sys.modules['asyncpg'] = None; from keyvouch_server.__main__ import main; sys.exit(main())"
    done = run_python(code, *command, "--data", str(kept.data), "--json")
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, error["reason"], "keyvouch[server,postgres]" in error["fix"]) == (1, "configuration", True)
    done = run_python(code, *command, "--data", str(tmp_path / "file"))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_program_ends_where_nobody_reads_its_output(kept: KeptStore) -> None:
    code = "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 1); import sys;"
    code += "from keyvouch_server.__main__ import main; sys.exit(main())"
    done = run_python(code, "audit", "export", "--data", str(kept.data), "--tenant", TENANT)
    assert (done.returncode, done.stderr) == (1, "")
    assert run_program("keyvouch-server", "audit", "verify", "--data", str(kept.data)).returncode == 0


@pytest.mark.parametrize("command", [("check",), ("audit", "verify")], ids=" ".join)
def test_whoever_interrupts_it_waits_for_nothing(kept: KeptStore, command: tuple[str, ...]) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"

    async def body() -> tuple[int, str]:
        holder, connection = await asyncpg.connect(kept.url), await asyncpg.connect(kept.url)
        await holder.execute("BEGIN; LOCK TABLE keyvouch.audit_record IN ACCESS EXCLUSIVE MODE")
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "keyvouch_server", *command, "--data", str(kept.data),
            stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": PYTHON_PATH},
        )  # fmt: skip
        async with asyncio.timeout(30):
            while not await connection.fetchval(waiting):  # noqa: ASYNC110 - the database tells nobody
                await asyncio.sleep(0.01)
            program.send_signal(signal.SIGINT)
            _, said = await program.communicate()
            while await connection.fetchval(waiting):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await holder.close()
        await connection.close()
        return program.returncode or 0, said.decode()

    assert asyncio.run(body()) == (130, "")


def test_what_could_not_be_looked_at_is_told_and_is_no_problem(
    kept: KeptStore, capsys: pytest.CaptureFixture[str]
) -> None:
    kept.change("CREATE ROLE caller LOGIN; GRANT pg_read_all_data TO caller")
    settings = kept.data / "keyvouch.toml"
    settings.write_text(settings.read_text().replace("//postgres:", "//caller:"))
    capsys.readouterr()
    assert main(["check", "--data", str(kept.data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "problems": [], "notes": [NOT_COMPARED]}
    assert main(["check", "--data", str(kept.data)]) == 0
    assert NOT_COMPARED in capsys.readouterr().out
    assert main(["audit", "verify", "--data", str(kept.data)]) == 0
    kept.change("DROP OWNED BY caller; DROP ROLE caller")


def test_what_is_read_long_is_not_cut_off(kept: KeptStore) -> None:
    with reading(kept.url) as source:
        for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
            ((milliseconds,),) = source.all("SELECT setting::bigint FROM pg_settings WHERE name = $1", setting)
            assert milliseconds == LONG_SECONDS * 1000
        ((isolation, read_only),) = source.all(
            "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
        )
        assert (isolation, read_only) == ("repeatable read", "on")


def test_a_reader_sees_one_moment_and_several_queries_at_once(kept: KeptStore) -> None:
    with postgres_audit.opened(kept.url) as reader:
        (tenant,) = reader.tenants()
        records = reader.chained(tenant)
        first = next(records)
        asyncio.run(changed(kept.url, "DELETE FROM audit_record"))
        others = [*reader.chained(tenant)]
        assert [first, *records] == others
        assert len(others) > 1
        assert reader.newest(tenant) == others[-1]
        assert reader.first_since(tenant, others[-1].at + 1) == 0
        assert list(reader.unchained(tenant)) == list(reader.chained(tenant, first=len(others) + 1)) == []
    with postgres_audit.opened(kept.url) as reader:
        assert reader.newest(tenant) is None


def test_an_id_that_no_database_holds_has_nothing(kept: KeptStore) -> None:
    with postgres_audit.opened(kept.url) as reader:
        for strange in ("ten_\0", "ten_\udcff"):
            tenant = TenantId(strange)
            assert list(reader.chained(tenant)) == list(reader.checkpoints(tenant)) == []
            assert (reader.newest(tenant), reader.first_since(tenant, 0)) == (None, 0)
            assert reader.username(strange) == ""


UNLIKE = {
    "ALTER TABLE audit_record ALTER details DROP NOT NULL; UPDATE audit_record SET details = NULL": "audit_record",
    "ALTER TABLE audit_record ALTER at TYPE numeric": "audit_record",
    "ALTER TABLE audit_checkpoint RENAME signature TO sealed": "audit_checkpoint",
    "ALTER TABLE audit_checkpoint RENAME TO other; CREATE VIEW audit_checkpoint AS SELECT * FROM other": (
        "audit_checkpoint"
    ),
    "ALTER TABLE tenant RENAME TO other": "tenant",
}


@pytest.mark.parametrize(("statement", "table"), UNLIKE.items())
def test_a_table_that_cannot_hold_a_log_is_not_read(
    kept: KeptStore, capsys: pytest.CaptureFixture[str], statement: str, table: str
) -> None:
    kept.change(statement)
    error = refusal(capsys, "audit", "verify", "--data", kept.data)
    assert (error["reason"], f"The table {table} " in error["message"]) == ("store_schema", True)


def test_a_store_that_fails_meanwhile_is_told(kept: KeptStore, capsys: pytest.CaptureFixture[str]) -> None:
    async def end_all_others() -> None:
        connection = await asyncpg.connect(kept.url)
        text = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        await connection.execute(f"{text} AND pid <> pg_backend_pid()")
        await connection.close()

    with postgres_audit.opened(kept.url) as reader:
        asyncio.run(end_all_others())
        with pytest.raises(UnavailableError, match="The store does not answer"):
            reader.tenants()
