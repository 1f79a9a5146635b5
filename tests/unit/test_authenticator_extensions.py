"""credProtect, credBlob, largeBlobKey and minPinLength, from making to using (CTAP 2.1 sections 12.1 to 12.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from keyvouch.webauthn import AuthenticatorData, Flags
from keyvouch_agent.authenticator.engine import AuthenticatorOptions, Command
from keyvouch_agent.authenticator.ports import Presence
from keyvouch_agent.authenticator.status import Status
from keyvouch_agent.authenticator.vault import CredProtect
from support.authenticators import ACFG, ES256, RP_ID, USER, Bench, credential_id, descriptor
from support.memory_vault import MemoryVault

BOB = {"id": b"user 2", "name": "bob"}
EDDSA = {"type": "public-key", "alg": -8}


@pytest.fixture(params=[1, 2], ids=["protocol-1", "protocol-2"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """Keys that work without the PIN, which is set."""
    options = AuthenticatorOptions(make_cred_uv_not_required=True)
    bench = Bench(MemoryVault(pin_gated=False), protocol=request.param, options=options)
    assert bench.set_pin() is Status.SUCCESS
    return bench


def outputs(response: Mapping[int, Any]) -> Mapping[str, Any] | None:
    return AuthenticatorData(response[2]).extensions


@pytest.mark.parametrize(
    ("extensions", "status"),
    [
        ({"credProtect": "1"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"credProtect": True}, Status.CBOR_UNEXPECTED_TYPE),
        ({"credProtect": 0}, Status.INVALID_OPTION),
        ({"credProtect": 4}, Status.INVALID_OPTION),
        ({"credProtect": -1}, Status.INVALID_OPTION),
        ({"credBlob": "blob"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"credBlob": True}, Status.CBOR_UNEXPECTED_TYPE),
        ({"largeBlobKey": 1}, Status.CBOR_UNEXPECTED_TYPE),
        ({"largeBlobKey": False}, Status.INVALID_OPTION),
        ({"minPinLength": 1}, Status.CBOR_UNEXPECTED_TYPE),
        ({"hmac-secret": {}}, Status.CBOR_UNEXPECTED_TYPE),
        ({"hmac-secret-mc": True, "hmac-secret": True}, Status.CBOR_UNEXPECTED_TYPE),
    ],
)
def test_registration_inputs_wrong(bench: Bench, extensions: dict[str, object], status: Status) -> None:
    token, before = bench.token(), bench.vault.snapshot
    assert bench.make(token, k6=extensions, k7={"rk": True})[0] is status
    assert bench.vault.snapshot == before
    assert bench.make(bench.token(), k6={"unknown": extensions}, k7={"rk": True})[0] is Status.SUCCESS  # control


@pytest.mark.parametrize(
    ("extensions", "status"),
    [
        ({"credBlob": b"blob"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"largeBlobKey": 1}, Status.CBOR_UNEXPECTED_TYPE),
        ({"largeBlobKey": False}, Status.INVALID_OPTION),
        ({"hmac-secret": True}, Status.CBOR_UNEXPECTED_TYPE),
    ],
)
def test_assertion_inputs_wrong(bench: Bench, extensions: dict[str, object], status: Status) -> None:
    bench.new_credential(rk=True)
    before = bench.vault.snapshot
    assert bench.get(bench.token(), k4=extensions)[0] is status
    assert bench.vault.snapshot == before
    ignored = {"unknown": 1, "credProtect": 3, "minPinLength": True, "credBlob": False}
    status, response = bench.get(bench.token(), k4=ignored)  # control
    assert (status, outputs(response)) == (Status.SUCCESS, None)


# credProtect


@pytest.mark.parametrize("level", list(CredProtect))
def test_cred_protect_is_stored_and_told(bench: Bench, level: CredProtect) -> None:
    status, response = bench.make(bench.token(), k6={"credProtect": int(level)})
    assert (status, outputs(response)) == (Status.SUCCESS, {"credProtect": level})
    assert bench.stored(credential_id(response)).protect is level


def test_cred_protect_is_optional_by_default(bench: Bench) -> None:
    status, response = bench.make(bench.token())
    assert (status, outputs(response)) == (Status.SUCCESS, None)
    assert bench.stored(credential_id(response)).protect is CredProtect.UV_OPTIONAL


@pytest.mark.parametrize(
    ("level", "discovered", "named"),
    [(1, True, True), (2, False, True), (3, False, False)],
)
def test_cred_protect_decides_what_is_found_without_verification(
    bench: Bench, level: int, discovered: bool, named: bool
) -> None:
    credential = bench.new_credential(rk=True, extensions={"credProtect": level})
    found = {True: Status.SUCCESS, False: Status.NO_CREDENTIALS}
    assert bench.get()[0] is found[discovered]
    assert bench.get(k3=[descriptor(credential)])[0] is found[named]
    assert bench.get(k3=[descriptor(credential)], k5={"up": False})[0] is found[named]
    for allow in (None, [descriptor(credential)]):
        status, response = bench.get(bench.token(), k3=allow)  # with verification everything is found
        assert (status, response[1]["id"]) == (Status.SUCCESS, credential)


def test_protected_ones_are_not_counted(bench: Bench) -> None:
    shown = bench.new_credential(rk=True)
    bench.new_credential(rk=True, user=BOB, extensions={"credProtect": 2})
    status, response = bench.get()
    assert (status, response[1]["id"]) == (Status.SUCCESS, shown)
    assert 5 not in response
    assert bench.get(bench.token())[1][5] == 2


def test_allow_list_goes_on_to_one_that_may_be_used(bench: Bench) -> None:
    hidden = bench.new_credential(extensions={"credProtect": 3})
    shown = bench.new_credential()
    status, response = bench.get(k3=[descriptor(hidden), descriptor(shown)])
    assert (status, response[1]["id"]) == (Status.SUCCESS, shown)


@pytest.mark.parametrize(("level", "told"), [(1, True), (2, True), (3, False)])
def test_exclude_list_passes_over_what_requires_verification(bench: Bench, level: int, told: bool) -> None:
    credential = bench.new_credential(extensions={"credProtect": level})
    exclude = [descriptor(credential)]
    assert bench.make(k5=exclude)[0] is (Status.CREDENTIAL_EXCLUDED if told else Status.SUCCESS)
    assert bench.make(bench.token(), k5=exclude)[0] is Status.CREDENTIAL_EXCLUDED


# credBlob


def test_cred_blob_comes_back(bench: Bench) -> None:
    blob = bytes(range(32))
    status, response = bench.make(bench.token(), k6={"credBlob": blob}, k7={"rk": True})
    assert (status, outputs(response)) == (Status.SUCCESS, {"credBlob": True})
    assert outputs(bench.get(bench.token(), k4={"credBlob": True})[1]) == {"credBlob": blob}
    assert outputs(bench.get(bench.token())[1]) is None


def test_cred_blob_too_long_is_left_out(bench: Bench) -> None:
    status, response = bench.make(bench.token(), k6={"credBlob": bytes(33)}, k7={"rk": True})
    assert (status, outputs(response)) == (Status.SUCCESS, {"credBlob": False})
    assert outputs(bench.get(bench.token(), k4={"credBlob": True})[1]) == {"credBlob": b""}


def test_cred_blob_of_each_account(bench: Bench) -> None:
    bench.new_credential(rk=True, extensions={"credBlob": b"of alice"})
    bench.new_credential(rk=True, user=BOB)
    status, response = bench.get(bench.token(), k4={"credBlob": True})
    assert (status, outputs(response)) == (Status.SUCCESS, {"credBlob": b""})
    assert outputs(bench.expect(Command.GET_NEXT_ASSERTION)) == {"credBlob": b"of alice"}


# largeBlobKey


def test_large_blob_key_is_told_beside_the_data(bench: Bench) -> None:
    asked = {"largeBlobKey": True}
    status, made = bench.make(bench.token(), k6=asked, k7={"rk": True})
    assert (status, len(made[5]), outputs(made)) == (Status.SUCCESS, 32, None)
    assert bench.get(bench.token(), k4=asked)[1][7] == made[5]
    assert 7 not in bench.get(bench.token())[1]


def test_large_blob_key_is_for_discoverable_credentials(bench: Bench) -> None:
    before = bench.vault.snapshot
    for options in (None, {"rk": False}):
        assert bench.make(bench.token(), k6={"largeBlobKey": True}, k7=options)[0] is Status.INVALID_OPTION
    assert bench.vault.snapshot == before


def test_no_large_blob_key_where_none_was_asked_for(bench: Bench) -> None:
    bench.new_credential(rk=True)
    status, response = bench.get(bench.token(), k4={"largeBlobKey": True})
    assert status is Status.SUCCESS
    assert 7 not in response


# minPinLength


def test_min_pin_length_is_told_to_whom_it_may_be(bench: Bench) -> None:
    asked = {"minPinLength": True}
    assert outputs(bench.make(bench.token(), k6=asked)[1]) is None
    configured = bench.configure(3, {1: 6, 2: [RP_ID, "other.example"]}, bench.token(permissions=ACFG, rp_id=None))
    assert configured[0] is Status.SUCCESS
    assert outputs(bench.make(bench.token(), k6=asked)[1]) == {"minPinLength": 6}
    assert outputs(bench.make(bench.token(), k6={"minPinLength": False})[1]) is None
    token = bench.token(rp_id="third.example")
    assert outputs(bench.make(token, k2={"id": "third.example"}, k6=asked)[1]) is None


# together


@pytest.mark.parametrize("offer", [ES256, EDDSA, {"type": "public-key", "alg": -35}])
def test_all_at_once_with_every_algorithm(bench: Bench, offer: dict[str, object]) -> None:
    asked = {"credProtect": 2, "credBlob": b"b", "largeBlobKey": True, "hmac-secret": True, "minPinLength": True}
    status, response = bench.make(bench.token(), k4=[offer], k6=asked, k7={"rk": True})
    assert status is Status.SUCCESS
    data = AuthenticatorData(response[2])
    assert data.extensions == {"credProtect": 2, "credBlob": True, "hmac-secret": True}
    assert data.flags == Flags.UP | Flags.UV | Flags.AT | Flags.ED
    assert data.attested is not None
    key = data.attested.public_key
    key.verify_signature(signature=response[3]["sig"], message=response[2] + bytes(range(32)))
    status, response = bench.get(bench.token(), k4={"credBlob": True, "largeBlobKey": True})
    assert status is Status.SUCCESS
    key.verify_signature(signature=response[3], message=response[2] + bytes(range(32)))


def test_extensions_are_looked_at_after_presence(bench: Bench) -> None:
    bench.user.answer = Presence.DENIED
    assert bench.make(bench.token(), k6={"largeBlobKey": True})[0] is Status.OPERATION_DENIED
    assert bench.user.asked[-1].user_name == USER["name"]
