"""The registrations and assertions that other WebAuthn libraries recorded, each as arguments of our verifiers.

None of these libraries sends its roots along. So the last certificate of each chain is pinned as the anchor, unless
the vector brings one, and the instant is the one the vector asks for, or else the first at which all certificates
are valid: many have expired by now.
"""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509

from keyvouch import cbor
from keyvouch.attestation import (
    AttestationRequirement,
    CredentialRecord,
    TrustAnchor,
    TrustStore,
    verify_assertion,
    verify_registration,
)
from keyvouch.attestation.formats import FORMATS
from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import EvidenceError, Reason
from keyvouch.ids import CredentialId
from keyvouch.webauthn import AttestationObject
from support import lenient_cbor
from support.vectors import load

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Recorded:
    """One recorded item. `verify` is the verifier that takes `arguments`; raises as that does."""

    source: str
    id: str
    verify: Callable[..., Any]
    arguments: Arguments

    def run(self, **changes: Any) -> Any:
        """Verify it, with changes. A credential record is made here, for its key may be one we refuse."""
        arguments = self.arguments | changes
        if isinstance(arguments.get("credential"), dict):
            record = arguments["credential"]
            arguments["credential"] = CredentialRecord(**record | {"public_key": CoseKey(record["public_key"])})
        return self.verify(**arguments)

    def reencoded(self) -> bytes:
        """The attestation object in canonical CBOR; nothing in it that is signed is touched."""
        decoded, _ = lenient_cbor.decode(self.arguments["attestation_object"])
        return cbor.encode(decoded)


def decode(text: str) -> bytes:
    """Read base64 of either alphabet, padded or not."""
    return base64.urlsafe_b64decode(
        text.replace("+", "-").replace("/", "_").rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)
    )


def _listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def _expected(challenge: bytes, rp_id: str, origins: list[str], client_data: bytes) -> Arguments:
    said = json.loads(client_data)
    return {
        "client_data": client_data,
        "challenge": challenge,
        "rp_id": rp_id,
        "origins": origins,
        "require_user_verification": False,
        "allow_cross_origin": said.get("crossOrigin") is True,
        "top_origins": (),
    }


def _registration(attestation_object: bytes, expected: Arguments, **known: Any) -> Arguments:
    statement = lenient_cbor.decode(attestation_object)[0]["attStmt"]
    return (
        expected
        | anchors_and_instant(statement, **known)
        | {
            "attestation_object": attestation_object,
            "algorithms": list(Algorithm),
            "attestation": AttestationRequirement.OPTIONAL,
        }
    )


def anchors_and_instant(statement: Any, *, root: x509.Certificate | None = None, now: str | None = None) -> Arguments:
    """Pin `root`, or else the last certificate of the statement; `now`, or else when all become valid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's, about a serial number that is not positive
        chain = [x509.load_der_x509_certificate(item) for item in statement.get("x5c", ())]
    pinned = root or (chain[-1] if chain else None)
    begin = max([item.not_valid_before_utc for item in (*chain, *([root] if root else ()))], default=_NO_CHAIN)
    return {
        "anchors": TrustStore([TrustAnchor("recorded", pinned)] if pinned else ()),
        "instant": datetime.fromisoformat(now) if now else begin,
    }


_NO_CHAIN = datetime(2026, 8, 1, tzinfo=UTC)


def _assertion(data: dict[str, Any], expected: Arguments) -> Arguments:
    handle = data.get("userHandle")
    return expected | {
        "credential": {
            "credential_id": CredentialId(decode(data["credentialId"])),
            "public_key": decode(data["credentialPublicKey"]),
            "sign_count": data["prevSignCount"],
            "user_handle": decode(handle) if handle else b"user",
            "backup_eligible": bool(decode(data["authenticatorData"])[32] & 8),
        },
        "credential_id": decode(data["credentialId"]),
        "authenticator_data": decode(data["authenticatorData"]),
        "signature": decode(data["signature"]),
        "user_handle": decode(handle) if handle else None,
    }


# py_webauthn, SimpleWebAuthn, go-webauthn


def recorded_pairs(source: str) -> Iterator[Recorded]:
    """What the three libraries recorded with the expectations of their tests."""
    for vector in load(f"{source}/vectors.json")["vectors"]:
        client_data = decode(vector["clientDataJSON"])
        said = json.loads(client_data)
        origins = _listed(vector.get("expectedOrigin") or said["origin"])
        host = urlsplit(said["origin"]).hostname
        rp_ids = _listed(vector.get("expectedRpId") or host)
        rp_id = host if host in rp_ids else rp_ids[0]
        expected = _expected(_challenge(vector, said), rp_id, origins, client_data)
        expected["require_user_verification"] = vector.get("requireUserVerification", False)
        if vector["ceremony"] == "authentication":
            yield Recorded(source, vector["id"], verify_assertion, _assertion(vector, expected))
            continue
        known = {"now": vector.get("now"), "root": _wrong_root(vector)}
        arguments = _registration(decode(vector["attestationObject"]), expected, **known)
        yield Recorded(source, vector["id"], verify_registration, arguments)


def _challenge(vector: dict[str, Any], said: dict[str, Any]) -> bytes:
    """The challenge as bytes. A function that says no has none; a text may be meant before its encoding."""
    text = vector.get("expectedChallenge") or vector.get("expectedChallengeString") or vector["clientDataChallenge"]
    if text == "<function>":
        return bytes(32)
    return str(text).encode() if decode(said["challenge"]) == str(text).encode() else decode(text)


def _wrong_root(vector: dict[str, Any]) -> x509.Certificate | None:
    for ((pem,),) in [vector.get("pemRootCerts", {}).values()] if "pemRootCerts" in vector else []:
        return x509.load_pem_x509_certificate(decode(pem["b64u"]))
    return None


# java-webauthn-server


def java() -> Iterator[Recorded]:
    """Its registrations; and the one assertion that goes with one of them."""
    source = "java-webauthn-server"
    for vector in load(f"{source}/vectors.json")["vectors"]:
        chain = vector.get("attestationCertChain")
        root = x509.load_der_x509_certificate(decode(chain[-1]["cert"])) if chain else None
        challenge, rp_id, origins = decode(vector["expectedChallenge"]), vector["rpId"], [vector["expectedOrigin"]]
        expected = _expected(challenge, rp_id, origins, decode(vector["clientDataJSON"]))
        encoded = decode(vector["attestationObject"])
        yield Recorded(source, vector["id"], verify_registration, _registration(encoded, expected, root=root))
        if "assertionResponse" in vector:
            yield Recorded(source, f"{vector['id']}-assertion", verify_assertion, _java_assertion(vector, encoded))


def _java_assertion(vector: dict[str, Any], encoded: bytes) -> Arguments:
    response = vector["assertionResponse"]
    parts, client_data = response["response"], decode(response["response"]["clientDataJSON"])
    data = lenient_cbor.decode(encoded)[0]["authData"]
    key = data[55 + int.from_bytes(data[53:55], "big") :]
    stored = {"credentialId": response["id"], "credentialPublicKey": base64.b64encode(key).decode(), "prevSignCount": 0}
    challenge = decode(json.loads(client_data)["challenge"])  # its test does not say which it expects
    return _assertion(parts | stored, _expected(challenge, vector["rpId"], [vector["expectedOrigin"]], client_data))


# fido2-net-lib

NET_PAIRS = {
    "attestationAndroidKeyOptions": "attestationAndroidKeyResponse",
    "attestationAppleOptions": "attestationAppleResponse",
    "attestationNoneOptions": "attestationNoneResponse",
    "attestationOptionsNone": "attestationResultsNone",
    "attestationOptionsPacked": "attestationResultsPacked",
    "attestationOptionsU2F": "attestationResultsU2F",
    "options1": "json1",
    "options2": "json2",
}


def net() -> Iterator[Recorded]:
    """Its pairs of options and responses."""
    source = "fido2-net-lib"
    for asked, answered in NET_PAIRS.items():
        options, response = load(f"{source}/{asked}.json"), load(f"{source}/{answered}.json")["response"]
        rp_id = options["rp"]["id"]
        expected = _net_expected(options, rp_id, response)
        arguments = _registration(decode(response["attestationObject"]), expected)
        yield Recorded(source, answered, verify_registration, arguments)
    options, answer = load(f"{source}/assertionNoneOptions.json"), load(f"{source}/assertionNoneResponse.json")
    response = answer["response"]
    signature = base64.b64encode(bytes.fromhex(response["signature"])).decode()
    registered = decode(load(f"{source}/attestationNoneResponse.json")["response"]["attestationObject"])
    key = base64.b64encode(AttestationObject(registered).attested.public_key).decode()
    stored = {"credentialId": answer["id"], "credentialPublicKey": key, "prevSignCount": 0, "signature": signature}
    expected = _net_expected(options, options["rpId"], response)
    yield Recorded(source, "assertionNoneResponse", verify_assertion, _assertion(response | stored, expected))


def _net_expected(options: dict[str, Any], rp_id: str, response: dict[str, Any]) -> Arguments:
    origin = "https://localhost:44329" if rp_id == "localhost" else f"https://{rp_id}"
    return _expected(decode(options["challenge"]), rp_id, [origin], decode(response["clientDataJSON"]))


# python-fido2


def python_fido2() -> Iterator[Recorded]:
    """Its verifications of statements and signatures, below the level of a ceremony."""
    source = "python-fido2"
    for vector in load(f"{source}/attestation_and_cose.json")["vectors"]:
        if vector["op"] == "cose.verify":
            members = {name: bytes.fromhex(vector[name]) for name in ("message", "signature")}
            arguments = members | {"key": bytes.fromhex(vector["key_cbor"])}
            yield Recorded(source, vector["id"], _verify_signature, arguments)
            continue
        statement = cbor.decode(bytes.fromhex(vector["attStmt_cbor"]))
        arguments = anchors_and_instant(statement) | {
            "format": vector["fmt"],
            "authenticator_data": bytes.fromhex(vector["authData"]),
            "statement": statement,
            "client_data_hash": bytes.fromhex(vector["clientDataHash"]),
        }
        yield Recorded(source, vector["id"], _verify_statement, arguments)


def _verify_signature(*, key: bytes, message: bytes, signature: bytes) -> None:
    CoseKey(key).verify_signature(signature=signature, message=message)


def _verify_statement(*, format: str, authenticator_data: bytes, statement: Any, **expected: Any) -> Any:  # noqa: A002
    attested = AttestationObject.build(format, authenticator_data, statement)
    if format not in FORMATS:
        raise EvidenceError(Reason.ATTESTATION_FORMAT, "The format of the attestation statement is not supported.")
    return FORMATS[format](attested, **expected)


def everything() -> list[Recorded]:
    """Every recorded item of every source."""
    pairs = [item for source in ("py_webauthn", "simplewebauthn", "go-webauthn") for item in recorded_pairs(source)]
    return [*pairs, *java(), *net(), *python_fido2()]
