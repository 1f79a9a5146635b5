"""Which card and module are meant, and when the last try of a PIN is spent: what needs no card."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyvouch.errors import DeviceError, KeyvouchError, MalformedError, Reason, UsageError
from keyvouch_agent.agent_settings import FILE, CardFileSettings, load_card_settings
from keyvouch_agent.cards.wish import CardWish
from keyvouch_agent.home import Home
from keyvouch_agent.interactions import GivenPin
from keyvouch_agent.pin_standing import check_told_pin
from keyvouch_agent.ports import Pin
from keyvouch_agent.vaults.pkcs11.uri import TokenUri

SETTINGS = """
[smartcard]
module = "/usr/lib/one.so"
modules = ["/usr/lib/one.so"]
token = "pkcs11:serial=12"
key = "9c"
certificate = true
attestation = false
"""
READ = CardFileSettings("/usr/lib/one.so", ("/usr/lib/one.so",), "pkcs11:serial=12", "9c", True, False)


def home_with(path: Path, text: str) -> Home:
    home = Home.open(path / "home")
    home.write(FILE, text.encode())
    return home


def test_settings_are_read(tmp_path: Path) -> None:
    assert load_card_settings(home_with(tmp_path, SETTINGS)) == READ
    assert load_card_settings(Home.open(tmp_path / "another")) == CardFileSettings()


@pytest.mark.parametrize(
    "line",
    ['pin = "1234"', 'module = ""', "module = 1", 'modules = "x"', "modules = [1]", 'certificate = "yes"', "key = 9"],
)
def test_settings_that_are_none(line: str, tmp_path: Path) -> None:
    with pytest.raises(MalformedError) as caught:
        load_card_settings(home_with(tmp_path, f"[smartcard]\n{line}\n"))
    assert caught.value.reason is Reason.CONFIGURATION


def test_the_command_line_goes_first_and_names_no_further_module() -> None:
    wish = CardWish("/a.so", ("/a.so",), "pkcs11:token=two", "9a").over(READ)
    assert (wish.module, wish.token, wish.key) == ("/a.so", "pkcs11:token=two", "9a")
    assert wish.modules == READ.modules  # only the settings say which may be loaded
    assert CardWish().over(READ) == CardWish(
        READ.module, READ.modules, READ.token, READ.key, certificate=True, attestation=False
    )


@pytest.mark.parametrize(
    ("wish", "uri"),
    [
        (CardWish(), TokenUri()),
        (CardWish(token="pkcs11:serial=12;id=%05"), TokenUri(serial="12", id=b"\5")),
        (CardWish(token="pkcs11:serial=12;id=%05", key="9C"), TokenUri(serial="12", id=b"\2")),
        (CardWish(key="9a"), TokenUri(id=b"\1")),
        (CardWish(token="pkcs11:serial=12", key="pkcs11:object=mine"), TokenUri(serial="12", object="mine")),
    ],
)
def test_token_and_key(wish: CardWish, uri: TokenUri) -> None:
    assert wish.uri() == uri


@pytest.mark.parametrize(
    ("wish", "kind"),
    [
        (CardWish(key="9d"), UsageError),
        (CardWish(key="1"), UsageError),
        (CardWish(token="9a"), MalformedError),
        (CardWish(token="pkcs11:token=a?pin-value=4711"), MalformedError),
    ],
)
def test_what_names_no_key(wish: CardWish, kind: type[KeyvouchError]) -> None:
    with pytest.raises(kind) as caught:
        wish.uri()
    assert caught.value.fix
    assert "4711" not in str(caught.value)


def test_a_module_that_the_command_line_alone_names_is_refused_A6(tmp_path: Path) -> None:
    module = tmp_path / "module.so"
    module.write_bytes(b"")
    with pytest.raises(DeviceError) as caught:
        CardWish(module=str(module)).module_path(environment={})
    assert caught.value.reason is Reason.MODULE_REFUSED


@pytest.mark.parametrize(("provider", "left", "reason"), [
    ("smartcard", 1, Reason.PIN_LAST_TRY), ("smartcard", 0, Reason.PIN_BLOCKED), ("tpm", 0, Reason.PIN_BLOCKED),
])  # fmt: skip
def test_a_pin_that_is_not_asked_for(provider: str, left: int, reason: Reason) -> None:
    with pytest.raises(DeviceError) as caught:
        check_told_pin({"provider": provider, "retries_left": left})
    assert (caught.value.reason, caught.value.retries_left) == (reason, left)
    assert ("PUK" in caught.value.fix) is (provider == "smartcard")


def test_a_pin_that_is_asked_for() -> None:
    check_told_pin({"provider": "smartcard", "retries_left": 1}, last_try=True)
    check_told_pin({"provider": "smartcard", "retries_left": 1, "asks_pin": False})
    check_told_pin({"provider": "tpm", "retries_left": 1})
    check_told_pin({"provider": "smartcard", "retries_left": None})
    assert not GivenPin(Pin("1234")).allows_last_try()
    assert GivenPin(Pin("1234"), last_try=True).allows_last_try()
