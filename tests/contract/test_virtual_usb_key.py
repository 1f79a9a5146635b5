"""Our authenticator as a virtual USB key: the real engine, python-fido2's CtapHidDevice, no kernel between them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fido2.ctap import STATUS, CtapError
from fido2.ctap1 import APDU, ApduError, Ctap1
from fido2.ctap2.base import Ctap2
from fido2.ctap2.config import Config
from fido2.ctap2.pin import ClientPin
from fido2.hid import CAPABILITY, CTAPHID

from keyvouch_agent.authenticator.engine import AuthenticatorOptions
from keyvouch_agent.transports.presence import DeferredPresence
from keyvouch_bench.virtual_fido import VirtualFido, pin_of
from support.fido_ceremonies import RelyingParty
from support.transport_bench import HidBench, LoopThread, loop_thread

APPLICATION = hashlib.sha256(b"https://login.example.org").digest()
CHALLENGE = hashlib.sha256(b"challenge").digest()
ON_A_BUS = AuthenticatorOptions(transports=("usb",), u2f=True)


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    with loop_thread() as made:
        yield made


@pytest.fixture
def key(tmp_path: Path) -> Iterator[VirtualFido]:
    with VirtualFido.make(tmp_path / "key", options=ON_A_BUS) as made:
        yield made


@pytest.fixture
def bench(thread: LoopThread, key: VirtualFido) -> Iterator[HidBench]:
    made = HidBench(thread, key.authenticator, key.user, u2f_presence=DeferredPresence(key.user, thread.loop.time))
    yield made
    made.close()


def test_it_registers_and_signs(bench: HidBench):
    device = bench.device()
    assert device.capabilities == CAPABILITY.WINK | CAPABILITY.CBOR
    assert Ctap2(device).info.transports == ["usb"]
    party, pin = RelyingParty(), pin_of(device)
    record = party.register(device, pin, discoverable=True)
    assert party.authenticate(device, pin, record).user_verified


def test_it_waits_for_a_touch_and_says_so(bench: HidBench, key: VirtualFido):
    key.touch = False
    heard = []

    def on_keepalive(status: STATUS) -> None:
        heard.append(status)
        key.touch = status is STATUS.UPNEEDED

    assert bench.device().call(CTAPHID.CBOR, b"\x0b", on_keepalive=on_keepalive) == b"\x00"
    assert STATUS.UPNEEDED in heard


def test_a_reset_is_taken_just_after_it_was_plugged_in(bench: HidBench):
    Ctap2(bench.device()).reset()


def until_present(ctap1: Ctap1, *arguments: bytes, register: bool = False) -> object:
    """What U2F clients do: ask again until somebody was there."""
    while True:
        try:
            return ctap1.register(*arguments) if register else ctap1.authenticate(*arguments)
        except ApduError as error:
            if error.code != APDU.USE_NOT_SATISFIED:
                raise


def test_u2f_registers_and_authenticates_by_asking_again(bench: HidBench, key: VirtualFido):
    ctap1 = Ctap1(bench.device())
    made = until_present(ctap1, CHALLENGE, APPLICATION, register=True)
    made.verify(APPLICATION, CHALLENGE)  # type: ignore[attr-defined]
    signed = until_present(ctap1, CHALLENGE, APPLICATION, made.key_handle)  # type: ignore[attr-defined]
    signed.verify(APPLICATION, CHALLENGE, made.public_key)  # type: ignore[attr-defined]
    assert len(key.user.asked) == 2


def test_where_verification_is_always_wanted_u2f_disappears(bench: HidBench):
    device = bench.device()
    pin = ClientPin(Ctap2(device))
    pin.set_pin("492817")
    token = pin.get_pin_token("492817", ClientPin.PERMISSION.AUTHENTICATOR_CFG)
    Config(Ctap2(device), pin.protocol, token).toggle_always_uv()
    after = bench.device()
    assert after.capabilities & CAPABILITY.NMSG
    with pytest.raises(CtapError) as refusal:
        after.call(CTAPHID.MSG, b"\0\3\0\0")
    assert refusal.value.code == CtapError.ERR.INVALID_COMMAND
