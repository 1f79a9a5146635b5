"""Security keys on readers of the real pcscd: found, chosen, used, and taken away, with pyscard in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event

import pytest

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.ports import KeyCreation, KeyUse
from keyvouch_agent.roaming.provider import EnrolledKey, RoamingProvider
from keyvouch_bench.fido_reader import ReaderKey
from keyvouch_bench.pcscd import PrivatePcscd
from keyvouch_bench.virtual_fido import ON_A_READER, VirtualFido
from keyvouch_client.security_keys.discovery import ConnectedKey, SecurityKeys, Transport
from keyvouch_client.security_keys.pcsc import PcscReaders, PcscSource
from keyvouch_client.security_keys.selection import choose_by_touch, holding
from keyvouch_client.security_keys.standing import read_standing
from support.provider_ui import ScriptedInteraction

PIN = "a1b2c3"
RP_ID = "login.example.org"
CREATION = KeyCreation(bytes(32), RP_ID, b"user", "alice", (-7,))

pytestmark = pytest.mark.usefixtures("private_pcscd")


@pytest.fixture
def one(private_pcscd: PrivatePcscd, tmp_path: Path) -> Iterator[ReaderKey]:
    with VirtualFido.make(tmp_path / "one", options=ON_A_READER) as key, ReaderKey(key, private_pcscd) as card:
        yield card


@pytest.fixture
def two(private_pcscd: PrivatePcscd, tmp_path: Path) -> Iterator[ReaderKey]:
    with VirtualFido.make(tmp_path / "two", options=ON_A_READER) as key, ReaderKey(key, private_pcscd, slot=1) as card:
        yield card


@pytest.fixture
def keys() -> SecurityKeys:
    return SecurityKeys([PcscSource(PcscReaders())], pause=0.02)


def test_a_card_is_found_and_read(one: ReaderKey, keys: SecurityKeys) -> None:
    (found,) = keys.connected()
    assert found.place == one.reader
    assert found.transport in {Transport.NFC, Transport.CARD}
    standing = read_standing(found)
    assert "FIDO_2_1" in standing.versions
    assert (standing.takes_pin, standing.pin_is_set) == (True, False)
    assert keys.problems() == ()


def test_empty_readers_are_no_keys(keys: SecurityKeys) -> None:
    assert keys.connected() == ()
    assert keys.problems() == ()
    assert len(PcscReaders().slots()) == 2


def test_a_card_comes_goes_and_comes_again(one: ReaderKey, keys: SecurityKeys) -> None:
    (before,) = keys.connected()
    one.remove()
    assert keys.wait_for(lambda now: not now, seconds=20) == ()
    with pytest.raises(DeviceError) as caught:
        before.open()
    assert caught.value.reason is Reason.AUTHENTICATOR_REMOVED
    one.insert()
    (after,) = keys.wait_for(bool, seconds=20)
    assert after.place == before.place
    assert after != before


def test_a_registration_and_a_signature(one: ReaderKey, keys: SecurityKeys) -> None:
    ui = ScriptedInteraction(pin=PIN, new_pin=PIN)
    provider = RoamingProvider(keys, seconds=20)
    provider.ready(ui, Event())
    with provider.open(ui, rp_id=RP_ID) as session:
        made = session.create_key(CREATION)
    known = EnrolledKey(made.credential_id, RP_ID, "alice")
    mine = RoamingProvider(keys, enrolled=lambda: known, seconds=20)
    assert mine.capabilities().pin_retries_left == 8
    with mine.open(ui, rp_id=RP_ID) as session:
        assert session.sign(KeyUse(b"c" * 32, RP_ID, made.credential_id)).signature
    assert [asked for asked in ui.asked if asked != "touch"] == [("new pin", 6), ("pin", 8, 6)]


def test_one_of_two_is_chosen_by_touch_and_found_by_its_credential(
    one: ReaderKey, two: ReaderKey, keys: SecurityKeys
) -> None:
    one.touch = False
    chosen = choose_by_touch(keys, seconds=20)
    assert chosen.place == two.reader
    one.touch = True
    ui = ScriptedInteraction(pin=PIN, new_pin=PIN)
    alone = SecurityKeys([_Only(keys, two.reader)])
    with RoamingProvider(alone, seconds=20).open(ui, rp_id=RP_ID) as session:
        made = session.create_key(CREATION)
    found = holding(keys.connected(), RP_ID, [made.credential_id])
    assert [key.place for key in found.holders] == [two.reader]


def test_a_card_taken_away_while_it_waits_for_a_touch(one: ReaderKey, keys: SecurityKeys) -> None:
    ui = ScriptedInteraction(pin=PIN, new_pin=PIN)
    one.touch = False

    class Takes(ScriptedInteraction):
        def touch_needed(self) -> None:
            one.remove()

    taking = Takes(pin=PIN, new_pin=PIN)
    provider = RoamingProvider(keys, seconds=20)
    with provider.open(taking, rp_id=RP_ID) as session, pytest.raises(DeviceError) as caught:
        session.create_key(CREATION)
    assert caught.value.reason is Reason.AUTHENTICATOR_REMOVED
    one.insert()
    one.touch = True
    keys.wait_for(bool, seconds=20)
    with provider.open(ui, rp_id=RP_ID) as session:
        assert session.create_key(CREATION)


def test_a_card_that_another_program_has_for_itself(one: ReaderKey, keys: SecurityKeys) -> None:
    from smartcard import scard

    _, context = scard.SCardEstablishContext(scard.SCARD_SCOPE_USER)
    failed, card, _ = scard.SCardConnect(context, one.reader, scard.SCARD_SHARE_EXCLUSIVE, scard.SCARD_PROTOCOL_T1)
    assert not failed
    assert keys.connected() == ()
    with pytest.raises(DeviceError) as caught:
        PcscReaders().connect(one.reader)
    assert caught.value.reason is Reason.VAULT_BUSY
    assert "gpgconf" in caught.value.fix
    scard.SCardDisconnect(card, scard.SCARD_LEAVE_CARD)
    scard.SCardReleaseContext(context)
    assert len(keys.wait_for(bool, seconds=20)) == 1


def test_doctor_tells_of_a_card(one: ReaderKey, private_pcscd: PrivatePcscd, tmp_path: Path) -> None:
    one.close()
    program = (sys.executable, "-m", "keyvouch_agent", "--home", str(tmp_path / "home"), "doctor", "--json")
    environment = {**os.environ, **private_pcscd.environment}
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False, env=environment)
    checks = {check["check"]: check for check in json.loads(done.stdout.splitlines()[-1])["checks"]}
    detail = checks[f"security key in {one.reader}"]["detail"]
    assert detail.endswith("credentials")
    assert one.reader not in detail
    assert "a card" in checks["smartcard readers"]["detail"]


class _Only:
    """`KeySource`: one reader's key out of others."""

    def __init__(self, keys: SecurityKeys, place: str) -> None:
        self._keys = keys
        self._place = place

    def scan(self, found: Sequence[ConnectedKey]) -> Sequence[ConnectedKey]:
        return [key for key in self._keys.scan() if key.place == self._place]

    def fingerprint(self) -> object:
        return self._keys.fingerprint()

    def problems(self) -> Sequence[DeviceError]:
        return ()
