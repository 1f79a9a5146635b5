"""The grammar of `keyvouch verify`. Not here: what the command does."""

from __future__ import annotations

from keyvouch_client.commands.parser_parts import Commands, json_argument, leaf

__all__ = ["add_verify"]

_PROFILES = ("core", "strict", "json-api")


def add_verify(commands: Commands) -> None:
    """Add `verify`, which needs no server."""
    text = "judge recorded evidence, receipts and audit logs; needs no server and no sign-in"
    verify = leaf(commands, json_argument(), "verify", "verify:perform", text)
    verify.set_defaults(offline=True)
    verify.epilog = (
        "One line of JSON for each vector or receipt: id, decision, reason, assurance; and expected, where that is "
        "something else. Exit status: 0 all as expected, 1 some are not, 2 some could not be used. The form of the "
        "files is described in proto/README.md, Evidence files, Receipts and Audit."
    )
    verify.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="JSON, JSON Lines, or a receipt; -, and the default without --audit: standard input",
    )
    verify.add_argument(
        "--audit", action="append", default=[], metavar="FILE", help="an exported audit log; may be repeated"
    )
    server = verify.add_mutually_exclusive_group()
    server.add_argument("--server-id", metavar="HEX", help="the server that receipts and logs have to be of")
    server.add_argument("--ca", metavar="FILE", help="the same, by its CA certificate")
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
