"""What passes between agent and TPM: no secret in clear, no command too many, and nothing an interposer can change."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR, TPM2_CC, TPM2_RC, TPMA_NV
from tpm2_pytss.types import (
    TPM2B_AUTH,
    TPM2B_DIGEST,
    TPM2B_NV_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMS_NV_PUBLIC,
    TPMS_SENSITIVE_CREATE,
)

from keyvouch.attestation.activation_certificate import activation_proof
from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.vault import CredentialSecrets, KeyRequest, User
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.tpm import credential_secrets
from keyvouch_agent.vaults.tpm.account import TpmAccount
from keyvouch_agent.vaults.tpm.channel_key import TpmChannelKeys
from keyvouch_agent.vaults.tpm.connection import Tpm, TpmAccess, TpmSettings
from keyvouch_agent.vaults.tpm.key_file import signature_value
from keyvouch_agent.vaults.tpm.parent import choose_parent, open_parent
from keyvouch_agent.vaults.tpm.pin_index import auth_value
from keyvouch_agent.vaults.tpm.profile import read_profile
from keyvouch_agent.vaults.tpm.sessions import secret_session
from keyvouch_agent.vaults.tpm.templates import KINDS, channel_key, scheme_of
from keyvouch_agent.vaults.tpm.vault import SEEN_SECONDS, TpmVault
from keyvouch_bench.swtpm import Swtpm
from keyvouch_bench.tpm_contents import connected
from keyvouch_bench.tpm_tcti import ExchangeTcti, Recording, RecordingTcti, Send, open_tcti
from support.tpm_accounts import access_to, kept
from support.tpm_attacker import pin_hash
from support.tpm_registering import ScriptedServer, registering

PIN, NEW, WRONG = (
    "a PIN of 24 characters: ä".encode(),
    b"another PIN of that kind",
    b"a wrong PIN, as it happens",
)
REQUEST: Final = KeyRequest("login.example.org", User(b"user", "ada", "Ada"), -7, discoverable=True)


@contextmanager
def opened(tpm: Any, folder: Path, recording: Recording, *, access: TpmAccess | None = None) -> Iterator[Any]:
    """Account and vault whose traffic is recorded; what they put into the TPM is taken out again."""
    way = access or access_to(tpm.tcti, lambda: RecordingTcti(open_tcti(tpm.tcti), recording))
    account = TpmAccount.open(folder, way)
    vault = TpmVault(account, SystemEntropy(), limit=3)
    try:
        yield account, vault
        vault.reset()
    finally:
        vault.close()


def secrets_of(pin: bytes) -> dict[str, bytes]:
    """A PIN and everything that is made of it."""
    digest = hashlib.sha256(pin).digest()
    return {"PIN": pin, "SHA-256": digest, "its left half": digest[:16], "value": auth_value(digest[:16])}


def found(secrets: dict[str, bytes], place: bytes) -> list[str]:
    """Which of the secrets stand in a place: as they are, or in hexadecimal digits."""
    return [name for name, secret in secrets.items() if secret in place or secret.hex().encode() in place.lower()]


# Secrets


def test_neither_pin_nor_what_is_made_of_it_passes_in_clear_T12_A4(tpm: Any, tmp_path: Path):
    recording = Recording()
    with opened(tpm, tmp_path / "account", recording) as (_, vault):
        vault.set_pin(PIN)
        vault.verify_pin(pin_hash(PIN))
        credential = kept(vault, REQUEST)
        for _ in range(2):
            vault.sign(credential.id, b"statement")
        vault.change_pin(NEW)
        vault.sign(credential.id, b"statement")
        vault.lock()
        for pin in (WRONG, PIN):
            with pytest.raises(DeviceError, match="wrong"):
                vault.verify_pin(pin_hash(pin))
    for pin in (PIN, NEW, WRONG):
        assert found(secrets_of(pin), recording.traffic) == []
    assert {TPM2_CC.NV_DefineSpace, TPM2_CC.PolicySecret, TPM2_CC.NV_ChangeAuth, TPM2_CC.Sign} <= {*recording.codes}
    assert recording.count(TPM2_CC.PolicySecret) == 6


def test_the_recorder_sees_what_is_sent_in_clear(tpm_factory: Callable[[], Swtpm]):
    tpm, recording, value = tpm_factory(), Recording(), secrets_of(PIN)["value"]
    area = TPM2B_NV_PUBLIC(
        nvPublic=TPMS_NV_PUBLIC(
            nvIndex=0x0180_4BFF, nameAlg=0x0B, attributes=TPMA_NV.AUTHREAD | TPMA_NV.AUTHWRITE, dataSize=8
        )
    )
    with RecordingTcti(open_tcti(tpm.tcti), recording) as tcti, ESAPI(tcti) as esys:
        index = esys.nv_define_space(value, area)  # without an encrypting session
        assert found(secrets_of(PIN), recording.traffic) == ["value"]
        recording.exchanges.clear()
        esys.tr_set_auth(index, value)
        esys.nv_write(index, bytes(8))  # as a password
        assert found(secrets_of(PIN), recording.traffic) == ["value"]


@pytest.mark.parametrize("certificate", [b"a certificate of the attestation key", b""], ids=["certified", "unvouched"])
def test_a_registration_shows_neither_pin_nor_activation_secret_T12_A4(tpm: Any, tmp_path: Path, certificate: bytes):
    recording, server = Recording(), ScriptedServer(certificate=certificate)
    with opened(tpm, tmp_path / "account", recording) as (account, vault):
        with registering(account, vault) as ceremony:
            grant = server.grant(ceremony.prepare(server.offer))
            ceremony.accept(grant)
            vault.set_pin(PIN)
            vault.verify_pin(pin_hash(PIN))
            credential = kept(vault, REQUEST)
            vault.attest(credential.id, b"data", b"hash")
            evidence = ceremony.evidence(grant.statement, b"")
        assert evidence.activation == activation_proof(grant.statement, secret=server.secret)
        vault.lock()
        assert not tpm.loaded_handles()
        assert found({**secrets_of(PIN), **activation_secrets(server)}, recording.traffic) == []
        assert TPM2_CC.ActivateCredential in recording.codes
        files = b"".join(file.read_bytes() for file in sorted((tmp_path / "account").iterdir()))
        on_disk = activation_secrets(server)
        on_disk.pop("certificate", None)  # which is public, and kept
        assert found({**secrets_of(PIN), **on_disk}, files) == []


EVERYTHING: Final = replace(REQUEST, cred_blob=b"blob of the relying party", hmac_secret=True, large_blob_key=True)


def test_neither_seed_nor_secrets_of_a_key_pass_in_clear_or_stand_in_a_file_T12_A5(
    tpm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seeds, recording = [], Recording()
    derive = credential_secrets.derive

    def watched(seed: bytes, *rest: Any) -> CredentialSecrets:
        seeds.append(seed)
        return derive(seed, *rest)

    monkeypatch.setattr(credential_secrets, "derive", watched)
    with opened(tpm, tmp_path / "account", recording) as (_, vault):
        vault.set_pin(PIN)
        vault.verify_pin(pin_hash(PIN))
        credential = kept(vault, EVERYTHING)
        got = [vault.secrets(credential.id) for _ in range(2)]  # in the session of the PIN, and in another one
        assert got[0] == got[1]
        assert len({*seeds}) == 1
        hidden = {"seed": seeds[0], "with": got[0].with_uv, "without": got[0].without_uv, "blob": got[0].cred_blob}
        hidden["large blobs"] = got[0].large_blob_key
        files = b"".join(file.read_bytes() for file in sorted((tmp_path / "account").iterdir()))
        assert credential.id in files  # control: the search finds what is there
        assert found(hidden, files) == []
        assert found(hidden, recording.traffic) == []
        assert TPM2_CC.Unseal in recording.codes
        monkeypatch.setattr(credential_secrets, "answer_secretly", insecurely_in_clear)
        vault.secrets(credential.id)
        assert found(hidden, recording.traffic) == ["seed"]  # control: where it is not encrypted it is seen


def insecurely_in_clear(tpm: Tpm, session: Any) -> None:
    tpm.esapi.trsess_set_attributes(session, 0, 0xFF)


def activation_secrets(server: ScriptedServer) -> dict[str, bytes]:
    sealing = hmac.digest(server.secret, b"keyvouch/attestation-certificate/v1", "sha256")
    certificate = {"certificate": server.certificate} if server.certificate else {}
    return {"activation secret": server.secret, "key of the seal": sealing, **certificate}


def test_passwords_of_the_hierarchies_do_not_pass_in_clear_T12(tpm_factory: Callable[[], Swtpm], tmp_path: Path):
    tpm, recording, server = tpm_factory(), Recording(), ScriptedServer()
    owner, endorsement = b"the owner's password", b"the endorsement password"
    with connected(tpm.tcti) as esys:
        esys.hierarchy_change_auth(ESYS_TR.OWNER, owner)
        esys.hierarchy_change_auth(ESYS_TR.ENDORSEMENT, endorsement)
    access = TpmAccess(
        TpmSettings(tpm.tcti, owner_auth=owner, endorsement_auth=endorsement),
        open_tcti=lambda: RecordingTcti(open_tcti(tpm.tcti), recording),
    )
    assert {owner, endorsement} & {repr(access.settings).encode()} == set()
    with opened(tpm, tmp_path / "account", recording, access=access) as (account, vault):
        with registering(account, vault) as ceremony:
            grant = server.grant(ceremony.prepare(server.offer))
            ceremony.accept(grant)
            vault.set_pin(PIN)
            vault.verify_pin(pin_hash(PIN))
            credential = kept(vault, REQUEST)
            vault.attest(credential.id, b"data", b"hash")
            channel_key = TpmChannelKeys(access)
            ceremony.evidence(grant.statement, b"")
        with pytest.raises(DeviceError):
            vault.verify_pin(pin_hash(WRONG))
        assert vault.pin_state().retries_left == 2
        vault.lock()
        assert isinstance(channel_key.make().sign(b"m"), bytes)
    assert found({"owner": owner, "endorsement": endorsement}, recording.traffic) == []
    assert not tpm.loaded_handles()


# How many commands


def test_an_approval_takes_two_commands_more_than_a_bare_signature(tpm: Any, tmp_path: Path):
    recording = Recording()
    with opened(tpm, tmp_path / "account", recording) as (_, vault):
        vault.set_pin(PIN)
        vault.verify_pin(pin_hash(PIN))
        credential = kept(vault, REQUEST)
        vault.lock()
        recording.exchanges.clear()
        vault.verify_pin(pin_hash(PIN))
        signature = vault.sign(credential.id, b"statement")
        vault.lock()
        approval = Counter(done(recording))
        assert not tpm.loaded_handles()
    CoseKey(credential.public_key).verify_signature(signature=signature, message=b"statement")
    bare = Counter(bare_signature(tpm))
    assert approval - bare == Counter({TPM2_CC.StartAuthSession: 1, TPM2_CC.PolicySecret: 1})
    assert bare - approval == Counter()
    assert approval.total() == bare.total() + 2
    assert not tpm.loaded_handles()


def test_the_tries_are_asked_for_once_until_the_pin_is_used_or_their_time_is_over(tpm: Any, tmp_path: Path):
    recording, now = Recording(), [0.0]
    account = TpmAccount.open(
        tmp_path / "account", access_to(tpm.tcti, lambda: RecordingTcti(open_tcti(tpm.tcti), recording))
    )
    vault = TpmVault(account, SystemEntropy(), limit=3, monotonic=lambda: now[0])

    def asked() -> int:
        before = done(recording).count(TPM2_CC.NV_Read)
        vault.pin_state()
        return done(recording).count(TPM2_CC.NV_Read) - before

    try:
        vault.set_pin(PIN)
        assert [asked(), asked()] == [1, 0]
        now[0] += SEEN_SECONDS
        assert asked() == 0
        now[0] += 0.1
        assert [asked(), asked()] == [1, 0]
        with pytest.raises(DeviceError):
            vault.verify_pin(pin_hash(WRONG))
        assert asked() == 1
        assert vault.pin_state().retries_left == 2
        vault.verify_pin(pin_hash(PIN))
        assert asked() == 0
        vault.lock()
        assert asked() == 1
        assert vault.pin_state().retries_left == 3
        vault.reset()
    finally:
        vault.close()


def test_secrets_are_asked_for_with_one_unseal_and_a_key_without_any_asks_nothing(tpm: Any, tmp_path: Path):
    recording = Recording()
    with opened(tpm, tmp_path / "account", recording) as (_, vault):
        vault.set_pin(PIN)
        vault.verify_pin(pin_hash(PIN))
        plain, rich = kept(vault, replace(REQUEST, user=User(b"plain"))), kept(vault, EVERYTHING)
        recording.exchanges.clear()
        vault.secrets(plain.id)
        assert done(recording) == []
        vault.secrets(rich.id)
        assert done(recording) == [TPM2_CC.Load, TPM2_CC.Unseal, TPM2_CC.FlushContext]
        vault.lock()


def done(recording: Recording) -> list[int]:
    """The commands that were carried out: libtss2 sends a command again while the TPM says TPM_RC_RETRY."""
    return [one.code for one in recording.exchanges if one.result != int(TPM2_RC.RETRY)]


def bare_signature(tpm: Any) -> list[int]:
    """The same by a key that its own value guards, over a salted and encrypting session; connection and all."""
    kind, recording = KINDS[Algorithm.ES256], Recording()
    with access_to(tpm.tcti).open() as link:
        parent, pinned = choose_parent(link, read_profile(link))
        secret = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=TPM2B_AUTH(b"493817")))
        private, public, *_ = link.do(link.esapi.create, parent, secret, channel_key())
    with access_to(tpm.tcti, lambda: RecordingTcti(open_tcti(tpm.tcti), recording)).open() as link:
        parent = open_parent(link, pinned)
        key = link.hold(link.do(link.esapi.load, parent, private, public))
        link.esapi.tr_set_auth(key, b"493817")
        session = secret_session(link, parent)
        digest = TPM2B_DIGEST(hashlib.sha256(b"statement").digest())
        assert signature_value(link.do(link.esapi.sign, key, digest, scheme_of(kind), None, session))
        link.spent(session)
    return done(recording)


# What an interposer could change


class Interposer(ExchangeTcti):
    """Somebody on the wires between board and chip: puts a digest of his own into every TPM2_Sign.

    An HMAC whose key is not secret he could make too; leaving it out is simpler where a TPM lets him.
    """

    got: list[bytes]

    def exchange(self, command: bytes, send: Send) -> bytes:
        if int.from_bytes(command[6:10], "big") != TPM2_CC.Sign:
            return send(command)
        answer = send(with_digest(command, hashlib.sha256(b"theirs").digest()))
        self.got.append(answer[6:10])
        return answer


def with_digest(command: bytes, digest: bytes) -> bytes:
    """Another digest in a TPM2_Sign, and no HMAC in its only authorization."""
    end = 18 + int.from_bytes(command[14:18], "big")
    authorization, parameters = command[18:end], command[end:]
    nonce = 6 + int.from_bytes(authorization[4:6], "big")
    authorization = authorization[: nonce + 1] + bytes(2)
    parameters = parameters[:2] + digest + parameters[2 + len(digest) :]
    body = command[6:14] + len(authorization).to_bytes(4, "big") + authorization + parameters
    return command[:2] + (6 + len(body)).to_bytes(4, "big") + body


def test_nobody_on_the_bus_exchanges_what_is_signed_T12(tpm: Any, tmp_path: Path):
    folder, answers = tmp_path / "account", []

    def tcti() -> Any:
        made = Interposer(open_tcti(tpm.tcti))
        made.got = answers
        return made

    with keeping(folder, access_to(tpm.tcti)) as vault:
        vault.set_pin(PIN)
        vault.verify_pin(pin_hash(PIN))
        credential = kept(vault, REQUEST)
    with keeping(folder, access_to(tpm.tcti, tcti)) as vault:
        vault.verify_pin(pin_hash(PIN))
        for _ in range(2):  # in the session of the PIN, and in another one
            with pytest.raises(DeviceError) as caught:
                vault.sign(credential.id, b"mine")
            assert caught.value.reason is not Reason.PIN_WRONG
        vault.lock()
        assert vault.pin_state().retries_left == 3
    assert len(answers) == 2
    assert bytes(4) not in answers  # the TPM has not signed
    with opened(tpm, folder, Recording()) as (_, vault):
        vault.verify_pin(pin_hash(PIN))
        signature = vault.sign(credential.id, b"mine")
        CoseKey(credential.public_key).verify_signature(signature=signature, message=b"mine")


@contextmanager
def keeping(folder: Path, access: TpmAccess) -> Iterator[Any]:
    """The vault of a folder, closed at the end and otherwise left as it is."""
    vault = TpmVault(TpmAccount.open(folder, access), SystemEntropy(), limit=3)
    try:
        yield vault
    finally:
        vault.close()
