"""`keyvouch-agent`: the device agent's command line. Nothing heavy is imported before a command is known."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

__all__ = ["main"]

_PROGRAM = "keyvouch-agent"
_DESCRIPTION = "Approves sign-ins with keys that never leave their holder."
_EPILOG = """\
files: one private directory, --home, else $KEYVOUCH_AGENT_HOME, else ~/.local/state/keyvouch-agent.
exit codes: 0 done, 1 refused or failed (the reason is on stderr), 2 wrong usage, 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "completion":
        from keyvouch_client.completion import script

        print(script(_parser(), arguments.shell), end="")
        return 0
    import os

    from keyvouch.errors import KeyvouchError, UsageError
    from keyvouch_agent.commands.output import Output
    from keyvouch_agent.config import home_path
    from keyvouch_agent.home import Home

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own log would be mixed into what we print
    output = Output(as_json=arguments.json)
    try:
        home = Home.open(home_path(arguments.home, os.environ))
        return _dispatch(arguments, home, output)
    except UsageError as error:
        output.failure(error)
        return 2
    except KeyvouchError as error:
        output.failure(error)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130


def _dispatch(arguments: argparse.Namespace, home: object, output: object) -> int:
    import importlib

    errand = getattr(arguments, "errand", None)
    command = f"{arguments.command} {errand}" if errand else arguments.command
    module, function = _COMMANDS[command]
    perform = getattr(importlib.import_module(f"keyvouch_agent.commands.{module}"), function)
    return perform(arguments, home, output) or 0


_COMMANDS = {
    "enroll": ("enrolling", "enroll"),
    "unregister": ("accounts", "unregister"),
    "pin": ("accounts", "change_pin"),
    "run": ("daemon", "run"),
    "pending": ("decisions", "pending"),
    "approve": ("decisions", "approve"),
    "deny": ("decisions", "deny"),
    "report": ("decisions", "report"),
    "sign-in": ("same_device", "sign_in"),
    "status": ("standing", "status"),
    "keys": ("standing", "keys"),
    "doctor": ("doctor", "doctor"),
    "rekey": ("rekey", "rekey"),
    "tpm status": ("tpm_status", "status"),
    "tpm unlock": ("tpm", "unlock"),
    "tpm forget": ("tpm", "forget"),
    "authenticator serve": ("authenticator", "serve_authenticator"),
}


class _Version(argparse.Action):
    """`--version`, which looks the version up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"{parser.prog} {version('keyvouch')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _common(parser, None, False)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, purpose: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=purpose, description=purpose, allow_abbrev=False)
        _common(made, argparse.SUPPRESS, argparse.SUPPRESS)
        return made

    _add_enroll(command("enroll", "Register this device, with a Temporary Access Pass or in your own session."))
    run = command("run", "Run the agent: sign-in requests reach this device while it runs.")
    run.add_argument("--quiet-prompts", action="store_true", help="do not ask in this terminal")
    command("pending", "List the sign-in requests that wait.")
    approve = command("approve", "Approve a sign-in request with the number it shows and the PIN.")
    _add_prompt(approve)
    approve.add_argument("--number", metavar="DIGITS", help="the number shown where you sign in; else it is asked")
    _add_descriptor(approve, "--pin-fd", "the PIN")
    _add_last_try(approve)
    _add_prompt(command("deny", "Deny a sign-in request."))
    _add_prompt(command("report", "Deny a sign-in request and report that it was not you."))
    _add_sign_in(command("sign-in", "Sign in for an app on this device; prints the session's tokens."))
    command("status", "Show the enrolled accounts and their connections.")
    command("keys", "Show the keys this device approves with, honestly labelled.")
    _add_unregister(command("unregister", "Remove an account from this device and end its sessions."))
    command("doctor", "Check the home, the key providers and the servers.")
    _add_pin(command("pin", "Set or change the PIN of a key provider, or show its tries left."))
    _add_rekey(command("rekey", "Put a new key in the place of an account's key in the TPM, behind the same PIN."))
    _add_tpm(command("tpm", "Look at the TPM, end its lockout, take away what Keyvouch left in it."))
    _add_authenticator(command("authenticator", "Be a security key for other programs."))
    _add_completion(command("completion", "Print a script that completes this command in your shell."))
    return parser


def _add_completion(parser: argparse.ArgumentParser) -> None:
    from keyvouch_client.completion.installing import INSTALLATION, SHELLS

    parser.epilog, parser.formatter_class = INSTALLATION.format(_PROGRAM), argparse.RawDescriptionHelpFormatter
    parser.add_argument("shell", choices=SHELLS)


def _common(parser: argparse.ArgumentParser, home: str | None, as_json: bool | str) -> None:
    parser.add_argument("--home", metavar="DIR", default=home, help="the agent's private directory")
    parser.add_argument("--json", action="store_true", default=as_json, help="speak JSON")


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="id of the request; not needed when one waits")


def _add_descriptor(parser: argparse.ArgumentParser, name: str, what: str) -> None:
    parser.add_argument(name, type=int, metavar="N", help=f"read {what} from descriptor N; else it is asked, unseen")


def _add_provider(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--provider",
        choices=("software", "tpm", "fido2", "smartcard"),
        metavar="KIND",
        help="what holds the key: tpm, fido2 (a security key), smartcard (or any PKCS#11 token), software",
    )


def _add_last_try(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--last-try", action="store_true", help="try the PIN of a card although a wrong one would block it"
    )


def _add_module(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--token", metavar="URI", help="which card or token, as pkcs11:serial=...; else the only one")
    parser.add_argument("--module", metavar="PATH", help="the PKCS#11 module; else that of agent.toml, else OpenSC's")


def _add_enroll(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--with-session",
        action="store_true",
        help="without a pass, in the session of `keyvouch` on this computer; server, tenant and user are those of it",
    )
    parser.add_argument("--server", metavar="HOST:PORT", help="the server's public listener")
    parser.add_argument("--ca", metavar="FILE", help="the server's CA in PEM; else the usual anchors")
    parser.add_argument("--server-id", metavar="HEX", help="refuse any server but the one with this identity")
    parser.add_argument("--tenant", metavar="NAME")
    parser.add_argument("--user", metavar="NAME")
    parser.add_argument("--name", metavar="NAME", help="what this device is called in lists; else its host name")
    for option, what in (("--lost", "is lost: the administrators are told"), ("--replaces", "has had its day")):
        parser.add_argument(
            option,
            action="append",
            default=[],
            metavar="DEVICE",
            help=f"id or name of a device of yours that {what}; it goes with its sessions when this one comes",
        )
    parser.add_argument("--keep-all", action="store_true", help="do not ask whether a device is lost or replaced")
    parser.add_argument("--replace", action="store_true", help="register anew an account that is enrolled here already")
    _add_provider(parser)
    _add_module(parser)
    parser.add_argument("--key", metavar="KEY", help="an existing key of the card: slot 9a or 9c, or a pkcs11: URI")
    parser.add_argument(
        "--certificate", action="store_true", help="show the server the organisation's certificate of that key"
    )
    _add_last_try(parser)
    _add_descriptor(parser, "--pin-fd", "the PIN")
    _add_descriptor(parser, "--access-pass-fd", "the Temporary Access Pass")


def _add_sign_in(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("account", nargs="?", metavar="ACCOUNT", help="user name or device id, where there are several")
    parser.add_argument("--app", required=True, metavar="ID", help="the app the session is for")
    parser.add_argument("--app-name", metavar="NAME", help="its name; else its id is shown")
    parser.add_argument("--audience", metavar="A", help="whom the access token is for; else the app itself")
    parser.add_argument("--message", metavar="TEXT", help="a sentence that names the act")
    _add_last_try(parser)
    _add_descriptor(parser, "--pin-fd", "the PIN")


def _add_unregister(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("device", nargs="?", metavar="ACCOUNT", help="user name or device id, where there are several")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--only-here", action="store_true", help="do not tell the server; an administrator has to")


def _add_pin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("account", nargs="?", metavar="ACCOUNT", help="user name or device id, where there are several")
    parser.add_argument("--status", action="store_true", help="only show where the PIN stands")
    _add_provider(parser)
    _add_module(parser)
    _add_last_try(parser)
    _add_descriptor(parser, "--pin-fd", "the old PIN")
    _add_descriptor(parser, "--new-pin-fd", "the new PIN")


def _add_rekey(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("account", nargs="?", metavar="ACCOUNT", help="user name or device id, where there are several")
    _add_descriptor(parser, "--pin-fd", "the PIN")


def _add_tpm(parser: argparse.ArgumentParser) -> None:
    errands = parser.add_subparsers(dest="errand", required=True, metavar="ERRAND")

    def errand(name: str, purpose: str) -> argparse.ArgumentParser:
        made = errands.add_parser(name, help=purpose, description=purpose, allow_abbrev=False)
        _common(made, argparse.SUPPRESS, argparse.SUPPRESS)
        return made

    errand("status", "Show the TPM, and how the key and the PIN of each account in it stand.")
    unlock = errand("unlock", "Reset the TPM's own lockout. It unblocks no account's PIN.")
    _add_descriptor(unlock, "--lockout-auth-fd", "the password of the lockout")
    forget = errand("forget", "Take an account's PIN counter out of the TPM and erase its files.")
    forget.add_argument("account", nargs="?", metavar="ACCOUNT", help="user name, device id, or name of the account")
    forget.add_argument("--abandoned", action="store_true", help="all that interrupted enrolments left behind")
    forget.add_argument("--yes", action="store_true", help="also one that is enrolled; the server still lists it then")


def _add_authenticator(parser: argparse.ArgumentParser) -> None:
    errands = parser.add_subparsers(dest="errand", required=True, metavar="ERRAND")
    purpose = "Serve an authenticator of this computer's until it is interrupted. Its keys are apart from all accounts."
    serve = errands.add_parser("serve", help=purpose, description=purpose, allow_abbrev=False)
    _common(serve, argparse.SUPPRESS, argparse.SUPPRESS)
    serve.add_argument(
        "--transport", choices=("pcsc", "uhid"), required=True, help="a virtual smartcard reader, or a virtual USB key"
    )
    serve.add_argument("--vault", choices=("software", "tpm", "pkcs11"), required=True, help="what holds the keys")
    serve.add_argument(
        "--presence",
        choices=("prompt", "auto"),
        default="prompt",
        help="ask in this terminal, or, for benches only, grant everything",
    )
    serve.add_argument(
        "--user-verification",
        choices=("always", "optional"),
        help="whether every use takes the PIN; optional for software, always for a TPM and for cards",
    )
    serve.add_argument(
        "--vpcd", metavar="HOST:PORT", default="127.0.0.1:35963", help="where the virtual smartcard reader listens"
    )
    _add_module(serve)
    serve.add_argument(
        "--shared-key", action="store_true", help="serve a card's existing key, the same one to every site"
    )
    _add_last_try(serve)
    serve.add_argument("--pin-fd", type=int, metavar="N", help="with --presence auto, read the card's PIN from here")


if __name__ == "__main__":
    sys.exit(main())
