"""The `keyvouch` command: `keyvouch --help` lists what it does.

Exit status: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted. With `--json` results are JSON on standard
output, one object per line, and errors are `{"error": {"kind", "reason", "message", "fix"}}` on standard error.

Nothing heavy is imported before the command line has been understood.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from keyvouch_client.commands.parser import CommandLineError, build_parser

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = build_parser().parse_args(words)
    except CommandLineError as error:
        print(error.as_json() if "--json" in words else error, file=sys.stderr)
        return 2
    if arguments.offline:
        module, _, name = arguments.run.partition(":")
        status: int = getattr(importlib.import_module(module), name)(arguments)
        return status
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own log would be mixed into what we print
    from keyvouch_client.commands.invocation import perform

    return perform(arguments)


if __name__ == "__main__":
    sys.exit(main())
