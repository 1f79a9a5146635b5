"""Endorsement key certificates as chips hold them: odd encodings, wrappings, chains, and real ones."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from keyvouch.attestation.ber import to_der
from keyvouch.attestation.der import DerError
from keyvouch.attestation.endorsement import (
    EndorsementCertificate,
    read_anchor_certificate,
    split_certificates,
    verify_endorsement_certificate,
)
from keyvouch.attestation.trust import TrustAnchor, TrustStore
from keyvouch.errors import EvidenceError, MalformedError, Reason
from support import endorsement_forge as forge
from support.endorsement_forge import (
    ALTERNATIVE_NAME,
    CONSTRAINTS,
    INSTANT,
    KEY_USAGE,
    PURPOSES,
    EkAuthority,
    PublicKey,
    attribute,
    certificate,
    ek,
    extension,
    intermediate,
    root,
    rsa_ek,
    sequence,
    stretched,
    tcg_name,
    tlv,
)
from support.endorsement_verdicts import refusal, unreadable, verify
from support.software_tpm import public_area
from support.tpm_forge import ec_key, rsa_key
from support.vectors import ROOT

Parse = EndorsementCertificate.parse


# Odd encodings


def test_padding_behind_it_is_no_part_of_it():
    data = certificate()
    for padding in (b"", b"\xff" * 500, b"\x00" * 7, b"\x00\xff\x00"):
        assert verify(data + padding).certificate.encoding == data
    for behind in (b"\x01", b"X", b"\xff" * 9 + b"\x30"):
        with pytest.raises(MalformedError) as caught:
            Parse(data + behind)
        assert caught.value.reason is Reason.TPM_EK_CERTIFICATE


def test_wrappings_are_taken_off():
    data = certificate()
    size = len(data).to_bytes(2, "big")
    full = (len(data) + 2).to_bytes(2, "big")
    for wrapped in (
        b"\x10\x01\x00" + size + data,
        b"\x10\x01\x00" + size + data + b"\xff\x00",
        b"\x10\x01\x00" + full + b"\x10\x02" + data,
        tlv(0x04, data),
        tlv(0x04, data + b"\xff\xff") + b"\x00",
        b"\x10\x01\x00" + (len(data) + 4).to_bytes(2, "big") + tlv(0x04, data),
    ):
        assert Parse(wrapped).encoding == data


@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: b"\x10\x01\x00" + (len(data) + 1).to_bytes(2, "big") + data,
        lambda data: b"\x10\x01\x00" + (len(data) - 1).to_bytes(2, "big") + data,
        lambda data: b"\x10\x01\x00" + len(data).to_bytes(2, "big") + data + b"\x01",
        lambda data: b"\x10\x01\x01" + len(data).to_bytes(2, "big") + data,
        lambda data: b"\x10\x01\x00\x02",
        lambda data: tlv(0x04, data + b"\x01"),
        lambda data: tlv(0x04, data) + b"\x01",
        lambda data: tlv(0x04, tlv(0x04, data)),
        lambda data: tlv(0x31, data),
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: b"\x30",
    ],
)
def test_wrong_wrappings_are_refused(wrap: Callable[[bytes], bytes]):
    with pytest.raises(MalformedError) as caught:
        Parse(wrap(certificate()))
    assert caught.value.reason is Reason.TPM_EK_CERTIFICATE


def test_long_lengths_and_unsorted_sets_are_read_and_the_signature_covers_them():
    """`cryptography` refuses to load it; the signature is over the very bytes."""
    good = certificate()
    odd = certificate(change=stretched)
    assert len(odd) > len(good)
    with pytest.raises(ValueError, match="InvalidLength"):
        x509.load_der_x509_certificate(odd)
    verified = verify(odd)
    assert (verified.manufacturer, verified.model) == ("id:494E5443", "Example")
    assert verified.certificate.signed == stretched(forge.signed_part(ek(), intermediate()))
    # the same statements, but not the bytes that were signed
    read = Parse(good)
    moved = sequence(stretched(read.signed), sequence(forge.ECDSA_SHA256), tlv(0x03, b"\0" + read.signature))
    assert Parse(moved).key == read.key
    assert refusal(moved) is Reason.TRUST_CHAIN


def test_even_the_outermost_lengths_may_be_long():
    good = Parse(certificate())
    outer = b"".join(
        (good.signed, tlv(0x30, forge.ECDSA_SHA256, length_bytes=2), tlv(0x03, b"\0" + good.signature, length_bytes=4))
    )
    assert verify(tlv(0x30, outer, length_bytes=8) + b"\xff")


def test_a_root_with_unsorted_names_is_an_anchor_of_certificates_with_unsorted_names():
    """As Nuvoton's are, whose certificates hold all attributes of a name in one set."""
    key = ec_key(9)
    name = sequence(
        tlv(0x31, attribute("550403", "Zed Root") + attribute("55040a", "Maker") + attribute("550406", "TW"))
    )
    ca = extension(CONSTRAINTS, bytes.fromhex("30030101ff"))
    signer = EkAuthority(key, root().certificate)
    data = certificate(
        key.public_key(),
        signer=signer,
        issuer=name,
        subject=name,
        extensions={CONSTRAINTS: ca},
        without=[KEY_USAGE, PURPOSES],
    )
    with pytest.raises(ValueError, match="SetOrdering"):
        x509.load_der_x509_certificate(data)
    anchor = read_anchor_certificate(data)
    leaf = certificate(signer=signer, issuer=name)
    anchors = TrustStore([TrustAnchor("odd", anchor, formats=frozenset({"tpm-ek"}))])
    assert verify(leaf, intermediates=[], anchors=anchors).anchor.name == "odd"
    assert Parse(leaf).issuer == Parse(data).subject


@pytest.mark.parametrize("text_tag", [0x0C, 0x13, 0x16, 0x14])
def test_names_are_the_same_in_any_type_of_text(text_tag: int):
    """The issuer is a UTF8String above, as STMicroelectronics mixes it."""
    name = sequence(tlv(0x31, attribute("550403", "EK Intermediate", text_tag)))
    assert verify(_with_issuer(name))


def _with_issuer(name: bytes) -> bytes:
    return certificate(issuer=name)


def test_names_of_other_texts_are_other_names():
    name = sequence(tlv(0x31, attribute("550403", "EK Intermediatf")))
    assert refusal(_with_issuer(name)) is Reason.TRUST_CHAIN
    wide = sequence(tlv(0x31, attribute("550403", "EK Intermediat\u00e9".encode("utf-16-be"), 0x1E)))
    assert dict(Parse(_with_issuer(wide)).issuer[0]) == {b"U\x04\x03": "EK Intermediat\u00e9"}


@pytest.mark.parametrize(
    ("serial", "number"),
    [("0200", 0), ("020100", 0), ("0201ff", -1), ("02020001", 1), ("0203ffff80", -128), ("020800e088516bca31fb", None)],
)
def test_any_serial_number_is_read(serial: str, number: int | None):
    verified = verify(certificate(serial=bytes.fromhex(serial)))
    assert verified.certificate.serial == (0xE088516BCA31FB if number is None else number)


@pytest.mark.parametrize("first", [1, 0x80, 0xFF])
def test_a_serial_number_has_at_most_64_bytes(first: int):
    longest = bytes([first]) + bytes(63)
    read = Parse(certificate(serial=tlv(0x02, longest)))
    assert read.serial == int.from_bytes(longest, "big", signed=True)
    assert str(read.serial) in repr(read)
    for size in (65, 1800):
        assert unreadable(certificate(serial=tlv(0x02, bytes([first]) + bytes(size - 1))))


@pytest.mark.parametrize("value", ["3000", "3003010100"])
def test_false_may_be_written_out(value: str):
    """As AMD and Intel write `critical`; strict DER leaves it out."""
    written = {PURPOSES: extension(PURPOSES, bytes.fromhex("300706056781050801"), b"\x01\x01\x00")}
    data = certificate(
        extensions=written | {CONSTRAINTS: extension(CONSTRAINTS, bytes.fromhex(value), b"\x01\x01\x01")}
    )
    read = verify(data).certificate
    assert bytes.fromhex(PURPOSES) not in read.critical
    assert bytes.fromhex(CONSTRAINTS) in read.critical


def test_values_of_extensions_may_have_long_lengths():
    odd = {oid: extension(oid, stretched(value)) for oid, value in _values().items()}
    read = verify(certificate(extensions=odd)).certificate
    assert (read.is_ca, read.key_usage, read.extended_key_usage) == (False, 0x08, (bytes.fromhex("6781050801"),))


def _values() -> dict[str, bytes]:
    return {
        CONSTRAINTS: bytes.fromhex("3000"),
        KEY_USAGE: bytes.fromhex("03020308"),
        PURPOSES: bytes.fromhex("300706056781050801"),
        ALTERNATIVE_NAME: tcg_name(),
    }


@pytest.mark.parametrize(
    "algorithm",
    [
        "06092a864886f70d0101010500",
        "06092a864886f70d010101",
        "06092a864886f70d010107",
        "06092a864886f70d0101073000",
        "06092a864886f70d0101073016a009300706052b0e03021aa109300706052b0e03021a",
    ],
)
def test_rsa_keys_of_any_kind_are_compared_by_their_numbers(algorithm: str):
    """`cryptography` loads no key of the type for RSAES-OAEP; chips for the older profile have them."""
    info = rsa_info(rsa_ek(), algorithm)
    verified = verify(certificate(rsa_ek(), key=info), key=rsa_ek())
    assert verified.certificate.key == rsa_ek().public_numbers()
    other = rsa_key(8).public_key()
    assert refusal(certificate(rsa_ek(), key=info), key=other) is Reason.TPM_EK_CERTIFICATE


def rsa_info(key: PublicKey, algorithm: str, *, modulus: bytes | None = None) -> bytes:
    assert isinstance(key, rsa.RSAPublicKey)
    numbers = key.public_numbers()
    n = numbers.n.to_bytes(257, "big") if modulus is None else modulus
    bits = b"\0" + sequence(tlv(0x02, n), tlv(0x02, numbers.e.to_bytes(3, "big")))
    return sequence(sequence(bytes.fromhex(algorithm)), tlv(0x03, bits))


def test_a_modulus_may_lack_its_leading_zero_and_have_long_lengths():
    key = rsa_ek()
    assert isinstance(key, rsa.RSAPublicKey)
    short = key.public_numbers().n.to_bytes(256, "big")
    info = rsa_info(key, "06092a864886f70d0101010500", modulus=short)
    assert verify(certificate(key, key=info), key=key)
    bits = b"\0" + tlv(0x30, tlv(0x02, b"\0" + short, length_bytes=4) + tlv(0x02, b"\x01\x00\x01"), length_bytes=5)
    info = sequence(sequence(bytes.fromhex("06092a864886f70d0101010500")), tlv(0x03, bits))
    assert verify(certificate(key, key=info), key=key)


# Chains


def test_a_chain_is_taken_apart():
    one, two = root().der, intermediate().der
    assert split_certificates(one + two) == (one, two)
    assert split_certificates(b"\xff\x00" + one + b"\xff\xff" + two + bytes(9)) == (one, two)
    assert split_certificates(b"") == ()
    assert split_certificates(b"\xff" * 16) == ()
    assert split_certificates(b"\x30\x00" * 16) == (b"\x30\x00",) * 16


@pytest.mark.parametrize(
    "data", [b"\x30", b"\x30\x05\x00", b"\x31\x00", b"\x01", b"\x30\x00" * 17, b"\xff" * (16 * 16 * 1024 + 1)]
)
def test_a_chain_of_something_else_is_refused(data: bytes):
    with pytest.raises(MalformedError) as caught:
        split_certificates(data)
    assert caught.value.reason is Reason.TPM_EK_CERTIFICATE


def test_the_longest_chain_is_not_too_long():
    assert split_certificates(b"\xff" * (16 * 16 * 1024)) == ()


def test_what_an_administrator_names_as_anchor_has_to_be_a_certificate():
    assert read_anchor_certificate(root().der) == root().certificate
    for data in (b"", b"\x30", b"\x30\x00", root().der + b"\0"):
        with pytest.raises(MalformedError) as caught:
            read_anchor_certificate(data)
        assert caught.value.reason is Reason.ATTESTATION_STATEMENT


# Elements in BER


@pytest.mark.parametrize(
    ("ber", "der"),
    [
        ("", ""),
        ("0500", "0500"),
        ("1e0100", "1e0100"),
        ("058100", "0500"),
        ("30820003058100", "30020500"),
        ("048800000000000000017f", "04017f"),
        ("0401ff0401fe", "0401ff0401fe"),
        ("3106020102020101", "3106020101020102"),
        ("b106020102020101", "b106020102020101"),
        ("1106020102020101", "1106020102020101"),
    ],
)
def test_what_is_put_right(ber: str, der: str):
    assert to_der(bytes.fromhex(ber)).hex() == der


@pytest.mark.parametrize("size", [0, 127, 128, 255, 256, 65535, 65536])
def test_lengths_become_the_shortest(size: int):
    assert to_der(tlv(0x04, bytes(size), length_bytes=8)) == tlv(0x04, bytes(size))


def test_it_is_the_identity_on_der():
    for data in (root().der, intermediate().der, certificate()):
        assert to_der(data) == data
        assert to_der(stretched(data, shuffled=False)) == data
        assert to_der(stretched(data)) == data


def nested(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = tlv(0x30, data)
    return data


def test_nesting_has_an_end():
    assert to_der(nested(15)) == nested(15)
    with pytest.raises(DerError):
        to_der(nested(16))


@pytest.mark.parametrize(
    "ber",
    [
        "30",
        "3001",
        "3080",
        "30800000",
        "308900000000000000000000",
        "3f0100",
        "1f1f00",
        "1f0100",
        "0480" + "00" * 128,
        "0482",
        "048200",
        "04820001",
    ],
)
def test_what_is_no_definite_element_is_refused(ber: str):
    with pytest.raises(DerError):
        to_der(bytes.fromhex(ber))


# Real ones


def real(name: str) -> bytes:
    data = (ROOT / name).read_bytes()
    return base64.b64decode(data.split(b"-----")[2]) if name.endswith(".pem") else data


def test_a_real_certificate_in_an_nv_index_of_1600_bytes():
    """The index is filled up with ones, as chips of ST have it."""
    data = real("go-tpm-tools/uca_tpm_rsa_enc_cert.pem")
    read = Parse(data.ljust(1600, b"\xff"))
    assert read.encoding == data
    assert (read.manufacturer, read.model, read.version) == ("id:474F4F47", "vTPM", "id:20160511")


@pytest.mark.parametrize("kind", ["rsa", "ecc"])
@pytest.mark.parametrize("authority_kind", ["uca", "pca"])
def test_certificates_of_virtual_machines(kind: str, authority_kind: str):
    encryption = Parse(real(f"go-tpm-tools/{authority_kind}_tpm_{kind}_enc_cert.pem"))
    signing = Parse(real(f"go-tpm-tools/{authority_kind}_tpm_{kind}_sign_cert.pem"))
    assert encryption.key_usage == (0x20 if kind == "rsa" else 0x08)
    assert signing.key_usage == 0x80
    named = ("id:474F4F47", "vTPM", "id:20160511") if authority_kind == "uca" else (None, None, None)
    assert (encryption.manufacturer, encryption.model, encryption.version) == named
    for certificate_, good in ((encryption, authority_kind == "uca"), (signing, False)):
        key = certificate_.key.public_key()
        with pytest.raises(EvidenceError) as caught:
            verify_endorsement_certificate(
                certificate_, endorsement_key=public_area(key), intermediates=[], anchors=TrustStore(), instant=INSTANT
            )
        assert caught.value.reason is (Reason.TRUST_CHAIN if good else Reason.TPM_EK_CERTIFICATE)
