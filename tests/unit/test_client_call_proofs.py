"""The SDK's proofs of calls: for which calls one is made, with which key, and for what time (P15)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch import base64url
from keyvouch.call_proof import METADATA_KEY, verify_call_proof
from keyvouch.errors import EvidenceError, KeyvouchError, Reason
from keyvouch.ids import ServerId
from keyvouch.proofs import thumbprint
from keyvouch_client.call_proofs import MOST_KEYS, CallProver, ProofKey

KEY, SERVER, METHOD, NOW = ec.generate_private_key(ec.SECP256R1()), ServerId(bytes(32)), "/a.B/C", 1_800_000_000


def token(session: object = "ses_1") -> str:
    """Something that looks like an access token of a session; nobody here verifies it."""
    return f"h.{base64url.encode(json.dumps({'sid': session}).encode())}.s"


def prover(now: int = NOW) -> CallProver:
    made = CallProver(lambda: float(now) + 0.9)
    made.hold(ProofKey("ses_1", SERVER, KEY))
    return made


def verify(proof: bytes, text: str, now: int = NOW) -> bytes:
    holder = thumbprint(KEY.public_key())
    return verify_call_proof(
        proof, key_thumbprint=holder, server_id=SERVER, method=METHOD, access_token=text, now=now
    ).id


def test_a_call_of_a_session_that_is_held_gets_a_fresh_proof():
    given: Any = (("x-trace", "1"), ("authorization", f"Bearer {token()}"))
    seen = set()
    for _ in range(3):
        *rest, (name, proof) = prover().proved(METHOD, given)
        assert tuple(rest) == given
        assert name == METADATA_KEY
        seen.add(verify(proof, token()))
    assert len(seen) == 3


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        (),
        (("x-trace", "1"),),
        (("authorization", "SignIn x"),),
        (("authorization", "bearer x"),),
        (("authorization", f"Bearer {token('ses_2')}"),),
        (("authorization", f"Bearer {token()}"), ("authorization", f"Bearer {token()}")),
        (("authorization", f"Bearer {token()}"), (METADATA_KEY, b"mine")),
    ],
)
def test_other_calls_go_as_they_are(metadata: Any):
    assert prover().proved(METHOD, metadata) == metadata


@pytest.mark.parametrize(
    "text", ["", "x", "a.b.c", "a.%.c", f"a.{base64url.encode(b'[]')}.c", f"a.{base64url.encode(b'{}')}.c",
             token(None), token(["ses_1"]), token({}), f"a.{base64url.encode(b'[' * 5000)}.c"]
)  # fmt: skip
def test_what_is_no_token_of_a_session_is_not_proved(text: str):
    assert prover().proof(METHOD, text) == b""


def refusal(reason: Reason = Reason.PROOF_INVALID, **metadata: str) -> KeyvouchError:
    return EvidenceError(reason, "It is not of now.", metadata=metadata)


def test_the_servers_time_is_taken_from_the_refusal_of_a_proof():
    made = prover()
    assert made.learn_time(refusal(server_time=str(NOW + 86400)))
    verify(made.proof(METHOD, token()), token(), NOW + 86400)
    assert made.learn_time(refusal(server_time=str(NOW)))  # and once more, should it change
    verify(made.proof(METHOD, token()), token(), NOW)


@pytest.mark.parametrize(
    "other",
    [
        refusal(),
        refusal(server_time=""),
        refusal(server_time="-5"),
        refusal(server_time="soon"),
        refusal(server_time="9" * 13),
        refusal(Reason.PROOF_REPLAYED, server_time=str(NOW)),
    ],
)
def test_other_refusals_say_nothing_of_the_time(other: KeyvouchError):
    made = prover()
    assert not made.learn_time(other)
    verify(made.proof(METHOD, token()), token(), NOW)


def test_the_sessions_used_last_are_held_and_one_can_be_forgotten():
    made = prover()
    for number in range(2, MOST_KEYS + 1):
        made.hold(ProofKey(f"ses_{number}", SERVER, KEY))
    made.hold(ProofKey("ses_1", SERVER, KEY))
    made.hold(ProofKey("ses_new", SERVER, KEY))
    assert made.proof(METHOD, token("ses_1"))
    assert made.proof(METHOD, token("ses_new"))
    assert not made.proof(METHOD, token("ses_2"))
    assert made.proof(METHOD, token("ses_3"))  # a use counts as well
    made.hold(ProofKey("ses_newer", SERVER, KEY))
    assert made.proof(METHOD, token("ses_3"))
    assert not made.proof(METHOD, token("ses_4"))
    made.forget("ses_1")
    made.forget("ses_1")
    assert not made.proof(METHOD, token("ses_1"))
