"""The vault of `authenticator serve --vault pkcs11` on SoftHSM2, and on the virtual PIV card through OpenSC."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fido2.ctap2.base import AttestationResponse, Info

from keyvouch import cbor
from keyvouch.errors import DeviceError, Reason, UsageError
from keyvouch_agent.authenticator.status import Status
from keyvouch_agent.cards.wish import CardWish
from keyvouch_agent.commands.serving_words import what_it_is
from keyvouch_agent.home import Home
from keyvouch_agent.served import Served, ServeWish, Transport, VaultKind, open_authenticator
from keyvouch_agent.served_card import CardToServe
from keyvouch_agent.system import SystemClock
from keyvouch_agent.transports.pin_entry import HeldPin
from keyvouch_agent.transports.presence import UnsafeAutoPresence
from keyvouch_agent.vaults.tpm.connection import TpmAccess
from keyvouch_bench.piv_card.reader import PivReader
from keyvouch_bench.softhsm import SoftHsmToken
from support.authenticators import ScriptedEntry
from support.pkcs11_tokens import module_of

WISH = ServeWish(Transport.PCSC, VaultKind.PKCS11, always_verify=True, reader=("127.0.0.1", 35963))


def no_tpm() -> TpmAccess:
    raise UsageError("no TPM is wanted here")


def opened(home: Path, card: CardToServe, transport: Transport = Transport.PCSC) -> AbstractContextManager[Served]:
    wish = replace(WISH, card=card, transport=transport)
    return open_authenticator(Home.open(home), wish, clock=SystemClock(), tpm_access=no_tpm)


def piv(**more: Any) -> CardToServe:
    return CardToServe(CardWish(module=str(module_of("opensc"))), **more)


def send(served: Served, command: int, fields: object, entry: ScriptedEntry | None) -> tuple[Status, bytes]:
    body = b"" if fields is None else cbor.encode(fields)
    answer = served.authenticator.handle(bytes([command]) + body, UnsafeAutoPresence(), lambda: False, entry)
    return Status(answer[0]), answer[1:]


def make(served: Served, entry: ScriptedEntry | None, rp_id: str = "example.org") -> tuple[Status, Any]:
    fields = {
        1: bytes(32),
        2: {"id": rp_id},
        3: {"id": b"user", "name": "ada"},
        4: [{"alg": alg, "type": "public-key"} for alg in (-7, -257)],
        7: {"uv": True},
    }
    status, body = send(served, 0x01, fields, entry)
    return status, AttestationResponse.from_dict(cbor.decode(body)) if body else None  # type: ignore[arg-type]


def info_of(served: Served, entry: ScriptedEntry | None) -> Info:
    status, body = send(served, 0x04, None, entry)
    assert status is Status.SUCCESS
    return Info.from_dict(cbor.decode(body))  # type: ignore[arg-type]


@pytest.fixture
def token_card(softhsm: SoftHsmToken) -> CardToServe:
    return CardToServe(CardWish(module=softhsm.module, token=f"pkcs11:serial={softhsm.serial}"))


@pytest.fixture
def entry(softhsm: SoftHsmToken) -> ScriptedEntry:
    return ScriptedEntry(softhsm.user_pin)


@pytest.fixture
def served(tmp_path: Path, token_card: CardToServe) -> Iterator[Served]:
    with opened(tmp_path / "home", token_card) as authenticator:
        yield authenticator


def test_it_says_what_it_can_do(served: Served, entry: ScriptedEntry):
    info = info_of(served, entry)
    assert info.options["uv"]
    assert info.options["alwaysUv"]
    assert "clientPin" not in info.options
    assert "largeBlobs" not in info.options
    assert not {"hmac-secret", "credBlob", "largeBlobKey"} & set(info.extensions)
    assert "U2F_V2" not in info.versions
    assert info.transports == ["nfc", "smart-card"]
    assert not info_of(served, None).options["uv"]  # nobody to ask


def test_each_site_has_a_key_of_its_own(served: Served, softhsm: SoftHsmToken, entry: ScriptedEntry):
    assert served.card is not None
    assert (served.card.label, served.card.serial) == (softhsm.label, softhsm.serial)
    assert served.card.is_emulated
    assert served.card.shared_key == ""
    keys = []
    for rp_id in ("one.example", "two.example"):
        status, made = make(served, entry, rp_id)
        assert status is Status.SUCCESS
        keys.append(dict(made.auth_data.credential_data.public_key))
        assert made.fmt == "none"
    assert keys[0] != keys[1]


def test_a_wrong_pin_is_asked_for_once_and_told(served: Served, entry: ScriptedEntry):
    wrong = ScriptedEntry("000000")
    assert make(served, wrong) == (Status.OPERATION_DENIED, None)
    assert len(wrong.asked) == 1
    failure = served.authenticator.failure
    assert failure is not None
    assert failure.reason is Reason.PIN_WRONG
    assert make(served, entry)[0] is Status.SUCCESS  # control


def test_the_folder_keeps_to_its_token(tmp_path: Path, token_card: CardToServe, softhsm: SoftHsmToken):
    home = tmp_path / "home"
    entry = ScriptedEntry(softhsm.user_pin)
    with opened(home, token_card) as served:
        make(served, entry)
    other = softhsm.hsm.make_token("another")
    try:
        elsewhere = f"pkcs11:serial={other.serial}"
        with pytest.raises(DeviceError) as refusal, opened(home, replace(token_card, named=elsewhere)):
            pass
        assert refusal.value.reason is Reason.AUTHENTICATOR_OTHER
        wish = replace(token_card.wish, token=elsewhere, module="")  # settings, for enrolments and others to come
        with opened(home, CardToServe(wish)) as served:
            assert served.card is not None
            assert served.card.serial == softhsm.serial
            assert make(served, entry)[0] is Status.SUCCESS
    finally:
        other.remove()


def test_a_pin_that_is_held_is_shown_at_the_start(served: Served, softhsm: SoftHsmToken):
    assert served.card is not None
    wrong = HeldPin("000000")
    with pytest.raises(DeviceError) as refusal:
        served.card.prove(wrong)
    assert refusal.value.reason is Reason.PIN_WRONG
    with pytest.raises(DeviceError, match="not tried again"):
        served.card.prove(wrong)
    served.card.prove(HeldPin(softhsm.user_pin))


def test_what_is_said_of_a_token_is_true(served: Served, softhsm: SoftHsmToken):
    words = " ".join(what_it_is(served, WISH))
    assert f"an emulated token ({softhsm.label!r}, serial number {softhsm.serial})" in words
    assert "a key pair of its own" in words
    assert "no client sees it" in words
    assert "WARNING" not in words
    assert "WARNING: the card's PIN" in " ".join(what_it_is(served, WISH, holds_pin=True))


# A PIV card has the keys that its organisation put there


def test_a_key_that_all_sites_would_share_is_refused(tmp_path: Path, issued_piv_card: PivReader):
    with pytest.raises(DeviceError) as refusal, opened(tmp_path / "home", piv(), Transport.UHID):
        pass
    assert refusal.value.reason is Reason.UNSUPPORTED
    assert "one person" in refusal.value.message
    assert "--shared-key" in refusal.value.fix


def test_whoever_insists_serves_it_and_no_site_learns_which_card_it_is(tmp_path: Path, issued_piv_card: PivReader):
    entry = ScriptedEntry(issued_piv_card.card.pin)
    home = tmp_path / "home"
    with opened(home, piv(shared_key=True), Transport.UHID) as served:
        assert served.card is not None
        assert served.card.shared_key == "slot 9A"
        words = " ".join(what_it_is(served, WISH))
        assert "for it to prove" in words
        assert "WARNING: --shared-key" in words
        made = [make(served, entry, rp_id)[1] for rp_id in ("one.example", "two.example")]
    first, second = (dict(one.auth_data.credential_data.public_key) for one in made)
    assert first == second
    assert all(one.fmt == "packed" and "x5c" not in one.att_stmt for one in made)
    with pytest.raises(DeviceError), opened(home, piv(), Transport.UHID):  # nor later
        pass


def test_it_goes_on_when_the_card_is_back(tmp_path: Path, issued_piv_card: PivReader):
    entry = ScriptedEntry(issued_piv_card.card.pin)
    with opened(tmp_path / "home", piv(shared_key=True), Transport.UHID) as served:
        assert make(served, entry)[0] is Status.SUCCESS
        issued_piv_card.remove()
        assert make(served, entry) == (Status.OTHER, None)
        assert served.authenticator.failure is not None
        assert served.authenticator.failure.reason is Reason.AUTHENTICATOR_NOT_CONNECTED
        assert served.card is not None
        assert served.card.absence() is not None
        issued_piv_card.insert()
        assert served.card.absence() is None
        assert make(served, entry)[0] is Status.SUCCESS
        assert len(entry.asked) == 2


def test_the_last_try_is_kept_unless_somebody_is_sure(tmp_path: Path, issued_piv_card: PivReader):
    home, right = tmp_path / "home", issued_piv_card.card.pin
    with opened(home, piv(shared_key=True), Transport.UHID) as served:
        assert make(served, ScriptedEntry(right))[0] is Status.SUCCESS
        for left in (3, 2):
            wrong = ScriptedEntry("000000")
            make(served, wrong)
            assert wrong.asked == [left]
        entry = ScriptedEntry(right)
        assert make(served, entry) == (Status.OTHER, None)
        assert entry.asked == []
        assert served.authenticator.failure is not None
        assert served.authenticator.failure.reason is Reason.PIN_LAST_TRY
    with opened(home, piv(shared_key=True, last_try=True), Transport.UHID) as served:
        assert make(served, entry)[0] is Status.SUCCESS
        assert entry.asked == [1]


@pytest.mark.parametrize(
    ("configuration", "is_served"),
    [
        (None, False),
        ("app default { }", False),
        ('app default {\n  # one\n  debug = 0;  # ignored_readers = "Virtual PCD";\n}', False),
        ('app default {\n  # ignored_readers = "Virtual PCD";\n}', False),
        ('app default {\n  ignored_readers = "Other", "Virtual PCD";\n}', True),
    ],
)
def test_a_module_that_would_look_into_our_own_reader_is_not_served_there(
    tmp_path: Path,
    issued_piv_card: PivReader,
    monkeypatch: pytest.MonkeyPatch,
    configuration: str | None,
    is_served: bool,
):
    named = tmp_path / "opensc.conf"
    if configuration is not None:
        named.write_text(configuration)
    monkeypatch.setenv("OPENSC_CONF", str(named))
    if is_served:
        with opened(tmp_path / "home", piv(shared_key=True)):
            return
    with pytest.raises(DeviceError, match="every reader") as refusal, opened(tmp_path / "home", piv(shared_key=True)):
        pass
    assert "Virtual PCD" in refusal.value.fix
