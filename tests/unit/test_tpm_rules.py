"""The rules for TPM keys and TPM evidence: each check from both sides (T1 to T4 of the threat model)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.attestation.tpm import (
    CertifiedKey,
    VerifiedCreation,
    VerifiedNvContents,
    VerifiedQuote,
    verify_certify,
    verify_creation,
    verify_nv_certify,
    verify_quote,
)
from keyvouch.attestation.tpm_keys import (
    check_attestation_key,
    check_credential_key,
    check_endorsement_key,
    check_signing_key,
)
from keyvouch.attestation.tpm_structures import TpmClock, TpmCreationData, TpmHash, TpmNvPublic, TpmPublic
from keyvouch.attestation.tpm_vendors import find_vendor
from keyvouch.errors import EvidenceError, KeyvouchError, Reason, UsageError
from support.tpm_forge import (
    AK_ATTRIBUTES,
    CERTIFY,
    CREATION,
    ECDSA,
    EK_ATTRIBUTES,
    LOGIN_ATTRIBUTES,
    NONCE,
    NULL,
    NV,
    QUALIFIED_NAME,
    QUOTE,
    RSAPSS,
    RSASSA,
    SHA1,
    SHA256,
    SHA384,
    SHA512,
    aes_cfb,
    attest,
    attestation_key,
    certify_info,
    clock_info,
    creation_data,
    ec_key,
    nv_certify_info,
    nv_public,
    pcr_digest,
    public_area,
    quote_info,
    rsa_key,
    scheme,
    selection,
    sign,
    tpm2b,
)

CLOCK = TpmClock(12345, 2, 1, safe=True)
FIRMWARE = 0x0102030405060708


def reason_of(verify: Callable[..., object], *positional: Any, **arguments: Any) -> Reason | None:
    try:
        verify(*positional, **arguments)
    except KeyvouchError as error:
        return error.reason
    return None


# Keys

FIXED_TPM, FIXED_PARENT, ORIGIN, USER_WITH_AUTH, ADMIN_WITH_POLICY = 1 << 1, 1 << 4, 1 << 5, 1 << 6, 1 << 7
NO_DA, ENCRYPTED_DUPLICATION, RESTRICTED, DECRYPT, SIGN = 1 << 10, 1 << 11, 1 << 16, 1 << 17, 1 << 18


def ak_public(attributes: int = AK_ATTRIBUTES, **changes: Any) -> TpmPublic:
    return TpmPublic(public_area(ec_key(), **{"attributes": attributes, "scheme": scheme(ECDSA)} | changes))


def login_public(attributes: int = LOGIN_ATTRIBUTES, **changes: Any) -> TpmPublic:
    return TpmPublic(public_area(ec_key(1), **{"attributes": attributes} | changes))


POLICY_A = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")


def ek_public(attributes: int = EK_ATTRIBUTES, key: Any = None, **changes: Any) -> TpmPublic:
    members = {"attributes": attributes, "symmetric": aes_cfb(), "policy": POLICY_A} | changes
    return TpmPublic(public_area(key or rsa_key(), **members))


@pytest.mark.parametrize("bit", [FIXED_TPM, FIXED_PARENT, ORIGIN, RESTRICTED, SIGN, DECRYPT])
def test_attributes_of_an_attestation_key(bit: int) -> None:
    check_attestation_key(ak_public())
    with pytest.raises(EvidenceError) as caught:
        check_attestation_key(ak_public(AK_ATTRIBUTES ^ bit))
    assert caught.value.reason is Reason.TPM_AK_ATTRIBUTES
    assert caught.value.fix


@pytest.mark.parametrize("bit", [USER_WITH_AUTH, ADMIN_WITH_POLICY, NO_DA, 1 << 2])
def test_attributes_that_do_not_matter_to_an_attestation_key(bit: int) -> None:
    check_attestation_key(ak_public(AK_ATTRIBUTES ^ bit))


@pytest.mark.parametrize(("digest", "wanted"), [(SHA1, Reason.TPM_AK_ATTRIBUTES), (SHA256, None), (SHA384, None)])
def test_no_attestation_by_sha1(digest: int, wanted: Reason | None) -> None:
    assert reason_of(check_attestation_key, ak_public(name_algorithm=digest)) is wanted
    assert reason_of(check_attestation_key, ak_public(scheme=scheme(ECDSA, digest))) is wanted


@pytest.mark.parametrize("bad", [NULL, scheme(0x1A) + bytes(2), scheme(0x1B), scheme(0x1C), scheme(0x19)])
def test_schemes_of_an_attestation_key(bad: bytes) -> None:
    assert reason_of(check_attestation_key, ak_public(scheme=bad)) is Reason.TPM_AK_ATTRIBUTES


@pytest.mark.parametrize(("algorithm", "wanted"), [(RSASSA, None), (RSAPSS, None), (0x17, Reason.TPM_AK_ATTRIBUTES)])
def test_schemes_of_an_rsa_attestation_key(algorithm: int, wanted: Reason | None) -> None:
    public = TpmPublic(public_area(rsa_key(), attributes=AK_ATTRIBUTES, scheme=scheme(algorithm)))
    assert reason_of(check_attestation_key, public) is wanted


@pytest.mark.parametrize("check", [check_signing_key, check_credential_key])
@pytest.mark.parametrize("bit", [FIXED_TPM, FIXED_PARENT, ORIGIN, SIGN, RESTRICTED, ENCRYPTED_DUPLICATION])
def test_attributes_of_a_signing_key(check: Callable[[TpmPublic], None], bit: int) -> None:
    check(login_public())
    with pytest.raises(EvidenceError) as caught:
        check(login_public(LOGIN_ATTRIBUTES ^ bit))
    assert caught.value.reason is Reason.TPM_KEY_ATTRIBUTES


@pytest.mark.parametrize(
    ("attributes", "policy", "is_good"),
    [
        (LOGIN_ATTRIBUTES | USER_WITH_AUTH, b"", True),
        (LOGIN_ATTRIBUTES & ~USER_WITH_AUTH, b"", False),
        (LOGIN_ATTRIBUTES & ~USER_WITH_AUTH, bytes(32), False),  # the policy of a fresh session
        (LOGIN_ATTRIBUTES & ~USER_WITH_AUTH, bytes(31) + b"\x01", True),
        (LOGIN_ATTRIBUTES | USER_WITH_AUTH, bytes(32), True),
    ],
)
def test_something_stands_before_the_use_of_a_signing_key(attributes: int, policy: bytes, is_good: bool) -> None:
    reason = reason_of(check_signing_key, login_public(attributes, policy=policy))
    assert reason is (None if is_good else Reason.TPM_KEY_ATTRIBUTES)


@pytest.mark.parametrize(
    ("fixed", "is_good"),
    [
        (NULL, True),
        (scheme(ECDSA), True),
        (scheme(ECDSA, SHA384), True),
        (scheme(ECDSA, SHA1), False),
        (scheme(0x001C), False),  # ECSCHNORR
    ],
)
def test_the_scheme_of_a_signing_key(fixed: bytes, is_good: bool) -> None:
    reason = reason_of(check_signing_key, login_public(scheme=fixed))
    assert reason is (None if is_good else Reason.TPM_KEY_ATTRIBUTES)


@pytest.mark.parametrize("check", [check_signing_key, check_credential_key])
def test_no_name_by_sha1(check: Callable[[TpmPublic], None]) -> None:
    assert reason_of(check, login_public(name_algorithm=SHA384)) is None
    assert reason_of(check, login_public(name_algorithm=SHA1)) is Reason.TPM_KEY_ATTRIBUTES


def test_a_key_to_sign_in_with_does_not_decrypt() -> None:
    assert reason_of(check_signing_key, login_public(LOGIN_ATTRIBUTES | DECRYPT)) is Reason.TPM_KEY_ATTRIBUTES
    assert reason_of(check_credential_key, login_public(LOGIN_ATTRIBUTES | DECRYPT)) is None


def test_a_key_to_sign_in_with_is_gated() -> None:
    open_to_all = LOGIN_ATTRIBUTES & ~USER_WITH_AUTH
    assert reason_of(check_signing_key, login_public(open_to_all)) is Reason.TPM_KEY_ATTRIBUTES
    assert reason_of(check_signing_key, login_public(open_to_all, policy=b"\x01" * 32)) is None
    assert reason_of(check_signing_key, login_public(open_to_all | NO_DA, policy=b"\x01" * 32)) is None
    assert reason_of(check_signing_key, login_public(policy=b"\x01" * 32)) is None
    assert reason_of(check_credential_key, login_public(open_to_all)) is None


def test_what_is_missing_is_named() -> None:
    with pytest.raises(EvidenceError) as caught:
        check_signing_key(login_public(LOGIN_ATTRIBUTES & ~FIXED_TPM & ~SIGN | RESTRICTED))
    assert caught.value.metadata == {"missing": "FIXED_TPM|SIGN", "forbidden": "RESTRICTED"}
    with pytest.raises(EvidenceError) as caught:
        check_signing_key(login_public(LOGIN_ATTRIBUTES & ~FIXED_TPM))
    assert caught.value.metadata == {"missing": "FIXED_TPM", "forbidden": ""}
    with pytest.raises(EvidenceError) as caught:
        check_signing_key(login_public(LOGIN_ATTRIBUTES | RESTRICTED))
    assert caught.value.metadata == {"missing": "", "forbidden": "RESTRICTED"}


@pytest.mark.parametrize("bit", [FIXED_TPM, FIXED_PARENT, ORIGIN, ADMIN_WITH_POLICY, RESTRICTED, DECRYPT, SIGN])
def test_attributes_of_an_endorsement_key(bit: int) -> None:
    check_endorsement_key(ek_public())
    assert reason_of(check_endorsement_key, ek_public(EK_ATTRIBUTES ^ bit)) is Reason.TPM_EK_ATTRIBUTES


@pytest.mark.parametrize(
    ("symmetric", "wanted"),
    [
        (aes_cfb(128), None),
        (aes_cfb(256), None),
        (aes_cfb(192), Reason.TPM_EK_ATTRIBUTES),
        (NULL, Reason.TPM_EK_ATTRIBUTES),
        (bytes.fromhex("000600800042"), Reason.TPM_EK_ATTRIBUTES),
        (bytes.fromhex("001300800043"), Reason.TPM_EK_ATTRIBUTES),
    ],
)
def test_the_cipher_of_an_endorsement_key(symmetric: bytes, wanted: Reason | None) -> None:
    assert reason_of(check_endorsement_key, ek_public(symmetric=symmetric)) is wanted


def test_an_endorsement_key_has_no_scheme() -> None:
    assert reason_of(check_endorsement_key, ek_public(scheme=scheme(0x17))) is Reason.TPM_EK_ATTRIBUTES


def policy_a(digest: str) -> bytes:
    """PolicySecret of the endorsement hierarchy (EK profile annex B.6.2; Part 3, TPM2_PolicySecret)."""
    size = hashlib.new(digest).digest_size
    once = hashlib.new(digest, bytes(size) + bytes.fromhex("000001514000000b")).digest()
    return hashlib.new(digest, once).digest()


POLICY_INDEX_NAMES = {  # of the NV indices 01C07F01 to 01C07F03 (EK profile annex B.6.3)
    "sha256": "000b0c9d717e9c3fe69fda41769450bb145957f8b3610e084dbf65591a5d11ecd83f",
    "sha384": "000cdb62fca346612c976732ff4e8621fb4e858be82586486504f7d02e621f8d7d61ae32cfc60c4d120609ed6768afcf090c",
    "sha512": "000d1c47c0bbcbd3cf7d7cae6987d31937c171015dde3b7f0d3c869bca1f7e8a223b"
    "9acfadb49b7c9cf14d450f41e9327de34d9291eece2c58ab1dc10e9059cce560",
}


def policy_c(digest: str) -> bytes:
    """PolicyAuthorizeNV of the policy index of the profile (annex B.6.4)."""
    size = hashlib.new(digest).digest_size
    return hashlib.new(digest, bytes(size) + bytes.fromhex("00000192" + POLICY_INDEX_NAMES[digest])).digest()


def policy_b(digest: str) -> bytes:
    """Either of the two (annex B.6.5)."""
    size = hashlib.new(digest).digest_size
    both = policy_a(digest) + policy_c(digest)
    return hashlib.new(digest, bytes(size) + bytes.fromhex("00000171") + both).digest()


HIGH_RANGE = EK_ATTRIBUTES | USER_WITH_AUTH


@pytest.mark.parametrize(("digest", "number"), [("sha256", SHA256), ("sha384", SHA384), ("sha512", SHA512)])
def test_policies_of_endorsement_keys(digest: str, number: int) -> None:
    for policy in (policy_a(digest), policy_b(digest)):
        for key in (rsa_key(), ec_key(), ec_key(0, ec.SECP384R1)):
            check_endorsement_key(ek_public(key=key, name_algorithm=number, policy=policy))
            check_endorsement_key(ek_public(HIGH_RANGE, key=key, name_algorithm=number, policy=policy))
        stranger = bytes([policy[0] ^ 1]) + policy[1:]
        bad = ek_public(HIGH_RANGE, name_algorithm=number, policy=stranger)
        assert reason_of(check_endorsement_key, bad) is Reason.TPM_EK_ATTRIBUTES


def test_an_endorsement_key_without_a_policy() -> None:
    assert reason_of(check_endorsement_key, ek_public(HIGH_RANGE, policy=b"")) is None
    assert reason_of(check_endorsement_key, ek_public(policy=b"")) is Reason.TPM_EK_ATTRIBUTES
    sha1 = ek_public(HIGH_RANGE, policy=b"", name_algorithm=SHA1)
    assert reason_of(check_endorsement_key, sha1) is Reason.TPM_EK_ATTRIBUTES


# Evidence

AK = attestation_key(ec_key())
LOGIN = login_public()
INDEX = TpmNvPublic(nv_public())
CREATION_DATA = creation_data(b"outside")
VALUES = {pcr: bytes([pcr + 1]) * 32 for pcr in (0, 2, 7)}
CREATION_HASH = hashlib.sha256(CREATION_DATA).digest()

ATTESTATIONS: dict[str, tuple[Callable[..., Any], int, bytes, dict[str, Any]]] = {
    "certify": (verify_certify, CERTIFY, certify_info(LOGIN.name), {"subject": LOGIN}),
    "quote": (
        verify_quote,
        QUOTE,
        quote_info([selection(VALUES)], pcr_digest(VALUES)),
        {"selection": {TpmHash.SHA256: list(VALUES)}, "pcr_values": {TpmHash.SHA256: VALUES}},
    ),
    "creation": (
        verify_creation,
        CREATION,
        certify_info(LOGIN.name, CREATION_HASH),
        {"subject": LOGIN, "creation_data": CREATION_DATA, "outside_info": b"outside"},
    ),
    "nv": (verify_nv_certify, NV, nv_certify_info(INDEX.name, b"contents"), {"index": INDEX, "size": 8}),
}


class Evidence:
    """One piece of good evidence; `changes` of `arguments` replace what the verifier gets."""

    def __init__(self, kind: str) -> None:
        self.verify, self.type, self.body, self.expected = ATTESTATIONS[kind]

    def arguments(self, *, body: bytes | None = None, key: Any = None, **changes: Any) -> dict[str, Any]:
        members = {name: changes.pop(name) for name in ("nonce", "magic", "clock") if name in changes}
        kind = changes.pop("type", self.type)
        data = changes.pop("attest", attest(kind, self.body if body is None else body, **members))
        signature = sign(key or ec_key(), data)
        good = {"attestation_key": AK, "attest": data, "signature": signature, "qualifying_data": NONCE}
        return good | self.expected | changes

    def reason(self, **changes: Any) -> Reason | None:
        return reason_of(self.verify, **self.arguments(**changes))


every_kind = pytest.mark.parametrize("kind", list(ATTESTATIONS))


def test_a_certified_key() -> None:
    assert verify_certify(**Evidence("certify").arguments()) == CertifiedKey(LOGIN, QUALIFIED_NAME, CLOCK, FIRMWARE)


def test_a_quote() -> None:
    assert verify_quote(**Evidence("quote").arguments()) == VerifiedQuote(TpmHash.SHA256, VALUES, CLOCK, FIRMWARE)


def test_a_creation() -> None:
    wanted = VerifiedCreation(LOGIN, TpmCreationData(CREATION_DATA), CLOCK, FIRMWARE)
    assert verify_creation(**Evidence("creation").arguments()) == wanted


def test_nv_contents() -> None:
    wanted = VerifiedNvContents(INDEX, 0, b"contents", CLOCK, FIRMWARE)
    assert verify_nv_certify(**Evidence("nv").arguments()) == wanted


@every_kind
def test_the_attestation_key_is_judged(kind: str) -> None:
    bad = attestation_key(ec_key(), attributes=AK_ATTRIBUTES & ~RESTRICTED)
    assert Evidence(kind).reason(attestation_key=bad) is Reason.TPM_AK_ATTRIBUTES
    assert Evidence(kind).reason() is None


@every_kind
def test_the_attestation_key_is_judged_first(kind: str) -> None:
    bad = attestation_key(ec_key(), attributes=AK_ATTRIBUTES | DECRYPT)
    assert Evidence(kind).reason(attestation_key=bad, attest=b"", signature=b"") is Reason.TPM_AK_ATTRIBUTES


@every_kind
def test_the_signature_is_of_this_key_over_this_attestation(kind: str) -> None:
    evidence = Evidence(kind)
    assert evidence.reason(key=ec_key(7)) is Reason.SIGNATURE
    good = evidence.arguments()
    other = evidence.arguments(clock=clock_info(12346))["attest"]
    assert reason_of(evidence.verify, **good | {"attest": other}) is Reason.SIGNATURE
    assert evidence.reason(signature=scheme(ECDSA) + tpm2b(bytes(32)) * 2) is Reason.SIGNATURE
    assert evidence.reason(signature=b"") is Reason.SIGNATURE


@every_kind
def test_magic_then_type_then_the_rest(kind: str) -> None:
    evidence = Evidence(kind)
    other = QUOTE if evidence.type != QUOTE else CERTIFY
    assert evidence.reason(magic=b"GCT\xff", type=other, body=b"") is Reason.TPM_MAGIC
    assert evidence.reason(type=other, body=b"") is Reason.TPM_ATTEST_TYPE
    assert evidence.reason(type=0x8019, body=b"") is Reason.TPM_ATTEST_TYPE
    assert evidence.reason(body=b"", nonce=b"other") is Reason.TPM_PARSE
    assert evidence.reason(body=evidence.body + b"\0") is Reason.TPM_PARSE


@every_kind
def test_a_signature_over_what_is_malformed_is_wanted_first(kind: str) -> None:
    evidence = Evidence(kind)
    assert evidence.reason(magic=b"\0\0\0\0", key=ec_key(7)) is Reason.SIGNATURE
    assert evidence.reason(body=b"", key=ec_key(7)) is Reason.SIGNATURE


@every_kind
def test_framing_is_told_before_the_signature(kind: str) -> None:
    evidence = Evidence(kind)
    wrapped = tpm2b(evidence.arguments()["attest"])
    assert evidence.reason(attest=wrapped, key=ec_key(7)) is Reason.TPM_PARSE
    assert evidence.reason(attest=b"", signature=b"\x00\x10") is Reason.TPM_PARSE


@every_kind
@pytest.mark.parametrize("nonce", [b"", NONCE[:-1], NONCE + b"\0", bytes([NONCE[0] ^ 1]) + NONCE[1:], bytes(32)])
def test_another_nonce(kind: str, nonce: bytes) -> None:
    assert Evidence(kind).reason(nonce=nonce) is Reason.TPM_NONCE


@every_kind
def test_qualifying_data_is_expected(kind: str) -> None:
    with pytest.raises(UsageError):
        Evidence(kind).verify(**Evidence(kind).arguments(nonce=b"", qualifying_data=b""))
    assert Evidence(kind).reason(nonce=b"1", qualifying_data=b"1") is None


SCHEMES = {
    "ECDSA P-256 SHA-256": (ec_key, (0, ec.SECP256R1), ECDSA, SHA256),
    "ECDSA P-384 SHA-384": (ec_key, (0, ec.SECP384R1), ECDSA, SHA384),
    "ECDSA P-521 SHA-512": (ec_key, (0, ec.SECP521R1), ECDSA, SHA512),
    "RSASSA SHA-256": (rsa_key, (0,), RSASSA, SHA256),
    "RSASSA SHA-512": (rsa_key, (0,), RSASSA, SHA512),
    "RSAPSS SHA-256": (rsa_key, (0,), RSAPSS, SHA256),
    "RSAPSS SHA-384": (rsa_key, (0,), RSAPSS, SHA384),
}


@pytest.mark.parametrize("name", list(SCHEMES))
def test_signing_schemes(name: str) -> None:
    make, number, algorithm, digest = SCHEMES[name]
    key: Any = make(*number)
    evidence = Evidence("certify")
    public = attestation_key(key, algorithm, digest)
    data = evidence.arguments()["attest"]
    signature = sign(key, data, algorithm, digest)
    assert evidence.reason(attestation_key=public, signature=signature) is None
    tampered = signature[:-1] + bytes([signature[-1] ^ 1])
    assert evidence.reason(attestation_key=public, signature=tampered) is Reason.SIGNATURE


def signed(key: Any, algorithm: int, digest: int) -> bytes:
    return sign(key, Evidence("certify").arguments()["attest"], algorithm, digest)


@pytest.mark.parametrize(
    ("public", "signature"),
    [
        (AK, signed(ec_key(), ECDSA, SHA1)),
        (AK, signed(ec_key(), ECDSA, SHA384)),
        (AK, signed(rsa_key(), RSASSA, SHA256)),
        (attestation_key(rsa_key()), signed(rsa_key(), RSASSA, SHA384)),
        (attestation_key(rsa_key()), signed(rsa_key(), RSAPSS, SHA256)),
        (attestation_key(rsa_key(), RSAPSS), signed(rsa_key(), RSASSA, SHA256)),
        (attestation_key(rsa_key()), signed(ec_key(), ECDSA, SHA256)),
        (AK, b"\x00\x10"),
    ],
    ids=range(8),
)
def test_the_scheme_of_the_signature_is_that_of_the_key(public: TpmPublic, signature: bytes) -> None:
    reason = Evidence("certify").reason(attestation_key=public, signature=signature)
    assert reason is Reason.TPM_SIGNATURE_ALGORITHM


# What only one of them checks


def test_the_certified_name() -> None:
    evidence = Evidence("certify")
    other = login_public(LOGIN_ATTRIBUTES | NO_DA)
    assert evidence.reason(subject=other) is Reason.TPM_NAME
    assert evidence.reason(body=certify_info(LOGIN.name[:-1])) is Reason.TPM_NAME
    assert evidence.reason(body=certify_info(b"")) is Reason.TPM_NAME
    assert evidence.reason(body=certify_info(b"\x81\x00\x00\x01")) is Reason.TPM_NAME
    assert evidence.reason(body=certify_info(other.name), subject=other) is None


def test_an_attestation_key_does_not_vouch_for_itself() -> None:
    assert Evidence("certify").reason(body=certify_info(AK.name), subject=AK) is Reason.TPM_NAME


def test_the_certified_key_is_judged_last() -> None:
    bad = login_public(LOGIN_ATTRIBUTES & ~FIXED_TPM)
    assert Evidence("certify").reason(body=certify_info(bad.name), subject=bad) is Reason.TPM_KEY_ATTRIBUTES
    assert Evidence("certify").reason(subject=bad) is Reason.TPM_NAME


def quote(*selections: bytes, digest: bytes | None = None, **changes: Any) -> Reason | None:
    body = quote_info(list(selections), pcr_digest(VALUES) if digest is None else digest)
    return Evidence("quote").reason(body=body, **changes)


@pytest.mark.parametrize(
    "selections",
    [
        [],
        [selection([0, 2])],
        [selection([0, 2, 7, 8])],
        [selection([0, 2, 6])],
        [selection([16, 23])],
        [selection([0, 2, 7], SHA1)],
        [selection([0, 2, 7], SHA384)],
        [selection([0, 2, 7]), selection([0, 2, 7])],
        [selection([0, 2, 7]), selection([0, 2, 7], SHA1)],
        [selection([0, 2, 7]), selection([], SHA1)],
    ],
)
def test_another_selection(selections: list[bytes]) -> None:
    assert quote(selection([0, 2, 7])) is None
    assert quote(*selections) is Reason.TPM_PCR_SELECTION


@pytest.mark.parametrize(
    "values",
    [
        {},
        {TpmHash.SHA384: VALUES},
        {TpmHash.SHA256: {}},
        {TpmHash.SHA256: VALUES | {7: bytes(32)}},
        {TpmHash.SHA256: VALUES | {8: bytes(32)}},
        {TpmHash.SHA256: {0: VALUES[0], 2: VALUES[2]}},
        {TpmHash.SHA256: {0: VALUES[2], 2: VALUES[0], 7: VALUES[7]}},
        {TpmHash.SHA256: {0: VALUES[0] + VALUES[2], 2: b"", 7: VALUES[7]}},
    ],
)
def test_other_values_than_the_quoted(values: dict[TpmHash, dict[int, bytes]]) -> None:
    assert quote(selection(VALUES), pcr_values={TpmHash.SHA256: VALUES}) is None
    assert quote(selection(VALUES), pcr_values=values) is Reason.TPM_PCR_DIGEST


def test_the_order_in_which_values_are_listed_does_not_matter() -> None:
    backwards = {pcr: VALUES[pcr] for pcr in sorted(VALUES, reverse=True)}
    assert quote(selection(VALUES), pcr_values={TpmHash.SHA256: backwards}) is None
    assert quote(selection(VALUES), selection={TpmHash.SHA256: (7, 0, 2, 2)}) is None
    assert quote(selection(VALUES), pcr_values={TpmHash.SHA256: VALUES, TpmHash.SHA1: {}}) is None


@pytest.mark.parametrize("digest", [b"", bytes(32), pcr_digest(VALUES)[:-1], pcr_digest(VALUES, "sha384")])
def test_another_digest(digest: bytes) -> None:
    assert quote(selection(VALUES), digest=digest) is Reason.TPM_PCR_DIGEST


def test_the_digest_is_one_of_the_signing_scheme() -> None:
    """Not of the bank (Part 3, TPM2_Quote)."""
    key = ec_key(0, ec.SECP384R1)
    values = {pcr: bytes([pcr]) * 48 for pcr in (1, 22)}
    body = quote_info([selection(values, SHA384)], pcr_digest(values, "sha512"))
    data = attest(QUOTE, body)
    evidence = Evidence("quote").arguments(
        attest=data,
        attestation_key=attestation_key(key, ECDSA, SHA512),
        selection={TpmHash.SHA384: [1, 22]},
        pcr_values={TpmHash.SHA384: values},
    )
    signature = sign(key, data, ECDSA, SHA512)
    assert verify_quote(**evidence | {"signature": signature}).bank is TpmHash.SHA384


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {TpmHash.SHA256: []},
        {TpmHash.SHA1: [0]},
        {TpmHash.SHA256: [0, 16]},
        {TpmHash.SHA256: [23]},
        {TpmHash.SHA256: [24]},
        {TpmHash.SHA256: [-1]},
        {TpmHash.SHA256: [0], TpmHash.SHA384: [0]},
    ],
)
def test_selections_that_make_no_sense(asked: dict[TpmHash, list[int]]) -> None:
    with pytest.raises(UsageError):
        verify_quote(**Evidence("quote").arguments(selection=asked))


def test_every_other_pcr_can_be_asked_for() -> None:
    values = {pcr: bytes([pcr]) * 32 for pcr in range(24) if pcr not in (16, 23)}
    reason = quote(
        selection(values),
        digest=pcr_digest(values),
        selection={TpmHash.SHA256: set(values)},
        pcr_values={TpmHash.SHA256: values},
    )
    assert reason is None


def test_the_creation() -> None:
    evidence = Evidence("creation")
    other = login_public(LOGIN_ATTRIBUTES | NO_DA)
    assert evidence.reason(subject=other) is Reason.TPM_NAME
    assert evidence.reason(creation_data=creation_data(b"outsidf")) is Reason.TPM_CREATION
    assert evidence.reason(creation_data=b"") is Reason.TPM_CREATION
    assert evidence.reason(body=certify_info(LOGIN.name, CREATION_HASH[:-1])) is Reason.TPM_CREATION
    assert evidence.reason(outside_info=b"") is Reason.TPM_CREATION
    assert evidence.reason(outside_info=None) is None


def test_creation_data_that_is_malformed_but_certified() -> None:
    data = CREATION_DATA + b"\0"
    body = certify_info(LOGIN.name, hashlib.sha256(data).digest())
    assert Evidence("creation").reason(body=body, creation_data=data) is Reason.TPM_PARSE


def test_the_hash_of_creation_data_is_that_of_the_name() -> None:
    subject = login_public(name_algorithm=SHA384)
    body = certify_info(subject.name, hashlib.sha384(CREATION_DATA).digest())
    assert Evidence("creation").reason(body=body, subject=subject) is None


def test_no_creation_of_a_name_by_sha1() -> None:
    subject = login_public(name_algorithm=SHA1)
    body = certify_info(subject.name, hashlib.sha1(CREATION_DATA).digest())
    assert Evidence("creation").reason(body=body, subject=subject) is Reason.TPM_NAME


def test_no_nv_index_of_a_name_by_sha1() -> None:
    index = TpmNvPublic(nv_public(name_algorithm=SHA1))
    assert Evidence("nv").reason(index=index, body=nv_certify_info(index.name, b"contents")) is Reason.TPM_NAME


@pytest.mark.parametrize("size", [0, -1])
def test_nothing_of_an_nv_index_is_a_mistake(size: int) -> None:
    with pytest.raises(UsageError):
        verify_nv_certify(**Evidence("nv").arguments(body=nv_certify_info(INDEX.name, b""), size=size))
    one = nv_certify_info(INDEX.name, b"c")
    assert Evidence("nv").reason(body=one, size=1) is None


def test_the_attestation_key_under_other_attributes_is_no_other_key() -> None:
    same = TpmPublic(public_area(ec_key(), attributes=LOGIN_ATTRIBUTES))
    assert same.key == AK.key
    assert Evidence("certify").reason(subject=same, body=certify_info(same.name)) is Reason.TPM_NAME


def test_verified_values_stay_as_they_were_verified() -> None:
    values = verify_quote(**Evidence("quote").arguments()).pcr_values
    with pytest.raises(TypeError):
        values[0] = b""  # type: ignore[index]


def test_an_attestation_key_may_tell_of_its_own_creation() -> None:
    body = certify_info(AK.name, CREATION_HASH)
    assert verify_creation(**Evidence("creation").arguments(body=body, subject=AK)).key == AK


def test_another_nv_index() -> None:
    other = TpmNvPublic(nv_public(attributes=0x20040006))
    assert Evidence("nv").reason(index=other) is Reason.TPM_NAME
    assert Evidence("nv").reason(index=other, body=nv_certify_info(other.name, b"contents")) is None


def test_another_part_of_the_nv_index() -> None:
    evidence = Evidence("nv")
    assert evidence.reason(size=7) is Reason.TPM_NV_INDEX
    assert evidence.reason(size=9) is Reason.TPM_NV_INDEX
    assert evidence.reason(offset=1) is Reason.TPM_NV_INDEX
    shifted = nv_certify_info(INDEX.name, b"contents", 1)
    assert evidence.reason(body=shifted) is Reason.TPM_NV_INDEX
    assert evidence.reason(body=shifted, offset=1) is None
    assert verify_nv_certify(**evidence.arguments(body=shifted, offset=1)).offset == 1


# Makers


MAKERS = {
    "id:414D4400": "AMD",
    "id:414E5400": "Ant Group",
    "id:41544D4C": "Atmel",
    "id:4252434D": "Broadcom",
    "id:4353434F": "Cisco",
    "id:464C5953": "Flyslice Technologies",
    "id:474F4F47": "Google",
    "id:48495349": "Huawei",
    "id:48504500": "HPE",
    "id:48504900": "HPI",
    "id:49424D00": "IBM",
    "id:49465800": "Infineon",
    "id:494E5443": "Intel",
    "id:4C454E00": "Lenovo",
    "id:4D534654": "Microsoft",
    "id:4E534700": "NSING",
    "id:4E534D20": "National Semiconductor",
    "id:4E544300": "Nuvoton Technology",
    "id:4E545A00": "Nationz",
    "id:51434F4D": "Qualcomm",
    "id:524F4343": "Fuzhou Rockchip",
    "id:5345414C": "Wisekey",
    "id:53454345": "SecEdge",
    "id:534D5343": "SMSC",
    "id:534D534E": "Samsung",
    "id:534E5300": "Sinosun",
    "id:53544D20": "STMicroelectronics",
    "id:54584E00": "Texas Instruments",
    "id:57454300": "Winbond",
}


@pytest.mark.parametrize("identifier", list(MAKERS))
def test_makers(identifier: str) -> None:
    vendor = find_vendor(identifier)
    assert vendor is not None
    assert vendor.name == MAKERS[identifier]
    assert vendor.identifier == identifier
    assert vendor.code == bytes.fromhex(identifier[3:]).rstrip(b"\0").decode()
    assert find_vendor(identifier.lower()) == vendor


@pytest.mark.parametrize(
    "identifier",
    [
        "",
        "id:",
        "INTC",
        "494E5443",
        "ID:494E5443",
        "id:00000000",
        "id:FFFFF1D0",
        "id:494E54433",
        "id:00001014",
        " id:494E5443",
    ],
)
def test_unknown_makers(identifier: str) -> None:
    assert find_vendor(identifier) is None
