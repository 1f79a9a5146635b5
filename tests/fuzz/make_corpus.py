"""Makes tests/fuzz/corpus: seeds for every target, out of the test vectors. `python tests/fuzz/make_corpus.py`.

The same vectors give the same files, byte for byte. Controls that are accepted come first; of the bad ones a few are
taken, because a seed is a place to start from and the vectors themselves are tested elsewhere.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

import keyvouch_server
from fuzz.targets import TARGETS, signed
from fuzz.targets.cards import badges
from fuzz.targets.leaves import CERTIFIED, chain_of
from keyvouch import base64url
from keyvouch.attestation.key_description import KEY_DESCRIPTION
from keyvouch.audit_chain import ChainRecord, Checkpoint
from keyvouch.audit_lines import LogHeader, LogLine, write_line
from keyvouch.client_data import CollectedClientData
from keyvouch.errors import KeyvouchError
from keyvouch.ids import ServerId, TenantId
from keyvouch.receipt import Receipt, seal
from keyvouch.statement import Decision, DecisionStatement, Purpose, RegistrationStatement, SignInOffer, challenge
from keyvouch.webauthn import AttestationObject, AuthenticatorData
from support.samples import GENERATED_BASES, samples
from support.vectors import ROOT, load

CORPUS = Path(__file__).parent / "corpus"
SEEDS_PER_TARGET = 40
BYTES_PER_TARGET = 36 * 1024
LONGEST_SEED = 20 * 1024

Seeds = Iterable[bytes]


def main() -> None:
    """Write the seeds anew."""
    shutil.rmtree(CORPUS, ignore_errors=True)
    for name in TARGETS:
        folder = CORPUS / name
        folder.mkdir(parents=True)
        chosen = _chosen(SEEDS[name]())
        for seed in chosen:
            (folder / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
        sys.stdout.write(f"{name}: {len(chosen)} seeds, {sum(map(len, chosen))} bytes\n")


def _chosen(seeds: Seeds) -> list[bytes]:
    """As many of the first as have room, none twice."""
    chosen: list[bytes] = []
    for seed in dict.fromkeys(seeds):
        room = BYTES_PER_TARGET - sum(map(len, chosen))
        if len(chosen) < SEEDS_PER_TARGET and len(seed) <= min(room, LONGEST_SEED):
            chosen.append(seed)
    return chosen


# Where the seeds come from


def _vectors(ceremony: str) -> list[dict[str, Any]]:
    """The generated vectors, the accepted first, and of each fault one for each kind of ceremony."""
    vectors = [v for v in load("generated-webauthn/webauthn_mutations.json")["vectors"] if v["ceremony"] == ceremony]
    return sorted(vectors, key=lambda vector: vector["expect"] != "accept")


def _member(ceremony: str, member: str, base: str = "") -> Iterator[bytes]:
    for vector in _vectors(ceremony):
        text = vector["response"].get("response", {}).get(member) if isinstance(vector["response"], dict) else None
        if isinstance(text, str) and vector["base"].startswith(base):
            try:
                yield base64url.decode(text)
            except ValueError:
                continue


def _attestation_objects() -> Iterator[AttestationObject]:
    published = [
        bytes.fromhex(case["registration"]["attestationObject"])
        for case in load("w3c-webauthn-l3/webauthn-l3-public.json")["cases"]
        if case["registration"]
    ]
    ours = (sample.attestation_object for sample in samples().values())
    for data in (*published, *ours, *_member("registration", "attestationObject")):
        try:
            yield AttestationObject(data)
        except KeyvouchError:
            continue


def _cbor() -> Iterator[bytes]:
    for case in load("cbor/appendix_a.json"):
        yield bytes.fromhex(case["hex"])
    yield from _member("registration", "attestationObject")


def _certificates() -> Iterator[bytes]:
    for attested in _attestation_objects():
        chain = attested.statement.get("x5c")
        if isinstance(chain, list):
            yield from (item for item in chain if isinstance(item, bytes))


def _key_descriptions() -> Iterator[bytes]:
    """The extension of Android Keystore in whatever certificate has it."""
    for encoded in _certificates():
        with contextlib.suppress(ValueError):
            for extension in x509.load_der_x509_certificate(encoded).extensions:
                if extension.oid == KEY_DESCRIPTION and isinstance(extension.value, x509.UnrecognizedExtension):
                    yield extension.value.value


def _of_statements(member: str) -> Iterator[bytes]:
    for attested in _attestation_objects():
        value = attested.statement.get(member)
        if isinstance(value, bytes):
            yield value


def _evidence(member: str) -> Iterator[bytes]:
    for vector in load("generated-tpm/tpm_evidence.json")["vectors"]:
        if vector.get(member):
            yield bytes.fromhex(vector[member])


def _of_makers() -> Iterator[bytes]:
    """Certificates of TPM makers, smallest first."""
    folder = Path(keyvouch_server.__file__).parent / "trust"
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.pem"))]
    yield from sorted((base64.b64decode(text.split("-----")[2]) for text in texts), key=len)


def batched(items: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Two after the other."""
    waiting = iter(items)
    return zip(waiting, waiting, strict=False)


def _crls() -> Iterator[bytes]:
    """Signed with Ed25519, which signs the same things alike, by a key that is known to everybody."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Seeds")])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    made = x509.CertificateRevocationListBuilder(name, start, start.replace(year=2036))
    entry = x509.RevokedCertificateBuilder(7, start).add_extension(
        x509.CRLReason(x509.ReasonFlags.key_compromise), False
    )
    made = made.add_extension(x509.CRLNumber(1), critical=False)
    for builder in (made, made.add_revoked_certificate(entry.build())):
        crl = builder.sign(Ed25519PrivateKey.from_private_bytes(bytes(32)), None)
        yield crl.public_bytes(Encoding.DER)
        yield crl.public_bytes(Encoding.PEM)


def _blob() -> str:
    return str(load("python-fido2/mds3_example_blob.json")["blob_jwt"])


def _base64url() -> Iterator[bytes]:
    yield from (b"", b"AA", b"AB", b"AAA", b"AAAA", b"-_-_", b"AA==", b"AA A", b"\xff")


def _json(ceremony: str) -> Iterator[bytes]:
    for vector in _vectors(ceremony):
        yield json.dumps(vector["response"], separators=(",", ":")).encode()


def _webauthn_json() -> Iterator[bytes]:
    for pair in zip(_json("registration"), _json("authentication"), strict=False):
        yield from pair


def _statements() -> dict[str, bytes]:
    ids: dict[str, Any] = {"server_id": bytes(32), "tenant_id": "tenant", "user_id": "user", "device_id": "device"}
    registration: Any = {**ids, "registration_id": "r", "nonce": bytes(32), "expires_at": 1, "channel_key": bytes(32)}
    app = {"app_id": "app", "app_name": "App", "audience": "app", "place": "", "address": "", "binding_message": ""}
    times = {"issued_at": 1, "expires_at": 2, "policy_version": 1, "required_assurance": "software"}
    secrets = {"credential_id": b"credential", "sign_in_id": "s", "nonce": bytes(32), "proof_key": bytes(32)}
    offer: Any = ids | app | times | secrets
    asked = SignInOffer(**offer).encode()
    return {
        "registration": RegistrationStatement(**registration).encode(),
        "with a TPM": RegistrationStatement(**registration, ak_name=b"\x00\x0b" + bytes(32)).encode(),
        "offer": asked,
        "approval": DecisionStatement(asked, Decision.APPROVE, "42").encode(),
        "denial": DecisionStatement(asked, Decision.DENY).encode(),
    }


def _receipts() -> Receipt:
    """Of the key whose private key is one; what its key signed does not verify."""
    server_id, ids = hashlib.sha256(signed.PROOF_KEY).digest(), {"device_id": "d", "tenant_id": "t", "user_id": "u"}
    asked: Any = {**_fields_of(_statements()["offer"]), **ids, "server_id": server_id}
    decision = DecisionStatement(SignInOffer(**asked).encode(), Decision.APPROVE, "42").encode()
    client_data = CollectedClientData.build("webauthn.get", challenge(Purpose.SIGN_IN, decision), "keyvouch-agent://rp")
    members: Any = {
        **ids,
        **{name: asked[name] for name in ("server_id", "credential_id", "sign_in_id", "policy_version")},
        "identity_key": signed.PROOF_KEY,
        "username": "ada",
        "session_id": "ses",
        "decision": decision,
        "client_data": bytes(client_data),
        "signature": bytes(70),
        "user_handle": b"",
        "number": "42",
        "rp_id": "rp",
        "authenticator_data": bytes(AuthenticatorData.build(hashlib.sha256(b"rp").digest(), 5, 1)),
        "public_key": bytes(next(iter(_attestation_objects())).attested.public_key),
        "assurance": "software",
        "acr": "number-matched",
        "amr": "pop pin mfa",
        "decided_at": 1,
        "consumed_at": 1,
        "audit_number": 1,
        "audit_hash": bytes(32),
    }
    return Receipt(**members)


def _fields_of(encoded: bytes) -> dict[str, object]:
    """The fields of an offer by their names."""
    offer = SignInOffer.parse(encoded)
    return {f.name: getattr(offer, f.name) for f in fields(offer) if f.name != "encoded"}


def _audit_lines() -> Iterator[bytes]:
    record = ChainRecord("t", 1, 1, "user.create", "server", "u", "u", "ok", "{}", b"", b"")
    server_id = ServerId(hashlib.sha256(signed.PROOF_KEY).digest())
    lines: list[LogLine] = [
        LogHeader(1, server_id, signed.PROOF_KEY, "t", "tenant", 1),
        Checkpoint(server_id, TenantId("t"), 1, record.hash_as(1), 1, bytes(70)),
        replace(record, hash=record.hash_as(1)),
    ]
    yield from (write_line(line).encode() for line in lines)


def _statement(*names: str) -> Callable[[], Seeds]:
    return lambda: [_statements()[name] for name in names]


def _token() -> Iterator[bytes]:
    header = base64url.encode(b'{"alg":"ES256","typ":"at+jwt","kid":"key"}')
    claims = {"iss": "https://i", "sub": "u", "aud": "a", "client_id": "c", "tenant": "t", "sid": "s", "jti": "j"}
    claims |= {"iat": 900, "exp": 2000, "auth_time": 900, "acr": "x", "amr": ["hwk"], "assurance": "tpm"}  # type: ignore[dict-item]
    payload = base64url.encode(json.dumps(claims, separators=(",", ":")).encode())
    yield f"{header}.{payload}.{base64url.encode(bytes(64))}".encode()
    yield f"{header}.{payload}.".encode()
    yield b".."


def _signatures() -> Iterator[bytes]:
    yield from _member("authentication", "signature")


def _files(folder: str, pattern: str = "*") -> Callable[[], Seeds]:
    return lambda: [path.read_bytes() for path in sorted((ROOT / folder).rglob(pattern)) if path.is_file()]


# No PCRs, their digest, locality 0, a parent with its two names, no outside data (TPM 2.0 Part 2 section 15.1).
_PARENT = b"\x00\x22\x00\x0b" + bytes(32)
_CREATION_DATA = bytes.fromhex("00000000 0020") + bytes(32) + b"\x01\x00\x0b" + _PARENT * 2 + bytes(2)

SEEDS: Mapping[str, Callable[[], Seeds]] = {
    "base64url": _base64url,
    "cbor": _cbor,
    "cose-key": lambda: [bytes(attested.attested.public_key) for attested in _attestation_objects()],
    "client-data": lambda: _member("registration", "clientDataJSON"),
    "authenticator-data": lambda: [
        *(bytes(attested.authenticator_data) for attested in _attestation_objects()),
        *_member("authentication", "authenticatorData"),
    ],
    "attestation-object": lambda: [bytes(attested) for attested in _attestation_objects()],
    "webauthn-json": _webauthn_json,
    "registration-statement": _statement("registration", "with a TPM"),
    "sign-in-offer": _statement("offer"),
    "decision-statement": _statement("approval", "denial"),
    "access-token": _token,
    "proof-key": lambda: [signed.PROOF_KEY],
    "proof": _signatures,
    "receipt": lambda: [seal(_receipts().encode(), bytes(70))],
    "receipt-statement": lambda: [_receipts().encode()],
    "audit-line": _audit_lines,
    **{
        f"registration-{name}": lambda name=name, good=sample.attestation_object: [
            good,
            *_member("registration", "attestationObject", GENERATED_BASES.get(name, "no such base")),
        ]
        for name, sample in samples().items()
    },
    "assertion-client-data": lambda: _member("authentication", "clientDataJSON"),
    "assertion-authenticator-data": lambda: _member("authentication", "authenticatorData"),
    "assertion-signature": _signatures,
    **{f"leaf-{name}": lambda name=name: chain_of(name) for name in CERTIFIED},
    "der": _certificates,
    "certificate": _certificates,
    "card-certificate": badges,
    "key-description": _key_descriptions,
    "tpm-public": lambda: [*_evidence("subjectPublic"), *_evidence("akPublic"), *_of_statements("pubArea")],
    "tpm-nv-public": lambda: [bytes.fromhex("01500000 000b 00060006 0000 0020")],
    "tpm-attest": lambda: [*_evidence("attest"), *_of_statements("certInfo")],
    "tpm-creation-data": lambda: [_CREATION_DATA],
    "tpm-signature": lambda: _evidence("signature"),
    "event-log": _files("event-logs"),
    "endorsement-certificate": lambda: [*_of_makers(), *_certificates()],
    "endorsement-chain": lambda: [*(b"".join(pair) for pair in batched(_of_makers())), *_certificates()],
    "metadata-blob": lambda: [_blob().encode()],
    "metadata-payload": lambda: [base64url.decode(_blob().split(".")[1])],
    "crl": _crls,
}

if __name__ == "__main__":
    main()
