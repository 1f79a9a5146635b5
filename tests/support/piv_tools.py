"""OpenSC's own programs, on the reader of a virtual PIV card."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from keyvouch_bench.piv_card.reader import OPENSC_MODULE, OPENSC_PACKAGES, PivReader
from keyvouch_bench.piv_card.state import DEFAULT_MANAGEMENT_KEY

__all__ = ["OBJECT_IDS", "OpenSc"]

OBJECT_IDS: Final = {0x9A: "01", 0x9C: "02", 0x9D: "03", 0x9E: "04"} | {
    slot: f"{number:02x}" for number, slot in enumerate(range(0x82, 0x96), 5)
}
"""What OpenSC calls the slots."""

_SECONDS: Final = 60


class OpenSc:
    """The tools, each run to its end. `folder` is for what passes between them."""

    def __init__(self, piv: PivReader, folder: Path) -> None:
        if shutil.which("pkcs11-tool") is None:
            pytest.fail(f"OpenSC's tools are not installed: apt-get install {OPENSC_PACKAGES}", pytrace=False)
        self.piv = piv
        self.folder = folder
        self.management_key = folder / "management-key"
        self.management_key.write_text(DEFAULT_MANAGEMENT_KEY.hex(":"))

    def run(self, *words: str | Path, good: bool | None = True) -> str:
        """Run a program: all that it says. It has to succeed, or to fail; with None its exit status says nothing."""
        done = subprocess.run(
            [str(word) for word in words],
            env={**os.environ, **self.piv.environment, "PIV_EXT_AUTH_KEY": str(self.management_key), "LC_ALL": "C"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        said = done.stdout + done.stderr
        assert good is None or (done.returncode == 0) is good, said
        return said

    def card(self, program: str, *words: str | Path, good: bool | None = True) -> str:
        """A program of OpenSC that speaks to the card itself."""
        return self.run(program, "--reader", self.piv.reader, *words, good=good)

    def token(self, *words: str | Path, pin: str | None = None, good: bool = True) -> str:
        """`pkcs11-tool` with OpenSC's module."""
        login = ["--login", "--pin", pin] if pin is not None else []
        return self.run("pkcs11-tool", "--module", OPENSC_MODULE, *login, *words, good=good)

    def flags(self) -> str:
        """What the token says of itself and its PIN."""
        (slot,) = (part for part in self.token("--list-slots").split("\nSlot ") if self.piv.reader in part)
        return next(line for line in slot.splitlines() if "token flags" in line)

    def sign(self, slot: int, mechanism: str, data: bytes, *, pin: str) -> bytes:
        """A signature by the key in that slot."""
        given, made = self.folder / "to-sign", self.folder / "signature"
        given.write_bytes(data)
        made.unlink(missing_ok=True)
        form = ["--signature-format", "openssl"] if mechanism.startswith("ECDSA") else []
        self.token(
            "--sign", "--id", OBJECT_IDS[slot], "--mechanism", mechanism, "--input-file", given, "--output-file", made,
            *form, pin=pin,
        )  # fmt: skip
        return made.read_bytes()

    def generate(self, slot: int, algorithm: int) -> None:
        """Have a key made, by the administrator.

        Whether `piv-tool` also manages to write the public key down depends on the OpenSSL that it is used with.
        """
        said = self.card("piv-tool", "-A", "M:9B:03", "-G", f"{slot:02X}:{algorithm:02X}", good=None)
        assert "admin_mode failed" not in said
        assert slot in self.piv.card.state.keys

    def load_certificate(self, slot: int, certificate: x509.Certificate) -> None:
        """Put a certificate into a slot, as the administrator."""
        path = self.folder / "certificate.pem"
        path.write_bytes(certificate.public_bytes(Encoding.PEM))
        self.card("piv-tool", "-A", "M:9B:03", "-C", f"{slot:02X}", "-i", path, good=None)  # it returns a length
        assert self.piv.card.certificate(slot) == certificate

    def object(self, kind: str, slot: int) -> bytes:
        """A certificate or public key as the token gives it, in DER."""
        made = self.folder / "object"
        made.unlink(missing_ok=True)
        self.token("--read-object", "--type", kind, "--id", OBJECT_IDS[slot], "--output-file", made)
        return made.read_bytes()
