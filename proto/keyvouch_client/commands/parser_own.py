"""The grammar of what people do for themselves: sign in, look after their sessions and their methods.

Not here: what the commands do.
"""

from __future__ import annotations

import argparse

from keyvouch_client.commands.parser_parts import ASSURANCE_HELP, Commands, Parser, ask_first, json_argument, leaf
from keyvouch_client.completion.installing import INSTALLATION, SHELLS

__all__ = ["add_completion", "add_own"]

_PROVIDERS = ("software", "tpm", "fido2", "smartcard")
_METHODS = ("approval", "access_pass", "security_key", "last")


def add_own(commands: Commands, common: Parser) -> None:
    """Add the commands of a person's own."""
    _add_sign_in(commands, common)
    leaf(commands, common, "whoami", "account:whoami", "show who you are signed in as")
    sessions = leaf(commands, common, "sessions", "account:sessions", "list your sessions")
    sessions.add_argument("--all", action="store_true", help="ended ones too")
    sign_out = leaf(commands, common, "sign-out", "account:sign_out", "end your session, or another one of yours")
    sign_out.add_argument(
        "session", nargs="?", metavar="SESSION", help="its id, from `sessions`; default: the present one"
    )
    sign_out.add_argument("--forget", action="store_true", help="drop the stored session even if nobody answers")
    _add_security_info(commands, common)
    leaf(commands, common, "jwks", "account:jwks", "print the public keys of access tokens (JWK Set)")


def _add_sign_in(commands: Commands, common: Parser) -> None:
    text = "sign in with a registered device, a security key or an access pass"
    sign_in = leaf(commands, common, "sign-in", "sign_in:sign_in", text)
    sign_in.add_argument("--tenant", metavar="NAME", help="default: as at the last sign-in")
    sign_in.add_argument("--user", metavar="NAME", help="login name or alias; default: as at the last sign-in")
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
    sign_in.add_argument(
        "--assurance", metavar="LEVEL", help="least assurance of the key, this time: " + ASSURANCE_HELP
    )
    sign_in.add_argument("--phishing-resistant", action="store_true", help="a number is not enough, this time")
    sign_in.add_argument("--explain", action="store_true", help="show which rule decided what")


def _add_security_info(commands: Commands, common: Parser) -> None:
    text = "show and look after your devices and ways to sign in"
    security = leaf(commands, common, "security-info", "security_info:show", text)
    security.add_argument("--remove", metavar="DEVICE", help="the same as `security-info remove DEVICE --yes`")
    actions = security.add_subparsers(title="actions", metavar="ACTION", required=False)

    def action(name: str, run: str, text: str) -> Parser:
        return leaf(actions, common, name, f"security_info:{run}", text)

    action("list", "show", "show your devices, your ways to sign in and what to look after; what no action does too")
    add = action("add", "add", "register another device or key: tells how, or starts the agent's ceremony")
    add.add_argument("--start", action="store_true", help="start `keyvouch-agent enroll` on this computer now")
    add.add_argument("--provider", choices=_PROVIDERS, metavar="KIND", help="what is to hold the key")
    add.add_argument("--name", metavar="NAME", help="what the device is to be called")
    rename = action("rename", "rename", "give one of your devices another name")
    rename.add_argument("device", metavar="DEVICE", help="its id, or its name where only one has it")
    rename.add_argument("name", metavar="NAME", help="what it is called from now on")
    remove = action("remove", "remove", "remove one of your devices; the sessions it approved end")
    remove.add_argument("device", metavar="DEVICE", help="its id, or its name where only one has it")
    fate = remove.add_mutually_exclusive_group()
    fate.add_argument("--lost", action="store_true", help="you do not know who has it: the administrators are told")
    fate.add_argument("--replaced", action="store_true", help="another device has taken its place")
    ask_first(remove)
    lost = action("lost", "lost", "one of your devices is lost: remove it, end its sessions, tell the administrators")
    lost.add_argument("device", metavar="DEVICE", help="its id, or its name where only one has it")
    ask_first(lost)
    default = action("default", "default", "choose what you are offered first when you sign in")
    default.add_argument("method", choices=_METHODS, help="last: whatever you used last")
    sessions = action("sessions", "sessions", "end every session of yours but this one")
    sessions.add_argument("what", choices=("end-others",), metavar="end-others")
    ask_first(sessions)
    receipt = action("receipt", "receipt", "fetch the receipt of a sign-in of yours, for `keyvouch verify`")
    receipt.add_argument("session", nargs="?", metavar="SESSION", default="", help="default: the present session")
    receipt.add_argument("--out", metavar="FILE", help="write it to a new file; default: standard output, as it is")


def add_completion(commands: Commands) -> None:
    """Add `completion`, which needs no server."""
    text = "print a script that completes this command in your shell"
    completion = leaf(commands, json_argument(), "completion", "completion:perform", text)
    completion.set_defaults(offline=True)
    completion.epilog, completion.formatter_class = (
        INSTALLATION.format("keyvouch"),
        argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=SHELLS)
