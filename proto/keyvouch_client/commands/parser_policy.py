"""The grammar of `keyvouch admin policy`. Not here: what the commands do."""

from __future__ import annotations

import argparse

from keyvouch_client.commands.parser_parts import ASSURANCE_HELP, Commands, Parser, ask_first, group, leaf, whole_number

__all__ = ["add_policy"]


def add_policy(objects: Commands, common: Parser) -> None:
    """Add `policy` to the objects that administrators work on."""
    policy = group(objects, common, "policy", "the rules of your tenant")
    show = leaf(policy, common, "show", "policy:show", "show the policy, or an old version of it")
    show.add_argument("--version", metavar="N", type=whole_number, default=0, help="default: the present one")
    change = leaf(
        policy, common, "set", "policy_change:change", "change settings; shows first what changes and for whom"
    )
    _add_settings(change)
    _add_saving(change)
    preview = leaf(
        policy, common, "preview", "policy_change:change", "show what a change would do and for whom, and save nothing"
    )
    _add_settings(preview)
    preview.set_defaults(dry_run=True, yes=True, accept_lock_out=False)
    history = leaf(policy, common, "history", "policy:history", "list the versions of the policy, the newest first")
    history.add_argument("--limit", metavar="N", type=whole_number, default=20, help="default: 20")
    diff = leaf(policy, common, "diff", "policy:diff", "show what a version changed, or what is different between two")
    diff.add_argument("one", metavar="N", type=whole_number, help="a version")
    diff.add_argument("other", metavar="M", type=whole_number, nargs="?", help="default: what N changed")
    rollback = leaf(policy, common, "rollback", "policy_change:roll_back", "save the rules of an old version again")
    rollback.add_argument("version", metavar="N", type=whole_number, help="the version whose rules come back")
    _add_saving(rollback)
    leaf(policy, common, "targets", "policy:targets", "show whom each method is for")
    _add_apps(policy, common)
    _add_campaigns(policy, common)


def _add_settings(command: Parser) -> None:
    command.add_argument(
        "settings",
        nargs="+",
        metavar="KEY=VALUE",
        help="a setting as `policy show` names it; lists have commas, KEY+=VALUE adds to one, KEY-=VALUE takes away; "
        "users and groups may be named",
    )


def _add_saving(command: Parser) -> None:
    command.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    command.add_argument(
        "--accept-lock-out", action="store_true", help="save it even if you cannot sign in again as you have now"
    )
    ask_first(command)


def _add_apps(policy: Commands, common: Parser) -> None:
    app = group(policy, common, "app", "what single apps ask for beyond everything else")
    leaf(app, common, "list", "policy:apps", "list the rules of apps")
    change = leaf(app, common, "set", "policy_change:set_app", "give an app a rule, or change it")
    change.add_argument("app", metavar="APP", help="the app's id, or the audience of its tokens")
    change.add_argument("--assurance", metavar="LEVEL", help=ASSURANCE_HELP)
    change.add_argument(
        "--phishing-resistant",
        action=argparse.BooleanOptionalAction,
        help="matching a number is not enough",
    )
    _add_saving(change)
    remove = leaf(app, common, "remove", "policy_change:remove_app", "take the rule of an app away")
    remove.add_argument("app", metavar="APP", help="as `policy app list` names it")
    _add_saving(remove)


def _add_campaigns(policy: Commands, common: Parser) -> None:
    campaign = group(policy, common, "campaign", "until when people have to have registered a key")
    leaf(campaign, common, "list", "policy:campaigns", "list the campaigns")
    change = leaf(campaign, common, "set", "policy_change:set_campaign", "make a campaign, or change one")
    change.add_argument("campaign", metavar="NAME", help="what it is called")
    change.add_argument("--by", metavar="DAY", help="like 2027-03-01; afterwards whoever has none can only register")
    change.add_argument("--assurance", metavar="LEVEL", help=f"of the key: {ASSURANCE_HELP}")
    whom = "default: everybody; repeatable"
    change.add_argument("--group", metavar="G", action="append", default=[], help=f"members of it; {whom}")
    change.add_argument("--for-user", metavar="U", dest="users", action="append", default=[], help=f"a user; {whom}")
    change.add_argument("--everybody", action="store_true", help="again for everybody")
    _add_saving(change)
    remove = leaf(campaign, common, "remove", "policy_change:remove_campaign", "end a campaign")
    remove.add_argument("campaign", metavar="NAME", help="as `policy campaign list` names it")
    _add_saving(remove)
