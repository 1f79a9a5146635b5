"""Registration with a TPM: whatever is not as it must be is refused with its reason, and leaves no device behind.

Every refusal stands beside a control: the same registration, with nothing bent, is accepted afterwards or elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.errors import Reason
from keyvouch.statement import Purpose, challenge
from keyvouch.v1 import common_pb2
from keyvouch.v1 import enrolment_pb2 as pb
from keyvouch_server.domain.model import Credential, Device, DeviceTpm
from support import registering
from support.live_server import LiveServer, Metadata, live_server, refused
from support.software_tpm import SoftwareTpm
from support.software_tpm import public_area as ek_area
from support.tpm_device import (
    CHANNEL,
    GATED,
    HANDLE,
    UNWRITTEN,
    ForgedTpm,
    Maker,
    TpmRegistration,
    begin,
    key_policy,
    pin_index,
    register,
    tpm_credential,
)
from support.tpm_forge import NULL, SHA1, ec_key, public_area

MAKER, STRANGER = Maker.new(), Maker.new("Somebody else")
BAD_REQUEST, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
async def trusting(server_template: Path, tmp_path: Path) -> AsyncIterator[LiveServer]:
    """A running server that believes the test maker's TPMs."""
    async with live_server(server_template, tmp_path, tpm=MAKER.settings(tmp_path)) as running:
        yield running


async def session_of(live: LiveServer, username: str = "ada") -> Metadata:
    """A new user's session by an access pass."""
    await live.create_user(username)
    return await live.pass_session(username, await live.issue_pass(username))


async def begun(live: LiveServer, tpm: ForgedTpm | None = None, username: str = "ada") -> TpmRegistration:
    return await begin(live, await session_of(live, username), tpm or MAKER.tpm())


async def prepared(live: LiveServer, tpm: ForgedTpm | None = None) -> TpmRegistration:
    made = await begun(live, tpm)
    await made.prepare()
    return made


async def is_absent(live: LiveServer, device_id: str) -> bool:
    """TPM6: no read path knows a device that is not registered."""

    async def work(tx: Any) -> int:
        found = [await tx.count(table, {"device_id": device_id}) for table in (Credential, DeviceTpm)]
        return sum(found) + await tx.count(Device, {"id": device_id})

    return await live.app.store.read(work) == 0


async def audited(live: LiveServer, made: TpmRegistration, action: str, reason: Reason) -> bool:
    return any(r.subject == made.device_id and r.outcome == reason.value for r in await live.audit(action))


async def refused_to_prepare(
    live: LiveServer,
    made: TpmRegistration,
    request: pb.PrepareTpmRequest,
    reason: Reason,
    status: grpc.StatusCode = BAD_REQUEST,
) -> None:
    with refused(reason, status=status):
        await made.prepare(request)
    assert await is_absent(live, made.device_id)
    assert await audited(live, made, "registration.prepare", reason)


async def refused_to_complete(
    live: LiveServer,
    made: TpmRegistration,
    given: pb.CompleteRegistrationRequest,
    reason: Reason,
    status: grpc.StatusCode = BAD_REQUEST,
) -> None:
    with refused(reason, status=status):
        await made.complete(given)
    assert await is_absent(live, made.device_id)
    assert await audited(live, made, "registration.complete", reason)


async def accepted(made: TpmRegistration, given: pb.CompleteRegistrationRequest | None = None) -> None:
    """The control."""
    done = await made.complete(given or made.completion())
    assert done.device.assurance.verification == common_pb2.VERIFICATION_HARDWARE_GATED


# What is shown: keys


AK_BENT: dict[str, tuple[dict[str, Any], Reason]] = {
    "not restricted": ({"attributes": 0x00040072}, Reason.TPM_AK_ATTRIBUTES),
    "decrypts too": ({"attributes": 0x00070072}, Reason.TPM_AK_ATTRIBUTES),
    "may leave the TPM": ({"attributes": 0x00050070}, Reason.TPM_AK_ATTRIBUTES),
    "may get another parent": ({"attributes": 0x00050062}, Reason.TPM_AK_ATTRIBUTES),
    "was made outside": ({"attributes": 0x00050052}, Reason.TPM_AK_ATTRIBUTES),
    "has no scheme": ({"scheme": NULL}, Reason.TPM_AK_ATTRIBUTES),
    "is named by SHA-1": ({"name_algorithm": SHA1}, Reason.TPM_AK_ATTRIBUTES),
}


@pytest.mark.parametrize("bent", AK_BENT)
async def test_an_attestation_key_that_is_none_TPM4(trusting: LiveServer, bent: str):
    changes, reason = AK_BENT[bent]
    made = await begun(trusting)
    bad = made.request(attestation_key=bytes(replace(made.tpm, ak_changes=changes).ak_area))
    await refused_to_prepare(trusting, made, bad, reason)
    await made.prepare()
    await accepted(made)


EK_BENT: dict[str, tuple[Callable[[ForgedTpm], bytes], Reason]] = {
    "signs": (lambda tpm: _ek(tpm, attributes=0x000700B2), Reason.TPM_EK_ATTRIBUTES),
    "may leave the TPM": (lambda tpm: _ek(tpm, attributes=0x000300B0), Reason.TPM_EK_ATTRIBUTES),
    "is named by SHA-1": (lambda tpm: _ek(tpm, name_algorithm=SHA1), Reason.TPM_EK_ATTRIBUTES),
    "is cut short": (lambda tpm: bytes(tpm.endorsement.public)[:-1], Reason.TPM_PARSE),
    "is nothing": (lambda _: b"", Reason.TPM_PARSE),
}


def _ek(tpm: ForgedTpm, **changes: Any) -> bytes:
    key = tpm.endorsement.private_key.public_key()
    return bytes(ek_area(key, **changes))


@pytest.mark.parametrize("bent", EK_BENT)
async def test_an_endorsement_key_that_is_none(trusting: LiveServer, bent: str):
    make, reason = EK_BENT[bent]
    made = await begun(trusting)
    await refused_to_prepare(trusting, made, made.request(endorsement_key=make(made.tpm)), reason)
    await made.prepare()
    await accepted(made)


# What is shown: the PIN index


INDEX_BENT: dict[str, dict[str, int]] = {
    "is written already": {"attributes": UNWRITTEN | 1 << 29},
    "may be written by the owner": {"attributes": UNWRITTEN | 1 << 1},
    "may be written by its PIN": {"attributes": UNWRITTEN | 1 << 2},
    "may be written by the platform": {"attributes": UNWRITTEN | 1},
    "is forgotten at a reset": {"attributes": UNWRITTEN | 1 << 26},
    "locks the whole TPM": {"attributes": UNWRITTEN & ~(1 << 25)},
    "counts right PINs": {"attributes": UNWRITTEN | 1 << 4},
    "is an ordinary one": {"attributes": UNWRITTEN & ~0xF0},
    "may be removed by a policy": {"attributes": UNWRITTEN | 1 << 10},
    "is in the range of makers": {"handle": 0x01C00002},
    "is in the range of the platform": {"handle": 0x01400001},
}


@pytest.mark.parametrize("bent", INDEX_BENT)
async def test_a_pin_index_that_is_made_otherwise(trusting: LiveServer, bent: str):
    made = await begun(trusting)
    index = pin_index(made.begun.tpm.ceremony_key, made.device_id, **INDEX_BENT[bent])
    await refused_to_prepare(trusting, made, made.request(pin_index=index), Reason.TPM_NV_INDEX)
    await made.prepare()
    await accepted(made)


async def test_a_pin_index_of_another_policy_device_ceremony_or_size(trusting: LiveServer):
    session = await session_of(trusting)
    made, other = await begin(trusting, session, MAKER.tpm()), await begin(trusting, session, MAKER.tpm())
    key, good = made.begun.tpm.ceremony_key, pin_index(made.begun.tpm.ceremony_key, made.device_id)
    for bad in (
        pin_index(key, other.device_id),
        pin_index(other.begun.tpm.ceremony_key, made.device_id),
        good[:12] + bytes(32) + good[44:],
        good[:10] + b"\0\0" + good[44:],
        good[:-2] + b"\0\x09",
    ):
        await refused_to_prepare(trusting, made, made.request(pin_index=bad), Reason.TPM_NV_INDEX)
    await refused_to_prepare(trusting, made, made.request(pin_index=good[:-1]), Reason.TPM_PARSE)
    await made.prepare()
    await accepted(made)


@pytest.mark.parametrize("size", [0, 15, 65])
async def test_a_nonce_that_no_tpm_made(trusting: LiveServer, size: int):
    made = await begun(trusting)
    await refused_to_prepare(trusting, made, made.request(session_nonce=bytes(size)), Reason.FIELD_INVALID)
    await made.prepare(made.request(session_nonce=os.urandom(16)))
    await accepted(made)


# What is shown: certificates


async def test_tpm5_the_endorsement_certificate_of_another_tpm(trusting: LiveServer):
    made = await begun(trusting)
    bad = made.request(endorsement_certificates=MAKER.tpm().certificates)
    await refused_to_prepare(trusting, made, bad, Reason.TPM_EK_CERTIFICATE)
    await made.prepare()
    await accepted(made)


async def test_a_certificate_of_a_maker_nobody_here_knows_is_refused_and_not_ignored(trusting: LiveServer):
    made = await begun(trusting, STRANGER.tpm())
    await refused_to_prepare(trusting, made, made.request(), Reason.TRUST_CHAIN)
    same_name = Maker.new()  # another root under the maker's name
    await refused_to_prepare(
        trusting, replace_tpm(made, same_name.tpm()), replace_tpm(made, same_name.tpm()).request(), Reason.TRUST_CHAIN
    )
    garbage = made.request(endorsement_certificates=[b"\x30\x03\x02\x01\x00"])
    await refused_to_prepare(trusting, made, garbage, Reason.TPM_EK_CERTIFICATE)
    made.tpm = MAKER.tpm()
    await made.prepare()
    await accepted(made)


def replace_tpm(made: TpmRegistration, tpm: ForgedTpm) -> TpmRegistration:
    return replace(made, tpm=tpm)


async def test_a_maker_that_is_not_registered_unless_the_server_was_told_of_it(
    server_template: Path, tmp_path: Path, trusting: LiveServer
):
    emulator = replace(MAKER, manufacturer="id:00001014")
    made = await begun(trusting, emulator.tpm())
    await refused_to_prepare(trusting, made, made.request(), Reason.TPM_EK_CERTIFICATE)
    folder = tmp_path / "second"
    folder.mkdir()
    settings = MAKER.settings(folder, "id:00001014")
    async with live_server(server_template, folder, tpm=settings) as bench:
        made = await prepared(bench, emulator.tpm())
        done = await made.complete(made.completion())
        assert (done.device.tpm.manufacturer, done.device.tpm.model) == ("id:00001014", "TEST1")


async def test_no_certificate_under_a_policy_that_wants_hardware(trusting: LiveServer):
    session = await session_of(trusting)
    hardware = common_pb2.AssuranceRequirement(
        protection=common_pb2.REQUIRED_PROTECTION_HARDWARE,
        verification=common_pb2.VERIFICATION_HARDWARE_GATED,
        provenance=common_pb2.PROVENANCE_ATTESTED,
    )
    await trusting.change_policy(registration={"required_assurance": hardware})
    made = await begin(trusting, session, MAKER.tpm())
    bare = made.request(endorsement_certificates=[])
    await refused_to_prepare(trusting, made, bare, Reason.TPM_EK_CERTIFICATE_MISSING, PRECONDITION)
    await made.prepare()
    await accepted(made)


async def test_an_anchor_that_policy_does_not_name_is_told_before_a_pin_is_typed(trusting: LiveServer):
    session = await session_of(trusting)
    required = common_pb2.AssuranceRequirement(
        protection=common_pb2.REQUIRED_PROTECTION_HARDWARE,
        verification=common_pb2.VERIFICATION_HARDWARE_GATED,
        provenance=common_pb2.PROVENANCE_ATTESTED,
        anchors=["tpm-ek:Others"],
    )
    await trusting.change_policy(registration={"required_assurance": required})
    made = await begin(trusting, session, MAKER.tpm())
    await refused_to_prepare(trusting, made, made.request(), Reason.ASSURANCE_TOO_LOW, PRECONDITION)
    required.anchors[:] = ["tpm-ek:TestMaker"]
    await trusting.change_policy(registration={"required_assurance": required})
    await made.prepare()
    await accepted(made)


async def test_nobody_vouches_for_the_tpm_then_nothing_proves_hardware(trusting: LiveServer):
    made = await begun(trusting)
    response = await made.prepare(made.request(endorsement_certificates=[]))
    assert response.sealed_certificate == b""
    stolen = await begun(trusting, username="eve")
    await stolen.prepare()
    made.certificate = stolen.certificate  # of another registration: there the authority is an anchor, here it is not
    await refused_to_complete(trusting, made, made.completion(), Reason.TRUST_CHAIN)
    forged = made.self_attested()
    forged.tpm.activation = bytes(32)
    await refused_to_complete(trusting, made, forged, Reason.TPM_ACTIVATION)
    done = await made.complete(made.self_attested())
    assert done.device.assurance == common_pb2.Assurance(
        protection=common_pb2.PROTECTION_SOFTWARE,
        verification=common_pb2.VERIFICATION_SOFTWARE_GATED,
        provenance=common_pb2.PROVENANCE_SELF,
    )
    assert (done.device.tpm.endorsement_anchor, done.device.tpm.manufacturer) == ("", "")


# One transcript


async def test_tpm5_a_second_tpm_key_or_session_in_one_registration(trusting: LiveServer):
    made = await begun(trusting)
    first = made.request()
    granted = await made.prepare(first)
    other_tpm = replace(made, tpm=MAKER.tpm())
    for bad in (
        made.request(),  # another nonceTPM: a second first write
        made.request(session_nonce=first.session_nonce, endorsement_certificates=[]),
        made.request(session_nonce=first.session_nonce, pin_index=b"x"),
        other_tpm.request(session_nonce=first.session_nonce),
    ):
        await refused_to_prepare(trusting, made, bad, Reason.TPM_IDENTITY, PRECONDITION)
    assert await made.prepare(first) == granted
    await accepted(made)


async def test_tpm5_activated_with_one_attestation_key_certified_with_another(trusting: LiveServer):
    made = await prepared(trusting)
    other = replace(made.tpm, ak=ec_key(77))
    await refused_to_complete(trusting, made, made.completion(tpm=other), Reason.ATTESTATION_STATEMENT)
    mixed = made.completion()
    mixed.tpm.pin_index.CopyFrom(made.completion(tpm=other).tpm.pin_index)
    await refused_to_complete(trusting, made, mixed, Reason.SIGNATURE)
    await accepted(made)


async def test_tpm5_the_challenge_of_one_endorsement_key_the_certificate_of_another(trusting: LiveServer):
    """A TPM without a certificate shows that of a good one, for its own endorsement key and for the other."""
    good, own = MAKER.tpm(), SoftwareTpm.of(ec.generate_private_key(ec.SECP256R1()))
    made = await begun(trusting, replace(good, endorsement=own))
    await refused_to_prepare(trusting, made, made.request(), Reason.TPM_EK_CERTIFICATE)
    made.tpm = good
    made.prepared = await made.prepare()
    with pytest.raises(ValueError, match="TPM_RC_INTEGRITY"):
        replace(good, endorsement=own).activate(made.prepared)
    made.secret = bytes(32)
    await refused_to_complete(trusting, made, made.completion(), Reason.TPM_ACTIVATION)
    made.secret = good.activate(made.prepared)
    await accepted(made)


async def test_an_attestation_key_of_another_hierarchy(trusting: LiveServer):
    made = await prepared(trusting)
    owner = replace(made.tpm, hierarchy=struct.pack(">I", 0x40000001))
    await refused_to_complete(trusting, made, made.completion(tpm=owner), Reason.TPM_AK_ATTRIBUTES)
    await accepted(made)


async def test_evidence_of_another_registration(trusting: LiveServer):
    session = await session_of(trusting)
    tpm = MAKER.tpm()
    first, second = await begin(trusting, session, tpm), await begin(trusting, session, tpm)
    await first.prepare()
    await second.prepare()
    await refused_to_complete(trusting, second, first.completion(), Reason.CHALLENGE)
    for part, reason in (("activation", Reason.TPM_ACTIVATION), ("pin_index", Reason.TPM_NONCE)):
        mixed = second.completion()
        source = getattr(first.completion().tpm, part)
        if part == "activation":
            mixed.tpm.activation = source
        else:
            mixed.tpm.pin_index.CopyFrom(source)
        await refused_to_complete(trusting, second, mixed, reason)
    unanswered = second.completion(statement=second.begun.statement)  # the first statement, without the name
    await refused_to_complete(trusting, second, unanswered, Reason.CHALLENGE)
    await accepted(second)


async def test_the_certificate_of_another_registration_of_the_same_tpm(trusting: LiveServer):
    session = await session_of(trusting)
    tpm = MAKER.tpm()
    first, second = await begin(trusting, session, tpm), await begin(trusting, session, tpm)
    await first.prepare()
    await second.prepare()
    second.certificate, kept = first.certificate, second.certificate
    await refused_to_complete(trusting, second, second.completion(), Reason.TPM_ACTIVATION)
    second.certificate = kept
    await accepted(second)


# The key


KEY_BENT: dict[str, tuple[dict[str, Any], Reason]] = {
    "may leave the TPM": ({"attributes": GATED & ~0x02}, Reason.TPM_KEY_ATTRIBUTES),
    "may get another parent": ({"attributes": GATED & ~0x10}, Reason.TPM_KEY_ATTRIBUTES),
    "was made outside": ({"attributes": GATED & ~0x20}, Reason.TPM_KEY_ATTRIBUTES),
    "opens by its own value too": ({"attributes": GATED | 0x40}, Reason.TPM_KEY_ATTRIBUTES),
    "is administered by policy": ({"attributes": GATED | 0x80}, Reason.TPM_KEY_ATTRIBUTES),
    "locks the whole TPM": ({"attributes": GATED & ~0x400}, Reason.TPM_KEY_ATTRIBUTES),
    "decrypts too": ({"attributes": GATED | 0x20000}, Reason.TPM_KEY_ATTRIBUTES),
    "is restricted": ({"attributes": GATED | 0x10000}, Reason.TPM_KEY_ATTRIBUTES),
    "has no policy": ({"policy": b""}, Reason.TPM_KEY_ATTRIBUTES),
    "has the policy of everybody": ({"policy": bytes(32)}, Reason.TPM_KEY_ATTRIBUTES),
    "has another policy": ({"policy": hashlib.sha256(b"weak").digest()}, Reason.TPM_KEY_POLICY),
}


@pytest.mark.parametrize("bent", KEY_BENT)
async def test_a_key_that_is_not_behind_the_gate_TPM4(trusting: LiveServer, bent: str):
    changes, reason = KEY_BENT[bent]
    made = await prepared(trusting)
    await refused_to_complete(trusting, made, made.completion(area=made.key_area(**changes)), reason)
    await accepted(made)


async def test_a_key_behind_the_index_before_its_first_write_or_of_another_device(trusting: LiveServer):
    session = await session_of(trusting)
    made, other = await begin(trusting, session, MAKER.tpm()), await begin(trusting, session, MAKER.tpm())
    await made.prepare()
    key = made.begun.tpm.ceremony_key
    for index in (pin_index(key, made.device_id), other.written, pin_index(key, made.device_id, handle=HANDLE + 1)):
        area = made.key_area(policy=key_policy(index))
        await refused_to_complete(trusting, made, made.completion(area=area), Reason.TPM_KEY_POLICY)
    await accepted(made)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (struct.pack(">II", 0, 4), Reason.TPM_NV_INDEX),
        (struct.pack(">II", 0, 2**32 - 1), Reason.TPM_NV_INDEX),
        (struct.pack(">II", 0, 2), Reason.TPM_NV_INDEX),
        (struct.pack(">II", 3, 3), Reason.TPM_NV_INDEX),
        (struct.pack(">I", 0), Reason.TPM_NV_INDEX),
    ],
)
async def test_a_pin_index_with_another_limit_or_blocked(trusting: LiveServer, contents: bytes, reason: Reason):
    made = await prepared(trusting)
    made.contents = contents
    await refused_to_complete(trusting, made, made.completion(), reason)
    made.contents = struct.pack(">II", 1, 3)  # one wrong PIN already: two are left
    await accepted(made)


async def test_a_pin_index_that_was_certified_unwritten_or_is_another_one(trusting: LiveServer):
    made = await prepared(trusting)
    nonce, contents = challenge(Purpose.PIN_INDEX, made.statement), made.contents
    for index in (pin_index(made.begun.tpm.ceremony_key, made.device_id), made.written[:-2] + b"\0\x09"):
        bad = made.completion()
        bad.tpm.pin_index.CopyFrom(made.tpm.nv_certify(index, contents, nonce))
        await refused_to_complete(trusting, made, bad, Reason.TPM_NAME)
    lying = made.completion()
    lying.tpm.pin_index.CopyFrom(made.tpm.nv_certify(made.written, contents, nonce, magic=b"\xffTCF"))
    await refused_to_complete(trusting, made, lying, Reason.TPM_MAGIC)
    await accepted(made)


async def test_the_limit_is_what_policy_said_when_the_registration_began(trusting: LiveServer):
    session = await session_of(trusting)
    await trusting.change_policy(registration={"pin_tries": 5})
    made = await begin(trusting, session, MAKER.tpm())
    assert made.begun.tpm.pin_limit == 5
    await trusting.change_policy(registration={"pin_tries": 6})
    await made.prepare()
    await refused_to_complete(trusting, made, made.completion(), Reason.TPM_NV_INDEX)
    made.contents = struct.pack(">II", 0, 5)
    await accepted(made)


async def test_a_channel_key_that_is_another_one_or_may_leave_the_tpm(trusting: LiveServer):
    made = await prepared(trusting)
    nonce = challenge(Purpose.CHANNEL_KEY, made.statement)
    other = public_area(ec_key(5), attributes=CHANNEL)
    bad = made.completion(with_channel=True)
    bad.tpm.channel_key = other
    await refused_to_complete(trusting, made, bad, Reason.TPM_NAME)
    bad.tpm.channel_key_certification.CopyFrom(made.tpm.certify(other, nonce))
    await refused_to_complete(trusting, made, bad, Reason.CHANNEL_KEY)
    loose = public_area(made.channel_key, attributes=CHANNEL & ~0x02)
    bad.tpm.channel_key = loose
    bad.tpm.channel_key_certification.CopyFrom(made.tpm.certify(loose, nonce))
    await refused_to_complete(trusting, made, bad, Reason.TPM_KEY_ATTRIBUTES)
    good = made.completion(with_channel=True)
    await accepted(made, good)
    assert (await made.complete(good)).device.tpm.channel_key_in_tpm


# Software in a TPM's clothes


async def test_a_software_key_dressed_as_one_of_a_tpm(trusting: LiveServer):
    """Without a transcript there is no anchor for the attestation authority, whatever certificate is shown."""
    session = await session_of(trusting)
    real = await begin(trusting, session, MAKER.tpm())
    await real.prepare()
    plain = await registering.begin(trusting, session)
    dressed = pb.CompleteRegistrationRequest()
    dressed.CopyFrom(plain.answer)
    client_data, attestation = tpm_credential(
        plain.begun.statement,
        real.tpm,
        rp_id=plain.begun.rp_id,
        key=real.key,
        area=real.key_area(),
        certificate=real.certificate,
    )
    dressed.client_data_json, dressed.attestation_object = client_data, attestation
    with refused(Reason.TRUST_CHAIN, status=BAD_REQUEST):
        await registering.complete(trusting, plain, dressed)
    dressed.CopyFrom(plain.answer)
    dressed.tpm.CopyFrom(real.completion().tpm)
    with refused(Reason.TPM_NOT_PREPARED, status=PRECONDITION):
        await registering.complete(trusting, plain, dressed)
    assert await is_absent(trusting, plain.device_id)
    done = await registering.complete(trusting, plain)
    assert done.device.assurance.protection == common_pb2.PROTECTION_SOFTWARE
    assert not done.device.HasField("tpm")
    await accepted(real)


async def test_a_self_attested_key_in_the_registration_of_a_tpm(trusting: LiveServer):
    made = await prepared(trusting)
    await refused_to_complete(trusting, made, made.self_attested(), Reason.TPM_ACTIVATION)
    await accepted(made)


async def test_a_registration_begun_for_a_tpm_that_was_never_shown(trusting: LiveServer):
    made = await begun(trusting)
    bare = made.self_attested(statement=made.begun.statement)
    await refused_to_complete(trusting, made, bare, Reason.TPM_NOT_PREPARED, PRECONDITION)
    bare.ClearField("tpm")
    await refused_to_complete(trusting, made, bare, Reason.TPM_NOT_PREPARED, PRECONDITION)
    await made.prepare()
    silent = made.completion()
    silent.ClearField("tpm")
    await refused_to_complete(trusting, made, silent, Reason.TPM_ACTIVATION)
    await accepted(made)


async def test_a_registration_without_a_tpm_cannot_be_prepared(trusting: LiveServer):
    session = await session_of(trusting)
    plain, other = await registering.begin(trusting, session), await begin(trusting, session, MAKER.tpm())
    made = replace(other, begun=plain.begun)
    request = other.request()
    with refused(Reason.TPM_NOT_PREPARED, status=PRECONDITION):
        await made.prepare(request)
    with refused(Reason.REGISTRATION_UNKNOWN, status=grpc.StatusCode.UNAUTHENTICATED):
        unknown = pb.BeginRegistrationResponse(registration_token="kve_" + "A" * 43)
        await replace(other, begun=unknown).prepare(request)
    await registering.complete(trusting, plain)
    await other.prepare()
    await accepted(other)


async def test_a_tpm_that_verifies_by_nothing_known(trusting: LiveServer):
    session = await session_of(trusting)
    for verifies in ((), (-36,), (-37, -8)):
        with refused(Reason.UNSUPPORTED, status=BAD_REQUEST):
            await begin(trusting, session, MAKER.tpm(), verifies=verifies)
    for verifies in ((-36, -35), (-257,)):
        made = await begin(trusting, session, MAKER.tpm(), verifies=verifies)
        await made.prepare()
        await accepted(made)


async def test_a_firmware_that_is_known_to_give_keys_away(trusting: LiveServer):
    made = await prepared(trusting)
    flawed = replace(made.tpm, firmware=0x0001_0003_0001_0000)  # NPCT65x 1.3.1.0: CVE-2023-1017
    await refused_to_complete(trusting, made, made.completion(tpm=flawed), Reason.AUTHENTICATOR_STATUS)
    with refused(Reason.AUTHENTICATOR_STATUS) as refusal:
        await made.complete(made.completion(tpm=flawed))
    assert "CVE-2023-1017" in refusal.error.message
    await accepted(made)


async def test_a_preparation_that_comes_too_late(trusting: LiveServer):
    session = await session_of(trusting)
    made, late = await begin(trusting, session, MAKER.tpm()), await begin(trusting, session, MAKER.tpm())
    first = made.request()
    granted = await made.prepare(first)
    trusting.clock.advance(601)
    await refused_to_prepare(trusting, late, late.request(), Reason.REGISTRATION_EXPIRED, PRECONDITION)
    assert await made.prepare(first) == granted
    await refused_to_complete(trusting, made, made.completion(), Reason.REGISTRATION_EXPIRED, PRECONDITION)
    _, device = await register(trusting, session, MAKER.tpm())
    assert not await is_absent(trusting, device.device_id)
