"""hmac-secret and hmac-secret-mc (CTAP 2.1 section 12.5, CTAP 2.2 section 12.8), with both protocols."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

import pytest

from keyvouch.webauthn import AuthenticatorData
from keyvouch_agent.authenticator.engine import AuthenticatorOptions, Command
from keyvouch_agent.authenticator.status import Status
from support.authenticators import RP_ID, Bench, credential_id, descriptor
from support.memory_vault import MemoryVault

SALT, OTHER_SALT = bytes(32), bytes(range(32))
ENABLED = {"hmac-secret": True}


@pytest.fixture(params=[1, 2], ids=["protocol-1", "protocol-2"])
def bench(request: pytest.FixtureRequest) -> Bench:
    options = AuthenticatorOptions(make_cred_uv_not_required=True)
    bench = Bench(MemoryVault(pin_gated=False), protocol=request.param, options=options)
    assert bench.set_pin() is Status.SUCCESS
    return bench


def output(bench: Bench, response: dict[int, Any], secret: bytes, name: str = "hmac-secret") -> bytes:
    extensions = AuthenticatorData(response[2]).extensions
    assert extensions is not None
    plain = bench.protocol.decrypt(secret, extensions[name])
    assert isinstance(plain, bytes)
    return plain


def evaluate(bench: Bench, *salts: bytes, token: bytes | None = None, **changed: object) -> bytes:
    given, secret = bench.hmac_input(*salts)
    status, response = bench.get(token, k4={"hmac-secret": given}, **changed)
    assert status is Status.SUCCESS, status.name
    return output(bench, response, secret)


def expected(bench: Bench, credential: bytes, *salts: bytes, uv: bool) -> bytes:
    secrets = bench.vault.secrets(bench.stored(credential).id)
    key = secrets.with_uv if uv else secrets.without_uv
    return b"".join(hmac.digest(key, salt, "sha256") for salt in salts)


def test_outputs_are_hmacs_of_the_salts(bench: Bench) -> None:
    credential = bench.new_credential(rk=True, extensions=ENABLED)
    one = evaluate(bench, SALT, token=bench.token())
    two = evaluate(bench, SALT, OTHER_SALT, token=bench.token())
    assert one == expected(bench, credential, SALT, uv=True)
    assert two == expected(bench, credential, SALT, OTHER_SALT, uv=True)
    assert two[:32] == one
    assert two[32:] != one


def test_another_secret_with_user_verification_than_without(bench: Bench) -> None:
    credential = bench.new_credential(rk=True, extensions=ENABLED)
    without = evaluate(bench, SALT)
    assert without == expected(bench, credential, SALT, uv=False)
    assert without != evaluate(bench, SALT, token=bench.token())


def test_each_credential_has_its_own(bench: Bench) -> None:
    made = [bench.new_credential(extensions=ENABLED) for _ in range(2)]
    values = {evaluate(bench, SALT, k3=[descriptor(credential)]) for credential in made}
    assert len(values) == 2


def test_next_assertion_goes_on_with_the_same_salts(bench: Bench) -> None:
    alice = bench.new_credential(rk=True, extensions=ENABLED)
    bench.new_credential(rk=True, user={"id": b"user 2"}, extensions=ENABLED)
    given, secret = bench.hmac_input(SALT)
    assert bench.get(bench.token(), k4={"hmac-secret": given})[1][5] == 2
    response = bench.expect(Command.GET_NEXT_ASSERTION)
    assert output(bench, response, secret) == expected(bench, alice, SALT, uv=True)


def test_credential_made_without_it_gives_no_output(bench: Bench) -> None:
    bench.new_credential(rk=True)
    given, _ = bench.hmac_input(SALT)
    status, response = bench.get(bench.token(), k4={"hmac-secret": given})
    assert status is Status.SUCCESS
    assert AuthenticatorData(response[2]).extensions is None


def test_protocol_left_out_means_the_first() -> None:
    bench = Bench(MemoryVault(pin_gated=False), protocol=1)
    assert bench.make(k6=ENABLED, k7={"rk": True})[0] is Status.SUCCESS
    given, secret = bench.hmac_input(SALT, k4=None)
    status, response = bench.get(k4={"hmac-secret": given})
    assert status is Status.SUCCESS
    assert len(output(bench, response, secret)) == 32


WRONG: list[tuple[str, Callable[[Bench], dict[int, object]], Status]] = [
    ("no key agreement", lambda b: b.hmac_input(SALT, k1=None)[0], Status.MISSING_PARAMETER),
    ("no saltEnc", lambda b: b.hmac_input(SALT, k2=None)[0], Status.MISSING_PARAMETER),
    ("no saltAuth", lambda b: b.hmac_input(SALT, k3=None)[0], Status.MISSING_PARAMETER),
    ("key agreement of bytes", lambda b: b.hmac_input(SALT, k1=b"")[0], Status.CBOR_UNEXPECTED_TYPE),
    ("saltEnc of text", lambda b: b.hmac_input(SALT, k2="")[0], Status.CBOR_UNEXPECTED_TYPE),
    ("saltAuth a number", lambda b: b.hmac_input(SALT, k3=1)[0], Status.CBOR_UNEXPECTED_TYPE),
    ("protocol of text", lambda b: b.hmac_input(SALT, k4="2")[0], Status.CBOR_UNEXPECTED_TYPE),
    ("no point", lambda b: b.hmac_input(SALT, k1={1: 2})[0], Status.INVALID_PARAMETER),
    ("unknown protocol", lambda b: b.hmac_input(SALT, k4=3)[0], Status.INVALID_PARAMETER),
    ("saltAuth not right", lambda b: b.hmac_input(SALT, k3=bytes(32))[0], Status.PIN_AUTH_INVALID),
    ("short salt", lambda b: b.hmac_input(bytes(16))[0], Status.INVALID_LENGTH),
    ("one and a half salts", lambda b: b.hmac_input(bytes(48))[0], Status.INVALID_LENGTH),
    ("three salts", lambda b: b.hmac_input(bytes(96))[0], Status.INVALID_LENGTH),
]


@pytest.mark.parametrize(("make", "status"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_input_wrong(bench: Bench, make: Callable[[Bench], dict[int, object]], status: Status) -> None:
    bench.new_credential(rk=True, extensions=ENABLED)
    before = bench.vault.snapshot
    assert bench.get(bench.token(), k4={"hmac-secret": make(bench)})[0] is status
    mc = {"hmac-secret": True, "hmac-secret-mc": make(bench)}
    assert bench.make(bench.token(), k6=mc, k7={"rk": True})[0] is status
    assert bench.vault.snapshot == before
    evaluate(bench, SALT)  # control


def test_saltenc_of_no_whole_blocks(bench: Bench) -> None:
    bench.new_credential(rk=True, extensions=ENABLED)
    peer, secret = bench.agree()
    salt_enc = bytes(31)
    given = {1: peer, 2: salt_enc, 3: bench.protocol.authenticate(secret, salt_enc), 4: bench.protocol.VERSION}
    assert bench.get(k4={"hmac-secret": given})[0] is Status.PIN_AUTH_INVALID


def test_needs_presence(bench: Bench) -> None:
    bench.new_credential(rk=True, extensions=ENABLED)
    given, _ = bench.hmac_input(SALT)
    assert bench.get(bench.token(), k4={"hmac-secret": given}, k5={"up": False})[0] is Status.UNSUPPORTED_OPTION


def test_at_registration_the_same_value_as_later(bench: Bench) -> None:
    given, secret = bench.hmac_input(SALT, OTHER_SALT)
    status, response = bench.make(bench.token(), k6={"hmac-secret": True, "hmac-secret-mc": given}, k7={"rk": True})
    assert status is Status.SUCCESS
    first = output(bench, response, secret, "hmac-secret-mc")
    assert first == expected(bench, credential_id(response), SALT, OTHER_SALT, uv=True)
    assert first == evaluate(bench, SALT, OTHER_SALT, token=bench.token())


def test_at_registration_without_verification(bench: Bench) -> None:
    given, secret = bench.hmac_input(SALT)
    status, response = bench.make(k6={"hmac-secret": True, "hmac-secret-mc": given})
    assert status is Status.SUCCESS
    value = output(bench, response, secret, "hmac-secret-mc")
    assert value == expected(bench, credential_id(response), SALT, uv=False)


@pytest.mark.parametrize("hmac_secret", [{}, {"hmac-secret": False}])
def test_at_registration_only_beside_hmac_secret(bench: Bench, hmac_secret: dict[str, object]) -> None:
    given, _ = bench.hmac_input(SALT)
    before = bench.vault.snapshot
    assert bench.make(bench.token(), k6={"hmac-secret-mc": given, **hmac_secret})[0] is Status.MISSING_PARAMETER
    assert bench.vault.snapshot == before


def test_gated_vault_gives_its_secrets_under_the_token() -> None:
    bench = Bench(MemoryVault())
    bench.set_pin()
    bench.new_credential(rk=True, extensions=ENABLED)
    assert len(evaluate(bench, SALT, token=bench.token(rp_id=RP_ID))) == 32
    assert not bench.vault.is_unlocked
