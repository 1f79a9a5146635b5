"""Records to messages and back: nothing is lost, nothing unknown gets in."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvouch.assurance import Provenance, RequiredProtection, Verification
from keyvouch.errors import MalformedError, Reason
from keyvouch.v1 import administration_pb2 as admin
from keyvouch.v1 import common_pb2 as pb
from keyvouch_server.domain.model import ProviderKind, Role, SignInState
from keyvouch_server.domain.policy import AccessPassPolicy, ApprovalPolicy, Policy, RegistrationPolicy, SessionPolicy
from keyvouch_server.rpc import convert
from keyvouch_server.rpc.policy_messages import policy_from, policy_message

names = st.text(st.characters(categories=("L", "N", "P", "Zs")), min_size=1, max_size=12)
requirements = st.builds(
    lambda p, v, o, anchors: convert.AssuranceRequirement(p, v, o, anchors).text(),
    st.sampled_from(RequiredProtection),
    st.sampled_from(Verification),
    st.sampled_from(Provenance),
    st.frozensets(names, max_size=3),
)
counts = st.integers(0, 2**31 - 1)
policies = st.builds(
    Policy,
    version=st.integers(0, 2**62),
    approval=st.builds(ApprovalPolicy, st.booleans(), counts, counts, requirements, counts, counts),
    access_pass=st.builds(AccessPassPolicy, st.booleans(), counts, counts, counts, st.booleans(), counts),
    registration=st.builds(RegistrationPolicy, requirements, counts),
    session=st.builds(SessionPolicy, counts, counts),
)


@given(policies)
def test_a_policy_goes_over_the_wire_and_comes_back(policy: Policy):
    message = admin.Policy.FromString(policy_message(policy).SerializeToString())
    assert policy_from(message) == policy


@given(requirements)
def test_a_requirement_goes_over_the_wire_and_comes_back(text: str):
    message = pb.AssuranceRequirement.FromString(convert.requirement(text).SerializeToString())
    assert convert.requirement_from(message, "x") == text


@pytest.mark.parametrize("part", ["approval", "access_pass", "registration", "session"])
def test_a_policy_with_a_part_missing_is_refused_and_switches_nothing_off(part: str):
    message = policy_message(Policy())
    message.ClearField(part)  # type: ignore[arg-type]
    with pytest.raises(MalformedError) as caught:
        policy_from(message)
    assert (caught.value.reason, caught.value.metadata["field"]) == (Reason.FIELD_INVALID, f"policy.{part}")


@pytest.mark.parametrize("field", ["protection", "verification", "provenance"])
@pytest.mark.parametrize("value", [0, 99, -1])
def test_a_requirement_with_an_unknown_word_is_refused(field: str, value: int):
    message = convert.requirement("any/software_gated/self")
    setattr(message, field, value)
    with pytest.raises(MalformedError) as caught:
        convert.requirement_from(message, "approval.required_assurance")
    assert caught.value.metadata["field"] == f"approval.required_assurance.{field}"


def test_enums_have_the_same_members_on_both_sides():
    for members, wire in ((Role, admin.Role), (ProviderKind, pb.ProviderKind), (SignInState, pb.SignInState)):
        wanted = {f"{wire.DESCRIPTOR.name}": len(members)}
        assert wanted == {wire.DESCRIPTOR.name: len(wire.keys()) - 1}
    for role in Role:
        assert convert.role(admin.Role.Value(f"ROLE_{role.name}")) is role
    for kind in ProviderKind:
        assert convert.provider(pb.ProviderKind.Value(f"PROVIDER_KIND_{kind.name}")) is kind
    assert (convert.role(0), convert.provider(0)) == (Role.USER, ProviderKind.SOFTWARE)
    for make in (convert.role, convert.provider):
        with pytest.raises(MalformedError):
            make(99)


@pytest.mark.parametrize(
    ("peer", "address", "place"),
    [
        ("ipv4:127.0.0.1:5000", "127.0.0.1", "this computer"),
        ("ipv6:%5B::1%5D:5000", "::1", "this computer"),
        ("ipv6:[::1]:5000", "::1", "this computer"),
        ("ipv4:192.168.1.7:5000", "192.168.1.7", "local network"),
        ("ipv6:%5Bfd00::1%5D:5000", "fd00::1", "local network"),
        ("ipv4:8.8.8.8:5000", "8.8.8.8", ""),
        ("ipv6:%5B2606:4700::1111%5D:1", "2606:4700::1111", ""),
        ("unix:/run/x.sock", "", "this computer"),
        ("ipv4:nonsense", "", ""),
        ("", "", ""),
        ("vsock:1:2", "", ""),
    ],
)
def test_where_a_caller_is(peer: str, address: str, place: str):
    assert convert.address_of(peer) == (address, place)


def test_an_unsaved_change_of_one_number_is_seen():
    policy = Policy()
    message = policy_message(policy)
    message.approval.number_digits = 6
    assert policy_from(message) == replace(policy, approval=replace(policy.approval, number_digits=6))
