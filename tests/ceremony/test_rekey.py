"""`rekey`: a new key in the place of an enrolled one, against the real server, interrupted at every point."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from keyvouch.errors import EvidenceError, KeyvouchError, Reason, UnavailableError
from keyvouch.ids import CredentialId, DeviceId
from keyvouch.statement import RegistrationStatement
from keyvouch_agent import bootstrap
from keyvouch_agent.agent_ports import ReplacementEvidence, ReplacementOffer
from keyvouch_agent.ceremonies.key_replacement import KeyReplacementCeremony
from keyvouch_agent.home import Home
from keyvouch_agent.interactions import GivenPin
from keyvouch_agent.ledger import Enrolment
from keyvouch_agent.ports import Pin
from keyvouch_agent.provider_shelf import ProviderKey
from keyvouch_agent.rpc.channel import enrolled_channel
from keyvouch_agent.rpc.device import DeviceClient
from keyvouch_agent.vaults.tpm import account_file
from keyvouch_bench.swtpm import Swtpm
from keyvouch_server.domain.model import Credential
from support import killable_agent
from support.kill_points import Trigger, start_program
from support.tpm_agent import PIN, TpmAgent, tpm_agent

Make = Callable[..., Swtpm]

POINTS = (
    "before-call BeginKeyReplacement 1",
    "after-reply BeginKeyReplacement 1",
    "ask PIN 1",
    "before-write replacing 1",
    "after-write replacing 1",
    "before-call CompleteKeyReplacement 1",
    "after-reply CompleteKeyReplacement 1",
    "before-write enrolments 1",
    "after-write enrolments 1",
    "before-delete replacing 1",
    "after-delete replacing 1",
)


@pytest.fixture
async def ada(
    server_template: Path, tmp_path: Path, socket_directory: Path, tpm_factory: Make
) -> AsyncIterator[TpmAgent]:
    """Ada's device, enrolled."""
    async with tpm_agent(server_template, tmp_path, socket_directory / "home", tpm_factory()) as made:
        await made.enrol()
        yield made


def folder_of(ada: TpmAgent) -> Path:
    return ada.home / "vault-tpm" / ada.enrolment.account


def keys_of(ada: TpmAgent) -> list[CredentialId]:
    """The keys of the account's record, which are those of its files."""
    folder = folder_of(ada)
    keys = [key.id for key in account_file.decode((folder / "account.cbor").read_bytes()).keys]
    assert sorted(path.stem for path in folder.glob("*.pem")) == sorted(key.hex() for key in keys)
    return keys


async def registered(ada: TpmAgent) -> CredentialId:
    """The key that the server has."""
    where = {"device_id": ada.enrolment.device_id}
    (found,) = await ada.live.app.store.read(lambda tx: tx.find(Credential, where))
    return found.id


async def settled(ada: TpmAgent) -> None:
    """Server, ledger and TPM agree on one key; nothing is half done; it signs."""
    assert keys_of(ada) == [ada.enrolment.credential_id] == [await registered(ada)]
    assert ada.ledger.replacement(ada.enrolment.device_id) is None
    async with ada.running():
        await ada.signs_in()


async def rekey(ada: TpmAgent, pin: str = PIN) -> tuple[int, dict[str, Any]]:
    return await ada.asked("rekey", "--pin-fd", "@", secrets=(pin,))


async def test_a_new_key_while_the_agent_runs(ada: TpmAgent) -> None:
    before = ada.enrolment
    certificate = account_file.decode((folder_of(ada) / "account.cbor").read_bytes()).attestation
    async with ada.running():
        await ada.signs_in()
        code, told = await rekey(ada)
        assert code == 0, told
        assert told["device_id"] == before.device_id
        await ada.connected()
        await ada.signs_in()
    assert ada.enrolment == replace(before, credential_id=await registered(ada))
    assert ada.enrolment.credential_id != before.credential_id
    renewed = account_file.decode((folder_of(ada) / "account.cbor").read_bytes()).attestation
    assert certificate is not None
    assert renewed is not None
    assert (renewed.public, renewed.certificate != certificate.certificate) == (certificate.public, True)
    await settled(ada)


@pytest.mark.parametrize("lost", ["its file", "its record", "its contents"])
async def test_h10_a_key_that_is_lost_comes_back_as_a_new_one(ada: TpmAgent, lost: str) -> None:
    (key_file,) = folder_of(ada).glob("*.pem")
    record = folder_of(ada) / "account.cbor"
    if lost == "its file":
        key_file.unlink()
    elif lost == "its contents":
        key_file.write_bytes(b"-----BEGIN TSS2 PRIVATE KEY-----\nAAAA\n-----END TSS2 PRIVATE KEY-----\n")
    else:
        record.write_bytes(account_file.encode(replace(account_file.decode(record.read_bytes()), keys=(), serial=0)))
    code, told = await rekey(ada)
    assert code == 0, told
    await settled(ada)


async def test_a_wrong_pin_and_a_blocked_one(ada: TpmAgent) -> None:
    for left in (2, 1, 0):
        code, told = await rekey(ada, "000000")
        assert (code, told["error"]["retries_left"]) == (1, left)
        assert keys_of(ada) == [ada.enrolment.credential_id]
    code, told = await rekey(ada)
    assert (code, told["error"]["reason"]) == (1, "pin_blocked")
    assert "enroll --replace" in told["error"]["fix"]
    assert ada.ledger.replacement(ada.enrolment.device_id) is None


async def test_a_key_in_software_is_not_replaced(ada: TpmAgent) -> None:
    await ada.live.create_user("bob")
    await ada.enrol("bob", "--provider", "software")
    code, told = await ada.asked("rekey", "bob", "--pin-fd", "@", secrets=(PIN,))
    assert (code, told["error"]["reason"]) == (1, "unsupported")
    assert "enroll --replace" in told["error"]["fix"]
    code, told = await ada.asked("rekey", "--pin-fd", "@", secrets=(PIN,))
    assert (code, told["error"]["reason"]) == (1, "field_invalid")


# Killed


@pytest.mark.parametrize("point", POINTS)
async def test_h10_killed_and_run_again(ada: TpmAgent, tmp_path: Path, point: str) -> None:
    before, trigger = ada.enrolment.credential_id, Trigger(tmp_path)
    trigger.set(point)
    arguments = ("rekey", "--home", str(ada.home))
    process = start_program(
        killable_agent.__name__, *arguments, environment=trigger.environment, log=tmp_path / "agent.log"
    )
    secrets = json.dumps({"pin": PIN}).encode()
    try:
        await asyncio.to_thread(process.communicate, secrets, 40)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "agent.log").read_text()
    staged = ada.ledger.replacement(ada.enrolment.device_id)
    assert (staged is not None) == (POINTS.index("before-write replacing 1") < POINTS.index(point) < len(POINTS) - 1)
    if staged is not None:
        _, told = await ada.asked("status")
        assert told["replacing"] == [ada.enrolment.device_id]
        code, told = await ada.asked("doctor")
        assert (code, "rekey" in json.dumps(told)) == (1, True)
        code, told = await ada.asked("rekey")  # asks for no PIN
        assert code == 0, told
        assert ada.enrolment.credential_id == staged.credential_id != before
    else:
        assert (ada.enrolment.credential_id == before) == (point != POINTS[-1])
        code, told = await rekey(ada)
        assert code == 0, told
    await settled(ada)


# The server says otherwise


@dataclass
class BentServer:
    """`ReplacementServer` over the real one, whose answers a test bends or loses."""

    real: DeviceClient
    bend: Callable[[ReplacementOffer], ReplacementOffer] = lambda offer: offer
    loses: bool = False
    names: CredentialId | None = None

    async def begin_key_replacement(self) -> ReplacementOffer:
        return self.bend(await self.real.begin_key_replacement())

    async def complete_key_replacement(self, evidence: ReplacementEvidence) -> CredentialId:
        answered = await self.real.complete_key_replacement(evidence)
        if self.loses:
            raise UnavailableError(Reason.SERVER_UNREACHABLE, "The answer was lost.", fix="Try again.")
        return self.names or answered

    async def registered_key(self) -> CredentialId:
        return await self.real.registered_key()

    async def close(self) -> None:
        await self.real.close()


async def replace_key(ada: TpmAgent, **bent: Any) -> Enrolment:
    """The ceremony in this process, against a server that is bent."""
    home = Home.open(ada.home)
    holders, enrolment = bootstrap.key_holders(home), ada.enrolment
    shelf, keys = bootstrap.open_shelf(home), holders.channel_keys()
    server = BentServer(DeviceClient(enrolled_channel(enrolment, keys)), **bent)
    ceremony = KeyReplacementCeremony(
        ledger=ada.ledger,
        server=server,
        provider=lambda: shelf.get(ProviderKey(enrolment.provider, enrolment.account)),
        interaction=GivenPin(Pin(PIN)),
        progress=lambda _: None,
        channel_keys=keys,
    )
    try:
        return await ceremony.run(enrolment)
    finally:
        shelf.close()
        await server.close()


def statement(**changes: Any) -> Callable[[ReplacementOffer], ReplacementOffer]:
    def bend(offer: ReplacementOffer) -> ReplacementOffer:
        return replace(offer, statement=replace(RegistrationStatement.parse(offer.statement), **changes).encode())

    return bend


BENT: dict[str, tuple[Callable[[ReplacementOffer], ReplacementOffer], Reason]] = {
    "another device": (statement(device_id=DeviceId("dev_other")), Reason.STATEMENT_MISMATCH),
    "another server": (statement(server_id=bytes(32)), Reason.WRONG_SERVER),
    "another channel key": (statement(channel_key=bytes(32)), Reason.CHANNEL_KEY),
    "another attestation key": (statement(ak_name=b"\0\x0b" + bytes(32)), Reason.STATEMENT_MISMATCH),
    "another registration": (lambda offer: replace(offer, registration_id="reg_other"), Reason.STATEMENT_MISMATCH),
    "another relying party": (lambda offer: replace(offer, rp_id="elsewhere"), Reason.STATEMENT_MISMATCH),
    "no certificate": (lambda offer: replace(offer, certificate=b""), Reason.STATEMENT_MISMATCH),
}


@pytest.mark.parametrize("bent", BENT)
async def test_an_offer_that_is_about_something_else_is_refused_before_any_key(ada: TpmAgent, bent: str) -> None:
    bend, reason = BENT[bent]
    with pytest.raises(EvidenceError) as caught:
        await replace_key(ada, bend=bend)
    assert caught.value.reason is reason
    await settled(ada)


async def test_a_certificate_of_another_key_is_refused(ada: TpmAgent) -> None:
    with pytest.raises(EvidenceError) as caught:
        await replace_key(ada, bend=lambda offer: replace(offer, certificate=ada.enrolment.certificate_chain[0]))
    assert caught.value.reason is Reason.STATEMENT_MISMATCH
    await settled(ada)


async def test_an_answer_that_names_another_key_is_not_believed(ada: TpmAgent) -> None:
    with pytest.raises(EvidenceError) as caught:
        await replace_key(ada, names=CredentialId(b"another"))
    assert caught.value.reason is Reason.STATEMENT_MISMATCH
    assert ada.ledger.replacement(ada.enrolment.device_id) is not None
    await replace_key(ada)
    await settled(ada)


async def test_a_verdict_takes_the_new_key_away_and_the_old_one_goes_on(ada: TpmAgent) -> None:
    before = ada.enrolment

    def late(offer: ReplacementOffer) -> ReplacementOffer:
        ada.live.clock.advance(3600)
        return offer

    with pytest.raises(KeyvouchError) as caught:
        await replace_key(ada, bend=late)
    assert caught.value.reason is Reason.REGISTRATION_EXPIRED
    assert ada.enrolment == before
    await settled(ada)


async def test_a_server_that_completed_it_long_ago_and_forgot_how(ada: TpmAgent) -> None:
    before = ada.enrolment.credential_id
    with pytest.raises(UnavailableError):
        await replace_key(ada, loses=True)
    assert (ada.enrolment.credential_id, await registered(ada) != before) == (before, True)
    ada.live.clock.advance(2 * 86400)
    await ada.live.app.replacements.forget_abandoned()
    await replace_key(ada)
    assert ada.enrolment.credential_id != before
    await settled(ada)


async def test_an_account_nobody_vouches_for_is_not_replaced(
    server_template: Path, tmp_path: Path, socket_directory: Path, tpm_factory: Make
) -> None:
    chip = tpm_factory("no-ek-certificate")
    async with tpm_agent(server_template, tmp_path, socket_directory / "home", chip) as agent:
        await agent.enrol()
        with pytest.raises(KeyvouchError) as caught:
            await replace_key(agent)
        assert caught.value.reason is Reason.TPM_NOT_PREPARED
        await settled(agent)


async def test_unregistering_forgets_what_was_half_done(ada: TpmAgent) -> None:
    with pytest.raises(UnavailableError):
        await replace_key(ada, loses=True)
    code, told = await ada.asked("unregister", "--yes")
    assert code == 0, told
    assert not list((ada.home / "replacing").iterdir())
