"""The server's keys: its certificate authority, its keyring, its configuration file."""

from __future__ import annotations

import hashlib
import ipaddress
import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import ClientVerifier, PolicyBuilder, Store, VerificationError

from keyvouch.errors import EvidenceError, KeyvouchError, Reason, UnauthenticatedError
from keyvouch.ids import DeviceId, TenantId
from keyvouch.proofs import load_proof_key, spki_of, spki_sha256, verify_proof
from keyvouch.statement import Purpose
from keyvouch.tokens import verify_access_token
from keyvouch_server.attestation_ca import AttestationAuthority, authority_certificate
from keyvouch_server.config import FILE, ServerConfig, load_config
from keyvouch_server.device_authority import DeviceAuthority, DeviceIdentity, found_authority, identify
from keyvouch_server.keyring import Keyring
from support.fake_world import ISSUER, claims_for

NOW = 1_800_000_000
DEVICE, TENANT = DeviceId("dev_" + "a" * 26), TenantId("ten_" + "b" * 26)


class StandingClock:
    """Always the same instant."""

    def now(self) -> int:
        return NOW


@pytest.fixture(scope="module")
def authority() -> DeviceAuthority:
    return DeviceAuthority(*found_authority(NOW), StandingClock())


@pytest.fixture(scope="module")
def channel_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def certificate_of(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)


def extension(certificate: x509.Certificate, kind: Any) -> Any:
    return certificate.extensions.get_extension_for_class(kind)


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


# certificates


def test_the_profile_of_a_device_certificate(authority: DeviceAuthority, channel_key: ec.EllipticCurvePrivateKey):
    chain = authority.device_chain(DEVICE, TENANT, spki_of(channel_key.public_key()))
    leaf, root = map(certificate_of, chain)
    assert chain[1] == authority.root_der
    leaf.verify_directly_issued_by(root)
    assert extension(leaf, x509.BasicConstraints).critical
    assert extension(leaf, x509.BasicConstraints).value.ca is False
    usage = extension(leaf, x509.KeyUsage)
    assert (usage.critical, usage.value.digital_signature, usage.value.key_cert_sign) == (True, True, False)
    assert list(extension(leaf, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    names = extension(leaf, x509.SubjectAlternativeName).value
    assert [str(n.value) for n in names] == [f"keyvouch:device:{TENANT}:{DEVICE}"]
    assert leaf.not_valid_before_utc == datetime.fromtimestamp(NOW, UTC) - timedelta(minutes=5)
    assert leaf.not_valid_after_utc == datetime.fromtimestamp(NOW, UTC) + timedelta(days=30)
    again = certificate_of(authority.device_chain(DEVICE, TENANT, spki_of(channel_key.public_key()))[0])
    assert leaf.serial_number != again.serial_number
    assert identify(pem(leaf)) == DeviceIdentity(TENANT, DEVICE, spki_of(channel_key.public_key()))


def test_the_profile_of_the_authority(authority: DeviceAuthority):
    root = certificate_of(authority.root_der)
    assert extension(root, x509.BasicConstraints).value == x509.BasicConstraints(ca=True, path_length=0)
    assert extension(root, x509.KeyUsage).value.key_cert_sign
    public = root.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert authority.server_id == hashlib.sha256(spki_of(public)).digest()


def test_path_validation_takes_device_certificates_of_this_authority_only(
    authority: DeviceAuthority, channel_key: ec.EllipticCurvePrivateKey
):
    other = DeviceAuthority(*found_authority(NOW), StandingClock())

    def verifier(of: DeviceAuthority) -> ClientVerifier:
        store = Store([certificate_of(of.root_der)])
        return PolicyBuilder().store(store).time(datetime.fromtimestamp(NOW, UTC)).build_client_verifier()

    leaf = certificate_of(authority.device_chain(DEVICE, TENANT, spki_of(channel_key.public_key()))[0])
    verifier(authority).verify(leaf, [])
    with pytest.raises(VerificationError):
        verifier(other).verify(leaf, [])
    listener = x509.load_pem_x509_certificate(authority.listener_certificate(("localhost",))[1])
    with pytest.raises(VerificationError):
        verifier(authority).verify(listener, [])


def test_the_listener_certificate_names_its_hosts(authority: DeviceAuthority):
    key, chain = authority.listener_certificate(("keys.example.org", "127.0.0.1", "::1"))
    leaf, root = x509.load_pem_x509_certificates(chain)
    names = extension(leaf, x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["keys.example.org"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(a) for a in ("127.0.0.1", "::1")]
    assert list(extension(leaf, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    private = serialization.load_pem_private_key(key, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.public_key() == leaf.public_key()
    leaf.verify_directly_issued_by(root)
    with pytest.raises(UnauthenticatedError):
        identify(pem(leaf))


def test_only_ec_channel_keys_are_certified(authority: DeviceAuthority):
    key = rsa.generate_private_key(65537, 2048).public_key()
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(TypeError):
        authority.device_chain(DEVICE, TENANT, der)


def client_certificate(uris: list[str], *, dns: str = "", key: Any = None) -> bytes:
    """A self-signed certificate with these names."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, DEVICE)])
    start = datetime.fromtimestamp(NOW, UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
    )
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(u) for u in uris]
    names += [x509.DNSName(dns)] if dns else []
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return pem(builder.sign(key, hashes.SHA256()))


GOOD = f"keyvouch:device:{TENANT}:{DEVICE}"


@pytest.mark.parametrize(
    "uris",
    [
        [],
        [GOOD, GOOD],
        [GOOD, "https://example.org"],
        [f"keyvouch:device:{DEVICE}"],
        [f"keyvouch:device:{TENANT}:{DEVICE}:x"],
        [f"keyvouch:tenant:{TENANT}:{DEVICE}"],
        [f"x{GOOD}"],
        [GOOD.upper()],
        ["keyvouch:device:"],
        ["https://example.org/"],
    ],
)
def test_a_certificate_that_does_not_name_one_device_is_refused(uris: list[str]):
    with pytest.raises(UnauthenticatedError) as caught:
        identify(client_certificate(uris))
    assert caught.value.reason is Reason.CERTIFICATE_REQUIRED
    assert identify(client_certificate([GOOD])).device_id == DEVICE


@pytest.mark.parametrize("garbage", [b"", b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(garbage: bytes):
    with pytest.raises(UnauthenticatedError):
        identify(garbage)


def test_other_names_and_other_kinds_of_key_do_not_count():
    assert identify(client_certificate([GOOD], dns="laptop.example.org")).tenant_id == TENANT
    with pytest.raises(UnauthenticatedError):
        identify(client_certificate([], dns=DEVICE))
    with pytest.raises(UnauthenticatedError):
        identify(client_certificate([GOOD], key=rsa.generate_private_key(65537, 2048)))


# keyring


def keyring(authority: DeviceAuthority, pepper: bytes = bytes(32)) -> Keyring:
    key = ec.generate_private_key(ec.SECP256R1())
    attestation = AttestationAuthority(key, authority_certificate(key, NOW), StandingClock())
    return Keyring(ec.generate_private_key(ec.SECP256R1()), pepper, authority, attestation)


def test_each_purpose_and_each_pepper_has_its_own_key(authority: DeviceAuthority):
    one, same = keyring(authority), keyring(authority)
    other = keyring(authority, bytes(31) + b"\1")
    purposes = ("access-pass", "refresh-token")
    macs = {(ring, p): ring.mac(p, b"data") for ring in (one, other) for p in purposes}
    assert len(set(macs.values())) == 4
    assert one.mac("access-pass", b"data") == same.mac("access-pass", b"data")
    assert one.mac("access-pass", b"data") != one.mac("access-pass", b"datb")
    assert {len(m) for m in macs.values()} == {32}


def test_p5_the_identity_key_signs_what_the_server_says_itself_and_nothing_else(authority: DeviceAuthority):
    keys = keyring(authority)
    public = load_proof_key(keys.identity_key)
    assert spki_sha256(public) == authority.server_id
    own = {Purpose.AUDIT_CHECKPOINT, Purpose.RECEIPT}
    for purpose in own:
        verify_proof(public, purpose, b"statement", signature=keys.sign_identity(purpose, b"statement"))
    for purpose in set(Purpose) - own:
        with pytest.raises(ValueError, match="signs nothing for"):
            keys.sign_identity(purpose, b"statement")


def test_a_short_pepper_is_no_pepper(authority: DeviceAuthority):
    with pytest.raises(ValueError, match="32"):
        keyring(authority, bytes(31))


def test_tokens_verify_with_the_published_keys_and_no_others(authority: DeviceAuthority):
    ring, other = keyring(authority), keyring(authority)
    claims = claims_for()
    token = ring.access_token(claims)
    expected = {"issuer": ISSUER, "audience": claims.audience, "now": claims.issued_at}
    assert verify_access_token(token, keys=ring.token_keys, **expected) == claims
    with pytest.raises(EvidenceError):
        verify_access_token(token, keys=other.token_keys, **expected)
    (published,) = json.loads(ring.jwks)["keys"]
    assert published.keys() == {"kid", "alg", "use", "crv", "kty", "x", "y"}
    assert published["kid"] == ring.key_id


def test_nothing_secret_in_the_text_form(authority: DeviceAuthority):
    ring = keyring(authority, b"\x5a" * 32)
    assert "Z" * 8 not in repr(ring)
    assert "x5a" not in repr(ring)


# configuration

CONFIG = ServerConfig(
    public_listen="127.0.0.1:7443",
    device_listen="127.0.0.1:7444",
    hosts=("keys.example.org", "10.0.0.1"),
    device_endpoint="keys.example.org:7444",
    rp_id="keys.example.org",
    issuer="https://keys.example.org",
)


def loaded(folder: Path, text: str) -> ServerConfig:
    (folder / FILE).write_text(text, encoding="utf-8")
    return load_config(folder)


@pytest.mark.parametrize(
    "config",
    [CONFIG, replace(CONFIG, certificate="/a b.pem", key='/c"d.key'), replace(CONFIG, hosts=("müller.example",))],
)
def test_a_configuration_survives_its_file(tmp_path: Path, config: ServerConfig):
    assert loaded(tmp_path, config.toml()) == config


REQUIRED = ["public_listen", "device_listen", "hosts", "device_endpoint", "rp_id", "issuer"]


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_setting_is_named(tmp_path: Path, name: str):
    lines = [line for line in CONFIG.toml().splitlines() if not line.startswith(f"{name} ")]
    with pytest.raises(KeyvouchError) as caught:
        loaded(tmp_path, "\n".join(lines))
    assert (caught.value.reason, name in caught.value.message) == (Reason.CONFIGURATION, True)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t + 'colour = "red"\n',
        lambda t: t + "[other]\n",
        lambda t: t.replace("[server]", "[servers]"),
        lambda t: t.replace('"127.0.0.1:7443"', "7443"),
        lambda t: t.replace('["keys.example.org", "10.0.0.1"]', '"keys.example.org"'),
        lambda t: t.replace('["keys.example.org", "10.0.0.1"]', "[]"),
        lambda t: t.replace('["keys.example.org", "10.0.0.1"]', "[1]"),
        lambda t: t.replace('rp_id = "keys.example.org"', 'rp_id = ""'),
        lambda t: t.replace('["keys.example.org", "10.0.0.1"]', '[""]'),
        lambda t: t + 'certificate = "/x.pem"\n',
        lambda t: t + 'key = "/x.key"\n',
        lambda t: t + 'rp_id = "twice"\n',
        lambda t: "",
        lambda t: "nonsense",
        lambda t: "server = 1",
    ],
)
def test_a_configuration_that_is_not_quite_right_is_refused(tmp_path: Path, change: Any):
    assert loaded(tmp_path, CONFIG.toml()) == CONFIG
    assert change(CONFIG.toml()) != CONFIG.toml()
    with pytest.raises(KeyvouchError) as caught:
        loaded(tmp_path, change(CONFIG.toml()))
    assert caught.value.reason is Reason.CONFIGURATION
    assert caught.value.fix


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path):
    with pytest.raises(KeyvouchError) as caught:
        load_config(tmp_path)
    assert "init" in caught.value.fix
    (tmp_path / FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(KeyvouchError):
        load_config(tmp_path)


def test_no_secret_is_a_setting():
    assert not [name for name in asdict(CONFIG) if "pepper" in name or "secret" in name or "password" in name]
