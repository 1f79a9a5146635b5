"""Firmware of TPMs that is publicly known to be flawed, by maker and version.

A version is the 64 bits that a TPM attests (TPMS_ATTEST `firmwareVersion`, TPM 2.0 Library Part 2 section 10.12.12):
TPM_PT_FIRMWARE_VERSION_1 above TPM_PT_FIRMWARE_VERSION_2. What they mean is up to the maker. All makers in the table
have major and minor in the upper two fields of 16 bits and count upwards, so a range of numbers is a range of versions.

Makers say of few flaws which versions have them. These are known and not in the table, for no published version tells
who has them: EUCLEAK (CVE-2024-45678) in TPMs of Infineon; faulTPM and CVE-2025-2884 (AMD-SB-4011) in those of AMD;
CVE-2025-2884 (INTEL-SA-01209) in those of Intel, and CVE-2019-11090 in Intel's newer than CSME 11, which attest numbers
of their own such as 302.12.0.0; CVE-2023-1017 and CVE-2023-1018 in all but NPCT65x. No known flaw is not no flaw.

What is not here: whether the version is true. It is the TPM's own word, and obfuscated unless the attestation key is in
the endorsement or platform hierarchy (Part 1 section 36.7). Nor what older firmware did: an update does not mend the
keys made before it, which is why weak RSA keys are refused by their moduli as well (`keyvouch.roca`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Final

from keyvouch.attestation.tpm_vendors import find_vendor

__all__ = ["FlawEffect", "KnownFlaw", "firmware_text", "known_flaws"]

_INFINEON: Final = "id:49465800"
_INTEL: Final = "id:494E5443"
_NUVOTON: Final = "id:4E544300"
_ST: Final = "id:53544D20"


@unique
class FlawEffect(StrEnum):
    """What a flaw does to the keys of a TPM, the worst that its advisories admit."""

    RSA_KEYS_WEAK = "rsa_keys_weak"
    """RSA private keys can be computed from the public ones."""

    EC_KEYS_TIMED = "ec_keys_timed"
    """EC private keys can be computed from the time that signatures take, even over a network."""

    EC_KEYS_MEASURED = "ec_keys_measured"
    """EC private keys can be measured by someone who has the chip in a laboratory."""

    MEMORY_WRITABLE = "memory_writable"
    """Commands can write where they must not: the TPM may run what its user sends it."""

    MEMORY_READABLE = "memory_readable"
    """Commands can read where they must not, which crashes the TPM or tells a little of what it holds."""


_AT_A_DISTANCE: Final = frozenset({FlawEffect.RSA_KEYS_WEAK, FlawEffect.EC_KEYS_TIMED, FlawEffect.MEMORY_WRITABLE})


@dataclass(frozen=True, slots=True)
class KnownFlaw:
    """A flaw of one maker's firmware, from the version `first` on and until it was `fixed`, which does not have it.

    `manufacturer` is as in certificates, `id:` and eight digits. `advisories` are ids, the CVE first.
    """

    manufacturer: str
    first: int
    fixed: int
    advisories: tuple[str, ...]
    description: str
    effect: FlawEffect

    @property
    def disqualifying(self) -> bool:
        """Whether keys of such a TPM may not count as kept in hardware: nobody need open the chip to get at them.

        Of all keys, not only those of the kind that is weak: evidence is signed by an attestation key, which is trusted
        for the sake of an endorsement key, and one that falls takes with it whatever it vouches for.
        """
        return self.effect in _AT_A_DISTANCE


def known_flaws(manufacturer: str, firmware_version: int) -> tuple[KnownFlaw, ...]:
    """Return the flaws of this firmware; none of makers that are not registered.

    `manufacturer` is `id:XXXXXXXX`, digits in either case; `firmware_version` is the 64 bits that were attested.
    """
    maker = _identifier(manufacturer)
    return tuple(f for f in _FLAWS if f.manufacturer == maker and f.first <= firmware_version < f.fixed)


def firmware_text(manufacturer: str, firmware_version: int) -> str:
    """Return a version as its maker's advisories and tools write it: 7.62.3126.0, 73.4.17568.4452, 7.2.1.0, 3.87.0.5.

    Four fields of 16 bits in decimal, as Windows and fwupd show those of any maker; Infineon has a build of 24 bits and
    a last field of 8 (what fwupd shows as 5.62.12.13826, Infineon calls 5.62.3126.2).
    """
    upper, lower = divmod(firmware_version, 1 << 32)
    width = 8 if _identifier(manufacturer) == _INFINEON else 16
    return ".".join(map(str, (*divmod(upper, 1 << 16), *divmod(lower, 1 << width))))


def _identifier(manufacturer: str) -> str | None:
    """How the table writes a maker, None if it is not registered."""
    vendor = find_vendor(manufacturer)
    return None if vendor is None else vendor.identifier


def _version(major: int, minor: int, third: int = 0, fourth: int = 0) -> int:
    """The 64 bits of a version with four fields of 16 bits; Infineon's only where the last two are zero."""
    return major << 48 | minor << 32 | third << 16 | fourth


def _roca(first: int, fixed: int) -> KnownFlaw:
    # ADV170012, whose script calls these affected: major 5 and 7 to minor 61, 133 to 32. Majors 4 and 6 are TPM 1.2.
    return KnownFlaw(
        _INFINEON,
        first,
        fixed,
        ("CVE-2017-15361", "ADV170012"),
        "RSA keys are made of primes so alike that the private key can be computed from the public one (ROCA).",
        FlawEffect.RSA_KEYS_WEAK,
    )


def _tpm_fail_st(first: int, fixed: int) -> KnownFlaw:
    # st.com/content/st_com/en/campaigns/tpm-update.html: ST33TPHF 71.0, 71.4, 71.12; 73.0, 73.4, 73.5, 73.8, 73.9;
    # 74.0, 74.4, 74.5, 74.8, 74.9, 74.16. Fixed in 71.16; 73.20, 73.21, 73.64, 73.65; 74.20, 74.21, 74.64, 74.65. So
    # one border in each major tells bad from good.
    return KnownFlaw(
        _ST,
        first,
        fixed,
        ("CVE-2019-16863", "ADV190024"),
        "The time of an ECDSA signature tells enough of its nonce to compute the private key (TPM-FAIL).",
        FlawEffect.EC_KEYS_TIMED,
    )


def _tpm_fail_intel(first: int, fixed: int) -> KnownFlaw:
    # The CVE: PTT before 11.8.70, 11.11.70, 11.22.70, 12.0.45, 13.0.0, 14.0.10, "via network access". Only CSME 11 is
    # attested by these numbers: a PTT of its was seen to report 11.8.50.3426 (github.com/petrs/TPM_PCR, issue 4).
    return KnownFlaw(
        _INTEL,
        first,
        fixed,
        ("CVE-2019-11090", "INTEL-SA-00241"),
        "The time of an EC signature tells enough of its nonce to compute the private key (TPM-FAIL).",
        FlawEffect.EC_KEYS_TIMED,
    )


def _out_of_bounds_read(manufacturer: str, first: int, fixed: int, *advisories: str) -> KnownFlaw:
    return KnownFlaw(
        manufacturer,
        first,
        fixed,
        ("CVE-2025-2884", "TCGVRT0009", *advisories),
        "A command of inconsistent parameters reads past a buffer, which crashes the TPM or discloses memory.",
        FlawEffect.MEMORY_READABLE,
    )


_FLAWS: Final = (
    _roca(_version(5, 0), _version(5, 62)),
    _roca(_version(7, 0), _version(7, 62)),
    _roca(_version(133, 0), _version(133, 33)),
    # SLB 9670, two branches: 7.63 is the last of the one before its fix, 7.83 the first of the other. By the update
    # files of PC makers (Lenovo PS500721), as collected on GitHub; Infineon's own advisory could not be read.
    _out_of_bounds_read(_INFINEON, _version(7, 40), _version(7, 66)),
    _out_of_bounds_read(_INFINEON, _version(7, 83), _version(7, 86)),
    # SLB 9672: IEI updates 15.21 to 15.23 for it (ieiworld.com, support, cid 114).
    _out_of_bounds_read(_INFINEON, _version(15, 0), _version(15, 23)),
    _tpm_fail_st(_version(71, 0), _version(71, 16)),
    _tpm_fail_st(_version(73, 0), _version(73, 20)),
    _tpm_fail_st(_version(74, 0), _version(74, 20)),
    _tpm_fail_intel(_version(11, 0), _version(11, 8, 70)),
    _tpm_fail_intel(_version(11, 10), _version(11, 11, 70)),
    _tpm_fail_intel(_version(11, 20), _version(11, 22, 70)),
    # NPCT65x 1.3.0.1, 1.3.1.0 and 1.3.2.8. Nuvoton says that its chip stops before anything is written; the CVE says
    # that code may run. The doubt is resolved against the chip.
    KnownFlaw(
        _NUVOTON,
        _version(1, 3, 0, 1),
        _version(1, 3, 2, 20),
        ("CVE-2023-1017", "TCGVRT0007", "Nuvoton SA-003"),
        "A command with encrypted parameters writes two bytes past its end.",
        FlawEffect.MEMORY_WRITABLE,
    ),
    # NPCT75x 7.2.0.1, 7.2.0.2 and 7.2.1.0, "7.2.x before 7.2.2.0", attack vector physical.
    KnownFlaw(
        _NUVOTON,
        _version(7, 2, 0, 0),
        _version(7, 2, 2, 0),
        ("CVE-2020-25082", "Nuvoton SA-002"),
        "The time of ECDSA, ECSchnorr and ECDAA signatures tells of the private key to someone at the chip.",
        FlawEffect.EC_KEYS_MEASURED,
    ),
    # NPCT7xx, "all versions below 7.2.4.0", attack vector physical.
    KnownFlaw(
        _NUVOTON,
        _version(7, 0, 0, 0),
        _version(7, 2, 4, 0),
        ("CVE-2026-6923", "ILVN-2026-0259"),
        "An ECDH key leaks through a side channel to someone at the chip.",
        FlawEffect.EC_KEYS_MEASURED,
    ),
    # NPCT7xx: 7.2.4.1 and 7.2.5.0 have the fix (Dell DSA-2025-232).
    _out_of_bounds_read(_NUVOTON, _version(7, 0, 0, 0), _version(7, 2, 4, 1), "DSA-2025-232"),
)
