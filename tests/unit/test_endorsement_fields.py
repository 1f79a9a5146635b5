"""Endorsement key certificates that cannot be read: every part of one from both sides."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from keyvouch.attestation.endorsement import (
    EndorsementCertificate,
)
from keyvouch.errors import Reason
from support import endorsement_forge as forge
from support.endorsement_forge import (
    ALTERNATIVE_NAME,
    CONSTRAINTS,
    KEY_USAGE,
    PURPOSES,
    TCG,
    alternative_name,
    attribute,
    certificate,
    ek,
    extension,
    sequence,
    tcg_name,
    tlv,
)
from support.endorsement_verdicts import elements, refusal, unreadable, verify

Parse = EndorsementCertificate.parse


# What cannot be read

EC = "06072a8648ce3d0201"
P256 = "06082a8648ce3d030107"
RSA = "06092a864886f70d0101010500"
POINT = b"\0" + b"\x04" + bytes(64)
NUMBERS = tlv(0x02, b"\x01\x00") + tlv(0x02, b"\x03")


def info(algorithm: str, bits: bytes, *more: bytes) -> bytes:
    return sequence(sequence(bytes.fromhex(algorithm)), tlv(0x03, bits), *more)


@pytest.mark.parametrize(
    ("made", "good"),
    [
        (info(EC + P256, POINT), True),
        (info(EC + "06052b81040022", b"\0\x04" + bytes(96)), True),
        (info(EC + "06052b81040023", b"\0\x04" + bytes(132)), True),
        (info(EC + "06052b8104000a", POINT), False),
        (info(EC, POINT), False),
        (info(EC + P256 + "0500", POINT), False),
        (info(EC + P256, b"\0\x04" + bytes(62)), False),
        (info(EC + P256, b"\0\x04" + bytes(66)), False),
        (info(EC + "06052b81040023", b"\0\x04" + bytes(130)), False),
        (info(EC + "3000", POINT), False),
        (info(EC + P256, b"\0" + b"\x02" + bytes(32)), False),
        (info(EC + P256, b"\0" + b"\x06" + bytes(64)), False),
        (info(EC + P256, b"\0\x04" + bytes(63)), False),
        (info(EC + P256, b"\x01\x04" + bytes(64)), False),
        (info(EC + P256, b""), False),
        (info(EC + P256, b"\0"), False),
        (info(EC + P256, POINT, b"\x05\x00"), False),
        (info("06052b8104010c" + P256, POINT), False),
        (info("06032b6570", b"\0" + bytes(32)), False),
        (info(RSA, b"\0" + sequence(NUMBERS)), True),
        (info(RSA, b"\0" + sequence(NUMBERS, b"\x05\x00")), False),
        (info(RSA, b"\0" + sequence(NUMBERS) + b"\0"), False),
        (info(RSA, b"\0" + sequence(NUMBERS) + b"\x05\x00"), False),
        (info(RSA, b"\0" + NUMBERS), False),
        (info(RSA, b"\0" + sequence(NUMBERS[:4])), False),
        (info(RSA, b"\0" + sequence(tlv(0x02, bytes([1] * 1024)), tlv(0x02, bytes([1] * 1024)))), True),
        (info(RSA, b"\0" + sequence(tlv(0x02, bytes([1] * 1025)), tlv(0x02, b"\x03"))), False),
        (info(RSA, b"\0" + sequence(tlv(0x02, b"\x03"), tlv(0x02, bytes([1] * 1025)))), False),
    ],
)
def test_which_keys_can_be_read(made: bytes, good: bool):
    data = certificate(key=made)
    if good:
        assert repr(Parse(data))
        assert refusal(data) is Reason.TPM_EK_CERTIFICATE
    else:
        assert unreadable(data)


@pytest.mark.parametrize(
    ("time", "read"),
    [
        (tlv(0x17, b"491231235959Z"), datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (tlv(0x17, b"500101000000Z"), datetime(1950, 1, 1, tzinfo=UTC)),
        (tlv(0x17, b"000101000000Z"), datetime(2000, 1, 1, tzinfo=UTC)),
        (tlv(0x18, b"20491231235959Z"), datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (tlv(0x18, b"00010101000000Z"), datetime(1, 1, 1, tzinfo=UTC)),
        (tlv(0x17, b"200101000000"), None),
        (tlv(0x17, b"2001010000Z"), None),
        (tlv(0x17, b"200101000000+0000"), None),
        (tlv(0x17, b"20010100000 Z"), None),
        (tlv(0x17, b"201301000000Z"), None),
        (tlv(0x17, b"200101000061Z"), None),
        (tlv(0x17, b"2001010000000"), None),
        (tlv(0x17, b""), None),
        (tlv(0x17, b"20010100000\xffZ"), None),
        (tlv(0x18, b"200101000000Z"), None),
        (tlv(0x18, b"20200101000000.5Z"), None),
        (tlv(0x18, b"00000101000000Z"), None),
        (tlv(0x13, b"20200101000000Z"), None),
    ],
)
def test_which_times_can_be_read(time: bytes, read: datetime | None):
    data = certificate(validity=sequence(time, tlv(0x18, b"99991231235959Z")))
    if read is None:
        assert unreadable(data)
    else:
        assert Parse(data).not_before == read


BAD_PARTS: dict[str, dict[str, Any]] = {
    "version 1": {"version": b""},
    "version 2": {"version": bytes.fromhex("a003020101")},
    "version 4": {"version": bytes.fromhex("a003020103")},
    "two versions": {"version": bytes.fromhex("a006020102020102")},
    "no serial number": {"serial": b""},
    "serial number of another type": {"serial": b"\x04\x01\x01"},
    "three times": {"validity": sequence(*[tlv(0x17, b"200101000000Z")] * 3)},
    "one time": {"validity": sequence(tlv(0x17, b"200101000000Z"))},
    "no extensions": {"change": lambda part: sequence(*elements(part)[:-1])},
    "other algorithm outside": {"outer_algorithm": sequence(forge.RSA_SHA256)},
    "parameters": {"algorithm": sequence(forge.ECDSA_SHA256, b"\x30\x00")},
    "two parameters": {"algorithm": sequence(forge.ECDSA_SHA256, b"\x05\x00\x05\x00")},
    "parameter NULL with content": {"algorithm": sequence(forge.ECDSA_SHA256, b"\x05\x01\x00")},
    "no algorithm": {"algorithm": sequence()},
    "signature of odd bits": {"signature": b"\x01\x30\x00"},
    "empty signature": {"signature": b""},
    "subject of another type": {"subject": b"\x31\x00"},
    "name that is no text": {"subject": sequence(tlv(0x31, attribute("550403", b"\x01", 0x02)))},
    "name not in UTF-8": {"subject": sequence(tlv(0x31, attribute("550403", b"\xff")))},
    "name with more than a text": {
        "subject": sequence(tlv(0x31, sequence(b"\x06\x01\x2a\x0c\x01a\x0c\x01b"))),
    },
    "name of attributes without sets": {"subject": sequence(attribute("550403", "a"))},
    "something behind the extensions": {"more": b"\x05\x00"},
}


@pytest.mark.parametrize("parts", BAD_PARTS.values(), ids=list(BAD_PARTS))
def test_a_certificate_with_a_bad_part_cannot_be_read(parts: dict[str, Any]):
    assert unreadable(certificate(**parts))


def test_the_parts_are_good_as_they_are():
    assert verify(certificate(change=lambda part: sequence(*elements(part))))
    assert verify(certificate(subject=sequence(tlv(0x31, attribute("550403", "a")), tlv(0x31, b""))))


BAD_EXTENSIONS: dict[str, bytes] = {
    "no value": sequence(tlv(0x06, b"\x2a")),
    "value of another type": sequence(tlv(0x06, b"\x2a"), b"\x05\x00"),
    "critical without value": sequence(tlv(0x06, b"\x2a"), b"\x01\x01\xff"),
    "critical is an empty BOOLEAN": sequence(tlv(0x06, b"\x2a"), b"\x01\x00", tlv(0x04, b"")),
    "critical is a BOOLEAN of two bytes": sequence(tlv(0x06, b"\x2a"), b"\x01\x02\x00\xff", tlv(0x04, b"")),
    "critical twice": sequence(tlv(0x06, b"\x2a"), b"\x01\x01\xff\x01\x01\xff", tlv(0x04, b"")),
    "two values": sequence(tlv(0x06, b"\x2a"), tlv(0x04, b""), tlv(0x04, b"")),
    "no identifier": sequence(tlv(0x04, b"")),
    "not a sequence": b"\x05\x00",
    "one of the others again": extension(KEY_USAGE, bytes.fromhex("03020308")),
}


@pytest.mark.parametrize("bad", BAD_EXTENSIONS.values(), ids=list(BAD_EXTENSIONS))
def test_a_malformed_extension_is_refused(bad: bytes):
    assert unreadable(certificate(extensions={"2a": bad}))
    assert Parse(certificate(extensions={"2a": extension("2a", b"")}))


def test_extensions_are_one_list():
    listed = sequence(*forge.good_extensions(ek()).values())
    replaced = [tlv(0xA3, listed), tlv(0xA3, listed + b"\x05\x00"), tlv(0xA4, listed), listed]
    verdicts = [certificate(change=lambda part, new=new: sequence(*elements(part)[:-1], new)) for new in replaced]
    assert verify(verdicts[0])
    assert all(unreadable(data) for data in verdicts[1:])


@pytest.mark.parametrize(
    ("oid", "value"),
    [
        (CONSTRAINTS, "0500"),
        (CONSTRAINTS, ""),
        (CONSTRAINTS, "300301"),
        (CONSTRAINTS, "30060201000101ff"),
        (CONSTRAINTS, "300030030101ff"),
        (CONSTRAINTS, "30030101ff0500"),
        (CONSTRAINTS, "30031601ff"),
        (CONSTRAINTS, "30020100"),
        (CONSTRAINTS, "30020200"),
        (CONSTRAINTS, "300401020000"),
        (CONSTRAINTS, "3006010100010100"),
        (CONSTRAINTS, "3006020100020100"),
        (CONSTRAINTS, "3009010100020100020100"),
        (KEY_USAGE, "0302ff08"),
        (KEY_USAGE, "03020808"),
        (KEY_USAGE, "0300"),
        (KEY_USAGE, "030101"),
        (KEY_USAGE, "030205200500"),
        (PURPOSES, "3007060567810508010500"),
        (ALTERNATIVE_NAME, "30000500"),
        (ALTERNATIVE_NAME, "3004a4023000" + "0500"),
        (ALTERNATIVE_NAME, "3006a40430000500"),
        (KEY_USAGE, "04020520"),
        (KEY_USAGE, ""),
        (PURPOSES, "06056781050801"),
        (PURPOSES, "3003020101"),
        (PURPOSES, ""),
        (ALTERNATIVE_NAME, "0500"),
        (ALTERNATIVE_NAME, "3004a4020500"),
        (ALTERNATIVE_NAME, ""),
    ],
)
def test_a_malformed_value_is_refused(oid: str, value: str):
    assert unreadable(certificate(extensions={oid: extension(oid, bytes.fromhex(value))}))


@pytest.mark.parametrize(
    ("value", "is_ca"),
    [
        ("3000", False),
        ("3003010100", False),
        ("30030101ff", True),
        ("3003010101", True),
        ("3003010180", True),
        ("3003020100", False),
        ("3006010100020100", False),
        ("30060101ff020100", True),
    ],
)
def test_which_basic_constraints_can_be_read(value: str, is_ca: bool):
    data = certificate(extensions={CONSTRAINTS: extension(CONSTRAINTS, bytes.fromhex(value))})
    assert Parse(data).is_ca is is_ca


@pytest.mark.parametrize(
    ("value", "usage"),
    [
        ("030100", 0),
        ("03020008", 0x08),
        ("03020308", 0x08),
        ("03020408", 0),
        ("03020708", 0),
        ("030207ff", 0x80),
        ("030205ff", 0xE0),
        ("03030708ff", 0x08),
        ("03030700ff", 0),
    ],
)
def test_bits_of_a_key_usage_that_are_unused_do_not_count(value: str, usage: int):
    data = certificate(extensions={KEY_USAGE: extension(KEY_USAGE, bytes.fromhex(value))})
    assert Parse(data).key_usage == usage


@pytest.mark.parametrize(("byte", "critical"), [("00", False), ("01", True), ("80", True), ("ff", True)])
def test_any_byte_but_zero_is_true(byte: str, critical: bool):
    data = certificate(extensions={"2a": extension("2a", b"", b"\x01\x01" + bytes.fromhex(byte))})
    assert (b"\x2a" in Parse(data).critical) is critical


@pytest.mark.parametrize("name", list(TCG))
def test_an_attribute_stated_twice_is_refused(name: str):
    twice = alternative_name(*(attribute(TCG[one], "id:494E5443") for one in (*TCG, name)))
    assert unreadable(certificate(extensions={ALTERNATIVE_NAME: extension(ALTERNATIVE_NAME, twice)}))
    both = sequence(*(elements(tcg_name()) * 2))
    assert unreadable(certificate(extensions={ALTERNATIVE_NAME: extension(ALTERNATIVE_NAME, both)}))


def test_a_certificate_has_at_most_16_kib():
    data = certificate()
    assert Parse(data + b"\xff" * (16 * 1024 - len(data)))
    assert unreadable(data + b"\xff" * (16 * 1024 - len(data) + 1))


@pytest.mark.parametrize(
    "data", [b"", b"\x30", b"\x30\x00", b"\x30\x02\x30\x00", b"\x30\x04\x30\x00\x30\x00", bytes(64)]
)
def test_fragments_are_refused(data: bytes):
    assert unreadable(data)


def test_nothing_stands_behind_the_signature():
    parts = elements(certificate())
    assert Parse(sequence(*parts))
    assert unreadable(sequence(*parts, b"\x05\x00"))
    assert unreadable(sequence(*parts[:2]))
