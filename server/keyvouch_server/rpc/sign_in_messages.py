"""Methods, rules and campaigns on the wire, as sign-in, security info and explanations have them in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from keyvouch.v1 import common_pb2 as pb
from keyvouch_server.domain.evaluation import DueCampaign
from keyvouch_server.domain.model import DeviceFate, SignInMethod
from keyvouch_server.domain.names import invalid_field
from keyvouch_server.domain.verdicts import Outcome, Verdict
from keyvouch_server.rpc import convert

_METHOD: Final = {m: pb.SignInMethod.Value(f"SIGN_IN_METHOD_{m.name}") for m in SignInMethod}
_OUTCOME: Final = {o: pb.RuleOutcome.Value(f"RULE_OUTCOME_{o.name}") for o in Outcome}
_FATE: Final[Mapping[int, DeviceFate]] = {pb.DeviceFate.Value(f"DEVICE_FATE_{f.name}"): f for f in DeviceFate}


def method_message(method: SignInMethod) -> Any:
    """A method on the wire."""
    return _METHOD[method]


def method_from(value: int) -> SignInMethod | None:
    """A method from the wire; nothing said is None."""
    found = next((m for m, number in _METHOD.items() if number == value), None)
    if value and found is None:
        raise invalid_field("method", "one of the named values")
    return found


def fate_from(value: int, field: str = "fate") -> DeviceFate:
    """What became of a device, from the wire; where nothing is said it is not used any more."""
    if value and value not in _FATE:
        raise invalid_field(field, "one of the named values")
    return _FATE.get(value, DeviceFate.UNUSED)


def rule_message(verdict: Verdict) -> pb.RuleVerdict:
    """What one rule said."""
    return pb.RuleVerdict(
        rule=verdict.rule, outcome=_OUTCOME[verdict.outcome], detail=verdict.detail, reason=verdict.reason
    )


def campaign_message(due: DueCampaign) -> pb.CampaignNotice:
    """Something that is still to be registered."""
    return pb.CampaignNotice(
        name=due.campaign.name,
        required_by=due.campaign.required_by,
        overdue=due.overdue,
        required_assurance=convert.requirement(due.campaign.required_assurance),
    )
