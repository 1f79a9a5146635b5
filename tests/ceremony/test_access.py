"""Nobody calls anything without the right credential: every method, enumerated by reflection, on both listeners."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2

from keyvouch.errors import KeyvouchError, Reason, UnauthenticatedError
from keyvouch.proofs import sign_proof, spki_of
from keyvouch.statement import Purpose, proof_statement
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import enrolment_pb2_grpc, prompts_pb2, prompts_pb2_grpc, sessions_pb2, sign_in_pb2
from keyvouch_bench.device import BenchDevice, PromptStream
from keyvouch_bench.server_process import free_ports
from keyvouch_client import Connection
from keyvouch_client.errors import answer
from keyvouch_server import bootstrap
from keyvouch_server.device_authority import DeviceAuthority, found_authority
from keyvouch_server.domain.model import Role
from keyvouch_server.listener_certificates import RENEW_SECONDS, OwnCertificate
from keyvouch_server.rpc.access import ACCESS
from keyvouch_server.stores.memory import MemoryStore
from support.live_server import LIMIT, Clock, LiveServer, bearer, configuration, live_server, make_template, refused
from support.reflected import REFLECTION, Method, methods_of
from support.registering import begin as begin_registration
from support.registering import complete

OPEN_PUBLIC = {
    "/keyvouch.v1.SignInService/BeginSignIn",
    "/keyvouch.v1.SignInService/SignInSession",
    "/keyvouch.v1.SignInService/SignInWithAccessPass",
    "/keyvouch.v1.SessionService/RefreshSession",
    "/keyvouch.v1.SessionService/GetJwks",
    "/grpc.health.v1.Health/Check",
}
"""What anybody may call on the public listener: the ways to a session, public keys, health."""

OPEN_DEVICE = {"/grpc.health.v1.Health/Check"}

MISSING = {Reason.CREDENTIALS_MISSING, Reason.CERTIFICATE_REQUIRED}
UNREADY = {
    Reason.MISSING_FIELD,
    Reason.TPM_NOT_PREPARED,
    Reason.REGISTRATION_UNKNOWN,
    Reason.FIELD_INVALID,
    Reason.SIGN_IN_UNKNOWN,
    Reason.CREDENTIALS_INVALID,
}
"""What a device is told that said no hello, has no TPM, has begun nothing, names no app, has no session."""
JUNK = [
    (),
    bearer("x"),
    bearer("a.b.c"),
    (("authorization", "Basic YWRtaW46YWRtaW4="),),
    (("authorization", "Bearer"),),
    (("authorization", "Bearer "),),
    (("authorization", "SignIn nonsense"),),
    (("authorization", "Registration nonsense"),),
    (("authorization", "Bearer x"), ("authorization", "Bearer y")),
]


async def reflected(live: LiveServer) -> tuple[Mapping[str, Method], Mapping[str, Method], grpc.aio.Channel]:
    """The methods of both listeners, and a device's channel to its own."""
    session, device = await live.admin(), live.people["admin"].device
    devices = await live.device_channel(device)
    public = await methods_of(live.connection.channel, REFLECTION[0], session)
    assert public == await methods_of(live.connection.channel, REFLECTION[1], session)
    private = await methods_of(devices, REFLECTION[0], session)
    assert private == await methods_of(devices, REFLECTION[1], session)
    return public, private, devices


async def refusal_of(call: Awaitable[object]) -> KeyvouchError | None:
    """What a call was refused with, None when it was answered."""
    try:
        await call
    except KeyvouchError as error:
        return error
    return None


async def test_the_table_of_access_names_the_reflected_methods_and_no_other(live: LiveServer):
    public, private, _ = await reflected(live)
    assert public.keys() | private.keys() == ACCESS.keys()
    assert {path for path in public.keys() & private.keys() if "keyvouch" in path} == set()
    assert len(public) > 25
    assert len(private) > 5


async def test_every_method_without_credentials_is_refused_except_six(live: LiveServer):
    public, _, _ = await reflected(live)
    assert len(OPEN_PUBLIC) <= 6
    answered = set()
    for path, method in public.items():
        for credential in JUNK:
            refusal = await refusal_of(method.call(live.connection.channel, credential))
            if path in OPEN_PUBLIC:
                answered.add(path)
                continue
            assert isinstance(refusal, UnauthenticatedError), path
            assert refusal.__cause__.code() is grpc.StatusCode.UNAUTHENTICATED
        if path in OPEN_PUBLIC:
            assert getattr(await refusal_of(method.call(live.connection.channel)), "reason", None) not in MISSING
    assert answered == OPEN_PUBLIC


async def test_with_a_certificate_alone_a_device_reaches_its_own_methods_and_health(live: LiveServer):
    _, private, devices = await reflected(live)
    reached = set()
    for path, method in private.items():
        if path.endswith("Unregister"):
            continue
        refusal = await refusal_of(method.call(devices))
        if refusal is not None and refusal.reason in MISSING:
            continue
        assert refusal is None or refusal.reason in UNREADY
        reached.add(path)
    names = ("GetDevice", "RenewCertificate", "StreamPrompts", "BeginKeyReplacement", "CompleteKeyReplacement")
    own = {f"/keyvouch.v1.SameDeviceService/{name}" for name in ("BeginSignIn", "CompleteSignIn", "RefreshSession")}
    assert reached == {f"/keyvouch.v1.PromptService/{name}" for name in names} | own | OPEN_DEVICE


async def test_methods_live_on_their_own_listener_whoever_asks_first(live: LiveServer):
    public, private, devices = await reflected(live)
    session = await live.admin()
    for path in public.keys() - private.keys():
        with refused(Reason.UNKNOWN_METHOD, status=grpc.StatusCode.UNIMPLEMENTED):
            await public[path].call(devices, session)
    for path in private.keys() - public.keys():
        with refused(Reason.UNKNOWN_METHOD, status=grpc.StatusCode.UNIMPLEMENTED):
            await private[path].call(live.connection.channel, session)


@pytest.mark.parametrize(
    "path", ["/keyvouch.v1.SignInService/Nothing", "/keyvouch.v1.Nothing/BeginSignIn", "/", "/x", "/../x/y"]
)
async def test_unknown_methods_are_unknown_with_and_without_a_session(live: LiveServer, path: str):
    method = Method(path, client_streams=False, server_streams=False)
    for metadata in ((), await live.admin()):
        with refused(Reason.UNKNOWN_METHOD, status=grpc.StatusCode.UNIMPLEMENTED):
            await method.call(live.connection.channel, metadata)


async def test_reflection_needs_a_session(live: LiveServer):
    for service in REFLECTION:
        with refused(Reason.CREDENTIALS_MISSING, status=grpc.StatusCode.UNAUTHENTICATED):
            await methods_of(live.connection.channel, service, ())


async def test_health_is_open_and_says_that_every_service_serves(live: LiveServer):
    devices = await live.device_channel(await live.enrol("admin", live.administrator_pass))
    check = Method("/grpc.health.v1.Health/Check", client_streams=False, server_streams=False)
    for channel, services in (
        (live.connection.channel, ("", "keyvouch.v1.SignInService", "keyvouch.v1.AdministrationService")),
        (devices, ("", "keyvouch.v1.PromptService", "keyvouch.v1.SameDeviceService")),
    ):
        for service in services:
            request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
            told = health_pb2.HealthCheckResponse.FromString(await check.call(channel, (), request))
            assert told.status == health_pb2.HealthCheckResponse.SERVING


# the device listener's handshake


async def device_hello(live: LiveServer, credentials: grpc.ChannelCredentials) -> object:
    async with grpc.aio.secure_channel(f"127.0.0.1:{live.device_port}", credentials) as channel:
        stub = prompts_pb2_grpc.PromptServiceStub(channel)
        return await answer(stub.GetDevice(prompts_pb2.GetDeviceRequest(), timeout=3))


def pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    none = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, none)


async def test_the_device_listener_refuses_the_handshake_without_a_certificate_of_its_authority(live: LiveServer):
    device = await live.enrol("admin", live.administrator_pass)
    root = (live.data / "ca.pem").read_bytes()
    genuine = grpc.ssl_channel_credentials(root, key_pem(device.channel_key), pem(device.certificate_chain[0]))
    assert (await device_hello(live, genuine)).username == "admin"
    with refused(Reason.SERVER_UNREACHABLE, Reason.DEADLINE):
        await device_hello(live, grpc.ssl_channel_credentials(root))
    other = DeviceAuthority(*found_authority(live.clock.now()), live.clock)
    forged = other.device_chain(device.device_id, "ten_x", device.channel_key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))  # fmt: skip
    with refused(Reason.SERVER_UNREACHABLE, Reason.DEADLINE):
        await device_hello(
            live, grpc.ssl_channel_credentials(root, key_pem(device.channel_key), b"".join(map(pem, forged)))
        )


async def test_the_listeners_own_certificate_is_no_device(live: LiveServer):
    key, chain = live.app.authority.listener_certificate(("localhost",))
    root = (live.data / "ca.pem").read_bytes()
    with refused(Reason.SERVER_UNREACHABLE, Reason.DEADLINE, Reason.CERTIFICATE_REQUIRED):
        await device_hello(live, grpc.ssl_channel_credentials(root, key, chain))


async def test_a_certificate_with_another_channel_key_is_not_the_device(live: LiveServer):
    """The authority's own signature is not enough: the key must be the registered one, in the registered tenant."""
    device = await live.enrol("admin", live.administrator_pass)
    root, key = (live.data / "ca.pem").read_bytes(), ec.generate_private_key(ec.SECP256R1())
    row = await live.app.devices.view(device.device_id)
    spki = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    own = device.channel_key.public_key().public_bytes(*spki)
    for tenant, channel_key, public in (
        (row.tenant.id, key, key.public_key().public_bytes(*spki)),
        ("ten_other", device.channel_key, own),
    ):
        chain = live.app.authority.device_chain(device.device_id, tenant, public)
        with refused(Reason.DEVICE_REMOVED, status=grpc.StatusCode.UNAUTHENTICATED):
            await device_hello(
                live, grpc.ssl_channel_credentials(root, key_pem(channel_key), b"".join(map(pem, chain)))
            )
    good = live.app.authority.device_chain(device.device_id, row.tenant.id, own)
    credentials = grpc.ssl_channel_credentials(root, key_pem(device.channel_key), b"".join(map(pem, good)))
    assert (await device_hello(live, credentials)).device.device_id == device.device_id


async def test_a_device_gets_its_own_prompts_and_no_others(live: LiveServer):
    ada = await live.person("ada")
    bob = await live.person("bob")
    opened = await live.begin("ada")
    async with PromptStream(bob.device) as stream:
        prompt = await ada.stream.prompt()
        assert (await ada.stream.send(ada.device.approve(prompt, opened.number))).accepted
        with pytest.raises(TimeoutError):
            await stream.prompt(0.2)


async def test_a_renewed_certificate_serves_and_so_does_the_old_one(live: LiveServer):
    ada = await live.person("ada")
    stub = await live.device_stub(ada.device)
    live.clock.advance(60)
    renewed = await answer(stub.RenewCertificate(prompts_pb2.RenewCertificateRequest(), timeout=LIMIT))
    old, ada.device.certificate_chain = ada.device.certificate_chain, tuple(renewed.certificate_chain)
    assert old[0] != renewed.certificate_chain[0]
    for chain in (old, tuple(renewed.certificate_chain)):
        ada.device.certificate_chain = chain
        async with PromptStream(ada.device) as stream:
            assert stream.welcome is not None


# wrong kinds of credentials


async def test_tokens_of_one_kind_are_nothing_elsewhere(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.approved(ada)
    session = await live.signed_in(ada)
    token = session.tokens.access_token
    for wrong in (opened.begun.sign_in_token, session.tokens.refresh_token, session.session.session_id):
        with refused(Reason.TOKEN_MALFORMED, status=grpc.StatusCode.UNAUTHENTICATED):
            await live.introspect(bearer(wrong))
    fresh = await live.approved(ada)
    request = sign_in_pb2.RedeemSignInRequest(sign_in_id=fresh.begun.sign_in_id, proof=fresh.proof())
    for metadata, reason in (
        (bearer(fresh.begun.sign_in_token), Reason.CREDENTIALS_MISSING),
        ((("authorization", f"SignIn {token}"),), Reason.SIGN_IN_UNKNOWN),
        (opened.metadata, Reason.SIGN_IN_UNKNOWN),
    ):
        with refused(reason, status=grpc.StatusCode.UNAUTHENTICATED):
            await answer(live.connection.sign_ins.RedeemSignIn(request, metadata=metadata, timeout=LIMIT))
    for scheme in ("Registration", "registration"):
        metadata = ((("authorization"), f"{scheme} {fresh.begun.sign_in_token}"),)
        with refused(Reason.REGISTRATION_UNKNOWN, status=grpc.StatusCode.UNAUTHENTICATED):
            complete = Method("/keyvouch.v1.EnrolmentService/CompleteRegistration", False, False)
            await complete.call(live.connection.channel, metadata)
    assert (await fresh.redeem()).session.username == "ada"


async def test_access_tokens_end_with_their_time_and_their_session(live: LiveServer):
    ada = await live.person("ada")
    signed_in = await live.signed_in(ada)
    other = await live.signed_in(ada)
    live.clock.advance(599)
    await signed_in.introspect()
    live.clock.advance(1)
    with refused(Reason.TOKEN_EXPIRED, status=grpc.StatusCode.UNAUTHENTICATED):
        await signed_in.introspect()
    tokens = await signed_in.refresh()
    fresh = bearer(tokens.access_token)
    await live.introspect(fresh)
    request = sessions_pb2.RevokeSessionRequest()
    await answer(live.connection.sessions.RevokeSession(request, metadata=fresh, timeout=LIMIT))
    with refused(Reason.SESSION_REVOKED, status=grpc.StatusCode.UNAUTHENTICATED):
        await live.introspect(fresh)
    assert (await live.introspect(bearer((await other.refresh()).access_token))).session.revoked is False


async def test_a_changed_access_token_is_refused(live: LiveServer):
    ada = await live.person("ada")
    token = (await live.signed_in(ada)).tokens.access_token
    head, claims, signature = token.split(".")
    changed = [
        token[:-1],
        token[1:],
        token + "A",
        f"{head}.{claims}.",
        f"{head}.{claims}",
        f"{head}.{claims}.{signature[::-1]}",
        f"{head}.{claims[:-2]}.{signature}",
        f"{claims}.{head}.{signature}",
        token.swapcase(),
    ]
    for wrong in changed:
        with refused(Reason.TOKEN_MALFORMED, Reason.TOKEN_INVALID, status=grpc.StatusCode.UNAUTHENTICATED):
            await live.introspect(bearer(wrong))
    await live.introspect(bearer(token))


async def test_a_token_of_another_server_is_refused(live: LiveServer, tmp_path_factory: pytest.TempPathFactory):
    other = tmp_path_factory.mktemp("other")
    template = await asyncio.to_thread(make_template, other / "template")
    async with live_server(template, other) as elsewhere:
        theirs = await elsewhere.admin()
        with refused(Reason.TOKEN_INVALID, status=grpc.StatusCode.UNAUTHENTICATED):
            await live.introspect(theirs)
        await elsewhere.introspect(theirs)


async def test_a_session_of_a_pass_does_not_administer(live: LiveServer):
    session = await live.pass_session("admin", live.administrator_pass)
    with refused(Reason.SESSION_PURPOSE, status=grpc.StatusCode.PERMISSION_DENIED):
        await live.administer("ListUsers", admin_pb.ListUsersRequest(), session)
    device = await BenchDevice.enrol(live.connection, metadata=session)
    approved = await live.signed_in(await live.connect("admin", device))
    await live.administer("ListUsers", admin_pb.ListUsersRequest(), approved.metadata)


# limits


async def test_messages_over_64_kib_are_refused_and_the_server_goes_on(live: LiveServer):
    begin = Method("/keyvouch.v1.SignInService/BeginSignIn", client_streams=False, server_streams=False)
    for size in (64 * 1024 + 1, 1 << 20):
        with refused(Reason.THROTTLED, status=grpc.StatusCode.RESOURCE_EXHAUSTED):
            await begin.call(live.connection.channel, (), b"\0" * size)
    with refused(Reason.ENCODING, status=grpc.StatusCode.INVALID_ARGUMENT):
        await begin.call(live.connection.channel, (), b"\0" * (64 * 1024))
    assert (await live.begin("ada")).number


async def test_oversized_metadata_is_refused_and_the_server_goes_on(live: LiveServer):
    begin = Method("/keyvouch.v1.SessionService/GetJwks", client_streams=False, server_streams=False)
    for metadata in ((("x-filler", "x" * 17_000),), tuple((f"x-{i}", "y" * 100) for i in range(200))):
        with pytest.raises(KeyvouchError):
            await begin.call(live.connection.channel, metadata)
    assert await begin.call(live.connection.channel, (("x-filler", "x" * 4000),))


async def test_the_longest_refusal_fits_into_the_metadata_of_any_client(live: LiveServer):
    await live.change_policy(registration={"devices_per_user": 100})
    await live.create_user("ada")
    session = await live.pass_session("ada", await live.issue_pass("ada"))
    for number in range(100):
        await complete(live, await begin_registration(live, session, name=f"{number:03}" + "\u00e4" * 61))
    credentials = grpc.ssl_channel_credentials((live.data / "ca.pem").read_bytes())
    begun = await begin_registration(live, session, name="one too many")
    async with grpc.aio.secure_channel(f"127.0.0.1:{live.public_port}", credentials) as channel:
        stub = enrolment_pb2_grpc.EnrolmentServiceStub(channel)
        with refused(Reason.DEVICE_LIMIT, status=grpc.StatusCode.FAILED_PRECONDITION) as refusal:
            await answer(stub.CompleteRegistration(begun.answer, metadata=begun.metadata, timeout=LIMIT))
    assert refusal.error.metadata["limit"] == "100"
    assert refusal.error.metadata["devices"].count("dev_") == 10


async def test_the_public_listener_serves_a_certificate_of_its_own_or_does_not_start(
    server_template: Path, tmp_path: Path
):
    data = Path(shutil.copytree(server_template, tmp_path / "server"))
    key, chain = DeviceAuthority(*found_authority(Clock().now()), Clock()).listener_certificate(("localhost",))
    other_key, _ = DeviceAuthority(*found_authority(Clock().now()), Clock()).listener_certificate(("localhost",))
    own = replace(configuration(*free_ports(1)), certificate=str(tmp_path / "c.pem"), key=str(tmp_path / "k.pem"))

    async def served(key_text: bytes, chain_text: bytes) -> None:
        (tmp_path / "k.pem").write_bytes(key_text)
        (tmp_path / "c.pem").write_bytes(chain_text)
        app = bootstrap.assemble(data, own, MemoryStore(), clock=Clock())
        async with bootstrap.running(app, grace=0) as listening:
            (tmp_path / "root.pem").write_bytes(chain_text)
            async with Connection(f"localhost:{listening.public_port}", ca_file=tmp_path / "root.pem") as connection:
                assert (await connection.identity()).server_id == app.authority.server_id

    for wrong in ((b"garbage", chain), (key, b"garbage"), (b"", b""), (other_key, chain)):
        with pytest.raises(KeyvouchError) as caught:
            await served(*wrong)
        assert caught.value.reason is Reason.CONFIGURATION
        assert "certificate" in caught.value.message
    await served(key, chain)


async def test_the_store_in_memory_serves_too(server_template: Path, tmp_path: Path):
    async with live_server(server_template, tmp_path, memory=True) as live:
        signed_in = await live.signed_in(await live.person("ada"))
        await signed_in.refresh()
        gone = await live.administer("DeleteUser", admin_pb.DeleteUserRequest(username="ada"))
        assert gone.removed_devices == 1


async def test_bytes_that_are_no_message_get_a_coded_refusal(live: LiveServer):
    public, private, devices = await reflected(live)
    session = await live.admin()
    sign_in, registration = (("authorization", "SignIn x"),), (("authorization", "Registration x"),)
    for channel, methods in ((live.connection.channel, public), (devices, private)):
        for path, method in methods.items():
            for metadata in ((), session, sign_in, registration):
                nonce_first = path.endswith("SignInSession")
                with pytest.raises(KeyvouchError) as caught:
                    await method.call(channel, metadata, b"\xff\xff\xff\xff", answers=2 if nonce_first else 1)
                code = caught.value.__cause__.code()
                assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED), (path, code)
                assert "google" not in str(caught.value.__cause__)


async def test_a_stream_of_sign_ins_that_breaks_the_order_gets_a_coded_refusal(live: LiveServer):
    call = live.connection.sign_ins.SignInSession(timeout=LIMIT)
    first = await answer(call.read())
    key = ec.generate_private_key(ec.SECP256R1())
    server_id = live.app.world.facts.server_id
    proof = sign_proof(key, Purpose.SIGN_IN_SESSION, proof_statement(server_id, first.nonce.nonce))
    opening = sign_in_pb2.SignInSessionOpen(proof_public_key=spki_of(key.public_key()), proof=proof)
    for _ in range(2):
        await call.write(sign_in_pb2.SignInSessionRequest(open=opening))
    with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT):
        await answer(call.read())
        await answer(call)


async def test_roles_are_read_from_the_store_and_not_from_the_token(live: LiveServer):
    reader = await live.person("reader", Role.GLOBAL_READER)
    session = await live.signed_in(reader)
    assert (await session.introspect()).role == "global_reader"
    await live.administer("DeleteUser", admin_pb.DeleteUserRequest(username="reader"))
    with refused(Reason.SESSION_REVOKED, status=grpc.StatusCode.UNAUTHENTICATED):
        await live.administer("ListUsers", admin_pb.ListUsersRequest(), session.metadata)


async def test_the_public_certificate_is_read_again_when_its_files_change(server_template: Path, tmp_path: Path):
    data = Path(shutil.copytree(server_template, tmp_path / "server"))
    paths = {"certificate": tmp_path / "c.pem", "key": tmp_path / "k.pem"}
    own = replace(configuration(*free_ports(1)), **{name: str(path) for name, path in paths.items()})

    def new_files(at: int) -> bytes:
        authority = DeviceAuthority(*found_authority(Clock().now()), Clock())
        key, chain = authority.listener_certificate(("localhost",))
        for path, content in ((paths["key"], key), (paths["certificate"], chain)):
            path.write_bytes(content)
            os.utime(path, ns=(at, at))
        return authority.root_pem

    async def reaches(port: int, root: bytes) -> bool:
        (tmp_path / "root.pem").write_bytes(root)
        async with Connection(f"localhost:{port}", ca_file=tmp_path / "root.pem", deadline=3) as connection:
            try:
                await connection.identity()
            except KeyvouchError:
                return False
            return True

    first = new_files(1_000)
    app = bootstrap.assemble(data, own, MemoryStore(), clock=Clock())
    async with bootstrap.running(app, grace=0) as listening:
        assert await reaches(listening.public_port, first)
        second = new_files(2_000)
        assert await reaches(listening.public_port, second)
        assert not await reaches(listening.public_port, first)
        paths["key"].write_bytes(b"garbage")
        assert await reaches(listening.public_port, second)  # the old one stays until the new one can be used


def test_the_servers_own_certificate_is_renewed_in_time():
    clock = Clock()
    source = OwnCertificate(DeviceAuthority(*found_authority(clock.now()), clock), ("localhost",), clock)
    first = source.load()
    clock.advance(RENEW_SECONDS - 1)
    assert source.renewed() is None
    clock.advance(1)
    second = source.renewed()
    assert second is not None
    assert second != first
    assert source.renewed() is None
