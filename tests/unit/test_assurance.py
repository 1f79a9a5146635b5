"""Assurance: its order, its storage, and that nothing is claimed which was not proved."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from keyvouch.assurance import (
    NO_ANCHOR,
    Assurance,
    AssuranceRequirement,
    Protection,
    Provenance,
    RequiredProtection,
    Verification,
)
from keyvouch.attestation import AttestationEvidence, VerifiedRegistration, assurance_of, verify_registration
from keyvouch.errors import MalformedError, Reason, UsageError
from keyvouch.webauthn import Flags
from support.forge import UP_UV, Forge

SOFTWARE_KEY = Assurance(Protection.SOFTWARE, Verification.SOFTWARE_GATED, Provenance.SELF)
HARDWARE_KEY = Assurance(Protection.TPM, Verification.HARDWARE_GATED, Provenance.ATTESTED, "Maker Root")
CERTIFIED_KEY = Assurance(Protection.SOFTWARE, Verification.SOFTWARE_GATED, Provenance.CERTIFIED, "Badges")
PROMISED_KEY = Assurance(Protection.SMARTCARD, Verification.HARDWARE_GATED, Provenance.CERTIFIED, "Badges")
HARDWARE = (Protection.TPM, Protection.SECURE_ELEMENT, Protection.SMARTCARD, Protection.TEE, Protection.HARDWARE)


def registered(**changes: object) -> VerifiedRegistration:
    return verify_registration(**Forge().registration(**changes))  # type: ignore[arg-type]


def test_the_orders() -> None:
    assert list(Verification) == sorted(Verification)
    assert Verification.NONE < Verification.SOFTWARE_GATED < Verification.HARDWARE_GATED
    assert list(Provenance) == sorted(Provenance)
    assert Provenance.ATTESTED > Provenance.CERTIFIED > Provenance.SELF > Provenance.UNATTESTED
    with pytest.raises(TypeError):
        Verification.NONE < Provenance.SELF  # noqa: B015
    assert [protection for protection in Protection if protection.is_hardware] == list(HARDWARE)


def test_a_self_attested_key_is_software_whatever_it_says() -> None:
    assert assurance_of(registered()) == SOFTWARE_KEY


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("none", UP_UV, Assurance(Protection.SOFTWARE, Verification.SOFTWARE_GATED, Provenance.UNATTESTED)),
        ("none", Flags.UP, Assurance(Protection.SOFTWARE, Verification.NONE, Provenance.UNATTESTED)),
        ("packed", Flags.UP, Assurance(Protection.SOFTWARE, Verification.NONE, Provenance.SELF)),
    ],
)
def test_without_a_chain_nothing_is_proved(name: str, flags: int, expected: Assurance) -> None:
    assert assurance_of(registered(format=name, flags=flags, require_user_verification=False)) == expected


@pytest.mark.parametrize("provenance", [Provenance.UNATTESTED, Provenance.SELF])
def test_an_untrusted_claim_of_hardware_is_ignored_w4(provenance: Provenance) -> None:
    claim = AttestationEvidence("packed", provenance, "", Protection.SMARTCARD, Verification.HARDWARE_GATED)
    assurance = assurance_of(replace(registered(), attestation=claim))
    assert assurance == Assurance(Protection.SOFTWARE, Verification.SOFTWARE_GATED, provenance)


def test_a_chain_proves_what_it_says_and_a_missing_pin_counts() -> None:
    proof = AttestationEvidence("tpm", Provenance.ATTESTED, "Maker Root", Protection.TPM, Verification.HARDWARE_GATED)
    assert assurance_of(replace(registered(), attestation=proof)) == HARDWARE_KEY
    present = replace(registered(flags=Flags.UP, require_user_verification=False), attestation=proof)
    assert assurance_of(present) == replace(HARDWARE_KEY, verification=Verification.NONE)


def test_one_signature_proves_no_more_than_its_user_verification() -> None:
    assert HARDWARE_KEY.in_ceremony(user_verified=True) is HARDWARE_KEY
    without = HARDWARE_KEY.in_ceremony(user_verified=False)
    assert without == replace(HARDWARE_KEY, verification=Verification.NONE)


@pytest.mark.parametrize(
    ("protection", "verification", "provenance", "anchor"),
    [
        (Protection.TPM, Verification.NONE, Provenance.SELF, ""),
        (Protection.SOFTWARE, Verification.HARDWARE_GATED, Provenance.UNATTESTED, ""),
        (Protection.TPM, Verification.NONE, Provenance.ATTESTED, ""),
        (Protection.SOFTWARE, Verification.NONE, Provenance.CERTIFIED, ""),
        (Protection.SMARTCARD, Verification.NONE, Provenance.CERTIFIED, ""),
        (Protection.SOFTWARE, Verification.NONE, Provenance.SELF, "Maker Root"),
    ],
)
def test_a_claim_without_its_proof_cannot_be_written_down(
    protection: Protection, verification: Verification, provenance: Provenance, anchor: str
) -> None:
    with pytest.raises(UsageError):
        Assurance(protection, verification, provenance, anchor)
    data = {
        "protection": protection.value,
        "verification": verification.value,
        "provenance": provenance.value,
        "anchor": anchor,
    }
    with pytest.raises(MalformedError) as caught:
        Assurance.from_dict(data)
    assert caught.value.reason is Reason.FIELD_INVALID


@pytest.mark.parametrize(
    ("key", "required", "shortfalls"),
    [
        (SOFTWARE_KEY, AssuranceRequirement(), ()),
        (HARDWARE_KEY, AssuranceRequirement(), ()),
        (SOFTWARE_KEY, AssuranceRequirement(RequiredProtection.HARDWARE), ("protection",)),
        (HARDWARE_KEY, AssuranceRequirement(RequiredProtection.HARDWARE), ()),
        (SOFTWARE_KEY, AssuranceRequirement(verification=Verification.HARDWARE_GATED), ("verification",)),
        (SOFTWARE_KEY, AssuranceRequirement(verification=Verification.SOFTWARE_GATED), ()),
        (SOFTWARE_KEY, AssuranceRequirement(provenance=Provenance.ATTESTED), ("provenance",)),
        (HARDWARE_KEY, AssuranceRequirement(provenance=Provenance.SELF), ()),
        (HARDWARE_KEY, AssuranceRequirement(provenance=Provenance.CERTIFIED), ()),
        (SOFTWARE_KEY, AssuranceRequirement(provenance=Provenance.CERTIFIED), ("provenance",)),
        (CERTIFIED_KEY, AssuranceRequirement(provenance=Provenance.CERTIFIED, anchors=frozenset({"Badges"})), ()),
        (
            HARDWARE_KEY,
            AssuranceRequirement(provenance=Provenance.CERTIFIED, anchors=frozenset({"Badges"})),
            ("anchor",),
        ),
        (PROMISED_KEY, AssuranceRequirement(RequiredProtection.HARDWARE, provenance=Provenance.CERTIFIED), ()),
        (
            PROMISED_KEY,
            AssuranceRequirement(RequiredProtection.HARDWARE, provenance=Provenance.ATTESTED),
            ("provenance",),
        ),
        (CERTIFIED_KEY, AssuranceRequirement(RequiredProtection.HARDWARE), ("protection",)),
        (HARDWARE_KEY, AssuranceRequirement(anchors=frozenset({"Maker Root", "Other"})), ()),
        (HARDWARE_KEY, AssuranceRequirement(anchors=frozenset({"Other"})), ("anchor",)),
        (SOFTWARE_KEY, AssuranceRequirement(anchors=frozenset({"Other"})), ("anchor",)),
        (
            Assurance(Protection.SOFTWARE, Verification.NONE, Provenance.UNATTESTED),
            AssuranceRequirement(
                RequiredProtection.HARDWARE,
                Verification.HARDWARE_GATED,
                Provenance.ATTESTED,
                frozenset({"Other"}),
            ),
            ("protection", "verification", "provenance", "anchor"),
        ),
    ],
)
def test_requirements(key: Assurance, required: AssuranceRequirement, shortfalls: tuple[str, ...]) -> None:
    assert key.shortfalls(required) == shortfalls
    assert key.satisfies(required) is not bool(shortfalls)


def test_every_hardware_kind_counts_the_same() -> None:
    required = AssuranceRequirement(RequiredProtection.HARDWARE)
    assert all(replace(HARDWARE_KEY, protection=kind).satisfies(required) for kind in HARDWARE)


def test_storage_there_and_back() -> None:
    for protection, verification, anchored in product(Protection, Verification, list(Provenance)[2:]):
        assurance = Assurance(protection, verification, anchored, "Ma\u00eetre / 1")
        assert Assurance.from_dict(assurance.to_dict()) == assurance
        assert Assurance.parse(assurance.text()) == assurance
    for place, verification, provenance in product(RequiredProtection, Verification, Provenance):
        required = AssuranceRequirement(place, verification, provenance, frozenset({"b", "a"}))
        assert required.to_dict()["anchors"] == ["a", "b"]
        assert AssuranceRequirement.from_dict(required.to_dict()) == required
        assert AssuranceRequirement.parse(required.text()) == required


def test_the_one_line_form() -> None:
    assert SOFTWARE_KEY.text() == "software/software_gated/self"
    assert Assurance.parse("software/software_gated/self") == SOFTWARE_KEY
    assert HARDWARE_KEY.text() == "tpm/hardware_gated/attested/Maker Root"
    assert CERTIFIED_KEY.text() == "software/software_gated/certified/Badges"
    assert AssuranceRequirement().text() == "any/none/unattested"
    assert AssuranceRequirement.parse("any/none/unattested") == AssuranceRequirement()


@pytest.mark.parametrize(
    "names", [{"a,b"}, {"a", "b"}, {"a/b"}, {"%2C"}, {"%"}, {"%25,"}, {"a, b", "%2C,"}], ids=range(7)
)
def test_no_name_of_an_anchor_reads_as_another(names: set[str]) -> None:
    required = AssuranceRequirement(anchors=frozenset(names))
    assert AssuranceRequirement.parse(required.text()) == required


@pytest.mark.parametrize(
    "text", ["", "software", "software/none", "software/none/self/", "any/none/self", "software/none/self/root", "//"]
)
def test_other_text_is_no_assurance(text: str) -> None:
    with pytest.raises(MalformedError):
        Assurance.parse(text)


@pytest.mark.parametrize("text", ["", "any/none", "any/none/self/", "any/none/self/a,,b", "tpm/none/self"])
def test_other_text_is_no_requirement(text: str) -> None:
    with pytest.raises(MalformedError):
        AssuranceRequirement.parse(text)


@pytest.mark.parametrize("name", ["protection", "verification", "provenance", "anchor"])
@pytest.mark.parametrize("value", [None, 1, "unknown", ["software"]])
def test_what_was_not_written_by_us_is_refused(name: str, value: object) -> None:
    data = HARDWARE_KEY.to_dict()
    if (name, value) != ("anchor", "unknown"):
        with pytest.raises(MalformedError):
            Assurance.from_dict({**data, name: value})
    for wrong in ({key: data[key] for key in data if key != name}, {**data, "more": ""}):
        with pytest.raises(MalformedError):
            Assurance.from_dict(wrong)


@pytest.mark.parametrize(
    "change",
    [
        {"anchors": "Other"},
        {"anchors": [1]},
        {"anchors": [""]},
        {"protection": "tpm"},
        {"verification": None},
        {"x": 1},
    ],
    ids=repr,
)
def test_requirements_that_were_not_written_by_us_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(MalformedError):
        AssuranceRequirement.from_dict({**AssuranceRequirement().to_dict(), **change})


# two requirements as one

REQUIREMENTS = [
    AssuranceRequirement(protection, verification, provenance, frozenset(anchors))
    for protection, verification, provenance, anchors in product(
        RequiredProtection, Verification, Provenance, ((), ("Badges",), ("Maker Root",), ("Badges", "Maker Root"))
    )
]
KEYS = [
    SOFTWARE_KEY,
    HARDWARE_KEY,
    CERTIFIED_KEY,
    PROMISED_KEY,
    Assurance(Protection.SOFTWARE, Verification.NONE, Provenance.UNATTESTED),
    Assurance(Protection.SOFTWARE, Verification.SOFTWARE_GATED, Provenance.UNATTESTED),
    replace(HARDWARE_KEY, anchor="Badges"),
    replace(HARDWARE_KEY, verification=Verification.NONE),
]


def test_together_two_requirements_ask_for_both_and_for_nothing_more() -> None:
    for one, other in product(REQUIREMENTS, repeat=2):
        both = one.together_with(other)
        assert both == other.together_with(one)
        for key in KEYS:
            assert key.satisfies(both) is (key.satisfies(one) and key.satisfies(other)), (one, other, key)


def test_together_with_itself_and_with_the_least_a_requirement_stays_what_it_is() -> None:
    for one in REQUIREMENTS:
        assert one.together_with(one) == one
        assert one.together_with(AssuranceRequirement()) == one
        assert AssuranceRequirement().together_with(one) == one


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("any/none/unattested", "hardware/none/unattested", "hardware/none/unattested"),
        ("hardware/software_gated/self", "any/hardware_gated/unattested", "hardware/hardware_gated/self"),
        ("any/none/self/A,B", "any/none/attested", "any/none/attested/A,B"),
        ("any/none/attested/A,B", "any/none/attested/B,C", "any/none/attested/B"),
        ("any/none/attested/A", "any/none/attested/B", f"any/none/attested/{NO_ANCHOR}"),
        (f"any/none/attested/{NO_ANCHOR}", "any/none/attested/A", f"any/none/attested/{NO_ANCHOR}"),
    ],
)
def test_together_component_by_component(one: str, other: str, expected: str) -> None:
    both = AssuranceRequirement.parse(one).together_with(AssuranceRequirement.parse(other))
    assert both.text() == expected
    assert AssuranceRequirement.parse(both.text()) == both


def test_where_the_anchors_have_none_in_common_no_key_will_do() -> None:
    one, other = (AssuranceRequirement(anchors=frozenset({name})) for name in ("Badges", "Maker Root"))
    both = one.together_with(other)
    assert not any(key.satisfies(both) for key in KEYS)
    assert any(key.satisfies(one) for key in KEYS)
    assert any(key.satisfies(other) for key in KEYS)
