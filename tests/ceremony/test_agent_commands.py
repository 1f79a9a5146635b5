"""`keyvouch-agent` as people and programs use it: real processes against a server in the test's process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest_asyncio

from keyvouch.v1 import common_pb2
from support.agent_bench import AgentBench, until
from support.fake_devices import ACCESS_PASS, TENANT_NAME, USERNAME

PIN = "428913"
AGENT = (sys.executable, "-m", "keyvouch_agent")


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[AgentBench]:
    made = await AgentBench.start(tmp_path)
    (tmp_path / "ca.pem").write_bytes(made.rows.authority.pem)
    yield made
    await made.server.stop()


def given(*lines: str) -> int:
    """A descriptor from which a command reads secrets."""
    reading, writing = os.pipe()
    os.write(writing, "".join(f"{line}\n" for line in lines).encode())
    os.close(writing)
    return reading


async def command(home: Path, *arguments: str, secrets: int | None = None) -> tuple[int, str, str]:
    """Run one command: exit code, standard output, standard error."""
    passed = () if secrets is None else (secrets,)
    process = await asyncio.create_subprocess_exec(
        *AGENT, "--home", str(home), *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=PIPE,
        pass_fds=passed, start_new_session=True,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 30)
    if secrets is not None:
        os.close(secrets)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def enroll(bench: AgentBench, *extra: str) -> tuple[int, str, str]:
    secrets = given(PIN, ACCESS_PASS)
    ca = str(bench.home.path.parent / "ca.pem")
    return await command(
        bench.home.path, "enroll", "--server", bench.server.public_endpoint, "--ca", ca, "--tenant", TENANT_NAME,
        "--user", USERNAME, "--pin-fd", str(secrets), "--access-pass-fd", str(secrets), *extra, secrets=secrets,
    )  # fmt: skip


@asynccontextmanager
async def running(bench: AgentBench, *extra: str) -> AsyncIterator[Process]:
    """`keyvouch-agent run` in the background, connected."""
    process = await asyncio.create_subprocess_exec(
        *AGENT, "run", "--quiet-prompts", *extra, env={**os.environ, "KEYVOUCH_AGENT_HOME": str(bench.home.path)},
        stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        await until((bench.home.path / "agent.sock").exists)
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        _, err = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 0, err
        assert b"Traceback" not in err


async def test_enrol_run_approve_deny_report_unregister(bench: AgentBench) -> None:
    home = bench.home.path
    code, out, err = await enroll(bench, "--json")
    assert (code, err.count("progress")) == (0, 3), err
    device_id = json.loads(out)["device_id"]
    async with running(bench):
        await until(lambda: bench.server.connected(device_id))
        first = bench.server.ask(bench.rows.offer(device_id, number="42"))
        code, out, _ = await command(home, "pending")
        assert "Payroll" in out
        assert first.prompt_id in out
        secrets = given(PIN)
        code, out, err = await command(
            home, "approve", first.prompt_id, "--number", "42", "--pin-fd", str(secrets), secrets=secrets
        )
        assert (code, out) == (0, "Done: approved.\n"), err
        second = bench.server.ask(bench.rows.offer(device_id))
        assert (await command(home, "deny"))[0] == 0
        third = bench.server.ask(bench.rows.offer(device_id))
        assert json.loads((await command(home, "report", "--json"))[1])["state"] == "reported"
        assert [row.state for row in (first, second, third)] == [
            common_pb2.SIGN_IN_STATE_APPROVED, common_pb2.SIGN_IN_STATE_DENIED, common_pb2.SIGN_IN_STATE_REPORTED,
        ]  # fmt: skip
        code, out, _ = await command(home, "status", "--json")
        assert json.loads(out)["enrolments"][0]["state"] == "connected"
        code, out, err = await command(home, "unregister", "--yes")
        assert code == 0, err
        assert json.loads((await command(home, "status", "--json"))[1])["enrolments"] == []


async def test_failures_are_told_to_people_and_to_programs(bench: AgentBench) -> None:
    home = bench.home.path
    assert (await enroll(bench))[0] == 0
    code, out, err = await enroll(bench)
    assert (code, out) == (1, "")
    assert err.startswith("error: ada of example is enrolled on this device already.")
    assert "--replace" in err
    code, out, err = await enroll(bench, "--json")
    error = json.loads(err.splitlines()[-1])["error"]
    assert (code, error["kind"], error["reason"]) == (1, "ConflictError", "already_enrolled")
    code, _, err = await command(home, "approve", "--number", "42", "--json")
    assert json.loads(err)["error"]["reason"] == "agent_not_running"
    assert (await command(home, "approve", "--numbr", "42"))[0] == 2
    assert (await command(home))[0] == 2


async def test_a_wrong_pin_and_a_wrong_number_fail_differently(bench: AgentBench) -> None:
    home = bench.home.path
    device_id = json.loads((await enroll(bench, "--json"))[1])["device_id"]
    async with running(bench):
        await until(lambda: bench.server.connected(device_id))
        bench.server.ask(bench.rows.offer(device_id, number="42"))
        outcomes = []
        for pin, number in (("000000", "42"), (PIN, "4"), (PIN, "43")):
            secrets = given(pin)
            code, _, err = await command(
                home, "approve", "--json", "--number", number, "--pin-fd", str(secrets), secrets=secrets
            )
            error = json.loads(err.splitlines()[-1])["error"]
            outcomes.append((code, error["reason"], error.get("retries_left")))
    assert outcomes == [(1, "pin_wrong", 7), (1, "field_invalid", None), (1, "number_mismatch", None)]


async def test_enrolling_while_the_agent_runs(bench: AgentBench) -> None:
    async with running(bench):
        code, out, err = await enroll(bench, "--json")
        assert code == 0, err
        device_id = json.loads(out)["device_id"]
        await until(lambda: bench.server.connected(device_id))
        secrets = given(PIN, "918273")
        code, _, err = await command(
            bench.home.path, "pin", "--pin-fd", str(secrets), "--new-pin-fd", str(secrets), secrets=secrets
        )
        assert code == 0, err
        bench.server.ask(bench.rows.offer(device_id, number="42"))
        secrets = given("918273")
        code, _, err = await command(
            bench.home.path, "approve", "--number", "42", "--pin-fd", str(secrets), secrets=secrets
        )
        assert code == 0, err


async def test_run_with_json_tells_events(bench: AgentBench) -> None:
    device_id = json.loads((await enroll(bench, "--json"))[1])["device_id"]
    async with running(bench, "--json") as process:
        assert process.stdout is not None
        await until(lambda: bench.server.connected(device_id))
        row = bench.server.ask(bench.rows.offer(device_id, app_name="\u202eevil\n"))
        async with asyncio.timeout(10):
            while (event := json.loads(line := await process.stdout.readline()))["event"] != "prompt":
                pass
        assert (event["prompt_id"], event["app_name"]) == (row.prompt_id, "\u202eevil\n")
        assert line.isascii()


async def test_no_secret_in_the_daemons_arguments_environment_or_memory_map_a4(bench: AgentBench) -> None:
    await enroll(bench)
    async with running(bench) as process:
        proc = Path(f"/proc/{process.pid}")
        assert PIN.encode() not in (proc / "cmdline").read_bytes()
        # PR_SET_DUMPABLE 0 gives the files in /proc/<pid> to root, whoever runs the agent.
        assert (proc / "environ").stat().st_uid == 0


async def test_a_second_agent_of_the_same_home_is_refused(bench: AgentBench) -> None:
    async with running(bench):
        code, _, err = await command(bench.home.path, "run", "--json", "--quiet-prompts")
        assert (code, json.loads(err)["error"]["reason"]) == (1, "agent_running")


async def test_doctor_names_what_is_wrong_and_what_to_do(bench: AgentBench) -> None:
    home = bench.home.path
    assert (await enroll(bench))[0] == 0
    code, out, _ = await command(home, "doctor", "--json")
    checks = {check["check"]: check for check in json.loads(out)["checks"]}
    assert code == 0
    assert checks[f"server {bench.server.device_endpoint}"]["ok"]
    await bench.server.stop()
    code, out, _ = await command(home, "doctor")
    assert code == 1
    assert "PROBLEM server" in out
    assert "PIN tries left" in out


async def test_keys_are_labelled_honestly_h2(bench: AgentBench) -> None:
    await enroll(bench)
    _, out, _ = await command(bench.home.path, "keys")
    assert "software, protected by your PIN only" in out
    assert "sealed by file permissions only" in out


async def test_help_needs_no_home(tmp_path: Path) -> None:
    code, out, _ = await command(tmp_path / "none", "--help")
    assert (code, "approve" in out) == (0, True)
    assert not (tmp_path / "none").exists()


def test_no_terminal_and_no_descriptor_is_a_usage_error(tmp_path: Path) -> None:
    code, _, err = asyncio.run(command(tmp_path / "home", "pin"))
    assert code == 2
    assert "--pin-fd" in err
