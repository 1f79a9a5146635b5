"""What people are told beside a result: campaigns, events nobody has looked at, devices that may be lost.

Not here: when they are told.
"""

from __future__ import annotations

from collections.abc import Iterable

from keyvouch.v1 import common_pb2, security_info_pb2
from keyvouch_client.commands.messages import spoken
from keyvouch_client.commands.output import Output, inert

__all__ = ["campaign_lines", "lost_or_replaced_lines", "risk_line"]


def campaign_lines(output: Output, campaigns: Iterable[common_pb2.CampaignNotice]) -> list[str]:
    """What is to be registered, and until when."""
    return [_campaign(output, notice) for notice in campaigns]


def _campaign(output: Output, notice: common_pb2.CampaignNotice) -> str:
    wanted = _wanted(notice.required_assurance)
    if notice.overdue:
        when = f"was due {output.time(notice.required_by)}: until it is done, sign-ins are good for registering only"
    else:
        when = f"until {output.time(notice.required_by)}"
    return f"{inert(notice.name)}: register {wanted}, {when}. `keyvouch security-info add` tells how."


def _wanted(required: common_pb2.AssuranceRequirement) -> str:
    kind = {
        common_pb2.REQUIRED_PROTECTION_HARDWARE: "a key in hardware",
    }.get(required.protection, "a key")
    gate = " whose PIN the hardware checks" if required.verification == common_pb2.VERIFICATION_HARDWARE_GATED else ""
    proof = spoken(common_pb2.Provenance.Name(required.provenance), "PROVENANCE_")
    vouched = f", {proof}" if proof in ("attested", "certified") else ""
    return f"{kind}{gate}{vouched}"


def lost_or_replaced_lines(told: security_info_pb2.GetSecurityInfoResponse) -> list[str]:
    """The question of whoever came with a pass although there are devices."""
    if not told.ask_lost_or_replaced:
        return []
    names = ", ".join(inert(device.display_name or device.device_id) for device in told.devices)
    question = f"You signed in with an access pass, and you have: {names}. Is one of them lost or replaced?"
    lost, replaced = "`keyvouch security-info lost DEVICE`", "`keyvouch security-info remove DEVICE --replaced`"
    answers = f"{lost} takes a lost one away with its sessions, {replaced} one that is in good hands."
    return [question, f"{answers} `keyvouch-agent enroll` asks too, once the new one is made."]


def risk_line(count: int) -> list[str]:
    """What administrators are told after their own sign-in."""
    if not count:
        return []
    events = "one event looks" if count == 1 else f"{count} events look"
    return [f"In your tenant {events} like an attack, and nobody has looked: `keyvouch admin risk list --open`."]
