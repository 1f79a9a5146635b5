"""The grammar of the command line. Each command names the function that does it as `module:function`.

Nothing but argparse is imported here and in the modules of its parts, so that `--help` is instant. Secrets have no
place in arguments: an access pass is typed without echo, or read from a file descriptor.
"""

from __future__ import annotations

from keyvouch_client.commands.parser_admin import add_admin
from keyvouch_client.commands.parser_own import add_completion, add_own
from keyvouch_client.commands.parser_parts import CommandLineError, Parser, Version, common_arguments
from keyvouch_client.commands.parser_verify import add_verify

__all__ = ["CommandLineError", "build_parser"]


def build_parser() -> Parser:
    """The whole command line."""
    common = common_arguments()
    parser = Parser(
        prog="keyvouch",
        description="Sign in without a password, look after your session and your devices, administer a tenant, judge "
        "recorded evidence.",
        epilog="The server, its CA, the tenant and the user are remembered from the last sign-in. "
        "KEYVOUCH_SERVER and KEYVOUCH_CA name the first two; KEYVOUCH_HOME is where the session is kept.",
        parents=[common],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_own(commands, common)
    add_verify(commands)
    add_completion(commands)
    admin = commands.add_parser("admin", help="administer your tenant", parents=[common], allow_abbrev=False)
    add_admin(admin.add_subparsers(title="objects", metavar="OBJECT", required=True), common)
    return parser
