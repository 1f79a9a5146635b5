"""`keyvouch admin policy`: the rules as they are, and as they were. Changing them is `commands.policy_change`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from keyvouch.v1 import administration_pb2, common_pb2, policies_pb2
from keyvouch_client.commands.invocation import Invocation, pages
from keyvouch_client.commands.messages import document
from keyvouch_client.commands.output import inert, table
from keyvouch_client.commands.policy_names import LISTS, Names
from keyvouch_client.commands.policy_settings import changes_between, settings_of
from keyvouch_client.session import Session

__all__ = ["apps", "campaigns", "change_lines", "diff", "history", "present", "requirement_text", "show", "targets"]

_ID = re.compile(r"\b(?:usr|grp)_[a-z2-7]{26}\b")


async def present(session: Session) -> administration_pb2.Policy:
    """The policy as it is now."""
    request = administration_pb2.GetPolicyRequest()
    return (await session.call(session.connection.administration.GetPolicy, request)).policy


async def _at(session: Session, version: int) -> policies_pb2.GetPolicyVersionResponse:
    request = policies_pb2.GetPolicyVersionRequest(version=version)
    return await session.call(session.connection.policies.GetPolicyVersion, request)


async def show(run: Invocation) -> None:
    """Show every setting, now or at a version."""
    async with run.session() as session:
        version = run.arguments.version
        policy = (await _at(session, version)).policy if version else await present(session)
        settings = settings_of(policy)
        known = await Names(session).told(_ids(settings.values())) if not run.output.as_json else {}
    width = max(map(len, settings))
    lines = [f"{inert(name):<{width}}  {inert(value)}" for name, value in settings.items()]
    run.output.show(document(policy), f"{'version':<{width}}  {policy.version}", *lines, *_name_lines(known))


async def history(run: Invocation) -> None:
    """List the versions, the newest first."""
    found: list[policies_pb2.PolicyVersion] = []
    async with run.session() as session:

        async def fetch(page: common_pb2.PageRequest) -> policies_pb2.ListPolicyVersionsResponse:
            request = policies_pb2.ListPolicyVersionsRequest(page=page)
            return await session.call(session.connection.policies.ListPolicyVersions, request)

        async for page in pages(fetch):
            found += page.versions
            if len(found) >= run.arguments.limit:
                break
        found = found[: run.arguments.limit]
        known = await Names(session).told(one.created_by for one in found) if not run.output.as_json else {}
    rows = [
        (one.version, run.output.minute(one.created_at), known.get(one.created_by, one.created_by), _in_short(run, one))
        for one in found
    ]
    listing = table(("version", "saved", "by", "what changed"), rows, fold=True)
    run.output.show({"versions": [document(one) for one in found]}, listing)


def _in_short(run: Invocation, one: policies_pb2.PolicyVersion) -> str:
    return "; ".join(
        f"{d.setting}: {_told(run, d.setting, d.before)} -> {_told(run, d.setting, d.after)}" for d in one.differences
    )


async def diff(run: Invocation) -> None:
    """Show what a version changed, or what is different between two."""
    one, other = run.arguments.one, run.arguments.other
    async with run.session() as session:
        if other is None:
            saved = (await _at(session, one)).saved
            changes = {d.setting: {"from": d.before, "to": d.after} for d in saved.differences}
            said = f"Version {one} changed nothing." if one > 1 else "Version 1 is the first one."
        else:
            before, after = [settings_of((await _at(session, number)).policy) for number in (one, other)]
            changes = changes_between(before, after)
            said = f"Versions {one} and {other} are the same."
        lines = await change_lines(run, session, changes) or [said]
    run.output.show({"changes": changes}, *lines)


async def targets(run: Invocation) -> None:
    """Show whom each method is for."""
    async with run.session() as session:
        policy = await present(session)
        found = {method: getattr(policy, method).targets for method in ("approval", "security_key", "access_pass")}
        named = [one for target in found.values() for name in LISTS for one in getattr(target, name)]
        known = await Names(session).told(named) if not run.output.as_json else {}
    rows = [
        (
            method,
            "on" if getattr(policy, method).enabled else "off",
            "everybody" if target.everybody else _people((target.include_groups, target.include_users), known),
            _people((target.exclude_groups, target.exclude_users), known),
        )
        for method, target in found.items()
    ]
    listing = table(("method", "is", "for", "but not for"), rows)
    run.output.show({method: document(target) for method, target in found.items()}, listing)


async def apps(run: Invocation) -> None:
    """List the rules of apps."""
    async with run.session() as session:
        policy = await present(session)
    rows = [
        (one.app_id, requirement_text(one.required_assurance), "yes" if one.phishing_resistant else "no")
        for one in policy.apps
    ]
    listing = table(("app", "key", "phishing-resistant"), rows) if rows else "No app has a rule of its own."
    run.output.show({"apps": [document(one) for one in policy.apps]}, listing)


async def campaigns(run: Invocation) -> None:
    """List the campaigns."""
    async with run.session() as session:
        policy = await present(session)
        named = [one for c in policy.campaigns for name in LISTS for one in getattr(c.targets, name)]
        known = await Names(session).told(named) if not run.output.as_json else {}
    rows = [
        (
            one.name,
            run.output.minute(one.required_by),
            requirement_text(one.required_assurance),
            "everybody"
            if one.targets.everybody
            else _people((one.targets.include_groups, one.targets.include_users), known),
            _people((one.targets.exclude_groups, one.targets.exclude_users), known),
        )
        for one in policy.campaigns
    ]
    listing = table(("campaign", "by", "key", "for", "but not for"), rows) if rows else "There is no campaign."
    run.output.show({"campaigns": [document(one) for one in policy.campaigns]}, listing)


def _people(lists: Iterable[Iterable[str]], known: Mapping[str, str]) -> str:
    return ", ".join(known.get(one, one) for ids in lists for one in ids)


def requirement_text(requirement: common_pb2.AssuranceRequirement) -> str:
    """A required assurance in one line, as it is typed."""
    settings = settings_of(requirement)
    words = [settings[name] for name in ("protection", "verification", "provenance")]
    return "/".join([*words, *([settings["anchors"]] if settings["anchors"] else [])])


async def change_lines(run: Invocation, session: Session, changes: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Changes for people, one in a line, and who it is that they name. Programs need no lines."""
    if run.output.as_json:
        return []
    known = await Names(session).told(_ids(text for change in changes.values() for text in change.values()))
    lines = [
        f"{inert(name)}: {_told(run, name, c['from'])} -> {_told(run, name, c['to'])}" for name, c in changes.items()
    ]
    return [*lines, *_name_lines(known)]


def _told(run: Invocation, setting: str, value: str) -> str:
    """A value as people read it: the day of a campaign is no number of seconds."""
    is_day = setting.startswith("campaigns.") and setting.endswith(".required_by") and value.isdecimal()
    return run.output.minute(int(value)) if is_day else inert(value) or "-"


def _ids(texts: Iterable[str]) -> list[str]:
    return [one for text in texts for one in _ID.findall(text)]


def _name_lines(known: Mapping[str, str]) -> list[str]:
    """What the ids in the lines above stand for."""
    kinds = {"usr": "user", "grp": "group"}
    return [f"  {one} is the {kinds[one[:3]]} {inert(name)}" for one, name in known.items()]
