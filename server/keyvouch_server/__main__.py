"""The `keyvouch-server` command: init, serve, backup, check, audit, recover."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keyvouch.errors import KeyvouchError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 refused or failed, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "completion":
        from keyvouch_client.completion import script

        print(script(_parser(), arguments.shell), end="")
        return 0
    try:
        return _COMMANDS[arguments.command](arguments)
    except KeyvouchError as error:
        _complain(error, as_json=arguments.json, making=arguments.command == "init")
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyvouch-server",
        description="Keyvouch verification server: sign-in without passwords, by keys that stay in devices.",
    )
    parser.add_argument("--version", action="version", version=_version())
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data", type=Path, required=True, help="the server's data directory")
    common.add_argument("--json", action="store_true", help="print JSON for programs")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    init = commands.add_parser(
        "init", parents=[common], help="make a server: keys, store, first tenant and administrator"
    )
    init.add_argument("--tenant", required=True, help="name of the first tenant")
    init.add_argument("--administrator", required=True, help="login name of its first Global Administrator")
    init.add_argument(
        "--host",
        action="append",
        default=[],
        help="a name or address clients reach the server by (repeatable; default: localhost)",
    )
    init.add_argument(
        "--public-listen", default="127.0.0.1:7443", help="address of the public listener (default: %(default)s)"
    )
    init.add_argument(
        "--device-listen", default="127.0.0.1:7444", help="address of the device listener (default: %(default)s)"
    )
    init.add_argument(
        "--plaintext-listen",
        default="",
        metavar="ADDRESS",
        help="also serve clients without TLS, on a loopback address",
    )
    init.add_argument(
        "--store",
        default="",
        metavar="ADDRESS",
        help="a PostgreSQL database, postgresql://USER@HOST/NAME, which several servers may share (default: a file)",
    )

    commands.add_parser("serve", parents=[common], help="run the server until it is told to stop")
    backup = commands.add_parser(
        "backup", parents=[common], help="copy the store to a file, also while the server runs"
    )
    backup.add_argument("--to", type=Path, required=True, help="the file to write")
    commands.add_parser("check", parents=[common], help="check the store from end to end")
    _add_audit(commands, common)
    recover = commands.add_parser(
        "recover", parents=[common], help="a one-time access pass for a locked-out administrator"
    )
    recover.add_argument("--tenant", required=True, help="name of the administrator's tenant")
    recover.add_argument("--administrator", required=True, help="login name of the administrator")
    recover.add_argument(
        "--default-policy",
        action="store_true",
        help="save the default policy too, where the present one shuts them out",
    )
    _add_completion(commands)
    return parser


def _add_audit(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    audit = commands.add_parser("audit", help="verify, export or sign the audit log, also while the server runs")
    acts = audit.add_subparsers(dest="act", required=True, metavar="ACTION")
    verify = acts.add_parser("verify", parents=[common], help="find the first record that is not as it was written")
    verify.add_argument("--tenant", default="", help="name or id of one tenant; default: all")
    verify.add_argument(
        "--against", type=Path, metavar="FILE", help="checkpoints that were kept elsewhere, or a log of the server"
    )
    export = acts.add_parser("export", parents=[common], help="print a tenant's log, one line of JSON for each record")
    export.add_argument("--tenant", required=True, help="name or id of the tenant")
    export.add_argument(
        "--format",
        choices=("jsonl", "ocsf"),
        default="jsonl",
        help="jsonl: verifiable with `keyvouch verify`; ocsf: for systems that collect events (default: %(default)s)",
    )
    export.add_argument("--since", metavar="TIME", help="ISO 8601; only records from then on")
    checkpoint = acts.add_parser("checkpoint", parents=[common], help="print signed checkpoints, to be kept elsewhere")
    checkpoint.add_argument("--tenant", default="", help="name or id of one tenant; default: all")


def _add_completion(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from keyvouch_client.completion.installing import INSTALLATION, SHELLS

    completion = commands.add_parser(
        "completion",
        help="print a script that completes this command in your shell",
        epilog=INSTALLATION.format("keyvouch-server"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=SHELLS)


def _version() -> str:
    from keyvouch_server import __version__

    return f"keyvouch-server {__version__}"


def _init(arguments: argparse.Namespace) -> int:
    from keyvouch_server.bootstrap import init
    from keyvouch_server.config import ServerConfig

    hosts = tuple(arguments.host) or ("localhost", "127.0.0.1", "::1")
    config = ServerConfig(
        public_listen=arguments.public_listen,
        device_listen=arguments.device_listen,
        hosts=hosts,
        device_endpoint=f"{hosts[0]}:{arguments.device_listen.rpartition(':')[2]}",
        rp_id=hosts[0],
        issuer=f"https://{hosts[0]}",
        plaintext_listen=arguments.plaintext_listen,
        store=arguments.store,
    )
    founded = init(arguments.data, config, arguments.tenant, arguments.administrator)
    made = founded.access_pass
    report = {
        "data": str(arguments.data),
        "ca": str(arguments.data / "ca.pem"),
        "tenant": founded.tenant.name,
        "administrator": founded.administrator.username,
        "access_pass": made.code,
        "access_pass_minutes": made.viewed.found.lifetime_minutes,
    }
    if arguments.json:
        print(json.dumps(report))
        return 0
    print(f"The server is ready in {arguments.data}. Only its owner can read it: back it up, share it with nobody.")
    print(f"  tenant         {founded.tenant.name}")
    print(f"  administrator  {founded.administrator.username}")
    print(f"  access pass    {made.code}   shown once, good for {made.viewed.found.lifetime_minutes} minutes")
    print(f"  clients trust  {arguments.data / 'ca.pem'}")
    here = f"--server {hosts[0]}:{arguments.public_listen.rpartition(':')[2]} --ca {arguments.data / 'ca.pem'}"
    who = f"--tenant {founded.tenant.name} --user {founded.administrator.username}"
    print("Next:")
    print(f"  keyvouch-server serve --data {arguments.data}")
    print(f"  keyvouch-agent enroll {here} {who}")
    print("  keyvouch-agent run")
    print(f"  keyvouch sign-in {here} {who}")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from keyvouch_server.serving import serve_until_signalled

    return serve_until_signalled(arguments.data, as_json=arguments.json)


def _backup(arguments: argparse.Namespace) -> int:
    from keyvouch_server.store_access import backed_up

    backed_up(arguments.data, arguments.to)
    report = {"backup": str(arguments.to), "bytes": arguments.to.stat().st_size}
    text = (
        f"The store was copied to {arguments.to} ({report['bytes']} bytes). "
        f"Keep the keys in {arguments.data} with it: one is useless without the other."
    )
    print(json.dumps(report) if arguments.json else text)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from keyvouch_server.store_access import checked

    report = checked(arguments.data)
    problems, notes = report.problems, report.notes
    if arguments.json:
        document = {"ok": not problems, "problems": list(problems)}
        print(json.dumps(document | {"notes": list(notes)} if notes else document))
        return 1 if problems else 0
    if not problems:
        print("The store is sound: structure, references and every rule between records hold.")
    else:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        print(f"The store has {count}. Stop the server and restore a backup.")
        for problem in problems:
            print(f"  {problem}")
    for note in notes:
        print(note)
    return 1 if problems else 0


def _audit(arguments: argparse.Namespace) -> int:
    from keyvouch_server import audit_commands

    acts = {
        "verify": audit_commands.verify,
        "export": audit_commands.export,
        "checkpoint": audit_commands.checkpoint,
    }
    return acts[arguments.act](arguments)


def _recover(arguments: argparse.Namespace) -> int:
    import asyncio

    from keyvouch_server.bootstrap import recover

    default_policy = arguments.default_policy
    made = asyncio.run(
        recover(arguments.data, arguments.tenant, arguments.administrator, default_policy=default_policy)
    )
    minutes = made.viewed.found.lifetime_minutes
    if arguments.json:
        print(json.dumps({"access_pass": made.code, "access_pass_minutes": minutes}))
    else:
        print(f"Access pass for {made.viewed.user.username}: {made.code}")
        print(f"Shown once, usable once, good for {minutes} minutes.")
    return 0


def _complain(error: KeyvouchError, *, as_json: bool, making: bool) -> None:
    """Say why it did not work. What keeps a server from starting also keeps `init` from making one."""
    message = error.message.replace("The server cannot start:", "No server was made:") if making else error.message
    document: Mapping[str, Any] = {
        "kind": type(error).__name__,
        "reason": error.reason.value,
        "message": message,
        "fix": error.fix,
    }
    text = f"keyvouch-server: {message}" + (f"\n                 {error.fix}" if error.fix else "")
    print(json.dumps({"error": document}) if as_json else text, file=sys.stderr)


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "init": _init,
    "serve": _serve,
    "backup": _backup,
    "check": _check,
    "audit": _audit,
    "recover": _recover,
}

if __name__ == "__main__":
    sys.exit(main())
