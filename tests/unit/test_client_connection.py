"""Connections and stored sessions: where a client is willing to go, and what it leaves on the disk."""

from __future__ import annotations

import datetime
import ipaddress
import stat
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from keyvouch.errors import (
    KeyvouchError,
    MalformedError,
    Reason,
    RefusedError,
    UnauthenticatedError,
    UnavailableError,
    UsageError,
)
from keyvouch.ids import ServerId
from keyvouch.v1 import common_pb2, sessions_pb2
from keyvouch_client import Connection, Session, SignIn
from keyvouch_client.session_file import SessionFile, StoredState, Target, state_directory
from support.fake_sign_in_server import FakeServer
from support.fake_world import FakeWorld


def self_signed(address: str) -> tuple[bytes, bytes]:
    """A certificate for one IP address and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fake")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem), private


async def test_tls_with_the_right_ca_and_call_credentials(tmp_path: Path) -> None:
    certificate, key = self_signed("127.0.0.1")
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(certificate)
    world = FakeWorld()
    server = FakeServer(world, credentials=grpc.ssl_server_credentials([(key, certificate)]))
    async with server, Connection(server.address, ca_file=ca_file) as connection:
        async with SignIn(connection, tenant="t", username="ada", app_id="shop", app_name="Shop") as sign_in:
            await world.decide((await world.row()).sign_in_id)
            session = await sign_in.session()
        told = await connection.sessions.IntrospectSession(
            sessions_pb2.IntrospectSessionRequest(), credentials=session.call_credentials()
        )
    assert told.session.username == "ada"


@pytest.mark.parametrize("wrong", ["another ca", "another name", "public roots"])
async def test_tls_with_anything_else_is_refused_and_explained(tmp_path: Path, wrong: str) -> None:
    certificate, key = self_signed("192.0.2.1" if wrong == "another name" else "127.0.0.1")
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(self_signed("127.0.0.1")[0] if wrong == "another ca" else certificate)
    trusted = None if wrong == "public roots" else ca_file
    server = FakeServer(FakeWorld(), credentials=grpc.ssl_server_credentials([(key, certificate)]))
    async with server, Connection(server.address, ca_file=trusted) as connection:
        with pytest.raises(UnavailableError) as caught:
            await connection.identity()
    assert caught.value.reason is Reason.SERVER_UNREACHABLE
    assert "certificate" in caught.value.message


@pytest.mark.parametrize(
    "server",
    ["", "localhost", "localhost:", ":443", "localhost:0", "localhost:65536", "localhost:x", "dns:///a:1", "unix:/a",
     "a b:1",     "http://localhost:1", "localhost:1/", "localhost:1\n", "ipv4:127.0.0.1:1"],
)  # fmt: skip
def test_an_address_that_is_none_is_a_usage_error(server: str) -> None:
    with pytest.raises(UsageError):
        Connection(server, insecure_loopback=True)


@pytest.mark.parametrize(
    "server",
    [
        "example.org:1",
        "10.0.0.1:1",
        "0.0.0.0:1",
        "[::]:1",
        "localhost.evil.test:1",
        "127.0.0.1.evil.test:1",
        "128.0.0.1:1",
    ],
)
async def test_plaintext_leaves_the_machine_never(server: str) -> None:
    for loopback in ("127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"):
        await Connection(loopback, insecure_loopback=True).close()
    with pytest.raises(UsageError):
        Connection(server, insecure_loopback=True)


def test_a_ca_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Connection("localhost:1", ca_file=tmp_path / "missing")


# the stored session


TARGET = Target(server="127.0.0.1:7443", ca_file="/etc/ca.pem", tenant="example", username="ada")


@pytest.fixture
def file(tmp_path: Path) -> SessionFile:
    return SessionFile(tmp_path / "deep" / "state")


def session(connection: Connection, refresh_token: str = "refresh-1") -> Session:
    tokens = common_pb2.SessionTokens(session_id="ses_one", access_token="access", refresh_token=refresh_token)
    details = common_pb2.Session(session_id="ses_one", username="ada")
    key = ec.generate_private_key(ec.SECP256R1())
    return Session(connection, server_id=ServerId(bytes(32)), tokens=tokens, details=details, proof_key=key)


async def test_a_session_comes_back_as_it_was_kept(file: SessionFile) -> None:
    assert file.read() == StoredState()
    async with Connection("127.0.0.1:1", insecure_loopback=True) as connection:
        kept = session(connection)
        file.keep(TARGET, kept)
        state = file.read()
        back = file.open_session(state, connection)
    assert state.target == TARGET
    assert (back.tokens, back.details, back.server_id) == (kept.tokens, kept.details, kept.server_id)
    assert back.proof_key is not None
    assert kept.proof_key is not None
    assert back.proof_key.private_numbers() == kept.proof_key.private_numbers()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.directory.stat().st_mode) == 0o700
    assert "refresh-1" not in repr(state)


async def test_forgetting_keeps_the_target(file: SessionFile) -> None:
    async with Connection("127.0.0.1:1", insecure_loopback=True) as connection:
        file.keep(TARGET, session(connection))
        file.forget_session()
        assert file.read() == StoredState(TARGET)
        with pytest.raises(UnauthenticatedError):
            file.open_session(file.read(), connection)


async def test_a_refresh_does_not_run_over_a_newer_sign_in(file: SessionFile) -> None:
    async with Connection("127.0.0.1:1", insecure_loopback=True) as connection:
        file.keep(TARGET, session(connection))
        old = file.open_session(file.read(), connection)
        newer = session(connection, "refresh-newer")
        newer.tokens.session_id = "ses_two"
        file.keep(TARGET, newer)
        assert old._keeper is not None
        assert old._keeper.load() is None
        old._keeper.save(old.tokens)
        kept = file.read().session
    assert kept is not None
    assert kept.tokens.refresh_token == "refresh-newer"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_file_others_can_reach_is_refused(file: SessionFile, mode: int) -> None:
    file.write(StoredState(TARGET))
    assert file.read().target == TARGET
    file.path.chmod(mode)
    with pytest.raises(RefusedError) as caught:
        file.read()
    assert caught.value.reason is Reason.VAULT_PERMISSIONS


def test_a_directory_others_can_write_is_refused(file: SessionFile) -> None:
    file.write(StoredState(TARGET))
    file.directory.chmod(0o770)
    with pytest.raises(RefusedError):
        file.write(StoredState(TARGET))


def test_a_link_is_not_followed(file: SessionFile, tmp_path: Path) -> None:
    file.write(StoredState(TARGET))
    elsewhere = tmp_path / "elsewhere"
    file.path.rename(elsewhere)
    file.path.symlink_to(elsewhere)
    with pytest.raises(KeyvouchError):
        file.read()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 2, "target": {}, "session": null}',
        '{"version": 1, "target": {"x": 1}, "session": null}',
        '{"version": 1, "target": {}, "session": {}}',
        '{"version": 1, "target": {}, "session": {"server_id": "zz", "tokens": "", "details": "", "proof_key": ""}}',
        '{"version": 1, "target": {}, "session": {"server_id": "", "tokens": "/w==", "details": "", "proof_key": ""}}',
    ],
)
def test_a_file_that_is_no_stored_state_is_refused(file: SessionFile, text: str) -> None:
    file.write(StoredState(TARGET))
    file.path.write_text(text)
    with pytest.raises(MalformedError) as caught:
        file.read()
    assert caught.value.reason is Reason.LEDGER_CORRUPT


def test_nothing_is_left_beside_the_file(file: SessionFile) -> None:
    for _ in range(3):
        file.write(StoredState(TARGET))
    assert [path.name for path in file.directory.iterdir()] == ["session.json"]


def test_where_the_state_is_kept() -> None:
    assert state_directory({"KEYVOUCH_HOME": "/a", "XDG_STATE_HOME": "/b"}) == Path("/a")
    assert state_directory({"XDG_STATE_HOME": "/b"}) == Path("/b/keyvouch")
    assert state_directory({}) == Path.home() / ".local" / "state" / "keyvouch"
