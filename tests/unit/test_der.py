"""The DER reader takes the one encoding of each value and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvouch.attestation.der import (
    BOOLEAN,
    ENUMERATED,
    INTEGER,
    OCTET_STRING,
    SEQUENCE,
    SET,
    DerClass,
    DerError,
    DerReader,
    Tag,
    explicit,
)


def reader(text: str) -> DerReader:
    return DerReader(bytes.fromhex(text))


@pytest.mark.parametrize(
    ("text", "tag", "content"),
    [
        ("0400", OCTET_STRING, ""),
        ("0402abcd", OCTET_STRING, "abcd"),
        ("3003020101", SEQUENCE, "020101"),
        ("3100", SET, ""),
        ("a100", explicit(1), ""),
        ("bf853e00", explicit(702), ""),
        ("bf1f00", explicit(31), ""),
        ("bfffff7f00", explicit(0x1FFFFF), ""),
        ("bfffffff7f00", explicit(0xFFFFFFF), ""),
        ("410101", Tag(1, tag_class=DerClass.APPLICATION), "01"),
        ("c10101", Tag(1, tag_class=DerClass.PRIVATE), "01"),
        ("9e00", Tag(30, tag_class=DerClass.CONTEXT), ""),
        ("047f" + "00" * 127, OCTET_STRING, "00" * 127),
        ("048180" + "00" * 128, OCTET_STRING, "00" * 128),
        ("0481ff" + "00" * 255, OCTET_STRING, "00" * 255),
        ("04820100" + "00" * 256, OCTET_STRING, "00" * 256),
    ],
)
def test_elements(text: str, tag: Tag, content: str) -> None:
    source = reader(text)
    assert source.any() == (tag, bytes.fromhex(content))
    source.end()
    again = reader(text)
    assert again.read(tag).hex() == content
    assert not again


@pytest.mark.parametrize(
    "text",
    [
        "",
        "04",
        "0401",
        "040200",
        "0480",
        "048000000000",  # indefinite
        "04ff",
        "04810100",  # long form of a short length
        "04817f" + "00" * 127,
        "04820001" + "00",
        "048200ff" + "00" * 255,
        "0481",
        "048201",
        "0485000000000100",
        "048400000001" + "00",
        "0484ffffffff",
        "bf",
        "bf85",
        "bf1e00",  # number 30 fits in one byte
        "bf8001" + "00",
        "bf801f00",
        "bf0000",
        "bfffffffff7f00",
        "bf8180808000",
    ],
)
def test_what_is_not_der(text: str) -> None:
    with pytest.raises(DerError):
        reader(text).any()


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("020100", 0),
        ("02017f", 127),
        ("020200ff", 255),
        ("02020080", 128),
        ("0201ff", -1),
        ("020180", -128),
        ("0202ff7f", -129),
        ("02020100", 256),
        ("02047fffffff", 0x7FFFFFFF),
    ],
)
def test_integers(text: str, number: int) -> None:
    assert reader(text).integer() == number


@pytest.mark.parametrize("text", ["0200", "0202007f", "02020000", "0202ffff", "0202ff80", "040100", "0a0101"])
def test_what_is_no_integer(text: str) -> None:
    with pytest.raises(DerError):
        reader(text).integer()


def test_enumerations_are_read_like_integers() -> None:
    assert reader("0a0102").integer(ENUMERATED) == 2
    with pytest.raises(DerError):
        reader("020102").integer(ENUMERATED)


def test_truth_values() -> None:
    assert reader("0101ff").boolean() is True
    assert reader("010100").boolean() is False
    for text in ("010101", "0100", "0102ffff", "0201ff"):
        with pytest.raises(DerError):
            reader(text).boolean()


@pytest.mark.parametrize(
    "read",
    [
        lambda source: source.read(OCTET_STRING),
        lambda source: source.enter(SET),
        lambda source: source.read(Tag(16)),
        lambda source: source.read(Tag(16, constructed=True, tag_class=DerClass.CONTEXT)),
        lambda source: source.read(BOOLEAN),
    ],
)
def test_another_tag_than_expected(read: Callable[[DerReader], object]) -> None:
    with pytest.raises(DerError):
        read(reader("3000"))


def test_walking_through_a_structure() -> None:
    outer = reader("300a0201010101ff04020506")
    inner = outer.enter(SEQUENCE)
    outer.end()
    assert (inner.integer(INTEGER), inner.boolean()) == (1, True)
    with pytest.raises(DerError):
        inner.end()
    assert inner.read(OCTET_STRING) == b"\x05\x06"
    inner.end()


@given(st.binary(max_size=40))
def test_any_bytes_are_elements_or_a_der_error(data: bytes) -> None:
    source = DerReader(data)
    try:
        while source:
            source.any()
    except DerError:
        pass


def test_numbers_and_lengths_with_bytes_of_80() -> None:
    """80 goes on in a tag number and is an indefinite length; taken for the last byte it would end either."""
    assert reader("bf81800100").any() == (explicit(0x4001), b"")
    with pytest.raises(DerError):
        reader("0480" + "00" * 128).any()


def test_a_length_of_four_bytes() -> None:
    content = bytes(1 << 24)
    assert DerReader(b"\x04\x84\x01\x00\x00\x00" + content).any() == (OCTET_STRING, content)
