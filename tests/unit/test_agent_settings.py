"""agent.toml: read strictly, and not needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyvouch.errors import KeyvouchError, Reason
from keyvouch_agent.agent_settings import FILE, TpmFileSettings, load_settings, read_auth
from keyvouch_agent.home import Home
from keyvouch_agent.vaults.tpm.connection import TpmSettings


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home")


def write(home: Home, text: str) -> None:
    (home.path / FILE).write_text(text, "utf-8")
    (home.path / FILE).chmod(0o600)


def test_no_file_and_an_empty_one_say_nothing(home: Home) -> None:
    assert load_settings(home) == TpmFileSettings()
    write(home, "")
    assert load_settings(home) == TpmFileSettings()


def test_every_setting(home: Home) -> None:
    names = TpmFileSettings.__slots__
    write(home, "[tpm]\n" + "".join(f'{name} = "/{name}"\n' for name in names))
    assert load_settings(home) == TpmFileSettings(**{name: f"/{name}" for name in names})


@pytest.mark.parametrize(
    "text",
    ["tpm = 1", "[tpm]\ncolour = 'red'", "[tpm]\ntcti = 1", "[tpm]\ntcti = ''", "[other]", "nonsense", "\xff\xfe"],
)
def test_anything_else_is_refused_with_what_to_do(home: Home, text: str) -> None:
    (home.path / FILE).write_bytes(text.encode("latin-1"))
    (home.path / FILE).chmod(0o600)
    with pytest.raises(KeyvouchError) as caught:
        load_settings(home)
    assert caught.value.reason is Reason.CONFIGURATION
    assert FILE in str(caught.value)
    assert caught.value.fix


def test_passwords_come_from_files(tmp_path: Path) -> None:
    path = tmp_path / "auth"
    path.write_bytes(b"owner password\n")
    assert read_auth(str(path)) == b"owner password"
    assert read_auth("") == b""
    for content in (b"", b"\n", b"x" * 65):
        path.write_bytes(content)
        with pytest.raises(KeyvouchError) as caught:
            read_auth(str(path))
        assert caught.value.reason is Reason.CONFIGURATION
    path.unlink()
    with pytest.raises(KeyvouchError) as caught:
        read_auth(str(path))
    assert caught.value.reason is Reason.CONFIGURATION


def test_passwords_are_not_shown() -> None:
    shown = repr(TpmSettings(owner_auth=b"canary", endorsement_auth=b"canary"))
    assert "canary" not in shown


@pytest.mark.parametrize(
    ("given", "environment", "configuration"),
    [
        ("", {}, "device:/dev/tpmrm0"),
        ("", {"TSS2_TCTI": "tabrmd"}, "tabrmd"),
        ("swtpm:port=1", {"TSS2_TCTI": "tabrmd"}, "swtpm:port=1"),
        ("", {"TSS2_TCTI": ""}, "device:/dev/tpmrm0"),
    ],
)
def test_how_the_tpm_is_reached(given: str, environment: dict[str, str], configuration: str) -> None:
    assert TpmSettings(tcti=given).configuration(environment) == configuration
