"""A metadata BLOB is believed for a JWS signature by a chain to the anchor that is named, and for nothing else."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyvouch import base64url
from keyvouch.attestation import TrustAnchor, metadata_blob
from keyvouch.attestation.metadata_blob import verify_metadata_blob
from keyvouch.errors import Reason, UsageError
from support.metadata_forge import (
    CA,
    END,
    INSTANT,
    INTERMEDIATE,
    MAKER,
    NOT_CA,
    ROOT,
    SIGNER,
    SIGNER_NAME,
    Holder,
    blob,
    certificate,
    der64,
    entry,
    expectations,
    is_good,
    key_usage,
    named,
    new_root,
    p256_key,
    payload,
    rsa_key,
)
from support.metadata_forge import (
    blob_reason as reason,
)

MALFORMED, UNTRUSTED, STALE = Reason.METADATA_MALFORMED, Reason.METADATA_UNTRUSTED, Reason.METADATA_STALE
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)


GOOD = blob()


# The control, and who may sign


def test_a_good_blob_says_what_is_in_it() -> None:
    metadata = verify_metadata_blob(GOOD, **expectations())
    assert (metadata.number, metadata.next_update.isoformat(), metadata.ignored) == (15, "2026-09-01", 0)
    assert [item.name for item in metadata.entries] == ["mds:2fc0579f-8113-47ea-b116-bb5a8db9202a"]
    assert metadata.rejected == ()


def test_the_chain_may_hold_its_root() -> None:
    assert is_good(blob(chain=[SIGNER.certificate, INTERMEDIATE.certificate, ROOT.certificate]))


def test_a_pinned_signer_is_an_anchor() -> None:
    assert is_good(blob(chain=[SIGNER.certificate]), anchors=[TrustAnchor("pinned", SIGNER.certificate)])


@pytest.mark.parametrize("algorithm", ["RS256", "PS256"])
def test_rsa_signers(algorithm: str) -> None:
    signer = INTERMEDIATE.issue(SIGNER_NAME, key=rsa_key())
    assert is_good(blob(signer=signer, algorithm=algorithm))
    swapped = {"RS256": "PS256", "PS256": "RS256"}[algorithm]
    assert reason(blob(signer=signer, algorithm=algorithm, header={"alg": swapped})) == (UNTRUSTED, "signature")


def self_signed() -> Holder:
    key = p256_key("self")
    return Holder(key, certificate(SIGNER_NAME, key, key, named(SIGNER_NAME), [(NOT_CA, True)]))


SAME_NAME = Holder(
    p256_key("evil"),
    certificate("Metadata Root", p256_key("evil"), p256_key("evil"), named("Metadata Root"), [(CA, True)]),
)
CHAINS = {
    "signed by itself": (self_signed(), []),
    "under another root": (new_root("Evil").issue(SIGNER_NAME), []),
    "under another root that is sent along": (SAME_NAME.issue(SIGNER_NAME), [SAME_NAME.certificate]),
    "under a root of the same name": (SAME_NAME.issue(SIGNER_NAME), []),
    "without its intermediate": (SIGNER, []),
    "with one certificate too many": (SIGNER, [INTERMEDIATE.certificate, MAKER.certificate]),
    "under an end entity": (SIGNER.issue(SIGNER_NAME), [SIGNER.certificate, INTERMEDIATE.certificate]),
    "expired": (INTERMEDIATE.issue(SIGNER_NAME, end=INSTANT - SECOND), [INTERMEDIATE.certificate]),
    "not valid yet": (INTERMEDIATE.issue(SIGNER_NAME, begin=INSTANT + SECOND), [INTERMEDIATE.certificate]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_signer_that_is_not_trusted(name: str) -> None:
    signer, rest = CHAINS[name]
    assert reason(blob(signer=signer, chain=[signer.certificate, *rest])) == (UNTRUSTED, "path")


def test_no_anchor_trusts_nobody() -> None:
    assert reason(GOOD, anchors=[]) == (UNTRUSTED, "path")


def test_a_chain_is_judged_at_the_instant() -> None:
    far = "2099-01-01"
    assert is_good(blob(payload(nextUpdate=far)), instant=END)
    assert reason(blob(payload(nextUpdate=far)), instant=END + SECOND) == (UNTRUSTED, "path")


def test_a_ca_does_not_sign_blobs() -> None:
    assert reason(blob(signer=INTERMEDIATE, chain=[INTERMEDIATE.certificate])) == (UNTRUSTED, "signer")
    assert reason(blob(signer=ROOT, chain=[ROOT.certificate])) == (UNTRUSTED, "signer")


def test_a_signer_without_basic_constraints_is_no_ca() -> None:
    assert is_good(blob(signer=INTERMEDIATE.issue(SIGNER_NAME, [])))


def test_the_key_may_be_used_for_signatures() -> None:
    assert is_good(blob(signer=INTERMEDIATE.issue(SIGNER_NAME, [(key_usage("digital_signature"), True)])))
    agreeing = INTERMEDIATE.issue(SIGNER_NAME, [(key_usage("key_agreement"), True)])
    assert reason(blob(signer=agreeing)) == (UNTRUSTED, "signer")


# The name of the signer


def alternative(*names: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.DNSName(name) for name in names])


@pytest.mark.parametrize(
    ("common_name", "extensions"),
    [
        (SIGNER_NAME, []),
        ("MDS.Example", []),
        ("other.example", [(alternative("other.example", SIGNER_NAME), False)]),
        ("other.example", [(alternative("MDS.EXAMPLE"), False)]),
        ("other.example", [(NOT_CA, True), (alternative(SIGNER_NAME), False)]),
        (SIGNER_NAME, [(NOT_CA, True)]),
    ],
)
def test_the_expected_name(common_name: str, extensions: Any) -> None:
    data = blob(signer=INTERMEDIATE.issue(common_name, extensions))
    assert is_good(data)
    assert is_good(data, expected_name="MDS.example")


@pytest.mark.parametrize(
    ("common_name", "extensions"),
    [
        ("other.example", []),
        ("a.mds.example", []),
        ("*.example", []),
        ("other.example", [(alternative("other.example"), False)]),
        (SIGNER_NAME, [(alternative("other.example"), False)]),
        ("other.example", [(x509.SubjectAlternativeName([x509.RFC822Name("a@mds.example")]), False)]),
        (SIGNER_NAME, [(x509.SubjectAlternativeName([x509.RFC822Name("a@b.example")]), False)]),
        (SIGNER_NAME, [(x509.SubjectAlternativeName([x509.UniformResourceIdentifier("https://b.example/")]), False)]),
        (SIGNER_NAME, [(NOT_CA, True), (alternative(), False)]),
    ],
)
def test_another_name_than_expected(common_name: str, extensions: Any) -> None:
    data = blob(signer=INTERMEDIATE.issue(common_name, extensions))
    assert reason(data) == (UNTRUSTED, "name")
    assert is_good(data, expected_name=None)


# The shape


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"..",
        GOOD.rpartition(b".")[0],
        GOOD + b".",
        GOOD + b".e30",
        GOOD + b"\n",
        b" " + GOOD,
        GOOD + b"=",
        GOOD.replace(b".", b"=.", 1),
        GOOD[:-1],
        GOOD.replace(b".", b"+.", 1),
        GOOD + "é".encode(),
        b'{"payload":"e30","signatures":[]}',
    ],
)
def test_what_is_no_compact_jws(data: bytes) -> None:
    assert reason(data) == (MALFORMED, "")


def test_limits_of_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (metadata_blob.MAX_BLOB, metadata_blob.MAX_HEADER) == (33_554_432, 65_536)
    monkeypatch.setattr(metadata_blob, "MAX_BLOB", len(GOOD))
    assert is_good(GOOD)
    monkeypatch.setattr(metadata_blob, "MAX_BLOB", len(GOOD) - 1)
    assert reason(GOOD) == (MALFORMED, "")
    monkeypatch.undo()
    size = GOOD.index(b".")
    monkeypatch.setattr(metadata_blob, "MAX_HEADER", size)
    assert is_good(GOOD)
    monkeypatch.setattr(metadata_blob, "MAX_HEADER", size - 1)
    assert reason(GOOD) == (MALFORMED, "")


HEADER = {"alg": "ES256", "typ": "JWT", "x5c": [der64(SIGNER.certificate), der64(INTERMEDIATE.certificate)]}
JWK = {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff",
        b"\xef\xbb\xbf" + json.dumps(HEADER).encode(),
        json.dumps(HEADER).encode() + b" x",
        json.dumps(HEADER).replace("{", '{"alg":"none",', 1).encode(),
        json.dumps(HEADER).replace("{", '{"x":NaN,', 1).encode(),
        json.dumps(HEADER).replace("{", '{"x":1e999,', 1).encode(),
        json.dumps(HEADER).replace("{", '{"x":' + "1" * 5000 + ",", 1).encode(),
        json.dumps(HEADER).replace("{", '{"x":' + "[" * 20_000 + "]" * 20_000 + ",", 1).encode(),
        b'{"alg":"ES256"}',
        json.dumps(HEADER | {"x5c": None}).encode(),
        json.dumps(HEADER | {"x5c": []}).encode(),
        json.dumps(HEADER | {"x5c": HEADER["x5c"][0]}).encode(),
        json.dumps(HEADER | {"x5c": {"0": HEADER["x5c"][0]}}).encode(),
        json.dumps(HEADER | {"x5c": [*HEADER["x5c"], 1]}).encode(),
        json.dumps(HEADER | {"x5c": [*HEADER["x5c"], ""]}).encode(),
        json.dumps(HEADER | {"x5c": ["AAAA"]}).encode(),
        json.dumps(HEADER | {"x5c": [HEADER["x5c"][0].replace("=", "") + "é"]}).encode(),
        json.dumps(HEADER | {"x5c": [HEADER["x5c"][0]] * 9}).encode(),
        json.dumps(HEADER | {"x5c": [der64(SIGNER.certificate.public_bytes(Encoding.DER) + b"\x00")]}).encode(),
    ],
)
def test_a_header_that_is_malformed(header: bytes) -> None:
    assert reason(blob(header=header)) == (MALFORMED, "")


def test_eight_certificates_are_read() -> None:
    assert reason(blob(header=HEADER | {"x5c": [HEADER["x5c"][0]] * 8})) == (UNTRUSTED, "path")


def test_a_header_of_the_same_members_is_good() -> None:
    assert is_good(blob(header=json.dumps(HEADER).encode()))
    assert is_good(blob(header={"typ": None}))
    assert is_good(blob(header={"kid": "0", "cty": "x", "x5t": "AA", "unknown": {"a": [1, -1.5]}}))


@pytest.mark.parametrize(
    "changes",
    [
        {"crit": []},
        {"crit": ["exp"], "exp": 0},
        {"b64": True},
        {"b64": False, "crit": ["b64"]},
        {"jwk": JWK},
        {"jku": "https://mds.example/keys"},
        {"x5u": "https://mds.example/chain"},
        {"x5u": "https://mds.example/chain", "x5c": None},
        {"typ": "at+jwt"},
        {"typ": "jwt"},
        {"typ": 1},
        {"typ": []},
    ],
)
def test_a_header_that_is_not_accepted(changes: dict[str, Any]) -> None:
    assert reason(blob(header=changes)) == (UNTRUSTED, "header")


# The signature


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "", "HS256", "ES384", "ES512", "RS1", "EdDSA", "es256", None, 0, ["ES256"]]
)
def test_algorithms_that_are_not_accepted(algorithm: Any) -> None:
    assert reason(blob(header={"alg": algorithm})) == (UNTRUSTED, "algorithm")
    unsigned = blob(header={"alg": algorithm}).rpartition(b".")[0] + b"."
    assert reason(unsigned) == (UNTRUSTED, "algorithm")


@pytest.mark.parametrize("algorithm", ["none", "HS256", ["ES256"], None])
def test_the_algorithm_is_looked_at_before_the_certificates(algorithm: Any) -> None:
    signer = self_signed()
    assert reason(blob(signer=signer, chain=[signer.certificate])) == (UNTRUSTED, "path")
    assert reason(blob(signer=signer, chain=[signer.certificate], header={"alg": algorithm})) == (
        UNTRUSTED,
        "algorithm",
    )


def test_a_mac_with_the_public_key_is_no_signature() -> None:
    message, tampered = (blob(header={"alg": name}).rpartition(b".")[0] for name in ("HS256", "ES256"))
    for encoding in (Encoding.DER, Encoding.PEM):
        mac = hmac.HMAC(
            SIGNER.key.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo), hashes.SHA256()
        )
        mac.update(message)
        tag = mac.finalize()
        assert reason(message + b"." + base64url.encode(tag).encode()) == (UNTRUSTED, "algorithm")
        doubled = base64url.encode(tag + tag).encode()
        assert reason(tampered + b"." + doubled) == (UNTRUSTED, "signature")


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [("rsa", "ES256"), ("p256", "RS256"), ("p256", "PS256"), ("p384", "ES256"), ("p384", "RS256")],
)
def test_an_algorithm_for_another_kind_of_key(key: str, algorithm: str) -> None:
    keys: dict[str, Any] = {
        "rsa": rsa_key(),
        "p256": p256_key("other"),
        "p384": ec.generate_private_key(ec.SECP384R1()),
    }
    signer = INTERMEDIATE.issue(SIGNER_NAME, key=keys[key])
    assert reason(blob(signer=signer, algorithm=algorithm)) == (UNTRUSTED, "algorithm")


def test_a_signature_by_another_key() -> None:
    assert reason(blob(key=p256_key("evil"))) == (UNTRUSTED, "signature")
    assert reason(blob(key=INTERMEDIATE.key)) == (UNTRUSTED, "signature")


def test_every_bit_of_the_signature_counts() -> None:
    message, _, text = GOOD.rpartition(b".")
    signature = base64url.decode(text.decode())
    for position in range(64):
        spoiled = bytearray(signature)
        spoiled[position] ^= 1
        assert reason(message + b"." + base64url.encode(bytes(spoiled)).encode()) == (UNTRUSTED, "signature")


@pytest.mark.parametrize("signature", [bytes(64), b"\xff" * 64, b"\x00" * 63 + b"\x01"])
def test_degenerate_signatures(signature: bytes) -> None:
    message = GOOD.rpartition(b".")[0]
    assert reason(message + b"." + base64url.encode(signature).encode()) == (UNTRUSTED, "signature")


def test_an_es256_signature_has_64_bytes() -> None:
    message, _, text = GOOD.rpartition(b".")
    signature = base64url.decode(text.decode())
    for other in (b"", signature[:63], signature + b"\x00", b"\x00" + signature[:32] + b"\x00" + signature[32:]):
        assert reason(message + b"." + base64url.encode(other).encode()) == (MALFORMED, "")


def test_header_and_payload_are_signed() -> None:
    header, body, signature = GOOD.split(b".")
    other_header, other_body, _ = blob(payload(no=16), header={"kid": "1"}).split(b".")
    assert reason(b".".join((header, other_body, signature))) == (UNTRUSTED, "signature")
    assert reason(b".".join((other_header, body, signature))) == (UNTRUSTED, "signature")


def test_nothing_of_the_payload_is_read_before_its_signature_verifies() -> None:
    assert reason(blob(b"{", key=p256_key("evil"))) == (UNTRUSTED, "signature")
    assert reason(blob(b"{")) == (MALFORMED, "")


# Number and date


def test_the_number_never_falls() -> None:
    for known in (None, 0, 14, 15):
        assert is_good(GOOD, minimum_number=known)
    assert reason(GOOD, minimum_number=16) == (STALE, "number")


NEXT = datetime(2026, 9, 1, tzinfo=UTC)


def test_a_blob_is_good_up_to_the_end_of_its_last_day() -> None:
    assert is_good(GOOD, instant=NEXT + DAY - SECOND)
    assert reason(GOOD, instant=NEXT + DAY) == (STALE, "next_update")


def test_grace() -> None:
    assert is_good(GOOD, instant=NEXT + 8 * DAY - SECOND, grace=7 * DAY)
    assert reason(GOOD, instant=NEXT + 8 * DAY, grace=7 * DAY) == (STALE, "next_update")


def test_the_day_is_that_of_utc() -> None:
    east = timezone(timedelta(hours=14))
    assert is_good(GOOD, instant=datetime(2026, 9, 2, 13, 59, tzinfo=east))
    assert reason(GOOD, instant=datetime(2026, 9, 2, 14, tzinfo=east)) == (STALE, "next_update")


def test_the_day_is_not_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "ABC-14")
        time.tzset()
        assert is_good(GOOD, instant=NEXT + DAY - SECOND)
        patch.setenv("TZ", "ABC+12")
        time.tzset()
        assert reason(GOOD, instant=NEXT + DAY) == (STALE, "next_update")
    time.tzset()


def test_expectations_that_make_no_sense() -> None:
    assert is_good(GOOD, grace=timedelta(days=3650))
    for changes in (
        {"instant": INSTANT.replace(tzinfo=None)},
        {"grace": -timedelta.resolution},
        {"grace": timedelta(days=3650) + timedelta.resolution},
    ):
        for data in (GOOD, b""):
            with pytest.raises(UsageError):
                verify_metadata_blob(data, **expectations(**changes))


def test_an_entry_that_is_bad_does_not_sink_the_blob() -> None:
    metadata = verify_metadata_blob(blob(payload(entry(), 5)), **expectations())
    assert (len(metadata.entries), len(metadata.rejected)) == (1, 1)
