"""The grammar of the command line. Each command names the function that does it as `module:function`.

Nothing but argparse is imported here, so that `--help` is instant. Secrets have no place in arguments: an access pass
is typed without echo, or read from a file descriptor.
"""

from __future__ import annotations

import argparse
import json
from typing import NoReturn, TypeAlias

__all__ = ["CommandLineError", "build_parser"]

_ROLES = (
    "user",
    "global_reader",
    "authentication_administrator",
    "authentication_policy_administrator",
    "privileged_authentication_administrator",
    "global_administrator",
)

_PROFILES = ("core", "strict", "json-api")


class CommandLineError(Exception):
    """The command line is not one this program knows."""

    def __init__(self, usage: str, message: str) -> None:
        super().__init__(f"{usage}keyvouch: {message}")
        self._message = message

    def as_json(self) -> str:
        """The error in the form all errors have with `--json`."""
        fix = "See `keyvouch --help`."
        return json.dumps({"error": {"kind": "UsageError", "reason": "usage", "message": self._message, "fix": fix}})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandLineError(self.format_usage(), message)


_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"  # the only name its type has


def build_parser() -> _Parser:
    """The whole command line."""
    common = _common_arguments()
    parser = _Parser(
        prog="keyvouch",
        description="Sign in without a password, look after your session and your devices, administer a tenant, judge "
        "recorded evidence.",
        epilog="The server, its CA, the tenant and the user are remembered from the last sign-in. "
        "KEYVOUCH_SERVER and KEYVOUCH_CA name the first two; KEYVOUCH_HOME is where the session is kept.",
        parents=[common],
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_own(commands, common)
    admin = commands.add_parser("admin", help="administer your tenant", parents=[common], allow_abbrev=False)
    _add_admin(admin.add_subparsers(title="objects", metavar="OBJECT", required=True), common)
    return parser


def _json_argument() -> _Parser:
    common = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--json", action="store_true", help="errors and counts as JSON, as results are anyway")
    return common


def _common_arguments() -> _Parser:
    common = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("everywhere")
    group.add_argument("--server", metavar="HOST:PORT", help="the server's public listener")
    group.add_argument("--ca", metavar="FILE", help="CA certificate of the server, PEM; default: public roots")
    group.add_argument("--insecure-loopback", action="store_true", help="plaintext, to a loopback address only")
    group.add_argument("--json", action="store_true", help="results and errors as JSON, times in seconds since 1970")
    group.add_argument("--utc", action="store_true", help="show times in UTC instead of local time")
    return common


def _leaf(
    commands: _Commands,
    common: _Parser,
    name: str,
    run: str,
    text: str,
) -> _Parser:
    leaf = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common], allow_abbrev=False
    )
    leaf.set_defaults(run=f"keyvouch_client.commands.{run}", offline=False)
    return leaf


def _add_own(commands: _Commands, common: _Parser) -> None:
    sign_in = _leaf(
        commands,
        common,
        "sign-in",
        "sign_in:sign_in",
        "sign in with a registered device, a security key or an access pass",
    )
    sign_in.add_argument("--tenant", metavar="NAME")
    sign_in.add_argument("--user", metavar="NAME")
    sign_in.add_argument("--app", metavar="NAME", default="Keyvouch command line", help="shown on the device")
    sign_in.add_argument(
        "--audience", metavar="A", default="keyvouch", help="whom the access token is for; default: this server"
    )
    sign_in.add_argument("--message", metavar="TEXT", default="", help="shown on the device: what the sign-in is for")
    way = sign_in.add_mutually_exclusive_group()
    way.add_argument("--access-pass", action="store_true", help="type a Temporary Access Pass, without echo")
    way.add_argument("--access-pass-fd", metavar="N", type=int, help="read the pass from file descriptor N")
    way.add_argument(
        "--security-key", action="store_true", help="use a security key that is connected to this computer"
    )
    sign_in.add_argument("--pin-fd", metavar="N", type=int, help="read its PIN from file descriptor N, do not ask")
    sign_in.add_argument(
        "--rp-id", metavar="NAME", default="", help="whose keys the server asks for; default: its host"
    )
    _leaf(commands, common, "whoami", "account:whoami", "show who you are signed in as")
    sessions = _leaf(commands, common, "sessions", "account:sessions", "list your sessions")
    sessions.add_argument("--all", action="store_true", help="ended ones too")
    sign_out = _leaf(commands, common, "sign-out", "account:sign_out", "end your session, or another one of yours")
    sign_out.add_argument("session", nargs="?", metavar="SESSION")
    sign_out.add_argument("--forget", action="store_true", help="drop the stored session even if nobody answers")
    security = _leaf(
        commands, common, "security-info", "account:security_info", "show your devices and what to look after"
    )
    security.add_argument("--remove", metavar="DEVICE", help="remove one of your devices, with its sessions")
    _leaf(commands, common, "jwks", "account:jwks", "print the public keys of access tokens (JWK Set)")
    _add_verify(commands)


def _add_verify(commands: _Commands) -> None:
    text = "judge recorded evidence; needs no server and no sign-in"
    verify = _leaf(commands, _json_argument(), "verify", "verify:perform", text)
    verify.set_defaults(offline=True)
    verify.epilog = (
        "One line of JSON for each vector: id, decision, reason, assurance; and expected, where that is something "
        "else. Exit status: 0 all as expected, 1 some are not, 2 some could not be used. The form of the files is "
        "described in proto/README.md, Evidence files."
    )
    verify.add_argument("files", nargs="*", metavar="FILE", help="JSON, or JSON Lines; default, and -: standard input")
    verify.add_argument("--explain", action="store_true", help="add message and fix, or the facts that are proved")
    verify.add_argument("--summary", action="store_true", help="count by class on standard error")
    verify.add_argument(
        "--anchors",
        action="append",
        default=[],
        metavar="DIR|FILE.pem",
        help="trust these certificates too; may be repeated",
    )
    verify.add_argument(
        "--now", metavar="TIME", help="judge as of this instant (ISO 8601); default: policy.now, else now"
    )
    verify.add_argument("--profile", choices=_PROFILES, help="only vectors of this profile; default: all")


def _add_admin(objects: _Commands, common: _Parser) -> None:
    def group(name: str, text: str, *aliases: str) -> _Commands:
        parser = objects.add_parser(name, help=text, aliases=aliases, parents=[common], allow_abbrev=False)
        return parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    tenant = group("tenant", "tenants")
    create = _leaf(tenant, common, "create", "directory:create_tenant", "make a tenant and its first administrator")
    create.add_argument("name")
    create.add_argument("--administrator", metavar="USER", required=True)
    _leaf(tenant, common, "list", "directory:list_tenants", "list tenants")

    user = group("user", "users")
    create = _leaf(user, common, "create", "directory:create_user", "make a user")
    create.add_argument("user")
    create.add_argument("--display-name", metavar="NAME", default="")
    create.add_argument("--role", choices=_ROLES, default="user")
    _leaf(user, common, "list", "directory:list_users", "list users")
    delete = _leaf(user, common, "delete", "directory:delete_user", "remove a user with their devices and sessions")
    delete.add_argument("user")

    access_pass = group("pass", "Temporary Access Passes", "tap")
    create = _leaf(access_pass, common, "create", "access_passes:create", "make a pass; its code is shown once")
    create.add_argument("user")
    create.add_argument("--start", metavar="TIME", help="ISO 8601 or seconds since 1970; default: now")
    create.add_argument("--lifetime", metavar="MINUTES", type=int, default=0, help="default: the policy's")
    create.add_argument("--one-time", action="store_true")
    listing = _leaf(access_pass, common, "list", "access_passes:list_passes", "list passes, never with their codes")
    listing.add_argument("user", nargs="?", default="")
    delete = _leaf(
        access_pass, common, "delete", "access_passes:delete", "delete a pass; a valid one ends the user's sessions"
    )
    delete.add_argument("user")

    device = group("device", "devices")
    listing = _leaf(device, common, "list", "devices:list_devices", "list devices")
    listing.add_argument("user", nargs="?", default="")
    remove = _leaf(device, common, "remove", "devices:remove", "remove a device with its sessions")
    remove.add_argument("device")
    accept = _leaf(
        device,
        common,
        "accept-health",
        "devices:accept_health",
        "accept what a device's TPM reported as what it is compared with from now on",
    )
    accept.add_argument("device")

    policy = group("policy", "the rules of your tenant")
    _leaf(policy, common, "show", "policy:show", "show the policy")
    change = _leaf(policy, common, "set", "policy:change", "change settings, named as `policy show` names them")
    change.add_argument("settings", nargs="+", metavar="KEY=VALUE")
    change.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    change.add_argument(
        "--accept-lock-out", action="store_true", help="save it even if you cannot sign in again as you have now"
    )

    audit = _leaf(objects, common, "audit", "audit:show", "show the audit log, newest first")
    audit.add_argument("--user", metavar="NAME", default="")
    audit.add_argument("--limit", metavar="N", type=int, default=50)
