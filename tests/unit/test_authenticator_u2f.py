"""CTAP1/U2F over the same vault: raw messages, status words, and the way to and from CTAP2 (section 10)."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fido2.ctap1 import RegistrationData, SignatureData

from keyvouch.cose import CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch.webauthn import AuthenticatorData, Flags
from keyvouch_agent.authenticator.engine import AuthenticatorOptions, Command
from keyvouch_agent.authenticator.ports import Presence, Purpose
from keyvouch_agent.authenticator.status import Status
from keyvouch_agent.authenticator.u2f import StatusWord
from keyvouch_agent.authenticator.vault import Credential, KeyRequest, hash_of
from support.authenticators import ACFG, CLIENT_DATA_HASH, RP_ID, Bench, descriptor
from support.memory_vault import MemoryVault

APPLICATION = hash_of(RP_ID)
CHALLENGE = hashlib.sha256(b"challenge").digest()
REGISTER, AUTHENTICATE, VERSION = 1, 2, 3
ENFORCE, CHECK, SILENT = 0x03, 0x07, 0x08
EDDSA = {"type": "public-key", "alg": -8}


@pytest.fixture
def bench() -> Bench:
    options = AuthenticatorOptions(u2f=True, make_cred_uv_not_required=True)
    return Bench(MemoryVault(pin_gated=False), options=options)


def send(bench: Bench, instruction: int, data: bytes = b"", p1: int = 0) -> tuple[bytes, int]:
    return bench.authenticator.handle_u2f(instruction, p1, 0, data, bench.user)


def register(bench: Bench) -> RegistrationData:
    answer, word = send(bench, REGISTER, CHALLENGE + APPLICATION)
    assert word == 0x9000
    return RegistrationData(answer)


def sign_data(handle: bytes, application: bytes = APPLICATION) -> bytes:
    return CHALLENGE + application + bytes([len(handle)]) + handle


def test_version(bench: Bench) -> None:
    assert send(bench, VERSION) == (b"U2F_V2", 0x9000)
    assert send(bench, VERSION, b"x") == (b"", 0x6700)


def test_registration_verifies_and_vouches_for_itself(bench: Bench) -> None:
    made = register(bench)
    made.verify(APPLICATION, CHALLENGE)
    certificate = x509.load_der_x509_certificate(made.certificate)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint) == made.public_key
    key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(hashes.SHA256()))
    assert certificate.subject == certificate.issuer
    assert certificate.not_valid_before_utc < datetime.now(UTC) < certificate.not_valid_after_utc
    assert bench.user.asked[-1].purpose is Purpose.MAKE_CREDENTIAL


def test_certificates_have_nothing_in_common_but_the_name(bench: Bench) -> None:
    first, second = (x509.load_der_x509_certificate(register(bench).certificate) for _ in range(2))
    assert first.serial_number != second.serial_number
    assert first.public_key() != second.public_key()
    assert first.subject == second.subject


def test_authentication_verifies_and_counts(bench: Bench) -> None:
    made = register(bench)
    for expected in (1, 2):
        answer, word = send(bench, AUTHENTICATE, sign_data(made.key_handle), ENFORCE)
        signed = SignatureData(answer)
        signed.verify(APPLICATION, CHALLENGE, made.public_key)
        assert (word, signed.counter, signed.user_presence) == (0x9000, expected, 1)
    assert bench.user.asked[-1].purpose is Purpose.GET_ASSERTION


def test_authentication_that_does_not_enforce_presence(bench: Bench) -> None:
    made = register(bench)
    bench.user.asked.clear()
    signed = SignatureData(send(bench, AUTHENTICATE, sign_data(made.key_handle), SILENT)[0])
    signed.verify(APPLICATION, CHALLENGE, made.public_key)
    assert signed.user_presence == 0
    assert not bench.user.asked


def test_check_only_tells_whether_the_handle_is_known(bench: Bench) -> None:
    made = register(bench)
    bench.user.asked.clear()
    before = bench.vault.snapshot
    assert send(bench, AUTHENTICATE, sign_data(made.key_handle), CHECK) == (b"", 0x6985)
    assert send(bench, AUTHENTICATE, sign_data(b"unknown"), CHECK) == (b"", 0x6A80)
    assert send(bench, AUTHENTICATE, sign_data(made.key_handle, bytes(32)), CHECK) == (b"", 0x6A80)
    assert bench.vault.snapshot == before
    assert not bench.user.asked


def test_a_touch_is_for_one_application(bench: Bench) -> None:
    """Two questions that look alike to the user are not the same: the answer to one must not serve the other."""
    other = hash_of("other.example")
    for application in (APPLICATION, other):
        answer, word = send(bench, REGISTER, CHALLENGE + application)
        assert word == 0x9000
        handle = RegistrationData(answer).key_handle
        assert send(bench, AUTHENTICATE, sign_data(handle, application), ENFORCE)[1] == 0x9000
    assert [request.application for request in bench.user.asked] == [APPLICATION, APPLICATION, other, other]
    assert len(set(bench.user.asked)) == 4


def test_message_ends_what_ctap2_had_begun(bench: Bench) -> None:
    assert bench.set_pin() is Status.SUCCESS
    for number in range(2):
        bench.new_credential(rk=True, user={"id": bytes([number])})
    assert bench.get(bench.token())[1][5] == 2
    assert bench.vault.is_unlocked  # for the assertion that is still to be fetched
    assert send(bench, VERSION)[1] == 0x9000
    assert not bench.vault.is_unlocked
    assert bench.command(Command.GET_NEXT_ASSERTION)[0] is Status.NOT_ALLOWED


@pytest.mark.parametrize("answer", [Presence.DENIED, Presence.TIMEOUT, Presence.CANCELLED])
def test_without_presence_nothing_happens_H4(bench: Bench, answer: Presence) -> None:
    made = register(bench)
    before = bench.vault.snapshot
    bench.user.answer = answer
    assert send(bench, REGISTER, CHALLENGE + APPLICATION) == (b"", 0x6985)
    assert send(bench, AUTHENTICATE, sign_data(made.key_handle), ENFORCE) == (b"", 0x6985)
    assert bench.vault.snapshot == before


@pytest.mark.parametrize(
    ("instruction", "p1", "data", "word"),
    [
        (REGISTER, 0, b"", 0x6700),
        (REGISTER, 0, bytes(63), 0x6700),
        (REGISTER, 0, bytes(65), 0x6700),
        (AUTHENTICATE, ENFORCE, b"", 0x6700),
        (AUTHENTICATE, ENFORCE, bytes(64), 0x6700),
        (AUTHENTICATE, ENFORCE, bytes(66), 0x6700),
        (AUTHENTICATE, ENFORCE, bytes(64) + b"\x05abcd", 0x6700),
        (AUTHENTICATE, ENFORCE, bytes(65), 0x6A80),
        (AUTHENTICATE, 0x00, bytes(65), 0x6A80),
        (AUTHENTICATE, 0xFF, bytes(65), 0x6A80),
        (0x00, 0, b"", 0x6D00),
        (0x04, 0, b"", 0x6D00),
        (0x40, 0, b"", 0x6D00),
        (0xFF, 0, b"", 0x6D00),
    ],
)
def test_messages_wrong(bench: Bench, instruction: int, p1: int, data: bytes, word: int) -> None:
    before = bench.vault.snapshot
    assert send(bench, instruction, data, p1) == (b"", word)
    assert bench.vault.snapshot == before
    assert not bench.user.asked


def test_made_by_u2f_used_by_ctap2(bench: Bench) -> None:
    made = register(bench)
    status, response = bench.get(k3=[descriptor(made.key_handle)])
    assert status is Status.SUCCESS
    data = AuthenticatorData(response[2])
    assert (data.rp_id_hash, data.flags, data.sign_count) == (APPLICATION, Flags.UP, 1)
    key = CoseKey(bench.stored(made.key_handle).public_key)
    key.verify_signature(signature=response[3], message=data + CLIENT_DATA_HASH)
    assert set(response) == {1, 2, 3}
    assert bench.get()[0] is Status.NO_CREDENTIALS
    assert bench.make(k5=[descriptor(made.key_handle)])[0] is Status.CREDENTIAL_EXCLUDED


def test_made_by_ctap2_used_by_u2f(bench: Bench) -> None:
    status, response = bench.make()
    assert status is Status.SUCCESS
    attested = AuthenticatorData(response[2]).attested
    assert attested is not None
    answer, word = send(bench, AUTHENTICATE, sign_data(attested.credential_id), ENFORCE)
    assert word == 0x9000
    signed = SignatureData(answer)
    attested.public_key.verify_signature(signature=signed.signature, message=APPLICATION + answer[:5] + CHALLENGE)


@pytest.mark.parametrize(
    "change",
    [{"k7": {"rk": True}}, {"k6": {"credProtect": 2}}, {"k6": {"credProtect": 3}}, {"k4": [EDDSA]}],
    ids=["discoverable", "protected by its id", "verification required", "another algorithm"],
)
def test_credentials_that_u2f_does_not_see(bench: Bench, change: dict[str, object]) -> None:
    status, response = bench.make(**change)
    assert status is Status.SUCCESS
    attested = AuthenticatorData(response[2]).attested
    assert attested is not None
    for p1 in (ENFORCE, CHECK, SILENT):
        assert send(bench, AUTHENTICATE, sign_data(attested.credential_id), p1) == (b"", 0x6A80)


@pytest.mark.parametrize("instruction", [REGISTER, AUTHENTICATE, VERSION])
def test_nothing_while_user_verification_is_always_required(bench: Bench, instruction: int) -> None:
    data = {REGISTER: CHALLENGE + APPLICATION, AUTHENTICATE: sign_data(register(bench).key_handle), VERSION: b""}
    bench.set_pin()
    token = bench.token(permissions=ACFG, rp_id=None)
    assert bench.configure(2, None, token)[0] is Status.SUCCESS
    assert "U2F_V2" not in bench.expect(Command.GET_INFO)[1]
    assert send(bench, instruction, data[instruction], ENFORCE) == (b"", StatusWord.COMMAND_NOT_ALLOWED)
    assert bench.configure(2, None, token)[0] is Status.SUCCESS
    assert send(bench, instruction, data[instruction], ENFORCE)[1] == 0x9000


def test_nothing_over_keys_that_the_pin_gates() -> None:
    bench = Bench(MemoryVault(), options=AuthenticatorOptions(u2f=True))
    assert send(bench, VERSION) == (b"", 0x6986)


def test_nothing_where_it_is_not_asked_for() -> None:
    bench = Bench(MemoryVault(pin_gated=False))
    for instruction in (REGISTER, AUTHENTICATE, VERSION, 0x77):
        assert send(bench, instruction) == (b"", 0x6D00)


@pytest.mark.parametrize(
    ("method", "reason", "word"),
    [
        ("create_key", Reason.KEY_STORE_FULL, 0x6A84),
        ("create_key", Reason.DEVICE_FAILED, 0x6F00),
        ("sign", Reason.DEVICE_FAILED, 0x6F00),
        ("keep", Reason.KEY_STORE_FULL, 0x6A84),
    ],
)
def test_vault_failure_leaves_nothing_behind(bench: Bench, method: str, reason: Reason, word: int) -> None:
    before = bench.vault.snapshot
    bench.vault.fail_next[method] = DeviceError(reason, "No.")
    assert send(bench, REGISTER, CHALLENGE + APPLICATION) == (b"", word)
    assert bench.vault.snapshot == before
    register(bench)


class LongIds(MemoryVault):
    """Names its keys with more bytes than a key handle can have."""

    def create_key(self, request: KeyRequest) -> Credential:
        credential = replace(super().create_key(request), id=CredentialId(bytes(256)))
        assert self._made is not None
        self._made = replace(self._made, credential=credential)
        return credential


def test_credential_ids_that_are_no_key_handles() -> None:
    bench = Bench(LongIds(pin_gated=False), options=AuthenticatorOptions(u2f=True))
    before = bench.vault.snapshot
    assert send(bench, REGISTER, CHALLENGE + APPLICATION) == (b"", 0x6F00)
    assert bench.vault.snapshot == before


def test_a_message_ends_what_ctap2_has_begun(bench: Bench) -> None:
    for user in (b"1", b"2"):
        assert bench.make(k3={"id": user}, k7={"rk": True})[0] is Status.SUCCESS
    assert bench.get()[1][5] == 2
    send(bench, VERSION)
    assert bench.command(Command.GET_NEXT_ASSERTION)[0] is Status.NOT_ALLOWED


def test_second_request_meanwhile_is_told_to_try_again(bench: Bench) -> None:
    seen: list[tuple[bytes, int]] = []

    class Meddler:
        def confirm(self, *_: object) -> Presence:
            seen.append(send(bench, VERSION))
            return Presence.GRANTED

    assert bench.authenticator.handle_u2f(REGISTER, 0, 0, CHALLENGE + APPLICATION, Meddler())[1] == 0x9000
    assert seen == [(b"", 0x6985)]
