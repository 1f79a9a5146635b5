"""TPM evidence made by others: every vector has exactly the verdict and the reason it asks for."""

from __future__ import annotations

import ast
import base64
import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import fido2.cbor
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch import base64url
from keyvouch.attestation.tpm import CertifiedKey, VerifiedQuote, verify_certify, verify_quote
from keyvouch.attestation.tpm_keys import check_attestation_key, check_credential_key, check_endorsement_key
from keyvouch.attestation.tpm_structures import (
    TpmAttest,
    TpmAttestType,
    TpmCertified,
    TpmHash,
    TpmPcrSelection,
    TpmPublic,
    TpmQuoted,
    TpmSignature,
    unwrap_tpm2b,
)
from keyvouch.attestation.tpm_vendors import find_vendor
from keyvouch.errors import EvidenceError, KeyvouchError, MalformedError, Reason, UsageError
from keyvouch.webauthn import AttestationObject
from support.vectors import ROOT, load

GENERATED = load("generated-tpm/tpm_evidence.json")["vectors"]
SWTPM = load("swtpm/real_evidence.json")["vectors"]


def verify(vector: Mapping[str, Any]) -> CertifiedKey | VerifiedQuote:
    arguments: dict[str, Any] = {
        "attestation_key": TpmPublic(bytes.fromhex(vector["akPublic"])),
        "attest": bytes.fromhex(vector["attest"]),
        "signature": bytes.fromhex(vector["signature"]),
        "qualifying_data": bytes.fromhex(vector["nonce"]),
    }
    if vector["kind"] == "certify":
        return verify_certify(subject=TpmPublic(bytes.fromhex(vector["subjectPublic"])), **arguments)
    selection = {TpmHash[bank.upper()]: pcrs for bank, pcrs in vector["requiredSelection"].items()}
    return verify_quote(selection=selection, pcr_values=pcr_values(vector["pcrValues"]), **arguments)


def pcr_values(value: Any) -> dict[TpmHash, dict[int, bytes]]:
    """They are an object, or the text of one in Python."""
    banks = ast.literal_eval(value) if isinstance(value, str) else value
    return {
        TpmHash[bank.upper()]: {int(pcr): bytes.fromhex(digest) for pcr, digest in values.items()}
        for bank, values in banks.items()
    }


def verdict(vector: Mapping[str, Any]) -> str | None:
    try:
        verify(vector)
    except KeyvouchError as error:
        return error.reason.value.removeprefix("tpm_")
    return None


def named(vector: Mapping[str, Any]) -> str:
    return f"{vector['id']}-{vector['mutation']}"


def test_no_vector_is_left_out() -> None:
    assert Counter((vector["kind"], vector["expect"]) for vector in GENERATED) == {
        ("certify", "accept"): 6,
        ("certify", "reject"): 84,
        ("quote", "accept"): 2,
        ("quote", "reject"): 28,
    }
    assert Counter(vector["expect"] for vector in SWTPM) == {"accept": 4, "reject": 6}
    assert all((vector["expect"] == "accept") == (vector["reason"] is None) for vector in [*GENERATED, *SWTPM])


@pytest.mark.parametrize("vector", [*GENERATED, *SWTPM], ids=named)
def test_every_vector(vector: dict[str, Any]) -> None:
    assert verdict(vector) == vector["reason"]


# What an emulated TPM of another project says (keylime): a quote of 2016 over PCR 15, 16 and 22


def keylime(name: str) -> bytes:
    return (ROOT / "keylime" / name).read_bytes()


KEYLIME_AK = TpmPublic(unwrap_tpm2b(keylime("ak.pub")))


def test_keys_of_keylime() -> None:
    check_attestation_key(KEYLIME_AK)
    assert KEYLIME_AK.name == keylime("ak.name")
    check_endorsement_key(TpmPublic(unwrap_tpm2b(keylime("ek.pub"))))


def keylime_quote(**changes: Any) -> Reason | None:
    arguments: dict[str, Any] = {
        "attestation_key": KEYLIME_AK,
        "attest": keylime("quote.out"),
        "signature": keylime("quotesig.out"),
        "qualifying_data": keylime("rand.out"),
        "selection": {TpmHash.SHA256: [15, 22]},
        "pcr_values": {TpmHash.SHA256: {}},
    }
    try:
        verify_quote(**arguments | changes)
    except KeyvouchError as error:
        return error.reason
    return None


def test_the_quote_of_keylime_covers_a_pcr_that_anybody_can_reset() -> None:
    """Signature, magic, type and nonce are good; PCR 16 may not even be asked for."""
    assert keylime_quote() is Reason.TPM_PCR_SELECTION
    assert keylime_quote(qualifying_data=bytes(20)) is Reason.TPM_NONCE
    assert keylime_quote(attest=keylime("quote.out")[:-1] + b"\0") is Reason.SIGNATURE
    with pytest.raises(UsageError):
        verify_quote(
            attestation_key=KEYLIME_AK,
            attest=keylime("quote.out"),
            signature=keylime("quotesig.out"),
            qualifying_data=keylime("rand.out"),
            selection={TpmHash.SHA256: [15, 16, 22]},
            pcr_values={},
        )


def test_the_digest_in_the_quote_of_keylime() -> None:
    """The values stand in the file of tpm2-tools, one TPM2B of 64 bytes each, lengths in the order of that machine."""
    dump = keylime("quotepcr.out")
    starts = [i for i in range(len(dump) - 34) if dump[i : i + 2] == b"\x20\x00" and not any(dump[i + 34 : i + 66])]
    values = [dump[i + 2 : i + 34] for i in starts]
    quoted = TpmAttest(keylime("quote.out")).attested
    assert isinstance(quoted, TpmQuoted)
    assert quoted.selections == (TpmPcrSelection(TpmHash.SHA256, frozenset({15, 16, 22})),)
    assert hashlib.sha256(b"".join(values)).digest() == quoted.digest


def test_the_quote_of_rust_keylime_is_of_sha1() -> None:
    """Its attestation key is not recorded. Whatever it is, this signature is refused."""
    text = (ROOT / "rust-keylime" / "test-quote.txt").read_text(encoding="ascii")
    quote, signature, _values = (base64.b64decode(part) for part in text.removeprefix("r").split(":"))
    quoted = TpmAttest(quote).attested
    assert isinstance(quoted, TpmQuoted)
    assert quoted.selections == (TpmPcrSelection(TpmHash.SHA1, frozenset({16})),)
    assert TpmSignature(signature).hash is TpmHash.SHA1
    with pytest.raises(EvidenceError) as caught:
        verify_quote(
            attestation_key=KEYLIME_AK,
            attest=quote,
            signature=signature,
            qualifying_data=TpmAttest(quote).extra_data or b"none",
            selection={TpmHash.SHA256: [0]},
            pcr_values={},
        )
    assert caught.value.reason is Reason.TPM_SIGNATURE_ALGORITHM


# Keys of real machines with Windows Hello, and of the FIDO conformance tools. What refuses the real ones is that their
# statements are signed by RSA with SHA-1; their structures and attributes are good.


def recorded() -> dict[str, tuple[Mapping[str, Any], bytes]]:
    """Statement and signed data of each; read leniently, for some are not in the canonical order of members."""
    found: dict[str, tuple[Mapping[str, Any], bytes]] = {}
    for vector in load("simplewebauthn/tpm_registrations.json")["vectors"]:
        members: Any = fido2.cbor.decode(base64url.decode(vector["attestationObject"]))
        client_data_hash = hashlib.sha256(base64url.decode(vector["clientDataJSON"])).digest()
        found[vector["id"]] = (members["attStmt"], members["authData"] + client_data_hash)
    for vector in load("python-fido2/tpm_windows_hello.json")["vectors"]:
        statement: Any = fido2.cbor.decode(bytes.fromhex(vector["attStmt_cbor"]))
        found[vector["id"]] = (statement, bytes.fromhex(vector["authData"] + vector["clientDataHash"]))
    return found


RECORDED = recorded()
BY_SHA256 = {"swa-016", "swa-020", "swa-021", "swa-038"}


def test_no_recorded_statement_is_left_out() -> None:
    assert len(RECORDED) == 8
    assert {name for name, (statement, _) in RECORDED.items() if statement["alg"] == -257} == BY_SHA256
    assert all(statement["alg"] == -65535 for name, (statement, _) in RECORDED.items() if name not in BY_SHA256)


@pytest.mark.parametrize("name", list(RECORDED))
def test_recorded_keys_are_bound_and_fit(name: str) -> None:
    statement, message = RECORDED[name]
    public, said = TpmPublic(statement["pubArea"]), TpmAttest(statement["certInfo"])
    check_credential_key(public)
    assert said.type is TpmAttestType.CERTIFY
    assert isinstance(said.attested, TpmCertified)
    assert said.attested.name == public.name
    assert said.extra_data == hashlib.new("sha256" if name in BY_SHA256 else "sha1", message).digest()


# The published TPM statement of WebAuthn Level 3 section 16 is no evidence of a TPM

W3C = next(
    case
    for case in load("w3c-webauthn-l3/webauthn-l3-public.json")["cases"]
    if case["section"] == "sctn-test-vectors-tpm-es256"
)


def test_the_published_statement_breaks_three_rules_of_the_tpm_library() -> None:
    """Its key is not made in a TPM, its clock is random bytes, its maker is nobody. So it is refused."""
    statement = AttestationObject(bytes.fromhex(W3C["registration"]["attestationObject"])).statement
    area, info = statement["pubArea"], statement["certInfo"]
    assert isinstance(area, bytes)
    assert isinstance(info, bytes)
    with pytest.raises(EvidenceError) as caught:
        check_credential_key(TpmPublic(area))
    assert caught.value.metadata["missing"] == "FIXED_TPM|FIXED_PARENT|SENSITIVE_DATA_ORIGIN"
    with pytest.raises(MalformedError) as malformed:
        TpmAttest(info)
    assert malformed.value.reason is Reason.TPM_PARSE
    safe = 6 + 2 + 2 + 32 + 16  # behind magic and type, no signer, 32 bytes of extra data, and the rest of the clock
    assert info[safe] not in (0, 1)
    assert isinstance(TpmAttest(info[:safe] + b"\x01" + info[safe + 1 :]).attested, TpmCertified)
    assert find_vendor("id:00000000") is None


# Two generated ceremonies that nobody can tell apart, and that want two reasons

BROKEN_SIGNATURES = {
    vector["mutation"]: AttestationObject(
        base64url.decode(vector["response"]["response"]["attestationObject"])
    ).statement
    for vector in load("generated-webauthn/webauthn_mutations.json")["vectors"]
    if vector["base"] == "reg-tpm-ES256" and vector["mutation"] in ("sig_bitflip", "certinfo_tampered_after_sign")
}


@pytest.mark.parametrize(
    ("mutation", "member", "at", "bits"),
    [("sig_bitflip", "sig", 69, 0x01), ("certinfo_tampered_after_sign", "certInfo", 172, 0x01)],
)
def test_a_signature_that_does_not_verify_does_not_tell_what_was_changed(
    mutation: str, member: str, at: int, bits: int
) -> None:
    """One flipped bit in either makes it good again; both are well-formed. We answer `attestation_statement`."""
    statement: dict[str, Any] = dict(BROKEN_SIGNATURES[mutation])
    key = x509.load_der_x509_certificate(statement["x5c"][0]).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    with pytest.raises(InvalidSignature):
        key.verify(statement["sig"], statement["certInfo"], ec.ECDSA(hashes.SHA256()))
    mended = bytearray(statement[member])
    mended[at] ^= bits
    statement[member] = bytes(mended)
    key.verify(statement["sig"], statement["certInfo"], ec.ECDSA(hashes.SHA256()))
