"""What others do to a card account: PINs changed and tried meanwhile, cards swapped, programs killed, odd objects.

Beside each attack stands what must still work.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from pkcs11 import Attribute, CertificateType, ObjectClass, TokenFlag
from pkcs11.attributes import AttributeMapper

from keyvouch.cose import CoseKey
from keyvouch.errors import Reason
from keyvouch_agent.ports import Pin
from keyvouch_agent.vaults.pkcs11 import keys
from keyvouch_agent.vaults.pkcs11 import session as session_module
from keyvouch_agent.vaults.pkcs11.library import PresentToken, TokenLibrary
from keyvouch_agent.vaults.pkcs11.pin_control import TokenPin
from keyvouch_agent.vaults.pkcs11.uri import TokenName, TokenUri
from keyvouch_agent.vaults.pkcs11.vault import Pkcs11Vault
from keyvouch_bench.piv_card import Authority, VirtualPivCard
from keyvouch_bench.piv_card.authorities import common_name
from keyvouch_bench.piv_card.reader import PivReader
from keyvouch_bench.softhsm import SoftHsmToken
from support.kill_points import wait_until
from support.pkcs11_tokens import (
    Typed,
    card_library,
    card_vault,
    enrolled,
    kept,
    key_for,
    pins_shown,
    proves_possession,
    reason_of,
)

WRONG = "999999"
SLOT_9C = TokenUri(id=b"\x02")
ASK_PIN = bytes.fromhex("00200080")
FORGET_PIN = bytes.fromhex("0020FF80")
UNKNOWN_TO_US = b"864209\xff\xff"


@pytest.fixture
def opensc() -> Iterator[TokenLibrary]:
    with card_library("opensc") as opened:
        yield opened


@pytest.fixture
def soft(softhsm: SoftHsmToken) -> Iterator[TokenLibrary]:
    with card_library("softhsm2") as opened:
        yield opened


@pytest.fixture
def vault(soft: TokenLibrary, softhsm: SoftHsmToken, tmp_path: Path) -> Iterator[Pkcs11Vault]:
    with card_vault(soft, tmp_path / "account", TokenUri(serial=softhsm.serial)) as opened:
        yield opened


# The last try


def test_key_that_wants_the_pin_each_time_does_not_spend_the_last_try(
    issued_piv_card: PivReader, opensc: TokenLibrary, tmp_path: Path
) -> None:
    """Others have changed the PIN since it was typed, and missed it twice: what we keep would be the last wrong one."""
    card = issued_piv_card.card
    with card_vault(opensc, tmp_path / "account", SLOT_9C) as vault:
        credential = enrolled(vault, card)
        card.state.pin.replace(UNKNOWN_TO_US)
        card.state.pin.left = 1
        card.answer(FORGET_PIN)
        shown = pins_shown(card)
        assert reason_of(lambda: vault.sign(credential.id, b"m")) is Reason.PIN_LAST_TRY
        assert (pins_shown(card), card.state.pin.left) == (shown, 1)
        assert reason_of(lambda: vault.sign(credential.id, b"m")) is Reason.PIN_REQUIRED
        card.state.pin.left = 2
        vault.verify_user(Typed("864209"))
        proves_possession(vault, credential)


def test_card_that_forgot_the_pin_is_not_shown_it_again(
    issued_piv_card: PivReader, opensc: TokenLibrary, tmp_path: Path
) -> None:
    """OpenSC keeps PINs too. Another program's logout, a changed PIN and one try left: nothing is tried."""
    card = issued_piv_card.card
    with card_vault(opensc, tmp_path / "account") as vault:
        credential = enrolled(vault, card)
        card.state.pin.replace(UNKNOWN_TO_US)
        card.state.pin.left = 1
        card.answer(FORGET_PIN)
        shown = pins_shown(card)
        assert reason_of(lambda: vault.sign(credential.id, b"m")) is Reason.PIN_REQUIRED
        assert (pins_shown(card), card.state.pin.left) == (shown, 1)


@pytest.mark.parametrize("old", ["", "12\x0034", "734196\n"])
def test_what_is_no_pin_is_not_tried_as_the_old_one(
    issued_piv_card: PivReader, opensc: TokenLibrary, tmp_path: Path, old: str
) -> None:
    card = issued_piv_card.card
    with card_vault(opensc, tmp_path / "account") as vault:
        control = TokenPin(vault._account, vault)
        assert reason_of(lambda: control.change(Pin(old), Pin("135790"))) is Reason.PIN_WRONG
        assert card.state.pin.left == 3
        control.change(Pin(card.pin), Pin("135790"))
        vault.verify_user(Typed("135790"))


@pytest.mark.parametrize("new", ["abcdef", "123456789", "135790\0"])
def test_new_pin_that_no_card_takes(issued_piv_card: PivReader, opensc: TokenLibrary, tmp_path: Path, new: str) -> None:
    card = issued_piv_card.card
    with card_vault(opensc, tmp_path / "account") as vault:
        control = TokenPin(vault._account, vault)
        assert reason_of(lambda: control.change(Pin(card.pin), Pin(new))) is Reason.PIN_POLICY
        vault.verify_user(Typed(card.pin))


def test_new_pin_is_one_that_can_be_typed(vault: Pkcs11Vault, softhsm: SoftHsmToken) -> None:
    """SoftHSM2 takes any bytes. Nobody could type such a PIN again."""
    control = TokenPin(vault._account, vault)
    assert reason_of(lambda: control.change(Pin(softhsm.user_pin), Pin("13579\0"))) is Reason.PIN_POLICY
    vault.verify_user(Typed(softhsm.user_pin))


# Logins of others


@pytest.mark.parametrize("module", ["softhsm2", "opensc"])
def test_login_of_another_part_of_this_process_is_not_ours(
    request: pytest.FixtureRequest, tmp_path: Path, module: str
) -> None:
    """To the module the process is logged in, whoever showed the PIN. Ours is looked at all the same."""
    if module == "softhsm2":
        token = request.getfixturevalue("softhsm")
        pin, wanted = token.user_pin, TokenUri(serial=token.serial)
    else:
        pin, wanted = request.getfixturevalue("issued_piv_card").card.pin, TokenUri()
    with card_library(module) as library, card_vault(library, tmp_path / "account", wanted) as vault:
        loaded = pkcs11.lib(str(library.path))
        there = [token for token in loaded.get_tokens() if token.flags & TokenFlag.TOKEN_INITIALIZED]
        name = vault._account.profile.name
        (theirs,) = [token for token in there if token.serial.decode() == name.serial]
        theirs.open(user_pin=pin)
        assert reason_of(lambda: vault.create_key(key_for())) is Reason.PIN_REQUIRED
        assert reason_of(lambda: vault.verify_user(Typed(WRONG))) is Reason.PIN_WRONG
        assert reason_of(lambda: vault.create_key(key_for())) is Reason.PIN_REQUIRED
        vault.verify_user(Typed(pin))
        proves_possession(vault, kept(vault))


_UNLOCKED = """
import os, sys
from pathlib import Path
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.pkcs11.account import CardAccount
from keyvouch_agent.vaults.pkcs11.library import TokenLibrary
from keyvouch_agent.vaults.pkcs11.vault import Pkcs11Vault

class Entry:
    def ask(self, left):
        return sys.stdin.readline().strip()

folder, module = sys.argv[1:]
vault = Pkcs11Vault(CardAccount.open(Path(folder), TokenLibrary(Path(module))), SystemEntropy())
vault.verify_user(Entry())
print("unlocked", flush=True)
sys.stdin.readline()
"""


def test_agent_that_is_killed_leaves_no_unlocked_card(
    issued_piv_card: PivReader, opensc: TokenLibrary, tmp_path: Path
) -> None:
    """pcscd resets a card whose program is gone."""
    card = issued_piv_card.card
    command = [sys.executable, "-c", _UNLOCKED, str(tmp_path / "account"), str(opensc.path)]
    environment = {**os.environ, **issued_piv_card.environment}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True) as agent:
        assert agent.stdin is not None
        assert agent.stdout is not None
        agent.stdin.write(card.pin + "\n")
        agent.stdin.flush()
        assert agent.stdout.readline() == "unlocked\n"
        assert card.answer(ASK_PIN) == bytes.fromhex("9000")
        agent.kill()
        agent.wait(60)
    wait_until(lambda: card.answer(ASK_PIN) == bytes.fromhex("63C3"), "the card was not reset")
    with card_vault(opensc, tmp_path / "account") as vault:
        proves_possession(vault, enrolled(vault, card))


def test_absent_token_of_another_account_ends_no_login(
    soft: TokenLibrary, softhsm: SoftHsmToken, tmp_path: Path
) -> None:
    """The agent looks at every account again and again, also while one of them is being used."""
    other = softhsm.hsm.make_token(softhsm.label + "-absent")
    soft.close()
    with card_vault(soft, tmp_path / "other", TokenUri(serial=other.serial)) as vault:
        vault.verify_user(Typed(other.user_pin))
        kept(vault)
    soft.close()
    other.remove()
    here = TokenUri(serial=softhsm.serial)
    with card_vault(soft, tmp_path / "one", here) as one, card_vault(soft, tmp_path / "other") as absent:
        one.verify_user(Typed(softhsm.user_pin))
        credential = one.create_key(key_for())
        assert reason_of(absent.uv_state) is Reason.AUTHENTICATOR_NOT_CONNECTED
        proves_possession(one, credential)
        nothing = TokenUri(serial=softhsm.serial, id=b"\x99")  # an enrolment that comes to nothing
        assert reason_of(lambda: card_vault(soft, tmp_path / "new", nothing).__enter__()) is Reason.UNSUPPORTED
        one.keep(credential.id)
        proves_possession(one, credential)


def test_account_that_lost_its_login_takes_none_from_another(
    issued_piv_card: PivReader, opensc: TokenLibrary, tmp_path: Path
) -> None:
    """Two accounts on one card: the second login ends the first, whose lock is not the second's."""
    card = issued_piv_card.card
    with (
        card_vault(opensc, tmp_path / "first") as first,
        card_vault(opensc, tmp_path / "second", SLOT_9C) as second,
    ):
        mine, theirs = enrolled(first, card), enrolled(second, card)
        first.verify_user(Typed(card.pin))
        assert reason_of(lambda: second.sign(theirs.id, b"m")) is Reason.PIN_REQUIRED
        second.lock()
        proves_possession(first, mine)
        first.lock()
        assert card.answer(ASK_PIN) == bytes.fromhex("63C3")
        first.verify_user(Typed(card.pin))
        opensc.renew()  # nobody's login is left, and the card still knows the PIN
        assert reason_of(lambda: first.sign(mine.id, b"m")) is Reason.PIN_REQUIRED
        assert card.answer(ASK_PIN) == bytes.fromhex("63C3")


# Another card


class Swapping(Typed):
    """While the PIN is typed, another card is put in."""

    def __init__(self, swap: Callable[[], None], *answers: str) -> None:
        super().__init__(*answers)
        self._swap = swap

    def ask(self, retries_left: int | None) -> str | None:
        self._swap()
        return super().ask(retries_left)


@pytest.mark.parametrize("when", ["while the PIN is typed", "after the token was found"])
def test_card_that_is_put_in_meanwhile_is_not_shown_the_pin(
    issued_piv_card: PivReader, opensc: TokenLibrary, tmp_path: Path, piv_batch: Authority, piv_issuer: Authority,
    private_pcscd: Any, monkeypatch: pytest.MonkeyPatch, when: str,
) -> None:  # fmt: skip
    card, other = issued_piv_card.card, VirtualPivCard.blank(piv_batch)
    other.personalise(piv_issuer)
    theirs = PivReader(other, private_pcscd, slot=issued_piv_card._slot)

    def swap() -> None:
        issued_piv_card.remove()
        theirs.insert()

    real = session_module.find_token

    def found_and_gone(library: TokenLibrary, name: TokenName) -> PresentToken:
        found = real(library, name)
        monkeypatch.undo()
        swap()
        return found

    with card_vault(opensc, tmp_path / "account") as vault:
        credential = enrolled(vault, card)
        vault.lock()
        entry = Typed(card.pin)
        if when.startswith("while"):
            entry = Swapping(swap, card.pin)
        else:
            monkeypatch.setattr(session_module, "find_token", found_and_gone)
        away = (Reason.AUTHENTICATOR_OTHER, Reason.AUTHENTICATOR_REMOVED)
        assert reason_of(lambda: vault.verify_user(entry)) in away
        assert pins_shown(other) == 0
        theirs.remove()
        issued_piv_card.insert()
        vault.verify_user(Typed(card.pin))
        proves_possession(vault, credential)


# What others have stored, and what a token says


def test_token_that_tells_another_public_key_than_it_made(
    soft: TokenLibrary, vault: Pkcs11Vault, softhsm: SoftHsmToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has that key's private half would sign in. Nobody vouches for it, so it is asked to sign at once."""
    other = CoseKey.from_public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
    vault.verify_user(Typed(softhsm.user_pin))
    monkeypatch.setattr(keys, "_public_key", lambda *_: other)
    assert reason_of(lambda: vault.create_key(key_for())) is Reason.DEVICE_FAILED
    wanted = {Attribute.CLASS: ObjectClass.PRIVATE_KEY}
    assert vault._on_token(lambda session: list(session.get_objects(wanted))) == []
    monkeypatch.undo()
    proves_possession(vault, kept(vault))


class _Latin1(AttributeMapper):
    """Labels as bytes, as other programs write them."""

    def pack_attribute(self, key: Attribute, value: Any) -> bytes:
        return value if key is Attribute.LABEL else super().pack_attribute(key, value)


def test_labels_of_others_need_not_be_utf_8(
    soft: TokenLibrary, softhsm: SoftHsmToken, tmp_path: Path, piv_issuer: Authority
) -> None:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    certificate = piv_issuer.issue(common_name("Ada"), public, [])
    template = {
        Attribute.TOKEN: True, Attribute.ID: b"\x07", Attribute.LABEL: "Müller".encode("latin-1"),
        Attribute.CLASS: ObjectClass.CERTIFICATE, Attribute.CERTIFICATE_TYPE: CertificateType.X_509,
        Attribute.VALUE: certificate.public_bytes(Encoding.DER), Attribute.PRIVATE: False,
        Attribute.SUBJECT: certificate.subject.public_bytes(),
    }  # fmt: skip
    token = pkcs11.lib(str(soft.path)).get_token(token_serial=softhsm.serial.encode())
    with token.open(rw=True, user_pin=softhsm.user_pin, attribute_mapper=_Latin1()) as session:
        session.create_object(template)
    none = TokenUri(serial=softhsm.serial, object="Müller")
    assert reason_of(lambda: card_vault(soft, tmp_path / "none", none).__enter__()) is Reason.UNSUPPORTED
    with card_vault(soft, tmp_path / "account", TokenUri(serial=softhsm.serial, id=b"\x07")) as vault:
        assert vault.properties.algorithms == (-7,)
