"""What tokens say of themselves and of their keys: bytes that anybody may have written."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest
from pkcs11 import Attribute, SlotFlag, TokenFlag
from pkcs11.exceptions import AttributeTypeInvalid

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.vaults.pkcs11 import keys
from keyvouch_agent.vaults.pkcs11.library import PresentToken, _read
from keyvouch_agent.vaults.pkcs11.session import find_token
from support.pkcs11_tokens import reason_of


def present(serial: bytes) -> PresentToken:
    """A token of that serial number, read from a slot that is made up: no module here makes such ones."""
    token = SimpleNamespace(
        flags=TokenFlag.TOKEN_INITIALIZED, serial=serial, label="card", manufacturer_id="maker", model="model"
    )
    slot: Any = SimpleNamespace(
        get_token=lambda: token, get_mechanisms=set, slot_id=0, slot_description="reader", flags=SlotFlag(0)
    )
    found = _read(slot)
    assert found is not None
    return found


@pytest.mark.parametrize(("one", "other"), [(b"\xff\x01", b"\xfe\x01"), (b"\x80" * 16, b"\x81" * 16)])
def test_serial_numbers_of_any_bytes_tell_tokens_apart(one: bytes, other: bytes) -> None:
    """The PIN would be shown to the other one."""
    assert not present(one).name.same_token(present(other).name)
    assert present(one).name.same_token(present(one).name)


@pytest.mark.parametrize("padding", [b"", b"  ", b"\0\0"])
def test_padding_is_no_part_of_a_serial_number(padding: bytes) -> None:
    assert present(b"1234" + padding).name.serial == "1234"


@pytest.mark.parametrize("lie", [True, None, AttributeTypeInvalid(), struct.error("8 bytes for a truth value")])
@pytest.mark.parametrize("attribute", [Attribute.EXTRACTABLE, Attribute.SENSITIVE])
def test_key_of_which_a_token_does_not_say_that_it_stays_inside(attribute: Attribute, lie: object) -> None:
    class Key(dict[Attribute, Any]):
        def __getitem__(self, name: Attribute) -> Any:
            value = super().__getitem__(name)
            if isinstance(value, Exception):
                raise value
            return value

    said = {**keys._MUST_OF_EXISTING, Attribute.ALWAYS_AUTHENTICATE: True}
    assert keys.check_existing(Key(said))
    if said[attribute] is not lie:
        assert reason_of(lambda: keys.check_existing(Key({**said, attribute: lie}))) is Reason.UNSUPPORTED


def test_two_tokens_of_one_name_are_told_and_neither_is_taken() -> None:
    """One of them is a copy, and would be shown the PIN."""
    library: Any = SimpleNamespace(tokens=lambda: [present(b"1234")] * 2)
    with pytest.raises(DeviceError) as caught:
        find_token(library, present(b"1234").name)
    assert (caught.value.reason, "2 cards" in caught.value.message) == (Reason.AUTHENTICATOR_NOT_CONNECTED, True)
    library.tokens = lambda: [present(b"1234"), present(b"5678")]
    assert find_token(library, present(b"1234").name).name.serial == "1234"
