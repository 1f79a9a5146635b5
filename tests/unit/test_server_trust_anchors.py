"""The server's trust settings: read strictly, loaded completely, or the server does not start."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from keyvouch.assurance import Protection, Verification
from keyvouch.errors import EvidenceError, KeyvouchError, Reason
from keyvouch_server.config import FILE, load_config
from keyvouch_server.trust_anchors import MetadataFile, PinnedRoots, TrustSettings, load, read_settings
from support import certificate_forge, metadata_forge

INSTANT = datetime(2026, 6, 1, tzinfo=UTC)
MODEL = uuid.UUID("2fc0579f-8113-47ea-b116-bb5a8db9202a")
PINNED: dict[str, Any] = {"name": "Example Keys", "file": "root.pem", "formats": ["packed", "fido-u2f"]}
METADATA: dict[str, Any] = {"blob": "mds.jwt", "root": "/etc/mds.pem"}


def root_pem(name: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, start, start + timedelta(days=365))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def settings(pinned: object = None, metadata: object = None) -> TrustSettings:
    return read_settings(pinned, metadata, folder=Path("/data"))


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(KeyvouchError) as caught:
        call()
    assert caught.value.reason is Reason.CONFIGURATION
    assert caught.value.fix
    return caught.value.message


def test_nothing_said_is_nothing_trusted(tmp_path: Path) -> None:
    assert settings() == TrustSettings()
    assert len(load(TrustSettings(), instant=INSTANT, folder=tmp_path)) == 0


def test_what_is_not_said_is_worth_what_software_is() -> None:
    (pinned,) = settings([PINNED]).pinned
    assert pinned == PinnedRoots(
        "Example Keys",
        Path("/data/root.pem"),
        frozenset({"packed", "fido-u2f"}),
        Protection.SOFTWARE,
        Verification.SOFTWARE_GATED,
        frozenset(),
    )


def test_everything_said() -> None:
    said = {"protection": "secure_element", "verification": "hardware_gated", "aaguids": [str(MODEL)]}
    (pinned,) = settings([PINNED | said | {"file": "/etc/root.pem"}]).pinned
    assert pinned.file == Path("/etc/root.pem")
    assert (pinned.protection, pinned.verification) == (Protection.SECURE_ELEMENT, Verification.HARDWARE_GATED)
    assert pinned.aaguids == {MODEL.bytes}


def test_metadata_of_the_fido_alliance_needs_two_files_only() -> None:
    blob, root = Path("/data/mds.jwt"), Path("/etc/mds.pem")
    expected = MetadataFile(blob, root, "mds.fidoalliance.org", (), timedelta(days=30))
    assert settings(None, METADATA).metadata == expected
    said = {"signer": "mds.example", "crls": ["b.crl", "/a.crl"], "grace_days": 0}
    other = MetadataFile(blob, root, "mds.example", (Path("/a.crl"), Path("/data/b.crl")), timedelta(0))
    assert settings(None, METADATA | said).metadata == other


@pytest.mark.parametrize(
    "pinned",
    [
        {},
        [1],
        "root.pem",
        [PINNED | {"colour": "red"}],
        [{"name": "a", "file": "b"}],
        [PINNED | {"name": ""}],
        [PINNED | {"name": 1}],
        [PINNED | {"file": ""}],
        [PINNED | {"formats": []}],
        [PINNED | {"formats": "packed"}],
        [PINNED | {"formats": ["packed", "Packed"]}],
        [PINNED | {"formats": [1]}],
        [PINNED | {"protection": "titanium"}],
        [PINNED | {"formats": ["packed", "none"]}],
        [PINNED | {"formats": ["fido-u2f", "piv"], "aaguids": [str(MODEL)]}],
        [PINNED | {"protection": 1}],
        [PINNED | {"verification": "yes"}],
        [PINNED | {"aaguids": ["2fc0579f"]}],
        [PINNED | {"aaguids": [7]}],
        [PINNED | {"aaguids": str(MODEL)}],
    ],
    ids=repr,
)
def test_pinned_roots_that_are_not_quite_right(pinned: object) -> None:
    assert settings([PINNED])  # the control
    refusal(lambda: settings(pinned))


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [METADATA],
        "mds.jwt",
        {"blob": "mds.jwt"},
        METADATA | {"url": "x"},
        METADATA | {"blob": ""},
        METADATA | {"root": 1},
        METADATA | {"signer": ""},
        METADATA | {"crls": "a.crl"},
        METADATA | {"grace_days": -1},
        METADATA | {"grace_days": "30"},
        METADATA | {"grace_days": True},
        METADATA | {"grace_days": 3651},
    ],
    ids=repr,
)
def test_metadata_settings_that_are_not_quite_right(metadata: object) -> None:
    assert settings(None, METADATA)  # the control
    refusal(lambda: settings(None, metadata))


def test_every_certificate_of_a_file_becomes_an_anchor(tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_bytes(root_pem("One") + root_pem("Two"))
    said = {"protection": "smartcard", "aaguids": [str(MODEL)]}
    store = load(read_settings([PINNED | said], None, folder=tmp_path), instant=INSTANT, folder=tmp_path)
    assert [anchor.name for anchor in store] == ["Example Keys"] * 2
    assert len({anchor.certificate for anchor in store}) == 2
    assert {anchor.protection for anchor in store} == {Protection.SMARTCARD}
    assert store.anchors_for("packed", aaguid=MODEL.bytes) == tuple(store)
    assert store.anchors_for("packed", aaguid=bytes(16)) == ()
    assert store.anchors_for("tpm", aaguid=MODEL.bytes) == ()


def test_a_certificate_that_can_vouch_for_nothing_is_refused(tmp_path: Path) -> None:
    weak = certificate_forge.root(key=certificate_forge.rsa_key(1024))
    (tmp_path / "root.pem").write_bytes(weak.certificate.public_bytes(serialization.Encoding.PEM))
    refusal(lambda: load(read_settings([PINNED], None, folder=tmp_path), instant=INSTANT, folder=tmp_path))


def test_a_certificate_that_has_expired_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "root.pem").write_bytes(root_pem("Old"))
    settings_ = read_settings([PINNED], None, folder=tmp_path)
    for instant, told in ((INSTANT, False), (INSTANT + timedelta(days=4000), True)):
        caplog.clear()
        assert len(load(settings_, instant=instant, folder=tmp_path)) == 1
        assert ("expired" in caplog.text) is told


@pytest.mark.parametrize(
    "content", [None, b"", b"nonsense", root_pem("Cut")[:-40]], ids=["absent", "empty", "text", "cut"]
)
def test_a_file_that_holds_no_certificates_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "root.pem").write_bytes(content)
    message = refusal(lambda: load(read_settings([PINNED], None, folder=tmp_path), instant=INSTANT, folder=tmp_path))
    assert str(tmp_path / "root.pem") in message


def metadata_in(folder: Path, encoded: bytes, **changes: object) -> TrustSettings:
    """Settings for this BLOB, written to files."""
    (folder / "mds.jwt").write_bytes(encoded)
    (folder / "root.pem").write_bytes(metadata_forge.ROOT.certificate.public_bytes(serialization.Encoding.PEM))
    table = {"blob": "mds.jwt", "root": "root.pem", "signer": metadata_forge.SIGNER_NAME} | changes
    return read_settings(None, table, folder=folder)


def test_metadata_becomes_anchors_and_distrust(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    revoked = uuid.UUID("0132d110-bf4e-4208-a403-ab4f5f12efe5")
    entries = [
        metadata_forge.entry(),
        metadata_forge.entry(aaguid=str(revoked), statusReports=[metadata_forge.report("REVOKED")]),
        metadata_forge.entry(aaguid="nonsense"),
    ]
    blob = metadata_forge.blob(metadata_forge.payload(*entries))
    with caplog.at_level("INFO", logger="keyvouch.server"):
        store = load(metadata_in(tmp_path, blob + b"\r\n"), instant=metadata_forge.INSTANT, folder=tmp_path)
    (anchor,) = store
    assert anchor.name == f"mds:{metadata_forge.AAGUID_TEXT}"
    assert anchor.protection is Protection.SECURE_ELEMENT
    with pytest.raises(EvidenceError):
        store.check_model(aaguid=revoked.bytes)
    store.check_model(aaguid=metadata_forge.AAGUID)
    told = caplog.text
    assert "1 models trusted" in told
    assert f"mds:{revoked} is not accepted" in told
    assert "entry 2 (nonsense) is not believed" in told


def test_the_warning_of_an_entry_that_cannot_be_read_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shouted = metadata_forge.AAGUID_TEXT.upper()
    for status, is_refused in (("REVOKED", True), ("FIDO_CERTIFIED_L1", False)):
        item = metadata_forge.entry(aaguid=shouted, statusReports=[metadata_forge.report(status)])
        blob = metadata_forge.blob(metadata_forge.payload(item))
        caplog.clear()
        with caplog.at_level("INFO", logger="keyvouch.server"):
            store = load(metadata_in(tmp_path, blob), instant=metadata_forge.INSTANT, folder=tmp_path)
        assert f"entry 0 ({shouted}) is not believed" in caplog.text
        assert (f"mds:{metadata_forge.AAGUID_TEXT} is not accepted" in caplog.text) is is_refused
        if is_refused:
            with pytest.raises(EvidenceError):
                store.check_model(aaguid=metadata_forge.AAGUID)
        else:
            store.check_model(aaguid=metadata_forge.AAGUID)


@pytest.mark.parametrize(
    ("blob", "changes"),
    [
        (b"nonsense", {}),
        (metadata_forge.blob()[:-9] + b"AAAAAAAAA", {}),
        (metadata_forge.blob(), {"signer": "mds.other"}),
        (metadata_forge.blob(), {"root": "absent.pem"}),
        (metadata_forge.blob(), {"blob": "absent.jwt"}),
        (metadata_forge.blob(), {"crls": ["absent.crl"]}),
        (metadata_forge.blob(metadata_forge.payload(nextUpdate="2026-07-31")), {"grace_days": 0}),
    ],
    ids=["text", "signature", "signer", "root", "blob", "crl", "stale"],
)
def test_metadata_that_cannot_be_used_keeps_the_server_from_starting(
    tmp_path: Path, blob: bytes, changes: dict[str, object]
) -> None:
    assert len(load(metadata_in(tmp_path, metadata_forge.blob()), instant=metadata_forge.INSTANT, folder=tmp_path)) == 1
    refusal(lambda: load(metadata_in(tmp_path, blob, **changes), instant=metadata_forge.INSTANT, folder=tmp_path))


def test_metadata_is_believed_for_its_grace(tmp_path: Path) -> None:
    stale = metadata_forge.blob(metadata_forge.payload(nextUpdate="2026-07-31"))
    assert len(load(metadata_in(tmp_path, stale), instant=metadata_forge.INSTANT, folder=tmp_path)) == 1


def test_older_metadata_is_refused_once_newer_was_believed(tmp_path: Path) -> None:
    def number(value: int) -> TrustSettings:
        return metadata_in(tmp_path, metadata_forge.blob(metadata_forge.payload(no=value)))

    for newer in (15, 15, 16):
        assert len(load(number(newer), instant=metadata_forge.INSTANT, folder=tmp_path)) == 1
    refusal(lambda: load(number(15), instant=metadata_forge.INSTANT, folder=tmp_path))
    (tmp_path / "metadata.number").write_text("many")
    assert "metadata.number" in refusal(lambda: load(number(16), instant=metadata_forge.INSTANT, folder=tmp_path))
    (tmp_path / "metadata.number").unlink()
    assert len(load(number(15), instant=metadata_forge.INSTANT, folder=tmp_path)) == 1
    refusal(lambda: load(number(15), instant=metadata_forge.INSTANT, folder=tmp_path / "absent"))


def test_revocation_lists_are_asked_where_they_are_named(tmp_path: Path) -> None:
    for name, holder in (("root.crl", metadata_forge.ROOT), ("intermediate.crl", metadata_forge.INTERMEDIATE)):
        (tmp_path / name).write_bytes(holder.crl())
    blob, both = metadata_forge.blob(), ["root.crl", "intermediate.crl"]
    assert len(load(metadata_in(tmp_path, blob, crls=both), instant=metadata_forge.INSTANT, folder=tmp_path)) == 1
    refusal(lambda: load(metadata_in(tmp_path, blob, crls=both[:1]), instant=metadata_forge.INSTANT, folder=tmp_path))
    (tmp_path / "intermediate.crl").write_bytes(metadata_forge.INTERMEDIATE.crl(metadata_forge.SIGNER.certificate))
    refusal(lambda: load(metadata_in(tmp_path, blob, crls=both), instant=metadata_forge.INSTANT, folder=tmp_path))


SERVER = """[server]
public_listen = "127.0.0.1:7443"
device_listen = "127.0.0.1:7444"
hosts = ["keys.example.org"]
device_endpoint = "keys.example.org:7444"
rp_id = "keys.example.org"
issuer = "https://keys.example.org"
"""


def test_the_tables_stand_in_the_configuration_file(tmp_path: Path) -> None:
    table = '[[trust_anchors]]\nname = "a"\nfile = "a.pem"\nformats = ["tpm"]\n'
    (tmp_path / FILE).write_text(SERVER + table + table + '[metadata]\nblob = "b"\nroot = "r"\n')
    trust = load_config(tmp_path).trust
    assert [pinned.file for pinned in trust.pinned] == [tmp_path / "a.pem"] * 2
    assert trust.metadata is not None
    (tmp_path / FILE).write_text(SERVER + "trust = 1\n")
    refusal(lambda: load_config(tmp_path))
