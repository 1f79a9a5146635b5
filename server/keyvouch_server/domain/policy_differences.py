"""What is different between two policies, setting by setting.

Settings have the names of the fields of `keyvouch.v1.Policy`, with dots: `approval.required_assurance.protection`. The
rule of an app and a campaign are named by what they are called, `apps.payroll.phishing_resistant`, so that one that
moves in its list is no difference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final

from keyvouch.assurance import AssuranceRequirement
from keyvouch_server.domain.policy import Policy
from keyvouch_server.domain.policy_parts import AppPolicy, Campaign

LONGEST: Final = 500
"""Characters of a value that are told, of a longer one those that differ. The whole is in the policy itself."""
_BEFORE: Final = 100
"""Characters of such a part that are the same in both."""

_NAMED_BY: Final = {AppPolicy: "app_id", Campaign: "name"}


@dataclass(frozen=True, slots=True)
class Difference:
    """One setting that is different. A setting that is not there (of an app without a rule) is an empty text."""

    setting: str
    before: str
    after: str


def settings_of(policy: Policy) -> dict[str, str]:
    """Every setting but the version, as text."""
    settings = dict(_flat(policy, ""))
    del settings["version"]
    return settings


def differences(before: Policy, after: Policy) -> tuple[Difference, ...]:
    """The settings in which two policies differ, in the order of the policy."""
    old, new = settings_of(before), settings_of(after)
    names = [*new, *(name for name in old if name not in new)]
    return tuple(
        Difference(name, *_cut(old.get(name, ""), new.get(name, "")))
        for name in names
        if old.get(name, "") != new.get(name, "")
    )


def _flat(part: Any, path: str) -> Iterator[tuple[str, str]]:
    for one in fields(part):
        value, name = getattr(part, one.name), f"{path}{one.name}"
        if one.name == _NAMED_BY.get(type(part)):
            continue
        if one.name == "required_assurance":
            yield from _requirement(value, name)
        elif is_dataclass(value):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, tuple):
            yield from _listed(value, name)
        else:
            yield name, _spelled(value)


def _requirement(text: str, name: str) -> Iterator[tuple[str, str]]:
    for member, value in AssuranceRequirement.parse(text).to_dict().items():
        yield f"{name}.{member}", ",".join(value) if isinstance(value, list) else str(value)


def _listed(items: Collection[Any], name: str) -> Iterator[tuple[str, str]]:
    """Things with a name one by one, anything else as one setting."""
    if name not in ("apps", "campaigns"):
        yield name, ",".join(map(str, items))
    for item in items:
        if type(item) in _NAMED_BY:
            yield from _flat(item, f"{name}.{getattr(item, _NAMED_BY[type(item)])}.")


def _spelled(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cut(before: str, after: str) -> tuple[str, str]:
    """Both values, from shortly before where they begin to differ if one of them is long."""
    same = next((n for n, (one, other) in enumerate(zip(before, after, strict=False)) if one != other), None)
    start = max(0, (min(len(before), len(after)) if same is None else same) - _BEFORE)
    if max(len(before), len(after)) <= LONGEST or start == 0:
        return _ended(before), _ended(after)
    return _ended(f"…{before[start:]}"), _ended(f"…{after[start:]}")


def _ended(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
