"""The grammar of `keyvouch admin`, but for `policy`. Not here: what the commands do."""

from __future__ import annotations

from keyvouch_client.commands.parser_parts import ASSURANCE_HELP, Commands, Parser, ask_first, group, leaf, whole_number
from keyvouch_client.commands.parser_policy import add_policy

__all__ = ["add_admin"]

_ROLES = (
    "user",
    "global_reader",
    "authentication_administrator",
    "authentication_policy_administrator",
    "privileged_authentication_administrator",
    "global_administrator",
)
_METHODS = ("approval", "access_pass", "security_key")
_USER = "id, login name or alias"
_GROUP = "id or name"


def add_admin(objects: Commands, common: Parser) -> None:
    """Add the objects that administrators work on."""
    _add_tenant(objects, common)
    _add_user(objects, common)
    _add_group(objects, common)
    _add_pass(objects, common)
    _add_device(objects, common)
    _add_session(objects, common)
    _add_risk(objects, common)
    add_policy(objects, common)
    _add_explain(objects, common)
    _add_audit(objects, common)


def _add_tenant(objects: Commands, common: Parser) -> None:
    tenant = group(objects, common, "tenant", "tenants")
    create = leaf(tenant, common, "create", "tenants:create_tenant", "make a tenant and its first administrator")
    create.add_argument("name", help="the tenant's name")
    create.add_argument("--administrator", metavar="USER", required=True, help="login name of its first administrator")
    leaf(tenant, common, "list", "tenants:list_tenants", "list tenants")


def _add_user(objects: Commands, common: Parser) -> None:
    user = group(objects, common, "user", "users")
    create = leaf(user, common, "create", "users:create", "make a user")
    create.add_argument("user", help="the login name")
    create.add_argument("--display-name", metavar="NAME", default="", help="the name for people")
    create.add_argument("--role", choices=_ROLES, default="user", help="what they may do; default: user")
    create.add_argument("--guest", action="store_true", help="a guest, who cannot sign in with an access pass")
    create.add_argument("--alias", metavar="NAME", action="append", default=[], help="another login name; repeatable")
    show = leaf(user, common, "show", "users:show", "show a user: names, role, groups, devices, sessions")
    show.add_argument("user", help=_USER)
    _add_user_update(user, common)
    alias = group(user, common, "alias", "other names that a user signs in with")
    for name, text in (("add", "give a user another login name"), ("remove", "take a login name away from a user")):
        change = leaf(alias, common, name, f"users:{name}_alias", text)
        change.add_argument("user", help=_USER)
        change.add_argument("alias", help="the login name in question")
    leaf(user, common, "list", "users:list_users", "list users")
    delete = leaf(user, common, "delete", "users:delete", "remove a user with their devices and sessions")
    delete.add_argument("user", help=_USER)
    ask_first(delete)


def _add_user_update(user: Commands, common: Parser) -> None:
    update = leaf(user, common, "update", "users:update", "change a user; what is not named stays as it is")
    update.add_argument("user", help=_USER)
    update.add_argument("--name", metavar="NAME", help="another login name")
    update.add_argument("--display-name", metavar="NAME", help="another name for people")
    update.add_argument("--role", choices=_ROLES, help="another role; it ends the user's sessions")
    kind = update.add_mutually_exclusive_group()
    kind.add_argument("--guest", action="store_const", const="guest", dest="kind", help="make the user a guest")
    kind.add_argument("--member", action="store_const", const="member", dest="kind", help="make the user a member")


def _add_group(objects: Commands, common: Parser) -> None:
    groups = group(objects, common, "group", "groups of users, for policies")
    create = leaf(groups, common, "create", "groups:create", "make a group")
    create.add_argument("group", help="its name")
    create.add_argument("--description", metavar="TEXT", default="", help="what it is for")
    leaf(groups, common, "list", "groups:list_groups", "list groups")
    leaf(groups, common, "show", "groups:show", "list the members of a group").add_argument("group", help=_GROUP)
    for name, text in (("add", "make users members of a group"), ("remove", "take users out of a group")):
        change = leaf(groups, common, name, f"groups:{name}", text)
        change.add_argument("group", help=_GROUP)
        change.add_argument("users", nargs="+", metavar="USER", help=_USER)
    delete = leaf(groups, common, "delete", "groups:delete", "remove a group; its members stay users")
    delete.add_argument("group", help=_GROUP)
    ask_first(delete)


def _add_pass(objects: Commands, common: Parser) -> None:
    access_pass = group(objects, common, "pass", "Temporary Access Passes", "tap")
    create = leaf(access_pass, common, "create", "access_passes:create", "make a pass; its code is shown once")
    _add_pass_options(create)
    text = "put a new pass in the place of the user's pass; its code is shown once"
    replace = leaf(access_pass, common, "replace", "access_passes:replace", text)
    _add_pass_options(replace)
    sessions = replace.add_mutually_exclusive_group(required=True)
    sessions.add_argument(
        "--keep-sessions", action="store_true", help="the user's sessions stay, but for those of the old pass"
    )
    sessions.add_argument("--revoke-sessions", action="store_true", help="every session of the user ends")
    listing = leaf(access_pass, common, "list", "access_passes:list_passes", "list passes, never with their codes")
    listing.add_argument("user", nargs="?", default="", help=_USER + "; default: everybody's")
    text = "delete a pass; a valid one ends the user's sessions"
    delete = leaf(access_pass, common, "delete", "access_passes:delete", text)
    delete.add_argument("user", help=_USER)
    ask_first(delete)


def _add_pass_options(command: Parser) -> None:
    command.add_argument("user", help=_USER)
    command.add_argument("--start", metavar="TIME", help="ISO 8601 or seconds since 1970; default: now")
    command.add_argument("--lifetime", metavar="MINUTES", type=int, default=0, help="default: the policy's")
    command.add_argument("--one-time", action="store_true", help="good for one sign-in only")
    bound = command.add_mutually_exclusive_group()
    bound.add_argument("--ek", metavar="HEX", default="", help="good for one TPM only: SHA-256 of its endorsement key")
    bound.add_argument("--aaguid", metavar="UUID", default="", help="good for one model of FIDO2 authenticators only")


def _add_device(objects: Commands, common: Parser) -> None:
    device = group(objects, common, "device", "devices")
    listing = leaf(device, common, "list", "devices:list_devices", "list devices")
    listing.add_argument("user", nargs="?", default="", help=_USER + "; default: everybody's")
    remove = leaf(device, common, "remove", "devices:remove", "remove a device with its sessions")
    remove.add_argument("device", help="its id")
    ask_first(remove)
    text = "accept what a device's TPM reported as what it is compared with from now on"
    leaf(device, common, "accept-health", "devices:accept_health", text).add_argument("device", help="its id")


def _add_session(objects: Commands, common: Parser) -> None:
    session = group(objects, common, "session", "sessions")
    listing = leaf(session, common, "list", "tenant_sessions:list_sessions", "list open sessions")
    listing.add_argument("of", nargs="?", default="", metavar="USER", help=_USER + "; default: everybody's")
    listing.add_argument("--all", action="store_true", help="ended ones too, with why they ended")
    revoke = leaf(session, common, "revoke", "tenant_sessions:revoke", "end sessions")
    whose = revoke.add_mutually_exclusive_group(required=True)
    whose.add_argument("--user", dest="of", metavar="USER", help="every session of a user: " + _USER)
    whose.add_argument("--device", metavar="DEVICE", help="what a device approved")
    whose.add_argument("--session", metavar="SESSION", help="one session")
    whose.add_argument("--whole-tenant", action="store_true", help="every session but yours; needs --yes")
    ask_first(revoke)


def _add_risk(objects: Commands, common: Parser) -> None:
    risk = group(objects, common, "risk", "what looked like an attack")
    listing = leaf(risk, common, "list", "risks:list_events", "list risk events, newest first")
    listing.add_argument("of", nargs="?", default="", metavar="USER", help=_USER + "; default: everybody's")
    listing.add_argument("--open", action="store_true", help="only those that nobody has looked at")
    listing.add_argument("--limit", metavar="N", type=whole_number, default=50, help="default: 50")
    close = leaf(risk, common, "close", "risks:close", "say that you have looked at a risk event")
    close.add_argument("event", metavar="ID", help="from `risk list`")


def _add_explain(objects: Commands, common: Parser) -> None:
    text = "show which rule decides what: of a sign-in that took place, or of one that would be begun now"
    explain = leaf(objects, common, "explain", "explaining:explain", text)
    explain.add_argument("sign_in", nargs="?", metavar="SIGN_IN_ID", help="from the audit log; or --user and --app")
    explain.add_argument("--user", dest="of", metavar="USER", help=_USER)
    explain.add_argument("--app", metavar="APP_ID", help="the app that would ask")
    explain.add_argument("--audience", metavar="A", default="", help="default: the app id")
    explain.add_argument("--method", choices=_METHODS, default="approval")
    explain.add_argument("--assurance", metavar="LEVEL", help="as if the app asked for it: " + ASSURANCE_HELP)
    explain.add_argument("--phishing-resistant", action="store_true", help="as if the app asked for that")
    text = "fetch the receipt of a sign-in, for `keyvouch verify`"
    receipt = leaf(objects, common, "receipt", "receipts:fetch", text)
    receipt.add_argument("sign_in", metavar="SIGN_IN_ID", help="from the audit log")
    receipt.add_argument("--out", metavar="FILE", help="write it to a new file; default: standard output, as it is")


def _add_audit(objects: Commands, common: Parser) -> None:
    text = "show the audit log, newest first"
    audit = leaf(objects, common, "audit", "audit:show", text)
    audit.add_argument("--user", metavar="NAME", default="", help="only what concerns a user")
    audit.add_argument("--limit", metavar="N", type=whole_number, default=50, help="default: 50")
    actions = audit.add_subparsers(title="actions", metavar="ACTION", required=False)
    text = "show the signed checkpoints of the audit log, newest first"
    checkpoints = leaf(actions, common, "checkpoints", "audit:checkpoints", text)
    checkpoints.add_argument("--limit", metavar="N", type=whole_number, default=50, help="default: 50")
