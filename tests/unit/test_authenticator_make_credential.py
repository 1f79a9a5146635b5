"""authenticatorMakeCredential, step by step (CTAP 2.1 section 6.1.2)."""

from __future__ import annotations

import hashlib

import pytest

from keyvouch.errors import DeviceError, Reason
from keyvouch.webauthn import AuthenticatorData, Flags
from keyvouch_agent.authenticator.engine import AuthenticatorOptions
from keyvouch_agent.authenticator.ports import Presence, PresenceRequest, Purpose
from keyvouch_agent.authenticator.status import Status
from keyvouch_agent.authenticator.vault import hash_of
from support.authenticators import (
    CLIENT_DATA_HASH,
    ES256,
    GA,
    MC,
    RP_ID,
    USER,
    Bench,
    credential_id,
    descriptor,
)
from support.memory_vault import MemoryVault

ES384 = {"type": "public-key", "alg": -35}


@pytest.fixture(params=[1, 2], ids=["protocol-1", "protocol-2"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """A PIN-gated authenticator with a PIN."""
    bench = Bench(MemoryVault(), protocol=request.param)
    assert bench.set_pin() is Status.SUCCESS
    return bench


@pytest.fixture
def open_bench() -> Bench:
    """An authenticator whose keys work without a PIN, and none set."""
    return Bench(MemoryVault(pin_gated=False))


def snapshot(bench: Bench) -> object:
    return bench.vault.snapshot


@pytest.mark.parametrize(("offer", "algorithm"), [([ES256], -7), ([ES384], -35), ([ES384, ES256], -35)])
def test_self_attestation_verifies(bench: Bench, offer: list[object], algorithm: int) -> None:
    status, response = bench.make(bench.token(), k4=offer)
    assert status is Status.SUCCESS
    assert response[1] == "packed"
    data = AuthenticatorData(response[2])
    assert data.rp_id_hash == hashlib.sha256(RP_ID.encode()).digest()
    assert data.flags == Flags.UP | Flags.UV | Flags.AT
    assert data.sign_count == 0
    assert data.attested is not None
    assert data.attested.aaguid == bench.vault.properties.aaguid
    assert set(response[3]) == {"alg", "sig"}
    assert response[3]["alg"] == algorithm == data.attested.public_key.algorithm
    key = data.attested.public_key
    key.verify_signature(signature=response[3]["sig"], message=response[2] + CLIENT_DATA_HASH)
    assert bench.user.asked[-1] == PresenceRequest(Purpose.MAKE_CREDENTIAL, RP_ID, "alice")


@pytest.mark.parametrize(
    ("preference", "expected"),
    [(["none"], "none"), (["packed"], "packed"), (["tpm", "none"], "none"), (["tpm"], "packed"), ([], "packed")],
)
def test_attestation_format_preference(bench: Bench, preference: list[str], expected: str) -> None:
    status, response = bench.make(bench.token(), k11=preference)
    assert (status, response[1]) == (Status.SUCCESS, expected)
    assert (response[3] == {}) is (expected == "none")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"k1": None}, Status.MISSING_PARAMETER),
        ({"k2": None}, Status.MISSING_PARAMETER),
        ({"k3": None}, Status.MISSING_PARAMETER),
        ({"k4": None}, Status.MISSING_PARAMETER),
        ({"k1": "x" * 32}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k1": bytes(31)}, Status.INVALID_LENGTH),
        ({"k1": bytes(33)}, Status.INVALID_LENGTH),
        ({"k2": "rp"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k2": {}}, Status.MISSING_PARAMETER),
        ({"k2": {"id": b"rp"}}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k2": {"id": RP_ID, "name": 1}}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k3": []}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k3": {"name": "alice"}}, Status.MISSING_PARAMETER),
        ({"k3": {"id": "alice"}}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k3": {"id": b""}}, Status.INVALID_LENGTH),
        ({"k3": {"id": bytes(65)}}, Status.INVALID_LENGTH),
        ({"k3": {"id": b"1", "name": b"n"}}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k3": {"id": b"1", "displayName": 2}}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k4": {}}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k4": []}, Status.UNSUPPORTED_ALGORITHM),
        ({"k4": ["ES256"]}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k4": [{"alg": -7}]}, Status.INVALID_CBOR),
        ({"k4": [{"type": "public-key"}]}, Status.INVALID_CBOR),
        ({"k4": [ES256, {"type": "public-key"}]}, Status.INVALID_CBOR),
        ({"k4": [{"type": "public-key", "alg": "ES256"}]}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k4": [{"type": 1, "alg": -7}]}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k4": [{"type": "public-key", "alg": -257}]}, Status.UNSUPPORTED_ALGORITHM),
        ({"k4": [{"type": "other", "alg": -7}]}, Status.UNSUPPORTED_ALGORITHM),
        ({"k5": {}}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k5": [{"id": b"1"}]}, Status.MISSING_PARAMETER),
        ({"k5": [{"type": "public-key"}]}, Status.MISSING_PARAMETER),
        ({"k5": [{"type": "public-key", "id": "1"}]}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k5": [{"type": 2, "id": b"1"}]}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k5": [descriptor(b"1")] * 17}, Status.LIMIT_EXCEEDED),
        ({"k6": []}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k7": []}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k7": {"rk": 1}}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k7": {"up": "yes"}}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k7": {"uv": 0}}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k7": {"up": False}}, Status.INVALID_OPTION),
        ({"k8": "x"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k8": bytes(15)}, Status.PIN_AUTH_INVALID),
        ({"k8": bytes(32)}, Status.PIN_AUTH_INVALID),
        ({"k8": None}, Status.PUAT_REQUIRED),
        ({"k8": None, "k7": {"uv": True}}, Status.INVALID_OPTION),
        ({"k9": None}, Status.MISSING_PARAMETER),
        ({"k9": "2"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k9": 3}, Status.INVALID_PARAMETER),
        ({"k9": True}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k10": 1}, Status.INVALID_PARAMETER),
        ({"k10": "1"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k11": "none"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k11": [1]}, Status.CBOR_UNEXPECTED_TYPE),
    ],
)
def test_parameters_wrong(bench: Bench, change: dict[str, object], status: Status) -> None:
    token, before = bench.token(), snapshot(bench)
    assert bench.make(token, **change)[0] is status
    assert snapshot(bench) == before
    assert not bench.user.asked
    assert bench.make(token)[0] is Status.SUCCESS  # control


@pytest.mark.parametrize(
    "change",
    [
        {"k2": {"id": RP_ID, "name": "Example", "icon": 1}},
        {"k2": {"id": ""}},
        {"k3": {"id": bytes(64), "icon": b"", "name": "n" * 500}},
        {"k4": [{"type": "other", "alg": 1}, {"alg": -999, "type": "public-key"}, ES256 | {"more": []}]},
        {"k5": []},
        {"k5": [descriptor(b"unknown")] * 16},
        {"k5": [{"type": "other", "id": b"1", "transports": ["usb"]}]},
        {"k6": {"anything": [1], "hmac-secret": False}},
        {"k7": {"rk": True, "up": True, "uv": True, "unknown": 1}},
        {"k12": "unknown parameter"},
        {"k200": 1},
    ],
)
def test_parameters_that_are_ignored_or_fine(bench: Bench, change: dict[str, object]) -> None:
    rp = change.get("k2", {"id": RP_ID})
    assert isinstance(rp, dict)
    token = bench.token(rp_id=rp["id"])
    assert bench.make(token, **change)[0] is Status.SUCCESS


def test_names_are_cut_at_a_character_not_in_it(bench: Bench) -> None:
    credential = bench.new_credential(user={"id": b"1", "name": "a" + "ä" * 60})
    assert bench.stored(credential).user.name == "a" + "ä" * 31


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Presence.DENIED, Status.OPERATION_DENIED),
        (Presence.TIMEOUT, Status.OPERATION_DENIED),
        (Presence.CANCELLED, Status.KEEPALIVE_CANCEL),
    ],
)
def test_no_presence_no_credential_H4(bench: Bench, answer: Presence, status: Status) -> None:
    before = snapshot(bench)
    bench.user.answer = answer
    assert bench.make(bench.token())[0] is status
    assert snapshot(bench) == before


@pytest.mark.parametrize("with_pin", [True, False])
@pytest.mark.parametrize("answer", list(Presence))
def test_zero_length_param_only_selects(answer: Presence, with_pin: bool) -> None:
    bench = Bench(MemoryVault())
    if with_pin:
        assert bench.set_pin() is Status.SUCCESS
    bench.user.answer = answer
    expected = {
        Presence.GRANTED: Status.PIN_INVALID if with_pin else Status.PIN_NOT_SET,
        Presence.CANCELLED: Status.KEEPALIVE_CANCEL,
    }.get(answer, Status.OPERATION_DENIED)
    assert bench.make(k8=b"", k9=2)[0] is expected
    assert bench.get(k6=b"")[0] is expected
    assert [request.purpose for request in bench.user.asked] == [Purpose.SELECTION] * 2


def test_excluded_credential_is_told_only_after_presence(bench: Bench) -> None:
    credential = bench.new_credential()
    for answer in Presence:
        bench.user.answer = answer
        asked = len(bench.user.asked)
        cancelled = answer is Presence.CANCELLED
        expected = Status.KEEPALIVE_CANCEL if cancelled else Status.CREDENTIAL_EXCLUDED
        assert bench.make(bench.token(), k5=[descriptor(credential)])[0] is expected
        assert len(bench.user.asked) == asked + 1
    bench.user.answer = Presence.GRANTED
    token = bench.token(rp_id="other.example")
    assert bench.make(token, k2={"id": "other.example"}, k5=[descriptor(credential)])[0] is Status.SUCCESS


def test_discoverable_replaces_the_same_account_only(bench: Bench) -> None:
    first = bench.new_credential(rk=True)
    plain = bench.new_credential()
    other_user = bench.new_credential(rk=True, user={"id": b"user 2", "name": "bob"})
    other_rp = bench.new_credential(rk=True, rp_id="other.example")
    second = bench.new_credential(rk=True)
    assert bench.vault.find(hash_of(RP_ID), first) is None
    for kept in (plain, other_user, second):
        assert bench.stored(kept)
    assert bench.stored(other_rp, "other.example")


def test_pin_gated_without_pin_PS8() -> None:
    bench = Bench(MemoryVault())
    assert bench.make()[0] is Status.PUAT_REQUIRED
    assert bench.make(k8=bytes(32), k9=2)[0] is Status.PUAT_REQUIRED
    assert bench.set_pin() is Status.SUCCESS
    assert bench.make(bench.token())[0] is Status.SUCCESS


def test_no_uv_without_pin_where_keys_are_not_gated(open_bench: Bench) -> None:
    status, response = open_bench.make(k7={"rk": True})
    assert status is Status.SUCCESS
    assert AuthenticatorData(response[2]).flags == Flags.UP | Flags.AT


@pytest.mark.parametrize("not_required", [False, True])
@pytest.mark.parametrize("rk", [False, True])
def test_make_cred_uv_not_required(not_required: bool, rk: bool) -> None:
    options = AuthenticatorOptions(make_cred_uv_not_required=not_required)
    bench = Bench(MemoryVault(pin_gated=False), options=options)
    assert bench.set_pin() is Status.SUCCESS
    allowed = not_required and not rk
    assert bench.make(k7={"rk": rk})[0] is (Status.SUCCESS if allowed else Status.PUAT_REQUIRED)
    status, response = bench.make(bench.token(), k7={"rk": rk})
    assert status is Status.SUCCESS
    assert AuthenticatorData(response[2]).flags & Flags.UV


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (Reason.KEY_STORE_FULL, Status.KEY_STORE_FULL),
        (Reason.VAULT_CORRUPT, Status.OTHER),
        (Reason.DEVICE_FAILED, Status.OTHER),
        (Reason.PIN_REQUIRED, Status.PUAT_REQUIRED),
    ],
)
@pytest.mark.parametrize("method", ["create_key", "attest", "keep"])
def test_vault_failure_leaves_nothing_behind(bench: Bench, method: str, reason: Reason, status: Status) -> None:
    before = snapshot(bench)
    failure = DeviceError(reason, "What happened.")
    bench.vault.fail_next[method] = failure
    assert bench.make(bench.token(permissions=MC | GA), k7={"rk": True})[0] is status
    assert snapshot(bench) == before
    assert bench.authenticator.failure is failure
    assert not bench.vault.is_unlocked
    assert bench.make(bench.token())[0] is Status.SUCCESS
    assert bench.authenticator.failure is None


def test_full_store() -> None:
    bench = Bench(MemoryVault(max_keys=1))
    bench.set_pin()
    bench.new_credential()
    assert bench.make(bench.token())[0] is Status.KEY_STORE_FULL


def test_credential_ids_differ_and_carry_no_account(bench: Bench) -> None:
    ids = {credential_id(bench.make(bench.token())[1]) for _ in range(5)}
    assert len(ids) == 5
    assert not any(bytes(USER["id"]) in found for found in ids)
