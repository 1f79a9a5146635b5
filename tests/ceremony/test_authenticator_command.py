"""`keyvouch-agent authenticator serve` as people run it: its own process, real pcscd, clients in other processes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyvouch_bench.pcscd import PrivatePcscd
from keyvouch_bench.swtpm import Swtpm
from support.programs import PYTHON_PATH, run_program
from support.served_authenticator import (
    SECONDS,
    ServedAuthenticator,
    result_of,
    run_client,
    start_client,
    wait_until_missed,
)
from support.shell_terminal import Answers, ShellTerminal, shell_terminal

PCSC = ("--transport", "pcsc", "--vault", "software")
AUTO = ("--presence", "auto")

MAKE = """
made = ctap.make_credential(
    bytes(32), {"id": "example.org", "name": "Example"}, {"id": b"user", "name": "ada"},
    [{"type": "public-key", "alg": -7}], options={"rk": True})
print(made.auth_data.credential_data.credential_id.hex())
"""
ASSERT = """
found = ctap.get_assertion("example.org", bytes(32))
print(found.credential["id"].hex())
"""
INFO = "import json; print(json.dumps([ctap.info.versions, dict(ctap.info.options), ctap.info.transports]))"


@pytest.fixture
def pcscd(socket_directory: Path) -> Iterator[PrivatePcscd]:
    with PrivatePcscd(socket_directory) as running:
        yield running


@pytest.fixture
def reader(pcscd: PrivatePcscd) -> Iterator[str]:
    """The address of the virtual reader, for another process."""
    with pcscd.port() as port:
        yield f"127.0.0.1:{port}"


def test_any_program_finds_a_security_key_that_lasts(tmp_path: Path, pcscd: PrivatePcscd, reader: str):
    home = tmp_path / "home"
    with ServedAuthenticator(home, *PCSC, *AUTO, "--vpcd", reader) as first:
        first.wait_for("inserted")
        made = run_client(pcscd.environment, MAKE)
        assert first.wait_for("command", command="makeCredential")["status"] == "SUCCESS"
        assert first.end() == 0
    wait_until_missed(pcscd.environment)
    with ServedAuthenticator(home, *PCSC, *AUTO, "--vpcd", reader) as second:
        assert run_client(pcscd.environment, ASSERT) == made
        assert second.end(signal.SIGINT) == 0
    assert second.seen[-1]["event"] == "ended"
    assert stat.S_IMODE((home / "authenticator-software").stat().st_mode) == 0o700


def test_it_is_there_again_after_pcscd_was_away(tmp_path: Path, pcscd: PrivatePcscd, reader: str):
    with ServedAuthenticator(tmp_path / "home", *PCSC, *AUTO, "--vpcd", reader) as served:
        made = run_client(pcscd.environment, MAKE)
        pcscd.restart()
        served.wait_for("reader-gone")
        served.wait_for("inserted")
        assert run_client(pcscd.environment, ASSERT) == made
        assert served.end() == 0


def test_what_it_says_of_itself_is_true(tmp_path: Path, pcscd: PrivatePcscd, reader: str):
    with ServedAuthenticator(tmp_path / "optional", *PCSC, *AUTO, "--vpcd", reader) as served:
        versions, options, transports = json.loads(run_client(pcscd.environment, INFO))
        served.end()
    assert "U2F_V2" in versions
    assert not options.get("alwaysUv")
    assert transports == ["nfc", "smart-card"]
    words = " ".join(served.said)
    assert "in a file of yours" in words
    assert "anybody at this computer can use the keys" in words


def test_with_verification_always_no_key_is_made_without_a_pin(tmp_path: Path, pcscd: PrivatePcscd, reader: str):
    always = ("--user-verification", "always", "--vpcd", reader)
    with ServedAuthenticator(tmp_path / "always", *PCSC, *AUTO, *always) as served:
        versions, options, _ = json.loads(run_client(pcscd.environment, INFO))
        assert "U2F_V2" not in versions
        assert options["alwaysUv"]
        refused = "from fido2.ctap import CtapError\ntry:\n" + MAKE.replace("\n", "\n    ")
        refused += "\nexcept CtapError as error:\n    print(error.code.name)\n"
        assert run_client(pcscd.environment, refused).strip() == "PUAT_REQUIRED"
        served.end()
    assert "anybody at this computer" not in " ".join(served.said)


def test_granting_everything_is_said_loudly_and_in_every_line(tmp_path: Path, pcscd: PrivatePcscd, reader: str):
    with ServedAuthenticator(tmp_path / "home", *PCSC, *AUTO, "--vpcd", reader) as served:
        run_client(pcscd.environment, INFO)
        served.end()
    assert any("WARNING" in words and "nobody is asked" in words for words in served.said)
    assert all(document["presence"] == "auto" for document in served.seen)


def test_without_a_terminal_nobody_can_be_asked(tmp_path: Path):
    done = run_program(
        "keyvouch-agent", "authenticator", "serve", "--home", str(tmp_path / "home"), *PCSC, "--vpcd", "127.0.0.1:1"
    )
    assert done.returncode == 2
    assert "no terminal" in done.stderr
    assert "--presence auto" in done.stderr


def test_a_reader_that_is_not_there_says_what_to_install(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with ServedAuthenticator(tmp_path / "home", *PCSC, *AUTO, "--vpcd", f"127.0.0.1:{port}") as served:
        assert served.status() == 1
    failure = json.loads(served.said[-1])["error"]
    assert failure["reason"] == "reader_unavailable"
    assert "vsmartcard-vpcd" in failure["fix"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--transport", "pcsc", "--vault", "tpm", "--user-verification", "optional"),
        (*PCSC, "--vpcd", "192.0.2.1:35963"),
        ("--transport", "pcsc"),
        ("--vault", "software"),
        (*PCSC, "--presence", "never"),
    ],
)
def test_what_cannot_be_is_wrong_usage(tmp_path: Path, arguments: tuple[str, ...]):
    done = run_program("keyvouch-agent", "authenticator", "serve", "--home", str(tmp_path), *AUTO, *arguments)
    assert done.returncode == 2


def test_a_second_one_over_the_same_keys_is_refused(tmp_path: Path, pcscd: PrivatePcscd, reader: str):
    home = tmp_path / "home"
    with ServedAuthenticator(home, *PCSC, *AUTO, "--vpcd", reader) as served:
        served.wait_for("serving")
        done = run_program("keyvouch-agent", "authenticator", "serve", "--home", str(home), "--json", *PCSC, *AUTO)
        assert done.returncode == 1
        assert json.loads(done.stderr.splitlines()[-1])["error"]["reason"] == "vault_busy"
        served.end()


# In a terminal

SELECT = "ctap.selection(); print('selected')"
CODE = """
from fido2.ctap import CtapError
try:
    ctap.make_credential(
        bytes(32), {"id": "example.org\\x1b[2J", "name": "Example"}, {"id": b"user", "name": "ada\\u202e"},
        [{"type": "public-key", "alg": -7}])
except CtapError as error:
    print(error.code.name)
"""
QUESTION = r"Is that you\? \(y, n\): "


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[ShellTerminal]:
    python = f'keyvouch() {{ {shlex.quote(sys.executable)} -m keyvouch_agent "$@"; }}'
    with shell_terminal(tmp_path, os.environ | {"PYTHONPATH": PYTHON_PATH}) as opened:
        opened.type(python)
        yield opened


def see(terminal: ShellTerminal, pattern: str, answers: Answers | None = None) -> str:
    """Wait until the screen shows it, answering meanwhile."""
    end = time.monotonic() + SECONDS
    while not re.search(pattern, terminal.look()):
        assert time.monotonic() < end, terminal.screen
        terminal.answer(answers or {})
        time.sleep(0.02)
    return terminal.screen


def test_the_person_at_the_terminal_is_asked(terminal: ShellTerminal, pcscd: PrivatePcscd, reader: str):
    terminal.type(f"keyvouch authenticator serve --home home {' '.join(PCSC)} --vpcd {reader}")
    see(terminal, "power-on|inserted")
    client = start_client(pcscd.environment, SELECT)
    see(terminal, "selection SUCCESS", {QUESTION: lambda: "y"})
    assert result_of(client) == "selected\n"
    client = start_client(pcscd.environment, CODE)
    screen = see(terminal, "makeCredential OPERATION_DENIED", {QUESTION: lambda: "n"})
    assert result_of(client) == "OPERATION_DENIED\n"
    assert "A client wants to make a new key." in screen
    assert "example.org<U+001B>[2J" in screen
    assert "ada<U+202E>" in screen
    terminal.interrupt()
    see(terminal, r"<0>\$ $")
    assert "WARNING" not in screen


POLL = """
from fido2.ctap1 import ApduError, Ctap1
try:
    Ctap1(device).register(bytes(32), bytes(32))
except ApduError:
    print("asked", flush=True)
for _ in range(40):
    ctap.get_info()
"""


def test_a_client_cannot_push_a_question_off_the_screen(terminal: ShellTerminal, pcscd: PrivatePcscd, reader: str):
    terminal.type(f"keyvouch authenticator serve --home home {' '.join(PCSC)} --vpcd {reader}")
    see(terminal, "power-on|inserted")
    client = start_client(pcscd.environment, POLL)
    see(terminal, QUESTION)
    assert result_of(client) == "asked\n"
    screen = see(terminal, "withdrawn its question")
    before, after = screen.split("A client wants to make a new key.")
    assert "getInfo" in before  # control
    assert "getInfo" not in after
    terminal.interrupt()
    see(terminal, r"<0>\$ $")


def test_it_ends_cleanly_in_the_middle_of_a_question(terminal: ShellTerminal, pcscd: PrivatePcscd, reader: str):
    terminal.type(f"keyvouch authenticator serve --home home {' '.join(PCSC)} --vpcd {reader}")
    see(terminal, "power-on|inserted")
    client = start_client(pcscd.environment, SELECT)
    see(terminal, QUESTION)
    terminal.interrupt()
    see(terminal, r"<0>\$ $")
    client.kill()
    client.communicate(timeout=SECONDS)


# With the keys in a TPM


def test_the_keys_are_in_the_tpm_and_take_the_pin(tmp_path: Path, pcscd: PrivatePcscd, reader: str, tpm: Swtpm):
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    settings = home / "agent.toml"
    settings.touch(0o600)
    settings.write_text(f'[tpm]\ntcti = "{tpm.tcti}"\n')
    arguments = ("--transport", "pcsc", "--vault", "tpm", *AUTO, "--vpcd", reader)
    with ServedAuthenticator(home, *arguments) as served:
        made = run_client(pcscd.environment, WITH_PIN + "pin.set_pin('492817')\n" + MAKE_WITH_PIN)
        assert "emulated TPM" in " ".join(served.said)
        assert served.end() == 0
    wait_until_missed(pcscd.environment)
    with ServedAuthenticator(home, *arguments) as served:
        assert run_client(pcscd.environment, WITH_PIN + ASSERT_WITH_PIN) == made
        served.end()


WITH_PIN = """
pin = ClientPin(ctap)
def allowed(permission):
    token = pin.get_pin_token("492817", permission, "example.org")
    return {"pin_uv_param": pin.protocol.authenticate(token, bytes(32)), "pin_uv_protocol": pin.protocol.VERSION}
"""
MAKE_WITH_PIN = """
made = ctap.make_credential(
    bytes(32), {"id": "example.org", "name": "Example"}, {"id": b"user", "name": "ada"},
    [{"type": "public-key", "alg": -7}], options={"rk": True}, **allowed(1))
print(made.auth_data.credential_data.credential_id.hex())
"""
ASSERT_WITH_PIN = """
found = ctap.get_assertion("example.org", bytes(32), **allowed(2))
print(found.credential["id"].hex())
"""
