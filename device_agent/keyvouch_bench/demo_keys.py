"""What holds the keys in the demonstration: a TPM of this computer, an emulated one, or software; and why.

With `fido2` Ada has a security key and with `smartcard` a card, emulated ones: somebody's real key is not for
demonstrations.

with chosen("") as keys:          the best there is; or "tpm", "fido2", "smartcard", "software"
    keys.told                     which one and why, a sentence
    keys.trust(server.data)       let a server believe the makers of emulated TPMs
    keys.settings(0)              text of the agent.toml of the first person
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyvouch.attestation.endorsement import EndorsementCertificate, verify_endorsement_certificate
from keyvouch.errors import DeviceError, KeyvouchError, Reason, UnavailableError
from keyvouch_agent.vaults.tpm.connection import DEFAULT_DEVICE, WITHHELD, Tpm, TpmAccess, TpmSettings
from keyvouch_server.ek_trust import load_ek_trust, makers

if TYPE_CHECKING:
    from keyvouch_bench.demo_card import IssuedCard
    from keyvouch_bench.swtpm import Swtpm

__all__ = ["DemoKeys", "chosen"]

PEOPLE: Final = 2
"""Everybody has a device of their own, so a TPM of their own."""
_PACKAGES: Final = "swtpm swtpm-tools libtss2-dev pkg-config gcc libc6-dev python3-dev"


@dataclass(frozen=True, slots=True)
class DemoKeys:
    """The choice. `emulated` are running TPMs, one a person; `tcti` the way to a real one, which only one has."""

    told: str
    emulated: tuple[Swtpm, ...] = ()
    tcti: str = ""
    vouched: bool = True
    """Whether the server of the demonstration believes the maker of the real one."""
    command: tuple[str, ...] = ()
    """How the security key was started; empty where there is none."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the programs need to find it, or the smartcard."""
    card: IssuedCard | None = None

    def provider(self, person: int) -> str:
        """The kind of provider of a person. There is one real TPM, security key or card: Ada's, the second's."""
        if self.emulated:
            return "tpm"
        if person != PEOPLE - 1:
            return "software"
        if self.command:
            return "fido2"
        if self.card:
            return "smartcard"
        return "tpm" if self.tcti else "software"

    def settings(self, person: int) -> str:
        """What goes into the agent.toml of a person, empty for nothing."""
        tcti = self.emulated[person].tcti if self.emulated else self.tcti
        withheld = "" if self.vouched else f'endorsement_certificate = "{WITHHELD}"\n'
        return f'[tpm]\ntcti = "{tcti}"\n{withheld}' if tcti else ""

    def trust(self, data: Path) -> None:
        """Let the server in this data directory believe the maker of what is emulated, for this demonstration only."""
        if self.card:
            from keyvouch_bench.demo_card import MAKER  # noqa: PLC0415 - rarely wanted

            anchor = f'\n[[trust_anchors]]\nname = "{MAKER}"\nfile = "{self.card.root}"\nformats = ["piv"]\n'
            with (data / "keyvouch.toml").open("a", encoding="utf-8") as file:
                file.write(anchor)
        if not self.emulated:
            return
        from keyvouch_bench.swtpm import MANUFACTURER  # noqa: PLC0415 - where there is no TPM library, nothing needs it

        lines = ["", "[tpm]", f'endorsement_trust = "{self.emulated[0].ca_certificates}"']
        lines.append(f'unregistered_manufacturers = ["{MANUFACTURER}"]')
        with (data / "keyvouch.toml").open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


@contextmanager
def chosen(wanted: str, folder: Path) -> Iterator[DemoKeys]:
    """The provider that is wanted, or for an empty text the best there is.

    Where there can be no security key, or no card, the best of the others takes its place and says why. Raises
    `UnavailableError` where a TPM is wanted and cannot be had.
    """
    with ExitStack() as stack:
        why: list[str] = []
        if wanted == "fido2":
            key = _security_key(stack, folder, why)
            if key is not None:
                yield key
                return
        if wanted == "smartcard":
            card = _card(stack, folder, why)
            if card is not None:
                yield card
                return
        if wanted != "software":
            keys = _real(why) or _emulated(stack, folder, why)
            if keys is not None:
                yield keys
                return
            if wanted == "tpm":
                raise _no_tpm(" ".join(why))
        reason = "as you asked" if wanted == "software" else " ".join(why)
        yield DemoKeys(f"Key provider: software ({reason.rstrip('.')}). The keys say so wherever they appear.")


def _no_tpm(why: str) -> UnavailableError:
    return UnavailableError(
        Reason.TPM_UNAVAILABLE,
        f"There is no TPM for the demonstration. {why}",
        fix=f"Run apt-get install {_PACKAGES}, or take --provider software.",
    )


def _real(why: list[str]) -> DemoKeys | None:
    """A TPM of this computer, or one that TSS2_TCTI names."""
    named = os.environ.get("TSS2_TCTI", "")
    if not named and not Path(DEFAULT_DEVICE).exists():
        why.append("This computer has no TPM.")
        return None
    access = TpmAccess(TpmSettings(tcti=named))
    try:
        with access.open() as tpm:
            vouched = _is_vouched(tpm)
    except DeviceError as error:
        why.append(error.message)
        return None
    told = f"Key provider: the TPM at {access.configuration}, for Ada; it is left as it was."
    if not vouched:
        told += " Nobody whom a server believes vouches for it, so its key counts as one in software."
    told += " The administrator's key is in software."
    return DemoKeys(told, tcti=access.configuration, vouched=vouched)


def _is_vouched(tpm: Tpm) -> bool:
    """Whether a server with the makers it comes with believes the certificate of this TPM."""
    from keyvouch_agent.vaults.tpm.endorsement import find_endorsement_key  # noqa: PLC0415 - needs the TPM library

    key, trust = find_endorsement_key(tpm, has_curves=True), load_ek_trust(makers())
    if not key.certificates:
        return False
    own, *issuers = key.certificates
    try:
        verify_endorsement_certificate(
            EndorsementCertificate.parse(own),
            endorsement_key=key.public,
            intermediates=[*issuers, *trust.intermediates],
            anchors=trust.anchors,
            instant=datetime.now(UTC),
        )
    except KeyvouchError:
        return False
    return True


def _emulated(stack: ExitStack, folder: Path, why: list[str]) -> DemoKeys | None:
    """Two emulated TPMs, made for this demonstration."""
    if shutil.which("swtpm", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
        why.append(f"No emulated one is installed; on Debian: apt-get install {_PACKAGES}.")
        return None
    try:
        TpmAccess().require_library()
        from keyvouch_bench.swtpm import SwtpmFactory  # noqa: PLC0415 - needs the TPM library

        factory = SwtpmFactory(_made(folder / "chips"))
        tpms = [factory.make(_made(folder / f"tpm-{chip}"), chip=chip) for chip in range(PEOPLE)]
        for tpm in tpms:
            stack.enter_context(tpm)
    except KeyvouchError as error:
        why.append(error.message)
        return None
    told = "Key provider: emulated TPMs (swtpm), one for each person, with the code paths of a real one."
    return DemoKeys(f"{told} {why[0] if why else ''}".strip(), emulated=tuple(tpms))


def _security_key(stack: ExitStack, folder: Path, why: list[str]) -> DemoKeys | None:
    """One security key, emulated, on a virtual reader that only this demonstration sees."""
    from keyvouch_bench.demo_security_key import served_key  # noqa: PLC0415 - rarely wanted

    try:
        key = stack.enter_context(served_key(folder))
    except KeyvouchError as error:
        why.append(f"There can be no security key here. {error}")
        return None
    told = (
        "Key provider: an EMULATED security key for Ada, on a virtual card reader, through a real pcscd. It is no "
        "hardware: its keys are in a file, and nobody has to touch it. The administrator's key is in software."
    )
    return DemoKeys(told, command=key.command, environment=key.environment)


def _card(stack: ExitStack, folder: Path, why: list[str]) -> DemoKeys | None:
    """One smartcard, emulated, on a virtual reader that only this demonstration sees."""
    from keyvouch_bench.demo_card import issued_card  # noqa: PLC0415 - rarely wanted

    try:
        card = stack.enter_context(issued_card(folder))
    except KeyvouchError as error:
        why.append(f"There can be no smartcard here. {error}")
        return None
    told = (
        "Key provider: an EMULATED smartcard (PIV) for Ada, on a virtual card reader, through a real pcscd and OpenSC. "
        "It is no hardware: its keys are in the memory of this program. The server believes its maker for this "
        "demonstration only. The administrator's key is in software."
    )
    return DemoKeys(told, environment=card.environment, card=card)


def _made(path: Path) -> Path:
    path.mkdir()
    return path
