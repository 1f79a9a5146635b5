"""Our authenticator as a card in the virtual reader: real pcscd, python-fido2's CtapPcscDevice, the real engine."""

from __future__ import annotations

import hashlib
from threading import Event
from typing import Any

import pytest
from fido2.cose import ES256
from fido2.ctap import STATUS, CtapError
from fido2.ctap1 import APDU, ApduError, Ctap1
from fido2.ctap2.base import Ctap2
from fido2.hid import CAPABILITY, CTAPHID

from keyvouch_agent.authenticator.ports import Presence
from keyvouch_agent.transports.vpcd import ATR
from keyvouch_bench.fido_reader import ReaderKey
from support.fido_ceremonies import RelyingParty

pytestmark = pytest.mark.fido_emulated
APPLICATION = hashlib.sha256(b"https://login.example.org").digest()
CHALLENGE = hashlib.sha256(b"challenge").digest()


def test_it_looks_like_a_card_with_our_name(fido_reader: ReaderKey):
    assert fido_reader.device.get_atr() == ATR
    assert fido_reader.device.capabilities == CAPABILITY.CBOR | CAPABILITY.NMSG  # python-fido2 means U2F by NMSG here
    info = Ctap2(fido_reader.device).get_info()
    assert {"FIDO_2_0", "FIDO_2_1", "U2F_V2"} <= set(info.versions)


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("polling", [False, True])
def test_it_registers_and_signs_over_every_form_of_apdu(fido_reader: ReaderKey, extended: bool, polling: bool):
    device = fido_reader.device
    device.use_ext_apdu, device.use_nfcctap_getresponse = extended, polling
    party, pin = RelyingParty(), fido_reader.pin()
    record = party.register(device, pin, discoverable=True)
    assert party.authenticate(device, pin, record).user_verified


@pytest.mark.parametrize("extended", [False, True])
def test_long_messages_pass(fido_reader: ReaderKey, extended: bool):
    """A long exclude list going out; a response in several pieces, with the getInfo of the same key, coming back."""
    device = fido_reader.device
    device.use_ext_apdu = extended
    strangers = [{"type": "public-key", "id": bytes([number]) * 64} for number in range(6)]
    made = Ctap2(device).make_credential(
        CHALLENGE,
        {"id": "login.example.org", "name": "Example"},
        {"id": b"user", "name": "n" * 60, "displayName": "d" * 60},
        [{"type": "public-key", "alg": ES256.ALGORITHM}],
        exclude_list=strangers,
    )
    assert made.fmt == "packed"
    assert len(bytes(made.auth_data)) > 128


def test_a_client_hears_that_a_touch_is_needed_and_gets_its_answer(fido_reader: ReaderKey):
    fido_reader.touch = False
    heard = []

    def on_keepalive(status: STATUS) -> None:
        heard.append(status)
        fido_reader.touch = status is STATUS.UPNEEDED

    assert fido_reader.device.call(CTAPHID.CBOR, b"\x0b", on_keepalive=on_keepalive) == b"\x00"
    assert heard[-1] is STATUS.UPNEEDED


def test_a_client_cancels(fido_reader: ReaderKey):
    fido_reader.touch = False
    cancel = Event()
    answer = fido_reader.device.call(CTAPHID.CBOR, b"\x0b", cancel, lambda _: cancel.set())
    assert answer == bytes([CtapError.ERR.KEEPALIVE_CANCEL])
    assert Ctap2(fido_reader.device).get_info()


def test_whoever_declines_is_heard(fido_reader: ReaderKey):
    fido_reader.key.user.answer = Presence.DENIED
    assert fido_reader.device.call(CTAPHID.CBOR, b"\x0b") == bytes([CtapError.ERR.OPERATION_DENIED])


def test_u2f_registers_and_authenticates(fido_reader: ReaderKey):
    ctap1 = Ctap1(fido_reader.device)
    assert ctap1.get_version() == "U2F_V2"
    made = ctap1.register(CHALLENGE, APPLICATION)
    made.verify(APPLICATION, CHALLENGE)
    signed = ctap1.authenticate(CHALLENGE, APPLICATION, made.key_handle)
    signed.verify(APPLICATION, CHALLENGE, made.public_key)
    with pytest.raises(ApduError) as checked:
        ctap1.authenticate(CHALLENGE, APPLICATION, made.key_handle, check_only=True)
    assert checked.value.code == APDU.USE_NOT_SATISFIED
    with pytest.raises(ApduError) as foreign:
        ctap1.authenticate(CHALLENGE, bytes(32), made.key_handle)
    assert foreign.value.code == APDU.WRONG_DATA


def test_without_power_the_applet_has_to_be_selected_again(fido_reader: ReaderKey):
    device = fido_reader.device
    fido_reader.power_cycle()
    assert Ctap2(device).get_info()
    connection: Any = device._conn
    connection.disconnect()
    connection.connect()
    assert device.apdu_exchange(b"\x80\x10\x80\x00\x01\x04\x00") == (b"", 0x69, 0x85)
    device._select()
    assert Ctap2(device).get_info()
