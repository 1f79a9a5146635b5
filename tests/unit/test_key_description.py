"""The key description in Android's certificates: what is read, and what is refused."""

from __future__ import annotations

import pytest

from keyvouch.attestation.key_description import AuthorizationList, KeyDescription, SecurityLevel
from keyvouch.errors import MalformedError, Reason
from support.attestation_forge import tlv
from support.key_description import NULL, description, entry, integer, integers


def parsed(**parts: bytes) -> KeyDescription:
    return KeyDescription.parse(description(**parts))


def refused(der: bytes) -> bool:
    with pytest.raises(MalformedError) as caught:
        KeyDescription.parse(der)
    assert caught.value.reason is Reason.ATTESTATION_CERTIFICATE
    return True


def test_what_is_read() -> None:
    software = entry(503, NULL) + entry(505, integer(7)) + entry(600, NULL)
    tee = entry(1, integers(2, 3)) + entry(504, integer(0xFFFFFFFF)) + entry(505, integer(60)) + entry(702, integer(0))
    assert parsed(software=tlv(0x30, software), tee=tlv(0x30, tee)) == KeyDescription(
        300,
        SecurityLevel.TEE,
        SecurityLevel.STRONGBOX,
        b"challenge",
        AuthorizationList(no_auth_required=True, auth_timeout=7, all_applications=True),
        AuthorizationList(frozenset({2, 3}), user_auth_type=0xFFFFFFFF, auth_timeout=60, origin=0),
    )


def test_empty_lists() -> None:
    nothing = AuthorizationList(frozenset(), False, 0, None, False, None)
    read = parsed(software=b"\x30\x00", tee=b"\x30\x00")
    assert (read.software_enforced, read.tee_enforced) == (nothing, nothing)


@pytest.mark.parametrize("version", [1, 2, 3, 4, 100, 200, 300, 400])
def test_the_schema_versions(version: int) -> None:
    assert parsed(version=integer(version)).version == version


@pytest.mark.parametrize("version", [-1, 0, 5, 99, 101, 500])
def test_an_unknown_schema_version(version: int) -> None:
    assert refused(description(version=integer(version)))


@pytest.mark.parametrize("level", list(SecurityLevel))
def test_the_security_levels(level: SecurityLevel) -> None:
    assert parsed(attestation_level=tlv(10, bytes([level]))).attestation_level is level
    assert parsed(key_level=tlv(10, bytes([level]))).key_level is level


@pytest.mark.parametrize("level", [b"\xff", b"\x03", b"\x64"])
def test_an_unknown_security_level(level: bytes) -> None:
    assert refused(description(attestation_level=tlv(10, level)))
    assert refused(description(key_level=tlv(10, level)))


@pytest.mark.parametrize(
    ("part", "der"),
    [
        ("version", tlv(10, b"\x03")),
        ("version", b""),
        ("attestation_level", integer(1)),
        ("key_version", tlv(10, b"\x01")),
        ("key_version", integer(-1)),
        ("key_level", integer(1)),
        ("challenge", tlv(3, b"challenge")),
        ("unique_id", tlv(12, b"")),
        ("unique_id", b""),
        ("software", tlv(0x31, b"")),
        ("tee", tlv(0x31, b"")),
        ("tee", b""),
        ("tee", b"\x30\x00\x05\x00"),
    ],
)
def test_a_field_of_another_type(part: str, der: bytes) -> None:
    assert parsed().version == 300
    assert refused(description(**{part: der}))


@pytest.mark.parametrize("der", [b"", b"\x30\x00", description() + b"\x05\x00", b"\x31" + description()[1:]])
def test_what_is_not_a_description(der: bytes) -> None:
    assert refused(der)


def test_a_zero_as_keymaster_version() -> None:
    assert parsed(key_version=integer(0)).version == 300


GOOD_ENTRIES = [
    entry(0, NULL),
    entry(2, integer(3)) + entry(4, integers(1)),
    entry(704, tlv(0x30, b"\x05\x00\x05\x00")),
    entry(1, integers()),
    entry(30, NULL) + entry(31, NULL) + entry(127, NULL) + entry(128, NULL) + entry(99_999, NULL),
]
BAD_ENTRIES = [
    entry(2, integer(3)) + entry(2, integer(3)),
    entry(3, integer(256)) + entry(2, integer(3)),
    entry(2, b""),
    entry(2, integer(3) + NULL),
    entry(704, b"\x30\x05"),
    tlv(0x82, integer(3)),
    tlv(0x62, integer(3)),
    integer(3),
    entry(1, integer(2)),
    entry(1, tlv(0x31, tlv(4, b"\x02"))),
    entry(1, integers(-2)),
    entry(503, integer(0)),
    entry(503, tlv(5, b"\x00")),
    entry(600, tlv(5, b"\x00")),
    entry(600, integer(0)),
    entry(504, NULL),
    entry(504, integer(-1)),
    entry(505, integer(-1)),
    entry(505, tlv(2, b"\x00\x01")),
    entry(702, tlv(10, b"\x00")),
    entry(702, integer(-1)),
    b"\xbf",
]


@pytest.mark.parametrize("entries", GOOD_ENTRIES)
def test_entries_that_are_not_looked_at(entries: bytes) -> None:
    read = parsed(software=tlv(0x30, entries), tee=tlv(0x30, entries))
    assert (read.software_enforced, read.tee_enforced) == (AuthorizationList(), AuthorizationList())


@pytest.mark.parametrize("entries", BAD_ENTRIES)
@pytest.mark.parametrize("part", ["software", "tee"])
def test_entries_that_are_wrong(part: str, entries: bytes) -> None:
    assert refused(description(**{part: tlv(0x30, entries)}))
