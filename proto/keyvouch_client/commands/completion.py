"""`keyvouch completion`: the script that completes this command in a shell. Needs no server and no sign-in."""

from __future__ import annotations

import argparse
import sys

from keyvouch_client.commands.parser import build_parser
from keyvouch_client.completion import script

__all__ = ["perform"]


def perform(arguments: argparse.Namespace) -> int:
    """Print it; returns the exit status."""
    sys.stdout.write(script(build_parser(), arguments.shell))
    return 0
