"""Firmware is flawed from the first version that an advisory names up to the one that mends it, and no other is."""

from __future__ import annotations

import pytest

from keyvouch.attestation.tpm_firmware import FlawEffect, KnownFlaw, firmware_text, known_flaws

INFINEON = "id:49465800"
INTEL = "id:494E5443"
NUVOTON = "id:4E544300"
ST = "id:53544D20"
AMD = "id:414D4400"
MAKERS = (INFINEON, INTEL, NUVOTON, ST, AMD)

ROCA = "CVE-2017-15361"
TPM_FAIL_ST = "CVE-2019-16863"
TPM_FAIL_INTEL = "CVE-2019-11090"
WRITE = "CVE-2023-1017"
READ = "CVE-2025-2884"
ECDSA = "CVE-2020-25082"
ECDH = "CVE-2026-6923"

# Maker, CVE, first version that has it, first that does not: the numbers of the advisories.
RANGES = [
    (INFINEON, ROCA, "5.0.0.0", "5.62.0.0"),
    (INFINEON, ROCA, "7.0.0.0", "7.62.0.0"),
    (INFINEON, ROCA, "133.0.0.0", "133.33.0.0"),
    (INFINEON, READ, "7.40.0.0", "7.66.0.0"),
    (INFINEON, READ, "7.83.0.0", "7.86.0.0"),
    (INFINEON, READ, "15.0.0.0", "15.23.0.0"),
    (ST, TPM_FAIL_ST, "71.0.0.0", "71.16.0.0"),
    (ST, TPM_FAIL_ST, "73.0.0.0", "73.20.0.0"),
    (ST, TPM_FAIL_ST, "74.0.0.0", "74.20.0.0"),
    (INTEL, TPM_FAIL_INTEL, "11.0.0.0", "11.8.70.0"),
    (INTEL, TPM_FAIL_INTEL, "11.10.0.0", "11.11.70.0"),
    (INTEL, TPM_FAIL_INTEL, "11.20.0.0", "11.22.70.0"),
    (NUVOTON, WRITE, "1.3.0.1", "1.3.2.20"),
    (NUVOTON, ECDSA, "7.2.0.0", "7.2.2.0"),
    (NUVOTON, ECDH, "7.0.0.0", "7.2.4.0"),
    (NUVOTON, READ, "7.0.0.0", "7.2.4.1"),
]

EFFECTS = {
    ROCA: (FlawEffect.RSA_KEYS_WEAK, True),
    TPM_FAIL_ST: (FlawEffect.EC_KEYS_TIMED, True),
    TPM_FAIL_INTEL: (FlawEffect.EC_KEYS_TIMED, True),
    WRITE: (FlawEffect.MEMORY_WRITABLE, True),
    READ: (FlawEffect.MEMORY_READABLE, False),
    ECDSA: (FlawEffect.EC_KEYS_MEASURED, False),
    ECDH: (FlawEffect.EC_KEYS_MEASURED, False),
}


# Maker and CVE to the other names that an advisory goes by.
ALSO = {
    (INFINEON, ROCA): ["ADV170012"],
    (INFINEON, READ): ["TCGVRT0009"],
    (ST, TPM_FAIL_ST): ["ADV190024"],
    (INTEL, TPM_FAIL_INTEL): ["INTEL-SA-00241"],
    (NUVOTON, WRITE): ["TCGVRT0007", "Nuvoton SA-003"],
    (NUVOTON, ECDSA): ["Nuvoton SA-002"],
    (NUVOTON, ECDH): ["ILVN-2026-0259"],
    (NUVOTON, READ): ["TCGVRT0009", "DSA-2025-232"],
}


def number(text: str) -> int:
    """A version of four fields of 16 bits as it is attested."""
    return int.from_bytes(b"".join(int(field).to_bytes(2) for field in text.split(".")))


def cves(manufacturer: str, version: int) -> list[str]:
    return [flaw.advisories[0] for flaw in known_flaws(manufacturer, version)]


@pytest.mark.parametrize(("maker", "cve", "first", "fixed"), RANGES)
class TestRanges:
    def test_the_first_version_has_it(self, maker: str, cve: str, first: str, fixed: str) -> None:
        assert cve in cves(maker, number(first))

    def test_the_last_version_before_the_fix_has_it(self, maker: str, cve: str, first: str, fixed: str) -> None:
        assert cve in cves(maker, number(fixed) - 1)

    def test_the_fixed_version_does_not(self, maker: str, cve: str, first: str, fixed: str) -> None:
        assert cve not in cves(maker, number(fixed))

    def test_a_version_below_does_not(self, maker: str, cve: str, first: str, fixed: str) -> None:
        assert cve not in cves(maker, number(first) - 1)

    def test_no_other_maker_has_the_same(self, maker: str, cve: str, first: str, fixed: str) -> None:
        flaw = flaw_of(maker, cve, number(first))
        for other in set(MAKERS) - {maker}:
            assert flaw not in known_flaws(other, number(first))

    def test_it_is_described(self, maker: str, cve: str, first: str, fixed: str) -> None:
        flaw = flaw_of(maker, cve, number(first))
        assert (flaw.manufacturer, flaw.first, flaw.fixed) == (maker, number(first), number(fixed))
        assert (flaw.effect, flaw.disqualifying) == EFFECTS[cve]
        assert flaw.description.endswith(".")
        assert flaw.description.count(". ") == 0
        assert list(flaw.advisories) == [cve, *ALSO[maker, cve]]


def flaw_of(maker: str, cve: str, version: int) -> KnownFlaw:
    """The flaw with this CVE; exactly one entry covers a version."""
    (flaw,) = [flaw for flaw in known_flaws(maker, version) if flaw.advisories[0] == cve]
    return flaw


def test_effects_have_names_of_their_own() -> None:
    assert [effect.value for effect in FlawEffect] == [
        "rsa_keys_weak",
        "ec_keys_timed",
        "ec_keys_measured",
        "memory_writable",
        "memory_readable",
    ]


def test_nothing_else_is_known() -> None:
    listed = {(maker, number(first), number(fixed)) for maker, _, first, fixed in RANGES}
    versions = [number(f"{major}.{minor}.1.0") for major in range(150) for minor in range(100)]
    found = {flaw for maker in MAKERS for version in versions for flaw in known_flaws(maker, version)}
    assert {(flaw.manufacturer, flaw.first, flaw.fixed) for flaw in found} == listed
    assert len(found) == len(RANGES)


@pytest.mark.parametrize(
    ("maker", "version", "expected"),
    [
        (ST, "71.0.0.0", True),
        (ST, "71.4.0.0", True),
        (ST, "71.12.17568.4100", True),
        (ST, "71.16.0.0", False),
        (ST, "72.0.0.0", False),
        (ST, "73.4.17568.4452", True),
        (ST, "73.5.0.0", True),
        (ST, "73.8.0.0", True),
        (ST, "73.9.0.0", True),
        (ST, "73.20.17568.6684", False),
        (ST, "73.21.0.0", False),
        (ST, "73.64.0.0", False),
        (ST, "73.65.0.0", False),
        (ST, "74.16.0.0", True),
        (ST, "74.64.0.0", False),
        (INTEL, "11.6.0.1121", True),
        (INTEL, "11.8.50.3399", True),
        (INTEL, "11.8.70.3626", False),
        (INTEL, "11.11.50.0", True),
        (INTEL, "302.12.0.0", False),
        (NUVOTON, "1.3.0.1", True),
        (NUVOTON, "1.3.1.0", True),
        (NUVOTON, "1.3.2.8", True),
        (NUVOTON, "1.3.2.20", False),
        (NUVOTON, "7.2.1.0", False),
        (AMD, "3.87.0.5", False),
    ],
)
def test_versions_that_advisories_and_machines_show(maker: str, version: str, expected: bool) -> None:
    assert any(flaw.disqualifying for flaw in known_flaws(maker, number(version))) == expected


def test_what_an_infineon_chip_attests() -> None:
    """A SLB 9670 with 7.61.2785.0, as tpm2_getcap showed it: 0x7003D and 0xAE100."""
    assert cves(INFINEON, 0x7003D_000AE100) == [ROCA, READ]


def test_what_a_nuvoton_chip_attests() -> None:
    """A NPCT75x with 7.2.1.0, as tpm2_getcap showed it: 0x70002 and 0x10000."""
    assert sorted(cves(NUVOTON, 0x70002_00010000)) == [ECDSA, READ, ECDH]


def test_the_digits_of_the_maker_may_be_in_either_case() -> None:
    version = number("73.4.0.0")
    assert known_flaws("id:53544d20", version) == known_flaws(ST, version) != ()


@pytest.mark.parametrize("maker", ["", "id:", "STM ", "id:FFFFF1D0", "53544D20"])
def test_of_an_unknown_maker_nothing_is_known(maker: str) -> None:
    assert known_flaws(maker, number("73.4.0.0")) == ()


@pytest.mark.parametrize("version", [0, (1 << 64) - 1])
@pytest.mark.parametrize("maker", MAKERS)
def test_of_an_extreme_version_nothing_is_known(maker: str, version: int) -> None:
    assert known_flaws(maker, version) == ()


@pytest.mark.parametrize(
    ("maker", "version", "text"),
    [
        (INFINEON, 0x7003D_000AE100, "7.61.2785.0"),
        ("id:49465800", number("5.62.12.13826"), "5.62.3126.2"),
        (ST, number("73.4.17568.4452"), "73.4.17568.4452"),
        (NUVOTON, 0x70002_00010000, "7.2.1.0"),
        (INTEL, 0x000B0008_00320D62, "11.8.50.3426"),
        (AMD, 0x00030057_00000005, "3.87.0.5"),
        ("id:FFFFF1D0", number("1.2.3.4"), "1.2.3.4"),
        (ST, 0, "0.0.0.0"),
        (ST, (1 << 64) - 1, "65535.65535.65535.65535"),
    ],
)
def test_versions_read_as_people_write_them(maker: str, version: int, text: str) -> None:
    assert firmware_text(maker, version) == text
