"""The contract of `ChannelKey`: one body for every kind, over real mutual TLS.

A key the TLS library cannot hold signs through gRPC's custom signer; the kind `signed` is a software key that it gets
no hold of. Faults are of the signer, so there each kind is put behind one.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from cryptography import x509

from keyvouch.errors import DeviceError, Reason, UnavailableError
from keyvouch.proofs import load_proof_key, spki_of, verify_proof
from keyvouch.statement import Purpose
from keyvouch_agent.agent_ports import LinkState, ServerEvent
from keyvouch_agent.backoff import Backoff
from keyvouch_agent.channel_keys import ChannelKey, ChannelKeys, SealedChannelKeys, prove
from keyvouch_agent.rpc.prompt_stream import PromptStream
from keyvouch_agent.rpc.signed_channel import ChannelSigner
from support.channel_door import Door, grpc_door, tls_door, who


class SignedKey:
    """A key behind the custom signer, and what happens whenever it is to sign."""

    def __init__(self, key: ChannelKey, before: Callable[[], None] = lambda: None) -> None:
        self._key = key
        self._before = before
        self.spki, self.stored, self.protection = key.spki, key.stored, key.protection

    def sign(self, message: bytes) -> bytes:
        self._before()
        return self._key.sign(message)


class SignedKeys:
    """`ChannelKeys` of such keys, over those of another kind."""

    def __init__(self, keys: ChannelKeys, before: Callable[[], None] = lambda: None) -> None:
        self._keys = keys
        self._before = before

    def make(self) -> ChannelKey:
        return SignedKey(self._keys.make(), self._before)

    def knows(self, stored: bytes) -> bool:
        return self._keys.knows(stored)

    def load(self, stored: bytes) -> ChannelKey:
        return SignedKey(self._keys.load(stored), self._before)


def sealed(_request: pytest.FixtureRequest) -> ChannelKeys:
    return SealedChannelKeys()


def signed(_request: pytest.FixtureRequest) -> ChannelKeys:
    return SignedKeys(SealedChannelKeys())


def tpm(request: pytest.FixtureRequest) -> ChannelKeys:
    from keyvouch_agent.vaults.tpm.channel_key import TpmChannelKeys
    from keyvouch_agent.vaults.tpm.connection import TpmAccess, TpmSettings

    return TpmChannelKeys(TpmAccess(TpmSettings(tcti=request.getfixturevalue("tpm").tcti)))


@pytest.fixture(params=[sealed, signed, tpm], ids=lambda kind: kind.__name__)
def keys(request: pytest.FixtureRequest) -> ChannelKeys:
    made: ChannelKeys = request.param(request)
    return made


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with grpc_door() as opened:
        yield opened


async def visit(door: Door, key: ChannelKey, keys: ChannelKeys, *, seconds: float = 10.0) -> bytes:
    """Connect anew, and return the key the door saw, in DER."""
    channel = door.channel(key, keys)
    try:
        certificate = x509.load_pem_x509_certificate(await who(channel, seconds=seconds))
    finally:
        await channel.close()
    return spki_of(certificate.public_key())  # type: ignore[arg-type]


async def signing_threads_end() -> None:
    """Wait until no signature is under way."""
    for thread in [t for t in threading.enumerate() if t.name == "channel-key"]:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()


def test_a_stored_key_is_the_same_key(keys: ChannelKeys) -> None:
    key, other = keys.make(), keys.make()
    again = keys.load(key.stored)
    assert keys.knows(key.stored)
    assert (again.spki, again.stored, again.protection) == (key.spki, key.stored, key.protection)
    assert other.spki != key.spki
    assert len(key.stored) <= 1024
    load_proof_key(key.spki)  # P-256, in the one form that is accepted


def test_proofs_verify_and_are_for_one_purpose(keys: ChannelKeys) -> None:
    key = keys.make()
    signature = prove(keys.load(key.stored), Purpose.SIGN_IN, b"statement")
    verify_proof(load_proof_key(key.spki), Purpose.SIGN_IN, b"statement", signature=signature)
    for purpose, statement in ((Purpose.CHANNEL, b"statement"), (Purpose.SIGN_IN, b"another")):
        with pytest.raises(Exception, match="does not prove possession"):
            verify_proof(load_proof_key(key.spki), purpose, statement, signature=signature)


async def test_the_server_sees_the_key(door: Door, keys: ChannelKeys) -> None:
    key = keys.make()
    assert await visit(door, key, keys) == key.spki


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2], ids=lambda v: v.name)
async def test_both_versions_of_tls_are_signed_for(keys: ChannelKeys, version: ssl.TLSVersion, tmp_path: Path) -> None:
    key = keys.make()
    async with tls_door(tmp_path, version) as door:
        with pytest.raises(UnavailableError):  # it speaks TLS, and nothing after it
            await visit(door, key, keys, seconds=2)
        async with asyncio.timeout(5):
            spoken, certificate = await door.seen.get()
    assert spoken == {"TLSv1_3": "TLSv1.3", "TLSv1_2": "TLSv1.2"}[version.name]
    assert certificate is not None
    assert spki_of(x509.load_der_x509_certificate(certificate).public_key()) == key.spki  # type: ignore[arg-type]


async def test_many_reconnections_leave_nothing_behind(door: Door, keys: ChannelKeys) -> None:
    key = keys.make()
    await visit(door, key, keys)
    before = threading.active_count()
    for _ in range(50):
        assert await visit(door, key, keys) == key.spki
    await signing_threads_end()
    assert threading.active_count() <= before + 4  # gRPC's own come and go


async def test_handshakes_at_the_same_time(door: Door, keys: ChannelKeys) -> None:
    made = [await asyncio.to_thread(keys.make) for _ in range(4)]
    seen = await asyncio.gather(*[visit(door, made[n % 4], keys) for n in range(20)])
    assert seen == [made[n % 4].spki for n in range(20)]


async def test_another_key_than_the_certificates_is_refused(door: Door, keys: ChannelKeys) -> None:
    key, other = keys.make(), keys.make()

    class Impostor(SignedKey):
        def sign(self, message: bytes) -> bytes:
            return other.sign(message)

    class Impostors(SignedKeys):
        def load(self, stored: bytes) -> ChannelKey:
            return Impostor(key)

    with pytest.raises(UnavailableError) as caught:
        await visit(door, key, Impostors(keys))
    assert caught.value.reason is Reason.SERVER_UNREACHABLE
    assert await visit(door, key, SignedKeys(keys)) == key.spki


@pytest.mark.parametrize("reason", [Reason.VAULT_BUSY, Reason.KEY_NOT_FOUND, Reason.DEVICE_FAILED])
async def test_why_the_key_could_not_sign_is_what_the_caller_gets(
    door: Door, keys: ChannelKeys, reason: Reason
) -> None:
    key, failing = keys.make(), True

    def fail() -> None:
        if failing:
            raise DeviceError(reason, "The key cannot sign.", fix="Look at the chip.")

    spoilt = SignedKeys(keys, fail)
    channel = door.channel(key, spoilt)
    with pytest.raises(DeviceError) as caught:
        await who(channel)
    assert (caught.value.reason, caught.value.fix) == (reason, "Look at the chip.")
    failing = False
    async with asyncio.timeout(10):  # the channel tries again by itself, and tells the old failure until it has
        while True:
            try:
                await who(channel, seconds=5)
                break
            except (DeviceError, UnavailableError):
                await asyncio.sleep(0.05)
    assert channel.signer is not None
    assert channel.signer.failure is None
    await channel.close()


async def test_the_link_of_the_device_says_why_it_is_not_open(door: Door, keys: ChannelKeys) -> None:
    key, told = keys.make(), []

    def fail() -> None:
        raise DeviceError(Reason.VAULT_BUSY, "Another program uses the chip.", fix="Wait.")

    async def heard(_event: ServerEvent) -> None:
        raise AssertionError("nothing can be heard")

    async def end(_seconds: float) -> None:
        raise asyncio.CancelledError

    stream = PromptStream(
        open_channel=lambda: door.channel(key, SignedKeys(keys, fail)),
        endpoint="localhost",
        agent_version="test",
        on_event=heard,
        on_state=lambda state, detail: told.append((state, detail)),
        backoff=Backoff(jitter=lambda: 1.0, first=0.1, longest=0.1),
        sleep=end,
    )
    with pytest.raises(asyncio.CancelledError):
        await stream.run()
    assert told[-1] == (LinkState.WAITING, "Another program uses the chip. Next try in 0.1 s.")


async def test_a_slow_key_holds_up_nothing_but_its_own_connection(door: Door, keys: ChannelKeys) -> None:
    key, begun, release = keys.make(), threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert release.wait(60)

    slow = asyncio.create_task(visit(door, key, SignedKeys(keys, wait), seconds=60))
    assert await asyncio.to_thread(begun.wait, 10)  # the event loop goes on, or this would never be
    for _ in range(5):
        assert await visit(door, key, keys) == key.spki
    assert not slow.done()
    release.set()
    assert await slow == key.spki


async def test_a_handshake_nobody_waits_for_any_more_ends_quietly(door: Door, keys: ChannelKeys) -> None:
    key, begun, release = keys.make(), threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        release.wait(20)

    with pytest.raises(UnavailableError) as caught:
        await visit(door, key, SignedKeys(keys, wait), seconds=0.5)
    assert begun.is_set()
    assert caught.value.reason is Reason.DEADLINE
    release.set()  # the signature comes after the channel has gone
    await signing_threads_end()
    assert await visit(door, key, SignedKeys(keys)) == key.spki


def test_only_the_keys_own_kind_of_signature_is_made(keys: ChannelKeys) -> None:
    answers: list[bytes | Exception] = []
    answered = threading.Event()

    def complete(answer: bytes | Exception) -> None:
        answers.append(answer)
        answered.set()

    signer = ChannelSigner(keys.make())
    signer(b"message", "RSA_PKCS1_SHA256", complete)
    assert answered.wait(10)
    assert isinstance(answers[0], RuntimeError)
    assert signer.failure is not None
    assert signer.failure.reason is Reason.UNSUPPORTED


@pytest.mark.parametrize("way", ["never", "fails"])
def test_a_program_ends_whatever_its_key_does(way: str) -> None:
    """Each signer keeps a thread of gRPC alive until nothing holds it any more."""
    here = Path(__file__).resolve()
    code = f"import sys; sys.path.insert(0, {str(here.parents[1])!r}); exec(open({str(here)!r}).read()); main({way!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    expected = {"never": "deadline", "fails": "vault_busy"}[way]
    assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr[-2000:]


def main(way: str) -> None:
    """A program that keeps what went wrong until its end."""

    def misbehave() -> None:
        if way == "never":
            time.sleep(1000)
        raise DeviceError(Reason.VAULT_BUSY, "The key is busy.", fix="Wait.")

    keys = SignedKeys(SealedChannelKeys(), misbehave)

    async def call() -> Exception | None:
        async with grpc_door() as door:
            try:
                await visit(door, keys.make(), keys, seconds=0.5)
            except (DeviceError, UnavailableError) as error:
                return error
        return None

    print(getattr(asyncio.run(call()), "reason", None))  # noqa: T201 - this is what the test reads
