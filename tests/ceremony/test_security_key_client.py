"""A whole sign-in with a security key: server, SDK and command, python-fido2 and our own engine as the key."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fido2.ctap import CtapDevice
from fido2.ctap2.base import Ctap2
from fido2.ctap2.pin import ClientPin

from keyvouch.client_data import CollectedClientData
from keyvouch.errors import DeviceError, EvidenceError, Reason, UnauthenticatedError, UsageError
from keyvouch.ids import ServerId
from keyvouch.proofs import sign_proof
from keyvouch.statement import Purpose, challenge
from keyvouch.v1 import enrolment_pb2
from keyvouch.webauthn import AttestationObject
from keyvouch_bench.virtual_fido import SecurityKey
from keyvouch_client import SecurityKeySignIn
from keyvouch_client.commands.invocation import Invocation
from keyvouch_client.commands.output import Output
from keyvouch_client.commands.security_key import with_security_key
from keyvouch_client.connected_signer import ConnectedSigner
from keyvouch_client.errors import answer
from keyvouch_client.security_key import KeyAssertion, KeyRequest
from keyvouch_client.session_file import SessionFile, Target
from keyvouch_server.domain.model import SignIn
from support.key_desk import enrolment_of
from support.live_server import LIMIT, LiveServer
from support.security_keys import Bench, KeyOnBench
from support.shell_terminal import shell_terminal

PIN = "123456"
SHOP = {"tenant": "example", "app_id": "shop", "app_name": "Shop"}


@dataclass
class Person:
    """Types one PIN."""

    pins: list[str] = field(default_factory=lambda: [PIN])

    def connect(self, *, another: bool) -> None:
        raise AssertionError("the key is there")

    def touch(self, names: Sequence[str]) -> None:
        assert names

    def pin(self, name: str, tries_left: int | None, *, wrong: bool, cancelled: Event) -> str | None:
        return self.pins.pop(0) if self.pins else None


async def enrolled_key(live: LiveServer, username: str = "ada", name: str = "Bench Key") -> KeyOnBench:
    """A security key of a new user."""
    key = KeyOnBench(name)
    key.set_pin(PIN)
    device = key.device()
    try:
        await enrol(live, username, device, PIN)
    finally:
        device.close()
    return key


async def enrol(live: LiveServer, username: str, device: CtapDevice, pin_text: str) -> None:
    """Register a security key for a new user, as an agent does."""
    await live.create_user(username)
    begun = await enrolment_of(live, username)
    statement = begun.begun.statement
    expected = challenge(Purpose.REGISTRATION, statement)
    client_data = CollectedClientData.build("webauthn.create", expected, "keyvouch-agent://localhost")
    ctap = Ctap2(device)
    pin = ClientPin(ctap)
    token = pin.get_pin_token(pin_text, ClientPin.PERMISSION.MAKE_CREDENTIAL, "localhost")
    digest = hashlib.sha256(client_data).digest()
    made = ctap.make_credential(
        digest,
        {"id": "localhost", "name": "Keyvouch"},
        {"id": begun.begun.user_handle, "name": username, "displayName": username},
        [{"type": "public-key", "alg": -7}],
        pin_uv_param=pin.protocol.authenticate(token, digest),
        pin_uv_protocol=pin.protocol.VERSION,
    )
    request = enrolment_pb2.CompleteRegistrationRequest(
        client_data_json=bytes(client_data),
        attestation_object=bytes(AttestationObject.build(made.fmt, bytes(made.auth_data), made.att_stmt)),
        channel_proof=sign_proof(begun.channel_key, Purpose.CHANNEL, statement),
    )
    token_header = (("authorization", f"Registration {begun.begun.registration_token}"),)
    await answer(live.enrolment.CompleteRegistration(request, metadata=token_header, timeout=LIMIT))


def signer(*keys: KeyOnBench, person: Person | None = None) -> ConnectedSigner:
    return ConnectedSigner(person or Person(), Bench().put_in(*keys).keys, seconds=20)


async def states(live: LiveServer) -> list[str]:
    """The states of all sign-ins with a security key, in the order they began."""
    rows = await live.app.store.read(lambda tx: tx.find(SignIn, {"security_key": True}, order="created_at"))
    return [row.state for row in rows]


# the SDK


async def test_a_security_key_opens_a_session_without_any_agent(live: LiveServer):
    key = await enrolled_key(live)
    for _ in range(2):  # the counter of the key and that of the server go together
        async with SecurityKeySignIn(live.connection, username="ada", **SHOP) as sign_in:
            session = await sign_in.session(signer(key))
        assert (session.details.username, session.details.acr) == ("ada", "phishing-resistant")
        assert list(session.details.amr) == ["swk", "user", "pin", "mfa"]
        before = session.tokens.refresh_token
        await session.refresh()
        assert session.tokens.refresh_token != before


async def test_of_several_keys_the_users_own_is_used(live: LiveServer):
    ada, eve = await enrolled_key(live, "ada", "hers"), await enrolled_key(live, "eve", "eves")
    async with SecurityKeySignIn(live.connection, username="ada", **SHOP) as sign_in:
        assert (await sign_in.session(signer(eve, ada))).details.username == "ada"


async def test_a_key_that_is_not_registered_signs_nothing_P12(live: LiveServer):
    await enrolled_key(live)
    stranger = KeyOnBench("other")
    stranger.set_pin(PIN)
    for username in ("ada", "nobody"):
        async with SecurityKeySignIn(live.connection, username=username, **SHOP) as sign_in:
            with pytest.raises(DeviceError) as refusal:
                await sign_in.session(signer(stranger))
        assert refusal.value.reason is Reason.KEY_NOT_FOUND
    assert set(await states(live)) == {"cancelled"}


async def test_after_a_key_that_failed_another_try_is_free(live: LiveServer):
    key = await enrolled_key(live)
    async with SecurityKeySignIn(live.connection, username="ada", **SHOP) as sign_in:
        with pytest.raises(DeviceError) as refusal:
            await sign_in.session(signer(key, person=Person(["000000"])))
        assert refusal.value.reason is Reason.PIN_WRONG
        assert (await sign_in.session(signer(key))).details.username == "ada"


class Forger:
    """Answers for the first credential it is asked for, with a signature of nobody."""

    def __init__(self, data: bytes = bytes(37)) -> None:
        self.data = data
        self.asked: KeyRequest | None = None

    def sign(self, request: KeyRequest, cancelled: Event) -> KeyAssertion:
        self.asked = request
        return KeyAssertion(next(iter(request.client_data)), self.data, b"0" * 70)


async def test_what_the_server_refuses_is_told_and_another_try_is_free(live: LiveServer):
    key = await enrolled_key(live)
    async with SecurityKeySignIn(live.connection, username="ada", **SHOP) as sign_in:
        forger = Forger()
        with pytest.raises(UnauthenticatedError) as refusal:
            await sign_in.session(forger)
        assert refusal.value.reason is Reason.SECURITY_KEY_REFUSED
        assert forger.asked is not None
        assert {json.loads(data)["origin"] for data in forger.asked.client_data.values()} == {
            "keyvouch-client://localhost"
        }
        assert (await sign_in.session(signer(key))).details.username == "ada"


async def test_a_server_under_another_name_or_identity_gets_no_signature_P3(live: LiveServer):
    await enrolled_key(live)
    for changes in ({"rp_id": "keys.example.org"}, {"server_id": ServerId(bytes(32))}):
        with pytest.raises(EvidenceError) as refusal:
            async with SecurityKeySignIn(live.connection, username="ada", **SHOP, **changes):  # type: ignore[arg-type]
                raise AssertionError("nothing is asked of a key")
        assert refusal.value.reason is Reason.WRONG_SERVER
    assert set(await states(live)) == {"cancelled"}
    known = (await live.connection.identity()).server_id
    async with SecurityKeySignIn(live.connection, username="ada", **SHOP, rp_id="localhost", server_id=known):
        pass


async def test_leaving_early_withdraws_it_and_stops_the_key(live: LiveServer):
    key = await enrolled_key(live)
    key.finger.always = False
    key.finger.is_asked.clear()

    async def attempt() -> None:
        async with SecurityKeySignIn(live.connection, username="ada", **SHOP) as sign_in:
            await sign_in.session(signer(key))

    task = asyncio.create_task(attempt())
    assert await asyncio.to_thread(key.finger.is_asked.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await states(live) == ["cancelled"]
    assert key.open == 0


async def test_it_has_to_begin_first(live: LiveServer):
    sign_in = SecurityKeySignIn(live.connection, username="ada", **SHOP)
    with pytest.raises(UsageError):
        await sign_in.session(Forger())


# the command


def invocation(live: LiveServer, folder: Path, **given: Any) -> tuple[Invocation, io.StringIO, io.StringIO]:
    """The command `sign-in --security-key`, as far as it is about the key."""
    arguments = argparse.Namespace(
        app="Command line", audience="keyvouch", message="", rp_id="", pin_fd=None, security_key=True
    )
    out, err = io.StringIO(), io.StringIO()
    output = Output(as_json=given.pop("as_json", False), stdout=out, stderr=err)
    for name, value in given.items():
        setattr(arguments, name, value)
    return Invocation(arguments, output, SessionFile(folder)), out, err


def pin_pipe(pin: str) -> int:
    """A descriptor a PIN is read from."""
    reading, writing = os.pipe()
    os.write(writing, f"{pin}\n".encode())
    os.close(writing)
    return reading


@pytest.mark.parametrize("as_json", [False, True])
async def test_the_command_says_what_to_do_and_reads_the_pin_from_a_descriptor(
    live: LiveServer, tmp_path: Path, as_json: bool
):
    key = await enrolled_key(live, name="Bench\x1b[31m Key")
    run, out, err = invocation(live, tmp_path, pin_fd=pin_pipe(PIN), as_json=as_json)
    target = Target(tenant="example", username="ada")
    session = await with_security_key(
        run, live.connection, target, None, app_id="keyvouch-cli", keys=Bench().put_in(key).keys
    )
    assert session.details.username == "ada"
    os.close(run.arguments.pin_fd)
    if not as_json:
        assert err.getvalue() == "Touch Bench\N{REPLACEMENT CHARACTER}[31m Key.\n"
        assert out.getvalue() == ""
        return
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert events == [
        {"event": "pin", "key": key.name, "tries_left": 8, "wrong": False},
        {"event": "touch", "keys": [key.name]},
    ]
    assert PIN not in out.getvalue() + err.getvalue()


async def test_a_wrong_pin_of_a_descriptor_is_tried_once_H3(live: LiveServer, tmp_path: Path):
    key = await enrolled_key(live)
    run, _, _ = invocation(live, tmp_path, pin_fd=pin_pipe("000000"))
    target = Target(tenant="example", username="ada")
    with pytest.raises(DeviceError) as refusal:
        await with_security_key(
            run, live.connection, target, None, app_id="keyvouch-cli", keys=Bench().put_in(key).keys
        )
    assert (refusal.value.reason, refusal.value.retries_left) == (Reason.PIN_WRONG, 7)
    os.close(run.arguments.pin_fd)


async def test_the_command_with_a_key_on_a_reader(live: LiveServer, tmp_path: Path, fido_reader: SecurityKey):
    """The real command in a process of its own, the real pcscd, and a key on one of its readers."""
    pin = await asyncio.to_thread(fido_reader.pin)
    await enrol(live, "ada", fido_reader.device, pin)
    fido_reader.device.close()
    where = ("--server", live.connection.server, "--ca", str(live.data / "ca.pem"), "--tenant", "example")
    environment = {**os.environ, "KEYVOUCH_HOME": str(tmp_path / "home")}
    for username, status in (("ada", 0), ("nobody", 1)):
        descriptor = pin_pipe(pin)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "keyvouch_client", "sign-in", *where, "--user", username, "--security-key",
            "--pin-fd", str(descriptor), "--json", env=environment, pass_fds=(descriptor,),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 4 * LIMIT)
        os.close(descriptor)
        assert process.returncode == status, (out, err)
        last = json.loads(out.splitlines()[-1])
        if status == 0:
            assert (last["session"]["username"], last["session"]["acr"]) == ("ada", "phishing-resistant")
        else:
            assert json.loads(err.splitlines()[-1])["error"]["reason"] == Reason.KEY_NOT_FOUND


async def test_the_command_waits_for_a_key_and_ctrl_c_withdraws_the_sign_in(live: LiveServer, tmp_path: Path):
    await enrolled_key(live)
    where = ("--server", live.connection.server, "--ca", str(live.data / "ca.pem"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "keyvouch_client", "sign-in", *where, "--tenant", "example", "--user", "ada",
        "--security-key", "--json",
        env={**os.environ, "KEYVOUCH_HOME": str(tmp_path / "home")},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(LIMIT):
        assert json.loads(await process.stdout.readline()) == {"event": "connect", "another": False}
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in err  # what the key says to nobody is no news
    assert await states(live) == ["cancelled"]


@pytest.mark.parametrize("words", [("--pin-fd", "0"), ("--rp-id", "x"), ("--access-pass", "--security-key")])
async def test_options_that_do_not_go_together(tmp_path: Path, words: tuple[str, ...]):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "keyvouch_client", "sign-in", "--server", "localhost:1", "--tenant", "t", "--user", "u",
        *words, "--json", env={**os.environ, "KEYVOUCH_HOME": str(tmp_path)}, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, err = await asyncio.wait_for(process.communicate(), LIMIT)
    assert process.returncode == 2
    assert json.loads(err)["error"]["reason"] == "usage"


# the terminal

ASKING = """
import sys, threading
from keyvouch_client.commands.secrets_typed import type_secret
cancelled = threading.Event()
if len(sys.argv) > 1:
    threading.Timer(0.5, cancelled.set).start()
found = type_secret("PIN of Key (8 tries left): ", what="the PIN", instead="--pin-fd", cancelled=cancelled)
print("found", None if found is None else len(found))
"""


def wait_for_status(terminal: Any, seconds: float = 20.0) -> str:
    end = time.monotonic() + seconds
    while terminal.look() is not None and terminal.status() is None:
        assert time.monotonic() < end, terminal.screen
        terminal.answer({r"tries left\): ": lambda: "geheim42"})
        time.sleep(0.02)
    screen: str = terminal.screen
    return screen


def test_a_pin_is_typed_unseen_A4(tmp_path: Path) -> None:
    (tmp_path / "ask.py").write_text(ASKING)
    with shell_terminal(tmp_path, {**os.environ}) as terminal:
        terminal.type(f"{sys.executable} ask.py")
        screen = wait_for_status(terminal)
        assert "found 8" in screen
        assert "geheim42" not in screen
        start = terminal.type(f"{sys.executable} -c \"print('seen again')\"")
        wait_for_status(terminal)
        assert "seen again" in terminal.screen[start:]


def test_a_question_nobody_needs_any_more_ends(tmp_path: Path) -> None:
    (tmp_path / "ask.py").write_text(ASKING)
    with shell_terminal(tmp_path, {**os.environ}) as terminal:
        terminal.type(f"{sys.executable} ask.py cancelled")
        end = time.monotonic() + 20
        while terminal.look() is not None and terminal.status() is None:
            assert time.monotonic() < end, terminal.screen
            time.sleep(0.02)
        assert "found None" in terminal.screen
