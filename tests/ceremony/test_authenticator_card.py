"""`keyvouch-agent authenticator serve --vault pkcs11`: a process over SoftHSM2, real pcscd, python-fido2's client.

The client verifies its user by what the authenticator has built in: no client ever asks for a PIN.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyvouch_bench.pcscd import READER, PrivatePcscd
from keyvouch_bench.piv_card.reader import PivReader
from keyvouch_bench.softhsm import SoftHsmToken
from support.pkcs11_tokens import module_of
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

WRONG = "000000"
CLIENT = """
from fido2.client import ClientError, DefaultClientDataCollector, Fido2Client, UserInteraction
from fido2.server import Fido2Server
from fido2.webauthn import AttestedCredentialData, PublicKeyCredentialRpEntity, PublicKeyCredentialUserEntity

class Person(UserInteraction):
    def request_uv(self, permissions, rp_id):
        return True
    def request_pin(self, permissions, rp_id):
        raise AssertionError("a client asked for the PIN")

server = Fido2Server(PublicKeyCredentialRpEntity(name="Example", id="example.org"), attestation="direct")
client = Fido2Client(device, DefaultClientDataCollector("https://example.org"), Person())
ada = PublicKeyCredentialUserEntity(name="ada", id=b"ada", display_name="Ada")

def told(act):
    try:
        act()
    except ClientError as error:
        print(error.code.name, error.cause.code.name)

def register():
    creation, state = server.register_begin(
        ada, user_verification="required", resident_key_requirement="required")
    data = server.register_complete(state, client.make_credential(creation.public_key))
    assert data.is_user_verified() and data.is_user_present()
    print(data.credential_data.hex())

def sign_in(known):
    known = [AttestedCredentialData(bytes.fromhex(known))]
    request, state = server.authenticate_begin(user_verification="required")
    answer = client.get_assertion(request.public_key).get_response(0)
    server.authenticate_complete(state, known, answer)
    print("verified", answer.response.authenticator_data.is_user_verified())
"""
REGISTER = CLIENT + "register()"
TOLD = CLIENT + "told(register)"
AWAY = """
from fido2.ctap import CtapError
try:
    Ctap2(open_key())
except CtapError as error:
    print(error.code.name)
"""


def sign_in(known: str) -> str:
    return CLIENT + f"sign_in({known.strip()!r})"


@pytest.fixture
def pcscd(socket_directory: Path) -> Iterator[PrivatePcscd]:
    with PrivatePcscd(socket_directory) as running:
        yield running


@pytest.fixture
def serve(pcscd: PrivatePcscd, softhsm: SoftHsmToken) -> Iterator[tuple[str, ...]]:
    """The arguments of a command that serves the token in the virtual reader."""
    token = ("--module", softhsm.module, "--token", f"pkcs11:serial={softhsm.serial}")
    with pcscd.port() as port:
        yield ("--transport", "pcsc", "--vault", "pkcs11", *token, "--vpcd", f"127.0.0.1:{port}")


# Without anybody who is asked


def benched(home: Path, serve: tuple[str, ...], pin: str) -> ServedAuthenticator:
    return ServedAuthenticator(home, *serve, "--presence", "auto", pin=pin)


def test_keys_are_made_and_used_and_outlive_a_kill(
    tmp_path: Path, pcscd: PrivatePcscd, serve: tuple[str, ...], softhsm: SoftHsmToken
):
    home = tmp_path / "home"
    with benched(home, serve, softhsm.user_pin) as served:
        serving = served.wait_for("serving")
        assert (serving["token"], serving["serial"]) == (softhsm.label, softhsm.serial)
        made = run_client(pcscd.environment, REGISTER)
        assert run_client(pcscd.environment, sign_in(made)) == "verified True\n"
        served.end(signal.SIGKILL)
    wait_until_missed(pcscd.environment)
    with benched(home, serve, softhsm.user_pin) as served:
        assert run_client(pcscd.environment, sign_in(made)) == "verified True\n"
        assert served.end() == 0
    words = " ".join(served.said)
    assert "emulated token" in words
    assert softhsm.serial in words
    assert "WARNING: the card's PIN is kept in this program's memory" in words
    assert softhsm.user_pin not in words + str(served.seen)


def test_a_wrong_pin_ends_the_command_after_one_try(tmp_path: Path, serve: tuple[str, ...], softhsm: SoftHsmToken):
    with benched(tmp_path / "home", serve, WRONG) as served:
        assert served.status() == 1
    assert '"pin_wrong"' in str(served.said[-1])
    assert not [event for event in served.seen if event["event"] == "serving"]


def test_a_card_that_is_away_is_told_and_goes_on_when_it_is_back(
    tmp_path: Path, pcscd: PrivatePcscd, serve: tuple[str, ...], softhsm: SoftHsmToken
):
    home, tokens = tmp_path / "home", softhsm.hsm.folder / "tokens"
    with benched(home, serve, softhsm.user_pin) as served:
        made = run_client(pcscd.environment, REGISTER)
        served.end()
    wait_until_missed(pcscd.environment)
    tokens.rename(tokens.with_name("away"))
    tokens.mkdir()
    try:
        with benched(home, serve, softhsm.user_pin) as served:
            assert served.wait_for("card-away")["reason"] == "authenticator_not_connected"
            assert run_client(pcscd.environment, AWAY, connects=False) == "OTHER\n"
            told = served.wait_for("command", command="getInfo")
            assert told["reason"] == "authenticator_not_connected"
            tokens.rmdir()
            tokens.with_name("away").rename(tokens)
            assert run_client(pcscd.environment, sign_in(made)) == "verified True\n"
            served.end()
    finally:
        if tokens.with_name("away").exists():
            tokens.rmdir()
            tokens.with_name("away").rename(tokens)


def test_a_card_in_a_reader_beside_the_virtual_one(
    tmp_path: Path, private_pcscd: PrivatePcscd, issued_piv_card: PivReader, monkeypatch: pytest.MonkeyPatch
):
    configuration = tmp_path / "opensc.conf"
    configuration.write_text(f'app default {{ ignored_readers = "{READER} 00 00"; }}\n')
    monkeypatch.setenv("OPENSC_CONF", str(configuration))
    card = ("--transport", "pcsc", "--vault", "pkcs11", "--module", str(module_of("opensc")), "--shared-key")
    with private_pcscd.port() as port:
        arguments = (*card, "--vpcd", f"127.0.0.1:{port}")
        with benched(tmp_path / "home", arguments, issued_piv_card.card.pin) as served:
            made = run_client(private_pcscd.environment, REGISTER)
            issued_piv_card.remove()
            assert run_client(private_pcscd.environment, AWAY, connects=False) == "OTHER\n"
            issued_piv_card.insert()
            assert run_client(private_pcscd.environment, sign_in(made)) == "verified True\n"
            assert served.end() == 0
    wait_until_missed(private_pcscd.environment)
    assert "WARNING: --shared-key" in " ".join(served.said)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--vault", "pkcs11"), "--pin-fd"),
        (("--vault", "pkcs11", "--pin-fd", "0", "--last-try"), "last try"),
        (("--vault", "pkcs11", "--pin-fd", "0", "--presence", "prompt"), "what she types"),
        (("--vault", "pkcs11", "--user-verification", "optional"), "always take the PIN"),
        (("--vault", "software", "--pin-fd", "0"), "for keys on a card"),
        (("--vault", "software", "--shared-key"), "for keys on a card"),
        (("--vault", "tpm", "--token", "pkcs11:token=x"), "for keys on a card"),
    ],
)
def test_what_cannot_be_is_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], words: str):
    done = run_program(
        "keyvouch-agent", "authenticator", "serve", "--home", str(tmp_path / "home"), "--transport", "pcsc",
        "--presence", "auto", *arguments,
    )  # fmt: skip
    assert done.returncode == 2
    assert words in done.stderr


# In a terminal

PIN_QUESTION = "The card's PIN.*, or just Enter to refuse: "
PRESENT = r"Is that you\? \(y, n\): "


@pytest.fixture
def terminal(tmp_path: Path, serve: tuple[str, ...]) -> Iterator[ShellTerminal]:
    """A terminal in which it is served."""
    python = f'keyvouch() {{ {shlex.quote(sys.executable)} -m keyvouch_agent "$@"; }}'
    with shell_terminal(tmp_path, os.environ | {"PYTHONPATH": PYTHON_PATH}) as opened:
        opened.type(python)
        opened.type(f"keyvouch authenticator serve --home home {shlex.join(serve)}")
        see(opened, "power-on|inserted")
        yield opened
        opened.interrupt()
        see(opened, r"<(0|130)>\$ $")


def see(terminal: ShellTerminal, pattern: str, answers: Answers | None = None) -> str:
    """Wait until the screen shows it, answering meanwhile."""
    end = time.monotonic() + SECONDS
    while not re.search(pattern, terminal.look()):
        assert time.monotonic() < end, terminal.screen
        terminal.answer(answers or {})
        time.sleep(0.02)
    return terminal.screen


def test_the_pin_and_then_presence_are_asked_in_the_terminal(
    terminal: ShellTerminal, pcscd: PrivatePcscd, softhsm: SoftHsmToken
):
    answers: Answers = {PIN_QUESTION: lambda: softhsm.user_pin, PRESENT: lambda: "y"}
    client = start_client(pcscd.environment, REGISTER)
    screen = see(terminal, "makeCredential SUCCESS", answers)
    made = result_of(client)
    assert re.search(r"wants to make a new key.*\n  Site  example.org\n", screen)
    assert "User  ada" in screen
    assert softhsm.user_pin not in screen
    client = start_client(pcscd.environment, sign_in(made))
    see(terminal, "getAssertion SUCCESS", answers)
    assert result_of(client) == "verified True\n"


def test_a_wrong_pin_is_told_on_both_sides(terminal: ShellTerminal, pcscd: PrivatePcscd, softhsm: SoftHsmToken):
    client = start_client(pcscd.environment, TOLD)
    see(terminal, "clientPIN UV_INVALID pin_wrong The PIN is wrong", {PIN_QUESTION: lambda: WRONG})
    assert "UV_INVALID" in result_of(client)
    client = start_client(pcscd.environment, TOLD)
    see(terminal, "clientPIN OPERATION_DENIED", {PIN_QUESTION: lambda: ""})
    assert "OPERATION_DENIED" in result_of(client)
    client = start_client(pcscd.environment, REGISTER)
    see(terminal, "makeCredential SUCCESS", {PIN_QUESTION: lambda: softhsm.user_pin, PRESENT: lambda: "y"})
    assert result_of(client)


CANCEL = (
    CLIENT
    + """
from pathlib import Path
from threading import Event
from fido2.ctap import CtapError

class SeenOnTheScreen(Event):
    def wait(self, timeout=None):
        return Path(SEEN).exists() or super().wait(timeout)

try:
    ClientPin(ctap).get_uv_token(ClientPin.PERMISSION.GET_ASSERTION, "example.org", event=SeenOnTheScreen())
except CtapError as error:
    print(error.code.name)
"""
)


def test_a_client_that_cancels_takes_the_question_for_the_pin_back(
    terminal: ShellTerminal, pcscd: PrivatePcscd, tmp_path: Path
):
    seen = tmp_path / "seen"
    client = start_client(pcscd.environment, f"SEEN = {str(seen)!r}\n" + CANCEL)
    see(terminal, PIN_QUESTION)
    seen.touch()
    see(terminal, "withdrawn its question")
    see(terminal, "clientPIN KEEPALIVE_CANCEL")
    assert result_of(client) == "KEEPALIVE_CANCEL\n"


def test_it_ends_cleanly_in_the_middle_of_the_question_for_the_pin(
    terminal: ShellTerminal, pcscd: PrivatePcscd, softhsm: SoftHsmToken
):
    client = start_client(pcscd.environment, REGISTER)
    see(terminal, PIN_QUESTION)
    terminal.interrupt()
    see(terminal, r"<0>\$ $")
    client.kill()
    client.communicate(timeout=SECONDS)
    terminal.type("echo seen $((6*7))")  # control: what is typed now shows again
    screen = see(terminal, "seen 42")
    assert "echo seen $((6*7))" in screen
