"""`keyvouch admin policy`: changing the rules. What a change does is shown before it is saved.

A change is sent with the version it was made from, so it never runs over a change somebody else made meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from keyvouch.errors import UsageError
from keyvouch.v1 import administration_pb2, common_pb2, policies_pb2
from keyvouch_client.commands.asking import at_terminal, confirm
from keyvouch_client.commands.invocation import Invocation, pages
from keyvouch_client.commands.messages import document, spoken
from keyvouch_client.commands.output import Output, inert, table
from keyvouch_client.commands.policy import change_lines, present
from keyvouch_client.commands.policy_names import Names
from keyvouch_client.commands.policy_settings import assign, parse_assignment
from keyvouch_client.commands.requirements import require
from keyvouch_client.session import Session

__all__ = ["change", "remove_app", "remove_campaign", "roll_back", "set_app", "set_campaign"]

_SHOWN = 40
"""Affected users in a table; with `--json` there are all of them."""
_PAGE = 200
"""Users after whom it is worth to say how far it is."""

_Save = Callable[[], Awaitable[administration_pb2.Policy]]


@dataclass(slots=True)
class _Preview:
    """What a change does: which settings, and to whom."""

    changes: dict[str, dict[str, str]] = field(default_factory=dict)
    users: list[policies_pb2.AffectedUser] = field(default_factory=list)
    examined: int = 0
    locks_out: str = ""
    change_lines: list[str] = field(default_factory=list)

    def document(self) -> dict[str, object]:
        """For programs."""
        affected = [document(user) for user in self.users]
        return {
            "changes": self.changes,
            "affected": affected,
            "examined": self.examined,
            "locks_out": self.locks_out,
        }


async def change(run: Invocation) -> None:
    """Change settings."""
    changes = [parse_assignment(text) for text in run.arguments.settings]
    async with run.session() as session:
        policy, names = await present(session), Names(session)
        for one in changes:
            assign(policy, await names.with_ids(one))
        await _offer(run, session, policy)


async def set_app(run: Invocation) -> None:
    """Give an app a rule, or another one. What is not said stays as it is."""
    arguments = run.arguments
    async with run.session() as session:
        policy = await present(session)
        rule = next((one for one in policy.apps if one.app_id == arguments.app), None)
        if rule is None:
            rule = policy.apps.add(app_id=arguments.app)
            require(rule.required_assurance, "any")
        if arguments.assurance is not None:
            require(rule.required_assurance, arguments.assurance)
        if arguments.phishing_resistant is not None:
            rule.phishing_resistant = arguments.phishing_resistant
        await _offer(run, session, policy)


async def remove_app(run: Invocation) -> None:
    """Take the rule of an app away."""
    async with run.session() as session:
        policy = await present(session)
        kept = [one for one in policy.apps if one.app_id != run.arguments.app]
        if len(kept) == len(policy.apps):
            raise UsageError(
                f"The app {run.arguments.app!r} has no rule.", fix="`keyvouch admin policy app list` lists them."
            )
        del policy.apps[:]
        policy.apps.extend(kept)
        await _offer(run, session, policy)


async def set_campaign(run: Invocation) -> None:
    """Make a campaign, or change one. What is not said stays as it is."""
    arguments = run.arguments
    async with run.session() as session:
        policy, names = await present(session), Names(session)
        campaign = next((one for one in policy.campaigns if one.name == arguments.campaign), None)
        if campaign is None:
            if arguments.by is None:
                raise UsageError("A campaign needs a day.", fix="Say until when, with --by 2027-03-01.")
            campaign = policy.campaigns.add(name=arguments.campaign, targets=administration_pb2.Targets(everybody=True))
            require(campaign.required_assurance, "any")
        if arguments.by is not None:
            campaign.required_by = _instant(arguments.by)
        if arguments.assurance is not None:
            require(campaign.required_assurance, arguments.assurance)
        await _aim(campaign.targets, names, arguments.group, arguments.users, everybody=arguments.everybody)
        await _offer(run, session, policy)


async def _aim(
    targets: administration_pb2.Targets, names: Names, groups: list[str], users: list[str], *, everybody: bool
) -> None:
    """Whoever names groups or users means them and nobody else."""
    if everybody:
        targets.CopyFrom(administration_pb2.Targets(everybody=True))
    elif groups or users:
        targets.everybody = False
        targets.include_groups[:] = [await names.group_id(one) for one in groups]
        targets.include_users[:] = [await names.user_id(one) for one in users]


async def remove_campaign(run: Invocation) -> None:
    """End a campaign."""
    async with run.session() as session:
        policy = await present(session)
        kept = [one for one in policy.campaigns if one.name != run.arguments.campaign]
        if len(kept) == len(policy.campaigns):
            raise UsageError(
                f"There is no campaign {run.arguments.campaign!r}.",
                fix="`keyvouch admin policy campaign list` lists them.",
            )
        del policy.campaigns[:]
        policy.campaigns.extend(kept)
        await _offer(run, session, policy)


async def roll_back(run: Invocation) -> None:
    """Save the rules of an old version as a new one."""
    arguments = run.arguments
    async with run.session() as session:
        seen = (await present(session)).version

        async def save() -> administration_pb2.Policy:
            request = policies_pb2.RollBackPolicyRequest(
                version=arguments.version, present_version=seen, accept_lock_out=arguments.accept_lock_out
            )
            return (await session.call(session.connection.policies.RollBackPolicy, request)).policy

        wanted = policies_pb2.PreviewPolicyRequest(roll_back_to=arguments.version)
        await _show_and_save(run, await _preview(run, session, wanted), save, seen)


async def _offer(run: Invocation, session: Session, policy: administration_pb2.Policy) -> None:
    """Show what a changed policy would do, and save it."""

    async def save() -> administration_pb2.Policy:
        request = administration_pb2.UpdatePolicyRequest(policy=policy, accept_lock_out=run.arguments.accept_lock_out)
        return (await session.call(session.connection.administration.UpdatePolicy, request)).policy

    preview = await _preview(run, session, policies_pb2.PreviewPolicyRequest(policy=policy))
    await _show_and_save(run, preview, save, policy.version)


async def _preview(run: Invocation, session: Session, wanted: policies_pb2.PreviewPolicyRequest) -> _Preview:
    """Ask for everybody, page by page. People see how far it is."""
    found = _Preview()

    async def fetch(page: common_pb2.PageRequest) -> policies_pb2.PreviewPolicyResponse:
        request = policies_pb2.PreviewPolicyRequest()
        request.CopyFrom(wanted)
        request.page.CopyFrom(page)
        return await session.call(session.connection.policies.PreviewPolicy, request)

    async for page in pages(fetch):
        found.changes = {d.setting: {"from": d.before, "to": d.after} for d in page.differences}
        found.locks_out, found.examined = page.locks_out, found.examined + page.examined
        found.users += page.users
        if page.next_token and found.examined >= _PAGE:
            run.output.progress(f"{found.examined} users looked at ...")
        if not found.changes:
            break
    if found.examined > _PAGE:
        run.output.progress("")
    found.change_lines = await change_lines(run, session, found.changes)
    return found


async def _show_and_save(run: Invocation, preview: _Preview, save: _Save, version: int) -> None:
    arguments, output = run.arguments, run.output
    lines = _preview_lines(output, preview)
    if arguments.dry_run or not preview.changes:
        closing = "Nothing was saved." if preview.changes else "Nothing is different, so nothing was saved."
        output.show({**preview.document(), "dry_run": arguments.dry_run, "version": version}, *lines, closing)
        return
    if at_terminal(run) and not arguments.yes and (arguments.accept_lock_out or not preview.locks_out):
        for line in lines:
            output.note(line)
        lines = []
        await confirm(run, f"This is saved as version {version + 1}.")
    saved = await save()
    told = {**preview.document(), "dry_run": False, "version": saved.version, "policy": document(saved)}
    output.show(
        told,
        *lines,
        f"Saved as version {saved.version}. The way back: `keyvouch admin policy rollback {version}`.",
    )


def _preview_lines(output: Output, preview: _Preview) -> list[str]:
    if not preview.changes:
        return []
    lines = list(preview.change_lines)
    if preview.users:
        rows = [row for user in preview.users[:_SHOWN] for row in _rows(output, user)]
        lines += ["", table(("user", "what", "now", "then", "why"), rows)]
    if len(preview.users) > _SHOWN:
        lines.append(f"... and {len(preview.users) - _SHOWN} more; --json lists them all.")
    lines += ["", f"Users affected: {len(preview.users)} of {preview.examined}."]
    if preview.locks_out:
        lines.append(f"You among them: {inert(preview.locks_out)}")
    return lines


def _rows(output: Output, user: policies_pb2.AffectedUser) -> list[tuple[str, str, str, str, str]]:
    usable, counts = {True: "usable", False: "not usable"}, {True: "counts", False: "does not count"}
    rows: list[tuple[str, str, str, str, str]] = []
    for method in user.methods:
        name = spoken(common_pb2.SignInMethod.Name(method.method), "SIGN_IN_METHOD_").replace("_", " ")
        what = f"{name} for {method.app_id}" if method.app_id else name
        rows.append((user.username, what, usable[method.usable_before], usable[method.usable_after], method.reason))
    for key in user.credentials:
        what = f"key of {key.display_name}"
        rows.append((user.username, what, counts[key.accepted_before], counts[key.accepted_after], key.reason))
    for campaign in user.campaigns:
        days = (campaign.required_by_before, campaign.required_by_after)
        before, after = (f"due {output.minute(day)}" if day else "not asked" for day in days)
        rows.append((user.username, f"campaign {campaign.name}", before, after, "method_required"))
    return rows


def _instant(text: str) -> int:
    """Seconds since the epoch; a day begins at midnight, in local time."""
    try:
        return int(datetime.fromisoformat(text).astimezone(UTC).timestamp())
    except (ValueError, OverflowError):
        raise UsageError(f"{text!r} is not a day.", fix="Write it like 2027-03-01 or 2027-03-01T09:00+01:00.") from None
