"""What `authenticator serve` puts together: the same engine, set up for where it is put and how far it is guarded."""

from __future__ import annotations

from pathlib import Path

import pytest
from fido2.ctap2.base import Info

from keyvouch import cbor
from keyvouch.errors import DeviceError, Reason, UsageError
from keyvouch_agent.home import Home
from keyvouch_agent.served import ServeWish, Transport, VaultKind, open_authenticator
from keyvouch_agent.system import SystemClock
from keyvouch_agent.transports.ctaphid import LONGEST_MESSAGE
from keyvouch_agent.transports.presence import UnsafeAutoPresence
from keyvouch_agent.vaults.tpm.connection import TpmAccess
from support.authenticators import FAST_KDF

READER = ("127.0.0.1", 35963)


def wish(transport: Transport, *, always: bool = False, uhid: Path = Path("/dev/uhid")) -> ServeWish:
    return ServeWish(transport, VaultKind.SOFTWARE, always_verify=always, reader=READER, uhid=uhid)


def no_tpm() -> TpmAccess:
    raise UsageError("no TPM is wanted here")


def info_of(home: Path, what: ServeWish) -> Info:
    with open_authenticator(Home.open(home), what, clock=SystemClock(), tpm_access=no_tpm, kdf=FAST_KDF) as served:
        answer = served.authenticator.handle(b"\x04", UnsafeAutoPresence())
    assert answer[0] == 0
    return Info.from_dict(cbor.decode(answer[1:]))  # type: ignore[arg-type]


def test_a_card_says_that_it_is_one(tmp_path: Path):
    info = info_of(tmp_path / "home", wish(Transport.PCSC))
    assert info.transports == ["nfc", "smart-card"]
    assert info.max_msg_size == LONGEST_MESSAGE
    assert info.options["makeCredUvNotRqd"]
    assert "U2F_V2" in info.versions


def test_a_usb_key_takes_no_message_that_the_kernel_may_lose_part_of(tmp_path: Path):
    info = info_of(tmp_path / "home", wish(Transport.UHID))
    assert info.transports == ["usb"]
    packets = 1 + -(-(info.max_msg_size - 57) // 59)
    assert packets < 32


@pytest.mark.parametrize("transport", Transport)
def test_where_verification_is_always_wanted_it_says_so(tmp_path: Path, transport: Transport):
    info = info_of(tmp_path / "home", wish(transport, always=True))
    assert info.options["alwaysUv"]
    assert not info.options["makeCredUvNotRqd"]
    assert "U2F_V2" not in info.versions


def test_a_folder_made_one_way_is_not_opened_the_other_way(tmp_path: Path):
    home = tmp_path / "home"
    with open_authenticator(
        Home.open(home), wish(Transport.PCSC), clock=SystemClock(), tpm_access=no_tpm, kdf=FAST_KDF
    ) as served:
        made = served.authenticator.handle(
            b"\x01"
            + cbor.encode(
                {
                    1: bytes(32),
                    2: {"id": "example.org"},
                    3: {"id": b"user", "name": "ada"},
                    4: [{"alg": -7, "type": "public-key"}],
                }
            ),
            UnsafeAutoPresence(),
        )
        assert made[0] == 0
    info_of(home, wish(Transport.UHID))  # the same keys on the other transport
    with pytest.raises(DeviceError) as refusal:
        info_of(home, wish(Transport.PCSC, always=True))
    assert refusal.value.reason is Reason.UNSUPPORTED
