"""What we claim of a PIN index and a key behind it, as tpm2-tools see them: another program over another connection."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from keyvouch.attestation.tpm import verify_certify
from keyvouch.attestation.tpm_public import TpmPublic
from keyvouch.cose import CoseKey
from keyvouch_agent.vaults.tpm.key_file import KeyFile
from keyvouch_agent.vaults.tpm.pin_index import auth_value
from keyvouch_bench.swtpm import Profile, Swtpm
from support.tpm_attacker import PIN, Victim, attacking, pin_hash, record_of, victim_in

STATEMENT: Final = b"statement"


@dataclass
class Tools:
    """tpm2-tools in a folder, where their files are. Without a resource manager they leave objects loaded."""

    tcti: str
    folder: Path

    def run(self, name: str, *arguments: str) -> str:
        """What a tool prints; it must succeed."""
        done = self.tried(name, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tried(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return self._call(name, *arguments)
        finally:
            self._call("tpm2_flushcontext", "--transient-object")

    def _call(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "TPM2TOOLS_TCTI": self.tcti, "TSS2_LOG": "all+NONE"}
        return subprocess.run(
            [name, *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def load_key(self) -> str:
        """TPM2_Load of the account's key file as it is; the context is in `key.ctx`. Returns the name."""
        return found(r"name: (\w+)", self.run("tpm2_load", "-r", "key.pem", "-c", "key.ctx"))

    def sign(self, *authorization: str) -> subprocess.CompletedProcess[str]:
        """TPM2_Sign of the statement; the signature is in `signature`."""
        (self.folder / "message").write_bytes(STATEMENT)
        scheme = ["-g", "sha256", "-s", "ecdsa", "-f", "plain"]
        return self.tried("tpm2_sign", "-c", "key.ctx", *scheme, "-o", "signature", *authorization, "message")

    def session(self, *policy: str) -> None:
        """A policy session in which one policy command was done; it is in `session.ctx`."""
        self.run("tpm2_startauthsession", "--policy-session", "-S", "session.ctx")
        if policy:
            self.run(policy[0], "-S", "session.ctx", *policy[1:])

    def end_session(self) -> None:
        self.run("tpm2_flushcontext", "session.ctx")


def found(pattern: str, text: str) -> str:
    """The group of the only match."""
    match = re.search(pattern, text)
    assert match is not None, text
    return match.group(1)


@pytest.fixture
def victim(tpm_factory: Callable[..., Swtpm], tmp_path: Path) -> Iterator[Victim]:
    """Emulated always: tools and resource managers each have their own idea of contexts."""
    with victim_in(tpm_factory(), tmp_path / "account") as made:
        yield made


@pytest.fixture
def tools(victim: Victim, tmp_path: Path) -> Tools:
    made = Tools(victim.tcti, tmp_path / "tools")
    made.folder.mkdir()
    (made.folder / "key.pem").write_bytes(next(victim.folder.glob("*.pem")).read_bytes())
    return made


def handle_of(victim: Victim) -> str:
    pin = record_of(victim.folder).pin
    assert pin is not None
    return f"0x{pin.gate.handle:08X}"


def area_of(victim: Victim) -> TpmPublic:
    return KeyFile.read(next(victim.folder.glob("*.pem")).read_bytes()).area


def test_the_index_is_a_pin_fail_index_with_just_the_attributes_and_the_policy_of_the_gate_H3(
    victim: Victim, tools: Tools
):
    pin = record_of(victim.folder).pin
    assert pin is not None
    told = tools.run("tpm2_nvreadpublic", handle_of(victim))
    assert found(r"name: (\w+)", told) == pin.gate.written.name.hex()
    value = int(found(r"attributes:\n.*\n\s+value: (\w+)", told), 16)
    assert (value >> 4) & 0xF == 8  # TPM_NT_PIN_FAIL
    friendly = set(found(r"attributes:\n\s+friendly: (\S+)", told).split("|"))
    assert friendly == {"policywrite", "nt", "ownerread", "authread", "policyread", "no_da", "written"}
    assert found(r"size: (\d+)", told) == "8"
    assert found(r"authorization policy: (\w+)", told).lower() == bytes(pin.gate.written.auth_policy).hex()


def test_the_key_is_made_inside_and_its_policy_is_the_only_way_to_sign_H2(victim: Victim, tools: Tools):
    assert tools.load_key() == area_of(victim).name.hex()
    told = tools.run("tpm2_readpublic", "-c", "key.ctx")
    assert found(r"name: (\w+)", told) == area_of(victim).name.hex()
    attributes = set(found(r"attributes:\n\s+value: (\S+)", told).split("|"))
    assert attributes == {"fixedtpm", "fixedparent", "sensitivedataorigin", "noda", "sign"}
    pin = record_of(victim.folder).pin
    assert pin is not None
    assert found(r"authorization policy: (\w+)", told).lower() == pin.gate.key_policy.hex()


def test_what_is_defined_and_what_is_loaded_is_what_we_say(victim: Victim, tools: Tools):
    told = tools.run("tpm2_getcap", "handles-nv-index")
    assert int(handle_of(victim), 16) in {int(number, 16) for number in re.findall(r"0x\w+", told)}
    for kind in ("handles-transient", "handles-loaded-session", "handles-saved-session", "handles-persistent"):
        assert re.findall(r"0x8[0-9A-F]00\w+", tools.run("tpm2_getcap", kind)) == [] or kind == "handles-persistent"
    assert "TPM2_PT_LOCKOUT_COUNTER: 0x0\n" in tools.run("tpm2_getcap", "properties-variable")


def test_the_tools_sign_with_the_pins_value_and_not_without_it_H3(victim: Victim, tools: Tools):
    tools.load_key()
    assert "authValue or authPolicy is not available" in refused(tools.sign())
    tools.session()
    assert "policy check failed" in refused(tools.sign("-p", "session:session.ctx"))
    tools.end_session()
    tools.session("tpm2_policysecret", "-c", handle_of(victim), f"hex:{auth_value(pin_hash(PIN)).hex()}")
    done = tools.sign("-p", "session:session.ctx")
    assert done.returncode == 0, done.stderr
    tools.end_session()
    signature = (tools.folder / "signature").read_bytes()
    CoseKey(victim.credential.public_key).verify_signature(signature=signature, message=STATEMENT)
    assert victim.signs()


def test_wrong_values_of_the_tools_count_as_wrong_pins_and_block_H3(victim: Victim, tools: Tools):
    tools.session()
    for value in ("hex:00", "str:493817", "hex:ff"):
        done = tools.tried("tpm2_policysecret", "-S", "session.ctx", "-c", handle_of(victim), value)
        assert "authorization failure without DA implications" in refused(done)
    right = f"hex:{auth_value(pin_hash(PIN)).hex()}"
    done = tools.tried("tpm2_policysecret", "-S", "session.ctx", "-c", handle_of(victim), right)
    assert "authValue or authPolicy is not available" in refused(done)
    tools.end_session()
    assert victim.vault.pin_state().retries_left == 0
    with attacking(victim.tcti, victim.folder) as thief:
        assert thief.count() == 3


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode != 0
    return done.stderr


def test_what_the_tools_certify_of_the_key_is_what_our_verifier_takes_H5(victim: Victim, tools: Tools):
    tools.load_key()
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"
    kind = ["-G", "ecc256:ecdsa-sha256:null", "-a", attributes]
    tools.run("tpm2_createprimary", "-C", "e", *kind, "-c", "ak.ctx")
    tools.run("tpm2_readpublic", "-c", "ak.ctx", "-o", "ak.pub")
    tools.run("tpm2_certify", "-c", "key.ctx", "-C", "ak.ctx", "-g", "sha256", "-o", "attest", "-s", "signature")
    certified = verify_certify(
        attestation_key=TpmPublic((tools.folder / "ak.pub").read_bytes()[2:]),
        attest=(tools.folder / "attest").read_bytes(),
        signature=(tools.folder / "signature").read_bytes(),
        subject=area_of(victim),
        qualifying_data=b"\x00\xff\x55\xaa",  # what tpm2_certify has for it
    )
    assert certified.key == area_of(victim)


def test_the_key_file_under_a_persistent_root_key_is_loaded_by_the_tools_too(
    tpm_factory: Callable[..., Swtpm], tmp_path: Path
):
    with victim_in(tpm_factory(Profile.WITH_SRK), tmp_path / "account") as victim:
        made = Tools(victim.tcti, tmp_path)
        (made.folder / "key.pem").write_bytes(next(victim.folder.glob("*.pem")).read_bytes())
        made.run("tpm2_readpublic", "-c", "0x81000001", "-o", "root.pub")
        assert made.load_key() == area_of(victim).name.hex()


def test_the_key_file_names_a_persistent_root_key_that_is_not_the_usual_one(
    tpm_factory: Callable[..., Swtpm], tmp_path: Path
):
    tpm = tpm_factory()
    tools = Tools(tpm.tcti, tmp_path)
    attributes = "restricted|decrypt|fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda"
    tools.run("tpm2_createprimary", "-C", "o", "-G", "rsa2048:aes128cfb", "-a", attributes, "-c", "root.ctx")
    tools.run("tpm2_evictcontrol", "-C", "o", "-c", "root.ctx", "0x81000001")
    with victim_in(tpm, tmp_path / "account") as victim:
        (tools.folder / "key.pem").write_bytes(next(victim.folder.glob("*.pem")).read_bytes())
        assert tools.load_key() == area_of(victim).name.hex()
        assert victim.signs()
