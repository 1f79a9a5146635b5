"""A required assurance as people type it: one word, or its parts with slashes. Not here: what requires it."""

from __future__ import annotations

from keyvouch.assurance import AssuranceRequirement
from keyvouch.errors import MalformedError, UsageError
from keyvouch.v1 import common_pb2
from keyvouch_client.commands.policy_settings import Assignment, assign

__all__ = ["require"]

_SHORT = {"any": "any/software_gated/unattested", "hardware": "hardware/hardware_gated/attested"}
"""What people mean by one word."""


def require(message: common_pb2.AssuranceRequirement, text: str) -> None:
    """Put a required assurance, as it is typed, into its message. Raises `UsageError`."""
    try:
        wanted = AssuranceRequirement.parse(_SHORT.get(text, text))
    except MalformedError:
        raise UsageError(
            f"{text!r} is no assurance.",
            fix="Write `any`, `hardware`, or protection/verification/provenance[/anchor,...], for example "
            "hardware/hardware_gated/attested/fleet-root.",
        ) from None
    for name in ("protection", "verification", "provenance"):
        assign(message, Assignment(name, "=", str(wanted.to_dict()[name])))
    message.anchors[:] = sorted(wanted.anchors)
