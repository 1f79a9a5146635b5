"""Paths of attestation certificates: good ones are valid, each with one thing wrong is refused for that thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta, timezone

import pytest
from cryptography import x509

from keyvouch.attestation.certificate_profile import PathRule
from keyvouch.attestation.certificates import (
    FEW_ANCHORS,
    MAX_CERTIFICATES,
    find_path,
    validate_path,
)
from keyvouch.errors import UsageError
from support.certificate_forge import (
    CERT_SIGN,
    DIGITAL_SIGNATURE,
    INSTANT,
    NOT_AFTER,
    NOT_BEFORE,
    Issued,
    intermediate,
    issue,
    leaf,
    named,
    new_key,
    resign,
    root,
    rsa_key,
)
from support.certificate_paths import (
    LEAF,
    MIDDLE,
    NAMESAKE,
    OTHER,
    STRANGER,
    TOP,
    a_chain,
    broken_rule,
    validate,
)

SECOND = timedelta(seconds=1)
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")


# What makes a path


def test_a_path_of_three() -> None:
    path = validate(LEAF, MIDDLE)
    assert path.certificates == (LEAF.certificate, MIDDLE.certificate)
    assert path.anchor.certificate == TOP.certificate


def test_the_anchor_may_be_in_the_list() -> None:
    path = validate(LEAF, MIDDLE, TOP)
    assert path.certificates == (LEAF.certificate, MIDDLE.certificate)
    assert path.anchor.certificate == TOP.certificate


def test_an_intermediate_may_be_the_anchor() -> None:
    assert validate(LEAF, anchors=[MIDDLE]).certificates == (LEAF.certificate,)
    assert validate(LEAF, MIDDLE, anchors=[MIDDLE]).certificates == (LEAF.certificate,)


def test_a_leaf_may_be_pinned() -> None:
    assert validate(LEAF, anchors=[LEAF]).certificates == (LEAF.certificate,)
    self_signed = issue("Leaf", None)
    assert validate(self_signed, anchors=[self_signed]).certificates == (self_signed.certificate,)


def test_a_pinned_leaf_issues_nothing() -> None:
    assert broken_rule(validate, leaf(LEAF), anchors=[LEAF]) is PathRule.NOT_A_CA
    assert broken_rule(validate, leaf(LEAF), LEAF, anchors=[LEAF]) is PathRule.NOT_A_CA


def test_nothing_may_follow_an_anchor() -> None:
    validate(LEAF, MIDDLE, anchors=[MIDDLE])
    assert broken_rule(validate, LEAF, MIDDLE, anchors=[LEAF]) is PathRule.ANCHOR
    assert broken_rule(validate, LEAF, MIDDLE, TOP, anchors=[MIDDLE]) is PathRule.ANCHOR


def test_a_renewed_root_is_the_same_anchor() -> None:
    """The list has an edition of the root that has expired; the one that is configured is good."""
    old = root(key=TOP.key, not_after=INSTANT - SECOND)
    path = validate(LEAF, MIDDLE, old)
    assert path.certificates == (LEAF.certificate, MIDDLE.certificate)
    assert path.anchor.certificate == TOP.certificate
    assert broken_rule(validate, LEAF, MIDDLE, anchors=[old]) is PathRule.VALIDITY
    end = leaf(TOP)
    assert validate(end, old).certificates == (end.certificate,)


def test_a_renewed_root_has_to_be_signed_by_the_anchor() -> None:
    forged = resign(root(key=TOP.key, not_after=INSTANT - SECOND), STRANGER, list)
    assert broken_rule(validate, LEAF, MIDDLE, forged) is PathRule.SIGNATURE


def test_an_edition_alone_is_a_leaf() -> None:
    edition = root(key=TOP.key)
    assert validate(edition).certificates == (edition.certificate,)
    expired = root(key=TOP.key, not_after=INSTANT - SECOND)
    assert broken_rule(validate, expired) is PathRule.VALIDITY


def test_a_self_issued_certificate_of_another_key_is_part_of_the_path() -> None:
    rolled = root(TOP.certificate.subject, key=new_key())
    bridge = intermediate(TOP, TOP.certificate.subject, key=rolled.key)
    end = leaf(bridge)
    assert validate(end, bridge).certificates == (end.certificate, bridge.certificate)
    expired = intermediate(TOP, TOP.certificate.subject, key=rolled.key, not_after=INSTANT - SECOND)
    assert broken_rule(validate, leaf(expired), expired) is PathRule.VALIDITY


def test_a_certificate_of_the_anchors_key_under_another_name_is_part_of_the_path() -> None:
    same_key = intermediate(TOP, key=TOP.key)
    end = leaf(same_key)
    assert validate(end, same_key).certificates == (end.certificate, same_key.certificate)


def test_the_first_anchor_that_will_do_is_named() -> None:
    names = [replace(TOP.anchor, name=name) for name in ("first", "second")]
    assert validate(LEAF, MIDDLE, anchors=[STRANGER, *names]).anchor.name == "first"


def test_anchors_of_one_name_are_all_tried() -> None:
    namesakes = [root(), root(not_after=INSTANT - SECOND, key=TOP.key)]
    assert validate(LEAF, MIDDLE, anchors=[*namesakes, TOP]).anchor.certificate == TOP.certificate
    assert broken_rule(validate, LEAF, MIDDLE, anchors=namesakes) is PathRule.SIGNATURE
    assert broken_rule(validate, LEAF, MIDDLE, anchors=namesakes[::-1]) is PathRule.VALIDITY


def test_there_is_no_path_without_an_anchor() -> None:
    assert broken_rule(validate, LEAF, MIDDLE, TOP, anchors=[]) is PathRule.ANCHOR
    assert broken_rule(validate, LEAF, MIDDLE, TOP, anchors=[STRANGER]) is PathRule.ANCHOR


# Lists that are no path

LISTS: dict[str, tuple[list[Issued], PathRule]] = {
    "empty": ([], PathRule.LENGTH),
    "a thousand": ([LEAF, *[MIDDLE] * 999], PathRule.LENGTH),
    "missing intermediate": ([LEAF], PathRule.ANCHOR),
    "missing intermediate, with root": ([LEAF, TOP], PathRule.ISSUER_NAME),
    "wrong intermediate": ([LEAF, OTHER], PathRule.ISSUER_NAME),
    "wrong intermediate of the same name": ([LEAF, NAMESAKE], PathRule.SIGNATURE),
    "doubled leaf": ([LEAF, LEAF, MIDDLE], PathRule.DOUBLED),
    "doubled intermediate": ([LEAF, MIDDLE, MIDDLE], PathRule.DOUBLED),
    "doubled root": ([LEAF, MIDDLE, TOP, TOP], PathRule.DOUBLED),
    "extra intermediate behind": ([LEAF, MIDDLE, OTHER], PathRule.ISSUER_NAME),
    "extra intermediate between": ([LEAF, OTHER, MIDDLE], PathRule.ISSUER_NAME),
    "extra root behind": ([LEAF, MIDDLE, TOP, STRANGER], PathRule.ANCHOR),
    "reversed": ([MIDDLE, LEAF], PathRule.ANCHOR),
    "reversed with root": ([TOP, MIDDLE, LEAF], PathRule.ANCHOR),
    "root in the middle": ([LEAF, TOP, MIDDLE], PathRule.ISSUER_NAME),
    "self-signed leaf": ([issue("Leaf", None)], PathRule.ANCHOR),
    "self-signed leaf with the path of another": ([issue("Leaf", None), MIDDLE], PathRule.ISSUER_NAME),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_that_are_no_path_W9(case: str) -> None:
    validate(LEAF, MIDDLE)
    path, rule = LISTS[case]
    assert broken_rule(validate, *path) is rule


def test_the_longest_path() -> None:
    assert len(validate(*a_chain(MAX_CERTIFICATES)).certificates) == MAX_CERTIFICATES == 8
    assert broken_rule(validate, *a_chain(MAX_CERTIFICATES + 1)) is PathRule.LENGTH


def test_a_long_list_costs_nothing() -> None:
    class Unread(Sequence[x509.Certificate]):
        def __len__(self) -> int:
            return MAX_CERTIFICATES + 1

        def __getitem__(self, index: object) -> x509.Certificate:  # type: ignore[override]
            raise AssertionError("A certificate of too long a list was read.")

    assert broken_rule(validate_path, Unread(), anchors=[TOP.anchor], instant=INSTANT) is PathRule.LENGTH


# Attackers with keys of their own


def test_a_root_of_the_same_name_and_key_identifier_is_another_W9() -> None:
    identifier: list[tuple[x509.ExtensionType, bool]] = [(x509.SubjectKeyIdentifier(b"same"), False)]
    genuine, forged = root(extensions=identifier), root(extensions=identifier)
    end = leaf(forged)
    validate(leaf(genuine), anchors=[genuine])
    assert broken_rule(validate, end, anchors=[genuine]) is PathRule.SIGNATURE
    assert broken_rule(validate, end, forged, anchors=[genuine]) is PathRule.SIGNATURE


def test_a_leaf_issues_nothing_W9() -> None:
    mallory = leaf(LEAF)
    assert broken_rule(validate, mallory, LEAF, MIDDLE) is PathRule.NOT_A_CA


def test_names_are_compared_byte_for_byte() -> None:
    def as_printable_string(fields: list[bytes]) -> list[bytes]:
        return [*fields[:3], fields[3].replace(b"\x0c\x0cIntermediate", b"\x13\x0cIntermediate"), *fields[4:]]

    assert validate(resign(LEAF, MIDDLE, list), MIDDLE)
    changed = resign(LEAF, MIDDLE, as_printable_string)
    assert changed.certificate.issuer == MIDDLE.certificate.subject
    assert broken_rule(validate, changed, MIDDLE) is PathRule.SIGNATURE


def test_a_link_has_one_signature_algorithm() -> None:
    sha384 = bytes.fromhex("300a06082a8648ce3d040303")
    changed = resign(LEAF, MIDDLE, lambda fields: [*fields[:2], sha384, *fields[3:]])
    assert broken_rule(validate, changed, MIDDLE) is PathRule.SIGNATURE


def test_a_signature_of_another_kind_of_key() -> None:
    claimed = Issued(MIDDLE.certificate, rsa_key(2048))
    assert broken_rule(validate, leaf(claimed), MIDDLE) is PathRule.SIGNATURE


# Authority: each case is an intermediate, a leaf under it, and the control without the fault

AUTHORITY: dict[str, tuple[Callable[[], Issued], PathRule | None]] = {
    "as it should be": (lambda: intermediate(TOP), None),
    "not critical": (
        lambda: issue("I", TOP, extensions=[(x509.BasicConstraints(True, None), False)], key_usage=CERT_SIGN),
        None,
    ),
    "no basicConstraints": (lambda: intermediate(TOP, ca=None), PathRule.NOT_A_CA),
    "CA false": (lambda: intermediate(TOP, ca=False), PathRule.NOT_A_CA),
    "version 1": (lambda: resign(MIDDLE, TOP, lambda fields: fields[1:7]), PathRule.NOT_A_CA),
    "version 1 with extensions": (lambda: resign(MIDDLE, TOP, lambda fields: fields[1:]), PathRule.NOT_A_CA),
    "no keyUsage": (lambda: intermediate(TOP, key_usage=None), None),
    "keyUsage without keyCertSign": (lambda: intermediate(TOP, key_usage=DIGITAL_SIGNATURE), PathRule.KEY_USAGE),
    "path length 0": (lambda: intermediate(TOP, path_length=0), None),
    "expired": (lambda: intermediate(TOP, not_after=INSTANT - SECOND), PathRule.VALIDITY),
    "not valid yet": (lambda: intermediate(TOP, not_before=INSTANT + SECOND), PathRule.VALIDITY),
    "issuer of another name": (lambda: intermediate(TOP, issuer_name=named("Nobody")), PathRule.ANCHOR),
    "signed by a stranger": (
        lambda: intermediate(STRANGER, issuer_name=TOP.certificate.subject),
        PathRule.SIGNATURE,
    ),
}


@pytest.mark.parametrize("case", AUTHORITY)
def test_intermediates_W9(case: str) -> None:
    make, rule = AUTHORITY[case]
    middle = make()
    end = leaf(Issued(middle.certificate, middle.key))
    if rule is None:
        assert validate(end, middle).certificates == (end.certificate, middle.certificate)
    else:
        assert broken_rule(validate, end, middle) is rule


ANCHORS: dict[str, tuple[Callable[[], Issued], PathRule | None]] = {
    "as it should be": (root, None),
    "no basicConstraints": (lambda: root(ca=None), PathRule.NOT_A_CA),
    "CA false": (lambda: root(ca=False), PathRule.NOT_A_CA),
    "version 1": (lambda: resign(TOP, TOP, lambda fields: fields[1:7]), PathRule.NOT_A_CA),
    "keyUsage without keyCertSign": (lambda: root(key_usage=DIGITAL_SIGNATURE), PathRule.KEY_USAGE),
    "expired": (lambda: root(not_after=INSTANT - SECOND), PathRule.VALIDITY),
    "not valid yet": (lambda: root(not_before=INSTANT + SECOND), PathRule.VALIDITY),
    "critical extension": (lambda: root(extensions=[(UNKNOWN, True)]), PathRule.CRITICAL_EXTENSION),
    "name constraints": (
        lambda: root(extensions=[(x509.NameConstraints([x509.DirectoryName(named("Leaf"))], None), True)]),
        PathRule.NAME_CONSTRAINTS,
    ),
    "its own signature by somebody else": (lambda: resign(TOP, STRANGER, list), None),
}


@pytest.mark.parametrize("included", [False, True], ids=["issuing", "included"])
@pytest.mark.parametrize("case", ANCHORS)
def test_anchors(case: str, included: bool) -> None:
    make, rule = ANCHORS[case]
    anchor = make()
    end = leaf(anchor)
    path = [end, anchor] if included else [end]
    if rule is None:
        assert validate(*path, anchors=[anchor]).certificates == (end.certificate,)
    else:
        assert broken_rule(validate, *path, anchors=[anchor]) is rule


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_path_length_is_counted_in_intermediates_below(limit: int) -> None:
    top = root(path_length=limit)
    chain = [top]
    for number in range(limit + 1):
        chain.append(intermediate(chain[-1], f"Intermediate {number}"))
        path = [leaf(chain[-1]), *reversed(chain[1:])]
        if number < limit:
            assert validate(*path, anchors=[top])
        else:
            assert broken_rule(validate, *path, anchors=[top]) is PathRule.PATH_LENGTH


def test_path_length_of_an_intermediate() -> None:
    limited = intermediate(TOP, "Limited", path_length=0)
    below = intermediate(limited, "Below")
    assert validate(leaf(limited), limited)
    assert broken_rule(validate, leaf(below), below, limited) is PathRule.PATH_LENGTH


def test_a_leaf_does_not_count_even_if_it_is_a_ca() -> None:
    limited = intermediate(TOP, path_length=0)
    assert validate(intermediate(limited, "A CA as leaf"), limited)


def test_self_issued_certificates_do_not_count() -> None:
    top = root(path_length=0)
    rolled = intermediate(top, top.certificate.subject)
    assert validate(leaf(rolled), rolled, anchors=[top])


# Dates


@pytest.mark.parametrize("who", ["leaf", "intermediate", "anchor"])
def test_both_ends_of_validity_are_inside(who: str) -> None:
    wide = {"not_before": NOT_BEFORE - timedelta(days=9), "not_after": NOT_AFTER + timedelta(days=9)}
    top = root(**({} if who == "anchor" else wide))
    middle = intermediate(top, **({} if who == "intermediate" else wide))
    end = leaf(middle, **({} if who == "leaf" else wide))
    tick = timedelta(microseconds=1)
    for instant in (NOT_BEFORE, INSTANT, NOT_AFTER):
        assert validate(end, middle, anchors=[top], instant=instant)
    for instant in (NOT_BEFORE - tick, NOT_AFTER + tick):
        assert broken_rule(validate, end, middle, anchors=[top], instant=instant) is PathRule.VALIDITY


def test_a_pinned_leaf_expires_as_well() -> None:
    assert validate(LEAF, anchors=[LEAF], instant=NOT_AFTER)
    assert broken_rule(validate, LEAF, anchors=[LEAF], instant=NOT_AFTER + SECOND) is PathRule.VALIDITY


def test_instants_of_any_time_zone() -> None:
    east = timezone(timedelta(hours=9))
    assert validate(LEAF, MIDDLE, instant=NOT_AFTER.astimezone(east))
    with pytest.raises(UsageError):
        validate(LEAF, MIDDLE, instant=INSTANT.replace(tzinfo=None))
    with pytest.raises(UsageError):
        find_path(LEAF.certificate, [], anchors=[], instant=INSTANT.replace(tzinfo=None))


@pytest.mark.parametrize("strangers", [FEW_ANCHORS - 2, FEW_ANCHORS - 1, FEW_ANCHORS, FEW_ANCHORS + 9])
def test_one_good_anchor_among_strangers(strangers: int) -> None:
    others = [root(f"Stranger {number}") for number in range(strangers)]
    assert validate(LEAF, MIDDLE, anchors=[*others, TOP]).anchor.certificate == TOP.certificate
    assert validate(LEAF, anchors=[*others, LEAF]).anchor.certificate == LEAF.certificate
    assert validate(LEAF, MIDDLE, TOP, anchors=[*others, TOP]).anchor.certificate == TOP.certificate
    namesake = root("Root")
    assert validate(LEAF, MIDDLE, anchors=[*others, namesake, TOP]).anchor.certificate == TOP.certificate
    assert broken_rule(validate, LEAF, MIDDLE, anchors=[*others, namesake]) is PathRule.SIGNATURE
    assert broken_rule(validate, LEAF, MIDDLE, anchors=others) is PathRule.ANCHOR
